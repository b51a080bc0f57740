"""The selective scan against a loop that shares no code with it, by hand, and by finite differences."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from tbkd_utils.errors import UsageError
from tbkd_utils.models.scan import linear_scan, selective_scan

CHUNKS = (None, 1, 2, 3, 5, 8, 64, 100)


def coefficients(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Decays in 0..1 and drives."""
    generator = torch.Generator().manual_seed(seed)
    decay = torch.rand(shape, generator=generator, dtype=torch.float64)
    return decay.to(dtype), torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def inputs(
    length: int, states: int, batch: int = 2, directions: int = 2, channels: int = 3, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """x, delta, a, b, c, skip."""
    shape = (length, batch, directions)
    generator = torch.Generator().manual_seed(length)
    shapes = [(*shape, channels)] * 2 + [(directions, channels, states)] + [(*shape, states)] * 2
    found = [torch.randn(s, generator=generator, dtype=torch.float64) for s in [*shapes, (directions, channels)]]
    found[2] = -found[2].exp()
    return [one.to(dtype) for one in found]


def naive(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor) -> NDArray[np.float64]:
    """One number after the other, in float64."""
    length, batch, directions, channels = x.shape
    y = np.zeros(x.shape)
    for image in range(batch):
        for k in range(directions):
            for channel in range(channels):
                state = [0.0] * a.shape[2]
                for t in range(length):
                    step = math.log1p(math.exp(float(delta[t, image, k, channel])))
                    value = float(x[t, image, k, channel])
                    for n in range(len(state)):
                        kept = math.exp(step * float(a[k, channel, n])) * state[n]
                        state[n] = kept + step * float(b[t, image, k, n]) * value
                        y[t, image, k, channel] += float(c[t, image, k, n]) * state[n]
                    y[t, image, k, channel] += float(skip[k, channel]) * value
    return y


# --- known answers ----------------------------------------------------------------------------------------------------


def test_a_step_of_ln_2_by_hand() -> None:
    """Raw delta 0 is a step of ln 2, which halves the state: y_t = ln 2 (2 - 2^-t)."""
    one, rate = torch.ones(6, 1, 1, 1), torch.full((1, 1, 1), -1.0)
    y = selective_scan(one, torch.zeros(6, 1, 1, 1), rate, one, one, torch.zeros(1, 1))
    expected = [0.693147, 1.039721, 1.213008, 1.299651, 1.342973, 1.364633]
    np.testing.assert_allclose(y.flatten(), expected, rtol=0, atol=1e-6)


def test_with_steps_of_no_length_the_input_passes() -> None:
    x, delta, a, b, c, skip = inputs(9, 2)
    y = selective_scan(x, torch.full_like(delta, -800.0), a, b, c, skip)
    torch.testing.assert_close(y, skip * x, rtol=0, atol=0)


@pytest.mark.parametrize("states", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 37, 64])
def test_it_equals_a_naive_loop(length: int, states: int) -> None:
    given = inputs(length, states)
    expected = naive(*given)
    for chunk in CHUNKS:
        found = selective_scan(*given, chunk=chunk)
        assert found.dtype == torch.float64
        assert np.abs(found.numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("chunk", [None, 64])
def test_float32_over_4096_steps(chunk: int | None) -> None:
    """Relative to the largest value, the whole scan beside its own inputs in float64."""
    given = inputs(4096, 1, batch=1, directions=4, channels=8, dtype=torch.float32)
    found = selective_scan(*given, chunk=chunk)
    expected = selective_scan(*(one.double() for one in given))
    assert found.dtype == torch.float32
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-6


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 1, 2, 3, 7])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_gradients_of_the_recurrence_once_and_twice(length: int, chunk: int | None) -> None:
    given = [one.requires_grad_() for one in coefficients(length, 2, 2)]
    assert gradcheck(lambda decay, drive: linear_scan(decay, drive, chunk=chunk), given)
    assert gradgradcheck(lambda decay, drive: linear_scan(decay, drive, chunk=chunk), given)


