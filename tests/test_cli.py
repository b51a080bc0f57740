"""The `tbkd` command: what it prints, its exit codes, and how it shows errors."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import tiny_dataset as tiny
from commands import good, run

from tbkd_utils import __version__
from tbkd_utils.data.dataset import read_dataset
from tbkd_utils.errors import DataError, NotebookError, SettingsError
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.system import named_recipe
from tbkd_utils.systems.tb.presets import PRESETS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny.write_tbx11k(tmp_path / "TBX11K")


# --- help, version, recipes -------------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    text = good("--help")
    assert all(command in text for command in ("reproduce", "recipes", "data", "locate"))
    assert all(command in good("data", "--help") for command in ("check", "synthesize"))
    assert "--recipe" in good("reproduce", "--help")
    assert "Usage" in run().output


def test_version() -> None:
    assert good("--version").strip() == __version__


def cells(text: str) -> list[list[str]]:
    """The body of a printed table."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]


def test_recipes_are_set_side_by_side_where_they_differ() -> None:
    table = {row[0]: row[1:] for row in cells(good("recipes"))}
    recipes = [named_recipe(preset) for preset in PRESETS]
    assert table["network"] == [recipe.training.network for recipe in recipes]
    assert table["epochs"] == [str(recipe.training.epochs) for recipe in recipes]
    own, more = "[train]", "[train, extra_train]"
    assert table["train_splits"] == [own, own, more, own, more, own, own]
    assert "temperature" not in table  # the same in all


def test_one_recipe_is_shown_with_every_setting_and_its_meaning() -> None:
    table = {row[0]: row[1:] for row in cells(good("recipes", "laptop"))}
    for part, setting, value, meaning in named_recipe("laptop").settings():
        if setting == "name":
            continue
        assert table[setting][0] == part
        assert table[setting][2] == meaning
        if not isinstance(value, tuple):
            assert table[setting][1] == str(value)


@pytest.mark.parametrize("arguments", [("recipes",), ("recipes", "laptop")])
def test_a_narrow_window_cuts_nothing(arguments: tuple[str, ...]) -> None:
    text = good(*arguments, width=70)
    assert "…" not in text
    assert "validation_fraction" in text
    assert max(map(len, text.splitlines())) <= 70


def test_an_unknown_recipe_is_an_error() -> None:
    result = run("recipes", "dmeo")
    assert isinstance(result.exception, SettingsError)
    assert result.exit_code == 1


# --- data check -------------------------------------------------------------------------------------------------------


def test_a_sound_dataset_passes_the_check(root: Path) -> None:
    text = good("data", "check", root)
    assert ["train", "TBX11K", "3", "1", "1", "5"] in cells(text)
    assert ["val", "1", "0", "0", "1"] in cells(text)
    assert "tb/tb0003.png" in text  # a TB image without a box is a finding
    assert text.endswith("No problem found.\n")


def test_every_problem_is_named_and_counted(root: Path) -> None:
    (root / "imgs/tb/tb0002.png").write_bytes(b"")
    result = run("data", "check", root)
    assert result.exit_code == 1
    assert "problem: " in result.output
    assert f"{root}/imgs/tb/tb0002.png: the file is empty" in result.output
    assert result.output.endswith("\n1 problem found.\n")
    (root / "imgs/health/h0001.png").write_bytes(b"<html>")
    result = run("data", "check", root)
    assert result.exit_code == 1
    assert result.output.endswith("\n2 problems found.\n")


def test_names_with_brackets_are_printed_as_they_are(root: Path) -> None:
    odd = root.rename(root.parent / "TBX11K [red]copy")
    (odd / "imgs/tb/tb0002.png").write_bytes(b"")
    result = run("data", "check", odd)
    assert f"{odd}/imgs/tb/tb0002.png" in result.output


def test_long_names_are_folded_and_not_cut(root: Path) -> None:
    tb = "tb/tb0002.png"
    (root / "imgs/tb/tb0003.png").write_bytes((root / "imgs" / tb).read_bytes())
    text = good("data", "check", root, width=60)
    assert "…" not in text
    assert "tb/tb0003.png" in text


def test_a_folder_that_is_no_dataset_is_an_error(tmp_path: Path) -> None:
    result = run("data", "check", tmp_path)
    assert isinstance(result.exception, DataError)
    assert result.exit_code == 1


# --- data synthesize --------------------------------------------------------------------------------------------------


def test_a_synthetic_dataset_is_written_to_the_settings(tmp_path: Path) -> None:
    target = tmp_path / "new" / "TBX11K"
    settings = ["--set", "synthetic_train=[1, 2, 3]", "-s", "synthetic_val=[1,0,1]", "-s", "synthetic_size=64"]
    assert good("data", "synthesize", target, *settings).strip() == f"Written: {target}"
    assert [record.kind for record in read_dataset(target, "train")] == ["tb"] * 3 + ["sick"] * 2 + ["health"]
    assert len(read_dataset(target, "val")) == 2
    assert good("data", "check", target).endswith("No problem found.\n")
    assert isinstance(run("data", "synthesize", target, *settings).exception, DataError)  # never written over


def test_a_recipe_without_synthetic_radiographs_is_refused(tmp_path: Path) -> None:
    result = run("data", "synthesize", tmp_path / "new", "--recipe", "paper")
    assert isinstance(result.exception, SettingsError)
    assert "draws no radiographs" in str(result.exception)
    assert not (tmp_path / "new").exists()


