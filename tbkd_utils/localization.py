"""How well boxes and heatmaps find the lesions: Algorithms 2-3 of the paper and the field's other metrics.

Boxes are (k, 4) float32 xyxy, ground truth (`gt`) and predictions at the scale of the heatmap. Heatmaps are
(H, W) or (n, H, W), not normalised. Every per-image score lies in [0, 1], larger is better.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from tbkd_utils.boxes import BoxError, Boxes, boxes_at_thresholds, boxes_to_json, check_boxes
from tbkd_utils.errors import TbkdError
from tbkd_utils.statistics import bootstrap_interval, bootstrap_metric

DELTAS = (0.3, 0.5, 0.7)
"""IoU levels of MaxBoxAccV2 (Choe et al., CVPR 2020)."""

SCORES = ("score", "matched", "best_iou", "hit_30", "hit_50", "hit_70", "pointing", "energy", "n_pred", "no_box")
"""What `summarize` averages over images; "score" averages to the paper's mIOU."""


class ScoreError(TbkdError, ValueError):
    """Lists that do not belong together, or nothing to score."""


@dataclass(frozen=True)
class MaxBoxAcc:
    """MaxBoxAccV2 and its parts.

    Attributes:
        value: Mean of `accuracies`, in [0, 1].
        deltas: IoU levels, 0.3, 0.5, 0.7 unless asked otherwise.
        accuracies: For each level, the share of images hit at that level's best heatmap threshold.
        thresholds: That best threshold (the lowest of several).
    """

    value: float
    deltas: tuple[float, ...]
    accuracies: tuple[float, ...]
    thresholds: tuple[float, ...]


