"""What reproduced: a verdict for every artifact of the paper, computed from the run's own numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from tbkd_utils.experiments.comparisons import FAILS, HOLDS, OPEN, side, student_minus_teacher
from tbkd_utils.experiments.curvature import ratio_table
from tbkd_utils.experiments.evaluation import Localization, probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.guesses import BlindGuesses, minus_best_guess
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.metrics.statistics import bootstrap_interval
from tbkd_utils.systems.tb.grid import STUDENT
from tbkd_utils.systems.tb.paper import TABLE_1, TABLE_2, TABLE_3, TABLE_4, comparability

SURE = 0.95
DRAWS = 20_000


@dataclass(frozen=True)
class Evidence:
    """The numbers of one run that verdicts are computed from.

    Attributes:
        experiment: Recipe and data.
        trained: Teacher and student, by name.
        located: Their boxes and scores, by name.
        sizes: From `curvature.size_rows`.
        conditions: From `tables.condition_table`.
        differences: From `comparisons.difference_table`.
        temperatures: From `comparisons.curve_rows` over temperatures.
        alphas: From `comparisons.curve_rows` over alphas.
        guesses: From `guesses.blind_guesses`.
        reasons: Why nothing can be set against the paper's numbers; from `paper.comparability`.
    """

    experiment: Experiment
    trained: Mapping[str, TrainedNetwork]
    located: Mapping[str, Localization]
    sizes: pd.DataFrame
    conditions: pd.DataFrame
    differences: pd.DataFrame
    temperatures: pd.DataFrame
    alphas: pd.DataFrame
    guesses: BlindGuesses
    reasons: list[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reasons", comparability(self.experiment))


def verdict_table(evidence: Evidence) -> pd.DataFrame:
    """Returns one row per claim of the paper.

    A claim is a direction: it holds here if the 95% interval of our number lies on its side of the boundary, fails if
    it lies on the other side, and is otherwise not shown. Only an experiment like the paper's can reproduce it.

    Returns:
        Columns artifact, claim (with the paper's number), here (ours with its interval), holds here (`yes`, `no`,
        `not shown`), verdict (`reproduced`, `not reproduced`, `not comparable`).
    """
    rows = [*_curvature(evidence.sizes), *_localization(evidence), *_blind(evidence), *_classification(evidence)]
    seed_std = float(evidence.conditions.set_index("condition")["sample_std"].get(STUDENT, np.nan))
    seed = evidence.experiment.recipe.statistics.statistics_seed
    rows += [
        _best("Figure 8", "temperature", 2.0, evidence.temperatures, seed_std, seed),
        _best("Figure 9", "alpha", 0.75, evidence.alphas, seed_std, seed),
    ]
    table = pd.DataFrame(rows, columns=["artifact", "claim", "here", "holds here"])
    if evidence.reasons:
        return table.assign(verdict="not comparable")
    return table.assign(verdict=np.where(table["holds here"] == HOLDS, "reproduced", "not reproduced"))


def _curvature(sizes: pd.DataFrame) -> list[tuple]:
    table, largest, rows = ratio_table(sizes), int(sizes["size"].max()), []
    paper = {
        "eigenvalue": ("Table 1, Figure 7", "largest eigenvalue", TABLE_1["teacher"][0] / TABLE_1["student"][0]),
        "trace": ("Table 2", "trace", TABLE_2["teacher"] / TABLE_2["student"]),
    }
    for quantity, (artifact, name, ratio) in paper.items():
        row = table[(table["quantity"] == quantity) & (table["size"] == largest)].iloc[0]
        here = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f}, {largest} radiographs)"
        claim = f"the teacher's {name} is larger than the student's: {ratio:.1f} times"
        rows.append((artifact, claim, here, side(row["low"], row["high"], 1)))
    return rows


def _localization(evidence: Evidence) -> list[tuple]:
    seed = evidence.experiment.recipe.training.seed
    pair = student_minus_teacher(evidence.located["teacher"], evidence.located["student"])
    score = pair.set_index("metric").loc["score"].to_dict()
    claimed = TABLE_3[42]["student"] - TABLE_3[42]["teacher"]
    one = (
        "Figure 6",
        f"the student's mIOU is higher than the teacher's, seed 42: {claimed:+.3f}",
        f"{score['difference']:+.3f} ({score['low']:+.3f} to {score['high']:+.3f} over radiographs, seed {seed})",
        side(score["low"], score["high"], 0),
    )
    paper = np.mean([by["student"] - by["teacher"] for by in TABLE_3.values()])
    rows = [one]
    for row in evidence.differences.to_dict("records"):
        if row["comparison"].startswith("student - "):
            other = row["comparison"].removeprefix("student - ")
            low, high = row["seed_low"], row["seed_high"]
            here = f"{row['difference']:+.3f} ({low:+.3f} to {high:+.3f} over {row['seeds']} seeds)"
            artifact, claim = "Table 3", f"the student's mIOU is higher than the teacher's over seeds: {paper:+.3f}"
            if other != "teacher":
                artifact, claim = "control (ours)", f"the student's mIOU is higher than that of: {other}"
            rows.append((artifact, claim, here, side(low, high, 0)))
    return rows


def _blind(evidence: Evidence) -> list[tuple]:
    """Whether the student knows more than boxes that look at no disease: by the paper's score and one to one."""
    rows = []
    for row in minus_best_guess(evidence.guesses, evidence.located[STUDENT]).to_dict("records"):
        score = {"score": "mIOU", "matched": "one-to-one IoU"}[row["metric"]]
        claim = f"the student's {score} is higher than that of the best box-free guess, “{row['guess']}”"
        here = f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f} over radiographs, p {row['p']:.2g})"
        rows.append(("Blind guess (ours)", claim, here, side(row["low"], row["high"])))
    return rows


