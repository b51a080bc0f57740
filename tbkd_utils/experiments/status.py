"""What of a series and its grid is done, running, failed and waiting, as found on disk; and the time left."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.notebooks import FAILED, RECORD, Job, NotebookJob, state_of
from tbkd_utils.experiments.series import plan
from tbkd_utils.runs import ENVIRONMENT, PROGRESS, Run, read_json


def step_states(experiment: Experiment, notebooks: Path | None = None, only: Sequence[str] = ()) -> pd.DataFrame:
    """Looks at every step of the series and its grid.

    Args:
        experiment: Recipe, data and output folder.
        notebooks: The folder of the notebooks; None for the project's own.
        only: Beginnings of the names of notebooks; empty for all.

    Returns:
        One row per step: step, state (`done`, `running`, `failed`, `waiting`), seconds (taken, if done; else the
        estimate: the median of this recipe's finished notebooks and trainings of the same kind; nan if there is none),
        note (the epoch that a training has reached, or what went wrong).
    """
    rows = []
    overhead, training = _seconds_of_notebooks(experiment.runs), _seconds_of_trainings(experiment)
    for step in plan(experiment, notebooks, only=only):
        job, state, note = step.job, state_of(step.job), ""
        if state == "done":
            seconds = _taken(job)
        else:
            seconds = overhead.get(step.name, math.nan) if isinstance(job, NotebookJob) else 0.0
            run = job.trains
            if run is not None and not run.done:
                progress = read_json(run.file(PROGRESS))
                left = 1 - progress["epoch"] / progress["epochs"] if progress else 1.0
                note = f"epoch {progress['epoch']} of at most {progress['epochs']}" if progress else ""
                seconds += left * training.get(_kind(run), math.nan)
        if state == "failed":
            note = (read_json(job.run.file(FAILED)) or {}).get("message", "")
        rows.append((step.name, state, seconds, note))
    return pd.DataFrame(rows, columns=["step", "state", "seconds", "note"])


def _taken(job: Job) -> float:
    """Seconds that a finished step took."""
    file = job.run.file(RECORD if isinstance(job, NotebookJob) else ENVIRONMENT)
    return float((read_json(file) or {}).get("seconds", math.nan))


def _kind(run: Run) -> str:
    return str(run.settings["kind"])


def summary(rows: pd.DataFrame) -> str:
    """Says in one line how many steps are in which state, and about how long the rest takes, one at a time."""
    counts = [f"{count} {state}" for state, count in rows["state"].value_counts().items()]
    left = rows[rows["state"] != "done"]
    if left.empty:
        return f"{', '.join(counts)}. Nothing is left."
    known = left["seconds"].dropna()
    if known.empty:
        return f"{', '.join(counts)}. The time left is not known before something is done."
    estimate = known.sum() + known.mean() * (len(left) - len(known))
    return f"{', '.join(counts)}. About {max(1, round(estimate / 60))} min left, one step at a time."


def _seconds_of_notebooks(runs: Path) -> dict[str, float]:
    """Median seconds of the finished executions of each notebook, without their training."""
    rows = []
    for path in runs.glob(f"[0-9][0-9]_*/{RECORD}"):
        record = read_json(path)
        if record and "training" in record:
            rows.append((path.parent.name.rpartition("-")[0], record["seconds"] - record["training"]))
    medians = pd.DataFrame(rows, columns=["notebook", "seconds"]).groupby("notebook")["seconds"].median()
    return {str(notebook): float(seconds) for notebook, seconds in medians.items()}


def _seconds_of_trainings(experiment: Experiment) -> dict[str, float]:
    """Median seconds of the finished trainings of each role."""
    found = {}
    for role in experiment.system.roles:
        records = [read_json(path) or {} for path in experiment.runs.glob(f"{role}-*/{ENVIRONMENT}")]
        seconds = [record["seconds"] for record in records if "seconds" in record]
        if seconds:
            found[role] = float(pd.Series(seconds).median())
    return found
