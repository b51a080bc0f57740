"""Intervals and paired tests: how sure a number is.

Two questions, kept apart. *Over images*: one network, one test set, would another draw of patients change the
number? (bootstrap, Wilson, sign-flip permutation.) *Over seeds*: would another training change it? (mean, standard
deviations, t interval.)

Images of one patient resemble each other. Where the patients are known (`clusters`), whole patients are drawn, or their
signs flipped, so that ten images of one child do not count as ten children.
"""

import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tbkd_utils.errors import UsageError

_CHUNK = 2_000_000  # numbers drawn at once: bounds the memory of a bootstrap at a few tens of MB
_ROUNDING = 1e-12  # a mean of differences of scores that is no larger is 0


@dataclass(frozen=True)
class SeedSummary:
    """A number over several trainings that differ in the seed alone.

    Attributes:
        n: Number of seeds.
        mean: Mean over the seeds.
        sample_std: Standard deviation with ddof = 1, an estimate for seeds not run; nan for one seed.
        population_std: Standard deviation with ddof = 0, the "±" of the paper's Table 3; nan for one seed.
        low: Lower end of Student's t interval of the mean (n - 1 degrees of freedom); nan for one seed.
        high: Upper end of it.
        level: Coverage of the interval, 0.95 unless asked otherwise.
    """

    n: int
    mean: float
    sample_std: float
    population_std: float
    low: float
    high: float
    level: float


