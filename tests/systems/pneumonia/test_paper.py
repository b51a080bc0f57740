"""The paper's printed numbers, and when ours may stand beside them."""

from pathlib import Path
from typing import Any

import pytest

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.systems.pneumonia import paper as module
from tbkd_utils.systems.pneumonia.paper import comparability, published_table

COLUMNS = ("accuracy", "accuracy_low", "accuracy_high", "f1", "sensitivity", "specificity", "roc_auc", "pr_auc")
PRINTED = {
    "resnet18": (0.9812, 0.9702, 0.9883, 0.9873, 0.9895, 0.9578, 0.9971, 0.9990),
    "resnet50": (0.9647, 0.9506, 0.9749, 0.9760, 0.9746, 0.9367, 0.9952, 0.9983),
    "efficientnet_b0": (0.9790, 0.9675, 0.9865, 0.9858, 0.9836, 0.9662, 0.9971, 0.9989),
    "mobilenet_v2": (0.9713, 0.9583, 0.9803, 0.9805, 0.9791, 0.9494, 0.9946, 0.9980),
    "mobilenet_v3_large": (0.9735, 0.9609, 0.9821, 0.9819, 0.9746, 0.9705, 0.9971, 0.9990),
    "vit_b_16": (0.9735, 0.9609, 0.9821, 0.9820, 0.9806, 0.9536, 0.9947, 0.9981),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders of Kermany's set, as if they held the paper's radiographs."""
    monkeypatch.setattr(module, "counted", lambda experiment: {"test": ((237, 669), (237, 669))})
    for name in ("train/NORMAL", "train/PNEUMONIA"):
        (tmp_path / "chest_xray" / name).mkdir(parents=True)
    return tmp_path


def reasons(folder: Path, recipe: str = "paper", **overrides: Any) -> list[str]:
    return comparability(Experiment.open(recipe, folder, folder / "out", overrides, system="pneumonia"))


def test_the_published_table_is_the_one_that_is_printed() -> None:
    table = published_table().set_index("network")
    assert table.columns.tolist() == list(COLUMNS)
    assert table.round(4).T.to_dict("list") == {name: list(row) for name, row in PRINTED.items()}


def test_the_papers_recipe_on_real_radiographs_is_comparable(folder: Path) -> None:
    assert reasons(folder) == []
    assert reasons(folder, network="efficientnet_b0") == []
    assert reasons(folder, network="resnet50", weights="imagenet1k_v2") == []
    assert reasons(folder, seed=1, threads=2, threshold=0.3, boxes_data=str(folder), arms=["both"]) == []


def test_other_radiographs_are_not_the_papers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "counted", lambda experiment: {"test": ((236, 669), (237, 669))})
    assert reasons(folder) == ["the test set has 236 normal and 669 pneumonia, not 237 and 669"]


def test_drawings_are_never_comparable(folder: Path) -> None:
    drawn = ["the radiographs are drawings"]
    assert comparability(Experiment.open("smoke", out=folder, system="pneumonia")) == drawn
    (folder / "pneumonia.json").write_text("{}")
    assert reasons(folder) == drawn


@pytest.mark.parametrize("network", ["efficientnet_lite0", "densenet121"])
def test_a_network_without_a_number_in_the_paper_is_named(folder: Path, network: str) -> None:
    assert reasons(folder, network=network) == [f"the network is {network}, which the paper did not test"]


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("epochs", 3, "epochs is 3, not 10"),
        ("balance", "sampler", "balance is sampler, not both"),
        ("division", "patients", "division is patients, not source"),
        ("drop_duplicates", True, "drop_duplicates is True, not False"),
        ("focal_gamma", 0.0, "focal_gamma is 0.0, not 2.0"),
        ("aspect", "keep", "aspect is keep, not squash"),
        ("noise_low", 0.02, "noise_low is 0.02, not 0.2"),
        ("head", "linear", "head is linear, not mlp"),
        ("networks", {"classifier": "resnet34"}, "networks is {'classifier': 'resnet34'}, not {}"),
    ],
)
def test_another_setting_is_named_with_both_values(folder: Path, setting: str, value: Any, said: str) -> None:
    assert reasons(folder, **{setting: value}) == [f"settings differ from the paper's ({said})"]


def test_every_reason_is_given(folder: Path) -> None:
    network, settings = reasons(folder, "laptop")
    assert network == "the network is efficientnet_lite0, which the paper did not test"
    names = (
        "division",
        "division_seed",
        "drop_duplicates",
        "noise_low",
        "noise_high",
        "epochs",
        "early_stopping_metric",
    )
    for name in names:
        assert f"{name} is " in settings
    assert settings.count(" is ") == len(names)


def test_a_network_that_starts_from_chance_is_not_comparable(folder: Path) -> None:
    assert any("weights" in reason for reason in reasons(folder, weights="none"))
