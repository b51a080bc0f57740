"""The list of radiographs: what stands in it, how it is sorted and filtered."""

import numpy as np
import pytest

from tbkd_utils.data.synthetic.dataset import read_synthetic_lesions
from tbkd_utils.errors import UsageError
from tbkd_utils.experiments.evaluation import Localization, localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import train
from tbkd_utils.views.cases import ALL, ORDERS, SIZES, case_table, chosen_cases, kinds_of


@pytest.fixture(scope="module")
def networks(smoke: Experiment) -> tuple[Localization, Localization]:
    return localization(smoke, train(smoke, "teacher")), localization(smoke, train(smoke, "student"))


def test_a_row_says_what_the_evaluation_says(networks) -> None:
    teacher, student = networks
    table = case_table(teacher, student)
    assert list(table["name"]) == list(teacher.samples.names)
    assert np.array_equal(table["gain"], student.rows["score"] - teacher.rows["score"])
    for row in table.itertuples():
        boxes = teacher.samples.boxes[row.teacher]
        assert student.samples.names[row.student] == row.name
        assert row.lesions == len(boxes)
        assert row.area == pytest.approx(max((box[2] - box[0]) * (box[3] - box[1]) for box in boxes))


def test_kinds_are_the_categories_and_what_was_drawn(networks, smoke: Experiment) -> None:
    table, drawn = case_table(*networks), read_synthetic_lesions(smoke.root)
    for row in table.itertuples():
        assert set(row.kinds) - {"active TB", "latent TB", "uncertain TB"} == set(drawn[row.name])
        assert {"active TB", "latent TB", "uncertain TB"} & set(row.kinds)
    assert kinds_of(table)[0] == ALL
    assert set(kinds_of(table)[1:]) == {kind for kinds in table["kinds"] for kind in kinds}


def test_sizes_are_thirds_by_the_largest_lesion(networks) -> None:
    table = case_table(*networks)
    counts = table["size"].value_counts()
    assert counts.max() - counts.min() <= 1
    bounds = [table.loc[table["size"] == size, "area"] for size in SIZES[1:]]
    assert bounds[0].max() <= bounds[1].min()
    assert bounds[1].max() <= bounds[2].min()


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_sorts_and_loses_nothing(networks, order: str) -> None:
    table = case_table(*networks)
    chosen, (column, ascending) = chosen_cases(table, order), ORDERS[order]
    assert sorted(chosen["name"]) == sorted(table["name"])
    assert list(chosen[column]) == sorted(table[column], reverse=not ascending)


def test_filters_keep_what_fits_and_combine(networks) -> None:
    table = case_table(*networks)
    kind = table["kinds"].iloc[0][-1]
    size = table["size"].iloc[0]
    chosen = chosen_cases(table, "name", kind, size)
    assert table["name"].iloc[0] in set(chosen["name"])
    fits = [kind in kinds and own == size for kinds, own in zip(table["kinds"], table["size"], strict=True)]
    assert len(chosen) == sum(fits)
    assert chosen_cases(table, "name", "no such kind").empty


def test_an_order_or_a_size_that_does_not_exist_is_an_error(networks) -> None:
    table = case_table(*networks)
    with pytest.raises(UsageError, match="got beauty, all"):
        chosen_cases(table, "beauty")
    with pytest.raises(UsageError, match="got name, huge"):
        chosen_cases(table, "name", size="huge")
