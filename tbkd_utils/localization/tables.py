"""Tables of how well a set of radiographs is localized: rows per image, their means with intervals, MaxBoxAccV2.

Conventions as in `localization`, whose scores of one image are collected here.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tbkd_utils.errors import UsageError
from tbkd_utils.localization.boxes import Boxes, PerLung, boxes_at_thresholds, boxes_to_json
from tbkd_utils.localization.scores import (
    average_score,
    check_inside,
    check_same_length,
    check_tolerance,
    check_truth,
    energy_of,
    hit_of,
    scores_of,
)
from tbkd_utils.metrics.statistics import bootstrap_interval, bootstrap_metric, patients_of

DELTAS = (0.3, 0.5, 0.7)
"""IoU levels of MaxBoxAccV2 (Choe et al., CVPR 2020)."""
ROWS_FORMAT = 2
"""Of rows on disk; raise it when a column changes its meaning, so that old ones are made anew."""
SCORES = ("score", "matched", "best_iou", "hit_30", "hit_50", "hit_70", "pointing", "energy", "n_pred", "no_box")
"""What `summarize` averages over images; "score" averages to the paper's mIOU."""


def threshold_rows(
    names: Sequence[Hashable],
    heatmaps: ArrayLike,
    gt_list: Sequence[ArrayLike],
    min_area: float,
    thresholds: Iterable[float],
    *,
    area: str = "rectangle",
    method: str = "minmax",
    lungs: Sequence[PerLung] | None = None,
) -> pd.DataFrame:
    """One row per image and threshold: name, threshold, n_gt, n_pred, score (Algorithm 2), matched, best_iou.

    Args:
        names: n names.
        heatmaps: (n, H, W).
        gt_list: n arrays (m, 4), each with m >= 1.
        min_area: Minimum box area of Algorithm 1, in square pixels.
        thresholds: Shares of the normalized range, in [0, 1].
        area: As in `boxes_from_heatmap`.
        method: As in `normalize`.
        lungs: Of each image, for one box a lung; None for every region.

    Returns:
        n * len(thresholds) rows, image by image. matched is `matched_score`; best_iou is the largest IoU of any
        pair, 0 without prediction.

    Raises:
        UsageError: Bad boxes, boxes outside the heatmap, or a setting out of range.
        UsageError: Maps not (n, H, W) or not finite, lengths that differ or are 0, or an image without ground
            truth.
    """
    maps, truths = _all_maps(names, heatmaps, gt_list)
    levels = [float(t) for t in thresholds]
    if not levels:
        raise UsageError("thresholds are empty: give at least one value in [0, 1]")
    rows = []
    for name, heat, gt, halves in zip(names, maps, truths, _each(lungs, len(maps)), strict=True):
        found = boxes_at_thresholds(heat, levels, min_area, area=area, method=method, lungs=halves)
        rows += [(name, t, len(gt), len(p), *scores_of(gt, p)) for t, p in zip(levels, found, strict=True)]
    return pd.DataFrame(rows, columns=["name", "threshold", "n_gt", "n_pred", "score", "matched", "best_iou"])


def _each(lungs: Sequence[PerLung] | None, count: int) -> Sequence[PerLung | None]:
    return [None] * count if lungs is None else lungs


