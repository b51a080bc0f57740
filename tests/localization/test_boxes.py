"""Algorithm 1 on hand-made maps, and against connected components labeled by scipy."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from tbkd_utils.errors import TbkdError, UsageError
from tbkd_utils.localization.boxes import (
    boxes_at_thresholds,
    boxes_from_heatmap,
    boxes_from_json,
    boxes_to_json,
    check_boxes,
    largest_box,
    minimum_area,
    normalize,
)

masks = hnp.arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))
maps32 = hnp.arrays(np.float32, (2, 5, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32))


def painted(*rectangles, shape=(100, 120)):
    """A map that is 1 in the given xyxy rectangles and 0 elsewhere."""
    heat = np.zeros(shape, np.float32)
    for left, top, right, bottom in rectangles:
        heat[top:bottom, left:right] = 1
    return heat


def labeled_boxes(mask):
    """Outer boxes by filling holes (4-connected background) and labeling 8-connected regions."""
    regions, _ = ndimage.label(ndimage.binary_fill_holes(mask), structure=np.ones((3, 3)))
    return sorted((x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(regions))


@given(masks)
@settings(max_examples=200, deadline=None)
def test_boxes_are_the_labeled_regions(mask):
    boxes = boxes_from_heatmap(mask.astype(np.float32), 0.5, 0)
    expected = [] if mask.all() else labeled_boxes(mask)  # a constant map points nowhere
    assert sorted(map(tuple, boxes.tolist())) == expected
    assert boxes.dtype == np.float32
    assert boxes.shape == (len(expected), 4)


@pytest.mark.parametrize("density", [0.1, 0.4, 0.6, 0.9])
def test_boxes_are_the_labeled_regions_of_large_masks(density):
    rng = np.random.default_rng(int(100 * density))
    for _ in range(10):
        mask = rng.random((64, 80)) < density
        found = boxes_from_heatmap(mask.astype(float), 0.5, 0)
        assert sorted(map(tuple, found.tolist())) == labeled_boxes(mask)
        areas = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
        order = list(zip(-areas, found[:, 1], found[:, 0], strict=True))
        assert order == sorted(order)


def test_opencv_and_rectangle_area_of_a_61_by_51_rectangle():
    heat = painted((20, 30, 81, 81))
    for area, size in (("rectangle", 3111), ("contour", 3000)):
        assert boxes_from_heatmap(heat, 0.5, size - 0.5, area=area).tolist() == [[20, 30, 81, 81]]
        assert len(boxes_from_heatmap(heat, 0.5, size, area=area)) == 0  # strictly larger


def test_regions_at_the_border_and_single_pixels():
    heat = painted((0, 0, 3, 2), (119, 99, 120, 100))
    assert boxes_from_heatmap(heat, 0.5, 0).tolist() == [[0, 0, 3, 2], [119, 99, 120, 100]]
    assert boxes_from_heatmap(heat, 0.5, 0, area="contour").tolist() == [[0, 0, 3, 2]]  # a pixel has no polygon


def test_diagonal_pixels_join_and_a_region_in_a_hole_is_not_reported():
    assert boxes_from_heatmap(np.eye(6), 0.5, 0).tolist() == [[0, 0, 6, 6]]
    ring = painted((10, 10, 50, 50)) - painted((15, 15, 45, 45)) + painted((25, 25, 30, 30))
    assert boxes_from_heatmap(ring, 0.5, 0).tolist() == [[10, 10, 50, 50]]


def test_order_is_area_then_top_then_left():
    heat = painted((50, 10, 55, 15), (5, 10, 10, 15), (80, 5, 85, 10), (10, 60, 40, 90))
    found = boxes_from_heatmap(heat, 0.5, 0).tolist()
    assert found == [[10, 60, 40, 90], [80, 5, 85, 10], [5, 10, 10, 15], [50, 10, 55, 15]]


def test_threshold_is_inclusive_and_compared_in_float32():
    heat = np.array([[0, 0, 0.7, 0, 1.0]], np.float32)
    assert len(boxes_from_heatmap(heat, np.float64(0.7), 0)) == 2
    assert len(boxes_from_heatmap(heat, 0.7001, 0)) == 1
    assert boxes_from_heatmap(heat, 1, 0).tolist() == [[4, 0, 5, 1]]
    assert boxes_from_heatmap(heat, 0, 0).tolist() == [[0, 0, 5, 1]]


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0, 1e-30])
@pytest.mark.parametrize("threshold", [0, 0.5, 1])
def test_a_constant_map_gives_no_box(value, threshold):
    for method in ("minmax", "max") if value >= 0 else ("minmax",):
        found = boxes_from_heatmap(np.full((9, 7), value), threshold, 0, method=method)
        assert found.shape == (0, 4)
        assert found.dtype == np.float32


@given(hnp.arrays(np.float32, (6, 7), elements=st.floats(0, 1, width=32)), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_boxes_of_a_normalized_map_are_the_same(heat, threshold):
    assert np.array_equal(boxes_from_heatmap(heat, threshold, 0), boxes_from_heatmap(normalize(heat), threshold, 0))


@given(maps32)
@settings(max_examples=60, deadline=None)
def test_normalize_per_image_into_unit_range_and_once_is_enough(maps):
    found = normalize(maps)
    assert found.dtype == np.float32
    assert found.shape == maps.shape
    for one, raw in zip(found, maps, strict=True):
        assert (one.min(), one.max()) == ((0, 0) if np.ptp(raw) == 0 else (0, 1))
        order = np.argsort(raw, axis=None)
        assert (np.diff(one.ravel()[order]) >= 0).all()
        assert np.array_equal(normalize(raw), one)
    assert np.array_equal(normalize(found), found)
    positive = normalize(np.abs(maps), method="max")
    assert ((positive >= 0) & (positive <= 1)).all()
    assert np.array_equal(normalize(positive, method="max"), positive)


def test_normalize_by_hand():
    heat = np.array([[2, 4], [6, 10]])
    assert normalize(heat).tolist() == [[0, 0.25], [0.5, 1]]
    assert normalize(heat, method="max") == pytest.approx(heat / 10)
    assert normalize(np.full((2, 3), 7.0), method="max").tolist() == np.zeros((2, 3)).tolist()
    assert normalize(np.zeros((0, 3, 3))).shape == (0, 3, 3)
    extreme = np.array([[-3e38, 0, 3e38]], np.float32)  # its range overflows float32
    assert normalize(extreme).tolist() == [[0, 0.5, 1]]
    assert normalize(np.array([[0, 1e-45]], np.float32)).tolist() == [[0, 1]]


def test_the_caller_keeps_his_map():
    heat = np.random.default_rng(0).random((8, 8))
    before = heat.copy()
    boxes_from_heatmap(heat, 0.5, 0)
    boxes_from_heatmap(heat.T[::2], 0.5, 0)  # not contiguous
    assert np.array_equal(heat, before)


def test_many_thresholds_equal_one_at_a_time():
    small = np.random.default_rng(0).random((5, 7, 7)).astype(np.float32)
    maps = np.stack([cv2.resize(one, (56, 56)) for one in small])
    levels = np.linspace(0, 1, 9)
    for t, found in zip(levels, boxes_at_thresholds(maps[0], levels, 5, area="contour"), strict=True):
        assert np.array_equal(found, boxes_from_heatmap(maps[0], t, 5, area="contour"))


@given(masks, st.integers(0, 30), st.integers(0, 30))
@settings(max_examples=50, deadline=None)
def test_a_larger_minimum_area_only_drops_boxes(mask, low, more):
    few = boxes_from_heatmap(mask.astype(float), 0.5, low + more).tolist()
    assert few == [b for b in boxes_from_heatmap(mask.astype(float), 0.5, low).tolist() if b in few]
    assert all((b[2] - b[0]) * (b[3] - b[1]) > low + more for b in few)


def test_minimum_area():
    areas = [100, 6, 20]
    assert minimum_area(areas) == 6
    assert minimum_area(np.array(areas), 1) == 100
    assert minimum_area(areas, 0.5) == 20
    kept = boxes_from_heatmap(painted((5, 5, 7, 8), (50, 50, 52, 54)), 0.5, minimum_area(areas))
    assert kept.tolist() == [[50, 50, 52, 54]]


@pytest.mark.parametrize("boxes", [[], [[]], np.zeros((0, 4)), [[0.1, 1 / 3, 2.5, 1e3], [0, 0, 0, 0]]])
def test_json_there_and_back(boxes):
    text = boxes_to_json(boxes)
    found = boxes_from_json(text)
    assert np.array_equal(found, check_boxes(boxes))
    assert json.loads(text) == found.tolist()
    assert found.shape[1:] == (4,)


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        ([0, 0, 1, 1], "shape"),
        ([[0, 0, 1]], "shape"),
        (np.zeros((0, 4, 1)), "shape"),
        ([[0, 0, 1, 1], [0, 0, np.nan, 1]], "box 1 is"),
        ([[0, 0, np.inf, 1]], "finite"),
        ([[0, 0, 1, 1], [5, 0, 4, 1]], "box 1 is .*width and height"),
        ([[0, 5, 4, 1]], "bottom >= top"),
    ],
)
def test_boxes_that_are_refused(boxes, says):
    with pytest.raises(UsageError, match=says):
        check_boxes(boxes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_maps_that_are_refused_for_their_values(bad):
    maps = np.random.default_rng(0).random((3, 4, 4))
    maps[1, 2, 2] = bad
    with pytest.raises(UsageError, match="heatmap 1 holds nan or infinity"):
        normalize(maps)
    with pytest.raises(UsageError, match="nan or infinity"):
        boxes_from_heatmap(maps[1], 0.5, 0)


def test_other_refusals():
    heat = painted((1, 1, 5, 5))
    for shape in ((4,), (0, 3), (2, 3, 0), (1, 1, 1, 1)):
        with pytest.raises(UsageError, match="shape"):
            normalize(np.ones(shape))
    with pytest.raises(UsageError, match="shape"):
        boxes_from_heatmap(heat[None], 0.5, 0)
    with pytest.raises(UsageError, match="negative"):
        normalize([[-1.0, 1.0]], method="max")
    with pytest.raises(UsageError, match="float64"):
        normalize([[-1.7e308, 1.7e308]])
    with pytest.raises(UsageError, match="method"):
        normalize(heat, method="mean")
    for threshold in (-0.1, 1.1, np.nan):
        with pytest.raises(UsageError, match="threshold"):
            boxes_from_heatmap(heat, threshold, 0)
    for min_area in (-1, np.nan, np.inf):
        with pytest.raises(UsageError, match="min_area"):
            boxes_from_heatmap(heat, 0.5, min_area)
    with pytest.raises(UsageError, match="area must be"):
        boxes_from_heatmap(heat, 0.5, 0, area="pixels")
    for areas in ([], np.zeros(0), np.zeros((0, 4))):
        with pytest.raises(UsageError, match="no training box"):
            minimum_area(areas)
    for areas in ([np.nan], [1, np.inf], [-1.0]):
        with pytest.raises(UsageError, match="finite and not negative"):
            minimum_area(areas)
    for quantile in (-0.1, 1.1, np.nan):
        with pytest.raises(UsageError, match="quantile"):
            minimum_area([1.0], quantile)
    for text in ("", "none", "[[1, 2]]", '{"a": 1}', "3"):
        with pytest.raises(UsageError):
            boxes_from_json(text)
    assert issubclass(UsageError, TbkdError)
    assert issubclass(UsageError, ValueError)


def hot(*cells):
    heat = np.zeros((8, 8), np.float32)
    for row, column in cells:
        heat[row, column] = 1
    return heat


@pytest.mark.parametrize(
    ("cells", "box"),
    [([(3, 4)], [139, 107, 149, 117]), ([(3, 4), (3, 5), (4, 4)], [139, 107, 181, 149])],
)
def test_a_foreground_box_can_be_no_finer_than_a_cell_allows(cells, box):
    assert cv2.resize(hot((3, 4)), (256, 256)).max() == pytest.approx(0.968994, abs=1e-6)
    assert largest_box(hot(*cells), (256, 256), 0.83).tolist() == [box]


@pytest.mark.parametrize("cells", [2, 3, 4])
def test_a_plateau_of_k_cells_is_32_k_minus_22_pixels_wide(cells):
    (box,) = largest_box(hot(*((3, 1 + place) for place in range(cells))), (256, 256), 0.83)
    assert box[2] - box[0] == 32 * (cells - 1) + 10


def test_the_larger_of_two_regions_is_boxed_and_nothing_bright_is_the_whole_image():
    heat = hot((1, 1), (5, 5), (5, 6), (1, 2), (6, 5))
    (box,) = largest_box(heat, (256, 256), 0.83)
    assert box[0] > 128
    assert largest_box(heat, (120, 240), 1.0).tolist() == [[0, 0, 240, 120]]  # above, not at it
    assert largest_box(np.full((8, 8), 3.0), (120, 240), 0.5).tolist() == [[0, 0, 240, 120]]


@pytest.mark.parametrize(("heat", "threshold"), [(np.zeros((2, 8, 8)), 0.5), (np.zeros((8, 8)), 1.5)])
def test_a_foreground_box_of_something_else_is_refused(heat, threshold):
    with pytest.raises(UsageError):
        largest_box(heat, (64, 64), threshold)
