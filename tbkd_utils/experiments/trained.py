"""Trained networks: made if need be, read back, or loaded from their run folder alone (paper section 3.2.2)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from tbkd_utils.data.cache import Samples, scaled_areas
from tbkd_utils.data.files import read_listed
from tbkd_utils.data.geometry import Geometry
from tbkd_utils.data.loaders import plain_loader, training_loader
from tbkd_utils.data.transforms import build_augmentation
from tbkd_utils.errors import RunError, SettingsError
from tbkd_utils.experiments.chests import keep_chest, read_chest
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import DEFAULT_SYSTEM, REMOVED, Recipe, renamed
from tbkd_utils.experiments.system import SYSTEMS, Task, find_system, named_recipe
from tbkd_utils.localization.boxes import minimum_area
from tbkd_utils.localization.lungs import MeanChest
from tbkd_utils.models.devices import compute_device
from tbkd_utils.models.losses import build_loss
from tbkd_utils.models.networks import Network, build_network, early_layers, find_network
from tbkd_utils.models.options import TrainingOptions
from tbkd_utils.runs import DONE, HISTORY, Run, read_json, read_tensors, write_json

LOCATING = "locating.json"
NOT_SETTINGS = ("kind", "fingerprint", "weights_sha256", "system", "teacher_network", "targets")
"""In `settings.json`, beside the recipe's settings."""
CHANGEABLE = ("evaluation", "heatmaps", "scores", "execution")
"""The groups of settings that may differ from those that a network was trained under."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network and the folder that holds it.

    Attributes:
        role: One of the system's, such as `teacher` or `student`.
        recipe: The recipe that made it.
        run: Its folder: `best.safetensors`, `last.safetensors`, `history.csv`, `environment.json`, and for use without
            the radiographs that it learned from `locating.json` and, if lungs were asked for, `chest.safetensors`.
    """

    role: str
    recipe: Recipe
    run: Run

    @property
    def task(self) -> Task:
        """What its outputs mean."""
        return find_system(self.recipe.system).task

    @property
    def network(self) -> Network:
        """What is declared of its architecture."""
        return find_network(self.network_name, self.recipe.training.head)

    @property
    def network_name(self) -> str:
        """The key in `models.NETWORKS` of its architecture."""
        training = self.recipe.training
        return training.networks.get(self.role, training.network)

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch: epoch, train_loss, validation_loss, validation_accuracy, and the loss's other terms."""
        return pd.read_csv(self.run.file(HISTORY))

    @property
    def chest(self) -> MeanChest:
        """The mean chest of its training radiographs; `RunError` if its folder has none."""
        return read_chest(self.run)

    @property
    def device(self) -> torch.device:
        """Where the recipe's `accelerator` puts the network."""
        return compute_device(self.recipe.execution.accelerator)

    @property
    def made_from(self) -> dict[str, str]:
        """What a result computed from this network depends on, for naming its run folder."""
        return {"network": self.run.path.name, "keep": self.recipe.training.keep}

    def model(self) -> nn.Module:
        """Returns the kept network, on `device`, in evaluation mode and in the recipe's memory format.

        Torch then computes with the recipe's number of threads, if it names one: the last bits depend on it.
        """
        training = self.recipe.training
        if self.recipe.execution.threads:
            torch.set_num_threads(self.recipe.execution.threads)
        outputs, settings = len(self.task.classes), self.recipe.flat()
        model = build_network(self.network_name, outputs, "none", training.seed, training.head, settings)
        model.load_state_dict(read_tensors(self.run.file(f"{training.keep}.safetensors")))
        layout = torch.channels_last if training.channels_last else torch.contiguous_format
        return model.to(self.device).to(memory_format=layout).eval()

    def images(self, samples: Samples, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Returns the network's input, float32 (m, 3, H, W), for the samples from `start` to `stop`."""
        return samples.images(start, stop, self.network.mean, self.network.std)


def train(experiment: Experiment, role: str, *, progress: bool = False) -> TrainedNetwork:
    """Trains a network, or returns it if it is trained already; one that it learns from is trained first.

    Args:
        experiment: Recipe and data.
        role: One of the system's, such as `teacher` or `student`.
        progress: Whether to show a progress bar on standard error.

    Raises:
        ModelError: If the network, its weights or its loss do not exist, or the loss stops being a number.
        RunError: If the run folder cannot be written.
    """
    run = experiment.run_at(role, experiment.training_settings(role))
    own = experiment.for_role(role)
    with run.making() as needed:
        if needed:
            _fit(experiment, own, role, run, progress)
        keep_chest(own, run)
    return TrainedNetwork(role, own.recipe, run)


def _fit(everyones: Experiment, experiment: Experiment, role: str, run: Run, progress: bool) -> None:
    """Trains a role, under its own settings; what it learns from is made under everyone's."""
    from tbkd_utils.models.loop import fit  # Lightning: seconds that reading a finished run should not take

    recipe, network = experiment.recipe, find_network(experiment.network_of(role), experiment.recipe.training.head)
    training, learns_from = recipe.training, experiment.role(role).teacher
    frozen = early_layers(experiment.network_of(role), training.frozen_stages)  # before a teacher is trained for it
    teacher = _teacher(everyones, learns_from, progress) if learns_from is not None else None
    samples, validation = _learned(everyones, experiment, role)
    if training.augmentation == "randaugment" and training.randaugment_ops and samples.masks is not None:
        raise SettingsError(
            "RandAugment moves pixels and not their masks: set randaugment_ops to 0 for radiographs with masks, or "
            "augmentation to crops."
        )
    fit(
        run,
        dataclasses.replace(training_options(recipe, network), frozen=frozen),
        _start(experiment, role),
        build_loss(experiment.role(role).loss, recipe.flat() | {"class_counts": experiment.counts_of(samples)}),
        lambda epoch: training_loader(
            samples, build_augmentation(training.augmentation, recipe.flat("training")),
            batch_size=training.batch_size, seed=recipe.data.data_seed, epoch=epoch,
            workers=recipe.execution.workers, balanced=training.balance in ("sampler", "both"),
            drop_last=training.drop_last,
        ),
        plain_loader(validation, batch_size=training.batch_size) if validation is not None else None,
        teacher=teacher,
        title=f"{role} (seed {training.seed})" if progress else "",
    )  # fmt: skip
    write_json(run.file(LOCATING), locating(experiment))


def _learned(everyones: Experiment, experiment: Experiment, role: str) -> tuple[Samples, Samples | None]:
    """What a role is fitted to, and what stops it."""
    make = experiment.role(role).targets
    if make is None:
        return experiment.train, experiment.validation
    if experiment.recipe.training.early_stopping_on == "test":
        raise SettingsError(
            f"What the network '{role}' learns from is made for training radiographs alone, so the test set cannot "
            "stop it: set early_stopping_on to validation or train."
        )
    targets, validation = make(everyones), experiment.validation
    return targets.given_to(experiment.train), None if validation is None else targets.given_to(validation)


def training_options(recipe: Recipe, network: Network) -> TrainingOptions:
    """Returns the recipe's values for the training loop, with no layer frozen."""
    known = {field.name for field in dataclasses.fields(TrainingOptions)} - {"mean", "std", "frozen"}
    flat = recipe.flat("training", "distillation", "execution", "data")
    return TrainingOptions(**{key: flat[key] for key in known}, mean=network.mean, std=network.std)


def _teacher(experiment: Experiment, role: str, progress: bool) -> nn.Module:
    """The network that another one learns from: trained or, as a control, the same before its training."""
    if experiment.recipe.distillation.teacher_trained:
        return train(experiment, role, progress=progress).model()
    return _start(experiment, role).eval()


def _start(experiment: Experiment, role: str) -> nn.Module:
    """The network of a role as it is before its training."""
    training, classes = experiment.recipe.training, len(experiment.task.classes)
    start = training.weights, training.seed, training.head
    return build_network(experiment.network_of(role), classes, *start, experiment.recipe.flat())


def locating(experiment: Experiment) -> dict[str, Any]:
    """Returns what boxes need besides a trained network: settings of evaluation, and the training boxes' areas.

    A run folder's name does not depend on it: boxes are drawn after training, under any setting.
    """
    recipe = experiment.recipe
    return {
        "system": recipe.system,
        "recipe": recipe.name,
        "settings": recipe.flat("evaluation", "heatmaps", "scores"),
        "box_areas": np.sort(experiment.training_box_areas).tolist(),
    }


def load_trained(
    folder: str | Path, recipe: str | None = None, overrides: Mapping[str, Any] | None = None
) -> TrainedNetwork:
    """Loads a trained network from its run folder, wherever that was copied to.

    What the network was trained under comes from the folder's `settings.json`, which names what differs from the
    defaults; how heatmaps and boxes are made, from its `locating.json` or, in folders from before that file, from the
    preset.

    Args:
        folder: `runs/<recipe>/<role>-<digest>`, or a copy of it anywhere.
        recipe: The preset behind it. None: the one that the folder notes, else the name of the folder around it.
        overrides: Other values of settings that do not change the network: those of `CHANGEABLE` groups.

    Raises:
        RunError: If the folder is not a finished network, was changed since, or its preset is not known.
        SettingsError: If the system or a setting does not exist, a value is impossible, or would change the network.
    """
    path = Path(folder).expanduser()
    settings = read_json(path / "settings.json")
    if not isinstance(settings, dict) or not _is_network(settings):
        raise RunError(_no_network(path))
    run = Run(path, settings)
    if run.problem is not None:
        again = "Run its training again, or copy the whole folder again."
        raise RunError(f"{path}: this network cannot be used: {run.problem}. {again}")
    noted, system = _noted(run), settings.get("system", DEFAULT_SYSTEM)
    name = recipe or noted.get("recipe") or path.resolve().parent.name.removeprefix(f"{system}-")
    presets = find_system(system).presets
    if name not in presets and recipe is None:
        raise RunError(
            f"{path}: the folder does not say which recipe it belongs to, and the folder around it is called "
            f"'{name}'. Name the recipe with --recipe (recipe= in Python), one of {', '.join(presets)}."
        )
    trained_under = _trained_under(settings)
    found = named_recipe(name, system).changed(**trained_under, **noted.get("settings", {}))
    for key in renamed(overrides or {}):
        if key in trained_under:
            raise SettingsError(
                f"{key} belongs to the training of {path.name} ({key} = {trained_under[key]}) and cannot be changed "
                f"afterwards. What can: {', '.join(found.flat(*CHANGEABLE))}."
            )
    return TrainedNetwork(settings["kind"], found.changed(**(overrides or {})), run)


def _trained_under(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting that a network was trained under: the defaults, but for what its `settings.json` names."""
    system, role = find_system(settings.get("system", DEFAULT_SYSTEM)), settings["kind"]
    used = system.recipe().flat(*system.roles[role].groups)
    used |= renamed({key: value for key, value in settings.items() if key not in NOT_SETTINGS})
    if "teacher_network" in settings:
        used |= {"network": settings["teacher_network"], "networks": {role: used["network"]}}
    return used


def training_min_area(trained: TrainedNetwork, data: str | Path | None = None) -> float:
    """Returns Algorithm 1's minimum area: the recipe's quantile of the training boxes' areas.

    The areas are noted in the network's folder. For a folder from before they were, they are computed again from the
    dataset, which must be the one that the network learned from.

    Args:
        trained: The network.
        data: That dataset's folder. None: the one that `datasets.json` beside the network's folder names.

    Returns:
        Square pixels of the network's input at the scale of evaluation.

    Raises:
        RunError: If the areas are not noted and the dataset is not at hand or another one, or has no box.
    """
    if trained.recipe.boxless_min_area is not None:
        return trained.recipe.boxless_min_area
    noted = _noted(trained.run).get("box_areas")
    areas = np.array(noted if noted is not None else _areas_in_dataset(trained, data), dtype=np.float64)
    if len(areas) == 0:
        raise RunError(
            f"{trained.run.path}: the network's training set has no box, from which Algorithm 1 takes its minimum "
            "area. Give one with --min-area (min_area= in Python), in square pixels of the network's input."
        )
    return minimum_area(areas * trained.recipe.evaluation_zoom, trained.recipe.scores.min_area_quantile)


def _noted(run: Run) -> dict[str, Any]:
    noted = read_json(run.file(LOCATING)) or {}
    kept = {key: value for key, value in noted.get("settings", {}).items() if key not in REMOVED}
    return noted | {"settings": kept} if noted else {}


def _areas_in_dataset(trained: TrainedNetwork, data: str | Path | None) -> np.ndarray:
    """Areas of the boxes that the network's training set has, at the scale of training."""
    path, recipe, expected = trained.run.path, trained.recipe, trained.run.settings.get("fingerprint")
    if data is None:
        known = read_json(path.resolve().parent / "datasets.json") or {}
        data = next((name for name, fingerprint in known.items() if fingerprint == expected), None)
    if data is None or not (data == "synthetic" or Path(data).expanduser().is_dir()):
        where = "no dataset is known for it" if data is None else f"its dataset is not at {data}"
        raise RunError(
            f"{path}: the network's folder has no {LOCATING} with the areas of its training boxes, which give the "
            f"smallest box that counts, and {where}. Name the folder of the dataset with --data (data= in Python), or "
            "the area with --min-area (min_area=), in square pixels of the network's input."
        )
    root = path.resolve().parent.parent.parent  # <out>/runs/<recipe>/<network>
    experiment = Experiment(recipe, root, None if data == "synthetic" else Path(data).expanduser().resolve())
    if experiment.fingerprint != expected:
        raise RunError(
            f"{data}: not the radiographs that {path.name} was trained on (fingerprint {experiment.fingerprint[:12]}, "
            f"expected {str(expected)[:12]}). Name their folder with --data, or the smallest area with --min-area."
        )
    parts = []
    for record in experiment.train_records:
        if len(record.boxes):
            width, height = record.size or read_listed(record.path).shape[1::-1]
            parts.append(scaled_areas(Geometry(height, width, *experiment.recipe.training_scale), record.boxes))
    return np.concatenate([np.empty(0), *parts])


def _is_network(settings: Mapping[str, Any]) -> bool:
    """Whether settings are those of a network: the system that they name has such a role.

    Raises:
        SettingsError: If there is no such system.
    """
    return settings.get("kind") in find_system(settings.get("system", DEFAULT_SYSTEM)).roles


def _no_network(path: Path) -> str:
    """Says what was expected, and which networks there are if the folder holds some."""
    if not path.exists():
        return f"{path}: no such folder. Expected a trained network's, such as runs/demo/student-<digest>."
    if not path.is_dir():
        return f"{path}: this is a file. Expected a trained network's folder, such as runs/demo/student-<digest>."
    found = _networks_in(path)
    system = next(iter(found.values()))["system"] if found else DEFAULT_SYSTEM
    message = (
        f"{path}: not a finished network. Expected a folder such as {_example(system)} with settings.json, {DONE}, "
        "best.safetensors and last.safetensors, as a training leaves it."
    )
    if not found:
        return message
    listed = "\n".join(f"  {one.name}  {_what_differs(one, settings)}" for one, settings in found.items())
    return f"{message} Name one of those in this folder:\n{listed}"


def _networks_in(path: Path) -> dict[Path, dict[str, Any]]:
    """The finished networks in a folder, by role and name, with their settings; each names its system."""
    found = []
    for done in path.glob(f"*/{DONE}"):
        settings = read_json(done.parent / "settings.json")
        if isinstance(settings, dict):
            settings = {"system": DEFAULT_SYSTEM} | settings
            if settings["system"] in SYSTEMS and _is_network(settings):
                found.append((str(settings["kind"]), done.parent, settings))
    return {folder: settings for _, folder, settings in sorted(found, key=lambda one: one[:2])}


def _example(system: str) -> str:
    """What the folder of a system's network is called: its last role's, and the beginnings of the others."""
    *others, last = SYSTEMS[system].roles
    label = Recipe(name="demo", system=system).label
    return f"runs/{label}/{last}-<digest>" + (f" (or {', '.join(f'{role}-' for role in others)})" if others else "")


def _what_differs(folder: Path, settings: Mapping[str, Any]) -> str:
    """The settings of a network that are not its preset's, as in `seed=1`."""
    system = settings["system"]
    preset = folder.resolve().parent.name.removeprefix(f"{system}-")
    if preset not in SYSTEMS[system].presets:
        return ""
    usual, used = named_recipe(preset, system).flat(), _trained_under(settings)
    changed = [f"{key}={value}" for key, value in used.items() if usual[key] != value]
    return ", ".join(changed) or "(the recipe's own settings)"
