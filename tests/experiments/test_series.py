"""The series through papermill, on two small notebooks written here; test_notebooks.py runs the real ones."""

import json
import re
import threading
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from PIL import Image

from tbkd_utils.data.synthetic.dataset import write_synthetic
from tbkd_utils.experiments.executors import local
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.notebooks import NotebookError, Outcome
from tbkd_utils.experiments.recipe import RecipeError
from tbkd_utils.experiments.series import keep_outputs, note_dataset, plan, reproduce, series
from tbkd_utils.experiments.status import status, summary

PARAMETERS = 'recipe = "demo"\ndata = None\nout = None\noverrides = {}\nfigures = None'
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


def states(outcomes: list[Outcome]) -> list[str]:
    return [outcome.state for outcome in outcomes]


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
    assert [re.sub(r" in \d+ s", "", line) for line in lines] == [
        "01_first: running", "01_first: done", "02_second: running", "02_second: done"
    ]  # fmt: skip
    assert states(first) == ["done", "done"]
    assert (experiment.figures / "seed.csv").read_text() == "seed\n3\n"
    executed = nbformat.read(first[1].path, as_version=4)
    assert executed.cells[-1].outputs[0].data["text/plain"] == "4.0"

    assert states(reproduce(experiment, notebooks)) == ["already done", "already done"]

    (experiment.figures / "seed.csv").unlink()  # a lost figure is made again
    assert states(reproduce(experiment, notebooks)) == ["done", "already done"]
    assert (experiment.figures / "seed.csv").exists()

    write_notebook(notebooks / "02_second.ipynb", "experiment.recipe.alpha")  # so is a notebook that was edited
    assert states(reproduce(experiment, notebooks)) == ["already done", "done"]

    other = Experiment.open("smoke", out=tmp_path / "out", overrides={"seed": 4, "temperature": 4})
    assert states(reproduce(other, notebooks)) == ["done", "done"]


@pytest.mark.slow
def test_a_failure_is_named_and_stops_only_what_needs_it(notebooks: Path, tmp_path: Path) -> None:
    write_notebook(notebooks / "01_first.ipynb", "1 + 1", "# a comment\nraise ValueError('this went wrong')")
    experiment = Experiment.open("smoke", out=tmp_path / "out")
    lines: list[str] = []
    with pytest.raises(NotebookError, match=r"01_first\.ipynb failed in cell 5.*ValueError: this went wrong") as caught:
        reproduce(experiment, notebooks, announce=lines.append)
    assert "1 of 2 notebooks failed, 1 that need them were not run" in str(caught.value)
    assert [line.split(":")[0] for line in lines] == ["01_first", "01_first", "02_second"]
    assert lines[-1] == "02_second: not run, since it needs 01_first"
    kept = Path(str(caught.value).rsplit(": ", 1)[1])
    assert "this went wrong" in kept.read_text()
    state = status(experiment, notebooks).set_index("step")
    assert list(state["state"]) == ["failed", "waiting"]
    assert "this went wrong" in state.loc["01_first", "note"]
    write_notebook(notebooks / "01_first.ipynb", "1 + 1")
    assert states(reproduce(experiment, notebooks)) == ["done", "done"]
    assert list(status(experiment, notebooks)["state"]) == ["done", "done"]
    assert summary(status(experiment, notebooks)).endswith("Nothing is left.")


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
    assert states(reproduce(experiment, notebooks)) == ["already done", "already done"]


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


