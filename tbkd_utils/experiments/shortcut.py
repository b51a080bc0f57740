"""The known shortcut of the synthetic radiographs: the heat on the marker, and what is said when it is painted over."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import pandas as pd
import torch

from tbkd_utils.data.cache import Samples
from tbkd_utils.data.synthetic.dataset import read_synthetic_markers
from tbkd_utils.errors import UsageError
from tbkd_utils.experiments.evaluation import Localization, activation_maps, class_probabilities, is_positive
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.localization.heatmaps import upsample
from tbkd_utils.localization.scores import energy_inside
from tbkd_utils.metrics.statistics import bootstrap_interval
from tbkd_utils.runs import Run, read_tensors, write_csv, write_tensors

MARGIN = 2  # pixels around the marker that are painted too: resizing smears its edge


@dataclass(frozen=True)
class Shortcut:
    """One network before the test radiographs that show the marker, and before the same with the marker painted over.

    Attributes:
        role: `teacher` or `student`.
        samples: Those radiographs, n of them, TB or not.
        markers: float32 (n, 4) xyxy, the markers in pixels of the crop.
        run: The run folder with `rows.csv` and `maps.safetensors`.
        experiment: Recipe and data.
    """

    role: str
    samples: Samples
    markers: np.ndarray
    run: Run
    experiment: Experiment

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per radiograph.

        Columns name, label, probability and probability_painted, energy and energy_painted (share of the heatmap on
        the marker's place), marker_area (share of the crop).
        """
        return pd.read_csv(self.run.file("rows.csv"))

    @cached_property
    def heatmaps(self) -> np.ndarray:
        """Grad-CAM of the radiographs as they are, float32 (n, H, W)."""
        return self._heatmaps("maps")

    @cached_property
    def heatmaps_painted(self) -> np.ndarray:
        """Grad-CAM with the marker painted over, float32 (n, H, W)."""
        return self._heatmaps("painted")

    @cached_property
    def painted(self) -> np.ndarray:
        """The radiographs with the marker painted over, uint8 (n, H, W)."""
        return painted_over(np.array(self.samples.pixels), self.markers)

    def _heatmaps(self, name: str) -> np.ndarray:
        maps = read_tensors(self.run.file("maps.safetensors"))[name].numpy()
        return upsample(maps, self.samples.size, self.experiment.recipe.scores.cam_upsampling)


