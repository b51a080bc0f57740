"""What was found, in words: Markdown sentences whose every number is computed from the run."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd

from tbkd_utils.curvature.spectrum import Spectrum
from tbkd_utils.data.check import DatasetReport
from tbkd_utils.experiments.comparisons import FAILS, HOLDS, OPEN, student_minus_teacher
from tbkd_utils.experiments.curvature import ratio_table
from tbkd_utils.experiments.evaluation import Localization, localization, probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.guesses import BlindGuesses, minus_best_guess
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.metrics.statistics import (
    bootstrap_interval,
)
from tbkd_utils.systems.tb.paper import TABLE_1, TABLE_2, TABLE_3, comparability


def data_sentences(report: DatasetReport, experiment: Experiment) -> str:
    """Notebook 1: what is there, how small the lesions are, what is used, and what is wrong."""
    images, boxes = report.images, report.boxes
    present = images[images["present"]]
    absent = len(images) - len(present)
    lines = [
        f"{len(present)} radiographs are there, {int((present['target'] == 1).sum())} of them with TB; "
        + (f"{absent} that the lists name are absent." if absent else "none that the lists name is absent.")
    ]
    if len(boxes):
        boxed = present[present["n_boxes"] > 0]
        several = float((boxed["n_boxes"] > 1).mean())
        lines.append(
            f"Half of the {len(boxes)} boxes cover less than {boxes['area_share'].median():.1%} of their radiograph. "
            f"{several:.0%} of the radiographs with boxes have more than one."
        )
    stopped = f", {len(experiment.validation)} decide when training stops" if experiment.validation is not None else ""
    lines.append(
        f"{len(experiment.train)} radiographs are trained on{stopped}, {len(experiment.test)} are tested on. "
        f"{experiment.test.dropped_boxes} boxes of the test set lie outside the crop."
    )
    found = len(report.problems)
    lines.append(f"{found} problems were found; they are listed above." if found else "No problem was found.")
    return _bullets(lines)


def teacher_sentences(teacher: TrainedNetwork, classified: pd.DataFrame, found: Localization) -> str:
    """Notebook 2: the epoch that was kept, how the teacher classifies, and how far its boxes fit.

    Args:
        teacher: The trained network.
        classified: From `evaluation.classification`.
        found: Its boxes and scores.
    """
    losses = teacher.history["validation_loss"].to_numpy()
    kept = int(losses.argmin()) if teacher.recipe.training.keep == "best" else len(losses) - 1
    metric = {row["metric"]: row for row in classified.to_dict("records")}
    boxes = {row["metric"]: row for row in found.summary.to_dict("records")}
    score = boxes["score"]
    return _bullets(
        [
            f"Epoch {kept + 1} of {len(losses)} is kept; its loss on the validation radiographs is {losses[kept]:.3f}.",
            f"The teacher calls {_share(metric['sensitivity'])} of the TB radiographs TB, and "
            f"{_share(metric['specificity'])} of the others no TB. AUC {metric['auc']['value']:.3f} "
            f"({metric['auc']['low']:.3f} to {metric['auc']['high']:.3f}).",
            f"Its boxes reach an mIOU of {score['mean']:.3f} ({score['low']:.3f} to {score['high']:.3f}); on "
            f"{boxes['pointing']['mean']:.0%} of the radiographs its hottest point lies in a lesion.",
        ]
    )


def student_sentences(experiment: Experiment, teacher: TrainedNetwork, student: TrainedNetwork) -> str:
    """Notebook 3: whether the student classifies better than its teacher, and how far the boxes of both fit."""
    recipe = experiment.recipe
    calls = [probabilities(experiment, one) for one in (teacher, student)]
    right = [((table["probability"] > 0.5) == (table["label"] == 1)).to_numpy() for table in calls]
    difference = right[1].astype(float) - right[0].astype(float)
    low, high = bootstrap_interval(difference, **recipe.resampling)
    mious = [localization(experiment, one).miou for one in (teacher, student)]
    return _bullets(
        [
            f"Accuracy: teacher {right[0].mean():.3f}, student {right[1].mean():.3f}; difference "
            f"{difference.mean():+.3f} ({low:+.3f} to {high:+.3f} over radiographs): {interval_verdict(low, high)}.",
            f"mIOU: teacher {mious[0]:.3f}, student {mious[1]:.3f}. Notebook 5 asks whether that is a difference.",
        ]
    )


def box_sentences(teacher: Localization, student: Localization) -> str:
    """Notebook 4: how coarse the heatmaps are, how many boxes come of them, and what the threshold does."""
    cells, side = student.maps.shape[1:3], student.samples.size
    cell = side[0] / cells[0] * side[1] / cells[1]
    truth = np.concatenate(student.samples.boxes)
    smaller = float(((truth[:, 2:] - truth[:, :2]).prod(axis=1) < cell).mean())
    lines = [
        f"A heatmap has {cells[0]} x {cells[1]} cells; {smaller:.0%} of the {len(truth)} lesions are smaller than one."
    ]
    curves = {}
    for one in (teacher, student):
        curve = one.threshold_rows().groupby("threshold")["score"].mean()
        curves[one.role] = curve
        none = int((one.rows["n_pred"] == 0).sum())
        lines.append(
            f"{one.role.capitalize()}: {one.rows['n_pred'].mean():.2f} boxes per radiograph, none on {none} of "
            f"{len(one.rows)}. Over all thresholds mIOU lies between {curve.min():.3f} and {curve.max():.3f}, highest "
            f"at {curve.idxmax():g}; this run uses {one.experiment.recipe.scores.threshold:g}."
        )
    ahead = int((curves["student"] > curves["teacher"]).sum())
    lines.append(f"The student's mIOU is the higher one at {ahead} of {len(curves['student'])} thresholds.")
    return _bullets(lines)


def shortcut_sentences(table: pd.DataFrame) -> str:
    """Notebook 5: whether a network looks at the synthetic marker more than at any other place.

    Args:
        table: From `shortcut.shortcut_table`.
    """
    if table.empty:
        return _bullets(["No shortcut is known in these radiographs, so none can be measured."])
    lines = []
    for row in table.to_dict("records"):
        verdict = "as much as looking everywhere alike would give, within the interval"
        if row["low"] > row["marker_area"]:
            verdict = "more than looking everywhere alike would give"
        elif row["high"] < row["marker_area"]:
            verdict = "less than looking everywhere alike would give"
        lines.append(
            f"Shortcut: {row['energy']:.2%} ({row['low']:.2%} to {row['high']:.2%}) of the {row['network']}'s heatmap "
            f"lies on the marker, whose area is {row['marker_area']:.2%}: {verdict}."
        )
    return _bullets(lines)


def blind_sentences(guesses: BlindGuesses, found: Mapping[str, Localization]) -> str:
    """Notebook 5: what the best box-free guess scores, and whether each network beats it.

    Args:
        guesses: From `guesses.blind_guesses`.
        found: Network to its boxes and scores.
    """
    own = {row["metric"]: row for row in guesses.scores(guesses.best).to_dict("records")}
    lines = [
        f"Best box-free guess: the {guesses.best}. mIOU {_mean(own['score'])}, one-to-one IoU {_mean(own['matched'])}."
    ]
    for network, one in found.items():
        parts = []
        for row in minus_best_guess(guesses, one).to_dict("records"):
            score = {"score": "mIOU", "matched": "one-to-one IoU"}[row["metric"]]
            verdict = interval_verdict(row["low"], row["high"])
            parts.append(
                f"{score} {row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}, {_p(row['p'])}): {verdict}"
            )
        lines.append(f"The {network} minus that guess, radiograph by radiograph: {'; '.join(parts)}.")
    return _bullets([*lines, guesses.missing] if guesses.missing else lines)


def rise_sentences(rises: pd.DataFrame, correlations: pd.DataFrame) -> str:
    """Notebook 6: which network's loss rises less when its weights move, and whether flatness goes with mIOU.

    Args:
        rises: From `curvature.rise_table`, teacher and student.
        correlations: From `curvature_report.flatness_correlation`.
    """
    teacher, student = (rises.set_index("network").to_dict("index")[who] for who in ("teacher", "student"))
    difference = float(student["rise"] - teacher["rise"])
    verdict = "the difference is within two standard errors"
    if abs(difference) > 2 * np.hypot(student["stderr"], teacher["stderr"]):
        verdict = "the student's rises less" if difference < 0 else "the student's rises more"
    lines = [
        f"Moving every filter by {teacher['radius']:.0%} of its norm raises the teacher's loss by "
        f"{teacher['rise']:.2f} and the student's by {student['rise']:.2f} nats: {verdict}."
    ]
    for row in correlations[correlations["quantity"] == "trace"].to_dict("records"):
        if row["group"] == "all":
            continue
        said = f"rho {row['rho']:+.2f}, p {row['p']:.2f}" if np.isfinite(row["rho"]) else "too few to test"
        lines.append(f"Trace against mIOU within {row['networks']} {row['group']}: {said}.")
    return _bullets(lines)


def verdict_sentences(verdicts: pd.DataFrame) -> str:
    """Notebook 10: which claims hold here, which fail, and which are not shown.

    Args:
        verdicts: From `verdicts.verdicts`.
    """
    lines = []
    for answer, said in ((HOLDS, "hold here"), (FAILS, "fail here"), (OPEN, "are not shown either way")):
        artifacts = Counter(verdicts.loc[verdicts["holds here"] == answer, "artifact"])
        named = "; ".join(f"{name} ({count})" if count > 1 else str(name) for name, count in artifacts.items())
        count = sum(artifacts.values())
        lines.append(f"{count} of {len(verdicts)} claims {said}" + (f": {named}." if count else "."))
    counts = Counter(verdicts["verdict"])
    lines.append("Verdicts: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + ".")
    return _bullets(lines)


def _share(row: dict) -> str:
    """A share in percent with its interval."""
    return f"{row['value']:.0%} ({row['low']:.0%} to {row['high']:.0%})"


def _mean(row: dict) -> str:
    """A mean with its interval."""
    return f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def _p(p: float) -> str:
    return f"p {p:.3f}" if p >= 0.001 else "p below 0.001"


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def summary_sentences(experiment: Experiment, found: Mapping[str, Localization]) -> str:
    """Says in words what the numbers of this run show, as Markdown; every number in it is computed here."""
    teacher, student = found["teacher"], found["student"]
    rows = student_minus_teacher(teacher, student).set_index("metric").to_dict("index")
    row, strict = rows["score"], rows["matched"]
    matched = [float(one.rows["matched"].mean()) for one in (teacher, student)]
    if row["low"] > 0:
        verdict = "The student localizes better than its teacher on these radiographs"
    elif row["high"] < 0:
        verdict = "The student localizes worse than its teacher on these radiographs"
    else:
        verdict = "These radiographs do not show a difference between student and teacher"
    scored = [f"{len(one.rows)} radiographs with {one.rows['n_gt'].sum()} boxes" for one in (teacher, student)]
    on = scored[0] if scored[0] == scored[1] else f"{scored[0]} (teacher) and {scored[1]} (student)"
    lines = [
        f"- mIOU: teacher {teacher.miou:.3f}, student {student.miou:.3f}, on {on}.",
        f"- {verdict}: difference {row['difference']:+.3f}, 95% interval {row['low']:+.3f} to {row['high']:+.3f}, "
        f"paired permutation test {_p(row['p'])}.",
        f"- One-to-one IoU, in which missed and surplus boxes count 0: teacher {matched[0]:.3f}, student "
        f"{matched[1]:.3f}; difference {strict['difference']:+.3f} ({strict['low']:+.3f} to {strict['high']:+.3f}, "
        f"{_p(strict['p'])}): {interval_verdict(strict['low'], strict['high'])}.",
        f"- This is one seed ({experiment.recipe.training.seed}) of the last layer. In the paper, four seeds move the "
        f"student's mIOU between {min(v['student'] for v in TABLE_3.values()):.3f} and "
        f"{max(v['student'] for v in TABLE_3.values()):.3f}.",
    ]
    reasons = comparability(experiment)
    if reasons:
        lines.append(f"- Not comparable with the paper's numbers: {'; '.join(reasons)}.")
    return "\n".join(lines)


def flatness_sentences(spectra: Mapping[str, Spectrum], sizes: pd.DataFrame) -> str:
    """Answers in words, as Markdown: is the student's minimum flatter, and is that more than sampling noise?"""
    table = ratio_table(sizes)
    largest = int(sizes["size"].max())
    lines = []
    for quantity, name in (("eigenvalue", "largest eigenvalue"), ("trace", "trace")):
        row = table[(table["quantity"] == quantity) & (table["size"] == largest)].iloc[0]
        if np.isfinite(row["low"]) and row["low"] > 1:
            verdict = "the student is flatter, beyond the choice of radiographs"
        elif np.isfinite(row["high"]) and row["high"] < 1:
            verdict = "the student is sharper, beyond the choice of radiographs"
        else:
            verdict = "the choice of radiographs alone could explain it"
        paper = TABLE_1["teacher"][0] / TABLE_1["student"][0] if quantity == "eigenvalue" else (
            TABLE_2["teacher"] / TABLE_2["student"]
        )  # fmt: skip
        lines.append(
            f"- {name}, teacher over student on {largest} radiographs: {row['ratio']:.2f} (95% interval "
            f"{row['low']:.2f} to {row['high']:.2f} over {int(row['draws'])} draws; paper {paper:.2f}): {verdict}."
        )
    missed = sum(int((~found.converged).sum()) for found in spectra.values())
    total = sum(len(found.converged) for found in spectra.values())
    lines.append(f"- {total - missed} of {total} eigenvalues of Table 1 converged.")
    lines.append("- One training of each network: another seed may give another ratio.")
    return "\n".join(lines)


