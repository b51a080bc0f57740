"""Lungs without annotation: a mean chest of unlabeled radiographs, and its lungs carried back to each radiograph.

A radiograph is brought to the mean chest in two steps: an affine one by enhanced correlation (ECC; Evangelidis and
Psarakis, TPAMI 2008), and a smooth displacement of every pixel by optical flow (Farneback, SCIA 2003). The same two
steps build the mean, which becomes sharp enough for a single threshold (Otsu, 1979) to find its lungs. Hence no mask,
box or label is used anywhere. What a lung is follows from that: dark, so without the heart and without what lies behind
the diaphragm. Shapes are (height, width); inside, everything is 256, 128 or 64 pixels wide, whatever the input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

from tbkd_utils.errors import UsageError
from tbkd_utils.localization.boxes import Boxes

Image = NDArray[np.uint8]
Array = NDArray[np.float32]

_SIDE, _FINE, _COARSE = 256, 128, 64  # of what goes in and out, of the flow, of the affine step
_LEAST_SIDE, _BLACK = 16, 16  # pixels; a row or column whose values are all below is padding
_TRUSTED = 0.8  # correlation at which no other start of the affine step is tried
_ALIGNED = 0.65  # correlation below which an image counts as not aligned; real ones upside-down reach 0.62
_CHANCE = (0.5, 0.5)  # correlation and share of dark lung that are worth no confidence
_LEAST = 0.05  # confidence of an image that is aligned; a fallback has 0
_MARGIN, _EDGE = 0.03, 0.012  # of the shorter side: what counts as lung beyond the mask, and its soft edge
_STARTS = tuple(product((1.0, 1.2, 0.85, 0.7), (0.0, 6.0, -6.0, -12.0)))  # scale, shift downwards in coarse pixels


@dataclass(frozen=True)
class MeanChest:
    """The mean of aligned radiographs and its lungs: plain arrays, which `numpy.savez(path, **vars(mean))` keeps."""

    mean: Array  # (256, 256) gray values, 0..255
    lungs: NDArray[np.bool_]  # (2, 256, 256), the lung on the image's left first
    coarse: Array  # (64, 64) local contrast, left-right symmetric: what the affine step aims at
    fine: Array  # (128, 128) local contrast: what the flow aims at


@dataclass(frozen=True)
class Lungs:
    """The lungs of one radiograph of h x w pixels.

    `upper` is narrower than the upper half of `boxes`. A lung widens downwards, to its costophrenic angle, so that a
    box around all of it reaches far into the chest wall beside its upper half. On radiographs with annotated lungs,
    `upper` resembles the upper half of a lung more than half of a box does, which a test on them holds fast.
    """

    mask: NDArray[np.bool_]  # (h, w)
    boxes: Boxes  # (2, 4) around each lung of the mask, the one on the image's left first
    upper: Boxes  # (2, 4) around the part of each lung above half the height of its box, in the same order
    confidence: float  # 0..1, 0 for a fallback; an order, not a probability
    fallback: bool  # the radiograph could not be aligned: the mask is the mean chest's, unmoved


def mean_chest(images: Sequence[Image], *, rounds: int = 4) -> MeanChest:
    """Build the mean chest from unlabeled frontal radiographs.

    Every image is aligned to the pixelwise mean, the mean is taken anew, and so on: `rounds` times by affine maps, then
    `rounds` times by flow. Nothing is drawn at random.

    Args:
        images: n >= 2 arrays uint8 (h, w), of any size, bone white. A few hundred are enough.
        rounds: At least 1.

    Raises:
        UsageError: Too few images, wrong shape or dtype, rounds below 1, no image that aligns, or a mean without two
            dark regions, as of images that are no frontal chests.
    """
    if len(images) < 2 or rounds < 1:
        raise UsageError(f"a mean chest needs at least 2 images and 1 round; got {len(images)} and {rounds}")
    squares = [_small(image[_content(image)], _SIDE) for image in images]
    contrasts = [_coarse(square) for square in squares]
    coarse = _symmetric(np.mean(contrasts, axis=0))
    maps = [np.eye(2, 3, dtype=np.float32)] * len(squares)
    for _ in range(rounds):
        steps = [_affine(coarse, contrast, [start]) for contrast, start in zip(contrasts, maps, strict=True)]
        aligned = [_pull(contrast, step[0]) for contrast, step in zip(contrasts, steps, strict=True) if step]
        if not aligned:
            raise UsageError(f"none of {len(images)} images aligns to their mean: expected frontal chest radiographs")
        coarse = _symmetric(np.mean(aligned, axis=0))
        maps = [step[0] if step else start for step, start in zip(steps, maps, strict=True)]

    pairs = zip(squares, steps, strict=True)
    chests = [_small(_pull(square.astype(np.float32), _scaled(step[0], 4)), _FINE) for square, step in pairs if step]
    fines = [_contrast(chest, 12) for chest in chests]
    fine = np.mean(fines, axis=0)
    for _ in range(rounds):
        flows = [_flow(fine, image) for image in fines]
        drift = np.mean(flows, axis=0)  # taken out, or the mean would wander
        fine = np.mean([_moved(image, flow - drift) for image, flow in zip(fines, flows, strict=True)], axis=0)
    mean = np.mean([_moved(chest, _flow(fine, image)) for chest, image in zip(chests, fines, strict=True)], axis=0)
    mean = cv2.resize(mean, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    return MeanChest(mean, _dark_lungs(mean), coarse, fine)


def find_lungs(image: Image, mean: MeanChest) -> Lungs:
    """Find the lungs of a radiograph by aligning it to the mean chest.

    Args:
        image: uint8 (h, w), bone white, at least 16 pixels a side; not changed. Its black bars are left out, and what
            remains is stretched to a square.
        mean: From `mean_chest`, of radiographs of the same kind.

    Returns:
        The lungs. An image that does not align, as noise, a constant or a chest upside-down, gets the lungs of the mean
        chest in place, a confidence of 0, and `fallback`.

    Raises:
        UsageError: Wrong shape or dtype.
    """
    content = _content(image)
    square = _small(image[content], _SIDE)
    step = _affine(mean.coarse, _coarse(square), [_start(*start) for start in _STARTS], enough=_TRUSTED)
    if step and step[1] >= _ALIGNED:
        matrix = _scaled(step[0], 4)
        fine = _contrast(_small(_pull(square.astype(np.float32), matrix), _FINE), 12)
        carried = _carried(mean, matrix, _flow(fine, mean.fine))
        confidence = _confidence(step[1], square, carried[0] + carried[1])
        lungs = [_largest(_sized(lung, image.shape, content)) for lung in carried]
        if all(0.02 < lung.mean() < 0.3 for lung in carried):
            return lungs_of(lungs, confidence)
    lungs = [_sized(lung.astype(np.float32), image.shape, content) for lung in mean.lungs]
    return lungs_of(lungs, 0.0, fallback=True)


def lungs_of(masks: Sequence[NDArray[np.bool_]], confidence: float, *, fallback: bool = False) -> Lungs:
    """Returns the lungs that two masks (h, w) show, neither of them empty, in any order."""
    first, second = sorted(masks, key=lambda mask: float(_box(mask)[[0, 2]].sum()))
    boxes, upper = (np.stack([how(mask) for mask in (first, second)]) for how in (_box, _upper_box))
    return Lungs(first | second, boxes, upper, confidence, fallback)


def soft_lungs(lungs: Lungs) -> Array:
    """Returns the lungs with some margin and a soft edge, float32 (h, w) in 0..1.

    The margin is 3% of the shorter side, for what lies at the pleura; the edge falls off within about as much.
    """
    side = min(lungs.mask.shape)
    radius = max(1, round(_MARGIN * side))
    wide = cv2.dilate(
        lungs.mask.astype(np.float32), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    )
    return np.asarray(cv2.GaussianBlur(wide, (0, 0), max(_EDGE * side, 0.5)), np.float32)


def middle_of(lungs: Lungs) -> float:
    """Returns the column halfway between both lungs, in pixels."""
    return middle_between(lungs.boxes)


def middle_between(boxes: Boxes) -> float:
    """Returns the column halfway between two lungs, in pixels, from their boxes (2, 4), the left of the image first."""
    return float(boxes[0, 2] + boxes[1, 0]) / 2


def _content(image: Image) -> tuple[slice, slice]:
    """Rows and columns within the black bars with which a radiograph was padded; all of them if too few are left."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 2:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UsageError(f"a radiograph must be a uint8 array of shape (h, w); got {got}")
    if min(image.shape) < _LEAST_SIDE:
        raise UsageError(f"a radiograph must have at least {_LEAST_SIDE} pixels a side; got {image.shape}")
    rows, columns = (np.flatnonzero(image.max(axis=axis) >= _BLACK) for axis in (1, 0))
    if min(len(rows), len(columns)) < _LEAST_SIDE:
        return slice(0, image.shape[0]), slice(0, image.shape[1])
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _small(image: NDArray, side: int) -> NDArray:
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def _contrast(image: NDArray, width: float) -> Array:
    """Local contrast: the gray value less its neighborhood's mean, in standard deviations of the neighborhood."""
    fine = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1)
    rest = fine - cv2.GaussianBlur(fine, (0, 0), width)
    return rest / (np.sqrt(cv2.GaussianBlur(rest**2, (0, 0), width)) + 5)


