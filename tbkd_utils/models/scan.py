"""The selective scan: a linear recurrence whose coefficients depend on the input.

From Mamba (arXiv 2312.00752, section 3.2). Per channel and direction, with a state of `n` numbers:

    step_t = softplus(delta_t)
    h_t = exp(step_t a) h_{t-1} + step_t b_t x_t
    y_t = <c_t, h_t> + skip x_t

Time comes first in memory, (L, everything else), so that a step of the recurrence is one operation on contiguous rows.
The backward pass is the same recurrence from the other end; it can be differentiated again.
"""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tbkd_utils.errors import UsageError


def selective_scan(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, *, chunk: int | None = None
) -> Tensor:
    """Runs a selective scan over time, in float32 or better, under autocast too.

    Args:
        x: Input (L, batch, k, d): L steps, k directions of d channels each; floating point.
        delta: Step sizes before the softplus, (L, batch, k, d).
        a: Rates (k, d, n), below 0.
        b: Input weights (L, batch, k, n), shared by the channels of a direction.
        c: Output weights (L, batch, k, n), shared likewise.
        skip: Weight of the input in the output, (k, d).
        chunk: See `linear_scan`.

    Returns:
        y, (L, batch, k, d), float32, or float64 if x is.

    Raises:
        UsageError: If there is no step, the shapes do not fit, or `chunk` is below 1.
    """
    length, batch, directions, channels = x.shape
    states = a.shape[-1]
    expected = {
        "delta": (delta, (length, batch, directions, channels)),
        "a": (a, (directions, channels, states)),
        "b": (b, (length, batch, directions, states)),
        "c": (c, (length, batch, directions, states)),
        "skip": (skip, (directions, channels)),
    }
    for name, (given, shape) in expected.items():
        if given.shape != shape:
            raise UsageError(f"{name} is {tuple(given.shape)}: expected {shape} beside x {tuple(x.shape)}.")
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        x, delta, a, b, c, skip = (given.to(dtype) for given in (x, delta, a, b, c, skip))
        step = F.softplus(delta)
        decay = torch.exp(step[..., None] * a)  # (L, batch, k, d, n)
        drive = (step * x)[..., None] * b[..., None, :]
        h = linear_scan(decay, drive, chunk=chunk)
        return (h * c[..., None, :]).sum(-1) + skip * x


def linear_scan(decay: Tensor, drive: Tensor, *, chunk: int | None = None) -> Tensor:
    """Solves h_t = decay_t h_{t-1} + drive_t with h_{-1} = 0, elementwise.

    Args:
        decay: (L, ...), floating point, of absolute value at most 1; the first row has no effect.
        drive: (L, ...), of the same shape and type.
        chunk: How many steps follow one another: all chunks of this length run side by side, then their ends are
            carried over. L or more is the plain loop. None chooses L on a CPU, where the loop is fastest, and about
            the square root of L elsewhere, where few large operations are.

    Returns:
        h, (L, ...).

    Raises:
        UsageError: If there is no step, the shapes or types differ, or `chunk` is below 1.
    """
    if decay.shape != drive.shape or decay.dtype != drive.dtype or not decay.ndim or not len(decay):
        raise UsageError(
            "A scan takes decay and drive (L, ...) of one shape and type, L at least 1; got "
            f"{tuple(decay.shape)} {decay.dtype} and {tuple(drive.shape)} {drive.dtype}."
        )
    length = len(decay)
    if chunk is None:
        chunk = length if decay.device.type == "cpu" else math.isqrt(length - 1) + 1
    if chunk < 1:
        raise UsageError(f"chunk is {chunk}: expected 1 step or more, or None.")
    return _LinearScan.apply(decay.reshape(length, -1), drive.reshape(length, -1), chunk, False).view(drive.shape)


class _LinearScan(torch.autograd.Function):
    """The recurrence of rows (L, m), forward in time or in reverse; keeps `decay` and the result, nothing else.

    decay[t] joins steps t - 1 and t whichever way it is run: h[t] = decay[t] h[t - 1] + drive[t], or, in reverse,
    h[t - 1] = decay[t] h[t] + drive[t - 1]. So each is the adjoint of the other.
    """

    @staticmethod
    def forward(decay: Tensor, drive: Tensor, chunk: int, reverse: bool) -> Tensor:
        if chunk >= len(decay):
            return _loop(decay, drive, reverse)
        return _chunks(decay, drive, chunk, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, bool], output: Tensor) -> None:
        decay, _, ctx.chunk, ctx.reverse = inputs
        ctx.save_for_backward(decay, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        decay, h = ctx.saved_tensors
        adjoint = _LinearScan.apply(decay, gradients[0], ctx.chunk, not ctx.reverse)
        if not ctx.needs_input_grad[0]:
            return None, adjoint, None, None
        # What comes out of a step times what went in; nothing goes into the first.
        products = adjoint[:-1] * h[1:] if ctx.reverse else adjoint[1:] * h[:-1]
        return F.pad(products, (0, 0, 1, 0)), adjoint, None, None


def _loop(decay: Tensor, drive: Tensor, reverse: bool) -> Tensor:
    """One step after the other."""
    h = drive.clone(memory_format=torch.contiguous_format)
    rows, links = h.unbind(), decay.unbind()
    if reverse:
        for t in range(len(rows) - 1, 0, -1):
            rows[t - 1].addcmul_(links[t], rows[t])
    else:
        for t in range(1, len(rows)):
            rows[t].addcmul_(links[t], rows[t - 1])
    return h


def _chunks(decay: Tensor, drive: Tensor, chunk: int, reverse: bool) -> Tensor:
    """All chunks side by side, each from a state of 0; then what every chunk hands on to the next is added."""
    length, width = drive.shape
    count = -(-length // chunk)
    extra = count * chunk - length  # steps that change nothing: decay 1, drive 0
    links = F.pad(decay[1:], (0, 0, 0, extra + 1), value=1.0) if reverse else F.pad(decay, (0, 0, 0, extra), value=1.0)
    h = F.pad(drive, (0, 0, 0, extra)).reshape(count, chunk, width)  # padding copies, even by nothing
    product = links.reshape(count, chunk, width)  # of the decays from the chunk's start to each step
    steps, places = list(range(chunk)), list(range(count))
    if reverse:
        steps.reverse()
        places.reverse()
    for before, t in itertools.pairwise(steps):
        h[:, t].addcmul_(product[:, t], h[:, before])
        product[:, t].mul_(product[:, before])
    carry = torch.zeros_like(h[:, 0])  # (count, m): the state at each chunk's start
    for before, place in itertools.pairwise(places):
        torch.addcmul(h[before, steps[-1]], product[before, steps[-1]], carry[before], out=carry[place])
    h.addcmul_(product, carry[:, None])
    return h.view(count * chunk, width)[:length]
