"""How a network is trained, as plain values."""

import math
from dataclasses import dataclass
from typing import Literal

from tbkd_utils.data.transforms import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class TrainingOptions:
    """What the training loop has to know besides network, loss and data (paper section 3.2.2).

    Attributes:
        learning_rate: Adam's, above 0.
        weight_decay: Adam's, at least 0.
        epochs: The largest number of epochs.
        patience: Training stops after this many epochs without a better value of the metric.
        early_stopping_metric: `loss` or `accuracy`, of the validation batches.
        precision: Lightning's name of the arithmetic.
        channels_last: Memory format of images and weights.
        deterministic: Only operations that repeat bit for bit.
        accelerator: `auto`, `cpu`, `gpu` or `mps`.
        threads: CPU threads of torch; 0 for its own choice.
        data_seed: Of what a network draws in its forward pass, by epoch and batch.
        teacher_mode: Batch norm of a frozen teacher, `eval` or `train`.
        mean: Per channel, subtracted from pixels in [0, 1].
        std: Per channel, the divisor after that.
        schedule: `constant`, or `cosine`: see `learning_rate_factor`.
        frozen: Dotted names of layers that neither train nor move their batch-norm statistics.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    epochs: int = 100
    patience: int = 10
    early_stopping_metric: Literal["loss", "accuracy"] = "loss"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    channels_last: bool = True
    deterministic: bool = True
    accelerator: str = "auto"
    threads: int = 0
    data_seed: int = 0
    teacher_mode: str = "eval"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    schedule: Literal["constant", "cosine"] = "constant"
    frozen: tuple[str, ...] = ()


WARM_UP = 0.05
"""Share of the steps in which the learning rate of a `cosine` schedule rises."""


def learning_rate_factor(step: int, steps: int) -> float:
    """Returns the share of the learning rate at a step of a `cosine` schedule.

    It rises in a straight line over the first steps (`WARM_UP`), reaches 1, and falls along half a cosine to 0 at the
    end. A function of the step alone, so a resumed training goes on as if nothing had happened.

    Args:
        step: How many steps were taken before, from 0 to steps - 1.
        steps: Steps of the whole training, at its largest number of epochs.

    Returns:
        Above 0, at most 1.
    """
    warm = int(WARM_UP * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    return (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1))) / 2
