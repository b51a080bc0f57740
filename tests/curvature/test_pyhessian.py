import importlib

import numpy as np
import pytest
import torch
from hessian_cases import (
    Quadratic,
    assert_same_state,
    blank_batches,
    by_magnitude,
    cross_entropy,
    dense_hessian,
    fitted,
    output_itself,
    small_mlp,
    state_of,
)

from tbkd_utils.curvature.pyhessian import pyhessian_numbers
from tbkd_utils.curvature.spectrum import hessian_spectrum
from tbkd_utils.errors import ModelError

WELL_APART = np.r_[8.0, -4, 2, np.linspace(-0.1, 0.1, 40)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_on_an_easy_problem(dtype):
    model = Quadratic(WELL_APART, dtype=dtype)
    theirs = pyhessian_numbers(model, output_itself, blank_batches(), top=3, tolerance=1e-6, density_steps=20)
    ours = hessian_spectrum(model, output_itself, blank_batches(), top=3)
    np.testing.assert_allclose(theirs.eigenvalues, ours.eigenvalues, rtol=1e-3)
    spread = theirs.trace_samples.std(ddof=1) / len(theirs.trace_samples) ** 0.5
    assert abs(theirs.trace - ours.trace) < 4 * spread
    assert ours.trace_interval[0] < WELL_APART.sum() < ours.trace_interval[1]
    assert ours.trace_stderr < spread
    assert theirs.residuals.shape == (3,)
    assert theirs.residuals.max() < 0.01


def test_mended_density_is_that_of_the_hessian():
    model, batches = small_mlp(8)
    values = np.linalg.eigvalsh(dense_hessian(model, cross_entropy, batches))
    found = pyhessian_numbers(model, cross_entropy, batches, top=1, density_steps=30, density_probes=2)
    assert found.density_nodes.shape == found.density_weights.shape == (2, 30)
    np.testing.assert_allclose(found.density_weights.sum(1), 1, atol=1e-6)
    assert found.density_nodes.max() == pytest.approx(values.max(), rel=1e-3)
    assert found.density_nodes.min() == pytest.approx(values.min(), rel=1e-3)


def test_its_power_iteration_fails_where_ours_does_not():
    known = np.r_[1.0, -0.995, 0.5, np.linspace(-0.1, 0.1, 40)]
    model = Quadratic(known)
    theirs = pyhessian_numbers(model, output_itself, blank_batches(), top=2, density_probes=0)
    ours = hessian_spectrum(model, output_itself, blank_batches(), top=2)
    np.testing.assert_allclose(ours.eigenvalues, by_magnitude(known, 2), rtol=1e-5)
    assert np.abs(theirs.eigenvalues / by_magnitude(known, 2) - 1).max() > 0.05
    assert theirs.residuals.max() > 0.05


def test_products_are_counted():
    model = Quadratic(WELL_APART)
    calls = []

    def loss(outputs, targets):
        calls.append(0)
        return outputs

    found = pyhessian_numbers(model, loss, blank_batches(3), top=2, density_steps=7, density_probes=2)
    assert found.density_products == 14
    assert found.trace_products == len(found.trace_samples)
    total = found.eigenvalue_products + found.trace_products + found.density_products
    assert 3 * total <= len(calls) <= 3 * (total + 4)  # a look beforehand, a product per residual


def test_model_library_and_torch_are_preserved():
    library = importlib.import_module("pyhessian.hessian")
    model, batches = fitted()
    before, random, dtype = state_of(model), torch.get_rng_state(), torch.get_default_dtype()
    first = pyhessian_numbers(model, cross_entropy, batches, top=2, density_steps=5, seed=3)
    assert_same_state(model, before)
    again = pyhessian_numbers(model, cross_entropy, batches, top=2, density_steps=5, seed=3)
    np.testing.assert_array_equal(first.eigenvalues, again.eigenvalues)

    def breaks(outputs, targets):
        breaks.left -= 1
        if not breaks.left:
            raise KeyboardInterrupt
        return cross_entropy(outputs, targets)

    breaks.left = 9
    with pytest.raises(KeyboardInterrupt):
        pyhessian_numbers(model.double(), breaks, batches)
    model.float()
    assert_same_state(
        model,
        (
            before[0],
            before[1],
            [(f, p.grad, v) for (f, _, v), p in zip(before[2], model.parameters(), strict=True)],
            *before[3:],
        ),
    )
    assert library.torch is torch
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_default_dtype() == dtype


def test_bad_input_is_refused():
    model, batches = small_mlp(1)
    with pytest.raises(ModelError, match="no data"):
        pyhessian_numbers(model, cross_entropy, [])
    with pytest.raises(ModelError, match="only once"):
        pyhessian_numbers(model, cross_entropy, iter(batches))
    with pytest.raises(ModelError, match="batch 0 is nan"):
        pyhessian_numbers(model, cross_entropy, [(batches[0][0] * float("nan"), batches[0][1])])
    with pytest.raises(ModelError, match="max_iterations"):
        pyhessian_numbers(model, cross_entropy, batches, max_iterations=0)
    model.register_parameter("idle", torch.nn.Parameter(torch.ones(2, dtype=torch.float64)))
    with pytest.raises(ModelError, match="every trainable parameter"):
        pyhessian_numbers(model, cross_entropy, batches)
