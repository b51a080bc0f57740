"""A trained teacher or student: made if need be, else read back (section 3.2.2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from tbkd_utils.data.cache import scaled_areas
from tbkd_utils.data.geometry import Geometry
from tbkd_utils.data.images import read_image
from tbkd_utils.errors import TbkdError
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import PRESETS, Recipe, RecipeError
from tbkd_utils.models.checkpoints import HISTORY, LOCATING
from tbkd_utils.models.devices import compute_device
from tbkd_utils.models.networks import build_classifier
from tbkd_utils.runs import DONE, Run, read_json, read_tensors


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained network and the folder that holds it.

    Attributes:
        role: `teacher` or `student`.
        recipe: The recipe that made it.
        run: Its folder: `best.safetensors`, `last.safetensors`, `history.csv`, `environment.json`, `locating.json` for
            use without the radiographs that it learnt from, and `precision.csv` where the precision was measured.
    """

    role: str
    recipe: Recipe
    run: Run

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch: epoch, train_loss, monitored_loss, monitored_accuracy."""
        return pd.read_csv(self.run.file(HISTORY))

    @property
    def device(self) -> torch.device:
        """Where the recipe's `accelerator` puts the network."""
        return compute_device(self.recipe)

    def model(self) -> nn.Module:
        """Returns the kept network, on `device`, in evaluation mode and in the recipe's memory format."""
        model = build_classifier(self.recipe.backbone, "none", self.recipe.seed)
        model.load_state_dict(read_tensors(self.run.file(f"{self.recipe.keep}.safetensors")))
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        return model.to(self.device).to(memory_format=layout).eval()


def train_teacher(experiment: Experiment, *, progress: bool = False) -> TrainedClassifier:
    """Trains the teacher by cross-entropy, or returns it if it is trained already.

    Args:
        experiment: Recipe and data.
        progress: Whether to show a progress bar on standard error.

    Raises:
        TrainingError: If the loss stops being a number.
        RunError: If the run folder cannot be written.
    """
    return _train(experiment, "teacher", progress)


def train_student(experiment: Experiment, *, progress: bool = False) -> TrainedClassifier:
    """Trains the student by equation 1 from the recipe's teacher, which is trained first if need be.

    Args:
        experiment: Recipe and data.
        progress: Whether to show a progress bar on standard error.

    Raises:
        TrainingError: If the loss stops being a number.
        RunError: If the run folder cannot be written.
    """
    return _train(experiment, "student", progress)


def _train(experiment: Experiment, role: str, progress: bool) -> TrainedClassifier:
    run = experiment.run_at(role, experiment.training_settings(role))
    with run.making() as needed:
        if needed:
            from tbkd_utils.models import (
                fit as lightning_fit,  # Lightning: seconds that reading a finished run should not take
            )

            teacher = _teacher_of(experiment, progress) if role == "student" else None
            lightning_fit.fit(experiment, run, teacher, progress)
    return TrainedClassifier(role, experiment.recipe, run)


def _teacher_of(experiment: Experiment, progress: bool) -> nn.Module:
    """The network that a student learns from: the trained teacher, or the same before its training, as a control."""
    recipe = experiment.recipe
    if recipe.teacher_trained:
        return _train(experiment, "teacher", progress).model()
    return build_classifier(recipe.backbone, recipe.weights, recipe.seed).eval()


ROLES = ("teacher", "student")
TRAINED_UNDER = {
    "teacher": ("data", "pixels", "training"),
    "student": ("data", "pixels", "training", "distillation"),
}
"""The parts of a recipe that make a network; its `settings.json` names what differs from the defaults in them."""
NOT_SETTINGS = ("kind", "fingerprint", "weights_sha256")  # in settings.json, beside the recipe's
CHANGEABLE = ("heatmaps", "scores", "execution")
"""The parts of a recipe that may differ from those a network was trained under."""


class ReopenError(TbkdError, ValueError):
    """A folder that holds no finished network, or too little to use it."""


def open_trained(
    folder: str | Path, recipe: str | None = None, overrides: Mapping[str, Any] | None = None
) -> TrainedClassifier:
    """Opens a trained network from its run folder.

    What the network was trained under comes from the folder's `settings.json`; how heatmaps and boxes are made, from
    its `locating.json` or, in folders from before that file, from the preset.

    Args:
        folder: `runs/<recipe>/teacher-<digest>` or `runs/<recipe>/student-<digest>`, or a copy of it anywhere.
        recipe: The preset behind it. None: the one that the folder notes, else the name of the folder around it.
        overrides: Other values of settings that do not change the network: those of `CHANGEABLE` parts.

    Raises:
        ReopenError: If the folder is not a finished network, was changed since, or its preset is not known.
        RecipeError: If a setting does not exist, has an impossible value, or would change the network.
    """
    path = Path(folder).expanduser()
    settings = read_json(path / "settings.json")
    if not isinstance(settings, dict) or settings.get("kind") not in ROLES:
        raise ReopenError(_no_network(path))
    run = Run(path, settings)
    if run.problem is not None:
        again = "Run its training again, or copy the whole folder again."
        raise ReopenError(f"{path}: this network cannot be used: {run.problem}. {again}")
    noted = _noted(run)
    name = recipe or noted.get("recipe") or path.resolve().parent.name
    if name not in PRESETS and recipe is None:
        raise ReopenError(
            f"{path}: the folder does not say which recipe it belongs to, and the folder around it is called "
            f"'{name}'. Name the recipe with --recipe (recipe= in Python), one of {', '.join(PRESETS)}."
        )
    parts = TRAINED_UNDER[settings["kind"]]
    trained_under = Recipe().part(*parts) | {k: v for k, v in settings.items() if k not in NOT_SETTINGS}
    found = Recipe.named(name, **trained_under, **noted.get("settings", {}))
    changeable = found.part(*CHANGEABLE)
    for key in overrides or {}:
        if key in trained_under:
            raise RecipeError(
                f"{key} belongs to the training of {path.name} ({key} = {trained_under[key]}) and cannot be changed "
                f"afterwards. What can: {', '.join(changeable)}."
            )
    return TrainedClassifier(settings["kind"], found.changed(**(overrides or {})), run)


