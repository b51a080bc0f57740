"""The training step of a teacher or a student, as a Lightning module (section 3.2.2)."""

import time
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tbkd_utils.data.seeding import stable_seed
from tbkd_utils.data.transforms import normalise
from tbkd_utils.errors import TbkdError
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.models.losses import distillation_loss

LOSS = "monitored_loss"


class TrainingError(TbkdError, RuntimeError):
    """Training that cannot go on."""


class Classifier(L.LightningModule):
    """The training step of a teacher (no `teacher` given) or a student, and its history."""

    def __init__(self, recipe: Recipe, model: nn.Module, teacher: nn.Module | None) -> None:
        super().__init__()
        self.recipe = recipe
        self.memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.memory_format)
        # In a tuple, so that the teacher is no submodule: neither trained nor stored in checkpoints.
        self._teacher = (teacher.to(memory_format=self.memory_format).requires_grad_(False),) if teacher else ()
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._sums: dict[str, torch.Tensor] = {}
        self._began = 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with default betas (section 3.2.2)."""
        return torch.optim.Adam(
            self.model.parameters(), lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalises on the device: uint8 (b, H, W) travels, float32 (b, 3, H, W) is used."""
        pixels, labels = batch
        return normalise(pixels).contiguous(memory_format=self.memory_format), labels

    def on_fit_start(self) -> None:
        """Puts the teacher beside the student."""
        for teacher in self._teacher:
            teacher.to(self.device).train(self.recipe.teacher_mode == "train")

    def on_train_epoch_start(self) -> None:
        """Starts the sums of an epoch."""
        self._sums, self._began = {}, time.perf_counter()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds what a network draws in its forward pass (dropout), by epoch and batch."""
        torch.manual_seed(stable_seed("forward", self.recipe.data_seed, self.current_epoch, batch_idx))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Returns the mean loss of a batch: images (b, 3, H, W), labels (b,)."""
        loss, _ = self._loss(batch)
        self._add("train", loss, len(batch[1]))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Adds a batch to the monitored loss and accuracy."""
        loss, logits = self._loss(batch)
        self._add("monitored", loss, len(batch[1]))
        self._add("correct", (logits.argmax(dim=1) == batch[1]).float().mean(), len(batch[1]))

    def on_train_epoch_end(self) -> None:
        """Adds the epoch's row to the history; early stopping and checkpoint come after it."""
        means = {key: (total[0] / total[1]).item() for key, total in self._sums.items()}
        monitored = means.get("monitored", means["train"])
        if not np.isfinite([means["train"], monitored]).all():
            raise TrainingError(
                f"The loss is no longer a number in epoch {self.current_epoch}: lower learning_rate "
                f"({self.recipe.learning_rate:g}) or use precision '32-true'."
            )
        self.rows.append(
            {"epoch": self.current_epoch, "train_loss": means["train"], LOSS: monitored,
             "monitored_accuracy": means.get("correct", float("nan"))}
        )  # fmt: skip
        self.log(LOSS, monitored)
        self.seconds += time.perf_counter() - self._began

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts the history into the checkpoint, so that it is resumed with the weights."""
        checkpoint.update(history=self.rows, seconds=self.seconds)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the history from the checkpoint."""
        self.rows, self.seconds = list(checkpoint["history"]), checkpoint["seconds"]

    def _loss(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = batch
        if not self._teacher:
            logits = self.model(images)  # (b, 2)
            return F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing), logits
        with torch.inference_mode():  # first, while no activations of the student fill the memory
            teacher_logits = self._teacher[0](images)  # (b, 2), of the very same augmented batch
        teacher_logits = teacher_logits.clone()  # out of inference mode, or the loss could not keep it
        logits = self.model(images)  # (b, 2)
        # In float32, also under mixed precision: KL between nearly equal distributions cancels.
        loss = distillation_loss(
            logits.float(), teacher_logits.float(), labels, self.recipe.temperature, self.recipe.alpha
        )
        return loss, logits

    def _add(self, key: str, mean: torch.Tensor, count: int) -> None:
        total = torch.stack(
            [mean.detach().double() * count, torch.full_like(mean.detach(), count, dtype=torch.float64)]
        )
        self._sums[key] = self._sums[key] + total if key in self._sums else total
