import threading
import warnings
import weakref
from collections.abc import Callable

import numpy as np
import psutil
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
    other_product,
    output_itself,
    small_mlp,
    state_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from tbkd_utils.curvature.spectrum import ConvergenceWarning, density, hessian_spectrum
from tbkd_utils.errors import ModelError, TbkdError

BULK = np.random.default_rng(0).normal(size=90) * 0.3


def quadratic(eigenvalues, dtype=torch.float64, **options):
    return hessian_spectrum(Quadratic(eigenvalues, dtype=dtype), output_itself, blank_batches(), **options)


# --- closed form ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "known",
    [
        np.r_[5, -4.9999, 4.9998, -4.9997, 3, -3.0003, 2.9995, -2.999, 2.001, -2.0, BULK],  # nearly tied, of both signs
        np.r_[np.full(9, 5.0), 3, BULK],  # nine copies of one eigenvalue
        np.r_[4, 4, 4, -4.001, -4.001, 2, 2, 2, 2, 1.5, BULK],
        np.r_[1e4, 100, 50, -30, 20, 10, 5, 4, 3, -2, BULK],
        np.r_[3, -2, 1, np.zeros(60)],  # rank 3
        -np.linspace(1, 2, 80),
        np.ones(40),
        np.zeros(40),
        np.array([2.0, -3.0]),  # fewer parameters than eigenvalues asked for
        np.array([7.0]),
    ],
    ids=["near-ties", "nine-copies", "copies", "wide", "low-rank", "negative", "identity", "zero", "two", "one"],
)
def test_quadratic_with_known_spectrum(known, dtype):
    tolerance = 1e-4 if dtype == torch.float64 else 1e-3
    found = quadratic(known, dtype, probes=3, steps=20, tolerance=tolerance)
    expected = by_magnitude(known)
    largest = np.abs(known).max()
    precision = 1e-7 if dtype == torch.float64 else 1e-5
    assert found.eigenvalues.shape == expected.shape
    # Compared as sorted: exact ties of the magnitude have no order.
    np.testing.assert_allclose(np.sort(found.eigenvalues), np.sort(expected), rtol=0, atol=precision * largest)
    assert (np.diff(np.abs(found.eigenvalues)) <= precision * largest).all()
    assert found.converged.all()
    assert (found.residuals <= tolerance).all()
    np.testing.assert_allclose(found.density_weights.sum(1), 1, atol=1e-9)
    if len(known) <= 10:
        np.testing.assert_allclose(found.trace_interval, known.sum(), rtol=1e-5)


def test_near_ties_keep_order_and_sign():
    known = np.r_[1.0, -0.99999, 0.99998, -0.99997, 0.5, -0.49999, 0.49998, 0.3, -0.29999, 0.29998, BULK / 10]
    found = quadratic(known, tolerance=1e-6, probes=2)
    np.testing.assert_allclose(found.eigenvalues, by_magnitude(known), rtol=1e-9)


def test_logistic_regression_has_its_textbook_hessian():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(50, 12, generator=generator, dtype=torch.float64)
    targets = (torch.rand(50, generator=generator) < 0.5).double()
    model = nn.Sequential(nn.Linear(12, 1, bias=False), nn.Flatten(0)).double()
    p = torch.sigmoid(model(inputs)).detach()
    expected = (inputs.T * (p * (1 - p))) @ inputs / 50
    loss = nn.BCEWithLogitsLoss()
    batches = list(zip(inputs.split(16), targets.split(16), strict=True))
    found = hessian_spectrum(model, loss, batches, top=12, tolerance=1e-8)
    np.testing.assert_allclose(found.eigenvalues, torch.linalg.eigvalsh(expected).flip(0), rtol=1e-10)
    assert found.trace == pytest.approx(float(expected.trace()), rel=1e-10)
    assert found.trace_stderr == pytest.approx(0, abs=1e-12)
    assert (found.samples, found.parameters) == (50, 12)
    assert found.loss == pytest.approx(float(loss(model(inputs), targets).detach()))


