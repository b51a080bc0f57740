"""Presets and grids: which networks there are, which are the same, and which settings make another one."""

from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.grid import all_variants, distinct, identity, within
from tbkd_utils.experiments.series import plan
from tbkd_utils.experiments.system import find_system, named_recipe
from tbkd_utils.models.networks import NETWORKS
from tbkd_utils.systems.pneumonia.grid import (
    GRIDS,
    arm_variants,
    division_variants,
    leak_variants,
    network_variants,
    seed_variants,
)
from tbkd_utils.systems.pneumonia.settings import PneumoniaRecipe

ARMS = ("none", "sampler", "alpha", "both")
WIDE = {"arms": ARMS, "seeds": (42, 0, 1), "division_seeds": (0, 1, 2, 3, 4), "leak_seeds": (0, 1, 2)}
WEIGHTS = {
    "resnet18": "imagenet1k_v1",
    "resnet50": "imagenet1k_v2",
    "densenet121": "imagenet1k_v1",
    "efficientnet_b0": "imagenet1k_v1",
    "mobilenet_v2": "imagenet1k_v2",
    "mobilenet_v3_large": "imagenet1k_v2",
    "vit_b_16": "imagenet1k_v1",
}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment.open("smoke", out=tmp_path_factory.mktemp("grid"), system="pneumonia")


@pytest.fixture
def paper() -> PneumoniaRecipe:
    return named_recipe("paper", "pneumonia")


# --- variants ---


def test_an_arm_differs_in_the_balance_alone(paper: PneumoniaRecipe) -> None:
    variants = arm_variants(paper)
    assert [(one.condition, one.value, one.recipe) for one in variants] == [
        (arm, 42, paper.changed(balance=arm)) for arm in ARMS
    ]
    assert [one.condition for one in arm_variants(paper.changed(arms=("alpha", "none")))] == ["alpha", "none"]


def test_seeds_keep_the_recipes_own_arm(paper: PneumoniaRecipe) -> None:
    variants = seed_variants(paper.changed(balance="alpha"))
    assert [(one.condition, one.value, one.recipe.training.seed) for one in variants] == [
        ("alpha", 42, 42), ("alpha", 0, 0), ("alpha", 1, 1)
    ]  # fmt: skip


def test_divisions_are_by_patient_also_where_the_recipes_own_is_not(paper: PneumoniaRecipe) -> None:
    data = [one.recipe.data for one in division_variants(paper)]
    assert [(one.division, one.division_seed) for one in data] == [("patients", seed) for seed in range(5)]
    assert [one.value for one in division_variants(paper)] == [0, 1, 2, 3, 4]


def test_leak_pairs_hold_the_same_files_under_the_same_seed(paper: PneumoniaRecipe) -> None:
    found = [(one.condition, one.value, one.recipe.data) for one in leak_variants(paper)]
    assert [(name, seed, data.division, data.division_seed) for name, seed, data in found] == [
        (f"by {division[:-1]}", seed, division, seed) for seed in range(3) for division in ("patients", "images")
    ]
    assert all(data.drop_duplicates for *_, data in found)


def test_every_network_starts_from_the_papers_weights(paper: PneumoniaRecipe) -> None:
    variants = network_variants(paper)
    assert {one.condition: one.recipe.training.weights for one in variants} == WEIGHTS
    assert [one.recipe.training.network for one in variants] == list(WEIGHTS)
    assert all(one.recipe.training.weights in NETWORKS[one.condition].pretrained for one in variants)
    assert {one.role for grid in GRIDS.values() for one in grid(paper)} == {"classifier"}


@pytest.mark.parametrize(
    ("recipe", "changes", "network"),
    [
        ("paper", {"network": "resnet50", "weights": "imagenet1k_v2", "compared_networks": ("resnet18",)}, "resnet18"),
        ("laptop", {"compared_networks": ("resnet50",)}, "resnet50"),
    ],
)
def test_compared_networks_start_from_the_papers_weights_beside_any_network(
    recipe: str, changes: dict[str, Any], network: str
) -> None:
    last = network_variants(named_recipe(recipe, "pneumonia", **changes))[-1]
    assert (last.condition, last.recipe.training.weights) == (network, WEIGHTS[network])


# --- what is trained once ---


def test_what_grids_share_is_trained_once(smoke: Experiment) -> None:
    wide = smoke.changed(**WIDE)
    assert {name: len(grid(wide.recipe)) for name, grid in GRIDS.items()} == {
        "arms": 4, "seeds": 3, "leak": 6, "divisions": 5, "networks": 1
    }  # fmt: skip
    # The recipe's own is an arm, a seed, a network, and the division by patient 0; three divisions are of leak pairs.
    assert len(all_variants(wide)) == 19 - 6
    own = [grid(wide.recipe) for grid in (seed_variants, leak_variants, division_variants, network_variants)]
    same = [arm_variants(wide.recipe)[-1], *(variants[0] for variants in own)]
    assert distinct(wide, same) == same[:1]


