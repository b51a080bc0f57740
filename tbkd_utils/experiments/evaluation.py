"""Predictions and scores of a trained network on the test set: rows per image, then summaries, kept in run folders."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from tbkd_utils.data.cache import Samples, load_samples
from tbkd_utils.data.dataset import find_layout, fingerprint, read_dataset
from tbkd_utils.data.readers import Reader
from tbkd_utils.errors import DataError, UsageError
from tbkd_utils.experiments.chests import halves, keep_chest
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.localization.boxes import boxes_from_json, minimum_area
from tbkd_utils.localization.heatmaps import (
    Heatmapper,
    compute_heatmaps,
    flipped,
    found_lungs,
    grad_cam,
    inside_lungs,
    multi_scale,
    own_map,
    upsample,
)
from tbkd_utils.localization.scores import mean_iou
from tbkd_utils.localization.tables import ROWS_FORMAT, max_box_acc, score_rows, summarize, threshold_rows
from tbkd_utils.metrics.classification import classification_rows, classification_summary
from tbkd_utils.models.losses import logits_of
from tbkd_utils.runs import Run, cached_rows, read_tensors, write_csv, write_tensors

THRESHOLDS = np.round(np.arange(0.02, 1.0, 0.02), 2)
"""Shares of the normalized heatmap at which the curves are drawn."""


# --- classification ---------------------------------------------------------------------------------------------------


def logits(trained: TrainedNetwork, samples: Samples) -> torch.Tensor:
    """Returns the logits of every radiograph, float64 (n, classes), on the CPU."""
    model, size = trained.model(), trained.recipe.execution.eval_batch_size
    with torch.inference_mode():
        batches = [
            logits_of(model(trained.images(samples, i, i + size).to(trained.device)))
            for i in range(0, len(samples), size)
        ]
    return torch.cat(batches).cpu().double()


def class_probabilities(trained: TrainedNetwork, samples: Samples) -> np.ndarray:
    """Returns the probability of the explained class of every radiograph, float64 (n,).

    A softmax where each radiograph has one class, a sigmoid where any number may hold.
    """
    found, explained = logits(trained, samples), trained.task.explained
    if trained.task.kind == "multi":
        return found[:, explained].sigmoid().numpy()
    return found.softmax(dim=1)[:, explained].numpy()


def is_positive(trained: TrainedNetwork, samples: Samples) -> np.ndarray:
    """Returns whether each radiograph has the explained class, int64 (n,) of 0 and 1."""
    explained, targets = trained.task.explained, samples.targets
    return (targets[:, explained] if targets.ndim == 2 else targets == explained).astype(np.int64)


def probabilities(experiment: Experiment, trained: TrainedNetwork) -> pd.DataFrame:
    """Returns one row per test radiograph: name, source, label (1 for the explained class), probability of that class.

    Where patients are known, their column `patient` comes last. Computed once and kept.

    Raises:
        RunError: If the run folder cannot be written.
    """
    experiment = experiment.for_role(trained.role)
    return _probabilities(experiment, trained, experiment.test, {})


def held_out_probabilities(experiment: Experiment, trained: TrainedNetwork) -> pd.DataFrame:
    """Returns the same for the validation split, from which a threshold may be chosen.

    Raises:
        SettingsError: If the recipe has no validation split.
        RunError: If the run folder cannot be written.
    """
    experiment = experiment.for_role(trained.role)
    return _probabilities(experiment, trained, experiment.held_out, {"part": "validation"})


def _probabilities(
    experiment: Experiment, trained: TrainedNetwork, samples: Samples, which: Mapping[str, str]
) -> pd.DataFrame:
    def compute() -> pd.DataFrame:
        found = class_probabilities(trained, samples)
        return classification_rows(samples.names, found, is_positive(trained, samples), samples.sources)

    settings = _looked_at(experiment, trained) | dict(which)
    return with_patients(cached_rows(experiment.run_at("probabilities", settings), compute), samples)


def with_patients(rows: pd.DataFrame, samples: Samples) -> pd.DataFrame:
    """Returns rows of radiographs with a column `patient`, as statistics take it; as they are if none is known.

    Args:
        rows: With a column name.
        samples: Among them the radiographs of the rows.
    """
    if not any(samples.groups):
        return rows
    return rows.assign(patient=rows["name"].map(dict(zip(samples.names, samples.groups, strict=True))))


def classification(experiment: Experiment, trained: TrainedNetwork) -> pd.DataFrame:
    """Returns Table 4 for one network: metric, value, low, high, n; from the rows of `probabilities`."""
    return classification_summary(probabilities(experiment, trained), **experiment.recipe.resampling)


def logit_rows(experiment: Experiment, trained: TrainedNetwork) -> pd.DataFrame:
    """Returns one row per test radiograph: name, label, and the logit of each class; computed once and kept.

    Raises:
        RunError: If the run folder cannot be written.
    """
    experiment = experiment.for_role(trained.role)
    samples = experiment.test

    def compute() -> pd.DataFrame:
        rows = pd.DataFrame({"name": samples.names, "label": is_positive(trained, samples)})
        found = logits(trained, samples).numpy()  # (n, classes)
        return rows.assign(**{name: found[:, index] for index, name in enumerate(trained.task.classes)})

    return cached_rows(experiment.run_at("logits", _looked_at(experiment, trained)), compute)


def loss_parts(teacher: pd.DataFrame, student: pd.DataFrame, temperature: float, alpha: float) -> pd.DataFrame:
    """Takes the student's loss apart, radiograph by radiograph.

    Args:
        teacher: The teacher's `logit_rows`.
        student: The student's, of the same radiographs in the same order.
        temperature: T > 0 of equation 2.
        alpha: Weight of cross-entropy in equation 1, in [0, 1].

    Returns:
        One row per radiograph: name, label, p_teacher and p_student (softened probability of the second class), soft
        and hard (equation 1's two parts with their weights, in nats), loss (their sum). The means of the rows are the
        loss over the set.

    Raises:
        UsageError: If the tables are not of the same radiographs, or temperature or alpha is out of range.
    """
    if list(teacher["name"]) != list(student["name"]):
        raise UsageError("The logits of teacher and student are not of the same radiographs in the same order.")
    if not (math.isfinite(temperature) and temperature > 0 and 0 <= alpha <= 1):
        raise UsageError(f"Expected temperature above 0 and alpha from 0 to 1; got {temperature} and {alpha}.")
    both = [torch.tensor(t.drop(columns=["name", "label"]).to_numpy(np.float64)) for t in (teacher, student)]  # (n, 2)
    p_teacher, p_student = ((found / temperature).softmax(dim=1)[:, 1].numpy() for found in both)
    log_t, log_s = (torch.log_softmax(found / temperature, dim=1) for found in both)
    labels = torch.tensor(teacher["label"].to_numpy(np.int64))
    kl = (log_t.exp() * (log_t - log_s)).sum(dim=1)  # (n,)
    ce = torch.nn.functional.cross_entropy(both[1], labels, reduction="none")  # (n,)
    soft, hard = (1 - alpha) * temperature**2 * kl, alpha * ce
    return pd.DataFrame(
        {
            "name": teacher["name"],
            "label": teacher["label"],
            "p_teacher": p_teacher,
            "p_student": p_student,
            "soft": soft.numpy(),
            "hard": hard.numpy(),
            "loss": (soft + hard).numpy(),
        }
    )


# --- localization -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Localization:
    """Heatmaps, boxes and scores of one network on the test radiographs that have a ground-truth box.

    Attributes:
        role: Such as `teacher` or `student`.
        samples: The scored radiographs, n of them.
        maps: float32 (n, h, w), the heatmaps at the layer's resolution, not normalized.
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
        return upsample(self.maps, self.samples.size, self.experiment.recipe.scores.cam_upsampling)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per image, with its patient where known; see `localization.tables.score_rows`."""
        return with_patients(pd.read_csv(self.run.file("rows.csv")), self.samples)

    @cached_property
    def boxes(self) -> list[np.ndarray]:
        """The predicted boxes of every image, float32 (k, 4) xyxy in pixels of the crop."""
        return [boxes_from_json(text) for text in self.rows["boxes"]]

    @cached_property
    def miou(self) -> float:
        """The paper's mIOU, under the recipe's `no_prediction` and `average`."""
        return mean_iou(self.samples.boxes, self.boxes, **averaging(self.experiment))

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every metric at the recipe's threshold with its interval: metric, mean, low, high, n."""
        return summarize(self.rows, **self.experiment.recipe.resampling, **averaging(self.experiment))

    @cached_property
    def summary(self) -> pd.DataFrame:
        """`scores`, and MaxBoxAccV2, which looks at every threshold, as the last row."""
        best = max_box_acc(self.threshold_rows(all_sizes=True), **self.experiment.recipe.resampling)
        return pd.concat([self.scores, best], ignore_index=True)

    def threshold_rows(self, *, all_sizes: bool = False) -> pd.DataFrame:
        """One row per image and threshold; `all_sizes` keeps boxes below the minimum area too."""
        rows = pd.read_csv(self.run.file("thresholds_all_sizes.csv" if all_sizes else "thresholds.csv"))
        return with_patients(rows, self.samples)


def localization(experiment: Experiment, trained: TrainedNetwork) -> Localization:
    """Makes heatmaps and boxes and scores them; computed once and kept.

    Raises:
        UsageError: If no test radiograph has a box, or no training radiograph, which the minimum area needs.
        RunError: If a run folder cannot be written.
    """
    experiment = experiment.for_role(trained.role)
    which = {"scored_images": experiment.recipe.scores.scored_images}
    return _localized(experiment, trained, _scored(experiment, trained), which)


def kept_heatmaps(
    experiment: Experiment, trained: TrainedNetwork, samples: Samples, which: Mapping[str, Any]
) -> tuple[np.ndarray, Run]:
    """Returns heatmaps at the layer's resolution and the run folder that keeps them; computed once.

    Args:
        experiment: Recipe and data, for the network's role.
        trained: The network.
        samples: n radiographs.
        which: Names these radiographs among those of the experiment.

    Returns:
        float32 (n, h, w), not normalized, and the folder.

    Raises:
        RunError: If the run folder cannot be written.
    """
    recipe = experiment.recipe
    keep_chest(experiment, trained.run)
    heat = experiment.run_at("heatmaps", _looked_at(experiment, trained) | recipe.differences("heatmaps") | dict(which))
    with heat.making() as needed:
        if needed:
            computed = torch.from_numpy(activation_maps(trained, samples, recipe))
            write_tensors(heat.file("maps.safetensors"), {"maps": computed})
    return read_tensors(heat.file("maps.safetensors"))["maps"].numpy(), heat


def drawing(experiment: Experiment, trained: TrainedNetwork, samples: Samples) -> dict[str, Any]:
    """Returns how the recipe draws boxes, as `tables.threshold_rows` takes it: area, method, and lungs if it asks."""
    scores = experiment.recipe.scores
    how: dict[str, Any] = {"area": scores.area, "method": scores.normalization}
    if scores.boxes_by == "lung":
        how["lungs"] = halves(samples, trained.chest, scores.second_lung)
    return how


def _localized(
    experiment: Experiment, trained: TrainedNetwork, samples: Samples, which: Mapping[str, str]
) -> Localization:
    """Heatmaps, boxes and scores of these radiographs, each with a box, which `which` names."""
    recipe, min_area = experiment.recipe, _min_area(experiment)
    maps, heat = kept_heatmaps(experiment, trained, samples, which)
    made_from = {"heatmaps": heat.path.name, "rows": ROWS_FORMAT}
    run = experiment.run_at("localization", made_from | recipe.differences("scores"))
    found = Localization(trained.role, samples, maps, min_area, run, experiment)
    with run.making() as needed:
        if needed:
            how = drawing(experiment, trained, samples)
            given = (samples.names, found.heatmaps, samples.boxes)
            write_csv(run.file("rows.csv"), score_rows(*given, recipe.scores.threshold, min_area, **how))
            write_csv(run.file("thresholds.csv"), threshold_rows(*given, min_area, THRESHOLDS, **how))
            write_csv(run.file("thresholds_all_sizes.csv"), threshold_rows(*given, 0.0, THRESHOLDS, **how))
    return found


def _min_area(experiment: Experiment) -> float:
    """Algorithm 1's minimum area, in square pixels of the crop."""
    recipe = experiment.recipe
    if recipe.boxless_min_area is not None:
        return recipe.boxless_min_area
    areas = experiment.training_box_areas * recipe.evaluation_zoom
    if len(areas) == 0:
        raise UsageError(
            f"{experiment.root}: no training radiograph has a box, but Algorithm 1 takes its minimum area from them. "
            "Complete the annotations, or set min_area to 'share' or 'none'."
        )
    return minimum_area(areas, recipe.scores.min_area_quantile)


def heatmapper(trained: TrainedNetwork, recipe: Recipe) -> Heatmapper:
    """Returns the way from images to heatmaps that a recipe asks for.

    A network's own map where it gives one and no layer is named, else Grad-CAM; then what is to be done to it.
    """
    settings = recipe.heatmaps
    layer = settings.cam_layers.get(trained.network_name, settings.cam_layer)
    if trained.network.map and layer == "last_stage":
        heatmap = own_map(trained.network)
    else:
        heatmap = grad_cam(trained.network, trained.task.explained, layer=layer, relu=settings.cam_relu)
    if settings.cam_flip:
        heatmap = flipped(heatmap)
    if settings.cam_sizes:
        heatmap = multi_scale(heatmap, settings.cam_sizes)
    return inside_lungs(heatmap, found_lungs(trained.chest, trained.network)) if settings.inside_lungs else heatmap


def activation_maps(trained: TrainedNetwork, samples: Samples, recipe: Recipe) -> np.ndarray:
    """Returns heatmaps at the layer's resolution, float32 (n, h, w); one batch of images is in memory at a time."""
    step, device = recipe.execution.eval_batch_size, trained.device
    batches = (trained.images(samples, i, i + step).to(device) for i in range(0, len(samples), step))
    return compute_heatmaps(trained.model(), batches, heatmapper(trained, recipe))


# --- on another dataset -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Elsewhere:
    """What a network says of another dataset than the one it learned from.

    Attributes:
        rows: One row per radiograph with a box of the finding, or negative: name, source, label, probability.
        located: Boxes and scores of those with a box of the finding.
    """

    rows: pd.DataFrame
    located: Localization


def elsewhere(
    experiment: Experiment, trained: TrainedNetwork, folder: str | Path, finding: str, readers: Sequence[type[Reader]]
) -> Elsewhere:
    """Scores a trained network on the boxes of another dataset; computed once and kept.

    The positive ones are those with a box of the finding, the negative ones those on which the dataset names no
    finding that it has boxes for. All others are left out, also those with the finding and no box; so are the boxes of
    other findings.

    Args:
        experiment: Recipe and data of the network.
        trained: The network.
        folder: The other dataset.
        finding: The category of its boxes, whatever the case of its letters.
        readers: The layouts that are tried.

    Raises:
        DataError: If the folder is no such dataset, or has no box of the finding.
        RunError: If a run folder cannot be written.
    """
    experiment = experiment.for_role(trained.role)
    layout, explained = find_layout(folder, readers), experiment.task.explained
    wanted = {number for number, name in layout.categories.items() if name.lower() == finding.lower()}
    records = []
    for record in read_dataset(folder, "all", partial=True, readers=readers):
        kept = [place for place, category in enumerate(record.categories) if category in wanted]
        healthy = not (record.target if isinstance(record.target, int) else any(record.target))
        healthy = healthy and record.kind != "other"  # a finding that the dataset draws no boxes around
        if kept or (healthy and not len(record.boxes)):
            target = explained if kept else int(not explained)
            categories = tuple(record.categories[place] for place in kept)
            records.append(replace(record, target=target, boxes=record.boxes[kept], categories=categories))
    if not any(len(record.boxes) for record in records):
        raise DataError(f"{folder}: no box of the finding '{finding}'. It has {', '.join(layout.categories.values())}.")
    scale, manifest = experiment.recipe.evaluation_scale, experiment.manifest
    samples = load_samples(records, experiment.run_at, *scale, manifest)
    which = {"elsewhere": fingerprint(records, manifest)}
    boxed = samples.subset([place for place, boxes in enumerate(samples.boxes) if len(boxes)])
    return Elsewhere(_probabilities(experiment, trained, samples, which), _localized(experiment, trained, boxed, which))


def paired_rows(teacher: Localization, student: Localization) -> pd.DataFrame:
    """Returns one row per radiograph that both networks are scored on.

    Returns:
        Columns name, and for every other column of `Localization.rows` `<column>_teacher` and `<column>_student`.

    Raises:
        UsageError: If no radiograph is scored for both.
    """
    pairs = teacher.rows.merge(student.rows, on="name", suffixes=("_teacher", "_student"), validate="1:1")
    if pairs.empty:
        raise UsageError(
            f"{teacher.experiment.root}: no radiograph is scored for both networks, so they cannot be compared. Set "
            "scored_images to 'boxed'."
        )
    return pairs


def _looked_at(experiment: Experiment, trained: TrainedNetwork) -> dict[str, Any]:
    """What a result depends on besides the network's weights: the test set is part of the network's own name."""
    return trained.made_from | experiment.recipe.differences("evaluation")


def _scored(experiment: Experiment, trained: TrainedNetwork) -> Samples:
    chosen = np.array([len(boxes) > 0 for boxes in experiment.test.boxes])
    predicted_only = experiment.recipe.scores.scored_images == "boxed_and_predicted"
    if predicted_only:
        chosen &= probabilities(experiment, trained)["probability"].to_numpy() > 0.5
    if not chosen.any():
        explained = experiment.task.classes[experiment.task.explained]
        raise UsageError(
            f"{experiment.root}: no radiograph of the test set ({' + '.join(experiment.recipe.data.test_splits)}) can "
            "be scored: none has a ground-truth box inside the crop"
            + (f" and is predicted {explained}." if predicted_only else ".")
        )
    return experiment.test.subset(np.flatnonzero(chosen))


def averaging(experiment: Experiment) -> dict[str, Any]:
    """Returns how the recipe averages the paper's score, as `tables.summarize` takes it."""
    scores = experiment.recipe.scores
    return {"no_prediction": scores.no_prediction, "average": scores.average}
