"""The explorers' pictures as plain functions: what is drawn, and that nothing is cut off."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hessian_cases import a_spectrum
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tbkd_utils.curvature.spectrum import density
from tbkd_utils.experiments.evaluation import Localization, localization, logit_rows, loss_parts
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.shortcut import shortcut_effect
from tbkd_utils.experiments.trained import train
from tbkd_utils.views.explorer_figures import (
    blended,
    case_figure,
    shortcut_figure,
    smoothing,
    softening_figure,
    spectrum_figure,
    surplus_figure,
    threshold_figure,
)
from tbkd_utils.views.figures import COLORS
from tbkd_utils.views.live_boxes import LiveBoxes


@pytest.fixture(scope="module")
def networks(smoke: Experiment) -> tuple[Localization, Localization]:
    return localization(smoke, train(smoke, "teacher")), localization(smoke, train(smoke, "student"))


def drawn(figure: Figure) -> Figure:
    """The figure, after drawing it without a warning and finding nothing cut off."""
    canvas, page = FigureCanvasAgg(figure), figure.bbox
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        canvas.draw()
    shown = figure.get_tightbbox(canvas.get_renderer())  # inches
    assert shown.x0 >= -0.03
    assert shown.y0 >= -0.03
    assert shown.x1 * figure.dpi <= page.x1 + 3
    assert shown.y1 * figure.dpi <= page.y1 + 3
    return figure


def boxes_of(figure: Figure, who: str, panel: int, side: int) -> np.ndarray:
    """The boxes of one color in one of the pictures side by side, xyxy in pixels of the crop."""
    left = panel * (side + max(1, side // 25))
    found = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    corners = [
        (p.get_x() - left, p.get_y(), p.get_x() - left + p.get_width(), p.get_y() + p.get_height())
        for p in found
        if to_hex(p.get_edgecolor()).upper() == COLORS[who] and left <= p.get_x() + 0.5 < left + side
    ]
    return np.array(corners).reshape(-1, 4) + 0.5


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_a_case_shows_truth_heatmaps_boxes_and_scores(networks) -> None:
    teacher, student = networks
    side = teacher.samples.pixels.shape[1]
    for place, name in enumerate(teacher.samples.names):
        figure = drawn(case_figure(teacher, student, name))
        for panel in range(3):
            assert np.allclose(boxes_of(figure, "ground truth", panel, side), teacher.samples.boxes[place], atol=1e-3)
        for panel, found in enumerate(networks, start=1):
            assert np.allclose(boxes_of(figure, found.role, panel, side), found.boxes[place], atol=1e-3)
            assert f"{found.role}: 1 box, score {found.rows['score'][place]:.3f}" in texts(figure)


def test_a_case_shows_the_guess_beside_the_truth_alone(networks) -> None:
    teacher, student = networks
    side, name = teacher.samples.pixels.shape[1], teacher.samples.names[0]
    blind = np.array([[2, 3, 20, 30], [30, 3, 50, 30]], np.float32)
    figure = drawn(case_figure(teacher, student, name, blind))
    assert np.allclose(boxes_of(figure, "blind guess", 0, side), blind, atol=1e-3)
    assert all(len(boxes_of(figure, "blind guess", panel, side)) == 0 for panel in (1, 2))
    assert "blind guess" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert "blind guess" not in [text.get_text() for text in case_figure(teacher, student, name).legends[0].get_texts()]


def test_added_boxes_and_both_scores_are_drawn(networks) -> None:
    student, name = networks[1], networks[1].samples.names[1]
    curve = pd.DataFrame({"added": [0, 1, 2], "miou": [0.1, 0.2, 0.3], "matched": [0.1, 0.08, 0.06]})
    figure = drawn(surplus_figure(student, name, curve, 2))
    side = student.samples.pixels.shape[1]
    assert boxes_of(figure, "blind guess", 0, side).tolist() == [[0, 0, side, side], [0, 0, side / 2, side / 2]]
    assert np.allclose(boxes_of(figure, "student", 0, side), student.boxes[1], atol=1e-3)
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[1].lines}
    assert lines["mIOU (Algorithms 2-3)"] == [0.1, 0.2, 0.3]
    assert lines["one-to-one IoU"] == [0.1, 0.08, 0.06]


def test_at_the_recipes_setting_the_threshold_figure_shows_the_evaluations_boxes(networks) -> None:
    teacher = networks[0]
    lives, name = [LiveBoxes(found) for found in networks], teacher.samples.names[2]
    recipe, side = teacher.experiment.recipe, teacher.samples.pixels.shape[1]
    figure = drawn(threshold_figure(*lives, name, recipe.scores.threshold, teacher.min_area))
    for panel, found in enumerate(networks, start=1):
        assert np.allclose(boxes_of(figure, found.role, panel, side), found.boxes[2], atol=1e-3)
    none = drawn(threshold_figure(*lives, name, recipe.scores.threshold, 1e9))
    assert texts(none)[1:] == ["teacher: 0 boxes, score 0.000", "student: 0 boxes, score 0.000"]
    assert len(boxes_of(none, "student", 2, side)) == 0


def test_a_heatmap_is_faint_below_the_threshold() -> None:
    image = np.full((2, 2), 100, np.uint8)
    scaled = np.array([[0.0, 0.49], [0.5, 1.0]], np.float32)
    faint, bold = blended(image, scaled, 0.5), blended(image, scaled)
    assert faint.shape == (2, 2, 3)
    assert np.array_equal(faint[1], bold[1])
    assert (abs(faint[0].astype(int) - 100) < abs(bold[0].astype(int) - 100)).any()


def test_softening_shows_every_radiograph_and_the_parts_of_the_loss(smoke: Experiment) -> None:
    logits = logit_rows(smoke, train(smoke, "teacher")), logit_rows(smoke, train(smoke, "student"))
    parts = loss_parts(*logits, 4.0, 0.6)
    answers, losses = drawn(softening_figure(parts, 5, 4.0, 0.6)).axes
    points = {line.get_label(): line.get_xydata() for line in answers.lines}
    for who, label in (("TB", 1), ("no TB", 0)):
        rows = parts[parts["label"] == label]
        assert np.array_equal(points[who], rows[["p_teacher", "p_student"]])
    assert np.array_equal(points["this radiograph"][0], parts[["p_teacher", "p_student"]].iloc[5])
    widths = [bar.get_width() for bar in losses.patches]
    means = parts[["soft", "hard"]].mean()
    assert widths == pytest.approx([parts["soft"][5], means["soft"], parts["hard"][5], means["hard"]])
    assert (answers.get_title(), losses.get_title()) == ("answers at T = 4", "equation 1 at alpha = 0.6")


@pytest.mark.parametrize("painted", [False, True])
def test_the_shortcut_figure_shows_each_answer_before_and_after(smoke: Experiment, painted: bool) -> None:
    found = [shortcut_effect(smoke, train(smoke, role)) for role in ("teacher", "student")]
    name = found[0].samples.names[1]
    heats, lines = drawn(shortcut_figure(*found, name, painted)).axes
    segments = [part for one in lines.collections if isinstance(one, LineCollection) for part in one.get_segments()]
    assert len(segments) == 2 * len(found[0].rows)
    for one, line in zip(found, lines.lines, strict=True):
        row = one.rows.iloc[1]
        assert list(line.get_ydata()) == [row["probability"], row["probability_painted"]]
        shown = row["probability_painted" if painted else "probability"]
        assert f"{one.role}: p(TB) {shown:.3f}" in [text.get_text() for text in heats.texts]


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("width", [0.001, 0.01, 0.1])
def test_the_spectrum_is_the_smoothed_density_with_its_top_eigenvalues(width: float, marked: bool) -> None:
    spectra = {"teacher": a_spectrum(0.0), "student": a_spectrum(5.0)}
    sigma = smoothing(spectra, width)
    assert sigma == pytest.approx(width * 43.0)
    (axes,) = drawn(spectrum_figure(spectra, width, marked)).axes
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    for who, found in spectra.items():
        grid, heights = lines[who].T
        expected = density(found, sigma=sigma, grid=grid)[1]
        above = heights > heights.min()
        assert np.allclose(heights[above], np.log10(expected[above]))
        if marked:
            assert list(lines[f"{who}: top 2"][:, 0]) == list(found.eigenvalues)
    assert len(lines) == (4 if marked else 2)


def test_a_density_on_another_grid_is_the_same_density() -> None:
    found = a_spectrum(0.0)
    grid, values = density(found, sigma=0.5)
    assert np.array_equal(density(found, sigma=0.5, grid=grid[::7])[1], values[::7])
