"""Heat kept inside the lungs, and one box a lung: known answers on maps drawn by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from tbkd_utils.localization.boxes import PerLung, boxes_at_thresholds, boxes_from_heatmap, lung_boxes, normalize
from tbkd_utils.localization.heatmaps import compute_heatmaps, inside_lungs
from tbkd_utils.localization.lungs import lungs_of, middle_of, soft_lungs
from tbkd_utils.localization.tables import score_rows, threshold_rows


def painted(*blocks: tuple[int, int, int, int, float]) -> np.ndarray:
    heat = np.zeros((40, 60), np.float32)
    for left, top, right, bottom, value in blocks:
        heat[top:bottom, left:right] = value
    return heat


def constant(value: float = 1.0, side: int = 4):
    return lambda model, images: torch.full((len(images), side, side), value)


LEFT, RIGHT = (5, 4, 15, 20, 1.0), (40, 10, 52, 30, 0.7)


# --- inside the lungs -------------------------------------------------------------------------------------------------


def test_a_map_times_the_lungs_is_zero_outside_and_itself_inside() -> None:
    lung = torch.zeros(2, 32, 32)
    lung[:, 8:24, 4:12] = 1
    found = compute_heatmaps(nn.Identity(), torch.zeros(2, 3, 32, 32), inside_lungs(constant(3.0), lambda images: lung))
    assert found.shape == (2, 8, 8)
    expected = np.zeros((8, 8), np.float32)
    expected[2:6, 1:3] = 3
    np.testing.assert_allclose(found, [expected, expected])


def test_a_finer_map_keeps_its_grid_and_a_flat_lung_changes_nothing() -> None:
    maps = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(0))
    everywhere = inside_lungs(lambda model, images: maps, lambda images: torch.ones(1, 32, 32))
    np.testing.assert_allclose(compute_heatmaps(nn.Identity(), torch.zeros(1, 3, 32, 32), everywhere), maps)


def test_the_edge_of_a_lung_is_soft_and_its_middle_is_whole() -> None:
    masks = np.zeros((2, 200, 200), bool)
    masks[0, 50:150, 20:80] = masks[1, 50:150, 120:180] = True
    mask, lungs = masks.any(axis=0), lungs_of(list(masks), 1.0)
    soft = soft_lungs(lungs)
    assert (soft.dtype, soft.shape) == (np.float32, (200, 200))
    assert soft[mask].min() > 0.95
    assert soft[:30].max() == soft[100, 100] == 0
    assert 0 < soft[100, 14] < 1
    assert middle_of(lungs) == 100


# --- one box a lung ---------------------------------------------------------------------------------------------------


def test_each_half_has_the_region_of_its_own_maximum() -> None:
    heat = painted(LEFT, (20, 30, 25, 35, 0.9), RIGHT, (54, 0, 58, 4, 0.5))
    assert lung_boxes(heat, 0.8, PerLung(30)).tolist() == [[5, 4, 15, 20], [40, 10, 52, 30]]
    # Algorithm 1 at the same threshold of the whole image sees no right lung, and both regions of the left one.
    assert boxes_from_heatmap(heat, 0.8, 0).tolist() == [[5, 4, 15, 20], [20, 30, 25, 35]]


def test_the_fainter_lung_needs_its_share_of_the_maximum() -> None:
    heat = painted(LEFT, RIGHT)
    assert np.isnan(lung_boxes(heat, 0.5, PerLung(30, second=0.71))[1]).all()
    assert boxes_from_heatmap(heat, 0.5, 0, lungs=PerLung(30, 0.71)).tolist() == [[5, 4, 15, 20]]
    assert boxes_from_heatmap(heat, 0.5, 0, lungs=PerLung(30, 0.69)).tolist() == [[40, 10, 52, 30], [5, 4, 15, 20]]


def test_a_region_ends_between_the_lungs() -> None:
    heat = painted((25, 10, 45, 20, 1.0))
    assert lung_boxes(heat, 0.5, PerLung(32.2)).tolist() == [[25, 10, 32, 20], [32, 10, 45, 20]]


@pytest.mark.parametrize("middle", [-3, 0, 60, 99])
def test_a_half_without_a_column_has_no_box(middle: float) -> None:
    found = boxes_from_heatmap(painted(LEFT, RIGHT), 0.9, 0, lungs=PerLung(middle))
    assert found.tolist() == [[5, 4, 15, 20]]


def test_small_boxes_are_dropped_and_an_empty_map_has_none() -> None:
    heat, halves = painted(LEFT, RIGHT), PerLung(30, 0.5)
    assert boxes_from_heatmap(heat, 0.5, 160, lungs=halves).tolist() == [[40, 10, 52, 30]]
    assert boxes_from_heatmap(heat, 0.5, 150, area="contour", lungs=halves).tolist() == [[40, 10, 52, 30]]
    assert boxes_from_heatmap(painted(), 0.5, 0, lungs=halves).shape == (0, 4)
    assert [len(found) for found in boxes_at_thresholds(heat, [0, 0.5, 1], 0, lungs=halves)] == [2, 2, 2]


def test_rows_are_scored_lung_by_lung() -> None:
    heat = painted(LEFT, RIGHT)
    truth = [np.array([LEFT[:4], RIGHT[:4]], np.float32)]
    given = (["a"], normalize(heat)[None], truth)
    plain = score_rows(*given, 0.8, 0)
    found = score_rows(*given, 0.8, 0, lungs=[PerLung(30)])
    assert (plain["n_pred"][0], found["n_pred"][0]) == (1, 2)
    assert found["score"][0] == 1
    rows = threshold_rows(*given, 0, [0.1, 0.8], lungs=[PerLung(30)])
    assert rows["n_pred"].tolist() == [2, 2]