@pytest.mark.parametrize("states", [1, 3])
@pytest.mark.parametrize("chunk", [None, 2])
def test_gradients_of_the_scan(states: int, chunk: int | None) -> None:
    given = [one.requires_grad_() for one in inputs(5, states, batch=1, channels=2)]
    assert gradcheck(lambda *each: selective_scan(*each, chunk=chunk), given)


def test_gradients_equal_those_of_a_loop_that_autograd_records() -> None:
    decay, drive = (one.requires_grad_() for one in coefficients(64, 5))
    weights = torch.randn(64, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    state, rows = torch.zeros(5, dtype=torch.float64), []
    for t in range(64):
        state = decay[t] * state + drive[t]
        rows.append(state)
    expected = torch.autograd.grad((torch.stack(rows) * weights).sum(), [decay, drive])
    for chunk in CHUNKS:
        found = torch.autograd.grad((linear_scan(decay, drive, chunk=chunk) * weights).sum(), [decay, drive])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_no_gradient_is_computed_of_what_needs_none() -> None:
    decay, drive = coefficients(6, 3)
    linear_scan(decay, drive.requires_grad_()).sum().backward()
    assert decay.grad is None
    assert drive.grad is not None


# --- the recurrence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("length", [1, 2, 37, 64])
def test_chunks_equal_the_loop_and_change_no_input(length: int, chunk: int | None) -> None:
    decay, drive = coefficients(length, 3, 2)
    before = decay.clone(), drive.clone()
    torch.testing.assert_close(linear_scan(decay, drive, chunk=chunk), linear_scan(decay, drive), rtol=0, atol=1e-13)
    assert torch.equal(decay, before[0])
    assert torch.equal(drive, before[1])


def test_a_product_that_vanishes_stays_finite() -> None:
    """A sum of logarithms would overflow: 3000 decays of e^-5."""
    decay, drive = torch.full((3000, 1), math.exp(-5)), torch.ones(3000, 1)
    expected = 1 / (1 - math.exp(-5))
    for chunk in (None, 55):
        assert linear_scan(decay, drive, chunk=chunk)[-1].item() == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(6, 38), (4, 3, 38)])
@pytest.mark.parametrize("chunk", [None, 2, 5])
def test_rows_that_are_not_contiguous(shape: tuple[int, ...], chunk: int | None) -> None:
    decay, drive = (one.movedim(-1, 0).requires_grad_() for one in coefficients(*shape))
    straight = [one.detach().contiguous().requires_grad_() for one in (decay, drive)]
    found, expected = linear_scan(decay, drive, chunk=chunk), linear_scan(*straight)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    gradients = torch.autograd.grad(found.sum(), [decay, drive]), torch.autograd.grad(expected.sum(), straight)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_half_precision_and_autocast_scan_in_float32() -> None:
    given = inputs(50, 2, dtype=torch.bfloat16)
    expected = selective_scan(*(one.float() for one in given))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = selective_scan(*given)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "name"), list(enumerate(["delta", "a", "b", "c", "skip"], 1)))
def test_a_shape_that_does_not_fit_is_named(place: int, name: str) -> None:
    given = inputs(4, 2)
    given[place] = given[place][..., None]
    if name == "a":
        given[place] = given[place][:1, ..., 0]
    with pytest.raises(UsageError, match=f"^{name} is .*expected .*beside x"):
        selective_scan(*given)


def test_what_is_no_recurrence_is_refused() -> None:
    decay, drive = coefficients(4, 2)
    for wrong in ((decay[:3], drive), (decay.float(), drive), (decay[:0], drive[:0]), (decay[0, 0], drive[0, 0])):
        with pytest.raises(UsageError, match="of one shape and type, L at least 1"):
            linear_scan(*wrong)
    for chunk in (0, -1):
        with pytest.raises(UsageError, match=f"chunk is {chunk}"):
            linear_scan(decay, drive, chunk=chunk)
