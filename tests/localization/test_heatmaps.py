"""Grad-CAM against its closed form, against a second implementation by hooks, and against captum's interpolation."""

import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution, LayerGradCam
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from tbkd_utils.errors import ModelError, TbkdError
from tbkd_utils.localization.boxes import boxes_from_heatmap, normalize
from tbkd_utils.localization.heatmaps import (
    channel_contributions,
    compute_heatmaps,
    flipped,
    fused,
    grad_cam,
    multi_scale,
    to_nchw,
    upsample,
)
from tbkd_utils.models.networks import NETWORKS, Network, build_network, find_network


class Tiny(nn.Module):
    """A convolution, ReLU, global average pooling and one linear layer: its Grad-CAM has a closed form."""

    def __init__(self, channels=5, classes=2):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(channels, classes)

    def forward(self, images):
        return self.fc(self.act(self.norm(self.conv(images))).mean(dim=(2, 3)))


TINY = Network(lambda outputs: Tiny(classes=outputs), head="fc", features="act", pooled_linear=True)


def declared(model):
    """What the registry, or this file, says of a network."""
    if isinstance(model, Tiny):
        return TINY
    return NETWORKS["resnet18" if hasattr(model, "layer4") else "efficientnet_lite0"]


def class_activation_maps(model, images, target=1, *, layer="last_stage", relu=True, method="auto", batch_size=32):
    cam = grad_cam(declared(model), target, layer=layer, relu=relu, method=method)
    return compute_heatmaps(model, images, cam, batch_size=batch_size)


def heatmaps(model, images, target=1, *, upsampling="bilinear", **options):
    return upsample(class_activation_maps(model, images, target, **options), tuple(images.shape[2:]), upsampling)


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
    model = build_network(request.param, 2, "none" if request.param == "resnet18" else "imagenet", 0)
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
    for chosen in ("last_stage", layer):
        found = class_activation_maps(model, images, target, layer=chosen, relu=relu)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("layer", ["layer2", "layer3.1.bn2", "bn1", "conv1"])
def test_other_layers_equal_the_definition(layer):
    """Also those whose output the next operation overwrites in place."""
    model = build_network("resnet18", 2, "none", 0)
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


def test_an_image_does_not_depend_on_its_neighbors(network):
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
        with pytest.raises(ModelError):
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
    """Pixel centers are what is aligned: half-way values lie at a quarter and at three quarters."""
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
    with pytest.raises(ModelError, match=re.escape(message)):
        function(tiny, images)


@pytest.mark.parametrize("target", [-1, -2, 2, 1000])
def test_a_class_that_does_not_exist(tiny, target):
    with pytest.raises(ModelError, match=f"Class {target} cannot be explained"):
        class_activation_maps(tiny, pictures(), target)


@pytest.mark.parametrize("layer", ["layer9", "conv.weight", "Conv", "act.0"])
def test_a_layer_that_does_not_exist(tiny, layer):
    with pytest.raises(ModelError, match=f"no layer '{layer}'"):
        class_activation_maps(tiny, pictures(), layer=layer)


@pytest.mark.parametrize("layer", ["fc", ""])
def test_a_layer_without_maps(tiny, layer):
    with pytest.raises(ModelError, match=f"layer '{layer}' gives no maps"):
        class_activation_maps(tiny, pictures(), layer=layer)


def test_errors_are_ones_that_the_user_can_mend():
    assert issubclass(ModelError, TbkdError)
    assert issubclass(ModelError, ValueError)


