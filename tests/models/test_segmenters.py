"""Networks that segment: the published numbers of parameters, their shapes, what they are made of, their start."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tbkd_utils.errors import ModelError
from tbkd_utils.localization.heatmaps import compute_heatmaps, own_map
from tbkd_utils.models import networks
from tbkd_utils.models.foreground import FORMS
from tbkd_utils.models.networks import NETWORKS, build_network, early_layers, find_network
from tbkd_utils.models.segmenters import (
    Aspp,
    Depthwise,
    Gate,
    Residual,
    SwinDecoder,
    UNetPlusPlus,
    small_swin,
    swin_encoder,
    unet_dw,
    unet_dw_aspp,
)  # fmt: skip

PARAMETERS = {
    "unet": 7_762_465, "unet_plus_plus": 8_356_289, "attention_unet": 7_327_997, "res_unet": 7_590_881,
    "unet_dw_32": 1_494_081, "unet_dw_16": 377_521, "unet_dw_8": 97_145,
    "unet_dw_aspp_32": 10_413_121, "unet_dw_aspp_16": 2_608_817, "unet_dw_aspp_8": 655_737,
    "swin_unet_256": 45_146_251, "swin_unet_128": 45_140_491,
    "swin_unet_small_128": 4_239_181, "swin_unet_small_64": 4_237_901,
}  # fmt: skip
CHANNELS = {
    **dict.fromkeys(("unet", "unet_plus_plus", "attention_unet", "res_unet", "unet_dw_32", "unet_dw_aspp_32"), 128),
    "unet_dw_16": 64, "unet_dw_aspp_16": 64, "unet_dw_8": 32, "unet_dw_aspp_8": 32,
    "swin_unet_256": 96, "swin_unet_128": 96, "swin_unet_small_128": 32, "swin_unet_small_64": 32,
}  # fmt: skip
"""Of what distillation compares: 128 of U-NetDw, 96 of Swin-T."""


def parameters(model: nn.Module) -> int:
    return sum(one.numel() for one in model.parameters())


def gray(size: int, seed: int = 0, count: int = 2) -> torch.Tensor:
    """Pixels in [0, 1], repeated over three channels as a batch has them."""
    pixels = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))
    return pixels.expand(-1, 3, -1, -1)


def test_the_list_holds_every_network_that_makes_its_own_map_alone() -> None:
    found = {name for name, network in NETWORKS.items() if network.map and not network.head}
    assert found - set(FORMS) == set(PARAMETERS)  # a network with a mask head classifies too


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_network_has_its_published_size_and_gives_a_mask_and_features(name: str) -> None:
    network = find_network(name)
    with torch.random.fork_rng(devices=[]):
        model = network.build(2).eval()
    assert parameters(model) == PARAMETERS[name]
    size = int(name.rpartition("_")[2]) if name.startswith("swin") else 64
    seen: list[torch.Tensor] = []
    model.get_submodule(network.features).register_forward_hook(lambda module, given, found: seen.append(found))
    with torch.inference_mode():
        found = model(gray(size, count=1))
    assert found.keys() == {"logits", "map", "features"}
    assert found["map"].shape == (1, 1, size, size)
    assert found["map"] is found["logits"]
    assert found["features"].shape == (1, CHANNELS[name], size // 4, size // 4)
    assert model.feature_channels == CHANNELS[name]
    assert seen[0].shape[2:] == ((size // 32,) * 2 if name.startswith("swin") else (size // 16,) * 2)
    for layer in early_layers(name, len(network.stages)):
        assert isinstance(model.get_submodule(layer), nn.Module)


@pytest.mark.parametrize(
    ("build", "expected"),
    [(lambda width=width: Depthwise(width), count) for width, count in
     {32: 648, 64: 2_320, 128: 8_736, 256: 33_856, 512: 133_248}.items()]
    + [(lambda: Aspp(512), 8_919_040), (lambda: swin_encoder(256), 27_514_746)],
)  # fmt: skip
def test_the_parts_have_their_published_sizes(build: Callable[[], nn.Module], expected: int) -> None:
    assert parameters(build()) == expected


def test_swin_gives_the_published_features() -> None:
    encoder = swin_encoder(256).eval()
    with torch.inference_mode():
        found = encoder(torch.zeros(1, 1, 256, 256))
    assert [stage.shape[1:] for stage in found] == [(64, 64, 96), (32, 32, 192), (16, 16, 384), (8, 8, 768)]


# --- what they are made of --------------------------------------------------------------------------------------------


def test_a_depthwise_block_without_weights_passes_its_input_on() -> None:
    block = Depthwise(8).eval()
    x = torch.randn(1, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(block.convolutions[2].weight)
    with torch.inference_mode():
        torch.testing.assert_close(block(x), F.relu(x), rtol=1e-4, atol=1e-4)


def test_a_residual_block_without_weights_passes_its_input_on() -> None:
    block = Residual(4, 4).eval()
    x = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(block.second[0].weight)
    with torch.inference_mode():
        torch.testing.assert_close(block(x), F.relu(x))


@pytest.mark.parametrize(("bias", "share"), [(0.0, 0.5), (50.0, 1.0), (-50.0, 0.0)])
def test_a_gate_multiplies_the_encoders_features_alone(bias: float, share: float) -> None:
    gate = Gate(4).eval()
    nn.init.zeros_(gate.weight[0].weight)
    nn.init.constant_(gate.weight[0].bias, bias)
    asked, given = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(gate(asked, given), share * given)


def test_aspp_sees_two_four_and_six_pixels_away_and_the_mean() -> None:
    """One bright pixel: where the views answer to it, and nowhere else but in the mean, which is everywhere."""
    aspp = Aspp(8).eval()
    bright, dark = torch.zeros(2, 1, 8, 17, 17)
    bright[..., 8, 8] = 1
    for view, rate in zip(aspp.views, (0, 2, 4, 6), strict=True):
        with torch.inference_mode():
            rows = (view[0](bright) != view[0](dark)).any(dim=1)[0].any(dim=1).nonzero().flatten()
        assert rows.tolist() == sorted({8 - rate, 8, 8 + rate})
    with torch.inference_mode():
        assert aspp.whole(bright.mean(dim=(2, 3), keepdim=True)).shape == (1, 8, 1, 1)
    assert aspp.together[0].in_channels == 5 * 8


def test_unet_plus_plus_has_ten_nested_blocks_whose_inputs_grow_along_their_chain() -> None:
    model = UNetPlusPlus(8)
    grown = [[block[0][0].in_channels for block in column] for column in model.nested]
    assert grown == [[16, 32, 64, 128], [24, 48, 96], [32, 64], [40]]


def test_the_decoder_of_swin_sees_every_stage() -> None:
    decoder = SwinDecoder([4, 8, 16]).eval()
    stages = [torch.zeros(1, width, side, side) for width, side in ((4, 8), (8, 4), (16, 2))]
    with torch.inference_mode():
        plain = decoder(stages)
        assert plain.shape == (1, 1, 8, 8)
        for place in range(3):
            changed = [one + (place == number) for number, one in enumerate(stages)]
            assert not torch.equal(decoder(changed), plain)


# --- what goes in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unet_dw_8", "swin_unet_small_64"])
def test_gray_images_may_have_one_channel_or_three(name: str) -> None:
    model = build_network(name, 2, "none", 0).eval()
    with torch.inference_mode():
        found = [model(images)["map"] for images in (gray(64), gray(64)[:, :1])]
    assert torch.equal(*found)


def test_swin_takes_other_sizes_than_its_own() -> None:
    model = small_swin(64).eval()
    with torch.inference_mode():
        assert model(gray(96))["map"].shape == (2, 1, 96, 96)


@pytest.mark.parametrize(("name", "size", "multiple"), [("unet_dw_8", 72, 16), ("swin_unet_small_64", 80, 32)])
def test_a_size_that_does_not_fit_is_refused(name: str, size: int, multiple: int) -> None:
    model = build_network(name, 2, "none", 0)
    with pytest.raises(ModelError, match=f"{size} x {size}.*multiples of {multiple}"):
        model(gray(size))


def test_pixels_are_not_standardized() -> None:
    assert all((NETWORKS[name].mean, NETWORKS[name].std) == ((0.0,) * 3, (1.0,) * 3) for name in PARAMETERS)


# --- where they start, and what comes out -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unet_dw_8", "unet_dw_aspp_8", "swin_unet_small_64"])
def test_a_network_is_drawn_from_the_seed(name: str) -> None:
    first, again, other = (build_network(name, 2, "none", seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    different = [key for key in first if key.endswith("weight") and not torch.equal(first[key], other[key])]
    assert {"last.weight"} <= set(different) or {"decoder.last.1.weight"} <= set(different)


def test_a_pretrained_encoder_is_taken_and_the_decoder_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for timm's weights: what `swin_encoder` returns when asked for pretrained ones."""
    asked = []

    def pretrained_encoder(size: int, **how: bool) -> nn.Module:
        asked.append((size, how))
        encoder = swin_encoder(size)
        for one in encoder.parameters():
            nn.init.constant_(one, 0.25)
        return encoder

    monkeypatch.setattr(networks, "swin_encoder", pretrained_encoder)
    state = networks._swin_of_unet(128)
    assert asked == [(128, {"pretrained": True})]
    first, other = (build_network("swin_unet_128", 2, "imagenet", seed).state_dict() for seed in (1, 2))
    floats = [key for key in state if state[key].is_floating_point()]
    assert floats
    assert all(torch.equal(first[key], state[key]) and torch.equal(other[key], state[key]) for key in floats)
    assert (first["encoder.patch_embed.proj.weight"] == 0.25).all()
    assert not torch.equal(first["decoder.last.1.weight"], other["decoder.last.1.weight"])


