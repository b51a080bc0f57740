"""What went wrong, by name: each lesion and each predicted box is of one kind, so that kinds can be counted.

A lesion is *found* if a box of its own reaches IoU 0.5; as many as can be are found at once (one-to-one matching). Any
other lesion is compared with its partner: of the boxes that lie on its side of the middle between the lungs or overlap
it, the one of the largest IoU, and if none overlaps it the one whose center is nearest. A box that found another lesion
is a partner only where there is no other. The first rule that holds names the lesion:

1. *missed lung*: no partner, so no box on its side.
2. *too high*, *too low*: IoU 0, and the partner's center lies above or below the lesion's by more than half the
   lesion's height.
3. *elsewhere in the lung*: any other IoU of 0.
4. *too large*: the partner covers more than half of the lesion, and its area is more than twice the lesion's.
5. *too small*: more than half of the partner lies in the lesion, and its area is less than half the lesion's.
6. *shifted*: the rest.

A box that found a lesion or is a partner is *with a lesion*, and the lesion's kind says what is wrong with it. Any
other box is in the *wrong lung* if no lesion lies on its side, and *surplus* if one does. A side is that of a box's
center.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from tbkd_utils.errors import UsageError
from tbkd_utils.localization.boxes import Boxes, check_boxes
from tbkd_utils.localization.scores import check_same_length, iou_matrix
from tbkd_utils.metrics.statistics import bootstrap_interval, patients_of

FOUND = 0.5
"""The IoU from which a lesion is found."""
LESION_KINDS = (
    "found",
    "missed lung",
    "too high",
    "too low",
    "elsewhere in the lung",
    "too large",
    "too small",
    "shifted",
)
"""Kinds of lesions, in the order of the rules."""
BOX_KINDS = ("with a lesion", "wrong lung", "surplus")
"""Kinds of predicted boxes."""


def name_failures(gt: ArrayLike, pred: ArrayLike, middle: float) -> tuple[list[str], list[str]]:
    """Names what became of each lesion and of each predicted box of one radiograph, by the rules above.

    Args:
        gt: (k, 4) boxes of the lesions, xyxy in pixels; k may be 0.
        pred: (m, 4) predicted boxes; m may be 0.
        middle: The column between the lungs, in pixels; see `lungs.middle_of`.

    Returns:
        k of `LESION_KINDS` and m of `BOX_KINDS`, each in the order of the boxes.

    Raises:
        UsageError: Boxes that break the convention, or a middle that is not finite.
    """
    lesions, boxes = check_boxes(gt, "ground truth"), check_boxes(pred, "predictions")
    if not np.isfinite(middle):
        raise UsageError(f"middle must be a column between the lungs, in pixels; got {middle}")
    iou = iou_matrix(lesions, boxes)  # (k, m)
    found = _found(iou)
    partners = found | _partners(lesions, boxes, iou, middle, found)
    compared = {place: _kind_beside(lesions[place], boxes[partner]) for place, partner in partners.items()}
    named = compared | dict.fromkeys(found, "found")
    kinds = [named.get(place, "missed lung") for place in range(len(lesions))]
    return kinds, _box_kinds(lesions, boxes, middle, set(partners.values()))


def failure_rows(
    names: Sequence[Hashable], gt_list: Sequence[ArrayLike], pred_list: Sequence[ArrayLike], middles: Sequence[float]
) -> pd.DataFrame:
    """Names what became of each lesion and each predicted box, radiograph by radiograph.

    Args:
        names: n names.
        gt_list: n arrays (k, 4), the lesions.
        pred_list: n arrays (m, 4), the predicted boxes.
        middles: n columns between the lungs, in pixels.

    Returns:
        One row per lesion and per predicted box: name, about ("lesion" or "box"), number (its place among those of the
        radiograph, from 0), kind.

    Raises:
        UsageError: As `name_failures`, or lists that are empty or differ in length.
    """
    check_same_length(names=names, gt_list=gt_list, pred_list=pred_list, middles=middles)
    rows = []
    for name, gt, pred, middle in zip(names, gt_list, pred_list, middles, strict=True):
        lesions, boxes = name_failures(gt, pred, middle)
        rows += [(name, "lesion", number, kind) for number, kind in enumerate(lesions)]
        rows += [(name, "box", number, kind) for number, kind in enumerate(boxes)]
    return pd.DataFrame(rows, columns=["name", "about", "number", "kind"])


def failure_table(rows: pd.DataFrame, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Counts the kinds.

    Args:
        rows: What `failure_rows` returned; with a column `patient` patients are drawn for the intervals, else
            radiographs, each with all its lesions and boxes.
        level: Coverage of the intervals.
        resamples: Of the radiographs or patients.
        seed: Of the draws.

    Returns:
        One row per kind, in the order of `LESION_KINDS` and `BOX_KINDS`, also of those that never come: about, kind,
        count, share (of all lesions, or of all predicted boxes), low, high, n (lesions or boxes). Without any lesion,
        or box, share and interval are nan.

    Raises:
        UsageError: If an option is out of range.
    """
    lines = []
    for about, kinds in (("lesion", LESION_KINDS), ("box", BOX_KINDS)):
        own = rows[rows["about"] == about]
        clusters = patients_of(own) if "patient" in own else own["name"].to_numpy()
        for kind in kinds:
            counted = (own["kind"] == kind).to_numpy(float)
            share, low, high = np.nan, np.nan, np.nan
            if len(counted):
                low, high = bootstrap_interval(counted, level=level, resamples=resamples, seed=seed, clusters=clusters)
                share = float(counted.mean())
            lines.append((about, kind, int(counted.sum()), share, low, high, len(counted)))
    return pd.DataFrame(lines, columns=["about", "kind", "count", "share", "low", "high", "n"])


