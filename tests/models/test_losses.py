"""Equations 1 and 2 against numpy, against their limits, and against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax

from tbkd_utils.errors import ModelError, TbkdError, UsageError
from tbkd_utils.models.losses import Focal, build_loss, class_weights, distillation_loss, soft_target_loss, soften

temperatures = st.floats(0.25, 20)
alphas = st.floats(0, 1)


@st.composite
def logits(draw, sets=2):
    """Several arrays (n, classes) of one shape, float64."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 4)))
    return [draw(hnp.arrays(np.float64, shape, elements=st.floats(-20, 20))) for _ in range(sets)]


def random_logits(n=6, classes=2, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, n, classes, generator=generator, dtype=dtype)
    return student, teacher, torch.randint(classes, (n,), generator=generator)


def numpy_loss(student, teacher, targets, temperature, alpha):
    """Both equations, written out."""
    q, p = log_softmax(student / temperature, axis=1), log_softmax(teacher / temperature, axis=1)
    soft = temperature**2 * np.mean(np.sum(np.exp(p) * (p - q), axis=1))
    hard = -np.mean(log_softmax(student, axis=1)[np.arange(len(targets)), targets])
    return (1 - alpha) * soft + alpha * hard


# ---------------------------------------------------------------------------------------------------------- equations


@settings(deadline=None)
@given(logits(), temperatures, alphas, st.data())
def test_equations_equal_numpy(pair, temperature, alpha, data):
    student, teacher = pair
    targets = data.draw(hnp.arrays(np.int64, len(student), elements=st.integers(0, student.shape[1] - 1)))
    found = distillation_loss(*map(torch.from_numpy, (student, teacher, targets)), temperature, alpha)
    expected = numpy_loss(student, teacher, targets, temperature, alpha)
    assert found.ndim == 0
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_soft_loss_by_hand():
    """T = 1: the teacher says (1/2, 1/2), the student (1/4, 3/4).

    KL(teacher || student) = 1/2 ln(2) + 1/2 ln(2/3) = ln(2 / sqrt(3)) = 0.14384, while the other direction,
    KL(student || teacher) = 1/4 ln(1/2) + 3/4 ln(3/2) = 0.13081.
    """
    student, teacher = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[5.0, 5.0]])
    assert soft_target_loss(student, teacher, 1.0).item() == pytest.approx(math.log(2 / math.sqrt(3)), rel=1e-6)
    other_way = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert soft_target_loss(teacher, student, 1.0).item() == pytest.approx(other_way, rel=1e-6)


def test_the_soft_loss_by_hand_at_two():
    """The same distributions at T = 2, from logits twice as large: four times the loss."""
    student, teacher = torch.tensor([[0.0, 2 * math.log(3)]]), torch.tensor([[1.0, 1.0]])
    assert soft_target_loss(student, teacher, 2.0).item() == pytest.approx(4 * math.log(2 / math.sqrt(3)), rel=1e-6)


def test_the_loss_by_hand_at_the_papers_values():
    """T = 2 and alpha = 0.75, two images: 0.25 * mean of the soft losses + 0.75 * mean of the cross-entropies."""
    student = torch.tensor([[0.0, 2 * math.log(3)], [1.0, 1.0]])
    teacher = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    soft = (4 * math.log(2 / math.sqrt(3)) + 0) / 2
    hard = (-math.log(9 / 10) + math.log(2)) / 2  # at T = 1 the student says (1/10, 9/10) and (1/2, 1/2)
    found = distillation_loss(student, teacher, torch.tensor([1, 0]), 2.0, 0.75)
    assert found.item() == pytest.approx(0.25 * soft + 0.75 * hard, rel=1e-6)


# -------------------------------------------------------------------------------------------------------------- limits


@settings(deadline=None)
@given(logits(), temperatures, st.data())
def test_alpha_one_is_cross_entropy(pair, temperature, data):
    student, teacher = map(torch.from_numpy, pair)
    targets = torch.tensor([data.draw(st.integers(0, student.shape[1] - 1)) for _ in range(len(student))])
    assert torch.equal(distillation_loss(student, teacher, targets, temperature, 1), F.cross_entropy(student, targets))


