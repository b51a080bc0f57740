"""A result is computed once and read back equal; what was cut short is computed again."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tbkd_utils.runs import ROWS, Run, RunWarning, cached_result, cached_rows


@dataclass(frozen=True)
class Found:
    values: np.ndarray
    flags: np.ndarray
    mean: float
    ends: tuple[float, float]
    count: int


FOUND = Found(np.array([[1 / 3, -0.1]]), np.array([True, False]), 1 / 3, (0.1, float("inf")), 7)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.at(tmp_path, "kind", {"a": 1})


def test_a_result_is_computed_once_and_read_back_to_the_last_bit(run: Run) -> None:
    first = cached_result(run, Found, lambda: FOUND)
    second = cached_result(run, Found, lambda: pytest.fail("computed again"))
    for found in (first, second):
        assert np.array_equal(found.values, FOUND.values)
        assert found.values.dtype == np.float64
        assert found.flags.tolist() == [True, False]
        assert (found.mean, found.ends, found.count) == (FOUND.mean, FOUND.ends, FOUND.count)


def test_a_computation_that_fails_is_not_believed(run: Run) -> None:
    def fail() -> Found:
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        cached_result(run, Found, fail)
    assert cached_result(run, Found, lambda: FOUND).count == 7


def test_a_table_keeps_every_digit_and_is_made_again_if_it_was_changed(run: Run) -> None:
    table = pd.DataFrame({"name": ["a", "b"], "value": [1 / 3, np.nan]})
    pd.testing.assert_frame_equal(cached_rows(run, lambda: table), table, check_exact=True)
    pd.testing.assert_frame_equal(cached_rows(run, lambda: pytest.fail("computed again")), table, check_exact=True)
    run.file(ROWS).unlink()
    with pytest.warns(RunWarning, match="rows.csv is missing"):
        pd.testing.assert_frame_equal(cached_rows(run, lambda: table), table, check_exact=True)
