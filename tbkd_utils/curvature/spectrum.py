"""Top eigenvalues, trace and density of a network's loss Hessian, each with its error (Tables 1-2, Fig. 7).

One run in two parts. Thick-restart Lanczos (`lanczos`) finds the top eigenpairs, and each is checked against the
Hessian by a product of its own. Then random probes, orthogonal to what was found, run Lanczos once more (stochastic
Lanczos quadrature): their nodes are the density's bulk, their first coefficients sample the trace, and a probe that
sees an eigenvalue beyond those found (the copy of a degenerate one, which a single Krylov space cannot hold) sends the
search back to the first part. Taking the top eigenpairs out before the probes leaves only the bulk to chance (the first
half of Hutch++, Meyer et al., SOSA 2021); probes uniform on the sphere keep the estimate unbiased.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import norm
from scipy.stats import t as student_t
from torch import Tensor, nn

from tbkd_utils.curvature import lanczos
from tbkd_utils.curvature.operator import Batches, HessianOperator, Loss
from tbkd_utils.errors import ModelError
from tbkd_utils.models.state import preserved

Progress = Callable[[int, int], None]


class ConvergenceWarning(UserWarning):
    """Some eigenvalue did not reach the tolerance; `Spectrum.converged` says which."""


@dataclass(frozen=True)
class Spectrum:
    """Curvature of a loss at a point, n parameters, k = min(top, n) eigenvalues."""

    eigenvalues: np.ndarray  # (k,) float64, signed, by falling magnitude
    residuals: np.ndarray  # (k,) float64, |Hv - ev| / |e|, from a product of its own; see `spectrum`
    converged: np.ndarray  # (k,) bool
    eigenvectors: np.ndarray = field(
        repr=False
    )  # (kept, n) in the model's dtype, unit rows, those of the first eigenvalues
    trace: float
    trace_stderr: float
    trace_interval: tuple[float, float]  # 95%, Student's t over the probes
    density_nodes: np.ndarray = field(
        repr=False
    )  # (probes, k + steps) float64: the top eigenvalues, then the probe's nodes
    density_weights: np.ndarray = field(repr=False)  # (probes, k + steps) float64, each row sums to 1
    parameters: int  # n
    samples: int
    loss: float  # mean loss over the samples
    products: int  # Hessian-vector products used, each over all samples
    seconds: float


@dataclass(frozen=True)
class _Top:
    """The eigenpairs found so far; their vectors are the first k rows of the search's buffer."""

    values: np.ndarray  # (k,) float64, by falling magnitude
    residuals: np.ndarray  # (k,) float64, relative


@dataclass(frozen=True)
class _Bulk:
    """What the probes found beside the top eigenpairs."""

    nodes: np.ndarray  # (probes, k + steps) float64
    weights: np.ndarray  # (probes, k + steps) float64
    unresolved: float  # magnitude of an eigenvalue that is known to be missing among the top ones, or 0


@dataclass(frozen=True)
class _Missed:
    """Eigenvalues that belong to the top ones and that a probe met."""

    hint: Tensor  # (n,), where to look for them
    count: int


@dataclass(frozen=True)
class _Search:
    """What every step of one search works with."""

    objective: HessianOperator
    products: Callable[[Tensor], Tensor]  # the objective's, which also report progress
    buffer: Tensor  # (k + room, n), its first k rows the eigenvectors found so far
    k: int  # min(top, n)
    generator: torch.Generator
    tolerance: float
    max_products: int

    @property
    def epsilon(self) -> float:
        """The rounding of the model's dtype."""
        return torch.finfo(self.buffer.dtype).eps

    def may_go_on(self) -> bool:
        """Whether the search for eigenvalues may use more products."""
        return self.objective.products_used < self.max_products