# --- settings and reproduce -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("temperature", "expected name=value"),
        ("=3", "expected name=value"),
        ("alpha=[1", "the value cannot be read"),
        ("alpha=: :", "the value cannot be read"),
        ("temprature=3", "'temperature'"),
        ("alpha=", "alpha is None"),
        ("alpha=high", "alpha is 'high'"),
        ("epochs=2.5", "epochs is 2.5"),
        ("name=mine", "no setting 'name'"),
    ],
)
def test_a_setting_that_cannot_be_used_is_an_error(tmp_path: Path, setting: str, said: str) -> None:
    result = run("data", "synthesize", tmp_path / "new", "--set", setting)
    assert isinstance(result.exception, SettingsError), result.exception
    assert said in str(result.exception)
    assert result.exit_code == 1
    assert not (tmp_path / "new").exists()


@pytest.fixture
def experiments(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Experiment, Path | None]]:
    """What the series was asked to run, instead of running it."""
    asked: list[tuple[Experiment, Path | None]] = []

    def note(experiment: Experiment, notebooks: Path | None = None, *_, **__) -> list:
        asked.append((experiment, notebooks))
        return []

    monkeypatch.setattr("tbkd_utils.experiments.series.reproduce", note)
    return asked


def test_reproduce_runs_the_demo_unless_told_otherwise(tmp_path: Path, experiments, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = good("reproduce")
    ((experiment, notebooks),) = experiments
    assert experiment == Experiment(named_recipe("demo"), tmp_path)
    assert notebooks is None
    assert "synthetic radiographs" in text
    assert str(experiment.figures) in text


def test_reproduce_takes_recipe_folders_and_settings(root: Path, tmp_path: Path, experiments) -> None:
    settings = {
        "learning_rate=1e-3": ("learning_rate", 1e-3),
        "weight_decay=2.5E-05": ("weight_decay", 2.5e-5),
        "temperature=3": ("temperature", 3.0),
        "early_stopping_on=train": ("early_stopping_on", "train"),
        "cam_relu=false": ("cam_relu", False),
        "train_splits=[train, extra_train]": ("train_splits", ["train", "extra_train"]),
        "weights=none": ("weights", "none"),
    }
    options = [part for setting in settings for part in ("--set", setting)]
    text = good("reproduce", "-r", "laptop", "-d", root, "-o", tmp_path / "out", "--notebooks", tmp_path, *options)
    ((experiment, notebooks),) = experiments
    assert (experiment.recipe.name, experiment.data, experiment.out) == ("laptop", root, tmp_path / "out")
    assert notebooks == tmp_path
    flat = experiment.recipe.flat()
    assert {name: flat[name] for name, _ in settings.values()} == dict(settings.values())
    assert str(root) in text


def test_the_last_of_two_values_counts(tmp_path: Path, experiments) -> None:
    good("reproduce", "-o", tmp_path, "-s", "seed=1", "-s", "seed=2")
    assert experiments[0][0].recipe.training.seed == 2


def test_reproduce_on_real_radiographs_needs_a_folder(tmp_path: Path, experiments, monkeypatch) -> None:
    monkeypatch.delenv("TBKD_DATA", raising=False)
    result = run("reproduce", "-r", "laptop", "-o", tmp_path)
    assert isinstance(result.exception, SettingsError)
    assert experiments == []


def test_jobs_and_a_cluster_exclude_each_other(tmp_path: Path, experiments) -> None:
    result = run("reproduce", "-o", tmp_path, "--jobs", "2", "--dask", "tcp://host:8786")
    assert "--jobs and --dask exclude each other" in str(result.exception)
    assert experiments == []


def test_status_lists_every_step_and_runs_none(tmp_path: Path) -> None:
    text = good("status", "-r", "smoke", "-o", tmp_path, "-s", "seeds=[42]", "-s", "alphas=[0.75]")
    for step in ("01_data_preparation", "teacher (label_smoothing=0.1)", "10_report"):
        assert step in text
    assert "32 waiting. The time left is not known before something is done." in text
    assert not list((tmp_path / "runs" / "smoke").glob("0*"))


def test_status_and_reproduce_of_another_system(tmp_path: Path) -> None:
    arguments = ("--system", "pneumonia", "-r", "smoke", "-o", tmp_path)
    for command in ("status", "reproduce"):
        result = run(command, *arguments, "--notebooks", tmp_path)
        assert isinstance(result.exception, NotebookError)
        assert "no notebooks of the system 'pneumonia'" in str(result.exception)
    said = {"system": "pneumonia", "trains": "classifier", "grid": ["arms"], "settings": ["data"]}
    notebook = nbformat.v4.new_notebook(metadata={"tbkd": said})
    (tmp_path / "01_classifier.ipynb").write_text(nbformat.writes(notebook))
    text = good("status", *arguments, "--notebooks", tmp_path)
    assert [row[:2] for row in cells(text)] == [["classifier (balance=none)", "waiting"], ["01_classifier", "waiting"]]


def test_an_unknown_option_is_a_usage_error(experiments) -> None:
    result = run("reproduce", "--temperature", "3")
    assert result.exit_code == 2
    assert experiments == []


# --- the command itself -----------------------------------------------------------------------------------------------


def test_an_error_that_can_be_mended_is_shown_without_a_traceback(tmp_path: Path) -> None:
    missing = tmp_path / "no [bold]such[/] folder"
    command = [sys.executable, "-c", "from tbkd_utils.cli import main; main()", "data", "check", str(missing)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "40"}, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(f"tbkd: {missing}: no such folder.")
    assert len(done.stderr.strip().splitlines()) == 1  # a path can be copied whole
