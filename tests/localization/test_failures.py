"""What went wrong, by name: every kind from a drawing by hand, the order of the rules, and the counts."""

import numpy as np
import pandas as pd
import pytest

from tbkd_utils.errors import UsageError
from tbkd_utils.localization.failures import BOX_KINDS, LESION_KINDS, failure_rows, failure_table, name_failures

MIDDLE = 50.0
LESION = [10.5, 20.5, 30.5, 40.5]
"""20 x 20 pixels around (20.5, 30.5), left of the middle."""
ONE_BOX = {
    "found": ([10.5, 20.5, 30.5, 50.5], "with a lesion"),  # IoU 400 / 600
    "missed lung": ([60.5, 20.5, 80.5, 40.5], "wrong lung"),
    "too high": ([10.5, 2.5, 30.5, 10.5], "with a lesion"),  # centers 24 apart, more than 10
    "too low": ([34.5, 35.5, 44.5, 55.5], "with a lesion"),  # 15 apart
    "elsewhere in the lung": ([34.5, 28.5, 44.5, 48.5], "with a lesion"),  # 8 apart
    "too large": ([0.5, 10.5, 40.5, 40.5], "with a lesion"),  # 1200, all of the lesion in it, IoU 1 / 3
    "too small": ([14.5, 24.5, 24.5, 34.5], "with a lesion"),  # 100, all in the lesion, IoU 1 / 4
    "shifted": ([20.5, 30.5, 40.5, 50.5], "with a lesion"),  # 400, a quarter on the lesion, IoU 1 / 7
}


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_each_kind_of_one_lesion_beside_one_box(kind: str) -> None:
    box, of_box = ONE_BOX[kind]
    assert name_failures([LESION], [box], MIDDLE) == ([kind], [of_box])


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_kinds_are_the_same_in_the_other_lung(kind: str) -> None:
    def mirrored(box: list[float]) -> list[float]:
        return [100 - box[2], box[1], 100 - box[0], box[3]]

    box, of_box = ONE_BOX[kind]
    assert name_failures([mirrored(LESION)], [mirrored(box)], MIDDLE) == ([kind], [of_box])


def test_half_the_height_is_still_beside() -> None:
    assert name_failures([LESION], [[34.5, 30.5, 44.5, 50.5]], MIDDLE)[0] == ["elsewhere in the lung"]  # 10 apart
    assert name_failures([LESION], [[34.5, 31.5, 44.5, 51.5]], MIDDLE)[0] == ["too low"]  # 11 apart


def test_sizes_at_their_limits_are_shifted() -> None:
    # twice the area and exactly half of the lesion; then more of both
    assert name_failures([LESION], [[20.5, 20.5, 60.5, 40.5]], 80)[0] == ["shifted"]
    assert name_failures([LESION], [[19.5, 20.5, 61.5, 40.5]], 80)[0] == ["too large"]
    # half the area, all of it in the lesion, has IoU 0.5 and is found; a little less is too small
    assert name_failures([LESION], [[10.5, 20.5, 20.5, 40.5]], MIDDLE)[0] == ["found"]
    assert name_failures([LESION], [[10.5, 20.5, 20.0, 40.5]], MIDDLE)[0] == ["too small"]
    # a small box with half of itself outside
    assert name_failures([LESION], [[6.5, 20.5, 14.5, 24.5]], MIDDLE)[0] == ["shifted"]


def test_no_box_and_no_lesion() -> None:
    right = [60.0, 10.0, 70.0, 20.0]
    assert name_failures([LESION, right], [], MIDDLE) == (["missed lung", "missed lung"], [])
    assert name_failures([], [LESION, right], MIDDLE) == ([], ["wrong lung", "wrong lung"])
    assert name_failures([], [], MIDDLE) == ([], [])


def test_surplus_boxes_are_those_that_no_lesion_is_compared_with() -> None:
    same, near, far, other = LESION, [12.0, 45.0, 28.0, 60.0], [12.0, 70.0, 28.0, 90.0], [60.0, 20.0, 80.0, 40.0]
    assert name_failures([LESION], [other, far, same], MIDDLE) == (
        ["found"],
        ["wrong lung", "surplus", "with a lesion"],
    )
    # none overlaps: the nearest is the partner
    assert name_failures([LESION], [far, near], MIDDLE) == (["too low"], ["surplus", "with a lesion"])


def test_the_partner_is_the_box_of_the_largest_overlap_not_the_nearest() -> None:
    inside, beside = [14.5, 24.5, 24.5, 34.5], [18.5, 28.5, 22.5, 32.5]  # IoU 100 / 400 and, at the center, 16 / 400
    assert name_failures([LESION], [beside, inside], MIDDLE) == (["too small"], ["surplus", "with a lesion"])


