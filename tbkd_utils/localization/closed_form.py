"""Grad-CAM without a backward pass, where a layer is followed by average pooling and one linear layer alone.

The network's graph says whether it is.

Then Grad-CAM has a closed form. With `logit_t = sum_c W[t, c] * mean over positions of A_c + b_t`, the gradient of the
logit with respect to A_c is `W[t, c] / (h w)` at every position, so the weight of channel c is known before any image
is seen: no backward pass is needed (it is the class activation map of Zhou et al. 2016, divided by h w).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from torch import fx, nn

_IDENTITY_IN_EVALUATION = (nn.Dropout, nn.Identity, nn.Flatten)


@dataclass(frozen=True)
class PooledHead:
    """What follows a layer: an optional ReLU, global average pooling, one linear layer.

    Attributes:
        linear: The last layer, (channels) -> (classes).
        rectified: Whether a ReLU stands between the layer and the pooling (DenseNet).
        trunk: The network up to the layer, (b, 3, H, W) -> (b, channels, h, w); it shares the network's weights.
    """

    linear: nn.Linear
    rectified: bool
    trunk: fx.GraphModule

    def maps(self, activations: torch.Tensor, target: int) -> torch.Tensor:
        """Returns Grad-CAM before its ReLU, float32 (b, h, w), from the layer's output (b, channels, h, w)."""
        positions = activations.shape[2] * activations.shape[3]
        weight = self.linear.weight.detach()[target].float() / positions  # (channels,)
        if not self.rectified:
            maps = weight @ activations.float().flatten(2)  # (b, h * w)
            return maps.unflatten(1, activations.shape[2:])
        # The gradient is zero where the ReLU closes: its mean over positions keeps the share of the open ones.
        open_share = (activations > 0).float().mean(dim=(2, 3))  # (b, channels)
        return torch.einsum("bchw,bc->bhw", activations.float(), weight * open_share)


class _Shallow(fx.Tracer):
    """Traces into a module only where the layer lies inside it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m is self.layer or all(inner is not self.layer for inner in m.modules())


def pooled_head(model: nn.Module, layer: nn.Module) -> PooledHead | None:
    """Returns the head that follows a layer, or None where it is something else or cannot be traced.

    Args:
        model: A classifier, used in evaluation mode.
        layer: One of its modules.
    """
    try:
        graph = _Shallow(layer).trace(model)
    except Exception:  # control flow that depends on the data, or whatever else a forward method may do
        return None
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is layer]
    starts = [node for node in graph.nodes if node.op == "call_module" and node.target in names]
    if len(starts) != 1:
        return None
    steps = _chain(model, starts[0])
    if steps is None:
        return None
    rectified = bool(steps) and steps[0] == "relu"
    if len(steps) != 2 + rectified or steps[-2] != "pool" or not isinstance(steps[-1], nn.Linear):
        return None
    return PooledHead(steps[-1], rectified, _trunk(model, graph, starts[0]))


def _trunk(model: nn.Module, graph: fx.Graph, layer: fx.Node) -> fx.GraphModule:
    """The network that ends at a node; changes the graph."""
    for node in reversed(list(graph.nodes)):
        if node is layer:
            break
        graph.erase_node(node)
    graph.output(layer)
    return fx.GraphModule(model, graph)


def _chain(model: nn.Module, start: fx.Node) -> list[str | nn.Linear] | None:
    """What happens to the layer's output up to the network's own, without what changes nothing; None if unknown."""
    steps: list[str | nn.Linear] = []
    node = start
    while True:
        if len(node.users) != 1:
            return None
        node = next(iter(node.users))
        if node.op == "output":
            return steps if isinstance(node.args[0], fx.Node) else None
        if len(node.all_input_nodes) != 1:
            return None
        found = _modules(model.get_submodule(str(node.target))) if node.op == "call_module" else _call(node)
        if found is None:
            return None
        steps += found


def _modules(module: nn.Module) -> Sequence[str | nn.Linear] | None:
    if isinstance(module, nn.Sequential):
        parts = [_modules(part) for part in module]
        return None if None in parts else [step for part in parts for step in part or ()]
    if type(module) is nn.Linear:
        return [module]
    if isinstance(module, nn.ReLU):
        return ["relu"]
    if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
        return ["pool"]
    if isinstance(module, SelectAdaptivePool2d) and module.pool_type == "avg":
        return ["pool"]
    return [] if isinstance(module, _IDENTITY_IN_EVALUATION) else None


def _call(node: fx.Node) -> Sequence[str] | None:
    given = [*node.args[1:], *node.kwargs.values()]
    if node.target in (F.relu, torch.relu):
        return ["relu"]
    if node.target is F.adaptive_avg_pool2d and given and given[0] in (1, (1, 1), [1, 1]):
        return ["pool"]
    if node.target is F.dropout and node.kwargs.get("training", True) is False:
        return []
    if node.target in ("mean", torch.mean) and given in ([[2, 3]], [(2, 3)], [[-2, -1]], [(-2, -1)]):
        return ["pool"]
    return [] if node.target in ("flatten", torch.flatten) and given in ([1], [1, -1]) else None