def _classification(evidence: Evidence) -> list[tuple]:
    experiment, rows = evidence.experiment, []
    recipe = experiment.recipe
    called = {name: probabilities(experiment, one) for name, one in evidence.trained.items()}
    right = {name: (table["probability"] > 0.5) == (table["label"] == 1) for name, table in called.items()}
    tb = called["teacher"]["label"] == 1
    for metric, where in (("accuracy", tb | ~tb), ("sensitivity", tb)):
        difference = right["student"][where].astype(float) - right["teacher"][where].astype(float)
        low, high = bootstrap_interval(difference, **recipe.resampling)
        claimed = TABLE_4[metric]["student"] - TABLE_4[metric]["teacher"]
        claim = f"the student's {metric} is higher than the teacher's: {claimed:+.3f}"
        here = f"{difference.mean():+.3f} ({low:+.3f} to {high:+.3f} over radiographs)"
        rows.append(("Table 4", claim, here, side(low, high, 0)))
    return rows


def _best(
    artifact: str, what: str, claimed: float, rows: pd.DataFrame, seed_std: float, statistics_seed: int = 0
) -> tuple:
    """Whether the claimed value has the highest mIOU: sure of it over other radiographs and over other seeds.

    A curve has one training per value, so its points carry the student's standard deviation over seeds, as
    independent normal noise.
    """
    claim = f"mIOU is highest at {what} {claimed:g}"
    ours = np.isclose(rows["value"], claimed)
    if not ours.any() or rows["best"].isna().any():
        return artifact, claim, f"{what} {claimed:g} was not run", OPEN
    top = float(rows["value"].iloc[int(rows["miou"].argmax())])
    shares = [float(rows.loc[ours, "best"].iloc[0])]
    here = f"highest at {top:g}; at {claimed:g} in {shares[0]:.0%} of resamples of the radiographs"
    if np.isfinite(seed_std):
        rng = np.random.default_rng(statistics_seed)
        other_seeds = rows["miou"].to_numpy() + seed_std * rng.standard_normal((DRAWS, len(rows)))
        shares.append(float((other_seeds.argmax(axis=1) == ours.argmax()).mean()))
        here += f", in {shares[1]:.0%} of trainings with the seeds' spread"
    else:
        here += "; the seeds' spread is unknown"
    sure = min(shares) >= SURE and len(shares) == 2
    ruled_out = max(shares) <= 1 - SURE and len(shares) == 2
    return artifact, claim, here, HOLDS if sure else FAILS if ruled_out else OPEN
