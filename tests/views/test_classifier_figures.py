"""The classifiers' figures: what is drawn is what the tables say, and no text lies on another."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from tbkd_utils.errors import UsageError
from tbkd_utils.experiments.evaluation import Localization, localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import train
from tbkd_utils.metrics.operating import calibration_table, precision_recall_points, roc_points
from tbkd_utils.views.classifier_figures import (
    BLUE,
    METRICS,
    calibration_curves,
    examples,
    forest,
    localization_bars,
    operating_curves,
    paired_lines,
)

NETWORKS = ("ResNet-18", "ResNet-50", "DenseNet-121", "EfficientNet-B0", "MobileNetV2", "MobileNetV3", "ViT", "a long "
            "name, with a loss and a sampler")  # fmt: skip


@pytest.fixture(autouse=True)
def _no_state_is_left_in_pyplot() -> Iterator[None]:
    yield
    assert matplotlib.pyplot.get_fignums() == []


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Localization:
    experiment = Experiment.open("smoke", out=tmp_path_factory.mktemp("figures"), system="pneumonia")
    return localization(experiment, train(experiment, "classifier"))


def scores(seed: int, n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3 > 0
    return 1 / (1 + np.exp(-rng.normal(3.0 * labels - 1, 1.5))), labels


def drawn(figure: Figure) -> Figure:
    FigureCanvasAgg(figure).draw()
    return figure


def texts(figure: Figure) -> dict[str, Bbox]:
    """Every text that is drawn and its place in pixels; a tick outside the limits has a text that is not drawn."""
    renderer = drawn(figure).canvas.get_renderer()
    undrawn = set()
    for axis in (one for axes in figure.axes for one in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        undrawn |= {id(tick.label1) for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    return {
        f"{number}: {text.get_text()}": text.get_window_extent(renderer)
        for number, text in enumerate(shown)
        if id(text) not in undrawn
    }


def assert_legible(figure: Figure) -> None:
    places = texts(figure)
    whole = figure.bbox.padded(1)
    for (a, one), (b, other) in itertools.combinations(places.items(), 2):
        assert not one.padded(-0.5).overlaps(other.padded(-0.5)), (a, b)
    for text, place in places.items():
        assert whole.contains(place.x0, place.y0), text
        assert whole.contains(place.x1, place.y1), text


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def lines(axes: Axes, **looks: object) -> list[Line2D]:
    return [line for line in axes.lines if all(getattr(line, f"get_{key}")() == value for key, value in looks.items())]


# --- curves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 8])
def test_the_curves_are_the_points_and_the_guess_is_dotted(count) -> None:
    curves = {}
    for seed, name in enumerate(NETWORKS[:count]):
        curves[name] = roc_points(*scores(seed)), precision_recall_points(*scores(seed))
    figure = operating_curves(curves, 2 / 3)
    left, right = figure.axes
    assert [line.get_label() for line in left.lines[:-1]] == list(curves)
    for place, (roc, recall) in enumerate(curves.values()):
        np.testing.assert_array_equal(left.lines[place].get_xydata(), roc[["false_positive_rate", "sensitivity"]])
        np.testing.assert_array_equal(right.lines[place].get_xydata(), recall[["recall", "precision"]])
        assert right.lines[place].get_drawstyle() == "steps-pre"
        assert left.lines[place].get_color() == right.lines[place].get_color()
    np.testing.assert_array_equal(left.lines[-1].get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_array_equal(right.lines[-1].get_ydata(), [2 / 3, 2 / 3])
    assert legend(figure) == [*curves, "a guess (precision 0.67, the base rate)"]
    looks = {(line.get_color(), repr(line._unscaled_dash_pattern)) for line in left.lines}
    assert len(looks) == count + 1
    assert_legible(figure)


@pytest.mark.parametrize("count", [1, 4, 5, 7])
def test_calibration_has_a_panel_for_each_network(count) -> None:
    tables = {name: calibration_table(*scores(seed)) for seed, name in enumerate(NETWORKS[:count])}
    figure = drawn(calibration_curves(tables))
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == list(tables)
    for axes, table in zip(panels, tables.values(), strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[0, 0], [1, 1]])
        np.testing.assert_array_equal(axes.lines[1].get_xydata(), table[["mean_probability", "observed"]])
        (bars,) = axes.collections
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends, table[["low", "high"]], atol=1e-12)
        assert axes.get_xlim() == axes.get_ylim() == panels[0].get_xlim()
    at_the_bottom = panels[-4:]
    assert all(any(label.get_visible() for label in axes.get_xticklabels()) for axes in at_the_bottom)
    assert [figure.get_supxlabel(), figure.get_supylabel()] == [
        "mean probability of a bin",
        "observed share of positives",
    ]


# --- forest -----------------------------------------------------------------------------------------------------------


def forest_table(count: int) -> pd.DataFrame:
    value = np.linspace(0.93, 0.98, count)
    table = pd.DataFrame({"name": NETWORKS[:count], "value": value, "low": value - 0.012, "high": value + 0.008})
    published = table.assign(published=value + 0.01, published_low=value, published_high=value + 0.015)
    published.loc[1:2, ["published", "published_low", "published_high"]] = np.nan
    published.loc[3:3, ["published_low", "published_high"]] = np.nan
    return published


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("published", [True, False])
def test_a_forest_has_a_row_for_each_name_and_no_text_on_another(count, published) -> None:
    table = forest_table(count)
    table = table if published else table[["name", "value", "low", "high"]]
    figure = forest(table, xlabel="accuracy (0 to 1)", guess=0.9, guess_label="always the same")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(table["name"])
    shift = 0.2 if published else 0.0
    ours = [line for line in lines(axes, marker="o") if len(line.get_xdata())]
    np.testing.assert_allclose([line.get_xydata()[0] for line in ours],
                               np.stack([table["value"], np.arange(count) - shift], axis=1))  # fmt: skip
    assert {to_hex(line.get_markerfacecolor()).upper() for line in ours} == {BLUE}
    whole = [line.get_xdata() for line in lines(axes, color=BLUE, marker="None")]
    np.testing.assert_array_equal(whole, table[["low", "high"]])
    written = [text.get_text() for text in axes.texts]
    assert written[0] == "0.930 (0.918 to 0.938)"
    hollow = [line for line in lines(axes, marker="s") if len(line.get_xdata())]
    if published:
        known = table["published"].dropna()
        np.testing.assert_allclose([line.get_xydata()[0] for line in hollow],
                                   np.stack([known, known.index + 0.2], axis=1))  # fmt: skip
        assert {line.get_markerfacecolor() for line in hollow} == {"white"}
        assert len(written) == count + len(known)
        assert ("0.961" in written) == (count == 8)  # without an interval
    else:
        assert not hollow
        assert len(written) == count
    assert legend(figure) == ["this run", *(["published"] if published else []), "always the same"]
    (guess,) = lines(axes, linestyle=":")
    assert list(guess.get_xdata()) == [0.9, 0.9]
    low, high = axes.get_xlim()
    assert 0.85 < low < 0.9
    assert table[["value", "low", "high"]].to_numpy().max() < high < 1.02
    assert_legible(figure)


def test_a_forest_without_anything_published_is_a_forest_of_our_own() -> None:
    table = forest_table(8).assign(published=np.nan, published_low=np.nan, published_high=np.nan)
    figure = forest(table, xlabel="accuracy")
    assert figure.legends == []
    assert len(figure.axes[0].texts) == 8
    same = forest(table.head(1).assign(low=0.93, high=0.93), xlabel="accuracy").axes[0]  # an interval of no width
    assert same.get_xlim() == (pytest.approx(0.88), pytest.approx(0.98))


# --- pairs and bars ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("intervals", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_each_seed_is_a_line_and_the_mean_a_thick_one(count, intervals) -> None:
    table = pd.DataFrame({"seed": [42, 0, 1], "all": [0.3, 0.31, 0.35], "upper half": [0.4, 0.29, 0.36]}).head(count)
    if intervals:
        ends = {f"{name}_{end}": table[name] + by for name in ("all", "upper half") for end, by in
                (("low", -0.02), ("high", 0.03))}  # fmt: skip
        table = table.assign(**ends)
    figure = paired_lines(table, left="all", right="upper half", ylabel="mIOU (0 to 1)")
    (axes,) = figure.axes
    seeds = [line for line in axes.lines if line.get_label().startswith("seed ")]
    np.testing.assert_array_equal([line.get_ydata() for line in seeds], table[["all", "upper half"]])
    assert len({line.get_marker() for line in seeds}) == count
    expected = [f"seed {seed}" for seed in table["seed"]] + (["mean of the seeds"] if count > 1 else [])
    assert legend(figure) == expected
    if count > 1:
        (mean,) = lines(axes, label="mean of the seeds")
        np.testing.assert_allclose(mean.get_ydata(), table[["all", "upper half"]].mean())
        assert mean.get_linewidth() > 2 * seeds[0].get_linewidth()
    bars = np.array([line.get_ydata() for line in lines(axes, color="0.7")])
    if intervals:
        np.testing.assert_allclose(bars[:2], [[0.28, 0.33], [0.38, 0.43]])
    else:
        assert np.isnan(bars).all()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["all", "upper half"]
    assert_legible(figure)


def bar_table() -> pd.DataFrame:
    rows = []
    for place, (name, blind) in enumerate([("ResNet-18", False), ("whole image", True), ("the others' boxes", True)]):
        for metric in ("n_pred", *METRICS):
            if not (blind and metric == "max_box_acc_v2"):
                rows.append((name, metric, 0.2 + 0.1 * place, 0.15 + 0.1 * place, 0.27 + 0.1 * place, blind))
    return pd.DataFrame(rows, columns=["guess_or_network", "metric", "mean", "low", "high", "blind"])


def test_the_bars_are_the_means_and_blind_guesses_are_hatched() -> None:
    table = bar_table()
    figure = localization_bars(table)
    assert [axes.get_title() for axes in figure.axes] == list(METRICS.values())
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(dict.fromkeys(
        table["guess_or_network"]))  # fmt: skip
    for axes, metric in zip(figure.axes, METRICS, strict=True):
        rows = table[table["metric"] == metric]
        bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        np.testing.assert_allclose([bar.get_width() for bar in bars], rows["mean"])
        assert [bar.get_hatch() is not None for bar in bars] == list(rows["blind"])
        np.testing.assert_array_equal([line.get_xdata() for line in axes.lines], rows[["low", "high"]])
        expected = [f"{value:.2f}" for value in rows["mean"]] + ["–"] * (3 - len(rows))
        assert [text.get_text() for text in axes.texts] == expected
        assert axes.get_ylim() == (2.5, -0.5)  # the first at the top
    assert legend(figure) == ["network", "blind guess"]
    assert_legible(figure)


def test_one_bar_and_a_mean_that_is_not_known() -> None:
    figure = localization_bars(bar_table().query("metric == 'score'").head(1))
    assert [axes.get_title() for axes in figure.axes] == ["mIOU"]
    assert legend(figure) == ["network"]
    unknown = localization_bars(bar_table().query("metric == 'score'").assign(mean=np.nan, high=np.nan)).axes[0]
    assert not unknown.patches
    assert [text.get_text() for text in unknown.texts] == ["–"] * 3


# --- radiographs ------------------------------------------------------------------------------------------------------


def outlines(axes: Axes) -> list[tuple[str, tuple[float, ...]]]:
    """Color and corners of every box on an image."""
    return [(to_hex(patch.get_edgecolor()).upper(),
             (patch.get_x() + 0.5, patch.get_y() + 0.5, patch.get_x() + patch.get_width() + 0.5,
              patch.get_y() + patch.get_height() + 0.5)) for patch in axes.patches]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("indices", [[3], [2, 0, 1], [0, 5, 3, 1, 2]])
@pytest.mark.parametrize("guessed", [True, False])
def test_examples_show_the_boxes_the_score_and_the_probability(found, indices, guessed) -> None:
    count = len(found.samples)
    blob = np.zeros_like(found.maps)
    blob[:, 0, 0] = 1
    found = replace(found, maps=blob)
    probabilities = np.linspace(0.5, 0.99, count)
    guesses = [np.array([[1, 2, 30 + place, 40]], np.float32) for place in range(count)] if guessed else None
    figure = drawn(examples(found, probabilities, indices, guesses, "opacity"))
    across = 1 if len(indices) <= 3 else 2
    assert len(figure.axes) == (3 if across == 1 else 7) * -(-len(indices) // across)
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 3 * len(indices)
    for place, index in enumerate(indices):
        image, heat, boxed = panels[3 * place : 3 * place + 3]
        truth = [("#009E73", tuple(box)) for box in found.samples.boxes[index].tolist()]
        own = [("#0072B2", tuple(box)) for box in found.boxes[index].tolist()]
        guess = [("#555555", tuple(box)) for box in guesses[index].tolist()] if guessed else []
        assert outlines(image) == truth
        assert not outlines(heat)
        assert outlines(boxed) == [*truth, *guess, *own]
        np.testing.assert_array_equal(image.images[0].get_array(), found.samples.pixels[index])
        assert heat.images[1].get_array().max() == 1
        assert heat.texts[0].get_text() == f"p(opacity) {probabilities[index]:.2f}"
        assert boxed.texts[0].get_text() == f"IoU {found.rows['score'][index]:.2f}"
        assert image.get_window_extent().width / figure.dpi <= 2.1
    assert legend(figure) == ["ground truth", "network", *(["blind guess"] if guessed else [])]


@pytest.mark.slow
def test_examples_need_a_probability_for_each_radiograph(found) -> None:
    for probabilities, indices in (([0.5], [0]), ([0.5] * len(found.samples), [])):
        with pytest.raises(UsageError, match=f"each of the {len(found.samples)} scored radiographs"):
            examples(found, probabilities, indices, None, "opacity")


def test_no_word_of_a_disease() -> None:
    for name in ("figures", "explorers"):
        text = (Path(__file__).parents[2] / f"tbkd_utils/views/classifier_{name}.py").read_text().lower()
        assert not any(word in text for word in ("pneumonia", "tubercul", "p(tb)", "lesion"))
