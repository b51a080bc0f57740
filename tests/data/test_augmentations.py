"""The nine augmentations of the pneumonia paper: a known answer for each, and the random choices of all nine."""

from dataclasses import fields

import numpy as np
import pytest

from tbkd_utils.data.augmentations import (
    Choices,
    affine,
    brightness_contrast,
    clahe,
    draw_choices,
    gamma,
    gaussian_noise,
    holes,
    median,
    motion_blur,
    nine,
    rotate,
)
from tbkd_utils.errors import UsageError

PAPER = (0.2, 0.44)
SHARES = {
    "rotate": 0.5,
    "affine": 0.5,
    "brightness_contrast": 0.5,
    "clahe": 0.3,
    "gamma": 0.3,
    "noise": 0.2,
    "motion_blur": 0.1,
    "median": 0.1,
    "holes": 0.1,
}


def picture(height: int = 40, width: int = 40) -> np.ndarray:
    image = np.random.default_rng(0).integers(20, 230, (height, width), dtype=np.uint8)
    image.setflags(write=False)
    return image


def block(height: int = 40, width: int = 40) -> np.ndarray:
    image = np.zeros((height, width), dtype=np.uint8)
    image[6:16, 22:34] = 200
    image.setflags(write=False)
    return image


def drawn(shape: tuple[int, int] = (224, 224), noise: tuple[float, float] = PAPER, seeds: int = 2000) -> list[Choices]:
    return [draw_choices(np.random.default_rng(seed), shape, noise) for seed in range(seeds)]


def test_what_changes_nothing_gives_the_same_image() -> None:
    image, mask = picture(), block()
    for moved, moved_mask in (rotate(image, mask, 0), affine(image, mask, 0, 0, 1, 1)):
        assert np.array_equal(moved, image)
        assert np.array_equal(moved_mask, mask)
    rng = np.random.default_rng(0)
    for same in (
        brightness_contrast(image, 0, 0),
        gamma(image, 1),
        gaussian_noise(image, 0, rng),
        motion_blur(image, 1, 30),
        median(image, 1),
        holes(image, ()),
    ):
        assert same.dtype == np.uint8
        assert np.array_equal(same, image)
    assert rotate(image, None, 10)[1] is None
    assert affine(image, None, 0.1, 0, 1, 1)[1] is None


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_right_angles_are_exact(turns: int) -> None:
    turned, turned_mask = rotate(picture(), block(), 90 * turns)
    inner = slice(1, -1)
    assert np.abs(turned.astype(int) - np.rot90(picture(), turns))[inner, inner].max() <= 2
    assert np.array_equal(turned_mask, np.rot90(block(), turns))


def test_a_rotation_leaves_black_corners() -> None:
    turned, _ = rotate(np.full((60, 40), 255, dtype=np.uint8), None, 15)
    assert [turned[y, x] for y in (0, -1) for x in (0, -1)] == [0] * 4
    assert turned[30, 20] == 255


def test_a_shift_by_whole_pixels() -> None:
    image, mask = picture(40, 20), block(40, 40)[:, 15:35]
    moved, moved_mask = affine(image, mask, 3 / 20, -4 / 40, 1, 1)
    assert np.array_equal(moved[:-4, 3:], image[4:, :-3])
    assert np.array_equal(moved_mask[:-4, 3:], mask[4:, :-3])
    assert not moved[-4:].any()
    assert not moved[:, :3].any()


def test_scales_are_about_the_center_and_independent() -> None:
    image = np.zeros((41, 41), dtype=np.uint8)
    image[15:26, 15:26] = 255  # 11 by 11 about the center
    wide, wide_mask = affine(image, image, 0, 0, 2, 1)
    for each in (wide, wide_mask):
        rows, columns = np.nonzero(each > 127)
        assert (rows.min(), rows.max()) == (15, 25)
        assert columns.min() + columns.max() == pytest.approx(40, abs=1)
        assert np.ptp(columns) + 1 == pytest.approx(22, abs=1)


@pytest.mark.parametrize("degrees", [-15, 7.5, 15])
def test_the_mask_follows_the_image(degrees: float) -> None:
    for image, mask in (rotate(block(), block(), degrees), affine(block(), block(), 0.05, -0.03, 1.1, 0.9)):
        assert set(np.unique(mask)) == {0, 200}
        both = np.sum((image > 100) & (mask > 100)) / np.sum((image > 100) | (mask > 100))
        assert both > 0.9


