"""Grad-CAM against its closed form, against a second implementation by hooks, and against captum's interpolation."""

import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from tbkd_utils.errors import TbkdError
from tbkd_utils.localization.boxes import boxes_from_heatmap
from tbkd_utils.localization.gradcam import (
    HeatmapError,
    channel_contributions,
    class_activation_maps,
    heatmaps,
    upsample,
)
from tbkd_utils.models.networks import BackboneError, build_classifier


class Tiny(nn.Module):
    """A convolution, ReLU, global average pooling and one linear layer: its Grad-CAM has a closed form."""

    def __init__(self, channels=5, classes=2):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(channels, classes)

    @property
    def layer4(self):
        return self.act

    def forward(self, images):
        return self.fc(self.act(self.norm(self.conv(images))).mean(dim=(2, 3)))


def seeded(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def pictures(n=5, height=32, width=32, seed=0):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tiny():
    return seeded(Tiny)


@pytest.fixture(scope="module", params=["resnet18", "efficientnet_lite0"])
def network(request):
    """A network as it is used, its batch norm statistics far from the start, and the name of its last stage."""
    model = build_classifier(request.param, "none" if request.param == "resnet18" else "imagenet", 0)
    if request.param == "resnet18":
        with torch.no_grad():
            for _ in range(3):
                model(pictures(4, 64, 64))
    return model, "layer4" if request.param == "resnet18" else "bn2"


def by_hooks(model, images, target, layer, relu=True):
    """Grad-CAM written out: keep the activations and their gradient, weigh the channels, add them up."""
    kept = {}

    def keep(module, inputs, output):
        output.retain_grad()
        kept["activation"] = output
        return output.clone()  # an operation in place that follows must not overwrite what was kept

    training = model.training
    model.eval()
    handle = model.get_submodule(layer).register_forward_hook(keep)
    logits = model(images.clone().requires_grad_())
    handle.remove()
    logits[:, target].sum().backward()
    model.zero_grad()
    model.train(training)
    activation, gradient = kept["activation"], kept["activation"].grad  # (n, c, h, w) both
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # (n, c, 1, 1)
    maps = (weights * activation).sum(dim=1)  # (n, h, w)
    return (maps.relu() if relu else maps).detach().numpy()


# ------------------------------------------------------------------------------------------------------- what it equals


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("target", [0, 1])
def test_closed_form(tiny, target, relu):
    """Pooling and one linear layer: the gradient is w_c / (h * w) everywhere, so CAM = sum_c w_c A_c / (h * w)."""
    images = pictures(4, 20, 28)
    with torch.no_grad():
        activation = tiny.eval().norm(tiny.conv(images)).relu()  # (n, c, 10, 14)
    expected = torch.einsum("c,nchw->nhw", tiny.fc.weight[target].detach(), activation) / (10 * 14)
    found = class_activation_maps(tiny, images, target, relu=relu)
    assert found.shape == (4, 10, 14)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (expected.relu() if relu else expected).numpy(), rtol=1e-5, atol=1e-8)


def test_one_channel_by_hand():
    """One channel that is the image's first, last layer (-2, 3): the map for TB is 3 * image / 4, negatives away."""
    model = Tiny(channels=1)
    model.norm, model.act = nn.Identity(), nn.Identity()
    model.conv = nn.Conv2d(3, 1, 1, bias=False)
    with torch.no_grad():
        model.conv.weight[:] = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
        model.fc.weight[:] = torch.tensor([[-2.0], [3.0]])
    image = torch.zeros(1, 3, 2, 2)
    image[0, 0] = torch.tensor([[4.0, -4.0], [8.0, 0.0]])
    np.testing.assert_allclose(class_activation_maps(model, image, 1), [[[3, 0], [6, 0]]])
    np.testing.assert_allclose(class_activation_maps(model, image, 1, relu=False), [[[3, -3], [6, 0]]])
    np.testing.assert_allclose(class_activation_maps(model, image, 0), [[[0, 2], [0, 0]]])
    np.testing.assert_allclose(class_activation_maps(model, image), class_activation_maps(model, image, 1))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("target", [0, 1])
def test_real_networks_equal_the_definition(network, target, relu):
    model, layer = network
    images = pictures(3, 64, 96)
    expected = by_hooks(model, images, target, layer, relu)
    assert np.ptp(expected) > 1e-4  # a map that says something
    for chosen in (None, "last_stage", layer, model.get_submodule(layer)):
        found = class_activation_maps(model, images, target, layer=chosen, relu=relu)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("layer", ["layer2", "layer3.1.bn2", "bn1", "conv1"])
def test_other_layers_equal_the_definition(layer):
    """Also those whose output the next operation overwrites in place."""
    model = build_classifier("resnet18", "none", 0)
    images = pictures(2, 64, 64)
    expected = by_hooks(model, images, 1, layer, relu=False)
    found = class_activation_maps(model, images, 1, layer=layer, relu=False)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_relu_takes_the_negative_values_away(tiny):
    images = pictures(8)
    signed = class_activation_maps(tiny, images, relu=False)
    assert signed.min() < 0 < signed.max()
    np.testing.assert_array_equal(class_activation_maps(tiny, images), np.maximum(signed, 0))


