"""What the notebooks found, in words: Markdown sentences whose every number is computed from the run.

Notebooks 5 to 9 say it in `report.summary_sentences`, `curvature_report.flatness_sentences`, `ablations.curve_sentence`
and `ablations.difference_sentences`; what they lack, and the other notebooks, are here.
"""

from collections import Counter

import numpy as np
import pandas as pd

from tbkd_utils.data.check import DatasetReport
from tbkd_utils.experiments.ablations import interval_verdict
from tbkd_utils.experiments.evaluation import Localization, localization, probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import TrainedClassifier
from tbkd_utils.metrics.statistics import bootstrap_interval
from tbkd_utils.systems.tb.verdicts import FAILS, HOLDS, OPEN


def data_sentences(report: DatasetReport, experiment: Experiment) -> str:
    """Notebook 1: what is there, how small the lesions are, what is used, and what is wrong."""
    images, boxes = report.images, report.boxes
    present = images[images["present"]]
    absent = len(images) - len(present)
    lines = [
        f"{len(present)} radiographs are there, {int(present['label'].sum())} of them with TB; "
        + (f"{absent} that the lists name are absent." if absent else "none that the lists name is absent.")
    ]
    if len(boxes):
        boxed = present[present["n_boxes"] > 0]
        several = float((boxed["n_boxes"] > 1).mean())
        lines.append(
            f"Half of the {len(boxes)} boxes cover less than {boxes['area_share'].median():.1%} of their radiograph. "
            f"{several:.0%} of the radiographs with boxes have more than one."
        )
    stopped = f", {len(experiment.monitor)} decide when training stops" if experiment.monitor is not None else ""
    lines.append(
        f"{len(experiment.train)} radiographs are trained on{stopped}, {len(experiment.test)} are tested on. "
        f"{experiment.test.dropped_boxes} boxes of the test set lie outside the crop."
    )
    found = len(report.problems)
    lines.append(f"{found} problems were found; they are listed above." if found else "No problem was found.")
    return _bullets(lines)


def teacher_sentences(teacher: TrainedClassifier, classified: pd.DataFrame, found: Localization) -> str:
    """Notebook 2: the epoch that was kept, how the teacher classifies, and how far its boxes fit.

    Args:
        teacher: The trained network.
        classified: From `evaluation.classification`.
        found: Its boxes and scores.
    """
    losses = teacher.history["monitored_loss"].to_numpy()
    kept = int(losses.argmin()) if teacher.recipe.keep == "best" else len(losses) - 1
    metric = {row["metric"]: row for row in classified.to_dict("records")}
    boxes = {row["metric"]: row for row in found.summary.to_dict("records")}
    score = boxes["score"]
    return _bullets(
        [
            f"Epoch {kept + 1} of {len(losses)} is kept; its loss on the monitored radiographs is {losses[kept]:.3f}.",
            f"The teacher calls {_share(metric['sensitivity'])} of the TB radiographs TB, and "
            f"{_share(metric['specificity'])} of the others no TB. AUC {metric['auc']['value']:.3f} "
            f"({metric['auc']['low']:.3f} to {metric['auc']['high']:.3f}).",
            f"Its boxes reach an mIOU of {score['mean']:.3f} ({score['low']:.3f} to {score['high']:.3f}); on "
            f"{boxes['pointing']['mean']:.0%} of the radiographs its hottest point lies in a lesion.",
        ]
    )


def student_sentences(experiment: Experiment, teacher: TrainedClassifier, student: TrainedClassifier) -> str:
    """Notebook 3: whether the student classifies better than its teacher, and how far the boxes of both fit."""
    recipe = experiment.recipe
    calls = [probabilities(experiment, one) for one in (teacher, student)]
    right = [((table["p_tb"] > 0.5) == (table["label"] == 1)).to_numpy() for table in calls]
    difference = right[1].astype(float) - right[0].astype(float)
    low, high = bootstrap_interval(difference, resamples=recipe.resamples, seed=recipe.statistics_seed)
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
            f"at {curve.idxmax():g}; this run uses {one.experiment.recipe.threshold:g}."
        )
    ahead = int((curves["student"] > curves["teacher"]).sum())
    lines.append(f"The student's mIOU is the higher one at {ahead} of {len(curves['student'])} thresholds.")
    return _bullets(lines)


def shortcut_sentences(table: pd.DataFrame) -> str:
    """Notebook 5: whether a network looks at the synthetic token more than at any other place.

    Args:
        table: From `shortcut.shortcut_table`.
    """
    if table.empty:
        return _bullets(["No shortcut is known in these radiographs, so none can be measured."])
    lines = []
    for row in table.to_dict("records"):
        verdict = "as much as looking everywhere alike would give, within the interval"
        if row["low"] > row["token_area"]:
            verdict = "more than looking everywhere alike would give"
        elif row["high"] < row["token_area"]:
            verdict = "less than looking everywhere alike would give"
        lines.append(
            f"Shortcut: {row['energy']:.2%} ({row['low']:.2%} to {row['high']:.2%}) of the {row['network']}'s heatmap "
            f"lies on the token, whose area is {row['token_area']:.2%}: {verdict}."
        )
    return _bullets(lines)


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
        artefacts = Counter(verdicts.loc[verdicts["holds here"] == answer, "artefact"])
        named = "; ".join(f"{name} ({count})" if count > 1 else str(name) for name, count in artefacts.items())
        count = sum(artefacts.values())
        lines.append(f"{count} of {len(verdicts)} claims {said}" + (f": {named}." if count else "."))
    counts = Counter(verdicts["verdict"])
    lines.append("Verdicts: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + ".")
    return _bullets(lines)


def _share(row: dict) -> str:
    """A share in percent with its interval."""
    return f"{row['value']:.0%} ({row['low']:.0%} to {row['high']:.0%})"


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
