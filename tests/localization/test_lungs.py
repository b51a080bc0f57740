"""Lungs found without annotation: measured on drawn chests, whose lungs are known."""

from dataclasses import fields, replace

import cv2
import numpy as np
import pytest

from tbkd_utils.data.synthetic.chest import Patient, draw_chest, expose
from tbkd_utils.errors import UsageError
from tbkd_utils.localization.lungs import Lungs, MeanChest, find_lungs, lungs_of, mean_chest

SIZE = 256
Chest = tuple[np.ndarray, np.ndarray]  # uint8 image, bool lungs


def drawn(index: int, size: int = SIZE) -> Chest:
    rng = np.random.default_rng([7, index])
    patient = Patient.draw(rng)
    chest = draw_chest(patient, rng, size)
    return expose(chest.attenuation, patient, rng), chest.lungs > 0.5


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def box_of(mask: np.ndarray) -> list[int]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def share_in(mask: np.ndarray, box) -> float:
    """How much of a box a mask covers."""
    left, top, right, bottom = (int(edge) for edge in box)
    return float(mask[top:bottom, left:right].mean())


def moved(chest: Chest, scale: float, degrees: float, right: float, down: float) -> Chest:
    matrix = cv2.getRotationMatrix2D(((SIZE - 1) / 2, (SIZE - 1) / 2), degrees, scale)
    matrix[:, 2] += (right, down)
    image = cv2.warpAffine(chest[0], matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)
    return image, cv2.warpAffine(chest[1].astype(np.uint8), matrix, (SIZE, SIZE)) > 0


def same(first: object, second: object) -> bool:
    """Whether all fields of two results are equal."""
    return all(np.array_equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))


@pytest.fixture(scope="module")
def mean() -> MeanChest:
    return mean_chest([drawn(index)[0] for index in range(60)], rounds=2)


@pytest.fixture(scope="module")
def others() -> list[Chest]:
    """Chests that are not in the mean."""
    return [drawn(index) for index in range(60, 90)]


# --- the mean ---


def test_the_mean_has_two_lungs_left_one_first(mean: MeanChest) -> None:
    assert mean.mean.shape == (SIZE, SIZE)
    assert mean.mean.dtype == mean.coarse.dtype == mean.fine.dtype == np.float32
    assert 0 <= mean.mean.min() < mean.mean.max() <= 255
    assert np.array_equal(mean.coarse, mean.coarse[:, ::-1])
    left, right = mean.lungs
    assert box_of(left)[2] <= box_of(right)[0]
    for lung in mean.lungs:
        assert 0.05 < lung.mean() < 0.25
        assert cv2.connectedComponents(lung.astype(np.uint8))[0] == 2
        assert mean.mean[lung].mean() < mean.mean[~mean.lungs.any(axis=0)].mean()


def test_the_same_mean_twice_and_from_disk(tmp_path) -> None:
    images = [drawn(index)[0] for index in range(8)]
    first = mean_chest(images, rounds=2)
    assert same(first, mean_chest(images, rounds=2))
    np.savez(tmp_path / "mean.npz", **vars(first))
    assert same(first, MeanChest(**np.load(tmp_path / "mean.npz")))


def test_images_of_several_sizes_have_a_mean() -> None:
    images = [drawn(index, 128 + 32 * (index % 3))[0] for index in range(6)]
    assert mean_chest(images, rounds=1).lungs.any(axis=(1, 2)).all()


