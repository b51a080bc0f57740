"""A network that gives a map: its shapes, its start, its loss, and its heatmap."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tbkd_utils.errors import ModelError, UsageError
from tbkd_utils.localization.heatmaps import compute_heatmaps, flipped, multi_scale, own_map
from tbkd_utils.models.decoders import Pyramid
from tbkd_utils.models.losses import build_loss
from tbkd_utils.models.networks import NETWORKS, build_network, early_layers, find_network

NAME = "efficientnet_lite0_fpn"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_network(NAME, 2, "imagenet", 42).eval()


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (72, 100)])
def test_it_gives_logits_and_a_map_at_an_eighth_of_the_size(model: nn.Module, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        found = model(torch.zeros(2, 3, *size))
    assert found["logits"].shape == (2, 2)
    assert found["map"].shape == (2, 1, math.ceil(size[0] / 8), math.ceil(size[1] / 8))


def test_the_body_is_imagenets_and_its_logits_are_those_of_the_plain_network(model: nn.Module) -> None:
    plain = build_network("efficientnet_lite0", 2, "imagenet", 42).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(images)["logits"], plain(images))


def test_the_seed_draws_the_head_and_the_decoder_and_nothing_else() -> None:
    first, again, other = (build_network(NAME, 2, "imagenet", seed).state_dict() for seed in (42, 42, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    differ = {key.rpartition(".")[0] for key in first if not torch.equal(first[key], other[key])}
    assert "body.classifier" in differ
    assert {name.split(".")[0] for name in differ - {"body.classifier"}} == {"decoder"}


def test_at_its_start_the_finding_is_rare_everywhere(model: nn.Module) -> None:
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 64))["map"].sigmoid().mean() < 0.3


def test_the_pyramid_adds_enlarged_coarse_features_to_fine_ones() -> None:
    pyramid = Pyramid([1, 1], channels=1).eval()
    for module in pyramid.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            module.weight.data[..., module.weight.shape[2] // 2, module.weight.shape[3] // 2] = 1
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    fine, coarse = torch.rand(1, 1, 4, 6), torch.full((1, 1, 2, 3), 2.0)
    with torch.inference_mode():
        torch.testing.assert_close(pyramid([fine, coarse]), fine + 2, rtol=1e-4, atol=1e-4)


def test_its_first_stages_are_those_of_the_body() -> None:
    plain = early_layers("efficientnet_lite0", 4)
    assert early_layers(NAME, 4) == tuple(f"body.{layer}" for layer in plain)


# --- its loss ---------------------------------------------------------------------------------------------------------


def batch_of(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"targets": torch.tensor([1]), "masks": mask[None].to(torch.uint8)}


def test_the_loss_by_hand() -> None:
    """Logits of 0: ln 2 for the label, and ln 2 for every pixel of the map, whatever the mask."""
    outputs = {"logits": torch.zeros(1, 2), "map": torch.zeros(1, 1, 2, 2)}
    terms = build_loss("map", {"label_weight": 0.5})(outputs, batch_of(torch.ones(16, 16)), None)
    assert terms["map"].item() == pytest.approx(math.log(2))
    assert terms["label"].item() == pytest.approx(math.log(2))
    assert terms["loss"].item() == pytest.approx(1.5 * math.log(2))


def test_a_pixel_of_the_map_learns_the_share_that_is_covered() -> None:
    mask = torch.zeros(16, 16)
    mask[:8, :4] = 1  # half of the first of four pixels
    found = torch.zeros(1, 1, 2, 2, requires_grad=True)
    loss = build_loss("map", {"label_weight": 0.0})
    loss({"logits": torch.zeros(1, 2), "map": found}, batch_of(mask), None)["loss"].backward()
    assert found.grad is not None
    torch.testing.assert_close(found.grad[0, 0], torch.tensor([[0.0, 0.5], [0.5, 0.5]]) / 4)


def test_what_the_loss_cannot_do_without() -> None:
    loss = build_loss("map", {"label_weight": 1.0})
    with pytest.raises(UsageError, match="efficientnet_lite0_fpn"):
        loss(torch.zeros(1, 2), batch_of(torch.ones(8, 8)), None)
    with pytest.raises(UsageError, match="masks"):
        loss({"logits": torch.zeros(1, 2), "map": torch.zeros(1, 1, 1, 1)}, {"targets": torch.tensor([1])}, None)
    with pytest.raises(UsageError, match="label_weight"):
        build_loss("map", {"label_weight": -1.0})


# --- its heatmap ------------------------------------------------------------------------------------------------------


def test_its_heatmap_is_its_own_map_which_can_be_mirrored_and_scaled(model: nn.Module) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    own = own_map(find_network(NAME))
    found = compute_heatmaps(model, images, own)
    with torch.inference_mode():
        np.testing.assert_allclose(found, model(images)["map"][:, 0].sigmoid().numpy(), rtol=1e-6)
    mirrored = compute_heatmaps(model, images.flip(3), own)[:, :, ::-1]
    np.testing.assert_allclose(compute_heatmaps(model, images, flipped(own)), (found + mirrored) / 2, rtol=1e-5)
    assert compute_heatmaps(model, images, multi_scale(own, (64, 80))).shape == (2, 10, 10)


def test_a_network_without_a_map_is_refused() -> None:
    with pytest.raises(ModelError, match="no map of its own"):
        own_map(NETWORKS["resnet18"])
