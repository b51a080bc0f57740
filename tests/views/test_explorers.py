"""The explorers without a browser: controls are set, numbers and pictures follow, and a batch run gets a still."""

import base64
import html
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import ipywidgets
import numpy as np
import pytest
import torch
from hessian_cases import a_spectrum
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

from tbkd_utils.experiments.evaluation import Localization, localization, logit_rows
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.guesses import blind_guesses
from tbkd_utils.experiments.shortcut import shortcut_effect
from tbkd_utils.experiments.trained import train
from tbkd_utils.localization.tables import score_rows
from tbkd_utils.models.losses import distillation_loss
from tbkd_utils.runs import write_csv
from tbkd_utils.views import explorer as explorer_module
from tbkd_utils.views.cases import ORDERS, case_table, chosen_cases
from tbkd_utils.views.explorer import WIDGET, Explorer, View, in_batch, slider, still
from tbkd_utils.views.explorer_figures import case_figure
from tbkd_utils.views.explorers import (
    case_browser,
    shortcut_explorer,
    softening_explorer,
    spectrum_viewer,
    surplus_explorer,
    threshold_explorer,
)
from tbkd_utils.views.live_boxes import LiveBoxes

pytestmark = pytest.mark.slow  # every control of every explorer


@pytest.fixture(scope="module")
def networks(smoke: Experiment) -> tuple[Localization, Localization]:
    return localization(smoke, train(smoke, "teacher")), localization(smoke, train(smoke, "student"))


@pytest.fixture(autouse=True)
def _widgets_are_closed() -> Iterator[None]:
    yield
    ipywidgets.Widget.close_all()


def numbers(explorer: Explorer) -> list[str]:
    (inner,) = re.findall(r"<div [^>]*>(.*)</div>", explorer.numbers.value)
    return [html.unescape(line) for line in inner.split("<br>")]


def picture(explorer: Explorer) -> np.ndarray:
    source, alt = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', explorer.picture.value), explorer.view.alt
    assert f'alt="{html.escape(alt)}"' in explorer.picture.value
    assert len(alt) > 40
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source[0]))))


def moves(explorer: Explorer, control: str, value: object) -> tuple[list[str], np.ndarray]:
    """Moves a control; the numbers and the picture afterwards."""
    explorer.controls[control].value = value
    return numbers(explorer), picture(explorer)


# --- thresholds -----------------------------------------------------------------------------------------------------


def test_the_threshold_explorer_starts_at_the_recipes_setting(networks) -> None:
    explorer = threshold_explorer(*networks)
    for line, found in zip(numbers(explorer)[1:], networks, strict=True):
        assert line.startswith(f"{found.role}: mIOU of all {len(found.samples)} radiographs {found.miou:.4f}, ")
    assert picture(explorer).shape == (385, 960, 3)


@pytest.mark.parametrize(("control", "places"), [("threshold", (4, 80, 99)), ("min_area", (0, 20, -1))])
def test_threshold_and_area_move_boxes_and_the_miou_of_the_whole_set(networks, control, places) -> None:
    rng = np.random.default_rng(2)  # heatmaps of many regions, which networks at `smoke` do not have
    blobs = [replace(one, maps=rng.random((len(one.samples), 6, 6), dtype=np.float32)) for one in networks]
    explorer = threshold_explorer(*blobs)
    lives = [LiveBoxes(found) for found in blobs]
    seen = [picture(explorer)]
    for place in places:
        lines, shown = moves(explorer, control, explorer.controls[control].options[place][1])
        setting = [explorer.controls[one].value for one in ("threshold", "min_area")]
        for line, live in zip(lines[1:], lives, strict=True):
            boxes = live.boxes(*setting)
            assert f"radiographs {live.miou(boxes):.4f}, {np.mean([len(one) for one in boxes]):.2f} boxes" in line
        seen.append(shown)
    assert any(not np.array_equal(a, b) for a, b in pairwise(seen))


def test_another_radiograph_leaves_the_miou(networks) -> None:
    explorer = threshold_explorer(*networks)
    before = numbers(explorer)
    other = next(name for name in explorer.controls["name"].options if name != explorer.controls["name"].value)
    after, _ = moves(explorer, "name", other)
    assert after[0].startswith(other)
    assert [line.split(",")[0] for line in after[1:]] == [line.split(",")[0] for line in before[1:]]


# --- cases ----------------------------------------------------------------------------------------------------------


