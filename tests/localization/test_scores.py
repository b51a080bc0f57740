"""Localization scores on hand-made cases, against loops over pixels and permutations, and by their properties."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_maps import painted

from tbkd_utils.errors import TbkdError, UsageError
from tbkd_utils.localization.scores import energy_inside, image_score, iou_matrix, matched_score, mean_iou, pointing_hit


@st.composite
def boxes(draw, least=0, most=4, limit=20):
    corners = st.tuples(*[st.integers(0, limit)] * 4)
    found = [
        (min(a, c), min(b, d), max(a, c), max(b, d))
        for a, b, c, d in draw(st.lists(corners, min_size=least, max_size=most))
    ]
    return np.array(found, np.float32).reshape(-1, 4)


def pixel_iou(a, b, size=20):
    """IoU of two boxes with whole-pixel edges, by painting them."""
    painted = []
    for left, top, right, bottom in (a.astype(int), b.astype(int)):
        canvas = np.zeros((size, size), bool)
        canvas[top:bottom, left:right] = True
        painted.append(canvas)
    union = (painted[0] | painted[1]).sum()
    return (painted[0] & painted[1]).sum() / union if union else 0.0


@given(boxes(), boxes())
@settings(max_examples=100, deadline=None)
def test_iou_against_painting_with_bounds_and_symmetry(a, b):
    found = iou_matrix(a, b)
    assert found.shape == (len(a), len(b))
    assert found.dtype == np.float64
    assert ((found >= 0) & (found <= 1)).all()
    assert np.array_equal(found, iou_matrix(b, a).T)
    for i, j in itertools.product(range(len(a)), range(len(b))):
        assert found[i, j] == pytest.approx(pixel_iou(a[i], b[j]))


@given(boxes(least=1), boxes(), st.integers(-50, 50), st.integers(-50, 50), st.sampled_from([0.25, 2, 3.7]))
@settings(max_examples=60, deadline=None)
def test_scores_do_not_change_when_all_boxes_move_or_grow(gt, pred, dx, dy, scale):
    moved = [(b + np.array([dx, dy, dx, dy])) * scale for b in (gt, pred)]
    assert iou_matrix(*moved) == pytest.approx(iou_matrix(gt, pred), abs=1e-5)
    assert image_score(*moved) == pytest.approx(image_score(gt, pred), abs=1e-5)
    assert matched_score(*moved) == pytest.approx(matched_score(gt, pred), abs=1e-5)


@given(st.lists(st.floats(0, 1e6, width=32), min_size=8, max_size=8))
@settings(max_examples=60, deadline=None)
def test_iou_of_any_two_float_boxes_is_bounded(numbers):
    a, b = np.sort(np.reshape(numbers, (2, 2, 2)).astype(np.float32), axis=1).reshape(2, 1, 4)
    assert 0 <= iou_matrix(a, b)[0, 0] <= 1
    assert iou_matrix(a, a)[0, 0] == (1.0 if np.prod(a[0, 2:].astype(float) - a[0, :2]) > 0 else 0.0)


def test_iou_by_hand():
    a, b = [[0, 0, 10, 10]], [[5, 0, 15, 10], [10, 0, 20, 10], [0, 0, 10, 10], [2, 2, 2, 8]]
    assert iou_matrix(a, b)[0] == pytest.approx([1 / 3, 0, 1, 0])  # touching edges share nothing
    assert iou_matrix(a, []).shape == (1, 0)


@given(boxes(least=1), boxes())
@settings(max_examples=100, deadline=None)
def test_image_score_is_algorithms_2_and_3_written_out(gt, pred):
    iou_list = []
    for gt_item in gt:
        for pred_item in pred:
            iou_list.append(pixel_iou(pred_item, gt_item))
    iou_list.sort(reverse=True)
    kept = iou_list[: len(gt)]
    assert image_score(gt, pred) == pytest.approx(sum(kept) / len(kept) if kept else 0.0)


@given(boxes(least=1), boxes())
@settings(max_examples=60, deadline=None)
def test_matched_score_is_the_best_of_all_assignments(gt, pred):
    iou = iou_matrix(gt, pred)
    rows = iou if len(gt) <= len(pred) else iou.T
    picks = itertools.permutations(range(rows.shape[1]), len(rows))
    best = max((sum(rows[i, j] for i, j in enumerate(pick)) for pick in picks), default=0.0)
    assert matched_score(gt, pred) == pytest.approx(best / max(len(gt), len(pred)))
    assert matched_score(gt, pred) <= image_score(gt, pred) + 1e-12


def test_one_prediction_over_two_lesions_counts_twice_only_in_the_papers_score():
    gt, pred = [[0, 0, 10, 10], [10, 0, 20, 10]], [[0, 0, 20, 10]]
    assert image_score(gt, pred) == 0.5
    assert matched_score(gt, pred) == 0.25
    assert image_score(gt, [*pred, [0, 20, 5, 25]]) == 0.5  # a poor prediction costs nothing


def test_only_the_strict_score_counts_what_is_left_over():
    lesion, half, away = [0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]
    assert matched_score([lesion], [lesion]) == 1.0
    assert matched_score([lesion], [lesion, away]) == 1 / 2  # a surplus box
    assert matched_score([lesion], [lesion, half]) == 1 / 2  # a second box on the same lesion is surplus too
    assert matched_score([lesion, away], [lesion]) == 1 / 2  # a missed lesion
    assert matched_score([lesion, away], [half, away]) == 3 / 4  # nothing left over: (1/2 + 1) / 2
    assert matched_score([lesion, away], [half, away, half, [70, 0, 80, 9]]) == 3 / 8
    assert image_score([lesion, away], [half, away, half, [70, 0, 80, 9]]) == 3 / 4


def test_perfect_and_empty_predictions():
    gt = [[0, 0, 10, 10], [20, 20, 30, 25]]
    assert image_score(gt, gt) == matched_score(gt, gt) == 1.0
    assert image_score(gt, []) == matched_score(gt, np.zeros((0, 4))) == 0.0


@given(st.lists(st.tuples(boxes(least=1), boxes()), min_size=1, max_size=5), st.randoms())
@settings(max_examples=60, deadline=None)
def test_mean_iou_does_not_see_any_order(images, random):
    value = mean_iou(*zip(*images, strict=True))
    assert 0 <= value <= 1
    assert value == pytest.approx(np.mean([image_score(g, p) for g, p in images]))
    shuffled = random.sample(images, len(images))
    shuffled = [tuple(b[random.sample(range(len(b)), len(b))] for b in pair) for pair in shuffled]
    assert mean_iou(*zip(*shuffled, strict=True)) == pytest.approx(value)


def test_mean_iou_and_its_alternatives_by_hand():
    gts = [[[0, 0, 10, 10]], [[0, 0, 10, 10], [10, 0, 20, 10], [0, 30, 1, 31]], [[0, 0, 5, 5]]]
    preds = [[[0, 0, 10, 10]], [[0, 0, 20, 10]], []]  # scores 1, (1/2 + 1/2 + 0) / 3, 0
    assert mean_iou(gts, preds) == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert mean_iou(gts, preds, no_prediction="skip") == pytest.approx((1 + 1 / 3) / 2)
    assert mean_iou(gts, preds, average="box") == pytest.approx((1 + 1 + 0) / 5)
    assert mean_iou(gts, preds, average="box", no_prediction="skip") == pytest.approx(2 / 4)
    assert mean_iou(gts[2:], preds[2:]) == 0.0
    assert math.isnan(mean_iou(gts[2:], preds[2:], no_prediction="skip"))


def test_pointing_by_hand():
    heat = painted((12, 7, 13, 8))  # center of the brightest pixel: (12.5, 7.5)
    assert pointing_hit(heat, [[12, 7, 13, 8]])
    assert pointing_hit(heat, [[0, 0, 1, 1], [10, 5, 20, 20]])
    assert not pointing_hit(heat, [[13, 7, 20, 8]])
    assert not pointing_hit(heat, [[0, 8, 50, 40]])
    assert pointing_hit(heat, [[13, 7, 20, 8]], tolerance=0.5)
    assert not pointing_hit(heat, [[16.5, 11.5, 20, 20]], tolerance=5.6)  # 4 right and 4 down: 5.66
    assert pointing_hit(heat, [[16.5, 11.5, 20, 20]], tolerance=5.7)


def test_pointing_with_ties_takes_the_middle_of_a_plateau_and_a_constant_map_misses():
    plateau = painted((0, 0, 5, 5))
    assert pointing_hit(plateau, [[2, 2, 3, 3]])
    assert not pointing_hit(plateau, [[0, 0, 2, 2]])
    twins = painted((4, 10, 5, 11), (44, 10, 45, 11))
    assert pointing_hit(twins, [[4, 10, 5, 11]])  # equally far from the middle: the first in reading order
    assert not pointing_hit(twins, [[20, 5, 30, 15]])  # the middle itself is dark
    for value in (0, 1, -3):
        assert not pointing_hit(np.full((40, 50), value), [[0, 0, 50, 40]])


@given(boxes(least=1, limit=20), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_energy_against_a_fine_grid(gt, seed):
    heat = np.random.default_rng(seed).normal(size=(10, 10))
    fine = np.kron(np.maximum(heat, 0), np.ones((2, 2)))  # boxes have edges at half pixels
    union = np.zeros((20, 20), bool)
    for left, top, right, bottom in gt.astype(int):
        union[top:bottom, left:right] = True
    assert energy_inside(heat, gt / 2) == pytest.approx(fine[union].sum() / fine.sum())


def test_energy_by_hand():
    heat = painted((10, 10, 20, 20), (30, 10, 40, 20), values=[1, 3])
    assert energy_inside(heat, [[10, 10, 20, 20]]) == pytest.approx(0.25)
    assert energy_inside(heat, [[10, 10, 20, 20]] * 2) == pytest.approx(0.25)  # a union: no pixel counts twice
    assert energy_inside(heat, [[15.25, 10, 20, 20]]) == pytest.approx(0.25 * 0.475)
    assert energy_inside(heat, [[0, 0, 50, 40]]) == 1.0
    assert energy_inside(heat - 2, [[30, 10, 40, 20]]) == 1.0  # negative values count 0
    assert energy_inside(heat * np.float64(1e-300), [[10, 10, 20, 20]]) == pytest.approx(0.25)
    for dark in (np.zeros((40, 50)), np.full((40, 50), -1.0)):
        assert energy_inside(dark, [[0, 0, 50, 40]]) == 0.0


def test_boxes_that_are_refused():
    good, bad = [[0, 0, 1, 1]], [[0, 0, 1, -1]]
    heat = painted((1, 1, 5, 5))
    for use in (iou_matrix, image_score, matched_score):
        for pair in ((good, bad), (bad, good), (good, [[0, 0, np.nan, 1]])):
            with pytest.raises(UsageError):
                use(*pair)
    with pytest.raises(UsageError, match="predictions of image 1"):
        mean_iou([good, good], [good, bad])
    for outside in ([[0, 0, 50, 41]], [[-1, 0, 5, 5]], [[0, 0, 512, 512]]):
        for use in (pointing_hit, energy_inside):
            with pytest.raises(UsageError, match="50x40"):
                use(heat, outside)


@pytest.mark.parametrize("use", [image_score, matched_score])
def test_no_ground_truth_is_refused(use):
    with pytest.raises(UsageError, match="no ground-truth"):
        use([], [[0, 0, 1, 1]])
    with pytest.raises(UsageError, match="image 1"):
        mean_iou([[[0, 0, 1, 1]], []], [[], []])


def test_other_refusals():
    good = [[0, 0, 1, 1]]
    heat = painted((1, 1, 5, 5))
    for lists in (([good], []), ([], []), ([good], [good, good])):
        with pytest.raises(UsageError, match="lengths"):
            mean_iou(*lists)
    for options in ({"no_prediction": "drop"}, {"average": "micro"}):
        with pytest.raises(UsageError):
            mean_iou([good], [good], **options)
    for use in (pointing_hit, energy_inside):
        with pytest.raises(UsageError, match="no ground-truth"):
            use(heat, [])
        for bad in (heat[None], np.full((40, 50), np.nan), np.zeros((0, 5))):
            with pytest.raises(UsageError, match="finite heatmap"):
                use(bad, good)
    for tolerance in (-1, np.nan):
        with pytest.raises(UsageError, match="tolerance"):
            pointing_hit(heat, good, tolerance=tolerance)
    assert issubclass(UsageError, TbkdError)
    assert issubclass(UsageError, ValueError)