def iou_matrix(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of every pair: (len(a), len(b)) float64 in [0, 1]; 0 where a union has no area.

    Raises:
        BoxError: Boxes that break the convention.
    """
    return _iou(check_boxes(a, "first boxes"), check_boxes(b, "second boxes"))


def image_score(gt: ArrayLike, pred: ArrayLike) -> float:
    """Score of one image by Algorithms 2-3: the mean of the len(gt) largest IoUs among all (gt, pred) pairs.

    One prediction may count for several lesions and a poor prediction costs nothing, which `matched_score`
    mends in part. With a prediction there are always len(gt) pairs or more; without one the score is 0.

    Args:
        gt: (m, 4) ground truth, m >= 1.
        pred: (k, 4) predictions.

    Returns:
        Mean IoU in [0, 1].

    Raises:
        ScoreError: No ground truth.
        BoxError: Boxes that break the convention.
    """
    return _scores(_ground_truth(gt), check_boxes(pred, "predictions"))[0]


def matched_score(gt: ArrayLike, pred: ArrayLike) -> float:
    """As `image_score` with a one-to-one assignment: the largest sum of IoUs (Hungarian method) over len(gt).

    A lesion without a prediction of its own counts 0; surplus predictions cost nothing. Never above
    `image_score`.
    """
    return _scores(_ground_truth(gt), check_boxes(pred, "predictions"))[1]


def mean_iou(
    gt_list: Sequence[ArrayLike],
    pred_list: Sequence[ArrayLike],
    *,
    no_prediction: str = "zero",
    average: str = "image",
) -> float:
    """The paper's mIOU (Algorithm 2): the mean of `image_score` over the images.

    Args:
        gt_list: n arrays (m, 4), each with m >= 1, n >= 1.
        pred_list: n arrays (k, 4) of the same images in the same order.
        no_prediction: An image without a prediction scores 0 ("zero", ours) or is left out ("skip").
        average: Mean over images ("image", ours) or over all kept IoUs ("box": images weigh by their
            ground-truth boxes).

    Returns:
        Mean IoU in [0, 1]; nan if "skip" leaves no image.

    Raises:
        ScoreError: Lists of different or zero length, an image without ground truth, or an unknown option.
        BoxError: Boxes that break the convention.
    """
    _same_length(gt_list=gt_list, pred_list=pred_list)
    truths = [_ground_truth(gt, i) for i, gt in enumerate(gt_list)]
    preds = [check_boxes(pred, f"predictions of image {i}") for i, pred in enumerate(pred_list)]
    scores = np.array([_scores(g, p)[0] for g, p in zip(truths, preds, strict=True)])
    n_gt, n_pred = (np.array([len(one) for one in many]) for many in (truths, preds))
    return _mean_score(scores, n_gt, n_pred, no_prediction, average)


def pointing_hit(heatmap: ArrayLike, gt: ArrayLike, *, tolerance: float = 0.0) -> bool:
    """Pointing game (Zhang et al., IJCV 2018): does the maximum of the heatmap lie in a ground-truth box?

    The point is the centre of the brightest pixel. Of equally bright pixels (an upsampled map is flat along
    the border) the one nearest to their mean position counts, then the first in reading order. A constant map
    has no maximum: a miss.

    Args:
        heatmap: (H, W).
        gt: (m, 4), m >= 1.
        tolerance: Euclidean distance in pixels to the box that still counts. Zhang et al. allow 15; here 0.

    Returns:
        Whether it hits.

    Raises:
        ScoreError: The map is not (H, W) or not finite, no ground truth, or a negative tolerance.
        BoxError: Boxes that break the convention or do not lie in the heatmap.
    """
    _check_tolerance(tolerance)
    return _hits(*_one_map(heatmap, gt), tolerance)


def energy_inside(heatmap: ArrayLike, gt: ArrayLike) -> float:
    """Share of the heatmap's positive energy inside the union of the boxes.

    The energy-based pointing game (Wang et al., Score-CAM, 2020). Negative values count 0. A pixel cut by a
    box edge counts by the covered part of its area, exactly.

    Args:
        heatmap: (H, W), not normalised: min-max would add energy where there is none.
        gt: (m, 4), m >= 1.

    Returns:
        Share in [0, 1]; 0 for a map without positive value.

    Raises:
        ScoreError: The map is not (H, W) or not finite, or no ground truth.
        BoxError: Boxes that break the convention or do not lie in the heatmap.
    """
    return _energy(*_one_map(heatmap, gt))


def threshold_rows(
    names: Sequence[Hashable],
    heatmaps: ArrayLike,
    gt_list: Sequence[ArrayLike],
    min_area: float,
    thresholds: Iterable[float],
    *,
    area: str = "rectangle",
    method: str = "minmax",
) -> pd.DataFrame:
    """One row per image and threshold: name, threshold, n_gt, n_pred, score (Algorithm 2), matched, best_iou.

    Args:
        names: n names.
        heatmaps: (n, H, W).
        gt_list: n arrays (m, 4), each with m >= 1.
        min_area: Minimum box area of Algorithm 1, in square pixels.
        thresholds: Shares of the normalised range, in [0, 1].
        area: As in `boxes_from_heatmap`.
        method: As in `normalize`.

    Returns:
        n * len(thresholds) rows, image by image. best_iou is the largest IoU of any pair, 0 without
        prediction.

    Raises:
        BoxError: Bad boxes, boxes outside the heatmap, or a setting out of range.
        ScoreError: Maps not (n, H, W) or not finite, lengths that differ or are 0, or an image without ground
            truth.
    """
    maps, truths = _all_maps(names, heatmaps, gt_list)
    levels = [float(t) for t in thresholds]
    if not levels:
        raise ScoreError("thresholds are empty: give at least one value in [0, 1]")
    rows = []
    for name, heat, gt in zip(names, maps, truths, strict=True):
        found = boxes_at_thresholds(heat, levels, min_area, area=area, method=method)
        rows += [(name, t, len(gt), len(p), *_scores(gt, p)) for t, p in zip(levels, found, strict=True)]
    return pd.DataFrame(rows, columns=["name", "threshold", "n_gt", "n_pred", "score", "matched", "best_iou"])


def threshold_curve(
    heatmaps: ArrayLike,
    gt_list: Sequence[ArrayLike],
    min_area: float,
    thresholds: Iterable[float],
    *,
    area: str = "rectangle",
    method: str = "minmax",
    no_prediction: str = "zero",
    average: str = "image",
) -> pd.DataFrame:
    """Means over images of `threshold_rows`; `no_prediction` and `average` act on miou as in `mean_iou`.

    Returns:
        One row per threshold, ascending: threshold, miou, matched, boxes (mean number of predictions), no_box
        (share of images without any).
    """
    names = range(len(gt_list))
    rows = threshold_rows(names, heatmaps, gt_list, min_area, thresholds, area=area, method=method)
    curve = []
    for threshold, part in rows.groupby("threshold"):
        score, n_gt, n_pred, matched = (part[c].to_numpy() for c in ("score", "n_gt", "n_pred", "matched"))
        miou = _mean_score(score, n_gt, n_pred, no_prediction, average)
        curve.append((threshold, miou, matched.mean(), n_pred.mean(), (n_pred == 0).mean()))
    return pd.DataFrame(curve, columns=["threshold", "miou", "matched", "boxes", "no_box"])


def max_box_acc(
    heatmaps: ArrayLike,
    gt_list: Sequence[ArrayLike],
    thresholds: Iterable[float] | None = None,
    *,
    deltas: Sequence[float] = DELTAS,
    method: str = "minmax",
) -> MaxBoxAcc:
    """MaxBoxAccV2 (Choe et al., CVPR 2020): share of images hit at each IoU level's best heatmap threshold.

    As in the authors' wsolevaluation with several contours: an image is hit at a threshold if any box around
    any contour has IoU >= delta with any ground-truth box; for each delta the best threshold is taken; the
    deltas are averaged. No minimum area. Ours differs in small print: right and bottom are exclusive (theirs
    add one pixel), the mask is value >= threshold on the float map (theirs > on 8 bits), only outer contours
    are used (theirs also holes), and 100 thresholds are the default (theirs 1000). The threshold is chosen on
    the images that are scored: an optimistic number.

    Args:
        heatmaps: (n, H, W).
        gt_list: n arrays (m, 4), each with m >= 1.
        thresholds: In [0, 1]; 0, 0.01, ..., 0.99 if None.
        deltas: IoU levels in (0, 1].
        method: As in `normalize`.

    Returns:
        The metric with its parts; recompute it from the best_iou of `threshold_rows` with min_area 0.

    Raises:
        BoxError: As `threshold_rows`.
        ScoreError: As `threshold_rows`, or deltas out of range.
    """
    if not deltas or not all(0 < d <= 1 for d in deltas):
        raise ScoreError(f"deltas must be IoU levels in (0, 1]; got {deltas}")
    levels = np.sort(np.arange(100) / 100 if thresholds is None else np.array(list(thresholds), float))
    rows = threshold_rows(range(len(gt_list)), heatmaps, gt_list, 0.0, levels, method=method)
    best = rows["best_iou"].to_numpy().reshape(len(gt_list), len(levels))  # (images, thresholds)
    hits = np.stack([(best >= delta).mean(axis=0) for delta in deltas])  # (deltas, thresholds)
    accuracies, chosen = hits.max(axis=1), levels[hits.argmax(axis=1)]
    return MaxBoxAcc(float(accuracies.mean()), tuple(deltas), tuple(accuracies.tolist()), tuple(chosen.tolist()))


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
) -> pd.DataFrame:
    """One row per image at the operating threshold: every number that `summarize` needs.

    Args:
        names: n names.
        heatmaps: (n, H, W), after the ReLU, not normalised.
        gt_list: n arrays (m, 4), each with m >= 1.
        threshold: Share of the normalised range, in [0, 1].
        min_area: Minimum box area of Algorithm 1, in square pixels.
        area: As in `boxes_from_heatmap`.
        method: As in `normalize`.
        tolerance: As in `pointing_hit`.

    Returns:
        Columns name, n_gt, n_pred, score (Algorithm 2), matched, best_iou, hit_30, hit_50, hit_70 (1 if
        best_iou reaches 0.3, 0.5, 0.7), pointing (0 or 1), energy, boxes (predictions) and gt_boxes, both for
        `boxes_from_json`.

    Raises:
        BoxError: As `threshold_rows`.
        ScoreError: As `threshold_rows`, or a negative tolerance.
    """
    _check_tolerance(tolerance)
    maps, truths = _all_maps(names, heatmaps, gt_list)
    rows = []
    for name, heat, gt in zip(names, maps, truths, strict=True):
        (pred,) = boxes_at_thresholds(heat, [threshold], min_area, area=area, method=method)
        score, matched, best = _scores(gt, pred)
        row = {
            "name": name,
            "n_gt": len(gt),
            "n_pred": len(pred),
            "score": score,
            "matched": matched,
            "best_iou": best,
        }
        row |= {f"hit_{round(100 * delta)}": int(best >= delta) for delta in DELTAS}
        row |= {"pointing": int(_hits(heat, gt, tolerance)), "energy": _energy(heat, gt)}
        rows.append(row | {"boxes": boxes_to_json(pred), "gt_boxes": boxes_to_json(gt)})
    return pd.DataFrame(rows)


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
        rows: What `score_rows` returned, or its CSV read back.
        resamples: Number of bootstrap resamples.
        seed: Seed of the draws; all metrics see the same resampled images.
        level: Coverage of the intervals.
        no_prediction: For the metric "score", as in `mean_iou`.
        average: For the metric "score", as in `mean_iou`.

    Returns:
        One row per name in `SCORES`: metric, mean, low, high, n (images that count). "score" is the paper's
        mIOU; "no_box" is the share of images with n_pred = 0.

    Raises:
        ScoreError: A column is missing or holds a value that is not finite, or an unknown option.
        StatisticsError: No row, or an option out of range.
    """
    missing = sorted({*SCORES, "n_gt"} - {"no_box"} - set(rows.columns))
    if missing:
        raise ScoreError(f"rows lack the column(s) {', '.join(missing)}: give what score_rows returned")
    table = rows.assign(no_box=(rows["n_pred"] == 0).astype(int))[["n_gt", *SCORES]].astype(np.float64)
    broken = [column for column in table if not np.isfinite(table[column]).all()]
    if broken:
        raise ScoreError(f"rows hold nan or infinity in {', '.join(map(str, broken))}: score those images again")
    score, n_gt, n_pred = (table[c].to_numpy() for c in ("score", "n_gt", "n_pred"))

    def miou(index: NDArray[np.intp]) -> dict[str, float]:
        return {"score": _mean_score(score[index], n_gt[index], n_pred[index], no_prediction, average)}

    mean = miou(np.arange(len(table)))["score"]
    everyone = np.zeros(len(table))  # one stratum: the same images are drawn as for the plain means below
    ends = bootstrap_metric(miou, everyone, level=level, resamples=resamples, seed=seed)["score"]
    found = [("score", mean, *ends, int((n_pred > 0).sum()) if no_prediction == "skip" else len(table))]
    for metric in SCORES[1:]:
        values = table[metric].to_numpy()
        ends = bootstrap_interval(values, level=level, resamples=resamples, seed=seed)
        found.append((metric, float(values.mean()), *ends, len(table)))
    return pd.DataFrame(found, columns=["metric", "mean", "low", "high", "n"])


def _mean_score(
    score: NDArray[np.float64],
    n_gt: NDArray[Any],
    n_pred: NDArray[Any],
    no_prediction: str,
    average: str,
) -> float:
    """Average per-image scores (n,) to the mIOU."""
    if no_prediction not in ("zero", "skip") or average not in ("image", "box"):
        raise ScoreError(f"no_prediction is zero or skip, average is image or box; got {no_prediction!r}, {average!r}")
    used = (n_pred > 0) | (no_prediction == "zero")
    if not used.any():
        return float("nan")
    return float(np.average(score[used], weights=n_gt[used] if average == "box" else None))


def _iou(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    p, q = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    # (len(a), len(b), 2): width and height of each overlap
    sides = np.maximum(np.minimum(p[..., 2:], q[..., 2:]) - np.maximum(p[..., :2], q[..., :2]), 0)
    overlap = sides[..., 0] * sides[..., 1]
    size_p, size_q = ((r[..., 2] - r[..., 0]) * (r[..., 3] - r[..., 1]) for r in (p, q))
    union = size_p + size_q - overlap
    # the minimum guards against a rounding error above 1
    return np.minimum(np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0), 1)


def _scores(gt: Boxes, pred: Boxes) -> tuple[float, float, float]:
    """(image_score, matched_score, largest IoU) of checked boxes."""
    if len(pred) == 0:
        return 0.0, 0.0, 0.0
    iou = _iou(gt, pred)
    kept = np.sort(iou, axis=None)[-len(gt) :]
    matched = float(iou[linear_sum_assignment(iou, maximize=True)].sum()) / len(gt)
    return float(kept.mean()), matched, float(kept[-1])


def _hits(heat: NDArray[Any], truth: NDArray[Any], tolerance: float) -> bool:
    """`pointing_hit` of a checked map and boxes."""
    brightest = np.flatnonzero(heat.ravel() == heat.max())
    if len(brightest) == heat.size:
        return False
    peaks = np.stack(np.divmod(brightest, heat.shape[1]), axis=1).astype(np.float64)  # (k, 2): row, column
    away = ((peaks - peaks.mean(axis=0)) ** 2).sum(axis=1)
    y, x = peaks[np.argmin(away)] + 0.5
    dx = np.maximum(np.maximum(truth[:, 0] - x, x - truth[:, 2]), 0)
    dy = np.maximum(np.maximum(truth[:, 1] - y, y - truth[:, 3]), 0)
    return bool((np.hypot(dx, dy) <= tolerance).any())


def _energy(heat: NDArray[Any], truth: NDArray[Any]) -> float:
    """`energy_inside` of a checked map and boxes."""
    top = float(heat.max())
    if top <= 0:
        return 0.0
    energy = heat.astype(np.float64)
    if heat.min() < 0:
        np.maximum(energy, 0, out=energy)
    energy /= top  # so that sums neither overflow nor vanish
    # Cut the image along every box edge; each cell of that grid is wholly inside or outside the union.
    xs, ys = np.unique(truth[:, [0, 2]]), np.unique(truth[:, [1, 3]])
    inside = (
        (truth[:, 1, None, None] <= ys[:-1, None])
        & (ys[1:, None] <= truth[:, 3, None, None])
        & (truth[:, 0, None, None] <= xs[:-1])
        & (xs[1:] <= truth[:, 2, None, None])
    ).any(axis=0)  # (rows, columns) of cells
    cells = _overlap(ys, heat.shape[0]) @ energy @ _overlap(xs, heat.shape[1]).T  # energy in each cell
    return min(float(cells[inside].sum() / energy.sum()), 1.0)


def _check_tolerance(tolerance: float) -> None:
    if not tolerance >= 0:
        raise ScoreError(f"tolerance must be 0 or more pixels; got {tolerance}")


def _overlap(edges: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(len(edges) - 1, size): length of each interval between edges that lies on each pixel."""
    pixel = np.arange(size)
    return np.maximum(np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel), 0)


def _ground_truth(gt: ArrayLike, image: int | None = None) -> Boxes:
    where = "" if image is None else f" of image {image}"
    truth = check_boxes(gt, f"ground truth{where}")
    if len(truth) == 0:
        raise ScoreError(f"there is no ground-truth box{where}: score only images that have one")
    return truth


def _inside(truth: Boxes, shape: tuple[int, ...], image: int | None = None) -> None:
    height, width = shape
    limit = np.array([width, height, width, height]) + 1e-3  # float32 rounding of a box on the edge
    out = np.flatnonzero(((truth < -1e-3) | (truth > limit)).any(axis=1))
    if out.size:
        where = "" if image is None else f" of image {image}"
        raise BoxError(
            f"ground truth{where} must lie in the {width}x{height} heatmap; box "
            f"{out[0]} is {truth[out[0]].tolist()}: bring it to the heatmap's scale and clip it first"
        )


def _one_map(heatmap: ArrayLike, gt: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    heat = np.asarray(heatmap, dtype=np.float64)
    if heat.ndim != 2 or heat.size == 0 or not np.isfinite(heat).all():
        raise ScoreError(f"expected one finite heatmap of shape (H, W); got shape {heat.shape} or nan or infinity")
    truth = _ground_truth(gt)
    _inside(truth, heat.shape)
    return heat, truth.astype(np.float64)


def _all_maps(
    names: Sequence[Hashable], heatmaps: ArrayLike, gt_list: Sequence[ArrayLike]
) -> tuple[NDArray[Any], list[Boxes]]:
    maps = np.asarray(heatmaps)
    if maps.ndim != 3:
        raise ScoreError(f"heatmaps must have shape (n, H, W); got {maps.shape}")
    _same_length(names=names, heatmaps=maps, gt_list=gt_list)
    truths = [_ground_truth(gt, i) for i, gt in enumerate(gt_list)]
    for i, truth in enumerate(truths):
        _inside(truth, maps.shape[1:], i)
    finite = np.isfinite(maps).all(axis=(1, 2))
    if not finite.all():
        raise ScoreError(
            f"the heatmap of {names[int(np.argmin(finite))]} holds nan or infinity: did its network diverge?"
        )
    return maps, truths


def _same_length(**lists: Sequence[object] | NDArray[Any]) -> None:
    sizes = {name: len(given) for name, given in lists.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        counts = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ScoreError(f"lists must describe the same images, at least one; got lengths {counts}")