def test_brightness_and_contrast() -> None:
    image = np.array([[0, 100, 200, 255]], dtype=np.uint8)
    assert brightness_contrast(image, 0.2, 0).tolist() == [[51, 151, 251, 255]]
    assert brightness_contrast(image, 0, 0.2).tolist() == [[0, 120, 240, 255]]
    assert brightness_contrast(image, -0.2, -0.2).tolist() == [[0, 29, 109, 153]]


def test_gamma() -> None:
    image = np.array([[0, 51, 102, 255]], dtype=np.uint8)
    assert gamma(image, 2).tolist() == [[0, 10, 41, 255]]  # .2 and .4 squared, times 255
    assert gamma(image, 0.5).tolist() == [[0, 114, 161, 255]]


def test_clahe_of_one_tile_without_limit_equalizes_the_histogram() -> None:
    image = np.full((8, 8), 100, dtype=np.uint8)
    image[4:] = 110
    assert np.unique(clahe(image, 0, tiles=1)).tolist() == [128, 255]  # the shares 1/2 and 1, times 255
    assert np.ptp(clahe(image, 4, tiles=1).astype(int)) < 127
    assert clahe(picture(37, 51), 2).shape == (37, 51)


@pytest.mark.parametrize("std", [0.02, 0.08])
def test_noise_has_its_standard_deviation(std: float) -> None:
    noise = gaussian_noise(np.full((200, 200), 128, dtype=np.uint8), std, np.random.default_rng(0)).astype(float) - 128
    assert noise.std() == pytest.approx(255 * std, rel=0.05)
    assert abs(noise.mean()) < 0.5


def test_noise_is_clipped_and_does_not_wrap() -> None:
    noisy = gaussian_noise(np.full((100, 100), 250, dtype=np.uint8), 0.1, np.random.default_rng(0))
    assert np.mean(noisy == 255) > 0.4
    assert noisy.min() > 120


@pytest.mark.parametrize("length", [3, 5, 7])
@pytest.mark.parametrize("angle", [0, 30, 45, 90, 135])
def test_motion_blur_keeps_the_sum(length: int, angle: float) -> None:
    image = np.zeros((15, 15), dtype=np.uint8)
    image[7, 7] = 210
    blurred = motion_blur(image, length, angle)
    assert blurred.sum() == 210
    assert np.array_equal(blurred, blurred[::-1, ::-1])


def test_motion_blur_is_along_its_angle() -> None:
    image = np.zeros((9, 9), dtype=np.uint8)
    image[4, 4] = 210
    for angle, line in ((0, (4, slice(2, 7))), (90, (slice(2, 7), 4))):
        expected = np.zeros_like(image)
        expected[line] = 42
        assert np.array_equal(motion_blur(image, 5, angle), expected)
    assert motion_blur(image, 3, 45)[3, 5] == 70  # up and to the right


def test_the_median_removes_a_hot_pixel() -> None:
    image = np.full((9, 9), 60, dtype=np.uint8)
    hot = image.copy()
    hot[4, 4] = 255
    assert np.array_equal(median(hot, 3), image)


def test_holes_are_black_in_their_rectangles_alone() -> None:
    cut = holes(picture(), [(0, 5, 4, 6), (30, 33, 10, 7)])
    inside = np.zeros((40, 40), dtype=bool)
    inside[0:4, 5:11] = inside[30:40, 33:40] = True
    assert not cut[inside].any()
    assert np.array_equal(cut[~inside], picture()[~inside])


def test_a_seed_decides_everything() -> None:
    image, mask = picture(), block()
    for seed in range(50):
        first, second = nine(image, mask, seed), nine(image, mask, seed)
        assert first[0].tobytes() == second[0].tobytes()
        assert first[1].tobytes() == second[1].tobytes()
    assert len({nine(image, mask, seed)[0].tobytes() for seed in range(50)}) > 40


@pytest.mark.parametrize("shape", [(224, 224), (48, 32), (31, 77)])
def test_shape_and_type_stay_and_the_input_is_never_changed(shape: tuple[int, int]) -> None:
    image, mask = picture(*shape), block(*shape)  # both read-only, as the cache is
    kept, kept_mask = image.copy(), mask.copy()
    for seed in range(60):
        for out in nine(image, mask, seed):
            assert out is not None
            assert (out.shape, out.dtype) == (shape, np.uint8)
        assert np.array_equal(nine(image, None, seed)[0], nine(image, mask, seed)[0])
        assert nine(image, None, seed)[1] is None
    assert np.array_equal(image, kept)
    assert np.array_equal(mask, kept_mask)


