"""The audit in words: each verdict from numbers that leave no choice."""

import numpy as np
import pandas as pd
import pytest

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.systems.tb.leaning import answer_sentences, audited_roles, painting_sentences, swapping_sentences

MEASURES = ("mIOU", "AUC without lungs", "AUC lost without the rest", "energy in the lungs")
UP, DOWN, OPEN = (0.2, 0.1, 0.3), (-0.2, -0.3, -0.1), (0.0, -0.1, 0.1)


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        ((UP, DOWN, DOWN, UP), "the better localizer leans less, by 3 of 3 measures"),
        ((DOWN, UP, OPEN, OPEN), "the better localizer leans less, by 1 of 3 measures"),
        ((UP, UP, OPEN, DOWN), "the better localizer leans more, by 2 of 3 measures"),
        ((UP, UP, OPEN, UP), "the measures of leaning do not agree"),
        ((UP, OPEN, OPEN, OPEN), "that it leans less or more on the rest is not shown"),
        ((OPEN, DOWN, DOWN, UP), "neither localizes better than the other"),
    ],
)
def test_the_answer(signs: tuple, said: str) -> None:
    rows = [("student - teacher", name, *values, 9) for name, values in zip(MEASURES, signs, strict=True)]
    table = pd.DataFrame(rows, columns=["comparison", "measure", "difference", "low", "high", "n"])
    text = answer_sentences(table)
    assert said in text
    assert f"mIOU {signs[0][0]:+.3f} ({signs[0][1]:+.3f} to {signs[0][2]:+.3f})" in text


def painted(name: str, auc: float) -> dict:
    row = {"painted": name, "network": "teacher", "p_tb": 0.75, "p_other": 0.25, "auc": auc, "low": auc - 0.05}
    row |= {"high": auc + 0.05, "energy": 0.7, "energy_low": 0.6, "energy_high": 0.8}
    return row | {"lungs_area": 0.4}


@pytest.mark.parametrize(
    ("auc", "said"), [(0.8, "more than guessing"), (0.52, "not told from guessing"), (0.3, "less than guessing")]
)
def test_what_is_left_without_lungs(auc: float, said: str) -> None:
    table = pd.DataFrame([painted("nothing", 0.9), painted("lungs", auc), painted("all but the lungs", 0.85)])
    text = painting_sentences(table)
    assert f"With the lungs painted over {auc:.3f} ({auc - 0.05:.3f} to {auc + 0.05:.3f}): {said}" in text
    assert "70% (60% to 80%) of its heatmap lies in the lungs, which cover 40%: more than an even map" in text
    assert "side marker" not in text
    assert "side marker" in painting_sentences(pd.concat([table, pd.DataFrame([painted("marker", 0.9)])]))


def test_a_set_of_one_class_is_said_to_be_one() -> None:
    rows = [painted(name, np.nan) for name in ("nothing", "lungs", "all but the lungs")]
    assert "all of one class" in painting_sentences(pd.DataFrame(rows))


def swapped(trained: float, turned: float) -> pd.DataFrame:
    values = {"the same source": 0.7, "another, as in training": trained, "another, swapped": turned}
    rows = [("teacher", "any", name, auc, auc - 0.05, auc + 0.05) for name, auc in values.items()]
    return pd.DataFrame(rows, columns=["network", "tb_from", "no_tb_from", "auc", "low", "high"])


def told(*questions: str) -> pd.DataFrame:
    rows = [(question, 0.8, 0.7, 0.9, 0.5, 9) for question in questions]
    return pd.DataFrame(rows, columns=["question", "value", "low", "high", "blind", "n"])


def test_sources_swapped() -> None:
    many = told("named", "its source", "by pixels", "teacher")
    assert "it leans on the source" in swapping_sentences(swapped(0.9, 0.5), many)
    assert "it does better where sources are swapped" in swapping_sentences(swapped(0.5, 0.9), many)
    text = swapping_sentences(swapped(0.72, 0.7), many)
    assert "the intervals overlap" in text
    assert "name the source of 80% (70% to 90%; a guess 50%)" in text
    one = swapping_sentences(swapped(np.nan, np.nan), told("one source only", "teacher"))
    assert one == "- The training radiographs come from one source only: nothing can be swapped."


def test_the_student_of_maps_is_audited_where_its_teachers_are_named() -> None:
    assert audited_roles(Experiment.open("demo")) == ("teacher", "student")
    assert audited_roles(Experiment.open("maps_smoke")) == ("teacher", "student", "map_student")
