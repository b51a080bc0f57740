"""Figures and tables as files: the same content gives the same bytes."""

import dataclasses
import io
from pathlib import Path

import matplotlib.pyplot
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from tbkd_utils.errors import TbkdError
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.views.save import save_figure, save_table


@pytest.fixture
def opened(tmp_path: Path):
    return lambda: Experiment.open("smoke", out=tmp_path / "out")


def drawn() -> Figure:
    figure = Figure(figsize=(3, 2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(np.arange(12).reshape(3, 4))
    right.plot([0, 1], [1, 0], label="a line")
    right.set_xlabel("across")
    figure.legend(loc="outside lower center")
    return figure


def test_the_same_figure_drawn_twice_gives_the_same_bytes(tmp_path: Path, opened) -> None:
    first, second = opened(), dataclasses.replace(opened(), out=tmp_path / "again")
    for experiment in (first, second):
        figure = drawn()
        assert save_figure(experiment, figure, "figure_0") is figure
    files = sorted(entry.name for entry in first.figures.iterdir())
    assert files == ["figure_0.png", "figure_0.svg"]
    for name in files:
        assert (first.figures / name).read_bytes() == (second.figures / name).read_bytes()
    assert (first.figures / "figure_0.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (first.figures / "figure_0.svg").read_bytes()
    assert matplotlib.pyplot.get_fignums() == []


def test_a_table_is_written_with_twelve_digits_and_rounded_for_reading(opened) -> None:
    experiment = opened()
    table = pd.DataFrame({
        "metric": ["score", "none of it"], "value": [1 / 3, float("nan")], "n": [8, 12], "note": ["a", None],
    })  # fmt: skip
    assert save_table(experiment, table, "table_0") is table
    text = (experiment.figures / "table_0.csv").read_text()
    assert text.splitlines()[0] == "metric,value,n,note"
    assert pd.read_csv(io.StringIO(text))["value"][0] == 0.333333333333  # 12 digits
    lines = (experiment.figures / "table_0.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["metric", "value", "n", "note"]
    assert cells[2:] == [["score", "0.3333", "8", "a"], ["none of it", "", "12", ""]]
    assert [cell.endswith(":") for cell in cells[1]] == [False, True, True, False]  # numbers stand right
    save_table(experiment, table, "table_0", digits=1)
    assert "| 0.3 |" in (experiment.figures / "table_0.md").read_text().replace("  ", "")


def test_what_would_round_to_nothing_is_shown_as_a_power_of_ten(opened) -> None:
    experiment = opened()
    save_table(experiment, pd.DataFrame({"residual": [0.0, 1.93e-6, -4e-5, 0.0004]}), "tiny")
    lines = (experiment.figures / "tiny.md").read_text().splitlines()[2:]
    assert [line.strip("| ") for line in lines] == ["0.0000", "2e-06", "-4e-05", "0.0004"]


def test_an_empty_table_is_written_with_its_columns(opened) -> None:
    experiment = opened()
    save_table(experiment, pd.DataFrame(columns=["network", "energy"]), "empty")
    assert (experiment.figures / "empty.csv").read_text() == "network,energy\n"
    assert "network" in (experiment.figures / "empty.md").read_text()


def test_figures_cannot_be_written_where_a_file_stands(opened) -> None:
    experiment = opened()
    experiment.figures.parent.mkdir(parents=True)
    experiment.figures.write_text("in the way")
    with pytest.raises(TbkdError, match="--out"):
        save_table(experiment, pd.DataFrame({"a": [1]}), "table")
