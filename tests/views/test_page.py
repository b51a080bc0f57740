"""The report's page: it speaks of the system that it is about."""

import re
from pathlib import Path

import pandas as pd
import pytest
from untrained import untrained

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.views.page import write_page

TUBERCULOSIS = re.compile(r"\bTB\b|TBX|tubercul", re.IGNORECASE)


def page(experiment: Experiment, verdicts: pd.DataFrame) -> str:
    path = write_page(experiment, verdicts, "- one\n- two", ["the radiographs are drawings"])
    assert path == experiment.runs / "report.html"
    return path.read_text()


@pytest.fixture
def pneumonia(tmp_path: Path) -> Experiment:
    return Experiment.open("smoke", out=tmp_path, system="pneumonia")


def test_another_systems_page_has_no_word_of_tuberculosis(pneumonia: Experiment) -> None:
    text = page(pneumonia, pd.DataFrame(columns=["claim", "verdict"]))
    assert "<h1>Pneumonia localization: the paper beside this run</h1>" in text
    assert "Recipe <b>smoke</b>, network efficientnet_lite0, seed 42,\n64 px." in text
    assert pneumonia.fingerprint in text
    assert "<li>the radiographs are drawings</li>" in text
    settings = re.search(r"<summary>Every setting.*?</details>", text, re.DOTALL)
    assert settings is not None
    assert TUBERCULOSIS.search(text.replace(settings[0], "")) is None
    assert "focal_gamma" in settings[0]


def test_finished_trainings_are_timed_without_notebooks(
    pneumonia: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tbkd_utils.experiments.series.notebook_folder", lambda: tmp_path)
    untrained(pneumonia, "classifier")
    times = page(pneumonia, pd.DataFrame()).partition("Time per step")[2]
    assert "<td>classifier</td>" not in times  # no training left its seconds
    run = pneumonia.run_at("classifier", pneumonia.training_settings("classifier"))
    run.file("environment.json").write_text('{"seconds": 12.5}')
    times = page(pneumonia, pd.DataFrame()).partition("Time per step")[2]
    assert re.search(r"<td>classifier</td>\s*<td>12.5</td>\s*<td>12.5</td>", times)


def test_the_first_systems_page_keeps_its_title(tmp_path: Path) -> None:
    experiment = Experiment.open("smoke", out=tmp_path)
    text = page(experiment, pd.DataFrame(columns=["claim", "verdict"]))
    assert "<h1>Tuberculosis localization by distillation: the paper beside this run</h1>" in text
    assert f"network {experiment.recipe.training.network}, seed 42,\n64 px. Dataset fingerprint" in text
