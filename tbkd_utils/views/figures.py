"""The paper's figures and their companions; each function draws one and returns a matplotlib `Figure`.

Ground truth is green, the teacher red, the student blue, as in the paper, in hues that color-blind readers can tell
apart; line styles say the same once more.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from tbkd_utils.data.cache import Samples
from tbkd_utils.data.geometry import Geometry
from tbkd_utils.data.seeding import stable_seed
from tbkd_utils.data.transforms import build_augmentation
from tbkd_utils.experiments.evaluation import Localization, paired_rows
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.localization.boxes import normalize


class Looks(dict[str, Any]):
    """How each network is drawn, by its name; networks that have no look of their own share the last one."""

    def __init__(self, *, other: Any, **known: Any) -> None:
        super().__init__(known)
        self.other = other

    def __missing__(self, name: str) -> Any:
        return self.other


# Colors that red-green blind readers tell apart (Okabe and Ito 2008), and lines and marks for those who print in gray.
COLORS = Looks(other="#555555", teacher="#D55E00", student="#0072B2")
COLORS["ground truth"] = "#009E73"
COLORS["blind guess"] = "#A8507F"
STYLES = Looks(other=":", teacher="--", student="-.")
STYLES["ground truth"] = "-"
STYLES["blind guess"] = (0, (1, 1))
MARKERS = Looks(other="D", teacher="o", student="s")
HEAT = "inferno"
IMAGE_DPI = 64  # of figures made of radiographs, which are heavy inside a notebook


def seed_markers(seeds: Iterable[int]) -> dict[int, str]:
    """Returns the mark of each seed, by the order in which they come."""
    return dict(zip(dict.fromkeys(seeds), itertools.cycle("osD^vP*X"), strict=False))


def show_image(axes: Axes, image: np.ndarray) -> None:
    """Shows an image in gray, without axes."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()


def draw_boxes(axes: Axes, boxes: np.ndarray, who: str) -> None:
    """Outlines boxes (k, 4) xyxy on an image in the color and line style of `who`."""
    for left, top, right, bottom in boxes:
        # A pixel's center has whole coordinates in imshow, its left edge half a pixel less.
        axes.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5), right - left, bottom - top,
                fill=False, edgecolor=COLORS[who], linestyle=STYLES[who], linewidth=1.8,
                clip_on=False,  # a box along the image's border keeps its whole line
                path_effects=[withStroke(linewidth=3.2, foreground="white", alpha=0.7)],  # readable on dark lungs
            )
        )  # fmt: skip


def draw_guess(axes: Axes, guess: str, score: float) -> None:
    """Draws the score of the best box-free guess as a level line, named for the legend."""
    look = {"color": COLORS["blind guess"], "linestyle": STYLES["blind guess"], "linewidth": 1.8, "zorder": 1}
    axes.axhline(score, **look, label=f"best box-free guess: {guess}")


def _note(axes: Axes, text: str) -> None:
    """Writes into the lower left corner of an image."""
    box = {"facecolor": "black", "alpha": 0.6, "pad": 1.5, "linewidth": 0}
    axes.text(0.03, 0.03, text, transform=axes.transAxes, color="white", fontsize=8, bbox=box)


def short_name(name: str) -> str:
    """Returns a radiograph's name as far as it fits above an image."""
    return name if len(name) <= 28 else f"…/{name.rpartition('/')[2][-26:]}"


def _legend(figure: Figure, who: Sequence[str], *others: Line2D) -> None:
    handles = [Line2D([], [], color=COLORS[name], linestyle=STYLES[name], label=name) for name in who]
    figure.legend(handles=[*handles, *others], loc="outside lower center", ncols=len(who) + len(others), frameon=False)


