"""Figures 8 and 9, Table 3 over seeds, and the control arms: rows per network, then how sure the differences are."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tbkd_utils.experiments.evaluation import Localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.grid import ARMS, CONTROLS, STUDENT, TEACHER, Cell
from tbkd_utils.metrics.statistics import (
    SeedSummary,
    across_seeds,
    bootstrap_interval,
    paired_difference,
    paired_permutation_test,
)
from tbkd_utils.systems.tb.tables import TABLE_3

COMPARED = ((STUDENT, TEACHER), *((STUDENT, arm) for arm in CONTROLS), *((arm, TEACHER) for arm in CONTROLS))
"""Which arms are set against which: the paper's comparison, then the student and the controls."""


def cell_rows(experiment: Experiment, cells: Sequence[Cell]) -> pd.DataFrame:
    """Measures every network of an ablation; what was computed is read back.

    Returns:
        One row per cell: arm, value, miou with low and high (95% bootstrap over images), matched (one-to-one), energy
        (share of the heatmap inside the lesions), accuracy, auc.
    """
    rows = []
    for cell in cells:
        found = cell.localize(experiment).scores.set_index("metric")
        score, classes = found.loc["score"], cell.classify(experiment)
        rows.append(
            (cell.arm, cell.value, score["mean"], score["low"], score["high"], found.loc["matched", "mean"],
             found.loc["energy", "mean"], classes["accuracy"], classes["auc"])
        )  # fmt: skip
    columns = ["arm", "value", "miou", "low", "high", "matched", "energy", "accuracy", "auc"]
    return pd.DataFrame(rows, columns=columns)


def curve_rows(experiment: Experiment, cells: Sequence[Cell]) -> pd.DataFrame:
    """Figure 8 or 9 as data: `cell_rows` and how often each value comes out best.

    Returns:
        `cell_rows` with `best`: the share of bootstrap resamples of the images in which this value has the highest
        mIOU. One training per value: the shares say nothing about another seed.
    """
    recipe, rows = experiment.recipe, cell_rows(experiment, cells)
    scores = image_scores([cell.localize(experiment) for cell in cells])  # (images, cells)
    wins = np.zeros(len(cells))
    rng = np.random.default_rng(recipe.statistics_seed)
    for _ in range(recipe.resamples if len(scores) else 0):
        means = scores[rng.integers(len(scores), size=len(scores))].mean(axis=0)
        best = means == means.max()
        wins += best / best.sum()  # a tie is shared
    return rows.assign(best=wins / recipe.resamples if len(scores) else np.nan)


def table_3_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 3: teacher and student for every seed, their difference, and the paper's numbers where it has the seed."""
    wide = rows.pivot(index="value", columns="arm", values="miou")
    table = pd.DataFrame({"seed": wide.index, "teacher": wide[TEACHER].to_numpy(), "student": wide[STUDENT].to_numpy()})
    table["difference"] = table["student"] - table["teacher"]
    for network in (TEACHER, STUDENT):
        table[f"{network} paper"] = [TABLE_3.get(seed, {}).get(network, np.nan) for seed in table["seed"]]
    return table