@pytest.mark.parametrize("target", [0, 1])
def test_the_channels_add_up_to_the_map(network, target):
    model, _ = network
    image = pictures(1, 64, 64)
    parts = channel_contributions(model, image, declared(model), target)
    expected = class_activation_maps(model, image, target)[0]
    np.testing.assert_allclose(np.maximum(parts.sum(axis=0), 0), expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_the_channels_by_hand(tiny):
    """Weight over positions, times what the layer puts out; the network keeps its mode and gets no gradient."""
    tiny.train()
    image = pictures(1)
    parts = channel_contributions(tiny, image, TINY)
    assert tiny.training
    assert all(p.grad is None for p in tiny.parameters())
    tiny.eval()
    with torch.no_grad():
        activations = tiny.act(tiny.norm(tiny.conv(image)))[0]
        expected = activations * tiny.fc.weight[1][:, None, None] / activations[0].numel()
    np.testing.assert_allclose(parts, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("shape", "target", "layer"), [((2, 3, 8, 8), 1, "conv"), ((1, 3, 8, 8), 2, "conv"), ((1, 3, 8, 8), 1, "fc")]
)
def test_channels_that_do_not_exist_are_refused(tiny, shape, target, layer):
    with pytest.raises(ModelError):
        channel_contributions(tiny, torch.zeros(shape), TINY, target, layer=layer)
    assert not tiny.act._forward_hooks
    assert not tiny.fc._forward_hooks


# --------------------------------------------------------------------------------------------- every network by its
# name

SIDES = {"vit_b_16": 224, "swin_tiny": 224}  # the others take any size


def close(found, expected):
    """Within 1e-5 of the largest value: what float32 leaves of two orders of summation."""
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.pooled_linear])
def test_the_closed_form_equals_the_gradient_for_every_network_that_declares_it(name):
    model, network = build_network(name, 3, "none", 0), NETWORKS[name]
    images = pictures(2, SIDES.get(name, 64), SIDES.get(name, 64))
    ways = [grad_cam(network, 2, relu=False, method=method) for method in ("auto", "captum")]
    close(*(compute_heatmaps(model, images, way) for way in ways))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_of_the_recipes_network_too(layout):
    model = build_network("efficientnet_lite0", 2, "imagenet", 0).to(memory_format=layout)
    images = pictures(4, 96, 96).contiguous(memory_format=layout)
    close(*(class_activation_maps(model, images, method=method) for method in ("auto", "captum")))


@pytest.mark.slow
def test_tokens_become_a_grid_row_by_row_without_the_class_token():
    network = NETWORKS["vit_b_16"]
    model, images = build_network("vit_b_16", 2, "none", 0).eval(), pictures(1, 224, 224)
    torch.nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero
    found = compute_heatmaps(model, images, grad_cam(network, relu=False))
    assert found.shape == (1, 14, 14)
    seen = {}
    layer = model.get_submodule(network.features)
    hook = layer.register_forward_hook(lambda module, given, output: seen.setdefault("tokens", output))
    logits = model(images.requires_grad_())
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[0, 1], seen["tokens"])  # (1, 197, 768)
    weights = gradient[0, 1:].mean(dim=0)
    expected = (seen["tokens"][0, 1:] @ weights).detach().reshape(14, 14)
    close(found[0], expected.numpy())


def test_a_grid_of_tokens_follows_the_shape_of_the_image():
    network = Network(lambda outputs: nn.Identity(), "", "", layout="tokens", prefix_tokens=1)
    tokens = torch.arange(1 + 2 * 3).float().view(1, 7, 1)  # one class token, then 2 rows of 3
    grid = to_nchw(tokens, network, torch.zeros(1, 3, 32, 48))
    assert grid.tolist() == [[[[1, 2, 3], [4, 5, 6]]]]
    swapped = tokens.clone()
    swapped[:, 0] = 99
    assert torch.equal(to_nchw(swapped, network, torch.zeros(1, 3, 32, 48)), grid)


def test_half_the_precision_is_the_same_map_to_its_digits():
    model = build_network("efficientnet_lite0", 2, "imagenet", 0)
    plain = class_activation_maps(model, pictures(4, 96, 96), relu=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = class_activation_maps(model, pictures(4, 96, 96), relu=False)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - plain).max() < 0.1 * np.abs(plain).max()


def test_batches_one_at_a_time_are_the_same_maps(tiny):
    images = pictures(5)
    whole = class_activation_maps(tiny, images, batch_size=2)
    np.testing.assert_array_equal(class_activation_maps(tiny, iter(images.split(2))), whole)
    with pytest.raises(ModelError, match="at least one batch"):
        class_activation_maps(tiny, [])


