"""Grad-CAM heatmaps (Selvaraju et al. 2017; paper section 3.3): in closed form where there is one, else by captum."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import nn

from tbkd_utils.errors import TbkdError
from tbkd_utils.localization.closed_form import PooledHead, pooled_head
from tbkd_utils.localization.compiled import Compiled
from tbkd_utils.models.networks import last_stage


class HeatmapError(TbkdError, ValueError):
    """Images, a class or a layer that a heatmap cannot be made for."""


def class_activation_maps(
    model: nn.Module,
    images: torch.Tensor | Iterable[torch.Tensor],
    target: int = 1,
    *,
    layer: nn.Module | str | None = None,
    relu: bool = True,
    batch_size: int = 32,
    method: str = "auto",
    compiled: bool = False,
) -> np.ndarray:
    """Returns Grad-CAM maps at the resolution of the layer.

    Map = ReLU(sum over channels c of w_c * A_c), where A is the layer's output and w_c the mean over positions of the
    gradient of the target's logit with respect to A_c. Where the layer is followed by global average pooling and one
    linear layer alone, w_c is read off that layer (see `pooled_head`) and a forward pass is enough; both ways agree
    to rounding. The caller's autocast and the network's memory format hold here too.

    Args:
        model: A classifier, (n, 3, H, W) -> (n, classes). It is used in evaluation mode and left as it was.
        images: float32 (n, 3, H, W), normalised; or batches of them, of which one at a time is in memory.
        target: The class that is explained; 1 = TB.
        layer: A layer of the model or its dotted name; None for the last convolutional stage.
        relu: Whether negative values become 0. Captum's own default is not to; the paper's reference does.
        batch_size: Images at a time, of a tensor; it does not change the result.
        method: `auto` for the closed form where there is one; `captum` for captum everywhere, as in the paper.
        compiled: Whether the closed form runs through `torch.compile`: somewhat faster after some ten seconds of
            compiling, the same to rounding (`benchmarks/RESULTS.md`). It needs a C++ compiler.

    Returns:
        float32 (n, h, w), for a 224-pixel image and a ResNet 7x7.

    Raises:
        HeatmapError: If the images have another shape or type, the layer does not exist or gives no maps, or the
            class does not exist.
        CompileError: If the network cannot be compiled.
    """
    if target < 0:
        raise HeatmapError(f"Class {target} cannot be explained: expected 0 or more.")
    chosen = _layer(model, layer)
    with _in_evaluation(model):
        head = pooled_head(model, chosen) if method == "auto" else None
        if head is not None and target >= head.linear.out_features:
            raise HeatmapError(f"Class {target} cannot be explained: the network has {head.linear.out_features}.")
        closed = None if head is None else closed_form(head, target, compiled=compiled)
        maps = []
        for batch in images.split(batch_size) if isinstance(images, torch.Tensor) else images:  # (b, 3, H, W)
            if batch.ndim != 4 or batch.shape[1] != 3 or len(batch) == 0 or not batch.is_floating_point():
                raise HeatmapError(
                    f"Expected float images (n, 3, H, W), n > 0; got {batch.dtype} {tuple(batch.shape)}."
                )
            found = closed(batch) if closed is not None else _by_captum(model, batch, target, chosen)
            if found.ndim != 3:
                raise HeatmapError(
                    f"The layer {layer!r} gives no maps (n, channels, h, w): choose a convolutional one."
                )
            maps.append((found.relu() if relu else found).float().cpu())
    if not maps:
        raise HeatmapError("Expected at least one batch of images; got none.")
    return torch.cat(maps).numpy()


def closed_form(head: PooledHead, target: int, *, compiled: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns the way from images to Grad-CAM maps by a forward pass alone.

    Args:
        head: Of the network, from `pooled_head`.
        target: The class that is explained.
        compiled: Whether to compile it at the first batch. The weights are taken as they are then.

    Returns:
        A function, (b, 3, H, W) to (b, h, w), before the ReLU.
    """
    if compiled:
        return Compiled(head, target)

    def run(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return head.maps(head.trunk(images), target)

    return run


def channel_contributions(
    model: nn.Module, image: torch.Tensor, target: int = 1, *, layer: nn.Module | str | None = None
) -> np.ndarray:
    """Returns the summands of Grad-CAM for one image: each channel's map times its weight, `w_c * A_c`.

    Their sum over channels, with negative values set to 0, is `class_activation_maps`.

    Args:
        model: A classifier, (1, 3, H, W) -> (1, classes). It is used in evaluation mode and left as it was.
        image: float32 (1, 3, H, W), normalised.
        target: The class that is explained; 1 = TB.
        layer: As in `class_activation_maps`.

    Returns:
        float32 (channels, h, w).

    Raises:
        HeatmapError: If the image has another shape, or the layer or the class does not exist or gives no maps.
    """
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise HeatmapError(f"Expected one image (1, 3, H, W); got {tuple(image.shape)}.")
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, given: tuple, output: torch.Tensor) -> torch.Tensor:
        kept.append(output)
        return output.clone()  # an in-place ReLU may follow

    hook = _layer(model, layer).register_forward_hook(keep)
    try:
        with _in_evaluation(model), torch.enable_grad():
            logits = model(image)  # (1, classes)
            if not 0 <= target < logits.shape[1]:
                raise HeatmapError(f"Class {target} cannot be explained: the network has {logits.shape[1]}.")
            if kept[0].ndim != 4:
                raise HeatmapError(
                    f"The layer {layer!r} gives no maps (n, channels, h, w): choose a convolutional one."
                )
            (gradient,) = torch.autograd.grad(logits[0, target], kept[0])
    finally:
        hook.remove()
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # (1, channels, 1, 1)
    return (weights * kept[0]).detach()[0].float().cpu().numpy()


