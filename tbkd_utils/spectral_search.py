"""How `hessian.spectrum` finds eigenpairs and density.

One run in two parts. Thick-restart Lanczos finds the top eigenpairs, and each is checked against the Hessian by a
product of its own. Then random probes, orthogonal to what was found, run Lanczos once more (stochastic Lanczos
quadrature): their nodes are the density's bulk, their first coefficients sample the trace, and a probe that sees an
eigenvalue beyond those found (the copy of a degenerate one, which a single Krylov space cannot hold) sends the search
back to the first part. Taking the top eigenpairs out before the probes leaves only the bulk to chance (the first half
of Hutch++, Meyer et al., SOSA 2021); probes uniform on the sphere keep the estimate unbiased.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tbkd_utils import lanczos
from tbkd_utils.objective import HessianError, Objective

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