def training_min_area(trained: TrainedClassifier, data: str | Path | None = None) -> float:
    """Returns Algorithm 1's minimum area: the recipe's quantile of the training boxes' areas.

    The areas are noted in the network's folder. For a folder from before they were, they are computed again from the
    dataset, which must be the one that the network learnt from.

    Args:
        trained: The network.
        data: That dataset's folder. None: the one that `datasets.json` beside the network's folder names.

    Returns:
        Square pixels of the network's input.

    Raises:
        ReopenError: If the areas are not noted and the dataset is not at hand or another one, or has no box.
    """
    noted = _noted(trained.run).get("box_areas")
    areas = np.array(noted if noted is not None else _areas_in_dataset(trained, data), dtype=np.float64)
    if len(areas) == 0:
        raise ReopenError(
            f"{trained.run.path}: the network's training set has no box, from which Algorithm 1 takes its minimum "
            "area. Give one with --min-area (min_area= in Python), in square pixels of the network's input."
        )
    return float(np.quantile(areas, trained.recipe.min_area_quantile))


def _noted(run: Run) -> dict[str, Any]:
    return read_json(run.file(LOCATING)) or {}


def _areas_in_dataset(trained: TrainedClassifier, data: str | Path | None) -> np.ndarray:
    """Areas of the boxes that the network's training set has, at the network's scale."""
    path, recipe, expected = trained.run.path, trained.recipe, trained.run.settings.get("fingerprint")
    if data is None:
        known = read_json(path.resolve().parent / "datasets.json") or {}
        data = next((name for name, fingerprint in known.items() if fingerprint == expected), None)
    if data is None or not (data == "synthetic" or Path(data).expanduser().is_dir()):
        where = "no dataset is known for it" if data is None else f"its dataset is not at {data}"
        raise ReopenError(
            f"{path}: the network's folder has no {LOCATING} with the areas of its training boxes, which give the "
            f"smallest box that counts, and {where}. Name the folder of the dataset with --data (data= in Python), or "
            "the area with --min-area (min_area=), in square pixels of the network's input."
        )
    root = path.resolve().parent.parent.parent  # <out>/runs/<recipe>/<network>
    experiment = Experiment(recipe, root, None if data == "synthetic" else Path(data).expanduser().resolve())
    if experiment.fingerprint != expected:
        raise ReopenError(
            f"{data}: not the radiographs that {path.name} was trained on (fingerprint {experiment.fingerprint[:12]}, "
            f"expected {str(expected)[:12]}). Name their folder with --data, or the smallest area with --min-area."
        )
    parts = []
    for record in experiment.train_records:
        if len(record.boxes):
            width, height = record.size or read_image(record.path).shape[1::-1]
            parts.append(scaled_areas(Geometry(height, width, recipe.resize, recipe.crop), record.boxes))
    return np.concatenate([np.empty(0), *parts])


def _no_network(path: Path) -> str:
    """Says what was expected, and which networks there are if the folder holds some."""
    if not path.exists():
        return f"{path}: no such folder. Expected a trained network's, such as runs/demo/student-<digest>."
    if not path.is_dir():
        return f"{path}: this is a file. Expected a trained network's folder, such as runs/demo/student-<digest>."
    found = [one.parent for role in ROLES for one in sorted(path.glob(f"{role}-*/{DONE}"))]
    message = (
        f"{path}: not a finished network. Expected a folder such as runs/demo/student-<digest> (or teacher-) with "
        f"settings.json, {DONE}, best.safetensors and last.safetensors, as notebooks 02 and 03 leave it."
    )
    if not found:
        return message
    listed = "\n".join(f"  {one.name}  {_what_differs(one)}" for one in found)
    return f"{message} Name one of those in this folder:\n{listed}"


def _what_differs(folder: Path) -> str:
    """The settings of a network that are not its preset's, as in `seed=1`."""
    settings = read_json(folder / "settings.json") or {}
    preset, parts = folder.resolve().parent.name, TRAINED_UNDER.get(settings.get("kind"), ())
    if preset not in PRESETS:
        return ""
    usual, default = Recipe.named(preset).part(*parts), Recipe().part(*parts)
    used = {key: settings.get(key, default[key]) for key in usual}
    changed = [f"{key}={value}" for key, value in used.items() if usual[key] != value]
    return ", ".join(changed) or "(the recipe's own settings)"