@pytest.mark.parametrize("group", range(5))
def test_fifty_random_networks_match_the_dense_hessian(group):
    for seed in range(10 * group, 10 * group + 10):
        model, batches = small_mlp(seed)
        hessian = dense_hessian(model, cross_entropy, batches)
        expected = by_magnitude(np.linalg.eigvalsh(hessian))
        found = hessian_spectrum(model, cross_entropy, batches, tolerance=1e-6, probes=2, steps=12, seed=seed)
        np.testing.assert_allclose(found.eigenvalues, expected, rtol=1e-6, err_msg=f"seed {seed}")
        assert found.converged.all()
        vector = found.eigenvectors[0]
        assert np.linalg.norm(hessian @ vector - expected[0] * vector) <= 2e-6 * abs(expected[0])


@pytest.mark.slow
def test_trace_interval_holds_the_truth_and_the_density_agrees():
    model, batches = small_mlp(11)
    hessian = dense_hessian(model, cross_entropy, batches)
    truth, held = np.trace(hessian), 0
    batches = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
    for seed in range(200):
        found = hessian_spectrum(model, cross_entropy, batches, top=3, tolerance=1e-2, probes=8, steps=2, seed=seed)
        low, high = found.trace_interval
        held += low <= truth <= high
        assert abs(found.density_weights.sum(1) - 1).max() < 1e-6
        mean = (found.density_nodes * found.density_weights).sum(1).mean()
        assert low <= mean * found.parameters <= high
    assert 180 <= held < 200  # 95% of 200 is 190; an interval that never misses would be too wide


def test_density_moments_are_the_hessians():
    found = quadratic(np.r_[4.0, -3, 2, BULK], top=3, probes=20, steps=30)
    known = np.r_[4.0, -3, 2, BULK]
    for power in (1, 2, 3):
        moment = (found.density_nodes**power * found.density_weights).sum(1).mean()
        assert moment == pytest.approx((known**power).mean(), abs=0.02)
    grid, values = density(found, points=2000)
    assert np.trapezoid(values, grid) == pytest.approx(1, abs=1e-5)
    assert np.trapezoid(values * grid, grid) == pytest.approx(known.mean(), abs=0.02)
    with pytest.raises(ModelError, match="probes"):
        density(quadratic(BULK, probes=0))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=1, max_size=40),
    st.integers(1, 12),
    st.integers(0, 100),
)
def test_any_quadratic(eigenvalues, top, seed):
    found = quadratic(eigenvalues, top=top, probes=2, steps=5, seed=seed, tolerance=1e-6)
    expected = by_magnitude(eigenvalues, top)
    np.testing.assert_allclose(np.abs(found.eigenvalues), np.abs(expected), atol=1e-5)
    assert found.converged.all()


# --- another library ----------------------------------------------------------------------------------------------


def test_same_as_scipy_over_an_independent_product():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )
    model(torch.randn(32, 1, 8, 8))  # running statistics other than 0 and 1
    model = model.double().eval()
    batches = [(torch.randn(size, 1, 8, 8).double(), torch.randint(0, 3, (size,))) for size in (12, 7)]
    n = sum(p.numel() for p in model.parameters())
    operator = LinearOperator(
        (n, n), matvec=lambda v: other_product(model, cross_entropy, batches, v.ravel()), dtype=np.float64
    )
    expected = by_magnitude(eigsh(operator, 8, which="LM", tol=1e-10, return_eigenvectors=False))
    found = hessian_spectrum(model.train(), cross_entropy, batches, top=8, tolerance=1e-6, probes=2)
    np.testing.assert_allclose(found.eigenvalues, expected, rtol=1e-9)
    single = hessian_spectrum(model.float(), cross_entropy, batches, top=8, probes=2)
    np.testing.assert_allclose(single.eigenvalues, expected, rtol=1e-4)
    assert single.converged.all()
    assert single.eigenvectors.dtype == np.float32


# --- data -----------------------------------------------------------------------------------------------------------


