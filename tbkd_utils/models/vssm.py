"""VMamba's network, the VSSM: a hierarchy of blocks in which every place sees every other by four selective scans.

*VMamba: Visual State Space Model* (arXiv 2401.10166), as released in February 2024 and since.
Modules are named as in the official checkpoints, so that a file's entries and ours have the same names.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torchvision.ops import Permute

from tbkd_utils.errors import ModelError
from tbkd_utils.models.scan import selective_scan

DIRECTIONS = 4
SHORTEST, LONGEST, FLOOR = 1e-3, 1e-1, 1e-4
"""Step sizes at the start: log-uniform between the first two, at least the third (Mamba, section 3.6)."""


@dataclass(frozen=True)
class Variant:
    """The shape of a VSSM; the defaults are VMamba-T's of February 2024 (0220).

    Attributes:
        width: Channels of the first stage, even; every later stage has twice as many as the one before.
        depths: Blocks of each stage.
        states: Numbers in the state of each channel of a scan.
        ratio: Channels of the scans over those of the stage.
        gated: Whether a second branch of the input multiplies what the scans give.
        mlp_ratio: Hidden channels of the MLP over those of the stage.
    """

    width: int = 96
    depths: tuple[int, ...] = (2, 2, 4, 2)
    states: int = 1
    ratio: int = 2
    gated: bool = True
    mlp_ratio: int = 4

    def __str__(self) -> str:
        depths = " ".join(map(str, self.depths))
        gate = "gated" if self.gated else "no gate"
        return f"width {self.width}, depths {depths}, states {self.states}, ratio {self.ratio}, {gate}"


VARIANTS = {
    "vssm_tiny": Variant(),
    "vssm_tiny_s2l5": Variant(depths=(2, 2, 5, 2), gated=False),
    "vssm_tiny_s1l8": Variant(depths=(2, 2, 8, 2), ratio=1, gated=False),
}
"""The published tiny networks: `vssm1_tiny_0220`, and those of today by their official suffix."""


# --- the four directions ----------------------------------------------------------------------------------------------


def cross_scan(maps: Tensor) -> Tensor:
    """Unrolls maps (b, h, w, d) into four sequences (h * w, b, 4, d).

    By row, by column, and both from the end: [[1, 2, 3], [4, 5, 6]] to 123456, 142536, 654321 and 635241.
    """
    batch, height, width, channels = maps.shape
    rows = maps.permute(1, 2, 0, 3).reshape(height * width, batch, channels)
    columns = maps.permute(2, 1, 0, 3).reshape(height * width, batch, channels)
    return torch.stack([rows, columns, rows.flip(0), columns.flip(0)], dim=2)


def cross_merge(sequences: Tensor, height: int, width: int) -> Tensor:
    """Puts four sequences (h * w, b, 4, d) back in place and adds them: (b, h, w, d)."""
    _, batch, _, channels = sequences.shape
    rows, columns, rows_back, columns_back = sequences.unbind(2)
    by_row = (rows + rows_back.flip(0)).view(height, width, batch, channels)
    by_column = (columns + columns_back.flip(0)).view(width, height, batch, channels)
    return (by_row + by_column.transpose(0, 1)).permute(2, 0, 1, 3)


# --- the network ------------------------------------------------------------------------------------------------------


class SS2D(nn.Module):
    """VMamba's 2D selective scan, maps (b, h, w, channels) to the same shape."""

    def __init__(self, channels: int, variant: Variant) -> None:
        super().__init__()
        inner, self.states, self.rank = variant.ratio * channels, variant.states, math.ceil(channels / 16)
        self.gated = variant.gated
        self.in_proj = nn.Linear(channels, (1 + self.gated) * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, self.rank + 2 * self.states, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(DIRECTIONS, inner, self.rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(DIRECTIONS, inner))
        self.A_logs = nn.Parameter(torch.empty(DIRECTIONS * inner, self.states))
        self.Ds = nn.Parameter(torch.empty(DIRECTIONS * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.reset_scan()

    @torch.no_grad()
    def reset_scan(self) -> None:
        """Draws what the scans are made of from the global generator (Mamba, section 3.6)."""
        inner = self.x_proj_weight.shape[2]
        self.x_proj_weight.uniform_(-(inner**-0.5), inner**-0.5)
        self.dt_projs_weight.uniform_(-(self.rank**-0.5), self.rank**-0.5)
        steps = torch.empty_like(self.dt_projs_bias).uniform_(math.log(SHORTEST), math.log(LONGEST)).exp_()
        steps.clamp_(min=FLOOR)
        self.dt_projs_bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # softplus of it is `steps`
        self.A_logs.copy_(torch.arange(1, self.states + 1).log().expand_as(self.A_logs))
        self.Ds.fill_(1)

    def forward(self, maps: Tensor) -> Tensor:
        """Returns (b, h, w, channels)."""
        inside = self.in_proj(maps)  # (b, h, w, inner or 2 inner)
        x, gate = inside.chunk(2, dim=-1) if self.gated else (inside, None)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        y = self.out_norm(self.scan(x))
        return self.out_proj(y if gate is None else y * F.silu(gate))

    def scan(self, x: Tensor) -> Tensor:
        """Scans maps (b, h, w, inner) in all directions and adds them up, (b, h, w, inner), float32 or better."""
        inner = x.shape[3]
        sequences = cross_scan(x)  # (l, b, 4, inner)
        projected = torch.einsum("lbkd,kcd->lbkc", sequences, self.x_proj_weight)
        low_rank, b, c = projected.split([self.rank, self.states, self.states], dim=3)
        delta = torch.einsum("lbkr,kdr->lbkd", low_rank, self.dt_projs_weight) + self.dt_projs_bias
        a = -torch.exp(self.A_logs).view(DIRECTIONS, inner, self.states)
        y = selective_scan(sequences, delta, a, b, c, self.Ds.view(DIRECTIONS, inner))
        return cross_merge(y, x.shape[1], x.shape[2])


class Block(nn.Module):
    """x + SS2D(norm(x)), then x + MLP(norm2(x)), maps (b, h, w, channels)."""

    def __init__(self, channels: int, variant: Variant, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.op = SS2D(channels, variant)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, variant.mlp_ratio * channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, maps: Tensor) -> Tensor:
        """Returns (b, h, w, channels)."""
        maps = maps + self.drop_path(self.op(self.norm(maps)))
        return maps + self.drop_path(self.mlp(self.norm2(maps)))


class VSSM(nn.Module):
    """VMamba's classifier, float32 (b, 3, H, W) -> logits (b, outputs).

    `patch_embed` gives maps (b, H / 4, W / 4, width), channels last. Each of `layers` is blocks, then, but for the last
    layer, a convolution that halves height and width and doubles the channels; sizes are rounded up. `classifier` is a
    norm, the mean over all places, and a linear head.

    Args:
        variant: Its shape.
        outputs: Of the head.
        drop_path: Probability that the last block is left out for an image in training; of the first block 0, and
            between them in a straight line (stochastic depth, VMamba-T's is 0.2).
    """

    def __init__(self, variant: Variant, outputs: int = 1000, drop_path: float = 0.2) -> None:
        super().__init__()
        widths = [variant.width * 2**stage for stage in range(len(variant.depths))]
        rates = iter(np.linspace(0, drop_path, sum(variant.depths)).tolist())
        half = variant.width // 2
        self.patch_embed = nn.Sequential(
            nn.Conv2d(3, half, 3, stride=2, padding=1),
            Permute([0, 2, 3, 1]),
            nn.LayerNorm(half),
            Permute([0, 3, 1, 2]),
            nn.GELU(),
            nn.Conv2d(half, variant.width, 3, stride=2, padding=1),
            Permute([0, 2, 3, 1]),
            nn.LayerNorm(variant.width),
        )
        self.layers = nn.ModuleList()
        for width, depth in zip(widths, variant.depths, strict=True):
            blocks = nn.Sequential(*(Block(width, variant, next(rates)) for _ in range(depth)))
            downsample = nn.Identity() if width == widths[-1] else _downsample(width)
            self.layers.append(nn.Sequential(OrderedDict(blocks=blocks, downsample=downsample)))
        self.classifier = nn.ModuleDict({"norm": nn.LayerNorm(widths[-1]), "head": nn.Linear(widths[-1], outputs)})
        self.apply(_draw_linear)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits (b, outputs)."""
        maps = self.patch_embed(images)
        for layer in self.layers:
            maps = layer(maps)
        maps = self.classifier["norm"](maps)  # (b, H / 32, W / 32, 8 width)
        return self.classifier["head"](maps.mean((1, 2)))


def _downsample(width: int) -> nn.Module:
    return nn.Sequential(
        Permute([0, 3, 1, 2]),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        Permute([0, 2, 3, 1]),
        nn.LayerNorm(2 * width),
    )


def _draw_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# --- official checkpoints ---------------------------------------------------------------------------------------------

OLDER = (
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^(layers\.\d+\.blocks\.\d+)\.ln_1\.", r"\1.norm."),
    (r"^(layers\.\d+\.blocks\.\d+)\.self_attention\.", r"\1.op."),
    (r"^(norm|head)\.", r"classifier.\1."),
)
"""Names in older checkpoints, as patterns, and what stands in their place today."""


def official_state(state: Mapping[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Returns the entries of an official checkpoint under the names and in the shapes of our network.

    Older names are replaced, and the weights of 1 x 1 convolutions become those of linear layers. The entries still
    have to be compared with the network's, one by one: only the variant is checked here.

    Args:
        state: A plain state dict.
        variant: What the file has to hold.

    Raises:
        ModelError: If the file is not of a VSSM, or of another variant.
    """
    named = {}
    for key, entry in state.items():
        for pattern, name in OLDER:
            key = re.sub(pattern, name, key)
        named[key] = entry.flatten(1) if entry.shape[2:] == (1, 1) else entry
    found = variant_of(named)
    if found != variant:
        known = next((f"'{name}'" for name, other in VARIANTS.items() if other == found), "not listed")
        raise ModelError(
            f"these are weights of another VSSM ({found}; by name {known}). Expected {variant}: take the network that "
            "fits the file, or the file that fits the network."
        )
    return named


def variant_of(state: Mapping[str, Tensor]) -> Variant:
    """Tells a VSSM's variant from the shapes in its state dict.

    Raises:
        ModelError: If this is no state dict of a VSSM.
    """
    blocks: dict[int, int] = {}
    for key in state:
        if match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.op\.", key):
            stage, block = map(int, match.groups())
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    first = "layers.0.blocks.0."
    try:
        inside, outside = state[f"{first}op.in_proj.weight"], state[f"{first}op.out_proj.weight"]
        states, hidden = state[f"{first}op.A_logs"], state[f"{first}mlp.fc1.weight"]
        width, inner = outside.shape
        return Variant(
            width=width,
            depths=tuple(blocks[stage] for stage in range(len(blocks))),
            states=states.shape[1],
            ratio=inner // width,
            gated=len(inside) == 2 * inner,
            mlp_ratio=len(hidden) // width,
        )
    except (KeyError, ValueError, IndexError) as error:
        some = ", ".join(list(state)[:3]) or "nothing"
        raise ModelError(
            f"these are no weights of a VSSM: expected entries under VMamba's names, such as "
            f"{first}op.in_proj.weight; got {len(state)}, such as {some}."
        ) from error
