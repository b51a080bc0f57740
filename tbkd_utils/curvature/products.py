"""Hessian-vector products of one batch's loss, by two routes.

*Double backward* differentiates the gradient's graph. *Reverse over forward* carries the vector forward through the
network as a tangent and differentiates ``slope(outputs) . tangent`` once; it never needs the second derivative of a
convolution, which torch takes group by group. Seconds a product on one CPU core, double backward, reverse over forward
and (where tried) forward over reverse (``torch.func.jvp`` of ``grad``):

| network, batch, pixels | double backward | reverse over forward |
|---|---|---|
| ResNet-18, 16, 96 | 0.96 | 0.92 |
| EfficientNet-Lite0, 16, 96 | 1.42 | 0.85 |
| EfficientNet-Lite0, 8, 224 | 2.71 | 1.99 |
| ResNet-50, 4, 224 | 5.28 | 4.17 |

Forward over reverse took 1.08, 1.09 and 1.5 times as long as double backward on the first three. Further vectors on
the same double-backward graph cost 0.70 to 0.76 of the first, which only helps when the graph can stay: data of one
batch. ``torch.compile`` has no double backward. `HessianOperator` picks by these rules; forward mode does not know
every operation, so double backward is also the fallback.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from tbkd_utils.errors import ModelError


class Graph:
    """One batch's loss and gradient, with the graph through which the gradient can be differentiated again.

    Args:
        value: the loss, a scalar with its graph.
        parameters: to differentiate by.
        samples: in the batch.

    Attributes:
        loss: the loss as a number.
        samples: in the batch.

    Raises:
        ModelError: the loss depends on no parameter.
    """

    def __init__(self, value: Tensor, parameters: Sequence[Tensor], samples: int) -> None:
        self.parameters, self.samples, self.loss = parameters, samples, float(value.detach())
        self._root = value.grad_fn
        grads: Sequence[Tensor | None] = [None]
        if value.requires_grad:
            grads = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
        if all(grad is None for grad in grads):
            raise ModelError("the loss does not depend on any trainable parameter (is something detached?)")
        # A gradient that no longer depends on the parameters (a loss linear in them) has a Hessian of zero.
        self._used = [i for i, grad in enumerate(grads) if grad is not None and grad.requires_grad]
        self._gradient = [grad for grad in grads if grad is not None and grad.requires_grad]

    def check(self) -> None:
        """Look for operations that can be differentiated only once.

        `torch.autograd.grad` walks around the node that they leave, and would return a Hessian without their share.

        Raises:
            ModelError: there is one; the message names it.
        """
        nodes = _operations(*(grad.grad_fn for grad in self._gradient))
        if any(node.name() == "torch::autograd::Error" for node in nodes):  # type: ignore[attr-defined]
            raise ModelError(self._blame("it is marked once_differentiable"))

    def product(self, pieces: Sequence[Tensor], keep: bool) -> Sequence[Tensor | None]:
        """The Hessian times a vector given in pieces shaped like the parameters.

        Args:
            pieces: one tensor per parameter.
            keep: whether the graph will be used again.

        Returns:
            One tensor per parameter; None where all is zero.

        Raises:
            ModelError: an operation has no second derivative; the message names it.
        """
        if not self._used:
            return [None] * len(self.parameters)
        weights = [pieces[i] for i in self._used]
        try:
            return torch.autograd.grad(self._gradient, self.parameters, weights, retain_graph=keep, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise ModelError(self._blame(str(error).split("\n")[0])) from error

    def _blame(self, reason: str) -> str:
        """Name the operations at fault: torch names its own in its error, not the custom ones."""
        custom = {
            type(node).__name__.removesuffix("Backward")
            for node in _operations(self._root)
            if isinstance(node, torch.autograd.function.BackwardCFunction)
        }
        names = f" (custom operations in the network or loss: {', '.join(sorted(custom))})" if custom else ""
        return f"an operation of the network or loss has no second derivative{names}: {reason}"


def _operations(*starts: object) -> set[object]:
    """Every node of the autograd graphs behind the given ones."""
    seen: set[object] = set()
    stack = list(starts)
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(before for before, _ in node.next_functions)  # type: ignore[attr-defined]
    return seen


def reverse_over_forward(
    model: nn.Module, loss: Callable[[Tensor], Tensor], inputs: Tensor, pieces: Sequence[Tensor]
) -> tuple[float, Sequence[Tensor | None]]:
    """The Hessian times a vector, for a loss that depends on the parameters through the outputs alone.

    With outputs z and their tangent dz along the vector, it is the gradient of ``(d loss / d z) . dz``.

    Args:
        model: the network; its output is one tensor.
        loss: outputs -> scalar.
        inputs: of one batch.
        pieces: one tensor per trainable parameter.

    Returns:
        The loss, and one tensor per trainable parameter; None where all is zero.

    Raises:
        RuntimeError: an operation has no forward-mode derivative (NotImplementedError is one).
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with forward_ad.dual_level():
        moving = {name: forward_ad.make_dual(p, d) for (name, p), d in zip(named.items(), pieces, strict=True)}
        outputs, tangent = forward_ad.unpack_dual(functional_call(model, moving, (inputs,)))
    value = loss(outputs)
    (slope,) = torch.autograd.grad(value, outputs, create_graph=True)
    directional = 0 if tangent is None else (slope * tangent).sum()
    if not isinstance(directional, Tensor) or not directional.requires_grad:
        return float(value.detach()), [None] * len(named)
    return float(value.detach()), torch.autograd.grad(directional, list(named.values()), allow_unused=True)
