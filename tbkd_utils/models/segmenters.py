"""Networks that segment: a map of the image's own size, by a U-Net, one of its descendants, or a Swin-UNet.

All take gray images and give a dict, `Mask`. The shape of the letter U: an encoder halves the sides and doubles the
channels, a decoder goes the way back and is handed the encoder's output of every size (Ronneberger et al. 2015).
"""

import functools
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from tbkd_utils.errors import ModelError

Mask = dict[str, torch.Tensor]
"""What a segmenter returns for (b, c, H, W): `map` float (b, 1, H, W), logits; `logits`, the same tensor, by the name
under which every network has them; `features` float (b, `feature_channels`, H / 4, W / 4), what its encoder gives at a
quarter of the sides, which distillation of features compares."""

Block = Callable[[int, int], nn.Module]
"""Channels before and after, to a module."""

LEVELS = 5
SWIN = "swin_tiny_patch4_window7_224"


def _convolution(before: int, after: int, kernel: int = 3, dilation: int = 1) -> nn.Sequential:
    """A convolution that keeps the sides, batch norm and ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


def _double(before: int, after: int) -> nn.Module:
    return nn.Sequential(_convolution(before, after), _convolution(after, after))


class Residual(nn.Module):
    """Two convolutions plus their input, through 1x1 where widths differ (ResU-Net; Zhang, Liu and Wang 2018)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = _convolution(before, after)
        self.second = nn.Sequential(nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after))
        self.around: nn.Module = nn.Identity()
        if before != after:
            self.around = nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, before, h, w) -> (b, after, h, w)."""
        return F.relu(self.second(self.first(x)) + self.around(x))


class Depthwise(nn.Module):
    """Narrow by 1x1, depthwise 3x3, widen by 1x1, nothing between; plus the input, batch norm, ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = max(8, width // 4)
        self.convolutions = nn.Sequential(
            nn.Conv2d(width, narrow, 1, bias=False),
            nn.Conv2d(narrow, narrow, 3, padding=1, groups=narrow, bias=False),
            nn.Conv2d(narrow, width, 1, bias=False),
        )
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, width, h, w) -> the same shape."""
        return F.relu(self.norm(self.convolutions(x) + x))


def _depthwise(before: int, after: int) -> nn.Module:
    """Two depthwise blocks behind what changes the width: 1x1, but a full 3x3 for the image itself."""
    changed = _convolution(before, after) if before == 1 else nn.Conv2d(before, after, 1, bias=False)
    return nn.Sequential(changed, Depthwise(after), Depthwise(after))


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al. 2017): several fields of view of one feature map, put together.

    Args:
        width: Channels before and after.
        rates: Dilations of the 3x3 convolutions, beside a 1x1 convolution and the global mean.
    """

    def __init__(self, width: int, rates: tuple[int, ...] = (2, 4, 6)) -> None:
        super().__init__()
        self.views = nn.ModuleList(
            [_convolution(width, width, 1), *(_convolution(width, width, dilation=rate) for rate in rates)]
        )
        self.whole = _convolution(width, width, 1)
        self.together = _convolution((len(rates) + 2) * width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, width, h, w) -> the same shape. In training mode a batch needs more than one image (batch norm)."""
        whole = self.whole(x.mean(dim=(2, 3), keepdim=True)).expand_as(x)
        return self.together(torch.cat([*(view(x) for view in self.views), whole], dim=1))


class Gate(nn.Module):
    """The decoder decides which pixels of the encoder's output pass (Attention U-Net, Oktay et al. 2018).

    Args:
        width: Channels of both.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        between = max(8, width // 2)
        self.asked, self.given = (
            nn.Sequential(nn.Conv2d(width, between, 1, bias=False), nn.BatchNorm2d(between)) for _ in range(2)
        )
        self.weight = nn.Sequential(nn.Conv2d(between, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, asked: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """The decoder's and the encoder's features, both (b, width, h, w) -> the latter times weights in [0, 1]."""
        return given * self.weight(F.relu(self.asked(asked) + self.given(given)))


class Open(nn.Module):
    """A gate that lets everything pass."""

    def forward(self, asked: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """Returns the encoder's features."""
        return given


def _transposed(before: int, after: int) -> nn.Module:
    return nn.ConvTranspose2d(before, after, 2, stride=2)


def _enlarged(before: int, after: int) -> nn.Module:
    enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(enlarge, nn.Conv2d(before, after, 1, bias=False))


class UNet(nn.Module):
    """A U-Net of five levels: float32 (b, c, H, W), sides multiples of 16, gray -> `Mask`.

    Args:
        width: Channels of the first level; they double from level to level.
        block: The convolutions of a level.
        up: What doubles the sides and halves the channels.
        gate: What of the encoder's output the decoder gets: a function of its channels.
        bottleneck: What stands between encoder and decoder: a function of the last level's channels.
    """

    def __init__(
        self,
        width: int = 32,
        block: Block = _double,
        up: Block = _transposed,
        gate: Callable[[int], nn.Module] = lambda width: Open(),
        bottleneck: Callable[[int], nn.Module] = lambda width: nn.Identity(),
    ) -> None:
        super().__init__()
        widths = _widths(width)
        self.feature_channels = widths[2]
        self.encoder = nn.ModuleList(block(*pair) for pair in zip((1, *widths), widths, strict=False))
        self.bottleneck = bottleneck(widths[-1])
        self.up = nn.ModuleList(up(2 * one, one) for one in widths[-2::-1])
        self.gates = nn.ModuleList(gate(one) for one in widths[-2::-1])
        self.decoder = nn.ModuleList(block(2 * one, one) for one in widths[-2::-1])
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, images: torch.Tensor) -> Mask:
        """Returns `Mask`.

        Raises:
            ModelError: If a side is no multiple of 16.
        """
        levels = _encoded(self.encoder, images)
        x = self.bottleneck(levels[-1])
        for up, gate, block, given in zip(self.up, self.gates, self.decoder, levels[-2::-1], strict=True):
            asked = up(x)  # (b, c, h, w), as many channels and pixels as the encoder's
            x = block(torch.cat([asked, gate(asked, given)], dim=1))
        return _mask(self.last(x), levels[2])


class UNetPlusPlus(nn.Module):
    """U-Net++ (Zhou et al. 2018) without deep supervision: float32 (b, c, H, W), sides multiples of 16, gray -> `Mask`.

    Every level has a chain of blocks; each sees all before it in its chain, and the one below it, enlarged.

    Args:
        width: Channels of the first level; they double from level to level.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = _widths(width)
        self.feature_channels = widths[2]
        self.encoder = nn.ModuleList(_double(*pair) for pair in zip((1, *widths), widths, strict=False))
        # Column j of the chains has a block at each of the levels 0 to 4 - j.
        self.up: Any = nn.ModuleList(
            nn.ModuleList(_enlarged(2 * one, one) for one in widths[: LEVELS - column]) for column in range(1, LEVELS)
        )
        self.nested: Any = nn.ModuleList(
            nn.ModuleList(_double((column + 1) * one, one) for one in widths[: LEVELS - column])
            for column in range(1, LEVELS)
        )
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, images: torch.Tensor) -> Mask:
        """Returns `Mask`.

        Raises:
            ModelError: If a side is no multiple of 16.
        """
        levels = _encoded(self.encoder, images)
        chains = [[one] for one in levels]
        for ups, blocks in zip(self.up, self.nested, strict=True):
            below = [chain[-1] for chain in chains]
            for level, (up, block) in enumerate(zip(ups, blocks, strict=True)):
                chains[level].append(block(torch.cat([*chains[level], up(below[level + 1])], dim=1)))
        return _mask(self.last(chains[0][-1]), levels[2])


class SwinDecoder(nn.Module):
    """The features of four stages, finest first, to logits at the finest stage's size.

    Args:
        widths: Channels of the stages.
    """

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.bridge = _double(widths[-1], widths[-1])
        self.blocks = nn.ModuleList(
            _double(coarse + fine, fine) for coarse, fine in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        narrow = max(8, widths[0] // 2)
        self.last = nn.Sequential(_convolution(widths[0], narrow), nn.Conv2d(narrow, 1, 1))

    def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
        """Returns (b, 1, h, w), of the first stage's height and width."""
        x = self.bridge(stages[-1])
        for block, given in zip(self.blocks, stages[-2::-1], strict=True):
            larger = F.interpolate(x, size=given.shape[2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([larger, given], dim=1))
        return self.last(x)


class SwinUNet(nn.Module):
    """A Swin transformer of timm that encodes, convolutions that decode: float32 (b, c, H, W), gray -> `Mask`.

    The sides are multiples of 32. The logits are enlarged four times, bilinearly. Other sizes than the one that it was
    made for are taken too, with the same windows.

    Args:
        size: The side that it is made for: no window is larger than a stage's feature map.
        how: What differs from Swin-T, such as `embed_dim`, as timm takes it.
    """

    def __init__(self, size: int = 256, **how: Any) -> None:
        super().__init__()
        self.encoder = swin_encoder(size, **how)
        widths = self.encoder.feature_info.channels()
        self.feature_channels: int = widths[0]
        self.decoder = SwinDecoder(widths)

    def forward(self, images: torch.Tensor) -> Mask:
        """Returns `Mask`.

        Raises:
            ModelError: If a side is no multiple of 32.
        """
        stages = [stage.permute(0, 3, 1, 2) for stage in self.encoder(_gray(images, 32))]  # from nhwc
        found = F.interpolate(self.decoder(stages), scale_factor=4, mode="bilinear", align_corners=False)
        return _mask(found, stages[0])


def swin_encoder(size: int, **how: Any) -> Any:
    """Returns timm's Swin-T for gray images that gives the features of its four stages, (b, h, w, c) each.

    Args:
        size: The side that it is made for.
        how: What differs from Swin-T; `pretrained=True` for its ImageNet weights, the first layer's summed over colors.
    """
    return timm.create_model(SWIN, features_only=True, in_chans=1, img_size=size, strict_img_size=False, **how)


small_swin = functools.partial(SwinUNet, embed_dim=32, depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16), window_size=4)
"""A Swin-UNet of a tenth of the size, for small images."""
unet_dw = functools.partial(UNet, block=_depthwise)
"""U-NetDw, the student: depthwise blocks. By the width of its first level."""
unet_dw_aspp = functools.partial(unet_dw, bottleneck=Aspp)
"""The same with atrous spatial pyramid pooling at its bottleneck."""
attention_unet = functools.partial(UNet, up=_enlarged, gate=Gate)
"""Attention U-Net."""
res_unet = functools.partial(UNet, block=Residual, up=_enlarged)
"""ResU-Net."""


def _widths(width: int) -> list[int]:
    return [width * 2**level for level in range(LEVELS)]


def _encoded(blocks: nn.ModuleList, images: torch.Tensor) -> list[torch.Tensor]:
    """The output of each level, finest first: (b, width * 2^k, H / 2^k, W / 2^k)."""
    levels = [blocks[0](_gray(images, 2 ** (LEVELS - 1)))]
    for block in list(blocks)[1:]:
        levels.append(block(F.max_pool2d(levels[-1], 2)))
    return levels


def _gray(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """The one channel of gray images, which come repeated over three."""
    height, width = images.shape[2:]
    if height % multiple or width % multiple:
        raise ModelError(
            f"The images are {height} x {width}: this network needs sides that are multiples of {multiple}."
        )
    return images[:, :1]


def _mask(found: torch.Tensor, features: torch.Tensor) -> Mask:
    return {"logits": found, "map": found, "features": features}
