"""The nine training augmentations of the pneumonia paper, in numpy and cv2.

Paper: Shahi and Bagale, "Weakly Supervised Pneumonia Localization from Chest X-Rays Using Deep Neural Network and
Grad-CAM Explanations", arXiv 2511.00456. Its code, kiranshahi/pneumonia-analysis, states the order, the probabilities
and the ranges; `draw_choices` has them all. Where it leaves a range out, Albumentations' default counts: the value that
release 2.0.8 of that library takes for an argument that is not given, such as 20% to 44% of 255 for the noise.
Its successor, which the code pins, is AGPL, so the nine are written anew here and need not agree with it to the bit.
One is simpler: Albumentations may shift the line of a motion blur, here its middle is always the pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from tbkd_utils.errors import UsageError

Rectangle = tuple[int, int, int, int]
"""Top, left, height and width, in pixels."""

MAX_HOLES = 2


@dataclass(frozen=True)
class Choices:
    """What is done to one image, in this order; None where an augmentation is left out.

    Attributes:
        rotate: Degrees, counterclockwise.
        affine: `shift_x`, `shift_y`, `scale_x` and `scale_y` of `affine`.
        brightness_contrast: `brightness` and `contrast` of `brightness_contrast`.
        clahe: Clip limit.
        gamma: Exponent.
        noise: Standard deviation as a share of 255, and the seed of the noise.
        motion_blur: Length in pixels, and angle in degrees.
        median: Side in pixels.
        holes: The rectangles that turn black.
    """

    rotate: float | None
    affine: tuple[float, float, float, float] | None
    brightness_contrast: tuple[float, float] | None
    clahe: float | None
    gamma: float | None
    noise: tuple[float, int] | None
    motion_blur: tuple[int, float] | None
    median: int | None
    holes: tuple[Rectangle, ...] | None


def draw_choices(rng: np.random.Generator, shape: tuple[int, int], noise: tuple[float, float]) -> Choices:
    """Draws what is done to one image, with the paper's probabilities and ranges.

    Every number is drawn whether or not it is used, and each takes one step of `rng`. So no choice shifts another.

    Args:
        rng: Where the random numbers come from.
        shape: Height and width of the image, in pixels.
        noise: Lowest and highest standard deviation of the noise, as a share of 255.
    """

    def applied(probability: float) -> bool:
        return bool(rng.random() < probability)

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def below(count: int) -> int:
        return int(rng.random() * count)

    def rectangle() -> Rectangle:
        height, width = (max(1, round(between(0.1, 0.2) * side)) for side in shape)
        return below(shape[0] - height + 1), below(shape[1] - width + 1), height, width

    switch, degrees = applied(0.5), between(-15, 15)
    rotated = degrees if switch else None
    switch = applied(0.5)
    placing = between(-0.05, 0.05), between(-0.05, 0.05), between(0.9, 1.1), between(0.9, 1.1)
    placed = placing if switch else None
    switch, light = applied(0.5), (between(-0.2, 0.2), between(-0.2, 0.2))
    lit = light if switch else None
    switch, clip = applied(0.3), between(1, 4)
    equalized = clip if switch else None
    switch, exponent = applied(0.3), between(0.8, 1.2)
    bent = exponent if switch else None
    switch, grain = applied(0.2), (between(*noise), below(2**32))
    noisy = grain if switch else None
    switch, motion = applied(0.1), (3 + 2 * below(3), between(0, 180))
    moved = motion if switch else None
    smoothed = 3 if applied(0.1) else None
    switch, count, rectangles = applied(0.1), 1 + below(MAX_HOLES), tuple(rectangle() for _ in range(MAX_HOLES))
    cut = rectangles[:count] if switch else None
    return Choices(rotated, placed, lit, equalized, bent, noisy, moved, smoothed, cut)


def nine(
    image: np.ndarray, mask: np.ndarray | None, seed: int, *, noise: tuple[float, float] = (0.2, 0.44)
) -> tuple[np.ndarray, np.ndarray | None]:
    """Applies the paper's nine augmentations with random choices that depend on `seed` alone; see `draw_choices`.

    Args:
        image: uint8 (H, W).
        mask: uint8 (H, W), moved as the image is; or None.
        seed: Seed of every random choice; use `stable_seed(seed, epoch, sample)`.
        noise: Lowest and highest standard deviation of the noise, as a share of 255. The paper's is the default.

    Returns:
        New or the same arrays, uint8, same shape. What was passed in is never changed.

    Raises:
        UsageError: If the range of the noise is not 0 <= low <= high <= 1.
    """
    low, high = noise
    if not 0 <= low <= high <= 1:
        raise UsageError(f"The range of the noise must be 0 <= low <= high <= 1, not {low} to {high}.")
    choices = draw_choices(np.random.default_rng(seed), (image.shape[0], image.shape[1]), (low, high))
    if choices.rotate is not None:
        image, mask = rotate(image, mask, choices.rotate)
    if choices.affine is not None:
        image, mask = affine(image, mask, *choices.affine)
    if choices.brightness_contrast is not None:
        image = brightness_contrast(image, *choices.brightness_contrast)
    if choices.clahe is not None:
        image = clahe(image, choices.clahe)
    if choices.gamma is not None:
        image = gamma(image, choices.gamma)
    if choices.noise is not None:
        std, noise_seed = choices.noise
        image = gaussian_noise(image, std, np.random.default_rng(noise_seed))
    if choices.motion_blur is not None:
        image = motion_blur(image, *choices.motion_blur)
    if choices.median is not None:
        image = median(image, choices.median)
    if choices.holes is not None:
        image = holes(image, choices.holes)
    return image, mask


def rotate(image: np.ndarray, mask: np.ndarray | None, degrees: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Rotates about the center; the corners that come into view are black.

    Args:
        image: uint8 (H, W), interpolated linearly.
        mask: uint8 (H, W), each pixel the nearest one; or None.
        degrees: Counterclockwise. The paper's are -15 to 15.

    Returns:
        uint8, same shape; and the mask.
    """
    return _warp(image, mask, cv2.getRotationMatrix2D(_center(image), degrees, 1.0))


