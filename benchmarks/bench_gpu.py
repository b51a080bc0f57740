"""One GPU: ResNet-50 at 224 pixels in bf16, as images per second and as a share of the measured matrix ceiling.

    python benchmarks/bench_gpu.py [--json] [--profile FILE] [--rehearse]

Teacher step, distillation step, heatmaps and Hessian product at batch 64 and 256, with ready tensors and with live
input (RandAugment on the CPU, by as many loader processes as there are cores less one). The steps run as the recipe
asks (only operations that repeat bit for bit), with any operation, and compiled: so it is measured, not guessed, what
repeatability costs and whether compiling wins. `--profile` writes the slowest operations of a step. `--rehearse` runs
every line in seconds, on a CPU too, for numbers that mean nothing. Published for one H200, mixed precision: about
3,080 images/s of ResNet-50 training.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import Row, report
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tbkd_utils.curvature.products import Graph, reverse_over_forward
from tbkd_utils.data.loaders import training_loader
from tbkd_utils.data.transforms import rand_augment
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.experiments.system import named_recipe
from tbkd_utils.experiments.trained import training_options
from tbkd_utils.localization.heatmaps import compute_heatmaps, grad_cam
from tbkd_utils.models.losses import build_loss
from tbkd_utils.models.module import TrainingModule
from tbkd_utils.models.networks import NETWORKS, build_network

COST = {"teacher step": 3, "distillation step": 4, "heatmaps": 1, "Hessian product": 6}
"""Operations of each, in forward passes: a backward pass costs two; a Hessian product a forward and a backward pass,
each with its tangent."""
WAYS = {"repeatable": (True, False), "any operation": (False, False), "compiled": (False, True)}


@dataclass(frozen=True)
class Scale:
    """How much is run.

    Attributes:
        device: `cuda`, or `cpu` for a rehearsal.
        batches: Radiographs in a step.
        crop: Side of the input, in pixels.
        seconds: Of timing, for each number.
        epoch: Radiographs of an epoch with live input; TBX11K's training set has 6,600.
        matrix: Side of the matrices whose product is the ceiling.
    """

    device: str = "cuda"
    batches: tuple[int, ...] = (64, 256)
    crop: int = 224
    seconds: float = 3.0
    epoch: int = 6600
    matrix: int = 8192

    @property
    def forward(self) -> float:
        """Operations of ResNet-50's forward pass of one image, a multiply-add counted as two."""
        return 2 * 4.09e9 * (self.crop / 224) ** 2


REHEARSAL = Scale("cpu", (2,), 64, 0.01, 8, 64)


def wait(scale: Scale) -> None:
    """Until the device has done all it was asked to."""
    if scale.device == "cuda":
        torch.cuda.synchronize()


def per_second(work: Callable[[], object], images: int, scale: Scale) -> float:
    """Images per second of `work`: the median call of some seconds, after three calls that are not timed."""
    for _ in range(3):
        work()
    wait(scale)
    took, end = [], time.perf_counter() + scale.seconds
    while time.perf_counter() < end or not took:
        began = time.perf_counter()
        work()
        wait(scale)
        took.append(time.perf_counter() - began)
    return images / statistics.median(took)


def ceiling(dtype: torch.dtype, scale: Scale) -> float:
    """Operations per second of a large matrix product, of random numbers."""
    a, b = (torch.randn(scale.matrix, scale.matrix, device=scale.device, dtype=dtype) for _ in range(2))
    return per_second(lambda: a @ b, 1, scale) * 2 * scale.matrix**3


@contextlib.contextmanager
def way(repeatable: bool) -> Iterator[None]:
    """Only operations that repeat bit for bit, or the fastest that cuDNN finds."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(repeatable)
    torch.backends.cudnn.benchmark = not repeatable
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


class Step:
    """One optimizer step in bf16 autocast on a batch of uint8 images and labels, both on the device."""

    def __init__(self, recipe: Recipe, teacher: nn.Module | None, scale: Scale, compiled: bool) -> None:
        loss = build_loss("distillation" if teacher is not None else "cross_entropy", recipe.flat())
        model, options = build_network("resnet50", 2, "none", 0), training_options(recipe, NETWORKS["resnet50"])
        self.module = TrainingModule(options, model, loss, teacher).to(scale.device).train()
        for network in self.module._teacher:
            network.to(scale.device).eval()
        self.adam, self.device = self.module.configure_optimizers(), scale.device
        for network in (self.module.model, *self.module._teacher) if compiled else ():
            network.compile()

    def __call__(self, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        self.adam.zero_grad()
        with torch.autocast(self.device, dtype=torch.bfloat16):
            batch = {"pixels": pixels, "targets": labels}
            terms, _ = self.module._terms(self.module.on_after_batch_transfer(batch, 0))
        terms["loss"].backward()
        self.adam.step()


def live(step: Step, batch: int, scale: Scale, folder: str) -> float:
    """Images per second of a step that is fed by the training's own loader, over whole epochs."""
    counts = {
        "synthetic_train": (64, 0, 64),
        "synthetic_val": (1, 0, 1),
        "synthetic_size": 256,
        "early_stopping_on": "train",
    }
    workers = max(1, (os.cpu_count() or 2) - 1)
    overrides = counts | {"resize": 256, "crop": scale.crop, "batch_size": batch, "workers": workers}
    experiment = Experiment.open("demo", out=folder, overrides=overrides)
    train = experiment.train.subset(np.resize(np.arange(len(experiment.train)), scale.epoch))
    epoch, done, began = 0, 0, 0.0
    augment = partial(rand_augment, operations=2, magnitude=9)
    how = {"batch_size": batch, "seed": 0, "workers": workers}
    loader = training_loader(train, augment, epoch=lambda: epoch, **how)
    for epoch in range(100):  # the first epoch starts the workers and is not timed
        for sample in loader:
            pixels, labels = (sample[key].to(scale.device, non_blocking=True) for key in ("pixels", "targets"))
            step(pixels, labels)
            done += len(labels)
        wait(scale)
        if epoch == 0:
            done, began = 0, time.perf_counter()
        elif time.perf_counter() - began > scale.seconds:
            break
    return done / (time.perf_counter() - began)