def test_a_ragged_last_batch_weighs_by_its_samples():
    model, batches = small_mlp(5)
    whole = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
    in_parts = hessian_spectrum(model, cross_entropy, batches, probes=2, steps=3)
    at_once = hessian_spectrum(model, cross_entropy, whole, probes=2, steps=3)  # also: the graph of one batch is kept
    np.testing.assert_allclose(in_parts.eigenvalues, at_once.eigenvalues, rtol=1e-9)
    assert in_parts.trace == pytest.approx(at_once.trace, rel=1e-9)
    assert in_parts.loss == pytest.approx(at_once.loss, rel=1e-12)
    assert in_parts.products == at_once.products


def test_deterministic_given_the_seed_and_leaves_random_state_alone():
    model, batches = small_mlp(6)
    data = torch.utils.data.TensorDataset(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
    before = torch.get_rng_state()
    first = hessian_spectrum(model, cross_entropy, loader, seed=4, probes=2, steps=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    second = hessian_spectrum(model, cross_entropy, loader, seed=4, probes=2, steps=5)
    other = hessian_spectrum(model, cross_entropy, loader, seed=5, probes=2, steps=5)
    np.testing.assert_array_equal(first.eigenvalues, second.eigenvalues)
    np.testing.assert_array_equal(first.density_nodes, second.density_nodes)
    assert first.trace == second.trace != other.trace


def test_progress_counts_products():
    seen = []
    found = quadratic(BULK, probes=2, steps=4, progress=lambda done, expected: seen.append((done, expected)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == found.products
    assert all(done <= expected for done, expected in seen)


def test_not_converged_is_said():
    values = np.r_[np.linspace(1, 1.01, 200)]
    with pytest.warns(ConvergenceWarning, match="did not reach"):
        found = quadratic(values, max_products=14, probes=0, tolerance=1e-8)
    assert not found.converged.all()
    assert (found.residuals[~found.converged] > 1e-8).all()
    assert found.eigenvectors.shape == (1, 200)


def test_a_missed_copy_that_cannot_be_fetched_is_said():
    with pytest.warns(ConvergenceWarning):
        found = quadratic(np.r_[np.full(30, 5.0), BULK], probes=2, max_products=40)
    wrong = np.abs(found.eigenvalues - 5) > 0.01
    assert wrong.any()
    assert not found.converged[wrong].any()


# --- memory -----------------------------------------------------------------------------------------------------------


class Made:
    """Batches made as they are read, counting how many are alive."""

    def __init__(self, count):
        self.count, self.alive, self.most = count, 0, 0

    def gone(self):
        self.alive -= 1

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.count):
            inputs = torch.randn(256, 64, generator=generator)
            weakref.finalize(inputs, self.gone)
            self.alive += 1
            self.most = max(self.most, self.alive)
            yield inputs, torch.randint(0, 2, (256,), generator=generator)
            del inputs


def peak_memory(work: Callable[[], object]) -> int:
    """Resident bytes above those at the start, the most of them, as a thread reads them every few milliseconds."""
    process, stop = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss]

    def watch() -> None:
        while not stop.wait(0.003):
            seen.append(process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        work()
    finally:
        stop.set()
        thread.join()
    return max(seen) - seen[0]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 2))  # 2 MB per activation
    options = {"top": 2, "probes": 2, "steps": 1, "tolerance": 0.1}
    hessian_spectrum(model, cross_entropy, Made(2), **options)  # the allocator's first growth
    few, many = Made(3), Made(30)
    small = peak_memory(lambda: hessian_spectrum(model, cross_entropy, few, **options))
    large = peak_memory(lambda: hessian_spectrum(model, cross_entropy, many, **options))
    assert few.most == many.most <= 3
    assert large <= small + 30e6  # 27 batches' graphs would take ten times that


# --- left as found, and errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_model_is_left_exactly_as_found(fails):
    model, batches = fitted()
    before = state_of(model)
    calls = []

    def loss(outputs, targets):
        calls.append(0)
        if fails and len(calls) == 7:
            raise KeyboardInterrupt
        return cross_entropy(outputs, targets)

    with torch.no_grad():
        if fails:
            with pytest.raises(KeyboardInterrupt):
                hessian_spectrum(model, loss, batches)
        else:
            found = hessian_spectrum(model, loss, batches, probes=2, steps=4)
            assert found.parameters == 24 + 12 + 14
    assert_same_state(model, before)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g


class WrongSecond(torch.autograd.Function):
    """The identity, with a backward pass that hides what it passes on from further differentiation."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g.detach()


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


def refuse(match, model, batches, loss=cross_entropy, **options):
    with pytest.raises(ModelError, match=match) as caught:
        hessian_spectrum(model, loss, batches, **options)
    assert isinstance(caught.value, TbkdError)
    assert isinstance(caught.value, ValueError)


def test_each_bad_input_is_refused():
    model, batches = small_mlp(2)
    refuse("no data", model, [])
    refuse("only once", model, (batch for batch in batches))
    refuse("only once", model, iter(batches))
    refuse("not a pair", model, [batches[0][0]])
    refuse("not a pair", model, [(batches[0][0][:0], batches[0][1][:0])])
    refuse("no trainable parameter", nn.ReLU(), batches)
    refuse("call model.float", small_mlp(2)[0].half(), batches)
    refuse("mean over the batch", model, batches, lambda o, t: (o - 1) ** 2)
    refuse("reduction='mean'", model, batches, nn.CrossEntropyLoss(reduction="sum"))
    refuse("detached", model, batches, lambda o, t: cross_entropy(o.detach(), t))
    refuse("detached", model, batches, lambda o, t: torch.ones(1, requires_grad=True).sum())
    bad = [batches[0], (batches[1][0] * float("nan"), batches[1][1])]
    refuse("batch 1 is nan", model, bad)
    for options in ({"top": 0}, {"steps": 0}, {"probes": 1}, {"tolerance": 0.0}, {"keep_vectors": -1}):
        refuse("needs top", model, batches, **options)


def connectionist(outputs, targets):
    steps = outputs[:, None].log_softmax(-1)
    return nn.functional.ctc_loss(steps, torch.tensor([[1, 2]]), (len(outputs),), (2,))


def test_an_operation_without_second_derivative_is_named():
    model, batches = small_mlp(2)
    refuse(r"no second derivative.*Once\W.*once_diff", model, batches, lambda o, t: cross_entropy(Once.apply(o), t))
    middle, its_batches = small_mlp(0)
    refuse(r"no second derivative.*Once\W", middle.insert(2, Applied(Once)), its_batches)
    # torch knows no second derivative of its own connectionist loss, and says so
    refuse(r"no second derivative.*ctc", model, batches, connectionist)


def test_a_wrong_second_derivative_is_noticed():
    model, batches = small_mlp(0)
    refuse("not symmetric", model.insert(2, Applied(WrongSecond)), batches)


def test_data_that_change_are_refused():
    model, batches = small_mlp(2)

    class Augmented:
        def __iter__(self):
            return ((x + 0.1 * torch.randn_like(x), y) for x, y in batches)

    class Shrinking:
        left = 3

        def __iter__(self):
            self.left -= 1
            return iter(batches[: max(1, self.left)])

    refuse("changed between two passes", model, Augmented())
    refuse("changed between two passes", model, Shrinking())


def test_a_loss_linear_in_the_parameters_is_flat():
    model = nn.Linear(3, 1).double()
    found = hessian_spectrum(model, lambda o, t: o.mean(), [(torch.ones(2, 3), torch.zeros(2))], probes=2, steps=2)
    assert not found.eigenvalues.any()
    assert found.trace == 0
    assert found.converged.all()


def test_parameters_that_the_loss_does_not_use_add_only_zeros():
    model, batches = small_mlp(3)
    before = hessian_spectrum(model, cross_entropy, batches, tolerance=1e-6)
    model.register_parameter("idle", nn.Parameter(torch.ones(20, dtype=torch.float64)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = hessian_spectrum(model, cross_entropy, batches, tolerance=1e-6)
    np.testing.assert_allclose(before.eigenvalues, after.eigenvalues, rtol=1e-9)
    assert after.parameters == before.parameters + 20