@settings(deadline=None)
@given(logits(), temperatures)
def test_alpha_zero_is_the_teacher_alone(pair, temperature):
    student, teacher = map(torch.from_numpy, pair)
    found = {
        distillation_loss(student, teacher, torch.full((len(student),), label), temperature, 0).item()
        for label in range(student.shape[1])
    }
    assert found == {soft_target_loss(student, teacher, temperature).item()}


@settings(deadline=None)
@given(logits(sets=1), temperatures)
def test_equal_logits_give_no_soft_loss_and_no_gradient(single, temperature):
    student = torch.from_numpy(single[0]).requires_grad_()
    loss = soft_target_loss(student, student.detach().clone(), temperature)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() < 1e-12 * temperature


@settings(deadline=None)
@given(logits(), temperatures)
def test_the_soft_loss_is_not_negative(pair, temperature):
    student, teacher = map(torch.from_numpy, pair)
    assert soft_target_loss(student, teacher, temperature).item() >= -1e-13 * temperature**2
    single = soft_target_loss(student.float(), teacher.float(), temperature).item()
    assert single >= -1e-6 * temperature**2


@settings(deadline=None)
@given(logits(), temperatures, alphas, st.floats(-10, 10))
def test_a_constant_added_to_all_logits_changes_nothing(pair, temperature, alpha, shift):
    student, teacher = map(torch.from_numpy, pair)
    targets = torch.zeros(len(student), dtype=torch.int64)
    expected = distillation_loss(student, teacher, targets, temperature, alpha)
    shifted = distillation_loss(student + shift, teacher - shift, targets, temperature, alpha)
    torch.testing.assert_close(shifted, expected, rtol=1e-9, atol=1e-9)


@given(logits(), temperatures, alphas)
@settings(deadline=None, max_examples=40)
def test_the_loss_is_a_mean_over_the_batch(pair, temperature, alpha):
    student, teacher = map(torch.from_numpy, pair)
    targets = torch.zeros(len(student), dtype=torch.int64)
    rows = [
        distillation_loss(student[i : i + 1], teacher[i : i + 1], targets[i : i + 1], temperature, alpha)
        for i in range(len(student))
    ]
    whole = distillation_loss(student, teacher, targets, temperature, alpha)
    torch.testing.assert_close(whole, torch.stack(rows).mean(), rtol=1e-9, atol=1e-12)


# ----------------------------------------------------------------------------------------------------------- gradients


def test_the_gradient_of_the_soft_loss_is_the_difference_of_the_softened_probabilities():
    """d/dz_s of equation 2 = T * (softmax(z_s / T) - softmax(z_t / T)) / n."""
    student, teacher, _ = random_logits(classes=3)
    student.requires_grad_()
    for temperature in (0.5, 1.0, 2.0, 5.0):
        (found,) = torch.autograd.grad(soft_target_loss(student, teacher, temperature), student)
        softened = [torch.softmax(z.detach() / temperature, dim=1) for z in (student, teacher)]
        torch.testing.assert_close(found, temperature * (softened[0] - softened[1]) / len(student))


def test_gradcheck():
    student, teacher, targets = random_logits(n=3, classes=3)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: distillation_loss(z, teacher, targets, 2.0, 0.75), student)


def test_the_factor_keeps_the_gradient_at_high_temperature():
    """Hinton et al. 2015, section 2.1: for T far above the logits it tends to (z_s - z_t) / classes, centerd logits."""
    student, teacher, _ = random_logits(n=5, classes=2)
    student, teacher = (z - z.mean(dim=1, keepdim=True) for z in (student, teacher))
    student.requires_grad_()
    limit = (student - teacher).detach() / 2 / len(student)
    errors = []
    for temperature in (10.0, 100.0, 1000.0):
        (found,) = torch.autograd.grad(soft_target_loss(student, teacher, temperature), student)
        errors.append((found - limit).abs().max().item() / limit.abs().max().item())
    assert errors[0] < 0.1
    assert errors[1] < errors[0] / 50  # two classes: the next term falls with the square of T
    assert errors[2] < errors[1] / 50


@pytest.mark.parametrize("alpha", [0.0, 0.75])
def test_no_gradient_flows_into_the_teacher(alpha):
    student, teacher, targets = random_logits()
    student.requires_grad_()
    teacher.requires_grad_()
    distillation_loss(student, teacher, targets, 2.0, alpha).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_a_teacher_under_inference_mode_will_do():
    student, teacher, targets = random_logits()
    with torch.inference_mode():
        inferred = teacher.clone()
    distillation_loss(student.requires_grad_(), inferred, targets, 2.0, 0.75).backward()
    assert student.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------------------ precision


