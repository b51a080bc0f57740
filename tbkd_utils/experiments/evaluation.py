"""What a trained network says of the test set: rows per image, then summaries, each kept in a run folder."""

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from tbkd_utils.data.cache import Samples
from tbkd_utils.errors import TbkdError
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.experiments.trained import TrainedClassifier
from tbkd_utils.localization.boxes import boxes_from_json
from tbkd_utils.localization.gradcam import class_activation_maps, upsample
from tbkd_utils.localization.scores import mean_iou
from tbkd_utils.localization.tables import max_box_acc_row, score_rows, summarize, threshold_rows
from tbkd_utils.metrics.classification import classification_rows, classification_summary
from tbkd_utils.models.losses import DistillationError
from tbkd_utils.runs import Run, kept_rows, read_tensors, write_csv, write_tensors

THRESHOLDS = np.round(np.arange(0.02, 1.0, 0.02), 2)
"""Shares of the normalised heatmap at which the curves are drawn."""


class EvaluationError(TbkdError, ValueError):
    """A test set that an evaluation cannot be made on."""


def probabilities(experiment: Experiment, trained: TrainedClassifier) -> pd.DataFrame:
    """Returns one row per test radiograph: name, source, label, p_tb; computed once and kept.

    Raises:
        RunError: If the run folder cannot be written.
    """
    samples = experiment.test

    def compute() -> pd.DataFrame:
        p_tb = tb_probabilities(experiment.recipe, trained, samples)
        return classification_rows(samples.names, p_tb, samples.labels, samples.sources)

    return kept_rows(experiment.run_at("probabilities", _made_from(experiment, trained)), compute)


def class_logits(recipe: Recipe, trained: TrainedClassifier, samples: Samples) -> torch.Tensor:
    """Returns the logits of every radiograph, float64 (n, 2), on the CPU."""
    model, size = trained.model(), recipe.eval_batch_size
    with torch.inference_mode():
        batches = [model(samples.images(i, i + size).to(trained.device)) for i in range(0, len(samples), size)]
    return torch.cat(batches).cpu().double()


def tb_probabilities(recipe: Recipe, trained: TrainedClassifier, samples: Samples) -> np.ndarray:
    """Returns the probability of TB of every radiograph, float64 (n,)."""
    return class_logits(recipe, trained, samples).softmax(dim=1)[:, 1].numpy()


def classification(experiment: Experiment, trained: TrainedClassifier) -> pd.DataFrame:
    """Returns Table 4 for one network: metric, value, low, high, n; from the rows of `probabilities`."""
    recipe = experiment.recipe
    return classification_summary(probabilities(experiment, trained), recipe.resamples, recipe.statistics_seed)


@dataclass(frozen=True)
class Localization:
    """Heatmaps, boxes and scores of one network on the test radiographs that have a ground-truth box.

    Attributes:
        role: `teacher` or `student`.
        samples: The scored radiographs, n of them.
        maps: float32 (n, h, w), Grad-CAM at the layer's resolution, not normalised.
        min_area: Algorithm 1's minimum area, in square pixels of the crop.
        run: The run folder with `rows.csv`, `thresholds.csv` and `thresholds_all_sizes.csv`.
        experiment: Recipe and data.
    """

    role: str
    samples: Samples
    maps: np.ndarray
    min_area: float
    run: Run
    experiment: Experiment

    @cached_property
    def heatmaps(self) -> np.ndarray:
        """The maps at the resolution of the crop, float32 (n, H, W)."""
        return upsample(self.maps, self.samples.size, self.experiment.recipe.cam_upsampling)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per image; see `localization.score_rows`."""
        return pd.read_csv(self.run.file("rows.csv"))

    @cached_property
    def boxes(self) -> list[np.ndarray]:
        """The predicted boxes of every image, float32 (k, 4) xyxy in pixels of the crop."""
        return [boxes_from_json(text) for text in self.rows["boxes"]]

    @cached_property
    def miou(self) -> float:
        """The paper's mIOU, under the recipe's `no_prediction` and `average`."""
        return mean_iou(self.samples.boxes, self.boxes, **_averaging(self.experiment))

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every metric at the recipe's threshold with its interval: metric, mean, low, high, n."""
        recipe = self.experiment.recipe
        return summarize(self.rows, recipe.resamples, recipe.statistics_seed, **_averaging(self.experiment))

    @cached_property
    def summary(self) -> pd.DataFrame:
        """`scores`, and MaxBoxAccV2, which looks at every threshold, as the last row."""
        recipe = self.experiment.recipe
        best = max_box_acc_row(self.threshold_rows(all_sizes=True), recipe.resamples, recipe.statistics_seed)
        return pd.concat([self.scores, best], ignore_index=True)

    def threshold_rows(self, *, all_sizes: bool = False) -> pd.DataFrame:
        """One row per image and threshold; `all_sizes` keeps boxes below the minimum area too."""
        return pd.read_csv(self.run.file("thresholds_all_sizes.csv" if all_sizes else "thresholds.csv"))


