"""One located radiograph as a picture: its boxes and its heatmap, in the pixels of the file."""

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from tbkd_utils.data.files import read_radiograph
from tbkd_utils.data.images import to_gray
from tbkd_utils.experiments.predict import Finding
from tbkd_utils.experiments.system import find_system
from tbkd_utils.localization.boxes import normalize
from tbkd_utils.views.figures import COLORS, HEAT, STYLES

SHOWN = 1024  # the longer side of the radiograph in the picture, in pixels: more does not fit on a screen


def overlay(found: Finding, who: str) -> Figure:
    """Draws a radiograph with its boxes and, beside it, with its heatmap; axes count the file's pixels.

    The dotted frame is what the network saw: outside it nothing can be found.

    Args:
        found: From `locate`.
        who: The network's role, such as `teacher` or `student`, for the color.

    Raises:
        DataError: If the file cannot be read any more.
    """
    label = find_system(found.recipe.system).task.label
    image = Image.fromarray(to_gray(read_radiograph(found.path)))
    width, height = image.size
    image.thumbnail((SHOWN, SHOWN))
    tall = 4.45 * min(max(height / width, 0.5), 2.0)
    figure = Figure(figsize=(10, tall + 0.9), dpi=100, layout="constrained")
    boxed, heated = figure.subplots(1, 2)
    for axes in (boxed, heated):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
        _frame(axes, found.seen, edgecolor="white", linestyle=":", linewidth=1.0)
        axes.set_axis_off()
    for box in found.boxes:
        _frame(boxed, box, rim="white", edgecolor=COLORS[who], linestyle=STYLES[who], linewidth=2.0)
        boxed.text(
            box[0], box[1], f"p({label}) {found.probability:.2f}", color="white", fontsize=8, va="top", clip_on=True,
            bbox={"facecolor": COLORS[who], "pad": 1.5, "linewidth": 0},
        )  # fmt: skip
    left, top, right, bottom = found.seen
    scaled = normalize(found.heatmap, method=found.recipe.scores.normalization)
    shown = heated.imshow(scaled, cmap=HEAT, alpha=0.5, vmin=0, vmax=1, extent=(left, right, bottom, top))
    for axes in (boxed, heated):
        axes.set(xlim=(0, width), ylim=(height, 0))
    figure.colorbar(shown, ax=heated, shrink=0.75, label="Grad-CAM, scaled to its maximum")
    count = f"{len(found.boxes)} box{'' if len(found.boxes) == 1 else 'es'}"
    boxed.set_title(f"p({label}) {found.probability:.3f} by the {who}, {count}", fontsize=10)
    heated.set_title(f"heatmap; boxes at {found.recipe.scores.threshold:g}; dotted: what the network saw", fontsize=10)
    figure.suptitle(found.name if len(found.name) <= 90 else f"…{found.name[-89:]}", fontsize=10, parse_math=False)
    return figure


def overlay_png(found: Finding, who: str) -> bytes:
    """Returns `overlay` as the bytes of a PNG file."""
    drawn = io.BytesIO()
    overlay(found, who).savefig(drawn, format="png")
    return drawn.getvalue()


def _frame(axes: Axes, box: np.ndarray, rim: str = "black", **style: Any) -> None:
    left, top, right, bottom = box
    stroke = [withStroke(linewidth=style["linewidth"] + 1.4, foreground=rim, alpha=0.7)]  # readable on any gray
    place = ((left, top), right - left, bottom - top)
    axes.add_patch(Rectangle(*place, fill=False, clip_on=False, path_effects=stroke, **style))
