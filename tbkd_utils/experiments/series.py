"""The series and the grid behind its ablations, through papermill; what is done is not done again."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path

import nbformat
from tqdm import tqdm

import tbkd_utils
from tbkd_utils.experiments.executors import Inline, threads_each
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.grid import (
    STUDENT,
    TEACHER,
    Cell,
    all_cells,
    alpha_cells,
    control_cells,
    distinct,
    seed_cells,
    temperature_cells,
)
from tbkd_utils.experiments.notebooks import TRAINS, NotebookError, Outcome, Step, execute
from tbkd_utils.runs import read_json, write_json, write_text

TRAINED_BY = {role: number for number, role in TRAINS.items()}


def series(folder: Path | None = None) -> list[Path]:
    """Returns the numbered notebooks in order.

    Args:
        folder: Where they are; None for the `notebooks` folder beside this package.

    Raises:
        NotebookError: If there are none.
    """
    folder = folder if folder is not None else Path(tbkd_utils.__file__).resolve().parent.parent / "notebooks"
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise NotebookError(
            f"{folder}: there are no notebooks here. Clone the whole repository and install from it, or name the "
            "folder with --notebooks."
        )
    return found


def plan(experiment: Experiment, notebooks: Path | None = None, *, jobs: int = 1) -> list[Step]:
    """Returns every step of the series in order, the cells of the grid before the notebooks that gather them.

    Args:
        experiment: Recipe, data and output folder.
        notebooks: The folder of the notebooks; None for the project's own.
        jobs: Steps at a time on this machine; each gets its share of the CPU threads unless the recipe says how many.
    """
    if jobs > 1 and not experiment.recipe.threads:
        experiment = experiment.changed(threads=threads_each(jobs))
    paths, recipe = series(notebooks), experiment.recipe
    cells = {step.name: step for step in cell_steps(experiment, all_cells(recipe), paths)}
    names = _names(experiment, all_cells(recipe), paths)
    gathers = {
        "06": seed_cells(recipe),
        "07": temperature_cells(recipe),
        "08": alpha_cells(recipe),
        "09": seed_cells(recipe) + control_cells(recipe),
    }
    steps: list[Step] = []
    for path in paths:
        number = path.stem[:2]
        needed = [names[cell.identity] for cell in gathers.get(number, ()) if names]
        steps += [cells.pop(name) for name in needed if name in cells]
        before = steps[-1:]  # by default a notebook needs the one before it
        if number == "10":
            before = steps
        elif number in ("04", "05", *gathers) and names:
            before = [step for step in steps if step.notebook.stem[:2] == TRAINED_BY[STUDENT] and not step.cell]
        steps.append(Step(path.stem, path, experiment, tuple(dict.fromkeys([*(s.name for s in before), *needed]))))
    return steps


def cell_steps(experiment: Experiment, cells: Iterable[Cell], notebooks: Sequence[Path] | None = None) -> list[Step]:
    """Returns a step for each cell of the grid that is not the experiment's own teacher or student.

    A student comes after its teacher's step, where there is one.
    """
    cells = distinct(cells)
    paths = {path.stem[:2]: path for path in (notebooks if notebooks is not None else series())}
    names = _names(experiment, cells, list(paths.values()))
    steps = []
    for cell in cells:
        name = names.get(cell.identity)
        if name is None or "(" not in name:
            continue
        needed = Cell(TEACHER, cell.value, cell.recipe) if cell.role == STUDENT and cell.arm == STUDENT else None
        teacher = names.get(needed.identity) if needed else None
        after = tuple(name for name in (paths["01"].stem if "01" in paths else None, teacher) if name)
        steps.append(Step(name, paths[TRAINED_BY[cell.role]], cell.within(experiment), after, cell=True))
    return steps


def _names(experiment: Experiment, cells: Iterable[Cell], paths: Sequence[Path]) -> dict[tuple, str]:
    """The name of the step that trains each cell, by the cell's identity; none without notebooks 02 and 03."""
    by_number = {path.stem[:2]: path for path in paths}
    if not set(TRAINS) <= set(by_number):
        return {}
    own, names = experiment.recipe, {}
    for cell in cells:
        changes = {
            key: value
            for key, value in cell.recipe.part("training", "distillation").items()
            if value != getattr(own, key) and (key, value) in cell.identity
        }
        stem = by_number[TRAINED_BY[cell.role]].stem
        varied = ", ".join(f"{key}={value}" for key, value in changes.items())
        names[cell.identity] = f"{stem} ({varied})" if changes else stem
    return names


