"""A trained teacher or student: made if need be, else read back (section 3.2.2)."""

from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

from tbkd_utils.experiment import Experiment
from tbkd_utils.models.checkpoints import HISTORY
from tbkd_utils.models.devices import compute_device
from tbkd_utils.models.networks import build_classifier
from tbkd_utils.recipe import Recipe
from tbkd_utils.runs import Run, read_tensors


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
