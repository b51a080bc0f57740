"""Operating points: where a threshold is put, and what it costs.

An image is called positive when its probability is strictly above the threshold, as in `classification`. A threshold
belongs to the data it was chosen on: chosen on the test set it flatters (it *leaks*), so `operating_table` shows both.
The curves and areas need no threshold. Calibration asks whether 0.8 means four out of five.

Where a table has a column `patient`, bootstrap and permutation draw patients with all their images; Wilson's intervals
know images alone.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

from tbkd_utils.errors import UsageError
from tbkd_utils.metrics.classification import (
    checked_scores,
    metrics_from_counts,
    scores_of_rows,
    total_of_counts,
)
from tbkd_utils.metrics.statistics import (
    bootstrap_interval,
    bootstrap_metric,
    paired_permutation_test,
    patients_of,
    wilson_interval,
)

_NEAREST = 1e-7  # how close to 0 or 1 a probability may come before its logit is taken


def f1_from_counts(tp: int, fn: int, fp: int) -> float:
    """The F1 score of the positive class: the harmonic mean of precision and sensitivity.

    Args:
        tp: Positive images called positive.
        fn: Positive images called negative.
        fp: Negative images called positive.

    Returns:
        `2 tp / (2 tp + fn + fp)` in [0, 1]; nan when there is no positive image and none is called so.

    Raises:
        UsageError: A count is negative or not whole.
    """
    if tp == fn == fp == 0:
        return float("nan")
    total_of_counts(tp=tp, fn=fn, fp=fp)
    return 2 * tp / (2 * tp + fn + fp)


def operating_metrics(probability: ArrayLike, labels: ArrayLike, threshold: float) -> dict[str, float]:
    """What one threshold gives: five scores and the four counts.

    Args:
        probability: (n,) probability of class 1 in [0, 1], n >= 1.
        labels: (n,) 0 = negative, 1 = positive.
        threshold: Probability above which an image is called positive, in [0, 1].

    Returns:
        accuracy, f1, sensitivity, specificity, precision in [0, 1] (nan where undefined), and the whole numbers
        tn, fp, fn, tp.

    Raises:
        UsageError: As `classification.classification_metrics`.
    """
    p, y = checked_scores(probability, labels, threshold)
    called = p > threshold
    tp, fn = int((called & y).sum()), int((~called & y).sum())
    tn, fp = int((~called & ~y).sum()), int((called & ~y).sum())
    shares = metrics_from_counts(tp=tp, fn=fn, tn=tn, fp=fp)
    return {
        "accuracy": shares["accuracy"],
        "f1": f1_from_counts(tp, fn, fp),
        "sensitivity": shares["sensitivity"],
        "specificity": shares["specificity"],
        "precision": tp / (tp + fp) if tp + fp else float("nan"),
        "tn": tn,
        "fp": fp,
        "fn": fn,
        "tp": tp,
    }


def best_f1_threshold(probability: ArrayLike, labels: ArrayLike) -> float:
    """The threshold with the highest F1 on these images.

    Candidates are the midpoints between neighboring distinct values among the probabilities, 0 and 1. Of equally
    good ones the nearest to 0.5 is taken, and the lower of two that are equally near.

    Args:
        probability: (n,) probability of class 1 in [0, 1].
        labels: (n,) 0 = negative, 1 = positive; both must occur.

    Returns:
        A threshold in [0, 1].

    Raises:
        UsageError: As `classification.classification_metrics`, or a class is missing.
    """
    p, y = _both_classes(*checked_scores(probability, labels), "a best threshold")
    values = np.unique(np.concatenate([p, [0.0, 1.0]]))
    candidates = (values[:-1] + values[1:]) / 2
    tp, fp = _called_above(p[y], candidates), _called_above(p[~y], candidates)
    f1 = 2 * tp / (tp + fp + y.sum())  # equal fractions are equal floats: both parts are whole
    best = candidates[f1 == f1.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


def specificity_threshold(probability: ArrayLike, labels: ArrayLike, least: float = 0.9) -> float:
    """The lowest threshold whose specificity is at least `least`, which has the highest sensitivity of them.

    It is the probability of a negative image (that image is still called negative), or 0.

    Args:
        probability: (n,) probability of class 1 in [0, 1].
        labels: (n,) 0 = negative, 1 = positive; both must occur.
        least: The specificity to be reached, in [0, 1].

    Returns:
        A threshold in [0, 1].

    Raises:
        UsageError: As `classification.classification_metrics`, a class is missing, or `least` is out of range.
    """
    if not 0 <= least <= 1:
        raise UsageError(f"least must be a specificity in [0, 1]; got {least}")
    p, y = _both_classes(*checked_scores(probability, labels), "a threshold for a specificity")
    steps = np.concatenate([[0.0], np.sort(p[~y])])  # at steps[k], k negative images or more are called negative
    enough = np.arange(len(steps)) / (len(steps) - 1) >= least
    return float(steps[np.argmax(enough)])


def operating_table(
    validation: pd.DataFrame, test: pd.DataFrame, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> pd.DataFrame:
    """Three rules for the threshold, chosen on validation and (to show the leak) on the test images, scored on test.

    A threshold "chosen on validation" never looks at a test label. Every interval holds the threshold fixed, also in
    the rows "test (leaks)": it leaves out how much the choice itself varies, so a leaking row stays too good.
    All rows share the same bootstrap draws.

    Args:
        validation: Table with the columns label and probability, of the images that choose a threshold.
        test: The same, of the images that are scored.
        resamples: Number of bootstrap resamples of the F1, drawn within each label.
        seed: Seed of the draws.
        level: Coverage of the intervals.

    Returns:
        One row for the rule "0.5" (chosen_on "nothing"), two for "best F1" and "specificity >= 0.90" ("validation",
        "test (leaks)"). Columns: rule, chosen_on, threshold; accuracy, f1, sensitivity and specificity, each followed
        by its ends, such as accuracy_low and accuracy_high (Wilson; bootstrap for f1).

    Raises:
        UsageError: A table lacks a column or a class, holds values that `classification.classification_metrics`
            refuses, or `resamples` or `level` is out of range.
    """
    tables = {"validation": ("validation rows", validation), "test (leaks)": ("test rows", test)}
    scores = {key: _both_classes(*scores_of_rows(t, table=name), name) for key, (name, t) in tables.items()}
    chosen = [("0.5", "nothing", 0.5)]
    chosen += [("best F1", key, best_f1_threshold(*scores[key])) for key in scores]
    chosen += [("specificity >= 0.90", key, specificity_threshold(*scores[key], 0.9)) for key in scores]
    p, y = scores["test (leaks)"]
    thresholds = np.array([threshold for _, _, threshold in chosen])

    def f1(index: NDArray[np.intp]) -> dict[str, float]:
        q, z = p[index], y[index]
        tp, fp = _called_above(q[z], thresholds), _called_above(q[~z], thresholds)
        return dict(zip(map(str, range(len(chosen))), 2 * tp / (tp + fp + z.sum()), strict=True))

    ends = bootstrap_metric(f1, y, level=level, resamples=resamples, seed=seed, clusters=patients_of(test))
    table = []
    for row, (rule, chosen_on, threshold) in enumerate(chosen):
        found = operating_metrics(p, y, threshold)
        right = {"accuracy": (found["tp"] + found["tn"], len(y))}
        right |= {"sensitivity": (found["tp"], y.sum()), "specificity": (found["tn"], (~y).sum())}
        intervals = {name: wilson_interval(int(k), int(n), level=level) for name, (k, n) in right.items()}
        intervals["f1"] = ends[str(row)]
        entry: dict[str, Any] = {"rule": rule, "chosen_on": chosen_on, "threshold": threshold}
        for name in ("accuracy", "f1", "sensitivity", "specificity"):
            entry |= {name: found[name], f"{name}_low": intervals[name][0], f"{name}_high": intervals[name][1]}
        table.append(entry)
    return pd.DataFrame(table)


def roc_points(probability: ArrayLike, labels: ArrayLike) -> pd.DataFrame:
    """The corners of the ROC curve, from nothing called positive to everything.

    Args:
        probability: (n,) probability of class 1 in [0, 1].
        labels: (n,) 0 = negative, 1 = positive; both must occur.

    Returns:
        Columns threshold (falling; -inf in the last row, where everything is called positive),
        false_positive_rate and sensitivity (both rising from 0 to 1). One row more than distinct probabilities.

    Raises:
        UsageError: As `classification.classification_metrics`, or a class is missing.
    """
    p, y = _both_classes(*checked_scores(probability, labels), "a ROC curve")
    thresholds, tp, fp = _steps(p, y)
    return pd.DataFrame({"threshold": thresholds, "false_positive_rate": fp / fp[-1], "sensitivity": tp / tp[-1]})


def precision_recall_points(probability: ArrayLike, labels: ArrayLike) -> pd.DataFrame:
    """The points of the precision-recall curve, from nothing called positive to everything.

    Draw it in steps, as `average_precision` adds it up: straight lines between the points promise too much.

    Args:
        probability: (n,) probability of class 1 in [0, 1].
        labels: (n,) 0 = negative, 1 = positive; both must occur.

    Returns:
        Columns threshold (as in `roc_points`), recall (rising from 0 to 1) and precision. The first row, where nothing
        is called positive, has precision 1 by convention.

    Raises:
        UsageError: As `classification.classification_metrics`, or a class is missing.
    """
    p, y = _both_classes(*checked_scores(probability, labels), "a precision-recall curve")
    thresholds, tp, fp = _steps(p, y)
    precision = np.concatenate([[1.0], tp[1:] / (tp + fp)[1:]])
    return pd.DataFrame({"threshold": thresholds, "recall": tp / tp[-1], "precision": precision})


def roc_auc(probability: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: how often a positive image has the higher probability of a pair (a tie counts half).

    Args:
        probability: (n,) probability of class 1 in [0, 1].
        labels: (n,) 0 = negative, 1 = positive; both must occur.

    Returns:
        The area in [0, 1].

    Raises:
        UsageError: As `classification.classification_metrics`, or a class is missing.
    """
    return _areas(*_both_classes(*checked_scores(probability, labels), "the ROC AUC"))["roc_auc"]


