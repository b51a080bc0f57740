"""The pictures of the explorers, drawn in a few hundredths of a second: few axes, at fixed places."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tbkd_utils.curvature.spectrum import Spectrum, density
from tbkd_utils.experiments.evaluation import Localization
from tbkd_utils.experiments.shortcut import Shortcut
from tbkd_utils.localization.boxes import Boxes, normalize
from tbkd_utils.localization.guesses import grid_boxes
from tbkd_utils.localization.scores import image_score
from tbkd_utils.views.figures import COLORS, HEAT, MARKERS, STYLES, draw_boxes, short_name
from tbkd_utils.views.live_boxes import LiveBoxes

_HEATS = (matplotlib.colormaps[HEAT](np.arange(256))[:, :3] * 255).astype(np.float32)  # (256, 3)
_DPI = 100


def case_figure(teacher: Localization, student: Localization, name: str, blind: Boxes | None = None) -> Figure:
    """Draws one radiograph: the truth, then each network's heatmap with its boxes and its score.

    Args:
        teacher: The teacher's heatmaps and boxes.
        student: The student's.
        name: A radiograph that both are scored on.
        blind: Boxes of a blind guess, (k, 4), drawn beside the truth; None for no such boxes.
    """
    panels = []
    for found in (teacher, student):
        place = found.samples.names.index(name)
        scaled = normalize(found.heatmaps[place], method=found.experiment.recipe.scores.normalization)
        panels.append((found, scaled, found.boxes[place], 0.0))
    return _heat_panels(name, panels, blind)


def surplus_figure(found: Localization, name: str, curve: pd.DataFrame, added: int) -> Figure:
    """Draws one radiograph with a network's boxes and those added blindly, and both scores over their number.

    Args:
        found: The network's boxes.
        name: A radiograph that it is scored on.
        curve: From `guesses.surplus_curve`.
        added: How many boxes are added, a number in the curve.
    """
    figure = Figure(figsize=(9.6, 3.85), dpi=_DPI)
    place = found.samples.names.index(name)
    image = np.repeat(found.samples.pixels[place][..., None], 3, axis=2)
    grid = grid_boxes(added, found.samples.size)
    marked = [(grid, "blind guess"), (found.samples.boxes[place], "ground truth"), (found.boxes[place], found.role)]
    _mosaic(figure.add_axes((0.01, 0.12, 0.4, 0.8)), [image], [short_name(name)], [marked])
    axes = figure.add_axes((0.5, 0.15, 0.48, 0.72))
    for score, label, style in (("miou", "mIOU (Algorithms 2-3)", "-"), ("matched", "one-to-one IoU", "--")):
        axes.plot(curve["added"], curve[score], color=COLORS[found.role], linestyle=style, label=label)
        axes.plot([added], curve.loc[curve["added"] == added, score], "o", color=COLORS[found.role])
    axes.axvline(added, color="0.5", linewidth=0.9, linestyle=":")
    axes.set(xlabel="boxes added blindly to each radiograph", ylabel="score of the whole set", ylim=(0, None))
    figure.legend(
        *axes.get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.74, 1), ncols=2, frameon=False
    )
    _name_boxes(figure, ["ground truth", found.role, "blind guess"], 0.21)
    sns.despine(figure)
    return figure


def threshold_figure(teacher: LiveBoxes, student: LiveBoxes, name: str, threshold: float, min_area: float) -> Figure:
    """Draws one radiograph with each network's heatmap above a threshold, and the boxes around it.

    Args:
        teacher: The teacher's heatmaps.
        student: The student's.
        name: A radiograph that both are scored on.
        threshold: Share of the normalized heatmap, in [0, 1]; below it the heatmap is shown faintly.
        min_area: Boxes no larger are dropped, in square pixels of the crop.
    """
    panels = []
    for live in (teacher, student):
        place = live.found.samples.names.index(name)
        panels.append((live.found, live.scaled[place], live.boxes(threshold, min_area)[place], threshold))
    return _heat_panels(name, panels)


def softening_figure(parts: pd.DataFrame, place: int, temperature: float, alpha: float) -> Figure:
    """Draws the softened answers of both networks against each other, and the parts of the student's loss.

    Args:
        parts: From `softening.loss_parts` with this temperature and alpha.
        place: The radiograph that is marked, by its row.
        temperature: T of equation 2.
        alpha: Of equation 1.
    """
    figure = Figure(figsize=(9.6, 3.9), dpi=_DPI)
    answers, losses = figure.subplots(1, 2, width_ratios=(1, 1.5))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.26, top=0.91, wspace=0.42)
    answers.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle=":")
    for label, face, who in ((1, "0.25", "TB"), (0, "white", "no TB")):
        rows = parts[parts["label"] == label]
        answers.plot(rows["p_teacher"], rows["p_student"], "o", markersize=5, markerfacecolor=face,
                     markeredgecolor="0.25", alpha=0.6, label=who)  # fmt: skip
    one = parts.iloc[place]
    answers.plot([one["p_teacher"]], [one["p_student"]], "D", markersize=10, markerfacecolor=COLORS["student"],
                 markeredgecolor="black", label="this radiograph")  # fmt: skip
    answers.set(
        xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), xlabel="teacher's softened p(TB)", ylabel="student's softened p(TB)"
    )
    answers.set_title(f"answers at T = {temperature:g}", fontsize=10)
    answers.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=3, frameon=False, handletextpad=0.1,
                   columnspacing=1)  # fmt: skip
    names, values = ["this\nradiograph", "mean of all"], (one, parts[["soft", "hard"]].mean())
    soft, hard = ([float(value[part]) for value in values] for part in ("soft", "hard"))
    losses.barh(names, soft, color=COLORS["teacher"], height=0.5, label="teacher's part (equation 2)")
    losses.barh(names, hard, left=soft, facecolor="white", edgecolor="0.25", hatch="///", height=0.5,
                label="labels' part")  # fmt: skip
    losses.invert_yaxis()
    losses.set(xlim=(0, 1.05 * max(0.1, *np.add(soft, hard))), xlabel="loss (nats)")
    losses.set_title(f"equation 1 at alpha = {alpha:g}", fontsize=10)
    losses.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=2, frameon=False)
    sns.despine(figure)
    return figure


def shortcut_figure(teacher: Shortcut, student: Shortcut, name: str, painted: bool) -> Figure:
    """Draws both networks' heatmaps on one radiograph, and p(TB) of all of them before and after painting.

    Args:
        teacher: What the teacher says with and without the marker.
        student: What the student says.
        name: A radiograph with a marker.
        painted: Whether the radiograph is shown with its marker painted over.
    """
    figure = Figure(figsize=(9.6, 3.6), dpi=_DPI)
    heats = figure.add_axes((0.01, 0.1, 0.56, 0.8))
    lines = figure.add_axes((0.64, 0.22, 0.35, 0.66))
    images, titles, marked = [], [], []
    for column, found in enumerate((teacher, student)):
        place = found.samples.names.index(name)
        image = (found.painted if painted else found.samples.pixels)[place]
        heatmap = (found.heatmaps_painted if painted else found.heatmaps)[place]
        scaled = normalize(heatmap, method=found.experiment.recipe.scores.normalization)
        rows = found.rows
        images.append(blended(image, scaled))
        titles.append(f"{found.role}: p(TB) {rows['probability_painted' if painted else 'probability'][place]:.3f}")
        marked.append([(found.markers[place][None], "ground truth")])
        left = 1.6 * column
        pairs = rows[["probability", "probability_painted"]].to_numpy()
        ends = np.stack([np.full_like(pairs, [left, left + 1]), pairs], axis=-1)  # (n, 2, 2)
        for label, style in ((1, "-"), (0, ":")):
            kept = (rows["label"] == label).to_numpy()
            lines.add_collection(LineCollection(list(ends[kept]), colors="0.55", linewidths=0.8, linestyles=style))
        lines.plot([left, left + 1], pairs[place], color=COLORS[found.role], linewidth=2.2, marker=MARKERS[found.role])
    _mosaic(heats, images, titles, marked)
    lines.set(xlim=(-0.3, 2.9), ylim=(-0.03, 1.03), ylabel="p(TB)", xticks=(0, 1, 1.6, 2.6))
    lines.set_xticklabels(["as is", "painted\nover"] * 2, fontsize=9)
    for left, who in ((0.5, "teacher"), (2.1, "student")):
        lines.text(left, 1.06, who, color=COLORS[who], ha="center", fontsize=10)
    sns.despine(ax=lines)
    figure.legend(
        handles=[
            Line2D([], [], color=COLORS["ground truth"], label="the marker's place"),
            Line2D([], [], color="0.4", linewidth=1, label="TB"),
            Line2D([], [], color="0.4", linewidth=1, linestyle=":", label="no TB"),
        ],
        loc="lower center", ncols=3, frameon=False,
    )  # fmt: skip
    return figure


def spectrum_figure(spectra: Mapping[str, Spectrum], width: float, marked: bool = True) -> Figure:
    """Draws the density of each network's Hessian eigenvalues on one axis, smoothed as asked.

    A single eigenvalue among n is a bump of height 1 / (n sigma sqrt(2 pi)); the axis reaches a tenth of that.

    Args:
        spectra: Network to spectrum.
        width: Standard deviation of the smoothing, as a share of the range of all eigenvalues, above 0.
        marked: Whether the top eigenvalues are marked below the curves.
    """
    figure = Figure(figsize=(9.6, 3.8), dpi=_DPI)
    axes = figure.add_axes((0.09, 0.14, 0.89, 0.81))
    sigma = smoothing(spectra, width)
    floor = 0.1 / (max(found.parameters for found in spectra.values()) * sigma * float(np.sqrt(2 * np.pi)))
    bottom, nodes = np.log10(floor), np.concatenate([found.density_nodes.ravel() for found in spectra.values()])
    grid = np.linspace(nodes.min() - 8 * sigma, nodes.max() + 8 * sigma, 1500)
    for level, (who, found) in enumerate(spectra.items(), start=1):
        heights = np.log10(np.maximum(density(found, sigma=sigma, grid=grid)[1], floor))
        axes.plot(grid, heights, color=COLORS[who], linestyle=STYLES[who], linewidth=1.8, label=who)
        axes.fill_between(grid, bottom, heights, color=COLORS[who], alpha=0.12, linewidth=0)
        if marked:
            values = found.eigenvalues
            axes.plot(values, np.full(len(values), bottom - 0.45 * level), MARKERS[who], color=COLORS[who],
                      linestyle="none", label=f"{who}: top {len(values)}")  # fmt: skip
    axes.set(xlabel="eigenvalue of the Hessian", ylabel="density (log scale)", ylim=(bottom - 1.3, None))
    ticks = np.arange(np.ceil(bottom), axes.get_ylim()[1], 2)
    axes.set_yticks(ticks, [f"$10^{{{int(tick)}}}$" for tick in ticks])
    axes.legend(frameon=False, loc="upper right")
    sns.despine(figure)
    return figure


def smoothing(spectra: Mapping[str, Spectrum], width: float) -> float:
    """Returns the standard deviation, in eigenvalues, of a smoothing given as a share of the range of all of them."""
    nodes = np.concatenate([found.density_nodes.ravel() for found in spectra.values()])
    return width * (float(nodes.max() - nodes.min()) or 1.0)


def blended(image: np.ndarray, scaled: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """Lays a heatmap over a radiograph, faintly where it is below a threshold.

    Args:
        image: uint8 (H, W).
        scaled: float32 (H, W) in [0, 1].
        threshold: In [0, 1].

    Returns:
        uint8 (H, W, 3).
    """
    share = np.where(scaled >= np.float32(threshold), np.float32(0.55), np.float32(0.15))[..., None]
    heat = _HEATS[(scaled * 255).astype(np.uint8)]  # (H, W, 3)
    return (heat * share + image[..., None] * (1 - share)).astype(np.uint8)


def _heat_panels(
    name: str, panels: Sequence[tuple[Localization, np.ndarray, np.ndarray, float]], blind: Boxes | None = None
) -> Figure:
    """The radiograph with its truth and a guess, then for each network (found, scaled heatmap, boxes, threshold)."""
    figure = Figure(figsize=(9.6, 3.85), dpi=_DPI)
    samples = panels[0][0].samples
    place = samples.names.index(name)
    image, truth = samples.pixels[place], samples.boxes[place]
    images, titles = [np.repeat(image[..., None], 3, axis=2)], [short_name(name)]
    marked = [[(truth, "ground truth")]]
    if blind is not None:
        marked[0].append((blind, "blind guess"))
    for found, scaled, boxes, threshold in panels:
        images.append(blended(image, scaled, threshold))
        count = f"{len(boxes)} box{'' if len(boxes) == 1 else 'es'}"
        titles.append(f"{found.role}: {count}, score {image_score(truth, boxes):.3f}")
        marked.append([(truth, "ground truth"), (boxes, found.role)])
    _mosaic(figure.add_axes((0.01, 0.1, 0.98, 0.82)), images, titles, marked)
    _name_boxes(figure, ["teacher", "student", "ground truth", *(["blind guess"] if blind is not None else [])])
    return figure


def _name_boxes(figure: Figure, who: Sequence[str], x: float = 0.5) -> None:
    """Says below, around a place between 0 and 1, whose boxes have which color and line."""
    lines = [Line2D([], [], color=COLORS[one], linestyle=STYLES[one], label=one) for one in who]
    figure.legend(handles=lines, loc="lower center", bbox_to_anchor=(x, 0), ncols=len(lines), frameon=False)


def _mosaic(
    axes: Axes,
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    marked: Sequence[Sequence[tuple[np.ndarray, str]]],
) -> None:
    """Draws images (H, W, 3) of one size side by side in one axes, which is faster than one axes each."""
    height, width = images[0].shape[:2]
    gap = max(1, width // 25)
    sheet = np.full((height, len(images) * (width + gap) - gap, 3), 255, np.uint8)
    for number, (image, title, boxes) in enumerate(zip(images, titles, marked, strict=True)):
        left = number * (width + gap)
        sheet[:, left : left + width] = image
        axes.text(left + width / 2, -0.02 * height, title, ha="center", va="bottom", fontsize=10)
        for found, who in boxes:
            draw_boxes(axes, found + np.array([left, 0, left, 0], np.float32), who)
    axes.imshow(sheet, interpolation="bilinear")
    axes.set_axis_off()
