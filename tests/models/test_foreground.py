"""The mask head and its losses, against the known answers of their definition."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from tbkd_utils.errors import ModelError, UsageError
from tbkd_utils.localization.heatmaps import own_map
from tbkd_utils.models.foreground import (
    FORMS,
    ForegroundNetwork,
    Lite0Body,
    MaskOptions,
    ResNet50Body,
    VSSMBody,
    foreground_network,
    gaussian,
    minmax,
    of_label,
    of_top,
    separated,
    student_t,
)
from tbkd_utils.models.losses import CrossEntropy, ForegroundControl
from tbkd_utils.models.networks import NETWORKS, build_network
from tbkd_utils.models.vssm import Variant

RAMP = torch.tensor([0, 0.25, 0.5, 0.75, 1.0]).reshape(1, 1, 1, 5)


def parameters(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


class TinyBody(nn.Module):
    """Two convolutions and dropout: early features (b, 4, h, w), late ones half as large."""

    channels, late_channels, pooling = 4, 6, 2

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.drop = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 2, 2), nn.Dropout(0.5)

    def early(self, images: torch.Tensor) -> torch.Tensor:
        return self.one(images)

    def normed(self, features: torch.Tensor) -> torch.Tensor:
        return features

    def late(self, features: torch.Tensor) -> torch.Tensor:
        return self.drop(self.two(features))


def tiny(**options) -> ForegroundNetwork:
    torch.manual_seed(0)
    return ForegroundNetwork(TinyBody(), 3, 8, MaskOptions(**options))


# --- what a mask is made of -------------------------------------------------------------------------------------------


def test_students_t_falls_from_the_cold_to_the_hot() -> None:
    at = student_t(torch.tensor([0.0, 1.0]))
    assert at.tolist() == pytest.approx([0.3796067, 0.2196798], abs=1e-7)
    assert minmax(student_t(RAMP)).flatten().tolist() == pytest.approx([1, 0.913169, 0.676801, 0.350275, 0], abs=1e-6)


def test_the_gaussian_lifts_the_middle() -> None:
    assert minmax(gaussian(RAMP)).flatten().tolist() == pytest.approx([0, 0.670821, 1, 0.670821, 0], abs=1e-4)
    square = torch.tensor([0, 1 / 3, 2 / 3, 1]).reshape(1, 1, 2, 2)
    assert minmax(gaussian(square)).flatten().tolist() == pytest.approx([0, 1, 1, 0], abs=1e-6)


def test_the_gaussian_of_a_batch_depends_on_its_company_and_of_an_image_does_not() -> None:
    both = torch.tensor([[0, 1 / 3, 2 / 3, 1], [0, 0, 0, 1]]).reshape(2, 1, 2, 2)
    assert minmax(gaussian(both))[0].flatten().tolist() == pytest.approx([0.530659, 1, 0.699518, 0], abs=1e-4)
    assert torch.allclose(gaussian(both, "image")[:1], gaussian(both[:1]))
    assert torch.isfinite(gaussian(torch.zeros(2, 1, 3, 3))).all()


def test_the_branches_are_added_and_what_is_above_one_half_is_stretched() -> None:
    added = torch.tensor([[0.9, 0.5, 0.3, 0.1], [0.2, 0.6, 0.8, 0.4], [0.1, 0.2, 0.3, 0.4]]).sum(dim=0)
    mask = minmax(added.reshape(1, 1, 2, 2))
    assert mask.flatten().tolist() == pytest.approx([0.6, 0.8, 1, 0], abs=1e-6)
    assert separated(mask).flatten().tolist() == pytest.approx([0.2, 0.6, 1, 0], abs=1e-6)
    assert mask.mean().item() == pytest.approx(0.6, abs=1e-6)


def test_maps_of_the_label_and_of_the_highest_scores() -> None:
    maps = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert of_label(maps, torch.tensor([4])).item() == 4
    assert of_label(maps, torch.tensor([[0, 1, 0, 0, 0, 1]])).item() == 3
    assert of_label(maps, torch.zeros(1, 6, dtype=torch.int64)).item() == 0
    assert of_top(maps, torch.tensor([[9.0, 8, 7, 6, 5, 4]])).item() == 1.5  # the first four


# --- the network ------------------------------------------------------------------------------------------------------


def test_parameters_are_those_of_the_source() -> None:
    with torch.device("meta"):
        resnet = ForegroundNetwork(ResNet50Body(), 8, options=MaskOptions(branches="abcd"))
    assert parameters(resnet) == 52_124_776
    assert parameters(resnet.head) == 28_321_800
    assert parameters(resnet.mask) == 4 * 73_736


def test_parameters_of_vmambas_form_are_those_of_the_source() -> None:
    with torch.device("meta"):
        network = foreground_network("vssm_tiny_mask", 8)
    assert parameters(network) == 48_407_136
    assert parameters(network.body) == 31_715_904
    assert parameters(network.head) == 16_525_320
    assert parameters(network.mask) == 3 * 55_304


def test_every_form_is_a_network_by_name_that_takes_its_settings() -> None:
    for form in FORMS:
        assert NETWORKS[form].map == "map"
    start = (
        "efficientnet_lite0_mask",
        3,
        "imagenet",
        5,
        "linear",
        {"mask_branches": "ad", "mask_width": 16, "other": 1},
    )
    network, again = (build_network(*start) for _ in range(2))
    assert list(network.mask.convolutions) == ["a", "d"]
    assert network.head[0].out_channels == 16
    plain = build_network("efficientnet_lite0", 2, "imagenet", 0)
    assert torch.equal(network.body.network.blocks[5][0].conv_pw.weight, plain.blocks[5][0].conv_pw.weight)
    assert all(torch.equal(one, two) for one, two in zip(network.parameters(), again.parameters(), strict=True))
    other = build_network(*start[:3], 6, *start[4:])
    assert not torch.equal(network.head[0].weight, other.head[0].weight)  # the seed draws head and mask
    assert not torch.equal(network.mask.convolutions["a"].weight, other.mask.convolutions["a"].weight)
    images = torch.rand(1, 3, 64, 64)
    maps = own_map(NETWORKS["efficientnet_lite0_mask"])(network.eval(), images)
    with torch.inference_mode():
        masks, scores = (network(images)[name] for name in ("masks", "logits"))
    assert torch.allclose(maps, of_top(masks, scores)[:, 0], atol=1e-5)


def test_a_vssm_gives_a_mask_at_a_32nd_of_the_image() -> None:
    body = VSSMBody(Variant(width=8, depths=(1, 1, 1, 1)))
    network = ForegroundNetwork(body, 3, 8)
    outputs = network(torch.rand(2, 3, 64, 64), torch.tensor([0, 2]))
    assert outputs["masks"].shape == (2, 3, 2, 2)
    ForegroundControl()(outputs, {"targets": torch.tensor([0, 2])}, None)["control"].backward()
    touched = {
        name.split(".")[3] for name, one in network.named_parameters() if "layers" in name and one.grad is not None
    }
    assert touched == {"0", "1", "2"}  # the last stage has no gradient from the control


def test_weights_of_torchvisions_resnet_fit_the_body_in_two_parts(tmp_path: Path) -> None:
    plain = torchvision.models.resnet50()
    torch.save(plain.state_dict(), tmp_path / "weights.pth")
    network = build_network("resnet50_mask", 3, tmp_path / "weights.pth", 0, "linear", {"mask_width": 8})
    assert torch.equal(network.body.layer4[2].conv3.weight, plain.layer4[2].conv3.weight)
    assert torch.equal(network.body.stem[0].weight, plain.conv1.weight)


@pytest.mark.parametrize(("body", "early", "late"), [(ResNet50Body, 8, 4), (Lite0Body, 4, 2)])
def test_grids_of_both_parts(body: type[nn.Module], early: int, late: int) -> None:
    network = ForegroundNetwork(body(), 8, 16).eval()
    with torch.inference_mode():
        outputs = network(torch.zeros(1, 3, 64, 64))
        assert network.body.late(network.body.early(torch.zeros(1, 3, 64, 64))).shape[2:] == (late, late)
    assert outputs["masks"].shape == (1, 8, early, early)
    assert outputs["map"].shape == (1, 1, early, early)
    assert outputs["logits"].shape == outputs["logits2"].shape == (1, 8)


def test_the_controls_gradient_reaches_the_mask_and_spares_late_part_and_head() -> None:
    network = tiny()
    outputs = network(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))
    terms = ForegroundControl()(outputs, {"targets": torch.tensor([0, 1, 2, 0])}, None)
    terms["control"].backward()
    assert all(one.grad is None for one in (*network.head.parameters(), *network.body.two.parameters()))
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in network.mask.parameters())
    assert network.body.one.weight.grad.abs().sum() > 0  # through the features that the mask is made of


def test_the_foreground_is_seen_with_the_same_random_draws() -> None:
    """With a mask of ones the image under it is the image: only other draws of the dropout could differ."""
    network = tiny(foreground_input="raw").train()
    images, targets = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    seen = network.body.early(images)
    before = torch.get_rng_state()
    plain = network.head(network.body.late(seen)).mean(dim=(2, 3))
    after = torch.get_rng_state()
    again = network._frozen_scores(seen, before)
    assert torch.allclose(plain, again)
    assert torch.equal(after, torch.get_rng_state())  # and the generator goes on as if nothing had been drawn
    assert network(images, targets)["foreground_score"].shape == (4,)


def test_running_statistics_do_not_see_the_foreground() -> None:
    network = ForegroundNetwork(Lite0Body(), 3, 8).train()
    counts = [one.clone() for name, one in network.named_buffers() if name.endswith("num_batches_tracked")]
    network(torch.rand(2, 3, 64, 64), torch.tensor([0, 1]))
    later = [one for name, one in network.named_buffers() if name.endswith("num_batches_tracked")]
    assert all(new - old == 1 for old, new in zip(counts, later, strict=True))


def test_one_branch_alone_and_the_rest_as_control() -> None:
    network = tiny(branches="a", control="background")
    outputs = network(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
    assert list(network.mask.convolutions) == ["a"]
    assert "background_score" in outputs
    assert "foreground_score" not in outputs
    assert outputs["masks"].amin().item() == 0
    assert outputs["masks"].amax().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("branches", "said"), [("bd", "expected 'a', then"), ("aa", "none twice"), ("ax", "branch 'x'")]
)
def test_branches_that_do_not_exist_are_refused(branches: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        MaskOptions(branches=branches)


# --- the loss ---------------------------------------------------------------------------------------------------------


def control(score: float, left: float, coverage: float, kind: str = "foreground", **options: float) -> torch.Tensor:
    outputs = {
        "logits": torch.zeros(1, 8), "logits2": torch.zeros(1, 8), "score": torch.tensor([score]),
        f"{kind}_score": torch.tensor([left]), "coverage": torch.tensor([coverage]),
    }  # fmt: skip
    return ForegroundControl(**options)(outputs, {"targets": torch.tensor([0])}, None)["control"]


@pytest.mark.parametrize(("score", "left", "expected"), [(2, 0.5, 0.675), (2, 1.5, 0.3), (0, 0, 1.05), (0, 0.001, 0.3)])
def test_foreground_control_by_hand(score: float, left: float, expected: float) -> None:
    assert control(score, left, 0.25).item() == pytest.approx(expected)


def test_the_forms_of_the_resnet_and_of_bas() -> None:
    assert control(2, 0.5, 0.25, hinge=0.75, factor=1.0).item() == pytest.approx(0.8)
    assert control(2, 0.5, 0.25, "background").item() == pytest.approx(0.55)


@pytest.mark.parametrize(("left", "slope"), [(0.5, -0.75), (1.5, 0.0)])
def test_the_foregrounds_score_is_pulled_up_below_the_hinge_alone(left: float, slope: float) -> None:
    score = torch.tensor([left], requires_grad=True)
    outputs = {
        "logits": torch.zeros(1, 8), "logits2": torch.zeros(1, 8), "score": torch.tensor([2.0]),
        "foreground_score": score, "coverage": torch.tensor([0.25]),
    }  # fmt: skip
    ForegroundControl()(outputs, {"targets": torch.tensor([0])}, None)["loss"].backward()
    assert score.grad.item() == pytest.approx(slope)  # -1.5 / S


def test_a_head_of_zeros_costs_what_the_source_would_pay() -> None:
    outputs = {
        "logits": torch.zeros(2, 8), "logits2": torch.zeros(2, 8), "score": torch.zeros(2),
        "foreground_score": torch.zeros(2), "coverage": torch.full((2,), 0.5),
    }  # fmt: skip
    terms = ForegroundControl()(outputs, {"targets": torch.tensor([0, 5])}, None)
    assert terms["loss"].item() == pytest.approx(1.5 * np.log(8) + 0.75 + 0.6)
    assert terms["loss"].item() == pytest.approx(4.469162, abs=1e-6)


def test_an_image_without_finding_has_no_control() -> None:
    targets = torch.tensor([[0, 0, 0], [0, 1, 1]])
    outputs = {
        "logits": torch.zeros(2, 3), "logits2": torch.zeros(2, 3), "score": torch.tensor([0.0, 2.0]),
        "foreground_score": torch.tensor([0.0, 0.5]), "coverage": torch.tensor([0.0, 0.25]),
    }  # fmt: skip
    terms = ForegroundControl()(outputs, {"targets": targets}, None)
    assert terms["control"].item() == pytest.approx(0.675)
    assert terms["label"].item() == pytest.approx(np.log(2))


def test_a_network_without_mask_head_is_refused() -> None:
    with pytest.raises(UsageError, match="mask head"):
        ForegroundControl()(torch.zeros(1, 2), {"targets": torch.tensor([0])}, None)
    with pytest.raises(UsageError, match="choose a network that classifies"):
        CrossEntropy()(torch.zeros(1, 1, 8, 8), {"targets": torch.tensor([0])}, None)
