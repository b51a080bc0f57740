"""One finding a record or all at once: labels, boxes and patients go with them."""

from pathlib import Path

import numpy as np
import pytest

from tbkd_utils.data.labels import LABELS
from tbkd_utils.data.records import Radiograph


def radiograph(name: str, target: int | tuple[int, ...], categories: tuple[int, ...] = ()) -> Radiograph:
    boxes = np.array([[10 * i, 0, 10 * i + 5, 5] for i in range(len(categories))], np.float32).reshape(-1, 4)
    return Radiograph(Path(name), target, boxes, "made", categories=categories, group=name[0], size=(50, 50))


@pytest.fixture
def records() -> list[Radiograph]:
    return [
        radiograph("a1.png", (1, 0, 1), (3, 1, 3)),
        radiograph("a2.png", (0, 0, 0)),
        radiograph("b1.png", (0, 1, 1), (2,)),
        radiograph("c1.png", (0, 1, 0)),
    ]


def test_single_counts_an_image_once_per_finding_with_its_own_boxes(records: list[Radiograph]) -> None:
    found = LABELS["single"](records)
    assert [(record.name, record.target) for record in found] == [
        ("a1.png", 0),
        ("a1.png", 2),
        ("b1.png", 1),
        ("b1.png", 2),
        ("c1.png", 1),
    ]
    assert [record.boxes[:, 0].tolist() for record in found] == [[10], [0, 20], [0], [], []]
    assert [record.categories for record in found] == [(1,), (3, 3), (2,), (), ()]
    assert [record.group for record in found] == ["a", "a", "b", "b", "c"]


def test_single_counts_as_many_as_there_are_labels(records: list[Radiograph]) -> None:
    assert len(LABELS["single"](records)) == sum(sum(record.target) for record in records)


def test_single_leaves_what_is_single(records: list[Radiograph]) -> None:
    once = LABELS["single"](records)
    assert LABELS["single"](once) == once


def test_boxes_of_unknown_category_stay(records: list[Radiograph]) -> None:
    unknown = Radiograph(Path("d.png"), (1, 1), np.array([[0, 0, 5, 5]]), "made")
    assert [len(record.boxes) for record in LABELS["single"]([unknown])] == [1, 1]


def test_multi_keeps_every_radiograph_as_it_is(records: list[Radiograph]) -> None:
    assert LABELS["multi"](records) == records
