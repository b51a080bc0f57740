"""PyHessian 0.1's own eigenvalues, trace and density, as the paper used them, counted and with the model left as found.

The eigenvalues and the trace are the library's as released (see `hessian` for correct ones). Its density calls
``torch.eig``, which torch no longer has; here that one call finds ``torch.linalg.eigh``, in PyHessian's namespace
alone and only during the call.
"""

import importlib
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tbkd_utils.curvature.lanczos import norm
from tbkd_utils.curvature.operator import Batches, HessianOperator, Loss
from tbkd_utils.errors import ModelError
from tbkd_utils.models.state import preserved


@dataclass(frozen=True)
class PyHessianNumbers:
    """What PyHessian returned, in its own order."""

    eigenvalues: np.ndarray  # (top,) float64, as found: not sorted
    residuals: np.ndarray  # (top,) float64, |Hv - ev| / |e| of its vectors, computed here and not counted
    trace: float  # mean of the samples
    trace_samples: np.ndarray  # (probes,) float64
    density_nodes: np.ndarray = field(repr=False)  # (density_probes, density_steps)
    density_weights: np.ndarray = field(repr=False)  # likewise
    eigenvalue_products: int  # Hessian-vector products, each over all samples
    trace_products: int
    density_products: int
    seconds: float
    eigenvalue_seconds: float


def pyhessian_numbers(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    *,
    top: int = 10,
    max_iterations: int = 100,
    tolerance: float = 1e-3,
    density_steps: int = 100,
    density_probes: int = 1,
    seed: int = 0,
) -> PyHessianNumbers:
    """Run PyHessian on the mean loss over a data set; the defaults are its own.

    Args:
        model: float32 or float64, on the CPU or the current CUDA device.
        loss: ``loss(outputs, targets)`` -> the mean over the batch, a scalar.
        batches: re-iterable pairs (inputs, targets).
        top: number of eigenvalues; 0 for none.
        max_iterations: most steps of the power method for each eigenvalue, and most probes for the trace.
        tolerance: PyHessian's: the relative change between two iterations that stops it, which bounds no error.
        density_steps: Lanczos steps of each density probe.
        density_probes: number of density probes; 0 for no density.
        seed: of torch's random stream during the call.

    Returns:
        `PyHessianNumbers`.

    Raises:
        ModelError: no trainable parameter, half precision, one-shot or empty data, a loss that is not finite, or a
            trainable parameter that the loss does not depend on (PyHessian cannot take it).
    """
    if max_iterations < 1 or top < 0 or density_probes < 0 or density_steps < 1:
        raise ModelError("needs max_iterations >= 1, top >= 0, density_steps >= 1, density_probes >= 0")
    library = importlib.import_module("pyhessian.hessian")
    began = time.perf_counter()
    with preserved(model, seed), _default_dtype(model), _mended(library), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph")
        objective = HessianOperator(model, loss, batches)
        _every_parameter_used(objective)
        for parameter in model.parameters():
            parameter.grad = None
        counted = _counted(library.hessian)(
            model, loss, dataloader=_Moved(objective), cuda=objective.device.type == "cuda"
        )
        values, vectors = counted.eigenvalues(maxIter=max_iterations, tol=tolerance, top_n=top) if top else ([], [])
        after_values, eigenvalue_seconds = counted.products, time.perf_counter() - began
        samples = counted.trace(maxIter=max_iterations, tol=tolerance)
        after_trace = counted.products
        residuals = _residuals(objective, values, vectors)
        nodes, weights = counted.density(iter=density_steps, n_v=density_probes) if density_probes else ([], [])
    return PyHessianNumbers(
        eigenvalues=np.array(values, dtype=np.float64),
        residuals=residuals,
        trace=float(np.mean(samples)),
        trace_samples=np.array(samples, dtype=np.float64),
        density_nodes=np.array(nodes, dtype=np.float64).reshape(-1, density_steps),
        density_weights=np.array(weights, dtype=np.float64).reshape(-1, density_steps),
        eigenvalue_products=after_values,
        trace_products=after_trace - after_values,
        density_products=counted.products - after_trace,
        seconds=time.perf_counter() - began,
        eigenvalue_seconds=eigenvalue_seconds,
    )


def _residuals(objective: HessianOperator, values: list[float], vectors: list[list[Tensor]]) -> np.ndarray:
    if not values:
        return np.empty(0)
    rows = torch.stack([torch.cat([part.reshape(-1) for part in vector]) for vector in vectors])
    for row in rows:
        row /= norm(row)
    off = objective.products(rows) - torch.tensor(values).to(rows)[:, None] * rows
    return np.array([norm(row) for row in off]) / np.maximum(np.abs(values), np.finfo(float).tiny)


def _counted(base: type) -> Any:
    """PyHessian's class with a count of its products."""

    class Counted(base):
        products = 0

        def dataloader_hv_product(self, v: list[Tensor]) -> tuple[float, list[Tensor]]:
            self.products += 1
            return super().dataloader_hv_product(v)

    return Counted


class _Moved:
    """Batches as `HessianOperator` reads them: checked, moved and cast."""

    def __init__(self, objective: HessianOperator) -> None:
        self.objective = objective

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _, inputs, targets in self.objective.each_batch():
            yield inputs, targets


def _every_parameter_used(objective: HessianOperator) -> None:
    for number, inputs, targets in objective.each_batch():
        value = objective.batch_loss(number, objective.model(inputs), targets)
        if number == 0 and not value.requires_grad:
            raise ModelError("the loss does not depend on any trainable parameter (is something detached?)")
        grads = torch.autograd.grad(value, objective.parameters, allow_unused=True)
        if any(grad is None for grad in grads):
            raise ModelError(
                "PyHessian needs a loss that depends on every trainable parameter; freeze the others "
                "(requires_grad_(False))"
            )


@contextmanager
def _default_dtype(model: nn.Module) -> Iterator[None]:
    """PyHessian makes its vectors in torch's default dtype, whatever the model's."""
    before = torch.get_default_dtype()
    dtype = next((p.dtype for p in model.parameters() if p.requires_grad), before)
    try:
        torch.set_default_dtype(dtype if dtype in (torch.float32, torch.float64) else before)
        yield
    finally:
        torch.set_default_dtype(before)


class _TorchWithEig:
    """The torch module, plus ``eig`` for the symmetric matrices that PyHessian gives it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def eig(matrix: Tensor, eigenvectors: bool = False) -> tuple[Tensor, Tensor]:
        """Values (m, 2) as real and imaginary parts, and vectors (m, m) in columns."""
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


@contextmanager
def _mended(library: ModuleType) -> Iterator[None]:
    before = library.torch
    try:
        library.torch = _TorchWithEig()  # type: ignore[attr-defined]
        yield
    finally:
        library.torch = before  # type: ignore[attr-defined]
