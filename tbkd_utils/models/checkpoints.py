"""What accompanies a training: checkpoints that survive a kill, one progress bar, and quiet."""

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from tqdm import tqdm

from tbkd_utils.models.module import LOSS, TrainingModule, to_be_lowered
from tbkd_utils.runs import PROGRESS, Run, write_atomic, write_json, write_tensors


class ResumeWarning(UserWarning):
    """A checkpoint that cannot be believed; the run starts again."""


def resumable(path: Path) -> dict[str, Any] | None:
    """Returns the checkpoint if there is one that can be read."""
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        warnings.warn(
            f"{path}: the checkpoint is damaged ({type(error).__name__}), so this run starts again from its first "
            "epoch. If that happens often, check the disk.",
            ResumeWarning,
            stacklevel=2,
        )
        path.unlink()
        return None


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes Lightning's checkpoints beside their place and renames them; loads tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes the checkpoint atomically."""
        packed = io.BytesIO()  # in memory first: torch turns a full disk into an error that does not say so
        torch.save(checkpoint, packed)
        write_atomic(Path(path), lambda stream: stream.write(packed.getbuffer()))


class KeepBestAndLast(Checkpoint):
    """Writes the best weights, then the checkpoint that training resumes from, at the end of every epoch."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Runs after early stopping, so that the checkpoint holds its state."""
        assert isinstance(module, TrainingModule)
        values = [to_be_lowered(row, module.options.early_stopping_metric) for row in module.rows]
        if all(values[-1] < earlier for earlier in values[:-1]):
            write_tensors(self.run.file("best.safetensors"), module.model.state_dict())
        trainer.save_checkpoint(self.run.file(RESUME))
        write_json(self.run.file(PROGRESS), {"epoch": len(module.rows), "epochs": module.options.epochs})


class OneBar(L.Callback):
    """One progress bar over all steps of all epochs."""

    def __init__(self, title: str) -> None:
        self.title = title

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Opens the bar, at the step that training resumes from."""
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        self.bar = tqdm(total=total, initial=trainer.global_step, desc=self.title, unit="step", mininterval=1)

    def on_train_batch_end(self, *args: Any) -> None:
        """Moves the bar."""
        self.bar.update()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Shows the validation loss of the epoch before."""
        assert isinstance(module, TrainingModule)
        loss = f"{module.rows[-1][LOSS]:.3f}" if module.rows else "?"
        self.bar.set_postfix(epoch=trainer.current_epoch + 1, loss=loss)

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Closes the bar, also after an error or an early stop."""
        if hasattr(self, "bar"):
            self.bar.close()


class quiet_lightning(warnings.catch_warnings):  # noqa: N801 - reads as the context manager it is
    """Holds back Lightning's banners and its advice on workers, which do not apply to small series of runs."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*lightning.*", category=DeprecationWarning)
        self._logger = logging.getLogger("lightning.pytorch")
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *details: Any) -> None:
        self._logger.setLevel(self._level)
        super().__exit__(*details)


RESUME = "resume.ckpt"
