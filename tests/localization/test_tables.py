"""Tables of localization scores against loops, by hand, and by what one table says of another."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
from tiny_maps import boxes_of, example, painted

from tbkd_utils.errors import TbkdError, UsageError
from tbkd_utils.localization.boxes import boxes_from_heatmap, boxes_from_json
from tbkd_utils.localization.scores import energy_inside, image_score, iou_matrix, matched_score, mean_iou, pointing_hit
from tbkd_utils.localization.tables import SCORES, max_box_acc, score_rows, summarize, threshold_rows
from tbkd_utils.metrics.statistics import bootstrap_interval


def test_threshold_rows_are_the_loop():
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
    assert (rows["n_pred"] == 0).any()  # the example has images without a box


def test_area_and_method_reach_the_boxes():
    maps, gts = example(n=2)
    maps += 0.5  # min-max and max differ
    for options in ({"area": "contour"}, {"method": "max"}):
        preds = boxes_of(maps, 0.7, 50, **options)
        curve = threshold_rows("ab", maps, gts, 50, [0.7], **options)
        assert curve["score"].mean() == pytest.approx(mean_iou(gts, preds))
        assert score_rows("ab", maps, gts, 0.7, 50, **options)["score"].mean() == pytest.approx(mean_iou(gts, preds))


def max_box_acc_of(maps, gts, levels, **options):
    return max_box_acc(threshold_rows(range(len(gts)), maps, gts, 0, levels), **options)["mean"][0]


def test_max_box_acc_by_hand():
    # bright core 10x10 in a dim 20x10 surround: IoU with the core's box is 1 above 0.5 and 1/2 below
    heat = painted((10, 10, 30, 20), (10, 10, 20, 20), values=[0.5, 1])
    core, wide, away = [[10, 10, 20, 20]], [[10, 10, 30, 20]], [[40, 30, 50, 40]]
    maps, gts = np.stack([heat] * 3), [core, wide, away]
    # at 0.4: IoU 1/2, 1, 0; at 0.9: IoU 1, 1/2, 0
    assert max_box_acc_of(maps, gts, [0.9, 0.4]) == pytest.approx(5 / 9)
    for delta, accuracy in ((0.3, 2 / 3), (0.5, 2 / 3), (0.7, 1 / 3)):
        assert max_box_acc_of(maps, gts, [0.9, 0.4], deltas=(delta,)) == pytest.approx(accuracy)
    several = painted((0, 0, 30, 30), (40, 30, 45, 35))
    assert max_box_acc_of(several[None], [[[40, 30, 45, 35]]], [0.5]) == 1.0  # any contour, not the largest


def test_max_box_acc_is_the_loop():
    maps, gts = example(n=8)
    levels = np.arange(100) / 100
    expected = [
        max(
            np.mean([iou_matrix(g, boxes_from_heatmap(m, t, 0)).max() >= d for m, g in zip(maps, gts, strict=True)])
            for t in levels
        )
        for d in (0.3, 0.5, 0.7)
    ]
    assert max_box_acc_of(maps, gts, levels) == pytest.approx(np.mean(expected))


def test_rows_hold_everything_the_summary_says():
    maps, gts = example(n=12)
    maps[3] = 0  # a network that sees nothing: no box
    names = [f"tb/{i}.png" for i in range(12)]
    rows = score_rows(names, maps, gts, 0.6, 30)
    assert rows["name"].tolist() == names
    preds = boxes_of(maps, 0.6, 30)
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
    preds = boxes_of(maps, 0.9, 25)
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


def test_boxes_outside_the_map_are_refused():
    good, heat = [[0, 0, 1, 1]], painted((1, 1, 5, 5))
    for outside in ([[0, 0, 50, 41]], [[-1, 0, 5, 5]], [[0, 0, 512, 512]]):
        with pytest.raises(UsageError, match="image 1 must lie"):
            threshold_rows("ab", [heat, heat], [good, outside], 0, [0.5])


def test_other_refusals():
    good, heat = [[0, 0, 1, 1]], painted((1, 1, 5, 5))
    with pytest.raises(UsageError, match=r"\(n, H, W\)"):
        threshold_rows("a", heat, [good], 0, [0.5])
    with pytest.raises(UsageError, match="thresholds"):
        threshold_rows("a", heat[None], [good], 0, [])
    with pytest.raises(UsageError, match="threshold"):
        threshold_rows("a", heat[None], [good], 0, [1.5])
    with pytest.raises(UsageError, match="lengths names 2, heatmaps 1, gt_list 1"):
        score_rows("ab", heat[None], [good], 0.5, 0)
    with pytest.raises(UsageError, match=r"heatmap of b\.png holds nan"):
        score_rows(["a.png", "b.png"], [heat, heat * np.nan], [good, good], 0.5, 0)
    for deltas in ((), (0,), (1.1,)):
        with pytest.raises(UsageError, match="deltas"):
            max_box_acc_of(heat[None], [good], [0.5], deltas=deltas)
    rows = score_rows("a", heat[None], [good], 0.5, 0)
    with pytest.raises(UsageError, match="energy, n_gt"):
        summarize(rows.drop(columns=["energy", "n_gt"]))
    with pytest.raises(UsageError, match="energy"):
        summarize(rows.assign(energy=np.nan))
    with pytest.raises(TbkdError):
        summarize(rows.iloc[:0])
    with pytest.raises(UsageError, match="average"):
        summarize(rows, average="micro")
