"""What reproduced: a verdict for each claim of the paper, and for what it leaves unproven, from the run's numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from tbkd_utils.experiments.comparisons import FAILS, HOLDS, OPEN, side
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.systems.pneumonia.looks import Looked
from tbkd_utils.systems.pneumonia.paper import comparability, published_table
from tbkd_utils.systems.pneumonia.tables import leak_summary


@dataclass(frozen=True)
class Evidence:
    """The numbers of one run that verdicts and sentences are computed from.

    Attributes:
        experiment: Recipe and data.
        scores: From `tables.score_rows`, of the recipe's own network and those it is compared with.
        arms: From `tables.score_rows`, of the arms.
        arm_differences: From `tables.arm_differences`, each arm against `none`.
        odds_ratios: From `tables.odds_ratios`, each arm against `none`.
        divisions: From `tables.score_rows`, of the divisions by patient.
        leak: From `tables.leak_rows`.
        ranking: From `tables.ranking_rows`.
        looked: From `looks.look`; empty if no radiograph has boxes.
        reasons: Why nothing can be set against the paper's numbers; from `paper.comparability`.
    """

    experiment: Experiment
    scores: pd.DataFrame
    arms: pd.DataFrame
    arm_differences: pd.DataFrame
    odds_ratios: pd.DataFrame
    divisions: pd.DataFrame
    leak: pd.DataFrame
    ranking: pd.DataFrame
    looked: Sequence[Looked]
    reasons: list[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reasons", comparability(self.experiment))


def verdict_table(evidence: Evidence) -> pd.DataFrame:
    """Returns one row per claim.

    A claim holds here if the 95% interval of our number lies on its side of the boundary, fails if it lies on the other
    side, and is otherwise not shown. Only an experiment like the paper's can reproduce a claim of the paper; those
    marked as ours have no number there.

    Returns:
        Columns artifact, claim, here (ours with its interval), holds here (`yes`, `no`, `not shown`), verdict
        (`reproduced`, `not reproduced`, `not comparable`; empty for ours).
    """
    rows = [*_accuracy(evidence), *_ranking(evidence), *_arms(evidence), *_leak(evidence), *_looks(evidence)]
    table = pd.DataFrame(rows, columns=["artifact", "claim", "here", "holds here"])
    held = np.where(table["holds here"] == HOLDS, "reproduced", "not reproduced")
    verdict = np.where(bool(evidence.reasons), "not comparable", held)
    return table.assign(verdict=np.where(table["artifact"].str.endswith("(ours)"), "", verdict))


def _accuracy(evidence: Evidence) -> list[tuple]:
    """A network's accuracy is the paper's if the intervals overlap; one that the paper lacks has to reach its range."""
    paper = published_table().set_index("network")
    least, most = paper["accuracy"].min(), paper["accuracy"].max()
    rows = []
    for row in evidence.scores.to_dict("records"):
        name, low, high = row["condition"], row["accuracy_low"], row["accuracy_high"]
        here = f"{row['accuracy']:.3f} ({low:.3f} to {high:.3f}, {row['n']} radiographs)"
        if name in paper.index:
            theirs = paper.loc[name, ["accuracy", "accuracy_low", "accuracy_high"]].tolist()
            claim = f"the accuracy of {name} is {theirs[0]:.3f} ({theirs[1]:.3f} to {theirs[2]:.3f})"
            rows.append(("accuracy", claim, here, HOLDS if high >= theirs[1] and low <= theirs[2] else FAILS))
        else:
            claim = f"the accuracy of {name} is at least the paper's lowest ({least:.3f}; its highest is {most:.3f})"
            rows.append(("accuracy (ours)", claim, here, side(low, high, least)))
    return rows


def _ranking(evidence: Evidence) -> list[tuple]:
    """The paper's ranking holds if each network that it calls the best beats each other one, by paired intervals."""
    rows = evidence.ranking
    if rows.empty:
        return []
    ahead, behind = int((rows["low"] > 0).sum()), int((rows["high"] < 0).sum())
    here = f"of {len(rows)} paired differences {ahead} lie above 0, {behind} below, the others across it"
    beaten = rows.groupby("other")["high"].max().lt(0).any()  # one of the others beats all that are called the best
    held = HOLDS if ahead == len(rows) else FAILS if beaten else OPEN
    return [("ranking", f"the best networks are {' and '.join(sorted(set(rows['best'])))}", here, held)]


def _arms(evidence: Evidence) -> list[tuple]:
    rows = []
    for row in evidence.arm_differences.to_dict("records"):
        arm = row["comparison"].removesuffix(" - none")
        here = f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f} over patients, p {row['p']:.2g})"
        claim = f"accuracy is higher with the imbalance corrected ({arm}) than without"
        rows.append(("imbalance (ours)", claim, here, side(row["low"], row["high"])))
    for row in evidence.odds_ratios[evidence.odds_ratios["comparison"] == "both / none"].to_dict("records"):
        here = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        claim = "corrected twice, the odds of pneumonia are lower than uncorrected (ratio above 1)"
        rows.append(("calibration (ours)", claim, here, side(row["low"], row["high"], 1.0)))
    return rows


def _leak(evidence: Evidence) -> list[tuple]:
    found = leak_summary(evidence.leak)
    here = f"{found['difference']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f} over {found['n']:g} divisions)"
    if found["n"] == 1:
        here = f"{found['difference']:+.3f} (one division, no interval)"
    claim = "a division by images scores higher than one by patients"
    return [("the leak (ours)", claim, here, side(found["low"], found["high"]))]


def _looks(evidence: Evidence) -> list[tuple]:
    rows = []
    for one in evidence.looked:
        for metric, words in (("score", "mIOU"), ("pointing", "pointing game"), ("energy", "energy inside")):
            found = one.against_best_guess(metric)
            here = f"{found['difference']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f}, {found['n']} radiographs)"
            claim = f"{one.where}: the maps know more than the best blind guess, “{found['guess']}” ({words})"
            rows.append(("relevant regions (ours)", claim, here, side(found["low"], found["high"])))
    return rows