@pytest.mark.parametrize(
    ("images", "rounds", "message"),
    [
        ([], 4, "at least 2 images"),
        ([np.zeros((64, 64), np.uint8)], 4, "at least 2 images"),
        ([np.zeros((64, 64), np.uint8)] * 2, 0, "1 round"),
        ([np.zeros((64, 64), np.uint8)] * 2, 1, "none of 2 images aligns"),
        ([np.zeros((64, 64))] * 2, 1, "uint8"),
    ],
)
def test_a_mean_that_cannot_be_built(images, rounds: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mean_chest(images, rounds=rounds)


def test_a_mean_without_two_dark_regions() -> None:
    ramp = np.tile(np.arange(SIZE, dtype=np.uint8), (SIZE, 1))
    disk = cv2.circle(ramp.copy(), (128, 128), 60, 255, -1)
    with pytest.raises(UsageError, match="two dark regions"):
        mean_chest([disk, disk], rounds=1)


# --- the lungs ---


def test_lungs_of_chests_outside_the_mean(mean: MeanChest, others: list[Chest]) -> None:
    found = [find_lungs(image, mean) for image, _ in others]
    scores = [dice(lungs.mask, truth) for lungs, (_, truth) in zip(found, others, strict=True)]
    assert np.median(scores) > 0.945  # measured: 0.954
    assert min(scores) > 0.935  # measured: 0.949
    assert not any(lungs.fallback for lungs in found)
    assert all(0.5 < lungs.confidence <= 1 for lungs in found)


def test_boxes_are_those_of_the_mask(mean: MeanChest, others: list[Chest]) -> None:
    for image, _ in others[:5]:
        lungs = find_lungs(image, mean)
        count, labels = cv2.connectedComponents(lungs.mask.astype(np.uint8))
        assert count == 3
        assert lungs.boxes.tolist() == sorted(box_of(labels == part) for part in (1, 2))
        assert lungs.boxes.dtype == lungs.upper.dtype == np.float32


def test_the_upper_half_of_a_lung_is_as_wide_as_the_lung_is_there() -> None:
    """Triangles of 10 rows, point up, one column wider on each side with every row; and a block of 5 rows."""
    rows, columns = np.indices((20, 40))
    triangle = (rows >= 4) & (rows < 14) & (np.abs(columns - 28) <= rows - 4)
    block = (rows >= 2) & (rows < 7) & (columns >= 3) & (columns < 9)
    lungs = lungs_of([triangle, block], 0.5)
    assert lungs.boxes.tolist() == [[3, 2, 9, 7], [19, 4, 38, 14]]
    assert lungs.upper.tolist() == [[3, 2, 9, 5], [24, 4, 33, 9]]  # of 5 rows, 3
    assert (lungs.confidence, lungs.fallback) == (0.5, False)
    assert np.array_equal(lungs.mask, triangle | block)


def test_upper_halves_hold_more_lung_than_the_upper_halves_of_boxes(mean: MeanChest, others: list[Chest]) -> None:
    for image, truth in others[:10]:
        lungs = find_lungs(image, mean)
        assert (lungs.upper[:, :2] >= lungs.boxes[:, :2]).all()
        assert (lungs.upper[:, 2:] <= lungs.boxes[:, 2:]).all()
        assert (lungs.upper[:, 1] == lungs.boxes[:, 1]).all()
        for upper, box in zip(lungs.upper, lungs.boxes, strict=True):
            half = [box[0], box[1], box[2], upper[3]]
            assert share_in(truth, upper) > share_in(truth, half)


@pytest.mark.parametrize(
    "change", [(1, 0, 20, 0), (1, 0, 0, -20), (0.8, 0, 0, 0), (1.15, 0, 0, 0), (0.85, 15, 12, -10)]
)
def test_a_moved_chest_is_found_where_it_went(mean: MeanChest, others: list[Chest], change) -> None:
    for chest in others[:6]:
        image, truth = moved(chest, *change)
        lungs = find_lungs(image, mean)
        assert not lungs.fallback
        assert dice(lungs.mask, truth) > 0.93


def no_chests() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (SIZE, SIZE)).astype(np.uint8)
    clouds = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 9), None, 0, 255, cv2.NORM_MINMAX)
    chest = drawn(60)[0]
    return {
        "noise": noise,
        "clouds": clouds,
        "black": np.zeros((SIZE, SIZE), np.uint8),
        "gray": np.full((SIZE, SIZE), 128, np.uint8),
        "ramp": np.tile(np.arange(SIZE, dtype=np.uint8), (SIZE, 1)),
        "upside-down": chest[::-1].copy(),
        "lying": chest.T.copy(),
        "negative": 255 - chest,
    }


@pytest.mark.parametrize("name", no_chests())
def test_what_is_no_chest_falls_back_to_the_mean(mean: MeanChest, name: str) -> None:
    lungs = find_lungs(no_chests()[name], mean)
    assert lungs.fallback
    assert lungs.confidence == 0
    assert lungs.mask.any()
    assert np.isfinite(lungs.boxes).all()
    assert (lungs.boxes[:, 2:] > lungs.boxes[:, :2]).all()


def test_a_mean_whose_lungs_are_implausible_is_not_carried(mean: MeanChest, others: list[Chest]) -> None:
    tiny = np.zeros_like(mean.lungs)
    tiny[:, 100:110, 60:70] = True
    assert find_lungs(others[0][0], replace(mean, lungs=tiny)).fallback


def test_the_same_lungs_twice_and_the_image_unchanged(mean: MeanChest, others: list[Chest]) -> None:
    image = others[0][0]
    before = image.copy()
    image.setflags(write=False)
    first: Lungs = find_lungs(image, mean)
    assert same(first, find_lungs(image, mean))
    assert np.array_equal(image, before)


@pytest.mark.parametrize("shape", [(200, 300), (512, 384)])
def test_an_image_that_is_not_square(mean: MeanChest, others: list[Chest], shape: tuple[int, int]) -> None:
    image, truth = (cv2.resize(part.astype(np.uint8), shape[::-1]) for part in others[1])
    lungs = find_lungs(image, mean)
    assert lungs.mask.shape == shape
    assert not lungs.fallback
    assert dice(lungs.mask, truth > 0) > 0.93


def test_black_bars_are_left_out(mean: MeanChest, others: list[Chest]) -> None:
    image, truth = (np.pad(part, ((0, 150), (60, 0))) for part in others[2])
    lungs = find_lungs(image, mean)
    assert not lungs.fallback
    assert dice(lungs.mask, truth) > 0.93


@pytest.mark.parametrize(
    "image", [np.zeros((64, 64)), np.zeros((64, 64, 3), np.uint8), np.zeros((8, 64), np.uint8), [[0] * 64] * 64]
)
def test_what_is_no_radiograph_is_refused(mean: MeanChest, image) -> None:
    with pytest.raises(UsageError, match="a radiograph must"):
        find_lungs(image, mean)
