"""Your own radiographs through a trained network: a probability, and boxes in the pixels of the files."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tbkd_utils.data.cache import Samples
from tbkd_utils.data.dicom import is_dicom
from tbkd_utils.data.files import find_radiographs, read_radiograph
from tbkd_utils.data.geometry import Geometry
from tbkd_utils.data.images import to_gray
from tbkd_utils.errors import TbkdError, UsageError
from tbkd_utils.experiments.chests import halves
from tbkd_utils.experiments.evaluation import activation_maps, class_probabilities
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.experiments.trained import TrainedNetwork, training_min_area
from tbkd_utils.localization.boxes import Boxes, boxes_from_heatmap
from tbkd_utils.localization.heatmaps import upsample

CHUNK = 8  # batches of radiographs whose crops are in memory at a time
DARK = 64  # an image whose brightest pixel is below this (of 255) is pointed out


@dataclass(frozen=True, eq=False)
class Finding:
    """What a network says of one radiograph.

    Attributes:
        name: The file, relative to the folder that was given, with forward slashes.
        path: The file.
        geometry: The way from its pixels to the network's and back.
        probability: Probability of the finding (the task's explained class), 0 to 1.
        boxes: (k, 4) float32 xyxy in pixels of the file, inside the image; k may be 0.
        map: float32 (h, w), Grad-CAM at the layer's resolution, not normalized.
        recipe: The settings behind it.
        dicom: Whether it is a DICOM file.
        note: What the reader of the result should know about the file; empty if nothing.
    """

    name: str
    path: Path
    geometry: Geometry
    probability: float
    boxes: Boxes
    map: np.ndarray = field(repr=False)
    recipe: Recipe = field(repr=False)
    dicom: bool = False
    note: str = ""

    @cached_property
    def heatmap(self) -> np.ndarray:
        """The map at the resolution of the network's input, float32 (crop, crop), not normalized."""
        return upsample(self.map[None], (self.geometry.crop, self.geometry.crop), self.recipe.scores.cam_upsampling)[0]

    @property
    def seen(self) -> np.ndarray:
        """The part of the file that the network saw, float32 (4,) xyxy in its pixels."""
        side = float(self.geometry.crop)
        return _inside(self.geometry, np.array([[0, 0, side, side]]))[0]


@dataclass(frozen=True, eq=False)
class Located:
    """What `locate` found, file by file.

    Attributes:
        findings: The radiographs that could be read, in the order of their names.
        failures: (name, reason) of those that could not.
        others: How many files of the folder are no radiographs, and were not looked at.
        trained: The network.
        min_area: The smallest box that counts, in square pixels of the network's input.
        min_probability: Radiographs with a lower probability of the finding get no box.
    """

    findings: tuple[Finding, ...]
    failures: tuple[tuple[str, str], ...]
    others: int
    trained: TrainedNetwork = field(repr=False)
    min_area: float
    min_probability: float


def locate(
    paths: str | Path | Iterable[str | Path],
    trained: TrainedNetwork,
    *,
    threshold: float | None = None,
    min_area: float | None = None,
    min_probability: float = 0.0,
    data: str | Path | None = None,
    leave_out: Sequence[Path] = (),
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Located:
    """Finds what a network was trained for in radiographs from anywhere; nothing is written.

    Every file goes the way of the series' own radiographs: gray, resize, center crop, network, Grad-CAM, Algorithm 1.
    The boxes are then taken back to the pixels of the file. A heatmap is scaled to its own maximum, so that a healthy
    radiograph gets boxes too: look at the probability, or set `min_probability`.

    Args:
        paths: A file, a folder with all that is below it, or several; see `find_radiographs`.
        trained: The network, from `train` or `load_trained`.
        threshold: Share of the normalized heatmap, in [0, 1]; None for the recipe's.
        min_area: The smallest box that counts, in square pixels of the network's input; None for what the network's
            training boxes give.
        min_probability: Radiographs with a lower probability of the finding get no box.
        data: The dataset that the network learned from, where its folder does not note its boxes' areas.
        leave_out: Folders that are not looked into.
        progress: Called with the number of files that are done, and of all.

    Returns:
        One finding per readable file; one failure per other.

    Raises:
        DataError: Something does not exist, or there is no radiograph.
        SettingsError: The threshold is out of range.
        UsageError: Another setting is.
        RunError: The minimum area is not known, or the mean chest where lungs are asked for.
    """
    recipe = trained.recipe if threshold is None else trained.recipe.changed(threshold=threshold)
    if not 0 <= min_probability <= 1:
        raise UsageError(f"min_probability is {min_probability}: expected a probability, 0 to 1.")
    largest = recipe.evaluation_scale[1] ** 2
    if min_area is not None and not 0 <= min_area < largest:
        raise UsageError(f"min_area is {min_area}: expected square pixels of the network's input, 0 to {largest}.")
    intake = find_radiographs(paths, leave_out)
    area = training_min_area(trained, data) if min_area is None else float(min_area)
    trained = TrainedNetwork(trained.role, recipe, trained.run)
    findings: list[Finding] = []
    failures = list(intake.problems)
    step = CHUNK * recipe.execution.eval_batch_size
    for start in range(0, len(intake.files), step):
        inputs: list[_Input] = []
        for number, (name, path) in enumerate(intake.files[start : start + step], start=start + 1):
            try:
                inputs.append(_input(name, path, recipe))
            except (TbkdError, OSError, MemoryError) as error:
                failures.append((name, reason(path, error)))
            progress(number, len(intake.files))
        findings += _findings(inputs, trained, area, min_probability) if inputs else []
    return Located(tuple(findings), tuple(sorted(failures)), intake.others, trained, area, min_probability)


def reason(path: Path, error: Exception) -> str:
    """Returns why a file failed, without the file itself, which stands beside it."""
    return str(error).removeprefix(f"{path}: ") or type(error).__name__


@dataclass(frozen=True, eq=False)
class _Input:
    """One file on its way into the network: pixels are uint8 (crop, crop)."""

    name: str
    path: Path
    geometry: Geometry
    pixels: np.ndarray
    note: str


def _input(name: str, path: Path, recipe: Recipe) -> _Input:
    image = to_gray(read_radiograph(path))
    geometry = Geometry(image.shape[0], image.shape[1], *recipe.evaluation_scale)
    brightest = int(image.max())
    note = (
        f"very dark: its brightest pixel is {brightest} of 255, as when 12 bits are stored in 16; scale it to the full "
        "range, or give the DICOM file"
        if brightest < DARK
        else ""
    )
    return _Input(name, path, geometry, geometry.pixels(image), note)


def _findings(
    inputs: Sequence[_Input], trained: TrainedNetwork, min_area: float, min_probability: float
) -> list[Finding]:
    """The same steps, in batches of the same size, as the series takes with its test set."""
    recipe, nothing = trained.recipe, np.zeros((0, 4), np.float32)
    samples = Samples(
        names=tuple(one.name for one in inputs),
        sources=("",) * len(inputs),
        targets=np.zeros(len(inputs), dtype=np.int64),  # not known, and not used
        pixels=np.stack([one.pixels for one in inputs]),  # (n, crop, crop)
        boxes=(nothing,) * len(inputs),
        areas=(np.empty(0),) * len(inputs),
        geometries=tuple(one.geometry for one in inputs),
    )
    probability = class_probabilities(trained, samples)  # (n,)
    maps = activation_maps(trained, samples, recipe)  # (n, h, w)
    heatmaps = upsample(maps, samples.size, recipe.scores.cam_upsampling)  # (n, crop, crop)
    scores, findings = recipe.scores, []
    by_lung = scores.boxes_by == "lung"
    lungs = halves(samples, trained.chest, scores.second_lung) if by_lung else [None] * len(inputs)
    for one, p, cam, heatmap, halved in zip(inputs, probability, maps, heatmaps, lungs, strict=True):
        found = nothing
        if p >= min_probability:
            how: dict[str, Any] = {"area": scores.area, "method": scores.normalization, "lungs": halved}
            found = boxes_from_heatmap(heatmap, scores.threshold, min_area, **how)
        boxes = _inside(one.geometry, found)
        findings.append(
            Finding(one.name, one.path, one.geometry, float(p), boxes, cam, recipe, is_dicom(one.path), one.note)
        )
    return findings


def _inside(geometry: Geometry, boxes: np.ndarray) -> np.ndarray:
    """Boxes of the crop in pixels of the file, cut to the image, which rounding may leave by a hair."""
    size = [geometry.width, geometry.height]
    return np.clip(geometry.invert_boxes(boxes), 0, [*size, *size]).astype(np.float32)
