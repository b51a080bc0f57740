"""This system's tables of results in the README, as Markdown, made from the committed tables of a run."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

LABELS = {
    "second teacher": "control: second teacher, another seed",
    "label smoothing": "control: label smoothing, no teacher",
    "untrained teacher's student": "control: student of an untrained teacher",
}
METRICS = {"accuracy": "accuracy", "auc": "AUC", "sensitivity": "sensitivity", "specificity": "specificity"}


def seeds_table(folder: Path) -> str:
    """Returns mIOU over seeds, ours beside the paper's, as Markdown.

    Args:
        folder: Holds `table_3_conditions.csv`.
    """
    table = pd.read_csv(folder / "table_3_conditions.csv")
    matched = "matched" in table  # not in tables of older runs
    header = ["| | here: mean (interval), sample std | paper: mean, std as printed |", "|---|---|---|"]
    lines = [f"{header[0]} here, one-to-one IoU |", f"{header[1]}---|"] if matched else header
    for row in table.to_dict("records"):
        paper = f" {row['paper_mean']:.3f}, {row['paper_std']:.3f} |" if pd.notna(row["paper_mean"]) else " |"
        ours = f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        ours += f", {row['sample_std']:.3f}" if pd.notna(row["sample_std"]) else ""
        one_to_one = (
            f" {row['matched']:.3f} ({row['matched_low']:.3f} to {row['matched_high']:.3f}) |" if matched else ""
        )
        lines.append(f"| {_label(row['condition'])} | {ours} |{paper}{one_to_one}")
    return "\n".join(lines)


def _label(condition: str) -> str:
    """A condition's name in the README; a blind guess says that its interval is not over seeds."""
    guess = condition.removeprefix("blind: ")
    if guess != condition:
        return f"best box-free guess: {guess} (interval over radiographs)"
    return LABELS.get(condition, condition)


def differences_table(folder: Path) -> str:
    """Returns the student against its teacher and the controls, as Markdown.

    Args:
        folder: Holds `table_3_differences.csv`.
    """
    lines = ["| difference | mean | 95% interval over seeds | over radiographs |", "|---|---|---|---|"]
    for row in pd.read_csv(folder / "table_3_differences.csv").to_dict("records"):
        if row["comparison"].startswith("student - "):
            seeds, images = (f"{row[f'{of}_low']:+.3f} to {row[f'{of}_high']:+.3f}" for of in ("seed", "image"))
            other = row["comparison"].replace("untrained teacher's student", "student of an untrained teacher")
            lines.append(f"| {other} | {row['difference']:+.3f} | {seeds} | {images} |")
    return "\n".join(lines)


def classification_table(folder: Path) -> str:
    """Returns Table 4 of one seed beside the paper's, as Markdown.

    Args:
        folder: Holds `table_4_classification.csv`.
    """
    lines = ["| Table 4, seed 42 | teacher | student | paper, teacher | paper, student |", "|---|---|---|---|---|"]
    table = pd.read_csv(folder / "table_4_classification.csv").set_index("metric")
    for metric, name in METRICS.items():
        row = table.loc[metric]
        ours = [
            f"{row[who]:.3f} ({row[f'{who} low']:.3f} to {row[f'{who} high']:.3f})" for who in ("teacher", "student")
        ]
        paper = [f"{row[f'{who} paper']:.4f}" for who in ("teacher", "student")]
        lines.append(f"| {name} | {' | '.join([*ours, *paper])} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[Path], str]] = {
    "seeds": seeds_table,
    "differences": differences_table,
    "classification": classification_table,
}
"""By the name of their place in the README."""
