"""The losses by name; among them the student's, equations 1 and 2 of the paper (Hinton et al. 2015)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from tbkd_utils.errors import ModelError, UsageError


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
        UsageError: If a probability lies outside [0, 1] or T is not a positive number.
    """
    _check_temperature(temperature)
    given = np.asarray(p, dtype=np.float64)
    if not ((given >= 0) & (given <= 1)).all():
        raise UsageError("A probability lies outside 0 to 1: logits need a softmax first.")
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
        UsageError: If the shapes differ, the batch is empty, or T is not a positive number.
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape or len(student_logits) == 0:
        raise UsageError(
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
        UsageError: If the shapes do not fit, or T or alpha is out of range.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha is {alpha}: expected a number from 0 to 1.")
    soft = soft_target_loss(student_logits, teacher_logits, temperature)
    if targets.shape != student_logits.shape[:1]:
        raise UsageError(
            f"Expected one target per row of logits; got {tuple(targets.shape)} for {tuple(student_logits.shape)}."
        )
    return (1 - alpha) * soft + alpha * F.cross_entropy(student_logits, targets)


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise UsageError(f"temperature is {temperature}: expected a number above 0.")


Terms = dict[str, torch.Tensor]
"""Named scalar terms of a loss; `loss` is minimized, all are logged."""

Batch = Mapping[str, torch.Tensor]
"""`images` float32 (b, 3, H, W), `targets` int64 (b,) or (b, classes), and `masks` uint8 (b, H, W) where there are
some."""

Outputs = torch.Tensor | Mapping[str, torch.Tensor]
"""What a network returns: logits, or a dict with them as `logits`."""


class Loss(Protocol):
    """Outputs of a network, the batch, and the outputs of its teacher if it has one, to named terms."""

    def __call__(self, outputs: Outputs, batch: Batch, teacher: Outputs | None) -> Terms:
        """Returns the terms, each averaged over the batch; `loss` is among them."""
        ...


def logits_of(outputs: Outputs) -> torch.Tensor:
    """Returns the logits (b, classes) among a network's outputs."""
    return outputs if isinstance(outputs, torch.Tensor) else outputs["logits"]


class CrossEntropy:
    """Cross-entropy of one class an image.

    Args:
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, outputs: Outputs, batch: Batch, teacher: Outputs | None) -> Terms:
        """Returns `loss`."""
        return {"loss": F.cross_entropy(logits_of(outputs), batch["targets"], label_smoothing=self.label_smoothing)}


class Distillation:
    """Equation 1: what a student learns from labels and its teacher.

    Args:
        temperature: T of equation 2, above 0.
        alpha: Weight of cross-entropy, in [0, 1].
    """

    def __init__(self, temperature: float, alpha: float) -> None:
        self.temperature, self.alpha = temperature, alpha

    def __call__(self, outputs: Outputs, batch: Batch, teacher: Outputs | None) -> Terms:
        """Returns `loss`.

        Raises:
            UsageError: If there is no teacher.
        """
        if teacher is None:
            raise UsageError("The loss 'distillation' needs a teacher's outputs: give the role a teacher.")
        # In float32, also under mixed precision: KL between nearly equal distributions cancels.
        student_logits, teacher_logits = logits_of(outputs).float(), logits_of(teacher).float()
        loss = distillation_loss(student_logits, teacher_logits, batch["targets"], self.temperature, self.alpha)
        return {"loss": loss}


class MapAndLabel:
    """Where and whether: binary cross-entropy of a map against masks, and cross-entropy of the logits.

    A mask is brought to the map's grid by averaging, so that a pixel of the map learns the share that is covered.

    Args:
        label_weight: Weight of the cross-entropy, at least 0; the map's term has 1.

    Raises:
        UsageError: If the weight is negative or not a number.
    """

    def __init__(self, label_weight: float) -> None:
        if not (math.isfinite(label_weight) and label_weight >= 0):
            raise UsageError(f"label_weight is {label_weight}: expected a number, 0 or more.")
        self.label_weight = label_weight

    def __call__(self, outputs: Outputs, batch: Batch, teacher: Outputs | None) -> Terms:
        """Returns `loss`, and its terms `map` and `label` before their weights.

        Raises:
            UsageError: If the network gives no map, or the batch has no masks.
        """
        if isinstance(outputs, torch.Tensor) or "map" not in outputs:
            raise UsageError("The loss 'map' needs a network with an output 'map', such as efficientnet_lite0_fpn.")
        if "masks" not in batch:
            raise UsageError("The loss 'map' needs radiographs with masks: give the role masks to learn from.")
        found = outputs["map"].float()  # (b, 1, h, w)
        masks = F.adaptive_avg_pool2d(batch["masks"].unsqueeze(1).float(), (found.shape[2], found.shape[3]))
        where = F.binary_cross_entropy_with_logits(found, masks)
        label = F.cross_entropy(logits_of(outputs).float(), batch["targets"])
        return {"loss": where + self.label_weight * label, "map": where, "label": label}


class ForegroundControl:
    """Class, and a mask that is small and leaves the finding in: `CE(score1) + 0.5 CE(score2) + control`.

    The control of Wang et al. (doi 10.1038/s41598-024-79701-8) is the mean over the batch of
    `factor * relu(hinge - S_e / S) + 1.2 mean(M)`, where S is the label's score and S_e that of the image under the
    mask; that of BAS (Wu et al., CVPR 2022) is `S_b / S + 1.2 mean(M)` with the score of the rest. S has no gradient.

    Args:
        hinge: Share of the score that the foreground has to keep; the source's is 0.5, of its ResNet 0.75.
        factor: Weight of what is missing; the source's is 1.5, of its ResNet 1.
    """

    AREA, SECOND = 1.2, 0.5

    def __init__(self, hinge: float = 0.5, factor: float = 1.5) -> None:
        self.hinge, self.factor = hinge, factor

    def __call__(self, outputs: Outputs, batch: Batch, teacher: Outputs | None) -> Terms:
        """Returns `loss`, its terms `label`, `label2` and `control`, and `coverage`, the mean of the mask.

        Raises:
            UsageError: If the network has no mask head.
        """
        if isinstance(outputs, torch.Tensor) or "logits2" not in outputs:
            raise UsageError("The loss 'foreground' needs a network with a mask head, such as efficientnet_lite0_mask.")
        targets = batch["targets"]
        label, label2 = _class_loss(outputs["logits"], targets), _class_loss(outputs["logits2"], targets)
        each = self.AREA * outputs["coverage"].float()  # (b,)
        if "foreground_score" in outputs:
            each = each + self.factor * F.relu(self.hinge - _share(outputs, "foreground_score"))
        elif "background_score" in outputs:
            each = each + _share(outputs, "background_score")
        else:
            each = 0 * each
        shown = targets.sum(dim=1) > 0 if targets.ndim > 1 else torch.ones_like(targets, dtype=torch.bool)
        control = (each * shown).sum() / shown.sum().clamp(min=1)  # an image of no finding has no foreground
        coverage = outputs["coverage"].float().mean().detach()
        loss = label + self.SECOND * label2 + control
        return {"loss": loss, "label": label, "label2": label2, "control": control, "coverage": coverage}


def _share(outputs: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    return outputs[name].float() / (outputs["score"].float().detach() + 1e-8)


def _class_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of one class an image, or binary cross-entropy where any number may hold."""
    if targets.ndim == 1:
        return F.cross_entropy(logits.float(), targets)
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


class Focal:
    """Softmax focal loss (Lin et al. 2017): `-alpha_t (1 - p_t)^gamma ln p_t`, averaged over the batch.

    Args:
        gamma: At least 0; 0 is cross-entropy.
        weights: Alpha, one number a class; None for 1 each.

    Raises:
        UsageError: If gamma is negative or not a number.
    """

    def __init__(self, gamma: float, weights: Sequence[float] | None = None) -> None:
        if not (math.isfinite(gamma) and gamma >= 0):
            raise UsageError(f"gamma is {gamma}: expected a number, 0 or more.")
        self.gamma = gamma
        self.weights = torch.tensor(weights) if weights is not None else None

    def __call__(self, outputs: Outputs, batch: Batch, teacher: Outputs | None) -> Terms:
        """Returns `loss`."""
        log_p = torch.log_softmax(logits_of(outputs).float(), dim=1)  # (b, classes); float32 under mixed precision too
        targets = batch["targets"]
        log_t = log_p.gather(1, targets[:, None]).squeeze(1)  # (b,)
        wrong = (1 - log_t.exp()).clamp(min=1e-12)  # at 0 a power below 1 has no gradient
        each = -(wrong**self.gamma) * log_t
        if self.weights is not None:
            each = each * self.weights.to(each)[targets]
        return {"loss": each.mean()}


def class_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Returns a weight for each class, inverse to how often it occurs; they sum to the number of classes.

    Args:
        counts: Images of each class, all above 0.

    Raises:
        UsageError: If a class has none.
    """
    if not counts or min(counts) < 1:
        raise UsageError(f"Expected at least one image of each class; got {tuple(counts)}.")
    inverse = [1 / count for count in counts]
    return tuple(len(counts) * one / sum(inverse) for one in inverse)


def _weights(settings: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Alpha, where the recipe corrects the imbalance in the loss."""
    return class_weights(settings["class_counts"]) if settings["balance"] in ("alpha", "both") else None


LOSSES: dict[str, Callable[[Mapping[str, Any]], Loss]] = {
    "cross_entropy": lambda settings: CrossEntropy(settings["label_smoothing"]),
    "focal": lambda settings: Focal(settings["focal_gamma"], _weights(settings)),
    "distillation": lambda settings: Distillation(settings["temperature"], settings["alpha"]),
    "foreground": lambda settings: ForegroundControl(settings["foreground_hinge"], settings["foreground_factor"]),
    "map": lambda settings: MapAndLabel(settings["label_weight"]),
}
"""Every loss by name, made from a recipe's settings by their names and `class_counts`, the training images by class."""
WEIGHTED = ("focal",)
"""Losses that can weigh the classes."""


def build_loss(name: str, settings: Mapping[str, Any]) -> Loss:
    """Returns a loss with its settings.

    Args:
        name: A key of `LOSSES`.
        settings: Setting to value; a loss takes those that it knows.

    Raises:
        ModelError: If there is no such loss.
    """
    if name not in LOSSES:
        raise ModelError(f"There is no loss '{name}': expected one of {', '.join(LOSSES)}.")
    if settings.get("balance") in ("alpha", "both") and name not in WEIGHTED:
        raise ModelError(
            f"balance is {settings['balance']}, but the loss '{name}' takes no class weights: set it to none or "
            "sampler."
        )
    return LOSSES[name](settings)
