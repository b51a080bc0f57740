"""The training step: distillation against its parts, live input against ready tensors."""

import itertools
import tempfile
from functools import partial

import torch
from harness import Row, in_turns, ratio, report
from torch import nn

from tbkd_utils.data.loaders import training_loader
from tbkd_utils.data.transforms import rand_augment
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.experiments.system import named_recipe
from tbkd_utils.experiments.trained import training_options
from tbkd_utils.models.devices import kept_memory, restored_determinism
from tbkd_utils.models.losses import build_loss
from tbkd_utils.models.module import TrainingModule
from tbkd_utils.models.networks import NETWORKS, build_network

BATCH = 16
CHECKED = ("efficientnet_lite0", "resnet50")


class Step:
    """One optimizer step of a teacher or a student, on batches as the loader gives them."""

    def __init__(self, recipe: Recipe, teacher: nn.Module | None) -> None:
        model = build_network(recipe.training.network, 2, "none", 0).train()
        loss = build_loss("distillation" if teacher is not None else "cross_entropy", recipe.flat())
        options = training_options(recipe, NETWORKS[recipe.training.network])
        self.module = TrainingModule(options, model, loss, teacher)
        self.adam = self.module.configure_optimizers()
        for network in self.module._teacher:
            network.eval()

    def __call__(self, batch: dict[str, torch.Tensor]) -> None:
        self.adam.zero_grad()
        terms, _ = self.module._terms(self.module.on_after_batch_transfer(batch, 0))
        terms["loss"].backward()
        self.adam.step()


def distillation(name: str) -> Row:
    recipe = named_recipe("laptop", network=name, weights="none", batch_size=BATCH)
    pixels = torch.randint(0, 256, (BATCH, 224, 224), dtype=torch.uint8)
    batch = {"pixels": pixels, "targets": torch.arange(BATCH) % 2}
    teacher = build_network(name, 2, "none", 1).eval()
    plain, distilled = Step(recipe, None), Step(recipe, teacher)
    images = distilled.module.on_after_batch_transfer(batch, 0)["images"]

    def parts() -> None:
        plain(batch)
        with torch.inference_mode():
            teacher(images)

    seconds = in_turns({"whole": lambda: distilled(batch), "parts": parts}, rounds=7)
    share, text = ratio(seconds, "whole", "parts")
    goal = f"distillation step at most 1.05x student step + teacher forward ({name}, batch {BATCH}, 224 px)"
    return Row("step", goal, f"{text}x", share <= 1.05, f"{min(seconds['whole']):.2f} s a step")


def kept() -> Row:
    recipe = named_recipe("laptop", weights="none", batch_size=BATCH)
    batch = {"pixels": torch.randint(0, 256, (BATCH, 224, 224), dtype=torch.uint8), "targets": torch.arange(BATCH) % 2}
    step = Step(recipe, None)

    def ours() -> None:
        with restored_determinism(), kept_memory():
            torch.use_deterministic_algorithms(True)
            for _ in range(4):
                step(batch)

    def plain() -> None:
        torch.use_deterministic_algorithms(True)
        try:
            for _ in range(4):
                step(batch)
        finally:
            torch.use_deterministic_algorithms(False)

    seconds = in_turns({"kept": ours, "plain": plain}, rounds=5)
    share, text = ratio(seconds, "kept", "plain")
    goal = f"a deterministic training step at most 0.8x that of torch's defaults ({recipe.training.network}, 224 px)"
    rate = 4 * BATCH / min(seconds["kept"])
    return Row("step", goal, f"{text}x", share <= 0.8, f"freed memory is kept, none is filled: {rate:.0f} images/s")


def live_input() -> Row:
    counts = {"synthetic_train": (48, 0, 48), "synthetic_val": (2, 0, 2), "synthetic_size": 256}
    overrides = counts | {"early_stopping_on": "train", "batch_size": BATCH, "resize": 256, "crop": 224}
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment.open("demo", out=folder, overrides=overrides | {"threads": 0})
        step = Step(experiment.recipe, None)
        augment = partial(rand_augment, operations=2, magnitude=9)
        loader = training_loader(experiment.train, augment, batch_size=BATCH, seed=0, epoch=lambda: 0)
        ready, fed = itertools.cycle(list(loader)), itertools.chain.from_iterable(itertools.repeat(loader))
        # Step by step in turns: whole epochs would be so far apart that the neighbors' load decides.
        sides = {"live": lambda: step(next(fed)), "ready": lambda: step(next(ready))}
        share, text = ratio(in_turns(sides, rounds=40, warm_up=3), "live", "ready")
    goal = "a training step with live input at most 1.05x the step on ready tensors (EfficientNet-Lite0, 224 px)"
    return Row("input", goal, f"{text}x", share <= 1.05, "input in the training process itself, no workers")


def measure() -> list[Row]:
    return [kept(), live_input(), *(distillation(name) for name in CHECKED)]


if __name__ == "__main__":
    report(measure())
