"""Figure 3, the framework, drawn by code."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.figures import COLORS


def framework(recipe: Recipe) -> Figure:
    """Figure 3: from radiographs to boxes, with this recipe's values in the boxes."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 11), ylim=(0, 4.4))
    axes.set_axis_off()
    teacher, student, grey = COLORS["teacher"], COLORS["student"], "#555555"
    augmented = f"RandAugment({recipe.randaugment_ops}, {recipe.randaugment_magnitude})"
    _box(axes, 0.1, 1.75, 1.7, 1.1, "radiographs\nlabelled TB / no TB", grey)
    _box(axes, 2.2, 1.75, 1.8, 1.1, f"resize {recipe.resize}, crop {recipe.crop}\n{augmented}\nnormalise", grey)
    _box(axes, 4.5, 3.2, 1.9, 1.0, f"teacher\n{recipe.backbone}\nfrozen", teacher)
    _box(axes, 4.5, 0.4, 1.9, 1.0, f"student\n{recipe.backbone}\ntrained", student)
    _box(axes, 6.9, 1.6, 1.95, 1.4,
         f"loss, equation 1\n(1 - {recipe.alpha:g}) soft target\n+ {recipe.alpha:g} cross-entropy\n"
         f"T = {recipe.temperature:g}",
         grey)  # fmt: skip
    _box(axes, 7.25, 0.2, 1.5, 0.8, "Grad-CAM, TB\n(either network)", student)
    _box(axes, 9.15, 0.2, 1.75, 0.8, "boxes\nAlgorithm 1", student)
    _box(axes, 9.15, 1.9, 1.75, 0.8, "mIOU\nAlgorithms 2-3", grey)
    _box(axes, 9.15, 3.4, 1.75, 0.8, "radiologists' boxes\n(scoring only)", COLORS["ground truth"])
    for start, end, text in (
        ((1.8, 2.3), (2.2, 2.3), ""),
        ((4.0, 2.6), (4.5, 3.5), ""),
        ((4.0, 2.3), (6.9, 2.3), "labels"),
        ((4.0, 2.0), (4.5, 1.1), ""),
        ((6.4, 3.6), (7.6, 3.0), "logits $z_t$"),
        ((6.4, 1.05), (6.95, 1.6), "logits $z_s$"),
        ((6.4, 0.6), (7.25, 0.6), ""),
        ((8.75, 0.6), (9.15, 0.6), ""),
        ((10.0, 1.0), (10.0, 1.9), ""),
        ((10.0, 3.4), (10.0, 2.7), ""),
    ):
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color="0.25", linewidth=1.1))
        if text:
            x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
            level = start[1] == end[1]
            below = end[1] > start[1]  # beside a rising arrow is room on its right and below
            axes.text(x if level else x + 0.12, y - 0.12 if below else y + 0.1, text, fontsize=9,
                      ha="center" if level else "left", va="top" if below else "bottom")  # fmt: skip
    return figure


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.1", facecolor=f"{color}22",
                       edgecolor=color, linewidth=1.5)
    )  # fmt: skip
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9.5, linespacing=1.35)