def test_the_papers_way_shares_less(smoke: Experiment, paper: PneumoniaRecipe) -> None:
    """Its own division is the source's; three divisions by patient are of leak pairs; seven networks are compared."""
    own = {"division": "source", "division_seed": 42, "drop_duplicates": False, "network": "resnet18"}
    compared = paper.comparisons.compared_networks
    way = smoke.changed(**WIDE, **own, weights="imagenet1k_v1", compared_networks=compared)
    assert len(all_variants(way)) == 4 + 2 + 6 + 2 + 6


def folder(experiment: Experiment) -> str:
    return experiment.run_at("classifier", experiment.training_settings("classifier")).path.name


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("balance", "none"), ("seed", 1), ("division", "images"), ("division_seed", 1), ("head", "linear"),
        ("focal_gamma", 0.0), ("noise_high", 0.3), ("early_stopping_metric", "accuracy"), ("network", "resnet18"),
        ("drop_last", False), ("train_share", 0.6), ("drop_duplicates", False), ("aspect", "keep"),
    ],
)  # fmt: skip
def test_what_a_network_learns_from_names_its_folder(smoke: Experiment, setting: str, value: Any) -> None:
    assert folder(smoke.changed(**{setting: value})) != folder(smoke)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("threshold", 0.3), ("boxes_data", str(Path.cwd())), ("arms", ("none",)), ("division_seeds", (9,)),
        ("leak_seeds", (9,)), ("compared_networks", ("resnet18",)), ("seeds", (7,)), ("cam_layer", "blocks"),
        ("resamples", 300), ("statistics_seed", 3), ("eval_batch_size", 2), ("cam_flip", True),
    ],
)  # fmt: skip
def test_what_is_looked_at_afterwards_renames_nothing(smoke: Experiment, setting: str, value: Any) -> None:
    assert folder(smoke.changed(**{setting: value})) == folder(smoke)


def test_variants_of_one_grid_have_folders_of_their_own(smoke: Experiment) -> None:
    wide = smoke.changed(**WIDE)
    for grid in GRIDS.values():
        names = [folder(within(wide, one)) for one in grid(wide.recipe)]
        assert len(set(names)) == len(names)
    assert len({identity(wide, one) for one in all_variants(wide)}) == 13


def test_the_series_trains_before_the_notebook_and_has_no_circle(smoke: Experiment) -> None:
    steps = plan(smoke)
    *trainings, notebook = steps
    assert notebook.name == "13_pneumonia"
    assert len(trainings) == len(all_variants(smoke)) - 1  # the notebook trains the recipe's own
    assert set(notebook.after) == {step.name for step in trainings}
    assert len(set(notebook.after)) == len(trainings)
    order = list(TopologicalSorter({step.name: step.after for step in steps}).static_order())
    assert order[-1] == notebook.name
    assert [step.name for step in plan(smoke, only=["13"])] == [step.name for step in steps]


# --- presets ---


@pytest.mark.parametrize("name", ["smoke", "demo", "laptop", "paper"])
def test_every_preset_builds_and_keeps_the_method(name: str) -> None:
    assert list(find_system("pneumonia").presets) == ["smoke", "demo", "laptop", "paper"]
    recipe = named_recipe(name, "pneumonia")
    assert isinstance(recipe, PneumoniaRecipe)
    common = {"head": "mlp", "balance": "both", "augmentation": "nine", "aspect": "squash", "focal_gamma": 2.0,
              "weight_decay": 1e-4, "early_stopping_on": "validation", "drop_last": True}  # fmt: skip
    assert {key: recipe.flat()[key] for key in common} == common
    assert recipe.training.patience == (recipe.training.epochs if name == "demo" else 3)


def test_the_laptops_recipe_is_the_honest_one_on_real_radiographs() -> None:
    flat = named_recipe("laptop", "pneumonia").flat()
    expected = {"resize": 224, "crop": 224, "aspect": "squash", "division": "patients", "drop_duplicates": True,
                "network": "efficientnet_lite0", "early_stopping_metric": "loss", "noise_low": 0.02, "noise_high": 0.08,
                "train_share": 0.7, "validation_share": 0.15, "synthetic_train": [], "epochs": 4}  # fmt: skip
    assert {key: flat[key] for key in expected} == expected


def test_the_papers_recipe_is_the_source() -> None:
    flat = named_recipe("paper", "pneumonia").flat()
    expected = {
        "division": "source", "division_seed": 42, "train_share": 0.7, "validation_share": 0.15, "seed": 42,
        "drop_duplicates": False, "resize": 224, "crop": 224, "aspect": "squash", "head": "mlp", "balance": "both",
        "focal_gamma": 2.0, "learning_rate": 1e-4, "weight_decay": 1e-4, "batch_size": 32, "epochs": 10, "patience": 3,
        "early_stopping_metric": "accuracy", "early_stopping_on": "validation", "keep": "best", "drop_last": True,
        "noise_low": 0.2, "noise_high": 0.44, "network": "resnet18", "weights": "imagenet1k_v1", "cam_relu": True,
        "train_splits": ["all"], "test_splits": ["all"], "precision": "32-true", "label_smoothing": 0.0,
        "normalization": "minmax", "cam_upsampling": "bilinear", "augmentation": "nine",
    }  # fmt: skip
    assert {key: flat[key] for key in expected} == expected
