"""Random parts of an image: their shares, their aspect, what mirrors them, and that a seed decides everything."""

import cv2
import numpy as np
import pytest
from torchvision.transforms import RandAugment

from tbkd_utils.data.transforms import (
    AUGMENTATIONS,
    MOVING,
    _still_augment,
    build_augmentation,
    crops,
    draw_part,
    rand_augment,
)
from tbkd_utils.errors import UsageError

RAMP = np.add.outer(np.arange(48), 3 * np.arange(64)).astype(np.uint8)  # (48, 64), 0..236
BARE = {"operations": 0, "magnitude": 0}


def parts(least: float, shape: tuple[int, int] = (400, 500), seeds: int = 2000) -> np.ndarray:
    return np.array([draw_part(np.random.default_rng(seed), shape, least) for seed in range(seeds)])


def test_a_part_lies_inside_and_its_share_of_the_area_is_uniform() -> None:
    top, left, height, width = parts(0.5).T
    assert min(top.min(), left.min()) == 0
    assert ((top + height).max(), (left + width).max()) == (400, 500)
    share = height * width / (400 * 500)
    assert 0.49 < share.min() < 0.51
    assert np.mean(share < 0.7) == pytest.approx(0.4, abs=0.05)
    aspect = np.log((width / 500) / (height / 400))
    assert np.abs(aspect).max() < np.log(1.26)
    assert abs(aspect.mean()) < 0.01
    small = (width < 500) & (height < 400) & (share < 0.75)
    assert aspect[small].std() == pytest.approx(2 * np.log(1.25) / 12**0.5, rel=0.05)  # uniform


def test_a_part_of_any_image_has_a_pixel() -> None:
    assert (parts(0.01, (2, 3), 200)[:, 2:] >= 1).all()


def test_the_whole_image_is_kept_or_mirrored_in_half_of_the_cases() -> None:
    shape = (48, 64)
    whole = [seed for seed in range(4000) if draw_part(np.random.default_rng(seed), shape, 1.0) == (0, 0, *shape)]
    found = [crops(RAMP, None, seed, least=1.0, **BARE)[0] for seed in whole]
    kept, mirrored = (sum(np.array_equal(one, image) for one in found) for image in (RAMP, RAMP[:, ::-1]))
    assert kept + mirrored == len(whole) > 100
    assert kept / len(whole) == pytest.approx(0.5, abs=0.15)


def test_a_ramp_stays_a_ramp_that_is_stretched() -> None:
    for seed in range(20):
        top, left, height, width = draw_part(np.random.default_rng(seed), (48, 64), 0.3)
        found, mask = crops(RAMP, (RAMP > 100).astype(np.uint8), seed, least=0.3, **BARE)
        assert (found.shape, found.dtype) == (RAMP.shape, np.uint8)
        ends = found[0, [0, -1]].tolist()
        assert sorted(ends) == [RAMP[top, left], RAMP[top, left + width - 1]]
        assert found.max() == RAMP[top + height - 1, left + width - 1]
        assert set(np.unique(mask)) <= {0, 1}
        assert np.mean(mask == (found > 100)) > 0.9


def test_a_seed_decides_everything_and_the_input_stays() -> None:
    image = RAMP.copy()
    image.setflags(write=False)
    augment = build_augmentation("crops", {"crop_scale": 0.5, "randaugment_ops": 2, "randaugment_magnitude": 9})
    assert "crops" in AUGMENTATIONS
    found = [augment(image, None, seed)[0] for seed in range(20)]
    assert all(np.array_equal(augment(image, None, seed)[0], one) for seed, one in enumerate(found))
    assert len({one.tobytes() for one in found}) == 20
    assert np.array_equal(image, RAMP)
    bare = crops(image, None, 3, least=0.5, **BARE)[0]
    assert np.array_equal(found[3], rand_augment(bare, None, 3, operations=2, magnitude=9)[0])


@pytest.mark.parametrize("least", [0, -1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(least: float) -> None:
    with pytest.raises(UsageError, match="least share"):
        crops(RAMP, None, 0, least=least, **BARE)


def test_operations_on_an_image_with_a_mask_move_no_pixel() -> None:
    """A picture of two gray levels with the mask at one of them: both sides stay flat."""
    right = np.tile(np.arange(64) >= 32, (48, 1)).astype(np.uint8)
    picture, changed = 60 + 120 * right, 0
    for seed in range(60):
        image, mask = crops(picture, right, seed, least=0.5, operations=2, magnitude=20)
        plain, still = crops(picture, right, seed, least=0.5, **BARE)
        assert mask is not None
        assert np.array_equal(mask, still)
        for level in (60, 180):
            flat = cv2.erode((plain == level).astype(np.uint8), np.ones((5, 5))) > 0  # sharpening reaches two pixels
            assert len(np.unique(image[2:-2][flat[2:-2]])) <= 1
        changed += not np.array_equal(image, plain)
    assert changed > 30


def test_the_still_operations_are_all_but_the_moving_ones() -> None:
    every = set(RandAugment()._augmentation_space(31, (8, 8)))
    still = set(_still_augment(2, 9)._augmentation_space(31, (8, 8)))
    assert every - still == set(MOVING)
    assert {"Identity", "Brightness", "Contrast", "Equalize"} <= still
