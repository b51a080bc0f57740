"""Every figure: what is drawn, where it is drawn, and that drawing it leaves nothing behind."""

import dataclasses
import re
import warnings
from collections.abc import Iterator

import matplotlib.pyplot
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from tbkd_utils.data.geometry import Geometry
from tbkd_utils.data.images import read_image
from tbkd_utils.experiments.evaluation import Localization, localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.guesses import blind_guesses
from tbkd_utils.experiments.system import named_recipe
from tbkd_utils.experiments.trained import train
from tbkd_utils.localization.boxes import boxes_from_heatmap
from tbkd_utils.systems.tb.tables import table_3
from tbkd_utils.views.figures import (
    COLORS,
    MARKERS,
    STYLES,
    algorithm_1,
    heatmap_to_boxes,
    histories,
    miou_bars,
    paired_scores,
    preprocessing,
    qualitative_grid,
    radiographs,
    spread_of_cases,
    threshold_curves,
)
from tbkd_utils.views.teaching_figures import framework

CLASSES = ("no TB", "TB")


@pytest.fixture(autouse=True)
def _no_state_is_left_in_pyplot() -> Iterator[None]:
    yield
    assert matplotlib.pyplot.get_fignums() == []


@pytest.fixture(scope="module")
def teacher(smoke: Experiment) -> Localization:
    return localization(smoke, train(smoke, "teacher"))


@pytest.fixture(scope="module")
def student(smoke: Experiment) -> Localization:
    return localization(smoke, train(smoke, "student"))


def panels(figure: Figure, count: int) -> list[Axes]:
    """The figure's axes, after drawing it without a warning and finding nothing cut off."""
    assert isinstance(figure, Figure)
    assert len(figure.axes) == count
    canvas, page = FigureCanvasAgg(figure), figure.bbox
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        canvas.draw()
    renderer = canvas.get_renderer()
    for axes in figure.axes:
        shown = axes.get_tightbbox(renderer)
        assert shown.x0 >= page.x0 - 3
        assert shown.x1 <= page.x1 + 3
        assert shown.y0 >= page.y0 - 3
        assert shown.y1 <= page.y1 + 3
    titles = [axes.title.get_window_extent(renderer) for axes in figure.axes if axes.get_title()]
    assert not any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[:i])
    return figure.axes


def drawn_boxes(axes: Axes, who: str) -> np.ndarray:
    """The boxes of one color, xyxy in pixels of the image, right and bottom exclusive."""
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    found = [patch for patch in found if to_hex(patch.get_edgecolor()).upper() == COLORS[who]]
    corners = [(*p.get_xy(), p.get_x() + p.get_width(), p.get_y() + p.get_height()) for p in found]
    return np.array(corners).reshape(-1, 4) + 0.5  # imshow puts a pixel's center at whole coordinates


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for owner in (figure, *figure.axes) for one in legends(owner) for text in one.get_texts()]


def legends(owner: Figure | Axes) -> list:
    return owner.legends if isinstance(owner, Figure) else [one for one in [owner.get_legend()] if one is not None]


def line(axes: Axes, label: str) -> np.ndarray:
    (found,) = [one for one in axes.lines if one.get_label() == label]
    return np.array(found.get_xydata())


# --- conventions ----------------------------------------------------------------------------------------------------


def luminance(color: str) -> float:
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_who_is_who_is_told_by_more_than_color() -> None:
    assert set(COLORS) == set(STYLES) == {"ground truth", "blind guess", "teacher", "student"}
    assert len(set(STYLES.values())) == 4
    assert len(set(MARKERS.values())) == 2
    for color in COLORS.values():  # readable on white: contrast at least 3 (WCAG 2 for graphics)
        assert 1.05 / (luminance(color) + 0.05) >= 3


# --- radiographs ----------------------------------------------------------------------------------------------------


def test_radiographs_of_both_classes_with_their_boxes(smoke: Experiment) -> None:
    figure = radiographs(smoke.test, CLASSES, columns=4)
    axes = panels(figure, 8)
    titles = [one.get_title().split("\n") for one in axes]
    assert [title[0] for title in titles] == ["TB"] * 4 + ["no TB"] * 4
    for one, (_, name) in zip(axes, titles, strict=True):
        index = smoke.test.names.index(name)
        assert np.array_equal(one.images[0].get_array(), smoke.test.pixels[index])
        assert np.allclose(drawn_boxes(one, "ground truth"), smoke.test.boxes[index], atol=1e-4)
    assert titles[0][1] != titles[3][1]
    assert legend(figure) == ["ground truth"]


