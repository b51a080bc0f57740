"""One notebook of the series, or of one cell of the grid: where its record is, what it depends on, executing it."""

import ast
import contextlib
import hashlib
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import nbformat
import pandas as pd
import papermill
import torch
from papermill.exceptions import PapermillException, PapermillExecutionError

import tbkd_utils
from tbkd_utils.errors import TbkdError
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import RecipeError
from tbkd_utils.models.checkpoints import ENVIRONMENT
from tbkd_utils.runs import Run, file_sha256, read_json, write_json

PACKAGE = Path(tbkd_utils.__file__).parent
RECORD = "record.json"
FAILED = "failed.json"
TRAINS = {"02": "teacher", "03": "student"}  # the notebooks that train a network
_PIXELS = ("data", "synthetic", "pixels", "training", "statistics")
_BOXES = (*_PIXELS, "heatmaps", "scores")
_STUDENT = (*_BOXES, "distillation")
# What a notebook depends on, by its number; an unknown one depends on everything. So a longer list of seeds executes
# the notebooks that use it again, and none of the finished cells.
_PARTS = {
    "01": _BOXES,
    "02": _BOXES,
    "03": _STUDENT,
    "04": _STUDENT,
    "05": _STUDENT,
    "06": (*_STUDENT, "curvature", "ablation"),
    "07": (*_STUDENT, "ablation"),
    "08": (*_STUDENT, "ablation"),
    "09": (*_STUDENT, "ablation"),
}


class NotebookError(TbkdError, RuntimeError):
    """A notebook that is missing, or failed in one of its cells."""


@dataclass(frozen=True)
class Step:
    """A notebook to be executed with one experiment's parameters.

    Attributes:
        name: How it is called in messages, such as `02_teacher` or `02_teacher (seed 1)`.
        notebook: The notebook's source.
        experiment: Recipe, data and output folder.
        after: Names of the steps that have to be done first.
        cell: Whether it is a cell of the grid: its figures stay in its run folder, its record counts wherever the
            same notebook was executed with the same settings.
    """

    name: str
    notebook: Path
    experiment: Experiment
    after: tuple[str, ...] = ()
    cell: bool = False

    @property
    def run(self) -> Run:
        """The run folder with the executed notebook."""
        recipe = self.experiment.recipe
        parts = {part for part, *_ in recipe.settings()} - {"label", "execution"}
        settings = recipe.differences(*_PARTS.get(self.notebook.name[:2], sorted(parts))) | {
            "source": _source_sha256(self.notebook),
            "package": _package_sha256(),
            "fingerprint": self.experiment.fingerprint,
        }
        return self.experiment.run_at(self.notebook.stem, settings)

    @property
    def task(self) -> "Task":
        """What a process needs to execute it, here or on another machine that sees the same folders."""
        experiment, run = self.experiment, self.run
        figures = run.file("figures") if self.cell else experiment.figures
        parameters = {
            "recipe": experiment.recipe.name,
            "data": str(experiment.data) if experiment.data is not None else None,
            "out": str(experiment.out),
            "overrides": experiment.recipe.overrides(),
            "figures": str(run.file("figures")) if self.cell else None,
        }
        return Task(self.name, self.notebook, run, parameters, figures, self.cell, self.network)

    @property
    def network(self) -> Run | None:
        """The run folder of the network that the notebook trains; None if it trains none of its own."""
        role = TRAINS.get(self.notebook.stem[:2])
        return self.experiment.run_at(role, self.experiment.training_settings(role)) if role else None

    @property
    def done(self) -> bool:
        """Whether it was executed, and what it wrote is still there."""
        return self.task.done


@dataclass(frozen=True)
class Task:
    """A step as plain values, to be sent to another process.

    Attributes:
        name: The step's name.
        notebook: The notebook's source.
        run: Its run folder.
        parameters: The notebook's parameters.
        figures: The folder that its figures go to.
        cell: Whether it is a cell of the grid.
        network: The run folder of the network that the notebook trains, if it trains one.
    """

    name: str
    notebook: Path
    run: Run
    parameters: dict[str, Any]
    figures: Path
    cell: bool
    network: Run | None = None

    @property
    def path(self) -> Path:
        """The executed notebook."""
        return self.run.file(self.notebook.name)

    @property
    def done(self) -> bool:
        """Whether it was executed, and what it wrote is still there."""
        if not self.run.done:
            return False
        record = json.loads(self.run.file(RECORD).read_text())
        return self.cell or (not record["cell"] and all((self.figures / name).exists() for name in record["figures"]))


@dataclass(frozen=True)
class Outcome:
    """How a step ended.

    Attributes:
        name: The step's name.
        path: The executed notebook; after a failure as far as it ran.
        state: `done`, `already done`, `failed`, or `not run` because a step before it failed.
        seconds: How long it took.
        message: What went wrong, if anything.
    """

    name: str
    path: Path
    state: str
    seconds: float = 0.0
    message: str = ""