def test_extreme_logits_stay_finite():
    student = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4], [-1e4, 1e4]])
    loss = distillation_loss(student, teacher, torch.tensor([1, 1]), 2.0, 0.75)
    loss.backward()
    # Image 1: soft 4 * 1e4 nats and hard 2e4 nats, image 2: both zero.
    assert loss.item() == pytest.approx((0.25 * 4e4 + 0.75 * 2e4) / 2)
    assert student.grad.isfinite().all()


def test_half_precision_logits_lose_little_under_autocast():
    student, teacher, targets = random_logits(n=16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = distillation_loss(student.bfloat16(), teacher.bfloat16(), targets, 2.0, 0.75)
    rounded = [z.bfloat16().double().numpy() for z in (student, teacher)]
    assert found.item() == pytest.approx(numpy_loss(*rounded, targets.numpy(), 2.0, 0.75), rel=1e-2)


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("temperature", [0, 0.0, -1, -0.5, math.nan, math.inf, -math.inf])
def test_temperature_out_of_range(temperature):
    student, teacher, targets = random_logits()
    with pytest.raises(UsageError, match=f"temperature is {temperature}: expected a number above 0"):
        soft_target_loss(student, teacher, temperature)
    with pytest.raises(UsageError, match="temperature"):
        distillation_loss(student, teacher, targets, temperature, 0.5)
    with pytest.raises(UsageError, match="temperature"):  # even where it would not matter
        distillation_loss(student, teacher, targets, temperature, 1.0)


@pytest.mark.parametrize("alpha", [-0.01, 1.01, 2, math.nan, math.inf, math.nextafter(1, 2)])
def test_alpha_out_of_range(alpha):
    with pytest.raises(UsageError, match=f"alpha is {alpha}: expected a number from 0 to 1"):
        distillation_loss(*random_logits(), 2.0, alpha)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((4, 2), (4, 3)), ((4, 2), (3, 2)), ((4, 2), (1, 2)), ((4,), (4,)), ((2, 2, 2), (2, 2, 2)), ((0, 2), (0, 2)),
     ((), ())],
)  # fmt: skip
def test_logits_of_shapes_that_do_not_fit(student, teacher):
    with pytest.raises(UsageError, match=r"one shape \(n, classes\), n > 0"):
        soft_target_loss(torch.zeros(student), torch.zeros(teacher), 2.0)


@pytest.mark.parametrize("targets", [(3,), (1,), (4, 1), (4, 2), ()])
def test_targets_of_shapes_that_do_not_fit(targets):
    """A single target is not silently meant for every image."""
    with pytest.raises(UsageError, match="one target per row"):
        distillation_loss(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(targets, dtype=torch.int64), 2.0, 0.75)


def test_errors_are_ones_that_the_user_can_mend():
    assert issubclass(UsageError, TbkdError)
    assert issubclass(UsageError, ValueError)


@given(st.floats(-8, 8), st.floats(-8, 8), temperatures)
def test_softening_a_probability_is_dividing_the_logits(a, b, temperature):
    p, expected = (torch.tensor([a, b], dtype=torch.float64) / t for t in (1, temperature))
    assert soften(p.softmax(0)[1], temperature) == pytest.approx(float(expected.softmax(0)[1]), abs=1e-6)


def test_softening_keeps_certainty_and_doubt():
    np.testing.assert_allclose(soften([0.0, 0.5, 1.0], 4), [0, 0.5, 1])
    assert soften(0.9, 2) == pytest.approx(0.75)  # odds of 9 become odds of 3


@pytest.mark.parametrize(("p", "temperature"), [(1.1, 1), (-0.1, 1), (math.nan, 1), (0.5, 0), (0.5, math.inf)])
def test_what_cannot_be_softened_is_refused(p, temperature):
    with pytest.raises(UsageError):
        soften(p, temperature)


# ------------------------------------------------------------------------------------------------- focal loss and alpha

SOURCE_COUNTS = (1114, 2951)  # normal and pneumonia, the training images of arXiv 2511.00456
FOUR_LOGITS = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
FOUR_TARGETS = torch.tensor([0, 0, 0, 1])


