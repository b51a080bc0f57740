"""Networks that nobody trained, in run folders like those of a training: for what comes after training."""

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import TrainedClassifier
from tbkd_utils.models.checkpoints import LOCATING
from tbkd_utils.models.fit import locating
from tbkd_utils.models.networks import build_classifier
from tbkd_utils.runs import write_json, write_tensors


def untrained(experiment: Experiment, role: str = "student", *, noted: bool = True) -> TrainedClassifier:
    """ImageNet's features under a last layer that was drawn by the recipe's seed.

    Args:
        experiment: Recipe and data; the folder is named as a training would name it.
        role: `teacher` or `student`.
        noted: False for a folder from before `locating.json`.
    """
    recipe = experiment.recipe
    run = experiment.run_at(role, experiment.training_settings(role))
    with run.making() as needed:
        if needed:
            state = build_classifier(recipe.backbone, recipe.weights, recipe.seed).state_dict()
            for name in ("best", "last"):
                write_tensors(run.file(f"{name}.safetensors"), state)
            if noted:
                write_json(run.file(LOCATING), locating(experiment))
    return TrainedClassifier(role, recipe, run)