def _coarse(square: Image) -> Array:
    return _contrast(_small(square, _COARSE), 10)


def _symmetric(image: Array) -> Array:
    """Left and right averaged, so that the midline stays in the middle."""
    return np.ascontiguousarray((image + image[:, ::-1]) / 2, np.float32)


def _start(scale: float, down: float) -> Array:
    """A map of coarse pixels that scales about the center."""
    rest = (1 - scale) * (_COARSE - 1) / 2
    return np.array([[scale, 0, rest], [0, scale, rest + down]], np.float32)


def _scaled(matrix: Array, factor: float) -> Array:
    """The same map on a grid that is `factor` times finer; pixel centers have whole coordinates on both."""
    half = (factor - 1) / 2
    shift = matrix[:, 2] * factor + half * (1 - matrix[:, :2].sum(axis=1))
    return np.column_stack([matrix[:, :2], shift]).astype(np.float32)


def _affine(target: Array, contrast: Array, starts: list[Array], enough: float = -1.0) -> tuple[Array, float] | None:
    """The affine map from target to image of the highest correlation, and that correlation.

    Args:
        target: (64, 64).
        contrast: (64, 64) of the image.
        starts: Maps (2, 3) to begin with, in turn.
        enough: Later starts are left out once the correlation is above this.

    Returns:
        None if no start leads to a map that scales and shifts within reason.
    """
    best = None
    if not contrast.std() > 1e-3:
        return best
    everywhere = np.ones_like(contrast, np.uint8)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
    for start in starts:
        try:
            score, matrix = cv2.findTransformECC(
                target, contrast, start.copy(), cv2.MOTION_AFFINE, stop, inputMask=everywhere, gaussFiltSize=3
            )
        except cv2.error:  # it does not converge
            continue
        scales = np.linalg.svd(matrix[:, :2], compute_uv=False) if np.isfinite(matrix).all() else np.zeros(2)
        if scales.max() < 1.6 and scales.min() > 0.6 and np.abs(matrix[:, 2]).max() < 30 and np.isfinite(score):
            if best is None or score > best[1]:
                best = np.asarray(matrix, np.float32), float(score)
            if best[1] > enough:
                break
    return best