def focal_settings(gamma: float = 2.0, balance: str = "none") -> dict[str, object]:
    """What a recipe hands to `build_loss`."""
    return {"focal_gamma": gamma, "balance": balance, "class_counts": SOURCE_COUNTS, "label_smoothing": 0.0}


def loss_of(loss, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The one term that a loss without teacher has."""
    terms = loss(logits, {"targets": targets}, None)
    assert set(terms) == {"loss"}
    return terms["loss"]


def test_alpha_is_the_inverse_frequency_scaled_to_the_number_of_classes() -> None:
    alpha = class_weights(SOURCE_COUNTS)
    assert alpha == pytest.approx((1.4519066, 0.5480934), abs=1e-7)
    assert alpha[0] / alpha[1] == pytest.approx(2.649013, abs=1e-6)
    assert (alpha[0] / alpha[1]) ** 2 == pytest.approx(7.017, abs=5e-4)  # what sampler and alpha together do
    assert class_weights((5, 5)) == (1, 1)
    assert class_weights((1, 2, 4)) == pytest.approx((12 / 7, 6 / 7, 3 / 7))


@pytest.mark.parametrize("counts", [(0, 5), (5, 0), (0, 0), (), (-1, 5)])
def test_a_class_without_image_has_no_weight(counts: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="at least one image of each class"):
        class_weights(counts)


@pytest.mark.parametrize(
    ("balance", "each"),
    [
        ("none", (0.17328680, 0.00180356, 1.65007830, 0.00180356)),
        ("sampler", (0.17328680, 0.00180356, 1.65007830, 0.00180356)),
        ("alpha", (0.25159624, 0.00261861, 2.39575952, 0.00098852)),
        ("both", (0.25159624, 0.00261861, 2.39575952, 0.00098852)),
    ],
)
def test_focal_loss_of_four_images_is_known(balance: str, each: tuple[float, ...]) -> None:
    loss = build_loss("focal", focal_settings(balance=balance))
    for place, expected in enumerate(each):
        one = slice(place, place + 1)
        assert loss_of(loss, FOUR_LOGITS[one], FOUR_TARGETS[one]).item() == pytest.approx(expected, abs=2e-7)
    mean = loss_of(loss, FOUR_LOGITS, FOUR_TARGETS)
    assert mean.ndim == 0
    assert mean.item() == pytest.approx(sum(each) / 4, abs=2e-7)
    if balance == "both":
        assert mean.item() == pytest.approx(0.66274071, abs=2e-7)


def test_the_weighted_mean_is_over_images_and_not_over_weights() -> None:
    """Unlike torch's cross-entropy, which divides by the sum of the weights in the batch."""
    single = loss_of(Focal(2.0, (3.0, 1.0)), FOUR_LOGITS[:1], FOUR_TARGETS[:1])
    assert single.item() == pytest.approx(3 * math.log(2) / 4, rel=1e-6)


def test_focal_loss_without_gamma_and_alpha_is_cross_entropy() -> None:
    student, _, targets = random_logits(n=20, classes=3, dtype=torch.float32)
    torch.testing.assert_close(loss_of(Focal(0.0), student, targets), F.cross_entropy(student, targets))
    plain = build_loss("focal", focal_settings(gamma=0.0))
    crossed = build_loss("cross_entropy", focal_settings())
    torch.testing.assert_close(*(loss_of(loss, FOUR_LOGITS, FOUR_TARGETS) for loss in (plain, crossed)))


def test_focal_loss_with_alpha_alone_is_torchs_weighted_cross_entropy() -> None:
    alpha = torch.tensor(class_weights(SOURCE_COUNTS))
    expected = F.cross_entropy(FOUR_LOGITS, FOUR_TARGETS, weight=alpha, reduction="none").mean()
    found = loss_of(build_loss("focal", focal_settings(gamma=0.0, balance="alpha")), FOUR_LOGITS, FOUR_TARGETS)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 5.0])
def test_focal_loss_equals_numpy(gamma: float) -> None:
    student, _, targets = random_logits(n=12, classes=3)
    weights = (0.5, 1.0, 1.5)
    log_t = log_softmax(student.numpy(), axis=1)[np.arange(12), targets.numpy()]
    expected = np.mean(-np.array(weights)[targets.numpy()] * (1 - np.exp(log_t)) ** gamma * log_t)
    assert loss_of(Focal(gamma, weights), student, targets).item() == pytest.approx(expected, rel=1e-5)


