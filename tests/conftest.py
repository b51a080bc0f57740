"""What the tests share: a finished `smoke` experiment, and the real radiographs where they are at hand."""

import os
from pathlib import Path

import pytest

from tbkd_utils.experiments.experiment import Experiment


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Starts with the longest file; leaves the tests on real radiographs out, and says so, without TBKD_DATA."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")  # else one process ends with it, the other idle
    if "TBKD_DATA" not in os.environ:
        real = [item for item in items if item.get_closest_marker("real_data")]
        config.hook.pytest_deselected(items=real)
        items[:] = [item for item in items if item not in real]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real radiographs."""
    return Path(os.environ["TBKD_DATA"])


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A `smoke` experiment in a folder of its own; what one test trains, the next one finds."""
    return Experiment.open("smoke", out=tmp_path_factory.mktemp("smoke"))
