"""The paper's numbers beside ours, and what the paper leaves open beside what was used."""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from scipy import stats

from tbkd_utils.curvature.pyhessian import PyHessianNumbers
from tbkd_utils.curvature.spectrum import Spectrum
from tbkd_utils.experiments.evaluation import Localization, paired_rows
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.metrics.statistics import across_seeds, bootstrap_interval, paired_permutation_test
from tbkd_utils.views.curvature_figures import by_network, ratios

NETWORKS = ("teacher", "student")
TABLE_3 = {  # mIOU by seed of the last layer; seed 42 is also Figure 6
    0: {"teacher": 0.1814, "student": 0.2355},
    1: {"teacher": 0.1324, "student": 0.1190},
    42: {"teacher": 0.1482, "student": 0.2428},
    1234: {"teacher": 0.1154, "student": 0.2651},
}
TABLE_4 = {
    "accuracy": {"teacher": 0.9817, "student": 0.9850},
    "auc": {"teacher": 0.9944, "student": 0.9954},
    "sensitivity": {"teacher": 0.9100, "student": 0.9800},
    "specificity": {"teacher": 0.9906, "student": 0.9856},
    "average_precision": {"teacher": 0.9563, "student": 0.9462},
    "average_recall": {"teacher": 0.9503, "student": 0.9828},
}
STATED = (  # settings whose value the paper states; a recipe's defaults are those values
    "resize",
    "randaugment_ops",
    "randaugment_magnitude",
    "learning_rate",
    "weight_decay",
    "batch_size",
    "epochs",
    "patience",
    "temperature",
    "alpha",
)
TABLE_1 = {  # as printed; not in order of magnitude, and nearly tied values of opposite sign among them
    "teacher": (16113.1055, 3777.7590, 4470.2427, 1793.0648, 1214.0911, 1148.4277, 843.6339, -813.5349, 716.4574,
                658.4104),
    "student": (3414.7578, 620.5816, -234.4829, 230.7972, 158.6752, 155.0008, 132.6553, -130.6553, 125.0955,
                -118.5276),
}  # fmt: skip
TABLE_2 = {"teacher": 40864.3358, "student": 4064.3874}
LEFT_OPEN = {  # what the paper leaves open -> the settings of the recipe that decide it
    "ImageNet weights": ("weights",),
    "which loss stops training": ("monitor", "holdout_fraction"),
    "which epoch is kept": ("keep",),
    "teacher during distillation": ("teacher_mode",),
    "Grad-CAM layer": ("cam_layer",),
    "Grad-CAM sign": ("cam_relu",),
    "Grad-CAM arithmetic": ("cam_method", "cam_precision", "cam_compile"),
    "Grad-CAM upsampling": ("cam_upsampling",),
    "which images are scored": ("scored_images",),
    "normalisation": ("normalisation",),
    "threshold": ("threshold",),
    "area in Algorithm 1": ("area",),
    "minimum area": ("min_area_quantile",),
    "an image without prediction": ("no_prediction",),
    "average over all images": ("average",),
    "box geometry": ("resize", "crop"),
    "radiographs": ("train_splits", "test_splits", "partial", "drop_duplicates"),
}


def table_3(found: Mapping[str, Localization]) -> pd.DataFrame:
    """Table 3 for one seed: network, seed, miou, low, high, paper (the paper's number for that seed, if any)."""
    rows = []
    for network, localization in found.items():
        recipe = localization.experiment.recipe
        score = localization.summary.set_index("metric").loc["score"]
        paper = TABLE_3.get(recipe.seed, {}).get(network, float("nan"))
        rows.append((network, recipe.seed, score["mean"], score["low"], score["high"], paper))
    return pd.DataFrame(rows, columns=["network", "seed", "miou", "low", "high", "paper"])


