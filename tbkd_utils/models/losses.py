"""The student's loss, equations 1 and 2 of the paper (Hinton et al. 2015)."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from tbkd_utils.errors import TbkdError


class DistillationError(TbkdError, ValueError):
    """Logits, a temperature or an alpha that the loss is not defined for."""


def soften(p: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """The probability of one of two classes after both logits were divided by the temperature.

    With two classes the probability p belongs to the difference of the logits `z = log(p / (1 - p))`, and the softened
    one is the logistic function of `z / T`. So 0.5 stays, and everything else moves towards it when T > 1.

    Args:
        p: Probabilities in [0, 1], any shape.
        temperature: T > 0.

    Returns:
        float64 of the same shape, in [0, 1]; 0 and 1 stay what they are.

    Raises:
        DistillationError: If a probability lies outside [0, 1] or T is not a positive number.
    """
    _check_temperature(temperature)
    given = np.asarray(p, dtype=np.float64)
    if not ((given >= 0) & (given <= 1)).all():
        raise DistillationError("A probability lies outside 0 to 1: logits need a softmax first.")
    return expit(logit(given) / temperature)


def soft_target_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Equation 2: `T^2 * KL(softmax(z_t / T) || softmax(z_s / T))`, averaged over the batch.

    The factor T^2 keeps the size of its gradient independent of T (Hinton et al. 2015, section 2.1).

    Args:
        student_logits: Logits z_s, (n, classes), float.
        teacher_logits: Logits z_t, (n, classes), float; no gradient flows into them.
        temperature: T > 0.

    Returns:
        A scalar tensor, at least 0 up to rounding.

    Raises:
        DistillationError: If the shapes differ, the batch is empty, or T is not a positive number.
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape or len(student_logits) == 0:
        raise DistillationError(
            f"Expected student and teacher logits of one shape (n, classes), n > 0; got "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}."
        )
    _check_temperature(temperature)
    student = F.log_softmax(student_logits / temperature, dim=1)  # (n, classes)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)  # (n, classes)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    alpha: float,
) -> torch.Tensor:
    """Equation 1: `(1 - alpha) * L_ST + alpha * L_CE`, averaged over the batch.

    Args:
        student_logits: Logits z_s, (n, classes), float.
        teacher_logits: Logits z_t, (n, classes), float; no gradient flows into them.
        targets: Class indices, (n,), int64.
        temperature: T > 0 of equation 2; the paper uses 2.
        alpha: Weight of cross-entropy, in [0, 1]; the paper uses 0.75. Note the direction: alpha = 1 is plain
            cross-entropy, alpha = 0 is the teacher alone.

    Returns:
        A scalar tensor, at least 0 up to rounding.

    Raises:
        DistillationError: If the shapes do not fit, or T or alpha is out of range.
    """
    if not 0 <= alpha <= 1:
        raise DistillationError(f"alpha is {alpha}: expected a number from 0 to 1.")
    soft = soft_target_loss(student_logits, teacher_logits, temperature)
    if targets.shape != student_logits.shape[:1]:
        raise DistillationError(
            f"Expected one target per row of logits; got {tuple(targets.shape)} for {tuple(student_logits.shape)}."
        )
    return (1 - alpha) * soft + alpha * F.cross_entropy(student_logits, targets)


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise DistillationError(f"temperature is {temperature}: expected a number above 0.")
