"""Pixels as torchvision makes them, boxes that stay on their pixels, augmentation that knows only its seed."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from tbkd_utils.data.geometry import Geometry
from tbkd_utils.data.seeding import stable_seed, torch_seeded
from tbkd_utils.data.transforms import IMAGENET_MEAN, IMAGENET_STD, rand_augment, standardize
from tbkd_utils.errors import DataError, TbkdError, UsageError

# height, width, resize, crop: square, landscape, portrait, odd leftovers (torchvision rounds them), extreme ratios
SIZES = [
    (512, 512, 256, 224), (512, 512, 512, 512), (96, 96, 73, 64), (256, 256, 183, 160), (300, 400, 256, 224),
    (401, 299, 256, 224), (64, 97, 73, 64), (97, 64, 73, 64), (513, 1024, 256, 223), (333, 700, 31, 8),
    (700, 333, 30, 7), (1, 5, 8, 8), (5, 1, 9, 4),
]  # fmt: skip


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# ------------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("channels", [(), (3,)], ids=["gray", "rgb"])
@pytest.mark.parametrize(("height", "width", "resize", "crop"), SIZES)
def test_pixels_equal_torchvision(height, width, resize, crop, channels):
    image = noise(height, width, *channels)
    reference = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop)])
    expected = np.asarray(reference(Image.fromarray(image)))
    found = Geometry(height, width, resize, crop).pixels(image)
    assert found.dtype == np.uint8
    assert found.shape == (crop, crop, *channels)
    np.testing.assert_array_equal(found, expected)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_pixels_equal_torchvision_at_any_size(height, width, data):
    resize = data.draw(st.integers(1, 40))
    crop = data.draw(st.integers(1, resize))
    image = noise(height, width)
    reference = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop)])
    expected = np.asarray(reference(Image.fromarray(image)))
    np.testing.assert_array_equal(Geometry(height, width, resize, crop).pixels(image), expected)


def test_a_crop_of_an_image_of_its_own_size_is_the_image():
    image = noise(64, 64, 3)
    np.testing.assert_array_equal(Geometry(64, 64, 64, 64).pixels(image), image)


def test_pixels_are_made_from_mapped_files(tmp_path):
    np.save(tmp_path / "image.npy", noise(30, 30))
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    np.testing.assert_array_equal(
        Geometry(30, 30, 20, 10).pixels(mapped), Geometry(30, 30, 20, 10).pixels(noise(30, 30))
    )


@pytest.mark.parametrize(
    "image",
    [
        noise(30, 41), noise(40, 30), noise(30, 40, 4), noise(30, 40, 1), noise(30, 40, 3, 1), noise(30),
        noise(30, 40).astype(np.float32), noise(30, 40).astype(np.uint16), noise(30, 40) > 9,
    ],
    ids=lambda image: f"{image.dtype}{image.shape}",
)  # fmt: skip
def test_an_image_of_another_size_or_type_is_an_error(image):
    with pytest.raises(DataError, match=r"uint8 image of 30x40"):
        Geometry(30, 40, 20, 10).pixels(image)


@pytest.mark.parametrize("sizes", [(0, 10, 8, 8), (10, 0, 8, 8), (-1, 10, 8, 8), (10, 10, 8, 0), (10, 10, 8, 9)])
def test_sizes_that_make_no_geometry(sizes):
    with pytest.raises(DataError, match="crop <= resize"):
        Geometry(*sizes)


def test_errors_are_ones_that_the_user_can_mend():
    assert issubclass(DataError, TbkdError)
    assert issubclass(DataError, ValueError)


# -------------------------------------------------------------------------------------------------------------- boxes


def test_boxes_by_hand():
    """512 to 256 halves, and the crop of 224 takes 16 off each side."""
    geometry = Geometry(512, 512, 256, 224)
    found = geometry.boxes(np.array([[100, 200, 300, 250]], np.float32))
    np.testing.assert_array_equal(found, [[34, 84, 134, 109]])
    assert found.dtype == np.float32


def test_boxes_by_hand_of_a_wide_image():
    """400 wide, 300 high: both sides by 256/300, but the width is rounded, 341.33 to 341; (341 - 224) / 2 = 58.5."""
    geometry = Geometry(300, 400, 256, 224)
    assert geometry.resized == (256, 341)
    assert geometry.offset == (16, 58)  # half to even, as torchvision's round
    found = geometry.boxes(np.array([[200, 150, 240, 180]]))
    np.testing.assert_allclose(found, [[200 * 341 / 400 - 58, 112, 240 * 341 / 400 - 58, 137.6]], rtol=1e-6)


def test_clipped_dropped_and_kept_boxes():
    geometry = Geometry(512, 512, 256, 224)  # the crop shows 32..480 of the stored image
    boxes = np.array([
        [0, 0, 512, 512],        # all of it: clipped to the crop
        [0, 0, 32, 512],         # ends where the crop begins: dropped
        [0, 0, 33, 512],         # reaches half a pixel into it
        [480, 0, 512, 512],      # begins where the crop ends: dropped
        [100, 481, 200, 512],    # below: dropped
        [100, 400, 200, 512],    # its lower part is cut off
        [100, 100, 100, 200],    # has no width: dropped
        [32, 32, 480, 480],      # exactly the crop
    ])  # fmt: skip
    kept = [True, False, True, False, False, True, False, True]
    np.testing.assert_array_equal(geometry.keeps(boxes), kept)
    np.testing.assert_array_equal(
        geometry.boxes(boxes), [[0, 0, 224, 224], [0, 0, 0.5, 224], [34, 184, 84, 224], [0, 0, 224, 224]]
    )


def test_no_kept_box_is_empty_in_float32():
    """A sliver that float64 sees and float32 does not is dropped, so that no area is zero."""
    geometry = Geometry(512, 512, 256, 224)
    slivers = np.array([[300, 100, 300 + 1e-9, 200], [300, 100, 400, 100 + 1e-7], [480 - 1e-9, 100, 500, 200]])
    assert geometry.boxes(slivers).shape == (0, 4)
    assert not geometry.keeps(slivers).any()


@pytest.mark.parametrize("empty", [np.zeros((0, 4)), np.zeros((0, 4), np.float32)])
def test_no_boxes(empty):
    geometry = Geometry(300, 400)
    for found in (geometry.boxes(empty), geometry.invert_boxes(empty)):
        assert found.shape == (0, 4)
        assert found.dtype == np.float32
    assert geometry.keeps(empty).shape == (0,)


@pytest.mark.parametrize("boxes", [np.zeros(4), np.zeros((0,)), np.zeros((2, 5)), np.zeros((1, 2, 4)), [[1, 2, 3]]])
def test_boxes_of_another_shape_are_an_error(boxes):
    geometry = Geometry(30, 40, 20, 10)
    for method in (geometry.boxes, geometry.invert_boxes, geometry.keeps):
        with pytest.raises(DataError, match=r"shape \(k, 4\)"):
            method(boxes)


def test_boxes_are_not_changed_in_place():
    boxes = np.array([[0, 0, 512, 512]], np.float32)
    Geometry(512, 512).boxes(boxes)
    Geometry(512, 512).invert_boxes(boxes)
    np.testing.assert_array_equal(boxes, [[0, 0, 512, 512]])


@st.composite
def geometries(draw):
    height, width = draw(st.integers(16, 3000)), draw(st.integers(16, 3000))
    resize = draw(st.integers(8, 512))
    return Geometry(height, width, resize, draw(st.integers(8, resize)))


@st.composite
def boxes_inside(draw, width, height):
    """Boxes (k, 4) xyxy of at least a hundredth of each side."""
    share = st.floats(0, 1, width=32)
    k = draw(st.integers(0, 4))
    corners = np.array([[draw(share) for _ in range(4)] for _ in range(k)]).reshape(k, 4) * 0.98
    low, high = np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:]) + 0.01
    return (np.concatenate([low, high], axis=1) * [width, height, width, height]).astype(np.float32)


@settings(deadline=None)
@given(geometries(), st.data())
def test_boxes_there_and_back(geometry, data):
    boxes = data.draw(boxes_inside(geometry.crop, geometry.crop))
    stored = geometry.invert_boxes(boxes)
    np.testing.assert_allclose(geometry.boxes(stored), boxes, atol=2e-4 * geometry.crop)
    assert geometry.keeps(stored).all()
    # What the network sees lies in the stored image, up to the rounding of the resized side.
    slack = 1.0 * max(geometry.height, geometry.width) / geometry.resize
    assert (stored >= -slack).all()
    assert (stored[:, 2] <= geometry.width + slack).all()
    assert (stored[:, 3] <= geometry.height + slack).all()


@settings(deadline=None)
@given(geometries(), st.data())
def test_boxes_back_and_there(geometry, data):
    boxes = data.draw(boxes_inside(geometry.width, geometry.height))
    keeps = geometry.keeps(boxes)
    mapped = geometry.boxes(boxes)
    assert len(mapped) == keeps.sum()
    assert (mapped >= 0).all()
    assert (mapped <= geometry.crop).all()
    assert (mapped[:, 2:] > mapped[:, :2]).all()
    # The way back gives the part of each kept box that the crop shows.
    (left, top, right, bottom), slack = geometry.invert_boxes([[0, 0, geometry.crop, geometry.crop]])[0], 1e-3
    visible = np.clip(boxes[keeps], [left, top, left, top], [right, bottom, right, bottom])
    np.testing.assert_allclose(geometry.invert_boxes(mapped), visible, rtol=1e-4, atol=slack)
    # And what is dropped has no visible part.
    hidden = np.clip(boxes[~keeps], [left, top, left, top], [right, bottom, right, bottom])
    assert (np.minimum(*(hidden[:, 2:] - hidden[:, :2]).T) <= slack).all()


def iou(a, b):
    """Intersection over union of two xyxy boxes."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    inside = np.prod(np.clip(sides, 0, None))
    return inside / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inside)