def test_buttons_slider_and_list_go_through_the_cases(networks) -> None:
    explorer = case_browser(*networks)
    order = list(chosen_cases(case_table(*networks), next(iter(ORDERS)))["name"])

    def at() -> int:
        name, position = explorer.controls["name"].value, explorer.controls["case"].value
        assert name == order[position - 1]
        assert numbers(explorer)[0].startswith(f"{position} of {len(order)}: {name};")
        return position

    assert at() == 1
    first = picture(explorer)
    for expected in (2, 3):
        explorer.controls["next"].click()
        assert at() == expected
    assert not np.array_equal(picture(explorer), first)
    explorer.controls["previous"].click()
    assert at() == 2
    explorer.controls["case"].value = len(order)
    explorer.controls["next"].click()
    assert at() == len(order)
    explorer.controls["name"].value = order[0]
    assert at() == 1
    explorer.controls["previous"].click()
    assert at() == 1
    assert np.array_equal(picture(explorer), first)


def test_the_scores_are_the_evaluations(networks) -> None:
    explorer, (teacher, student) = case_browser(*networks), networks
    for name in teacher.samples.names:
        explorer.controls["name"].value = name
        a, b = (found.rows["score"][found.samples.names.index(name)] for found in (teacher, student))
        assert f"teacher {a:.3f}, student {b:.3f}, student's gain {b - a:+.3f}" in numbers(explorer)[1]


def test_the_best_box_free_guess_is_scored_and_can_be_drawn(smoke: Experiment, networks) -> None:
    guesses = blind_guesses(smoke)
    explorer = case_browser(*networks, guesses)
    for name in networks[0].samples.names[:3]:
        explorer.controls["name"].value = name
        row = guesses.of(guesses.best).set_index("name").loc[name]
        a, b = (found.rows.set_index("name")["matched"][name] for found in networks)
        assert numbers(explorer)[2].endswith(f"teacher {a:.3f}, student {b:.3f}")
        assert numbers(explorer)[3] == (
            f"Best box-free guess, the {guesses.best}: score {row['score']:.3f}, one-to-one {row['matched']:.3f}"
        )
    before = picture(explorer)
    _, after = moves(explorer, "blind", True)
    assert not np.array_equal(before, after)
    _, again = moves(explorer, "blind", False)
    assert np.array_equal(before, again)


def test_added_boxes_move_both_scores_and_start_at_the_networks_own(networks) -> None:
    student = networks[1]
    explorer = surplus_explorer(student)
    own = student.rows["matched"].mean()
    start = numbers(explorer)
    assert start[0].startswith("0 boxes added blindly to the student's own on each of 8")
    assert start[1].startswith(f"mIOU {student.miou:.3f} (without them {student.miou:.3f}); one-to-one IoU {own:.3f}")
    first = picture(explorer)
    lines, later = moves(explorer, "added", 30)
    place = student.samples.names.index(explorer.controls["name"].value)
    assert f"{30 + len(student.boxes[place])} boxes, score" in lines[2]
    mious, matched = ([float(text.split(score)[1].split()[0]) for text in (start[1], lines[1])]
                      for score in ("mIOU ", "one-to-one IoU "))  # fmt: skip
    assert mious[1] > mious[0]
    assert matched[1] < matched[0]
    assert not np.array_equal(first, later)


def test_sorting_and_filtering_give_the_chosen_cases_from_the_first(networks) -> None:
    explorer, table = case_browser(*networks), case_table(*networks)
    for order in ORDERS:
        for kind in explorer.controls["kind"].options[:3]:
            explorer.controls["order"].value, explorer.controls["kind"].value = order, kind
            expected = list(chosen_cases(table, order, kind)["name"])
            assert list(explorer.controls["name"].options) == expected
            assert explorer.controls["case"].value == 1
            assert explorer.controls["case"].max == len(expected)
            assert numbers(explorer)[0].startswith(f"1 of {len(expected)}: {expected[0]};")
            explorer.controls["case"].value = len(expected)


def test_filters_that_nothing_passes_say_so_and_can_be_undone(networks) -> None:
    explorer, table = case_browser(*networks), case_table(*networks)
    empty = next(
        (kind, size)
        for kind in explorer.controls["kind"].options
        for size in explorer.controls["size"].options
        if chosen_cases(table, "name", kind, size).empty
    )
    explorer.controls["kind"].value, explorer.controls["size"].value = empty
    assert numbers(explorer) == ["No radiograph fits these filters."]
    assert explorer.picture.value == ""
    for button in ("next", "previous"):
        explorer.controls[button].click()
    explorer.controls["size"].value = explorer.controls["kind"].value = "all"
    assert numbers(explorer)[0].startswith(f"1 of {len(table)}")
    assert not explorer.controls["case"].disabled


# --- softening ------------------------------------------------------------------------------------------------------


