"""A network of four maps and one linear layer, in run folders like those of a training: seconds become milliseconds."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import LOCATING, TrainedNetwork, locating
from tbkd_utils.models.networks import NETWORKS, Network
from tbkd_utils.runs import write_json, write_tensors

TINY = {"network": "tiny", "weights": "none", "head": "linear"}
ROLE = "classifier"


class Tiny(nn.Module):
    """A convolution whose maps are looked at, pooled, and a linear layer."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.ReLU())
        self.fc = nn.Linear(4, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.maps(images).mean(dim=(2, 3)))


@contextmanager
def declared() -> Iterator[None]:
    """Makes the network known, as `tiny` with the closed form of Grad-CAM and as `tiny_captum` without it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, closed in (("tiny", True), ("tiny_captum", False)):
            network = Network(Tiny, "fc", "maps", pooled_linear=closed, mean=(0.0,) * 3, std=(1.0,) * 3)
            patch.setitem(NETWORKS, name, network)
        yield


def brightness(sign: float = 1.0) -> dict[str, Tensor]:
    """Weights under which the map of class 1 is the brightness itself, averaged over 3x3 pixels."""
    state = {name: torch.zeros_like(value) for name, value in Tiny(2).state_dict().items()}
    state["maps.0.weight"][0] = 1 / 27
    state["fc.weight"][:, 0] = torch.tensor([-sign, sign])
    return state


def chance(experiment: Experiment, seed: int) -> dict[str, Tensor]:
    """Weights by chance, scaled so that half of the test set is called positive."""
    torch.manual_seed(seed)
    model = Tiny(2)
    with torch.no_grad():
        pixels = torch.from_numpy(experiment.test.pixels[:]).float()[:, None].expand(-1, 3, -1, -1) / 255
        logits = model(pixels)
        apart = logits[:, 1] - logits[:, 0]
        model.fc.weight *= 2 / apart.std()
        model.fc.bias *= 2 / apart.std()
        model.fc.bias[1] -= (apart * 2 / apart.std()).median()
    return model.state_dict()


def placed(experiment: Experiment, state: dict[str, Tensor]) -> TrainedNetwork:
    """Puts weights where a training would have left them."""
    run = experiment.run_at(ROLE, experiment.training_settings(ROLE))
    with run.making() as needed:
        if needed:
            for name in ("best", "last"):
                write_tensors(run.file(f"{name}.safetensors"), state)
            write_json(run.file(LOCATING), locating(experiment))
    return TrainedNetwork(ROLE, experiment.recipe, run)
