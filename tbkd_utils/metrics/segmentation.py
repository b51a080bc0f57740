"""How well a mask covers the true one: overlaps of pixels, pooled and image by image, and a distance of outlines.

*Pooled*: the pixels of all images are counted together, so that large findings weigh more, and an image whose finding
is missed costs its few pixels. *Per image*: each image counts once. The two differ and must not be compared with each
other. A row holds the counts of an image, from which both follow.

At a few pixels in a thousand of foreground, accuracy and specificity are near 1 even for an empty prediction.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from tbkd_utils.errors import UsageError

COUNTS = ("tp", "fp", "fn", "tn")
"""Columns of a row: pixels of an image."""
OVERLAPS = ("accuracy", "precision", "recall", "specificity", "harmonic_mean", "dice", "iou")
"""Metrics of counts, in the order of the paper's table."""
DISTANCES = ("hd95", "hd95_missed_as_diagonal", "hd95_larger_direction", "hd95_larger_direction_missed_as_diagonal")
"""Means over images of a distance, in pixels; see `distance_summary`."""

Mask = NDArray[np.bool_]


def mask_metrics(tp: float, fp: float, fn: float, tn: float) -> dict[str, float]:
    """The overlaps of a confusion matrix of pixels.

    Args:
        tp: Pixels of both masks.
        fp: Of the predicted mask alone.
        fn: Of the true mask alone.
        tn: Of neither.

    Returns:
        `OVERLAPS` -> value in [0, 1]. `dice` is F1; `harmonic_mean` is that of recall and specificity, which hides the
        precision. What is undefined is nan: recall and harmonic mean without a true pixel, precision without a
        predicted one, Dice and IoU without either, specificity and harmonic mean where every pixel is true, and the
        harmonic mean of two zeros.

    Raises:
        UsageError: A count is negative or not finite, or all are zero.
    """
    counts = np.array([tp, fp, fn, tn], dtype=np.float64)
    if not (np.isfinite(counts).all() and (counts >= 0).all() and counts.any()):
        raise UsageError(f"tp, fp, fn, tn must be numbers of pixels, 0 or more, not all 0; got {tp}, {fp}, {fn}, {tn}")
    recall, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    return {
        "accuracy": _ratio(tp + tn, tp + fp + fn + tn),
        "precision": _ratio(tp, tp + fp),
        "recall": recall,
        "specificity": specificity,
        "harmonic_mean": _ratio(2 * recall * specificity, recall + specificity),
        "dice": _ratio(2 * tp, 2 * tp + fp + fn),
        "iou": _ratio(tp, tp + fp + fn),
    }


def dice_and_iou(precision: float, recall: float) -> tuple[float, float]:
    """What Dice and IoU must be where precision and recall come from the same counts: a check of published tables.

    Args:
        precision: In (0, 1].
        recall: In (0, 1].

    Returns:
        `2 P R / (P + R)` and `P R / (P + R - P R)`, in (0, 1].

    Raises:
        UsageError: If a share lies outside (0, 1].
    """
    for name, share in (("precision", precision), ("recall", recall)):
        if not 0 < share <= 1:
            raise UsageError(f"{name} must lie above 0 and not above 1; got {share} (a percentage needs to be divided)")
    both = precision * recall
    return 2 * both / (precision + recall), both / (precision + recall - both)


def hausdorff_95(prediction: ArrayLike, truth: ArrayLike, *, larger_direction: bool = False) -> float:
    """The 95th percentile of the distances between two outlines (HD95), in pixels.

    An outline is a mask without its erosion by 3x3, the image's edge counting as outside. Each of its pixels has a
    distance to the nearest pixel of the other outline. The percentile (linear) is of the distances of both directions
    in one list; or the larger of the two directions' own percentiles, which other tools call by the same name.

    Args:
        prediction: (h, w), bool or 0 and 1.
        truth: The same.
        larger_direction: Whether to take the larger of both directions instead of one list.

    Returns:
        At least 0; 0 if both masks are empty; nan if one is: a miss, or a find where nothing is.

    Raises:
        UsageError: If the masks are no masks or differ in shape.
    """
    found, true = _pair(prediction, truth)
    forth, back = _distances(found, true)
    return _percentile(forth, back, larger_direction)


def segmentation_rows(names: Sequence[str], predictions: ArrayLike, truths: ArrayLike) -> pd.DataFrame:
    """One row per image: all that the summaries need.

    Args:
        names: n image names.
        predictions: (n, h, w), bool or 0 and 1.
        truths: The same.

    Returns:
        Columns name (str); `COUNTS` (int64, pixels); `dice` and `iou` (float64, nan without a pixel in either mask);
        `hd95` and `hd95_larger_direction` (float64, pixels, nan where one mask alone is empty); `diagonal` (float64, of
        the image, pixels).

    Raises:
        UsageError: If there is no image, the masks are no masks, or lengths or shapes differ.
    """
    found, true = _checked(predictions, "predictions", 3), _checked(truths, "truths", 3)
    if found.shape != true.shape or len(names) != len(found) or not len(found):
        raise UsageError(
            f"Expected a name, a prediction and a truth of one size for each image, at least one; got {len(names)} "
            f"names, {found.shape} and {true.shape}"
        )
    return pd.DataFrame([{"name": str(name)} | _row(*pair) for name, *pair in zip(names, found, true, strict=True)])