def test_weights_of_another_width_are_refused(tmp_path) -> None:
    torch.save(unet_dw(16).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"unet_dw_8 weights .* other shape"):
        build_network("unet_dw_8", 2, tmp_path / "w.pth", 0)


def test_its_heatmap_is_its_own_mask() -> None:
    model, images = build_network("unet_dw_8", 2, "none", 0).eval(), gray(32)
    found = compute_heatmaps(model, images, own_map(find_network("unet_dw_8")))
    with torch.inference_mode():
        expected = model(images)["map"][:, 0].sigmoid()
    assert found.shape == (2, 32, 32)
    torch.testing.assert_close(torch.from_numpy(found), expected)


@pytest.mark.parametrize("build", [unet_dw, unet_dw_aspp])
def test_a_network_learns_a_bright_square(build: Callable[[int], nn.Module]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(8).train()
    images = 0.2 * gray(32, count=4).clone()
    masks = torch.zeros(4, 1, 32, 32)
    for place, (top, left) in enumerate(((4, 4), (4, 16), (16, 4), (16, 16))):
        masks[place, :, top : top + 10, left : left + 10] = 1
    images = images + 0.6 * masks
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = F.binary_cross_entropy_with_logits(model(images)["map"], masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = model(images)["map"] >= 0
    assert 2 * (found & (masks > 0)).sum() / (found.sum() + masks.sum()) > 0.9
    assert all(one.grad is not None for one in model.parameters())
