"""Localisation scores on hand-made cases, against loops over pixels and permutations, and by their properties."""

import io
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbkd_utils.boxes import BoxError, boxes_from_heatmap, boxes_from_heatmaps, boxes_from_json
from tbkd_utils.errors import TbkdError
from tbkd_utils.localization import (
    SCORES,
    ScoreError,
    energy_inside,
    image_score,
    iou_matrix,
    matched_score,
    max_box_acc,
    mean_iou,
    pointing_hit,
    score_rows,
    summarize,
    threshold_curve,
    threshold_rows,
)
from tbkd_utils.statistics import bootstrap_interval


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


def painted(*rectangles, shape=(40, 50), values=None):
    heat = np.zeros(shape, np.float32)
    for i, (left, top, right, bottom) in enumerate(rectangles):
        heat[top:bottom, left:right] = 1 if values is None else values[i]
    return heat


def example(n=6, size=56, seed=0):
    """n smooth random maps of size x size and their ground truth."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    maps, truths = [], []
    for _ in range(n):
        centres = rng.uniform(0, size, (3, 2))
        maps.append(sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 60) * rng.random() for cx, cy in centres))
        corner = rng.uniform(0, size / 2, (rng.integers(1, 4), 2))
        truths.append(np.hstack([corner, corner + rng.uniform(8, size / 2, corner.shape)]).astype(np.float32))
    return np.array(maps, np.float32), truths


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
    assert matched_score(gt, pred) == pytest.approx(best / len(gt))
    assert matched_score(gt, pred) <= image_score(gt, pred) + 1e-12


def test_one_prediction_over_two_lesions_counts_twice_only_in_the_papers_score():
    gt, pred = [[0, 0, 10, 10], [10, 0, 20, 10]], [[0, 0, 20, 10]]
    assert image_score(gt, pred) == 0.5
    assert matched_score(gt, pred) == 0.25
    assert image_score(gt, [*pred, [0, 20, 5, 25]]) == 0.5  # a poor prediction costs nothing


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
    heat = painted((12, 7, 13, 8))  # centre of the brightest pixel: (12.5, 7.5)
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


def test_threshold_rows_and_curve_are_the_loop():
    maps, gts = example()
    levels = [0.6, 0.1, 0.99]
    rows = threshold_rows(list("abcdef"), maps, gts, 25, levels)
    assert len(rows) == 18
    for row in rows.itertuples():
        i = "abcdef".index(row.name)
        pred = boxes_from_heatmap(maps[i], row.threshold, 25)
        assert (row.n_gt, row.n_pred) == (len(gts[i]), len(pred))
        assert row.score == image_score(gts[i], pred)
        assert row.matched == matched_score(gts[i], pred)
        assert row.best_iou == iou_matrix(gts[i], pred).max(initial=0)
    for options in ({}, {"average": "box"}, {"no_prediction": "skip"}):
        curve = threshold_curve(maps, gts, 25, levels, **options)
        assert list(curve.columns) == ["threshold", "miou", "matched", "boxes", "no_box"]
        assert curve["threshold"].tolist() == sorted(levels)
        for row in curve.itertuples():
            preds = boxes_from_heatmaps(maps, row.threshold, 25)
            assert row.miou == pytest.approx(mean_iou(gts, preds, **options), nan_ok=True)
            assert row.matched == pytest.approx(np.mean([matched_score(g, p) for g, p in zip(gts, preds, strict=True)]))
            assert row.boxes == pytest.approx(np.mean([len(p) for p in preds]))
            assert row.no_box == pytest.approx(np.mean([len(p) == 0 for p in preds]))
    assert curve["no_box"].iloc[-1] > 0  # the example has images without a box


def test_area_and_method_reach_the_boxes():
    maps, gts = example(n=2)
    maps += 0.5  # min-max and max differ
    for options in ({"area": "contour"}, {"method": "max"}):
        preds = boxes_from_heatmaps(maps, 0.7, 50, **options)
        assert threshold_curve(maps, gts, 50, [0.7], **options)["miou"][0] == pytest.approx(mean_iou(gts, preds))
        assert score_rows("ab", maps, gts, 0.7, 50, **options)["score"].mean() == pytest.approx(mean_iou(gts, preds))


def test_max_box_acc_by_hand():
    # bright core 10x10 in a dim 20x10 surround: IoU with the core's box is 1 above 0.5 and 1/2 below
    heat = painted((10, 10, 30, 20), (10, 10, 20, 20), values=[0.5, 1])
    core, wide, away = [[10, 10, 20, 20]], [[10, 10, 30, 20]], [[40, 30, 50, 40]]
    found = max_box_acc(np.stack([heat] * 3), [core, wide, away], [0.9, 0.4])
    # at 0.4: IoU 1/2, 1, 0; at 0.9: IoU 1, 1/2, 0
    assert found.accuracies == pytest.approx((2 / 3, 2 / 3, 1 / 3))
    assert found.thresholds == (0.4, 0.4, 0.4)
    assert found.value == pytest.approx(5 / 9)
    assert max_box_acc(heat[None], [core], deltas=(0.9,)).thresholds == (0.51,)
    several = painted((0, 0, 30, 30), (40, 30, 45, 35))
    assert max_box_acc(several[None], [[[40, 30, 45, 35]]], [0.5]).value == 1.0  # any contour, not the largest


def test_max_box_acc_is_recomputed_from_threshold_rows_and_the_loop():
    maps, gts = example(n=8)
    levels = np.arange(100) / 100
    rows = threshold_rows(range(8), maps, gts, 0, levels)
    found = max_box_acc(maps, gts)
    for delta, accuracy in zip(found.deltas, found.accuracies, strict=True):
        assert rows.assign(hit=rows["best_iou"] >= delta).groupby("threshold")["hit"].mean().max() == accuracy
    expected = [
        max(
            np.mean([iou_matrix(g, boxes_from_heatmap(m, t, 0)).max() >= d for m, g in zip(maps, gts, strict=True)])
            for t in levels
        )
        for d in (0.3, 0.5, 0.7)
    ]
    assert found.accuracies == pytest.approx(expected)
    assert found.value == pytest.approx(np.mean(expected))


def test_rows_hold_everything_the_summary_says():
    maps, gts = example(n=12)
    maps[3] = 0  # a network that sees nothing: no box
    names = [f"tb/{i}.png" for i in range(12)]
    rows = score_rows(names, maps, gts, 0.6, 30)
    assert rows["name"].tolist() == names
    preds = boxes_from_heatmaps(maps, 0.6, 30)
    for row, heat, gt, pred in zip(rows.itertuples(), maps, gts, preds, strict=True):
        assert np.array_equal(boxes_from_json(row.boxes), pred)
        assert np.array_equal(boxes_from_json(row.gt_boxes), gt)
        iou = iou_matrix(boxes_from_json(row.gt_boxes), boxes_from_json(row.boxes))
        assert (row.n_gt, row.n_pred) == iou.shape
        assert row.score == image_score(gt, pred)
        assert row.matched == matched_score(gt, pred)
        assert row.best_iou == iou.max(initial=0)
        assert [row.hit_30, row.hit_50, row.hit_70] == [int(iou.max(initial=0) >= d) for d in (0.3, 0.5, 0.7)]
        assert row.pointing == pointing_hit(heat, gt)
        assert row.energy == energy_inside(heat, gt)
    table = summarize(rows, resamples=200, seed=3)
    assert list(table.columns) == ["metric", "mean", "low", "high", "n"]
    assert tuple(table["metric"]) == SCORES
    assert (table["n"] == 12).all()
    assert table["mean"][0] == pytest.approx(mean_iou(gts, preds))
    for row in table.itertuples():
        values = rows[row.metric] if row.metric != "no_box" else rows["n_pred"] == 0
        assert row.mean == pytest.approx(values.mean())
        interval = bootstrap_interval(values, resamples=200, seed=3)
        assert (row.low, row.high) == pytest.approx(interval, abs=1e-12)
    read = pd.read_csv(io.StringIO(rows.to_csv(index=False)))
    pd.testing.assert_frame_equal(summarize(read, resamples=200, seed=3), table)


def test_summary_follows_the_recipes_ways_to_average():
    maps, gts = example(n=9)
    rows = score_rows(range(9), maps, gts, 0.9, 25)
    preds = boxes_from_heatmaps(maps, 0.9, 25)
    seen = sum(len(p) > 0 for p in preds)
    assert 0 < seen < 9
    for options in itertools.product(("zero", "skip"), ("image", "box")):
        chosen = dict(zip(("no_prediction", "average"), options, strict=True))
        score = summarize(rows, resamples=100, **chosen).iloc[0]
        assert score["mean"] == pytest.approx(mean_iou(gts, preds, **chosen))
        assert score["low"] <= score["mean"] <= score["high"]
        assert score["n"] == (seen if chosen["no_prediction"] == "skip" else 9)


def test_pointing_tolerance_reaches_the_rows():
    heat, gt = painted((12, 7, 13, 8)), [[[20, 7, 25, 8]]]
    assert score_rows("a", heat[None], gt, 0.5, 0)["pointing"][0] == 0
    assert score_rows("a", heat[None], gt, 0.5, 0, tolerance=15)["pointing"][0] == 1


def test_boxes_that_are_refused():
    good, bad = [[0, 0, 1, 1]], [[0, 0, 1, -1]]
    heat = painted((1, 1, 5, 5))
    for use in (iou_matrix, image_score, matched_score):
        for pair in ((good, bad), (bad, good), (good, [[0, 0, np.nan, 1]])):
            with pytest.raises(BoxError):
                use(*pair)
    with pytest.raises(BoxError, match="predictions of image 1"):
        mean_iou([good, good], [good, bad])
    for outside in ([[0, 0, 50, 41]], [[-1, 0, 5, 5]], [[0, 0, 512, 512]]):
        for use in (pointing_hit, energy_inside):
            with pytest.raises(BoxError, match="50x40"):
                use(heat, outside)
        with pytest.raises(BoxError, match="image 1 must lie"):
            threshold_rows("ab", [heat, heat], [good, outside], 0, [0.5])


@pytest.mark.parametrize("use", [image_score, matched_score])
def test_no_ground_truth_is_refused(use):
    with pytest.raises(ScoreError, match="no ground-truth"):
        use([], [[0, 0, 1, 1]])
    with pytest.raises(ScoreError, match="image 1"):
        mean_iou([[[0, 0, 1, 1]], []], [[], []])


def test_other_refusals():
    good = [[0, 0, 1, 1]]
    heat = painted((1, 1, 5, 5))
    for lists in (([good], []), ([], []), ([good], [good, good])):
        with pytest.raises(ScoreError, match="lengths"):
            mean_iou(*lists)
    for options in ({"no_prediction": "drop"}, {"average": "micro"}):
        with pytest.raises(ScoreError):
            mean_iou([good], [good], **options)
    for use in (pointing_hit, energy_inside):
        with pytest.raises(ScoreError, match="no ground-truth"):
            use(heat, [])
        for bad in (heat[None], np.full((40, 50), np.nan), np.zeros((0, 5))):
            with pytest.raises(ScoreError, match="finite heatmap"):
                use(bad, good)
    for tolerance in (-1, np.nan):
        with pytest.raises(ScoreError, match="tolerance"):
            pointing_hit(heat, good, tolerance=tolerance)
    with pytest.raises(ScoreError, match=r"\(n, H, W\)"):
        threshold_curve(heat, [good], 0, [0.5])
    with pytest.raises(ScoreError, match="thresholds"):
        threshold_curve(heat[None], [good], 0, [])
    with pytest.raises(BoxError, match="threshold"):
        threshold_curve(heat[None], [good], 0, [1.5])
    with pytest.raises(ScoreError, match="lengths names 2, heatmaps 1, gt_list 1"):
        score_rows("ab", heat[None], [good], 0.5, 0)
    with pytest.raises(ScoreError, match=r"heatmap of b\.png holds nan"):
        score_rows(["a.png", "b.png"], [heat, heat * np.nan], [good, good], 0.5, 0)
    for deltas in ((), (0,), (1.1,)):
        with pytest.raises(ScoreError, match="deltas"):
            max_box_acc(heat[None], [good], deltas=deltas)
    rows = score_rows("a", heat[None], [good], 0.5, 0)
    with pytest.raises(ScoreError, match="energy, n_gt"):
        summarize(rows.drop(columns=["energy", "n_gt"]))
    with pytest.raises(ScoreError, match="energy"):
        summarize(rows.assign(energy=np.nan))
    with pytest.raises(TbkdError):
        summarize(rows.iloc[:0])
    with pytest.raises(ScoreError, match="average"):
        summarize(rows, average="micro")
    assert issubclass(ScoreError, TbkdError)
    assert issubclass(ScoreError, ValueError)
