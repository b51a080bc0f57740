"""How a network is trained, as plain values."""

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
    frozen: tuple[str, ...] = ()
