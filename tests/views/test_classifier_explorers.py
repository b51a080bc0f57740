"""A classifier's explorers without a browser: controls move numbers and pictures; a hidden test set stays hidden."""

import base64
import html
import io
import re
from collections.abc import Iterator
from dataclasses import replace

import ipywidgets
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.patches import StepPatch
from PIL import Image

from tbkd_utils.errors import UsageError
from tbkd_utils.experiments.evaluation import Localization, localization, probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import train
from tbkd_utils.metrics.operating import operating_metrics
from tbkd_utils.views import explorer as explorer_module
from tbkd_utils.views.classifier_explorers import HIDDEN, ORDERS, finding_browser, operating_explorer
from tbkd_utils.views.explorer import WIDGET, Explorer

CLASSES = ("clear", "opaque")


@pytest.fixture(autouse=True)
def _widgets_are_closed() -> Iterator[None]:
    yield
    ipywidgets.Widget.close_all()


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Localization, pd.DataFrame]:
    """Localization and probabilities of a network, with scores that differ from radiograph to radiograph."""
    experiment = Experiment.open("smoke", out=tmp_path_factory.mktemp("explorers"), system="pneumonia")
    trained = train(experiment, "classifier")
    found = localization(experiment, trained)
    copy = replace(found)  # its table is read anew and kept in memory, so the file stays as it is
    rng = np.random.default_rng(3)
    for column in ("score", "matched", "energy"):
        copy.rows[column] = rng.random(len(copy.rows))
    copy.rows["pointing"] = np.arange(len(copy.rows)) % 2
    return copy, probabilities(experiment, trained)


def table(seed: int, n: int = 90) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 4 > 0).astype(int)
    return pd.DataFrame({"label": labels, "probability": 1 / (1 + np.exp(-rng.normal(2 * labels - 1, 1)))})


def numbers(explorer: Explorer) -> list[str]:
    (inner,) = re.findall(r"<div [^>]*>(.*)</div>", explorer.numbers.value)
    return [html.unescape(line) for line in inner.split("<br>")]


def picture(explorer: Explorer) -> np.ndarray:
    source, alt = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', explorer.picture.value), explorer.view.alt
    assert f'alt="{html.escape(alt)}"' in explorer.picture.value
    assert len(alt) > 40
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source[0]))))


# --- the threshold ----------------------------------------------------------------------------------------------------


def test_the_numbers_are_the_operating_metrics_at_every_threshold() -> None:
    validation, test = table(0), table(1, 60)
    explorer = operating_explorer(validation, test, CLASSES)
    explorer.controls["shown"].value = True
    assert [value for _, value in explorer.controls["threshold"].options] == [step / 100 for step in range(1, 100)]
    for threshold in (0.01, 0.37, 0.5, 0.99):
        explorer.controls["threshold"].value = threshold
        first, *lines = numbers(explorer)
        assert first == f"Above {threshold:.2f} an image is called opaque."
        for line, name, rows in zip(lines, ("Validation", "Test"), (validation, test), strict=True):
            found = operating_metrics(rows["probability"], rows["label"], threshold)
            positive = found["tp"] + found["fn"]
            right = found["tp"] + found["tn"]
            assert line == (
                f"{name}: accuracy {found['accuracy']:.3f} ({right} of {len(rows)} images), F1 {found['f1']:.3f}, "
                f"sensitivity {found['sensitivity']:.3f} ({found['tp']} of {positive} opaque), "
                f"specificity {found['specificity']:.3f} ({found['tn']} of {len(rows) - positive} clear)."
            )


def test_the_histograms_hold_every_image_and_the_line_stands_at_the_threshold() -> None:
    validation, test = table(0), table(1, 60)
    explorer = operating_explorer(validation, test, CLASSES)
    before = picture(explorer)
    explorer.controls["shown"].value, explorer.controls["threshold"].value = True, 0.8
    assert not np.array_equal(before, picture(explorer))
    for axes, rows in zip(explorer.view.figure.axes, (validation, test), strict=True):
        shapes = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
        assert [shape.get_label() for shape in shapes] == list(CLASSES)
        for label, shape in enumerate(shapes):
            expected, _ = np.histogram(rows["probability"][rows["label"] == label], np.arange(21) / 20)
            bars = shape.get_data().values[::2]
            np.testing.assert_array_equal(np.where(bars < 1, 0, bars), expected)
            assert expected.sum() == (rows["label"] == label).sum()
        assert list(axes.lines[0].get_xdata()) == [0.8, 0.8]
        assert axes.get_yscale() == "log"


def test_the_test_set_stays_hidden_until_it_is_asked_for() -> None:
    validation = table(0)
    explorer, other = (operating_explorer(validation, test, CLASSES) for test in (table(1, 60), table(2, 9000)))
    assert not explorer.controls["shown"].value
    for threshold in (0.5, 0.2, 0.9):
        for one in (explorer, other):
            one.controls["threshold"].value = threshold
        # Nothing shown depends on the test set: neither numbers nor picture nor alternative text.
        assert numbers(explorer) == numbers(other)
        assert explorer.view.alt == other.view.alt
        assert np.array_equal(picture(explorer), picture(other))
    assert numbers(explorer)[2] == f"Test: {HIDDEN}."
    right = explorer.view.figure.axes[1]
    assert [text.get_text() for text in right.texts] == [HIDDEN]
    assert not right.patches
    assert not right.lines
    hidden = picture(explorer)
    explorer.controls["shown"].value = True
    assert numbers(explorer)[2].startswith("Test: accuracy ")
    assert not np.array_equal(picture(explorer), hidden)
    explorer.controls["shown"].value = False
    assert np.array_equal(picture(explorer), hidden)
    assert numbers(explorer)[2] == f"Test: {HIDDEN}."


