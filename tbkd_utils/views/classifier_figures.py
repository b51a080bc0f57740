"""Figures of classifiers of two classes and of where they look; each function draws one and returns a `Figure`.

Networks come by name, and differ by hue (Okabe and Ito 2008), line style and mark at once. What a guess reaches is gray
and dotted, or gray and hatched.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from tbkd_utils.errors import UsageError
from tbkd_utils.experiments.evaluation import Localization
from tbkd_utils.localization.boxes import normalize
from tbkd_utils.views.figures import COLORS, HEAT, STYLES, draw_boxes, seed_markers, short_name

TRUTH, NETWORK, GUESS = "ground truth", "student", "guess"
"""Whose looks `figures.draw_boxes` gives to the truth, to a single network (the student's), and to a blind guess."""
BLUE = COLORS[NETWORK]
LEVEL = "0.45"
"""The gray of what a guess reaches."""
_DPI = 48  # of the cases, whose six columns are heavy inside a notebook
METRICS = {
    "score": "mIOU",
    "matched": "one-to-one mIOU",
    "pointing": "pointing game",
    "energy": "energy inside",
    "max_box_acc_v2": "MaxBoxAccV2",
}
"""The metrics of `localization_bars` in the order of its panels, and how they are written."""
_HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (4, 1, 1, 1, 1, 1, 1, 1)))
_MARKS = "os^DvP*"


# --- probabilities ----------------------------------------------------------------------------------------------------


def operating_curves(curves: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], base_rate: float) -> Figure:
    """Draws the ROC curve (left) and the precision-recall curve in steps (right) of several networks.

    Args:
        curves: Network to its two tables: `operating.roc_points` (false_positive_rate, sensitivity) and
            `operating.precision_recall_points` (recall, precision), one row per point.
        base_rate: The share of positive images in [0, 1], which is the precision of a guess.
    """
    rows = -(-(len(curves) + 1) // 3)  # of the legend
    figure = Figure(figsize=(7.4, 3.95 + 0.22 * rows), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, (roc, recall)), look in zip(curves.items(), _looks(), strict=False):
        line = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.6}
        left.plot(roc["false_positive_rate"], roc["sensitivity"], label=name, **line)
        right.plot(recall["recall"], recall["precision"], drawstyle="steps-pre", **line)
    gray = {"color": LEVEL, "linewidth": 1.2, "linestyle": ":", "zorder": 1}
    left.plot([0, 1], [0, 1], label=f"a guess (precision {base_rate:.2f}, the base rate)", **gray)
    right.plot([0, 1], [base_rate, base_rate], **gray)
    left.set(xlabel="false positive rate (1 - specificity)", ylabel="sensitivity", title="ROC")
    right.set(xlabel="recall (sensitivity)", ylabel="precision", title="precision-recall")
    for axes in (left, right):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.title.set_fontsize(10)
    figure.legend(loc="outside lower center", ncols=min(3, len(curves) + 1), frameon=False, fontsize=9)
    sns.despine(figure)
    return figure


