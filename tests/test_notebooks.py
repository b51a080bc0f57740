"""The notebooks of the series: one shape, and the same tables whenever they run."""

import ast
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from papermill.parameterize import parameterize_notebook

from tbkd_utils.experiments.executors import dask
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.notebooks import PARAMETERS, NotebookJob, Outcome, metadata
from tbkd_utils.experiments.series import find_notebooks, reproduce
from tbkd_utils.experiments.system import SYSTEMS

NOTEBOOKS = find_notebooks()
OTHERS = [path for system in SYSTEMS if system != "tb" for path in find_notebooks(system=system)]
CHECKED = "nbval-check-output"


@pytest.fixture(scope="session")
def executed(smoke: Experiment) -> list[Outcome]:
    """The whole series at `smoke` with its grid, by papermill; without the cells of the grid."""
    names = [path.stem for path in NOTEBOOKS]
    return [outcome for outcome in reproduce(smoke) if outcome.name in names]


@pytest.fixture(scope="session")
def pneumonia(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The series of the pneumonia system at `smoke`, executed."""
    experiment = Experiment.open("smoke", out=tmp_path_factory.mktemp("pneumonia"), system="pneumonia")
    assert [outcome.state for outcome in reproduce(experiment)] == ["done"] * 6
    return experiment


@pytest.mark.parametrize("path", [*NOTEBOOKS, *OTHERS], ids=lambda path: path.stem)
class TestShape:
    def test_it_opens_like_the_others(self, path: Path) -> None:
        cells = nbformat.read(path, as_version=4).cells
        kinds = [cell.cell_type for cell in cells[:5]]
        assert kinds == ["markdown", "markdown", "code", "code", "code"]
        title, setup, given, imports, opening = cells[:5]
        assert title.source.startswith(f"# {int(path.stem[:2])}. ")
        assert "**What you will learn**" in title.source
        assert "**What it needs.**" in title.source
        assert setup.source == "## Set-up"
        assert given.metadata.tags == ["parameters"]
        values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(given.source).body}  # type: ignore[attr-defined]
        assert values == {"recipe": "demo", "data": None, "out": None, "overrides": {}, "figures": None}
        assert tuple(values) == PARAMETERS
        assert imports.source.startswith("%matplotlib inline\n")
        system = metadata(path)["system"]
        given = "globals()" if system == "tb" else f'globals(), "{system}"'
        assert opening.source == f"experiment = experiment_from({given})\nversions()"

    def test_it_opens_with_a_question(self, path: Path) -> None:
        title = nbformat.read(path, as_version=4).cells[0].source
        assert re.fullmatch(r"\*\*[^*?\n]+\?\*\*", title.split("\n\n")[1])

    def test_it_ends_with_what_was_found_and_three_exercises(self, path: Path) -> None:
        """The solutions run, train nothing, and lie folded under headings of their own; nothing comes after them."""
        cells = nbformat.read(path, as_version=4).cells[-12:]
        kinds = ["markdown", "code", "markdown", *["markdown", "code", "markdown"] * 3]
        assert [cell.cell_type for cell in cells] == kinds
        heading, found, questions = cells[:3]
        assert heading.source == "## What was found"  # in words that a cell computes, not in words typed here
        assert found.source.splitlines()[-1].startswith("Markdown(")
        assert questions.source.startswith("## Exercises\n")
        assert [line[:3] for line in questions.source.splitlines() if line[:1].isdigit()] == ["1. ", "2. ", "3. "]
        for number, (folded, solution, answer) in enumerate(zip(*[iter(cells[3:])] * 3, strict=True), start=1):
            assert folded.source == f"### Solution {number}"
            assert folded.metadata["jp-MarkdownHeadingCollapsed"] is True
            assert CHECKED in solution.metadata.tags
            assert not answer.source.startswith("#")
        assert CHECKED in found.metadata.tags

    def test_cells_have_ids_of_their_own(self, path: Path) -> None:
        ids = [cell.id for cell in nbformat.read(path, as_version=4).cells]
        assert len(set(ids)) == len(ids)
        assert all(re.fullmatch("[0-9a-f]{8}", identity) for identity in ids)

    def test_all_imports_stand_in_one_cell(self, path: Path) -> None:
        for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type == "code" and number != 3:
                nodes = ast.walk(ast.parse(cell.source))
                assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes), cell.source

    def test_cells_are_short_and_define_nothing(self, path: Path) -> None:
        for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type == "code" and number != 3:
                assert len(cell.source.splitlines()) <= 8, cell.source
                nodes = ast.walk(ast.parse(cell.source))
                assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in nodes), cell.source

    def test_it_reads_well_unexecuted(self, path: Path) -> None:
        """Demo outputs are committed, complete, small, and name no machine's folders."""
        assert path.stat().st_size < 850_000
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        assert sum(bool(cell.outputs) for cell in cells) >= 4
        texts = json.dumps([[o for o in cell.outputs] for cell in cells])
        assert '"output_type": "error"' not in texts
        assert not re.search(r"/(home|root|tmp|work|Users)/", re.sub(r'"image/png": "[^"]*"', "", texts))

    def test_it_says_what_is_synthetic(self, path: Path) -> None:
        assert "drawing made by this package, not medical data" in nbformat.read(path, as_version=4).cells[0].source

    def test_some_table_is_checked(self, path: Path) -> None:
        tags = [tag for cell in nbformat.read(path, as_version=4).cells for tag in cell.metadata.get("tags", [])]
        assert CHECKED in tags


@pytest.mark.parametrize("number", ["03", "04", "05", "06", "13"])
def test_what_is_not_biomedicine_is_explained_in_plain_words_and_one_picture(number: str) -> None:
    path = next(path for path in [*NOTEBOOKS, *OTHERS] if path.stem.startswith(number))
    cells = nbformat.read(path, as_version=4).cells
    place = next(i for i, cell in enumerate(cells) if cell.source.split("\n")[0].endswith(" in plain words"))
    words = cells[place].source.partition("\n")[2].split()
    assert 120 <= len(words) <= 180
    assert re.search(r'save_figure\(experiment, .*"explained_\w+"\)', cells[place + 1].source)


@pytest.mark.slow
def test_the_series_writes_its_figures_and_tables(executed: list[Outcome], smoke: Experiment) -> None:
    assert [entry.name for entry in executed] == [path.stem for path in NOTEBOOKS]
    written = {path.name for path in smoke.figures.iterdir()}
    for name in ("figure_3_framework", "figure_4_heatmap_to_boxes", "figure_5_qualitative", "figure_6_miou"):
        assert {f"{name}.png", f"{name}.svg"} <= written
    for name in ("explained_softening", "explained_grad_cam", "explained_iou", "explained_hessian"):
        assert f"{name}.png" in written
    for name in ("table_3_one_seed", "table_4_classification"):
        assert {f"{name}.csv", f"{name}.md"} <= written
    *networks, guess = pd.read_csv(smoke.figures / "table_3_one_seed.csv")["network"]
    assert networks == ["teacher", "student"]
    assert guess.startswith("blind: ")
    assert list(pd.read_csv(smoke.figures / "table_3_seeds.csv")["seed"]) == [0, 42]
    assert len(pd.read_csv(smoke.figures / "table_3_conditions.csv")) == 6
    verdicts = pd.read_csv(smoke.figures / "verdicts.csv")
    assert len(verdicts) == 13
    assert (verdicts["artifact"] == "Blind guess (ours)").sum() == 2
    assert len(pd.read_csv(smoke.figures / "blind_guesses.csv")) == 7  # five guesses and two networks
    assert len(pd.read_csv(smoke.figures / "minus_best_guess.csv")) == 4
    assert set(pd.read_csv(smoke.figures / "verdicts.csv")["verdict"]) == {"not comparable"}


@pytest.mark.slow
def test_the_report_is_one_page_that_needs_nothing_else(executed: list[Outcome], smoke: Experiment) -> None:
    page = (smoke.runs / "report.html").read_text()
    assert smoke.fingerprint in page
    for title in ("Figure 5", "Figure 7", "Figure 8", "Figure 9", "Table 3: seeds", "Table 4", "Tables 1 and 2"):
        assert title in page
    assert page.count("data:image/png;base64,") >= 14
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "teacher (seed=0)" in page  # among the times


@pytest.mark.slow
def test_the_pneumonia_series_writes_its_figures_tables_and_page(pneumonia: Experiment) -> None:
    written = {path.name for path in pneumonia.figures.iterdir()}
    named = [name for item in pneumonia.system.report for name in item.figures if not name.endswith(("nih", "rsna"))]
    assert {f"{name}.png" for name in named} <= written
    assert {f"{name}.csv" for item in pneumonia.system.report for name in item.tables} <= written
    assert list(pd.read_csv(pneumonia.figures / "arms.csv")["condition"]) == ["both", "none"]
    assert len(pd.read_csv(pneumonia.figures / "leak.csv")) == 2
    verdicts = pd.read_csv(pneumonia.figures / "verdicts.csv")
    assert verdicts["artifact"].str.endswith("(ours)").all()  # the paper has no such network
    assert verdicts["verdict"].isna().all()
    page = html.unescape((pneumonia.runs / "report.html").read_text())
    assert pneumonia.fingerprint in page
    assert all(item.title in page for item in pneumonia.system.report if "other radiographs" not in item.title)
    assert not re.search(r"\bTB\b|tubercul", page)
    again = reproduce(pneumonia)
    assert {outcome.state for outcome in again} == {"already done"}


@pytest.mark.slow
def test_the_pneumonia_tables_are_the_same_when_everything_is_made_again(pneumonia: Experiment, tmp_path: Path) -> None:
    other = Experiment.open("smoke", out=tmp_path, system="pneumonia")
    reproduce(other)
    for path in sorted(pneumonia.figures.glob("*.csv")):
        assert (other.figures / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_makes_the_same_tables(
    executed: list[Outcome], smoke: Experiment, tmp_path: Path
) -> None:
    """The grid on Dask, one of its two workers killed while it works, against the series one after the other."""
    from distributed import LocalCluster

    chosen = tmp_path / "notebooks"
    chosen.mkdir()
    for path in NOTEBOOKS:
        if path.stem[:2] in ("02", "03", "07", "08"):
            shutil.copy(path, chosen)
    other = Experiment.open("smoke", out=tmp_path / "dask")
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        killed: list[int] = []

        def kill_one(line: str) -> None:
            if line.startswith("02_teacher: done") and not killed:  # both workers are on cells by now
                killed.append(next(iter(cluster.workers.values())).pid)
                os.kill(killed[0], signal.SIGKILL)

        with dask(cluster.scheduler_address) as executor:
            outcomes = reproduce(other, chosen, executor, jobs=None, announce=kill_one)
    assert killed
    assert {outcome.state for outcome in outcomes} == {"done"}
    assert len(outcomes) == 6
    for name in ("figure_8_temperature", "figure_9_alpha"):
        assert (other.figures / f"{name}.csv").read_text() == (smoke.figures / f"{name}.csv").read_text()


@pytest.mark.slow
def test_tables_are_the_same_when_everything_is_made_again(executed: list[Outcome], tmp_path: Path) -> None:
    """nbval executes the executed notebooks in a fresh folder, trains again, and compares the tables."""
    fresh = Experiment.open("smoke", out=tmp_path / "fresh")
    for entry in executed:
        write_with_parameters(entry, fresh, tmp_path)
    # Notebook 06 looks at every seed's networks that are at hand: as in the series, after they are trained.
    result = nbval(*sorted(tmp_path.glob("*.ipynb"), key=lambda path: (path.stem.startswith("06"), path.stem)))
    assert result.returncode == 0, result.stdout[-4000:]
    checked = sum(CHECKED in cell.metadata.get("tags", []) for cell in cells_of(executed))
    assert checked >= 15


@pytest.mark.slow
def test_a_wrong_number_in_a_table_is_found(executed: list[Outcome], smoke: Experiment, tmp_path: Path) -> None:
    entry = next(entry for entry in executed if entry.name == "05_localization_miou")
    path = write_with_parameters(entry, smoke, tmp_path)
    notebook = nbformat.read(path, as_version=4)
    checked = (cell for cell in notebook.cells if CHECKED in cell.metadata.get("tags", []))
    cell = next(cell for cell in checked if "table_3" in cell.source)
    digits = re.search(r"0\.\d{3}", cell.outputs[0].data["text/plain"])
    assert digits
    cell.outputs[0].data["text/plain"] = cell.outputs[0].data["text/plain"].replace(digits[0], "0.987", 1)
    nbformat.write(notebook, path)
    result = nbval(path)
    assert result.returncode == 1
    assert "1 failed" in result.stdout
    assert "0.987" in result.stdout


def cells_of(executed: list[Outcome]) -> list[nbformat.NotebookNode]:
    return [cell for entry in executed for cell in nbformat.read(entry.path, as_version=4).cells]


def write_with_parameters(entry: Outcome, experiment: Experiment, folder: Path) -> Path:
    """Writes an executed notebook with another experiment's parameters, its outputs as they were."""
    parameters = NotebookJob.of(entry.path, experiment).parameters
    notebook = parameterize_notebook(nbformat.read(entry.path, as_version=4), parameters)
    path = folder / f"{entry.name}.ipynb"
    nbformat.write(notebook, path)
    return path


def nbval(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, f"--rootdir={paths[0].parent}", *map(str, paths)],
        cwd=paths[0].parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
