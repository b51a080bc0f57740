"""What the notebooks share: opening an experiment from their parameters cell, and naming versions."""

import ast
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import pandas as pd
import torch

from tbkd_utils.experiment import Experiment
from tbkd_utils.recipe import RecipeError

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