def _pull(image: Array, matrix: Array) -> Array:
    """The image as the mean chest sees it: value at x taken from matrix @ x."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    pulled = cv2.warpAffine(image, matrix, image.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(pulled, np.float32)


def _flow(first: Array, second: Array) -> Array:
    """Displacement f (128, 128, 2) such that first(x) resembles second(x + f(x)), smooth over about 25 pixels."""
    gray = [np.clip(image * 50 + 128, 0, 255).astype(np.uint8) for image in (first, second)]
    start = np.zeros((*first.shape, 2), np.float32)
    flow = cv2.calcOpticalFlowFarneback(gray[0], gray[1], start, 0.5, 3, 25, 3, 7, 1.5, 0)
    return np.asarray(cv2.GaussianBlur(flow, (0, 0), 3), np.float32)


def _moved(image: Array, flow: Array) -> Array:
    """The image with the value at x taken from x + flow(x)."""
    rows, columns = np.indices(flow.shape[:2], dtype=np.float32)
    across, down = np.asarray(columns + flow[..., 0]), np.asarray(rows + flow[..., 1])
    return np.asarray(cv2.remap(image, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32)


def _carried(mean: MeanChest, matrix: Array, flow: Array) -> list[Array]:
    """Both lungs of the mean chest in the frame of the image, (256, 256) in 0..1."""
    size = (_SIDE, _SIDE)
    wide = np.asarray(cv2.resize(flow * np.float32(_SIDE / _FINE), size), np.float32)
    moved = [_moved(lung.astype(np.float32), wide) for lung in mean.lungs]
    return [np.asarray(cv2.warpAffine(lung, matrix, size), np.float32) for lung in moved]


def _confidence(correlation: float, square: Image, lung: Array) -> float:
    """How far the correlation, and the share of the lungs darker than they and their surroundings, exceed chance."""
    near = cv2.dilate(lung, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (33, 33))) > 0.5
    inside = lung > 0.9
    share = float((square[inside] < square[near].mean()).mean()) if inside.any() else 0.0
    excess = [(value - low) / (1 - low) for value, low in zip((correlation, share), _CHANCE, strict=True)]
    return max(excess[0] * max(excess[1], 0.0), _LEAST)


def _sized(lung: Array, shape: tuple[int, ...], content: tuple[slice, slice]) -> NDArray[np.bool_]:
    """A lung (256, 256) of an image's content as a mask of the whole image, with smooth outlines."""
    mask = np.zeros(shape, bool)
    smooth = cv2.GaussianBlur(lung, (0, 0), 1.4)
    mask[content] = cv2.resize(smooth, mask[content].shape[::-1], interpolation=cv2.INTER_LINEAR) >= 0.5
    return mask


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of a mask."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA]) if count > 2 else mask