def test_maps_of_the_two_classes_differ(tiny):
    images = pictures(2)
    assert not np.allclose(class_activation_maps(tiny, images, 0), class_activation_maps(tiny, images, 1))


# ------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 32])
def test_the_same_at_any_batch_size(network, batch_size):
    """Within 1e-4 of the largest value: convolutions of other batch sizes may add up in another order."""
    model, _ = network
    images = pictures(7, 64, 64)
    expected = class_activation_maps(model, images, batch_size=7)
    found = class_activation_maps(model, images, batch_size=batch_size)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * expected.max())


def test_an_image_does_not_depend_on_its_neighbours(network):
    model, _ = network
    images = pictures(4, 64, 64)
    whole = class_activation_maps(model, images)
    turned = class_activation_maps(model, images.flip(0))[::-1]
    np.testing.assert_allclose(turned, whole, rtol=0, atol=1e-4 * whole.max())


def test_the_same_twice(network):
    model, _ = network
    images = pictures(3, 64, 64)
    np.testing.assert_array_equal(class_activation_maps(model, images), class_activation_maps(model, images))


# -------------------------------------------------------------------------------------------- everything left as found


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(mode, fails):
    model = seeded(Tiny).train(mode != "eval")
    if mode == "mixed":
        model.norm.eval()
        model.conv.requires_grad_(False)
    model.fc.weight.grad = torch.full_like(model.fc.weight, 7)
    images = pictures()
    before = {
        "training": [m.training for m in model.modules()],
        "trainable": [p.requires_grad for p in model.parameters()],
        "state": {key: tensor.clone() for key, tensor in model.state_dict().items()},
        "images": images.clone(),
    }
    if fails:
        with pytest.raises(HeatmapError):
            heatmaps(model, images, target=5)
    else:
        heatmaps(model, images)
    assert [m.training for m in model.modules()] == before["training"]
    assert [p.requires_grad for p in model.parameters()] == before["trainable"]
    assert all(torch.equal(tensor, before["state"][key]) for key, tensor in model.state_dict().items())
    assert torch.equal(model.fc.weight.grad, torch.full_like(model.fc.weight, 7))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "fc.weight")
    assert torch.equal(images, before["images"])
    assert not images.requires_grad
    assert images.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


def test_a_model_in_training_mode_is_explained_in_evaluation_mode(tiny):
    """Else batch norm would mix the images of a batch."""
    images = pictures()
    expected = class_activation_maps(tiny.eval(), images)
    np.testing.assert_array_equal(class_activation_maps(tiny.train(), images), expected)
    tiny.eval()


def test_the_global_generator_is_left_as_it_was(network):
    before = torch.random.get_rng_state()
    class_activation_maps(network[0], pictures(2, 64, 64))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_it_works_where_the_caller_needs_no_gradient(tiny, block):
    expected = heatmaps(tiny, pictures())
    with block():
        found = heatmaps(tiny, pictures())  # images made in the block, as when they are loaded there
        assert torch.is_grad_enabled() is False
    np.testing.assert_array_equal(found, expected)


def test_a_frozen_network_has_the_same_maps(tiny):
    expected = class_activation_maps(tiny, pictures())
    frozen = seeded(Tiny).requires_grad_(False)
    np.testing.assert_array_equal(class_activation_maps(frozen, pictures()), expected)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_it_warns_of_nothing(network):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heatmaps(network[0], pictures(2, 64, 64))


# ---------------------------------------------------------------------------------------------------------- upsampling


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [(224, 224), (64, 96), (7, 7), (5, 3)])
def test_upsampling_equals_captums(mode, size):
    maps = np.random.default_rng(0).random((3, 7, 7), dtype=np.float32)
    expected = LayerAttribution.interpolate(torch.from_numpy(maps).unsqueeze(1), size, mode)
    found = upsample(maps, size, mode)
    assert found.shape == (3, *size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.squeeze(1).numpy(), rtol=0, atol=1e-7)  # an ulp: ours stays in range


def test_upsampling_by_hand():
    """Pixel centres are what is aligned: half-way values lie at a quarter and at three quarters."""
    np.testing.assert_allclose(upsample(np.array([[[0.0, 4.0]]]), (1, 4)), [[[0, 1, 3, 4]]])
    np.testing.assert_allclose(upsample(np.array([[[0.0, 4.0]]]), (1, 4), "nearest"), [[[0, 0, 4, 4]]])


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(-(2.0**60), 2.0**60, width=32)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_upsampling_stays_within_the_values_of_each_map(maps, size):
    found = upsample(maps, size)
    for large, small in zip(found, maps, strict=True):
        assert small.min() <= large.min() <= large.max() <= small.max()