def steps(batch: int, scale: Scale, top: float, folder: str, profiled: Path | None) -> list[Row]:
    """Teacher and distillation step in every way, with ready tensors and with live input."""
    rows, recipe = [], named_recipe("paper", batch_size=batch)
    pixels = torch.randint(0, 256, (batch, scale.crop, scale.crop), dtype=torch.uint8, device=scale.device)
    labels = torch.arange(batch, device=scale.device) % 2
    for title, (repeatable, compiled) in WAYS.items():
        for what in ("teacher step", "distillation step"):
            torch._dynamo.reset()
            teacher = build_network("resnet50", 2, "none", 1) if what == "distillation step" else None
            with way(repeatable):
                step = Step(recipe, teacher, scale, compiled)
                speed = per_second(partial(step, pixels, labels), batch, scale)
                fed = live(step, batch, scale, folder)
                if profiled is not None and batch == max(scale.batches):
                    _profile(partial(step, pixels, labels), f"{what}, {title}", profiled)
            share = f"{speed * scale.forward * COST[what] / top:.0%} of the ceiling"
            note = f"with live input {fed:.0f} images/s, {fed / speed:.2f}x"
            rows.append(Row("GPU", f"{what}, batch {batch}, {title}", f"{speed:.0f} images/s, {share}", None, note))
    return rows


def forwards(batch: int, scale: Scale, top: float, full: float) -> list[Row]:
    """Heatmaps beside the bare forward pass, and the Hessian product's two routes."""
    model = build_network("resnet50", 2, "none", 0).to(scale.device).eval().to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, scale.crop, scale.crop, device=scale.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=scale.device) % 2
    pieces = [torch.randn_like(p) for p in model.parameters()]

    def forward() -> None:
        with torch.inference_mode(), torch.autocast(scale.device, dtype=torch.bfloat16):
            model(images)

    def maps() -> None:
        with torch.autocast(scale.device, dtype=torch.bfloat16):
            compute_heatmaps(model, [images], grad_cam(NETWORKS["resnet50"]))

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, labels)

    bare, heat = (per_second(work, batch, scale) for work in (forward, maps))
    note = f"the bare forward pass {bare:.0f}: {heat / bare:.2f}x"
    share = f"{heat * scale.forward * COST['heatmaps'] / top:.0%} of the ceiling"
    rows = [Row("GPU", f"heatmaps, batch {batch}", f"{heat:.0f} images/s, {share}", None, note)]
    routes: dict[str, Callable[[], object]] = {
        "double backward": lambda: Graph(loss(model(images)), list(model.parameters()), batch).product(pieces, False),
        "reverse over forward": lambda: reverse_over_forward(model, loss, images, pieces),
    }
    for route, product in routes.items():
        speed = per_second(product, batch, scale)
        share = f"{speed * scale.forward * COST['Hessian product'] / full:.0%} of the fp32 ceiling"
        rows.append(Row("GPU", f"Hessian product, batch {batch}, {route}", f"{speed:.0f} images/s, {share}", None))
    return rows


def measure(scale: Scale, profiled: Path | None = None) -> list[Row]:
    if scale.device == "cuda" and not torch.cuda.is_available():
        return [Row("GPU", "ResNet-50, 224 px, bf16: steps, heatmaps, Hessian product", "no GPU here", None, "not run")]
    # cuBLAS repeats its bits only with a workspace of fixed size, which it reads at its first call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    top, full = ceiling(torch.bfloat16, scale), ceiling(torch.float32, scale)
    name = torch.cuda.get_device_name() if scale.device == "cuda" else "a rehearsal: the numbers mean nothing"
    rows = [Row("GPU", "matrix ceiling", f"bf16 {top / 1e12:.3g}, fp32 {full / 1e12:.3g} Tflop/s", None, name)]
    for batch in scale.batches:
        with tempfile.TemporaryDirectory() as folder:
            rows += steps(batch, scale, top, folder, profiled)
        rows += forwards(batch, scale, top, full)
    return rows


def _profile(work: Callable[[], object], title: str, path: Path) -> None:
    """Appends the slowest operations of a few calls to a file."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for _ in range(3):
            work()
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=80)
    with path.open("a") as stream:
        stream.write(f"{title}\n{table}\n\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="rows as JSON, for run_all.py")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="append the slowest operations of a step to FILE")
    parser.add_argument("--rehearse", action="store_true", help="run every line in seconds, on a CPU too")
    given = parser.parse_args()
    report(measure(REHEARSAL if given.rehearse else Scale(), given.profile))
