"""The token painted over: only there, and what the networks say is what they said elsewhere."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny_dataset as tiny

from tbkd_utils.data.synthetic.dataset import read_synthetic_tokens
from tbkd_utils.experiments import shortcut as module
from tbkd_utils.experiments.evaluation import Localization, localization, probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.shortcut import (
    MARGIN,
    ShortcutError,
    has_tokens,
    painted_over,
    shortcut,
    shortcut_table,
    token_energy,
)
from tbkd_utils.experiments.trained import train_student, train_teacher


@pytest.fixture(scope="module")
def located(smoke: Experiment) -> Localization:
    return localization(smoke, train_teacher(smoke))


@pytest.fixture(scope="module")
def found(smoke: Experiment):
    return shortcut(smoke, train_student(smoke))


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


def test_every_test_radiograph_with_a_token_is_there(found, smoke: Experiment) -> None:
    tokens = read_synthetic_tokens(smoke.root)
    assert set(found.samples.names) == {name for name in smoke.test.names if tokens[name] is not None}
    assert set(found.rows["label"]) == {0, 1}
    assert has_tokens(smoke)


def test_before_painting_it_agrees_with_the_other_evaluations(found, smoke: Experiment) -> None:
    student = train_student(smoke)
    known = probabilities(smoke, student).set_index("name")["p_tb"]
    assert np.allclose(found.rows["p_tb"], known[list(found.rows["name"])], rtol=1e-4)  # other batches, other rounding
    energy = token_energy(localization(smoke, student), read_synthetic_tokens(smoke.root)).set_index("name")
    rows = found.rows.set_index("name").loc[energy.index]
    assert np.allclose(rows["energy"], energy["energy"], atol=1e-4)
    assert np.allclose(rows["token_area"], energy["token_area"])


def test_painting_is_what_the_painted_columns_are_of(found, smoke: Experiment) -> None:
    assert (found.painted != found.samples.pixels).any(axis=(1, 2)).all()
    assert found.heatmaps.shape == found.heatmaps_painted.shape == found.samples.pixels.shape
    assert not np.allclose(found.rows["p_tb"], found.rows["p_tb_painted"], atol=1e-9)
    assert found.rows[["p_tb", "p_tb_painted", "energy", "energy_painted"]].to_numpy().min() >= 0
    assert shortcut(smoke, train_student(smoke)).rows.equals(found.rows)


def test_networks_have_folders_of_their_own(found, smoke: Experiment) -> None:
    assert shortcut(smoke, train_teacher(smoke)).run.path != found.run.path


def test_without_a_known_token_there_is_nothing_to_paint(smoke: Experiment, monkeypatch) -> None:
    other = smoke.changed(threads=1)
    monkeypatch.setattr(type(other), "synthetic", False)
    assert not has_tokens(other)
    with pytest.raises(ShortcutError, match="no token is known"):
        shortcut(other, train_student(smoke))


def looking_at(located: Localization, maps: np.ndarray) -> Localization:
    """The same radiographs with other heatmaps, at the resolution of the crop."""
    return dataclasses.replace(located, maps=maps.astype(np.float32))


def test_energy_on_the_token(smoke: Experiment, located: Localization) -> None:
    tokens = read_synthetic_tokens(smoke.root)
    shown = {name: tokens[name] for name in located.samples.names if tokens[name] is not None}
    assert 0 < len(shown) < len(located.samples)
    everywhere = token_energy(looking_at(located, np.ones((8, 64, 64))), tokens)
    assert everywhere["name"].tolist() == list(shown)
    assert np.allclose(everywhere["energy"], everywhere["token_area"])
    scale = smoke.recipe.resize / smoke.recipe.synthetic_size
    areas = [(right - left) * (bottom - top) * scale**2 / 64**2 for left, top, right, bottom in shown.values()]
    assert np.allclose(everywhere["token_area"], areas, rtol=1e-5)

    aimed = np.zeros((8, 64, 64))
    for heat, name, geometry in zip(aimed, located.samples.names, located.samples.geometries, strict=True):
        if name in shown:
            left, top, right, bottom = geometry.boxes(shown[name][None])[0]
            heat[int(np.ceil(top)) : int(bottom), int(np.ceil(left)) : int(right)] = 1
    assert np.allclose(token_energy(looking_at(located, aimed), tokens)["energy"], 1)
    assert np.allclose(token_energy(looking_at(located, 1 - aimed), tokens)["energy"], 0, atol=0.01)


def test_a_token_outside_the_crop_or_unknown_is_left_out(located: Localization) -> None:
    names = located.samples.names
    tokens = {names[0]: np.float32([0, 0, 3, 3]), names[1]: None, names[2]: np.float32([40, 40, 50, 50])}
    table = token_energy(located, tokens)
    assert table["name"].tolist() == [names[2]]
    assert token_energy(located, {}).columns.tolist() == ["name", "energy", "token_area"]


def test_the_shortcut_table_is_the_mean_over_radiographs(smoke: Experiment, located) -> None:
    table = shortcut_table(smoke, [located, localization(smoke, train_student(smoke))])
    assert table.columns.tolist() == ["network", "energy", "low", "high", "token_area", "n"]
    assert table["network"].tolist() == ["teacher", "student"]
    rows = token_energy(located, read_synthetic_tokens(smoke.root))
    first = table.iloc[0]
    assert first[["energy", "token_area", "n"]].tolist() == pytest.approx(
        [rows["energy"].mean(), rows["token_area"].mean(), len(rows)]
    )
    assert first["low"] <= first["energy"] <= first["high"]


def test_the_shortcut_table_is_empty_where_no_token_is_in_sight(smoke: Experiment, located, monkeypatch) -> None:
    monkeypatch.setattr(module, "read_synthetic_tokens", lambda root: dict.fromkeys(located.samples.names))
    assert shortcut_table(smoke, [located]).empty


def test_real_radiographs_have_no_known_token(located: Localization, tmp_path: Path) -> None:
    root = tiny.write_tbx11k(tmp_path / "TBX11K")
    table = shortcut_table(Experiment.open("laptop", root, tmp_path), [located])
    assert table.empty
    assert table.columns.tolist() == ["network", "energy", "low", "high", "token_area", "n"]