def radiographs(samples: Samples, classes: Sequence[str], columns: int = 5) -> Figure:
    """Draws radiographs of each class, evenly spaced in the order of the set, with their ground-truth boxes.

    Args:
        samples: With one class each.
        classes: Names of the classes; the last one is drawn first.
        columns: Of each class.
    """
    figure = Figure(figsize=(2.1 * columns, 2.45 * len(classes)), dpi=IMAGE_DPI, layout="constrained")
    grid = figure.subplots(len(classes), columns, squeeze=False)
    for axes_row, (label, title) in zip(grid, reversed(list(enumerate(classes))), strict=True):
        chosen = np.flatnonzero(samples.targets == label)
        chosen = chosen[np.linspace(0, len(chosen) - 1, min(columns, len(chosen))).astype(int)]
        for axes in axes_row:
            axes.set_axis_off()
        for axes, index in zip(axes_row, chosen, strict=False):
            show_image(axes, samples.pixels[index])
            draw_boxes(axes, samples.boxes[index], "ground truth")
            axes.set_title(f"{title}\n{short_name(samples.names[index])}", fontsize=8)
    _legend(figure, ["ground truth"])
    return figure


def preprocessing(image: np.ndarray, boxes: np.ndarray, recipe: Recipe, examples: int = 3) -> Figure:
    """Draws one radiograph as stored, after resize and crop, and under a few random augmentations.

    Args:
        image: uint8 (h, w), as stored.
        boxes: float32 (k, 4) xyxy in its pixels.
        recipe: Resize, crop and augmentation.
        examples: How many augmented versions.
    """
    geometry = Geometry(image.shape[0], image.shape[1], *recipe.training_scale)
    crop = geometry.pixels(image)
    figure = Figure(figsize=(2.2 * (2 + examples), 2.8), dpi=IMAGE_DPI, layout="constrained")
    row = figure.subplots(1, 2 + examples)
    show_image(row[0], image)
    draw_boxes(row[0], boxes, "ground truth")
    row[0].set_title(f"stored\n{image.shape[1]} x {image.shape[0]} px", fontsize=9)
    show_image(row[1], crop)
    draw_boxes(row[1], geometry.boxes(boxes), "ground truth")
    word = "squashed" if recipe.pixels.aspect == "squash" else "resized"
    row[1].set_title(f"{word} to {recipe.pixels.resize},\ncenter {recipe.pixels.crop} px", fontsize=9)
    augment = build_augmentation(recipe.training.augmentation, recipe.flat("training"))
    name = {"randaugment": "RandAugment"}.get(recipe.training.augmentation, "augmented")
    for number, axes in enumerate(row[2:]):
        seed = stable_seed("figure", recipe.data.data_seed, number)
        show_image(axes, augment(crop, None, seed)[0])
        axes.set_title(f"{name}\nexample {number + 1}", fontsize=9)
    return figure


