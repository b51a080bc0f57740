"""Ablations: tables against numbers worked out by hand, and verdicts that follow from intervals alone."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tbkd_utils.experiments.comparisons import curve_rows, difference_table, side, variant_rows
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.guesses import blind_guesses
from tbkd_utils.systems.tb.grid import COMPARED, control_variants, seed_variants, temperature_variants
from tbkd_utils.systems.tb.paper import TABLE_3, published_seeds
from tbkd_utils.systems.tb.sentences import curve_sentence, difference_sentences
from tbkd_utils.systems.tb.tables import condition_table, table_3_seeds
from tbkd_utils.systems.tb.verdicts import _best
from tbkd_utils.views.ablation_figures import ablation_curve, seeds_by_condition


def paper_rows() -> pd.DataFrame:
    """The paper's Table 3 as rows of this package."""
    found = [(condition, seed, TABLE_3[seed][condition]) for condition in ("teacher", "student") for seed in TABLE_3]
    table = pd.DataFrame(found, columns=["condition", "value", "miou"])
    return table.assign(matched=table["miou"] / 2)  # the paper has no such number


def test_the_papers_own_numbers_give_the_papers_means_and_deviations() -> None:
    table = condition_table(paper_rows()).set_index("condition")
    assert round(table.loc["teacher", "mean"], 4) == 0.1443
    assert round(table.loc["student", "mean"], 4) == 0.2156
    assert round(table.loc["teacher", "population_std"], 4) == 0.0243
    assert round(table.loc["student", "population_std"], 4) == 0.0568
    assert round(table.loc["teacher", "sample_std"], 4) == 0.0281
    assert round(table.loc["student", "sample_std"], 4) == 0.0656
    for condition in ("teacher", "student"):
        row, values = table.loc[condition], [by[condition] for by in TABLE_3.values()]
        low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
        assert (row["low"], row["high"]) == pytest.approx((low, high))
        assert row["paper_mean"] == pytest.approx(row["mean"])
        assert row["paper_std"] == pytest.approx(row["population_std"])
    seeds = table_3_seeds(paper_rows()).set_index("seed")
    assert seeds.loc[1, "difference"] == pytest.approx(0.1190 - 0.1324)
    assert (seeds["student"] == seeds["student paper"]).all()
    assert seeds.loc[1, ["teacher matched", "student matched"]].tolist() == pytest.approx([0.1324 / 2, 0.1190 / 2])
    for end in ("", "_low", "_high"):  # half of every number
        of_miou = table.loc["student", {"": "mean"}.get(end, end[1:])]
        assert table.loc["student", f"matched{end}"] == pytest.approx(of_miou / 2)


def test_the_best_box_free_guess_stands_below_the_conditions(smoke: Experiment) -> None:
    guesses = blind_guesses(smoke)
    row = condition_table(paper_rows(), guesses).iloc[-1]
    own = guesses.scores(guesses.best).set_index("metric")
    assert (row["condition"], row["seeds"]) == (f"blind: {guesses.best}", 0)
    assert row[["mean", "low", "high"]].tolist() == own.loc["score", ["mean", "low", "high"]].tolist()
    assert (
        row[["matched", "matched_low", "matched_high"]].tolist() == own.loc["matched", ["mean", "low", "high"]].tolist()
    )
    assert row[["sample_std", "population_std", "paper_mean"]].isna().all()
    assert len(condition_table(paper_rows())) == 2


def test_curves_and_seeds_have_the_guess_as_a_level_line() -> None:
    rows = paper_rows().assign(low=0.1, high=0.3)
    curve = rows[rows["condition"] == "student"]
    figures = (
        ablation_curve(curve, rows[:1], "T", 2.0, ("upper half of the image", 0.42)),
        seeds_by_condition(rows, published_seeds(), ("upper half of the image", 0.42)),
    )
    for figure in figures:
        (line,) = [
            one for one in figure.axes[0].lines if one.get_label() == "best box-free guess: upper half of the image"
        ]
        assert list(line.get_ydata()) == [0.42, 0.42]


