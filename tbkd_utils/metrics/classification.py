"""Positive against negative: the six numbers of the TB paper's Table 4 (section 3.5), with rows and intervals.

Positive is class 1 (the disease, whichever it is) and negative is class 0.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from tbkd_utils.errors import UsageError
from tbkd_utils.metrics.statistics import bootstrap_metric

METRICS = ("accuracy", "auc", "sensitivity", "specificity", "average_precision", "average_recall")
"""The metrics in the order of Table 4."""


def classification_metrics(probability: ArrayLike, labels: ArrayLike, threshold: float = 0.5) -> dict[str, float]:
    """Table 4's six numbers from the predicted probabilities of class 1.

    An image is called positive when its probability is strictly above the threshold: at 0.5 that is the argmax of
    the two logits (a tie goes to class 0, as in torch). "Average precision" and "average recall" are the TB
    paper's: the plain mean over the two classes of precision and recall. The area under the precision-recall
    curve is `operating.average_precision`.

    Args:
        probability: (n,) probability of class 1 in [0, 1], n >= 1.
        labels: (n,) 0 = negative, 1 = positive.
        threshold: Probability above which an image is called positive, in [0, 1].

    Returns:
        `METRICS` -> value in [0, 1]. What is undefined is nan: sensitivity without a positive image;
        specificity without a negative image; AUC and average recall without either; average precision when one class is
        never predicted.

    Raises:
        UsageError: Shapes differ or are not (n,), nothing to score, a probability outside [0, 1] or
            nan, a label other than 0 and 1, or a threshold outside [0, 1].
    """
    p, y = checked_scores(probability, labels, threshold)
    return _metrics(p, y, threshold)


def metrics_from_counts(tp: int, fn: int, tn: int, fp: int) -> dict[str, float]:
    """Table 4 without the AUC, from a confusion matrix (the TB paper's equations 3-7).

    Args:
        tp: Positive images called positive.
        fn: Positive images called negative.
        tn: Negative images called negative.
        fp: Negative images called positive.

    Returns:
        `METRICS` without "auc" -> value in [0, 1], nan where undefined (see `classification_metrics`).

    Raises:
        UsageError: A count is negative or not whole, or all are zero.
    """
    total = total_of_counts(tp=tp, fn=fn, tn=tn, fp=fp)
    sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    return {
        "accuracy": (tp + tn) / total,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "average_precision": (_ratio(tp, tp + fp) + _ratio(tn, tn + fn)) / 2,
        "average_recall": (sensitivity + specificity) / 2,
    }


def classification_rows(
    names: Sequence[str], probability: ArrayLike, labels: ArrayLike, sources: Sequence[str]
) -> pd.DataFrame:
    """One row per image: all that `classification_summary` needs.

    Args:
        names: n image names.
        probability: (n,) probability of class 1 in [0, 1].
        labels: (n,) 0 = negative, 1 = positive.
        sources: n names of where the image comes from (a folder of the dataset), to see a shortcut by source.

    Returns:
        Columns name (str), source (str), label (int64), probability (float64).

    Raises:
        UsageError: As `classification_metrics`, or names or sources of another length.
    """
    p, y = checked_scores(probability, labels, 0.5)
    for what, given in (("names", names), ("sources", sources)):
        if len(given) != len(p):
            raise UsageError(f"{what} must have one entry per image: {len(given)} for {len(p)} images")
    return pd.DataFrame({"name": list(names), "source": list(sources), "label": y.astype(np.int64), "probability": p})


def classification_summary(
    rows: pd.DataFrame, resamples: int = 2000, seed: int = 0, *, threshold: float = 0.5, level: float = 0.95
) -> pd.DataFrame:
    """Table 4 from the rows, with bootstrap intervals over images drawn within each label.

    Args:
        rows: Table with the columns label and probability, such as `classification_rows` makes.
        resamples: Number of bootstrap resamples.
        seed: Seed of the draws.
        threshold: Probability above which an image is called positive.
        level: Coverage of the intervals.

    Returns:
        One row per metric in the order of `METRICS`: metric, value, low, high (nan where undefined), n
        (images).

    Raises:
        UsageError: A column is missing or holds values that `classification_metrics` refuses.
        UsageError: `resamples` or `level` out of range.
    """
    p, y = scores_of_rows(rows, threshold)
    values = _metrics(p, y, threshold)
    ends = bootstrap_metric(
        lambda index: _metrics(p[index], y[index], threshold), y, level=level, resamples=resamples, seed=seed
    )
    table = [(name, values[name], *ends[name], len(p)) for name in METRICS]
    return pd.DataFrame(table, columns=["metric", "value", "low", "high", "n"])


def scores_of_rows(
    rows: pd.DataFrame, threshold: float = 0.5, *, table: str = "rows"
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The checked probabilities and labels of a table.

    Args:
        rows: Table with the columns label and probability.
        threshold: A threshold to check as well.
        table: What an error calls the table.

    Returns:
        (n,) probability and (n,) whether the image is positive.

    Raises:
        UsageError: A column is missing or holds values that `classification_metrics` refuses.
    """
    missing = sorted({"label", "probability"} - set(rows.columns))
    if missing:
        found = ", ".join(map(str, rows.columns))
        raise UsageError(f"{table} lack the column(s) {', '.join(missing)}; found {found}")
    return checked_scores(rows["probability"].to_numpy(), rows["label"].to_numpy(), threshold)


def total_of_counts(**counts: int) -> int:
    """The number of images in a confusion matrix.

    Args:
        counts: Name -> number of images.

    Returns:
        The sum, >= 1.

    Raises:
        UsageError: A count is negative or not whole, or all are zero.
    """
    for name, count in counts.items():
        if not (count >= 0 and count == int(count)):
            raise UsageError(f"{name} must be a whole number of images, 0 or more; got {count}")
    total = sum(counts.values())
    if total == 0:
        raise UsageError("all counts are zero: there is no image to score")
    return total


def checked_scores(
    probability: ArrayLike, labels: ArrayLike, threshold: float = 0.5
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Probabilities and labels as arrays, checked.

    Args:
        probability: (n,) probability of class 1 in [0, 1], n >= 1.
        labels: (n,) 0 = negative, 1 = positive.
        threshold: A threshold in [0, 1].

    Returns:
        (n,) probability and (n,) whether the image is positive.

    Raises:
        UsageError: As `classification_metrics`.
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(labels)
    if p.ndim != 1 or y.shape != p.shape:
        raise UsageError(f"probability and labels must both be (n,), one per image; got {p.shape} and {y.shape}")
    if p.size == 0:
        raise UsageError("there is no image to score: probability and labels are empty")
    bad = np.flatnonzero(~((p >= 0) & (p <= 1)))  # nan fails both comparisons
    if bad.size:
        raise UsageError(f"probability must lie in [0, 1]; entry {bad[0]} is {p[bad[0]]} (logits need a softmax first)")
    wrong = np.flatnonzero((y != 0) & (y != 1))
    if wrong.size:
        raise UsageError(f"labels must be 0 (negative) or 1 (positive); entry {wrong[0]} is {y[wrong[0]]!r}")
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold must lie in [0, 1]; got {threshold}")
    return p, y == 1


def _metrics(p: NDArray[np.float64], y: NDArray[np.bool_], threshold: float) -> dict[str, float]:
    called = p > threshold
    tp, fn = int((called & y).sum()), int((~called & y).sum())
    tn, fp = int((~called & ~y).sum()), int((called & ~y).sum())
    values = metrics_from_counts(tp, fn, tn, fp) | {"auc": _auc(p, y)}
    return {name: values[name] for name in METRICS}


def _auc(p: NDArray[np.float64], y: NDArray[np.bool_]) -> float:
    """Area under the ROC curve by the rank-sum identity; ties count one half (Hanley and McNeil 1982)."""
    positives = int(y.sum())
    negatives = len(y) - positives
    rank_sum = float(rankdata(p)[y].sum()) - positives * (positives + 1) / 2
    return _ratio(rank_sum, positives * negatives)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