def calibration_curves(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draws the observed share of positive images against the mean probability, one panel for each network.

    Args:
        tables: Network to `operating.calibration_table`: mean_probability, observed, low, high, one row per bin.
    """
    columns = min(4, len(tables))
    rows = -(-len(tables) // columns)
    figure = Figure(figsize=(max(3.2, 2.2 * columns + 0.5), 2.3 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for place, (name, table, look) in enumerate(zip(tables, tables.values(), _looks(), strict=False)):
        axes = grid.flat[place]
        axes.plot([0, 1], [0, 1], color=LEVEL, linewidth=1.2, linestyle=":", zorder=1)
        axes.errorbar(
            table["mean_probability"], table["observed"], yerr=_ends(table, "observed"), color=look["color"],
            linestyle=look["linestyle"], marker=look["marker"], markersize=4.5, linewidth=1.2, capsize=2.5,
            clip_on=False,  # points at 0 and 1 keep their whole mark
        )  # fmt: skip
        axes.set_title(name, fontsize=9)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.xaxis.set_tick_params(labelbottom=place + columns >= len(tables))  # the lowest panel of its column
    for axes in grid.flat[len(tables) :]:
        axes.set_visible(False)
    figure.supxlabel("mean probability of a bin", fontsize=10)
    figure.supylabel("observed share of positives", fontsize=10)
    sns.despine(figure)
    return figure


# --- values with intervals --------------------------------------------------------------------------------------------


def forest(table: pd.DataFrame, *, xlabel: str, guess: float | None = None, guess_label: str = "") -> Figure:
    """Draws values with their intervals, one row per name from the top, and writes them at the right margin.

    Args:
        table: Columns name, value, low, high, and optionally published, published_low, published_high, which are drawn
            hollow below (nan where none is published).
        xlabel: What the values are, with their unit.
        guess: Where a guess stands: a dotted line.
        guess_label: What that guess is, for the legend.
    """
    both = "published" in table and bool(table["published"].notna().any())
    figure = Figure(figsize=(7.2, (0.5 if both else 0.34) * len(table) + 1.2), layout="constrained")
    axes = figure.subplots()
    margin = axes.get_yaxis_transform()  # x in shares of the axes, y in rows
    shown = [] if guess is None else [guess]
    kinds = [("value", "", -0.2 if both else 0.0, BLUE, BLUE, "this run")]
    if both:
        kinds.append(("published", "published_", 0.2, "white", "0.35", "published"))
    for column, before, shift, face, edge, label in kinds:
        for place, row in enumerate(table.to_dict("records")):
            value, low, high = (float(row.get(key, np.nan)) for key in (column, f"{before}low", f"{before}high"))
            if np.isnan(value):
                continue
            shown += [one for one in (value, low, high) if np.isfinite(one)]
            height = place + shift
            axes.plot([low, high], [height, height], color=edge, linewidth=1.6 if face == BLUE else 1.2)
            axes.plot([value], [height], "o" if face == BLUE else "s", markersize=6, markerfacecolor=face,
                      markeredgecolor=edge)  # fmt: skip
            text = f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if np.isfinite([low, high]).all() else "")
            axes.text(1.02, height, text, transform=margin, va="center", fontsize=8.5, color=edge)
        axes.plot([], [], "o" if face == BLUE else "s", linestyle="-", color=edge, markerfacecolor=face, label=label)
    if guess is not None:
        axes.axvline(guess, color=LEVEL, linewidth=1.2, linestyle=":", zorder=1, label=guess_label or "a guess")
    room = 0.06 * (max(shown) - min(shown)) or 0.05
    axes.set(xlim=(min(shown) - room, max(shown) + room), ylim=(len(table) - 0.45, -0.55), xlabel=xlabel)
    axes.set_yticks(range(len(table)), table["name"])
    axes.tick_params(axis="y", length=0)
    if both or guess is not None:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    sns.despine(figure, left=True)
    return figure


def paired_lines(table: pd.DataFrame, *, left: str, right: str, ylabel: str) -> Figure:
    """Draws one line per seed from one condition to another, and their mean as a thick line.

    Args:
        table: One row per seed: seed, two columns called as `left` and `right` say, and optionally `<left>_low`,
            `<left>_high`, `<right>_low`, `<right>_high` for intervals.
        left: The first condition.
        right: The second condition.
        ylabel: What the values are, with their unit.
    """
    figure = Figure(figsize=(4.8, 3.5), layout="constrained")
    axes = figure.subplots()
    shifts = np.linspace(-0.04, 0.04, len(table)) if len(table) > 1 else np.zeros(1)  # intervals lie side by side
    markers = seed_markers(table["seed"])
    for shift, row in zip(shifts, table.to_dict("records"), strict=True):
        places, values = np.array([0, 1]) + shift, [row[left], row[right]]
        axes.plot(places, values, color="0.45", linewidth=1, marker=markers[row["seed"]], markersize=6,
                  markerfacecolor="white", label=f"seed {row['seed']}")  # fmt: skip
        for place, name in zip(places, (left, right), strict=True):
            ends = [row.get(f"{name}_low", np.nan), row.get(f"{name}_high", np.nan)]
            axes.plot([place, place], ends, color="0.7", linewidth=1, zorder=1)
    if len(table) > 1:
        means = table[[left, right]].mean()
        axes.plot([0, 1], means, color=BLUE, linewidth=3.5, label="mean of the seeds", zorder=1.5)
    axes.set(xlim=(-0.35, 1.35), ylabel=ylabel)
    axes.set_xticks([0, 1], [left, right])
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    sns.despine(figure)
    return figure


def localization_bars(table: pd.DataFrame) -> Figure:
    """Draws what networks and blind guesses reach by each metric: one panel a metric, one bar a name.

    Args:
        table: Columns guess_or_network (the name), metric (a key of `METRICS`), mean, low, high, and blind (bool,
            whether it is a guess that looks at no image). Names stand from the top in the order given; a name may lack
            a metric.
    """
    names = list(dict.fromkeys(table["guess_or_network"]))
    metrics = [metric for metric in METRICS if metric in set(table["metric"])]
    figure = Figure(figsize=(1.75 * len(metrics) + 2.0, 0.32 * len(names) + 1.3), dpi=80, layout="constrained")
    row = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for axes, metric in zip(row, metrics, strict=True):
        rows = table[(table["metric"] == metric) & table["mean"].notna()]
        top = max(0.01, float(np.nanmax(rows[["mean", "high"]].to_numpy(float), initial=0.0)))
        missing = set(names)
        for one in rows.to_dict("records"):
            place, value, ends = names.index(one["guess_or_network"]), one["mean"], [one["low"], one["high"]]
            missing.discard(one["guess_or_network"])
            axes.barh(place, value, height=0.66, **_bar(one["blind"]))
            axes.plot(ends, [place, place], color="black", linewidth=1.1)
            axes.text(np.nanmax([value, *ends]) + 0.04 * top, place, f"{value:.2f}", va="center", fontsize=8)
        for name in missing:
            axes.text(0.04 * top, names.index(name), "–", va="center", fontsize=8, color="0.4")
        axes.set(xlim=(0, 1.32 * top), ylim=(len(names) - 0.5, -0.5))
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.tick_params(axis="x", labelsize=8)
        axes.set_title(METRICS[metric], fontsize=9)
    row[0].set_yticks(range(len(names)), names)
    for axes in row:
        axes.tick_params(axis="y", length=0)
    figure.supxlabel("mean over the images (0 to 1), line: its interval", fontsize=9)
    kinds = [(False, "network"), (True, "blind guess")]
    handles = [Patch(label=label, **_bar(blind)) for blind, label in kinds if blind in set(table["blind"])]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    sns.despine(figure)
    return figure


# --- radiographs ------------------------------------------------------------------------------------------------------


def examples(
    found: Localization,
    probabilities: Sequence[float],
    indices: Sequence[int],
    guesses: Sequence[np.ndarray] | None,
    label: str,
) -> Figure:
    """Draws radiographs: with their true boxes, under the heatmap, and with the network's and a guess's boxes.

    Up to three stand one below the other; of more, two stand in a row.

    Args:
        found: The network's heatmaps and boxes of n radiographs.
        probabilities: The network's probability of the class for each of these n.
        indices: Which are drawn, by their position among the n; at least one.
        guesses: A guess's boxes for each of the n, (k, 4) xyxy in pixels of the crop; None to leave it out.
        label: The class.

    Raises:
        UsageError: If probabilities or guesses are not one for each radiograph, or nothing is to be drawn.
    """
    count = len(found.samples)
    if len(probabilities) != count or (guesses is not None and len(guesses) != count) or not len(indices):
        raise UsageError(
            f"Expected probabilities and guesses for each of the {count} scored radiographs, and an index; got "
            f"{len(probabilities)}, {None if guesses is None else len(guesses)}, and {len(indices)} indices."
        )
    across = 1 if len(indices) <= 3 else 2
    lines = -(-len(indices) // across)
    figure = Figure(figsize=(6.2 * across, 2.05 * lines + 0.7), dpi=_DPI, layout="constrained")
    widths = [1, 1, 1] if across == 1 else [1, 1, 1, 0.04, 1, 1, 1]  # a gap between the two of a row
    grid = figure.subplots(lines, len(widths), squeeze=False, width_ratios=widths)
    for axes in grid.flat:
        axes.set_axis_off()
    grid = grid[:, [column for column, share in enumerate(widths) if share == 1]]
    for panels, index in zip(grid.reshape(-1, 3), indices, strict=False):
        guess = None if guesses is None else guesses[index]
        _example(list(panels), found, index, f"p({label}) {probabilities[index]:.2f}", guess)
    for axes, title in zip(grid[0], ("radiograph", "heatmap", "boxes") * across, strict=True):
        axes.set_title(title, fontsize=10)
    who = {TRUTH: TRUTH, NETWORK: "network"} | ({} if guesses is None else {GUESS: "blind guess"})
    figure.legend(handles=box_legend(who), loc="outside lower center", ncols=3, frameon=False)
    return figure


def box_legend(who: Mapping[str, str]) -> list[Line2D]:
    """Returns the lines of a legend of boxes: whose look (as `figures.draw_boxes`) to what is written."""
    return [Line2D([], [], color=COLORS[one], linestyle=STYLES[one], label=label) for one, label in who.items()]


def _example(
    panels: Sequence[Axes], found: Localization, index: int, probability: str, guess: np.ndarray | None
) -> None:
    """Draws one radiograph into three panels."""
    samples, method = found.samples, found.experiment.recipe.scores.normalization
    for axes in panels:
        axes.imshow(samples.pixels[index], cmap="gray", vmin=0, vmax=255)
    panels[1].imshow(normalize(found.heatmaps[index], method=method), cmap=HEAT, alpha=0.55, vmin=0, vmax=1)
    for axes in (panels[0], panels[2]):
        draw_boxes(axes, samples.boxes[index], TRUTH)
    if guess is not None:
        draw_boxes(panels[2], guess, GUESS)
    draw_boxes(panels[2], found.boxes[index], NETWORK)
    notes = (short_name(samples.names[index]), probability, f"IoU {found.rows['score'][index]:.2f}")
    for axes, text in zip(panels, notes, strict=True):
        box = {"facecolor": "black", "alpha": 0.7, "pad": 1.5, "linewidth": 0}
        axes.text(0.03, 0.04, text, transform=axes.transAxes, color="white", fontsize=8, bbox=box)


# --- looks ------------------------------------------------------------------------------------------------------------


def _looks() -> Iterable[dict[str, Any]]:
    """The look of each network in turn; from the eighth on, hues come again with other lines."""
    hues, lines, marks = itertools.cycle(_HUES), itertools.cycle(_LINES), itertools.cycle(_MARKS)
    for number, (color, mark) in enumerate(zip(hues, marks, strict=False)):
        if number and number % len(_HUES) == 0:
            next(lines)
        yield {"color": color, "linestyle": next(lines), "marker": mark}


def _bar(blind: bool) -> dict[str, Any]:
    return {"facecolor": "0.9", "edgecolor": "0.45", "hatch": "////"} if blind else {"color": BLUE}


def _ends(table: pd.DataFrame, column: str) -> np.ndarray:
    """How far low and high lie from a value, (2, n); rounding can leave -1e-17."""
    value = table[column]
    return np.maximum([value - table["low"], table["high"] - value], 0)
