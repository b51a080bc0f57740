"""What the student of maps learns from: rectangles where several teachers look, once their maps are cleaned.

A teacher knows labels alone, and its map lights up outside the lungs too. So the mean of several teachers' maps is kept
inside the lungs, which are found without annotation, and each lung has one rectangle. No box of the dataset is read,
unless `mask_source` asks for them as a yardstick.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tbkd_utils.data.cache import FilledBoxes, Samples
from tbkd_utils.errors import SettingsError
from tbkd_utils.experiments.chests import lungs_in, training_chest
from tbkd_utils.experiments.evaluation import kept_heatmaps
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import train
from tbkd_utils.localization.boxes import Boxes, PerLung, boxes_from_json, boxes_to_json, lung_boxes, normalize
from tbkd_utils.localization.heatmaps import upsample
from tbkd_utils.localization.lungs import Lungs, middle_of, soft_lungs
from tbkd_utils.runs import Run, cached_rows
from tbkd_utils.systems.tb.grid import TEACHER
from tbkd_utils.systems.tb.settings import Maps, TbRecipe

DEPENDS = ("mask_source", "map_threshold", "map_second_lung", "anatomy")
"""Settings of the group that the rectangles depend on, beside the teachers."""


@dataclass(frozen=True)
class TbMasks:
    """Rectangles of the training radiographs with tuberculosis, as masks.

    Attributes:
        experiment: Recipe and data, as the teachers see them.

    Raises:
        SettingsError: If the masks are to come from teachers and none is named.
    """

    experiment: Experiment

    def __post_init__(self) -> None:
        if self.settings.mask_source == "maps" and not self.settings.map_teachers:
            raise SettingsError(
                "The student of maps learns from teachers, and map_teachers names none: give their seeds, as in "
                "map_teachers=[0, 1, 2], or set mask_source to lungs or boxes."
            )

    @property
    def settings(self) -> Maps:
        """The settings of the group `maps`."""
        recipe = self.experiment.recipe
        assert isinstance(recipe, TbRecipe)
        return recipe.maps

    @property
    def name(self) -> str:
        """The name of their run folder."""
        return self.run.path.name

    @property
    def run(self) -> Run:
        """Their run folder."""
        experiment, source = self.experiment, self.settings.mask_source
        recipe = experiment.recipe
        own = {key: value for key, value in recipe.differences("maps").items() if key in DEPENDS}
        settings: dict[str, Any] = recipe.differences("data", "pixels", "evaluation") | own
        settings["fingerprint"] = experiment.fingerprint
        if source == "lungs" or (source == "maps" and self.settings.anatomy):
            settings["upper"] = "lung"  # as in `experiments.guesses`: not of the lungs' boxes
        if source == "maps":
            teachers = [self._teacher(seed) for seed in self.settings.map_teachers]
            settings |= _plain(recipe).differences("heatmaps")
            settings["keep"] = recipe.training.keep
            settings["teachers"] = [one.run_at(TEACHER, one.training_settings(TEACHER)).path.name for one in teachers]
        return experiment.run_at("masks", settings)

    @property
    def rows(self) -> pd.DataFrame:
        """One row per radiograph with tuberculosis: name, boxes in pixels of the file, confidence in its lungs (0..1).

        Computed once and kept; the teachers are trained if need be.

        Raises:
            UsageError: If the training radiographs have no mean chest with two lungs.
            RunError: If a run folder cannot be written.
        """
        made = {"maps": self._of_maps, "lungs": self._of_lungs, "boxes": self._of_boxes}
        return cached_rows(self.run, made[self.settings.mask_source])

    def given_to(self, samples: Samples) -> Samples:
        """Returns training radiographs with these masks; those with tuberculosis and no rectangle are left out."""
        known = {name: boxes_from_json(text) for name, text in self.rows[["name", "boxes"]].itertuples(index=False)}
        nothing = np.zeros((0, 4), np.float32)
        boxes = [
            geometry.boxes(known.get(name, nothing))
            for name, geometry in zip(samples.names, samples.geometries, strict=True)
        ]
        positive = samples.targets == self.experiment.task.explained
        kept = [place for place, found in enumerate(boxes) if len(found) or not positive[place]]
        masks = FilledBoxes(tuple(boxes[place] for place in kept), samples.size)
        return dataclasses.replace(samples.subset(kept), masks=masks)

    def _teacher(self, seed: int) -> Experiment:
        return self.experiment.changed(seed=seed)

    def _positives(self) -> Samples:
        samples = self.experiment.full_train_as_tested
        return samples.subset(np.flatnonzero(samples.targets == self.experiment.task.explained))

    def _lungs(self, samples: Samples) -> list[Lungs]:
        return lungs_in(samples, training_chest(self.experiment))

    def _of_maps(self) -> pd.DataFrame:
        samples, recipe = self._positives(), _plain(self.experiment.recipe)
        which = {"part": "training", "finding": True, "fingerprint": self.experiment.fingerprint}
        maps = []
        for seed in self.settings.map_teachers:
            own = self._teacher(seed).changed(inside_lungs=False)
            maps.append(kept_heatmaps(own, train(own, TEACHER), samples, which)[0])  # (n, h, w)
        lungs, boxes = self._lungs(samples), []
        for place, found in enumerate(lungs):
            heats = [upsample(own[place : place + 1], samples.size, recipe.scores.cam_upsampling) for own in maps]
            heat = np.mean([normalize(one[0]) for one in heats], axis=0)  # (H, W)
            boxes.append(cleaned_boxes(heat, found, self.settings))
        return _rows(samples, boxes, lungs)

    def _of_lungs(self) -> pd.DataFrame:
        samples = self._positives()
        lungs = self._lungs(samples)
        return _rows(samples, [one.upper for one in lungs], lungs)

    def _of_boxes(self) -> pd.DataFrame:
        records = [one for one in self.experiment.train_records if len(one.boxes)]
        rows = [(one.name, boxes_to_json(one.boxes), np.nan) for one in records]
        return pd.DataFrame(rows, columns=["name", "boxes", "confidence"])


def cleaned_boxes(heat: np.ndarray, lungs: Lungs, settings: Maps) -> Boxes:
    """Returns one rectangle a lung from a map: where it is bright inside the lung.

    Args:
        heat: float32 (H, W), at least 0.
        lungs: Those of the same radiograph.
        settings: Thresholds, and how far edges move to the upper half of the lung.

    Returns:
        (k, 4), k at most 2; none where the map is zero inside the lungs.
    """
    inside = normalize(heat * soft_lungs(lungs))
    found = lung_boxes(inside, settings.map_threshold, PerLung(middle_of(lungs), settings.map_second_lung))  # (2, 4)
    mixed = (1 - settings.anatomy) * found + settings.anatomy * lungs.upper
    return mixed[np.isfinite(mixed[:, 0])].astype(np.float32)


def _plain(recipe: Any) -> Any:
    """The recipe with maps as the teachers give them: lungs come afterwards, once."""
    return recipe.changed(inside_lungs=False)


def _rows(samples: Samples, boxes: list[Boxes], lungs: list[Lungs]) -> pd.DataFrame:
    """Rectangles in pixels of the input as rows with rectangles in pixels of the files."""
    back = [geometry.invert_boxes(one) for geometry, one in zip(samples.geometries, boxes, strict=True)]
    rows = zip(samples.names, map(boxes_to_json, back), (one.confidence for one in lungs), strict=True)
    return pd.DataFrame(list(rows), columns=["name", "boxes", "confidence"])