def average_precision(probability: ArrayLike, labels: ArrayLike) -> float:
    """Area under the precision-recall curve in steps, `sum (R_n - R_(n-1)) P_n`, as scikit-learn defines it.

    The sum runs over the distinct probabilities from above, so ties enter together. This is not the "average
    precision" of the TB paper's Table 4 (`classification.classification_metrics`).

    Args:
        probability: (n,) probability of class 1 in [0, 1].
        labels: (n,) 0 = negative, 1 = positive; both must occur.

    Returns:
        The area in (0, 1]; a constant probability gives the share of positives.

    Raises:
        UsageError: As `classification.classification_metrics`, or a class is missing.
    """
    return _areas(*_both_classes(*checked_scores(probability, labels), "the average precision"))["pr_auc"]


def area_table(rows: pd.DataFrame, resamples: int = 2000, seed: int = 0, *, level: float = 0.95) -> pd.DataFrame:
    """Both areas with bootstrap intervals over images drawn within each label.

    Args:
        rows: Table with the columns label and probability; both labels must occur.
        resamples: Number of bootstrap resamples.
        seed: Seed of the draws.
        level: Coverage of the intervals.

    Returns:
        Two rows, roc_auc and pr_auc (`average_precision`), with the columns metric, value, low, high.

    Raises:
        UsageError: A column or a class is missing, a value is refused, or `resamples` or `level` is out of range.
    """
    p, y = _both_classes(*scores_of_rows(rows), "an area")
    how: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed, "clusters": patients_of(rows)}
    ends = bootstrap_metric(lambda index: _areas(p[index], y[index]), y, **how)
    table = [(name, value, *ends[name]) for name, value in _areas(p, y).items()]
    return pd.DataFrame(table, columns=["metric", "value", "low", "high"])


