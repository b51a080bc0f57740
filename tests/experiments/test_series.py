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
from tbkd_utils.errors import ModelError, NotebookError, SettingsError
from tbkd_utils.experiments import trained
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.notebooks import Outcome
from tbkd_utils.experiments.series import find_notebooks, keep_outputs, note_dataset, plan, reproduce
from tbkd_utils.experiments.status import step_states, summary

PARAMETERS = 'recipe = "demo"\ndata = None\nout = None\noverrides = {}\nfigures = None'
OPEN = (
    "from tbkd_utils.experiments import experiment_from\nfrom tbkd_utils.views import save_table\n\n"
    "experiment = experiment_from(globals())"
)


def write_notebook(path: Path, *sources: str, **said: object) -> None:
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in (OPEN, *sources)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}, "tbkd": said}
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata=metadata)))


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    table = (
        "import pandas as pd\n\n"
        'save_table(experiment, pd.DataFrame({"seed": [experiment.recipe.training.seed]}), "seed")'
    )
    write_notebook(folder / "01_first.ipynb", table, trains="teacher")
    write_notebook(folder / "02_second.ipynb", "experiment.recipe.distillation.temperature", needs=["teacher"])
    (folder / "notes.ipynb").write_text("not part of the series")
    return folder


def states(outcomes: list[Outcome]) -> list[str]:
    return [outcome.state for outcome in outcomes]


def test_the_series_is_in_order(notebooks: Path) -> None:
    assert [path.stem for path in find_notebooks(notebooks)] == ["01_first", "02_second"]
    assert find_notebooks()[0].stem == "01_data_preparation"
    with pytest.raises(NotebookError, match="there are no notebooks of the system 'tb' here"):
        find_notebooks(notebooks / "nowhere")


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

    # So is a notebook that was edited.
    write_notebook(notebooks / "02_second.ipynb", "experiment.recipe.distillation.alpha", needs=["teacher"])
    assert states(reproduce(experiment, notebooks)) == ["already done", "done"]

    other = Experiment.open("smoke", out=tmp_path / "out", overrides={"seed": 4, "temperature": 4})
    assert states(reproduce(other, notebooks)) == ["done", "done"]


@pytest.mark.slow
def test_a_failure_is_named_and_stops_only_what_needs_it(notebooks: Path, tmp_path: Path) -> None:
    write_notebook(
        notebooks / "01_first.ipynb", "1 + 1", "# a comment\nraise ValueError('this went wrong')", trains="teacher"
    )
    experiment = Experiment.open("smoke", out=tmp_path / "out")
    lines: list[str] = []
    with pytest.raises(NotebookError, match=r"01_first\.ipynb failed in cell 5.*ValueError: this went wrong") as caught:
        reproduce(experiment, notebooks, announce=lines.append)
    assert "1 of 2 steps failed, 1 that need them were not run" in str(caught.value)
    assert [line.split(":")[0] for line in lines] == ["01_first", "01_first", "02_second"]
    assert lines[-1] == "02_second: not run, since it needs 01_first"
    kept = Path(str(caught.value).rsplit(": ", 1)[1])
    assert "this went wrong" in kept.read_text()
    state = step_states(experiment, notebooks).set_index("step")
    assert list(state["state"]) == ["failed", "waiting"]
    assert "this went wrong" in state.loc["01_first", "note"]
    write_notebook(notebooks / "01_first.ipynb", "1 + 1", trains="teacher")
    assert states(reproduce(experiment, notebooks)) == ["done", "done"]
    assert list(step_states(experiment, notebooks)["state"]) == ["done", "done"]
    assert summary(step_states(experiment, notebooks)).endswith("Nothing is left.")


@pytest.mark.slow
def test_outputs_can_be_kept_in_the_notebooks(notebooks: Path, tmp_path: Path) -> None:
    experiment = Experiment.open("smoke", out=tmp_path / "out")
    keep_outputs(reproduce(experiment, notebooks), notebooks)
    kept = nbformat.read(notebooks / "02_second.ipynb", as_version=4)
    assert [cell.source for cell in kept.cells] == [PARAMETERS, OPEN, "experiment.recipe.distillation.temperature"]
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


