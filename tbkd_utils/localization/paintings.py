"""Parts of a radiograph painted over, to ask a network what it says without them.

The paint is one gray, the mean of the pixels that stay: the mean of what is covered would tell what was there. Its edge
is soft and lies outside the covered part, so that nothing of that part shines through. Shapes are (height, width).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tbkd_utils.errors import UsageError
from tbkd_utils.localization.lungs import Image, Lungs

LUNGS, REST, FRAME = "lungs", "all but the lungs", "frame"
REGIONS = (LUNGS, REST, FRAME)
"""What can be painted over."""
FRAME_WIDTH = 0.1
"""Of the shorter side."""
_EDGE = 0.03  # of the shorter side: how far the paint's edge reaches beyond the covered part, and the margin of lungs


@dataclass(frozen=True)
class Painted:
    """A radiograph of h x w pixels after painting."""

    pixels: Image  # (h, w); a pixel farther than the edge from the covered part is what it was
    gray: float  # of the paint, 0..255
    covered: float  # share of the radiograph that is paint alone


def paint_region(image: Image, region: NDArray[np.bool_]) -> Painted:
    """Paints a region with the mean gray of what stays.

    Args:
        image: uint8 (h, w); not changed.
        region: (h, w), of which no pixel remains; around it the paint fades over 3% of the shorter side.

    Raises:
        UsageError: Wrong shape or dtype, or nothing is farther from the region than the edge.
    """
    if image.dtype != np.uint8 or image.ndim != 2 or region.shape != image.shape or region.dtype != bool:
        raise UsageError(
            f"expected a uint8 radiograph and a bool region of one shape (h, w); got {image.dtype} {image.shape} and "
            f"{region.dtype} {region.shape}"
        )
    if not region.any():
        return Painted(np.array(image), float(image.mean()), 0.0)
    share = np.clip(1 - _distance(region) / _edge(image), 0, 1)  # (h, w) of paint: 1 inside, 0 where a pixel stays
    if share.all():
        raise UsageError("the region covers the whole radiograph, so that there is no gray to paint it with")
    gray = float(image[share == 0].mean())
    share = share * share * (3 - 2 * share)  # no crease at either end
    mixed = image + share * (gray - image.astype(np.float32))
    pixels = np.where(share > 0, mixed.round().clip(0, 255).astype(np.uint8), image)
    return Painted(pixels, gray, float(region.mean()))


def region_of(what: str, lungs: Lungs, *, width: float = FRAME_WIDTH) -> NDArray[np.bool_]:
    """Returns which pixels to paint over, bool (h, w).

    The lungs have a margin of 3% of the shorter side, as what lies at the pleura belongs to them. What is painted
    around the lungs ends as far beyond that margin, so that its edge stays outside it.

    Args:
        what: One of `REGIONS`.
        lungs: Those of the radiograph.
        width: Of the frame, as a share of the shorter side, at least 0 and below 0.5.

    Raises:
        UsageError: If there is no such region, or the width is out of range.
    """
    if what not in REGIONS or not 0 <= width < 0.5:
        raise UsageError(
            f"expected a region of {', '.join(REGIONS)} and a width from 0 to below 0.5; got {what!r}, {width}"
        )
    edge = _edge(lungs.mask)
    if what == LUNGS:
        return _grown(lungs.mask, edge)
    if what == REST:
        return ~_grown(lungs.mask, 2 * edge)
    side = round(width * min(lungs.mask.shape))
    height, across = lungs.mask.shape
    frame = np.ones((height, across), bool)
    frame[side : height - side, side : across - side] = False
    return frame


def _edge(image: NDArray) -> int:
    """How far the paint's edge reaches, in pixels."""
    return max(1, round(_EDGE * min(image.shape)))


def _grown(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    return np.asarray(_distance(mask) <= radius)


def _distance(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """How far each pixel is from the mask, in pixels; 0 inside."""
    found = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(found, np.float32)
