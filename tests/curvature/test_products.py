import numpy as np
import pytest
import torch
from hessian_cases import cross_entropy, other_product
from torch import nn

from tbkd_utils.curvature.operator import HessianOperator
from tbkd_utils.models.state import preserved


def network(groups):
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, groups=groups),
        nn.SiLU(),
    ]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))


def batches_of(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 2, 8, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator)) for n in sizes
    ]


@pytest.mark.parametrize(
    ("groups", "sizes", "forward"), [(1, (5,), False), (4, (5,), True), (1, (5, 3), True), (4, (5, 3, 4), True)]
)
def test_each_route_gives_the_independent_product(groups, sizes, forward):
    model, batches = network(groups).double().eval(), [(x.double(), y) for x, y in batches_of(*sizes)]
    vectors = np.random.default_rng(2).normal(size=(3, sum(p.numel() for p in model.parameters())))
    with preserved(model, 0):
        objective = HessianOperator(model, cross_entropy, batches)
        first = objective.products(torch.as_tensor(vectors)).numpy()
        again = objective.products(torch.as_tensor(vectors[1:2])).numpy()
    assert objective._forward is forward
    assert objective.products_used == 4
    expected = [other_product(model, cross_entropy, batches, vector) for vector in vectors]
    np.testing.assert_allclose(first, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(again[0], expected[1], rtol=1e-9, atol=1e-12)


def test_frozen_layers_are_left_out_on_both_routes():
    model, batches = network(4).double().eval(), [(x.double(), y) for x, y in batches_of(5, 3)]
    model[0].requires_grad_(False)
    sizes = [p.numel() for p in model.parameters()]
    frozen, free = sum(sizes[:2]), sum(sizes[2:])
    vector = torch.randn(free, dtype=torch.float64)
    with preserved(model, 0):
        found = HessianOperator(model, cross_entropy, batches).products(vector[None])[0]
    whole = other_product(model, cross_entropy, batches, np.r_[np.zeros(frozen), vector.numpy()])
    np.testing.assert_allclose(found, whole[frozen:], rtol=1e-9, atol=1e-12)


def test_a_loss_that_reads_the_weights_keeps_all_of_its_hessian():
    model, batches = network(4).double().eval(), [(x.double(), y) for x, y in batches_of(5, 3)]

    def decayed(outputs, targets):
        return cross_entropy(outputs, targets) + sum(p.square().sum() for p in model.parameters()) * 3 / 2

    vector = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    with preserved(model, 0):
        objective = HessianOperator(model, decayed, batches)
        found = objective.products(vector[None])[0]
    plain = other_product(model, cross_entropy, batches, vector.numpy())
    np.testing.assert_allclose(found, plain + 3 * vector.numpy(), rtol=1e-9, atol=1e-12)
    assert objective._forward is False


class Doubled(torch.autograd.Function):
    """Has a second derivative, but no forward mode."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class Twice(nn.Module):
    def forward(self, x):
        return Doubled.apply(x)


class Plain(nn.Module):
    def forward(self, x):
        return 2 * x


def test_an_operation_without_forward_mode_falls_back():
    batches = [(x.double(), y) for x, y in batches_of(5, 3)]
    custom = nn.Sequential(network(4), Twice()).double().eval()
    plain = nn.Sequential(network(4), Plain()).double().eval()
    vector = torch.randn(sum(p.numel() for p in plain.parameters()), dtype=torch.float64)
    with preserved(custom, 0):
        objective = HessianOperator(custom, cross_entropy, batches)
        found = objective.products(vector[None])[0]
    assert objective._forward is False
    np.testing.assert_allclose(
        found, other_product(plain, cross_entropy, batches, vector.numpy()), rtol=1e-9, atol=1e-12
    )


def test_the_route_is_chosen_once_for_a_network_and_a_loss_and_again_if_the_network_is_another(monkeypatch):
    chosen = []
    choose = HessianOperator._choose
    monkeypatch.setattr(HessianOperator, "_choose", lambda self, *given: chosen.append(1) or choose(self, *given))

    def look(model, loss, *sizes):
        with preserved(model, 0):
            objective = HessianOperator(model, loss, batches_of(*sizes))
            objective.products(torch.ones(1, objective.size))

    model = network(4)
    look(model, cross_entropy, 5, 3)
    look(model, cross_entropy, 3, 4, 2)
    assert len(chosen) == 1
    look(model, nn.CrossEntropyLoss(label_smoothing=0.1), 5, 3)  # another loss
    look(network(4), cross_entropy, 5, 3)  # another network
    look(model, cross_entropy, 5)  # data of one batch, whose graph can be kept
    assert len(chosen) == 4
    model[4] = nn.Tanh()
    look(model, cross_entropy, 5, 3)
    assert len(chosen) == 5