def max_box_acc(
    rows: pd.DataFrame, *, deltas: Sequence[float] = DELTAS, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """MaxBoxAccV2 (Choe et al., CVPR 2020): share of images hit at each IoU level's best heatmap threshold.

    As in the authors' wsolevaluation with several contours: an image is hit at a threshold if any box around any
    contour has IoU >= delta with any ground-truth box; for each delta the best threshold is taken; the deltas are
    averaged. No minimum area. Ours differs in small print: right and bottom are exclusive (theirs add one pixel), the
    mask is value >= threshold on the float map (theirs > on 8 bits), and only outer contours are used (theirs also
    holes). The threshold is chosen on the images that are scored, so the number is optimistic, for every network alike;
    each bootstrap resample chooses it anew.

    Args:
        rows: From `threshold_rows` with a minimum area of 0: one row per image and threshold; with a column `patient`
            patients are drawn.
        deltas: IoU levels in (0, 1].
        resamples: Of the images, for the interval.
        seed: Of the resamples.

    Returns:
        One row, in the form of those of `summarize`: metric, mean, low, high, n.

    Raises:
        UsageError: No rows, or deltas out of range.
    """
    if not deltas or not all(0 < d <= 1 for d in deltas):
        raise UsageError(f"deltas must be IoU levels in (0, 1]; got {deltas}")
    best = rows.pivot(index="name", columns="threshold", values="best_iou").to_numpy()  # (images, thresholds)
    hits = np.stack([best >= delta for delta in deltas], axis=1).astype(np.float32)  # (images, levels, thresholds)

    def metric(index: np.ndarray) -> dict[str, float]:
        return {"value": float(hits[index].mean(axis=0, dtype=np.float64).max(axis=1).mean())}

    value = metric(np.arange(len(hits)))["value"]
    clusters = patients_of(rows.drop_duplicates("name").sort_values("name"))  # in the order of the pivot
    ends = bootstrap_metric(metric, np.zeros(len(hits)), resamples=resamples, seed=seed, clusters=clusters)
    low, high = ends["value"]
    return pd.DataFrame([{"metric": "max_box_acc_v2", "mean": value, "low": low, "high": high, "n": len(best)}])


def score_rows(
    names: Sequence[Hashable],
    heatmaps: ArrayLike,
    gt_list: Sequence[ArrayLike],
    threshold: float,
    min_area: float,
    *,
    area: str = "rectangle",
    method: str = "minmax",
    tolerance: float = 0.0,
    lungs: Sequence[PerLung] | None = None,
) -> pd.DataFrame:
    """One row per image at the operating threshold: every number that `summarize` needs.

    Args:
        names: n names.
        heatmaps: (n, H, W), after the ReLU, not normalized.
        gt_list: n arrays (m, 4), each with m >= 1.
        threshold: Share of the normalized range, in [0, 1].
        min_area: Minimum box area of Algorithm 1, in square pixels.
        area: As in `boxes_from_heatmap`.
        method: As in `normalize`.
        tolerance: As in `pointing_hit`.
        lungs: As in `threshold_rows`.

    Returns:
        Columns name, n_gt, n_pred, score (Algorithm 2), matched (one-to-one: missed and surplus boxes count 0),
        best_iou, hit_30, hit_50, hit_70 (1 if best_iou reaches 0.3, 0.5, 0.7), pointing (0 or 1), energy, boxes
        (predictions) and gt_boxes, both for `boxes_from_json`.

    Raises:
        UsageError: As `threshold_rows`.
        UsageError: As `threshold_rows`, or a negative tolerance.
    """
    check_tolerance(tolerance)
    maps, truths = _all_maps(names, heatmaps, gt_list)
    rows = []
    for name, heat, gt, halves in zip(names, maps, truths, _each(lungs, len(maps)), strict=True):
        (pred,) = boxes_at_thresholds(heat, [threshold], min_area, area=area, method=method, lungs=halves)
        pointing, energy = hit_of(heat, gt, tolerance), energy_of(heat, gt)
        rows.append(image_row(name, gt, pred, pointing, energy))
    return pd.DataFrame(rows)


def image_row(name: Hashable, gt: Boxes, pred: Boxes, pointing: bool, energy: float) -> dict[str, Any]:
    """Returns one row of `score_rows`: how boxes fit the truth, and what was found of the heatmap.

    Args:
        name: Of the image.
        gt: (m, 4) checked ground truth, m >= 1.
        pred: (k, 4) checked boxes.
        pointing: Whether the heatmap points into the truth.
        energy: Its share inside the truth.
    """
    score, matched, best = scores_of(gt, pred)
    row = {"name": name, "n_gt": len(gt), "n_pred": len(pred), "score": score, "matched": matched, "best_iou": best}
    row |= {f"hit_{round(100 * delta)}": int(best >= delta) for delta in DELTAS}
    row |= {"pointing": int(pointing), "energy": energy}
    return row | {"boxes": boxes_to_json(pred), "gt_boxes": boxes_to_json(gt)}


def summarize(
    rows: pd.DataFrame,
    resamples: int = 2000,
    seed: int = 0,
    *,
    level: float = 0.95,
    no_prediction: str = "zero",
    average: str = "image",
) -> pd.DataFrame:
    """Means over the images of `score_rows`, with bootstrap intervals.

    Args:
        rows: What `score_rows` returned, or its CSV read back. If they have a column `patient` too, patients are drawn
            with all their images.
        resamples: Number of bootstrap resamples.
        seed: Seed of the draws; all metrics see the same resampled images.
        level: Coverage of the intervals.
        no_prediction: For the metric "score", as in `mean_iou`.
        average: For the metric "score", as in `mean_iou`.

    Returns:
        One row per name in `SCORES`: metric, mean, low, high, n (images that count). "score" is the paper's
        mIOU; "no_box" is the share of images with n_pred = 0.

    Raises:
        UsageError: A column is missing or holds a value that is not finite, or an unknown option.
        UsageError: No row, or an option out of range.
    """
    missing = sorted({*SCORES, "n_gt"} - {"no_box"} - set(rows.columns))
    if missing:
        raise UsageError(f"rows lack the column(s) {', '.join(missing)}: give what score_rows returned")
    table = rows.assign(no_box=(rows["n_pred"] == 0).astype(int))[["n_gt", *SCORES]].astype(np.float64)
    broken = [column for column in table if not np.isfinite(table[column]).all()]
    if broken:
        raise UsageError(f"rows hold nan or infinity in {', '.join(map(str, broken))}: score those images again")
    score, n_gt, n_pred = (table[c].to_numpy() for c in ("score", "n_gt", "n_pred"))

    def miou(index: NDArray[np.intp]) -> dict[str, float]:
        return {"score": average_score(score[index], n_gt[index], n_pred[index], no_prediction, average)}

    mean = miou(np.arange(len(table)))["score"]
    everyone = np.zeros(len(table))  # one stratum: the same images are drawn as for the plain means below
    how: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed, "clusters": patients_of(rows)}
    ends = bootstrap_metric(miou, everyone, **how)["score"]
    found = [("score", mean, *ends, int((n_pred > 0).sum()) if no_prediction == "skip" else len(table))]
    for metric in SCORES[1:]:
        values = table[metric].to_numpy()
        ends = bootstrap_interval(values, **how)
        found.append((metric, float(values.mean()), *ends, len(table)))
    return pd.DataFrame(found, columns=["metric", "mean", "low", "high", "n"])


def _all_maps(
    names: Sequence[Hashable], heatmaps: ArrayLike, gt_list: Sequence[ArrayLike]
) -> tuple[NDArray[Any], list[Boxes]]:
    maps = np.asarray(heatmaps)
    if maps.ndim != 3:
        raise UsageError(f"heatmaps must have shape (n, H, W); got {maps.shape}")
    check_same_length(names=names, heatmaps=maps, gt_list=gt_list)
    truths = [check_truth(gt, i) for i, gt in enumerate(gt_list)]
    for i, truth in enumerate(truths):
        check_inside(truth, maps.shape[1:], i)
    finite = np.isfinite(maps).all(axis=(1, 2))
    if not finite.all():
        raise UsageError(
            f"the heatmap of {names[int(np.argmin(finite))]} holds nan or infinity: did its network diverge?"
        )
    return maps, truths
