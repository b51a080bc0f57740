"""Intervals and tests against closed forms, brute force, and the paper's Table 3."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tbkd_utils.errors import TbkdError, UsageError
from tbkd_utils.metrics.statistics import (
    SeedSummary,
    across_seeds,
    bootstrap_interval,
    bootstrap_metric,
    paired_difference,
    paired_permutation_test,
    patients_of,
    seeds_needed,
    skill,
    wilson_interval,
)

TEACHER = [0.1814, 0.1324, 0.1482, 0.1154]
STUDENT = [0.2355, 0.1190, 0.2428, 0.2651]
numbers = st.floats(-1e3, 1e3, allow_nan=False)


@given(st.lists(numbers, min_size=1, max_size=20), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_interval_lies_within_the_values_and_repeats(values, seed):
    low, high = bootstrap_interval(values, resamples=50, seed=seed)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert (low, high) == bootstrap_interval(values, resamples=50, seed=seed)


@pytest.mark.parametrize("values", [[0.3], [0.1] * 7])
def test_interval_of_a_constant_has_no_width(values):
    assert bootstrap_interval(values) == (values[0], values[0])


def test_interval_is_the_normal_one_for_many_images():
    x = np.random.default_rng(1).normal(5, 2, size=2000)
    half = 1.96 * x.std() / np.sqrt(len(x))
    low, high = bootstrap_interval(x, resamples=4000)
    assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.05 * half)


def test_interval_of_two_values_is_the_exact_quantile():
    # means of two draws from {0, 1}: 0 with 1/4, 1/2 with 1/2, 1 with 1/4
    assert bootstrap_interval([0, 1], level=0.4, resamples=4000) == (0.5, 0.5)
    assert bootstrap_interval([0, 1], level=0.6, resamples=4000) == (0.0, 1.0)


def test_interval_does_not_depend_on_how_the_draws_are_cut(monkeypatch):
    x = np.random.default_rng(0).random(37)
    whole = bootstrap_interval(x, resamples=101, seed=4)
    monkeypatch.setattr("tbkd_utils.metrics.statistics._CHUNK", 100)
    assert bootstrap_interval(x, resamples=101, seed=4) == whole


def test_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        low, high = bootstrap_interval(rng.exponential(size=60), resamples=300, seed=trial)
        hits += low <= 1 <= high
    assert 0.88 <= hits / 300 <= 0.98


def test_metric_on_one_stratum_equals_the_interval_of_the_mean():
    x = np.random.default_rng(0).random(31)
    found = bootstrap_metric(lambda i: {"mean": x[i].mean()}, np.zeros(31), resamples=200, seed=5)
    assert found["mean"] == pytest.approx(bootstrap_interval(x, resamples=200, seed=5), abs=1e-12)


def test_metric_keeps_the_size_of_every_stratum():
    strata = np.array(["a"] * 3 + ["b"] * 7)
    found = bootstrap_metric(lambda i: {"a": (strata[i] == "a").sum(), "n": len(i)}, strata, resamples=20)
    assert found == {"a": (3.0, 3.0), "n": (10.0, 10.0)}


def test_metric_leaves_undefined_resamples_out():
    calls = iter(range(100))
    found = bootstrap_metric(
        lambda i: {"some": 2.0 if next(calls) % 2 else np.nan, "none": np.nan}, [0, 0], resamples=100
    )
    assert found["some"] == (2.0, 2.0)
    assert np.isnan(found["none"]).all()


@given(st.integers(1, 60), st.data(), st.sampled_from([0.5, 0.9, 0.95]))
@settings(max_examples=40, deadline=None)
def test_wilson_ends_are_where_the_score_test_just_rejects(n, data, level):
    k = data.draw(st.integers(0, n))
    ends, z = wilson_interval(k, n, level=level), stats.norm.ppf(0.5 + level / 2)
    for end in ends:  # (k/n - end)^2 = z^2 end (1 - end) / n, or the border itself
        assert (k / n - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n, abs=1e-9)
    assert 0 <= ends[0] <= k / n <= ends[1] <= 1
    assert ends[0] < ends[1]
    assert wilson_interval(n - k, n, level=level) == pytest.approx((1 - ends[1], 1 - ends[0]))


def test_wilson_by_hand():
    assert wilson_interval(0, 1) == pytest.approx((0, 0.7934507), abs=1e-6)  # z^2 / (1 + z^2)
    for k, n in ((-1, 3), (4, 3), (0, 0), (1.5, 3), (1, 2.5), (np.nan, 3), (1, np.inf)):
        with pytest.raises(UsageError, match="whole"):
            wilson_interval(k, n)
    with pytest.raises(UsageError, match="level"):
        wilson_interval(1, 2, level=1)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=7))
@settings(max_examples=40, deadline=None)
def test_exact_permutation_is_the_brute_force_count(pairs):
    a, b = np.round(np.array(pairs).T, 1)
    d = a - b
    means = [np.mean(d * signs) for signs in itertools.product([-1, 1], repeat=len(d))]
    share = np.mean([abs(m) >= abs(d.mean()) - 1e-9 for m in means])
    p = paired_permutation_test(a, b)
    assert p == pytest.approx(share)
    assert p == pytest.approx(paired_permutation_test(b, a))
    assert 0 < p <= 1


def test_permutation_by_hand():
    assert paired_permutation_test([1, 2, 3], [0, 0, 0]) == pytest.approx(2 / 8)  # +++ and --- of 8 patterns
    assert paired_permutation_test([1, 2], [1, 2]) == 1.0
    assert paired_permutation_test([7], [1]) == 1.0


def test_drawn_permutation_is_never_zero_and_near_the_exact_one():
    rng = np.random.default_rng(0)
    assert paired_permutation_test(rng.random(40) + 5, np.zeros(40), resamples=999) == pytest.approx(2 / 1000)
    a, b = rng.normal(0.4, 1, 12), np.zeros(12)
    exact = paired_permutation_test(a, b, resamples=2**12)
    assert paired_permutation_test(a, b, resamples=4000) == pytest.approx(exact, abs=0.03)


def test_permutation_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(3)
    p = [paired_permutation_test(rng.normal(size=30), rng.normal(size=30), resamples=199) for _ in range(200)]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.10
    assert 0.4 <= np.mean(np.array(p) <= 0.5) <= 0.6


@pytest.mark.parametrize(
    ("values", "mean", "population", "sample"),
    [(TEACHER, 0.1443, 0.0243, 0.0281), (STUDENT, 0.2156, 0.0568, 0.0656)],
)
def test_table_3_of_the_paper(values, mean, population, sample):
    found = across_seeds(values)
    assert found.n == 4
    assert found.mean == pytest.approx(mean, abs=5.1e-5)  # the teacher's 0.14435 is printed as 0.1443
    assert round(found.population_std, 4) == population
    assert round(found.sample_std, 4) == sample
    half = 3.182446305284263 * found.sample_std / 2  # t(0.975, 3 degrees of freedom), sqrt(4)
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))


def test_one_seed_has_no_spread():
    found = across_seeds([0.2])
    assert (found.n, found.mean) == (1, 0.2)
    assert np.isnan([found.sample_std, found.population_std, found.low, found.high]).all()


def test_level_widens_the_interval_and_the_summary_is_frozen():
    narrow, wide = across_seeds(TEACHER, level=0.5), across_seeds(TEACHER, level=0.99)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    with pytest.raises(AttributeError):
        narrow.mean = 0  # type: ignore[misc]


def test_paired_difference_is_the_summary_of_differences():
    found = paired_difference(STUDENT, TEACHER)
    assert found == across_seeds(np.subtract(STUDENT, TEACHER))
    assert isinstance(found, SeedSummary)
    assert found.mean == pytest.approx(0.07125)
    assert found.low < 0 < found.high  # the paper's four seeds do not settle it


@pytest.mark.parametrize("bad", [[], [np.nan], [1.0, np.inf], [[1.0, 2.0]]])
@pytest.mark.parametrize("use", [bootstrap_interval, across_seeds, lambda v: paired_difference(v, v)])
def test_values_that_are_refused(use, bad):
    with pytest.raises(UsageError):
        use(bad)


def test_other_refusals():
    with pytest.raises(UsageError, match="number 1 is nan"):
        bootstrap_interval([0, np.nan])
    for test in (paired_permutation_test, paired_difference):
        with pytest.raises(UsageError, match="2 and 1"):
            test([1, 2], [1])
    for options in ({"level": 0}, {"level": 1}, {"level": np.nan}, {"resamples": 0}):
        with pytest.raises(UsageError):
            bootstrap_interval([1, 2], **options)
    with pytest.raises(UsageError):
        paired_permutation_test([1], [2], resamples=0)
    for strata in ([], [[1]]):
        with pytest.raises(UsageError, match="strata"):
            bootstrap_metric(lambda i: {}, strata)
    assert issubclass(UsageError, TbkdError)
    assert issubclass(UsageError, ValueError)


@given(st.floats(0.01, 5), st.floats(0.05, 5))
@settings(max_examples=40, deadline=None)
def test_the_seeds_needed_are_the_fewest(std, difference):
    def half(n):
        return stats.t.ppf(0.975, n - 1) * std / n**0.5

    found = seeds_needed(std, -difference)
    assert half(found) < difference
    assert found == 2 or half(found - 1) >= difference


def test_the_papers_four_seeds_were_too_few():
    paper = paired_difference(STUDENT, TEACHER)
    assert paper.low < 0 < paper.high
    assert seeds_needed(paper.sample_std, paper.mean) == 7
    assert seeds_needed(0, 0.1) == 2


@pytest.mark.parametrize(("std", "difference", "level"), [(-1, 1, 0.95), (1, 0, 0.95), (np.nan, 1, 0.95), (1, 1, 1)])
def test_seeds_for_nothing_are_refused(std, difference, level):
    with pytest.raises(UsageError):
        seeds_needed(std, difference, level=level)


def test_a_patients_images_are_drawn_together():
    """Ten copies of each image are no news: the interval is that of the images, not a third of it."""
    x = np.random.default_rng(0).random(30)
    patients = np.repeat([f"p{i}" for i in range(30)], 10)
    copies = bootstrap_interval(np.repeat(x, 10), resamples=500, seed=3, clusters=patients)
    assert copies == pytest.approx(bootstrap_interval(x, resamples=500, seed=3))
    low, high = bootstrap_interval(np.repeat(x, 10), resamples=500, seed=3)
    assert high - low < 0.5 * (copies[1] - copies[0])


def test_one_image_a_patient_is_no_patient_at_all():
    x, names = np.random.default_rng(1).random(20), [f"p{i}" for i in range(20)]
    assert bootstrap_interval(x, seed=2, clusters=names) == bootstrap_interval(x, seed=2)
    assert paired_permutation_test(x, x**2, clusters=names) == paired_permutation_test(x, x**2)


def test_a_patients_images_share_one_sign():
    """Two patients with differences 3 (of three images) and 1: the sums 4 and 2 are as extreme in 2 of 4 patterns."""
    a, patients = [1.0, 1.0, 1.0, 1.0], ["x", "x", "x", "y"]
    assert paired_permutation_test(a, np.zeros(4), clusters=patients) == pytest.approx(0.5)
    assert paired_permutation_test(a, np.zeros(4)) == pytest.approx(2 / 16)


def test_patients_are_drawn_within_strata_with_all_their_images():
    strata, patients = [0, 0, 1, 1, 1, 0], ["a", "a", "b", "b", "c", "c"]  # c has both
    drawn = []

    def metric(index):
        drawn.append(sorted(index.tolist()))
        return {"n": len(index)}

    bootstrap_metric(metric, strata, resamples=5, clusters=patients)
    assert drawn == [[0, 1, 2, 3, 4, 5]] * 5  # one patient in each of the three strata
    ends = bootstrap_metric(lambda index: {"n": len(index)}, [0] * 6, resamples=300, clusters=["a"] * 5 + ["b"])
    assert ends["n"] == (2, 10)


def test_clusters_have_to_be_one_per_image():
    with pytest.raises(UsageError, match="one value per image"):
        bootstrap_interval([1, 2, 3], clusters=["a", "b"])


def test_patients_of_a_table():
    rows = pd.DataFrame({"name": ["x", "y"]})
    assert patients_of(rows) is None
    assert patients_of(rows.assign(patient=["a", "a"])).tolist() == ["a", "a"]


# --- the share of the way from a guess to full supervision ------------------------------------------------------------


def test_skill_by_hand() -> None:
    """Means 0.5, 0.3 and 0.8: two fifths of the way."""
    share, low, high = skill([0.4, 0.6], [0.2, 0.4], [0.7, 0.9])
    assert share == pytest.approx(0.4)
    assert (low, high) == (pytest.approx(0.4), pytest.approx(0.4))  # each radiograph by itself says 0.2 / 0.5


def test_skill_is_a_ratio_of_means_and_not_a_mean_of_ratios() -> None:
    share, low, high = skill([1, 0], [0, 0], [2, 8])
    assert share == pytest.approx(0.1)  # 1 / 10; the mean of 1 / 2 and 0 / 8 would be 0.25
    assert (low, high) == (0.0, 0.5)  # one radiograph drawn twice, each way in a quarter of the draws


@pytest.mark.parametrize(("score", "expected"), [(0.0, -1.0), (0.2, 0.0), (0.4, 1.0), (0.5, 1.5)])
def test_skill_may_leave_the_unit_interval(score: float, expected: float) -> None:
    assert skill([score] * 3, [0.2] * 3, [0.4] * 3) == pytest.approx((expected,) * 3)


def test_skill_averages_seeds_before_radiographs_are_drawn() -> None:
    rng = np.random.default_rng(1)
    score, full = rng.random((3, 20)), 1 + rng.random((2, 20))
    guess = rng.random(20)
    assert skill(score, guess, full) == skill(score.mean(axis=0), guess, full.mean(axis=0))


def test_skill_between_0_and_1_is_the_mean_with_its_interval() -> None:
    rng = np.random.default_rng(2)
    score, patients = rng.random(40), np.arange(40) // 4
    share, *ends = skill(score, np.zeros(40), np.ones(40), clusters=patients)
    assert share == pytest.approx(score.mean())
    assert ends == pytest.approx(bootstrap_interval(score, clusters=patients))
    assert ends != pytest.approx(bootstrap_interval(score))


def test_resamples_without_scale_widen_the_interval_of_skill() -> None:
    """Full supervision is above the guess in the sample, and below it in a quarter of the draws (the second twice)."""
    given = [0.1, 0.1], [0.0, 0.0], [0.9, -0.1]
    assert skill(*given) == (pytest.approx(0.25), -np.inf, np.inf)
    # a quarter of the draws have no scale, half have 0.2 / 0.8, a quarter 0.2 / 1.8
    assert skill(*given, level=0.4) == pytest.approx((0.25, 1 / 9, 0.25))  # the quantiles 30% and 70%
    assert skill(*given, level=0.6) == (pytest.approx(0.25), -np.inf, np.inf)  # 20% and 80%


def test_skill_refuses_what_has_no_scale_or_does_not_go_together() -> None:
    with pytest.raises(UsageError, match=r"full supervision \(mean 0.2\) is not above the guess \(mean 0.2\)"):
        skill([0.5, 0.5], [0.1, 0.3], [0.3, 0.1])
    with pytest.raises(UsageError, match="got 2, 1, 2 of them"):
        skill([0.5, 0.5], [0.1], [0.3, 0.9])
    with pytest.raises(UsageError, match="full must be finite; number 1 is nan"):
        skill([0.5, 0.5], [0.1, 0.1], [[0.3, 0.9], [0.3, np.nan]])
    with pytest.raises(UsageError, match=r"score must be a list .* got shape \(0, 2\)"):
        skill(np.zeros((0, 2)), [0.1, 0.1], [0.3, 0.9])
    with pytest.raises(UsageError, match="clusters must be one value per image"):
        skill([0.5, 0.5], [0.1, 0.1], [0.3, 0.9], clusters=[1])
