"""Pictures that explain: distillation, Grad-CAM, IoU and the Hessian."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from tbkd_utils.experiments.evaluation import Localization, probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.localization.heatmaps import channel_contributions
from tbkd_utils.localization.scores import image_score, iou_matrix, matched_score
from tbkd_utils.models.losses import soften
from tbkd_utils.views.figures import COLORS, HEAT, STYLES

SIGNED = "RdBu_r"  # blue: against, red: for; readable for color-blind readers
INK = "0.15"
LESIONS = np.array([[10, 14, 44, 46], [10, 50, 40, 84]], dtype=np.float32)
PREDICTED = np.array([[14, 16, 47, 82], [26, 62, 56, 94], [68, 60, 90, 86]], dtype=np.float32)
NARROW, WIDE = 8.0, 1.0  # eigenvalues of the two bowls


def softened_answers(
    experiment: Experiment, teacher: TrainedNetwork, temperatures: tuple[float, ...] = (1.0, 2.0, 4.0)
) -> Figure:
    """Draws what a label, a teacher and a softened teacher say of three test radiographs.

    All three show TB. They are chosen by the teacher's own answers: the one it is surest of, the one it doubts most,
    and of the others the one whose probability of TB is nearest to 0.9.
    """
    rows, samples = probabilities(experiment, teacher), experiment.test
    p = rows["probability"].to_numpy()
    tb = np.flatnonzero(rows["label"] == 1)
    surest, doubtful = tb[p[tb].argmax()], tb[np.abs(p[tb] - 0.5).argmin()]
    others = [index for index in tb if index not in (surest, doubtful)] or [surest]
    between = min(others, key=lambda index: abs(p[index] - 0.9))
    cases = {"the surest": surest, "in between": between, "the most\ndoubtful": doubtful}
    titles = ["radiograph", "label", *(f"teacher, T = {t:g}" for t in temperatures)]
    figure = Figure(figsize=(9.2, 5.0), dpi=80, layout="constrained")
    grid = figure.subplots(len(cases), len(titles), squeeze=False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=11)
    for row, (case, index) in zip(grid, cases.items(), strict=True):
        row[0].imshow(samples.pixels[index], cmap="gray", vmin=0, vmax=255)
        row[0].set(xticks=[], yticks=[])
        row[0].set_ylabel(case, fontsize=10)
        answers = [float(rows["label"][index]), *(float(soften(p[index], t)) for t in temperatures)]
        for axes, answer in zip(row[1:], answers, strict=True):
            _answer(axes, answer, INK if axes is row[1] else COLORS["teacher"])
    return figure


def _answer(axes: Axes, probability: float, color: str) -> None:
    """Two bars: the probability of TB and of no TB."""
    places, values = (1, 0), (probability, 1 - probability)
    axes.barh(places, values, color=color, height=0.55)
    for place, value in zip(places, values, strict=True):
        axes.text(value + 0.04, place, f"{value:.2f}", va="center", fontsize=10)
    axes.set(xlim=(0, 1.38), ylim=(-0.8, 1.8), xticks=[], yticks=places, yticklabels=["TB", "no TB"])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(length=0)


def grad_cam_sum(found: Localization, trained: TrainedNetwork, index: int, shown: int = 3) -> Figure:
    """Draws how Grad-CAM adds up: channels times their weights, their sum, its positive part, enlarged.

    Args:
        found: Heatmaps of the network.
        trained: The network.
        index: A radiograph, by its position among the scored ones.
        shown: How many channels; those that contribute most, one of them against TB if there is any.
    """
    recipe, samples = found.experiment.recipe, found.samples
    image, explained = trained.images(samples, index, index + 1).to(trained.device), trained.task.explained
    layer = recipe.heatmaps.cam_layer
    parts = channel_contributions(trained.model(), image, trained.network, explained, layer=layer)
    order = parts.mean(axis=(1, 2)).argsort()[::-1]
    chosen = [*order[: shown - 1], order[-1]]
    figure = Figure(figsize=(8.8, 4.9), dpi=72, layout="constrained")
    grid = figure.subplots(2, shown + 1, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    pixels, side = samples.pixels[index], samples.pixels.shape[1]
    for axes in (grid[0, 0], grid[1, 2], grid[1, 3]):
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    top = max(float(np.abs(parts[chosen]).max()), 1e-12)
    for axes, channel in zip(grid[0, 1:], chosen, strict=True):
        axes.imshow(parts[channel], cmap=SIGNED, vmin=-top, vmax=top)
        says = "for TB" if parts[channel].mean() > 0 else "against TB"
        axes.set_title(f"channel {channel}\nspeaks {says}", fontsize=10)
    total = parts.sum(axis=0)  # (h, w)
    reach = max(float(np.abs(total).max()), 1e-12)
    grid[1, 0].imshow(total, cmap=SIGNED, vmin=-reach, vmax=reach)
    grid[1, 1].imshow(np.maximum(total, 0), cmap=HEAT, vmin=0)
    grid[1, 2].imshow(found.heatmaps[index], cmap=HEAT, alpha=0.55, extent=(-0.5, side - 0.5, side - 0.5, -0.5))
    for left, above, right, below in samples.boxes[index]:
        grid[1, 3].add_patch(
            Rectangle((left - 0.5, above - 0.5), right - left, below - above, fill=False, linewidth=1.8,
                      edgecolor=COLORS["ground truth"])
        )  # fmt: skip
    grid[0, 0].set_title("radiograph", fontsize=10)
    titles = (f"all {len(parts)} channels\nadded up", "negative sums to 0\n(ReLU)", "enlarged\nover the radiograph",
              "the true lesions,\nfor comparison")  # fmt: skip
    for axes, title in zip(grid[1], titles, strict=False):
        axes.set_title(title, fontsize=10)
    return figure


def iou_example() -> Figure:
    """Draws two lesions and three predicted boxes, the IoU of every pair, and the score that comes of them."""
    figure = Figure(figsize=(8.8, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.45))
    left.set(xlim=(0, 100), ylim=(100, 0), aspect="equal", xticks=[], yticks=[], facecolor="0.95")
    for boxes, who, names in ((LESIONS, "ground truth", "AB"), (PREDICTED, "student", "123")):
        for (x0, y0, x1, y1), name in zip(boxes, names, strict=True):
            left.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=2, edgecolor=COLORS[who],
                                     linestyle=STYLES[who]))  # fmt: skip
            lesion = who == "ground truth"  # letters on the left of a box, digits on its right
            left.text(x0 - 2 if lesion else x1 + 2, y0 - 1, name, color=COLORS[who], fontsize=13, weight="bold",
                      ha="right" if lesion else "left", va="top")  # fmt: skip
    left.set_xlabel("lesions A, B; predicted boxes 1, 2, 3", fontsize=9.5)
    _iou_table(right)
    return figure


def _iou_table(axes: Axes) -> None:
    """Every IoU, those that count framed, and the two scores."""
    ious = iou_matrix(LESIONS, PREDICTED)  # (lesions, predictions)
    counts = set(np.argsort(ious, axis=None, kind="stable")[::-1][: len(LESIONS)].tolist())
    axes.set(xlim=(0, 4), ylim=(3.9, 0))
    axes.set_axis_off()
    for column, name in enumerate("123"):
        axes.text(column + 1.5, 0.5, f"box {name}", color=COLORS["student"], fontsize=11, ha="center", va="center")
    for row, name in enumerate("AB"):
        axes.text(
            0.5, row + 1.25, f"lesion {name}", color=COLORS["ground truth"], fontsize=11, ha="center", va="center"
        )
        for column in range(len(PREDICTED)):
            counted = row * len(PREDICTED) + column in counts
            if counted:
                axes.add_patch(Rectangle((column + 1.15, row + 0.93), 0.7, 0.64, facecolor="0.9", edgecolor=INK))
            axes.text(column + 1.5, row + 1.25, f"{ious[row, column]:.2f}", fontsize=12, ha="center", va="center",
                      weight="bold" if counted else "normal")  # fmt: skip
    paper, matched = image_score(LESIONS, PREDICTED), matched_score(LESIONS, PREDICTED)
    axes.text(0.05, 3.05, f"the paper's score: mean of the {len(LESIONS)} best, framed = {paper:.2f}", fontsize=10.5)
    axes.text(0.05, 3.55, f"one to one, what is left over counts 0 (matched) = {matched:.2f}", fontsize=10.5)


def sharp_and_flat() -> Figure:
    """Draws a narrow and a wide bowl under the same shift of a weight, and a bowl over two weights."""
    figure = Figure(figsize=(8.8, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    x, shift = np.linspace(-1.15, 1.15, 201), 0.8
    for curvature, name, color, style in ((NARROW, "narrow", INK, "-"), (WIDE, "wide", "#A8507F", "--")):
        left.plot(x, curvature * x**2 / 2, color=color, linestyle=style, linewidth=2,
                  label=f"{name}: eigenvalue {curvature:g}")  # fmt: skip
        rise = curvature * shift**2 / 2
        left.plot([shift], [rise], "o", color=color)
        left.annotate(f"rises by {rise:.2f}", (shift, rise), xytext=(9, -11), textcoords="offset points", color=color,
                      fontsize=10)  # fmt: skip
    left.add_patch(FancyArrowPatch((0, -0.25), (shift, -0.25), arrowstyle="-|>", mutation_scale=12, color="0.4"))
    left.text(shift / 2, -0.36, "the same shift of the weight", ha="center", va="top", fontsize=9.5, color="0.3")
    left.set(
        xlabel="one weight",
        ylabel="loss above the minimum",
        xlim=(-1.3, 1.75),
        ylim=(-0.95, 4.4),
        xticks=[],
        yticks=[0, 2, 4],
    )
    left.legend(frameon=False, loc="upper center", fontsize=9.5)
    left.spines[["top", "right"]].set_visible(False)
    u, v = np.meshgrid(np.linspace(-2, 2, 121), np.linspace(-2, 2, 121))
    turn = np.pi / 6
    steep, gentle = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    loss = (NARROW * (u * steep[0] + v * steep[1]) ** 2 + WIDE * (u * gentle[0] + v * gentle[1]) ** 2) / 2
    right.contour(u, v, loss, levels=[0.25, 1, 2.25, 4, 6.25, 9, 12.25], colors="0.55", linewidths=1)
    for direction, value, color in ((steep, NARROW, INK), (gentle, WIDE, "#A8507F")):
        end = direction * 1.15
        right.add_patch(
            FancyArrowPatch((0, 0), tuple(end), arrowstyle="-|>", mutation_scale=14, color=color, linewidth=2)
        )
        box = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1.5}
        right.text(
            *(direction * 1.25), f"eigenvalue {value:g}", color=color, fontsize=10, ha="center", va="bottom", bbox=box
        )
    right.set(
        xlabel="one weight", ylabel="another weight", xlim=(-2, 2), ylim=(-2, 2), xticks=[], yticks=[], aspect="equal"
    )
    right.set_title(f"lines of equal loss; trace {NARROW:g} + {WIDE:g} = {NARROW + WIDE:g}", fontsize=10)
    return figure


def framework(recipe: Recipe) -> Figure:
    """Figure 3: from radiographs to boxes, with this recipe's values in the boxes."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 11), ylim=(0, 4.4))
    axes.set_axis_off()
    teacher, student, gray = COLORS["teacher"], COLORS["student"], "#555555"
    augmented = f"RandAugment({recipe.training.randaugment_ops}, {recipe.training.randaugment_magnitude})"
    _box(axes, 0.1, 1.75, 1.7, 1.1, "radiographs\nlabeled TB / no TB", gray)
    _box(
        axes,
        2.2,
        1.75,
        1.8,
        1.1,
        f"resize {recipe.pixels.resize}, crop {recipe.pixels.crop}\n{augmented}\nnormalize",
        gray,
    )
    _box(axes, 4.5, 3.2, 1.9, 1.0, f"teacher\n{recipe.training.network}\nfrozen", teacher)
    _box(axes, 4.5, 0.4, 1.9, 1.0, f"student\n{recipe.training.network}\ntrained", student)
    alpha = recipe.distillation.alpha
    _box(axes, 6.9, 1.6, 1.95, 1.4,
         f"loss, equation 1\n(1 - {alpha:g}) soft target\n+ {alpha:g} cross-entropy\n"
         f"T = {recipe.distillation.temperature:g}",
         gray)  # fmt: skip
    _box(axes, 7.25, 0.2, 1.5, 0.8, "Grad-CAM, TB\n(either network)", student)
    _box(axes, 9.15, 0.2, 1.75, 0.8, "boxes\nAlgorithm 1", student)
    _box(axes, 9.15, 1.9, 1.75, 0.8, "mIOU\nAlgorithms 2-3", gray)
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
