"""Pixels after resize and crop: augmentation (training only), then mean and standard deviation.

RandAugment and ImageNet's values are the TB paper's (section 3.2.1).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import RandAugment

from tbkd_utils.data.augmentations import Rectangle, nine
from tbkd_utils.data.seeding import torch_seeded
from tbkd_utils.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LARGEST_ASPECT = 1.25  # of a random part; the smallest is its reciprocal
MOVING = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
"""RandAugment's operations that move pixels, and so would have to move a mask too."""

Augment = Callable[[np.ndarray, np.ndarray | None, int], tuple[np.ndarray, np.ndarray | None]]
"""Image uint8 (H, W), its mask uint8 (H, W) or None, and a seed, to both augmented alike."""


def standardize(
    pixels: torch.Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> torch.Tensor:
    """Scales pixels to [0, 1] and standardizes them.

    Args:
        pixels: uint8 (n, H, W) gray, or (n, H, W, 3).
        mean: Of each channel, in [0, 1]; ImageNet's unless a network was pretrained with others.
        std: The same.

    Returns:
        float32 (n, 3, H, W); a grayscale image is repeated over three channels.
    """
    shift = torch.tensor(mean, device=pixels.device).view(1, 3, 1, 1)
    scale = torch.tensor(std, device=pixels.device).view(1, 3, 1, 1)
    channels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)  # (n, 1 or 3, H, W)
    return channels.float().div_(255).sub(shift).div_(scale)  # in place where it can be: the work is moving memory


def rand_augment(
    image: np.ndarray, mask: np.ndarray | None, seed: int, *, operations: int, magnitude: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Applies torchvision's RandAugment (Cubuk et al. 2019) with random choices that depend on `seed` alone.

    Args:
        image: uint8 (H, W) or (H, W, 3).
        mask: None: RandAugment moves pixels and not their masks.
        seed: Seed of every random choice; use `stable_seed(seed, epoch, sample)`.
        operations: Operations in a row; 0 returns image and mask as they are.
        magnitude: Strength of each, 0 to 30.

    Returns:
        uint8, same shape; and the mask.

    Raises:
        UsageError: If there is a mask to be moved.
    """
    if operations == 0:
        return image, mask
    if mask is not None:
        raise UsageError("RandAugment moves pixels and not their masks: use 0 operations for images with masks.")
    with torch_seeded(seed):
        return np.asarray(_rand_augment(operations, magnitude)(Image.fromarray(image))), None


def crops(
    image: np.ndarray, mask: np.ndarray | None, seed: int, *, least: float, operations: int, magnitude: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Takes a random part of the image at the image's size, mirrored in half of the cases; then RandAugment.

    An image with a mask gets only those of RandAugment's operations that change gray levels and move no pixel: without
    those in `MOVING`.

    Args:
        image: uint8 (H, W).
        mask: uint8 (H, W), cropped and mirrored as the image is (each pixel the nearest one); or None.
        seed: Seed of every random choice; use `stable_seed(seed, epoch, sample)`.
        least: Least share of the area that is kept, above 0 to 1; see `draw_part`.
        operations: RandAugment's, after the crop.
        magnitude: RandAugment's, 0 to 30.

    Returns:
        uint8, same shape; and the mask.

    Raises:
        UsageError: If the share is out of range.
    """
    if not 0 < least <= 1:
        raise UsageError(f"The least share of the area must lie above 0 and at most at 1; got {least}.")
    rng, shape = np.random.default_rng(seed), (image.shape[0], image.shape[1])
    part, mirrored = draw_part(rng, shape, least), bool(rng.random() < 0.5)
    image = _enlarged(image, part, mirrored, cv2.INTER_LINEAR)
    if mask is None:
        return rand_augment(image, None, seed, operations=operations, magnitude=magnitude)
    mask = _enlarged(mask, part, mirrored, cv2.INTER_NEAREST)
    if operations == 0:
        return image, mask
    with torch_seeded(seed):
        return np.asarray(_still_augment(operations, magnitude)(Image.fromarray(image))), mask


def draw_part(rng: np.random.Generator, shape: tuple[int, int], least: float) -> Rectangle:
    """Draws a rectangle within an image: its share of the area uniform, its aspect log-uniform in [0.8, 1.25].

    The aspect is that of the shares of width and height. A side that would exceed the image's is the image's.

    Args:
        rng: Where the random numbers come from, four of them.
        shape: Height and width of the image, in pixels.
        least: Least share of the area; the largest is 1.

    Returns:
        Top, left, height and width, in pixels, inside the image.
    """
    share, aspect = rng.uniform(least, 1), np.exp(rng.uniform(-np.log(LARGEST_ASPECT), np.log(LARGEST_ASPECT)))
    shares = np.sqrt([share / aspect, share * aspect])
    height, width = (max(1, min(side, round(side * part))) for side, part in zip(shape, shares.tolist(), strict=True))
    top, left = (int(rng.random() * (side - kept + 1)) for side, kept in zip(shape, (height, width), strict=True))
    return top, left, height, width


def _enlarged(image: np.ndarray, part: Rectangle, mirrored: bool, interpolation: int) -> np.ndarray:
    """A part of an image at the image's size; mirrored left to right if asked for."""
    top, left, height, width = part
    cut = np.ascontiguousarray(image[top : top + height, left : left + width])
    large = cv2.resize(cut, image.shape[1::-1], interpolation=interpolation)
    return np.ascontiguousarray(large[:, ::-1]) if mirrored else large


class _RandAugment(RandAugment):
    """torchvision's, which lists its operations and their magnitudes anew for every image; this one remembers."""

    _augmentation_space = functools.lru_cache(maxsize=32)(RandAugment._augmentation_space)


class _StillAugment(RandAugment):
    """RandAugment without the operations that move pixels."""

    @functools.lru_cache(maxsize=32)  # noqa: B019 - as few as there are settings
    def _augmentation_space(self, num_bins: int, image_size: tuple[int, int]) -> dict[str, Any]:
        space = super()._augmentation_space(num_bins, image_size)
        return {name: operation for name, operation in space.items() if name not in MOVING}


AUGMENTATIONS: dict[str, Callable[[Mapping[str, Any]], Augment]] = {
    "randaugment": lambda settings: functools.partial(
        rand_augment, operations=settings["randaugment_ops"], magnitude=settings["randaugment_magnitude"]
    ),
    "crops": lambda settings: functools.partial(
        crops,
        least=settings["crop_scale"],
        operations=settings["randaugment_ops"],
        magnitude=settings["randaugment_magnitude"],
    ),
    "nine": lambda settings: functools.partial(nine, noise=(settings["noise_low"], settings["noise_high"])),
}
"""Every augmentation by name, made from the settings of a recipe by their names."""


def build_augmentation(name: str, settings: Mapping[str, Any]) -> Augment:
    """Returns an augmentation with its settings.

    Args:
        name: A key of `AUGMENTATIONS`.
        settings: Setting to value; an augmentation takes those that it knows.

    Raises:
        UsageError: If there is no such augmentation.
    """
    if name not in AUGMENTATIONS:
        raise UsageError(f"There is no augmentation '{name}': expected one of {', '.join(AUGMENTATIONS)}.")
    return AUGMENTATIONS[name](settings)


@functools.lru_cache(maxsize=32)
def _rand_augment(operations: int, magnitude: int) -> RandAugment:
    return _RandAugment(operations, magnitude)


@functools.lru_cache(maxsize=32)
def _still_augment(operations: int, magnitude: int) -> RandAugment:
    return _StillAugment(operations, magnitude)
