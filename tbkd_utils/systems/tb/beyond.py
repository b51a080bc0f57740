"""Beyond the paper: how much of the way from a blind guess to full supervision image labels buy.

Each condition changes one thing, with several seeds. The first ones look at teachers, which know labels alone; the
others are students of maps, which differ in where their masks come from. Each seed has teachers of its own, so that
seeds share nothing but the radiographs.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tbkd_utils.experiments.evaluation import Localization, localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.guesses import BlindGuesses
from tbkd_utils.experiments.trained import TrainedNetwork, train
from tbkd_utils.localization.boxes import boxes_from_json
from tbkd_utils.localization.failures import failure_rows
from tbkd_utils.localization.lungs import middle_between
from tbkd_utils.metrics.statistics import bootstrap_interval, paired_permutation_test, patients_of, skill
from tbkd_utils.systems.tb.grid import BEST, FULL, STEPS, TEACHER, at_step, beyond, chains, steps_of, teachers_of
from tbkd_utils.systems.tb.settings import TbRecipe


def beyond_paper(experiment: Experiment) -> Experiment:
    """Returns the experiment on the same radiographs by the recipe that goes beyond the paper's; see `grid.beyond`.

    Raises:
        SettingsError: If the recipe has no such counterpart.
    """
    return dataclasses.replace(experiment, recipe=beyond(experiment.recipe))


def looked_at(experiment: Experiment, condition: str) -> Experiment:
    """Returns the experiment under the settings of a condition."""
    return dataclasses.replace(experiment, recipe=at_step(_recipe(experiment), condition))


def _recipe(experiment: Experiment) -> TbRecipe:
    recipe = experiment.recipe
    assert isinstance(recipe, TbRecipe)
    return recipe


def networks(experiment: Experiment, condition: str, *, progress: bool = False) -> list[TrainedNetwork]:
    """Trains the networks of a condition, one per seed, or loads them; of a chain's teachers the first.

    Raises:
        UsageError: If lungs are needed and the training radiographs have no mean chest.
        RunError: If a run folder cannot be written.
    """
    role, found = STEPS[condition][0], []
    for chain in chains(at_step(_recipe(experiment), condition)):
        own = teachers_of(chain)[0] if role == TEACHER else chain
        found.append(train(dataclasses.replace(experiment, recipe=own), role, progress=progress))
    return found


def choosers(experiment: Experiment) -> list[TrainedNetwork]:
    """Returns networks of one role that can agree or not: the students of cleaned maps, or the only one's teachers.

    Raises:
        As `networks`.
    """
    students = networks(experiment, BEST)
    if len(students) > 1:
        return students
    (chain,) = chains(at_step(_recipe(experiment), BEST))
    return [train(dataclasses.replace(experiment, recipe=one), TEACHER) for one in teachers_of(chain)]


def located(
    experiment: Experiment, chosen: Sequence[str] = (), *, progress: bool = False
) -> dict[str, list[Localization]]:
    """Scores the networks of each condition on the test set, one per seed; computed once and kept.

    Args:
        experiment: Of a recipe that goes beyond the paper's.
        chosen: Names of conditions; empty for all that its recipe allows.
        progress: Whether to show the trainings' progress bars on standard error.

    Raises:
        UsageError: As `networks`, or if no test radiograph has a box.
        RunError: If a run folder cannot be written.
    """
    found = {}
    for condition in chosen or steps_of(_recipe(experiment)):
        looked = looked_at(experiment, condition)
        found[condition] = [localization(looked, one) for one in networks(experiment, condition, progress=progress)]
    return found


def condition_table(found: Mapping[str, Sequence[Localization]], guesses: BlindGuesses) -> pd.DataFrame:
    """Sets every condition beside the best box-free guess and full supervision.

    Args:
        found: From `located`, with the condition `FULL` among them.
        guesses: Of the same experiment.

    Returns:
        The guess, then one row per condition: condition, learned_from, seeds, then for the paper's mIOU and for
        `matched` (one-to-one IoU; missed and surplus boxes count 0) the mean over seeds and radiographs with low and
        high, the difference from the guess with low and high, and skill with low and high: the share of the way from
        the guess to full supervision. All intervals are 95% over radiographs. Skill is missing where full supervision
        is not above the guess. Last boxes per radiograph.
    """
    blind, full = guesses.of(guesses.best), [one.rows for one in found[FULL]]
    lines = [_line(guesses.best, "nothing", [blind], blind, full, guesses)]
    for condition, ones in found.items():
        rows = [one.rows for one in ones]
        lines.append(_line(condition, STEPS[condition][1], rows, blind, full, guesses))
    return pd.DataFrame(lines)


def seed_table(found: Mapping[str, Sequence[Localization]], guesses: BlindGuesses) -> pd.DataFrame:
    """Sets every seed of every condition against the best box-free guess, radiograph by radiograph.

    Returns:
        One row per condition, seed and metric: condition, seed, metric, mean, difference (network minus guess), low,
        high (95% over radiographs), p (paired permutation test).
    """
    recipe, blind, lines = guesses.experiment.recipe, guesses.of(guesses.best), []
    for condition, ones in found.items():
        for seed, one in zip(guesses.experiment.recipe.ablation.seeds, ones, strict=True):
            for metric in ("score", "matched"):
                ours, theirs = _values(one.rows, metric, blind), _values(blind, metric, blind)
                ends = bootstrap_interval(ours - theirs, **recipe.resampling, clusters=patients_of(blind))
                p = paired_permutation_test(ours, theirs, **recipe.resampling_of_tests, clusters=patients_of(blind))
                lines.append((condition, seed, metric, ours.mean(), (ours - theirs).mean(), *ends, p))
    columns = ["condition", "seed", "metric", "mean", "difference", "low", "high", "p"]
    return pd.DataFrame(lines, columns=columns)


def failures(found: Sequence[Localization], guesses: BlindGuesses) -> pd.DataFrame:
    """Names what went wrong for each lesion and surplus box, over all seeds; see `localization.failures`.

    Returns:
        The rows of `failure_rows` with a column `seed`.
    """
    middles = _middles(guesses)
    tables = []
    for seed, one in zip(guesses.experiment.recipe.ablation.seeds, found, strict=True):
        samples = one.samples
        middle = [middles.get(name, samples.size[1] / 2) for name in samples.names]
        tables.append(failure_rows(samples.names, samples.boxes, one.boxes, middle).assign(seed=seed))
    return pd.concat(tables, ignore_index=True)


def beyond_sentences(table: pd.DataFrame, seeds: pd.DataFrame) -> str:
    """Says in words how far image labels get, every number from the tables.

    Args:
        table: From `condition_table`.
        seeds: From `seed_table`.
    """
    guess, rows = table["condition"].iloc[0], table.set_index("condition").to_dict("index")
    lines = []
    for condition in (BEST, "student told of upper lobes", FULL):
        row = rows[condition]
        beaten = [_beaten(seeds, condition, metric) for metric in ("score", "matched")]
        lines.append(
            f"- {condition[0].upper()}{condition[1:]} ({row['learned_from']}): mIOU {row['miou']:.3f} "
            f"({_signed(row, 'miou_minus_guess')} over the best box-free guess, "
            f"“{guess}”), one-to-one IoU {row['matched']:.3f} ({_signed(row, 'matched_minus_guess')}). "
            f"Seeds whose own interval lies above the guess: {beaten[0]} and {beaten[1]} of {row['seeds']:.0f}."
        )
    best = rows[BEST]
    if np.isfinite(best["miou_skill"]) and np.isfinite(best["matched_skill"]):
        lines.append(
            "- Of the way from the guess to full supervision, image labels buy "
            f"{_share(best, 'miou_skill')} in mIOU and {_share(best, 'matched_skill')} in one-to-one IoU. "
            "Below 0%, the guess is the better one."
        )
    else:
        lines.append("- Full supervision does not beat the guess here, so that there is no way to take a share of.")
    return "\n".join(lines)


def _beaten(seeds: pd.DataFrame, condition: str, metric: str) -> int:
    own = seeds[(seeds["condition"] == condition) & (seeds["metric"] == metric)]
    return int((own["low"] > 0).sum())


def _signed(row: Mapping[Hashable, Any], name: str) -> str:
    return f"{row[name]:+.3f}, {row[f'{name}_low']:+.3f} to {row[f'{name}_high']:+.3f}"


def _share(row: Mapping[Hashable, Any], name: str) -> str:
    return f"{row[name]:.0%} ({row[f'{name}_low']:.0%} to {row[f'{name}_high']:.0%})"


def scorings(experiment: Experiment) -> pd.DataFrame:
    """Counts how often networks of this experiment were scored on test boxes: every run folder that holds scores.

    Returns:
        One row per kind of run: kind, count.
    """
    kinds = ("localization", "guesses")
    counts = [sum(1 for _ in experiment.runs.glob(f"{kind}-*/rows.csv")) for kind in kinds]
    return pd.DataFrame({"kind": kinds, "count": counts})


def _middles(guesses: BlindGuesses) -> dict[str, float]:
    """The column between the lungs of each test radiograph, in pixels of the input; empty where no lungs are known."""
    pairs = guesses.lungs[["name", "boxes"]].itertuples(index=False)
    return {name: middle_between(boxes_from_json(text)) for name, text in pairs}


def _line(
    condition: str,
    learned: str,
    rows: Sequence[pd.DataFrame],
    blind: pd.DataFrame,
    full: Sequence[pd.DataFrame],
    guesses: BlindGuesses,
) -> dict[str, Any]:
    """One row of `condition_table`."""
    how = {**guesses.experiment.recipe.resampling, "clusters": patients_of(blind)}
    line: dict[str, Any] = {"condition": condition, "learned_from": learned, "seeds": len(rows)}
    for metric, name in (("score", "miou"), ("matched", "matched")):
        guess, ours = _values(blind, metric, blind), np.stack([_values(one, metric, blind) for one in rows])
        mean = ours.mean(axis=0)  # (radiographs,)
        line |= _ends(name, float(mean.mean()), bootstrap_interval(mean, **how))
        line |= _ends(f"{name}_minus_guess", float((mean - guess).mean()), bootstrap_interval(mean - guess, **how))
        top = np.stack([_values(one, metric, blind) for one in full])
        share, *ends = skill(ours, guess, top, **how) if top.mean() > guess.mean() else (np.nan, np.nan, np.nan)
        line |= _ends(f"{name}_skill", share, ends)
    return line | {"boxes": float(np.mean([one["n_pred"].mean() for one in rows]))}


def _ends(name: str, mean: float, ends: Sequence[float]) -> dict[str, float]:
    return {name: mean, f"{name}_low": ends[0], f"{name}_high": ends[1]}


def _values(rows: pd.DataFrame, metric: str, order: pd.DataFrame) -> np.ndarray:
    """A metric of the radiographs in the order of another table, float64 (n,)."""
    return rows.set_index("name")[metric].loc[list(order["name"])].to_numpy(dtype=np.float64)
