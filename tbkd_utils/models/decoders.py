"""Networks that say where: a classifier's body with a decoder that gives a map at an eighth of the image's size.

The decoder is a feature pyramid (Lin et al., CVPR 2017): the coarse features are enlarged and the finer ones added,
each brought to the same number of channels first.
"""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

CHANNELS = 64
TAPPED = {2: 40, 4: 112, 6: 320}
"""Stages of EfficientNet-Lite0 whose output is used, at strides 8, 16 and 32, and their channels."""
RARE = -2.0
"""Where the map's logits start: the finding covers a small part of an image."""


class MapLayer(nn.Conv2d):
    """The last layer of a decoder, (b, channels, h, w) to the logits of one map (b, 1, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 1, 1)

    def reset_parameters(self) -> None:
        """Draws the weights; the bias says that the finding is rare."""
        super().reset_parameters()
        if self.bias is not None:
            nn.init.constant_(self.bias, RARE)


def _smoothing(channels: int) -> nn.Module:
    """A depthwise separable convolution, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class Pyramid(nn.Module):
    """Features of several strides, finest first, to the logits of a map at the finest stride."""

    def __init__(self, widths: list[int], channels: int = CHANNELS) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.smooth = nn.ModuleList(_smoothing(channels) for _ in widths)
        self.last = MapLayer(channels)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Returns (b, 1, h, w), of the first features' height and width."""
        laterals = [layer(one) for layer, one in zip(self.lateral, features, strict=True)]
        found = self.smooth[-1](laterals[-1])
        for lateral, smooth in zip(laterals[-2::-1], list(self.smooth)[-2::-1], strict=True):
            larger = F.interpolate(found, size=lateral.shape[2:], mode="bilinear", align_corners=False)
            found = smooth(larger + lateral)
        return self.last(found)


class Lite0Pyramid(nn.Module):
    """EfficientNet-Lite0 with its own classifier, and a pyramid over three of its stages.

    float32 (b, 3, H, W) to a dict: `logits` (b, classes), the classifier's; `map` (b, 1, H / 8, W / 8), rounded up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body: Any = timm.create_model("tf_efficientnet_lite0")
        self.decoder = Pyramid(list(TAPPED.values()))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns both outputs."""
        body, features = self.body, []
        found = body.bn1(body.conv_stem(images))
        for place, stage in enumerate(body.blocks):
            found = stage(found)
            if place in TAPPED:
                features.append(found)
        logits = body.forward_head(body.bn2(body.conv_head(found)))
        return {"logits": logits, "map": self.decoder(features)}
