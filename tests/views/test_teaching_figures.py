"""The pictures that explain: what they show is what the package computes."""

import matplotlib.pyplot
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tbkd_utils.experiments.evaluation import localization, probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import train
from tbkd_utils.localization.scores import image_score, iou_matrix, matched_score
from tbkd_utils.models.losses import soften
from tbkd_utils.views.teaching_figures import (
    LESIONS,
    NARROW,
    PREDICTED,
    WIDE,
    grad_cam_sum,
    iou_example,
    sharp_and_flat,
    softened_answers,
)


def drawn(figure: Figure) -> list[Axes]:
    """The figure's axes, after drawing it and finding nothing cut off."""
    canvas, page = FigureCanvasAgg(figure), figure.bbox
    canvas.draw()
    for axes in figure.axes:
        shown = axes.get_tightbbox(canvas.get_renderer())
        assert shown.x0 >= page.x0 - 3
        assert shown.x1 <= page.x1 + 3
        assert shown.y0 >= page.y0 - 3
        assert shown.y1 <= page.y1 + 3
    assert matplotlib.pyplot.get_fignums() == []
    return figure.axes


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_softening_shows_the_teachers_own_answers(smoke: Experiment) -> None:
    teacher = train(smoke, "teacher")
    rows = probabilities(smoke, teacher)
    grid = np.array(drawn(softened_answers(smoke, teacher, (1.0, 4.0)))).reshape(3, 4)
    tb = rows.loc[rows["label"] == 1, "probability"]
    for row, p in ((grid[0], tb.max()), (grid[2], tb[(tb - 0.5).abs().idxmin()])):
        assert texts(row[1]) == ["1.00", "0.00"]
        assert texts(row[2]) == [f"{p:.2f}", f"{1 - p:.2f}"]
        assert texts(row[3])[0] == f"{float(soften(p, 4)):.2f}"
    shown = [np.asarray(row[0].images[0].get_array()) for row in grid]
    assert not np.array_equal(shown[0], shown[2])


def test_the_heatmap_is_the_sum_of_the_channels(smoke: Experiment) -> None:
    student = train(smoke, "student")
    found = localization(smoke, student)
    axes = drawn(grad_cam_sum(found, student, 2))
    total, rectified = (np.asarray(axes[place].images[0].get_array()) for place in (4, 5))
    np.testing.assert_allclose(rectified, found.maps[2], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.maximum(total, 0), rectified)
    assert len(axes[7].patches) == len(found.samples.boxes[2])
    assert axes[1].get_title().endswith("speaks for TB")
    assert "1280 channels" in axes[4].get_title()


def test_the_sketch_shows_every_iou_and_both_scores() -> None:
    picture, table = drawn(iou_example())
    assert len(picture.patches) == len(LESIONS) + len(PREDICTED)
    for value in iou_matrix(LESIONS, PREDICTED).ravel():
        assert f"{value:.2f}" in texts(table)
    paper, matched = image_score(LESIONS, PREDICTED), matched_score(LESIONS, PREDICTED)
    assert paper > matched + 0.05, "the sketch has to show the difference"
    assert (paper, matched) == pytest.approx(((900 + 832) / 2366 / 2, (900 / 2366 + 308 / 1672) / 3))  # by hand
    assert any(text.endswith(f"= {paper:.2f}") for text in texts(table))
    assert any(text.endswith(f"= {matched:.2f}") for text in texts(table))
    framed = sorted(text.get_text() for text in table.texts if text.get_weight() == "bold")
    assert framed == sorted(f"{value:.2f}" for value in np.sort(iou_matrix(LESIONS, PREDICTED), axis=None)[-2:])


def test_the_bowls_rise_as_their_eigenvalues_say() -> None:
    left, right = drawn(sharp_and_flat())
    rises = [float(text.removeprefix("rises by ")) for text in texts(left) if text.startswith("rises")]
    assert rises[0] / rises[1] == pytest.approx(NARROW / WIDE, rel=0.02)
    assert right.get_title().endswith(f"= {NARROW + WIDE:g}")