def arm_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Summarises every arm over the seeds.

    Returns:
        One row per arm: arm, seeds, mean, sample_std (ddof 1), population_std (ddof 0, the paper's "±"), low and high
        (95% t interval of the mean), paper_mean, paper_std (ddof 0).
    """
    found = []
    for arm in ARMS:
        values = rows.loc[rows["arm"] == arm, "miou"]
        if values.empty:
            continue
        ours = across_seeds(values)
        paper = [by_network[arm] for by_network in TABLE_3.values()] if arm in (TEACHER, STUDENT) else []
        theirs = across_seeds(paper) if paper else None
        found.append(
            (arm, ours.n, ours.mean, ours.sample_std, ours.population_std, ours.low, ours.high,
             theirs.mean if theirs else np.nan, theirs.population_std if theirs else np.nan)
        )  # fmt: skip
    columns = ["arm", "seeds", "mean", "sample_std", "population_std", "low", "high", "paper_mean", "paper_std"]
    return pd.DataFrame(found, columns=columns)


def difference_table(experiment: Experiment, cells: Sequence[Cell]) -> pd.DataFrame:
    """Sets arms against each other, for both sources of doubt: other seeds, and other radiographs.

    Returns:
        One row per pair of `COMPARED` whose arms are there: comparison, seeds, difference (mean over seeds), std
        (sample), seed_low and seed_high (95% t interval over seeds), image_low and image_high (95% bootstrap interval
        over radiographs of the difference averaged over the seeds), image_p (paired permutation test of it).
    """
    recipe, found = experiment.recipe, []
    located = {(cell.arm, cell.value): cell.localize(experiment) for cell in cells}
    for first, second in COMPARED:
        seeds = [seed for arm, seed in located if arm == first and (second, seed) in located]
        if not seeds:
            continue
        summary = seed_difference(
            [located[first, seed].miou for seed in seeds], [located[second, seed].miou for seed in seeds]
        )
        pairs = image_scores([located[arm, seed] for arm in (first, second) for seed in seeds])  # (images, 2 * seeds)
        low = high = p = np.nan
        if len(pairs):
            a, b = (pairs[:, start : start + len(seeds)].mean(axis=1) for start in (0, len(seeds)))
            low, high = bootstrap_interval(a - b, resamples=recipe.resamples, seed=recipe.statistics_seed)
            p = paired_permutation_test(a, b, resamples=5 * recipe.resamples, seed=recipe.statistics_seed)
        found.append(
            (
                f"{first} - {second}",
                summary.n,
                summary.mean,
                summary.sample_std,
                summary.low,
                summary.high,
                low,
                high,
                p,
            )
        )
    columns = [
        "comparison",
        "seeds",
        "difference",
        "std",
        "seed_low",
        "seed_high",
        "image_low",
        "image_high",
        "image_p",
    ]
    return pd.DataFrame(found, columns=columns)


def seed_difference(first: Sequence[float], second: Sequence[float]) -> SeedSummary:
    """Summarises first minus second over the same seeds."""
    return paired_difference(first, second)


def curve_sentence(rows: pd.DataFrame, what: str, claimed: float) -> str:
    """Says in words which value came out best, and how sure that is on these radiographs."""
    top = rows.iloc[int(rows["miou"].argmax())]
    spread = rows["miou"].max() - rows["miou"].min()
    text = f"Highest mIOU at {what} {top['value']:g}: {top['miou']:.3f}"
    text += f" (the best in {top['best']:.0%} of the resamples of the radiographs); from worst to best {spread:.3f}. "
    ours = rows.loc[np.isclose(rows["value"], claimed)]
    if ours.empty:
        return text + f"The paper's best, {claimed:g}, is not among the values."
    return text + f"The paper's best, {claimed:g}, is the best here in {ours['best'].iloc[0]:.0%} of the resamples."


def difference_sentences(table: pd.DataFrame) -> str:
    """Says in words, as Markdown, which differences stand out against another seed and against other radiographs."""
    lines = []
    for row in table.to_dict("records"):
        seeds = interval_verdict(row["seed_low"], row["seed_high"])
        images = interval_verdict(row["image_low"], row["image_high"])
        lines.append(
            f"- {row['comparison']}: {row['difference']:+.3f}; over {row['seeds']} seeds {row['seed_low']:+.3f} to "
            f"{row['seed_high']:+.3f} ({seeds}); over radiographs {row['image_low']:+.3f} to {row['image_high']:+.3f} "
            f"({images})."
        )
    return "\n".join(lines)


def image_scores(found: Sequence[Localization]) -> np.ndarray:
    """Returns the paper's score of every radiograph that all networks are scored on, float64 (images, networks)."""
    columns = [one.rows.set_index("name")["score"] for one in found]
    return pd.concat(columns, axis=1, join="inner").to_numpy(dtype=np.float64)


def interval_verdict(low: float, high: float) -> str:
    """Says in words on which side of 0 an interval lies."""
    if low > 0:
        return "higher"
    return "lower" if high < 0 else "no difference shown"
