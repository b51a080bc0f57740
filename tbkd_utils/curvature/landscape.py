"""The loss around a minimum, without a Hessian: along directions, and its mean rise at a fixed distance.

Directions are filter-normalized (Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018): each
filter of a random direction gets the norm of the network's own filter, so that rescaling a layer does not make a
minimum look flatter. Parameters are never written: the network is evaluated as a function of moved copies.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tbkd_utils.curvature.operator import Batches, HessianOperator, Loss
from tbkd_utils.errors import ModelError
from tbkd_utils.models.state import preserved


@dataclass(frozen=True)
class LossRise:
    """How much the loss rises when the weights move by a given share of their norm in random directions."""

    mean: float
    stderr: float  # over the draws
    rises: np.ndarray = field(repr=False)  # (draws,) float64
    loss: float  # at the network itself
    radius: float


def filter_normalized_direction(model: nn.Module, seed: int) -> Tensor:
    """A random direction whose filters have the norms of the network's (Li et al. 2018, section 4).

    A filter is a slice of a weight along its first axis (an output channel or unit). Biases and batch-norm parameters
    (tensors of fewer than two axes) do not move.

    Args:
        model: the network.
        seed: of the direction, the same on every device.

    Returns:
        (n,) over the trainable parameters in the order of ``model.parameters()``, in the model's dtype and device.

    Raises:
        ModelError: no trainable parameter has two axes.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = [p.detach() for p in model.parameters() if p.requires_grad]
    if not any(p.ndim >= 2 for p in parameters):
        raise ModelError("the model has no trainable weight with filters (two or more axes) to move")
    pieces = []
    for parameter in parameters:
        if parameter.ndim < 2:
            pieces.append(torch.zeros_like(parameter).flatten())
            continue
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
        ratio = parameter.flatten(1).norm(dim=1) / drawn.flatten(1).norm(dim=1)
        pieces.append((drawn.flatten(1) * ratio[:, None]).flatten())
    return torch.cat(pieces)


def loss_along(
    model: nn.Module, loss: Loss, batches: Batches, direction: Tensor | np.ndarray, radii: np.ndarray, seed: int = 0
) -> np.ndarray:
    """The mean loss at ``weights + radius * direction`` for each radius, in one pass over the data.

    Args:
        model: the network; evaluated in evaluation mode and left exactly as found.
        loss: ``loss(outputs, targets)`` -> the mean over the batch, a scalar.
        batches: pairs (inputs, targets).
        direction: (n,) over the trainable parameters, as `filter_normalized_direction` or a row of
            `Spectrum.eigenvectors` (of norm 1: multiply it to reach as far).
        radii: (r,) multiples of the direction; 0 is the network itself.
        seed: of torch's random stream while the data are read.

    Returns:
        (r,) float64.

    Raises:
        ModelError: bad data, a loss that is not finite, or a direction of the wrong size.
    """
    with preserved(model, seed), torch.no_grad():
        objective = HessianOperator(model, loss, batches)
        step = torch.as_tensor(direction).to(objective.device, objective.dtype).reshape(-1)
        if len(step) != objective.size:
            raise ModelError(f"the direction has {len(step)} numbers, the model {objective.size} trainable parameters")
        pieces = [d.view_as(p) for d, p in zip(step.split(objective.counts), objective.parameters, strict=True)]
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        distances = np.asarray(radii, dtype=np.float64).reshape(-1)
        total, samples = np.zeros(len(distances)), 0
        for number, inputs, targets in objective.each_batch():
            for i, distance in enumerate(distances):
                moved = {
                    name: p + float(distance) * d
                    for name, p, d in zip(names, objective.parameters, pieces, strict=True)
                }
                outputs = functional_call(model, moved, (inputs,))
                total[i] += len(targets) * float(objective.batch_loss(number, outputs, targets))
            samples += len(targets)
    return total / samples


def loss_rise(
    model: nn.Module, loss: Loss, batches: Batches, *, radius: float = 0.1, draws: int = 10, seed: int = 0
) -> LossRise:
    """The rise of the loss at a fixed relative distance, averaged over filter-normalized random directions.

    Each filter moves by ``radius`` times its own norm. Draw i is the same for every network of the same shape.

    Args:
        model: the network.
        loss: as in `loss_along`.
        batches: re-iterable pairs (inputs, targets).
        radius: relative distance, above 0.
        draws: number of directions, at least 2.
        seed: draw i uses ``seed + i``.

    Returns:
        Mean, its standard error, and the rise of each draw.

    Raises:
        ModelError: as `loss_along`; radius or draws out of range.
    """
    if not radius > 0 or draws < 2:
        raise ModelError(f"needs radius > 0 and draws >= 2, got {radius} and {draws}")
    at_minimum = np.zeros(1)
    losses = []
    for draw in range(draws):
        radii = np.array([radius]) if draw else np.array([0.0, radius])
        values = loss_along(model, loss, batches, filter_normalized_direction(model, seed + draw), radii, seed)
        at_minimum = at_minimum if draw else values[:1]
        losses.append(values[-1])
    rises = np.array(losses) - at_minimum
    stderr = float(rises.std(ddof=1) / draws**0.5)
    return LossRise(float(rises.mean()), stderr, rises, float(at_minimum[0]), radius)