# ------------------------------------------------------------------------------------------------------------- the grid


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Notebooks with the numbers of those that train: they write the settings of their network down instead."""
    folder = tmp_path / "grid"
    folder.mkdir()
    settings = (
        "import pandas as pd\n\n"
        'table = pd.DataFrame([experiment.recipe.part("training", "distillation")])\n'
        'experiment.save_table(table, "settings")'
    )
    failing = "if experiment.recipe.label_smoothing:\n    raise ValueError('no smoothing here')"
    write_notebook(folder / "02_teacher.ipynb", settings, failing)
    write_notebook(folder / "03_student.ipynb", settings)
    write_notebook(folder / "07_temperature.ipynb", "1 + 1")
    write_notebook(folder / "09_seed.ipynb", "1 + 1")
    return folder


def test_the_grid_stands_before_the_notebooks_that_gather_it(grid: Path, tmp_path: Path) -> None:
    experiment = Experiment.open("smoke", out=tmp_path / "out")
    steps = {step.name: step for step in plan(experiment, grid)}
    assert list(steps) == [
        "02_teacher", "03_student", "03_student (temperature=1.0)", "07_temperature", "02_teacher (seed=0)",
        "03_student (seed=0)", "02_teacher (seed=10000)", "02_teacher (seed=10042)",
        "02_teacher (seed=0, label_smoothing=0.1)", "02_teacher (label_smoothing=0.1)",
        "03_student (seed=0, teacher_trained=False)", "03_student (teacher_trained=False)", "09_seed",
    ]  # fmt: skip
    assert steps["03_student (seed=0)"].after == ("02_teacher (seed=0)",)
    assert steps["03_student (temperature=1.0)"].after == ("02_teacher",)
    assert steps["03_student (teacher_trained=False)"].after == ()
    assert set(steps["07_temperature"].after) == {"03_student", "03_student (temperature=1.0)"}
    assert len(steps["09_seed"].after) == 10
    assert len({step.run.path for step in steps.values()}) == len(steps)


def test_more_seeds_leave_the_finished_cells_as_they_are(grid: Path, tmp_path: Path) -> None:
    few = {step.name: step.run.path for step in plan(Experiment.open("smoke", out=tmp_path), grid)}
    more = Experiment.open("smoke", out=tmp_path, overrides={"seeds": [0, 42, 7], "temperatures": [1.0, 2.0, 9.0]})
    many = {step.name: step.run.path for step in plan(more, grid)}
    assert {name for name in few if few[name] != many[name]} == {"07_temperature", "09_seed"}
    assert "03_student (seed=7)" in many
    assert "03_student (temperature=9.0)" in many


@pytest.mark.slow
def test_a_failed_cell_lets_the_others_finish_and_the_next_call_runs_what_is_missing(
    grid: Path, tmp_path: Path
) -> None:
    experiment = Experiment.open("smoke", out=tmp_path / "out", overrides={"seeds": [42]})
    with local(2) as pool, pytest.raises(NotebookError, match="no smoothing here") as caught:
        reproduce(experiment, grid, pool, jobs=2)
    assert "1 of 8 notebooks failed, 1 that need them were not run" in str(caught.value)
    rows = status(experiment, grid).set_index("step")["state"]
    assert rows["02_teacher (label_smoothing=0.1)"] == "failed"
    assert rows["09_seed"] == "waiting"
    assert (rows.drop(["02_teacher (label_smoothing=0.1)", "09_seed"]) == "done").all()
    # A cell's figures and tables stay with its record: those of the series are its own.
    assert pd.read_csv(experiment.figures / "settings.csv")["temperature"].tolist() == [2.0]
    cell = next(step for step in plan(experiment, grid) if step.name == "03_student (temperature=1.0)")
    assert pd.read_csv(cell.run.file("figures") / "settings.csv")["temperature"].tolist() == [1.0]

    source = nbformat.read(grid / "02_teacher.ipynb", as_version=4)
    write_notebook(grid / "02_teacher.ipynb", source.cells[2].source)
    outcomes = {outcome.name: outcome.state for outcome in reproduce(experiment, grid)}
    changed = {"02_teacher", "02_teacher (seed=10042)", "02_teacher (label_smoothing=0.1)", "09_seed"}
    assert {name for name, state in outcomes.items() if state == "done"} == changed


@pytest.mark.slow
def test_two_runs_of_the_same_grid_at_once_do_each_step_once(grid: Path, tmp_path: Path) -> None:
    write_notebook(grid / "02_teacher.ipynb", "1 + 1")
    experiment = Experiment.open("smoke", out=tmp_path / "out", overrides={"seeds": [42]})
    experiment.fingerprint  # noqa: B018 - read before the threads share it
    found: list[list[Outcome]] = []
    threads = [threading.Thread(target=lambda: found.append(reproduce(experiment, grid))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for first, second in zip(*found, strict=True):
        assert sorted([first.state, second.state]) == ["already done", "done"], first.name
        assert first.path == second.path


def test_radiographs_that_changed_under_the_same_name_are_said(tmp_path: Path) -> None:
    data = tmp_path / "TBX11K"
    overrides = {"train_splits": ["train"], "test_splits": ["val"]}
    write_synthetic(data, train=(2, 2, 4), val=(2, 2, 4), size=96, token_rate=0.9, seed=0)
    lines: list[str] = []
    note_dataset(Experiment.open("smoke", data, tmp_path / "out", overrides), lines.append)
    note_dataset(Experiment.open("smoke", data, tmp_path / "out", overrides), lines.append)
    assert lines == []
    picture = next((data / "imgs" / "tb").glob("*.png"))
    Image.new("L", (96, 96), 7).save(picture)
    note_dataset(Experiment.open("smoke", data, tmp_path / "out", overrides), lines.append)
    assert len(lines) == 1
    assert f"The radiographs of {data} changed since the last run" in lines[0]
