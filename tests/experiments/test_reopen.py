"""A trained network from its folder alone: what is read from where, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from untrained import untrained

from tbkd_utils.errors import RunError, SettingsError
from tbkd_utils.experiments.evaluation import localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.series import note_dataset
from tbkd_utils.experiments.trained import LOCATING, TrainedNetwork, load_trained, train, training_min_area
from tbkd_utils.runs import DONE


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """An experiment whose settings are far from its preset's, of every part."""
    changed = {"seed": 7, "crop": 48, "temperature": 3.0, "threshold": 0.3, "cam_relu": False, "min_area_quantile": 0.5}
    return Experiment.open("smoke", out=tmp_path_factory.mktemp("odd"), overrides=changed)


@pytest.fixture(scope="module")
def made(odd: Experiment) -> TrainedNetwork:
    return untrained(odd)


@pytest.fixture
def old(odd: Experiment, tmp_path: Path) -> TrainedNetwork:
    """A folder from before `locating.json`."""
    return untrained(Experiment(odd.recipe, tmp_path, odd.root), noted=False)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_a_training_leaves_all_that_is_needed(smoke: Experiment, tmp_path: Path) -> None:
    trained = train(smoke, "student")
    copied = tmp_path / "anything"
    shutil.copytree(trained.run.path, copied)
    again = load_trained(copied)
    assert (again.role, again.recipe) == ("student", smoke.recipe)
    assert training_min_area(again) == localization(smoke, trained).min_area
    for one, other in zip(again.model().parameters(), trained.model().parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_setting_comes_back(odd: Experiment, made: TrainedNetwork) -> None:
    assert load_trained(made.run.path).recipe == odd.recipe
    assert load_trained(str(made.run.path)).recipe == odd.recipe


def test_an_old_folder_takes_the_presets_heatmaps_and_scores(odd: Experiment, old: TrainedNetwork) -> None:
    found = load_trained(old.run.path).recipe
    assert found.flat("training", "pixels", "distillation") == odd.recipe.flat("training", "pixels", "distillation")
    assert found.flat("heatmaps", "scores") == Experiment.open("smoke").recipe.flat("heatmaps", "scores")


def test_the_recipe_of_an_old_folder_elsewhere_must_be_named(old: TrainedNetwork, tmp_path: Path) -> None:
    copied = tmp_path / "copied" / "network"
    shutil.copytree(old.run.path, copied)
    with pytest.raises(RunError, match=r"called 'copied'.*--recipe.*smoke"):
        load_trained(copied)
    assert load_trained(copied, "smoke") == TrainedNetwork("student", load_trained(old.run.path).recipe,
                                                              load_trained(copied, "smoke").run)  # fmt: skip
    with pytest.raises(SettingsError, match="smke"):
        load_trained(copied, "smke")


def test_what_does_not_change_the_network_can_be_changed(made: TrainedNetwork) -> None:
    changed = load_trained(made.run.path, overrides={"threshold": 0.7, "eval_batch_size": 3}).recipe
    assert (changed.scores.threshold, changed.execution.eval_batch_size) == (0.7, 3)
    with pytest.raises(SettingsError, match=r"crop belongs to the training .*crop = 48"):
        load_trained(made.run.path, overrides={"crop": 64})
    with pytest.raises(SettingsError, match="treshold"):
        load_trained(made.run.path, overrides={"treshold": 0.7})


# --- folders that are no networks -------------------------------------------------------------------------------------


def test_folders_that_are_no_network(made: TrainedNetwork, tmp_path: Path) -> None:
    for path, part in (
        (tmp_path / "absent", "no such folder"),
        (made.run.file("best.safetensors"), "this is a file"),
        (tmp_path, "not a finished network.*settings.json, done.json, best.safetensors"),
    ):
        with pytest.raises(RunError, match=part):
            load_trained(path)


def test_the_folder_around_networks_lists_them_with_what_differs(made: TrainedNetwork) -> None:
    with pytest.raises(RunError) as caught:
        load_trained(made.run.path.parent)
    (line,) = str(caught.value).splitlines()[1:]
    assert line.split()[0] == made.run.path.name
    assert all(part in line for part in ("seed=7", "crop=48", "temperature=3.0"))


def test_the_system_that_a_folder_names_decides(tmp_path: Path) -> None:
    network = untrained(Experiment.open("smoke", out=tmp_path, system="pneumonia"), "classifier").run.path
    found = load_trained(network)
    assert (found.role, found.recipe.system, found.task.label) == ("classifier", "pneumonia", "pneumonia")
    with pytest.raises(RunError) as caught:
        load_trained(network.parent)
    first, line = str(caught.value).splitlines()
    assert "such as runs/pneumonia-demo/classifier-<digest> with settings.json" in first
    assert line == f"  {network.name}  (the recipe's own settings)"
    settings = json.loads((network / "settings.json").read_text())
    (network / "settings.json").write_text(json.dumps(settings | {"kind": "student"}))  # a role of another system
    with pytest.raises(RunError, match="not a finished network"):
        load_trained(network)
    (network / "settings.json").write_text(json.dumps(settings | {"system": "unheard"}))
    with pytest.raises(SettingsError, match="no system 'unheard'"):
        load_trained(network)
    with pytest.raises(RunError, match=r"student-<digest> \(or teacher-, map_student-\) with [^:]*$"):
        load_trained(network.parent)


def test_a_run_of_another_kind_is_refused(odd: Experiment) -> None:
    folder = odd.root.parent
    assert folder.name.startswith("synthetic-")
    with pytest.raises(RunError, match="not a finished network"):
        load_trained(folder)


@pytest.mark.parametrize("damage", [lambda p: (p / DONE).unlink(), lambda p: (p / "best.safetensors").write_bytes(b"")])
def test_an_unfinished_or_changed_network_is_refused(old: TrainedNetwork, damage) -> None:
    damage(old.run.path)
    with pytest.raises(RunError, match=r"not finished|not the file that was written"):
        load_trained(old.run.path)


# --- the minimum area -------------------------------------------------------------------------------------------------


def test_noted_areas_give_the_series_minimum(odd: Experiment, made: TrainedNetwork) -> None:
    areas = np.concatenate(odd.full_train.areas)
    assert training_min_area(load_trained(made.run.path)) == np.quantile(areas, 0.5)
    lowest = load_trained(made.run.path, overrides={"min_area_quantile": 0.0})
    assert training_min_area(lowest) == areas.min()


def test_an_old_folder_needs_its_dataset(odd: Experiment, old: TrainedNetwork, tmp_path: Path) -> None:
    expected = float(np.quantile(np.concatenate(odd.full_train.areas), 0.5))
    trained = load_trained(old.run.path, overrides={"min_area_quantile": 0.5})
    with pytest.raises(RunError, match=f"no {LOCATING}.*no dataset is known.*--data.*--min-area"):
        training_min_area(trained)
    assert training_min_area(trained, odd.root) == expected
    note_dataset(Experiment(odd.recipe, tmp_path, odd.root), print)
    assert training_min_area(trained) == expected  # found by itself
    (tmp_path / "runs/smoke/datasets.json").write_text(json.dumps({"/gone": trained.run.settings["fingerprint"]}))
    with pytest.raises(RunError, match="its dataset is not at /gone"):
        training_min_area(trained)


def test_a_synthetic_set_is_found_where_it_was_drawn(odd: Experiment) -> None:
    out = odd.out
    old = untrained(odd, "teacher", noted=False)
    note_dataset(odd, print)
    assert old.run.path.is_relative_to(out)
    trained = load_trained(old.run.path, overrides={"min_area_quantile": 0.5})
    assert training_min_area(trained) == np.quantile(np.concatenate(odd.full_train.areas), 0.5)


def test_another_dataset_is_refused(old: TrainedNetwork, tmp_path: Path) -> None:
    other = Experiment.open("smoke", out=tmp_path / "other", overrides={"synthetic_seed": 5})
    with pytest.raises(RunError, match="not the radiographs"):
        training_min_area(old, other.root)


def test_a_training_set_without_boxes_has_no_minimum(old: TrainedNetwork) -> None:
    old.run.file(LOCATING).write_text(json.dumps({"recipe": "smoke", "settings": {}, "box_areas": []}))
    with pytest.raises(RunError, match=r"has no box.*--min-area"):
        training_min_area(old)


def test_settings_that_are_no_more_are_left_out(old: TrainedNetwork) -> None:
    noted = {"recipe": "smoke", "settings": {"cam_method": "gradcam", "threshold": 0.3}, "box_areas": [4.0]}
    old.run.file(LOCATING).write_text(json.dumps(noted))
    assert load_trained(old.run.path).recipe.scores.threshold == 0.3
