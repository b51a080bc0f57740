"""The losses by name; among them the student's, equations 1 and 2 of the paper (Hinton et al. 2015).

A loss may have weights of its own, such as an adapter between two networks: then it is a module, and they are trained
with the network and left behind with the loss.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from torch import nn

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


def dice_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """One minus the soft Dice coefficient, averaged over images: `1 - (2 sum(p y) + 1) / (sum p + sum y + 1)`.

    The two ones keep it defined for an empty mask (nodule segmentation, section 1).

    Args:
        logits: Of p, float (b, 1, H, W).
        masks: y in [0, 1], of the same shape.

    Returns:
        A scalar tensor in [0, 1].
    """
    p = logits.sigmoid()
    both, sizes = (p * masks).sum(dim=(1, 2, 3)), (p + masks).sum(dim=(1, 2, 3))  # (b,)
    return 1 - ((2 * both + 1) / (sizes + 1)).mean()


def pixel_distillation_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Binary cross-entropy of softened pixels: `T^2 * BCE(sigmoid(z_s / T), sigmoid(z_t / T))`, averaged over pixels.

    Its minimum is T^2 times the entropy of the softened teacher, not 0.

    Args:
        student_logits: z_s, float (b, 1, H, W).
        teacher_logits: z_t, of the same shape; no gradient flows into them.
        temperature: T > 0.

    Returns:
        A scalar tensor, at least 0.

    Raises:
        UsageError: If the shapes differ or T is not a positive number.
    """
    if student_logits.shape != teacher_logits.shape:
        raise UsageError(
            f"Expected maps of one shape; got {tuple(student_logits.shape)} of the student and "
            f"{tuple(teacher_logits.shape)} of the teacher."
        )
    _check_temperature(temperature)
    target = (teacher_logits.detach() / temperature).sigmoid()
    return temperature**2 * F.binary_cross_entropy_with_logits(student_logits / temperature, target)


def feature_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """One minus the cosine between the features of two networks, averaged over pixels.

    Args:
        student: float (b, channels, h, w).
        teacher: Of the same shape.

    Returns:
        A scalar tensor in [0, 2].

    Raises:
        UsageError: If the shapes differ.
    """
    if student.shape != teacher.shape:
        raise UsageError(
            f"Expected features of one shape; got {tuple(student.shape)} of the student and {tuple(teacher.shape)} of "
            "the teacher."
        )
    return 1 - F.cosine_similarity(student, teacher, dim=1).mean()  # the cosine is (b, h, w)


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
        """Returns `loss`.

        Raises:
            UsageError: If the network gives a map in place of one number a class.
        """
        logits = logits_of(outputs)
        if logits.ndim != 2:
            raise UsageError(
                f"The loss 'cross_entropy' needs one number a class of each image, but the network gives "
                f"{tuple(logits.shape)}: choose a network that classifies."
            )
        return {"loss": F.cross_entropy(logits, batch["targets"], label_smoothing=self.label_smoothing)}


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


class Segmentation:
    """Binary cross-entropy and Dice of a mask, both with weight 1: pixels one by one, and the whole."""

    def __call__(self, outputs: Outputs, batch: Batch, teacher: Outputs | None) -> Terms:
        """Returns `loss`, and its terms `bce` and `dice`.

        Raises:
            UsageError: If the network gives no map of the masks' size, or the batch has no masks of 0 to 1.
        """
        found = _of_map(outputs, "map", "the network")  # (b, 1, H, W)
        if "masks" not in batch:
            raise UsageError("This loss needs images with masks: give the role masks to learn from.")
        masks = batch["masks"].unsqueeze(1).float()
        if found.shape != masks.shape:
            raise UsageError(
                f"The map is {tuple(found.shape)} and the masks are {tuple(masks.shape)}: use a network whose map has "
                "the size of the image, such as unet_dw_32."
            )
        if not ((masks >= 0) & (masks <= 1)).all():  # 255 would make the Dice of a right answer almost 2
            raise UsageError("A mask holds values outside 0 to 1: divide it by its largest value first.")
        bce, dice = F.binary_cross_entropy_with_logits(found, masks), dice_loss(found, masks)
        return {"loss": bce + dice, "bce": bce, "dice": dice}


