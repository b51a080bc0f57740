"""Algorithm 1 of the paper: boxes around the bright regions of a Grad-CAM heatmap."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tbkd_utils.errors import UsageError

Boxes = NDArray[np.float32]
"""(k, 4) float32: left, top, right, bottom in pixels; right and bottom exclusive; k may be 0."""


@dataclass(frozen=True)
class PerLung:
    """How to draw one box a lung instead of one around each region.

    Attributes:
        middle: The column between the lungs, in pixels.
        second: The lung of the lower maximum has a box if that is at least this share of the other's; in [0, 1].
    """

    middle: float
    second: float = 0.5


def normalize(heatmap: ArrayLike, *, method: str = "minmax") -> NDArray[np.float32]:
    """Bring every heatmap to [0, 1] by itself (Algorithm 1, line 2); normalizing twice changes nothing.

    Args:
        heatmap: (H, W) or (n, H, W) of any real dtype, finite.
        method: "minmax": (x - min) / (max - min), so the darkest pixel becomes 0. "max": x / max, for a map
            that passed a ReLU and has no negative value; 0 then keeps its meaning.

    Returns:
        float32 of the same shape in [0, 1]; the maximum of every map is exactly 1. A constant map points
        nowhere and becomes all zeros under either method.

    Raises:
        UsageError: Wrong shape or method, nan or infinity, a value range too wide for float64, or a
            negative value under "max"; the message gives the index of the map.
    """
    x = np.asarray(heatmap)
    if x.ndim not in (2, 3) or 0 in x.shape[-2:]:
        raise UsageError(f"a heatmap must be (H, W) or (n, H, W) and hold pixels; got shape {x.shape}")
    if method not in ("minmax", "max"):
        raise UsageError(f'method must be "minmax" or "max"; got {method!r}')
    if x.dtype != np.float32:
        x = x.astype(np.float64)
    low, high = (f(x, axis=(-2, -1), keepdims=True) for f in (np.min, np.max))
    # nan and infinity always show in the minimum or the maximum: no pass over the pixels is needed
    _refuse(~np.isfinite(low) | ~np.isfinite(high), "holds nan or infinity: look for a network that diverged")
    if method == "max":
        _refuse(low < 0, 'holds negative values: apply a ReLU first, or use method="minmax"')
        low = np.where(low == high, low, 0)  # a constant map loses its value, so that it becomes zero
    with np.errstate(over="ignore"):
        spread = high - low
    if not np.isfinite(spread).all() and x.dtype == np.float32:
        return normalize(x.astype(np.float64), method=method)
    _refuse(~np.isfinite(spread), "has a range beyond float64: rescale it")
    # where the map is constant, x - low is 0 already
    return ((x - low) / np.where(spread > 0, spread, 1)).astype(np.float32, copy=False)


def boxes_from_heatmap(
    heatmap: ArrayLike,
    threshold: float,
    min_area: float,
    *,
    area: str = "rectangle",
    method: str = "minmax",
    lungs: PerLung | None = None,
) -> Boxes:
    """Algorithm 1: normalize, threshold, outer contours, their bounding rectangles, drop the small ones.

    A pixel belongs to the mask when its normalized value is at or above the threshold (so 1 still keeps the
    maximum, and 0 keeps the whole image). Regions join over edges and corners (8-connectivity); a region
    inside another one's hole is not reported. A constant map gives no box at any threshold.

    Args:
        heatmap: (H, W), finite; need not be normalized.
        threshold: Share of the normalized range, in [0, 1].
        min_area: In square pixels of the heatmap, >= 0; kept is what is strictly larger (Algorithm 1, line
            8).
        area: "rectangle": width * height of the bounding rectangle, as the minimum comes from boxes.
            "contour": OpenCV's contourArea, the polygon through pixel centers, which is smaller (3000 for a
            filled 61x51 rectangle of 3111 pixels, and 0 for a region one pixel wide).
        method: How to normalize, see `normalize`.
        lungs: For one box a lung, see `lung_boxes`; None for every region.

    Returns:
        (k, 4) float32 xyxy, whole pixels, right and bottom exclusive; largest `area` first, then by top and
        left.

    Raises:
        UsageError: As `normalize`, or the map is not (H, W), or threshold, min_area or area is out of range.
    """
    return boxes_at_thresholds(heatmap, [threshold], min_area, area=area, method=method, lungs=lungs)[0]


def boxes_at_thresholds(
    heatmap: ArrayLike,
    thresholds: Iterable[float],
    min_area: float,
    *,
    area: str = "rectangle",
    method: str = "minmax",
    lungs: PerLung | None = None,
) -> list[Boxes]:
    """`boxes_from_heatmap` at several thresholds, normalizing once: one (k, 4) array per threshold."""
    if not (np.isfinite(min_area) and min_area >= 0):
        raise UsageError(f"min_area must be a finite number of square pixels, 0 or more; got {min_area}")
    if area not in ("rectangle", "contour"):
        raise UsageError(f'area must be "rectangle" or "contour"; got {area!r}')
    if np.ndim(heatmap) != 2:
        raise UsageError(f"expected one heatmap of shape (H, W); got shape {np.shape(heatmap)}")
    scaled = normalize(heatmap, method=method)
    found = []
    for threshold in thresholds:
        if not 0 <= threshold <= 1:
            raise UsageError(f"threshold must lie in [0, 1], a share of the normalized map; got {threshold}")
        outlines, sizes = (
            regions(scaled, threshold, area) if lungs is None else _of_lungs(scaled, threshold, area, lungs)
        )
        found.append(outlines[sizes > min_area])
    return found


def lung_boxes(scaled: NDArray[np.float32], threshold: float, lungs: PerLung) -> Boxes:
    """One box a lung: around the region that holds the maximum of its half of the image.

    Args:
        scaled: float32 (H, W) from `normalize`.
        threshold: In [0, 1], a share of the maximum of the half.
        lungs: Where the halves meet, and when the second one counts.

    Returns:
        (2, 4), the image's left first; nan where a half is empty, zero, or too faint beside the other one.
    """
    return _halves(scaled, threshold, "rectangle", lungs)[0]


def _of_lungs(scaled: NDArray[np.float32], threshold: float, area: str, lungs: PerLung) -> tuple[Boxes, NDArray]:
    """As `regions`, of one box a lung."""
    boxes, sizes = _halves(scaled, threshold, area, lungs)
    order = [place for place in np.argsort(-sizes, kind="stable") if np.isfinite(boxes[place, 0])]
    return boxes[order], sizes[order]


def _halves(scaled: NDArray[np.float32], threshold: float, area: str, lungs: PerLung) -> tuple[Boxes, NDArray]:
    """The box of each half (2, 4) and its size (2,); nan and 0 where there is none."""
    column = int(np.clip(round(lungs.middle), 0, scaled.shape[1]))
    parts = (scaled[:, :column], scaled[:, column:])
    peaks = [float(part.max()) if part.size else 0.0 for part in parts]
    boxes, sizes = np.full((2, 4), np.nan, np.float32), np.zeros(2)
    for place, (part, peak) in enumerate(zip(parts, peaks, strict=True)):
        if peak <= 0 or peak < lungs.second * max(peaks):
            continue
        _, labels = cv2.connectedComponents((part >= np.float32(threshold * peak)).astype(np.uint8), connectivity=8)
        region = (labels == labels.flat[int(part.argmax())]).astype(np.uint8)
        (contour, *_), _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        x, y, w, h = cv2.boundingRect(contour)
        left = x + place * column
        boxes[place] = left, y, left + w, y + h
        sizes[place] = w * h if area == "rectangle" else cv2.contourArea(contour)
    return boxes, sizes


def regions(scaled: NDArray[np.float32], threshold: float, area: str = "rectangle") -> tuple[Boxes, NDArray]:
    """Every region of a normalized heatmap and its size: Algorithm 1 before line 8, for one who tries many settings.

    Args:
        scaled: float32 (H, W) from `normalize`.
        threshold: In [0, 1].
        area: As in `boxes_from_heatmap`.

    Returns:
        Boxes (k, 4) float32 and their sizes (k,) float64 in square pixels, largest first. Those whose size exceeds a
        minimum area are what `boxes_from_heatmap` gives.
    """
    if not scaled.any():
        return _none(), np.zeros(0)
    mask = scaled >= np.float32(threshold)  # 0.7 as float64 would exclude a pixel of float32 0.7
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    found = []
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        size = w * h if area == "rectangle" else cv2.contourArea(contour)
        found.append((-size, y, x, y + h, x + w))
    table = np.array(sorted(found), np.float64).reshape(-1, 5)
    return table[:, [2, 1, 4, 3]].astype(np.float32), -table[:, 0]


def largest_box(heatmap: ArrayLike, size: tuple[int, int], threshold: float) -> Boxes:
    """The one box of a foreground map: around the largest region above a threshold (doi 10.1038/s41598-024-79701-8).

    The map is normalized, enlarged (bilinear, not normalized again) and cut: a pixel counts above the threshold, not at
    it. Regions join over edges and corners; the largest has the most pixels, the upper one of equals.

    Args:
        heatmap: (h, w), finite.
        size: Height and width of the image.
        threshold: In [0, 1]; the source's is 0.83.

    Returns:
        (1, 4) float32 xyxy in pixels of the image, right and bottom exclusive. The whole image if nothing is above the
        threshold, as in the source: such a box still overlaps with a large finding.

    Raises:
        UsageError: As `normalize`, or the map is not (h, w), or the threshold is out of range.
    """
    if np.ndim(heatmap) != 2:
        raise UsageError(f"expected one heatmap of shape (h, w); got shape {np.shape(heatmap)}")
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold must lie in [0, 1], a share of the normalized map; got {threshold}")
    large = cv2.resize(normalize(heatmap), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    mask = (large > np.float32(threshold)).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count == 1:
        return np.array([[0, 0, size[1], size[0]]], np.float32)
    left, top, width, height, _ = stats[1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())]
    return np.array([[left, top, left + width, top + height]], np.float32)


def minimum_area(areas: ArrayLike, quantile: float = 0.0) -> float:
    """The minimum area of Algorithm 1: a quantile of the areas of the training boxes (paper section 3.3).

    Args:
        areas: (k,) in square pixels at the scale of the heatmap, k >= 1.
        quantile: In [0, 1]; 0, the recipe's default, is the smallest box.

    Returns:
        Area in square pixels of the heatmap (linear interpolation between boxes).

    Raises:
        UsageError: No area, one that is negative or not finite, or a quantile outside [0, 1].
    """
    values = np.asarray(areas, dtype=np.float64)
    if not 0 <= quantile <= 1:
        raise UsageError(f"quantile must lie in [0, 1]; got {quantile}")
    if values.ndim != 1 or len(values) == 0:
        raise UsageError(
            "no training box to take the minimum area from: give a training set with boxes, or set it by hand"
        )
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise UsageError("areas of training boxes must be finite and not negative")
    return float(np.quantile(values, quantile))


def check_boxes(boxes: ArrayLike, what: str = "boxes") -> Boxes:
    """Refuse boxes that break the convention; return them as float32.

    Args:
        boxes: (k, 4) xyxy; an empty list stands for no box.
        what: What the message calls them.

    Returns:
        (k, 4) float32.

    Raises:
        UsageError: Another shape, nan or infinity, or right < left or bottom < top (often xywh taken for xyxy).
    """
    array = np.asarray(boxes, dtype=np.float32)
    if array.size == 0 and array.ndim <= 2:
        return _none()
    if array.ndim != 2 or array.shape[1] != 4:
        raise UsageError(f"{what} must have shape (k, 4): left, top, right, bottom; got shape {array.shape}")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise UsageError(f"{what} must be finite; box {np.argmin(finite)} is {array[np.argmin(finite)].tolist()}")
    ordered = (array[:, 2:] >= array[:, :2]).all(axis=1)
    if not ordered.all():
        raise UsageError(
            f"{what} must be left, top, right, bottom with right >= left and bottom >= top; "
            f"box {np.argmin(ordered)} is {array[np.argmin(ordered)].tolist()} (width and height instead?)"
        )
    return array


def boxes_to_json(boxes: ArrayLike) -> str:
    """Write (k, 4) boxes as one CSV cell, `[[left, top, right, bottom], ...]`, that reads back exactly."""
    return json.dumps(check_boxes(boxes).tolist())


def boxes_from_json(text: str) -> Boxes:
    """Read what `boxes_to_json` wrote: (k, 4) float32; UsageError if it is not that."""
    try:
        return check_boxes(json.loads(text))
    except (ValueError, TypeError) as error:
        raise UsageError(f"expected boxes as [[left, top, right, bottom], ...]; got {text!r}: {error}") from error


def _none() -> Boxes:
    return np.zeros((0, 4), np.float32)


def _refuse(bad: NDArray[np.bool_], why: str) -> None:
    """Raise for the first map marked in `bad`, which has one entry per map."""
    if bad.any():
        which = "the heatmap" if bad.size == 1 else f"heatmap {int(np.argmax(bad.ravel()))}"
        raise UsageError(f"{which} {why}")
