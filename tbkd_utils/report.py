"""The paper's numbers beside ours, and what the paper leaves open beside what was used."""

from collections import Counter
from collections.abc import Iterable, Mapping

import pandas as pd

from tbkd_utils.experiments.evaluation import Localization, paired_rows
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.metrics.statistics import bootstrap_interval, paired_permutation_test

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
