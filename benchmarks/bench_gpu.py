"""One GPU: ResNet-50 at 224 pixels in bf16, as images per second and as a share of the measured matrix ceiling.

    python benchmarks/bench_gpu.py [--json]

Teacher step, distillation step, heatmaps and Hessian product at batch 64 and 256, with ready tensors and with live
input (RandAugment on the CPU, by as many loader processes as there are cores less one). Published for one H200, mixed
precision: about 3,080 images/s of ResNet-50 training.
"""

import os
import sys
import tempfile
import time

import torch
from harness import Row, report
from torch import nn

from tbkd_utils.backbones import build_classifier
from tbkd_utils.experiment import Experiment
from tbkd_utils.feeding import training_loader
from tbkd_utils.fitting import Classifier
from tbkd_utils.gradcam import class_activation_maps
from tbkd_utils.hessian_products import reverse_over_forward
from tbkd_utils.recipe import Recipe

FORWARD = 2 * 4.09e9  # operations of ResNet-50's forward pass of one 224-pixel image, a multiply-add counted as two
COST = {"teacher step": 3, "distillation step": 4, "heatmaps": 1, "hessian product": 6}
"""Operations of each, in forward passes: a backward pass costs two; a Hessian product a forward and a backward pass,
each with its tangent."""
SECONDS = 5.0


def per_second(work, images: int) -> float:
    """Images per second of `work` over some seconds, after three calls that are not timed."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        work()
        count += images
        torch.cuda.synchronize()
    return count / (time.perf_counter() - began)


def ceiling(dtype: torch.dtype, side: int = 8192) -> float:
    """Operations per second of a large matrix product."""
    a, b = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in range(2))
    return per_second(lambda: a @ b, 1) * 2 * side**3


class Step:
    """One optimiser step in bf16 autocast on a batch of uint8 images and labels, both on the GPU."""

    def __init__(self, recipe: Recipe, teacher: nn.Module | None) -> None:
        self.module = Classifier(recipe, build_classifier("resnet50", "none", 0), teacher).cuda().train()
        for network in self.module._teacher:
            network.cuda().eval()
        self.adam = self.module.configure_optimizers()

    def __call__(self, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        self.adam.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss, _ = self.module._loss(self.module.on_after_batch_transfer((pixels, labels), 0))
        loss.backward()
        self.adam.step()


def live(step: Step, recipe: Recipe, folder: str) -> float:
    """Images per second of a step that is fed by the training's own loader."""
    counts = {"synthetic_train": (512, 0, 512), "synthetic_val": (1, 0, 1), "synthetic_size": 256, "monitor": "train"}
    workers = max(1, (os.cpu_count() or 2) - 1)
    overrides = counts | {"resize": 256, "crop": 224, "batch_size": recipe.batch_size, "workers": workers}
    experiment = Experiment.open("demo", out=folder, overrides=overrides)
    epoch, done, began = 0, 0, time.perf_counter()
    loader = training_loader(experiment.train, experiment.recipe, lambda: epoch)
    for epoch in range(100):  # the first epoch starts the workers and is not timed
        for pixels, labels in loader:
            step(pixels.cuda(non_blocking=True), labels.cuda(non_blocking=True))
            done += len(labels)
        torch.cuda.synchronize()
        if epoch == 0:
            done, began = 0, time.perf_counter()
        elif time.perf_counter() - began > SECONDS:
            break
    return done / (time.perf_counter() - began)


def measure() -> list[Row]:
    if not torch.cuda.is_available():
        return [Row("GPU", "ResNet-50, 224 px, bf16: steps, heatmaps, Hessian product", "no GPU here", None, "not run")]
    top, full, rows = ceiling(torch.bfloat16), ceiling(torch.float32), []
    name = torch.cuda.get_device_name()
    rows.append(Row("GPU", "matrix ceiling", f"bf16 {top / 1e12:.0f}, fp32 {full / 1e12:.0f} Tflop/s", None, name))
    for batch in (64, 256):
        recipe = Recipe.named("paper", batch_size=batch)
        pixels = torch.randint(0, 256, (batch, 224, 224), dtype=torch.uint8, device="cuda")
        labels = torch.arange(batch, device="cuda") % 2
        teacher = build_classifier("resnet50", "none", 1)
        plain, distilled = Step(recipe, None), Step(recipe, teacher)
        images = plain.module.on_after_batch_transfer((pixels, labels), 0)[0]
        model = plain.module.model

        def maps(model: nn.Module = model, images: torch.Tensor = images) -> None:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                class_activation_maps(model, [images])

        small = images[:64].contiguous()
        pieces = [torch.randn_like(p) for p in model.parameters()]

        def product(model: nn.Module = model, small: torch.Tensor = small, labels: torch.Tensor = labels) -> None:
            target = labels[: len(small)]
            reverse_over_forward(model.eval(), lambda z: nn.functional.cross_entropy(z, target), small, pieces)  # noqa: B023

        found = {
            "teacher step": per_second(lambda: plain(pixels, labels), batch),  # noqa: B023
            "distillation step": per_second(lambda: distilled(pixels, labels), batch),  # noqa: B023
            "heatmaps": per_second(maps, batch),
            "hessian product": per_second(product, len(small)),
        }
        with tempfile.TemporaryDirectory() as folder:
            fed = {"teacher step": live(plain, recipe, folder), "distillation step": live(distilled, recipe, folder)}
        for what, speed in found.items():
            limit = full if what == "hessian product" else top
            share = f"{speed * FORWARD * COST[what] / limit:.0%} of the ceiling"
            note = f"live input: {fed[what]:.0f} images/s" if what in fed else ""
            rows.append(Row("GPU", f"{what}, batch {batch}", f"{speed:.0f} images/s, {share}", None, note))
    return rows


if __name__ == "__main__":
    report(measure())
    sys.exit(0)
