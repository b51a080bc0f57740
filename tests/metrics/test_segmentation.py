"""Masks by hand, against brute force, and the published table against its own precision and recall."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tbkd_utils.errors import UsageError
from tbkd_utils.metrics.segmentation import (
    COUNTS,
    DISTANCES,
    OVERLAPS,
    dice_and_iou,
    distance_summary,
    hausdorff_95,
    mask_metrics,
    overlap_summary,
    pooled_metrics,
    segmentation_rows,
)
from tbkd_utils.metrics.statistics import bootstrap_metric

Mask = NDArray[np.bool_]


def square(top: int, left: int, side: int, size: int = 40) -> Mask:
    mask = np.zeros((size, size), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


NOTHING = np.zeros((40, 40), dtype=bool)


def row(prediction: Mask, truth: Mask) -> pd.Series:
    return segmentation_rows(["a"], prediction[None], truth[None]).iloc[0]


# --- overlaps ---------------------------------------------------------------------------------------------------------


def test_every_overlap_by_hand() -> None:
    """Of 100 pixels 10 are true; 6 of them and 4 others are found."""
    assert mask_metrics(tp=6, fp=4, fn=4, tn=86) == {
        "accuracy": 0.92, "precision": 0.6, "recall": 0.6, "specificity": pytest.approx(86 / 90),
        "harmonic_mean": pytest.approx(2 * 0.6 * (86 / 90) / (0.6 + 86 / 90)), "dice": 0.6,
        "iou": pytest.approx(6 / 14),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "undefined"),
    [
        ({"tp": 0, "fp": 0, "fn": 0, "tn": 9}, {"precision", "recall", "harmonic_mean", "dice", "iou"}),
        ({"tp": 0, "fp": 0, "fn": 2, "tn": 7}, {"precision"}),
        ({"tp": 0, "fp": 2, "fn": 0, "tn": 7}, {"recall", "harmonic_mean"}),
        ({"tp": 9, "fp": 0, "fn": 0, "tn": 0}, {"specificity", "harmonic_mean"}),
        ({"tp": 0, "fp": 2, "fn": 2, "tn": 0}, {"harmonic_mean"}),
    ],
)
def test_what_is_undefined_is_nan_and_nothing_else(counts: dict[str, float], undefined: set[str]) -> None:
    found = mask_metrics(**counts)
    assert tuple(found) == OVERLAPS
    assert {name for name, value in found.items() if math.isnan(value)} == undefined


@pytest.mark.parametrize("counts", [(-1, 0, 0, 9), (0, 0, 0, 0), (math.nan, 0, 0, 9)])
def test_counts_that_are_none(counts: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="numbers of pixels"):
        mask_metrics(*counts)


def test_an_empty_prediction_is_almost_perfect_by_accuracy_and_specificity() -> None:
    found = mask_metrics(tp=0, fp=0, fn=8, tn=992)
    assert (found["accuracy"], found["specificity"], found["dice"], found["recall"]) == (0.992, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("prediction", "truth", "dice", "iou"),
    [
        (square(5, 5, 3), square(5, 10, 3), 0.0, 0.0),
        (square(4, 4, 8), square(6, 6, 4), 0.4, 0.25),
        (square(4, 4, 8), square(4, 4, 8), 1.0, 1.0),
    ],
)
def test_dice_and_iou_of_squares(prediction: Mask, truth: Mask, dice: float, iou: float) -> None:
    found = row(prediction, truth)
    assert (found["dice"], found["iou"]) == (dice, iou)
    assert found[list(COUNTS)].sum() == 1600


@pytest.mark.parametrize(
    ("radius", "precision", "dice"),
    [(2, 0.1875, 0.3158), (3, 0.5, 0.6667), (5, 0.5556, 0.7143), (8, 0.52, 0.6842), (12, 0.5327, 0.6951)],
)
def test_a_coarse_square_against_the_disc_that_it_was_made_of(radius: int, precision: float, dice: float) -> None:
    """The ceiling of a network that imitates coarse labels: recall 1, and half of the pixels too many."""
    ys, xs = np.mgrid[:64, :64] - 31.5  # the center lies between pixels
    disc = ys**2 + xs**2 <= radius**2
    extent = int(disc.any(axis=1).sum())
    side = max(8, math.ceil(1.2 * extent))
    top = round(31.5 - side / 2)
    found = row(square(top, top, side, 64), disc)
    metrics = mask_metrics(*(found[name] for name in COUNTS))
    assert metrics["recall"] == 1
    assert metrics["precision"] == pytest.approx(precision, abs=5e-5)
    assert metrics["dice"] == pytest.approx(dice, abs=5e-5)


# --- pooled and per image ---------------------------------------------------------------------------------------------


def two_images() -> pd.DataFrame:
    """A large one that is right, and a small one that is missed."""
    truths = np.stack([square(2, 2, 20), square(5, 5, 2)])
    return segmentation_rows(["large", "small"], np.stack([truths[0], NOTHING]), truths)


def test_pooled_and_per_image_are_two_numbers() -> None:
    table = overlap_summary(two_images()).set_index("metric")
    assert tuple(table.index) == OVERLAPS
    assert table.loc["dice", "pooled"] == pytest.approx(2 * 400 / (2 * 400 + 4))
    assert table.loc["dice", "per_image"] == 0.5
    assert table.loc["recall", "pooled"] == pytest.approx(400 / 404)
    assert table.loc["recall", "per_image"] == 0.5
    assert (table.loc["precision", "per_image"], table.loc["precision", "n"]) == (1.0, 1)
    assert table.loc["precision", "undefined"] == 1
    assert table.loc["dice", ["n", "undefined"]].tolist() == [2, 0]


def test_pooled_equals_one_long_image() -> None:
    rng = np.random.default_rng(0)
    predictions, truths = rng.random((2, 5, 8, 8)) < 0.3
    rows = segmentation_rows(list("abcde"), predictions, truths)
    whole = segmentation_rows(["all"], predictions.reshape(1, 40, 8), truths.reshape(1, 40, 8))
    assert pooled_metrics(rows) == pooled_metrics(whole)
    each = [2 * (p & t).sum() / (p.sum() + t.sum()) for p, t in zip(predictions, truths, strict=True)]
    np.testing.assert_allclose(rows["dice"], each)


def test_the_pooled_metric_can_be_resampled_by_patient() -> None:
    rng = np.random.default_rng(1)
    predictions, truths = rng.random((2, 12, 8, 8)) < 0.3
    rows = segmentation_rows([str(k) for k in range(12)], predictions, truths)
    ends = bootstrap_metric(
        lambda index: pooled_metrics(rows.iloc[index]), np.zeros(12), resamples=50, clusters=np.arange(12) // 3
    )
    low, high = ends["dice"]
    assert low < pooled_metrics(rows)["dice"] < high


# --- distances --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        (square(5, 5, 3), square(5, 10, 3), 5.0),
        (square(4, 4, 8), square(6, 6, 4), 2.828427),
        (square(4, 4, 8), square(4, 4, 8), 0.0),
        (NOTHING, NOTHING, 0.0),
    ],
)
def test_hd95_by_hand(prediction: Mask, truth: Mask, expected: float) -> None:
    assert hausdorff_95(prediction, truth) == pytest.approx(expected, abs=1e-6)
    assert hausdorff_95(truth, prediction) == pytest.approx(expected, abs=1e-6)


def by_brute_force(prediction: Mask, truth: Mask) -> tuple[list[float], list[float]]:
    """Each pixel of an outline, all pixels of the other; an outline is where one of nine neighbors is outside."""

    def outline(mask: Mask) -> list[tuple[int, int]]:
        framed = np.pad(mask, 1)
        return [(y, x) for y, x in np.argwhere(mask) if not framed[y : y + 3, x : x + 3].all()]

    def nearest(these: list[tuple[int, int]], those: list[tuple[int, int]]) -> list[float]:
        return [min(math.dist(one, other) for other in those) for one in these]

    a, b = outline(prediction), outline(truth)
    return nearest(a, b), nearest(b, a)


def test_a_stray_pixel_in_one_list_and_by_direction() -> None:
    """A 3x3 square found but for a stray pixel 18 away: one of 17 distances, and one of 9 in its own direction."""
    truth = square(10, 10, 3)
    prediction = truth.copy()
    prediction[12 + 8, 12 + 16] = True
    assert hausdorff_95(prediction, truth) == pytest.approx(3.577709, abs=1e-6)
    assert hausdorff_95(prediction, truth, larger_direction=True) == pytest.approx(10.733126, abs=1e-6)
    forth, back = by_brute_force(prediction, truth)
    assert (len(forth), len(back), max(forth)) == (9, 8, pytest.approx(17.888544, abs=1e-6))


@settings(deadline=None, max_examples=60)
@given(*(hnp.arrays(np.bool_, (9, 7), elements=st.booleans()) for _ in range(2)))
def test_hd95_equals_brute_force(prediction: Mask, truth: Mask) -> None:
    prediction[4, 3] = truth[2, 5] = True
    forth, back = by_brute_force(prediction, truth)
    assert hausdorff_95(prediction, truth) == pytest.approx(np.percentile(forth + back, 95))
    expected = max(np.percentile(forth, 95), np.percentile(back, 95))
    assert hausdorff_95(prediction, truth, larger_direction=True) == pytest.approx(expected)


def test_the_edge_of_the_image_is_part_of_the_outline() -> None:
    """A mask that fills the image has an outline: without one, it would have no distance to a mask in the middle."""
    everything = np.ones((7, 7), dtype=bool)
    center = np.zeros((7, 7), dtype=bool)
    center[3, 3] = True
    forth, back = by_brute_force(everything, center)
    assert (len(forth), len(back)) == (24, 1)
    assert hausdorff_95(everything, center) == pytest.approx(np.percentile(forth + back, 95))


@pytest.mark.parametrize("pair", [(NOTHING, square(5, 5, 3)), (square(5, 5, 3), NOTHING)])
def test_a_mask_without_a_counterpart_has_no_distance(pair: tuple[Mask, Mask]) -> None:
    assert math.isnan(hausdorff_95(*pair))
    assert math.isnan(hausdorff_95(*pair, larger_direction=True))


def test_misses_are_counted_and_can_be_made_to_cost() -> None:
    """Found exactly, 5 apart, missed, invented, and nothing where nothing is."""
    truth = square(5, 10, 3)
    predictions = np.stack([truth, square(5, 5, 3), NOTHING, truth, NOTHING])
    rows = segmentation_rows(list("abcde"), predictions, np.stack([truth, truth, truth, NOTHING, NOTHING]))
    table = distance_summary(rows).set_index("metric")
    assert set(table.index) == set(DISTANCES)
    assert table.loc["hd95", ["mean", "n", "missed", "invented"]].tolist() == [pytest.approx(5 / 3), 3, 1, 1]
    assert table.loc["hd95", "std"] == pytest.approx(np.std([0, 5, 0]))
    with_misses = table.loc["hd95_missed_as_diagonal"]
    assert with_misses["n"] == 5
    assert with_misses["mean"] == pytest.approx((5 + 2 * math.hypot(40, 40)) / 5)
    assert with_misses["missed"] == 1


def test_leaving_out_what_is_missed_makes_the_mean_better() -> None:
    truth = square(5, 10, 3)
    near, far = square(5, 11, 3), square(30, 30, 3)
    mean = {}
    for name, second in (("far", far), ("missed", NOTHING)):
        rows = segmentation_rows(["a", "b"], np.stack([near, second]), np.stack([truth, truth]))
        mean[name] = distance_summary(rows).set_index("metric")["mean"]
    assert mean["missed"]["hd95"] < mean["far"]["hd95"]
    assert mean["missed"]["hd95_missed_as_diagonal"] > mean["far"]["hd95_missed_as_diagonal"]


def test_nothing_but_misses_has_no_mean() -> None:
    table = distance_summary(segmentation_rows(["a"], NOTHING[None], square(5, 5, 3)[None])).set_index("metric")
    assert math.isnan(table.loc["hd95", "mean"])
    assert table.loc["hd95", "n"] == 0


# --- the published table ----------------------------------------------------------------------------------------------

PUBLISHED = {
    "U-Net": (31.45, 67.76, 99.16, 30.02, 23.24),
    "U-Net++": (33.87, 94.85, 98.46, 49.91, 33.26),
    "ResU-Net": (33.22, 96.30, 98.39, 49.39, 32.80),
    "Swin-UNet": (33.10, 98.54, 98.34, 49.55, 32.93),
    "Attention U-Net": (32.56, 95.25, 98.36, 48.53, 32.04),
    "U-Net -> U-NetDw": (32.55, 55.53, 99.35, 28.14, 20.27),
    "Swin -> U-NetDw": (34.98, 87.83, 98.64, 50.03, 33.36),
    "Swin -> U-NetDw + ASPP": (35.15, 94.15, 98.56, 51.19, 34.40),
}
"""Precision, recall, specificity, Dice and IoU, in percent, as the authors print them."""


def test_the_two_rows_of_the_unet_do_not_follow_from_their_own_precision_and_recall() -> None:
    wrong = set()
    for name, (precision, recall, _, *printed) in PUBLISHED.items():
        implied = [100 * one for one in dice_and_iou(precision / 100, recall / 100)]
        if any(abs(one - other) > 0.02 for one, other in zip(implied, printed, strict=True)):
            wrong.add(name)
    assert wrong == {"U-Net", "U-Net -> U-NetDw"}
    dice, iou = dice_and_iou(0.3145, 0.6776)
    assert (round(100 * dice, 2), round(100 * iou, 2)) == (42.96, 27.36)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if not name.startswith("U-Net") or name == "U-Net++"])
def test_the_other_six_rows_imply_one_prevalence(name: str) -> None:
    """Of N pixels, fp = tp (1 - P) / P = R prevalence N (1 - P) / P, and fp = (1 - S) (1 - prevalence) N."""
    precision, recall, specificity = (one / 100 for one in PUBLISHED[name][:3])
    true, false = (1 - specificity) * precision, recall * (1 - precision)
    assert 0.00815 < true / (true + false) < 0.00835


def test_dice_and_iou_follow_from_precision_and_recall() -> None:
    found = mask_metrics(tp=6, fp=3, fn=5, tn=86)
    assert dice_and_iou(found["precision"], found["recall"]) == pytest.approx((found["dice"], found["iou"]))
    for wrong in ((33.0, 0.5), (0.5, 0.0)):
        with pytest.raises(UsageError, match="must lie above 0 and not above 1"):
            dice_and_iou(*wrong)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_is_no_mask_is_refused() -> None:
    with pytest.raises(UsageError, match="prediction must hold 0 and 1; got values up to 255"):
        hausdorff_95(255 * NOTHING.astype(int) + 255, NOTHING)
    with pytest.raises(UsageError, match=r"truth must have 2 axes.*\(1, 40, 40\)"):
        hausdorff_95(NOTHING, NOTHING[None])
    with pytest.raises(UsageError, match="one shape"):
        hausdorff_95(NOTHING, NOTHING[:-1])
    for names, found, true in ((["a"], NOTHING, NOTHING), (["a", "b"], NOTHING[None], NOTHING[None])):
        with pytest.raises(UsageError, match=r"axes|for each image"):
            segmentation_rows(names, found, true)
    with pytest.raises(UsageError, match="at least one"):
        segmentation_rows([], NOTHING[None][:0], NOTHING[None][:0])


def test_rows_without_counts_are_refused() -> None:
    rows = two_images()
    for use in (pooled_metrics, overlap_summary, distance_summary):
        with pytest.raises(UsageError, match=r"column\(s\) tp"):
            use(rows.drop(columns="tp"))
        with pytest.raises(UsageError, match="got 0"):
            use(rows.iloc[:0])
    with pytest.raises(UsageError, match=r"column\(s\) diagonal"):
        distance_summary(rows.drop(columns="diagonal"))
