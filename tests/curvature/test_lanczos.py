import numpy as np
import pytest
import torch

from tbkd_utils.curvature import lanczos


def operator(eigenvalues, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    turn, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return (turn * torch.as_tensor(eigenvalues, dtype=torch.float64)) @ turn.T


def run(matrix, top, rows, locked=None, tolerance=1e-10, max_products=2000):
    generator = torch.Generator().manual_seed(1)
    count = 0 if locked is None else len(locked)
    buffer = torch.zeros(count + rows, len(matrix), dtype=torch.float64)
    if count:
        buffer[:count] = locked
    start = lanczos.random_unit(buffer[:count], generator)
    used = []

    def apply(vector):
        used.append(1)
        return matrix @ vector

    found = lanczos.eigenpairs(
        apply, buffer, count, start, top, lambda v: tolerance * np.abs(v), generator, max_products
    )
    return found, buffer[count : count + top], len(used)


@pytest.mark.parametrize("rows", [12, 20, 60, 150])  # 12 restarts after every few steps, 150 never does
def test_eigenpairs_whatever_the_room(rows):
    values = np.random.default_rng(2).normal(size=150)
    matrix = operator(values)
    found, vectors, _ = run(matrix, 8, rows)
    np.testing.assert_allclose(found.values, values[np.argsort(-np.abs(values))][:8], rtol=1e-12)
    images = vectors @ matrix - torch.as_tensor(found.values)[:, None] * vectors
    np.testing.assert_allclose(images.norm(dim=1), 0, atol=1e-9)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(8, dtype=torch.float64))
    assert found.asymmetry < 1e-12


def test_residual_estimates_are_the_real_residuals():
    matrix = operator(np.random.default_rng(3).normal(size=120))
    found, vectors, used = run(matrix, 5, 15, max_products=25)
    assert used == 25
    real = (vectors @ matrix - torch.as_tensor(found.values)[:, None] * vectors).norm(dim=1)
    assert real.max() > 1e-3  # far from converged
    np.testing.assert_allclose(found.residuals, real, rtol=1e-6, atol=1e-12)


def test_locked_rows_are_avoided():
    values = np.r_[10.0, -9, 8, np.linspace(-1, 1, 60)]
    matrix = operator(values)
    first, vectors, _ = run(matrix, 2, 20)
    second, others, _ = run(matrix, 1, 20, locked=vectors)
    np.testing.assert_allclose(first.values, [10, -9])
    np.testing.assert_allclose(second.values, [8])
    assert (vectors @ others.T).abs().max() < 1e-12


def test_a_closed_krylov_space_is_left_for_another():
    found, vectors, _ = run(torch.eye(30, dtype=torch.float64) * 3, 6, 10)
    np.testing.assert_allclose(found.values, 3)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(6, dtype=torch.float64))


def test_asymmetry_is_measured():
    matrix = operator(np.linspace(1, 2, 40))
    matrix[3, 20] += 0.5
    assert run(matrix, 3, 40, max_products=30)[0].asymmetry > 1e-3


def test_quadrature_is_exact_for_polynomials_up_to_its_degree():
    matrix = operator(np.random.default_rng(4).normal(size=50))
    start = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    unit = start / start.norm()
    buffer = torch.zeros(6, 50, dtype=torch.float64)
    rule = lanczos.quadrature(lambda v: matrix @ v, buffer, 0, start)
    for degree in range(12):
        moment = float(unit @ torch.linalg.matrix_power(matrix, degree) @ unit)
        assert (rule.nodes**degree * rule.weights).sum() == pytest.approx(moment, rel=1e-9, abs=1e-9)
    ritz = torch.as_tensor(rule.vectors.T.copy()) @ buffer
    np.testing.assert_allclose(torch.diag(ritz @ matrix @ ritz.T), rule.nodes, atol=1e-12)


def test_quadrature_stops_where_the_space_ends():
    values = np.r_[np.full(20, 2.0), np.full(20, -1.0)]
    matrix = operator(values)
    start = lanczos.random_unit(torch.zeros(0, 40, dtype=torch.float64), torch.Generator().manual_seed(6))
    rule = lanczos.quadrature(lambda v: matrix @ v, torch.zeros(9, 40, dtype=torch.float64), 0, start)
    assert len(rule.vectors) == 2
    assert not rule.weights[2:].any()
    np.testing.assert_allclose(np.sort(rule.nodes[:2]), [-1, 2])
    assert rule.weights.sum() == pytest.approx(1, abs=1e-12)


def test_rotation_and_gram_over_more_than_one_chunk(monkeypatch):
    monkeypatch.setattr(lanczos, "CHUNK", 7)
    generator = np.random.default_rng(7)
    rows, turn = generator.normal(size=(5, 23)), generator.normal(size=(5, 3))
    buffer = torch.as_tensor(rows.copy())
    np.testing.assert_allclose(lanczos.gram(buffer, buffer[:2]), rows @ rows[:2].T)
    lanczos.rotate(buffer, turn)
    np.testing.assert_allclose(buffer[:3], turn.T @ rows)


def test_sums_over_millions_of_numbers_keep_their_digits_in_float32():
    """A plain float32 dot product of this length is wrong in the fourth digit."""
    rows = torch.rand(2, 6_000_000, generator=torch.Generator().manual_seed(0)) + 0.5
    exact = rows.double() @ rows[0].double()
    np.testing.assert_allclose(lanczos.inner(rows, rows[0]).numpy(), exact.numpy(), rtol=1e-6)
    assert lanczos.norm(rows[0]) == pytest.approx(float(exact[0]) ** 0.5, rel=1e-6)


def test_a_long_float32_eigenvector_has_the_residual_that_the_recurrence_tells():
    """As many unknowns as a small network has; with norms in float32 the residuals end near 1e-3, not 1e-6."""
    size, values = 3_000_000, torch.tensor([100.0, 30.0, -10.0, 3.0])
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, len(values), generator=generator, dtype=torch.float64))[0].T.float()

    def apply(vector: torch.Tensor) -> torch.Tensor:
        return (values * lanczos.inner(basis, vector).float()) @ basis

    buffer = torch.empty(8, size)
    start = lanczos.random_unit(buffer[:0], generator)
    found = lanczos.eigenpairs(apply, buffer, 0, start, 3, lambda v: 1e-4 * np.abs(v), generator, 100)
    np.testing.assert_allclose(found.values, values[:3].numpy(), rtol=1e-5)
    for value, vector in zip(found.values, buffer, strict=False):
        assert lanczos.norm(apply(vector) - float(value) * vector) < 1e-4 * abs(value)
