"""How well boxes and heatmaps find the lesions: Algorithms 2-3 of the paper and the field's other metrics.

Boxes are (k, 4) float32 xyxy, ground truth (`gt`) and predictions at the scale of the heatmap. Heatmaps are
(H, W) or (n, H, W), not normalized. Every per-image score lies in [0, 1], larger is better.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from tbkd_utils.errors import UsageError
from tbkd_utils.localization.boxes import Boxes, check_boxes


def iou_matrix(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of every pair: (len(a), len(b)) float64 in [0, 1]; 0 where a union has no area.

    Raises:
        UsageError: Boxes that break the convention.
    """
    return _iou(check_boxes(a, "first boxes"), check_boxes(b, "second boxes"))


def image_score(gt: ArrayLike, pred: ArrayLike) -> float:
    """Score of one image by Algorithms 2-3: the mean of the len(gt) largest IoUs among all (gt, pred) pairs.

    One prediction may count for several lesions and a poor prediction costs nothing: more boxes never lower the score.
    `matched_score` mends both. With a prediction there are always len(gt) pairs or more; without one the score is 0.

    Args:
        gt: (m, 4) ground truth, m >= 1.
        pred: (k, 4) predictions.

    Returns:
        Mean IoU in [0, 1].

    Raises:
        UsageError: No ground truth.
        UsageError: Boxes that break the convention.
    """
    return scores_of(check_truth(gt), check_boxes(pred, "predictions"))[0]


def matched_score(gt: ArrayLike, pred: ArrayLike) -> float:
    """One-to-one IoU of one image: a lesion and a box of its own count their IoU, whatever is left over counts 0.

    The largest sum of IoUs over pairs (Hungarian method), divided by the number of lesions or of predictions, whichever
    is larger. So a missed lesion costs, and so does a surplus prediction. Never above `image_score`, which says more of
    arguments and errors.
    """
    return scores_of(check_truth(gt), check_boxes(pred, "predictions"))[1]


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
        UsageError: Lists of different or zero length, an image without ground truth, or an unknown option.
        UsageError: Boxes that break the convention.
    """
    check_same_length(gt_list=gt_list, pred_list=pred_list)
    truths = [check_truth(gt, i) for i, gt in enumerate(gt_list)]
    preds = [check_boxes(pred, f"predictions of image {i}") for i, pred in enumerate(pred_list)]
    scores = np.array([scores_of(g, p)[0] for g, p in zip(truths, preds, strict=True)])
    n_gt, n_pred = (np.array([len(one) for one in many]) for many in (truths, preds))
    return average_score(scores, n_gt, n_pred, no_prediction, average)


def pointing_hit(heatmap: ArrayLike, gt: ArrayLike, *, tolerance: float = 0.0) -> bool:
    """Pointing game (Zhang et al., IJCV 2018): does the maximum of the heatmap lie in a ground-truth box?

    The point is the center of the brightest pixel. Of equally bright pixels (an upsampled map is flat along
    the border) the one nearest to their mean position counts, then the first in reading order. A constant map
    has no maximum: a miss.

    Args:
        heatmap: (H, W).
        gt: (m, 4), m >= 1.
        tolerance: Euclidean distance in pixels to the box that still counts. Zhang et al. allow 15; here 0.

    Returns:
        Whether it hits.

    Raises:
        UsageError: The map is not (H, W) or not finite, no ground truth, or a negative tolerance.
        UsageError: Boxes that break the convention or do not lie in the heatmap.
    """
    check_tolerance(tolerance)
    return hit_of(*_one_map(heatmap, gt), tolerance)


def energy_inside(heatmap: ArrayLike, gt: ArrayLike) -> float:
    """Share of the heatmap's positive energy inside the union of the boxes.

    The energy-based pointing game (Wang et al., Score-CAM, 2020). Negative values count 0. A pixel cut by a
    box edge counts by the covered part of its area, exactly.

    Args:
        heatmap: (H, W), not normalized: min-max would add energy where there is none.
        gt: (m, 4), m >= 1.

    Returns:
        Share in [0, 1]; 0 for a map without positive value.

    Raises:
        UsageError: The map is not (H, W) or not finite, or no ground truth.
        UsageError: Boxes that break the convention or do not lie in the heatmap.
    """
    return energy_of(*_one_map(heatmap, gt))


def energy_in_mask(heatmap: ArrayLike, mask: ArrayLike) -> float:
    """Share of the heatmap's positive energy inside a soft mask, such as that of the lungs.

    A map that is the same everywhere gives the mask's mean, which is what looking nowhere in particular would give.

    Args:
        heatmap: (H, W), not normalized. Negative values count 0.
        mask: (H, W), how much of each pixel is inside, 0 to 1.

    Returns:
        Share in [0, 1]; 0 for a map without positive value.

    Raises:
        UsageError: The map is not finite, or both are not (H, W), or the mask leaves [0, 1].
    """
    heat, inside = np.asarray(heatmap, np.float64), np.asarray(mask, np.float64)
    if heat.ndim != 2 or heat.shape != inside.shape or not np.isfinite(heat).all():
        raise UsageError(
            f"expected a finite heatmap and a mask of one shape (H, W); got {heat.shape} and {inside.shape}, or nan"
        )
    if inside.size and not (inside.min() >= 0 and inside.max() <= 1 + 1e-6):
        raise UsageError(f"a mask must lie in 0..1; got {inside.min():g} to {inside.max():g}")
    energy = np.maximum(heat, 0) / max(float(heat.max(initial=0)), np.finfo(np.float32).tiny)
    return min(float((energy * inside).sum() / energy.sum()), 1.0) if energy.any() else 0.0


def average_score(
    score: NDArray[np.float64],
    n_gt: NDArray[Any],
    n_pred: NDArray[Any],
    no_prediction: str,
    average: str,
) -> float:
    """Average per-image scores (n,) to the mIOU."""
    if no_prediction not in ("zero", "skip") or average not in ("image", "box"):
        raise UsageError(f"no_prediction is zero or skip, average is image or box; got {no_prediction!r}, {average!r}")
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


def scores_of(gt: Boxes, pred: Boxes) -> tuple[float, float, float]:
    """(image_score, matched_score, largest IoU) of checked boxes."""
    if len(pred) == 0:
        return 0.0, 0.0, 0.0
    iou = _iou(gt, pred)
    kept = np.sort(iou, axis=None)[-len(gt) :]
    matched = float(iou[linear_sum_assignment(iou, maximize=True)].sum()) / max(iou.shape)
    return float(kept.mean()), matched, float(kept[-1])


def hit_of(heat: NDArray[Any], truth: NDArray[Any], tolerance: float) -> bool:
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


def energy_of(heat: NDArray[Any], truth: NDArray[Any]) -> float:
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


def check_tolerance(tolerance: float) -> None:
    """Refuses a negative tolerance of the pointing game."""
    if not tolerance >= 0:
        raise UsageError(f"tolerance must be 0 or more pixels; got {tolerance}")


def _overlap(edges: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(len(edges) - 1, size): length of each interval between edges that lies on each pixel."""
    pixel = np.arange(size)
    return np.maximum(np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel), 0)