def test_the_mask_of_an_image_that_does_not_move_stays() -> None:
    still = [seed for seed, each in enumerate(drawn((40, 40))) if each.rotate is None and each.affine is None]
    assert still
    assert all(np.array_equal(nine(picture(), block(), seed)[1], block()) for seed in still)


@pytest.mark.parametrize("name", SHARES)
def test_each_is_applied_as_often_as_stated_and_changes_the_image(name: str) -> None:
    assert list(SHARES) == [field.name for field in fields(Choices)]
    chosen = drawn()
    share = np.mean([getattr(each, name) is not None for each in chosen])
    assert share == pytest.approx(SHARES[name], abs=4 * np.sqrt(SHARES[name] * (1 - SHARES[name]) / len(chosen)))
    others = [other for other in SHARES if other != name]
    alone = [
        seed
        for seed, each in enumerate(drawn((40, 40), seeds=5000))
        if getattr(each, name) is not None and all(getattr(each, other) is None for other in others)
    ]
    changed = [not np.array_equal(nine(picture(), None, seed)[0], picture()) for seed in alone]
    assert len(alone) >= 10
    assert np.mean(changed) > 0.9  # not all: a gamma of 1.001 changes no gray level


def test_an_image_that_nothing_is_applied_to_stays() -> None:
    none = [seed for seed, each in enumerate(drawn()) if each == Choices(*[None] * len(SHARES))]
    assert none
    assert all(np.array_equal(nine(picture(), None, seed)[0], picture()) for seed in none)


def test_the_choices_fill_their_ranges_and_stay_within() -> None:
    chosen = drawn((200, 100))

    def check(values: list[float], low: float, high: float) -> None:
        assert low <= min(values) <= low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) <= max(values) <= high

    check([each.rotate for each in chosen if each.rotate is not None], -15, 15)
    for index, (low, high) in enumerate([(-0.05, 0.05)] * 2 + [(0.9, 1.1)] * 2):
        check([each.affine[index] for each in chosen if each.affine], low, high)
    for index in range(2):
        check([each.brightness_contrast[index] for each in chosen if each.brightness_contrast], -0.2, 0.2)
    check([each.clahe for each in chosen if each.clahe is not None], 1, 4)
    check([each.gamma for each in chosen if each.gamma is not None], 0.8, 1.2)
    check([each.noise[0] for each in chosen if each.noise], *PAPER)
    assert {each.motion_blur[0] for each in chosen if each.motion_blur} == {3, 5, 7}
    assert {each.median for each in chosen} == {None, 3}
    assert {len(each.holes) for each in chosen if each.holes} == {1, 2}
    rectangles = [rectangle for each in chosen if each.holes for rectangle in each.holes]
    check([height for _, _, height, _ in rectangles], 20, 40)
    check([width for _, _, _, width in rectangles], 10, 20)
    check([top + height for top, _, height, _ in rectangles], 20, 200)
    check([left + width for _, left, _, width in rectangles], 10, 100)


def test_no_choice_shifts_another() -> None:
    for ours, theirs in zip(drawn(noise=(0.02, 0.08)), drawn((60, 90)), strict=True):
        for name in SHARES:
            if name not in ("noise", "holes"):
                assert getattr(ours, name) == getattr(theirs, name)
        assert (ours.noise is None, ours.holes is None) == (theirs.noise is None, theirs.holes is None)


def test_the_range_of_the_noise_is_used() -> None:
    noisy = [seed for seed, each in enumerate(drawn((40, 40))) if each.noise]
    image = picture()
    assert any(
        not np.array_equal(nine(image, None, seed, noise=(0, 0))[0], nine(image, None, seed)[0]) for seed in noisy
    )
    assert {each.noise[0] for each in drawn(noise=(0.1, 0.1)) if each.noise} == {0.1}


@pytest.mark.parametrize("noise", [(-0.1, 0.2), (0.3, 0.2), (0.2, 1.1), (float("nan"), 0.2)])
def test_a_range_of_noise_that_is_none_is_refused(noise: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="range of the noise"):
        nine(picture(), None, 0, noise=noise)