def table_4(classified: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Table 4: metric, then for each network our value, its 95% interval and the paper's value."""
    table = pd.DataFrame({"metric": list(TABLE_4)})
    for network, summary in classified.items():
        ours = summary.set_index("metric").loc[list(TABLE_4)].reset_index()
        for column, ours_column in ((network, "value"), (f"{network} low", "low"), (f"{network} high", "high")):
            table[column] = ours[ours_column]
        table[f"{network} paper"] = [TABLE_4[metric][network] for metric in TABLE_4]
    return table


def localization_table(found: Mapping[str, Localization]) -> pd.DataFrame:
    """Every localisation metric of each network with its interval over images."""
    table: pd.DataFrame | None = None
    for network, localization in found.items():
        columns = {"mean": network, "low": f"{network} low", "high": f"{network} high"}
        ours = localization.summary.drop(columns="n").rename(columns=columns)
        table = ours if table is None else table.merge(ours, on="metric")
    assert table is not None
    return table


def student_minus_teacher(teacher: Localization, student: Localization) -> pd.DataFrame:
    """Compares the networks image by image: difference, its 95% bootstrap interval, and a paired permutation test.

    Every radiograph that both networks are scored on counts alike, whatever the recipe's `average` and `no_prediction`.

    Returns:
        One row per metric (score = the paper's, matched, energy): metric, difference, low, high, p, n. One seed of
        training says nothing about other seeds: the interval covers the choice of images only.

    Raises:
        EvaluationError: If no radiograph is scored for both.
    """
    recipe = teacher.experiment.recipe
    pairs = paired_rows(teacher, student)
    rows = []
    for metric in ("score", "matched", "energy"):
        ours = pairs[f"{metric}_student"].to_numpy(), pairs[f"{metric}_teacher"].to_numpy()
        difference = ours[0] - ours[1]
        low, high = bootstrap_interval(difference, resamples=recipe.resamples, seed=recipe.statistics_seed)
        p = paired_permutation_test(*ours, resamples=5 * recipe.resamples, seed=recipe.statistics_seed)
        rows.append((metric, float(difference.mean()), low, high, p, len(difference)))
    return pd.DataFrame(rows, columns=["metric", "difference", "low", "high", "p", "n"])


def comparability(experiment: Experiment) -> list[str]:
    """Returns why numbers of this experiment cannot be set against the paper's; empty if nothing speaks against it."""
    recipe, reasons = experiment.recipe, []
    if experiment.synthetic:
        reasons.append("the radiographs are synthetic")
    if recipe.backbone != "resnet50":
        reasons.append(f"the network is {recipe.backbone}, not ResNet-50")
    if recipe.weights == "none":
        reasons.append("training starts from random weights, not from ImageNet's")
    if recipe.crop != 224:
        reasons.append(f"the input is {recipe.crop} px, not 224")
    ours, paper = (one.part("pixels", "training", "distillation") for one in (recipe, Recipe()))
    changed = [f"{name} is {ours[name]}, not {paper[name]}" for name in STATED if ours[name] != paper[name]]
    if changed:
        reasons.append(f"settings differ from the paper's ({'; '.join(changed)})")
    if not experiment.synthetic:
        counts = {
            "training set": (_counts(record.label for record in experiment.listed_train_records), (6000, 600)),
            "test set": (_counts(record.label for record in experiment.test_records), (1600, 200)),
        }
        for what, (found, wanted) in counts.items():
            if found != wanted:
                reasons.append(
                    f"the {what} has {found[1]} TB and {found[0]} other radiographs, not {wanted[1]} and {wanted[0]}"
                )
    return reasons


def left_open(experiment: Experiment) -> pd.DataFrame:
    """What the paper leaves open, the settings that decide it, and the values this experiment used."""
    values = experiment.recipe.part("data", "pixels", "training", "distillation", "heatmaps", "scores")
    rows = [
        (question, ", ".join(f"{name} = {values[name]}" for name in names)) for question, names in LEFT_OPEN.items()
    ]
    return pd.DataFrame(rows, columns=["left open by the paper", "used here"])


def split_table(experiment: Experiment) -> pd.DataFrame:
    """What this experiment trains, monitors and tests on: radiographs per class, boxes, and what was left out."""
    recipe = experiment.recipe
    used = {"train": experiment.train, "monitor": experiment.monitor, "test": experiment.test}
    rows = []
    for use, samples in used.items():
        if samples is None:
            continue
        no_tb, tb = _counts(samples.labels)
        boxes = sum(map(len, samples.boxes))
        splits = recipe.test_splits if use == "test" or samples is experiment.test else recipe.train_splits
        copies = experiment.copies_left_out if use == "train" else 0
        rows.append((use, " + ".join(splits), tb, no_tb, boxes, samples.dropped_boxes, copies))
    columns = ["use", "from", "TB", "no TB", "boxes", "boxes outside the crop", "copies left out"]
    return pd.DataFrame(rows, columns=columns)


def summary_sentences(experiment: Experiment, found: Mapping[str, Localization]) -> str:
    """Says in words what the numbers of this run show, as Markdown; every number in it is computed here."""
    teacher, student = found["teacher"], found["student"]
    row = student_minus_teacher(teacher, student).set_index("metric").loc["score"].to_dict()
    if row["low"] > 0:
        verdict = "The student localises better than its teacher on these radiographs"
    elif row["high"] < 0:
        verdict = "The student localises worse than its teacher on these radiographs"
    else:
        verdict = "These radiographs do not show a difference between student and teacher"
    scored = [f"{len(one.rows)} radiographs with {one.rows['n_gt'].sum()} boxes" for one in (teacher, student)]
    on = scored[0] if scored[0] == scored[1] else f"{scored[0]} (teacher) and {scored[1]} (student)"
    p = f"{row['p']:.3f}" if row["p"] >= 0.001 else "below 0.001"
    lines = [
        f"- mIOU: teacher {teacher.miou:.3f}, student {student.miou:.3f}, on {on}.",
        f"- {verdict}: difference {row['difference']:+.3f}, 95% interval {row['low']:+.3f} to {row['high']:+.3f}, "
        f"paired permutation test p {p}.",
        f"- This is one seed ({experiment.recipe.seed}) of the last layer. In the paper, four seeds move the student's "
        f"mIOU between {min(v['student'] for v in TABLE_3.values()):.3f} and "
        f"{max(v['student'] for v in TABLE_3.values()):.3f}.",
    ]
    reasons = comparability(experiment)
    if reasons:
        lines.append(f"- Not comparable with the paper's numbers: {'; '.join(reasons)}.")
    return "\n".join(lines)


def _counts(labels: Iterable[int]) -> tuple[int, int]:
    """How many are no TB and how many TB."""
    counts = Counter(int(label) for label in labels)
    return counts[0], counts[1]


def table_1(spectra: Mapping[str, Spectrum], theirs: Mapping[str, PyHessianNumbers]) -> pd.DataFrame:
    """Table 1: top eigenvalues by magnitude, their residual, PyHessian's own in its own order, and the paper's.

    Returns:
        One row per network and rank: network, rank, eigenvalue, residual, converged, pyhessian, paper.
    """
    rows = []
    for network, found in spectra.items():
        for rank, (value, residual, converged) in enumerate(
            zip(found.eigenvalues, found.residuals, found.converged, strict=True)
        ):
            own = theirs[network].eigenvalues
            pyhessian = own[rank] if rank < len(own) else np.nan
            paper = TABLE_1[network][rank] if rank < len(TABLE_1[network]) else np.nan
            rows.append((network, rank + 1, value, residual, "yes" if converged else "no", pyhessian, paper))
    return pd.DataFrame(rows, columns=["network", "rank", "eigenvalue", "residual", "converged", "pyhessian", "paper"])


def table_2(spectra: Mapping[str, Spectrum], theirs: Mapping[str, PyHessianNumbers]) -> pd.DataFrame:
    """Table 2: the trace with its 95% interval over probes, PyHessian's, the paper's, and what it cost."""
    rows = [
        (network, found.trace, *found.trace_interval, theirs[network].trace, TABLE_2[network], found.samples,
         found.products, theirs[network].eigenvalue_products + theirs[network].trace_products)
        for network, found in spectra.items()
    ]  # fmt: skip
    columns = ["network", "trace", "low", "high", "pyhessian", "paper", "radiographs", "products", "pyhessian products"]
    return pd.DataFrame(rows, columns=columns)


def ratio_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Teacher over student on the same samples, per size: the mean of the logarithm with its t interval, as a ratio.

    Args:
        rows: From `curvature.size_rows`.

    Returns:
        One row per quantity and size: quantity, size, ratio, low, high, draws. A ratio of quantities of different
        sign is no ratio: it is left out of the mean, and `draws` says how many are in. Draws of one training set
        overlap, the more the larger they are, so the interval is narrow for large samples.
    """
    found = []
    for column in ("eigenvalue", "trace"):
        for size, table in ratios(rows, column).groupby("size"):
            positive = table.loc[table["ratio"] > 0, "ratio"]
            if len(positive):
                mean = across_seeds(np.log(positive))
                found.append((column, size, *np.exp([mean.mean, mean.low, mean.high]), len(positive)))
            else:
                found.append((column, size, np.nan, np.nan, np.nan, 0))
    return pd.DataFrame(found, columns=["quantity", "size", "ratio", "low", "high", "draws"])


def flatness_correlation(rows: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of flatness with mIOU over the networks at hand.

    Args:
        rows: From `curvature.flatness_rows`.

    Returns:
        One row per group (teachers, students, all) and quantity: group, quantity, networks, rho, p (two-sided
        permutation test: exact for up to 8 networks, so with four it is never below 2/24). With fewer than
        four networks there is no test and rho and p are nan. The paper's story needs a negative rho within a group;
        over all networks, a difference between the two groups alone can make one.
    """
    groups = {"all": rows} | {f"{who}s": table for who, table in by_network(rows)}
    found = []
    for group, table in groups.items():
        for column in ("eigenvalue", "trace"):
            rho, p = np.nan, np.nan
            if len(table) >= 4:
                rho, p = _spearman(table[column].abs().to_numpy(), table["miou"].to_numpy())
            found.append((group, column, len(table), rho, p))
    return pd.DataFrame(found, columns=["group", "quantity", "networks", "rho", "p"])


def _spearman(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Rank correlation and its permutation p value; scipy's own p is an approximation that fails for few values."""
    first, second = (stats.zscore(stats.rankdata(values)) for values in (x, y))

    def statistic(order: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean(order * second, axis=axis)

    found = stats.permutation_test(
        (first,), statistic, permutation_type="pairings", vectorized=True, n_resamples=50_000, rng=0
    )
    return float(found.statistic), float(found.pvalue)


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
