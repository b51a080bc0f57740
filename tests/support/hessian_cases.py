"""Networks and data whose Hessian is known, shared by the tests of the curvature modules."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from tbkd_utils.curvature.spectrum import Spectrum

cross_entropy = nn.functional.cross_entropy


class Quadratic(nn.Module):
    """The output is w.A.w / 2 for a symmetric A with the given eigenvalues, whatever the input."""

    def __init__(self, eigenvalues, seed=0, dtype=torch.float64):
        super().__init__()
        values = torch.as_tensor(np.asarray(eigenvalues), dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        turn, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
        self.register_buffer("matrix", ((turn * values) @ turn.T).to(dtype))
        self.w = nn.Parameter(torch.ones(len(values), dtype=dtype))

    def forward(self, inputs):
        return self.w @ self.matrix @ self.w / 2 + 0 * inputs.sum()


def output_itself(outputs, targets):
    return outputs


def blank_batches(count=2):
    return [(torch.zeros(1, 1), torch.zeros(1)) for _ in range(count)]


def small_mlp(seed):
    """A random classifier of 60 to 200 parameters, float64, and 40 samples in batches of 15, 15 and 10."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        widths = torch.randint(4, 9, (3,)).tolist()
        activation = [nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU][seed % 4]
        model = nn.Sequential(
            nn.Linear(widths[0], widths[1]),
            activation(),
            nn.Linear(widths[1], widths[2]),
            activation(),
            nn.Linear(widths[2], 3),
        ).double()
        inputs = torch.randn(40, widths[0], dtype=torch.float64)
        targets = torch.randint(0, 3, (40,))
    return model, list(zip(inputs.split(15), targets.split(15), strict=True))


def mean_loss_of(model, loss, batches):
    """The mean loss over all samples as a function of a dict of parameters."""
    samples = sum(len(targets) for _, targets in batches)

    def value(parameters):
        parts = [len(y) * loss(functional_call(model, parameters, (x,)), y) for x, y in batches]
        return sum(parts) / samples

    return value


def dense_hessian(model, loss, batches) -> np.ndarray:
    """The whole Hessian (n, n) by torch.autograd.functional, one column at a time."""
    named = dict(model.named_parameters())
    value = mean_loss_of(model, loss, batches)

    def of_flat(flat: Tensor) -> Tensor:
        pieces = flat.split([p.numel() for p in named.values()])
        return value({k: piece.view_as(p) for (k, p), piece in zip(named.items(), pieces, strict=True)})

    flat = torch.cat([p.detach().flatten() for p in named.values()])
    return torch.autograd.functional.hessian(of_flat, flat, vectorize=True).numpy()


def other_product(model, loss, batches, vector: np.ndarray) -> np.ndarray:
    """A Hessian-vector product by forward-over-reverse: no code in common with the package's."""
    named = {k: p.detach() for k, p in model.named_parameters()}
    pieces = torch.as_tensor(vector).split([p.numel() for p in named.values()])
    tangent = {k: piece.view_as(p).to(p) for (k, p), piece in zip(named.items(), pieces, strict=True)}
    image = jvp(grad(mean_loss_of(model, loss, batches)), (named,), (tangent,))[1]
    return torch.cat([image[k].flatten() for k in named]).double().numpy()


def by_magnitude(values, top=10):
    values = np.asarray(values)
    return values[np.argsort(-np.abs(values), kind="stable")][:top]


def a_spectrum(shift: float) -> Spectrum:
    """A spectrum of 100 eigenvalues made up for drawing: a crowd around `shift` and two that stand apart."""
    rng = np.random.default_rng(3)
    nodes = np.sort(rng.normal(0, 1, (2, 12)) + shift, axis=1)
    top = np.array([30.0 + shift, -8.0])
    nodes[:, :2] = top
    return Spectrum(
        eigenvalues=top, residuals=np.zeros(2), converged=np.ones(2, bool), eigenvectors=np.zeros((0, 100)),
        trace=5.0, trace_stderr=1.0, trace_interval=(3.0, 7.0), density_nodes=nodes,
        density_weights=np.full((2, 12), 1 / 12), parameters=100, samples=4, loss=0.5, products=9, seconds=0.1,
    )  # fmt: skip


def fitted():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 2))
    model[0].bias.requires_grad_(False)
    model.train()
    model[2].eval()
    batches = [(torch.randn(8, 4), torch.randint(0, 2, (8,))) for _ in range(3)]
    cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    return model, batches


def state_of(model):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [m.training for m in model.modules()],
        [(p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        torch.is_grad_enabled(),
        torch.backends.cudnn.allow_tf32,
    )


def assert_same_state(model, before):
    after = state_of(model)
    assert all(torch.equal(after[0][k], v) for k, v in before[0].items())
    assert after[1] == before[1]
    for (flag, given, values), (old_flag, old_given, old_values) in zip(after[2], before[2], strict=True):
        assert flag == old_flag
        assert given is old_given
        assert values is old_values is None or torch.equal(values, old_values)
    assert after[3:] == before[3:]
