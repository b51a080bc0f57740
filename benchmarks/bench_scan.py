"""The selective scan beside what a user would write instead, and VMamba-T's forward pass and training step.

The sizes are the scans of VMamba-T at 256 pixels: steps x channels of its first, second and third stage. The other ways
are a loop that autograd records step by step, and doubling (Hillis and Steele): log2 of the steps, on all of them.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
from bench_growth import Private
from harness import Row, in_turns, ratio, report
from torch import Tensor, nn

from tbkd_utils.models.devices import kept_memory
from tbkd_utils.models.networks import build_network
from tbkd_utils.models.scan import linear_scan

SIZES = ((4096, 768), (1024, 1536), (256, 3072))
SIDE = 256


def recorded(decay: Tensor, drive: Tensor) -> Tensor:
    """One step after the other, each recorded by autograd."""
    state, states = torch.zeros_like(drive[0]), []
    for kept, given in zip(decay.unbind(), drive.unbind(), strict=True):  # an index would cost its backward all rows
        state = kept * state + given
        states.append(state)
    return torch.stack(states)


def doubling(decay: Tensor, drive: Tensor) -> Tensor:
    """Every step joined with the one 1, 2, 4, ... before it."""
    reach = 1
    while reach < len(drive):
        drive = torch.cat([drive[:reach], drive[reach:] + decay[reach:] * drive[:-reach]])
        decay = torch.cat([decay[:reach], decay[reach:] * decay[:-reach]])
        reach *= 2
    return drive


SCANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "scan": linear_scan,
    "chunks of 64": partial(linear_scan, chunk=64),
    "autograd's loop": recorded,
    "doubling": doubling,
}


def scans(length: int, channels: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    decay = torch.rand(length, channels, generator=generator).requires_grad_()
    drive = torch.randn(length, channels, generator=generator).requires_grad_()
    gradient = torch.randn(length, channels, generator=generator)

    def forward(way: Callable[[Tensor, Tensor], Tensor]) -> None:
        with torch.inference_mode():
            way(decay, drive)

    def both(way: Callable[[Tensor, Tensor], Tensor]) -> None:
        torch.autograd.grad(way(decay, drive), [decay, drive], gradient)

    expected = torch.autograd.grad(recorded(decay, drive), [decay, drive], gradient)
    for name, way in SCANS.items():  # a benchmark of something else would be no benchmark
        for one, other in zip(torch.autograd.grad(way(decay, drive), [decay, drive], gradient), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=name)
    rows = []
    for what, work in (("forward", forward), ("forward and backward", both)):
        seconds = in_turns({name: partial(work, way) for name, way in SCANS.items()}, rounds=3)
        note = ", ".join(f"{name} {1000 * min(values):.3g} ms" for name, values in seconds.items())
        for rival in ("autograd's loop", "doubling", "chunks of 64"):
            _, text = ratio(seconds, rival, "scan")
            rows.append(Row("scan", f"{rival} / scan, {what}, {length} x {channels}", f"{text}x", None, note))
    return rows


def peak(work: Callable[[], object]) -> float:
    """The most memory in MiB that a call takes beyond what there was before."""
    watch = Private()
    before = watch.now()
    watch.start()
    work()
    watch.going = False
    watch.join()
    return (watch.peak - before) / 2**20


def network() -> list[Row]:
    model, images = build_network("vssm_tiny", 8, "none", 0), torch.randn(1, 3, SIDE, SIDE)
    sgd = torch.optim.SGD(model.parameters(), lr=1e-4)

    def forward() -> None:
        with torch.inference_mode():
            model.eval()(images)

    def step() -> None:
        sgd.zero_grad()
        nn.functional.cross_entropy(model.train()(images), torch.tensor([0])).backward()
        sgd.step()

    rows = []
    for name, work in (("forward pass", forward), ("training step", step)):
        memory = peak(work) if sys.platform == "linux" else float("nan")
        with kept_memory():
            seconds = in_turns({name: work}, rounds=5, warm_up=2)[name]
        measured = f"{sorted(seconds)[2]:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) s"
        note = f"at most {memory:.0f} MiB beside the weights (the step: gradients among them)"
        rows.append(Row("VMamba-T", f"{name} of one image, {SIDE} px", measured, None, note))
    return rows


if __name__ == "__main__":
    report([*network(), *(row for size in SIZES for row in scans(*size))])  # before anything else leaves memory behind