@pytest.mark.slow
def test_differences_over_seeds_and_over_radiographs(smoke: Experiment) -> None:
    variants = [*seed_variants(smoke.recipe), *control_variants(smoke.recipe)]
    rows, table = variant_rows(smoke, variants), difference_table(smoke, variants, COMPARED)
    assert len(rows) == 10
    assert table["comparison"].tolist() == [
        "student - teacher", "student - second teacher", "student - label smoothing",
        "student - untrained teacher's student", "second teacher - teacher", "label smoothing - teacher",
        "untrained teacher's student - teacher",
    ]  # fmt: skip
    miou = rows.set_index(["condition", "value"])["miou"]
    for row in table.to_dict("records"):
        first, second = row["comparison"].split(" - ")
        differences = [miou[first, seed] - miou[second, seed] for seed in smoke.recipe.ablation.seeds]
        assert row["difference"] == pytest.approx(np.mean(differences))
        assert row["std"] == pytest.approx(np.std(differences, ddof=1))
        low, high = stats.t.interval(0.95, 1, loc=np.mean(differences), scale=stats.sem(differences))
        assert (row["seed_low"], row["seed_high"]) == pytest.approx((low, high))
        assert row["image_low"] <= row["difference"] <= row["image_high"]
        assert 0 < row["image_p"] <= 1
    assert difference_sentences(table).count("\n") == 6
    figure = seeds_by_condition(rows, published_seeds())
    assert [label.get_text().replace("\n", " ") for label in figure.axes[0].get_xticklabels()] == list(
        dict.fromkeys(rows["condition"])
    )


def test_a_curve_says_how_sure_its_best_value_is(smoke: Experiment) -> None:
    variants = temperature_variants(smoke.recipe)
    rows = curve_rows(smoke, variants)
    assert rows["value"].tolist() == [1.0, 2.0]
    assert rows["best"].sum() == pytest.approx(1)
    pd.testing.assert_frame_equal(rows, curve_rows(smoke, variants))
    assert (rows["low"] <= rows["miou"]).all()
    assert (rows["miou"] <= rows["high"]).all()
    best = rows["value"][rows["miou"].argmax()]
    assert curve_sentence(rows, "temperature", 2.0).startswith(f"Highest mIOU at temperature {best:g}")
    assert "3, is not among the values" in curve_sentence(rows, "temperature", 3.0)
    said = curve_sentence(rows, "temperature", 2.0, ("whole image", 0.1234))
    assert said.endswith(" The best box-free guess, the whole image, has an mIOU of 0.123.")
    line = ablation_curve(rows, variant_rows(smoke, seed_variants(smoke.recipe)[:1]), "T", 2.0).axes[0].lines[1]
    assert list(line.get_ydata()) == rows["miou"].tolist()


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 0.2, "yes"), (-0.2, -0.1, "no"), (-0.1, 0.1, "not shown"), (0, 0, "not shown")]
)
def test_a_claim_holds_by_its_interval(low: float, high: float, verdict: str) -> None:
    assert side(low, high, 0) == verdict


@pytest.mark.parametrize(
    ("share", "gap", "verdict"),
    [
        (0.96, 0.1, "yes"),
        (0.5, 0.1, "not shown"),
        (0.01, -0.1, "no"),
        (0.96, 0.01, "not shown"),  # sure of these radiographs, but another seed could turn it
        (0.01, -0.01, "not shown"),
    ],
)
def test_a_best_value_holds_if_sure_over_radiographs_and_seeds(share: float, gap: float, verdict: str) -> None:
    rows = pd.DataFrame({"value": [1.0, 2.0], "miou": [0.2, 0.2 + gap], "best": [1 - share, share]})
    *_, here, found = _best("Figure 8", "temperature", 2.0, rows, seed_std=0.02)
    assert found == verdict
    sure_of_seeds = stats.norm.cdf(gap / (0.02 * np.sqrt(2)))
    assert int(re.search(r"(\d+)% of trainings", here)[1]) == pytest.approx(100 * sure_of_seeds, abs=1.5)
    assert _best("Figure 8", "temperature", 3.0, rows, seed_std=0.02)[-1] == "not shown"
    assert _best("Figure 8", "temperature", 2.0, rows, seed_std=np.nan)[-1] == "not shown"
