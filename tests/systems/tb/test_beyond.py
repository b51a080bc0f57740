"""The conditions between a blind guess and full supervision, and what is said of them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tbkd_utils.errors import SettingsError
from tbkd_utils.experiments.evaluation import Localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.grid import distinct
from tbkd_utils.experiments.guesses import BlindGuesses, blind_guesses
from tbkd_utils.experiments.series import training_steps
from tbkd_utils.experiments.system import named_recipe
from tbkd_utils.systems.tb import beyond as b
from tbkd_utils.systems.tb import grid as g
from tbkd_utils.systems.tb.exercises import oracle_lungs, upper_share, weaker_yardstick
from tbkd_utils.views.beyond_figures import condition_intervals, map_grid, spread_of_scores

CHOSEN = ("teacher", g.BEST, g.FULL)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return b.beyond_paper(Experiment.open("smoke", out=tmp_path_factory.mktemp("beyond")))


@pytest.fixture(scope="module")
def guesses(ours: Experiment) -> BlindGuesses:
    return blind_guesses(ours)


@pytest.fixture(scope="module")
def found(ours: Experiment) -> dict[str, list[Localization]]:
    return b.located(ours, CHOSEN)


def test_the_recipe_beyond_takes_what_was_given_by_hand_along(tmp_path: Path) -> None:
    given = Experiment.open("smoke", out=tmp_path, overrides={"statistics_seed": 7, "augmentation": "none"})
    ours = b.beyond_paper(given)
    assert ours.recipe.name == "maps_smoke"
    assert ours.recipe.statistics.statistics_seed == 7
    assert ours.recipe.training.augmentation == "crops"  # the recipe sets it itself
    assert b.beyond_paper(ours) == ours


def test_a_recipe_without_counterpart_is_refused(tmp_path: Path) -> None:
    given = Experiment.open("smoke", out=tmp_path)
    renamed = given.recipe.model_copy(update={"name": "mine"})
    with pytest.raises(SettingsError, match="No recipe goes beyond 'mine': expected one of smoke, demo"):
        b.beyond_paper(Experiment(renamed, data=given.data, out=given.out))


def test_every_seed_has_teachers_of_its_own(ours: Experiment) -> None:
    chains = g.chains(g.beyond(ours.recipe))
    assert [chain.maps.map_teachers for chain in chains] == [(0, 1), (2, 3)]
    assert [chain.training.seed for chain in chains] == [0, 1]
    assert [one.training.seed for one in g.teachers_of(chains[1])] == [2, 3]


def test_the_grid_holds_every_network_and_teachers_come_first(ours: Experiment) -> None:
    variants = distinct(ours, g.beyond_variants(named_recipe("smoke")))
    roles = [variant.role for variant in variants]
    assert roles[:4] == ["teacher"] * 4
    assert roles.count("teacher") == 4 + 2 + 2  # two chains of two, and one a chain for each of two conditions
    assert roles.count("map_student") == 4 * 2
    steps = training_steps(Experiment.open("smoke", out=ours.out), variants)
    assert steps[0].name == "maps_smoke: teacher (seed=0)"
    assert "maps_smoke: map_student (seed=1, map_teachers=[2, 3], mask_source=boxes)" in [one.name for one in steps]
    loaded = {one.run.path for name in CHOSEN for one in b.networks(ours, name)}
    assert loaded <= {step.job.run.path for step in steps}
    assert g.beyond_variants(ours.recipe) == []


def test_negatives_of_another_dataset_are_a_condition_where_there_are_some(ours: Experiment, tmp_path: Path) -> None:
    own = g.beyond(ours.recipe)
    assert set(g.steps_of(own)) == set(g.STEPS) - {g.NEGATIVES}
    others = Experiment.open("smoke", out=tmp_path, overrides={"synthetic_seed": 5})
    given = ours.changed(more_negatives=str(others.root))
    assert g.steps_of(g.beyond(given.recipe)) == tuple(g.STEPS)
    more, plain = (b.looked_at(given, name).full_train for name in (g.NEGATIVES, "teacher, one box a lung"))
    assert len(plain) == 32
    assert len(more) == 32 + 8 + 4  # the healthy ones of both splits; those that are sick are not without finding
    assert more.targets[32:].tolist() == [0] * 12
    assert plain.names == more.names[:32]
    with pytest.raises(SettingsError, match="negatives_data adds radiographs to the published training set"):
        _ = ours.changed(negatives_data=str(others.root), division="images").train_records


def test_every_row_comes_from_the_rows_per_radiograph(
    found: dict[str, list[Localization]], guesses: BlindGuesses
) -> None:
    table = b.condition_table(found, guesses).set_index("condition")
    assert list(table.index) == [guesses.best, *CHOSEN]
    for condition, ones in found.items():
        for name, metric in (("miou", "score"), ("matched", "matched")):
            by_hand = np.mean([one.rows[metric].mean() for one in ones])
            blind = guesses.of(guesses.best)[metric].mean()
            assert table.loc[condition, name] == pytest.approx(by_hand)
            assert table.loc[condition, f"{name}_minus_guess"] == pytest.approx(by_hand - blind)


def scored(**scores: float) -> pd.DataFrame:
    return pd.DataFrame({"name": list(scores), "score": scores.values(), "matched": scores.values(), "n_pred": 1})


def test_skill_is_the_share_of_the_way_from_the_guess_to_full_supervision(guesses: BlindGuesses) -> None:
    rows = scored(a=0.2, b=0.4).assign(guess=guesses.best)  # mean 0.3
    blind = replace(guesses, rows=rows, training=guesses.training)
    ours, full = scored(b=0.6, a=0.3), scored(a=0.8, b=0.6)  # 0.45, in another order, and 0.7
    found: dict[str, Any] = {g.BEST: [SimpleNamespace(rows=ours)], g.FULL: [SimpleNamespace(rows=full)]}
    table = b.condition_table(found, blind).set_index("condition")
    assert table["miou_skill"].tolist() == pytest.approx([0, 0.375, 1])
    assert table.loc[g.BEST, "matched_minus_guess"] == pytest.approx(0.15)
    weak = {**found, g.FULL: [SimpleNamespace(rows=scored(a=0.1, b=0.2))]}
    assert b.condition_table(weak, blind)["miou_skill"].isna().all()


def test_seeds_stand_one_by_one(found: dict[str, list[Localization]], guesses: BlindGuesses) -> None:
    table = b.seed_table(found, guesses)
    assert len(table) == len(CHOSEN) * 2 * 2  # seeds, metrics
    one = table[(table["condition"] == "teacher") & (table["seed"] == 1) & (table["metric"] == "matched")].iloc[0]
    assert one["mean"] == pytest.approx(found["teacher"][1].rows["matched"].mean())
    assert one["low"] <= one["difference"] <= one["high"]


def test_failures_name_every_lesion_of_every_seed(found: dict[str, list[Localization]], guesses: BlindGuesses) -> None:
    rows = b.failures(found[g.BEST], guesses)
    lesions = sum(len(boxes) for boxes in found[g.BEST][0].samples.boxes)
    assert (rows["about"] == "lesion").sum() == 2 * lesions


def test_scorings_are_counted(ours: Experiment, found: dict[str, list[Localization]], guesses: BlindGuesses) -> None:
    counted = b.scorings(ours).set_index("kind")["count"]
    assert counted["localization"] >= 2 * len(CHOSEN)
    assert counted["guesses"] >= 1


TABLE = pd.DataFrame(
    [
        {"condition": "upper halves", "learned_from": "nothing", "miou": 0.4, "matched": 0.3},
        {"condition": g.BEST, "learned_from": g.LABELS, "miou": 0.5, "matched": 0.4},
        {"condition": "student told of upper lobes", "learned_from": g.ANATOMY, "miou": 0.5, "matched": 0.4},
        {"condition": g.FULL, "learned_from": g.BOXES, "miou": 0.6, "matched": 0.8},
    ]
).assign(
    seeds=3, miou_minus_guess=0.1, miou_minus_guess_low=0.05, miou_minus_guess_high=0.15, matched_minus_guess=0.1,
    matched_minus_guess_low=0.05, matched_minus_guess_high=0.15, miou_skill=0.5, miou_skill_low=0.4,
    miou_skill_high=0.6, matched_skill=0.2, matched_skill_low=0.1, matched_skill_high=0.3,
)  # fmt: skip


def test_the_sentences_count_seeds_and_take_numbers_from_the_tables() -> None:
    seeds = pd.DataFrame(
        [(g.BEST, seed, metric, low) for seed, low in ((0, 0.1), (1, -0.1), (2, 0.2)) for metric in ("score",)],
        columns=["condition", "seed", "metric", "low"],
    )
    said = b.beyond_sentences(TABLE, seeds)
    assert "mIOU 0.500 (+0.100, +0.050 to +0.150 over the best box-free guess, “upper halves”)" in said
    assert "above the guess: 2 and 0 of 3" in said
    assert "image labels buy 50% (40% to 60%) in mIOU and 20% (10% to 30%) in one-to-one IoU" in said
    assert "no way to take a share of" in b.beyond_sentences(TABLE.assign(miou_skill=np.nan), seeds)


def test_a_weak_yardstick_flatters() -> None:
    skills = weaker_yardstick(TABLE, g.BEST, (0.0, 0.1, 0.2))
    assert skills["yardstick"].tolist() == pytest.approx([0.6, 0.5, 0.4])
    assert skills["skill"].tolist()[:2] == pytest.approx([0.5, 1.0])
    assert np.isnan(skills["skill"][2])


def test_the_oracle_of_lungs_draws_fewer_boxes_and_loses_no_miou(guesses: BlindGuesses) -> None:
    guess, oracle = oracle_lungs(guesses).to_dict("records")
    assert guess["boxes"] == 2
    assert oracle["boxes"] < 2
    assert guess["matched"] == pytest.approx(guesses.of(guesses.best)["matched"].mean())
    assert oracle["matched"] > guess["matched"]


def test_lesions_are_counted_once(guesses: BlindGuesses) -> None:
    shares = upper_share(guesses)
    assert shares["lesions"].sum() == guesses.of(guesses.best)["n_gt"].sum()
    assert shares["upper"].between(0, 1).all()


def test_the_figures_are_drawn(found: dict[str, list[Localization]], guesses: BlindGuesses) -> None:
    table = b.condition_table(found, guesses)
    labels = [text.get_text() for text in condition_intervals(table).axes[0].get_yticklabels()]
    assert labels == [guesses.best, *CHOSEN]
    best = found[g.BEST][0]
    places = spread_of_scores(best, 3)
    matched = best.rows["matched"].to_numpy()[places]
    assert matched[0] == best.rows["matched"].min()
    assert matched[-1] == best.rows["matched"].max()
    assert len(map_grid({name: ones[0] for name, ones in found.items()}, places).axes) == 3 * 4
