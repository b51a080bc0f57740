"""Figures and tables as files: the same content gives the same bytes."""

import io
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.runs import write_bytes, write_text


def save_figure(experiment: Experiment, figure: Figure, name: str) -> Figure:
    """Writes a figure as `<name>.png` and `<name>.svg` into the figures folder; returns it for showing.

    Raises:
        RunError: If it cannot be written.
    """
    for suffix, options in ((".svg", {"metadata": {"Date": None}, "dpi": 72}), (".png", {"dpi": 110})):
        drawn = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": name}):  # the same figure gives the same bytes
            figure.savefig(drawn, format=suffix[1:], bbox_inches="tight", **options)
        write_bytes(experiment.figures / f"{name}{suffix}", drawn.getvalue())
    return figure


def save_table(experiment: Experiment, table: pd.DataFrame, name: str, digits: int = 4) -> pd.DataFrame:
    """Writes a table as `<name>.csv` (12 digits) and `<name>.md` (rounded); returns it for showing.

    12 digits hide what a sum's order changes in the last ones. They do not make networks that were trained on
    different processors equal.

    Raises:
        RunError: If it cannot be written.
    """
    shown = table.map(lambda value: _cell(value, digits))
    sides = ["right" if pd.api.types.is_numeric_dtype(dtype) else "left" for dtype in table.dtypes]
    markdown = shown.to_markdown(index=False, disable_numparse=True, colalign=sides if len(table) else None)
    write_text(experiment.figures / f"{name}.md", f"{markdown}\n")
    csv = table.to_csv(index=False, lineterminator="\n", float_format="%.12g")
    write_text(experiment.figures / f"{name}.csv", csv)
    return table


def _cell(value: Any, digits: int) -> str:
    """A table's cell as text: floats rounded, tiny ones as a power of ten, nothing where there is no value."""
    if isinstance(value, float):
        if np.isnan(value):
            return ""
        return f"{value:.0e}" if 0 < abs(value) < 0.5 * 10**-digits else f"{value:.{digits}f}"
    return "" if value is None else str(value)