def test_fewer_radiographs_than_columns_leave_empty_panels(smoke: Experiment) -> None:
    few = smoke.test.subset([0, 1, 8])
    axes = panels(radiographs(few, CLASSES, columns=5), 10)
    assert [len(one.images) for one in axes] == [1, 1, 0, 0, 0, 1, 0, 0, 0, 0]


def test_long_names_are_shortened_from_the_left(smoke: Experiment) -> None:
    names = [f"extra/mc+shenzhen/val/CHNCXR_{i:04d}_1.png" for i in range(15)] + ["a" * 100 + ".png"]
    axes = panels(radiographs(dataclasses.replace(smoke.test, names=tuple(names)), CLASSES), 10)
    assert axes[0].get_title() == "TB\n…/CHNCXR_0000_1.png"
    assert axes[9].get_title() == "no TB\n…/" + "a" * 22 + ".png"


def test_preprocessing_takes_boxes_along(smoke: Experiment) -> None:
    record = smoke.test_records[0]
    image = read_image(record.path)
    figure = preprocessing(image, record.boxes, smoke.recipe, examples=2)
    stored, cropped, *augmented = panels(figure, 4)
    assert np.array_equal(stored.images[0].get_array(), image)
    assert "96 x 96 px" in stored.get_title()
    assert np.allclose(drawn_boxes(stored, "ground truth"), record.boxes, atol=1e-4)
    geometry = Geometry(96, 96, 73, 64)
    assert np.array_equal(cropped.images[0].get_array(), geometry.pixels(image))
    assert np.allclose(drawn_boxes(cropped, "ground truth"), geometry.boxes(record.boxes), atol=1e-4)
    shown = [one.images[0].get_array() for one in augmented]
    assert not np.array_equal(*shown)
    again = preprocessing(image, record.boxes, smoke.recipe, examples=2).axes[2:]
    assert all(np.array_equal(a, b.images[0].get_array()) for a, b in zip(shown, again, strict=True))


# --- training ---------------------------------------------------------------------------------------------------------


def test_histories_are_drawn_per_epoch() -> None:
    tables = {
        "teacher": pd.DataFrame(
            {"epoch": [0, 1, 2], "train_loss": [0.7, 0.5, 0.4], "validation_loss": [0.6, 0.5, 0.55]}
        ),
        "student": pd.DataFrame({"epoch": [0, 1], "train_loss": [0.5, 0.3], "validation_loss": [0.4, 0.35]}),
    }
    figure = histories(tables)
    (axes,) = panels(figure, 1)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "loss (nats)")
    assert legend(figure) == [f"{who}, {what}" for who in tables for what in ("training", "validation")]
    assert line(axes, "teacher, validation").tolist() == [[1, 0.6], [2, 0.5], [3, 0.55]]
    assert line(axes, "student, training").tolist() == [[1, 0.5], [2, 0.3]]
    assert axes.get_ylim()[0] == 0
    assert all(tick == round(tick) for tick in axes.get_xticks())


@pytest.mark.slow
def test_one_history_of_a_real_run(smoke: Experiment) -> None:
    figure = histories({"teacher": train(smoke, "teacher").history})
    (axes,) = panels(figure, 1)
    assert len(axes.lines) == 2


# --- heatmaps and boxes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_figure_4_shows_algorithm_1_step_by_step(who: str) -> None:
    image = np.full((40, 60), 128, np.uint8)
    heatmap = np.zeros((40, 60), np.float32)
    heatmap[10:20, 30:55], heatmap[25:30, 5:10] = 4.0, 1.0
    truth = np.float32([[2, 3, 20, 30]])
    boxes = boxes_from_heatmap(heatmap, 0.5, 10)
    figure = heatmap_to_boxes(image, heatmap, boxes, truth, 0.5, who)
    plain, heat, mask, boxed, _colorbar = panels(figure, 5)
    assert [axes.get_title() for axes in (plain, heat, mask, boxed)] == [
        "radiograph", "normalized Grad-CAM", "mask at 0.5", "boxes",
    ]  # fmt: skip
    assert all(np.array_equal(axes.images[0].get_array(), image) for axes in (plain, heat, mask, boxed))
    assert np.array_equal(heat.images[1].get_array(), heatmap / 4)
    assert np.array_equal(np.ma.filled(mask.images[1].get_array(), 0) == 1, heatmap == 4)
    assert drawn_boxes(boxed, who).tolist() == [[30, 10, 55, 20]]
    assert drawn_boxes(boxed, "ground truth").tolist() == truth.tolist()
    assert legend(figure) == ["ground truth", who]


