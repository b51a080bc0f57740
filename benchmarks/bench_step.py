"""The training step: distillation against its parts, live input against ready tensors, and the precisions."""

import itertools
import tempfile

import torch
from harness import Row, in_turns, ratio, report
from torch import nn

from tbkd_utils.data.loaders import training_loader
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.models.devices import fastest_precision, probe_precision
from tbkd_utils.models.module import Classifier
from tbkd_utils.models.networks import build_classifier

BATCH = 16
NETWORKS = ("efficientnet_lite0", "resnet50")


class Step:
    """One optimiser step of a teacher or a student, on batches as the loader gives them."""

    def __init__(self, recipe: Recipe, teacher: nn.Module | None) -> None:
        model = build_classifier(recipe.backbone, "none", 0).train()
        self.module = Classifier(recipe, model, teacher)
        self.adam = self.module.configure_optimizers()
        for network in self.module._teacher:
            network.eval()

    def __call__(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.adam.zero_grad()
        loss, _ = self.module._loss(self.module.on_after_batch_transfer(batch, 0))
        loss.backward()
        self.adam.step()


def distillation(name: str) -> Row:
    recipe = Recipe.named("laptop", backbone=name, weights="none", batch_size=BATCH)
    batch = torch.randint(0, 256, (BATCH, 224, 224), dtype=torch.uint8), torch.arange(BATCH) % 2
    teacher = build_classifier(name, "none", 1).eval()
    plain, distilled = Step(recipe, None), Step(recipe, teacher)
    images = distilled.module.on_after_batch_transfer(batch, 0)[0]

    def parts() -> None:
        plain(batch)
        with torch.inference_mode():
            teacher(images)

    seconds = in_turns({"whole": lambda: distilled(batch), "parts": parts}, rounds=7)
    share, text = ratio(seconds, "whole", "parts")
    goal = f"distillation step at most 1.05x student step + teacher forward ({name}, batch {BATCH}, 224 px)"
    return Row("step", goal, f"{text}x", share <= 1.05, f"{min(seconds['whole']):.2f} s a step")


def live_input() -> Row:
    counts = {"synthetic_train": (48, 0, 48), "synthetic_val": (2, 0, 2), "synthetic_size": 256}
    overrides = counts | {"monitor": "train", "batch_size": BATCH, "resize": 256, "crop": 224}
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment.open("demo", out=folder, overrides=overrides | {"threads": 0})
        step = Step(experiment.recipe, None)
        loader = training_loader(experiment.train, experiment.recipe, lambda: 0)
        ready, fed = itertools.cycle(list(loader)), itertools.chain.from_iterable(itertools.repeat(loader))
        # Step by step in turns: whole epochs would be so far apart that the neighbours' load decides.
        sides = {"live": lambda: step(next(fed)), "ready": lambda: step(next(ready))}
        share, text = ratio(in_turns(sides, rounds=40, warm_up=3), "live", "ready")
    goal = "a training step with live input at most 1.05x the step on ready tensors (EfficientNet-Lite0, 224 px)"
    return Row("input", goal, f"{text}x", share <= 1.05, "input in the training process itself, no workers")


def precision(name: str) -> Row:
    rows = probe_precision(Recipe.named("laptop", backbone=name, weights="none", batch_size=BATCH), rounds=5)
    found = rows.set_index("precision")["images_per_second"]
    text = ", ".join(f"{key} {value:.1f} images/s" for key, value in found.items())
    return Row("step", f"precision measured, the faster one chosen ({name})", text, None, f"{fastest_precision(rows)}")


def measure() -> list[Row]:
    return [live_input(), *(distillation(name) for name in NETWORKS), *(precision(name) for name in NETWORKS)]


if __name__ == "__main__":
    report(measure())