def calibration_table(
    probability: ArrayLike, labels: ArrayLike, bins: int = 10, *, level: float = 0.95
) -> pd.DataFrame:
    """Predicted against observed: images in bins of about equal count, in order of probability.

    Equal probabilities stay in one bin, so the order of the images does not matter; many ties give fewer bins.

    Args:
        probability: (n,) probability of class 1 in [0, 1], n >= 1.
        labels: (n,) 0 = negative, 1 = positive.
        bins: Number of bins at most, >= 1.
        level: Coverage of Wilson's intervals.

    Returns:
        One row per bin that holds an image: mean_probability, observed (share of positives), low, high, n.

    Raises:
        UsageError: As `classification.classification_metrics`, or `bins` or `level` is out of range.
    """
    p, y = checked_scores(probability, labels)
    if not (bins >= 1 and bins == int(bins)):
        raise UsageError(f"bins must be a whole number, at least 1; got {bins}")
    place = np.floor((rankdata(p) - 0.5) * bins / len(p))  # the mean rank: the same for equal probabilities
    table = []
    for one in np.unique(place):
        inside = place == one
        n, positive = int(inside.sum()), int(y[inside].sum())
        table.append((p[inside].mean(), positive / n, *wilson_interval(positive, n, level=level), n))
    return pd.DataFrame(table, columns=["mean_probability", "observed", "low", "high", "n"])