# -------------------------------------------------------------------------------------------------- heatmaps that
# compose


def test_a_flipped_heatmap_is_the_mean_of_both_mirror_images(tiny):
    images = pictures(2, 32, 48)
    plain, mirrored = (class_activation_maps(tiny, one) for one in (images, images.flip(3)))
    found = compute_heatmaps(tiny, images, flipped(grad_cam(TINY)))
    np.testing.assert_allclose(found, (plain + mirrored[:, :, ::-1]) / 2, rtol=1e-6)
    again = compute_heatmaps(tiny, images.flip(3), flipped(grad_cam(TINY)))
    np.testing.assert_allclose(again, found[:, :, ::-1], rtol=1e-6)


def test_scales_are_averaged_on_the_finest_grid(tiny):
    images = pictures(2, 32, 32)
    found = compute_heatmaps(tiny, images, multi_scale(flipped(grad_cam(TINY)), (32, 64)))
    assert found.shape == (2, 32, 32)
    small = compute_heatmaps(tiny, images, flipped(grad_cam(TINY)))
    larger = F.interpolate(images, (64, 64), mode="bilinear", antialias=True, align_corners=False)
    large = compute_heatmaps(tiny, larger, flipped(grad_cam(TINY)))
    expected = (F.interpolate(torch.from_numpy(small)[:, None], (32, 32), mode="bilinear")[:, 0].numpy() + large) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    alone = compute_heatmaps(tiny, images, multi_scale(grad_cam(TINY), (32,)))
    np.testing.assert_allclose(alone, class_activation_maps(tiny, images), rtol=1e-6)


def test_fused_heatmaps_are_their_mean(tiny):
    images = pictures(3)
    both = [grad_cam(TINY, 0, relu=False), grad_cam(TINY, 1, relu=False)]
    parts = [compute_heatmaps(tiny, images, one) for one in both]
    np.testing.assert_allclose(compute_heatmaps(tiny, images, fused(both)), np.mean(parts, axis=0), rtol=1e-5)


# ------------------------------------------------------------------------------------------------- behind three layers


def behind_mlp(name: str) -> tuple[nn.Module, Network]:
    """A network with the pneumonia paper's head, its batch norm statistics far from the start."""
    model = build_network(name, 2, "imagenet" if name == "efficientnet_lite0" else "none", 0, "mlp")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # dropout draws
        torch.manual_seed(0)
        for _ in range(3):
            model(pictures(4, 64, 64))
    return model, find_network(name, "mlp")


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_grad_cam_behind_three_layers_equals_captums(name: str, target: int) -> None:
    model, network = behind_mlp(name)
    images = pictures(3, 96, 64)
    found = {relu: compute_heatmaps(model, images, grad_cam(network, target, relu=relu)) for relu in (True, False)}
    assert all(module.training for module in model.modules())
    attribution = LayerGradCam(model.eval(), model.get_submodule(network.features)).attribute(images, target=target)
    expected = attribution.detach().squeeze(1).numpy()
    assert found[False].shape == (3, 3, 2)
    close(found[False], expected)
    np.testing.assert_allclose(found[True], np.maximum(expected, 0), rtol=0, atol=1e-5 * np.abs(expected).max())
    close(found[False], by_hooks(model, images, target, network.features, relu=False))


def test_a_densenets_functional_relu_in_place_does_not_change_the_map() -> None:
    model, network = behind_mlp("densenet121")
    assert network.rectified
    images = pictures(2, 64, 96)
    found = compute_heatmaps(model, images, grad_cam(network, relu=False))
    model.eval()
    features = model.features(images)  # (n, c, 2, 3), some of it negative
    features.retain_grad()
    model.classifier(F.relu(features).mean(dim=(2, 3)))[:, 1].sum().backward()
    weights = features.grad.mean(dim=(2, 3), keepdim=True)
    assert (features < 0).any()
    close(found, (weights * features).sum(dim=1).detach().numpy())


# --------------------------------------------------------------------------------------------------------------- tokens


