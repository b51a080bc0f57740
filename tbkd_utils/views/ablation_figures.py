"""Figures 8 and 9, and the networks of every seed beside the controls."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from tbkd_utils.metrics.statistics import across_seeds
from tbkd_utils.views.figures import COLORS, MARKERS, STYLES, draw_guess, seed_markers


def ablation_curve(
    rows: pd.DataFrame, teacher: pd.DataFrame, label: str, claimed: float, guess: tuple[str, float] | None = None
) -> Figure:
    """Figure 8 or 9: the student's mIOU over one setting, with the band of its 95% interval over radiographs.

    Args:
        rows: From `comparisons.curve_rows`.
        teacher: One row of `comparisons.variant_rows`, drawn as a level line with its band.
        label: What is varied, for the axis.
        claimed: The value that the paper finds best, marked by a dotted line.
        guess: The best box-free guess and its mIOU, drawn as a level line; from `BlindGuesses.line`.
    """
    figure = Figure(figsize=(6.2, 3.9), layout="constrained")
    axes = figure.subplots()
    rows = rows.sort_values("value")
    reference = teacher.iloc[0]
    axes.axhspan(reference["low"], reference["high"], color=COLORS["teacher"], alpha=0.12, linewidth=0)
    axes.axhline(reference["miou"], color=COLORS["teacher"], linestyle=STYLES["teacher"], label="teacher")
    axes.fill_between(rows["value"], rows["low"], rows["high"], color=COLORS["student"], alpha=0.2, linewidth=0)
    axes.plot(rows["value"], rows["miou"], color=COLORS["student"], marker=MARKERS["student"], label="student")
    if guess:
        draw_guess(axes, *guess)
    axes.axvline(claimed, color="0.4", linewidth=0.9, linestyle=":", label=f"best in the paper ({claimed:g})")
    axes.set(xlabel=label, ylabel="mIOU", xticks=rows["value"].tolist(), ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    sns.despine(figure)
    return figure


def seeds_by_condition(
    rows: pd.DataFrame, published: Mapping[str, Sequence[float]], guess: tuple[str, float] | None = None
) -> Figure:
    """Draws the mIOU of every network by condition: a mark per seed, the mean with its 95% t interval.

    Args:
        rows: From `comparisons.variant_rows`, over seeds.
        published: Condition to the paper's mIOU of each seed, where it has some.
        guess: The best box-free guess and its mIOU, drawn as a level line; from `BlindGuesses.line`.
    """
    figure = Figure(figsize=(8.4, 4.0), layout="constrained")
    axes = figure.subplots()
    conditions = list(dict.fromkeys(rows["condition"]))
    marks = seed_markers(rows["value"])
    seeds = list(marks)
    shifts = dict(zip(seeds, np.linspace(-0.16, 0.16, len(seeds)) if len(seeds) > 1 else [0.0], strict=True))
    for place, condition in enumerate(conditions):
        table = rows[rows["condition"] == condition]
        color = COLORS.get(condition, "0.35")
        for row in table.to_dict("records"):
            axes.plot(place + shifts[row["value"]], row["miou"], marks[row["value"]], color=color, markersize=6)
        summary = across_seeds(table["miou"])
        axes.plot([place - 0.26, place + 0.26], [summary.mean] * 2, color=color, linewidth=2)
        if summary.n > 1:
            axes.plot([place + 0.3] * 2, [summary.low, summary.high], color=color, linewidth=1.2)
        if paper := published.get(condition):
            axes.plot([place - 0.34] * len(paper), paper, "_", color="0.5", markersize=12)
    for seed in seeds:
        axes.plot([], [], marks[seed], color="0.35", label=f"seed {seed:g}")
    axes.plot([], [], color="0.35", linewidth=2, label="mean")
    axes.plot([], [], "|", color="0.35", markersize=12, label="95% interval of the mean")
    axes.plot([], [], "_", color="0.5", markersize=12, label="the paper's seeds")
    if guess:
        draw_guess(axes, *guess)
    axes.set_xticks(range(len(conditions)), [condition.replace(" ", "\n", 1) for condition in conditions])
    axes.set(ylabel="mIOU", ylim=(min(0.0, *axes.get_ylim()), None))
    figure.legend(loc="outside upper center", ncols=3 if guess else 4, frameon=False)
    sns.despine(figure)
    return figure
