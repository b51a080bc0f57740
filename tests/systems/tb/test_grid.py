"""The grid: which networks it holds, which are the same, and that a control differs in one thing alone."""

import itertools

import pytest
import torch

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.grid import distinct, identity, train_variant
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.runs import read_tensors
from tbkd_utils.systems.tb.grid import CONDITIONS, CONTROLS, GRIDS, alpha_variants, control_variants, seed_variants
from tbkd_utils.systems.tb.grid import temperature_variants as temperatures


@pytest.fixture
def wide(smoke: Experiment) -> Experiment:
    """The smoke experiment with the paper's grid; nothing of it is trained."""
    return smoke.changed(**Recipe().flat("ablation"))


def test_the_papers_grid_is_28_networks(wide: Experiment) -> None:
    grids = {name: grid(wide.recipe) for name, grid in GRIDS.items() if name != "beyond"}  # that one is no paper's
    assert {name: len(grid) for name, grid in grids.items()} == {
        "seeds": 8, "controls": 12, "temperature": 5, "alpha": 5
    }  # fmt: skip
    variants = distinct(wide, itertools.chain(*grids.values()))
    assert len(variants) == 28  # of 30, since T = 2 and alpha = 0.75 are the student of seed 42
    assert {variant.condition for variant in variants} == set(CONDITIONS)


def test_the_same_network_is_one_variant(wide: Experiment) -> None:
    recipe = wide.recipe
    student = next(v for v in seed_variants(recipe) if (v.condition, v.value) == ("student", 42))
    at_2 = next(v for v in temperatures(recipe) if v.value == 2)
    at_75 = next(v for v in alpha_variants(recipe) if v.value == 0.75)
    assert identity(wide, student) == identity(wide, at_2) == identity(wide, at_75)
    assert distinct(wide, [student, at_2, at_75]) == [student]
    # A teacher does not depend on what its students learn.
    hot, plain = seed_variants(recipe.changed(temperature=4.0)), seed_variants(recipe)
    assert [identity(wide, v) for v in hot[:4]] == [identity(wide, v) for v in plain[:4]]
    assert identity(wide, hot[4]) != identity(wide, plain[4])


@pytest.mark.parametrize("condition", CONTROLS)
def test_a_control_differs_in_one_thing_and_keeps_the_budget(condition: str) -> None:
    recipe, groups = Recipe(), ("data", "pixels", "training", "distillation")
    differs = {"second teacher": "seed", "label smoothing": "label_smoothing"}.get(condition, "teacher_trained")
    for variant in control_variants(recipe):
        if variant.condition == condition:
            ours, paper = variant.recipe.flat(*groups), recipe.changed(seed=int(variant.value)).flat(*groups)
            assert {key for key in ours if ours[key] != paper[key]} == {differs}


@pytest.mark.slow
def test_label_smoothing_and_an_untrained_teacher_train_other_networks(smoke: Experiment) -> None:
    trained = {}
    for variant in [*seed_variants(smoke.recipe), *control_variants(smoke.recipe)]:
        if variant.value == 42:
            network = train_variant(smoke, variant)
            assert network.role == variant.role
            trained[variant.condition] = read_tensors(network.run.file("last.safetensors"))
    assert set(trained) == set(CONDITIONS)
    conditions = list(trained)
    for number, first in enumerate(conditions):
        for second in conditions[:number]:
            assert any(not torch.equal(trained[first][key], trained[second][key]) for key in trained[first])


def test_an_untrained_teachers_student_trains_no_teacher(tmp_path) -> None:
    experiment = Experiment.open("smoke", out=tmp_path, overrides={"teacher_trained": False, "epochs": 1})
    variant = seed_variants(experiment.recipe)[-1]
    assert variant.role == "student"
    train_variant(experiment, variant)
    assert not list(experiment.runs.glob("teacher-*"))
