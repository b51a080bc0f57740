"""Blind guesses by hand, without a look at the image's own patient, and scored as networks are scored."""

import json

import numpy as np
import pandas as pd
import pytest

from tbkd_utils.errors import UsageError
from tbkd_utils.localization.guesses import (
    best_constant_boxes,
    constant_boxes,
    grid_boxes,
    guess_rows,
    lower_halves,
    upper_half,
    whole_image,
)
from tbkd_utils.localization.scores import energy_inside, image_score
from tbkd_utils.localization.tables import score_rows, summarize

SIZE = (40, 60)  # height, width


def random_boxes(rng: np.random.Generator, count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Whole pixels, sides of 5 and more."""
    left, top = rng.integers(0, size[1] - 25, count), rng.integers(0, size[0] - 25, count)
    return np.stack([left, top, left + rng.integers(5, 25, count), top + rng.integers(5, 25, count)], axis=1)


@pytest.fixture
def cohort() -> tuple[list[np.ndarray], list[str]]:
    """Twelve images of seven patients, one or two boxes each."""
    rng = np.random.default_rng(5)
    groups = ["a", "a", "b", "c", "c", "c", "d", "e", "f", "f", "g", "g"]
    return [random_boxes(rng, 1 + place % 2) for place in range(len(groups))], groups


# --- boxes by hand ---


@pytest.mark.parametrize(("guess", "box"), [(whole_image, [0, 0, 60, 40]), (upper_half, [0, 0, 60, 20])])
def test_the_same_box_for_every_image(guess, box: list[int]) -> None:
    boxes = guess(3, SIZE)
    assert [one.tolist() for one in boxes] == [[box]] * 3
    assert all(one.dtype == np.float32 for one in boxes)
    assert guess(0, SIZE) == []


def test_an_odd_height_is_halved_exactly() -> None:
    assert upper_half(1, (7, 4))[0].tolist() == [[0, 0, 4, 3.5]]


def test_the_lower_half_of_each_lung() -> None:
    lungs = [np.array([[2, 4, 10, 20], [12, 5, 20, 20]], np.float32), np.zeros((0, 4)), [[0, 0, 8, 30]]]
    kept = lungs[0].copy()
    found = lower_halves(lungs)
    assert [one.tolist() for one in found] == [[[2, 12, 10, 20], [12, 12.5, 20, 20]], [], [[0, 15, 8, 30]]]
    np.testing.assert_array_equal(lungs[0], kept)
    with pytest.raises(UsageError, match="lungs of image 1"):
        lower_halves([kept, [[1, 2, 3]]])


def test_the_best_constant_boxes_by_hand() -> None:
    """Heights 10, 20, 15 and 12 as below: 12 has the mean (5/6 + 3/5 + 4/5 + 1) / 4, the highest.

    Beside it, 20 lifts its own image by .4; 15 lifts two by .15 and .2, and 10 its own by 1/6.
    """
    truths = [[[0, 0, 10, height]] for height in (10, 20, 15, 12)]
    assert best_constant_boxes(truths).tolist() == [[0, 0, 10, 12]]
    assert best_constant_boxes(truths, 2).tolist() == [[0, 0, 10, 12], [0, 0, 10, 20]]
    assert len(best_constant_boxes(truths, 9)) == 4
    assert best_constant_boxes(truths).dtype == np.float32


def test_constant_boxes_of_a_new_patient_are_the_best_of_the_others(cohort) -> None:
    truths, groups = cohort
    others = [truth for truth, group in zip(truths, groups, strict=True) if group != "d"]
    (own,) = [boxes for boxes, group in zip(constant_boxes(truths, groups, 2), groups, strict=True) if group == "d"]
    np.testing.assert_array_equal(best_constant_boxes(others, 2), own)


@pytest.mark.parametrize(
    ("truths", "count", "said"),
    [
        ([], 1, "at least one"),
        ([[[0, 0, 1, 1]], np.zeros((0, 4))], 1, "of image 1"),
        ([[[0, 0, 1, 1]]], 0, "count is 0"),
    ],
)
def test_no_best_constant_box_of_nothing(truths, count: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        best_constant_boxes(truths, count)


def test_constant_boxes_by_hand() -> None:
    """Boxes of width 10 from the top down to 10, 20, 15 and 12: the IoU is the ratio of the heights.

    For a, the others' means are b (1 + .75 + .6) / 3, c (.75 + 1 + .8) / 3 and d (.6 + .8 + 1) / 3: c is best.
    For c: a (1 + .5 + .833) / 3, b (.5 + 1 + .6) / 3, d (.833 + .6 + 1) / 3: d is best. For b it is d, for d it is c.
    """
    truths = [[[0, 0, 10, height]] for height in (10, 20, 15, 12)]
    found = constant_boxes(truths, ["a", "b", "c", "d"])
    assert [one.tolist() for one in found] == [[[0, 0, 10, height]] for height in (15, 12, 12, 15)]
    assert all(one.dtype == np.float32 for one in found)


def test_a_second_constant_box_adds_the_most_to_the_first() -> None:
    """Two places: the second box is the other place, though the first one has a better runner-up alone."""
    left, near, right = [0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]
    truths = [[left], [left], [near], [right], [[0, 0, 40, 40]]]
    found = constant_boxes(truths, list("abcde"), count=2)
    assert found[4].tolist() == [left, right]
    assert [one.tolist() for one in constant_boxes(truths, list("abcde"))][4] == [left]


def test_there_are_never_more_constant_boxes_than_the_others_have() -> None:
    truths = [[[0, 0, 10, 10]], [[0, 0, 10, 12], [20, 20, 30, 30]]]
    found = constant_boxes(truths, [1, 2], count=5)
    assert [len(one) for one in found] == [2, 1]


@pytest.mark.parametrize("count", [1, 2])
def test_a_patients_own_boxes_do_not_change_its_guess(cohort: tuple[list, list], count: int) -> None:
    truths, groups = cohort
    before = constant_boxes(truths, groups, count)
    for patient in sorted(set(groups)):
        own = [group == patient for group in groups]
        changed = [truth + 7 if mine else truth for truth, mine in zip(truths, own, strict=True)]
        after = constant_boxes(changed, groups, count)
        for place in np.flatnonzero(own):
            np.testing.assert_array_equal(after[place], before[place])


def test_images_of_one_patient_have_one_guess_of_the_others_boxes(cohort: tuple[list, list]) -> None:
    truths, groups = cohort
    found = constant_boxes(truths, groups, 2)
    for place, group in enumerate(groups):
        np.testing.assert_array_equal(found[place], found[groups.index(group)])
        others = [tuple(box) for truth, other in zip(truths, groups, strict=True) if other != group for box in truth]
        assert {tuple(box) for box in found[place]} <= set(others)


def test_a_constant_box_is_the_best_of_the_others_boxes(cohort: tuple[list, list]) -> None:
    """Against every candidate, one after the other."""
    truths, groups = cohort
    guesses = constant_boxes(truths, groups)
    for place, group in enumerate(groups):
        others = [truth for truth, other in zip(truths, groups, strict=True) if other != group]
        means = [np.mean([image_score(truth, [box]) for truth in others]) for one in others for box in one]
        chosen = np.mean([image_score(truth, guesses[place]) for truth in others])
        assert chosen == pytest.approx(max(means))


def test_two_constant_boxes_never_score_below_one_on_the_others(cohort: tuple[list, list]) -> None:
    truths, groups = cohort
    one, two, three = (constant_boxes(truths, groups, count) for count in (1, 2, 3))
    gained = 0.0
    for place, group in enumerate(groups):
        others = [truth for truth, other in zip(truths, groups, strict=True) if other != group]
        scores = [np.mean([image_score(truth, guess[place]) for truth in others]) for guess in (one, two, three)]
        assert scores == sorted(scores)
        gained += scores[1] - scores[0]
        np.testing.assert_array_equal(two[place][:1], one[place])
    assert gained > 0


def test_one_patient_alone_has_no_others() -> None:
    with pytest.raises(UsageError, match="All images are of one patient"):
        constant_boxes([[[0, 0, 1, 1]]] * 2, ["a", "a"])


@pytest.mark.parametrize(
    ("truths", "groups", "said"),
    [
        ([[[0, 0, 1, 1]]], ["a", "b"], "the same images"),
        ([], [], "at least one"),
        ([[[0, 0, 1, 1]], []], ["a", "b"], "no ground-truth box of image 1"),
        ([[[5, 0, 1, 1]], [[0, 0, 1, 1]]], ["a", "b"], "ground truth of image 0"),
    ],
)
def test_lists_that_do_not_fit_are_refused(truths: list, groups: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        constant_boxes(truths, groups)


def test_any_hashable_may_name_a_patient() -> None:
    truths = [[[0, 0, 10, height]] for height in (10, 20, 15, 12)]
    expected = constant_boxes(truths, ["a", "b", "c", "d"])
    found = constant_boxes(truths, [("a", 1), ("b", 1), ("c", 1), ("d", 1)])
    np.testing.assert_array_equal(found, expected)


# --- scores ---


def painted(guesses: list[np.ndarray]) -> np.ndarray:
    """Heatmaps that are 1 inside the boxes."""
    maps = np.zeros((len(guesses), *SIZE))
    for heat, guess in zip(maps, guesses, strict=True):
        for left, top, right, bottom in np.asarray(guess, int):
            heat[top:bottom, left:right] = 1
    return maps


def test_rows_are_those_of_a_network_whose_heatmap_is_the_guess() -> None:
    """Odd sides, so that the center is one pixel."""
    rng = np.random.default_rng(1)
    truths = [random_boxes(rng, 1 + place % 3) for place in range(20)]
    guesses = [random_boxes(rng, 1) for _ in truths]
    for guess in guesses:
        guess[:, 2:] += 1 - (guess[:, 2:] - guess[:, :2]) % 2
    names = [f"{place}.png" for place in range(20)]
    expected = score_rows(names, painted(guesses), truths, 0.5, 0)
    found = guess_rows(names, guesses, truths, SIZE)
    pd.testing.assert_frame_equal(found, expected)
    assert 0 < found["pointing"].mean() < 1


def test_the_score_is_that_of_an_image_and_the_energy_the_share_inside() -> None:
    rng = np.random.default_rng(2)
    truths, guesses = ([random_boxes(rng, 1 + place % 3) for place in range(12)] for _ in range(2))
    rows = guess_rows(range(12), guesses, truths, SIZE)
    maps = painted(guesses)  # boxes that overlap count once
    for row, truth, guess, heat in zip(rows.itertuples(), truths, guesses, maps, strict=True):
        assert row.score == pytest.approx(image_score(truth, guess))
        assert row.energy == pytest.approx(energy_inside(heat, truth))
        assert (row.n_gt, row.n_pred) == (len(truth), len(guess))
        assert json.loads(row.gt_boxes) == truth.tolist()
        assert json.loads(row.boxes) == guess.tolist()


def test_the_whole_image_holds_as_much_energy_as_the_truth_has_area() -> None:
    truths = [[[0, 0, 30, 40]], [[10, 10, 20, 22]]]
    rows = guess_rows(["a", "b"], whole_image(2, SIZE), truths, SIZE)
    np.testing.assert_allclose(rows["energy"], [0.5, 120 / 2400])
    np.testing.assert_allclose(rows["score"], [0.5, 120 / 2400])
    assert rows["pointing"].tolist() == [0, 0]  # the center is pixel 30, 20: right of the first, below the second
    assert guess_rows(["a"], whole_image(1, SIZE), [[[30, 20, 31, 21]]], SIZE)["pointing"].tolist() == [1]


def test_a_guess_points_to_the_center_of_its_largest_box() -> None:
    small, large = [0, 0, 6, 6], [20, 10, 40, 30]
    truth = {"small": [[0, 0, 10, 10]], "large": [[29, 19, 32, 22]]}
    for order in ([small, large], [large, small]):
        rows = guess_rows(["small", "large"], [order, order], list(truth.values()), SIZE)
        assert rows["pointing"].tolist() == [0, 1]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_guess_that_equals_the_truth_scores_one_everywhere(count: int) -> None:
    boxes = np.array([[0, 0, 9, 13], [20, 3, 36, 21], [40, 30, 60, 40]])[:count]
    rows = guess_rows(["a"], [boxes], [boxes], SIZE)
    columns = ["score", "matched", "best_iou", "hit_30", "hit_50", "hit_70", "pointing", "energy"]
    assert rows[columns].to_numpy().tolist() == [[1] * 8]


def test_no_box_scores_zero_everywhere() -> None:
    rows = guess_rows(["a"], [np.zeros((0, 4))], [[[0, 0, 9, 9]]], SIZE)
    assert rows.drop(columns=["name", "n_gt", "boxes", "gt_boxes"]).to_numpy().tolist() == [[0] * 9]


def test_a_summary_takes_the_rows(cohort: tuple[list, list]) -> None:
    truths, groups = cohort
    rows = guess_rows(range(len(truths)), constant_boxes(truths, groups), truths, SIZE)
    summary = summarize(rows, resamples=50).set_index("metric")
    assert summary.loc["score", "mean"] == pytest.approx(rows["score"].mean())
    assert summary.loc["no_box", "mean"] == 0
    assert (summary["n"] == len(truths)).all()


def test_bad_lists_are_refused() -> None:
    box = [[0, 0, 9, 9]]
    with pytest.raises(UsageError, match="the same images"):
        guess_rows(["a"], [box, box], [box], SIZE)
    with pytest.raises(UsageError, match="guess of image 0"):
        guess_rows(["a"], [[[9, 0, 0, 9]]], [box], SIZE)
    with pytest.raises(UsageError, match="no ground-truth box of image 0"):
        guess_rows(["a"], [box], [[]], SIZE)
    with pytest.raises(UsageError, match="ground truth of image 0 must lie in the 60x40"):
        guess_rows(["a"], [box], [[[0, 0, 61, 40]]], SIZE)


@pytest.mark.parametrize("guess", [[-20, -20, -10, -10], [70, 50, 90, 60]])
def test_a_guess_outside_the_image_is_refused(guess: list[int]) -> None:
    """As documented."""
    with pytest.raises(UsageError, match="guess of image 0"):
        guess_rows(["a"], [[guess]], [[[30, 20, 60, 40]]], SIZE)


def test_grid_boxes_are_the_whole_then_its_quarters_then_its_ninths() -> None:
    boxes = grid_boxes(6, (60, 120))  # height, width
    assert boxes.dtype == np.float32
    assert boxes.tolist() == [
        [0, 0, 120, 60],
        [0, 0, 60, 30], [60, 0, 120, 30], [0, 30, 60, 60], [60, 30, 120, 60],
        [0, 0, 40, 20],
    ]  # fmt: skip
    assert grid_boxes(0, (60, 120)).shape == (0, 4)
    with pytest.raises(UsageError, match="count is -1"):
        grid_boxes(-1, (60, 120))
