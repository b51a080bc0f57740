"""The training loop, by Lightning: stops early, keeps the best epoch, resumes bit for bit (section 3.2.2).

Every random choice is a function of (seed, epoch, sample): the order of an epoch, the augmentation of a sample, the
hold-out. So a run that was interrupted ends with the same bits as one that was not, whatever the number of workers.
"""

from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn

from tbkd_utils.data.loaders import monitor_loader, training_loader
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.models.checkpoints import (
    ENVIRONMENT,
    HISTORY,
    LOCATING,
    PROBE,
    PROGRESS,
    RESUME,
    AtomicCheckpoints,
    KeepBestAndLast,
    OneBar,
    quiet_lightning,
    resumable,
)
from tbkd_utils.models.devices import environment, fastest_precision, probe_precision
from tbkd_utils.models.module import LOSS, Classifier
from tbkd_utils.models.networks import build_classifier
from tbkd_utils.runs import Run, write_csv, write_json, write_tensors


def fit(experiment: Experiment, run: Run, teacher: nn.Module | None, progress: bool) -> None:
    """Trains a network and writes its files into the run folder; goes on where an earlier call was cut short.

    Args:
        experiment: Recipe and data.
        run: The folder, whose lock the caller holds.
        teacher: Whom a student learns from; None for a teacher.
        progress: Whether to show a progress bar on standard error.

    Raises:
        TrainingError: If the loss stops being a number.
        KeyboardInterrupt: If it was interrupted; what is half done is not marked as done.
    """
    recipe = experiment.recipe
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    module = Classifier(recipe, build_classifier(recipe.backbone, recipe.weights, recipe.seed), teacher)
    resume = resumable(run.file(RESUME))
    if resume is None or not finished(resume["history"], recipe):
        callbacks: list[L.Callback] = [
            EarlyStopping(LOSS, patience=recipe.patience, check_finite=False, check_on_train_epoch_end=True),
            KeepBestAndLast(run),
        ]
        if progress:
            callbacks.append(OneBar(f"{run.settings['kind']} (seed {recipe.seed})"))
        precision = _precision(recipe, run)
        train = training_loader(experiment.train, recipe, lambda: module.current_epoch)
        monitored = monitor_loader(experiment.monitor, recipe) if experiment.monitor is not None else None
        with quiet_lightning():
            trainer = L.Trainer(
                max_epochs=recipe.epochs,
                accelerator=recipe.accelerator,
                devices=1,
                precision=precision,  # type: ignore[arg-type]
                deterministic=recipe.deterministic,
                callbacks=callbacks,
                plugins=[AtomicCheckpoints()],
                default_root_dir=run.path,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
            )
            deterministic = torch.are_deterministic_algorithms_enabled()
            try:
                ckpt_path = run.file(RESUME) if resume else None
                trainer.fit(module, train, monitored, ckpt_path=ckpt_path, weights_only=True)
            finally:
                torch.use_deterministic_algorithms(deterministic)
        if trainer.interrupted:  # Lightning swallows Ctrl-C; what is half done must not be marked as done
            raise KeyboardInterrupt
    else:
        module.load_state_dict(resume["state_dict"])
        module.rows, module.seconds = resume["history"], resume["seconds"]
    write_tensors(run.file("last.safetensors"), module.model.state_dict())
    write_csv(run.file(HISTORY), pd.DataFrame(module.rows))
    write_json(run.file(LOCATING), locating(experiment))
    images = len(experiment.train) * len(module.rows)
    write_json(run.file(ENVIRONMENT), environment() | {
        "seconds": round(module.seconds, 2), "images_per_second": round(images / max(module.seconds, 1e-9), 1)
    })  # fmt: skip
    for name in (RESUME, PROGRESS):
        run.file(name).unlink(missing_ok=True)


def locating(experiment: Experiment) -> dict[str, Any]:
    """Returns what boxes need besides a trained network: the recipe's heatmaps and scores, the training boxes' areas.

    A run folder's name does not depend on it: boxes are drawn after training, under any setting.
    """
    recipe = experiment.recipe
    areas = np.sort(np.concatenate([np.empty(0), *experiment.full_train.areas]))
    return {"recipe": recipe.name, "settings": recipe.part("heatmaps", "scores"), "box_areas": areas.tolist()}


def _precision(recipe: Recipe, run: Run) -> str:
    """The recipe's precision, or the fastest here, measured once: a resumed training keeps what it began with."""
    if recipe.precision != "auto":
        return recipe.precision
    if not run.file(PROBE).exists():
        write_csv(run.file(PROBE), probe_precision(recipe))
    return fastest_precision(pd.read_csv(run.file(PROBE)))


def finished(rows: list[dict[str, Any]], recipe: Recipe) -> bool:
    """Whether these epochs are all: the last allowed one, or `patience` epochs without a lower loss."""
    losses = [row[LOSS] for row in rows]
    return len(rows) >= recipe.epochs or len(losses) - 1 - int(np.argmin(losses)) >= recipe.patience
