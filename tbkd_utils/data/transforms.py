"""What happens to pixels after resize and crop: RandAugment (training only), then ImageNet's mean and standard deviation.

Paper section 3.2.1.
"""

import functools

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import RandAugment

from tbkd_utils.data.seeding import torch_seeded

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Scales pixels to [0, 1] and standardises them by ImageNet's mean and standard deviation.

    Args:
        pixels: uint8 (n, H, W) grey, or (n, H, W, 3).

    Returns:
        float32 (n, 3, H, W); a grey image stands in all three channels.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=pixels.device).view(1, 3, 1, 1)
    channels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)  # (n, 1 or 3, H, W)
    return channels.float().div_(255).sub(mean).div_(std)  # in place where it can be: the work is moving memory


def augment(image: np.ndarray, operations: int, magnitude: int, seed: int) -> np.ndarray:
    """Applies torchvision's RandAugment (Cubuk et al. 2019) with random choices that depend on `seed` alone.

    Args:
        image: uint8 (H, W) or (H, W, 3).
        operations: Operations in a row; 0 returns the image as it is.
        magnitude: Strength of each, 0 to 30.
        seed: Seed of every random choice; use `stable_seed(seed, epoch, sample)`.

    Returns:
        uint8, same shape.
    """
    if operations == 0:
        return image
    with torch_seeded(seed):
        return np.asarray(_rand_augment(operations, magnitude)(Image.fromarray(image)))


class _RandAugment(RandAugment):
    """torchvision's, which lists its operations and their magnitudes anew for every image; this one remembers."""

    _augmentation_space = functools.lru_cache(maxsize=32)(RandAugment._augmentation_space)


@functools.lru_cache(maxsize=32)
def _rand_augment(operations: int, magnitude: int) -> RandAugment:
    return _RandAugment(operations, magnitude)
