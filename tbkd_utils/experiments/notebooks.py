"""The steps of a series: executing a notebook, or training a network; each is skipped once it is done.

A step is plain values, so that it can be sent to another process or machine that sees the same folders.
"""

import ast
import contextlib
import hashlib
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import filelock
import nbformat
import pandas as pd

import tbkd_utils
from tbkd_utils.errors import NotebookError, SettingsError, TbkdError
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import DEFAULT_SYSTEM, Recipe
from tbkd_utils.experiments.system import overrides_of
from tbkd_utils.runs import ENVIRONMENT, Run, file_sha256, read_json, write_json

RECORD = "record.json"
FAILED = ".failed.json"  # dotted: not part of the result, and gone when the step is tried again
PARAMETERS = ("recipe", "data", "out", "overrides", "figures")
SHOWN = ("tbkd-utils", "torch", "torchvision", "lightning", "captum", "timm", "numpy", "opencv-python-headless")


@dataclass(frozen=True)
class Outcome:
    """How a step ended.

    Attributes:
        name: The step's name.
        path: What it made: the executed notebook, after a failure as far as it ran; or the network's folder.
        state: `done`, `already done`, `failed`, or `not run` because a step before it failed.
        seconds: How long it took.
        message: What went wrong, if anything.
    """

    name: str
    path: Path
    state: str
    seconds: float = 0.0
    message: str = ""


class Job(Protocol):
    """Something to be done once."""

    @property
    def name(self) -> str:
        """How it is called in messages."""
        ...

    @property
    def run(self) -> Run:
        """The run folder that it fills."""
        ...

    @property
    def path(self) -> Path:
        """What it makes."""
        ...

    @property
    def done(self) -> bool:
        """Whether it was done, and what it made is still there."""
        ...

    @property
    def trains(self) -> Run | None:
        """The run folder of the network that it trains; None if it trains none of its own."""
        ...

    def execute(self, progress: bool) -> bool:
        """Does it unless it is done; returns whether there was anything to do.

        Raises:
            TbkdError: If it failed.
        """
        ...


@dataclass(frozen=True)
class NotebookJob:
    """A notebook to be executed with one experiment's parameters.

    Attributes:
        name: The notebook's name.
        notebook: Its source.
        run: The run folder with the executed notebook.
        parameters: What papermill is given.
        figures: The folder that its figures go to.
        trains: The run folder of the network that the notebook trains, if it trains one.
    """

    name: str
    notebook: Path
    run: Run
    parameters: dict[str, Any]
    figures: Path
    trains: Run | None = None

    @classmethod
    def of(cls, notebook: Path, experiment: Experiment) -> "NotebookJob":
        """Returns the job of executing a notebook for an experiment."""
        said, recipe = metadata(notebook), experiment.recipe
        groups = said.get("settings") or sorted(set(recipe.group_of().values()) - {"execution"})
        settings = recipe.differences(*groups) | {
            "source": _source_sha256(notebook),
            "package": _package_sha256(recipe.system),
            "fingerprint": experiment.fingerprint,
        }
        role = said.get("trains")
        return cls(
            notebook.stem,
            notebook,
            experiment.run_at(notebook.stem, settings),
            {
                "recipe": recipe.name,
                "data": str(experiment.data) if experiment.data is not None else None,
                "out": str(experiment.out),
                "overrides": overrides_of(recipe),
                "figures": None,
            },
            experiment.figures,
            experiment.run_at(role, experiment.training_settings(role)) if role else None,
        )

    @property
    def path(self) -> Path:
        """The executed notebook."""
        return self.run.file(self.notebook.name)

    @property
    def done(self) -> bool:
        """Whether it was executed, and the figures it wrote are still there."""
        if not self.run.done:
            return False
        record = json.loads(self.run.file(RECORD).read_text())
        return all((self.figures / name).exists() for name in record["figures"])

    def execute(self, progress: bool) -> bool:
        """Executes the notebook by papermill unless it is done.

        Args:
            progress: Whether to pass the notebook's standard error (progress bars) on.

        Raises:
            NotebookError: If a cell failed.
            RunError: If the run folder cannot be written.
        """
        began = time.monotonic()
        with self.run.making(redo=lambda: not self.done) as needed:
            if needed:
                before = _stamps(self.figures)
                untrained = self.trains if self.trains is not None and not self.trains.done else None
                self._papermill(progress)
                after = _stamps(self.figures)
                made = read_json(untrained.file(ENVIRONMENT)) if untrained is not None else None
                record = {
                    "figures": sorted(name for name in after if after[name] != before.get(name)),
                    "seconds": round(time.monotonic() - began, 1),
                    "training": made["seconds"] if made else 0.0,
                }
                write_json(self.run.file(RECORD), record)
        return needed

    def _papermill(self, progress: bool) -> None:
        import papermill  # a second that planning a series should not take
        from papermill.exceptions import PapermillException, PapermillExecutionError

        try:
            papermill.execute_notebook(
                self.notebook,
                self.path,
                parameters=self.parameters,
                kernel_name="python3",
                progress_bar=False,
                stderr_file=sys.stderr if progress else None,
                extra_arguments=["--log-level=CRITICAL"],  # its own plain connection and being told to end are warnings
            )
        except PapermillExecutionError as error:
            begins = error.source.strip().splitlines()[0]
            raise NotebookError(
                f"{self.notebook.name} failed in cell {error.cell_index + 1}, which begins '{begins}': "
                f"{error.ename}: {error.evalue}\nThe notebook as far as it ran: {self.path}"
            ) from None
        except (PapermillException, RuntimeError) as error:  # a kernel that does not start, or was killed
            raise NotebookError(f"{self.notebook.name} could not be executed: {error}. See {self.path}.") from error


