"""Paint that covers a region, leaves the rest alone, and tells nothing of what it covers."""

import numpy as np
import pytest

from tbkd_utils.errors import UsageError
from tbkd_utils.localization.lungs import Lungs, lungs_of
from tbkd_utils.localization.paintings import FRAME, LUNGS, REST, paint_region, region_of
from tbkd_utils.localization.scores import energy_in_mask

EDGE = 3  # of 100 pixels


@pytest.fixture
def lungs() -> Lungs:
    """Two lungs of 20 x 50 pixels in 100 x 100."""
    masks = np.zeros((2, 100, 100), bool)
    masks[0, 20:70, 20:40] = masks[1, 20:70, 60:80] = True
    return lungs_of(masks, 1.0)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (100, 100), dtype=np.uint8)


def test_far_from_the_region_every_pixel_stays_bit_for_bit(image: np.ndarray) -> None:
    region = np.zeros((100, 100), bool)
    region[40:60, 40:60] = True
    before = image.copy()
    painted = paint_region(image, region)
    changed = np.argwhere(painted.pixels != image)
    assert changed.min() >= 40 - EDGE
    assert changed.max() < 60 + EDGE
    assert (changed < 40).any()  # the edge lies outside the region
    assert painted.covered == pytest.approx(0.04)
    assert np.array_equal(image, before)


def test_inside_the_region_nothing_of_what_was_there_remains(image: np.ndarray) -> None:
    region = np.zeros((100, 100), bool)
    region[40:60, 40:60] = True
    other = np.where(region, 255 - image, image).astype(np.uint8)
    painted = paint_region(image, region)
    assert np.array_equal(painted.pixels, paint_region(other, region).pixels)
    assert painted.gray == paint_region(other, region).gray
    assert set(painted.pixels[region]) == {round(painted.gray)}


def test_the_paint_is_the_mean_of_what_stays() -> None:
    image = np.full((100, 100), 50, np.uint8)
    image[:50] = 200
    region = np.zeros((100, 100), bool)
    region[:60] = True
    painted = paint_region(image, region)
    assert painted.gray == 50
    assert (painted.pixels == 50).all()


def test_the_edge_falls_without_a_step() -> None:
    image = np.full((100, 100), 100, np.uint8)
    image[:, 90:] = 200  # the mean of what stays is above 100, so that the paint can be seen
    region = np.zeros((100, 100), bool)
    region[:, :50] = True
    row = paint_region(image, region).pixels[50, 45:60].astype(int)
    assert row[0] > 100
    assert (np.diff(row) <= 0).all()
    assert len(set(row)) > 3
    assert row[5 + EDGE] == 100


def test_what_is_painted_around_the_lungs_ends_before_their_margin(lungs: Lungs, image: np.ndarray) -> None:
    kept = paint_region(image, region_of(REST, lungs)).pixels
    covered = region_of(LUNGS, lungs)
    assert np.array_equal(kept[covered], image[covered])  # the one keeps exactly what the other covers
    assert not (covered & region_of(REST, lungs)).any()
    assert covered[20 - EDGE, 30]
    assert not covered[20 - EDGE - 1, 30]
    assert covered[lungs.mask].all()


def test_the_frame_has_its_width(lungs: Lungs) -> None:
    frame = region_of(FRAME, lungs)
    assert frame.mean() == pytest.approx(1 - 0.8**2)
    assert frame[9, 50]
    assert not frame[10, 50]
    assert region_of(FRAME, lungs, width=0).sum() == 0


def test_nothing_to_paint_is_no_paint_and_everything_is_refused(image: np.ndarray, lungs: Lungs) -> None:
    assert np.array_equal(paint_region(image, np.zeros((100, 100), bool)).pixels, image)
    with pytest.raises(UsageError, match="covers the whole radiograph"):
        paint_region(image, np.ones((100, 100), bool))
    with pytest.raises(UsageError, match="uint8 radiograph and a bool region"):
        paint_region(image, lungs.mask.astype(np.float32))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"expected a region of lungs.*'heart'"):
        region_of("heart", lungs)


def test_energy_in_a_mask() -> None:
    heat = np.zeros((4, 4))
    heat[1, 1], heat[3, 3] = 3.0, 1.0
    mask = np.zeros((4, 4))
    mask[1, 1] = 1.0
    assert energy_in_mask(heat, mask) == pytest.approx(0.75)
    assert energy_in_mask(heat * mask, mask) == 1.0
    assert energy_in_mask(heat * (1 - mask), mask) == 0.0
    assert energy_in_mask(heat, mask / 2) == pytest.approx(0.375)
    assert energy_in_mask(np.ones((4, 4)), mask) == pytest.approx(1 / 16)  # an even map has the mask's area
    assert energy_in_mask(-heat, mask) == 0.0
    assert energy_in_mask(heat - 9 * (1 - mask), mask) == 1.0  # negative values count 0
    assert energy_in_mask(heat * 1e-30, mask) == pytest.approx(0.75)
    with pytest.raises(UsageError, match="one shape"):
        energy_in_mask(heat, mask[:2])
    with pytest.raises(UsageError, match=r"must lie in 0\.\.1"):
        energy_in_mask(heat, 2 * mask)