def test_temperature_and_alpha_move_the_loss_of_equation_1(smoke: Experiment) -> None:
    trained = train(smoke, "teacher"), train(smoke, "student")
    explorer = softening_explorer(smoke, *trained)
    tables = [logit_rows(smoke, one) for one in trained]
    z_t, z_s = (torch.tensor(one[["no TB", "TB"]].to_numpy()) for one in tables)
    labels = torch.tensor(tables[0]["label"].to_numpy())
    shown = [picture(explorer)]
    for temperature, alpha in ((2.0, 0.75), (5.0, 0.75), (5.0, 0.0), (0.5, 1.0)):
        explorer.controls["temperature"].value, explorer.controls["alpha"].value = temperature, alpha
        one, own, mean = numbers(explorer)
        whole = distillation_loss(z_s, z_t, labels, temperature, alpha)
        assert mean.startswith(f"Mean of all {len(labels)} test radiographs: loss {whole:.4f} = ")
        place = explorer.controls["place"].value
        softened = torch.softmax(z_t[place] / temperature, 0)[1]
        assert f"softened p(TB): teacher {softened:.4f}, student " in one
        alone = distillation_loss(z_s[[place]], z_t[[place]], labels[[place]], temperature, alpha)
        assert own.startswith(f"Its loss {alone:.4f} = ")
        shown.append(picture(explorer))
    assert not any(np.array_equal(a, b) for a, b in pairwise(shown[1:]))


def test_the_radiographs_on_which_the_networks_differ_stand_first(smoke: Experiment) -> None:
    trained = train(smoke, "teacher"), train(smoke, "student")
    explorer = softening_explorer(smoke, *trained)
    p = [1 / (1 + np.exp(one["no TB"] - one["TB"])) for one in (logit_rows(smoke, network) for network in trained)]
    assert explorer.controls["place"].value == int(np.argmax(abs(p[0] - p[1])))
    before = numbers(explorer)
    after, _ = moves(explorer, "place", explorer.controls["place"].options[-1][1])
    assert after[0].startswith(smoke.test.names[explorer.controls["place"].value])
    assert after[2] == before[2]


# --- shortcut -------------------------------------------------------------------------------------------------------


def test_painting_changes_the_picture_and_the_numbers_hold_both(smoke: Experiment) -> None:
    trained = train(smoke, "teacher"), train(smoke, "student")
    explorer = shortcut_explorer(smoke, *trained)
    found = [shortcut_effect(smoke, one) for one in trained]
    before = picture(explorer)
    lines, after = moves(explorer, "painted", True)
    assert not np.array_equal(before, after)
    for _, name in explorer.controls["name"].options:
        explorer.controls["name"].value = name
        for line, one in zip(numbers(explorer), found, strict=False):
            row = one.rows.set_index("name").loc[name]
            assert line.startswith(
                f"{one.role}: p(TB) {row['probability']:.3f}, painted over {row['probability_painted']:.3f};"
            )
    for line, one in zip(lines[2:], found, strict=True):
        means = one.rows.groupby("label")[["probability", "probability_painted"]].mean()
        for label in (0, 1):
            assert f"{means['probability'][label]:.3f}, painted over {means['probability_painted'][label]:.3f}" in line


def test_without_a_known_marker_the_explorer_says_so(smoke: Experiment, monkeypatch) -> None:
    monkeypatch.setattr("tbkd_utils.views.explorers.has_markers", lambda experiment: False)
    explorer = shortcut_explorer(smoke, train(smoke, "teacher"), train(smoke, "student"))
    assert "No marker is known" in numbers(explorer)[0]
    data, _ = explorer._repr_mimebundle_()
    assert set(data) == {"text/plain", WIDGET}


# --- spectrum -------------------------------------------------------------------------------------------------------


def test_the_spectrum_viewer_smooths_and_marks() -> None:
    spectra = {"teacher": a_spectrum(0.0), "student": a_spectrum(5.0)}
    explorer = spectrum_viewer(spectra)
    first = picture(explorer)
    assert "(1.00% of the range)" in numbers(explorer)[0]
    for line, (who, found) in zip(numbers(explorer)[1:], spectra.items(), strict=True):
        assert line.startswith(f"{who}: top eigenvalues {found.eigenvalues[0]:.4g}, ")
        assert f"trace {found.trace:.4g} (" in line
    lines, smooth = moves(explorer, "width", explorer.controls["width"].options[-1][1])
    assert "(10.00% of the range)" in lines[0]
    assert not np.array_equal(first, smooth)
    _, unmarked = moves(explorer, "marked", False)
    assert not np.array_equal(unmarked, smooth)


# --- what all share -------------------------------------------------------------------------------------------------


