"""The series through papermill, on two small notebooks written here; test_notebooks.py runs the real ones."""

import json
from pathlib import Path

import nbformat
import pytest

from tbkd_utils.experiment import Experiment
from tbkd_utils.recipe import RecipeError
from tbkd_utils.reproduce import NotebookError, keep_outputs, reproduce, series

PARAMETERS = 'recipe = "demo"\ndata = None\nout = None\noverrides = {}'
OPEN = "from tbkd_utils.notebook import experiment_from\n\nexperiment = experiment_from(globals())"


def write_notebook(path: Path, *sources: str) -> None:
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in (OPEN, *sources)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata=metadata)))


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    table = 'import pandas as pd\n\nexperiment.save_table(pd.DataFrame({"seed": [experiment.recipe.seed]}), "seed")'
    write_notebook(folder / "01_first.ipynb", table)
    write_notebook(folder / "02_second.ipynb", "experiment.recipe.temperature")
    (folder / "notes.ipynb").write_text("not part of the series")
    return folder


def test_the_series_is_in_order(notebooks: Path) -> None:
    assert [path.stem for path in series(notebooks)] == ["01_first", "02_second"]
    assert series()[0].stem == "01_data_preparation"
    with pytest.raises(NotebookError, match="there are no notebooks here"):
        series(notebooks / "nowhere")


@pytest.mark.slow
def test_what_is_done_is_skipped_and_what_changed_is_run(notebooks: Path, tmp_path: Path) -> None:
    experiment = Experiment.open("smoke", out=tmp_path / "out", overrides={"seed": 3, "temperature": 4})
    lines: list[str] = []
    first = reproduce(experiment, notebooks, announce=lines.append)
    assert lines == ["01_first: running", "01_first: done", "02_second: running", "02_second: done"]
    assert [entry.skipped for entry in first] == [False, False]
    assert (experiment.figures / "seed.csv").read_text() == "seed\n3\n"
    executed = nbformat.read(first[1].path, as_version=4)
    assert executed.cells[-1].outputs[0].data["text/plain"] == "4.0"

    assert [entry.skipped for entry in reproduce(experiment, notebooks)] == [True, True]

    (experiment.figures / "seed.csv").unlink()  # a lost figure is made again
    assert [entry.skipped for entry in reproduce(experiment, notebooks)] == [False, True]
    assert (experiment.figures / "seed.csv").exists()

    write_notebook(notebooks / "02_second.ipynb", "experiment.recipe.alpha")  # so is a notebook that was edited
    assert [entry.skipped for entry in reproduce(experiment, notebooks)] == [True, False]

    other = Experiment.open("smoke", out=tmp_path / "out", overrides={"seed": 4, "temperature": 4})
    assert [entry.skipped for entry in reproduce(other, notebooks)] == [False, False]


@pytest.mark.slow
def test_the_first_failure_stops_the_series_and_is_named(notebooks: Path, tmp_path: Path) -> None:
    write_notebook(notebooks / "01_first.ipynb", "1 + 1", "# a comment\nraise ValueError('this went wrong')")
    experiment = Experiment.open("smoke", out=tmp_path / "out")
    lines: list[str] = []
    with pytest.raises(NotebookError, match=r"01_first\.ipynb failed in cell 5.*ValueError: this went wrong") as caught:
        reproduce(experiment, notebooks, announce=lines.append)
    assert lines == ["01_first: running"]
    kept = Path(str(caught.value).rsplit(": ", 1)[1])
    assert "this went wrong" in kept.read_text()
    write_notebook(notebooks / "01_first.ipynb", "1 + 1")
    assert [entry.skipped for entry in reproduce(experiment, notebooks)] == [False, False]


@pytest.mark.slow
def test_outputs_can_be_kept_in_the_notebooks(notebooks: Path, tmp_path: Path) -> None:
    experiment = Experiment.open("smoke", out=tmp_path / "out")
    keep_outputs(reproduce(experiment, notebooks), notebooks)
    kept = nbformat.read(notebooks / "02_second.ipynb", as_version=4)
    assert [cell.source for cell in kept.cells] == [PARAMETERS, OPEN, "experiment.recipe.temperature"]
    assert [cell.execution_count for cell in kept.cells] == [1, 2, 3]
    assert kept.cells[-1].outputs[0].data["text/plain"] == "2.0"
    assert "papermill" not in json.dumps(kept.metadata)
    # Keeping the outputs is no edit: the next call finds everything done.
    assert [entry.skipped for entry in reproduce(experiment, notebooks)] == [True, True]


@pytest.mark.slow
def test_a_parameter_that_does_not_exist_stops_a_notebook(notebooks: Path, tmp_path: Path) -> None:
    """Papermill itself only warns of it."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    with pytest.raises(PapermillExecutionError, match="no parameter 'temprature'"):
        papermill.execute_notebook(
            notebooks / "01_first.ipynb", tmp_path / "x.ipynb", {"temprature": 3}, progress_bar=False
        )


def test_a_setting_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'temperature'"):
        Experiment.open("smoke", out=tmp_path, overrides={"temprature": 3})