def histories(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draws the loss per epoch; the student's loss is equation 1, so its height is not comparable with the teacher's.

    Args:
        tables: `teacher`, `student` or both, to a table with epoch, train_loss, validation_loss.
    """
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, table in tables.items():
        epochs = table["epoch"] + 1
        style: dict[str, Any] = {"color": COLORS[name], "marker": MARKERS[name], "markersize": 4}
        axes.plot(epochs, table["train_loss"], linestyle=":", **style, label=f"{name}, training")
        axes.plot(epochs, table["validation_loss"], linestyle="-", **style, label=f"{name}, validation")
    axes.set(xlabel="epoch", ylabel="loss (nats)", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    sns.despine(figure)
    return figure


def heatmap_to_boxes(
    image: np.ndarray,
    heatmap: np.ndarray,
    boxes: np.ndarray,
    truth: np.ndarray,
    threshold: float,
    who: str,
    method: str = "minmax",
) -> Figure:
    """Figure 4: Algorithm 1 step by step on one radiograph.

    Args:
        image: uint8 (H, W).
        heatmap: float (H, W), not normalized.
        boxes: Predicted boxes, (k, 4) xyxy.
        truth: Ground-truth boxes, (m, 4) xyxy.
        threshold: Of the normalized heatmap.
        who: `teacher` or `student`, whose heatmap it is.
        method: How the heatmap is normalized, the recipe's `normalization`.
    """
    scaled = normalize(heatmap, method=method)
    figure = Figure(figsize=(10, 3.3), dpi=IMAGE_DPI, layout="constrained")
    row = figure.subplots(1, 4)
    for axes, title in zip(row, ("radiograph", "normalized Grad-CAM", f"mask at {threshold:g}", "boxes"), strict=True):
        show_image(axes, image)
        axes.set_title(title, fontsize=10)
    shown = row[1].imshow(scaled, cmap=HEAT, alpha=0.55, vmin=0, vmax=1)
    figure.colorbar(shown, ax=row[1], shrink=0.75, label="normalized heatmap")
    mask = np.where(scaled >= np.float32(threshold), 1.0, np.nan)
    row[2].imshow(mask, cmap=ListedColormap([COLORS[who]]), alpha=0.5)
    draw_boxes(row[3], truth, "ground truth")
    draw_boxes(row[3], boxes, who)
    _legend(figure, ["ground truth", who])
    return figure


def algorithm_1(found: Localization, index: int) -> Figure:
    """Figure 4 for one radiograph of a trained network, by its position among the scored ones."""
    recipe = found.experiment.recipe
    image, truth = found.samples.pixels[index], found.samples.boxes[index]
    heatmap, boxes = found.heatmaps[index], found.boxes[index]
    return heatmap_to_boxes(
        image, heatmap, boxes, truth, recipe.scores.threshold, found.role, recipe.scores.normalization
    )


def qualitative_grid(teacher: Localization, student: Localization, indices: Sequence[int]) -> Figure:
    """Figure 5: ground truth, both heatmaps, and both networks' boxes with their score, one radiograph a row.

    Args:
        teacher: The teacher's heatmaps and boxes.
        student: The student's, of the same radiographs.
        indices: Which radiographs, by their position among the teacher's; at least one.
    """
    figure = Figure(figsize=(9.6, 2.0 * len(indices) + 0.6), dpi=IMAGE_DPI, layout="constrained")
    grid = figure.subplots(len(indices), 5, squeeze=False)
    titles = ("ground truth", "teacher's Grad-CAM", "student's Grad-CAM", "teacher's boxes", "student's boxes")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    for row, index in zip(grid, indices, strict=True):
        name, image, truth = teacher.samples.names[index], teacher.samples.pixels[index], teacher.samples.boxes[index]
        for axes in row:
            show_image(axes, image)
        _note(row[0], short_name(name))
        draw_boxes(row[0], truth, "ground truth")
        for found, heat, boxed in ((teacher, row[1], row[3]), (student, row[2], row[4])):
            place = found.samples.names.index(name)
            method = found.experiment.recipe.scores.normalization
            heat.imshow(normalize(found.heatmaps[place], method=method), cmap=HEAT, alpha=0.55, vmin=0, vmax=1)
            draw_boxes(boxed, truth, "ground truth")
            draw_boxes(boxed, found.boxes[place], found.role)
            _note(boxed, f"IoU {found.rows['score'][place]:.2f}")
    _legend(figure, ["ground truth", "teacher", "student"])
    return figure


def spread_of_cases(teacher: Localization, student: Localization, count: int = 4) -> list[int]:
    """Returns radiographs evenly spaced in rank by the student's gain, from its worst to its best, none hand-picked.

    Returns:
        Positions among the teacher's radiographs, for `qualitative_grid`.

    Raises:
        UsageError: If no radiograph is scored for both.
    """
    pairs = paired_rows(teacher, student)
    order = np.argsort((pairs["score_student"] - pairs["score_teacher"]).to_numpy(), kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]
    return [teacher.samples.names.index(name) for name in pairs["name"].iloc[chosen]]


def miou_bars(table: pd.DataFrame) -> Figure:
    """Figure 6: mIOU of both networks beside the paper's.

    Args:
        table: Columns network (teacher, student), seed, miou, low, high, paper (nan where the paper has no number), as
            from `systems.tb.tables.table_3`. A row without a seed is a blind guess, drawn as a level line.
    """
    table, guesses = table[table["seed"].notna()], table[table["seed"].isna()]
    figure = Figure(figsize=(5.6, 3.5), layout="constrained")
    axes = figure.subplots()
    drawn = table[["miou", "high", "paper"]].to_numpy(float)
    top = max(0.05, *np.nan_to_num(drawn).flat, *guesses["miou"])
    for place, row in enumerate(table.to_dict("records")):
        color, ours, paper = COLORS[row["network"]], row["miou"], row["paper"]
        error = np.maximum([[ours - row["low"]], [row["high"] - ours]], 0)  # rounding can leave -1e-17
        axes.bar(place - 0.2, ours, 0.38, color=color, yerr=error, capsize=4, error_kw={"linewidth": 1.2})
        axes.text(place - 0.2, max(ours, row["high"]) + 0.02 * top, f"{ours:.3f}", ha="center", fontsize=9)
        if np.isfinite(paper):
            axes.bar(place + 0.2, paper, 0.38, facecolor="white", edgecolor=color, hatch="///")
            axes.text(place + 0.2, paper + 0.02 * top, f"{paper:.4f}", ha="center", fontsize=9)
    seeds = " and ".join(f"{seed}" for seed in sorted(set(table["seed"])))
    axes.bar(0, 0, color="0.5", label=f"this run (seed {seeds}), 95% interval over images")
    if table["paper"].notna().any():
        axes.bar(0, 0, facecolor="white", edgecolor="0.5", hatch="///", label=f"paper (seed {seeds})")
    for row in guesses.to_dict("records"):
        draw_guess(axes, row["network"].removeprefix("blind: "), row["miou"])
    axes.set(xticks=range(len(table)), xticklabels=table["network"], ylabel="mIOU (0 to 1)", ylim=(0, 1.15 * top))
    figure.legend(frameon=False, loc="outside upper center", ncols=2, fontsize=8)
    sns.despine(figure)
    return figure


def threshold_curves(rows: Mapping[str, pd.DataFrame], threshold: float) -> Figure:
    """Draws mIOU and the number of boxes over the heatmap threshold, with the recipe's threshold marked.

    Every radiograph counts alike and scores 0 without a box, whatever the recipe's `average` and `no_prediction`.

    Args:
        rows: `teacher` and `student` to one row per image and threshold (`localization.threshold_rows`).
        threshold: The recipe's.
    """
    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharex=True)
    for who, table in rows.items():
        means = table.groupby("threshold")[["score", "matched", "n_pred"]].mean()
        for axes, column in ((left, "score"), (middle, "matched"), (right, "n_pred")):
            axes.plot(means.index, means[column], color=COLORS[who], linestyle=STYLES[who], label=who)
    for axes, label in ((left, "mIOU (Algorithm 2)"), (middle, "one-to-one mIOU"), (right, "boxes per radiograph")):
        axes.axvline(threshold, color="0.3", linewidth=1.0, linestyle=":")
        axes.set(xlabel="threshold of the normalized heatmap", ylabel=label, ylim=(0, None), xlim=(0, 1))
    _legend(figure, list(rows), Line2D([], [], color="0.3", linewidth=1.0, linestyle=":", label="this run's threshold"))
    sns.despine(figure)
    return figure


def paired_scores(teacher: pd.DataFrame, student: pd.DataFrame) -> Figure:
    """Draws the score of every radiograph by the teacher and by the student; above the diagonal the student is better.

    Args:
        teacher: One row per radiograph: name, score.
        student: The same; a radiograph that only one of the tables has is left out.
    """
    pairs = teacher.merge(student, on="name", suffixes=("_teacher", "_student"))
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.subplots()
    top = 1.05 * max(0.1, *pairs["score_teacher"], *pairs["score_student"])
    axes.plot([0, top], [0, top], color="0.5", linewidth=0.8, linestyle=":")
    axes.scatter(pairs["score_teacher"], pairs["score_student"], s=18, alpha=0.5, color="0.25", linewidth=0)
    axes.set(xlim=(-0.02 * top, top), ylim=(-0.02 * top, top), aspect="equal")
    axes.set(xlabel="teacher's score of a radiograph", ylabel="student's score of it")
    places = {"student": (0.03, 0.97, "left", "top"), "teacher": (0.97, 0.03, "right", "bottom")}
    for who, (x, y, side, edge) in places.items():
        axes.text(x, y, f"{who} better", transform=axes.transAxes, color=COLORS[who], ha=side, va=edge, fontsize=9)
    sns.despine(figure)
    return figure
