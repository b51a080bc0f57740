"""The report as one self-contained HTML page: every figure and table, and where each number comes from."""

import base64
import importlib.resources
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import jinja2
import pandas as pd
import psutil
import torch
from markupsafe import Markup

from tbkd_utils.errors import NotebookError
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.grid import all_variants
from tbkd_utils.experiments.notebooks import RECORD
from tbkd_utils.experiments.series import find_notebooks, plan, training_steps
from tbkd_utils.experiments.system import Item, System
from tbkd_utils.models.devices import environment
from tbkd_utils.runs import ENVIRONMENT, read_json, write_text

PAGE = "report.html"


def write_page(experiment: Experiment, verdicts: pd.DataFrame, summary: str, reasons: Sequence[str] = ()) -> Path:
    """Writes `runs/<recipe>/report.html`; figures and tables are taken from the figures folder as they are there.

    Args:
        experiment: Recipe, data and output folder.
        verdicts: From `verdicts.verdicts`.
        summary: What the run shows, as lines that begin with `- `.
        reasons: Why its numbers cannot be set against the paper's.

    Returns:
        The page's path.

    Raises:
        RunError: If it cannot be written.
    """
    source = importlib.resources.files("tbkd_utils.views").joinpath("report.html.j2").read_text()
    environment_ = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment_.from_string(source).render(
        heading=_heading(experiment.system),
        recipe=experiment.recipe,
        synthetic=experiment.synthetic,
        fingerprint=experiment.fingerprint,
        summary=[line.removeprefix("- ") for line in summary.splitlines()],
        verdicts=_html(verdicts),
        reasons=list(reasons),
        items=[
            _item(experiment, item)
            for item in experiment.system.report
            if experiment.synthetic or "shortcut" not in item.tables
        ],
        settings=_html(pd.DataFrame(experiment.recipe.settings(), columns=["group", "setting", "value", "meaning"])),
        versions=_html(machine()),
        times=_html(times(experiment)),
    )
    return write_text(experiment.runs / PAGE, page)


def machine() -> pd.DataFrame:
    """Returns what the numbers were computed with: name and value of hardware and versions."""
    names = ("tbkd-utils", "torch", "torchvision", "lightning", "captum", "timm", "numpy", "pyhessian")
    rows = [("Python", platform.python_version()), *((name, version(name)) for name in names)]
    rows += [
        ("machine", f"{platform.system()} {platform.machine()}, {psutil.cpu_count(logical=False)} CPU cores"),
        ("memory", f"{psutil.virtual_memory().total / 2**30:.0f} GiB"),
        ("device", str(environment()["device"])),
        ("GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none"),
    ]
    return pd.DataFrame(rows, columns=["what", "value"])


def times(experiment: Experiment) -> pd.DataFrame:
    """Returns how long each finished step of the series and its grid took.

    Returns:
        One row per finished step: step, seconds, and how many of them went into the training of its network; a network
        that was trained earlier took none.
    """
    rows = []
    try:
        find_notebooks(system=experiment.recipe.system)
    except NotebookError:  # a system without notebooks, or an installation without the project's folder
        steps = training_steps(experiment, all_variants(experiment))
    else:
        steps = plan(experiment)
    for step in steps:
        record = read_json(step.job.run.file(RECORD)) or read_json(step.job.run.file(ENVIRONMENT))
        if record:
            rows.append((step.name, record["seconds"], record.get("training", record["seconds"])))
    return pd.DataFrame(rows, columns=["step", "seconds", "of which training"])


def _heading(system: System) -> str:
    """What the system does, for the top of the page."""
    words = system.task.words
    distilled = any(role.teacher is not None for role in system.roles.values())
    return f"{words[:1].upper()}{words[1:]} localization{' by distillation' if distilled else ''}"


def _item(experiment: Experiment, item: Item) -> dict:
    figures, tables = [], []
    for name in item.figures:
        path = experiment.figures / f"{name}.png"
        if path.is_file():
            figures.append((name.replace("_", " "), base64.b64encode(path.read_bytes()).decode()))
    for name in item.tables:
        path = experiment.figures / f"{name}.csv"
        if path.is_file():
            tables.append(_html(pd.read_csv(path)))
    return {"title": item.title, "note": item.note, "figures": figures, "tables": tables}


def _html(table: pd.DataFrame) -> Markup:
    shown = table.map(lambda value: f"{value:.4g}" if isinstance(value, float) else value)
    return Markup(shown.to_html(index=False, border=0, na_rep="").replace(">nan<", "><"))
