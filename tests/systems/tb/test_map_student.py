"""The student of maps: what its masks are made from, that no box is among it, and that it trains and locates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from power_cut import cut_in_second_epoch

from tbkd_utils.data.cache import FilledBoxes
from tbkd_utils.data.records import Radiograph
from tbkd_utils.data.transforms import standardize
from tbkd_utils.errors import SettingsError
from tbkd_utils.experiments.evaluation import localization, probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.predict import locate
from tbkd_utils.experiments.system import named_recipe
from tbkd_utils.experiments.trained import TrainedNetwork, load_trained, train
from tbkd_utils.localization.boxes import boxes_from_json
from tbkd_utils.localization.heatmaps import compute_heatmaps, own_map
from tbkd_utils.localization.lungs import Lungs, lungs_of
from tbkd_utils.models.losses import build_loss
from tbkd_utils.models.networks import build_network, find_network
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
    return lungs_of([mask & (np.arange(100) < 50), mask & (np.arange(100) >= 50)], 1.0)


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


def test_an_interrupted_training_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With masks, frozen stages and a schedule, stopped in the middle of the second epoch."""
    how = {"map_epochs": 2, "mask_source": "lungs", "batch_size": 8}
    whole, cut = (Experiment.open("maps_smoke", out=tmp_path / name, overrides=how) for name in ("whole", "cut"))
    cut_in_second_epoch(monkeypatch, lambda: train(cut, ROLE))
    first, second = (train(one, ROLE) for one in (whole, cut))
    for name in ("best.safetensors", "last.safetensors", "history.csv"):
        assert file_sha256(first.run.file(name)) == file_sha256(second.run.file(name)), name


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_the_recipe_of_maps_reads_no_box_and_chooses_no_epoch() -> None:
    for name in ("maps", "maps_smoke"):
        recipe = named_recipe(name)
        assert (recipe.scores.min_area, recipe.training.keep) == ("share", "last")
        assert recipe.training.early_stopping_on == "validation"
        assert recipe.maps.mask_source == "maps"
        assert recipe.maps.anatomy == 0
        assert len(recipe.maps.map_teachers) > 1


def test_the_small_recipe_of_maps_trains_under_all_of_its_settings(tmp_path: Path) -> None:
    small = Experiment.open("maps_smoke", out=tmp_path)
    found = localization(small, train(small, ROLE))
    assert found.maps.shape == (8, 12, 12)  # 96 px at stride 8, averaged with 80 px
    assert found.min_area == pytest.approx(0.01 * 96**2)  # a hundredth of the image
    roles = sorted(path.parent.name.rpartition("-")[0] for path in small.runs.glob("*/last.safetensors"))
    assert roles == [ROLE, "teacher", "teacher"]


# --- what it learns ---------------------------------------------------------------------------------------------------


def test_a_map_learns_where_a_bright_square_is() -> None:
    """Noise-free squares with their masks: after a few steps the map is higher inside than anywhere else."""
    rng, model = np.random.default_rng(0), build_network("efficientnet_lite0_fpn", 2, "imagenet", 0).train()
    loss = build_loss("map", {"label_weight": 0.1})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def drawn(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        masks = np.zeros((count, 64, 64), np.uint8)
        for mask, (row, column) in zip(masks, rng.integers(0, 6, (count, 2)), strict=True):
            mask[8 * row : 8 * row + 16, 8 * column : 8 * column + 16] = 1
        return standardize(torch.from_numpy(60 + 120 * masks)), torch.from_numpy(masks)

    for _ in range(25):
        images, masks = drawn(16)
        terms = loss(model(images), {"targets": torch.ones(16, dtype=torch.int64), "masks": masks}, None)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    images, masks = drawn(40)
    maps = compute_heatmaps(model, images, own_map(find_network("efficientnet_lite0_fpn")))
    centers = [tuple(8 * index + 4 for index in np.unravel_index(one.argmax(), one.shape)) for one in maps]
    hits = [int(mask[center]) for mask, center in zip(masks, centers, strict=True)]
    assert np.mean(hits) > 0.8  # chance is 1 / 16
