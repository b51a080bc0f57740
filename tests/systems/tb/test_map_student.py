"""The student of maps: what its masks are made from, that no box is among it, and that it trains and locates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tbkd_utils.data.cache import FilledBoxes
from tbkd_utils.data.records import Radiograph
from tbkd_utils.errors import SettingsError
from tbkd_utils.experiments.evaluation import localization, probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.predict import locate
from tbkd_utils.experiments.trained import TrainedNetwork, load_trained, train
from tbkd_utils.localization.boxes import boxes_from_json
from tbkd_utils.localization.lungs import Lungs
from tbkd_utils.runs import file_sha256
from tbkd_utils.systems.tb.masks import TbMasks, cleaned_boxes
from tbkd_utils.systems.tb.settings import Maps

ROLE = "map_student"
SETTINGS = {
    "map_teachers": [0, 1], "map_resize": 80, "map_crop": 80, "map_epochs": 1, "augmentation": "crops",
    "min_area": "none", "epochs": 1, "cam_flip": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment.open("smoke", out=tmp_path_factory.mktemp("maps"), overrides=SETTINGS)


@pytest.fixture(scope="module")
def student(experiment: Experiment) -> TrainedNetwork:
    return train(experiment, ROLE)


# --- from a map to rectangles -----------------------------------------------------------------------------------------


def two_lungs() -> Lungs:
    mask = np.zeros((100, 100), bool)
    mask[20:80, 10:40] = mask[20:80, 60:90] = True
    return Lungs(mask, np.array([[10, 20, 40, 80], [60, 20, 90, 80]], np.float32), 1.0, fallback=False)


def heat_at(*blocks: tuple[int, int, int, int, float]) -> np.ndarray:
    heat = np.zeros((100, 100), np.float32)
    for left, top, right, bottom, value in blocks:
        heat[top:bottom, left:right] = value
    return heat


def test_a_rectangle_is_where_a_lung_is_bright_and_not_the_heart_between() -> None:
    heat = heat_at((15, 30, 25, 50, 0.6), (46, 40, 54, 60, 1.0), (70, 60, 80, 70, 0.5))
    assert cleaned_boxes(heat, two_lungs(), Maps()).tolist() == [[15, 30, 25, 50], [70, 60, 80, 70]]
    assert cleaned_boxes(heat, two_lungs(), Maps(map_second_lung=0.9)).tolist() == [[15, 30, 25, 50]]
    assert cleaned_boxes(heat_at((46, 40, 54, 60, 1.0)) * 0, two_lungs(), Maps()).shape == (0, 4)


def test_edges_move_to_the_upper_half_of_their_own_lung() -> None:
    heat = heat_at((70, 60, 80, 70, 0.5))
    assert cleaned_boxes(heat, two_lungs(), Maps(anatomy=0.5)).tolist() == [[65, 40, 85, 60]]
    assert cleaned_boxes(heat, two_lungs(), Maps(anatomy=1.0)).tolist() == [[60, 20, 90, 50]]


def test_boxes_are_drawn_as_masks() -> None:
    masks = FilledBoxes((np.array([[1, 0, 3, 2]], np.float32), np.zeros((0, 4), np.float32)), (4, 5))
    expected = np.zeros((2, 4, 5), np.uint8)
    expected[0, :2, 1:3] = 1
    assert (masks.shape, masks.dtype, len(masks)) == (expected.shape, np.uint8, 2)
    assert np.array_equal(np.asarray(masks), expected)
    assert np.array_equal(masks[0], expected[0])
    assert np.array_equal(masks[np.array([1, 0, 0])], expected[[1, 0, 0]])


# --- the masks of an experiment ---------------------------------------------------------------------------------------


def test_every_training_radiograph_with_tb_has_a_row_and_the_others_an_empty_mask(experiment: Experiment) -> None:
    masks = TbMasks(experiment)
    train_set = experiment.full_train
    with_tb = [name for name, target in zip(train_set.names, train_set.targets, strict=True) if target == 1]
    assert masks.rows["name"].tolist() == with_tb
    assert masks.rows["confidence"].between(0, 1).all()
    own = experiment.for_role(ROLE)
    given = masks.given_to(own.full_train)
    assert given.masks is not None
    assert given.masks.shape[1:] == given.pixels.shape[1:] == (80, 80)
    drawn = np.asarray(given.masks).any(axis=(1, 2))
    assert np.array_equal(drawn, given.targets == 1)
    assert (given.targets == 0).sum() == (own.full_train.targets == 0).sum()
    place = int(np.flatnonzero(drawn)[0])
    (box, *_) = boxes_from_json(masks.rows.set_index("name").loc[given.names[place], "boxes"])
    left, top, right, bottom = given.geometries[place].boxes(box[None])[0]
    assert given.masks[place][int((top + bottom) / 2), int((left + right) / 2)] == 1


def test_the_masks_are_named_by_their_teachers_and_what_cleans_them(experiment: Experiment) -> None:
    names = {
        TbMasks(experiment.changed(**change)).name
        for change in ({}, {"map_teachers": [0]}, {"anatomy": 0.5}, {"cam_flip": False}, {"learning_rate": 0.01},
                       {"mask_source": "lungs"}, {"mask_source": "boxes"}, {"map_threshold": 0.4})
    }  # fmt: skip
    assert len(names) == 8
    same = ({"map_epochs": 3}, {"seed": 5}, {"inside_lungs": True}, {"label_weight": 1.0}, {"threshold": 0.3})
    assert {TbMasks(experiment.changed(**change)).name for change in same} == {TbMasks(experiment).name}


def test_the_controls_are_the_blind_halves_and_the_training_boxes(experiment: Experiment) -> None:
    blind = TbMasks(experiment.changed(mask_source="lungs", map_teachers=[])).rows
    halves = [boxes_from_json(text) for text in blind["boxes"]]
    assert all(boxes.shape == (2, 4) for boxes in halves)
    told = TbMasks(experiment.changed(mask_source="boxes", map_teachers=[])).rows
    boxes = {record.name: record.boxes for record in experiment.train_records if len(record.boxes)}
    assert told["name"].tolist() == list(boxes)
    assert all(np.array_equal(boxes_from_json(row.boxes), boxes[row.name]) for row in told.itertuples())


def test_a_radiograph_with_tb_and_no_box_is_left_out_of_the_yardstick(experiment: Experiment, tmp_path: Path) -> None:
    told = Bare(experiment.changed(mask_source="boxes").recipe, tmp_path, experiment.root)
    given = TbMasks(told).given_to(told.train)
    assert set(given.targets.tolist()) == {0}


def test_no_teacher_is_an_error_that_says_what_to_set(experiment: Experiment) -> None:
    with pytest.raises(SettingsError, match=r"map_teachers names none.*\[0, 1, 2\]"):
        train(experiment.changed(map_teachers=[]), ROLE)
    with pytest.raises(SettingsError, match=r"'map_student' .* early_stopping_on to validation"):
        train(experiment.changed(early_stopping_on="test", mask_source="boxes"), ROLE)


# --- no box -----------------------------------------------------------------------------------------------------------


class Bare(Experiment):
    """The same radiographs without any box."""

    def _read(self, splits: tuple[str, ...]) -> list[Radiograph]:
        return [replace(one, boxes=np.zeros((0, 4)), categories=()) for one in super()._read(splits)]


def test_no_box_of_the_dataset_is_read(experiment: Experiment, student: TrainedNetwork, tmp_path: Path) -> None:
    bare = Bare(experiment.recipe, tmp_path, experiment.root)
    assert sum(map(len, experiment.full_train.boxes)) > 0 == sum(map(len, bare.full_train.boxes))
    again = train(bare, ROLE)
    pd.testing.assert_frame_equal(TbMasks(bare).rows, TbMasks(experiment).rows)
    for name in ("best.safetensors", "last.safetensors", "history.csv"):
        assert file_sha256(again.run.file(name)) == file_sha256(student.run.file(name)), name
    image = experiment.root / "imgs" / experiment.test.names[-1]
    (one,), (other,) = (locate(image, load_trained(network.run.path, "smoke")).findings for network in (student, again))
    assert np.array_equal(one.boxes, other.boxes)


# --- the student ------------------------------------------------------------------------------------------------------


def test_it_has_settings_of_its_own_and_its_teachers_keep_theirs(
    experiment: Experiment, student: TrainedNetwork
) -> None:
    recipe = student.recipe
    assert (recipe.pixels.crop, recipe.training.epochs) == (80, 1)
    assert (experiment.recipe.pixels.crop, student.network_name) == (64, "efficientnet_lite0_fpn")
    assert {"train_map", "train_label"} <= set(student.history)
    assert np.isfinite(student.history["validation_loss"]).all()
    teacher = train(experiment.changed(seed=0), "teacher")
    assert (teacher.network_name, teacher.recipe.pixels.crop) == ("efficientnet_lite0", 64)
    assert train(experiment.changed(threshold=0.4), ROLE).run.path == student.run.path
    assert train(experiment.changed(map_epochs=0, epochs=1), ROLE).run.path != student.run.path


def test_a_role_without_settings_of_its_own_is_what_it_was(smoke: Experiment) -> None:
    assert smoke.for_role("teacher") is smoke
    assert "targets" not in smoke.training_settings("student")
    assert smoke.recipe.differences("maps") == {}


def test_it_is_scored_at_its_own_scale_and_located_from_its_folder(
    experiment: Experiment, student: TrainedNetwork
) -> None:
    found = localization(experiment, student)
    assert found.maps.shape == (8, 10, 10)  # a map of 80 px at stride 8
    assert 0 <= found.maps.min() < found.maps.max() <= 1
    assert len(probabilities(experiment, student)) == len(experiment.test)
    again = load_trained(student.run.path)
    assert (again.role, again.recipe) == (ROLE, student.recipe)
    located = locate(experiment.root / "imgs", again)
    assert not located.failures
    assert located.min_area == 0
    of = {finding.name: finding for finding in located.findings}
    for place, name in enumerate(found.samples.names):
        back = found.samples.geometries[place].invert_boxes(found.boxes[place])
        np.testing.assert_allclose(of[name].boxes, back, atol=1e-3)