def hessian_spectrum(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    *,
    top: int = 10,
    steps: int = 30,
    probes: int = 10,
    seed: int = 0,
    tolerance: float = 1e-3,
    max_products: int = 1000,
    keep_vectors: int = 1,
    progress: Progress | None = None,
) -> Spectrum:
    """Top eigenvalues, trace and spectral density of the Hessian of the mean loss over a data set.

    The Hessian is taken over the parameters that require a gradient, in evaluation mode (batch norm uses its running
    statistics); the model is left exactly as found. Memory: ``2 top + max(steps, 20)`` vectors of n, and one batch's
    graph, whatever the number of batches. Products: about 20 to 60 for the eigenvalues, ``top`` for their check and
    ``probes * steps`` for the density (``steps=1`` gives the trace alone).

    Args:
        model: float32 or float64, on any one device.
        loss: ``loss(outputs, targets)`` -> the mean over the batch, a scalar.
        batches: re-iterable pairs (inputs, targets), the same samples at each pass; batches of any sizes, each sample
            weighs the same.
        top: number of eigenvalues, those of largest magnitude.
        steps: Lanczos steps of a probe, at least 1.
        probes: random probes for density and trace: 0 (neither) or at least 2.
        seed: of the random vectors.
        tolerance: largest relative residual of a converged eigenvalue. The eigenvalue's own relative error is at most
            this, and of the order of its square when the next eigenvalue is not close by. An eigenvalue smaller than
            the rounding of the largest is held to that rounding instead of to itself.
        max_products: where the search for eigenvalues gives up.
        keep_vectors: how many eigenvectors to return.
        progress: called as ``progress(done, expected)`` after products.

    Returns:
        A `Spectrum`. A `ConvergenceWarning` says when some eigenvalue did not converge.

    Raises:
        ModelError: empty, one-shot or changing data, no trainable parameter, a loss that is not finite, an operation
            without a correct second derivative, arguments out of range.
    """
    if top < 1 or steps < 1 or probes < 0 or probes == 1 or not 0 < tolerance < 1 or keep_vectors < 0:
        raise ModelError("needs top >= 1, steps >= 1, probes 0 or >= 2, 0 < tolerance < 1, keep_vectors >= 0")
    began = time.perf_counter()
    with preserved(model, seed):
        objective = HessianOperator(model, loss, batches)
        k = min(top, objective.size)
        rows = min(objective.size, k + max(steps, 20))
        buffer = torch.empty(rows, objective.size, dtype=objective.dtype, device=objective.device)
        products = _reporting(objective, progress, len(buffer) + k + probes * steps)
        generator = torch.Generator().manual_seed(seed)
        search = _Search(objective, products, buffer, k, generator, tolerance, max_products)
        found, bulk = _find(search, steps, probes)
        vectors = buffer[: min(keep_vectors, k)].cpu().numpy().copy()
    traces = objective.size * (bulk.nodes * bulk.weights).sum(1)  # a sample of the trace each
    stderr = float(traces.std(ddof=1) / probes**0.5) if probes else float("nan")
    mean = float(traces.mean()) if probes else float("nan")
    half = stderr * float(student_t.ppf(0.975, probes - 1)) if probes else float("nan")
    converged = (found.residuals <= tolerance) & (np.abs(found.values) >= bulk.unresolved)
    if not converged.all():
        warnings.warn(
            f"{int((~converged).sum())} of {len(converged)} eigenvalues did not reach a residual of {tolerance:g}; "
            "raise max_products, or use float64",
            ConvergenceWarning,
            stacklevel=2,
        )
    return Spectrum(
        eigenvalues=found.values,
        residuals=found.residuals,
        converged=converged,
        eigenvectors=vectors,
        trace=mean,
        trace_stderr=stderr,
        trace_interval=(mean - half, mean + half),
        density_nodes=bulk.nodes,
        density_weights=bulk.weights,
        parameters=objective.size,
        samples=objective.samples,
        loss=objective.loss_value,
        products=objective.products_used,
        seconds=time.perf_counter() - began,
    )


def _find(search: _Search, steps: int, probes: int) -> tuple[_Top, _Bulk]:
    """The top eigenpairs from a random start, then the bulk; back to the former while a probe meets a missed one."""
    found = _eigenpairs(search, 0, lanczos.random_unit(search.buffer[:0], search.generator), search.k)
    while isinstance(bulk := _probe(search, found.values, steps, probes), _Missed):
        found = _eigenpairs(search, search.k, bulk.hint, bulk.count)
    return found, bulk


def _eigenpairs(search: _Search, locked: int, start: Tensor, count: int) -> _Top:
    """Adds pairs found from `start` to the first `locked` ones, checks them all and keeps the best k."""
    # The recurrence's residual leaves out rounding: aim at half, then look at the real one.
    extremes = lanczos.eigenpairs(
        lambda vector: search.products(vector[None])[0],
        search.buffer,
        locked,
        start,
        count,
        lambda values: 0.5 * search.tolerance * _scale(search, values),
        search.generator,
        search.max_products - search.objective.products_used,
    )
    k, vectors = search.k, search.buffer[: locked + count]
    images = search.products(vectors)
    projected = lanczos.gram(vectors, images)
    every, turn = np.linalg.eigh((projected + projected.T) / 2)
    order = np.argsort(-np.abs(every), kind="stable")[:k]
    lanczos.rotate(vectors, turn[:, order])
    lanczos.rotate(images, turn[:, order])
    values = every[order]
    images[:k] -= torch.as_tensor(values).to(vectors)[:, None] * vectors[:k]
    norms = np.array([lanczos.norm(row) for row in images[:k]])
    scale = _scale(search, values)
    # Rounding makes it about 1e-6; a wrong or random second derivative makes it of order one.
    if extremes.asymmetry > 0.01 * np.abs(every).max():
        raise ModelError(
            f"the Hessian products are not symmetric (by {extremes.asymmetry:.2g} where the largest eigenvalue is "
            f"{values[0]:.3g}): the network is random in evaluation mode, or an operation's second derivative is wrong"
        )
    return _Top(values, np.divide(norms, scale, out=np.zeros_like(norms), where=scale > 0))


