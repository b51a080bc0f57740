"""Top eigenvalues, trace and density of a network's loss Hessian, each with its error (Tables 1-2, Fig. 7).

`spectral_search` says how they are found, `lanczos` holds the numerical core.
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
from tbkd_utils.curvature.memory import PeakMemory
from tbkd_utils.curvature.operator import Batches, Loss, Objective
from tbkd_utils.curvature.products import HessianError
from tbkd_utils.models.state import left_as_found

Progress = Callable[[int, int], None]


class SpectralSearch:
    """The state of one search.

    Args:
        objective: whose Hessian.
        top: number of eigenvalues.
        steps: Lanczos steps of a probe.
        probes: number of probes.
        seed: of every random vector.
        tolerance: largest relative residual.
        max_products: where the search for eigenvalues gives up.
        progress: called as ``progress(done, expected)``.

    Attributes:
        k: ``min(top, n)``.
        values: (k,) eigenvalues found so far, by falling magnitude.
        residuals: (k,) their relative residuals.
        buffer: (k + room, n), its first k rows the eigenvectors found so far.
        unresolved: magnitude of an eigenvalue known to be missing, or 0.
    """

    def __init__(
        self,
        objective: Objective,
        top: int,
        steps: int,
        probes: int,
        seed: int,
        tolerance: float,
        max_products: int,
        progress: Progress | None,
    ) -> None:
        self.objective, self.probes, self.steps, self.tolerance = objective, probes, steps, tolerance
        self.max_products, self.progress = max_products, progress
        self.k = min(top, objective.size)
        rows = min(objective.size, self.k + max(steps, 20))
        self.buffer = torch.empty(rows, objective.size, dtype=objective.dtype, device=objective.device)
        self.generator = torch.Generator().manual_seed(seed)
        self.epsilon = torch.finfo(objective.dtype).eps
        self.values = self.residuals = np.empty(0)
        self.unresolved = 0.0  # magnitude of an eigenvalue that is known to be missing

    def find(self) -> None:
        """Find the top k from a random start."""
        start = lanczos.random_unit(self.buffer[:0], self.generator)
        self._eigenpairs(0, start, self.k)

    def find_missed(self) -> None:
        """Add the eigenpairs that the last probe pointed at, and keep the best k."""
        self._eigenpairs(self.k, self.hint, self.missed)

    def density(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Nodes and weights (probes, k + steps), or None if a probe met an eigenvalue that belongs to the top k."""
        size, room = self.objective.size, len(self.buffer) - self.k
        nodes = np.tile(np.r_[self.values, np.zeros(self.steps)], (self.probes, 1))
        weights = np.zeros_like(nodes)
        weights[:, : self.k] = 1 / size
        weakest = np.abs(self.values[-1])
        margin = max(0.01 * self.tolerance * weakest, 100 * self.epsilon * np.abs(self.values[0]))
        for probe in range(self.probes if room else 0):
            # Orthogonal to all that was found, so uniform over what is left: an unbiased sample of the bulk.
            start = lanczos.random_unit(self.buffer[: self.k], self.generator)
            space = self.buffer[: self.k + min(self.steps, room)]
            bulk = lanczos.quadrature(self._product, space, self.k, start)
            nodes[probe, self.k :] = np.pad(bulk.nodes, (0, self.steps - len(bulk.nodes)), mode="edge")
            weights[probe, self.k : self.k + len(bulk.nodes)] = bulk.weights * (size - self.k) / size
            # Interlacing: a Ritz value is never beyond the operator's own extreme eigenvalue.
            beyond = np.flatnonzero(np.abs(bulk.nodes[: len(bulk.vectors)]) > weakest + margin)
            if len(beyond) and self.objective.products_used < self.max_products:
                mix = torch.as_tensor(bulk.vectors[:, beyond].sum(1)).to(self.buffer)
                self.hint = mix @ space[self.k : self.k + len(mix)]
                self.missed = min(len(beyond), self.k, max(1, room - 2))
                return None
            if len(beyond):
                self.unresolved = max(self.unresolved, float(np.abs(bulk.nodes).max()))
        return nodes, weights

    def _eigenpairs(self, locked: int, start: Tensor, count: int) -> None:
        # The recurrence's residual leaves out rounding: aim at half, then look at the real one.
        found = lanczos.eigenpairs(
            self._product,
            self.buffer,
            locked,
            start,
            count,
            lambda values: 0.5 * self.tolerance * self._scale(values),
            self.generator,
            self.max_products - self.objective.products_used,
        )
        vectors = self.buffer[: locked + count]
        images = self.objective.products(vectors)
        self._tell()
        projected = lanczos.gram(vectors, images)
        values, turn = np.linalg.eigh((projected + projected.T) / 2)
        order = np.argsort(-np.abs(values), kind="stable")[: self.k]
        lanczos.rotate(vectors, turn[:, order])
        lanczos.rotate(images, turn[:, order])
        self.values = values[order]
        images[: self.k] -= torch.as_tensor(self.values).to(vectors)[:, None] * vectors[: self.k]
        norms = np.array([lanczos.norm(row) for row in images[: self.k]])
        scale = self._scale(self.values)
        self.residuals = np.divide(norms, scale, out=np.zeros_like(norms), where=scale > 0)
        # Rounding makes it about 1e-6; a wrong or random second derivative makes it of order one.
        if found.asymmetry > 0.01 * np.abs(values).max():
            raise HessianError(
                f"the Hessian products are not symmetric (by {found.asymmetry:.2g} where the largest eigenvalue is "
                f"{self.values[0]:.3g}): the network is random in evaluation mode, or an operation's second "
                "derivative is wrong"
            )

    def _scale(self, values: np.ndarray) -> np.ndarray:
        """What a residual is relative to: the eigenvalue, unless it drowns in the rounding of the largest."""
        magnitude = np.abs(values)
        return np.maximum(magnitude, 8 * self.epsilon / self.tolerance * magnitude.max(initial=0.0))

    def _product(self, vector: Tensor) -> Tensor:
        product = self.objective.products(vector[None])[0]
        self._tell()
        return product

    def _tell(self) -> None:
        if self.progress is not None:
            done = self.objective.products_used
            expected = len(self.buffer) + self.k + self.probes * self.steps
            self.progress(done, max(done, expected))


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
    peak_memory: int  # bytes above what was in use at the start; GPU memory if the model is there

    @property
    def all_converged(self) -> bool:
        """Whether every eigenvalue reached the tolerance."""
        return bool(self.converged.all())