def affine(
    image: np.ndarray, mask: np.ndarray | None, shift_x: float, shift_y: float, scale_x: float, scale_y: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales about the center, then shifts; what comes into view is black.

    Args:
        image: uint8 (H, W), interpolated linearly.
        mask: uint8 (H, W), each pixel the nearest one; or None.
        shift_x: To the right, as a share of the width. The paper's are -0.05 to 0.05.
        shift_y: Down, as a share of the height; the same.
        scale_x: Above 1 makes wider. The paper's are 0.9 to 1.1, and need not be `scale_y`.
        scale_y: Above 1 makes taller; the same.

    Returns:
        uint8, same shape; and the mask.
    """
    height, width = image.shape
    x, y = _center(image)
    move_x, move_y = x * (1 - scale_x) + shift_x * width, y * (1 - scale_y) + shift_y * height
    return _warp(image, mask, np.array([[scale_x, 0, move_x], [0, scale_y, move_y]], dtype=np.float64))


def brightness_contrast(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Returns `image * (1 + contrast) + brightness * 255`, rounded and clipped: Albumentations' formula.

    Args:
        image: uint8 (H, W).
        brightness: A share of 255. The paper's are -0.2 to 0.2.
        contrast: 0 keeps it. The paper's are -0.2 to 0.2.

    Returns:
        uint8, same shape.
    """
    return _gray(np.arange(256) * (1 + contrast) + brightness * 255)[image]


def clahe(image: np.ndarray, clip: float, tiles: int = 8) -> np.ndarray:
    """Equalizes the histogram tile by tile, with limited contrast (Zuiderveld 1994).

    Args:
        image: uint8 (H, W).
        clip: How often the mean a bin of the histogram may count; 0 for no limit. The paper's are 1 to 4.
        tiles: Tiles along each side.

    Returns:
        uint8, same shape.
    """
    return cv2.createCLAHE(clipLimit=clip, tileGridSize=(tiles, tiles)).apply(image)


def gamma(image: np.ndarray, exponent: float) -> np.ndarray:
    """Raises the gray levels, taken as 0 to 1, to a power.

    Args:
        image: uint8 (H, W).
        exponent: Above 0; above 1 makes darker. The paper's are 0.8 to 1.2.

    Returns:
        uint8, same shape.
    """
    return _gray(255 * (np.arange(256) / 255) ** exponent)[image]


def gaussian_noise(image: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Adds noise, drawn for each pixel alone, and clips.

    Args:
        image: uint8 (H, W).
        std: Standard deviation of the noise before clipping, as a share of 255. The paper's are 0.2 to 0.44.
        rng: Where the noise comes from.

    Returns:
        uint8, same shape.
    """
    return _gray(image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(255 * std))


def motion_blur(image: np.ndarray, length: int, angle: float) -> np.ndarray:
    """Takes the mean along a straight line whose middle is the pixel; the image is mirrored beyond its border.

    Args:
        image: uint8 (H, W).
        length: Of the line, in pixels, odd; 1 keeps the image. The paper's are 3 to 7.
        angle: Of the line, in degrees, counterclockwise from the horizontal.

    Returns:
        uint8, same shape.
    """
    radius = length // 2
    steps, radians = np.arange(-radius, radius + 1), np.deg2rad(angle)
    kernel = np.zeros((length, length), dtype=np.float32)
    rows, columns = (radius + np.rint(steps * part).astype(int) for part in (-np.sin(radians), np.cos(radians)))
    np.add.at(kernel, (rows, columns), 1 / length)
    return cv2.filter2D(image, -1, kernel)


def median(image: np.ndarray, size: int) -> np.ndarray:
    """Takes the median of the square about each pixel; the border is repeated beyond itself.

    Args:
        image: uint8 (H, W).
        size: Side of the square, in pixels, odd. The paper's is 3.

    Returns:
        uint8, same shape.
    """
    return cv2.medianBlur(image, size)


def holes(image: np.ndarray, rectangles: Sequence[Rectangle]) -> np.ndarray:
    """Makes rectangles black. There is no mask to pass: what lies under a hole is still there, so its mask stays.

    Args:
        image: uint8 (H, W).
        rectangles: The paper has one or two, with sides of 10% to 20% of the image's.

    Returns:
        uint8, same shape.
    """
    cut = np.array(image)
    for top, left, height, width in rectangles:
        cut[top : top + height, left : left + width] = 0
    return cut


def _center(image: np.ndarray) -> tuple[float, float]:
    """Returns x and y of the center; the middle of the first pixel is 0."""
    height, width = image.shape
    return (width - 1) / 2, (height - 1) / 2


def _warp(image: np.ndarray, mask: np.ndarray | None, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Moves image and mask alike; `matrix` (2, 3) takes x and y of the old image to those of the new one."""
    size = image.shape[::-1]
    moved = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR)
    return moved, None if mask is None else cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_NEAREST)


def _gray(values: np.ndarray) -> np.ndarray:
    """Rounds to gray levels, uint8, and clips."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
