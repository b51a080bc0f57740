"""What the solutions of the exercises compute, against cases whose answer is known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tbkd_utils.experiments.evaluation import localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.sources import WITH, sources_of
from tbkd_utils.experiments.trained import train
from tbkd_utils.systems.tb import exercises
from tbkd_utils.systems.tb.exercises import (
    by_lesion_size,
    gray_areas,
    lung_check,
    quadratic_check,
    source_told,
    split_halves,
)


def boxed(widths: list[int], scores: list[float]) -> SimpleNamespace:
    boxes = [np.array([[0, 0, 1, 1], [0, 0, width, 10]], np.float32) for width in widths]
    samples = SimpleNamespace(pixels=np.zeros((len(widths), 100, 100)), boxes=boxes)
    return SimpleNamespace(samples=samples, rows=pd.DataFrame({"score": scores}))


def test_radiographs_are_grouped_by_their_largest_lesion() -> None:
    one = boxed([50, 10, 40, 20], [0.5, 0.1, 0.4, 0.2])
    table = by_lesion_size({"teacher": one, "student": one}, groups=2)  # type: ignore[dict-item]
    assert list(table["network"]) == ["teacher", "teacher", "student", "student"]
    assert list(table["largest"][:2]) == pytest.approx([0.015, 0.045])
    assert list(table["score"][:2]) == pytest.approx([0.15, 0.45])
    assert list(table["radiographs"]) == [2] * 4


def test_real_radiographs_are_grouped(smoke: Experiment) -> None:
    found = {
        "teacher": localization(smoke, train(smoke, "teacher")),
        "student": localization(smoke, train(smoke, "student")),
    }
    table = by_lesion_size(found)
    assert table.groupby("network")["radiographs"].sum().tolist() == [8, 8]
    weighted = (table["score"] * table["radiographs"])[table["network"] == "student"].sum() / 8
    assert weighted == pytest.approx(found["student"].rows["score"].mean())


def located(scores: np.ndarray) -> dict:
    """One network per column, with these scores of the radiographs."""
    names = [f"{number}.png" for number in range(len(scores))]
    return {
        float(value): SimpleNamespace(rows=pd.DataFrame({"name": names, "score": column}))
        for value, column in enumerate(scores.T)
    }


def test_a_real_lead_survives_the_other_half() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, (40, 3))
    table = split_halves(located(noise + np.array([0, 0, 0.3])), draws=50)
    assert list(table["value"]) == [0, 1, 2]
    assert list(table["chosen"]) == [0, 0, 1]
    assert table["other_half"][2] == pytest.approx(0.2, abs=0.01)
    assert np.isnan(table["own_half"][0])


def test_luck_does_not_survive_the_other_half() -> None:
    table = split_halves(located(np.random.default_rng(1).normal(0, 1, (60, 4))))
    mean = (table["chosen"] * table[["own_half", "other_half"]].T).T.sum()
    assert mean["own_half"] > 0.1
    assert mean["other_half"] < mean["own_half"] / 2
    assert table["chosen"].sum() == pytest.approx(1)


@pytest.mark.parametrize("images", [0, 1])
def test_too_few_radiographs_have_no_halves(images: int) -> None:
    table = split_halves(located(np.zeros((images, 2))))
    assert table[["chosen", "own_half", "other_half"]].isna().all(axis=None)


def test_a_quadratic_loss_rises_as_its_eigenvalue_says(smoke: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """One linear layer under half its squared output: the Hessian is the identity times the input's square."""
    model = nn.Linear(1, 1, bias=False).double()
    batches = [(torch.full((2, 1), 3.0, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))]
    monkeypatch.setattr(exercises, "hessian_batches", lambda experiment, count: batches)
    monkeypatch.setattr(exercises.F, "cross_entropy", lambda outputs, targets: (outputs**2).mean() / 2)
    spectrum = SimpleNamespace(eigenvalues=np.array([9.0]), eigenvectors=np.ones((1, 1)))
    table = quadratic_check(smoke, SimpleNamespace(model=lambda: model), spectrum, [0.1, 1.0])  # type: ignore[arg-type]
    np.testing.assert_allclose(table["measured"], table["expected"])
    np.testing.assert_allclose(table["expected"], [0.045, 4.5])


def test_the_paint_and_the_lungs_are_checked(tmp_path_factory: pytest.TempPathFactory) -> None:
    drawn = {"synthetic_size": 160, "resize": 146, "crop": 128, "resamples": 100}
    experiment = Experiment.open("smoke", out=tmp_path_factory.mktemp("lungs"), overrides=drawn)
    check = lung_check(experiment).set_index("measure")
    assert check.loc["Dice", "mean"] > 0.8
    assert check.loc["lungs covered", "mean"] > check.loc["Dice", "mean"]  # the paint has a margin
    assert check["n"].to_dict() == {"Dice": 16, "lungs covered": 16, "lesions covered": 8, "lungs found": 16}
    assert list(gray_areas(experiment)["gray"]) == ["of the lungs", "of what stays"]


def test_a_network_that_says_where_the_marker_is_tells_the_source(smoke: Experiment) -> None:
    source = sources_of(smoke, smoke.test)
    rows = pd.DataFrame({"painted": "lungs", "name": smoke.test.names, "label": 0})
    rows["probability"] = np.where(source == WITH, 0.9, 0.2)
    told = source_told(smoke, {"teacher": rows}).iloc[0]
    assert (told["source"], told["auc"], told["n"]) == (WITH, 1.0, 16)