def test_a_box_finds_one_lesion_only() -> None:
    """Two lesions side by side and a box on both: IoU 0.5 with each, so that it finds either one."""
    both = [10.0, 20.0, 30.0, 40.0]
    halves = [[10.0, 20.0, 20.0, 40.0], [20.0, 20.0, 30.0, 40.0]]
    kinds, boxes = name_failures(halves, [both], MIDDLE)
    assert sorted(kinds) == ["found", "shifted"]  # the area is twice the lesion's and not more
    assert boxes == ["with a lesion"]


def test_as_many_lesions_are_found_as_can_be() -> None:
    """One way finds one lesion at IoU 1, the other way two, at 0.5 and 0.6."""
    first, second = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 20.0]
    boxes = [first, [0.0, 0.0, 10.0, 6.0]]  # IoU with first 1 and 0.6, with second 0.5 and 0.3
    assert name_failures([first, second], boxes, MIDDLE)[0] == ["found", "found"]


def test_a_box_that_found_a_lesion_is_compared_with_another_only_for_want_of_others() -> None:
    upper, lower = [10.0, 10.0, 30.0, 20.0], [10.0, 60.0, 30.0, 70.0]
    assert name_failures([upper, lower], [upper], MIDDLE) == (["found", "too high"], ["with a lesion"])
    free = [10.0, 90.0, 30.0, 96.0]
    assert name_failures([upper, lower], [upper, free], MIDDLE) == (["found", "too low"], ["with a lesion"] * 2)


def test_a_box_over_both_lungs_is_too_large_for_the_lesions_of_both() -> None:
    right = [65.0, 20.0, 85.0, 40.0]
    whole = [0.0, 0.0, 100.0, 100.0]  # its center is right of the middle, as far as sides go
    assert name_failures([LESION, right], [whole], MIDDLE) == (["too large", "too large"], ["with a lesion"])


def test_rows_and_counts_by_hand() -> None:
    right = [60.0, 20.0, 80.0, 40.0]
    rows = failure_rows(
        ["a", "b", "c"],
        [[LESION], [LESION, right], [LESION]],
        [[LESION, right], [ONE_BOX["too low"][0]], []],
        [MIDDLE] * 3,
    )
    assert list(rows.itertuples(index=False, name=None)) == [
        ("a", "lesion", 0, "found"),
        ("a", "box", 0, "with a lesion"),
        ("a", "box", 1, "wrong lung"),
        ("b", "lesion", 0, "too low"),
        ("b", "lesion", 1, "missed lung"),
        ("b", "box", 0, "with a lesion"),
        ("c", "lesion", 0, "missed lung"),
    ]
    table = failure_table(rows)
    assert table["kind"].tolist() == [*LESION_KINDS, *BOX_KINDS]
    counted = table.set_index("kind")
    assert counted["count"][["found", "missed lung", "too low", "with a lesion", "wrong lung"]].tolist() == [
        1,
        2,
        1,
        2,
        1,
    ]
    assert counted["share"][["found", "missed lung", "wrong lung"]].tolist() == pytest.approx([1 / 4, 1 / 2, 1 / 3])
    assert table.groupby("about")["count"].sum().to_dict() == {"box": 3, "lesion": 4}
    assert table.groupby("about")["share"].sum().to_dict() == pytest.approx({"box": 1, "lesion": 1})
    assert table.groupby("about")["n"].first().to_dict() == {"box": 3, "lesion": 4}


def test_intervals_draw_radiographs_or_patients_with_all_their_lesions() -> None:
    """Two radiographs of three lesions: all found on one, none on the other, so that a draw gives 0, 1/2 or 1."""
    rows = pd.DataFrame({"name": ["a"] * 3 + ["b"] * 3, "about": "lesion", "kind": ["found"] * 3 + ["shifted"] * 3})
    found = failure_table(rows).set_index("kind").loc["found"]
    assert (found["share"], found["low"], found["high"]) == (0.5, 0.0, 1.0)
    one = failure_table(rows.assign(patient="p")).set_index("kind").loc["found"]
    assert (one["low"], one["high"]) == (0.5, 0.5)


def test_without_a_box_there_is_no_share_of_boxes() -> None:
    table = failure_table(failure_rows(["a"], [[LESION]], [[]], [MIDDLE])).set_index("kind")
    assert table.loc["missed lung", "share"] == 1
    assert np.isnan(table.loc["surplus", ["share", "low", "high"]].astype(float)).all()
    assert table.loc["surplus", "n"] == 0


def test_bad_input_is_refused() -> None:
    with pytest.raises(UsageError, match="middle must be a column"):
        name_failures([LESION], [], np.nan)
    with pytest.raises(UsageError, match="predictions must be left, top, right, bottom"):
        name_failures([LESION], [[10, 10, 5, 20]], MIDDLE)
    with pytest.raises(UsageError, match="middles 1"):
        failure_rows(["a", "b"], [[LESION]] * 2, [[]] * 2, [MIDDLE])