def _probe(search: _Search, top: np.ndarray, steps: int, probes: int) -> _Bulk | _Missed:
    """Nodes and weights of every probe, unless one meets an eigenvalue that belongs to the top (k,)."""
    k, size, room = search.k, search.objective.size, len(search.buffer) - search.k
    nodes = np.tile(np.r_[top, np.zeros(steps)], (probes, 1))
    weights = np.zeros_like(nodes)
    weights[:, :k] = 1 / size
    weakest, unresolved = np.abs(top[-1]), 0.0
    margin = max(0.01 * search.tolerance * weakest, 100 * search.epsilon * np.abs(top[0]))
    space = search.buffer[: k + min(steps, room)]
    for probe in range(probes if room else 0):
        # Orthogonal to all that was found, so uniform over what is left: an unbiased sample of the bulk.
        start = lanczos.random_unit(search.buffer[:k], search.generator)
        bulk = lanczos.quadrature(lambda vector: search.products(vector[None])[0], space, k, start)
        nodes[probe, k:] = np.pad(bulk.nodes, (0, steps - len(bulk.nodes)), mode="edge")
        weights[probe, k : k + len(bulk.nodes)] = bulk.weights * (size - k) / size
        # Interlacing: a Ritz value is never beyond the operator's own extreme eigenvalue.
        beyond = np.flatnonzero(np.abs(bulk.nodes[: len(bulk.vectors)]) > weakest + margin)
        if len(beyond) and search.may_go_on():
            mix = torch.as_tensor(bulk.vectors[:, beyond].sum(1)).to(space)
            return _Missed(mix @ space[k : k + len(mix)], min(len(beyond), k, max(1, room - 2)))
        if len(beyond):
            unresolved = max(unresolved, float(np.abs(bulk.nodes).max()))
    return _Bulk(nodes, weights, unresolved)


def _scale(search: _Search, values: np.ndarray) -> np.ndarray:
    """What a residual is relative to: the eigenvalue, unless it drowns in the rounding of the largest."""
    magnitude = np.abs(values)
    return np.maximum(magnitude, 8 * search.epsilon / search.tolerance * magnitude.max(initial=0.0))


def _reporting(objective: HessianOperator, progress: Progress | None, expected: int) -> Callable[[Tensor], Tensor]:
    """The objective's products of vectors (m, n), after each of which `progress` is told."""

    def products(vectors: Tensor) -> Tensor:
        images = objective.products(vectors)
        if progress is not None:
            progress(objective.products_used, max(objective.products_used, expected))
        return images

    return products


def density(
    spectrum: Spectrum, points: int = 1000, sigma: float | None = None, grid: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalue density, smoothed by a Gaussian, averaged over the probes (Fig. 7).

    Args:
        spectrum: with at least two probes.
        points: of the grid, which reaches five sigma beyond the extreme nodes.
        sigma: the Gaussian's standard deviation, in units of eigenvalues; None takes 1% of the spectrum's range.
        grid: another grid of eigenvalues, (points,), to be used instead.

    Returns:
        Grid and density, both (points,) float64; the density integrates to 1.

    Raises:
        ModelError: the spectrum was computed without probes.
    """
    nodes, weights = spectrum.density_nodes, spectrum.density_weights
    if not len(nodes):
        raise ModelError("this spectrum has no density: compute it with probes >= 2")
    low, high = float(nodes.min()), float(nodes.max())
    if sigma is None:
        sigma = 0.01 * (high - low) or 0.01 * abs(high) or 1.0
    if grid is None:
        grid = np.linspace(low - 5 * sigma, high + 5 * sigma, points)
    values = np.zeros(len(grid))
    for row, weight in zip(nodes, weights, strict=True):
        values += norm.pdf(grid[:, None], row, sigma) @ weight
    return grid, values / len(nodes)