def expected_calibration_error(probability: ArrayLike, labels: ArrayLike, bins: int = 10) -> float:
    """Mean distance of predicted and observed over the bins of `calibration_table`, weighted by images.

    It is above 0 by chance alone, the more so with few images a bin, so a percentile bootstrap of it is too high.
    Take the intervals of `calibration_table` and `odds_shift` to judge it.

    Args:
        probability: (n,) probability of class 1 in [0, 1], n >= 1.
        labels: (n,) 0 = negative, 1 = positive.
        bins: Number of bins at most, >= 1.

    Returns:
        The error in [0, 1].

    Raises:
        UsageError: As `calibration_table`.
    """
    table = calibration_table(probability, labels, bins)
    distance = (table["mean_probability"] - table["observed"]).abs()
    return float(np.average(distance, weights=table["n"]))


def odds_shift(probability: ArrayLike, labels: ArrayLike, *, level: float = 0.95) -> dict[str, float]:
    """By which factor the predicted odds of positive are too low.

    Fits `logit(true) = a + logit(probability)` by maximum likelihood; the factor is `exp(a)`. With n0 negative and n1
    positive training images and cross-entropy, a balanced sampler or class weights alone shift the odds of positive
    by n0 / n1, so the factor is n1 / n0. Both together (the pneumonia paper's arm "both") correct twice: the factor is
    `(n1 / n0)^2`. The focal loss bends the probabilities as well, which one factor does not describe.

    Args:
        probability: (n,) probability of class 1. One closer than 1e-7 to 0 or 1 counts as 1e-7 away from it.
        labels: (n,) 0 = negative, 1 = positive; both must occur.
        level: Coverage of the interval, in (0, 1).

    Returns:
        factor (1 = no shift, above 1 = predicted odds too low), low, high: a normal interval of `a` by its Fisher
        information, put through exp. Where the images say nothing of `a` (all are certain), it goes from 0 to inf.

    Raises:
        UsageError: As `classification.classification_metrics`, a class is missing, or `level` is out of range.
    """
    p, y = _both_classes(*checked_scores(probability, labels), "a shift of the odds")
    if not 0 < level < 1:
        raise UsageError(f"level must lie between 0 and 1, such as 0.95; got {level}")
    x = logit(np.clip(p, _NEAREST, 1 - _NEAREST))
    middle = logit(y.mean())  # at the ends of the bracket all images lie on one side of the share of positives
    a = float(brentq(lambda a: expit(a + x).sum() - y.sum(), middle - x.max() - 1, middle - x.min() + 1))
    fitted = expit(a + x)
    half = float(norm.ppf(0.5 + level / 2) / np.sqrt((fitted * (1 - fitted)).sum()))
    with np.errstate(over="ignore"):  # almost no information: up to inf
        factor, low, high = np.exp([a, a - half, a + half])
    return {"factor": float(factor), "low": float(low), "high": float(high)}


