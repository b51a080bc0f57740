"""Figures beyond the paper: conditions between a blind guess and full supervision, and the maps of some radiographs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tbkd_utils.experiments.evaluation import Localization
from tbkd_utils.localization.boxes import normalize
from tbkd_utils.views.figures import COLORS, HEAT, IMAGE_DPI, STYLES, draw_boxes, show_image

LEARNED = {  # Okabe and Ito 2008, with a mark each for those who print in gray
    "nothing": ("#A8507F", "X"),
    "image labels": ("#0072B2", "o"),
    "image labels, anatomy": ("#56B4E9", "s"),
    "no label: lungs alone": ("#A8507F", "D"),
    "training boxes": ("#009E73", "^"),
}


def condition_intervals(table: pd.DataFrame) -> Figure:
    """Draws both scores of every condition with their 95% intervals, between the guess and full supervision.

    Args:
        table: From `systems.tb.beyond.condition_table`: the first row is the guess, the last full supervision.
    """
    figure = Figure(figsize=(9.6, 0.36 * len(table) + 1.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for one, name, title in zip(axes, ("miou", "matched"), ("mIOU (paper)", "one-to-one IoU"), strict=True):
        _intervals(one, table, name)
        one.set(xlabel=f"{title}, 0 to 1", xlim=(0, max(0.7, 1.05 * float(table[f"{name}_high"].max()))))
    axes[0].set(yticks=range(len(table)), yticklabels=table["condition"], ylim=(len(table) - 0.5, -0.5))
    used = dict.fromkeys(table["learned_from"])
    handles = [Line2D([], [], color=LEARNED[who][0], marker=LEARNED[who][1], linestyle="", label=who) for who in used]
    figure.legend(handles=handles, title="learned from", loc="outside lower center", ncols=len(used), frameon=False,
                  fontsize=9)  # fmt: skip
    sns.despine(figure)
    return figure


def map_grid(found: Mapping[str, Localization], indices: Sequence[int]) -> Figure:
    """Draws radiographs with their lesions, and beside each every network's map with its boxes and score.

    Args:
        found: Network to its maps and boxes, all of the same radiographs.
        indices: Which radiographs, by their position; at least one.
    """
    figure = Figure(figsize=(2.1 * (1 + len(found)), 2.1 * len(indices) + 0.5), dpi=IMAGE_DPI, layout="constrained")
    grid = figure.subplots(len(indices), 1 + len(found), squeeze=False)
    samples = next(iter(found.values())).samples
    for row, index in zip(grid, indices, strict=True):
        show_image(row[0], samples.pixels[index])
        draw_boxes(row[0], samples.boxes[index], "ground truth")
        for axes, one in zip(row[1:], found.values(), strict=True):
            show_image(axes, samples.pixels[index])
            method = one.experiment.recipe.scores.normalization
            axes.imshow(normalize(one.heatmaps[index], method=method), cmap=HEAT, alpha=0.55, vmin=0, vmax=1)
            draw_boxes(axes, samples.boxes[index], "ground truth")
            draw_boxes(axes, one.boxes[index], "student")
            axes.set_title(f"IoU one-to-one {one.rows['matched'][index]:.2f}", fontsize=8, y=-0.12)
    for axes, title in zip(grid[0], ("radiograph", *found), strict=True):
        axes.annotate(title, (0.5, 1.04), xycoords="axes fraction", ha="center", fontsize=9)
    names = {"ground truth": "lesions", "student": "boxes of the network"}
    handles = [Line2D([], [], color=COLORS[who], linestyle=STYLES[who], label=text) for who, text in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def spread_of_scores(found: Localization, count: int = 4) -> list[int]:
    """Returns radiographs evenly spaced in rank by one-to-one IoU, from the worst to the best, none picked by hand."""
    order = np.argsort(found.rows["matched"].to_numpy(), kind="stable")
    return [int(order[place]) for place in np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]


def _intervals(axes: Axes, table: pd.DataFrame, name: str) -> None:
    """One mark and interval a row; level lines through the first and the last."""
    for place, row in enumerate(table.to_dict("records")):
        color, mark = LEARNED[row["learned_from"]]
        axes.plot([row[f"{name}_low"], row[f"{name}_high"]], [place] * 2, color=color, linewidth=1.6)
        axes.plot(row[name], place, mark, color=color, markersize=6)
    ends = table.iloc[[0, -1]].to_dict("records")
    for end in ends:
        axes.axvline(end[name], color=LEARNED[end["learned_from"]][0], linestyle=":", linewidth=1.4, zorder=0)
