"""The series of a system's notebooks and the grid behind its ablations; what is done is not done again."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import nbformat
from tqdm import tqdm

import tbkd_utils
from tbkd_utils.errors import NotebookError
from tbkd_utils.experiments.executors import Inline, threads_each
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.grid import all_variants, changes, distinct, identity, within
from tbkd_utils.experiments.notebooks import Job, NotebookJob, Outcome, TrainingJob, execute, metadata
from tbkd_utils.experiments.recipe import DEFAULT_SYSTEM
from tbkd_utils.experiments.system import Variant
from tbkd_utils.runs import read_json, write_json, write_text


@dataclass(frozen=True)
class Step:
    """A job, and what has to be done before it.

    Attributes:
        job: What is done.
        after: Names of the steps that have to be done first.
    """

    job: Job
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How it is called in messages."""
        return self.job.name


def notebook_folder() -> Path:
    """Returns the folder of the project's own notebooks."""
    return Path(tbkd_utils.__file__).resolve().parent.parent / "notebooks"


def find_notebooks(folder: Path | None = None, system: str = DEFAULT_SYSTEM, only: Sequence[str] = ()) -> list[Path]:
    """Returns the numbered notebooks of a system in order.

    Args:
        folder: Where they are; None for the project's own.
        system: Which system's, by the notebooks' own metadata.
        only: Beginnings of names, such as `04`; empty for all.

    Raises:
        NotebookError: If there are none, or one of `only` fits none.
    """
    folder = folder if folder is not None else notebook_folder()
    found = [path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")) if metadata(path)["system"] == system]
    if not found:
        raise NotebookError(
            f"{folder}: there are no notebooks of the system '{system}' here. Clone the whole repository and install "
            "from it, or name the folder with --notebooks."
        )
    for start in only:
        if not any(path.stem.startswith(start) for path in found):
            raise NotebookError(f"No notebook begins with '{start}': expected {', '.join(p.stem for p in found)}.")
    return [path for path in found if not only or path.stem.startswith(tuple(only))]


def plan(
    experiment: Experiment, notebooks: Path | None = None, *, jobs: int = 1, only: Sequence[str] = ()
) -> list[Step]:
    """Returns every step of the series in order, the trainings of a grid before the notebooks that gather them.

    What a notebook needs stands in its own metadata; see `notebooks.metadata`.

    Args:
        experiment: Recipe, data and output folder.
        notebooks: The folder of the notebooks; None for the project's own.
        jobs: Steps at a time on this machine; each gets its share of the CPU threads unless the recipe says how many.
        only: Beginnings of the names of notebooks to run; empty for all.
    """
    if jobs > 1 and not experiment.recipe.execution.threads:
        experiment = experiment.changed(threads=threads_each(jobs))
    paths = find_notebooks(notebooks, experiment.recipe.system, only)
    said = {path: metadata(path) for path in paths}
    trained_by = {entry["trains"]: path.stem for path, entry in said.items() if "trains" in entry}
    trainings = {step.name: step for step in training_steps(experiment, all_variants(experiment), trained_by)}
    steps: list[Step] = []
    for path in paths:
        entry = said[path]
        variants = [v for grid in entry.get("grid", ()) for v in _grid(experiment, path, grid)]
        gathered = [_name(experiment, variant, trained_by) for variant in variants]
        steps += [trainings.pop(name) for name in dict.fromkeys(gathered) if name in trainings]
        needs = [trained_by[role] for role in entry.get("needs", ()) if trained_by.get(role, path.stem) != path.stem]
        others = [name for name in dict.fromkeys([*needs, *gathered]) if name != path.stem]  # its own is no need
        steps.append(Step(NotebookJob.of(path, experiment), tuple(others)))
    last = {path.stem for path, entry in said.items() if entry.get("after") == "all"}
    first = tuple(step.name for step in steps if step.name not in last)
    return [replace(step, after=first) if step.name in last else step for step in steps]


def training_steps(
    experiment: Experiment, variants: Iterable[Variant], trained_by: dict[str, str] | None = None
) -> list[Step]:
    """Returns a step for each network of a grid; a student comes after its teacher's step, where there is one.

    Args:
        experiment: Recipe, data and output folder.
        variants: The networks.
        trained_by: Role to the notebook that trains the experiment's own network of it, which gets no step here.
    """
    trained_by, variants = trained_by or {}, distinct(experiment, variants)
    names = {identity(experiment, variant): _name(experiment, variant, trained_by) for variant in variants}
    steps = []
    for variant in variants:
        name, inside = names[identity(experiment, variant)], within(experiment, variant)
        if name in trained_by.values():
            continue
        teacher = inside.role(variant.role).teacher
        after: tuple[str, ...] = ()
        if teacher is not None and inside.recipe.distillation.teacher_trained:
            needed = Variant(teacher, teacher, variant.value, variant.recipe)
            known = names.get(identity(experiment, needed), _name(experiment, needed, trained_by))
            after = (known,)
        run = inside.run_at(variant.role, inside.training_settings(variant.role))
        job = TrainingJob(name, variant.role, inside.recipe, experiment.out, experiment.data, run)
        steps.append(Step(job, after))
    return steps


def _grid(experiment: Experiment, notebook: Path, name: str) -> list[Variant]:
    grids = experiment.system.grids
    if name not in grids:
        raise NotebookError(
            f"{notebook}: gathers the grid '{name}', which the system '{experiment.recipe.system}' does not have: "
            f"expected {', '.join(grids) or 'none'}."
        )
    return grids[name](experiment.recipe)


def _name(experiment: Experiment, variant: Variant, trained_by: dict[str, str]) -> str:
    """The name of the step that trains a network: a notebook's for the experiment's own, else by what differs."""
    changed, own = changes(experiment, variant), variant.recipe.name == experiment.recipe.name
    if own and not changed and variant.role in trained_by:
        return trained_by[variant.role]
    differs = ", ".join(f"{key}={value}" for key, value in changed.items())
    name = f"{variant.role} ({differs})" if differs else variant.role
    return name if own else f"{variant.recipe.name}: {name}"


def run(
    steps: Sequence[Step],
    executor: Executor | None = None,
    *,
    at_a_time: int | None = 1,
    announce: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> list[Outcome]:
    """Does steps, each as soon as those before it are done; a failure stops only what depends on it.

    Args:
        steps: What to do; a step's `after` names steps of this list, other names count as done.
        executor: Anything with the interface of `concurrent.futures`; None for one step at a time in this process.
        at_a_time: Steps handed to the executor at a time; None for all that are ready.
        announce: Called with a line when a step starts and when it ends.
        progress: Whether to show the steps' own progress bars.

    Returns:
        One outcome per step, in the order of the steps.

    Raises:
        NotebookError: If steps need each other in a circle.
    """
    executor = executor if executor is not None else Inline()
    outcomes: dict[str, Outcome] = {}
    running: dict[Future, Step] = {}
    named = {step.name: step for step in steps}
    order = TopologicalSorter({name: [before for before in named[name].after if before in named] for name in named})
    try:
        order.prepare()
    except CycleError as error:
        raise NotebookError(f"Steps need each other in a circle: {' needs '.join(reversed(error.args[1]))}.") from None
    ready: list[str] = []

    def ended(outcome: Outcome) -> None:
        outcomes[outcome.name] = outcome
        order.done(outcome.name)

    while order.is_active():
        ready = sorted([*ready, *order.get_ready()], key=list(named).index)
        if ready and (at_a_time is None or len(running) < at_a_time):
            step = named[ready.pop(0)]
            lost = [name for name in step.after if name in outcomes and outcomes[name].state in ("failed", "not run")]
            if lost:
                announce(f"{step.name}: not run, since it needs {lost[0]}")
                ended(Outcome(step.name, step.job.path, "not run", message=f"needs {lost[0]}"))
            elif step.job.done:
                announce(f"{step.name}: already done")
                ended(Outcome(step.name, step.job.path, "already done"))
            else:
                announce(f"{step.name}: running")
                running[executor.submit(execute, step.job, progress)] = step
            continue
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            step = running.pop(future)
            outcome = _outcome(future, step)
            took = f" in {outcome.seconds:.0f} s" if outcome.state == "done" else ""
            announce(f"{step.name}: {outcome.state}{took}{': ' + outcome.message if outcome.message else ''}")
            ended(outcome)
    return [outcomes[step.name] for step in steps]


def reproduce(
    experiment: Experiment,
    notebooks: Path | None = None,
    executor: Executor | None = None,
    *,
    jobs: int | None = 1,
    only: Sequence[str] = (),
    announce: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> list[Outcome]:
    """Executes a system's series and its grid, each notebook with this experiment's parameters.

    A notebook is skipped if its source, the package, the settings and the data are those of an earlier execution and
    the figures it wrote are still there.

    Args:
        experiment: Recipe, data and output folder.
        notebooks: The folder of the notebooks; None for the project's own.
        executor: Where; None for one step at a time in this process.
        jobs: Steps at a time; None for as many as the executor takes.
        only: Beginnings of the names of notebooks to run; empty for all.
        announce: Called with a line when a step starts and when it ends.
        progress: Whether to show the steps' own progress bars.

    Returns:
        One outcome per step.

    Raises:
        NotebookError: After everything that could be done, if a step failed: names each and its cell.
    """
    note_dataset(experiment, announce)
    steps = plan(experiment, notebooks, jobs=jobs or 1, only=only)
    outcomes = run(steps, executor, at_a_time=jobs, announce=announce, progress=progress)
    raise_failures(outcomes)
    return outcomes


def train_variants(experiment: Experiment, variants: Iterable[Variant]) -> None:
    """Trains those networks of a grid that are not trained, one after the other, with a progress bar; for notebooks.

    Raises:
        NotebookError: After everything that could be done, if one failed.
    """
    steps = [step for step in training_steps(experiment, variants) if not step.job.done]
    if steps:
        with tqdm(total=len(steps), desc="grid", unit="network") as bar:

            def announce(line: str) -> None:
                bar.set_postfix_str(line) if line.endswith("running") else bar.update()

            raise_failures(run(steps, announce=announce))


def raise_failures(outcomes: Sequence[Outcome]) -> None:
    """Raises a `NotebookError` that names every failure, if there is one."""
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if failed:
        left = sum(outcome.state == "not run" for outcome in outcomes)
        count = f"{len(failed)} of {len(outcomes)} steps failed"
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
    folder = notebooks if notebooks is not None else notebook_folder()
    for outcome in outcomes:
        path = folder / f"{outcome.name}.ipynb"
        if not path.is_file():
            continue  # a training
        notebook = nbformat.read(path, as_version=4)
        ran = {cell["id"]: cell for cell in nbformat.read(outcome.path, as_version=4).cells}
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
        return Outcome(step.name, step.job.path, "failed", message=f"{type(error).__name__}: {error}")
