import numpy as np
import pytest
import torch
from hessian_cases import Quadratic, blank_batches, cross_entropy, output_itself, small_mlp
from torch import nn

from tbkd_utils.curvature.landscape import filter_normalized_direction, loss_along, loss_rise
from tbkd_utils.curvature.spectrum import hessian_spectrum
from tbkd_utils.errors import ModelError


def convolutional():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).train()
    batches = [(torch.randn(size, 2, 4, 4), torch.randint(0, 2, (size,))) for size in (6, 3)]
    return model, batches


def test_filters_get_the_norms_of_the_networks():
    model, _ = convolutional()
    direction = filter_normalized_direction(model, seed=3)
    convolution, bias, scale, shift, linear, last = direction.split([p.numel() for p in model.parameters()])
    torch.testing.assert_close(convolution.view(3, -1).norm(dim=1), model[0].weight.detach().flatten(1).norm(dim=1))
    torch.testing.assert_close(linear.view(2, -1).norm(dim=1), model[4].weight.detach().norm(dim=1))
    assert not any(part.any() for part in (bias, scale, shift, last))
    assert torch.equal(direction, filter_normalized_direction(model, seed=3))
    assert not torch.equal(direction, filter_normalized_direction(model, seed=4))
    with torch.no_grad():
        model[0].weight[1].zero_()  # a dead filter does not move
    assert not filter_normalized_direction(model, seed=3)[18:36].any()


def test_a_quadratic_rises_as_its_matrix_says():
    model = Quadratic([3.0, 2, -1, 0.5])
    at = model.w.detach()
    direction = torch.tensor([1.0, -2, 0.5, 3], dtype=torch.float64)
    radii = np.linspace(-1, 1, 5)
    losses = loss_along(model, output_itself, blank_batches(), direction, radii)
    expected = [float((at + r * direction) @ model.matrix @ (at + r * direction) / 2) for r in radii]
    np.testing.assert_allclose(losses, expected)


def test_along_the_top_eigenvector_the_second_difference_is_the_eigenvalue():
    model, batches = small_mlp(4)
    found = hessian_spectrum(model, cross_entropy, batches, tolerance=1e-6, probes=0)
    step = 1e-3
    low, middle, high = loss_along(model, cross_entropy, batches, found.eigenvectors[0], np.array([-step, 0, step]))
    assert middle == pytest.approx(found.loss, rel=1e-12)
    assert (low - 2 * middle + high) / step**2 == pytest.approx(found.eigenvalues[0], rel=1e-3)


@pytest.mark.parametrize("fails", [False, True])
def test_model_is_left_bit_for_bit(fails):
    model, batches = convolutional()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pointers = [p.data_ptr() for p in model.parameters()]
    calls = []

    def loss(outputs, targets):
        calls.append(0)
        if fails and len(calls) == 3:
            raise KeyboardInterrupt
        return cross_entropy(outputs, targets)

    if fails:
        with pytest.raises(KeyboardInterrupt):
            loss_rise(model, loss, batches, draws=2)
    else:
        loss_rise(model, loss, batches, draws=2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_rise_is_the_mean_over_its_draws():
    model, batches = small_mlp(7)
    found = loss_rise(model, cross_entropy, batches, radius=0.3, draws=4, seed=5)
    rises = []
    for seed in (5, 6, 7, 8):
        direction = filter_normalized_direction(model, seed)
        start, end = loss_along(model, cross_entropy, batches, direction, np.array([0, 0.3]))
        rises.append(end - start)
    np.testing.assert_allclose(found.rises, rises)
    assert found.mean == pytest.approx(np.mean(rises))
    assert found.stderr == pytest.approx(np.std(rises, ddof=1) / 2)
    assert found.loss == pytest.approx(start)


def test_bad_input_is_refused():
    model, batches = small_mlp(0)
    with pytest.raises(ModelError, match="direction has 3"):
        loss_along(model, cross_entropy, batches, torch.ones(3), np.array([1.0]))
    with pytest.raises(ModelError, match="radius"):
        loss_rise(model, cross_entropy, batches, radius=0)
    with pytest.raises(ModelError, match="draws"):
        loss_rise(model, cross_entropy, batches, draws=1)
    with pytest.raises(ModelError, match="no trainable weight"):
        filter_normalized_direction(nn.BatchNorm1d(3), 0)
    with pytest.raises(ModelError, match="no data"):
        loss_rise(model, cross_entropy, [])
    broken = [(batches[0][0] * float("inf"), batches[0][1])]
    direction = filter_normalized_direction(model, 0)
    with pytest.raises(ModelError, match="batch 0 is"):
        loss_along(model, cross_entropy, broken, direction, np.array([1.0]))
