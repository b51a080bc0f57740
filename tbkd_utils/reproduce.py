"""The series, one notebook after the other through papermill; what is done is not done again."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillException, PapermillExecutionError

from tbkd_utils.errors import TbkdError
from tbkd_utils.experiment import Experiment
from tbkd_utils.runs import Run, file_sha256, write_json, write_text

RECORD = "record.json"


class NotebookError(TbkdError, RuntimeError):
    """A notebook that is missing, or failed in one of its cells."""


@dataclass(frozen=True)
class Executed:
    """One notebook of the series after `reproduce`.

    Attributes:
        name: Its file name without the ending, such as `02_teacher`.
        path: The executed copy.
        skipped: Whether an earlier call had executed it already.
    """

    name: str
    path: Path
    skipped: bool


def series(folder: Path | None = None) -> list[Path]:
    """Returns the numbered notebooks in order.

    Args:
        folder: Where they are; None for the `notebooks` folder beside this package.

    Raises:
        NotebookError: If there are none.
    """
    folder = folder if folder is not None else Path(__file__).resolve().parent.parent / "notebooks"
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise NotebookError(
            f"{folder}: there are no notebooks here. Clone the whole repository and install from it, or name the "
            "folder with --notebooks."
        )
    return found


def reproduce(
    experiment: Experiment,
    notebooks: Path | None = None,
    *,
    announce: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> list[Executed]:
    """Executes the series in order, each notebook with this experiment's parameters.

    A notebook is skipped if its source, the package, the settings and the data are those of an earlier execution and
    the figures it wrote are still there.

    Args:
        experiment: Recipe, data and output folder.
        notebooks: The folder of the notebooks; None for the project's own.
        announce: Called with a line before and after each notebook.
        progress: Whether to pass the notebooks' standard error (progress bars) on.

    Returns:
        One entry per notebook.

    Raises:
        NotebookError: At the first notebook that fails, naming it and its cell; its executed copy is kept.
    """
    executed = []
    for path in series(notebooks):
        run = _run_of(experiment, path)
        with run.making() as needed:
            missing = [] if needed else [name for name in _figures_of(run) if not (experiment.figures / name).exists()]
            if needed or missing:
                announce(f"{path.stem}: running")
                before = _stamps(experiment.figures)
                _execute(experiment, path, run, progress)
                after = _stamps(experiment.figures)
                write_json(run.file(RECORD), {"figures": sorted(k for k in after if after[k] != before.get(k))})
                run.finish()
            announce(f"{path.stem}: {'done' if needed or missing else 'already done'}")
        executed.append(Executed(path.stem, run.file(path.name), not (needed or missing)))
    return executed


def parameters(experiment: Experiment) -> dict[str, Any]:
    """Returns what the notebooks' parameters cell gets for this experiment."""
    return {
        "recipe": experiment.recipe.name,
        "data": str(experiment.data) if experiment.data is not None else None,
        "out": str(experiment.out),
        "overrides": experiment.recipe.overrides(),
    }


def keep_outputs(executed: list[Executed], notebooks: Path | None = None) -> None:
    """Copies the outputs of executed notebooks into the notebooks themselves, so that they read well unexecuted.

    Args:
        executed: What `reproduce` returned.
        notebooks: The folder of the notebooks; None for the project's own.
    """
    outputs = {entry.name: nbformat.read(entry.path, as_version=4) for entry in executed}
    for path in series(notebooks):
        notebook = nbformat.read(path, as_version=4)
        ran = {cell["id"]: cell for cell in outputs[path.stem].cells}
        for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
            cell.outputs, cell.execution_count = ran[cell["id"]].outputs, number
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = number
        write_text(path, nbformat.writes(notebook) + "\n")


def _run_of(experiment: Experiment, path: Path) -> Run:
    notebook = nbformat.read(path, as_version=4)
    source = "\0".join(f"{cell.cell_type}\0{cell.source}" for cell in notebook.cells)
    package = "".join(file_sha256(module) for module in sorted(Path(__file__).parent.glob("*.py")))
    recipe = experiment.recipe
    parts = sorted({part for part, *_ in recipe.settings()} - {"label", "execution"})
    settings = recipe.part(*parts) | {
        "source": hashlib.sha256(source.encode()).hexdigest(),
        "package": hashlib.sha256(package.encode()).hexdigest(),
        "fingerprint": experiment.fingerprint,
    }
    return experiment.run_at(path.stem, settings)


def _execute(experiment: Experiment, path: Path, run: Run, progress: bool) -> None:
    output = run.file(path.name)
    try:
        papermill.execute_notebook(
            path,
            output,
            parameters=parameters(experiment),
            kernel_name="python3",
            progress_bar=False,
            stderr_file=sys.stderr if progress else None,
            extra_arguments=["--log-level=ERROR"],  # of the kernel, which warns of its own plain local connection
        )
    except PapermillExecutionError as error:
        begins = error.source.strip().splitlines()[0]
        raise NotebookError(
            f"{path.name} failed in cell {error.cell_index + 1}, which begins '{begins}': "
            f"{error.ename}: {error.evalue}\nThe notebook as far as it ran: {output}"
        ) from None
    except (PapermillException, RuntimeError) as error:
        raise NotebookError(f"{path.name} could not be executed: {error}. See {output}.") from error


def _figures_of(run: Run) -> list[str]:
    return json.loads(run.file(RECORD).read_text())["figures"]


def _stamps(folder: Path) -> dict[str, int]:
    return {entry.name: entry.stat().st_mtime_ns for entry in folder.glob("*")} if folder.is_dir() else {}