def painted_over(pixels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Paints a box of each image with its surroundings (OpenCV's inpainting by Telea).

    Args:
        pixels: uint8 (n, H, W).
        boxes: float (n, 4) xyxy, one box per image.

    Returns:
        uint8 (n, H, W); outside the boxes and a margin of 2 pixels nothing changes.
    """
    painted = np.array(pixels)
    for image, box in zip(painted, boxes, strict=True):
        mask = np.zeros(image.shape, np.uint8)
        left, top = np.maximum(np.floor(box[:2]).astype(int) - MARGIN, 0)
        right, bottom = np.ceil(box[2:]).astype(int) + MARGIN
        mask[top:bottom, left:right] = 1
        image[:] = cv2.inpaint(image, mask, 3, cv2.INPAINT_TELEA)
    return painted


def has_markers(experiment: Experiment) -> bool:
    """Whether a marker is known and in sight on a test radiograph: only on this package's drawings."""
    return experiment.synthetic and bool(markers_in_sight(experiment.test, read_synthetic_markers(experiment.root))[0])


def shortcut_effect(experiment: Experiment, trained: TrainedNetwork) -> Shortcut:
    """Asks a network about every test radiograph with a marker, before and after painting; computed once and kept.

    Raises:
        UsageError: If no marker is known in the test set; see `has_markers`.
        RunError: If the run folder cannot be written.
    """
    experiment = experiment.for_role(trained.role)
    recipe = experiment.recipe
    markers = read_synthetic_markers(experiment.root) if experiment.synthetic else {}
    places, boxes = markers_in_sight(experiment.test, markers)
    if not places:
        raise UsageError(
            f"{experiment.root}: no marker is known in these radiographs, so none can be painted over. Use a recipe "
            "with synthetic radiographs, such as demo."
        )
    samples = experiment.test.subset(places)
    how = {"cam_upsampling": recipe.scores.cam_upsampling} | recipe.differences("evaluation", "heatmaps")
    run = experiment.run_at("shortcut", trained.made_from | how)
    found = Shortcut(trained.role, samples, np.stack(boxes), run, experiment)
    with run.making() as needed:
        if needed:
            repainted = dataclasses.replace(samples, pixels=found.painted)
            before, after = (class_probabilities(trained, one) for one in (samples, repainted))
            maps, painted = (activation_maps(trained, one, recipe) for one in (samples, repainted))
            maps_of = {"maps": maps, "painted": painted}
            write_tensors(run.file("maps.safetensors"), {k: torch.from_numpy(v) for k, v in maps_of.items()})
            energy, energy_painted = (
                [energy_inside(heat, box[None]) for heat, box in zip(heats, boxes, strict=True)]
                for heats in (found.heatmaps, found.heatmaps_painted)
            )
            rows = pd.DataFrame({"name": samples.names, "label": is_positive(trained, samples), "probability": before})
            rows = rows.assign(probability_painted=after, energy=energy, energy_painted=energy_painted)
            rows["marker_area"] = [_area(box, samples) for box in boxes]
            write_csv(run.file("rows.csv"), rows)
    return found


def marker_energy(found: Localization, markers: Mapping[str, np.ndarray | None]) -> pd.DataFrame:
    """Measures the share of heatmap energy on the side marker of a synthetic radiograph.

    Args:
        found: Heatmaps of one network.
        markers: Name of a radiograph to its marker's box (xyxy, stored pixels) or None, from `read_synthetic_markers`.

    Returns:
        One row per scored radiograph that shows a marker inside the crop: name, energy (0 to 1), marker_area (share of
        the crop).
    """
    places, boxes = markers_in_sight(found.samples, markers)
    rows = [
        (found.samples.names[place], energy_inside(found.heatmaps[place], box[None]), _area(box, found.samples))
        for place, box in zip(places, boxes, strict=True)
    ]
    return pd.DataFrame(rows, columns=["name", "energy", "marker_area"])


def shortcut_table(experiment: Experiment, found: Sequence[Localization]) -> pd.DataFrame:
    """Returns, per network, the mean share of heatmap energy on the synthetic marker and its interval.

    Returns:
        Columns network, energy, low, high, marker_area, n; no row where no marker is known or in sight.
    """
    recipe = experiment.recipe
    columns = ["network", "energy", "low", "high", "marker_area", "n"]
    if not experiment.synthetic:
        return pd.DataFrame(columns=columns)
    markers = read_synthetic_markers(experiment.root)
    rows = []
    for one in found:
        table = marker_energy(one, markers)
        if table.empty:
            continue
        interval = bootstrap_interval(table["energy"], **recipe.resampling)
        rows.append((one.role, table["energy"].mean(), *interval, table["marker_area"].mean(), len(table)))
    return pd.DataFrame(rows, columns=columns)


def markers_in_sight(samples: Samples, markers: Mapping[str, np.ndarray | None]) -> tuple[list[int], list[np.ndarray]]:
    """Returns the positions of the radiographs with a marker inside the crop, and their markers there.

    Args:
        samples: Radiographs.
        markers: From `read_synthetic_markers`.

    Returns:
        Positions, and as many boxes float32 (4,) xyxy in pixels of the crop.
    """
    places, boxes = [], []
    for place, (name, geometry) in enumerate(zip(samples.names, samples.geometries, strict=True)):
        marker = markers.get(name)
        box = geometry.boxes(marker[None]) if marker is not None else np.empty((0, 4), np.float32)
        if len(box):
            places.append(place)
            boxes.append(box[0])
    return places, boxes


def _area(box: np.ndarray, samples: Samples) -> float:
    """Area of a box (4,) as a share of the crop."""
    return float((box[2:] - box[:2]).prod()) / float(np.prod(samples.size))