@pytest.mark.parametrize("value", [0.25, 1 / 3, 1e-7, -2.1, 0.0])
@pytest.mark.parametrize("side", [1, 3, 7])
def test_a_constant_map_stays_constant_and_gives_no_box(value, side):
    found = upsample(np.full((1, side, side), value), (224, 224))
    np.testing.assert_array_equal(found, np.full((1, 224, 224), value, np.float32))
    assert boxes_from_heatmap(found[0], 0.5, 0).shape == (0, 4)


def test_upsampling_takes_mapped_and_read_only_maps(tmp_path):
    maps = np.random.default_rng(2).random((2, 7, 7), dtype=np.float32)
    np.save(tmp_path / "maps.npy", maps)
    mapped = np.load(tmp_path / "maps.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(upsample(mapped, (20, 20)), upsample(maps, (20, 20)))


def test_upsampling_of_no_map():
    assert upsample(np.zeros((0, 7, 7), np.float32), (20, 30)).shape == (0, 20, 30)


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
def test_heatmaps_are_the_maps_at_the_size_of_the_images(tiny, upsampling):
    images = pictures(3, 32, 48)
    maps = torch.from_numpy(class_activation_maps(tiny, images)).unsqueeze(1)
    expected = F.interpolate(maps, size=(32, 48), mode=upsampling).squeeze(1).numpy()
    found = heatmaps(tiny, images, upsampling=upsampling, batch_size=2)
    assert found.shape == (3, 32, 48)
    assert found.dtype == np.float32
    assert found.min() >= 0
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_heatmaps_pass_their_arguments_on(tiny):
    images = pictures(3)
    maps = class_activation_maps(tiny, images, 0, layer="conv", relu=False)
    np.testing.assert_array_equal(heatmaps(tiny, images, 0, layer="conv", relu=False), upsample(maps, (32, 32)))


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("function", [class_activation_maps, heatmaps])
@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 8, 8), torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, 3), torch.zeros(0, 3, 8, 8),
     torch.zeros(2, 3, 8, 8, dtype=torch.uint8)],
    ids=lambda images: f"{images.dtype}{tuple(images.shape)}",
)  # fmt: skip
def test_images_of_another_shape_or_type(tiny, function, images):
    message = f"float images (n, 3, H, W), n > 0; got {images.dtype} {tuple(images.shape)}"
    with pytest.raises(HeatmapError, match=re.escape(message)):
        function(tiny, images)


@pytest.mark.parametrize("target", [-1, -2, 2, 1000])
def test_a_class_that_does_not_exist(tiny, target):
    with pytest.raises(HeatmapError, match=f"Class {target} cannot be explained"):
        class_activation_maps(tiny, pictures(), target)


@pytest.mark.parametrize("layer", ["layer9", "conv.weight", "Conv", "act.0"])
def test_a_layer_that_does_not_exist(tiny, layer):
    with pytest.raises(HeatmapError, match=f"no layer '{layer}'"):
        class_activation_maps(tiny, pictures(), layer=layer)


def test_a_layer_of_another_network(tiny):
    with pytest.raises(HeatmapError, match="Conv2d is no part of the network"):
        class_activation_maps(tiny, pictures(), layer=seeded(Tiny).conv)


@pytest.mark.parametrize("layer", ["fc", ""])
def test_a_layer_without_maps(tiny, layer):
    with pytest.raises(HeatmapError, match=f"layer '{layer}' gives no maps"):
        class_activation_maps(tiny, pictures(), layer=layer)


def test_a_network_whose_last_stage_is_not_known():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(BackboneError, match="cam_layer"):
        class_activation_maps(model, pictures())
    assert class_activation_maps(model, pictures(), layer="0").shape == (5, 30, 30)


def test_errors_are_ones_that_the_user_can_mend():
    assert issubclass(HeatmapError, TbkdError)
    assert issubclass(HeatmapError, ValueError)


@pytest.mark.parametrize("target", [0, 1])
def test_the_channels_add_up_to_the_map(network, target):
    model, _ = network
    image = pictures(1, 64, 64)
    parts = channel_contributions(model, image, target)
    expected = class_activation_maps(model, image, target)[0]
    np.testing.assert_allclose(np.maximum(parts.sum(axis=0), 0), expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_the_channels_by_hand(tiny):
    """Weight over positions, times what the layer puts out; the network keeps its mode and gets no gradient."""
    tiny.train()
    image = pictures(1)
    parts = channel_contributions(tiny, image)
    assert tiny.training
    assert all(p.grad is None for p in tiny.parameters())
    tiny.eval()
    with torch.no_grad():
        activations = tiny.act(tiny.norm(tiny.conv(image)))[0]
        expected = activations * tiny.fc.weight[1][:, None, None] / activations[0].numel()
    np.testing.assert_allclose(parts, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("shape", "target", "layer"), [((2, 3, 8, 8), 1, None), ((1, 3, 8, 8), 2, None), ((1, 3, 8, 8), 1, "fc")]
)
def test_channels_that_do_not_exist_are_refused(tiny, shape, target, layer):
    with pytest.raises(HeatmapError):
        channel_contributions(tiny, torch.zeros(shape), target, layer=layer)
    assert not tiny.act._forward_hooks
    assert not tiny.fc._forward_hooks
