"""A classifier with a mask head: a map of the foreground that is learned, not read off gradients.

Wang et al., Scientific Reports 14 (2024), doi 10.1038/s41598-024-79701-8, after BAS (Wu et al., CVPR 2022). Classifier
and mask head share the early part of a body. The mask is pushed from three sides: the image under it must still show
the finding (foreground control), it must be small, and the class map under it must still tell the class.

The mask has several branches. A is a plain convolution; the others see the features under a function of A's map `a`,
scaled to 0..1. B lifts the middle of it (a Gaussian), D all but its hottest part (Student's t), so that the sum grows
over what A alone would miss. What the authors' code does beyond their text is named at each option.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.func import functional_call

from tbkd_utils.errors import ModelError
from tbkd_utils.models.vssm import VARIANTS, VSSM, Variant

TOP = 4
"""Without a label, the maps of so many classes of the highest scores are averaged."""
_EPSILON = 1e-10
_FREEDOM = 5.0


class Body(Protocol):
    """A network in two parts that a mask head stands between.

    Attributes:
        channels: Of the early features.
        late_channels: Of the late ones.
        pooling: How many cells of the early grid are one of the late grid, along a side.
    """

    channels: int
    late_channels: int
    pooling: int

    def early(self, images: Tensor) -> Tensor:
        """float32 (b, 3, H, W) to features (b, channels, h, w)."""
        ...

    def normed(self, features: Tensor) -> Tensor:
        """The early features as mask head and foreground branch see them, same shape."""
        ...

    def late(self, features: Tensor) -> Tensor:
        """Early features to (b, late_channels, h / pooling, w / pooling)."""
        ...


@dataclass(frozen=True)
class MaskOptions:
    """What the source leaves open or contradicts.

    Attributes:
        branches: Of the mask: `a` alone, or with `b` (Gaussian), `c` (sigmoid; the source's ResNet has it) and `d`
            (Student's t, 5 degrees of freedom).
        foreground_input: What the mask is laid over: `normed`, the normalized early features (the source's code), or
            `raw`, those that the main branch sees.
        modulation_stats: Mean and standard deviation of the Gaussian: over the whole `batch` (the source's code, so
            that a map depends on its company) or each `image`.
        control: Whose score shows what the mask leaves: `foreground`, of the image under the mask; `background`, of the
            rest (BAS); `none`.
        score_mask: What the class map is multiplied with for the second score: the `mask` (the source's VMamba) or the
            `separated` one (its ResNet).
    """

    branches: str = "abd"
    foreground_input: Literal["normed", "raw"] = "normed"
    modulation_stats: Literal["batch", "image"] = "batch"
    control: Literal["foreground", "background", "none"] = "foreground"
    score_mask: Literal["mask", "separated"] = "mask"

    def __post_init__(self) -> None:
        if not self.branches.startswith("a") or len(set(self.branches)) < len(self.branches):
            raise ModelError(f"branches is '{self.branches}': expected 'a', then some of b, c and d, none twice.")
        if unknown := set(self.branches) - set("abcd"):
            raise ModelError(f"There is no branch '{sorted(unknown)[0]}': expected a, b, c and d.")


def minmax(maps: Tensor) -> Tensor:
    """Returns maps (..., h, w) scaled to 0..1, each by itself; a constant map becomes 0."""
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / (high - low + _EPSILON)


def gaussian(attention: Tensor, stats: Literal["batch", "image"] = "batch") -> Tensor:
    """Returns the density of a normal distribution at each value, highest in the middle of the attention.

    Args:
        attention: (b, 1, h, w) in [0, 1].
        stats: Whether mean and standard deviation (n - 1) are those of the batch or of each image. A constant map has a
            standard deviation of 0, to which 1e-6 is added.
    """
    dims = (0, 1, 2, 3) if stats == "batch" else (1, 2, 3)
    mean = attention.mean(dim=dims, keepdim=True)
    spread = attention.std(dim=dims, keepdim=True) + 1e-6
    return torch.exp(-(((attention - mean) / spread) ** 2) / 2) / (spread * (2 * torch.pi) ** 0.5)


def student_t(attention: Tensor) -> Tensor:
    """Returns the density of Student's t distribution with 5 degrees of freedom: falling from 0 to 1."""
    return torch.distributions.StudentT(attention.new_tensor(_FREEDOM)).log_prob(attention).exp()


def separated(mask: Tensor) -> Tensor:
    """Returns `relu(2 m - 1)`: what is above one half, stretched to 0..1."""
    return F.relu(2 * mask - 1)


def of_label(maps: Tensor, targets: Tensor) -> Tensor:
    """Returns each image's map of its own class, (b, C, h, w) to (b, 1, h, w).

    Args:
        maps: One map a class.
        targets: int64 (b,); or (b, C) of 0 and 1, of which the mean over its classes is taken, 0 for an image of none.
    """
    if targets.ndim == 1:
        return maps[torch.arange(len(maps), device=maps.device), targets].unsqueeze(1)
    share = targets.to(maps) / targets.sum(dim=1, keepdim=True).clamp(min=1)  # (b, C)
    return (maps * share[:, :, None, None]).sum(dim=1, keepdim=True)


def of_top(maps: Tensor, scores: Tensor, count: int = TOP) -> Tensor:
    """Returns the mean of the maps of the classes with the highest scores, (b, C, h, w) to (b, 1, h, w)."""
    chosen = scores.topk(min(count, scores.shape[1]), dim=1).indices  # (b, count)
    return maps.gather(1, chosen[:, :, None, None].expand(-1, -1, *maps.shape[2:])).mean(dim=1, keepdim=True)


class ClassHead(nn.Sequential):
    """Late features to one map a class, at least 0 everywhere: three convolutions, a ReLU after each (the last too)."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, classes, 1),
            nn.ReLU(),
        )


class MaskHead(nn.Module):
    """Normalized early features to one mask a class, in [0, 1].

    Args:
        channels: Of the features.
        classes: How many.
        options: Which branches there are.
    """

    def __init__(self, channels: int, classes: int, options: MaskOptions) -> None:
        super().__init__()
        self.options = options
        self.convolutions = nn.ModuleDict(
            {branch: nn.Conv2d(channels, classes, 3, padding=1) for branch in options.branches}
        )

    def forward(self, features: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns the fused masks (b, C, h, w), each scaled to 0..1.

        Args:
            features: (b, channels, h, w).
            choose: From one map a class to one an image, (b, C, h, w) to (b, 1, h, w): that of the label, or of the
                highest scores.
        """
        first = self.convolutions["a"](features).sigmoid()
        attention, found = minmax(choose(first)).detach(), first
        lifted: Mapping[str, Callable[[Tensor], Tensor]] = {
            "b": lambda a: gaussian(a, self.options.modulation_stats),
            "c": torch.sigmoid,
            "d": student_t,
        }
        for branch in self.options.branches[1:]:
            found = found + self.convolutions[branch](features * minmax(lifted[branch](attention))).sigmoid()
        return minmax(found)


class ForegroundNetwork(nn.Module):
    """Body, class head and mask head.

    float32 (b, 3, H, W), and in training the targets, to a dict: `logits` (b, C), the mean of each class map; `logits2`
    (b, C), the same under the mask; `masks` (b, C, h, w) in [0, 1]; `map` (b, 1, h, w), the logit of the image's mask;
    `coverage` (b,), the mean of it; and with targets `score` (b,), that of the label, and `foreground_score` or
    `background_score` (b,), that of the label where the late part sees nothing but the foreground or the rest.

    Args:
        body: In two parts.
        classes: How many.
        width: Channels inside the class head.
        options: Of the mask.
    """

    takes_targets = True

    def __init__(self, body: Any, classes: int, width: int = 1024, options: MaskOptions | None = None) -> None:
        super().__init__()
        self.body, self.options = body, options or MaskOptions()
        self.head = ClassHead(body.late_channels, classes, width)
        self.mask = MaskHead(body.channels, classes, self.options)

    def forward(self, images: Tensor, targets: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the outputs; without targets the mask is the mean of those of the `TOP` highest scores."""
        early = self.body.early(images)
        normed = self.body.normed(early)
        state = _random_state(images.device)
        class_maps = self.head(self.body.late(early))  # (b, C, h', w')
        scores = class_maps.mean(dim=(2, 3))

        def choose(maps: Tensor) -> Tensor:
            return of_top(maps, scores) if targets is None else of_label(maps, targets)

        masks = self.mask(normed, choose)
        mask = choose(masks)  # (b, 1, h, w)
        shown = mask if self.options.score_mask == "mask" else separated(mask)
        pooled = F.adaptive_avg_pool2d(shown, class_maps.shape[2:]) if self.body.pooling > 1 else shown
        outputs = {
            "logits": scores,
            "logits2": (class_maps * pooled).mean(dim=(2, 3)),
            "masks": masks,
            "map": torch.logit(mask, eps=1e-6),
            "coverage": mask.mean(dim=(1, 2, 3)),
        }
        if targets is not None:
            seen = (normed if self.options.foreground_input == "normed" else early).detach()
            outputs["score"] = _label_score(scores, targets)
            if self.options.control != "none":
                part = separated(mask) if self.options.control == "foreground" else 1 - mask
                left = self._frozen_scores(seen * part, state)
                outputs[f"{self.options.control}_score"] = _label_score(left, targets)
        return outputs

    def _frozen_scores(self, features: Tensor, state: Tensor) -> Tensor:
        """Scores by the late part and the head as they are: no gradient to their weights, their random draws again."""
        late = _Late(self.body, self.head)
        tensors = {name: one.detach() for name, one in late.named_parameters()}
        tensors |= {name: one.clone() for name, one in late.named_buffers()}
        with torch.random.fork_rng(devices=[features.device] if features.is_cuda else []):
            _restore(state, features.device)
            return functional_call(late, tensors, (features,))


class _Late(nn.Module):
    """The late part and the head as one module, for a call with other tensors; nothing is registered twice."""

    def __init__(self, body: Any, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.body.late(features)).mean(dim=(2, 3))


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _restore(state: Tensor, device: torch.device) -> None:
    torch.cuda.set_rng_state(state, device) if device.type == "cuda" else torch.set_rng_state(state)


def _label_score(scores: Tensor, targets: Tensor) -> Tensor:
    """The score of each image's class (b,); of several the mean, 0 for an image of none."""
    if targets.ndim == 1:
        return scores.gather(1, targets[:, None]).squeeze(1)
    return (scores * targets).sum(dim=1) / targets.sum(dim=1).clamp(min=1)


# --- bodies -----------------------------------------------------------------------------------------------------------


class ResNet50Body(nn.Module):
    """ResNet-50 whose third stage keeps its resolution; the source's second body. Features at strides 8 and 16."""

    channels, late_channels, pooling = 1024, 2048, 2

    def __init__(self) -> None:
        super().__init__()
        body = torchvision.models.resnet50()
        self.stem = nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool)
        self.layer1, self.layer2, self.layer3, self.layer4 = body.layer1, body.layer2, body.layer3, body.layer4
        for stage in (self.layer3, self.layer4):
            for layer in (stage[0].conv2, stage[0].downsample[0]):
                layer.stride = (1, 1)

    def early(self, images: Tensor) -> Tensor:
        """(b, 3, H, W) to (b, 1024, H / 8, W / 8)."""
        return self.layer3(self.layer2(self.layer1(self.stem(images))))

    def normed(self, features: Tensor) -> Tensor:
        """As they are: batch norm and ReLU stand before."""
        return features

    def late(self, features: Tensor) -> Tensor:
        """To (b, 2048, H / 16, W / 16)."""
        return self.layer4(F.max_pool2d(features, 2))


class Lite0Body(nn.Module):
    """EfficientNet-Lite0, parted after its fifth stage: features at strides 16 and 32."""

    channels, late_channels, pooling = 112, 1280, 2

    def __init__(self) -> None:
        super().__init__()
        self.network: Any = timm.create_model("tf_efficientnet_lite0", num_classes=0)

    def early(self, images: Tensor) -> Tensor:
        """(b, 3, H, W) to (b, 112, H / 16, W / 16), rounded up."""
        return self.network.blocks[:5](self.network.bn1(self.network.conv_stem(images)))

    def normed(self, features: Tensor) -> Tensor:
        """As they are: batch norm stands before."""
        return features

    def late(self, features: Tensor) -> Tensor:
        """To (b, 1280, H / 32, W / 32), rounded up."""
        return self.network.bn2(self.network.conv_head(self.network.blocks[5:](features)))


class VSSMBody(nn.Module):
    """VMamba's network, parted after the downsampling of its third stage; its last norm serves both parts.

    Args:
        variant: Of the network.
    """

    pooling = 1

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.network = VSSM(variant)
        del self.network.classifier["head"]
        self.channels = self.late_channels = 8 * variant.width

    def early(self, images: Tensor) -> Tensor:
        """(b, 3, H, W) to (b, 8 width, H / 32, W / 32)."""
        maps = self.network.patch_embed(images)
        for layer in self.network.layers[:-1]:
            maps = layer(maps)
        return maps.permute(0, 3, 1, 2)

    def normed(self, features: Tensor) -> Tensor:
        """Through the network's last norm."""
        return self.network.classifier["norm"](features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def late(self, features: Tensor) -> Tensor:
        """Through the last stage and the same norm, same shape."""
        return self.normed(self.network.layers[-1](features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


FORMS: Mapping[str, tuple[Callable[[], Any], str, Literal["mask", "separated"]]] = {
    **{f"{name}_mask": (partial(VSSMBody, variant), "abd", "mask") for name, variant in VARIANTS.items()},
    "resnet50_mask": (ResNet50Body, "abcd", "separated"),
    "efficientnet_lite0_mask": (Lite0Body, "abd", "separated"),
}
"""Bodies by the name of the network: how each is built, the branches of its mask, and what its class map is multiplied
with. VMamba's and ResNet's are the source's; EfficientNet-Lite0, ours, scores like the latter."""


def foreground_network(
    form: str,
    classes: int,
    *,
    mask_branches: str = "",
    mask_width: int = 1024,
    foreground_input: Literal["normed", "raw"] = "normed",
    modulation_stats: Literal["batch", "image"] = "batch",
    foreground_control: Literal["foreground", "background", "none"] = "foreground",
) -> ForegroundNetwork:
    """Builds a network with a mask head at random.

    Args:
        form: A key of `FORMS`.
        classes: How many.
        mask_branches: As in `MaskOptions`; empty for those of the form.
        mask_width: Channels inside the class head.
        foreground_input: As in `MaskOptions`.
        modulation_stats: As in `MaskOptions`.
        foreground_control: Whose score is added, as `control` in `MaskOptions`.

    Raises:
        ModelError: If there is no such branch.
    """
    body, branches, shown = FORMS[form]
    options = MaskOptions(mask_branches or branches, foreground_input, modulation_stats, foreground_control, shown)
    return ForegroundNetwork(body(), classes, mask_width, options)
