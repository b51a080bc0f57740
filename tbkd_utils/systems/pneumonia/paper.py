"""What the paper and its notebooks print, and whether a run of ours may be set beside it (arXiv 2511.00456, v4)."""

from dataclasses import dataclass

import pandas as pd

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.metrics.classification import metrics_from_counts
from tbkd_utils.metrics.operating import f1_from_counts
from tbkd_utils.metrics.statistics import wilson_interval
from tbkd_utils.systems.pneumonia.grid import source_weights
from tbkd_utils.systems.pneumonia.settings import PneumoniaRecipe


@dataclass(frozen=True)
class Published:
    """The source's test of one network: 906 radiographs, one training.

    Attributes:
        tn: Normal radiographs called normal.
        fp: Normal ones called pneumonia.
        fn: Those with pneumonia called normal.
        tp: Those called pneumonia.
        roc_auc: Area under the ROC curve.
        pr_auc: Average precision, pneumonia positive.
    """

    tn: int
    fp: int
    fn: int
    tp: int
    roc_auc: float
    pr_auc: float


PUBLISHED = {
    "resnet18": Published(227, 10, 7, 662, 0.9971, 0.9990),
    "resnet50": Published(222, 15, 17, 652, 0.9952, 0.9983),
    "efficientnet_b0": Published(229, 8, 11, 658, 0.9971, 0.9989),
    "mobilenet_v2": Published(225, 12, 14, 655, 0.9946, 0.9980),
    "mobilenet_v3_large": Published(230, 7, 17, 652, 0.9971, 0.9990),
    "vit_b_16": Published(226, 11, 13, 656, 0.9947, 0.9981),
}
"""By network; the cell of DenseNet-121 failed in the source's notebook."""
CALLED_BEST = ("resnet18", "efficientnet_b0")
"""The networks that the paper puts first."""


def published_table() -> pd.DataFrame:
    """Returns the source's test as it follows from its counts.

    Returns:
        One row per network: network, accuracy with accuracy_low and accuracy_high (Wilson, ours: the source gives no
        interval), f1, sensitivity, specificity, roc_auc, pr_auc.
    """
    rows = []
    for network, found in PUBLISHED.items():
        scores = metrics_from_counts(tp=found.tp, fn=found.fn, tn=found.tn, fp=found.fp)
        low, high = wilson_interval(found.tp + found.tn, found.tp + found.tn + found.fp + found.fn)
        f1 = f1_from_counts(found.tp, found.fn, found.fp)
        rows.append((network, scores["accuracy"], low, high, f1, scores["sensitivity"], scores["specificity"],
                     found.roc_auc, found.pr_auc))  # fmt: skip
    columns = ["network", "accuracy", "accuracy_low", "accuracy_high", "f1", "sensitivity", "specificity", "roc_auc",
               "pr_auc"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def comparability(experiment: Experiment) -> list[str]:
    """Returns why numbers of this experiment cannot be set against the paper's; empty if nothing speaks against it."""
    if experiment.synthetic:
        return ["the radiographs are drawings"]
    recipe, reasons = experiment.recipe, []
    ours, paper = recipe.flat(*_COMPARED), PneumoniaRecipe.build("paper", _paper_preset(), "pneumonia").flat(*_COMPARED)
    if recipe.training.network not in PUBLISHED:
        reasons.append(f"the network is {recipe.training.network}, which the paper did not test")
    paper |= {name: ours[name] for name in ("network", "seed")}
    paper["weights"] = source_weights(recipe.training.network)
    if ours["weights"] == "imagenet" and paper["weights"] == "imagenet1k_v1":  # two names of the same
        paper["weights"] = "imagenet"
    for what, (found, wanted) in counted(experiment).items():
        if found != wanted:
            reasons.append(
                f"the {what} set has {found[0]} normal and {found[1]} pneumonia, not {wanted[0]} and {wanted[1]}"
            )
    changed = [f"{name} is {ours[name]}, not {paper[name]}" for name in ours if ours[name] != paper[name]]
    return [*reasons, f"settings differ from the paper's ({'; '.join(changed)})"] if changed else reasons


def counted(experiment: Experiment) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    """Returns for each set the radiographs of both classes here and in the paper."""
    tested = [record.target for record in experiment.test_records]
    held, records = set(experiment.held_out.names), experiment.train_records
    trained = [record.target for record in records if record.name not in held]
    return {
        "training": ((trained.count(0), trained.count(1)), (1114, 2951)),
        "test": ((tested.count(0), tested.count(1)), (237, 669)),
    }


_COMPARED = ("data", "pixels", "training", "pneumonia")


def _paper_preset() -> dict:
    from tbkd_utils.systems.pneumonia.presets import PRESETS

    return PRESETS["paper"]