@contextlib.contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    """Puts the network into evaluation mode and every module back into its own mode afterwards."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _by_captum(model: nn.Module, batch: torch.Tensor, target: int, layer: nn.Module) -> torch.Tensor:
    """One batch by a forward and a backward pass: (b, h, w)."""
    try:
        with torch.inference_mode(False), torch.enable_grad():  # a gradient, even where the caller needs none
            batch = batch.clone() if batch.is_inference() else batch
            attribution = LayerGradCam(model, layer).attribute(batch, target=target)  # (b, 1, h, w)
    except (IndexError, AssertionError) as error:
        raise HeatmapError(f"Class {target} cannot be explained: {error}") from error
    return attribution.detach().squeeze(1)


def upsample(maps: np.ndarray, size: tuple[int, int], mode: str = "bilinear") -> np.ndarray:
    """Enlarges maps, (n, h, w) to float32 (n, H, W); `mode` is bilinear or nearest (captum's own default).

    Every value stays between its map's extremes, so that a constant map stays constant to the last bit and gives no
    box: interpolation alone rounds it to a pattern, which normalisation would blow up.
    """
    tensor = torch.from_numpy(np.array(maps, dtype=np.float32)).unsqueeze(1)  # (n, 1, h, w)
    options = {"align_corners": False} if mode == "bilinear" else {}
    large = F.interpolate(tensor, size=size, mode=mode, **options)  # (n, 1, H, W)
    torch.maximum(large, tensor.amin(dim=(2, 3), keepdim=True), out=large)
    torch.minimum(large, tensor.amax(dim=(2, 3), keepdim=True), out=large)
    return large.squeeze(1).numpy()


def heatmaps(
    model: nn.Module,
    images: torch.Tensor,
    target: int = 1,
    *,
    layer: nn.Module | str | None = None,
    relu: bool = True,
    upsampling: str = "bilinear",
    batch_size: int = 32,
    method: str = "auto",
) -> np.ndarray:
    """Returns Grad-CAM heatmaps at the resolution of the images; see `class_activation_maps` for the arguments.

    Returns:
        float32 (n, H, W), at least 0 when `relu`, not normalised.

    Raises:
        HeatmapError: If the images have another shape or the layer or the class does not exist.
    """
    maps = class_activation_maps(model, images, target, layer=layer, relu=relu, batch_size=batch_size, method=method)
    return upsample(maps, (images.shape[2], images.shape[3]), upsampling)


def _layer(model: nn.Module, layer: nn.Module | str | None) -> nn.Module:
    if isinstance(layer, nn.Module):
        if not any(layer is module for module in model.modules()):
            raise HeatmapError(f"The layer {type(layer).__name__} is no part of the network.")
        return layer
    if layer in (None, "last_stage"):
        return last_stage(model)
    try:
        return model.get_submodule(str(layer))
    except AttributeError as error:
        raise HeatmapError(f"The network has no layer '{layer}': {error}.") from error