def test_figure_4_normalizes_as_the_recipe_does() -> None:
    image, heatmap = np.zeros((20, 20), np.uint8), np.full((20, 20), 2.0)
    heatmap[:10] = 3.0
    heatmap[15:] = 1.0
    nothing = np.empty((0, 4), np.float32)
    masks = []
    for method in ("minmax", "max"):
        figure = heatmap_to_boxes(image, heatmap, nothing, nothing, 0.6, "student", method)
        masks.append(np.ma.filled(panels(figure, 5)[2].images[1].get_array(), 0) == 1)
    assert np.array_equal(masks[0], heatmap == 3)
    assert np.array_equal(masks[1], heatmap >= 2)


def test_figure_4_of_a_constant_map_has_no_mask() -> None:
    nothing = np.empty((0, 4), np.float32)
    figure = heatmap_to_boxes(np.zeros((20, 20), np.uint8), np.zeros((20, 20)), nothing, nothing, 0.5, "teacher")
    assert not (np.ma.filled(panels(figure, 5)[2].images[1].get_array(), 0) == 1).any()


def test_figure_5_puts_boxes_and_scores_where_they_belong(teacher: Localization, student: Localization) -> None:
    indices = [6, 0, 3]
    figure = qualitative_grid(teacher, student, indices)
    axes = np.array(panels(figure, 15)).reshape(3, 5)
    assert [one.get_title() for one in axes[0]] == [
        "ground truth", "teacher's Grad-CAM", "student's Grad-CAM", "teacher's boxes", "student's boxes",
    ]  # fmt: skip
    for row, index in zip(axes, indices, strict=True):
        truth = teacher.samples.boxes[index]
        assert row[0].texts[0].get_text() == teacher.samples.names[index]
        assert all(np.array_equal(one.images[0].get_array(), teacher.samples.pixels[index]) for one in row)
        assert all(np.allclose(drawn_boxes(row[i], "ground truth"), truth, atol=1e-4) for i in (0, 3, 4))
        for found, heat, boxed in ((teacher, row[1], row[3]), (student, row[2], row[4])):
            low, high = found.heatmaps[index].min(), found.heatmaps[index].max()
            assert np.allclose(heat.images[1].get_array(), (found.heatmaps[index] - low) / (high - low), atol=1e-6)
            assert np.array_equal(drawn_boxes(boxed, found.role), found.boxes[index])
            assert boxed.texts[0].get_text() == f"IoU {found.rows['score'][index]:.2f}"
        assert len(drawn_boxes(row[3], "student")) == len(drawn_boxes(row[4], "teacher")) == 0
    assert legend(figure) == ["ground truth", "teacher", "student"]


def only(found: Localization, positions: list[int]) -> Localization:
    """The same network, scored on fewer radiographs."""
    other = dataclasses.replace(found, samples=found.samples.subset(positions), maps=found.maps[positions])
    other.__dict__["rows"] = found.rows.iloc[positions].reset_index(drop=True)
    return other


def test_figure_5_finds_a_radiograph_by_its_name(teacher: Localization, student: Localization) -> None:
    fewer = only(student, [4, 2, 7])
    cases = spread_of_cases(teacher, fewer, count=3)
    assert sorted(cases) == [2, 4, 7]
    axes = np.array(panels(qualitative_grid(teacher, fewer, [4]), 5))
    assert np.array_equal(drawn_boxes(axes[4], "student"), student.boxes[4])
    assert axes[4].texts[0].get_text() == f"IoU {student.rows['score'][4]:.2f}"


def with_scores(found: Localization, scores: list[float]) -> Localization:
    other = dataclasses.replace(found)
    other.__dict__["rows"] = found.rows.assign(score=scores)
    return other


