"""The training loop, by Lightning: stops early, keeps the best epoch, resumes bit for bit (section 3.2.2).

Every random choice is a function of (seed, epoch, sample): the order of an epoch, the augmentation of a sample, the
validation split. So a run that was interrupted ends with the same bits as one that was not, whatever the number of
workers.
"""

from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader

from tbkd_utils.models.checkpoints import (
    RESUME,
    AtomicCheckpoints,
    KeepBestAndLast,
    OneBar,
    quiet_lightning,
    resumable,
)
from tbkd_utils.models.devices import environment, kept_memory, restored_determinism
from tbkd_utils.models.losses import Loss
from tbkd_utils.models.module import WATCHED, TrainingModule, to_be_lowered
from tbkd_utils.models.options import TrainingOptions
from tbkd_utils.runs import ENVIRONMENT, HISTORY, PROGRESS, Run, write_csv, write_json, write_tensors


def fit(
    run: Run,
    options: TrainingOptions,
    model: nn.Module,
    loss: Loss,
    train: Callable[[Callable[[], int]], DataLoader],
    validation: DataLoader | None = None,
    *,
    teacher: nn.Module | None = None,
    title: str = "",
) -> None:
    """Trains a network and writes its files into the run folder; resumes where an earlier call was cut short.

    The folder receives `best.safetensors`, `last.safetensors`, `history.csv` and `environment.json`.

    Args:
        run: The folder, whose lock the caller holds.
        options: How it is trained.
        model: The network at its start.
        loss: Its loss.
        train: Given a function that tells the epoch, returns the loader of the training batches; see
            `data.loaders.training_loader`.
        validation: Batches whose loss or accuracy stops training; None to stop on the training loss.
        teacher: Whose outputs the loss sees too; None without a teacher.
        title: Of the progress bar on standard error; empty for none.

    Raises:
        ModelError: If the loss stops being a number.
        KeyboardInterrupt: If it was interrupted; what is half done is not marked as done.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    module = TrainingModule(options, model, loss, teacher)
    loader = train(lambda: module.current_epoch)
    resume = resumable(run.file(RESUME))
    if resume is None or not finished(resume["history"], options):
        _train(run, module, loader, validation, resume is not None, title)
    else:
        module.load_state_dict(resume["state_dict"])
        module.rows, module.seconds = resume["history"], resume["seconds"]
    write_tensors(run.file("last.safetensors"), module.model.state_dict())
    write_csv(run.file(HISTORY), pd.DataFrame(module.rows))
    images = len(loader.dataset) * len(module.rows)  # type: ignore[arg-type]
    write_json(run.file(ENVIRONMENT), environment() | {
        "seconds": round(module.seconds, 2), "images_per_second": round(images / max(module.seconds, 1e-9), 1)
    })  # fmt: skip
    for name in (RESUME, PROGRESS):
        run.file(name).unlink(missing_ok=True)


def _train(
    run: Run, module: TrainingModule, loader: DataLoader, validation: DataLoader | None, resume: bool, title: str
) -> None:
    """Runs Lightning's loop to its end."""
    options = module.options
    callbacks: list[L.Callback] = [
        EarlyStopping(
            WATCHED[options.early_stopping_metric],
            patience=options.patience,
            mode="max" if options.early_stopping_metric == "accuracy" else "min",
            check_finite=False,
            check_on_train_epoch_end=True,
        ),
        KeepBestAndLast(run),
    ]
    if title:
        callbacks.append(OneBar(title))
    with quiet_lightning():
        trainer = L.Trainer(
            max_epochs=options.epochs,
            accelerator=options.accelerator,
            devices=1,
            precision=options.precision,
            deterministic=options.deterministic,
            callbacks=callbacks,
            plugins=[AtomicCheckpoints()],
            default_root_dir=run.path,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        with restored_determinism(), kept_memory():
            ckpt_path = run.file(RESUME) if resume else None
            trainer.fit(module, loader, validation, ckpt_path=ckpt_path, weights_only=True)
    if trainer.interrupted:  # Lightning swallows Ctrl-C; what is half done must not be marked as done
        raise KeyboardInterrupt


def finished(rows: list[dict[str, Any]], options: TrainingOptions) -> bool:
    """Whether these epochs are all: the last allowed one, or `patience` epochs without a better value."""
    values = [to_be_lowered(row, options.early_stopping_metric) for row in rows]
    return len(rows) >= options.epochs or len(values) - 1 - int(np.argmin(values)) >= options.patience