def _box(mask: NDArray[np.bool_]) -> Boxes:
    """The box (4,) around a mask."""
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    return np.array([x, y, x + w, y + h], np.float32)


def _upper_box(mask: NDArray[np.bool_]) -> Boxes:
    """The box (4,) around the rows of a mask above half its height."""
    _, top, _, bottom = _box(mask)
    return _box(mask[: int(top + bottom + 1) // 2])


def _dark_lungs(mean: Array) -> NDArray[np.bool_]:
    """The two largest dark regions of the mean chest that do not touch its border, (2, 256, 256), left one first.

    Otsu's threshold lies halfway to the rib cage, so a region is grown by two pixels, to the foot of the ribs; closing
    takes in the clavicles and what lies behind them.
    """
    middle = np.ascontiguousarray(mean[24:216, 24:232]).astype(np.uint8)
    level, _ = cv2.threshold(middle, 0, 255, cv2.THRESH_OTSU)
    _, labels, stats, _ = cv2.connectedComponentsWithStats((mean <= level + 0.5).astype(np.uint8), connectivity=4)
    first, last = stats[:, :2], stats[:, :2] + stats[:, 2:4]  # left and top; right and bottom
    inner = (first > 2).all(axis=1) & (last < _SIDE - 2).all(axis=1) & (stats[:, cv2.CC_STAT_AREA] > 0.02 * _SIDE**2)
    inner[0] = False
    dark = sorted(np.flatnonzero(inner), key=lambda part: -stats[part, cv2.CC_STAT_AREA])[:2]
    if len(dark) < 2:
        raise UsageError("the mean of the images has no two dark regions: expected frontal chests with white bones")
    dark.sort(key=lambda part: stats[part, 0])
    close, grow = (cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1)) for r in (28, 2))
    lungs = []
    for part in dark:
        region = np.pad((labels == part).astype(np.uint8), _SIDE // 4)
        region = cv2.dilate(cv2.morphologyEx(region, cv2.MORPH_CLOSE, close), grow)
        lungs.append(region[_SIDE // 4 : -_SIDE // 4, _SIDE // 4 : -_SIDE // 4] > 0)
    return np.stack(lungs)
