"""The mean chest of a training set, by which lungs are found without annotation; a network's folder keeps its own."""

from collections.abc import Sequence

import numpy as np
import torch

from tbkd_utils.data.cache import Samples
from tbkd_utils.errors import RunError
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.localization.boxes import PerLung
from tbkd_utils.localization.lungs import Lungs, MeanChest, find_lungs, mean_chest, middle_of
from tbkd_utils.runs import Run, cached_result, read_tensors, write_tensors

CHEST = "chest.safetensors"
MOST_CHESTS = 400
"""Of more training radiographs than that, as many make the mean chest, evenly spaced."""


def needs_lungs(recipe: Recipe) -> bool:
    """Whether heatmaps or boxes depend on where the lungs are."""
    return recipe.heatmaps.inside_lungs or recipe.scores.boxes_by == "lung"


def training_chest(experiment: Experiment) -> MeanChest:
    """Returns the mean chest of the training radiographs, at the scale of training; computed once and kept.

    Labels and boxes play no part in it.

    Raises:
        UsageError: If the radiographs have no mean with two lungs, as such that are no frontal chests.
        RunError: If the run folder cannot be written.
    """

    def compute() -> MeanChest:
        pixels = experiment.full_train.pixels
        places = np.linspace(0, len(pixels) - 1, min(len(pixels), MOST_CHESTS)).round().astype(int)
        return mean_chest([np.array(pixels[place]) for place in places.tolist()])

    settings = experiment.recipe.differences("data", "pixels") | {"fingerprint": experiment.fingerprint}
    return cached_result(experiment.run_at("chest", settings), MeanChest, compute)


def keep_chest(experiment: Experiment, run: Run) -> None:
    """Puts the mean chest into a network's folder if the recipe looks for lungs and the folder has none.

    So the folder alone is enough for use elsewhere. It depends on nothing but the training radiographs.

    Raises:
        UsageError: As `training_chest`.
        RunError: If a folder cannot be written.
    """
    if needs_lungs(experiment.recipe) and not run.file(CHEST).exists():
        arrays = vars(training_chest(experiment))
        write_tensors(run.file(CHEST), {name: torch.from_numpy(array) for name, array in arrays.items()})


def read_chest(run: Run) -> MeanChest:
    """Returns the mean chest of a network's folder.

    Raises:
        RunError: If the folder has none, or it is damaged.
    """
    if not run.file(CHEST).exists():
        raise RunError(
            f"{run.path}: this network's folder has no {CHEST}, by which lungs are found. Train it, or score it, once "
            "with inside_lungs=true or boxes_by=lung beside its radiographs; or set inside_lungs=false and "
            "boxes_by=regions."
        )
    return MeanChest(**{name: tensor.numpy() for name, tensor in read_tensors(run.file(CHEST)).items()})


def halves(samples: Samples, mean: MeanChest, second: float) -> Sequence[PerLung]:
    """Returns where the lungs of each radiograph meet, for one box a lung."""
    return [PerLung(middle_of(one), second) for one in lungs_in(samples, mean)]


def lungs_in(samples: Samples, mean: MeanChest) -> list[Lungs]:
    """Returns the lungs of each radiograph, found by its alignment to the mean chest."""
    return [find_lungs(np.array(samples.pixels[place]), mean) for place in range(len(samples))]