def test_a_notebook_gets_the_live_explorer_and_a_still_with_its_alternative_text(networks) -> None:
    explorer = case_browser(*networks)
    data, metadata = explorer._repr_mimebundle_()
    assert data[WIDGET]["model_id"] == explorer.model_id
    (kind,) = set(data) - {WIDGET, "text/plain"}
    assert kind in ("image/png", "image/jpeg")
    assert metadata == {kind: {"alt": explorer.view.alt}}
    image = Image.open(io.BytesIO(base64.b64decode(data[kind])))
    assert image.size == (768, 308)
    assert data["text/plain"].splitlines() == numbers(explorer)


def test_papermill_gets_the_still_alone(networks, monkeypatch) -> None:
    explorer = case_browser(*networks)
    shell = InteractiveShell()
    shell.user_ns["In"] = ["", "# Parameters\nrecipe = 'smoke'\n"]
    monkeypatch.setattr(explorer_module, "get_ipython", lambda: shell)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert in_batch()
    assert WIDGET not in explorer._repr_mimebundle_()[0]
    monkeypatch.setenv("JPY_SESSION_NAME", "04.ipynb")  # the executed notebook, opened in JupyterLab
    assert not in_batch()
    monkeypatch.delenv("JPY_SESSION_NAME")
    shell.user_ns["In"] = ["", "recipe = 'smoke'"]
    assert not in_batch()


def test_a_still_keeps_the_colors_and_is_small(networks) -> None:
    figure = case_figure(*networks, networks[0].samples.names[0])
    _, data = still(figure)
    assert len(data) < 60_000
    assert figure.dpi == 100
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    for color in ((0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)):
        assert abs(pixels - color).max(axis=2).min() < 40


def test_a_slider_keeps_its_start_to_the_last_digit_among_round_numbers() -> None:
    one = slider("area", 45.2847, np.linspace(0, 100, 11), ".0f")
    assert one.value == 45.2847
    assert [label for label, _ in one.options] == [
        "0",
        "10",
        "20",
        "30",
        "40",
        "45",
        "50",
        "60",
        "70",
        "80",
        "90",
        "100",
    ]
    again = slider("threshold", 0.5, np.arange(101) / 100)
    assert again.value == 0.5
    assert len(again.options) == 101
    assert slider("area", 19.8, [10.0, 20.0], ".0f").options == (("10", 10.0), ("20", 19.8))


def test_text_is_escaped() -> None:
    explorer = Explorer("a", lambda: View(None, ["a < b & <script>"]), {})
    assert numbers(explorer) == ["a < b & <script>"]
    assert "<script>" not in explorer.numbers.value


def test_every_control_has_a_description(smoke: Experiment, networks) -> None:
    trained = train(smoke, "teacher"), train(smoke, "student")
    explorers = [
        case_browser(*networks),
        case_browser(*networks, blind_guesses(smoke)),
        surplus_explorer(networks[1]),
        threshold_explorer(*networks),
        softening_explorer(smoke, *trained),
        shortcut_explorer(smoke, *trained),
        spectrum_viewer({"teacher": a_spectrum(0.0)}),
    ]
    for explorer in explorers:
        assert explorer.controls
        assert all(control.description for control in explorer.controls.values())
        assert {"tbkd-explorer"} < set(explorer._dom_classes)


@pytest.mark.real_data
@pytest.mark.slow
def test_on_200_radiographs_a_move_shows_what_algorithm_1_gives_from_scratch(real_data: Path, tmp_path: Path) -> None:
    experiment = Experiment.open("laptop", real_data, tmp_path)
    samples = experiment.test.subset(np.flatnonzero([len(boxes) > 0 for boxes in experiment.test.boxes]))
    assert len(samples) == 200
    rng, found = np.random.default_rng(0), []
    for role in ("teacher", "student"):
        maps = rng.gamma(0.5, size=(200, 7, 7)).astype(np.float32)
        made = Localization(role, samples, maps, 172.9, experiment.run_at(role, {}), experiment)
        rows = score_rows(samples.names, made.heatmaps, samples.boxes, 0.5, made.min_area)
        write_csv(made.run.file("rows.csv"), rows)
        found.append(made)
    explorer = threshold_explorer(*found)
    for control, place in (("threshold", 30), ("min_area", 35), ("threshold", 75)):
        lines, _ = moves(explorer, control, explorer.controls[control].options[place][1])
        setting = [explorer.controls[one].value for one in ("threshold", "min_area")]
        for line, made in zip(lines[1:], found, strict=True):
            rows = score_rows(samples.names, made.heatmaps, samples.boxes, *setting)
            assert f"all 200 radiographs {rows['score'].mean():.4f}, {rows['n_pred'].mean():.2f} boxes" in line
