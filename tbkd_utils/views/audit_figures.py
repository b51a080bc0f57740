"""Figures of the shortcut audit: radiographs painted over, areas and energies by painting, and sources swapped."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tbkd_utils.experiments.audit import NOTHING, known_markers, lungs_of, paintings
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.sources import ANY, sources_of
from tbkd_utils.views.figures import COLORS, IMAGE_DPI, MARKERS

GUESS = "0.35"  # the color of blind guesses
MOST_SOURCES = 2  # in the rows of examples


def painted_examples(experiment: Experiment, audited: Mapping[str, pd.DataFrame]) -> Figure:
    """Draws radiographs as they are and painted, each with what the networks say of it.

    None is picked by hand: of each label in each of the two most frequent sources, the middle one by the first
    network's probability.

    Args:
        experiment: Recipe and data.
        audited: Network to its `audit_rows`.
    """
    places = _middle_ones(experiment, next(iter(audited.values())))
    samples = experiment.test.subset(list(places.values()))
    made = paintings(samples, lungs_of(experiment, samples), known_markers(experiment))
    figure = Figure(figsize=(1.8 * len(made) + 0.4, 2.0 * len(places)), dpi=IMAGE_DPI, layout="constrained")
    grid = figure.subplots(len(places), len(made), squeeze=False)
    for column, (painted, (given, _)) in zip(grid.T, made.items(), strict=True):
        column[0].set_title("as it is" if painted == NOTHING else f"painted:\n{painted}", fontsize=11)
        for axes, place in zip(column, range(len(samples)), strict=True):
            axes.imshow(given.pixels[place], cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            _answers(axes, audited, painted, samples.names[place])
    for axes, title in zip(grid[:, 0], places, strict=True):
        axes.set_ylabel(title, fontsize=11)
    handles = [Line2D([], [], color=COLORS[who], linewidth=5, label=f"p(TB) of the {who}") for who in audited]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=11)
    return figure


def _answers(axes: Axes, audited: Mapping[str, pd.DataFrame], painted: str, name: str) -> None:
    """p(TB) of every network in its color, below an image."""
    for place, (who, rows) in enumerate(audited.items()):
        found = rows.loc[(rows["painted"] == painted) & (rows["name"] == name), "probability"].iloc[0]
        x = (place + 0.5) / len(audited)
        axes.text(x, -0.02, f"{found:.2f}", transform=axes.transAxes, color=COLORS[who], fontsize=12, weight="bold",
                  ha="center", va="top")  # fmt: skip


def _middle_ones(experiment: Experiment, rows: pd.DataFrame) -> dict[str, int]:
    """Title to the position of a test radiograph; see `painted_examples`."""
    whole = rows[rows["painted"] == NOTHING].set_index("name").loc[list(experiment.test.names)]
    table = pd.DataFrame(
        {"source": sources_of(experiment, experiment.test), "label": whole["label"].to_numpy(),
         "p": whole["probability"].to_numpy()}
    )  # fmt: skip
    frequent = table["source"].value_counts(sort=True).index[:MOST_SOURCES]
    chosen = {}
    for label, said in ((1, "TB"), (0, "no TB")):
        for source in frequent:
            part = table[(table["label"] == label) & (table["source"] == source)].sort_values("p", kind="stable")
            if len(part):
                chosen[f"{said}\n{source}"] = int(part.index[len(part) // 2])
    return chosen


def audit_intervals(table: pd.DataFrame) -> Figure:
    """Draws the area under the ROC curve and the energy in the lungs for each painting, with 95% intervals.

    Args:
        table: From `experiments.audit.audit_table`.
    """
    paintings_, networks = list(dict.fromkeys(table["painted"])), list(dict.fromkeys(table["network"]))
    figure = Figure(figsize=(8.8, 0.55 * len(paintings_) + 1.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, value, ends in ((left, "auc", ("low", "high")), (right, "energy", ("energy_low", "energy_high"))):
        for who in networks:
            part = table[table["network"] == who].set_index("painted").loc[paintings_]
            places = np.arange(len(part)) + _beside(networks, who)
            _intervals(axes, places, part[[value, *ends]].to_numpy(float), who)
    left.axvline(0.5, color=GUESS, linestyle=":", linewidth=1.2)
    first = table[table["network"] == networks[0]].set_index("painted").loc[paintings_]
    for axes, guesses in ((left, first["gray_auc"]), (right, first["lungs_area"])):
        axes.scatter(guesses, range(len(paintings_)), marker="|", s=330, color=GUESS, linewidth=1.8, zorder=1)
    left.set(yticks=range(len(paintings_)), yticklabels=paintings_, xlim=(0, 1.02), xlabel="AUC, TB against no TB",
             ylim=(len(paintings_) - 0.5, -0.5), ylabel="painted over")  # fmt: skip
    right.set(xlim=(0, 1.02), xlabel="share of the heatmap in the lungs, TB")
    guess = Line2D([], [], color=GUESS, marker="|", linestyle="", markersize=13, markeredgewidth=1.8,
                   label="guess: gray of the paint alone (dotted: 0.5); area of the lungs")  # fmt: skip
    figure.legend(handles=[*_handles(networks), guess], loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    sns.despine(figure)
    return figure


def source_areas(table: pd.DataFrame) -> Figure:
    """Draws the areas within and across sources: pooled with intervals, and each pair of sources by network.

    Args:
        table: From `experiments.sources.swapped_sources`.
    """
    networks = list(dict.fromkeys(table["network"]))
    pooled, single = table[table["tb_from"] == ANY], table[table["tb_from"] != ANY]
    kinds = list(dict.fromkeys(pooled["no_tb_from"]))
    sources = list(dict.fromkeys([*single["tb_from"], *single["no_tb_from"]]))
    cell = 0.75 if len(sources) > 2 else 1.0
    width = max(cell * len(sources) + 0.8, 2.3) if len(single) else 0
    height = max(0.45 * len(kinds) + 1.4, cell * len(sources) + 1.3 if len(single) else 0)
    figure = Figure(figsize=(5.4 + width * len(networks), height), layout="constrained")
    across = figure.subplots(1, 1 + (len(networks) if len(single) else 0), squeeze=False,
                             width_ratios=[5.4, *[width] * len(networks)] if len(single) else None)[0]  # fmt: skip
    for who in networks:
        part = pooled[pooled["network"] == who].set_index("no_tb_from").loc[kinds]
        _intervals(
            across[0], np.arange(len(part)) + _beside(networks, who), part[["auc", "low", "high"]].to_numpy(), who
        )
    across[0].axvline(0.5, color=GUESS, linestyle=":", linewidth=1.2)
    across[0].set(yticks=range(len(kinds)), yticklabels=kinds, ylim=(len(kinds) - 0.5, -0.5), xlim=(0, 1.02))
    across[0].set(xlabel="AUC, TB against no TB", ylabel="no TB from")
    sns.despine(ax=across[0])
    for axes, who in zip(across[1:], networks if len(single) else [], strict=True):
        square = single[single["network"] == who].pivot(index="tb_from", columns="no_tb_from", values="auc")
        sns.heatmap(square, ax=axes, vmin=0, vmax=1, cmap="viridis", annot=True, fmt=".2f", cbar=False, square=True)
        axes.set(xlabel="no TB from", ylabel="TB from")
        axes.set_title(f"AUC, {who}", color=COLORS[who], fontsize=10)
    guess = Line2D([], [], color=GUESS, linestyle=":", label="guess")
    figure.legend(handles=[*_handles(networks), guess], loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    return figure


def _beside(networks: Sequence[str], who: str) -> float:
    """How far a network's mark lies off the middle of its row."""
    return 0.22 * (list(networks).index(who) - (len(networks) - 1) / 2)


def _intervals(axes: Axes, places: np.ndarray, values: np.ndarray, who: str) -> None:
    """Marks with intervals: values (n, 3) are the value and its ends."""
    axes.hlines(places, values[:, 1], values[:, 2], color=COLORS[who], linewidth=2)
    axes.plot(values[:, 0], places, MARKERS[who], color=COLORS[who], markersize=6)


def _handles(networks: Sequence[str]) -> list[Line2D]:
    return [Line2D([], [], color=COLORS[who], marker=MARKERS[who], linewidth=2, label=who) for who in networks]
