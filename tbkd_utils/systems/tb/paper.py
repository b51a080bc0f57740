"""What the paper prints, and whether a run of ours may be set beside it (arXiv 2512.11057)."""

from collections import Counter
from collections.abc import Iterable

import pandas as pd

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import Recipe

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
    "which loss stops training": ("early_stopping_on", "validation_fraction"),
    "which epoch is kept": ("keep",),
    "teacher during distillation": ("teacher_mode",),
    "Grad-CAM layer": ("cam_layer", "cam_layers"),
    "Grad-CAM sign": ("cam_relu",),
    "scale at which a network is looked at": ("eval_resize", "eval_crop", "cam_flip", "cam_sizes"),
    "Grad-CAM upsampling": ("cam_upsampling",),
    "heat outside the lungs": ("inside_lungs",),
    "which images are scored": ("scored_images",),
    "normalization": ("normalization",),
    "threshold": ("threshold",),
    "area in Algorithm 1": ("area",),
    "which regions get a box": ("boxes_by", "second_lung"),
    "minimum area": ("min_area", "min_area_quantile", "min_area_share"),
    "an image without prediction": ("no_prediction",),
    "average over all images": ("average",),
    "box geometry": ("resize", "crop"),
    "radiographs": ("train_splits", "test_splits", "partial", "drop_duplicates"),
}


def comparability(experiment: Experiment) -> list[str]:
    """Returns why numbers of this experiment cannot be set against the paper's; empty if nothing speaks against it."""
    recipe, reasons = experiment.recipe, []
    if experiment.synthetic:
        reasons.append("the radiographs are synthetic")
    if recipe.training.network != "resnet50":
        reasons.append(f"the network is {recipe.training.network}, not ResNet-50")
    if recipe.training.weights == "none":
        reasons.append("training starts from random weights, not from ImageNet's")
    if recipe.pixels.crop != 224:
        reasons.append(f"the input is {recipe.pixels.crop} px, not 224")
    ours, paper = (one.flat("pixels", "training", "distillation") for one in (recipe, Recipe()))
    changed = [f"{name} is {ours[name]}, not {paper[name]}" for name in STATED if ours[name] != paper[name]]
    if changed:
        reasons.append(f"settings differ from the paper's ({'; '.join(changed)})")
    if not experiment.synthetic:
        counts = {
            "training set": (
                _counts(int(record.target == 1) for record in experiment.listed_train_records),
                (6000, 600),
            ),
            "test set": (_counts(int(record.target == 1) for record in experiment.test_records), (1600, 200)),
        }
        for what, (found, wanted) in counts.items():
            if found != wanted:
                reasons.append(
                    f"the {what} has {found[1]} TB and {found[0]} other radiographs, not {wanted[1]} and {wanted[0]}"
                )
    return reasons


def left_open(experiment: Experiment) -> pd.DataFrame:
    """What the paper leaves open, the settings that decide it, and the values this experiment used."""
    values = experiment.recipe.flat()
    rows = [
        (question, ", ".join(f"{name} = {values[name]}" for name in names)) for question, names in LEFT_OPEN.items()
    ]
    return pd.DataFrame(rows, columns=["left open by the paper", "used here"])


def _counts(labels: Iterable[int]) -> tuple[int, int]:
    """How many are no TB and how many TB."""
    counts = Counter(int(label) for label in labels)
    return counts[0], counts[1]


def published_seeds() -> dict[str, list[float]]:
    """Returns Table 3 by network: the mIOU of each of the paper's seeds."""
    return {network: [by_network[network] for by_network in TABLE_3.values()] for network in ("teacher", "student")}
