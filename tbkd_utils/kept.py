"""A computed result kept in a run folder: made once, then read back equal to the last bit."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from tbkd_utils.runs import Run, read_tensors, write_csv, write_json, write_tensors

ARRAYS = "arrays.safetensors"
NUMBERS = "numbers.json"
ROWS = "rows.csv"

Result = TypeVar("Result")


def kept_result(run: Run, kind: type[Result], compute: Callable[[], Result]) -> Result:
    """Returns a result that is a dataclass of arrays, numbers and tuples of numbers.

    Args:
        run: The folder that it is kept in; its settings have to say all that the result depends on.
        kind: The dataclass.
        compute: Called if the folder does not hold it yet.

    Raises:
        RunError: If the folder cannot be written.
    """
    with run.making() as needed:
        if needed:
            found = compute()
            values = {field.name: getattr(found, field.name) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
            arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
            tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
            write_tensors(run.file(ARRAYS), tensors)
            write_json(run.file(NUMBERS), {name: value for name, value in values.items() if name not in arrays})
    stored: dict[str, Any] = {name: tensor.numpy() for name, tensor in read_tensors(run.file(ARRAYS)).items()}
    for name, value in json.loads(run.file(NUMBERS).read_text()).items():
        stored[name] = tuple(value) if isinstance(value, list) else value
    return kind(**stored)


def kept_rows(run: Run, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Returns a table that is kept as a CSV file.

    Args:
        run: As in `kept_result`.
        compute: As in `kept_result`.

    Raises:
        RunError: If the folder cannot be written.
    """
    with run.making() as needed:
        if needed:
            write_csv(run.file(ROWS), compute())
    return pd.read_csv(run.file(ROWS))
