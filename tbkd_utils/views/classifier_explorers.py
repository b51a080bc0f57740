"""Explorers of one classifier of two classes: its threshold, and the images on which it was scored."""

from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tbkd_utils.errors import UsageError
from tbkd_utils.experiments.evaluation import Localization
from tbkd_utils.localization.boxes import normalize
from tbkd_utils.metrics.operating import operating_metrics
from tbkd_utils.views.classifier_figures import NETWORK, TRUTH, box_legend
from tbkd_utils.views.explorer import Explorer, View, case_controls, dropdown, link_cases, slider
from tbkd_utils.views.explorer_figures import blended
from tbkd_utils.views.figures import draw_boxes, short_name

HIDDEN = "hidden until you have chosen"
ORDERS = {
    "worst IoU first": ("score", True),
    "best IoU first": ("score", False),
    "lowest probability first": ("probability", True),
    "highest probability first": ("probability", False),
    "name": ("name", True),
}
"""How a reader may sort findings: the column, and whether its smallest value comes first."""
ALL = "all"
_DPI = 100
_EDGES = np.arange(21) / 20
_FLOOR = 0.6  # where the log scale of images begins, so that a single one stands above it
_LOOKS: tuple[dict[str, Any], ...] = (
    {"facecolor": "white", "edgecolor": "0.35", "hatch": "/////"},
    {"color": "#0072B2"},
)


# --- the threshold ----------------------------------------------------------------------------------------------------


def operating_explorer(validation: pd.DataFrame, test: pd.DataFrame, classes: tuple[str, str]) -> Explorer:
    """Moves the threshold over the validation split; the test set is hidden until the reader asks for it.

    Args:
        validation: Columns label (0 or 1) and probability of class 1, one row per image.
        test: The same of the test set.
        classes: The names of class 0 and class 1.

    Raises:
        UsageError: If there are not two classes, or a table holds values that `operating.operating_metrics` refuses.
    """
    if len(classes) != 2:
        raise UsageError(f"Expected the names of two classes; got {', '.join(classes)}.")

    def show(threshold: float, shown: bool) -> View:
        lines = [
            f"Above {threshold:.2f} an image is called {classes[1]}.",
            _at_threshold("Validation", validation, threshold, classes),
            _at_threshold("Test", test, threshold, classes) if shown else f"Test: {HIDDEN}.",
        ]
        alt = f"Histograms of the probability of {classes[1]} by class, with the threshold. {' '.join(lines)}"
        return View(_operating_figure(validation, test if shown else None, threshold, classes), lines, alt)

    controls = {
        "threshold": slider("threshold", 0.5, np.arange(1, 100) / 100, ".2f"),
        "shown": widgets.Checkbox(description="show the test set", value=False, indent=False),
    }
    return Explorer("operating", show, controls)


def _at_threshold(name: str, rows: pd.DataFrame, threshold: float, classes: tuple[str, str]) -> str:
    found = operating_metrics(rows["probability"], rows["label"], threshold)
    tn, fp, fn, tp = (int(found[key]) for key in ("tn", "fp", "fn", "tp"))
    shares = (
        ("accuracy", f" ({tp + tn} of {len(rows)} images)"),
        ("f1", ""),
        ("sensitivity", f" ({tp} of {tp + fn} {classes[1]})"),
        ("specificity", f" ({tn} of {tn + fp} {classes[0]})"),
    )
    written = {"f1": "F1"}
    parts = [f"{written.get(key, key)} {_number(found[key])}{counts}" for key, counts in shares]
    return f"{name}: {', '.join(parts)}."


def _operating_figure(
    validation: pd.DataFrame, test: pd.DataFrame | None, threshold: float, classes: tuple[str, str]
) -> Figure:
    """The histograms of both sets, each on its own scale, so that the hidden one changes nothing."""
    figure = Figure(figsize=(9.6, 3.9), dpi=_DPI)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.075, right=0.985, bottom=0.27, top=0.91, wspace=0.2)
    for axes, rows, name in ((left, validation, "validation"), (right, test, "test")):
        if rows is None:
            axes.set_facecolor("0.93")
            axes.set(xticks=(), yticks=(), title=name)
            axes.text(0.5, 0.5, HIDDEN, transform=axes.transAxes, ha="center", va="center", color="0.25", fontsize=12)
        else:
            _histograms(axes, rows, threshold, classes)
            axes.set_title(f"{name}, {len(rows)} images")
        axes.title.set_fontsize(10)
    figure.legend(*left.get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False)
    sns.despine(figure)
    return figure


def _histograms(axes: Axes, rows: pd.DataFrame, threshold: float, classes: tuple[str, str]) -> None:
    """Bars of both classes side by side in each bin; the log scale shows a rare class beside a frequent one."""
    for label, look in enumerate(_LOOKS):
        counts, _ = np.histogram(rows["probability"][rows["label"] == label], _EDGES)
        left = _EDGES[:-1] + _EDGES[1] * (0.07 + 0.44 * label)
        edges = np.stack([left, left + 0.42 * _EDGES[1]], axis=1).ravel()  # of every bar and every gap
        heights = np.stack([counts, np.zeros_like(counts)], axis=1).ravel()[:-1]
        # One shape for all bars, which is quick to draw; no image, no height above the axis.
        axes.stairs(np.maximum(heights, _FLOOR), edges, baseline=_FLOOR, fill=True, linewidth=0.8,
                    label=classes[label], **look)  # fmt: skip
    axes.axvline(threshold, color="#D55E00", linestyle="--", linewidth=2, label=f"threshold {threshold:.2f}")
    axes.set(xlim=(0, 1), yscale="log", xlabel=f"probability of {classes[1]}", ylabel="images in a bin (log scale)")
    axes.set_ylim(_FLOOR, None)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


