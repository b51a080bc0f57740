"""Figures 8 and 9, and the networks of every seed beside the controls."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from tbkd_utils.experiments.grid import ARMS, STUDENT, TEACHER
from tbkd_utils.metrics.statistics import across_seeds
from tbkd_utils.systems.tb.tables import TABLE_3
from tbkd_utils.views.figures import COLORS, MARKERS, STYLES

SEED_MARKERS = "osD^vP*X"


def ablation_curve(rows: pd.DataFrame, teacher: pd.DataFrame, label: str, claimed: float) -> Figure:
    """Figure 8 or 9: the student's mIOU over one setting, with the band of its 95% interval over radiographs.

    Args:
        rows: From `ablations.curve_rows`.
        teacher: One row of `ablations.cell_rows`, drawn as a level line with its band.
        label: What is varied, for the axis.
        claimed: The value that the paper finds best, marked by a dotted line.
    """
    figure = Figure(figsize=(6.2, 3.6), layout="constrained")
    axes = figure.subplots()
    rows = rows.sort_values("value")
    reference = teacher.iloc[0]
    axes.axhspan(reference["low"], reference["high"], color=COLORS[TEACHER], alpha=0.12, linewidth=0)
    axes.axhline(reference["miou"], color=COLORS[TEACHER], linestyle=STYLES[TEACHER], label="teacher")
    axes.fill_between(rows["value"], rows["low"], rows["high"], color=COLORS[STUDENT], alpha=0.2, linewidth=0)
    axes.plot(rows["value"], rows["miou"], color=COLORS[STUDENT], marker=MARKERS[STUDENT], label="student")
    axes.axvline(claimed, color="0.4", linewidth=0.9, linestyle=":", label=f"best in the paper ({claimed:g})")
    axes.set(xlabel=label, ylabel="mIOU", xticks=rows["value"].tolist(), ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    sns.despine(figure)
    return figure


def seed_arms(rows: pd.DataFrame) -> Figure:
    """Draws the mIOU of every network by arm: a mark per seed, the mean with its 95% t interval, the paper's seeds.

    Args:
        rows: From `ablations.cell_rows`, over seeds.
    """
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    axes = figure.subplots()
    arms = [arm for arm in ARMS if (rows["arm"] == arm).any()]
    seeds = list(dict.fromkeys(rows["value"]))
    marks = {seed: SEED_MARKERS[number % len(SEED_MARKERS)] for number, seed in enumerate(seeds)}
    shifts = dict(zip(seeds, np.linspace(-0.16, 0.16, len(seeds)) if len(seeds) > 1 else [0.0], strict=True))
    for place, arm in enumerate(arms):
        table = rows[rows["arm"] == arm]
        color = COLORS.get(arm, "0.35")
        for row in table.to_dict("records"):
            axes.plot(place + shifts[row["value"]], row["miou"], marks[row["value"]], color=color, markersize=6)
        summary = across_seeds(table["miou"])
        axes.plot([place - 0.26, place + 0.26], [summary.mean] * 2, color=color, linewidth=2)
        if summary.n > 1:
            axes.plot([place + 0.3] * 2, [summary.low, summary.high], color=color, linewidth=1.2)
        if arm in (TEACHER, STUDENT):
            paper = [TABLE_3[seed][arm] for seed in TABLE_3]
            axes.plot([place - 0.34] * len(paper), paper, "_", color="0.5", markersize=12)
    for seed in seeds:
        axes.plot([], [], marks[seed], color="0.35", label=f"seed {seed:g}")
    axes.plot([], [], color="0.35", linewidth=2, label="mean")
    axes.plot([], [], "|", color="0.35", markersize=12, label="95% interval of the mean")
    axes.plot([], [], "_", color="0.5", markersize=12, label="the paper's seeds")
    axes.set_xticks(range(len(arms)), [arm.replace(" ", "\n", 1) for arm in arms])
    axes.set(ylabel="mIOU", ylim=(min(0.0, *axes.get_ylim()), None))
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    sns.despine(figure)
    return figure
