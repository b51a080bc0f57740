"""What a training may be told beyond the paper: which stages stay as they are, and a learning rate that falls."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from power_cut import cut_in_second_epoch

from tbkd_utils.errors import ModelError
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import TrainedNetwork, train
from tbkd_utils.models.losses import build_loss
from tbkd_utils.models.module import TrainingModule
from tbkd_utils.models.networks import build_network, early_layers
from tbkd_utils.models.options import TrainingOptions, learning_rate_factor
from tbkd_utils.runs import file_sha256, read_tensors

LITE = "efficientnet_lite0"
SETTINGS = {"frozen_stages": 4, "schedule": "cosine", "epochs": 2}


def small(out: Path) -> Experiment:
    return Experiment.open("smoke", out=out, overrides=SETTINGS)


def outcome(trained: TrainedNetwork) -> dict[str, str]:
    return {name: file_sha256(trained.run.file(name)) for name in ("best.safetensors", "last.safetensors")}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TrainedNetwork:
    return train(small(tmp_path_factory.mktemp("schedules")), "teacher")


def test_frozen_stages_stay_as_pretrained_and_the_rest_moves(teacher: TrainedNetwork) -> None:
    before = build_network(LITE, 2, "imagenet", teacher.recipe.training.seed).state_dict()
    after, frozen = read_tensors(teacher.run.file("last.safetensors")), early_layers(LITE, 4)
    still = {key for key in before if key.startswith(tuple(f"{layer}." for layer in frozen))}
    assert any("running_mean" in key for key in still)
    assert all(torch.equal(before[key], after[key]) for key in still)
    moving = [key for key in before if key not in still and before[key].is_floating_point()]
    assert all(not torch.equal(before[key], after[key]) for key in moving)


def module_of(frozen: int) -> TrainingModule:
    options = TrainingOptions(frozen=early_layers(LITE, frozen))
    return TrainingModule(
        options, build_network(LITE, 2, "none", 0), build_loss("cross_entropy", {"label_smoothing": 0.0}), None
    )


def test_frozen_layers_have_no_gradient_and_stay_in_evaluation_mode() -> None:
    module = module_of(3).train()
    assert module.model.training
    assert not module.model.bn1.training
    assert module.model.blocks[2].training
    module.model(torch.randn(2, 3, 32, 32)).sum().backward()
    held = [name for name, parameter in module.model.named_parameters() if parameter.grad is None]
    assert held
    assert all(name.startswith(("conv_stem", "bn1", "blocks.0", "blocks.1")) for name in held)
    (group,) = module.configure_optimizers().param_groups
    assert len(group["params"]) == len(list(module.parameters())) - len(held)
    module.model.train()
    module.on_train_epoch_start()
    assert not module.model.bn1.training


def test_without_frozen_stages_everything_trains() -> None:
    module = module_of(0).train()
    assert all(part.training for part in module.model.modules())
    (group,) = module.configure_optimizers().param_groups
    assert len(group["params"]) == len(list(module.parameters()))


def test_too_many_stages_are_refused_before_a_teacher_is_trained(tmp_path: Path) -> None:
    experiment = Experiment.open("smoke", out=tmp_path, overrides={"frozen_stages": 99})
    with pytest.raises(ModelError, match="has 8 stages that can be frozen, not 99"):
        train(experiment, "student")
    assert not list(experiment.runs.glob("teacher-*/*"))


def test_an_interrupted_training_resumes_to_the_same_bits(
    teacher: TrainedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_in_second_epoch(monkeypatch, lambda: train(small(tmp_path), "teacher"))
    assert outcome(train(small(tmp_path), "teacher")) == outcome(teacher)


def test_the_learning_rate_rises_and_then_falls_along_a_cosine_to_zero() -> None:
    factors = [learning_rate_factor(step, 100) for step in range(100)]
    assert factors[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert learning_rate_factor(52, 99) == pytest.approx(0.5, abs=0.02)
    assert all(later < earlier for earlier, later in pairwise(factors[5:]))
    assert 0 < factors[-1] < 0.001
    assert learning_rate_factor(100, 100) == pytest.approx(0)
    assert [learning_rate_factor(step, 2) for step in range(2)] == pytest.approx([1, 0.5])
    assert learning_rate_factor(0, 1) == 1


def test_a_training_takes_the_scheduled_learning_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, rates = TrainingModule.training_step, []

    def watched(self: TrainingModule, batch: object, index: int) -> torch.Tensor:
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", watched)
    training = train(small(tmp_path), "teacher").recipe.training
    factors = [learning_rate_factor(step, len(rates)) for step in range(len(rates))]
    assert len(rates) >= 2
    assert rates == pytest.approx([training.learning_rate * factor for factor in factors])