# --- the findings -----------------------------------------------------------------------------------------------------


def finding_browser(found: Localization, rows: pd.DataFrame, classes: tuple[str, ...]) -> Explorer:
    """Looks through one network's scored radiographs: truth, heatmap, boxes and scores, sorted and filtered.

    Args:
        found: The network's heatmaps, boxes and scores.
        rows: `evaluation.probabilities` of the same network: name, label, probability, among them every scored one.
        classes: The names of the classes, the explained one among them.

    Raises:
        UsageError: If a scored radiograph has no probability.
    """
    table, explained = _findings(found, rows), classes[found.experiment.task.explained]
    kinds = [ALL, *sorted(set(table["kind"]) - {""})]
    chosen = _chosen(table, next(iter(ORDERS)), ALL)

    def show(case: int) -> View:
        row = chosen.iloc[case - 1]
        kind = f", {row['kind']}" if row["kind"] else ""
        lines = [
            f"{case} of {len(chosen)}: {row['name']}{kind}; {explained} with probability {row['probability']:.3f}",
            f"IoU {row['score']:.3f}, one-to-one {row['matched']:.3f}; the heatmap's highest point is "
            f"{'inside' if row['pointing'] else 'outside'} the truth; {_share(row['energy'])} of its energy is inside",
        ]
        alt = f"Radiograph {row['name']} with the truth, the heatmap and the network's boxes. {lines[1]}."
        return View(_finding_figure(found, row, explained), lines, alt)

    controls = {
        "order": dropdown("sort by", list(ORDERS)),
        "kind": dropdown("kind", kinds),
        **case_controls(list(chosen["name"])),
    }
    if len(kinds) == 1:  # the dataset says nothing of them
        del controls["kind"]
    explorer = Explorer("findings", show, controls, ["case"], ["previous", "next", "case"])
    case, name = controls["case"], controls["name"]

    def choose(change: Any) -> None:
        nonlocal chosen
        chosen = _chosen(table, controls["order"].value, controls["kind"].value if "kind" in controls else ALL)
        stays = case.value == 1
        name.options = list(chosen["name"])  # goes to the first one
        case.value, case.max = 1, len(chosen)
        if stays:  # so nothing was drawn yet
            explorer.redraw()

    for one in ("order", "kind"):
        if one in controls:
            controls[one].observe(choose, names="value")
    link_cases(controls)
    return explorer


def _findings(found: Localization, rows: pd.DataFrame) -> pd.DataFrame:
    """One row per scored radiograph: name, score, matched, pointing, energy, place (its position), probability, kind.

    A kind is empty where the dataset says nothing.
    """
    table = found.rows[["name", "score", "matched", "pointing", "energy"]].copy()
    table["place"] = range(len(table))
    lacking = set(table["name"]) - set(rows["name"])
    if lacking:
        raise UsageError(
            f"{len(lacking)} scored radiographs have no probability, such as {min(lacking)}: give the rows of the "
            "same network and test set."
        )
    kinds = {record.name: record.kind for record in found.experiment.test_records}
    table["kind"] = [kinds.get(name, "") for name in table["name"]]
    return table.merge(rows[["name", "probability"]], on="name", how="left", validate="1:1")


def _chosen(table: pd.DataFrame, order: str, kind: str) -> pd.DataFrame:
    column, ascending = ORDERS[order]
    kept = table if kind == ALL else table[table["kind"] == kind]
    return kept.sort_values(column, ascending=ascending, kind="stable")


def _finding_figure(found: Localization, row: pd.Series, explained: str) -> Figure:
    """The radiograph with its truth, under the heatmap, and with the network's boxes."""
    place, samples = int(row["place"]), found.samples
    scaled = normalize(found.heatmaps[place], method=found.experiment.recipe.scores.normalization)
    image, truth, boxes = samples.pixels[place], samples.boxes[place], found.boxes[place]
    figure = Figure(figsize=(9.6, 3.85), dpi=_DPI)
    panels = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.09, top=0.92, wspace=0.04)
    count = f"{len(boxes)} box{'' if len(boxes) == 1 else 'es'}"
    titles = (
        short_name(row["name"]),
        f"heatmap, p({explained}) {row['probability']:.3f}",
        f"{count}, IoU {row['score']:.3f}",
    )
    shown = (np.repeat(image[..., None], 3, axis=2), blended(image, scaled), np.repeat(image[..., None], 3, axis=2))
    for axes, title, pixels in zip(panels, titles, shown, strict=True):
        axes.imshow(pixels, interpolation="bilinear")
        axes.set_axis_off()
        axes.set_title(title, fontsize=10)
        draw_boxes(axes, truth, TRUTH)
    draw_boxes(panels[2], boxes, NETWORK)
    who = {TRUTH: TRUTH, NETWORK: "network"}
    figure.legend(handles=box_legend(who), loc="lower center", ncols=2, frameon=False)
    return figure


def _number(value: float) -> str:
    return "not defined" if np.isnan(value) else f"{value:.3f}"


def _share(value: float) -> str:
    return "no share" if np.isnan(value) else f"{value:.1%}"