def execute(task: Task, progress: bool = False) -> Outcome:
    """Executes a notebook by papermill unless it is done; a failure is written down and returned, not raised.

    Args:
        task: What to execute.
        progress: Whether to pass the notebook's standard error (progress bars) on.

    Raises:
        RunError: If the run folder cannot be written.
    """
    began = time.monotonic()
    try:
        with task.run.making(redo=lambda: not task.done) as needed:
            if needed:
                before = _stamps(task.figures)
                trains = task.network if task.network is not None and not task.network.done else None
                _papermill(task, progress)
                after = _stamps(task.figures)
                written = sorted(name for name in after if after[name] != before.get(name))
                seconds = round(time.monotonic() - began, 1)
                task.run.file(FAILED).unlink(missing_ok=True)
                made = read_json(trains.file(ENVIRONMENT)) if trains is not None else None
                training = made["seconds"] if made else 0.0
                write_json(
                    task.run.file(RECORD),
                    {"figures": written, "cell": task.cell, "seconds": seconds, "training": training},
                )
    except NotebookError as error:
        seconds = round(time.monotonic() - began, 1)
        write_json(task.run.file(FAILED), {"message": str(error), "seconds": seconds})
        return Outcome(task.name, task.path, "failed", seconds, str(error))
    return Outcome(task.name, task.path, "done" if needed else "already done", time.monotonic() - began)


def state_of(task: Task) -> str:
    """Returns `done`, `running`, `failed` or `waiting`, as found on disk."""
    if not task.run.path.exists():
        return "waiting"
    with _free(task.run) as free:
        if not free:
            return "running"
    if task.done:
        return "done"
    return "failed" if task.run.file(FAILED).exists() else "waiting"


@contextlib.contextmanager
def _free(run: Run) -> Iterator[bool]:
    """Whether nobody holds the run folder."""
    lock = filelock.FileLock(run.lock)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _papermill(task: Task, progress: bool) -> None:
    try:
        papermill.execute_notebook(
            task.notebook,
            task.path,
            parameters=task.parameters,
            kernel_name="python3",
            progress_bar=False,
            stderr_file=sys.stderr if progress else None,
            extra_arguments=["--log-level=CRITICAL"],  # it warns of its own plain connection, and of being told to end
        )
    except PapermillExecutionError as error:
        begins = error.source.strip().splitlines()[0]
        raise NotebookError(
            f"{task.notebook.name} failed in cell {error.cell_index + 1}, which begins '{begins}': "
            f"{error.ename}: {error.evalue}\nThe notebook as far as it ran: {task.path}"
        ) from None
    except (PapermillException, RuntimeError) as error:  # a kernel that does not start, or was killed
        raise NotebookError(f"{task.notebook.name} could not be executed: {error}. See {task.path}.") from error


def _source_sha256(path: Path) -> str:
    notebook = nbformat.read(path, as_version=4)
    source = "\0".join(f"{cell.cell_type}\0{cell.source}" for cell in notebook.cells)
    return hashlib.sha256(source.encode()).hexdigest()


def _package_sha256() -> str:
    package = "".join(file_sha256(module) for module in sorted(PACKAGE.rglob("*.py")))
    return hashlib.sha256(package.encode()).hexdigest()


def _stamps(folder: Path) -> dict[str, int]:
    return {entry.name: entry.stat().st_mtime_ns for entry in folder.glob("*")} if folder.is_dir() else {}


PARAMETERS = ("recipe", "data", "out", "overrides", "figures")
SHOWN = ("tbkd-utils", "torch", "torchvision", "lightning", "captum", "timm", "numpy", "opencv-python-headless")


def experiment_from(namespace: Mapping[str, Any]) -> Experiment:
    """Opens the experiment that a notebook's parameters cell describes, for torch's threads and pandas' tables too.

    Args:
        namespace: The notebook's `globals()`, with `recipe`, `data`, `out`, `overrides` and, if need be, `figures`.

    Raises:
        RecipeError: If papermill was given a parameter that the notebooks do not have; papermill itself only warns.
    """
    unknown = [name for name in injected_names(namespace.get("In", ())) if name not in PARAMETERS]
    if unknown:
        raise RecipeError(
            f"The notebooks have no parameter '{unknown[0]}': expected {', '.join(PARAMETERS)}. A setting of the "
            f'recipe goes into overrides, as in overrides = {{"temperature": 3.0}}.'
        )
    pd.set_option("display.precision", 4)
    pd.set_option("display.max_colwidth", None)
    given: list[Any] = [namespace.get(name) for name in PARAMETERS]
    experiment = Experiment.open(*given)
    if experiment.recipe.threads:
        torch.set_num_threads(experiment.recipe.threads)
    return experiment


def injected_names(cells: Sequence[str]) -> list[str]:
    """Returns the names that papermill's injected cells assign; such a cell starts with the comment `# Parameters`."""
    injected = [ast.parse(cell) for cell in cells if cell.startswith("# Parameters\n")]
    targets = [
        target for tree in injected for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
    ]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def versions() -> pd.DataFrame:
    """Returns the versions that the numbers of a notebook depend on."""
    rows = [("Python", platform.python_version()), *((name, version(name)) for name in SHOWN)]
    return pd.DataFrame(rows, columns=["package", "version"])
