"""Heatmaps: functions from a network and images to maps, which compose.

Grad-CAM (Selvaraju et al. 2017; paper section 3.3) is the one that the others build on:
`multi_scale(flipped(grad_cam(network)), sizes)` averages the maps of both mirror images at several scales, and
`inside_lungs(heatmap, found_lungs(mean, network))` fades what lies outside the lungs.

Where a network pools a layer and has one linear layer after it, Grad-CAM has a closed form. With
`logit_t = sum_c W[t, c] * mean over positions of A_c + b_t`, the gradient of the logit with respect to A_c is
`W[t, c] / (h w)` at every position, so the weight of channel c is known before any image is seen: no backward pass is
needed (it is the class activation map of Zhou et al. 2016, divided by h w). Elsewhere the gradient is computed, by
captum for layers that give (n, c, h, w).
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import Tensor, nn

from tbkd_utils.errors import ModelError
from tbkd_utils.localization.lungs import MeanChest, find_lungs, soft_lungs
from tbkd_utils.models.losses import logits_of
from tbkd_utils.models.networks import Network
from tbkd_utils.models.state import evaluation_mode

Heatmapper = Callable[[nn.Module, Tensor], Tensor]
"""A network in evaluation mode and images float32 (b, 3, H, W) to maps (b, h, w)."""


def grad_cam(
    network: Network,
    target: int = 1,
    *,
    layer: str = "last_stage",
    relu: bool = True,
    method: str = "auto",
) -> Heatmapper:
    """Returns Grad-CAM: ReLU(sum over channels c of w_c * A_c), at the resolution of the layer.

    A is the layer's output and w_c the mean over positions of the gradient of the target's logit with respect to A_c.

    Args:
        network: What is declared of the architecture.
        target: The class that is explained.
        layer: `last_stage` for the network's own feature layer, or the dotted name of another one.
        relu: Whether negative values become 0. Captum's own default is not to; the paper's reference does.
        method: `auto` for the closed form where there is one; `captum` for gradients everywhere, as in the paper. Both
            agree to rounding.

    Returns:
        A function, which raises `ModelError` if the class or the layer does not exist or the layer gives no maps.
    """
    if target < 0:
        raise ModelError(f"Class {target} cannot be explained: expected 0 or more.")
    own = layer in ("last_stage", network.features)
    closed = method == "auto" and own and network.pooled_linear

    def heatmap(model: nn.Module, images: Tensor) -> Tensor:
        chosen = find_layer(model, network, layer)
        if closed:
            maps = _closed_form(model, images, target, network, chosen)
        elif network.layout == "nchw" and not network.rectified:
            maps = _by_captum(model, images, target, chosen)
        else:
            activation, gradient = _activation_and_gradient(model, images, target, network, chosen)
            maps = torch.einsum("bc,bchw->bhw", gradient.mean(dim=(2, 3)), activation)
        if maps.ndim != 3:
            raise ModelError(f"The layer {layer!r} gives no maps (n, channels, h, w): choose a convolutional one.")
        return maps.relu() if relu else maps

    return heatmap


def own_map(network: Network) -> Heatmapper:
    """Returns the map that a network gives itself, as probabilities, at the resolution of its output.

    Args:
        network: One that declares such an output.

    Raises:
        ModelError: If it declares none.
    """
    if not network.map:
        raise ModelError("The network gives no map of its own: use Grad-CAM.")

    def heatmap(model: nn.Module, images: Tensor) -> Tensor:
        with torch.inference_mode():
            outputs = model(images)
        return outputs[network.map].float().sigmoid().squeeze(1)  # (b, 1, h, w) -> (b, h, w)

    return heatmap


def flipped(heatmap: Heatmapper) -> Heatmapper:
    """Returns the mean of a heatmap and that of the mirrored image, mirrored back."""

    def both(model: nn.Module, images: Tensor) -> Tensor:
        return (heatmap(model, images) + heatmap(model, images.flip(3)).flip(2)) / 2

    return both


def multi_scale(heatmap: Heatmapper, sizes: Sequence[int]) -> Heatmapper:
    """Returns the mean of the heatmaps of an image at several scales, on the grid of the finest map.

    Args:
        heatmap: What is averaged.
        sizes: Sides in pixels to which the images are resized.
    """

    def averaged(model: nn.Module, images: Tensor) -> Tensor:
        scaled = (F.interpolate(images, (s, s), mode="bilinear", antialias=True, align_corners=False) for s in sizes)
        return _mean([heatmap(model, one) for one in scaled])

    return averaged


def fused(heatmaps: Sequence[Heatmapper]) -> Heatmapper:
    """Returns the mean of several heatmaps, on the grid of the finest map."""

    def averaged(model: nn.Module, images: Tensor) -> Tensor:
        return _mean([heatmap(model, images) for heatmap in heatmaps])

    return averaged


def inside_lungs(heatmap: Heatmapper, lungs: Callable[[Tensor], Tensor], *, stride: int = 4) -> Heatmapper:
    """Returns a heatmap times the lungs: what lights up elsewhere is faded out.

    Args:
        heatmap: Of values at least 0, or the outside would not be the least of them.
        lungs: Images float32 (b, 3, H, W) to how much of each pixel is lung, float32 (b, H, W) in [0, 1]; see
            `found_lungs`.
        stride: Pixels of the image a pixel of the result, unless the heatmap is finer: coarse maps have no outline.
    """

    def faded(model: nn.Module, images: Tensor) -> Tensor:
        maps = heatmap(model, images)  # (b, h, w)
        size = max(maps.shape[1], images.shape[2] // stride), max(maps.shape[2], images.shape[3] // stride)
        large = F.interpolate(maps.unsqueeze(1), size, mode="bilinear", align_corners=False)
        return (large * F.adaptive_avg_pool2d(lungs(images).to(large).unsqueeze(1), size)).squeeze(1)

    return faded


def found_lungs(mean: MeanChest, network: Network) -> Callable[[Tensor], Tensor]:
    """Returns a function that finds soft lungs in a network's input, for `inside_lungs`.

    Args:
        mean: The mean chest that radiographs are aligned to.
        network: How its input was standardized, which is undone.
    """

    def lungs(images: Tensor) -> Tensor:
        gray = (images[:, 0].float().cpu() * network.std[0] + network.mean[0]) * 255  # (b, H, W)
        pixels = gray.round().clamp(0, 255).to(torch.uint8).numpy()
        return torch.from_numpy(np.stack([soft_lungs(find_lungs(image, mean)) for image in pixels]))

    return lungs


def compute_heatmaps(
    model: nn.Module, images: Tensor | Iterable[Tensor], heatmap: Heatmapper, *, batch_size: int = 32
) -> np.ndarray:
    """Returns the heatmaps of many images.

    Args:
        model: A network. It is used in evaluation mode and left as it was; the caller's autocast holds here too.
        images: float32 (n, 3, H, W), standardized; or batches of them, of which one at a time is in memory.
        heatmap: Such as `grad_cam(network)`.
        batch_size: Images at a time, of a tensor; it does not change the result.

    Returns:
        float32 (n, h, w), for a 224-pixel image and a ResNet 7x7.

    Raises:
        ModelError: If the images have another shape or type, or the heatmap cannot be made.
    """
    maps = []
    with evaluation_mode(model):
        for batch in images.split(batch_size) if isinstance(images, Tensor) else images:  # (b, 3, H, W)
            if batch.ndim != 4 or batch.shape[1] != 3 or len(batch) == 0 or not batch.is_floating_point():
                raise ModelError(f"Expected float images (n, 3, H, W), n > 0; got {batch.dtype} {tuple(batch.shape)}.")
            maps.append(heatmap(model, batch).float().cpu())
    if not maps:
        raise ModelError("Expected at least one batch of images; got none.")
    return torch.cat(maps).numpy()


def channel_contributions(
    model: nn.Module, image: Tensor, network: Network, target: int = 1, *, layer: str = "last_stage"
) -> np.ndarray:
    """Returns the summands of Grad-CAM for one image: each channel's map times its weight, `w_c * A_c`.

    Their sum over channels, with negative values set to 0, is the map of `grad_cam`.

    Args:
        model: A network, used in evaluation mode and left as it was.
        image: float32 (1, 3, H, W), standardized.
        network: What is declared of the architecture.
        target: The class that is explained.
        layer: As in `grad_cam`.

    Returns:
        float32 (channels, h, w).

    Raises:
        ModelError: If the image has another shape, or the layer or the class does not exist or gives no maps.
    """
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise ModelError(f"Expected one image (1, 3, H, W); got {tuple(image.shape)}.")
    with evaluation_mode(model):
        chosen = find_layer(model, network, layer)
        activation, gradient = _activation_and_gradient(model, image, target, network, chosen)
    return (gradient.mean(dim=(2, 3), keepdim=True) * activation)[0].float().cpu().numpy()


def upsample(maps: np.ndarray, size: tuple[int, int], mode: str = "bilinear") -> np.ndarray:
    """Enlarges maps, (n, h, w) to float32 (n, H, W); `mode` is bilinear or nearest (captum's own default).

    Every value stays between its map's extremes, so that a constant map stays constant to the last bit and gives no
    box: interpolation alone rounds it to a pattern, which normalization would blow up.
    """
    tensor = torch.from_numpy(np.array(maps, dtype=np.float32)).unsqueeze(1)  # (n, 1, h, w)
    options = {"align_corners": False} if mode == "bilinear" else {}
    large = F.interpolate(tensor, size=size, mode=mode, **options)  # (n, 1, H, W)
    torch.maximum(large, tensor.amin(dim=(2, 3), keepdim=True), out=large)
    torch.minimum(large, tensor.amax(dim=(2, 3), keepdim=True), out=large)
    return large.squeeze(1).numpy()


def find_layer(model: nn.Module, network: Network, layer: str) -> nn.Module:
    """Returns a layer of a network by its dotted name, or its feature layer for `last_stage`.

    Raises:
        ModelError: If there is none of this name.
    """
    try:
        return model.get_submodule(network.features if layer == "last_stage" else layer)
    except AttributeError as error:
        raise ModelError(f"The network has no layer '{layer}': {error}.") from error


def _closed_form(model: nn.Module, images: Tensor, target: int, network: Network, layer: nn.Module) -> Tensor:
    """Grad-CAM before its ReLU by a forward pass alone: (b, h, w)."""
    linear = model.get_submodule(network.head)
    assert isinstance(linear, nn.Linear)
    if target >= linear.out_features:
        raise ModelError(f"Class {target} cannot be explained: the network has {linear.out_features}.")
    with torch.inference_mode(), _watched(layer, copy=network.rectified) as seen:
        model(images)
        activation = to_nchw(seen[0], network, images).float()  # (b, c, h, w)
        weight = linear.weight.detach()[target].float() / (activation.shape[2] * activation.shape[3])  # (c,)
        if not network.rectified:
            return (weight @ activation.flatten(2)).unflatten(1, activation.shape[2:])  # (b, h, w)
        # The gradient is zero where the ReLU closes: its mean over positions keeps the share of the open ones.
        open_share = (activation > 0).float().mean(dim=(2, 3))  # (b, c)
        return torch.einsum("bchw,bc->bhw", activation, weight * open_share)


def _by_captum(model: nn.Module, images: Tensor, target: int, layer: nn.Module) -> Tensor:
    """One batch by a forward and a backward pass: (b, h, w)."""

    def logits(batch: Tensor) -> Tensor:
        return logits_of(model(batch))

    try:
        with torch.inference_mode(False), torch.enable_grad():  # a gradient, even where the caller needs none
            images = images.clone() if images.is_inference() else images
            attribution = LayerGradCam(logits, layer).attribute(images, target=target)  # (b, 1, h, w)
    except (IndexError, AssertionError) as error:
        raise ModelError(f"Class {target} cannot be explained: {error}") from error
    return attribution.detach().squeeze(1)


def _activation_and_gradient(
    model: nn.Module, images: Tensor, target: int, network: Network, layer: nn.Module
) -> tuple[Tensor, Tensor]:
    """A layer's output and the gradient of the target's logit with respect to it, both (b, c, h, w)."""
    with torch.inference_mode(False), torch.enable_grad(), _watched(layer, copy=True) as seen:
        images = images.detach().clone().requires_grad_()  # so that frozen networks have a gradient too
        logits = logits_of(model(images))  # (b, classes)
        if not 0 <= target < logits.shape[1]:
            raise ModelError(f"Class {target} cannot be explained: the network has {logits.shape[1]}.")
        (gradient,) = torch.autograd.grad(logits[:, target].sum(), seen[0])
    return to_nchw(seen[0].detach(), network, images), to_nchw(gradient, network, images)


def to_nchw(activation: Tensor, network: Network, images: Tensor) -> Tensor:
    """Returns a layer's output as (b, c, h, w), whatever the network's layout.

    Args:
        activation: The layer's output.
        network: What is declared of the architecture.
        images: (b, 3, H, W), whose shape tells that of a grid of tokens.

    Raises:
        ModelError: If it holds no maps.
    """
    if network.layout == "tokens" and activation.ndim == 3:
        grid = activation[:, network.prefix_tokens :]  # (b, h * w, c)
        height = round((grid.shape[1] * images.shape[2] / images.shape[3]) ** 0.5)
        return grid.transpose(1, 2).unflatten(2, (height, grid.shape[1] // height))
    if activation.ndim != 4:
        raise ModelError("The layer gives no maps (n, channels, h, w): choose a convolutional one.")
    return activation.permute(0, 3, 1, 2) if network.layout == "nhwc" else activation


@contextlib.contextmanager
def _watched(layer: nn.Module, *, copy: bool) -> Iterator[list[Tensor]]:
    """Keeps what a layer puts out; a copy goes on where an operation in place may follow."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, given: tuple, output: Tensor) -> Tensor | None:
        seen.append(output)
        return output.clone() if copy else None

    hook = layer.register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def _mean(maps: Sequence[Tensor]) -> Tensor:
    """The mean of maps (b, h, w) of several grids, on the finest of them."""
    size = max((one.shape[1:] for one in maps), key=lambda shape: shape[0] * shape[1])
    enlarged = [F.interpolate(m.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1) for m in maps]
    return torch.stack(enlarged).mean(dim=0)
