"""The known shortcut of the synthetic radiographs: the heat on the token, and what is said when it is painted over."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import pandas as pd
import torch

from tbkd_utils.data.cache import Samples
from tbkd_utils.data.synthetic.dataset import read_synthetic_tokens
from tbkd_utils.errors import TbkdError
from tbkd_utils.experiments.evaluation import Localization, activation_maps, tb_probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import TrainedClassifier
from tbkd_utils.localization.gradcam import upsample
from tbkd_utils.localization.scores import energy_inside
from tbkd_utils.metrics.statistics import bootstrap_interval
from tbkd_utils.runs import Run, read_tensors, write_csv, write_tensors

MARGIN = 2  # pixels around the token that are painted too: resizing smears its edge


class ShortcutError(TbkdError, ValueError):
    """Radiographs in which no token is known."""


@dataclass(frozen=True)
class Shortcut:
    """One network before the test radiographs that show the token, and before the same with the token painted over.

    Attributes:
        role: `teacher` or `student`.
        samples: Those radiographs, n of them, TB or not.
        tokens: float32 (n, 4) xyxy, the tokens in pixels of the crop.
        run: The run folder with `rows.csv` and `maps.safetensors`.
        experiment: Recipe and data.
    """

    role: str
    samples: Samples
    tokens: np.ndarray
    run: Run
    experiment: Experiment

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per radiograph.

        Columns name, label, p_tb and p_tb_painted, energy and energy_painted (share of the heatmap on the token's
        place), token_area (share of the crop).
        """
        return pd.read_csv(self.run.file("rows.csv"))

    @cached_property
    def heatmaps(self) -> np.ndarray:
        """Grad-CAM of the radiographs as they are, float32 (n, H, W)."""
        return self._heatmaps("maps")

    @cached_property
    def heatmaps_painted(self) -> np.ndarray:
        """Grad-CAM with the token painted over, float32 (n, H, W)."""
        return self._heatmaps("painted")

    @cached_property
    def painted(self) -> np.ndarray:
        """The radiographs with the token painted over, uint8 (n, H, W)."""
        return painted_over(np.array(self.samples.pixels), self.tokens)

    def _heatmaps(self, name: str) -> np.ndarray:
        maps = read_tensors(self.run.file("maps.safetensors"))[name].numpy()
        return upsample(maps, self.samples.size, self.experiment.recipe.cam_upsampling)


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


def has_tokens(experiment: Experiment) -> bool:
    """Whether a token is known and in sight on a test radiograph: only on this package's drawings."""
    return experiment.synthetic and bool(_in_sight(experiment.test, read_synthetic_tokens(experiment.root))[0])


def shortcut(experiment: Experiment, trained: TrainedClassifier) -> Shortcut:
    """Asks a network about every test radiograph with a token, before and after painting; computed once and kept.

    Raises:
        ShortcutError: If no token is known in the test set; see `has_tokens`.
        RunError: If the run folder cannot be written.
    """
    recipe = experiment.recipe
    tokens = read_synthetic_tokens(experiment.root) if experiment.synthetic else {}
    places, boxes = _in_sight(experiment.test, tokens)
    if not places:
        raise ShortcutError(
            f"{experiment.root}: no token is known in these radiographs, so none can be painted over. Use a recipe "
            "with synthetic radiographs, such as demo."
        )
    samples = experiment.test.subset(places)
    made_from = {"network": trained.run.path.name, "keep": trained.recipe.keep, "cam_upsampling": recipe.cam_upsampling}
    run = experiment.run_at("shortcut", made_from | recipe.differences("heatmaps"))
    found = Shortcut(trained.role, samples, np.stack(boxes), run, experiment)
    with run.making() as needed:
        if needed:
            repainted = dataclasses.replace(samples, pixels=found.painted)
            p_tb, p_painted = (tb_probabilities(recipe, trained, one) for one in (samples, repainted))
            maps, painted = (activation_maps(recipe, trained, one) for one in (samples, repainted))
            maps_of = {"maps": maps, "painted": painted}
            write_tensors(run.file("maps.safetensors"), {k: torch.from_numpy(v) for k, v in maps_of.items()})
            energy, energy_painted = (
                [energy_inside(heat, box[None]) for heat, box in zip(heats, boxes, strict=True)]
                for heats in (found.heatmaps, found.heatmaps_painted)
            )
            rows = pd.DataFrame({"name": samples.names, "label": samples.labels, "p_tb": p_tb})
            rows = rows.assign(p_tb_painted=p_painted, energy=energy, energy_painted=energy_painted)
            rows["token_area"] = [_area(box, samples) for box in boxes]
            write_csv(run.file("rows.csv"), rows)
    return found


def token_energy(found: Localization, tokens: Mapping[str, np.ndarray | None]) -> pd.DataFrame:
    """Measures the share of heatmap energy on the corner token of a synthetic radiograph.

    Args:
        found: Heatmaps of one network.
        tokens: Name of a radiograph to its token's box (xyxy, stored pixels) or None, from `read_synthetic_tokens`.

    Returns:
        One row per scored radiograph that shows a token inside the crop: name, energy (0 to 1), token_area (share of
        the crop).
    """
    places, boxes = _in_sight(found.samples, tokens)
    rows = [
        (found.samples.names[place], energy_inside(found.heatmaps[place], box[None]), _area(box, found.samples))
        for place, box in zip(places, boxes, strict=True)
    ]
    return pd.DataFrame(rows, columns=["name", "energy", "token_area"])


def shortcut_table(experiment: Experiment, found: Sequence[Localization]) -> pd.DataFrame:
    """Returns, per network, the mean share of heatmap energy on the synthetic token and its interval.

    Returns:
        Columns network, energy, low, high, token_area, n; no row where no token is known or in sight.
    """
    recipe = experiment.recipe
    columns = ["network", "energy", "low", "high", "token_area", "n"]
    if not experiment.synthetic:
        return pd.DataFrame(columns=columns)
    tokens = read_synthetic_tokens(experiment.root)
    rows = []
    for one in found:
        table = token_energy(one, tokens)
        if table.empty:
            continue
        interval = bootstrap_interval(table["energy"], resamples=recipe.resamples, seed=recipe.statistics_seed)
        rows.append((one.role, table["energy"].mean(), *interval, table["token_area"].mean(), len(table)))
    return pd.DataFrame(rows, columns=columns)


def _in_sight(samples: Samples, tokens: Mapping[str, np.ndarray | None]) -> tuple[list[int], list[np.ndarray]]:
    """Positions of the radiographs with a token inside the crop, and their tokens there, float32 (4,) each."""
    places, boxes = [], []
    for place, (name, geometry) in enumerate(zip(samples.names, samples.geometries, strict=True)):
        token = tokens.get(name)
        box = geometry.boxes(token[None]) if token is not None else np.empty((0, 4), np.float32)
        if len(box):
            places.append(place)
            boxes.append(box[0])
    return places, boxes


def _area(box: np.ndarray, samples: Samples) -> float:
    """Area of a box (4,) as a share of the crop."""
    return float((box[2:] - box[:2]).prod()) / float(np.prod(samples.size))
