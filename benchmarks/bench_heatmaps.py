"""Heatmaps: the closed form against the bare forward pass, captum and pytorch-grad-cam; then boxes against heatmaps.

Needs `pip install --no-deps grad-cam ttach` (`make bench` does it).
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from captum.attr import LayerGradCam
from harness import Row, in_turns, ratio, report
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from tbkd_utils.experiments.evaluation import THRESHOLDS
from tbkd_utils.localization.heatmaps import compute_heatmaps, grad_cam, upsample
from tbkd_utils.localization.tables import score_rows, threshold_rows
from tbkd_utils.models.networks import NETWORKS, build_network

CHECKED = ("resnet50", "efficientnet_lite0")
BATCH = 16
BATCHES = {"resnet50": 4, "efficientnet_lite0": 12}  # 192 images of the faster one: about a test set
LAST = torch.channels_last
FORMATS = {"fp32": (torch.contiguous_format, False), "fp32 channels_last": (LAST, False), "bf16": (LAST, True)}


def laid_out(name: str, layout: torch.memory_format) -> tuple[nn.Module, torch.Tensor]:
    model = build_network(name, 2, "none", 0).eval().to(memory_format=layout)
    images = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return model, images.contiguous(memory_format=layout)


def against_forward(name: str) -> list[Row]:
    rows = []
    for title, (layout, half) in FORMATS.items():
        model, images = laid_out(name, layout)

        def forward(model: nn.Module = model, images: torch.Tensor = images) -> None:
            with torch.inference_mode():
                for _ in range(BATCHES[name]):
                    model(images)

        maps = functools.partial(compute_heatmaps, model, [images] * BATCHES[name], grad_cam(NETWORKS[name]))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            seconds = in_turns({"forward": forward, "maps": maps}, rounds=7)
        share, text = ratio(seconds, "forward", "maps")
        goal = f"heatmaps at 0.97x the forward pass or better ({name}, {title})"
        rows.append(
            Row(
                "heatmaps",
                goal,
                f"{text}x",
                share >= 0.97,
                f"{BATCHES[name] * BATCH / min(seconds['maps']):.1f} images/s",
            )
        )
    return rows


def against_others(name: str) -> list[Row]:
    model, images = laid_out(name, torch.contiguous_format)
    fast, laid = laid_out(name, LAST)
    layer = model.get_submodule(NETWORKS[name].features)
    explainer, cam = LayerGradCam(model, layer), GradCAM(model=model, target_layers=[layer])
    cam.batch_size = BATCH
    targets = [ClassifierOutputTarget(1)] * BATCH

    def half() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            compute_heatmaps(fast, laid, grad_cam(NETWORKS[name]), batch_size=BATCH)

    sides: dict[str, Callable[[], object]] = {
        "captum loop": lambda: [explainer.attribute(image[None], target=1) for image in images],
        "captum batch": lambda: explainer.attribute(images, target=1),
        "pytorch-grad-cam": lambda: cam(input_tensor=images, targets=targets),
        "fp32": lambda: compute_heatmaps(fast, laid, grad_cam(NETWORKS[name]), batch_size=BATCH),
        "bf16": half,
    }
    seconds = in_turns(sides, rounds=5)
    speeds = ", ".join(f"{side} {BATCH / float(np.median(values)):.1f}" for side, values in seconds.items())
    rows = []
    for rival, factor in (("captum loop", 5), ("pytorch-grad-cam", 10)):
        best = max(("fp32", "bf16"), key=lambda ours: ratio(seconds, rival, ours)[0])
        speed, text = ratio(seconds, rival, best)
        goal = f"at least {factor}x {rival}, fp32, where the CPU has bf16 units ({name})"
        note = f"ours in {best}; images/s: {speeds}"
        rows.append(Row("heatmaps", goal, f"{text}x", speed >= factor, note))
    return rows


def roofline(name: str = "resnet50", operations: float = 2 * 4.09e9, side: int = 2048) -> Row:
    """The forward pass beside a product of two matrices, which is as fast as this processor computes."""
    fast, images = laid_out(name, LAST)
    matrices = {dtype: torch.randn(side, side).to(dtype) for dtype in (torch.float32, torch.bfloat16)}

    def forward(half: bool) -> None:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            fast(images)

    sides: dict[str, Callable[[], object]] = {
        "fp32": lambda: forward(False),
        "bf16": lambda: forward(True),
        "fp32 product": lambda: matrices[torch.float32] @ matrices[torch.float32],
        "bf16 product": lambda: matrices[torch.bfloat16] @ matrices[torch.bfloat16],
    }
    seconds = {side: float(np.median(times)) for side, times in in_turns(sides, rounds=7).items()}
    found = []
    for kind in ("fp32", "bf16"):
        speed, limit = operations * BATCH / seconds[kind], 2 * side**3 / seconds[f"{kind} product"]
        found.append(f"{kind} {speed / 1e9:.0f} of {limit / 1e9:.0f} Gflop/s ({speed / limit:.0%})")
    return Row("heatmaps", f"forward pass beside the processor's matrix product ({name})", ", ".join(found), None)


def boxes(name: str) -> Row:
    """200 images, whose heatmaps are blobs like a network's, against a forward pass."""
    count, rng = 200, np.random.default_rng(0)
    maps = rng.gamma(0.5, size=(count, 7, 7)).astype(np.float32)
    truth = [np.array([[40, 40, 90, 100], [130, 60, 190, 120]], np.float32)[: 1 + i % 2] for i in range(count)]
    names = [f"{i}.png" for i in range(count)]
    model, images = laid_out(name, LAST)
    batches = -(-count // BATCH)

    def heat() -> None:
        compute_heatmaps(model, [images] * batches, grad_cam(NETWORKS[name]))

    def score() -> None:
        score_rows(names, upsample(maps, (224, 224)), truth, 0.5, 100.0, area="rectangle", method="minmax")

    def curves() -> None:
        threshold_rows(names, upsample(maps, (224, 224)), truth, 100.0, THRESHOLDS, area="rectangle", method="minmax")

    seconds = in_turns({"heatmaps": heat, "boxes": score, "curves": curves}, rounds=3)
    share, text = ratio(seconds, "boxes", "heatmaps")
    goal = f"boxes and scores of 200 images below 0.02x the time of their heatmaps ({name}, fp32, 224 px)"
    spent = {name: float(np.median(values)) for name, values in seconds.items()}
    note = f"{spent['boxes']:.3f} s beside {spent['heatmaps']:.2f} s; the curves' 49 thresholds {spent['curves']:.2f} s"
    return Row("boxes", goal, f"{text}x", share < 0.02, note)


def measure() -> list[Row]:
    rows = [row for name in CHECKED for row in against_forward(name)]
    return [*rows, *against_others("resnet50"), roofline(), *(boxes(name) for name in CHECKED)]


if __name__ == "__main__":
    report(measure())
