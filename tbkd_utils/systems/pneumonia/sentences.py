"""What was found, in words: Markdown sentences whose every number is computed from the run."""

import pandas as pd

from tbkd_utils.experiments.comparisons import FAILS, HOLDS, side
from tbkd_utils.metrics.statistics import across_seeds
from tbkd_utils.systems.pneumonia.paper import published_table
from tbkd_utils.systems.pneumonia.tables import larger_class, leak_summary
from tbkd_utils.systems.pneumonia.verdicts import Evidence

_WORDS = {HOLDS: "higher", FAILS: "lower"}


def found_sentences(evidence: Evidence) -> str:
    """Notebook 13: accuracy, imbalance, leak, spread over divisions, and where the maps look."""
    lines = [*_accuracy(evidence), *_arms(evidence), *_leak(evidence), *_looks(evidence)]
    return "\n".join(f"- {line}" for line in lines)


def verdict_sentences(verdicts: pd.DataFrame, evidence: Evidence) -> str:
    """How many claims hold, and why nothing can be set against the paper, if so."""
    counts = verdicts["holds here"].value_counts()
    said = ", ".join(
        f"{counts.get(word, 0)} {words}"
        for word, words in (("yes", "hold"), ("no", "fail"), ("not shown", "are not shown"))
    )
    lines = [f"Of {len(verdicts)} statements here, {said}."]
    if evidence.reasons:
        lines.append(f"None can be set against the paper: {'; '.join(evidence.reasons)}.")
    return "\n".join(f"- {line}" for line in lines)


def _accuracy(evidence: Evidence) -> list[str]:
    own, paper = evidence.scores.iloc[0], published_table()
    larger = larger_class(evidence.experiment)
    lines = [
        f"{own['condition']} is right on {own['accuracy']:.1%} of {own['n']} test radiographs "
        f"({own['accuracy_low']:.1%} to {own['accuracy_high']:.1%}); always naming the larger class would be right on "
        f"{larger:.1%}. The paper has "
        f"{paper['accuracy'].min():.1%} to {paper['accuracy'].max():.1%}."
    ]
    if len(evidence.divisions) > 1:
        spread = across_seeds(evidence.divisions["accuracy"])
        values = evidence.divisions["accuracy"]
        lines.append(
            f"Over {spread.n} divisions by patient the same recipe gives {values.min():.1%} to {values.max():.1%}: one "
            f"division says its number within about {2 * spread.sample_std:.1%}."
        )
    return lines


def _arms(evidence: Evidence) -> list[str]:
    lines = []
    for row in evidence.arm_differences.to_dict("records"):
        word = _WORDS.get(side(row["low"], row["high"]), "not told apart")
        lines.append(
            f"Accuracy, {row['comparison']}: {row['difference']:+.1%} ({row['low']:+.1%} to {row['high']:+.1%} over "
            f"patients): {word}."
        )
    for row in evidence.odds_ratios[evidence.odds_ratios["comparison"] == "both / none"].to_dict("records"):
        word = _WORDS.get(side(row["low"], row["high"], 1.0), "not told apart")
        lines.append(
            f"Corrected twice against not at all, the factor by which the odds are too low is {row['ratio']:.2f} "
            f"times as high ({row['low']:.2f} to {row['high']:.2f}): {word}."
        )
    odds = evidence.arms.set_index("condition")["odds"]
    told = ", ".join(f"{arm} {value:.2f}" for arm, value in odds.items())
    lines.append(f"Factor by which the odds of pneumonia come out too low, 1 if they are right: {told}.")
    return lines


def _leak(evidence: Evidence) -> list[str]:
    found, rows = leak_summary(evidence.leak), evidence.leak
    told = f"{found['difference']:+.1%} (one division, which says nothing of others)"
    if found["n"] > 1:
        word = _WORDS.get(side(found["low"], found["high"]), "not told apart")
        told = (
            f"{found['difference']:+.1%} ({found['low']:+.1%} to {found['high']:+.1%} over {found['n']:g} divisions): "
            f"{word}"
        )
    return [
        f"Divided by images instead of patients, accuracy is {told}. Within the division by images, test radiographs "
        f"of patients who are trained on are right in {rows['accuracy_known'].mean():.1%}, the others in "
        f"{rows['accuracy_unknown'].mean():.1%}."
    ]


def _looks(evidence: Evidence) -> list[str]:
    lines = []
    for one in evidence.looked:
        found, guess = one.against_best_guess(), one.best_guess()
        word = _WORDS.get(side(found["low"], found["high"]), "not told apart")
        lines.append(
            f"{one.where}: the boxes reach an mIOU of {one.own('score'):.3f}; the best guess that looks at nothing, "
            f"“{guess['guess_or_network']}”, {guess['mean']:.3f}. Network minus guess {found['difference']:+.3f} "
            f"({found['low']:+.3f} to {found['high']:+.3f}): {word}. The hottest point lies in the pneumonia on "
            f"{one.own('pointing'):.0%}."
        )
    return lines or ["No radiograph has a box, so nothing can be said of where the network looks."]
