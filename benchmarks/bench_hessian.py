"""Our spectrum against PyHessian 0.1 on one trained network and its data: products, seconds and error.

    python benchmarks/bench_hessian.py [--json]     also writes benchmarks/HESSIAN.md

The reference eigenvalues are scipy's ``eigsh`` in float64 over products by forward-over-reverse, which share no code
with either side; the reference trace is the mean of many probes, with its standard error. A product is one
Hessian-vector product over all the data.
"""

import copy
import time
from pathlib import Path

import numpy as np
import torch
from harness import Row, in_turns, machine, ratio, report
from hessian_subject import bright_spots, trained_network
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from tbkd_utils.curvature.products import Graph, reverse_over_forward
from tbkd_utils.curvature.pyhessian import pyhessian_numbers
from tbkd_utils.curvature.spectrum import hessian_spectrum
from tbkd_utils.models.networks import build_network

TOP = 10
loss = nn.functional.cross_entropy


def reference_eigenvalues(model: nn.Module, inputs: Tensor, targets: Tensor) -> np.ndarray:
    """The top eigenvalues (TOP,) to about ten digits, by a route of their own."""
    model = copy.deepcopy(model).double()
    named = {name: p.detach() for name, p in model.named_parameters()}
    counts = [p.numel() for p in named.values()]

    def value(parameters: dict[str, Tensor]) -> Tensor:
        return loss(functional_call(model, parameters, (inputs.double(),)), targets)

    def product(vector: np.ndarray) -> np.ndarray:
        pieces = torch.as_tensor(vector.ravel()).split(counts)
        tangent = {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        image = jvp(grad(value), (named,), (tangent,))[1]
        return torch.cat([image[name].flatten() for name in named]).numpy()

    operator = LinearOperator((sum(counts), sum(counts)), matvec=product, dtype=np.float64)
    values = eigsh(operator, TOP + 2, which="LM", tol=1e-9, ncv=50, return_eigenvectors=False)
    return values[np.argsort(-np.abs(values))][:TOP]


def row(name: str, products: int, seconds: float, values: np.ndarray, truth: np.ndarray, residuals: np.ndarray) -> str:
    errors = np.abs(values / truth - 1)
    met = f"{int((residuals <= 1e-3).sum())} of {len(residuals)}"
    cells = [name, products, f"{seconds:.1f}", f"{errors.max():.1e}", f"{residuals.max():.1e}", met]
    return "| " + " | ".join(map(str, cells)) + " |"


def routes(name: str, batch: int) -> Row:
    """Seconds of one product of a real network by the three routes."""
    model = build_network(name, 2, "none", 0).eval()
    inputs = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(batch) % 2
    parameters = list(model.parameters())
    pieces = [torch.randn_like(p) for p in parameters]
    named = {key: p.detach() for key, p in model.named_parameters()}
    tangent = dict(zip(named, pieces, strict=True))

    def value(given: dict[str, Tensor]) -> Tensor:
        return loss(functional_call(model, given, (inputs,)), targets)

    sides = {
        "double backward": lambda: Graph(loss(model(inputs), targets), parameters, batch).product(pieces, keep=False),
        "reverse over forward": lambda: reverse_over_forward(model, lambda z: loss(z, targets), inputs, pieces),
        "forward over reverse": lambda: jvp(grad(value), (named,), (tangent,)),
    }
    seconds = in_turns(sides, rounds=3)
    _, text = ratio(seconds, "reverse over forward", "double backward")
    spent = ", ".join(f"{side} {np.median(values):.2f} s" for side, values in seconds.items())
    fastest = min(seconds, key=lambda side: np.median(seconds[side]))
    goal = f"a product by the fastest route: reverse over forward / double backward ({name}, batch {batch}, 224 px)"
    return Row("hessian", goal, f"{text}x", fastest == "reverse over forward", spent)


def measure() -> tuple[str, list[Row]]:
    """Both tables in words, and the goal's row."""
    torch.set_num_threads(1)

    inputs, targets = bright_spots(256, seed=0)
    model = trained_network(inputs, targets)
    batches = list(zip(inputs.split(100), targets.split(100), strict=True))
    truth = reference_eigenvalues(model, inputs, targets)

    lines = [
        f"Top {TOP} eigenvalues, trained network of {sum(p.numel() for p in model.parameters())} parameters, float32, "
        f"{len(inputs)} images in batches of 100. {machine()}. Reference: "
        f"{', '.join(f'{value:.4g}' for value in truth)}.",
        "",
        "| method | products | seconds | worst eigenvalue error | worst residual | residual <= 1e-3 |",
        "|---|---|---|---|---|---|",
    ]
    ours = hessian_spectrum(model, loss, batches, top=TOP, probes=0)
    lines.append(row("ours, tolerance 1e-3", ours.products, ours.seconds, ours.eigenvalues, truth, ours.residuals))
    theirs = {}
    for iterations, tolerance in ((100, 1e-3), (300, 1e-5), (1000, 1e-7)):
        found = pyhessian_numbers(
            model, loss, batches, top=TOP, max_iterations=iterations, tolerance=tolerance, density_probes=0
        )
        theirs[iterations] = found
        name = f"PyHessian, maxIter {iterations}, tol {tolerance:g}"
        used, seconds = found.eigenvalue_products, found.eigenvalue_seconds
        ordered = found.eigenvalues[np.argsort(-np.abs(found.eigenvalues))]  # its own order would only add errors
        lines.append(row(name, used, seconds, ordered, truth, found.residuals))

    sure = hessian_spectrum(model, loss, batches, top=TOP, probes=200, steps=1, seed=1)
    began = time.perf_counter()
    trace = hessian_spectrum(model, loss, batches, top=TOP, probes=20, steps=1)
    seconds = time.perf_counter() - began
    low, high = trace.trace_interval
    default = theirs[100]
    lines += [
        "",
        f"Trace, reference {sure.trace:.1f} ± {sure.trace_stderr:.1f} (standard error, 200 probes).",
        "",
        "| method | products | seconds | trace | error | stated |",
        "|---|---|---|---|---|---|",
        f"| ours, 20 probes (eigenvalues included) | {trace.products} | {seconds:.1f} | {trace.trace:.1f} | "
        f"{trace.trace - sure.trace:+.1f} | 95% interval {low:.1f} to {high:.1f} |",
        f"| PyHessian, defaults (trace alone) | {default.trace_products} | "
        f"{default.seconds - default.eigenvalue_seconds:.1f} | {default.trace:.1f} | "
        f"{default.trace - sure.trace:+.1f} | nothing |",
    ]
    reached = [used for used in theirs.values() if used.residuals.max() <= 1e-3]
    rival = min((used.eigenvalue_products for used in reached), default=theirs[1000].eigenvalue_products)
    share = ours.products / rival
    note = f"{ours.products} products against {rival}, {'all ten' if reached else 'not all ten'} converged there"
    goal = "top 10 eigenvalues at a relative residual of 1e-3 with at most a fifth of PyHessian's products"
    return "\n".join(lines) + "\n", [
        Row("hessian", goal, f"{share:.3f}x", bool(share <= 0.2 and ours.converged.all()), note)
    ]


if __name__ == "__main__":
    tables, rows = measure()
    (Path(__file__).parent / "HESSIAN.md").write_text(tables)
    report([*rows, routes("efficientnet_lite0", 8), routes("resnet50", 4)])