def test_the_tokens_of_a_vision_transformer_are_its_patches_without_the_class_token() -> None:
    network, images = find_network("vit_b_16", "mlp"), torch.zeros(2, 3, 224, 224)
    tokens = torch.arange(2 * 197 * 768).float().view(2, 197, 768)
    grid = to_nchw(tokens, network, images)
    assert grid.shape == (2, 768, 14, 14)
    for row, column, token in ((0, 0, 1), (0, 13, 14), (1, 0, 15), (13, 13, 196)):
        assert torch.equal(grid[:, :, row, column], tokens[:, token])


def test_the_class_token_changes_nothing_in_the_grid() -> None:
    network, images = NETWORKS["vit_b_16"], torch.zeros(1, 3, 224, 224)
    tokens = torch.randn(1, 197, 768, generator=torch.Generator().manual_seed(0))
    changed, permuted = tokens.clone(), tokens.clone()
    changed[:, 0] = torch.inf
    permuted[:, 0] = tokens[:, 0, torch.arange(767, -1, -1)]
    for other in (changed, permuted):
        assert not torch.equal(other, tokens)
        assert torch.equal(to_nchw(other, network, images), to_nchw(tokens, network, images))


@pytest.mark.slow
def test_the_first_token_after_the_class_token_is_the_top_left_patch() -> None:
    """Of torchvision's own network: another patch changes another token, and no other before attention."""
    model, network = build_network("vit_b_16", 2, "none", 0, "mlp").eval(), find_network("vit_b_16", "mlp")
    seen: list[torch.Tensor] = []
    model.encoder.dropout.register_forward_hook(lambda module, given, output: seen.append(output))
    plain, corner, below = pictures(1, 224, 224).repeat(3, 1, 1, 1)[:, None]
    corner, below = corner.clone(), below.clone()
    corner[:, :, :16, :16] += 1
    below[:, :, 16:32, 208:] += 1
    with torch.inference_mode():
        for image in (plain, corner, below):
            model(image)
    for tokens, place in ((seen[1], (0, 0)), (seen[2], (1, 13))):
        assert not torch.equal(tokens[:, 1:], seen[0][:, 1:])
        differs = (to_nchw(tokens, network, plain) != to_nchw(seen[0], network, plain)).any(dim=1)[0]
        assert differs.nonzero().tolist() == [list(place)]
    maps = compute_heatmaps(model, plain, grad_cam(network))
    assert maps.shape == (1, 14, 14)


# ------------------------------------------------------------------------------------------------- what points nowhere


def nothing_but_a_bias(model: nn.Module) -> nn.Module:
    """Zeroes every parameter, then gives the last layer a bias: the same logits for every image."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        last.bias[:] = torch.tensor([-1.0, 3.0])
    return model


@pytest.mark.parametrize("method", ["auto", "captum"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "densenet121"])
def test_a_network_that_is_zero_but_for_a_bias_points_nowhere(name: str, head: str, method: str) -> None:
    model = nothing_but_a_bias(build_network(name, 2, "none", 0, head))
    images = pictures(2, 64, 64)
    with torch.inference_mode():
        assert model.eval()(images).tolist() == [[-1, 3], [-1, 3]]
    for relu in (True, False):
        found = compute_heatmaps(model, images, grad_cam(find_network(name, head), method=method, relu=relu))
        np.testing.assert_array_equal(found, np.zeros((2, 2, 2)))
    large = upsample(found, (64, 64))
    np.testing.assert_array_equal(normalize(large), np.zeros((2, 64, 64)))
    assert boxes_from_heatmap(large[0], 0.5, 0).shape == (0, 4)


@pytest.mark.parametrize("method", ["minmax", "max"])
@pytest.mark.parametrize("value", [0.0, 0.3, 1e-30, 1e30])
def test_a_constant_map_is_normalized_to_zeros_without_nan(value: float, method: str) -> None:
    """Also beside a map that is not constant."""
    pair = np.stack([np.full((5, 7), value), np.arange(35.0).reshape(5, 7)])
    found = normalize(pair, method=method)
    np.testing.assert_array_equal(found[0], np.zeros((5, 7)))
    assert np.isfinite(found).all()
    assert (found[1].min(), found[1].max()) == (0, 1)