def check_truth(gt: ArrayLike, image: int | None = None) -> Boxes:
    """Returns ground-truth boxes as float32 (m, 4), m >= 1, or refuses them; `image` is named in the error."""
    where = "" if image is None else f" of image {image}"
    truth = check_boxes(gt, f"ground truth{where}")
    if len(truth) == 0:
        raise UsageError(f"there is no ground-truth box{where}: score only images that have one")
    return truth


def check_inside(truth: Boxes, shape: tuple[int, ...], image: int | None = None, what: str = "ground truth") -> None:
    """Refuses ground truth, or other boxes, that do not lie in a heatmap of this (H, W)."""
    height, width = shape
    limit = np.array([width, height, width, height]) + 1e-3  # float32 rounding of a box on the edge
    out = np.flatnonzero(((truth < -1e-3) | (truth > limit)).any(axis=1))
    if out.size:
        where = "" if image is None else f" of image {image}"
        raise UsageError(
            f"{what}{where} must lie in the {width}x{height} heatmap; box "
            f"{out[0]} is {truth[out[0]].tolist()}: bring it to the heatmap's scale and clip it first"
        )


def _one_map(heatmap: ArrayLike, gt: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    heat = np.asarray(heatmap, dtype=np.float64)
    if heat.ndim != 2 or heat.size == 0 or not np.isfinite(heat).all():
        raise UsageError(f"expected one finite heatmap of shape (H, W); got shape {heat.shape} or nan or infinity")
    truth = check_truth(gt)
    check_inside(truth, heat.shape)
    return heat, truth.astype(np.float64)


def check_same_length(**lists: Sequence[object] | NDArray[Any]) -> None:
    """Refuses lists that are empty or differ in length."""
    sizes = {name: len(given) for name, given in lists.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        counts = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UsageError(f"lists must describe the same images, at least one; got lengths {counts}")