def best_constant(loss, counts: tuple[int, int]) -> tuple[float, float]:
    """Fits a bias alone to so many images of each class: p(normal) and the loss there."""
    targets = torch.repeat_interleave(torch.arange(2), torch.tensor(counts))
    bias = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias], max_iter=100, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss_of(loss, bias.expand(len(targets), 2), targets)
        value.backward()
        return value

    optimizer.step(step)
    return torch.softmax(bias, 0)[0].item(), loss_of(loss, bias.expand(len(targets), 2), targets).item()


NATURAL, EVEN = SOURCE_COUNTS, (2000, 2000)  # what the sampler draws on average


@pytest.mark.parametrize(
    ("gamma", "balance", "drawn", "normal"),
    [
        (0.0, "none", NATURAL, 0.2740),
        (0.0, "sampler", EVEN, 0.5000),
        (0.0, "alpha", NATURAL, 0.5000),
        (0.0, "both", EVEN, 0.7260),
        (2.0, "none", NATURAL, 0.4100),
        (2.0, "sampler", EVEN, 0.5000),
        (2.0, "alpha", NATURAL, 0.5000),
        (2.0, "both", EVEN, 0.5900),
    ],
)
def test_the_best_constant_predictor_is_known(
    gamma: float, balance: str, drawn: tuple[int, int], normal: float
) -> None:
    """Sampler and alpha together correct the imbalance twice: past one half."""
    assert best_constant(build_loss("focal", focal_settings(gamma, balance)), drawn)[0] == pytest.approx(
        normal, abs=1e-3
    )


def test_the_loss_of_the_best_constant_predictor_is_known() -> None:
    losses = {
        balance: best_constant(build_loss("focal", focal_settings(balance=balance)), drawn)[1]
        for balance, drawn in (("none", NATURAL), ("sampler", EVEN), ("both", EVEN))
    }
    assert losses == pytest.approx({"none": 0.1494, "sampler": math.log(2) / 4, "both": 0.1494}, abs=1e-4)


def test_the_best_constant_predictor_of_cross_entropy_is_the_frequency() -> None:
    assert best_constant(build_loss("cross_entropy", focal_settings()), NATURAL)[0] == pytest.approx(0.2740, abs=1e-3)
    assert best_constant(build_loss("cross_entropy", focal_settings()), EVEN)[0] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("gamma", [-0.1, -2.0, math.nan, math.inf])
def test_gamma_out_of_range(gamma: float) -> None:
    with pytest.raises(UsageError, match=f"gamma is {gamma}: expected a number, 0 or more"):
        build_loss("focal", focal_settings(gamma))


@pytest.mark.parametrize("balance", ["alpha", "both"])
@pytest.mark.parametrize("name", ["cross_entropy", "distillation"])
def test_a_loss_without_weights_cannot_balance_by_them(name: str, balance: str) -> None:
    settings_ = focal_settings(balance=balance) | {"temperature": 2.0, "alpha": 0.75}
    with pytest.raises(ModelError, match=f"balance is {balance}, but the loss '{name}' takes no class weights"):
        build_loss(name, settings_)


def test_alpha_of_a_class_without_image_is_refused() -> None:
    with pytest.raises(UsageError, match=r"at least one image of each class; got \(0, 5\)"):
        build_loss("focal", focal_settings(balance="alpha") | {"class_counts": (0, 5)})


def test_unknown_loss() -> None:
    with pytest.raises(ModelError, match="no loss 'focus': expected one of cross_entropy, focal"):
        build_loss("focus", focal_settings())


@pytest.mark.parametrize(
    "gamma",
    [
        0.0,
        0.5,
        1.0,
        2.0,
    ],
)
def test_focal_loss_of_sure_answers_has_a_finite_gradient(gamma: float) -> None:
    sure = torch.tensor([[200.0, 0.0], [200.0, 0.0]], requires_grad=True)  # p is 1 and 0 in float32
    loss_of(Focal(gamma), sure, torch.tensor([0, 1])).backward()
    assert sure.grad.isfinite().all()


def test_focal_loss_is_computed_in_float32_under_mixed_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_of(Focal(2.0, (1.5, 0.5)), FOUR_LOGITS.bfloat16(), FOUR_TARGETS)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss_of(Focal(2.0, (1.5, 0.5)), FOUR_LOGITS, FOUR_TARGETS).item(), rel=1e-6)