def _found(iou: NDArray[np.float64]) -> dict[int, int]:
    """The box of each lesion that is found: as many as can be and, of these ways, the one of the largest IoUs."""
    gains = np.where(iou >= FOUND, iou.size + iou, 0)
    pairs = zip(*(places.tolist() for places in linear_sum_assignment(gains, maximize=True)), strict=True)
    return {lesion: box for lesion, box in pairs if gains[lesion, box] > 0}


def _partners(
    lesions: Boxes, boxes: Boxes, iou: NDArray[np.float64], middle: float, found: dict[int, int]
) -> dict[int, int]:
    """The box that each lesion that is not found is compared with, where there is one."""
    here, there = _centers(lesions), _centers(boxes)
    same = (here[:, None, 0] < middle) == (there[None, :, 0] < middle)  # (k, m)
    taken, partners = np.isin(np.arange(len(boxes)), list(found.values())), {}
    for place in set(range(len(lesions))) - set(found):
        candidates = np.flatnonzero(same[place] | (iou[place] > 0))
        if len(candidates):
            away = np.hypot(*(there[candidates] - here[place]).T)
            best = np.lexsort((away, -iou[place, candidates], taken[candidates]))[0]  # the last key comes first
            partners[place] = int(candidates[best])
    return partners


def _kind_beside(lesion: NDArray[np.float32], box: NDArray[np.float32]) -> str:
    """The kind of a lesion that is not found beside its partner."""
    overlap, own, other = _overlap(lesion, box), _area(lesion), _area(box)
    if overlap == 0:
        below = float(_centers(box)[1] - _centers(lesion)[1])  # y points down
        if abs(below) <= (lesion[3] - lesion[1]) / 2:
            return "elsewhere in the lung"
        return "too low" if below > 0 else "too high"
    if overlap > own / 2 and other > 2 * own:
        return "too large"
    if overlap > other / 2 and other < own / 2:
        return "too small"
    return "shifted"


def _box_kinds(lesions: Boxes, boxes: Boxes, middle: float, used: set[int]) -> list[str]:
    sides = set((_centers(lesions)[:, 0] < middle).tolist())
    kinds = ("surplus" if side in sides else "wrong lung" for side in (_centers(boxes)[:, 0] < middle).tolist())
    return ["with a lesion" if place in used else kind for place, kind in enumerate(kinds)]


def _centers(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """(..., 4) boxes to (..., 2) centers, x and y."""
    corners = boxes.astype(np.float64)
    return (corners[..., :2] + corners[..., 2:]) / 2


def _area(box: NDArray[np.float32]) -> float:
    return float((box[2:] - box[:2]).prod(dtype=np.float64))


def _overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    sides = np.minimum(a[2:], b[2:]).astype(np.float64) - np.maximum(a[:2], b[:2])
    return float(np.maximum(sides, 0).prod())