def paired_accuracy_test(
    first: pd.DataFrame,
    second: pd.DataFrame,
    resamples: int = 2000,
    seed: int = 0,
    *,
    threshold: float = 0.5,
    level: float = 0.95,
) -> dict[str, float]:
    """Is the accuracy of two models on the same images different?

    Args:
        first: Table with the columns name, label, probability, one row per image.
        second: The same images in any order.
        resamples: Number of bootstrap resamples and of sign patterns.
        seed: Seed of the draws.
        threshold: Probability above which an image is called positive, for both.
        level: Coverage of the interval.

    Returns:
        difference (accuracy of the first minus that of the second, in [-1, 1]), low, high (bootstrap over images or
        patients, both models on the same draws) and p (`statistics.paired_permutation_test`).

    Raises:
        UsageError: A column is missing, a name comes twice, names or labels differ, a value is refused, or an option
            is out of range.
    """
    tables = []
    for table, rows in (("first rows", first), ("second rows", second)):
        p, y = scores_of_rows(rows, threshold, table=table)
        if "name" not in rows:
            raise UsageError(f"{table} lack the column name: images are paired by it")
        if not rows["name"].is_unique:
            twice = rows["name"][rows["name"].duplicated()].iloc[0]
            raise UsageError(f"{table} hold the name {twice!r} twice: images are paired by name")
        tables.append(pd.DataFrame({"label": y, "right": (p > threshold) == y}, index=rows["name"]))
    a, b = tables
    alone = a.index.symmetric_difference(b.index)
    if len(alone):
        raise UsageError(f"both tables must hold the same images; {len(alone)} are in one alone, such as {alone[0]!r}")
    b = b.loc[a.index]
    other = a.index[(a["label"] != b["label"]).to_numpy()]
    if len(other):
        raise UsageError(f"both tables must hold the same labels; {len(other)} differ, such as that of {other[0]!r}")
    right = [t["right"].to_numpy(np.float64) for t in (a, b)]
    difference = right[0] - right[1]
    clusters = patients_of(first)
    low, high = bootstrap_interval(difference, level=level, resamples=resamples, seed=seed, clusters=clusters)
    p_value = paired_permutation_test(*right, resamples=resamples, seed=seed, clusters=clusters)
    return {"difference": float(difference.mean()), "low": low, "high": high, "p": p_value}


def _both_classes(
    p: NDArray[np.float64], y: NDArray[np.bool_], what: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    for present, missing in ((y.any(), "positive image (label 1)"), (not y.all(), "negative image (label 0)")):
        if not present:
            raise UsageError(f"{what} must see both classes; there is no {missing} among the {len(y)}")
    return p, y


def _called_above(p: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.intp]:
    """How many probabilities lie strictly above each threshold."""
    return len(p) - np.searchsorted(np.sort(p), thresholds, side="right")


def _steps(
    p: NDArray[np.float64], y: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """Thresholds from above (the distinct probabilities, then -inf), true and false positives strictly above each."""
    thresholds = np.concatenate([np.unique(p)[::-1], [-np.inf]])
    return thresholds, _called_above(p[y], thresholds), _called_above(p[~y], thresholds)


def _areas(p: NDArray[np.float64], y: NDArray[np.bool_]) -> dict[str, float]:
    _, tp, fp = _steps(p, y)
    gained, called = np.diff(tp), (tp + fp)[1:]
    return {
        "roc_auc": float(np.trapezoid(tp, fp) / (int(tp[-1]) * int(fp[-1]))),
        "pr_auc": float((gained * tp[1:] / called).sum() / tp[-1]),
    }