def spectrum(
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
        HessianError: empty, one-shot or changing data, no trainable parameter, a loss that is not finite, an operation
            without a correct second derivative, arguments out of range.
    """
    if top < 1 or steps < 1 or probes < 0 or probes == 1 or not 0 < tolerance < 1 or keep_vectors < 0:
        raise HessianError("needs top >= 1, steps >= 1, probes 0 or >= 2, 0 < tolerance < 1, keep_vectors >= 0")
    began = time.perf_counter()
    with left_as_found(model, seed):
        objective = Objective(model, loss, batches)
        with PeakMemory(objective.device) as memory:
            search = SpectralSearch(objective, top, steps, probes, seed, tolerance, max_products, progress)
            search.find()
            while (rows := search.density()) is None:
                search.find_missed()
            vectors = search.buffer[: min(keep_vectors, search.k)].cpu().numpy().copy()
    nodes, weights = rows
    traces = objective.size * (nodes * weights).sum(1)  # a sample of the trace each
    stderr = float(traces.std(ddof=1) / probes**0.5) if probes else float("nan")
    mean = float(traces.mean()) if probes else float("nan")
    half = stderr * float(student_t.ppf(0.975, probes - 1)) if probes else float("nan")
    converged = search.residuals <= tolerance
    converged &= np.abs(search.values) >= search.unresolved
    if not converged.all():
        warnings.warn(
            f"{int((~converged).sum())} of {len(converged)} eigenvalues did not reach a residual of {tolerance:g}; "
            "raise max_products, or use float64",
            ConvergenceWarning,
            stacklevel=2,
        )
    return Spectrum(
        eigenvalues=search.values,
        residuals=search.residuals,
        converged=converged,
        eigenvectors=vectors,
        trace=mean,
        trace_stderr=stderr,
        trace_interval=(mean - half, mean + half),
        density_nodes=nodes,
        density_weights=weights,
        parameters=objective.size,
        samples=objective.samples,
        loss=objective.loss_value,
        products=objective.products_used,
        seconds=time.perf_counter() - began,
        peak_memory=memory.bytes,
    )


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
        HessianError: the spectrum was computed without probes.
    """
    nodes, weights = spectrum.density_nodes, spectrum.density_weights
    if not len(nodes):
        raise HessianError("this spectrum has no density: compute it with probes >= 2")
    low, high = float(nodes.min()), float(nodes.max())
    if sigma is None:
        sigma = 0.01 * (high - low) or 0.01 * abs(high) or 1.0
    if grid is None:
        grid = np.linspace(low - 5 * sigma, high + 5 * sigma, points)
    values = np.zeros(len(grid))
    for row, weight in zip(nodes, weights, strict=True):
        values += norm.pdf(grid[:, None], row, sigma) @ weight
    return grid, values / len(nodes)
