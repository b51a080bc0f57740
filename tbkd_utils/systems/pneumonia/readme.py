"""This system's tables of results in the README, as Markdown, made from the committed tables of a run."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from tbkd_utils.systems.pneumonia.paper import published_table

ARMS = {"none": "not corrected", "sampler": "sampler", "alpha": "weights in the loss", "both": "both (the paper's way)"}
SHOWN = {"score": "mIOU", "matched": "one-to-one IoU", "pointing": "pointing game", "energy": "energy inside"}


def accuracy_table(folder: Path) -> str:
    """Returns the accuracy of every arm, seed and division beside the paper's.

    Args:
        folder: Holds `arms.csv`, `seeds.csv` and `divisions.csv`.
    """
    lines = ["| training | accuracy (95% interval) | ROC AUC |", "|---|---|---|"]
    for row in pd.read_csv(folder / "arms.csv").to_dict("records"):
        lines.append(_accuracy(f"imbalance: {ARMS[row['condition']]}", row))
    own, *others = pd.read_csv(folder / "seeds.csv").to_dict("records")
    for row in others:
        lines.append(_accuracy(f"both, seed {row['seed']:g} instead of {own['seed']:g}", row))
    for row in pd.read_csv(folder / "divisions.csv").to_dict("records"):
        lines.append(_accuracy(f"both, division by patient {row['seed'] + 1:g}", row))
    paper = published_table()
    least, most = (f"{paper['accuracy'].agg(pick):.1%}" for pick in ("min", "max"))
    areas = [f"{paper['roc_auc'].agg(pick):.3f}" for pick in ("min", "max")]
    lines.append(f"| the paper: {len(paper)} networks, its own division | {least} to {most} | {' to '.join(areas)} |")
    return "\n".join(lines)


def leak_table(folder: Path) -> str:
    """Returns what a division by images scores more than one by patients.

    Args:
        folder: Holds `leak.csv`.
    """
    lines = ["| division | by patient | by image | difference |", "|---|---|---|---|"]
    for row in pd.read_csv(folder / "leak.csv").to_dict("records"):
        both = [_interval(row, f"by {who}") for who in ("patient", "image")]
        lines.append(f"| {row['seed'] + 1:g} | {' | '.join(both)} | {row['difference']:+.1%} |")
    return "\n".join(lines)


def looks_table(folder: Path) -> str:
    """Returns the network's boxes and maps on another dataset's boxes, beside blind guesses.

    Args:
        folder: Holds `looks.csv`.
    """
    rows = pd.read_csv(folder / "looks.csv").query("kind == 'all'")
    lines = [f"| | {' | '.join(SHOWN.values())} |", "|---|" + "---|" * len(SHOWN)]
    for name, found in rows.groupby("guess_or_network", sort=False):
        values = {row["metric"]: row for row in found.to_dict("records")}
        told = ["{mean:.3f} ({low:.3f} to {high:.3f})".format_map(values[metric]) for metric in SHOWN]
        who = f"blind guess: {name}" if found["blind"].all() else "the network"
        lines.append(f"| {who} | {' | '.join(told)} |")
    return "\n".join(lines)


def _accuracy(training: str, row: dict) -> str:
    return f"| {training} | {_interval(row, 'accuracy')} | {row['roc_auc']:.3f} |"


def _interval(row: dict, name: str) -> str:
    return f"{row[name]:.1%} ({row[f'{name}_low']:.1%} to {row[f'{name}_high']:.1%})"


TABLES: dict[str, Callable[[Path], str]] = {
    "pneumonia accuracy": accuracy_table,
    "pneumonia leak": leak_table,
    "pneumonia looks": looks_table,
}
"""By the name of their place in the README."""
