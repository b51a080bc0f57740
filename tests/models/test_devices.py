"""Where a network runs, and how its precision is chosen."""

import pandas as pd
import pytest
import torch

import tbkd_utils.models.fit as fitting
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.experiments.trained import train_teacher
from tbkd_utils.models.checkpoints import PROBE
from tbkd_utils.models.devices import CANDIDATES, compute_device, fastest_precision, probe_precision


@pytest.mark.parametrize(
    ("accelerator", "gpu", "device"),
    [
        ("auto", True, "cuda"),
        ("gpu", True, "cuda"),
        ("cpu", True, "cpu"),
        ("auto", False, "cpu"),
        ("mps", False, "mps"),
    ],
)
def test_the_accelerator_decides(monkeypatch, accelerator: str, gpu: bool, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert compute_device(Recipe.named("smoke", accelerator=accelerator)).type == device


@pytest.mark.parametrize(
    ("full", "narrow", "expected"),
    [(1.0, 2.0, "32-true"), (1.0, 1.0, "32-true"), (1.05, 1.0, "32-true"), (1.2, 1.0, "bf16-mixed")],
)
def test_the_narrower_format_must_win_clearly(full: float, narrow: float, expected: str) -> None:
    assert fastest_precision(pd.DataFrame({"precision": CANDIDATES, "seconds": [full, narrow]})) == expected


def test_the_probe_times_every_candidate_and_leaves_the_random_state() -> None:
    state = torch.random.get_rng_state()
    rows = probe_precision(Recipe.named("smoke"), rounds=2)
    assert rows["precision"].tolist() == list(CANDIDATES)
    assert (rows["seconds"] > 0).all()
    assert (rows["images_per_second"] * rows["seconds"]).tolist() == pytest.approx([16, 16])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.slow
def test_a_training_keeps_the_precision_that_it_measured(tmp_path, monkeypatch) -> None:
    measured = []

    def probe(recipe: Recipe) -> pd.DataFrame:
        measured.append(recipe)
        return pd.DataFrame({"precision": CANDIDATES, "seconds": [3.0, 1.0], "images_per_second": [1.0, 3.0]})

    monkeypatch.setattr(fitting, "probe_precision", probe)
    experiment = Experiment.open("smoke", out=tmp_path, overrides={"precision": "auto", "epochs": 1})
    trained = train_teacher(experiment)
    assert pd.read_csv(trained.run.file(PROBE))["seconds"].tolist() == [3.0, 1.0]
    assert train_teacher(experiment).run == trained.run
    assert len(measured) == 1
    wanted = train_teacher(Experiment.open("smoke", out=tmp_path, overrides={"precision": "bf16-mixed", "epochs": 1}))
    mine, theirs = trained.model().state_dict(), wanted.model().state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    plain = train_teacher(Experiment.open("smoke", out=tmp_path, overrides={"epochs": 1})).model().state_dict()
    assert not all(torch.equal(mine[key], plain[key]) for key in mine)
