"""Blind guesses: boxes drawn by something that looks at no disease, against which every score has to be set.

A guess is a list of boxes for each image, (k, 4) float32 xyxy in pixels. `guess_rows` scores it as `tables.score_rows`
scores a network, so that both stand in one table.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tbkd_utils.errors import UsageError
from tbkd_utils.localization.boxes import Boxes, check_boxes
from tbkd_utils.localization.scores import (
    check_inside,
    check_same_length,
    check_truth,
    hit_of,
    iou_matrix,
)
from tbkd_utils.localization.tables import image_row

MOST_CANDIDATES = 500
"""Of more boxes than that, as many are tried as constant boxes, evenly spaced."""


def whole_image(count: int, size: tuple[int, int]) -> list[Boxes]:
    """Guesses that everything is the finding.

    Args:
        count: Images, n.
        size: Height and width of each, in pixels.

    Returns:
        n arrays (1, 4).
    """
    return [np.array([[0, 0, size[1], size[0]]], np.float32)] * count


def upper_half(count: int, size: tuple[int, int]) -> list[Boxes]:
    """Guesses the upper half of every image; see `whole_image`."""
    return [np.array([[0, 0, size[1], size[0] / 2]], np.float32)] * count


def grid_boxes(count: int, size: tuple[int, int]) -> Boxes:
    """Returns the first boxes of a fixed list: the whole image, its quarters, its ninths and so on, each row by row.

    Args:
        count: Boxes, 0 or more.
        size: Height and width of the image, in pixels.

    Returns:
        (count, 4).

    Raises:
        UsageError: If count is negative.
    """
    if count < 0:
        raise UsageError(f"count is {count}: expected 0 boxes or more.")
    height, width = size
    boxes: list[tuple[float, float, float, float]] = []
    side = 1
    while len(boxes) < count:
        h, w = height / side, width / side
        boxes += [(j * w, i * h, (j + 1) * w, (i + 1) * h) for i in range(side) for j in range(side)]
        side += 1
    return np.array(boxes[:count], np.float32).reshape(-1, 4)


def lower_halves(lungs: Sequence[ArrayLike]) -> list[Boxes]:
    """Guesses the lower half of each lung, where it is as wide as its box. For upper halves see `lungs.Lungs.upper`.

    Args:
        lungs: The boxes of each image's lungs, n arrays (k, 4).
    """
    halves = [check_boxes(boxes, f"lungs of image {place}").copy() for place, boxes in enumerate(lungs)]
    for boxes in halves:
        boxes[:, 1] = (boxes[:, 1] + boxes[:, 3]) / 2
    return halves


def best_constant_boxes(train_truths: Sequence[ArrayLike], count: int = 1) -> Boxes:
    """Returns the boxes that fit training images best, to be guessed on every test image.

    Chosen as in `constant_boxes`: the first has the highest mIOU, each further one adds the most to it. They know where
    the finding usually is, from boxes, and nothing of a test image.

    Args:
        train_truths: Ground truth of the training images, n arrays (m, 4), m >= 1, in the pixels of the test images.
        count: Boxes, at least 1.

    Returns:
        (count, 4), the best one first; fewer if the images have fewer.

    Raises:
        UsageError: No image, an image without box, or count below 1.
    """
    check_same_length(train_truths=train_truths)
    checked = [check_truth(truth, place) for place, truth in enumerate(train_truths)]
    _check_count(count)
    candidates = _candidates(checked)[0]
    chosen: list[int] = []
    for _ in range(min(count, len(candidates))):
        means = np.mean([_scores_beside(truth, candidates, tuple(chosen)) for truth in checked], axis=0)  # (c,)
        means[chosen] = -1
        chosen.append(int(means.argmax()))
    return candidates[chosen]


def constant_boxes(truths: Sequence[ArrayLike], groups: Sequence[Hashable], count: int = 1) -> list[Boxes]:
    """Guesses for each image the boxes that fit the images of all other patients best.

    Candidates are the boxes of other patients. The first is the one of highest mIOU on the others' images, each further
    one adds the most to it. So the guess knows where the finding usually is, and nothing of the patient.

    Args:
        truths: Ground truth, n arrays (m, 4), m >= 1, of images of one size.
        groups: The patient of each image.
        count: Boxes for each image, at least 1.

    Returns:
        n arrays (count, 4); fewer boxes if the others have fewer.

    Raises:
        UsageError: If there is one patient alone, count is below 1, or lists differ in length.
    """
    check_same_length(truths=truths, groups=groups)
    checked = [check_truth(truth, place) for place, truth in enumerate(truths)]
    number = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    of_image = np.array([number[group] for group in groups])  # (n,)
    candidates, images = _candidates(checked)
    owners = of_image[images]
    _check_count(count)
    if len(number) < 2:
        raise UsageError("All images are of one patient: there is no other one to take constant boxes from.")
    chosen: dict[int, tuple[int, ...]] = dict.fromkeys(number.values(), ())
    for _ in range(count):
        for places in set(chosen.values()):
            members = [group for group, own in chosen.items() if own == places]
            means = _means_elsewhere(checked, of_image, candidates, places)[:, members]  # (c, groups)
            means[owners[:, None] == np.array(members)] = -1
            means[list(places)] = -1
            for column, group in enumerate(members):
                if means[:, column].max() >= 0:
                    chosen[group] = (*places, int(means[:, column].argmax()))
    return [candidates[list(chosen[group])] for group in of_image.tolist()]


def _check_count(count: int) -> None:
    if count < 1:
        raise UsageError(f"count is {count}: expected at least 1 box.")


def _candidates(truths: Sequence[Boxes]) -> tuple[Boxes, np.ndarray]:
    """All boxes (c, 4) and the image of each (c,); of more than `MOST_CANDIDATES` as many, evenly spaced."""
    boxes, images = np.concatenate(truths), np.repeat(np.arange(len(truths)), [len(truth) for truth in truths])
    if len(boxes) <= MOST_CANDIDATES:
        return boxes, images
    kept = np.linspace(0, len(boxes) - 1, MOST_CANDIDATES).round().astype(int)
    return boxes[kept], images[kept]


def _scores_beside(truth: Boxes, candidates: Boxes, places: tuple[int, ...]) -> np.ndarray:
    """The score of one image for each candidate beside the chosen ones: (c,)."""
    ious = iou_matrix(candidates, truth)  # (c, m)
    fixed = np.broadcast_to(ious[list(places)].ravel(), (len(ious), len(places) * len(truth)))
    return np.sort(np.concatenate([ious, fixed], axis=1), axis=1)[:, -len(truth) :].mean(axis=1)


def _means_elsewhere(
    truths: Sequence[Boxes], groups: np.ndarray, candidates: Boxes, places: tuple[int, ...]
) -> np.ndarray:
    """The mIOU of each candidate beside the chosen ones on the images of all groups but one: (candidates, groups)."""
    sums = np.zeros((len(candidates), int(groups.max()) + 1))
    for truth, group in zip(truths, groups.tolist(), strict=True):
        sums[:, group] += _scores_beside(truth, candidates, places)
    counts = np.bincount(groups)
    return (sums.sum(axis=1, keepdims=True) - sums) / (counts.sum() - counts)


def guess_rows(
    names: Sequence[Hashable], guesses: Sequence[ArrayLike], gt_list: Sequence[ArrayLike], size: tuple[int, int]
) -> pd.DataFrame:
    """Scores a guess image by image.

    The guess is its own heatmap: 1 inside its boxes, 0 outside. Its energy is the share of its area inside the truth,
    and it points to the center of its largest box.

    Args:
        names: n names.
        guesses: n arrays (k, 4).
        gt_list: n arrays (m, 4), each with m >= 1.
        size: Height and width of the images, in pixels.

    Returns:
        The columns of `tables.score_rows`.

    Raises:
        UsageError: Bad boxes, boxes outside the image, or lists that differ in length.
    """
    check_same_length(names=names, guesses=guesses, gt_list=gt_list)
    rows = []
    for place, (name, guess, gt) in enumerate(zip(names, guesses, gt_list, strict=True)):
        boxes, truth = check_boxes(guess, f"guess of image {place}"), check_truth(gt, place)
        check_inside(truth, size, place)
        check_inside(boxes, size, place, "the guess")
        pointing, energy = _points_inside(boxes, truth, size), _share_inside(boxes, truth)
        rows.append(image_row(name, truth, boxes, pointing, energy))
    return pd.DataFrame(rows)


def _points_inside(boxes: Boxes, truth: Boxes, size: tuple[int, int]) -> bool:
    """Whether the center of the largest box lies in the truth."""
    if not len(boxes):
        return False
    largest = boxes[np.argmax((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))]
    point = np.zeros(size)
    row, column = (int(min((largest[i] + largest[i + 2]) / 2, size[1 - i] - 1)) for i in (1, 0))
    point[row, column] = 1
    return hit_of(point, truth.astype(np.float64), 0.0)


def _share_inside(boxes: Boxes, truth: Boxes) -> float:
    """The share of the area of the boxes' union that lies in the truth, exactly; 0 where there is no area."""
    edges = np.concatenate([boxes, truth]).astype(np.float64)
    xs, ys = np.unique(edges[:, [0, 2]]), np.unique(edges[:, [1, 3]])
    areas = np.diff(ys)[:, None] * np.diff(xs)  # cells between the edges: each is wholly inside or outside a box

    def covered(by: Boxes) -> np.ndarray:
        left, top, right, bottom = (by[:, i, None, None] for i in range(4))
        inside = (left <= xs[:-1]) & (xs[1:] <= right) & (top <= ys[:-1, None]) & (ys[1:, None] <= bottom)
        return np.any(inside, axis=0)

    guessed = areas * covered(boxes.astype(np.float64))
    total = float(guessed.sum())
    return float((guessed * covered(truth.astype(np.float64))).sum()) / total if total else 0.0
