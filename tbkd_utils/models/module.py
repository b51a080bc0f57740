"""The training step of a network, with or without a teacher, as a Lightning module (paper section 3.2.2)."""

import time
from collections.abc import Mapping
from typing import Any, Self

import lightning as L
import numpy as np
import torch
from torch import nn

from tbkd_utils.data.seeding import stable_seed
from tbkd_utils.data.transforms import standardize
from tbkd_utils.errors import ModelError
from tbkd_utils.models.losses import Loss, Outputs, logits_of
from tbkd_utils.models.options import TrainingOptions, learning_rate_factor

LOSS = "validation_loss"
ACCURACY = "validation_accuracy"
WATCHED = {"loss": LOSS, "accuracy": ACCURACY}
"""The column of the history that stops training, by the name of the metric."""


def to_be_lowered(row: Mapping[str, Any], metric: str) -> float:
    """Returns what an epoch's row says of a metric, in the sense in which less is better."""
    return -row[ACCURACY] if metric == "accuracy" else row[LOSS]


class TrainingModule(L.LightningModule):
    """The training step of one network, and its history.

    Args:
        options: How it is trained.
        model: The network.
        loss: Its loss; if it is a module, its weights are trained along and go into checkpoints.
        teacher: Whose outputs on the very same augmented batch the loss sees; None without a teacher.
    """

    def __init__(self, options: TrainingOptions, model: nn.Module, loss: Loss, teacher: nn.Module | None) -> None:
        super().__init__()
        self.options, self.loss = options, loss
        self.memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.memory_format)
        self._frozen = tuple(self.model.get_submodule(name).requires_grad_(False) for name in options.frozen)
        # In a tuple, so that the teacher is no submodule: neither trained nor stored in checkpoints.
        self._teacher = (teacher.to(memory_format=self.memory_format).requires_grad_(False),) if teacher else ()
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._sums: dict[str, torch.Tensor] = {}
        self._began = 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with default betas (section 3.2.2), of what is not frozen in the network and in its loss."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trained, lr=self.options.learning_rate, weight_decay=self.options.weight_decay)

    def train(self, mode: bool = True) -> Self:
        """Changes the mode of everything but the frozen layers, which stay in evaluation mode."""
        super().train(mode)
        self._keep_frozen()
        return self

    def _keep_frozen(self) -> None:
        for layer in self._frozen:
            layer.eval()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Standardizes on the device: uint8 (b, H, W) travels, float32 (b, 3, H, W) is used."""
        images = standardize(batch["pixels"], self.options.mean, self.options.std)
        images = images.contiguous(memory_format=self.memory_format)
        return {"images": images} | {key: value for key, value in batch.items() if key != "pixels"}

    def on_fit_start(self) -> None:
        """Puts the teacher beside the student."""
        for teacher in self._teacher:
            teacher.to(self.device).train(self.options.teacher_mode == "train")

    def on_train_epoch_start(self) -> None:
        """Starts the sums of an epoch."""
        self._keep_frozen()  # whoever changed the mode of the network alone
        self._sums, self._began = {}, time.perf_counter()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds what a network draws in its forward pass (dropout), by epoch and batch; sets the learning rate."""
        torch.manual_seed(stable_seed("forward", self.options.data_seed, self.current_epoch, batch_idx))
        if self.options.schedule == "cosine":
            steps = self.options.epochs * int(self.trainer.num_training_batches)
            factor = learning_rate_factor(self.trainer.global_step, steps)
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = self.options.learning_rate * factor

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Returns the mean loss of a batch."""
        terms, _ = self._terms(batch)
        for name, term in terms.items():
            self._add(f"train_{name}", term, len(batch["targets"]))
        return terms["loss"]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Adds a batch to the validation loss and accuracy."""
        terms, outputs = self._terms(batch)
        self._add(LOSS, terms["loss"], len(batch["targets"]))
        right = right_answers(outputs, batch["targets"])
        if right is not None:
            self._sum(ACCURACY, right.sum(), right.numel())

    def on_train_epoch_end(self) -> None:
        """Adds the epoch's row to the history; early stopping and checkpoint come after it."""
        means = {key: (total[0] / total[1]).item() for key, total in self._sums.items()}
        watched = means.get(LOSS, means["train_loss"])
        if not np.isfinite([means["train_loss"], watched]).all():
            raise ModelError(
                f"The loss is no longer a number in epoch {self.current_epoch}: lower learning_rate "
                f"({self.options.learning_rate:g}) or use precision '32-true'."
            )
        row = {"epoch": self.current_epoch, "train_loss": means["train_loss"], LOSS: watched}
        row[ACCURACY] = means.get(ACCURACY, float("nan"))
        self.rows.append(row | {key: mean for key, mean in means.items() if key not in row})
        metric = WATCHED[self.options.early_stopping_metric]
        self.log(metric, row[metric])
        self.seconds += time.perf_counter() - self._began

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts the history into the checkpoint, so that it is resumed with the weights."""
        checkpoint.update(history=self.rows, seconds=self.seconds)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the history from the checkpoint."""
        self.rows, self.seconds = list(checkpoint["history"]), checkpoint["seconds"]

    def _terms(self, batch: Any) -> tuple[dict[str, torch.Tensor], Outputs]:
        teacher = None
        if self._teacher:
            with torch.inference_mode():  # first, while no activations of the student fill the memory
                teacher = self._teacher[0](batch["images"])
            teacher = _clone(teacher)  # out of inference mode, or the loss could not keep it
        shown = (batch["targets"],) if self.training and getattr(self.model, "takes_targets", False) else ()
        outputs = self.model(batch["images"], *shown)  # logits (b, classes), or a dict
        return self.loss(outputs, batch, teacher), outputs

    def _add(self, key: str, mean: torch.Tensor, count: int) -> None:
        self._sum(key, mean.detach().double() * count, count)

    def _sum(self, key: str, total: torch.Tensor, count: int) -> None:
        both = torch.stack([total.double(), torch.full_like(total, count, dtype=torch.float64)])
        self._sums[key] = self._sums[key] + both if key in self._sums else both


def right_answers(outputs: Outputs, targets: torch.Tensor) -> torch.Tensor | None:
    """Returns which answers are right, bool (b,) or (b, classes); None where the outputs are no classes.

    Counts of them are exact, so that two epochs that are right equally often are equal.

    Args:
        outputs: Logits (b, classes), or a dict with them.
        targets: int64 (b,), one class an image, or (b, classes) of 0 and 1.
    """
    logits = logits_of(outputs)
    if logits.ndim != 2:
        return None
    return (logits.argmax(dim=1) == targets) if targets.ndim == 1 else ((logits > 0) == (targets > 0))


def _clone(outputs: Outputs) -> Outputs:
    if isinstance(outputs, torch.Tensor):
        return outputs.clone()
    return {name: output.clone() for name, output in outputs.items()}