def test_cases_are_spread_from_the_worst_gain_to_the_best(teacher: Localization, student: Localization) -> None:
    gains = [0.3, -0.2, 0.0, 0.1, 0.5, -0.4, 0.2, 0.4]
    networks = with_scores(teacher, [0.4] * 8), with_scores(student, [0.4 + gain for gain in gains])
    by_gain = [5, 1, 2, 3, 6, 0, 7, 4]
    assert spread_of_cases(*networks, count=8) == by_gain
    assert spread_of_cases(*networks, count=20) == by_gain
    assert spread_of_cases(*networks, count=2) == [5, 4]
    assert spread_of_cases(*networks, count=3) == [5, by_gain[4], 4]


# --- scores -----------------------------------------------------------------------------------------------------------


def mious(**changes) -> pd.DataFrame:
    columns = {
        "network": ["teacher", "student"], "seed": 42, "miou": [0.24, 0.2], "low": [0.2, 0.15], "high": [0.29, 0.26],
        "paper": [0.1482, 0.2428],
    }  # fmt: skip
    return pd.DataFrame(columns | changes)


def test_figure_6_has_our_bars_and_the_papers() -> None:
    figure = miou_bars(mious())
    (axes,) = panels(figure, 1)
    bars = {round(bar.get_x() + bar.get_width() / 2, 2): bar for bar in axes.patches if bar.get_height() > 0}
    assert {place: bar.get_height() for place, bar in bars.items()} == {-0.2: 0.24, 0.2: 0.1482, 0.8: 0.2, 1.2: 0.2428}
    assert to_hex(bars[-0.2].get_facecolor()).upper() == COLORS["teacher"]
    assert to_hex(bars[0.8].get_facecolor()).upper() == COLORS["student"]
    assert [bars[place].get_hatch() for place in (-0.2, 0.2, 0.8, 1.2)] == [None, "///", None, "///"]
    ends = [segment[:, 1].tolist() for one in axes.collections for segment in one.get_segments()]
    assert np.allclose(ends, [[0.2, 0.29], [0.15, 0.26]])
    assert [text.get_text() for text in axes.texts] == ["0.240", "0.1482", "0.200", "0.2428"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["teacher", "student"]
    assert legend(figure) == ["this run (seed 42), 95% interval over images", "paper (seed 42)"]


def test_figure_6_names_the_papers_seed_and_says_nothing_where_it_has_none() -> None:
    figure = miou_bars(mious(seed=1))
    panels(figure, 1)
    assert legend(figure)[1] == "paper (seed 1)"
    figure = miou_bars(mious(seed=7, paper=[np.nan, np.nan]))
    (axes,) = panels(figure, 1)
    assert legend(figure) == ["this run (seed 7), 95% interval over images"]
    assert len(axes.texts) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"miou": 0.0, "low": 0.0, "high": 0.0, "paper": np.nan},  # nothing found at all
        {"miou": [0.1 + 1e-17, 0.30000000000000004], "low": [0.1, 0.3], "high": [0.1, 0.3]},  # equal scores, rounded
        {"miou": np.nan, "low": np.nan, "high": np.nan},  # every radiograph skipped
    ],
    ids=["zero", "no width", "undefined"],
)
def test_figure_6_survives_degenerate_numbers(changes: dict) -> None:
    (axes,) = panels(miou_bars(mious(**changes)), 1)
    assert axes.get_ylim()[1] > 0


def test_figure_6_of_a_real_run(teacher: Localization, student: Localization) -> None:
    panels(miou_bars(table_3({"teacher": teacher, "student": student}, blind_guesses(teacher.experiment))), 1)


def test_figure_6_draws_a_guess_as_a_line_that_has_no_seed() -> None:
    guess = {"network": "blind: upper half of the image", "seed": None, "miou": 0.5}
    table = pd.concat([mious(), pd.DataFrame([guess])], ignore_index=True).astype({"seed": "Int64"})
    figure = miou_bars(table)
    (axes,) = panels(figure, 1)
    label = "best box-free guess: upper half of the image"
    assert label in legend(figure)
    assert "this run (seed 42), 95% interval over images" in legend(figure)
    assert line(axes, label)[:, 1].tolist() == [0.5, 0.5]
    assert [one.get_text() for one in axes.get_xticklabels()] == ["teacher", "student"]
    assert axes.get_ylim()[1] > 0.5


