"""The closed form of Grad-CAM: found where the graph proves it, equal to captum there, and nowhere else."""

import shutil

import numpy as np
import pytest
import torch
import torch._inductor.config
import torch._inductor.utils
import torch.nn.functional as F
import torchvision
from torch import nn

from tbkd_utils.localization.closed_form import pooled_head
from tbkd_utils.localization.compiled import CompileError
from tbkd_utils.localization.gradcam import HeatmapError, class_activation_maps
from tbkd_utils.models.networks import build_classifier, last_stage

POOLED = {
    "resnet18": "layer4",
    "resnet50": "layer4",
    "mobilenet_v2": "features",
    "densenet121": "features",
    "efficientnet_b0": "features",
    "shufflenet_v2_x0_5": "conv5",
    "regnet_y_400mf": "trunk_output",
}
OTHERS = {
    "mobilenet_v3_small": "features",  # two linear layers
    "vgg11": "features",  # pools to 7x7
    "convnext_tiny": "features",  # a norm after the pooling
    "squeezenet1_1": "features",  # convolves before it pools
}


def named(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchvision.models.get_model(name, num_classes=3)


def pictures(n: int = 3, side: int = 64) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-5 of the largest value: what float32 leaves of two orders of summation."""
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("name", "layer"), POOLED.items())
def test_the_closed_form_equals_captum(name: str, layer: str) -> None:
    model = named(name).train()
    assert pooled_head(model, model.get_submodule(layer)) is not None
    both = [
        class_activation_maps(model, pictures(), 2, layer=layer, relu=False, method=method)
        for method in ("auto", "captum")
    ]
    close(*both)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_of_the_recipes_network_too(layout: torch.memory_format) -> None:
    model = build_classifier("efficientnet_lite0", "imagenet", 0).to(memory_format=layout)
    assert pooled_head(model, last_stage(model)) is not None
    images = pictures(4, 96).contiguous(memory_format=layout)
    close(*(class_activation_maps(model, images, method=method) for method in ("auto", "captum")))


@pytest.mark.parametrize(("name", "layer"), OTHERS.items())
def test_another_head_is_left_to_captum(name: str, layer: str) -> None:
    model = named(name).eval()
    assert pooled_head(model, model.get_submodule(layer)) is None


@pytest.mark.parametrize("layer", ["layer3", "layer4.1.conv2", "layer4.1.bn2", "conv1"])
def test_a_layer_further_back_is_left_to_captum(layer: str) -> None:
    model = named("resnet18").eval()
    assert pooled_head(model, model.get_submodule(layer)) is None


def test_the_last_block_is_as_good_as_the_last_stage() -> None:
    model = named("resnet18")
    assert pooled_head(model, model.layer4[1]) is not None
    close(*(class_activation_maps(model, pictures(), layer="layer4.1", method=method) for method in ("auto", "captum")))


class Head(nn.Module):
    """A convolution, then what `finish` makes of it."""

    def __init__(self, finish) -> None:
        super().__init__()
        self.conv, self.fc, self.fc2 = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), nn.Linear(2, 2)
        self.norm, self.finish = nn.BatchNorm1d(4), finish

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.finish(self, self.conv(images))


@pytest.mark.parametrize(
    "finish",
    [
        lambda m, x: m.fc(x.amax(dim=(2, 3))),
        lambda m, x: m.fc(x.mean(dim=(2, 3))).softmax(dim=1),
        lambda m, x: m.fc(x.mean(dim=(2, 3))) * 2,
        lambda m, x: m.fc2(m.fc(x.mean(dim=(2, 3)))),
        lambda m, x: m.fc(m.norm(x.mean(dim=(2, 3)))),
        lambda m, x: m.fc(x.mean(dim=(2, 3))) + m.fc(x.amax(dim=(2, 3))),
        lambda m, x: m.fc(F.gelu(x).mean(dim=(2, 3))),
        lambda m, x: m.fc(x.mean(dim=(2, 3)).relu()),
        lambda m, x: m.fc(F.relu(F.relu(x).mean(dim=(2, 3)))),
        lambda m, x: m.fc(F.adaptive_avg_pool2d(x, 2).flatten(1)[:, :4]),
        lambda m, x: m.fc(F.dropout(x.mean(dim=(2, 3)))),
        lambda m, x: m.fc(m.conv(x[:, :3]).mean(dim=(2, 3)) + x.mean(dim=(2, 3))),
        lambda m, x: m.fc(x.mean(dim=(2, 3))) if x.sum() > 0 else m.fc(x.amax(dim=(2, 3))),
        lambda m, x: {"logits": m.fc(x.mean(dim=(2, 3)))},
        lambda m, x: m.fc(x.mean(dim=(2, 3), keepdim=True).flatten(1)),
    ],
)
def test_anything_but_pooling_and_one_linear_layer_is_refused(finish) -> None:
    model = Head(finish).eval()
    assert pooled_head(model, model.conv) is None


@pytest.mark.parametrize(
    "finish",
    [
        lambda m, x: m.fc(x.mean(dim=(2, 3))),
        lambda m, x: m.fc(x.mean((-2, -1))),
        lambda m, x: m.fc(torch.flatten(F.adaptive_avg_pool2d(F.relu(x), (1, 1)), 1)),
        lambda m, x: m.fc(F.dropout(F.relu(x, inplace=True).mean([2, 3]), 0.5, training=False)),
    ],
)
def test_the_ways_to_write_it_are_known(finish) -> None:
    model = Head(finish).eval()
    assert pooled_head(model, model.conv) is not None
    close(
        *(class_activation_maps(model, pictures(), layer="conv", relu=False, method=way) for way in ("auto", "captum"))
    )


def test_half_the_precision_is_the_same_map_to_its_digits() -> None:
    model = build_classifier("efficientnet_lite0", "imagenet", 0)
    plain = class_activation_maps(model, pictures(4, 96), relu=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = class_activation_maps(model, pictures(4, 96), relu=False)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - plain).max() < 0.1 * np.abs(plain).max()


def test_batches_one_at_a_time_are_the_same_maps() -> None:
    model, images = named("resnet18"), pictures(5)
    whole = class_activation_maps(model, images, batch_size=2)
    np.testing.assert_array_equal(class_activation_maps(model, iter(images.split(2))), whole)
    with pytest.raises(HeatmapError, match="at least one batch"):
        class_activation_maps(model, [])


@pytest.mark.slow
def test_compiled_it_is_the_same_to_rounding_whatever_the_last_batch() -> None:
    model, images = named("resnet18"), pictures(5)
    plain = class_activation_maps(model, images, 1, relu=False, batch_size=2)
    if shutil.which("g++") is None:
        with pytest.raises(CompileError, match="C\\+\\+ compiler"):
            class_activation_maps(model, images, 1, relu=False, batch_size=2, compiled=True)
        return
    close(class_activation_maps(model, images, 1, relu=False, batch_size=2, compiled=True), plain)


@pytest.mark.slow
def test_without_a_compiler_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    with torch._inductor.utils.fresh_inductor_cache(), pytest.raises(CompileError, match="cam_compile"):
        class_activation_maps(named("resnet18"), pictures(2), compiled=True)