def test_a_class_that_does_not_occur_has_no_share() -> None:
    explorer = operating_explorer(table(0).query("label == 1"), table(1), CLASSES)
    assert "specificity not defined (0 of 0 clear)" in numbers(explorer)[1]
    with pytest.raises(UsageError, match="two classes"):
        operating_explorer(table(0), table(1), ("clear", "hazy", "opaque"))


def test_a_batch_run_keeps_the_still_alone(monkeypatch) -> None:
    explorer = operating_explorer(table(0), table(1), CLASSES)
    data, metadata = explorer._repr_mimebundle_()
    (kind,) = set(data) - {WIDGET, "text/plain"}
    assert metadata == {kind: {"alt": explorer.view.alt}}
    assert Image.open(io.BytesIO(base64.b64decode(data[kind]))).size == (768, 312)
    shell = InteractiveShell()
    shell.user_ns["In"] = ["", "# Parameters\nrecipe = 'smoke'\n"]
    monkeypatch.setattr(explorer_module, "get_ipython", lambda: shell)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert WIDGET not in explorer._repr_mimebundle_()[0]


# --- the findings -----------------------------------------------------------------------------------------------------


def expected_order(found: Localization, rows: pd.DataFrame, order: str) -> list[str]:
    whole = found.rows.drop(columns="boxes").merge(rows, on="name")
    column, ascending = ORDERS[order]
    return list(whole.sort_values(column, ascending=ascending, kind="stable")["name"])


@pytest.mark.slow
def test_every_order_and_kind_gives_its_cases_from_the_first(scored) -> None:
    found, rows = scored
    explorer = finding_browser(found, rows, CLASSES)
    kinds = {record.name: record.kind for record in found.experiment.test_records}
    assert list(explorer.controls["kind"].options) == ["all", "bacterial", "viral"]
    settings = [(order, "all") for order in list(ORDERS)[1:]]
    for order, kind in (*settings, ("name", "viral"), ("best IoU first", "bacterial")):
        explorer.controls["order"].value, explorer.controls["kind"].value = order, kind
        names = [name for name in expected_order(found, rows, order) if kind in ("all", kinds[name])]
        assert list(explorer.controls["name"].options) == names
        assert (explorer.controls["case"].value, explorer.controls["case"].max) == (1, len(names))
        assert numbers(explorer)[0].startswith(f"1 of {len(names)}: {names[0]}, {kinds[names[0]]}; opaque ")
        explorer.controls["case"].value = len(names)
    explorer.controls["order"].value, explorer.controls["kind"].value = next(iter(ORDERS)), "all"
    scores = found.rows.set_index("name")["score"][list(explorer.controls["name"].options)]
    assert scores.is_monotonic_increasing  # the worst first


@pytest.mark.slow
def test_the_numbers_are_the_evaluations(scored) -> None:
    found, rows = scored
    explorer = finding_browser(found, rows, CLASSES)
    for place, name in enumerate(found.samples.names):
        explorer.controls["name"].value = name
        row, probability = found.rows.iloc[place], rows.set_index("name")["probability"][name]
        first, second = numbers(explorer)
        assert f": {name}, " in first
        assert first.endswith(f"opaque with probability {probability:.3f}")
        assert second == (
            f"IoU {row['score']:.3f}, one-to-one {row['matched']:.3f}; the heatmap's highest point is "
            f"{'inside' if row['pointing'] else 'outside'} the truth; {row['energy']:.1%} of its energy is inside"
        )
        boxes = explorer.view.figure.axes[2].patches
        assert len(boxes) == len(found.samples.boxes[place]) + len(found.boxes[place])
    assert picture(explorer).shape == (385, 960, 3)


@pytest.mark.slow
def test_buttons_slider_and_list_go_through_the_cases(scored) -> None:
    found, rows = scored
    explorer = finding_browser(found, rows, CLASSES)
    names = expected_order(found, rows, next(iter(ORDERS)))

    def at() -> int:
        position = explorer.controls["case"].value
        assert explorer.controls["name"].value == names[position - 1]
        assert numbers(explorer)[0].startswith(f"{position} of {len(names)}: {names[position - 1]}")
        return position

    first = picture(explorer)
    explorer.controls["previous"].click()
    assert at() == 1
    explorer.controls["next"].click()
    assert at() == 2
    assert not np.array_equal(first, picture(explorer))
    explorer.controls["case"].value = len(names)
    explorer.controls["next"].click()
    assert at() == len(names)
    explorer.controls["name"].value = names[0]
    assert at() == 1
    assert np.array_equal(first, picture(explorer))
    assert all(control.description for control in explorer.controls.values())


@pytest.mark.slow
def test_without_kinds_there_is_nothing_to_filter_by(scored, monkeypatch) -> None:
    found, rows = scored
    records = [replace(record, kind="") for record in found.experiment.test_records]
    monkeypatch.setattr(Experiment, "test_records", records)
    explorer = finding_browser(found, rows, CLASSES)
    assert "kind" not in explorer.controls
    explorer.controls["order"].value = "name"
    assert numbers(explorer)[0].startswith(f"1 of {len(found.samples)}: {min(found.samples.names)}; opaque with ")


@pytest.mark.slow
def test_rows_of_another_test_set_are_refused(scored) -> None:
    found, rows = scored
    name = found.samples.names[0]
    with pytest.raises(UsageError, match=f"1 scored radiographs have no probability, such as {name}"):
        finding_browser(found, rows[rows["name"] != name], CLASSES)