def curve_sentence(rows: pd.DataFrame, what: str, claimed: float, guess: tuple[str, float] | None = None) -> str:
    """Says in words which value came out best, how sure that is on these radiographs, and what a blind guess scores.

    Args:
        rows: From `comparisons.curve_rows`.
        what: The setting that is varied.
        claimed: Its best value in the paper.
        guess: The best box-free guess and its mIOU, from `BlindGuesses.line`; None leaves it out.
    """
    top = rows.iloc[int(rows["miou"].argmax())]
    spread = rows["miou"].max() - rows["miou"].min()
    text = f"Highest mIOU at {what} {top['value']:g}: {top['miou']:.3f}"
    text += f" (the best in {top['best']:.0%} of the resamples of the radiographs); from worst to best {spread:.3f}. "
    ours = rows.loc[np.isclose(rows["value"], claimed)]
    if ours.empty:
        text += f"The paper's best, {claimed:g}, is not among the values."
    else:
        text += f"The paper's best, {claimed:g}, is the best here in {ours['best'].iloc[0]:.0%} of the resamples."
    return text + (f" The best box-free guess, the {guess[0]}, has an mIOU of {guess[1]:.3f}." if guess else "")


def difference_sentences(table: pd.DataFrame) -> str:
    """Says in words, as Markdown, which differences stand out against another seed and against other radiographs."""
    lines = []
    for row in table.to_dict("records"):
        seeds = interval_verdict(row["seed_low"], row["seed_high"])
        images = interval_verdict(row["image_low"], row["image_high"])
        lines.append(
            f"- {row['comparison']}: {row['difference']:+.3f}; over {row['seeds']} seeds {row['seed_low']:+.3f} to "
            f"{row['seed_high']:+.3f} ({seeds}); over radiographs {row['image_low']:+.3f} to {row['image_high']:+.3f} "
            f"({images})."
        )
    return "\n".join(lines)


def interval_verdict(low: float, high: float) -> str:
    """Says in words on which side of 0 an interval lies."""
    if low > 0:
        return "higher"
    return "lower" if high < 0 else "no difference shown"