def localization(experiment: Experiment, trained: TrainedClassifier) -> Localization:
    """Makes heatmaps and boxes and scores them; computed once and kept.

    Raises:
        EvaluationError: If no test radiograph has a box, or no training radiograph, which the minimum area needs.
        RunError: If a run folder cannot be written.
    """
    recipe = experiment.recipe
    samples = _scored(experiment, trained)
    areas = np.concatenate([areas for areas in experiment.full_train.areas])
    if len(areas) == 0:
        raise EvaluationError(
            f"{experiment.root}: no training radiograph has a box, but Algorithm 1 takes its minimum area from them. "
            "Complete the annotations."
        )
    min_area = float(np.quantile(areas, recipe.min_area_quantile))

    heat = experiment.run_at("heatmaps", _made_from(experiment, trained) | recipe.differences("heatmaps") | {
        "scored_images": recipe.scored_images
    })  # fmt: skip
    with heat.making() as needed:
        if needed:
            write_tensors(
                heat.file("maps.safetensors"), {"maps": torch.from_numpy(activation_maps(recipe, trained, samples))}
            )
    maps = read_tensors(heat.file("maps.safetensors"))["maps"].numpy()

    run = experiment.run_at("localization", {"heatmaps": heat.path.name} | recipe.differences("scores"))
    found = Localization(trained.role, samples, maps, min_area, run, experiment)
    with run.making() as needed:
        if needed:
            score = partial(score_rows, area=recipe.area, method=recipe.normalisation)
            curve = partial(threshold_rows, area=recipe.area, method=recipe.normalisation)
            given = (samples.names, found.heatmaps, samples.boxes)
            write_csv(run.file("rows.csv"), score(*given, recipe.threshold, min_area))
            write_csv(run.file("thresholds.csv"), curve(*given, min_area, THRESHOLDS))
            write_csv(run.file("thresholds_all_sizes.csv"), curve(*given, 0.0, THRESHOLDS))
    return found


def activation_maps(recipe: Recipe, trained: TrainedClassifier, samples: Samples) -> np.ndarray:
    """Grad-CAM at the layer's resolution, float32 (n, h, w); one batch of images is in memory at a time."""
    step, device = recipe.eval_batch_size, trained.device
    batches = (samples.images(i, i + step).to(device) for i in range(0, len(samples), step))
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.cam_precision == "bfloat16"):
        return class_activation_maps(
            trained.model(),
            batches,
            layer=recipe.cam_layer,
            relu=recipe.cam_relu,
            method=recipe.cam_method,
            compiled=recipe.cam_compile,
        )


def paired_rows(teacher: Localization, student: Localization) -> pd.DataFrame:
    """Returns one row per radiograph that both networks are scored on.

    Returns:
        Columns name, and for every other column of `Localization.rows` `<column>_teacher` and `<column>_student`.

    Raises:
        EvaluationError: If no radiograph is scored for both.
    """
    pairs = teacher.rows.merge(student.rows, on="name", suffixes=("_teacher", "_student"), validate="1:1")
    if pairs.empty:
        raise EvaluationError(
            f"{teacher.experiment.root}: no radiograph is scored for both networks, so they cannot be compared. Set "
            "scored_images to 'boxed'."
        )
    return pairs