class PixelDistillation:
    """What a student learns from masks and from its teacher's logits, pixel by pixel.

    Args:
        temperature: T, above 0.
        weight: Of the teacher's term, at least 0; the masks' terms have 1.

    Raises:
        UsageError: If a number is out of range.
    """

    def __init__(self, temperature: float, weight: float = 1.0) -> None:
        _check_temperature(temperature)
        _check_weight(weight)
        self.masks, self.temperature, self.weight = Segmentation(), temperature, weight

    def __call__(self, outputs: Outputs, batch: Batch, teacher: Outputs | None) -> Terms:
        """Returns `loss`, its terms `bce` and `dice`, and `distillation` before its weight.

        Raises:
            UsageError: As `Segmentation`, or if there is no teacher, or none that gives a map of this size.
        """
        terms = self.masks(outputs, batch, None)
        pair = _of_map(outputs, "map", "the network"), _of_map(teacher, "map", "the teacher")
        soft = pixel_distillation_loss(*pair, self.temperature)
        return terms | {"loss": terms["loss"] + self.weight * soft, "distillation": soft}


class FeatureDistillation(nn.Module):
    """What a student learns from masks and from the direction of its teacher's features, pixel by pixel.

    An adapter, a 1x1 convolution without bias, brings the teacher's channels to the student's. It is trained along, so
    it moves the target: it can come to the student instead of the student to the teacher. Frozen, it cannot.

    Args:
        channels: Of the student's and the teacher's `features`.
        weight: Of the teacher's term, at least 0; the masks' terms have 1.
        frozen: Whether the adapter stays as it was drawn.
        seed: Of the adapter; the global generator is left as it was.

    Raises:
        UsageError: If the weight is negative or not a number.
    """

    def __init__(self, channels: tuple[int, int], weight: float = 0.5, frozen: bool = False, seed: int = 0) -> None:
        super().__init__()
        _check_weight(weight)
        self.masks, self.weight = Segmentation(), weight
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.adapter = nn.Conv2d(channels[1], channels[0], 1, bias=False).requires_grad_(not frozen)

    def forward(self, outputs: Outputs, batch: Batch, teacher: Outputs | None) -> Terms:
        """Returns `loss`, its terms `bce` and `dice`, and `distillation` before its weight.

        Raises:
            UsageError: As `Segmentation`, or if there is no teacher, or its features do not fit.
        """
        terms = self.masks(outputs, batch, None)
        of_student = _of_map(outputs, "features", "the network")  # (b, channels[0], h, w)
        of_teacher = _of_map(teacher, "features", "the teacher").detach()  # (b, channels[1], h, w)
        found, expected = (of_student.shape[1], of_teacher.shape[1]), self.adapter.weight.shape[:2]
        if found != tuple(expected):
            raise UsageError(f"The adapter joins {tuple(expected)} channels of student and teacher, not {found}.")
        distance = feature_distance(of_student, self.adapter(of_teacher).float())
        return terms | {"loss": terms["loss"] + self.weight * distance, "distillation": distance}


def _of_map(outputs: Outputs | None, name: str, whose: str) -> torch.Tensor:
    """An output in float32, also under mixed precision."""
    if outputs is None:
        raise UsageError("This loss needs a teacher's outputs: give the role a teacher.")
    if isinstance(outputs, torch.Tensor) or name not in outputs:
        raise UsageError(f"This loss needs an output '{name}' of {whose}: use one that segments, such as unet_dw_32.")
    return outputs[name].float()


def _check_weight(weight: float) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise UsageError(f"The weight of the teacher's term is {weight}: expected a number, 0 or more.")


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
    "segmentation": lambda settings: Segmentation(),
    "pixel_distillation": lambda settings: PixelDistillation(settings["temperature"], settings["logit_weight"]),
    "feature_distillation": lambda settings: FeatureDistillation(
        settings["feature_channels"], settings["feature_weight"], settings["frozen_adapter"], settings["seed"]
    ),
}
"""Every loss by name, made from a recipe's settings by their names; `class_counts`, the training images by class; and
`feature_channels`, of the student's and the teacher's features, where there are some."""
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