def test_threshold_curves_are_means_over_radiographs(teacher: Localization, student: Localization) -> None:
    rows = {"teacher": teacher.threshold_rows(), "student": student.threshold_rows()}
    figure = threshold_curves(rows, 0.5)
    axes = panels(figure, 3)
    assert [one.get_ylabel() for one in axes] == ["mIOU (Algorithm 2)", "one-to-one mIOU", "boxes per radiograph"]
    assert all("threshold" in one.get_xlabel() for one in axes)
    for one, column in zip(axes, ("score", "matched", "n_pred"), strict=True):
        for who, table in rows.items():
            means = table.groupby("threshold")[column].mean()
            assert np.allclose(line(one, who), np.column_stack([means.index, means]))
    assert legend(figure) == ["teacher", "student", "this run's threshold"]
    marked = [one for one in axes[0].lines if one.get_linestyle() == ":"]
    assert [list(one.get_xdata()) for one in marked] == [[0.5, 0.5]]


def test_paired_scores_are_matched_by_name() -> None:
    teacher = pd.DataFrame({"name": ["a", "b", "c"], "score": [0.1, 0.2, 0.3]})
    student = pd.DataFrame({"name": ["c", "a", "d"], "score": [0.6, 0.15, 0.9]})
    (axes,) = panels(paired_scores(teacher, student), 1)
    assert axes.collections[0].get_offsets().tolist() == [[0.1, 0.15], [0.3, 0.6]]
    assert "teacher" in axes.get_xlabel()
    assert "student" in axes.get_ylabel()
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlim()[1] > 0.6
    words = {text.get_text(): text.get_position() for text in axes.texts}
    assert words["student better"][1] > 0.5 > words["teacher better"][1]  # above and below the diagonal


def test_paired_scores_of_nothing_found() -> None:
    nothing = pd.DataFrame({"name": ["a"], "score": [0.0]})
    panels(paired_scores(nothing, nothing), 1)


# --- the framework ----------------------------------------------------------------------------------------------------


def test_figure_3_holds_the_values_of_the_recipe() -> None:
    recipe = named_recipe("laptop", temperature=3.5, alpha=0.6, randaugment_magnitude=7)
    (axes,) = panels(framework(recipe), 1)
    text = "\n".join(one.get_text() for one in axes.texts)
    for expected in (
        "T = 3.5",
        "0.6 cross-entropy",
        "(1 - 0.6) soft target",
        "RandAugment(2, 7)",
        "resize 256, crop 224",
    ):
        assert expected in text
    assert text.count("efficientnet_lite0") == 2
    assert "frozen" in text
    assert "scoring only" in text
    assert not re.search(r"resnet", text)


def test_figure_3_keeps_its_text_in_boxes_that_do_not_overlap() -> None:
    figure = framework(named_recipe("demo"))
    (axes,) = panels(figure, 1)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [p.get_window_extent(renderer) for p in axes.patches if isinstance(p, FancyBboxPatch)]
    assert len(boxes) == 9
    assert len([p for p in axes.patches if isinstance(p, FancyArrowPatch)]) == 10
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    inside = 0
    for text in axes.texts:
        extent = text.get_window_extent(renderer)
        around = [box for box in boxes if box.overlaps(extent)]
        assert len(around) <= 1, text.get_text()
        if around:
            (box,) = around
            assert box.x0 <= extent.x0, text.get_text()
            assert extent.x1 <= box.x1, text.get_text()
            assert box.y0 <= extent.y0, text.get_text()
            assert extent.y1 <= box.y1, text.get_text()
            inside += 1
    assert inside == len(boxes)  # what stands beside an arrow touches no box


def test_algorithm_1_is_figure_4_of_one_radiograph(teacher: Localization) -> None:
    figure = algorithm_1(teacher, 1)
    image, truth = teacher.samples.pixels[1], teacher.samples.boxes[1]
    recipe = teacher.experiment.recipe
    plain = heatmap_to_boxes(
        image,
        teacher.heatmaps[1],
        teacher.boxes[1],
        truth,
        recipe.scores.threshold,
        "teacher",
        recipe.scores.normalization,
    )
    drawn = [FigureCanvasAgg(one) for one in (figure, plain)]
    for canvas in drawn:
        canvas.draw()
    assert np.array_equal(*(np.asarray(canvas.buffer_rgba()) for canvas in drawn))