def _made_from(experiment: Experiment, trained: TrainedClassifier) -> dict[str, str]:
    return {"network": trained.run.path.name, "keep": trained.recipe.keep}


def _scored(experiment: Experiment, trained: TrainedClassifier) -> Samples:
    chosen = np.array([len(boxes) > 0 for boxes in experiment.test.boxes])
    if experiment.recipe.scored_images == "boxed_and_called_tb":
        chosen &= probabilities(experiment, trained)["p_tb"].to_numpy() > 0.5
    if not chosen.any():
        raise EvaluationError(
            f"{experiment.root}: no radiograph of the test set ({' + '.join(experiment.recipe.test_splits)}) can be "
            "scored: none has a ground-truth box inside the crop"
            + (" and is called TB." if experiment.recipe.scored_images != "boxed" else ".")
        )
    return experiment.test.subset(np.flatnonzero(chosen))


def _averaging(experiment: Experiment) -> dict[str, Any]:
    return {"no_prediction": experiment.recipe.no_prediction, "average": experiment.recipe.average}


class SofteningError(TbkdError, ValueError):
    """Answers of two networks that are not of the same radiographs."""


def logits_of(experiment: Experiment, trained: TrainedClassifier) -> pd.DataFrame:
    """Returns one row per test radiograph: name, label, no_tb and tb (the two logits); computed once and kept.

    Raises:
        RunError: If the run folder cannot be written.
    """
    samples = experiment.test
    run = experiment.run_at("logits", {"network": trained.run.path.name, "keep": trained.recipe.keep})
    with run.making() as needed:
        if needed:
            logits = class_logits(experiment.recipe, trained, samples).numpy()  # (n, 2)
            rows = pd.DataFrame({"name": samples.names, "label": samples.labels})
            write_csv(run.file("rows.csv"), rows.assign(no_tb=logits[:, 0], tb=logits[:, 1]))
    return pd.read_csv(run.file("rows.csv"))


def loss_parts(teacher: pd.DataFrame, student: pd.DataFrame, temperature: float, alpha: float) -> pd.DataFrame:
    """Takes the student's loss apart, radiograph by radiograph.

    Args:
        teacher: The teacher's `logits_of`.
        student: The student's, of the same radiographs in the same order.
        temperature: T > 0 of equation 2.
        alpha: Weight of cross-entropy in equation 1, in [0, 1].

    Returns:
        One row per radiograph: name, label, p_teacher and p_student (softened p(TB)), soft and hard (equation 1's two
        parts with their weights, in nats), loss (their sum). The means of the rows are the loss over the set.

    Raises:
        SofteningError: If the tables are not of the same radiographs.
        DistillationError: If temperature or alpha is out of range.
    """
    if list(teacher["name"]) != list(student["name"]):
        raise SofteningError("The logits of teacher and student are not of the same radiographs in the same order.")
    if not (math.isfinite(temperature) and temperature > 0 and 0 <= alpha <= 1):
        raise DistillationError(f"Expected temperature above 0 and alpha from 0 to 1; got {temperature} and {alpha}.")
    both = [torch.tensor(table[["no_tb", "tb"]].to_numpy(np.float64)) for table in (teacher, student)]  # (n, 2)
    p_teacher, p_student = ((logits / temperature).softmax(dim=1)[:, 1].numpy() for logits in both)
    log_t, log_s = (torch.log_softmax(logits / temperature, dim=1) for logits in both)
    labels = torch.tensor(teacher["label"].to_numpy(np.int64))
    kl = (log_t.exp() * (log_t - log_s)).sum(dim=1)  # (n,)
    ce = torch.nn.functional.cross_entropy(both[1], labels, reduction="none")  # (n,)
    soft, hard = (1 - alpha) * temperature**2 * kl, alpha * ce
    return pd.DataFrame(
        {
            "name": teacher["name"], "label": teacher["label"],
            "p_teacher": p_teacher, "p_student": p_student,
            "soft": soft.numpy(), "hard": hard.numpy(), "loss": (soft + hard).numpy(),
        }
    )  # fmt: skip
