"""From a stored radiograph to the network's input and back: pixels and boxes through the same resize and crop.

The TB paper (section 3.2.1) resizes to 256 and crops the center 224; others squash a radiograph to a square, whatever
its shape. No paper says how boxes follow; here they take the same way as the pixels.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from PIL import Image

from tbkd_utils.errors import DataError

Aspect = Literal["keep", "squash"]
"""What resizing does to the ratio of the sides."""


@dataclass(frozen=True)
class Geometry:
    """Resize, then crop the center, of images of one size.

    The shorter side is resized to `resize` (a square image becomes square, as in the paper), then the central square
    of side `crop` is kept. This is torchvision's `Resize(resize)` and `CenterCrop(crop)`, for boxes too. Under "squash"
    both sides are resized to `resize`, each by a factor of its own.

    Attributes:
        height: Height of the stored image, in pixels.
        width: Width of the stored image, in pixels.
        resize: Shorter side after resizing, in pixels.
        crop: Side of the kept square, in pixels; at most `resize`.
        aspect: "keep" keeps the ratio of the sides, "squash" makes every image square.

    Raises:
        DataError: If a size is not positive, or `crop` exceeds `resize`.
    """

    height: int
    width: int
    resize: int = 256
    crop: int = 224
    aspect: Aspect = "keep"

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.crop) < 1 or self.crop > self.resize:
            raise DataError(
                f"Expected positive sizes and crop <= resize; got an image of {self.height}x{self.width}, "
                f"resize {self.resize}, crop {self.crop}."
            )

    @cached_property
    def resized(self) -> tuple[int, int]:
        """Height and width after resizing, as torchvision rounds them."""
        if self.aspect == "squash":
            return self.resize, self.resize
        if self.height <= self.width:
            return self.resize, int(self.resize * self.width / self.height)
        return int(self.resize * self.height / self.width), self.resize

    @cached_property
    def offset(self) -> tuple[int, int]:
        """Top and left of the crop in the resized image, as torchvision rounds them."""
        return tuple(round((side - self.crop) / 2.0) for side in self.resized)  # type: ignore[return-value]

    @cached_property
    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift that take (x, y, x, y) of the stored image to the crop; float64 (4,) each."""
        scale = np.array([self.resized[1] / self.width, self.resized[0] / self.height] * 2)
        shift = np.array([self.offset[1], self.offset[0]] * 2, dtype=np.float64)
        return scale, shift

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """Resizes (bilinear, antialiased) and crops an image.

        Args:
            image: uint8 (height, width) or (height, width, 3).

        Returns:
            uint8 (crop, crop) or (crop, crop, 3).

        Raises:
            DataError: If the image has another size or type.
        """
        size = (self.height, self.width)
        if image.dtype != np.uint8 or image.shape not in (size, (*size, 3)):
            raise DataError(
                f"Expected a uint8 image of {self.height}x{self.width}, gray or RGB; got {image.dtype} {image.shape}."
            )
        resized = Image.fromarray(image).resize(self.resized[::-1], Image.Resampling.BILINEAR)
        top, left = self.offset
        return np.asarray(resized.crop((left, top, left + self.crop, top + self.crop)))

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Resizes (nearest) and crops a mask, bool (height, width) to uint8 (crop, crop) of 0 and 1.

        Raises:
            DataError: If the mask has another size.
        """
        if mask.shape != (self.height, self.width):
            raise DataError(f"Expected a mask of {self.height}x{self.width}; got {mask.shape}.")
        resized = Image.fromarray(mask.astype(np.uint8)).resize(self.resized[::-1], Image.Resampling.NEAREST)
        top, left = self.offset
        return np.asarray(resized.crop((left, top, left + self.crop, top + self.crop)))

    def keeps(self, boxes: np.ndarray) -> np.ndarray:
        """Returns which boxes have a part inside the crop, bool (k,), for boxes (k, 4) of the stored image."""
        mapped = self._map(boxes)
        return (mapped[:, 2] > mapped[:, 0]) & (mapped[:, 3] > mapped[:, 1])

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Takes boxes through the same resize and crop as the pixels.

        Args:
            boxes: float (k, 4) xyxy, pixels of the stored image.

        Returns:
            float32 (m, 4) xyxy in pixels of the crop, m <= k: clipped to the crop, without those that fall outside
            it (`keeps` tells which).

        Raises:
            DataError: If the shape is not (k, 4).
        """
        return self._map(boxes)[self.keeps(boxes)]

    def invert_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Takes boxes of the crop, (k, 4) xyxy, back to float32 pixels of the stored image; nothing is clipped."""
        scale, shift = self._affine
        return ((_boxes(boxes) + shift) / scale).astype(np.float32)

    def _map(self, boxes: np.ndarray) -> np.ndarray:
        scale, shift = self._affine
        # Rounded before `keeps` compares the sides, so that no kept box has an empty side.
        return np.clip(_boxes(boxes) * scale - shift, 0, self.crop).astype(np.float32)


def _boxes(boxes: np.ndarray) -> np.ndarray:
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"Expected boxes of shape (k, 4), xyxy; got {boxes.shape}.")
    return boxes