def test_notebooks_that_need_each_other_are_refused(notebooks: Path, tmp_path: Path) -> None:
    write_notebook(notebooks / "01_first.ipynb", "1 + 1", trains="teacher", needs=["student"])
    write_notebook(notebooks / "02_second.ipynb", "1 + 1", trains="student", needs=["teacher"])
    with pytest.raises(NotebookError, match=r"in a circle: 0[12]_.* needs 0[12]_"):
        reproduce(Experiment.open("smoke", out=tmp_path / "out"), notebooks)


def test_a_setting_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Did you mean 'temperature'"):
        Experiment.open("smoke", out=tmp_path, overrides={"temprature": 3})


# ------------------------------------------------------------------------------------------------------------- the grid


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Notebooks that say what they train and gather, and do nothing themselves."""
    folder = tmp_path / "grid"
    folder.mkdir()
    write_notebook(folder / "02_teacher.ipynb", "1 + 1", trains="teacher", settings=["training"])
    write_notebook(folder / "03_student.ipynb", "1 + 1", trains="student", needs=["teacher"])
    needs, settings = ["student"], ["training", "distillation", "ablation"]
    write_notebook(folder / "07_temperature.ipynb", "1 + 1", needs=needs, grid=["temperature"], settings=settings)
    write_notebook(folder / "09_seed.ipynb", "1 + 1", needs=needs, grid=["seeds", "controls"], settings=settings)
    write_notebook(folder / "10_report.ipynb", "1 + 1", after="all")
    return folder


def test_the_grid_stands_before_the_notebooks_that_gather_it(grid: Path, tmp_path: Path) -> None:
    experiment = Experiment.open("smoke", out=tmp_path / "out")
    steps = {step.name: step for step in plan(experiment, grid)}
    assert list(steps) == [
        "02_teacher", "03_student", "student (temperature=1.0)", "07_temperature", "teacher (seed=0)",
        "student (seed=0)", "teacher (seed=10000)", "teacher (seed=10042)", "teacher (seed=0, label_smoothing=0.1)",
        "teacher (label_smoothing=0.1)", "student (seed=0, teacher_trained=False)", "student (teacher_trained=False)",
        "09_seed", "10_report",
    ]  # fmt: skip
    assert steps["student (seed=0)"].after == ("teacher (seed=0)",)
    assert steps["student (temperature=1.0)"].after == ("02_teacher",)
    assert steps["student (teacher_trained=False)"].after == ()
    assert set(steps["07_temperature"].after) == {"03_student", "student (temperature=1.0)"}
    assert len(steps["09_seed"].after) == 10
    assert set(steps["10_report"].after) == set(steps) - {"10_report"}
    assert len({step.job.run.path for step in steps.values()}) == len(steps)


def test_some_notebooks_alone_bring_what_they_gather(grid: Path, tmp_path: Path) -> None:
    experiment = Experiment.open("smoke", out=tmp_path / "out")
    names = [step.name for step in plan(experiment, grid, only=["07"])]
    assert names == ["student (temperature=1.0)", "student", "07_temperature"]
    with pytest.raises(NotebookError, match="No notebook begins with '11': expected 02_teacher, "):
        plan(experiment, grid, only=["11"])


def test_another_systems_notebook_is_no_step_of_this_one(grid: Path, tmp_path: Path) -> None:
    write_notebook(grid / "13_pneumonia.ipynb", "1 + 1", system="pneumonia")
    assert "13_pneumonia" not in [path.stem for path in find_notebooks(grid)]
    assert [path.stem for path in find_notebooks(grid, "pneumonia")] == ["13_pneumonia"]


@pytest.mark.parametrize("said", [{"trains": 3}, {"need": ["student"]}, {"grid": "seeds"}])
def test_metadata_that_say_something_else_are_refused(grid: Path, said: dict) -> None:
    write_notebook(grid / "02_teacher.ipynb", "1 + 1", **said)
    with pytest.raises(NotebookError, match=rf"02_teacher\.ipynb: its metadata say tbkd\.{next(iter(said))}"):
        find_notebooks(grid)


def test_a_grid_that_does_not_exist_is_named(grid: Path, tmp_path: Path) -> None:
    write_notebook(grid / "07_temperature.ipynb", "1 + 1", grid=["temperatures"])
    with pytest.raises(NotebookError, match=r"gathers the grid 'temperatures'.*expected seeds, controls, temperature"):
        plan(Experiment.open("smoke", out=tmp_path / "out"), grid)


def test_more_seeds_leave_the_finished_networks_as_they_are(grid: Path, tmp_path: Path) -> None:
    few = {step.name: step.job.run.path for step in plan(Experiment.open("smoke", out=tmp_path), grid)}
    more = Experiment.open("smoke", out=tmp_path, overrides={"seeds": [0, 42, 7], "temperatures": [1.0, 2.0, 9.0]})
    many = {step.name: step.job.run.path for step in plan(more, grid)}
    assert {name for name in few if few[name] != many[name]} == {"07_temperature", "09_seed", "03_student", "10_report"}
    assert "student (seed=7)" in many
    assert "student (temperature=9.0)" in many


@pytest.mark.slow
def test_a_failed_training_lets_the_others_finish_and_the_next_call_runs_what_is_missing(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Experiment.open("smoke", out=tmp_path / "out", overrides={"seeds": [42], "epochs": 1})
    ours = trained.build_loss

    def failing(name: str, settings: dict) -> object:
        if settings["label_smoothing"]:
            raise ModelError("no smoothing here")
        return ours(name, settings)

    with monkeypatch.context() as patch:
        patch.setattr(trained, "build_loss", failing)
        with pytest.raises(NotebookError, match="no smoothing here") as caught:
            reproduce(experiment, grid)
    assert "1 of 9 steps failed, 2 that need them were not run" in str(caught.value)
    rows = step_states(experiment, grid).set_index("step")
    assert rows.loc["teacher (label_smoothing=0.1)", ["state", "note"]].tolist() == ["failed", "no smoothing here"]
    assert rows.loc[["09_seed", "10_report"], "state"].tolist() == ["waiting", "waiting"]
    finished = rows.drop(["teacher (label_smoothing=0.1)", "09_seed", "10_report"])
    assert (finished["state"] == "done").all()
    outcomes = {outcome.name: outcome.state for outcome in reproduce(experiment, grid)}
    changed = {"teacher (label_smoothing=0.1)", "09_seed", "10_report"}
    assert {name for name, state in outcomes.items() if state == "done"} == changed
    # Each training keeps its record: settings, history, versions and time.
    job = next(step.job for step in plan(experiment, grid) if step.name == "student (temperature=1.0)")
    assert json.loads(job.run.file("settings.json").read_text())["temperature"] == 1.0
    assert len(pd.read_csv(job.run.file("history.csv"))) == 1
    assert {"torch", "seconds", "threads"} <= set(json.loads(job.run.file("environment.json").read_text()))


@pytest.mark.slow
def test_two_runs_of_the_same_grid_at_once_do_each_step_once(grid: Path, tmp_path: Path) -> None:
    overrides = {"seeds": [42], "temperatures": [2.0], "epochs": 1}
    for name in ("09_seed", "07_temperature"):
        (grid / f"{name}.ipynb").unlink()
    found: list[list[Outcome]] = []

    def whole() -> None:
        found.append(reproduce(Experiment.open("smoke", out=tmp_path / "out", overrides=overrides), grid))

    threads = [threading.Thread(target=whole) for _ in range(2)]
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
    write_synthetic(data, train=(2, 2, 4), val=(2, 2, 4), size=96, marker_rate=0.9, seed=0)
    lines: list[str] = []
    note_dataset(Experiment.open("smoke", data, tmp_path / "out", overrides), lines.append)
    note_dataset(Experiment.open("smoke", data, tmp_path / "out", overrides), lines.append)
    assert lines == []
    picture = next((data / "imgs" / "tb").glob("*.png"))
    Image.new("L", (96, 96), 7).save(picture)
    note_dataset(Experiment.open("smoke", data, tmp_path / "out", overrides), lines.append)
    assert len(lines) == 1
    assert f"The radiographs of {data} changed since the last run" in lines[0]


def test_a_report_waits_for_notebooks_after_it_too(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(folder / "01_first.ipynb", "1 + 1", trains="teacher")
    write_notebook(folder / "10_report.ipynb", "1 + 1", after="all")
    write_notebook(folder / "11_other_report.ipynb", "1 + 1", after="all")
    write_notebook(folder / "12_audit.ipynb", "1 + 1", needs=["teacher"])
    after = {step.name: step.after for step in plan(Experiment.open("smoke", out=tmp_path), folder)}
    assert after["10_report"] == after["11_other_report"] == ("01_first", "12_audit")
    assert after["12_audit"] == ("01_first",)
