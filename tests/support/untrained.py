"""Networks that nobody trained, in run folders like those of a training: for what comes after training."""

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import LOCATING, TrainedNetwork, locating
from tbkd_utils.models.networks import build_network
from tbkd_utils.runs import write_json, write_tensors


def untrained(experiment: Experiment, role: str = "student", *, noted: bool = True) -> TrainedNetwork:
    """ImageNet's features under a last layer that was drawn by the recipe's seed.

    Args:
        experiment: Recipe and data; the folder is named as a training would name it.
        role: One of the system's, such as `teacher` or `student`.
        noted: False for a folder from before `locating.json`.
    """
    recipe = experiment.recipe
    run = experiment.run_at(role, experiment.training_settings(role))
    with run.making() as needed:
        if needed:
            training, classes = recipe.training, len(experiment.task.classes)
            network = experiment.network_of(role)
            state = build_network(network, classes, training.weights, training.seed, training.head).state_dict()
            for name in ("best", "last"):
                write_tensors(run.file(f"{name}.safetensors"), state)
            if noted:
                write_json(run.file(LOCATING), locating(experiment))
    return TrainedNetwork(role, recipe, run)
