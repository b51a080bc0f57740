"""Figure 7 and its companions: the curvature of both networks."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from tbkd_utils.curvature.spectrum import Spectrum, density
from tbkd_utils.experiments.curvature import by_network, ratios
from tbkd_utils.views.figures import COLORS, MARKERS, STYLES, seed_markers


def spectral_density(spectra: Mapping[str, Spectrum]) -> Figure:
    """Figure 7: the eigenvalue density of each network, on a logarithmic scale and one common axis of eigenvalues.

    A single eigenvalue among n is a bump of height 1 / (n sigma sqrt(2 pi)); the axis reaches a tenth of that, so that
    every one of them shows.

    Args:
        spectra: Network to spectrum.
    """
    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    panels = figure.subplots(1, len(spectra), sharex=True, sharey=True, squeeze=False)[0]
    nodes = np.concatenate([s.density_nodes.ravel() for s in spectra.values()])
    sigma = 0.01 * float(nodes.max() - nodes.min())
    floor = 0.1 / (max(s.parameters for s in spectra.values()) * sigma * float(np.sqrt(2 * np.pi)))
    for axes, (who, spectrum) in zip(panels, spectra.items(), strict=True):
        grid, values = density(spectrum, sigma=sigma)
        axes.semilogy(grid, np.maximum(values, floor), color=COLORS[who])
        axes.fill_between(grid, floor, np.maximum(values, floor), color=COLORS[who], alpha=0.2)
        axes.set(xlabel="eigenvalue of the Hessian", title=who, ylim=(floor, None))
    panels[0].set_ylabel("density (log scale)")
    sns.despine(figure)
    return figure


def size_study(rows: pd.DataFrame) -> Figure:
    """Draws top eigenvalue, trace and their teacher/student ratio over the size of the sample, a dot per draw."""
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, column, label in zip(panels, ("eigenvalue", "trace"), ("largest eigenvalue", "trace"), strict=False):
        for who, table in by_network(rows):
            axes.plot(table["size"], table[column], MARKERS[who], color=COLORS[who], alpha=0.6, markersize=5)
            axes.plot(
                table.groupby("size")[column].median(), color=COLORS[who], linestyle=STYLES[who], label=f"{who}, median"
            )
        axes.set_ylabel(label)
        if (rows[column] > 0).all():
            axes.set_yscale("log")
    for column, style, marker in (("eigenvalue", "-", "o"), ("trace", "--", "s")):
        ratio = ratios(rows, column)
        panels[2].plot(ratio["size"], ratio["ratio"], marker, color="0.25", alpha=0.6, markersize=5)
        panels[2].plot(ratio.groupby("size")["ratio"].median(), color="0.25", linestyle=style, label=column)
    panels[2].axhline(1, color="0.5", linewidth=0.8, linestyle=":")
    panels[2].set_ylabel("teacher / student")
    for axes in panels:
        axes.set(xlabel="radiographs in the sample", xscale="log")
        sizes = sorted(rows["size"].unique())
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=8)
    sns.despine(figure)
    return figure


def loss_landscape(rows: pd.DataFrame) -> Figure:
    """Draws the loss along each direction for both networks, as a rise above the loss at the network itself."""
    directions = list(dict.fromkeys(rows["direction"]))
    figure = Figure(figsize=(3.2 * len(directions), 3.3), layout="constrained")
    panels = figure.subplots(1, len(directions), sharey=True, squeeze=False)[0]
    for axes, direction in zip(panels, directions, strict=True):
        for who, table in by_network(rows[rows["direction"] == direction]):
            center = table["loss"].iloc[int(np.argmin(np.abs(table["step"].to_numpy())))]
            axes.plot(table["step"], table["loss"] - center, color=COLORS[who], linestyle=STYLES[who], label=who)
        axes.set(title=direction, xlabel="relative step")
    panels[0].set_yscale("symlog", linthresh=0.1)
    panels[0].set_ylabel("rise of the loss (nats)")
    panels[0].legend(frameon=False)
    sns.despine(figure)
    return figure


def flatness_and_miou(rows: pd.DataFrame) -> Figure:
    """Draws mIOU over the trace, a mark per trained network; the paper expects a falling cloud.

    Args:
        rows: From `experiments.curvature.flatness_rows`. Teachers are open marks and students filled ones.
    """
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.subplots()
    marks = seed_markers(rows["seed"])
    for who, table in by_network(rows):
        face = "none" if who == "teacher" else COLORS[who]
        for row in table.to_dict("records"):
            axes.plot(row["trace"], row["miou"], marks[row["seed"]], color=COLORS[who], markerfacecolor=face)
        axes.plot([], [], MARKERS["teacher"], color=COLORS[who], markerfacecolor=face, label=who)
    for seed, mark in marks.items():
        axes.plot([], [], mark, color="0.35", label=f"seed {seed:g}")
    axes.margins(0.1)
    axes.set(xlabel="trace of the Hessian", ylabel="mIOU")
    figure.legend(loc="outside right upper", frameon=False)
    sns.despine(figure)
    return figure
