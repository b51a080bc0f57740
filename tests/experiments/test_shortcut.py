"""The marker painted over: only there, and what the networks say is what they said elsewhere."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny_dataset as tiny

from tbkd_utils.data.synthetic.dataset import read_synthetic_markers
from tbkd_utils.errors import UsageError
from tbkd_utils.experiments import shortcut as module
from tbkd_utils.experiments.evaluation import Localization, localization, probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.shortcut import (
    MARGIN,
    has_markers,
    marker_energy,
    painted_over,
    shortcut_effect,
    shortcut_table,
)
from tbkd_utils.experiments.trained import train


@pytest.fixture(scope="module")
def located(smoke: Experiment) -> Localization:
    return localization(smoke, train(smoke, "teacher"))


@pytest.fixture(scope="module")
def found(smoke: Experiment):
    return shortcut_effect(smoke, train(smoke, "student"))


def test_a_bright_box_takes_its_surroundings_and_nothing_else_changes() -> None:
    image = np.full((1, 40, 40), 80, np.uint8)
    image[0, 10:20, 25:32] = 250
    painted = painted_over(image, np.array([[25, 10, 32, 20]], np.float32))
    assert painted.dtype == np.uint8
    assert abs(painted.astype(int) - 80).max() <= 3
    assert (painted[0, : 10 - MARGIN] == 80).all()
    assert (image[0, 10:20, 25:32] == 250).all()  # the original stays


def test_pixels_away_from_the_box_stay_and_a_box_at_the_border_is_no_problem() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 30, 30), dtype=np.uint8)
    painted = painted_over(image, np.array([[0.4, 25.2, 6.1, 30.0]], np.float32))
    changed = np.argwhere(painted[0] != image[0])
    assert changed[:, 0].min() >= 25 - MARGIN
    assert changed[:, 1].max() < 7 + MARGIN


def test_every_test_radiograph_with_a_marker_is_there(found, smoke: Experiment) -> None:
    markers = read_synthetic_markers(smoke.root)
    assert set(found.samples.names) == {name for name in smoke.test.names if markers[name] is not None}
    assert set(found.rows["label"]) == {0, 1}
    assert has_markers(smoke)


def test_before_painting_it_agrees_with_the_other_evaluations(found, smoke: Experiment) -> None:
    student = train(smoke, "student")
    known = probabilities(smoke, student).set_index("name")["probability"]
    assert np.allclose(
        found.rows["probability"], known[list(found.rows["name"])], rtol=1e-4
    )  # other batches, other rounding
    energy = marker_energy(localization(smoke, student), read_synthetic_markers(smoke.root)).set_index("name")
    rows = found.rows.set_index("name").loc[energy.index]
    assert np.allclose(rows["energy"], energy["energy"], atol=1e-4)
    assert np.allclose(rows["marker_area"], energy["marker_area"])


def test_painting_is_what_the_painted_columns_are_of(found, smoke: Experiment) -> None:
    assert (found.painted != found.samples.pixels).any(axis=(1, 2)).all()
    assert found.heatmaps.shape == found.heatmaps_painted.shape == found.samples.pixels.shape
    assert not np.allclose(found.rows["probability"], found.rows["probability_painted"], atol=1e-9)
    assert found.rows[["probability", "probability_painted", "energy", "energy_painted"]].to_numpy().min() >= 0
    assert shortcut_effect(smoke, train(smoke, "student")).rows.equals(found.rows)


def test_networks_have_folders_of_their_own(found, smoke: Experiment) -> None:
    assert shortcut_effect(smoke, train(smoke, "teacher")).run.path != found.run.path


def test_without_a_known_marker_there_is_nothing_to_paint(smoke: Experiment, monkeypatch) -> None:
    other = smoke.changed(threads=1)
    monkeypatch.setattr(type(other), "synthetic", False)
    assert not has_markers(other)
    with pytest.raises(UsageError, match="no marker is known"):
        shortcut_effect(other, train(smoke, "student"))


def looking_at(located: Localization, maps: np.ndarray) -> Localization:
    """The same radiographs with other heatmaps, at the resolution of the crop."""
    return dataclasses.replace(located, maps=maps.astype(np.float32))


def test_energy_on_the_marker(smoke: Experiment, located: Localization) -> None:
    markers = read_synthetic_markers(smoke.root)
    shown = {name: markers[name] for name in located.samples.names if markers[name] is not None}
    assert 0 < len(shown) < len(located.samples)
    everywhere = marker_energy(looking_at(located, np.ones((8, 64, 64))), markers)
    assert everywhere["name"].tolist() == list(shown)
    assert np.allclose(everywhere["energy"], everywhere["marker_area"])
    scale = smoke.recipe.pixels.resize / smoke.recipe.synthetic.synthetic_size
    areas = [(right - left) * (bottom - top) * scale**2 / 64**2 for left, top, right, bottom in shown.values()]
    assert np.allclose(everywhere["marker_area"], areas, rtol=1e-5)

    aimed = np.zeros((8, 64, 64))
    for heat, name, geometry in zip(aimed, located.samples.names, located.samples.geometries, strict=True):
        if name in shown:
            left, top, right, bottom = geometry.boxes(shown[name][None])[0]
            heat[int(np.ceil(top)) : int(bottom), int(np.ceil(left)) : int(right)] = 1
    assert np.allclose(marker_energy(looking_at(located, aimed), markers)["energy"], 1)
    assert np.allclose(marker_energy(looking_at(located, 1 - aimed), markers)["energy"], 0, atol=0.01)


def test_a_marker_outside_the_crop_or_unknown_is_left_out(located: Localization) -> None:
    names = located.samples.names
    markers = {names[0]: np.float32([0, 0, 3, 3]), names[1]: None, names[2]: np.float32([40, 40, 50, 50])}
    table = marker_energy(located, markers)
    assert table["name"].tolist() == [names[2]]
    assert marker_energy(located, {}).columns.tolist() == ["name", "energy", "marker_area"]


def test_the_shortcut_table_is_the_mean_over_radiographs(smoke: Experiment, located) -> None:
    table = shortcut_table(smoke, [located, localization(smoke, train(smoke, "student"))])
    assert table.columns.tolist() == ["network", "energy", "low", "high", "marker_area", "n"]
    assert table["network"].tolist() == ["teacher", "student"]
    rows = marker_energy(located, read_synthetic_markers(smoke.root))
    first = table.iloc[0]
    assert first[["energy", "marker_area", "n"]].tolist() == pytest.approx(
        [rows["energy"].mean(), rows["marker_area"].mean(), len(rows)]
    )
    assert first["low"] <= first["energy"] <= first["high"]


def test_the_shortcut_table_is_empty_where_no_marker_is_in_sight(smoke: Experiment, located, monkeypatch) -> None:
    monkeypatch.setattr(module, "read_synthetic_markers", lambda root: dict.fromkeys(located.samples.names))
    assert shortcut_table(smoke, [located]).empty


def test_real_radiographs_have_no_known_marker(located: Localization, tmp_path: Path) -> None:
    root = tiny.write_tbx11k(tmp_path / "TBX11K")
    table = shortcut_table(Experiment.open("laptop", root, tmp_path), [located])
    assert table.empty
    assert table.columns.tolist() == ["network", "energy", "low", "high", "marker_area", "n"]
