"""Figures of the audit: the marks are the numbers of the tables."""

import numpy as np
import pandas as pd
import pytest

from tbkd_utils.views.audit_figures import audit_intervals, source_areas


@pytest.fixture
def table() -> pd.DataFrame:
    rows = []
    for number, painted in enumerate(("nothing", "lungs")):
        for who in ("teacher", "student"):
            auc = 0.9 - 0.3 * number - 0.1 * (who == "student")
            rows.append((painted, who, auc, auc - 0.05, auc + 0.05, [np.nan, 0.55][number], 0.6, 0.5, 0.7, 0.4))
    columns = ["painted", "network", "auc", "low", "high", "gray_auc", "energy", "energy_low", "energy_high"]
    return pd.DataFrame(rows, columns=[*columns, "lungs_area"])


def test_each_network_has_its_areas_and_energies(table: pd.DataFrame) -> None:
    left, right = audit_intervals(table).axes
    drawn = {tuple(np.round(line.get_xdata(), 3)) for line in left.lines}
    assert {(0.9, 0.6), (0.8, 0.5)} <= drawn
    assert [text.get_text() for text in left.get_yticklabels()] == ["nothing", "lungs"]
    guesses = right.collections[-1].get_offsets()
    assert np.allclose(guesses[:, 0], 0.4)
    assert all(tuple(np.round(line.get_xdata(), 3)) == (0.6, 0.6) for line in right.lines)


def test_pairs_of_sources_have_a_square_and_pools_a_row() -> None:
    rows = [(who, *pair, 0.9, 0.8, 1.0) for who in ("teacher", "student")
            for pair in (("any", "any"), ("any", "the same source"), ("A", "B"), ("B", "A"))]  # fmt: skip
    swapped = pd.DataFrame(rows, columns=["network", "tb_from", "no_tb_from", "auc", "low", "high"])
    axes = source_areas(swapped).axes
    assert len(axes) == 3
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["any", "the same source"]
    assert sorted(text.get_text() for text in axes[1].texts) == ["0.90", "0.90"]
    alone = source_areas(swapped[swapped["tb_from"] == "any"]).axes
    assert len(alone) == 1