@dataclass(frozen=True)
class TrainingJob:
    """A network to be trained and evaluated.

    Attributes:
        name: Such as `student (seed=1)`.
        role: Which of the system's networks.
        recipe: Every setting of this network.
        out: The folder that receives its run.
        data: The dataset's folder; None for the synthetic set.
        run: Its run folder.
    """

    name: str
    role: str
    recipe: Recipe
    out: Path
    data: Path | None
    run: Run

    @property
    def path(self) -> Path:
        """The network's folder."""
        return self.run.path

    @property
    def trains(self) -> Run:
        """The network's folder."""
        return self.run

    @property
    def done(self) -> bool:
        """Whether the network is trained."""
        return self.run.done

    def execute(self, progress: bool) -> bool:
        """Trains the network unless it is trained, and evaluates it, so that tables find their rows.

        Boxes are scored only where the test set has some.

        Args:
            progress: Whether to show a progress bar on standard error.

        Raises:
            TbkdError: If it failed.
        """
        from tbkd_utils.experiments.evaluation import classification, localization
        from tbkd_utils.experiments.trained import train  # torch: seconds that planning a series should not take

        needed = not self.done
        experiment = Experiment(self.recipe, self.out, self.data)
        trained = train(experiment, self.role, progress=progress)
        classification(experiment, trained)
        if any(len(boxes) for boxes in experiment.test.boxes):
            localization(experiment, trained)
        return needed


def execute(job: Job, progress: bool = False) -> Outcome:
    """Does a job unless it is done; a failure is written down and returned, not raised.

    Args:
        job: What to do.
        progress: Whether to show its progress bars.

    Raises:
        RunError: If nothing can be written at all.
    """
    began = time.monotonic()
    try:
        needed = job.execute(progress)
    except TbkdError as error:
        seconds = round(time.monotonic() - began, 1)
        write_json(job.run.file(FAILED), {"message": str(error), "seconds": seconds})
        return Outcome(job.name, job.path, "failed", seconds, str(error))
    return Outcome(job.name, job.path, "done" if needed else "already done", time.monotonic() - began)


def state_of(job: Job) -> str:
    """Returns `done`, `running`, `failed` or `waiting`, as found on disk."""
    if not job.run.path.exists():
        return "waiting"
    with _free(job.run) as free:
        if not free:
            return "running"
    if job.done:
        return "done"
    return "failed" if job.run.file(FAILED).exists() else "waiting"


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


# --- what a notebook says, and what notebooks share -------------------------------------------------------------------


def metadata(notebook: Path) -> dict[str, Any]:
    """Returns what a notebook says of itself under `tbkd` in its metadata.

    Returns:
        `system`; `trains`, the role that it trains; `needs`, roles that have to be trained before; `grid`, names of the
        system's grids that it gathers; `settings`, the groups that its outputs depend on (all, if left out); and
        `after`, `"all"` for a report that reads what the others write. All but `system` may be missing.

    Raises:
        NotebookError: If it cannot be read, or says something else.
    """
    try:
        said = nbformat.read(notebook, as_version=4).metadata.get("tbkd", {})
    except (OSError, ValueError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise NotebookError(f"{notebook}: not a notebook that can be read ({error}).") from error
    known = {"system": str, "trains": str, "needs": list, "grid": list, "settings": list, "after": str}
    for key, value in said.items():
        if key not in known or not isinstance(value, known[key]):
            raise NotebookError(
                f"{notebook}: its metadata say tbkd.{key} = {value!r}; expected some of {', '.join(known)}, of the "
                "types that CONTRIBUTING.md lists."
            )
    return {"system": DEFAULT_SYSTEM} | dict(said)


def experiment_from(namespace: Mapping[str, Any], system: str = DEFAULT_SYSTEM) -> Experiment:
    """Opens the experiment that a notebook's parameters cell describes, for torch's threads and pandas' tables too.

    Args:
        namespace: The notebook's `globals()`, with `recipe`, `data`, `out`, `overrides` and, if need be, `figures`.
        system: The system that the notebook belongs to.

    Raises:
        SettingsError: If papermill was given a parameter that the notebooks do not have; papermill itself only warns.
    """
    import torch

    unknown = [name for name in injected_names(namespace.get("In", ())) if name not in PARAMETERS]
    if unknown:
        raise SettingsError(
            f"The notebooks have no parameter '{unknown[0]}': expected {', '.join(PARAMETERS)}. A setting of the "
            f'recipe goes into overrides, as in overrides = {{"temperature": 3.0}}.'
        )
    pd.set_option("display.precision", 4)
    pd.set_option("display.max_colwidth", None)
    given: dict[str, Any] = {name: namespace.get(name) for name in PARAMETERS}
    experiment = Experiment.open(**given, system=system)
    if experiment.recipe.execution.threads:
        torch.set_num_threads(experiment.recipe.execution.threads)
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


def _source_sha256(path: Path) -> str:
    notebook = nbformat.read(path, as_version=4)
    source = "\0".join(f"{cell.cell_type}\0{cell.source}" for cell in notebook.cells)
    return hashlib.sha256(source.encode()).hexdigest()


@cache
def _package_sha256(system: str) -> str:
    """Digest of the package's code, without that which belongs to other systems alone."""
    package = Path(tbkd_utils.__file__).parent
    others = [folder for folder in (package / "systems").iterdir() if folder.is_dir() and folder.name != system]
    files = [file for file in sorted(package.rglob("*.py")) if not any(other in file.parents for other in others)]
    return hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()


def _stamps(folder: Path) -> dict[str, int]:
    return {entry.name: entry.stat().st_mtime_ns for entry in folder.glob("*")} if folder.is_dir() else {}
