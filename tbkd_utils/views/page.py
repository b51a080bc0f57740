"""The report as one self-contained HTML page: every figure and table, and where each number comes from."""

import base64
import importlib.resources
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jinja2
import pandas as pd
import psutil
import torch
from markupsafe import Markup

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.notebooks import RECORD
from tbkd_utils.experiments.series import plan
from tbkd_utils.models.devices import environment
from tbkd_utils.runs import read_json, write_text
from tbkd_utils.systems.tb.tables import comparability

PAGE = "report.html"


@dataclass(frozen=True)
class Item:
    """A part of the page: one artefact of the paper or one of ours.

    Attributes:
        title: Its heading.
        note: How to read it, one or two sentences.
        figures: Names of figures in the figures folder, without ending.
        tables: Names of tables there, without ending.
    """

    title: str
    note: str
    figures: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


ITEMS = (
    Item("The radiographs", "What was trained, monitored and tested on.", ("radiographs", "preprocessing"),
         ("radiographs_used",)),
    Item("Figure 3: the method", "The teacher sees labels; the student sees labels and the teacher's softened answers.",
         ("figure_3_framework", "explained_softening")),
    Item("Training", "The loss per epoch; the student's is equation 1, so its height is not the teacher's.",
         ("training_both",)),
    Item("Table 4: classification", "Value with its 95% interval over test radiographs, beside the paper's.",
         (), ("table_4_classification",)),
    Item("Figure 4: from heatmap to boxes", "Algorithm 1, step by step.", ("figure_4_heatmap_to_boxes",)),
    Item("Figure 5: examples", "Ground truth green, teacher orange, student blue; IoU in the corner.",
         ("figure_5_qualitative",)),
    Item("Figure 6 and Table 3, one seed", "mIOU with its 95% interval over radiographs.",
         ("figure_6_miou", "paired_scores"), ("table_3_one_seed", "student_minus_teacher")),
    Item("Localisation by every metric", "The row “score” is the paper's mIOU; the curves run over the threshold.",
         ("threshold_curves",), ("localization",)),
    Item("The known shortcut", "Share of heatmap energy on the synthetic corner token.",
         (), ("shortcut",)),
    Item("Tables 1 and 2, Figure 7: curvature", "Eigenvalues with residuals, traces with 95% intervals over probes.",
         ("figure_7_spectral_density",), ("table_1_eigenvalues", "table_2_trace")),
    Item("Is the student's minimum flatter?", "Teacher over student on the same radiographs, by sample size.",
         ("hessian_sample_size", "loss_landscape"), ("hessian_ratio", "loss_rise")),
    Item("Flatness and localisation", "The paper's causal story: a flatter minimum, therefore better boxes.",
         ("flatness_and_miou",), ("flatness_correlation",)),
    Item("Figure 8: temperature", "Bands: 95% over radiographs. “best”: share of resamples in which a value wins.",
         ("figure_8_temperature",), ("figure_8_temperature",)),
    Item("Figure 9: alpha", "Bands: 95% over radiographs. Alpha 1 would be labels only.",
         ("figure_9_alpha",), ("figure_9_alpha",)),
    Item("Table 3: seeds, and the controls", "Each mark is one training. The controls have the student's budget.",
         ("table_3_seeds",), ("table_3_seeds", "table_3_arms", "table_3_differences")),
    Item("What the paper leaves open", "The settings that decide it, and their values here.", (), ("left_open",)),
)  # fmt: skip


def write_page(experiment: Experiment, verdicts: pd.DataFrame, summary: str) -> Path:
    """Writes `runs/<recipe>/report.html`; figures and tables are taken from the figures folder as they are there.

    Args:
        experiment: Recipe, data and output folder.
        verdicts: From `verdicts.verdicts`.
        summary: What the run shows, as lines that begin with `- `.

    Returns:
        The page's path.

    Raises:
        RunError: If it cannot be written.
    """
    source = importlib.resources.files("tbkd_utils.views").joinpath("report.html.j2").read_text()
    environment_ = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment_.from_string(source).render(
        recipe=experiment.recipe,
        synthetic=experiment.synthetic,
        fingerprint=experiment.fingerprint,
        summary=[line.removeprefix("- ") for line in summary.splitlines()],
        verdicts=_html(verdicts),
        reasons=comparability(experiment),
        items=[_item(experiment, item) for item in ITEMS if experiment.synthetic or "shortcut" not in item.tables],
        settings=_html(pd.DataFrame(experiment.recipe.settings(), columns=["part", "setting", "value", "meaning"])),
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
    for step in plan(experiment):
        record = read_json(step.run.file(RECORD))
        if record:
            rows.append((step.name, record["seconds"], record["training"]))
    return pd.DataFrame(rows, columns=["step", "seconds", "of which training"])


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
