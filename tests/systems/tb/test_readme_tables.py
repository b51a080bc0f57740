"""This system's tables in the README, from tables of a run with a blind guess and of an older one without."""

from pathlib import Path

import numpy as np
import pandas as pd

from tbkd_utils.systems.tb.readme import seeds_table

ROWS = pd.DataFrame(
    [
        ("student", 4, 0.2, 0.05, 0.04, 0.1, 0.3, 0.2156, 0.0568, 0.15, 0.1, 0.2),
        ("blind: upper halves of the lungs", 0, 0.4, np.nan, np.nan, 0.35, 0.45, np.nan, np.nan, 0.3, 0.25, 0.35),
    ],
    columns=["condition", "seeds", "mean", "sample_std", "population_std", "low", "high", "paper_mean", "paper_std",
             "matched", "matched_low", "matched_high"],
)  # fmt: skip


def test_a_guess_stands_below_the_networks(tmp_path: Path) -> None:
    ROWS.to_csv(tmp_path / "table_3_conditions.csv", index=False)
    assert seeds_table(tmp_path).splitlines() == [
        "| | here: mean (interval), sample std | paper: mean, std as printed | here, one-to-one IoU |",
        "|---|---|---|---|",
        "| student | 0.200 (0.100 to 0.300), 0.050 | 0.216, 0.057 | 0.150 (0.100 to 0.200) |",
        "| best box-free guess: upper halves of the lungs (interval over radiographs) | 0.400 (0.350 to 0.450) | "
        "| 0.300 (0.250 to 0.350) |",
    ]


def test_tables_of_an_older_run_have_neither_guess_nor_one_to_one_score(tmp_path: Path) -> None:
    older = ROWS[:1].drop(columns=["matched", "matched_low", "matched_high"])
    older.to_csv(tmp_path / "table_3_conditions.csv", index=False)
    assert seeds_table(tmp_path).splitlines() == [
        "| | here: mean (interval), sample std | paper: mean, std as printed |",
        "|---|---|---|",
        "| student | 0.200 (0.100 to 0.300), 0.050 | 0.216, 0.057 |",
    ]