def pooled_metrics(rows: pd.DataFrame) -> dict[str, float]:
    """The overlaps of all pixels of all images together.

    `metrics.statistics.bootstrap_metric` takes it as `lambda index: pooled_metrics(rows.iloc[index])`.

    Args:
        rows: Table with the columns `COUNTS`, as `segmentation_rows` makes it.

    Returns:
        As `mask_metrics`.

    Raises:
        UsageError: If a column is missing, or there is no image.
    """
    return mask_metrics(*_counts(rows).sum(axis=0).tolist())


def overlap_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Every overlap in both senses.

    Args:
        rows: Table with the columns `COUNTS`.

    Returns:
        One row per metric in the order of `OVERLAPS`: metric; pooled, over the pixels of all images; per_image, the
        mean over the images in which it is defined; n, how many these are; undefined, how many the others.

    Raises:
        UsageError: As `pooled_metrics`.
    """
    pooled = pooled_metrics(rows)
    each = pd.DataFrame([mask_metrics(*counts) for counts in _counts(rows).tolist()])
    table = [(name, pooled[name], each[name].mean(), int(each[name].notna().sum()), int(each[name].isna().sum()))
             for name in OVERLAPS]  # fmt: skip
    return pd.DataFrame(table, columns=["metric", "pooled", "per_image", "n", "undefined"])


def distance_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """The mean distance of the outlines, without the misses and with them.

    Left out, a miss makes the mean better the more is missed. So each distance is given twice: over the images in which
    it is defined, and over all, one empty mask counting as the image's diagonal.

    Args:
        rows: Table with the columns `COUNTS`, hd95, hd95_larger_direction and diagonal, as `segmentation_rows` makes
            it.

    Returns:
        One row per name in `DISTANCES`: metric; mean and std (ddof = 0), in pixels; n, the images in the mean (nan mean
        for none); missed, the images with a true mask and no predicted one; invented, those the other way round.

    Raises:
        UsageError: If a column is missing, or there is no image.
    """
    tp, fp, fn, _ = _counts(rows, "hd95", "hd95_larger_direction", "diagonal").T
    missed, invented = (tp + fp == 0) & (fn > 0), (tp + fn == 0) & (fp > 0)
    table = []
    for column in ("hd95", "hd95_larger_direction"):
        for name, values in (
            (column, rows[column]),
            (f"{column}_missed_as_diagonal", rows[column].fillna(rows["diagonal"])),
        ):
            n = int(values.notna().sum())
            table.append((name, values.mean(), values.std(ddof=0), n, int(missed.sum()), int(invented.sum())))
    return pd.DataFrame(table, columns=["metric", "mean", "std", "n", "missed", "invented"])


def _row(found: Mask, true: Mask) -> dict[str, float]:
    counts = {
        "tp": int((found & true).sum()), "fp": int((found & ~true).sum()),
        "fn": int((~found & true).sum()), "tn": int((~found & ~true).sum()),
    }  # fmt: skip
    overlaps, distances = mask_metrics(**counts), _distances(found, true)
    return counts | {
        "dice": overlaps["dice"],
        "iou": overlaps["iou"],
        "hd95": _percentile(*distances, larger_direction=False),
        "hd95_larger_direction": _percentile(*distances, larger_direction=True),
        "diagonal": float(np.hypot(*true.shape)),
    }


def _distances(found: Mask, true: Mask) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From each pixel of one outline to the nearest of the other, both ways; of an empty mask, inf, and no pixel."""
    outlines = [mask & ~binary_erosion(mask, np.ones((3, 3))) for mask in (found, true)]
    # Without a pixel at distance 0 the transform would measure from a place outside the image.
    away = [distance_transform_edt(~one) if one.any() else np.full(one.shape, np.inf) for one in outlines]
    return away[1][outlines[0]], away[0][outlines[1]]


def _percentile(forth: NDArray[np.float64], back: NDArray[np.float64], larger_direction: bool) -> float:
    if not forth.size and not back.size:
        return 0.0
    if not forth.size or not back.size:
        return float("nan")
    lists = (forth, back) if larger_direction else (np.concatenate([forth, back]),)
    return max(float(np.percentile(one, 95)) for one in lists)


def _pair(prediction: ArrayLike, truth: ArrayLike) -> tuple[Mask, Mask]:
    found, true = _checked(prediction, "prediction", 2), _checked(truth, "truth", 2)
    if found.shape != true.shape:
        raise UsageError(f"prediction and truth must have one shape; got {found.shape} and {true.shape}")
    return found, true


def _checked(masks: ArrayLike, what: str, axes: int) -> Mask:
    given = np.asarray(masks)
    if given.ndim != axes or 0 in given.shape[1:]:
        raise UsageError(f"{what} must have {axes} axes, the last two height and width; got shape {given.shape}")
    if not ((given == 0) | (given == 1)).all():
        raise UsageError(f"{what} must hold 0 and 1; got values up to {given.max()}: apply a threshold first")
    return given.astype(bool)


def _counts(rows: pd.DataFrame, *others: str) -> NDArray[np.float64]:
    """(n, 4), in the order of `COUNTS`."""
    missing = [name for name in (*COUNTS, *others) if name not in rows]
    if missing or not len(rows):
        raise UsageError(f"Expected rows of images; got {len(rows)}, without the column(s) {', '.join(missing) or '-'}")
    return rows[list(COUNTS)].to_numpy(dtype=np.float64)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
