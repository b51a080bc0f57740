"""The grid: which networks it holds, which are the same, and that a control differs in one thing alone."""

import pytest
import torch

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.grid import (
    ARMS,
    CONTROLS,
    all_cells,
    alpha_cells,
    control_cells,
    distinct,
    seed_cells,
    temperature_cells,
)
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.runs import read_tensors


def test_the_papers_grid_is_28_networks() -> None:
    recipe = Recipe()
    assert [len(cells(recipe)) for cells in (temperature_cells, alpha_cells, seed_cells, control_cells)] == [
        5,
        5,
        8,
        12,
    ]
    assert len(all_cells(recipe)) == 28  # 30 cells, of which T = 2 and alpha = 0.75 are the student of seed 42
    assert {cell.arm for cell in all_cells(recipe)} == set(ARMS)


def test_the_same_network_is_one_cell() -> None:
    recipe = Recipe()
    student = next(cell for cell in seed_cells(recipe) if (cell.arm, cell.value) == ("student", 42))
    at_2 = next(cell for cell in temperature_cells(recipe) if cell.value == 2)
    at_75 = next(cell for cell in alpha_cells(recipe) if cell.value == 0.75)
    assert student.identity == at_2.identity == at_75.identity
    assert distinct([student, at_2, at_75]) == [student]
    # A teacher does not depend on what its students learn.
    hot = seed_cells(recipe.changed(temperature=4.0))
    assert [cell.identity for cell in hot[:4]] == [cell.identity for cell in seed_cells(recipe)[:4]]
    assert hot[4].identity != seed_cells(recipe)[4].identity


@pytest.mark.parametrize("arm", CONTROLS)
def test_a_control_differs_in_one_thing_and_keeps_the_budget(arm: str) -> None:
    recipe = Recipe()
    differs = {"second teacher": "seed", "label smoothing": "label_smoothing"}.get(arm, "teacher_trained")
    for cell in control_cells(recipe):
        if cell.arm == arm:
            ours = cell.recipe.part("data", "pixels", "training", "distillation")
            paper = recipe.changed(seed=int(cell.value)).part("data", "pixels", "training", "distillation")
            assert {key for key in ours if ours[key] != paper[key]} == {differs}


@pytest.mark.slow
def test_label_smoothing_and_an_untrained_teacher_train_other_networks(smoke: Experiment) -> None:
    trained = {}
    for cell in [*seed_cells(smoke.recipe), *control_cells(smoke.recipe)]:
        if cell.value == 42:
            network = cell.train(smoke)
            assert network.role == cell.role
            trained[cell.arm] = read_tensors(network.run.file("last.safetensors"))
    assert set(trained) == set(ARMS)
    arms = list(trained)
    for number, first in enumerate(arms):
        for second in arms[:number]:
            assert any(not torch.equal(trained[first][key], trained[second][key]) for key in trained[first])


def test_an_untrained_teachers_student_trains_no_teacher(tmp_path) -> None:
    experiment = Experiment.open("smoke", out=tmp_path, overrides={"teacher_trained": False, "epochs": 1})
    cell = seed_cells(experiment.recipe)[-1]
    assert cell.role == "student"
    cell.train(experiment)
    assert not list(experiment.runs.glob("teacher-*"))