def bootstrap_interval(
    values: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    clusters: ArrayLike | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over images.

    Images are drawn with replacement, each resample as large as the set (Efron and Tibshirani 1993, chapter
    13). The same `seed` and number of values draw the same images, so intervals of several columns of one
    table belong together.

    Args:
        values: (n,) one finite number per image, n >= 1. One value, or equal values, give an interval of
            width zero.
        level: Coverage, in (0, 1).
        resamples: Number of resamples, >= 1.
        seed: Seed of the draws.
        clusters: (n,) the patient of each image: as many patients are drawn as there are, each with all its images.
            None if every image is a patient's only one.

    Returns:
        (low, high), in the unit of the values.

    Raises:
        UsageError: The values are empty, not one-dimensional or not finite, clusters are not one per value, or an
            option is out of range.
    """
    x = _vector(values, "values")
    _check_options(level, resamples)
    if x.min() == x.max():  # else rounding would give a constant column an interval of width 1e-17
        return float(x[0]), float(x[0])
    sums, counts = _by_cluster(x, clusters)
    means = _resampled_ratios(sums, counts, resamples, seed)
    low, high = np.quantile(means, _tails(level))
    return float(low), float(high)


def skill(
    score: ArrayLike,
    guess: ArrayLike,
    full: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    clusters: ArrayLike | None = None,
) -> tuple[float, float, float]:
    """The share of the way from a blind guess (0) to the same network under full supervision (1).

    (mean(score) - mean(guess)) / (mean(full) - mean(guess)), with a percentile bootstrap interval over radiographs that
    draws as `bootstrap_interval` does. The share is negative for a network worse than the guess, and above 1 for one
    better than full supervision. The interval is about radiographs: it says nothing of seeds that were not run.

    A resample in which full supervision is not above the guess has no scale, so that its share could be anything. It is
    not left out, which would make the interval too narrow: it counts as minus infinity at the lower end and as
    infinity at the upper end. So where more than (1 - level) / 2 of the resamples are such, the interval is
    (-inf, inf): these radiographs do not bound the share.

    Args:
        score: (n,) one finite number per radiograph, such as an IoU, or (seeds, n), averaged over the seeds first.
        guess: The same of the guess, for the same radiographs in the same order.
        full: The same of the network under full supervision. Each of the three may have seeds of its own.
        level: Coverage, in (0, 1).
        resamples: Number of resamples, >= 1.
        seed: Seed of the draws.
        clusters: (n,) the patient of each radiograph, as in `bootstrap_interval`.

    Returns:
        (share, low, high), without unit.

    Raises:
        UsageError: If full supervision is not above the guess, so that there is no scale; or numbers are missing, not
            finite or of different lengths, or an option is out of range.
    """
    _check_options(level, resamples)
    means = [_over_seeds(values, name) for values, name in ((score, "score"), (guess, "guess"), (full, "full"))]
    if len({len(values) for values in means}) > 1:
        counts = ", ".join(str(len(values)) for values in means)
        raise UsageError(f"score, guess and full need the same radiographs in the same order; got {counts} of them")
    gained, room = means[0] - means[1], means[2] - means[1]
    if not room.mean() > _ROUNDING:
        raise UsageError(
            f"full supervision (mean {means[2].mean():.3g}) is not above the guess (mean {means[1].mean():.3g}), so "
            "there is no scale to place a network on: report the differences instead"
        )
    gains, rooms = _by_cluster(gained, clusters)[0], _by_cluster(room, clusters)[0]
    shares = _resampled_ratios(gains, rooms, resamples, seed)
    low, high = (_end(shares, *end) for end in zip(_tails(level), (-np.inf, np.inf), strict=True))
    return float(gained.mean() / room.mean()), low, high


def bootstrap_metric(
    metric: Callable[[NDArray[np.intp]], Mapping[str, float]],
    strata: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    clusters: ArrayLike | None = None,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of metrics that are not means of one column, such as the AUC.

    Drawing within strata (here: within each label) keeps the class balance of the test set, which was chosen
    and not sampled.

    Args:
        metric: Takes an index array (n,) into the images and returns name -> value; called once a resample.
        strata: (n,) the stratum of each image: integers, booleans or strings.
        level: Coverage, in (0, 1).
        resamples: Number of resamples, >= 1.
        seed: Seed of the draws.
        clusters: (n,) the patient of each image, as in `bootstrap_interval`. A patient whose images are of several
            strata belongs to a stratum of such patients.

    Returns:
        Name -> (low, high). A resample in which a metric is nan (undefined) is left out for that metric;
        where it is undefined in all of them, both ends are nan.

    Raises:
        UsageError: No images, strata not one-dimensional, clusters not one per image, or an option out of range.
    """
    values = np.asarray(strata)
    if values.ndim != 1 or values.size == 0:
        raise UsageError(f"strata must be one value per image, at least one; got shape {values.shape}")
    _check_options(level, resamples)
    draw = _drawn_images(values) if clusters is None else _drawn_patients(values, _labels(clusters, len(values)))
    rng = np.random.default_rng(seed)
    drawn = [metric(draw(rng)) for _ in range(resamples)]
    intervals = {}
    for name in drawn[0]:
        found = np.array([d[name] for d in drawn], dtype=float)
        found = found[~np.isnan(found)]
        low, high = np.quantile(found, _tails(level)) if found.size else (np.nan, np.nan)
        intervals[name] = (float(low), float(high))
    return intervals


def patients_of(rows: pd.DataFrame) -> NDArray[Any] | None:
    """Returns the patient of each row of a table, as `clusters` takes it; None without a column `patient`."""
    return rows["patient"].to_numpy() if "patient" in rows else None


def wilson_interval(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share, such as an accuracy or a sensitivity (Wilson 1927).

    It needs no draws, never leaves [0, 1], and has a width even when all or none of the images are right.

    Args:
        successes: Number of images that count, in 0..n.
        n: Number of images, >= 1.
        level: Coverage, in (0, 1).

    Returns:
        (low, high), in [0, 1].

    Raises:
        UsageError: `n` or `successes` is not whole or out of range, or `level` is.
    """
    _check_options(level, 1)
    if not (n == n // 1 and n >= 1 and successes == successes // 1 and 0 <= successes <= n):
        raise UsageError(f"successes and n must be whole numbers, 0 <= successes <= n, n >= 1; got {successes} of {n}")
    ends = stats.binomtest(int(successes), int(n)).proportion_ci(confidence_level=level, method="wilson")
    return float(ends.low), float(ends.high)


def paired_permutation_test(
    a: ArrayLike, b: ArrayLike, *, resamples: int = 10_000, seed: int = 0, clusters: ArrayLike | None = None
) -> float:
    """Two-sided sign-flip permutation test of equal means of paired values (two networks on the same images).

    Under the null hypothesis the sign of each image's difference is a coin toss. All 2^n sign patterns are
    used when there are at most `resamples` of them (an exact test). Otherwise patterns are drawn, the
    observed one counts as one of them (Phipson and Smyth 2010), and p is twice the smaller tail, at most 1.
    So p is never 0.

    Args:
        a: (n,) finite values, n >= 1.
        b: (n,) values of the same images in the same order.
        resamples: Number of sign patterns, >= 1.
        seed: Seed of the patterns.
        clusters: (n,) the patient of each image: all images of a patient share one coin toss.

    Returns:
        The p value in (0, 1]; 1 when all differences are zero.

    Raises:
        UsageError: Empty, not finite, of different lengths, or `resamples` < 1.
    """
    difference, _ = _by_cluster(_paired(a, b), clusters)
    _check_options(0.95, resamples)
    if len(difference) == 1:  # both patterns are as far from zero; scipy refuses a single value
        return 1.0
    result = stats.permutation_test(
        (difference,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _CHUNK // len(difference)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def across_seeds(values: ArrayLike, *, level: float = 0.95) -> SeedSummary:
    """Summarize one number over seeds: mean, both standard deviations and Student's t interval.

    Args:
        values: (n,) one finite number per seed, n >= 1. One seed says nothing about spread: its deviations
            and interval are nan.
        level: Coverage of the interval, in (0, 1).

    Returns:
        The summary.

    Raises:
        UsageError: Empty, not one-dimensional or not finite, or `level` out of range.
    """
    x = _vector(values, "values")
    _check_options(level, 1)
    n, mean = len(x), float(x.mean())
    if n == 1:
        return SeedSummary(1, mean, np.nan, np.nan, np.nan, np.nan, level)
    sample = float(x.std(ddof=1))
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * sample / n**0.5
    return SeedSummary(n, mean, sample, float(x.std(ddof=0)), mean - half, mean + half, level)


def paired_difference(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> SeedSummary:
    """Summarize a - b over seeds (student minus teacher of the same seed), as `across_seeds` does.

    Args:
        a: (n,) one finite number per seed.
        b: (n,) numbers of the same seeds in the same order.
        level: Coverage of the t interval, in (0, 1).

    Returns:
        The summary of the n differences.

    Raises:
        UsageError: Empty, not finite, of different lengths, or `level` out of range.
    """
    return across_seeds(_paired(a, b), level=level)


def seeds_needed(std: float, difference: float, *, level: float = 0.95) -> int:
    """The smallest number of seeds whose t interval around a mean difference excludes 0.

    Half the width of the interval is `t(n - 1) * std / sqrt(n)`. Such a number of seeds succeeds about every other
    time, since the mean itself varies.

    Args:
        std: Sample standard deviation of the difference over seeds, >= 0.
        difference: The mean difference to be shown, not 0.
        level: Coverage of the interval, in (0, 1).

    Returns:
        A number of seeds, at least 2.

    Raises:
        UsageError: If `std` is negative or not finite, `difference` is 0 or not finite, or an option is out of
            range.
    """
    _check_options(level, 1)
    if not (np.isfinite(std) and std >= 0 and np.isfinite(difference) and difference != 0):
        raise UsageError(f"expected std >= 0 and a difference other than 0; got {std} and {difference}")

    def shown(n: int) -> bool:
        return float(stats.t.ppf(0.5 + level / 2, n - 1)) * std / n**0.5 < abs(difference)

    high = 2
    while not shown(high):
        high *= 2
    return bisect.bisect_left(range(high), True, lo=2, key=shown)


def _vector(values: ArrayLike, name: str) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise UsageError(f"{name} must be a list of at least one number; got shape {x.shape}")
    if not np.isfinite(x).all():
        bad = int(np.flatnonzero(~np.isfinite(x))[0])
        raise UsageError(f"{name} must be finite; number {bad} is {x[bad]}: leave it out or mend it")
    return x


def _over_seeds(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """(n,) numbers as they are, or the mean of (seeds, n) over the seeds."""
    x = np.asarray(values, dtype=np.float64)
    return _vector(x.mean(axis=0) if x.ndim == 2 and len(x) else x, name)


def _resampled_ratios(
    over: NDArray[np.float64], under: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """sum(over) / sum(under) of each resample of the clusters, (resamples,); nan where sum(under) is not above 0."""
    rng, n = np.random.default_rng(seed), len(over)
    step = max(1, _CHUNK // n)
    found = []
    for start in range(0, resamples, step):
        index = rng.integers(n, size=(min(step, resamples - start), n))
        above, below = over[index].sum(axis=1), under[index].sum(axis=1)
        found.append(np.divide(above, below, out=np.full(len(index), np.nan), where=below > 0))
    return np.concatenate(found)


def _end(shares: NDArray[np.float64], tail: float, unbounded: float) -> float:
    """A quantile of shares of which nan counts as this infinity."""
    with np.errstate(invalid="ignore"):  # between two infinities
        end = float(np.quantile(np.where(np.isnan(shares), unbounded, shares), tail))
    return unbounded if np.isnan(end) else end


def _paired(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    x, y = _vector(a, "a"), _vector(b, "b")
    if len(x) != len(y):
        raise UsageError(f"paired values need the same items in the same order; got {len(x)} and {len(y)}")
    return x - y


def _labels(clusters: ArrayLike, n: int) -> NDArray[np.intp]:
    """The number of each image's cluster, in the order in which clusters first come."""
    names = np.asarray(clusters)
    if names.shape != (n,):
        raise UsageError(f"clusters must be one value per image; got shape {names.shape} for {n} images")
    _, first, number = np.unique(names, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number]


def _by_cluster(x: NDArray[np.float64], clusters: ArrayLike | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sum and the count of the values of each cluster."""
    if clusters is None:
        return x, np.ones(len(x))
    labels = _labels(clusters, len(x))
    return np.bincount(labels, weights=x).astype(np.float64), np.bincount(labels).astype(np.float64)


def _drawn_images(strata: NDArray[Any]) -> Callable[[np.random.Generator], NDArray[np.intp]]:
    """Draws images within strata, with replacement."""
    members = [np.flatnonzero(strata == value) for value in np.unique(strata)]
    return lambda rng: np.concatenate([m[rng.integers(len(m), size=len(m))] for m in members])


def _drawn_patients(
    strata: NDArray[Any], labels: NDArray[np.intp]
) -> Callable[[np.random.Generator], NDArray[np.intp]]:
    """Draws patients within strata, with replacement, each with all its images."""
    images = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    kinds: dict[tuple, list[int]] = {}
    for patient, places in enumerate(images):
        kinds.setdefault(tuple(np.unique(strata[places])), []).append(patient)
    members = [np.array(kinds[kind]) for kind in sorted(kinds)]

    def draw(rng: np.random.Generator) -> NDArray[np.intp]:
        return np.concatenate([images[p] for m in members for p in m[rng.integers(len(m), size=len(m))]])

    return draw


def _check_options(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise UsageError(f"level must lie between 0 and 1, such as 0.95; got {level}")
    if resamples < 1:
        raise UsageError(f"resamples must be at least 1; got {resamples}")


def _tails(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]