def run(
    steps: Sequence[Step],
    executor: Executor | None = None,
    *,
    at_a_time: int | None = 1,
    announce: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> list[Outcome]:
    """Executes steps, each as soon as those before it are done; a failure stops only what depends on it.

    Args:
        steps: What to execute; a step's `after` names steps of this list, other names count as done.
        executor: Anything with the interface of `concurrent.futures`; None for one step at a time in this process.
        at_a_time: Steps handed to the executor at a time; None for all that are ready.
        announce: Called with a line when a step starts and when it ends.
        progress: Whether to show the notebooks' own progress bars.

    Returns:
        One outcome per step, in the order of the steps.
    """
    executor = executor if executor is not None else Inline()
    outcomes: dict[str, Outcome] = {}
    running: dict[Future, Step] = {}
    waiting = list(steps)
    known = {step.name for step in steps}
    while waiting or running:
        for step in list(waiting):
            before = [name for name in step.after if name in known]
            lost = [name for name in before if name in outcomes and outcomes[name].state in ("failed", "not run")]
            if lost:
                waiting.remove(step)
                outcomes[step.name] = Outcome(step.name, step.task.path, "not run", message=f"needs {lost[0]}")
                announce(f"{step.name}: not run, since it needs {lost[0]}")
            elif all(name in outcomes for name in before) and (at_a_time is None or len(running) < at_a_time):
                waiting.remove(step)
                task = step.task
                if task.done:
                    outcomes[step.name] = Outcome(step.name, task.path, "already done")
                    announce(f"{step.name}: already done")
                else:
                    announce(f"{step.name}: running")
                    running[executor.submit(execute, task, progress)] = step
        finished, _ = wait(running, return_when=FIRST_COMPLETED) if running else (set(), None)
        for future in finished:
            step = running.pop(future)
            outcome = outcomes[step.name] = _outcome(future, step)
            took = f" in {outcome.seconds:.0f} s" if outcome.state == "done" else ""
            announce(f"{step.name}: {outcome.state}{took}{': ' + outcome.message if outcome.message else ''}")
    return [outcomes[step.name] for step in steps]


def reproduce(
    experiment: Experiment,
    notebooks: Path | None = None,
    executor: Executor | None = None,
    *,
    jobs: int | None = 1,
    announce: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> list[Outcome]:
    """Executes the series and its grid, each notebook with this experiment's parameters.

    A notebook is skipped if its source, the package, the settings and the data are those of an earlier execution and
    the figures it wrote are still there.

    Args:
        experiment: Recipe, data and output folder.
        notebooks: The folder of the notebooks; None for the project's own.
        executor: Where; None for one notebook at a time in this process.
        jobs: Notebooks at a time; None for as many as the executor takes.
        announce: Called with a line when a notebook starts and when it ends.
        progress: Whether to show the notebooks' own progress bars.

    Returns:
        One outcome per step.

    Raises:
        NotebookError: After everything that could be done, if a notebook failed: names each and its cell.
    """
    note_dataset(experiment, announce)
    outcomes = run(plan(experiment, notebooks, jobs=jobs or 1), executor, at_a_time=jobs, announce=announce,
                   progress=progress)  # fmt: skip
    raise_failures(outcomes)
    return outcomes


def run_cells(experiment: Experiment, cells: Iterable[Cell]) -> None:
    """Executes those cells of the grid that are not done, one after the other, with a progress bar; for notebooks.

    Raises:
        NotebookError: After everything that could be done, if a cell failed.
    """
    steps = [step for step in cell_steps(experiment, cells) if not step.done]
    if steps:
        with tqdm(total=len(steps), desc="grid", unit="cell") as bar:

            def announce(line: str) -> None:
                bar.set_postfix_str(line) if line.endswith("running") else bar.update()

            raise_failures(run(steps, announce=announce))


def raise_failures(outcomes: Sequence[Outcome]) -> None:
    """Raises a `NotebookError` that names every failure, if there is one."""
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if failed:
        left = sum(outcome.state == "not run" for outcome in outcomes)
        count = f"{len(failed)} of {len(outcomes)} notebooks failed"
        count += f", {left} that need them were not run" if left else ""
        messages = "\n".join(f"- {outcome.name}: {outcome.message}" for outcome in failed)
        raise NotebookError(f"{count}; the rest is done and will not be done again.\n{messages}")


def note_dataset(experiment: Experiment, announce: Callable[[str], None]) -> None:
    """Says if the radiographs under the same name are not those of the last run, and remembers the present ones."""
    name = str(experiment.data) if experiment.data is not None else "synthetic"
    path = experiment.runs / "datasets.json"
    known = read_json(path) or {}
    before, now = known.get(name), experiment.fingerprint
    if before not in (None, now):
        announce(
            f"The radiographs of {name} changed since the last run (fingerprint {before[:12]}, now {now[:12]}): all "
            "that depends on them is made anew; what was made before is kept beside it."
        )
    if before != now:
        write_json(path, known | {name: now})


def keep_outputs(outcomes: Sequence[Outcome], notebooks: Path | None = None) -> None:
    """Copies the outputs of executed notebooks into the notebooks themselves, so that they read well unexecuted.

    Args:
        outcomes: What `reproduce` returned.
        notebooks: The folder of the notebooks; None for the project's own.
    """
    executed = {outcome.name: outcome.path for outcome in outcomes}
    for path in series(notebooks):
        notebook = nbformat.read(path, as_version=4)
        ran = {cell["id"]: cell for cell in nbformat.read(executed[path.stem], as_version=4).cells}
        for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
            cell.outputs, cell.execution_count = ran[cell["id"]].outputs, number
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = number
        write_text(path, nbformat.writes(notebook) + "\n")


def _outcome(future: Future, step: Step) -> Outcome:
    try:
        return future.result()
    except Exception as error:  # a lost worker, a full disk: this step's failure, not the grid's
        return Outcome(step.name, step.task.path, "failed", message=f"{type(error).__name__}: {error}")