@settings(deadline=None)
@given(st.integers(100, 700), st.integers(100, 700), st.integers(64, 256), st.data())
def test_a_painted_box_moves_with_the_pixels(height, width, resize, data):
    crop = data.draw(st.integers(resize * 3 // 4, resize))
    share = st.floats(0, 0.7)
    left, top = int(width * data.draw(share)), int(height * data.draw(share))
    right = min(left + max(width // 4, int(width * data.draw(share))), width)
    bottom = min(top + max(height // 4, int(height * data.draw(share))), height)
    image = np.zeros((height, width), np.uint8)
    image[top:bottom, left:right] = 255

    geometry = Geometry(height, width, resize, crop)
    boxes = geometry.boxes([[left, top, right, bottom]])
    rows, columns = np.nonzero(geometry.pixels(image) >= 128)  # half covered or more
    if len(boxes) == 0:
        assert len(rows) == 0
        return
    assume((boxes[0, 2:] - boxes[0, :2]).min() >= 4)  # a thinner rim cannot be measured by whole pixels
    painted = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)
    np.testing.assert_allclose(boxes[0], painted, atol=1)
    sides = boxes[0, 2:] - boxes[0, :2]
    assert iou(boxes[0], painted) >= np.prod((sides - 1) / sides)  # half a pixel at each edge


# ------------------------------------------------------------------------------------------------------- normalization


def torchvision_input(image):
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])(
        Image.fromarray(image)
    )


def test_normalize_equals_torchvision():
    images = noise(3, 9, 7, 3)
    expected = torch.stack([torchvision_input(image) for image in images])
    found = standardize(torch.from_numpy(images))
    assert found.dtype == torch.float32
    assert found.shape == (3, 3, 9, 7)
    assert torch.equal(found, expected)


def test_a_gray_image_stands_in_all_three_channels():
    images = noise(3, 9, 7)
    expected = torch.stack([torchvision_input(np.stack([image] * 3, axis=-1)) for image in images])
    assert torch.equal(standardize(torch.from_numpy(images)), expected)


def test_normalize_by_hand():
    found = standardize(torch.tensor([[[0, 255]]], dtype=torch.uint8))
    expected = [[[-0.485 / 0.229, 0.515 / 0.229]], [[-0.456 / 0.224, 0.544 / 0.224]], [[-0.406 / 0.225, 0.594 / 0.225]]]
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_normalize_of_no_image():
    assert standardize(torch.zeros(0, 8, 8, dtype=torch.uint8)).shape == (0, 3, 8, 8)


# --------------------------------------------------------------------------------------------------------------- seeds


def test_stable_seeds_are_pinned():
    """Another value would change every run."""
    assert stable_seed(0) == 4761921975702974394
    assert stable_seed("augment", 0, 0, "tb/tb0001.png") == 8071176367525543911
    assert stable_seed("order", 42, 7) == 8467296265634287797


def test_stable_seeds_differ_and_fit_into_63_bits():
    seeds = {stable_seed(kind, seed, epoch) for kind in ("a", "b") for seed in range(30) for epoch in range(30)}
    assert len(seeds) == 2 * 30 * 30
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stable_seed(1, 23) != stable_seed(12, 3)


def test_torch_seeded_gives_the_generator_back():
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    with torch_seeded(1):
        first = torch.rand(2)
    with pytest.raises(RuntimeError), torch_seeded(2):
        torch.rand(100).reshape(3, 5)  # after an error too
    assert torch.equal(torch.rand(4), expected)
    with torch_seeded(1):
        assert torch.equal(torch.rand(2), first)


# -------------------------------------------------------------------------------------------------------- augmentation

IMAGE = np.clip(noise(40, 40, seed=1) * 0.4 + np.add.outer(np.arange(40), 2 * np.arange(40)), 0, 255).astype(np.uint8)


def augment(image, operations, magnitude, seed):
    found, mask = rand_augment(image, None, seed, operations=operations, magnitude=magnitude)
    assert mask is None
    return found


def test_a_mask_is_refused_unless_nothing_moves():
    mask = np.ones(IMAGE.shape, np.uint8)
    with pytest.raises(UsageError, match="not their masks"):
        rand_augment(IMAGE, mask, 0, operations=2, magnitude=9)
    assert rand_augment(IMAGE, mask, 0, operations=0, magnitude=9)[1] is mask


def test_augment_equals_torchvision():
    for seed in range(60):
        for operations, magnitude in ((2, 9), (1, 30), (3, 0)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                expected = transforms.RandAugment(operations, magnitude)(Image.fromarray(IMAGE))
            np.testing.assert_array_equal(augment(IMAGE, operations, magnitude, seed), np.asarray(expected))


@pytest.mark.parametrize("shape", [(40, 40), (40, 40, 3), (30, 50), (1, 1)])
def test_augment_keeps_shape_and_type(shape):
    for seed in range(20):
        found = augment(noise(*shape), 2, 9, seed)
        assert found.shape == shape
        assert found.dtype == np.uint8


def test_augment_depends_on_its_seed_alone():
    seeds = list(range(40))
    torch.manual_seed(0)
    expected = [augment(IMAGE, 2, 9, seed) for seed in seeds]
    assert len({image.tobytes() for image in expected}) > 25  # the seed does something
    torch.manual_seed(999)
    for seed in reversed(seeds):  # another order, another global state
        torch.rand(3)
        np.testing.assert_array_equal(augment(IMAGE, 2, 9, seed), expected[seed])


def test_augment_leaves_every_generator_as_it_was():
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the global one is meant
    for seed in range(10):
        augment(IMAGE, 2, 9, seed)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_augment_leaves_the_image_as_it_was():
    image = IMAGE.copy()
    for seed in range(30):
        augment(image, 3, 30, seed)
    np.testing.assert_array_equal(image, IMAGE)


def test_augment_takes_the_largest_seed():
    assert augment(IMAGE, 2, 9, 2**63 - 1).shape == IMAGE.shape


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_no_operation_is_the_identity(magnitude):
    np.testing.assert_array_equal(augment(IMAGE, 0, magnitude, 3), IMAGE)


@pytest.mark.parametrize("magnitude", [0, 1, 9, 20, 30])
def test_a_gray_image_is_augmented_like_its_three_equal_channels(magnitude):
    """One channel is a third of the work and the same picture, for every operation of RandAugment."""
    for seed in range(400):
        gray = augment(IMAGE, 2, magnitude, seed)
        color = augment(np.stack([IMAGE] * 3, axis=-1), 2, magnitude, seed)
        np.testing.assert_array_equal(color, np.stack([gray] * 3, axis=-1), err_msg=f"seed {seed}")


def test_those_seeds_meet_every_operation(monkeypatch):
    """So that the comparison of gray and color leaves no operation out."""
    met = set()
    inner = transforms.autoaugment._apply_op

    def noting(image, name, *rest, **options):
        met.add(name)
        return inner(image, name, *rest, **options)

    monkeypatch.setattr(transforms.autoaugment, "_apply_op", noting)
    for seed in range(400):
        augment(IMAGE, 2, 9, seed)
    assert met == set(transforms.RandAugment()._augmentation_space(31, IMAGE.shape))


# --------------------------------------------------------------------------------------------------------------- squash

SQUASHED = [
    (300, 400, 256, 256), (400, 300, 256, 224), (64, 97, 73, 64), (1, 5, 8, 8), (513, 1024, 31, 8), (90, 90, 40, 33)
]  # fmt: skip


@pytest.mark.parametrize("channels", [(), (3,)], ids=["gray", "rgb"])
@pytest.mark.parametrize(("height", "width", "resize", "crop"), SQUASHED)
def test_squashed_pixels_are_pils_antialiased_resize_to_a_square(
    height: int, width: int, resize: int, crop: int, channels: tuple[int, ...]
) -> None:
    image = noise(height, width, *channels)
    found = Geometry(height, width, resize, crop, "squash").pixels(image)
    assert (found.dtype, found.shape) == (np.uint8, (crop, crop, *channels))
    both_sides = transforms.Compose([transforms.Resize((resize, resize)), transforms.CenterCrop(crop)])
    np.testing.assert_array_equal(found, np.asarray(both_sides(Image.fromarray(image))))
    if crop == resize:
        pil = Image.fromarray(image).resize((resize, resize), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found, np.asarray(pil))


def test_squashing_averages_what_a_resize_without_antialias_would_skip() -> None:
    """Fine stripes become gray; a resize that looks at two pixels alone would keep some of them."""
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 128))  # (64, 256)
    found = Geometry(64, 256, 32, 32, "squash").pixels(stripes)[:, 2:-2].astype(int)
    assert np.abs(found - 127.5).max() <= 2


def test_squashed_boxes_are_scaled_per_axis() -> None:
    """400 wide, 300 high, to 200 x 200: half in x, two thirds in y; a crop of 100 takes 50 off each side."""
    boxes = np.array([[100, 60, 300, 240]], np.float32)
    whole, cropped = Geometry(300, 400, 200, 200, "squash"), Geometry(300, 400, 200, 100, "squash")
    assert (whole.resized, whole.offset, cropped.offset) == ((200, 200), (0, 0), (50, 50))
    np.testing.assert_allclose(whole.boxes(boxes), [[50, 40, 150, 160]], rtol=1e-6)
    np.testing.assert_allclose(cropped.boxes(boxes), [[0, 0, 100, 100]], atol=1e-4)
    assert whole.boxes(boxes).dtype == np.float32
    np.testing.assert_allclose(whole.invert_boxes(whole.boxes(boxes)), boxes, rtol=1e-6)
    assert whole.boxes([[0, 0, 400, 300]]).tolist() == [[0, 0, 200, 200]]  # nothing is cropped away


@settings(deadline=None)
@given(st.integers(16, 3000), st.integers(16, 3000), st.integers(8, 512), st.data())
def test_squashed_boxes_there_and_back(height: int, width: int, resize: int, data: st.DataObject) -> None:
    geometry = Geometry(height, width, resize, resize, "squash")
    boxes = data.draw(boxes_inside(width, height))
    mapped = geometry.boxes(boxes)
    assert geometry.keeps(boxes).all()  # without a crop no box is lost
    assert (mapped <= resize).all()
    np.testing.assert_allclose(geometry.invert_boxes(mapped), boxes, rtol=1e-5, atol=1e-5 * max(height, width))


def test_a_painted_box_is_squashed_with_the_pixels() -> None:
    image = np.zeros((90, 200), np.uint8)
    image[30:75, 20:60] = 255
    geometry = Geometry(90, 200, 64, 64, "squash")
    rows, columns = np.nonzero(geometry.pixels(image) >= 128)
    painted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(geometry.boxes([[20, 30, 60, 75]])[0], painted, atol=1)


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 3)])
def test_squashing_a_square_of_the_crops_size_is_the_identity(shape: tuple[int, ...]) -> None:
    image, geometry = noise(*shape), Geometry(64, 64, 64, 64, "squash")
    np.testing.assert_array_equal(geometry.pixels(image), image)
    boxes = np.array([[3, 5, 20.5, 64]], np.float32)
    np.testing.assert_array_equal(geometry.boxes(boxes), boxes)
    np.testing.assert_array_equal(geometry.invert_boxes(boxes), boxes)
    mask = noise(64, 64) > 99
    np.testing.assert_array_equal(geometry.mask(mask), mask)


@pytest.mark.parametrize(("side", "resize", "crop"), [(96, 73, 64), (100, 50, 50)])
def test_a_square_image_is_squashed_as_it_is_resized(side: int, resize: int, crop: int) -> None:
    image = noise(side, side)
    kept, squashed = (Geometry(side, side, resize, crop, aspect) for aspect in ("keep", "squash"))
    np.testing.assert_array_equal(squashed.pixels(image), kept.pixels(image))


def test_a_mask_is_squashed_with_its_image() -> None:
    mask = np.zeros((40, 80), bool)
    mask[:20, 40:] = True
    found = Geometry(40, 80, 20, 20, "squash").mask(mask)
    expected = np.zeros((20, 20), np.uint8)
    expected[:10, 10:] = 1
    np.testing.assert_array_equal(found, expected)
