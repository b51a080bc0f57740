"""The paper's tables with our numbers and its own side by side."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tbkd_utils.curvature.pyhessian import PyHessianNumbers
from tbkd_utils.curvature.spectrum import Spectrum
from tbkd_utils.experiments.evaluation import Localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.guesses import BlindGuesses
from tbkd_utils.metrics.statistics import (
    across_seeds,
)
from tbkd_utils.systems.tb.grid import CONDITIONS, STUDENT, TEACHER
from tbkd_utils.systems.tb.paper import TABLE_1, TABLE_2, TABLE_3, TABLE_4, _counts


def table_3(found: Mapping[str, Localization], guesses: BlindGuesses | None = None) -> pd.DataFrame:
    """Table 3 for one seed.

    Args:
        found: Network to its boxes and scores.
        guesses: Their best box-free guess makes the last row; None leaves it out.

    Returns:
        One row per network: network, seed (none of a guess), miou, low, high, matched (one-to-one IoU; missed and
        surplus boxes count 0), matched_low, matched_high (95% over radiographs), paper (its mIOU for that seed, if
        any).
    """
    rows = []
    for network, localization in found.items():
        seed = localization.experiment.recipe.training.seed
        paper = TABLE_3.get(seed, {}).get(network, np.nan)
        rows.append((network, seed, *_both_scores(localization.scores), paper))
    if guesses is not None:
        rows.append((_blind(guesses), None, *_both_scores(guesses.scores(guesses.best)), np.nan))
    scores = ["miou", "low", "high", "matched", "matched_low", "matched_high"]
    return pd.DataFrame(rows, columns=["network", "seed", *scores, "paper"]).astype({"seed": "Int64"})


def _both_scores(scores: pd.DataFrame) -> list[float]:
    """The paper's score and the one-to-one score, each with its interval: six numbers."""
    return scores.set_index("metric").loc[["score", "matched"], ["mean", "low", "high"]].to_numpy().ravel().tolist()


def _blind(guesses: BlindGuesses) -> str:
    return f"blind: {guesses.best}"


def table_4(classified: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Table 4: metric, then for each network our value, its 95% interval and the paper's value."""
    table = pd.DataFrame({"metric": list(TABLE_4)})
    for network, summary in classified.items():
        ours = summary.set_index("metric").loc[list(TABLE_4)].reset_index()
        for column, ours_column in ((network, "value"), (f"{network} low", "low"), (f"{network} high", "high")):
            table[column] = ours[ours_column]
        table[f"{network} paper"] = [TABLE_4[metric][network] for metric in TABLE_4]
    return table


def split_table(experiment: Experiment) -> pd.DataFrame:
    """What this experiment trains, validates and tests on: radiographs per class, boxes, and what was left out."""
    recipe = experiment.recipe
    used = {"train": experiment.train, "validation": experiment.validation, "test": experiment.test}
    rows = []
    for use, samples in used.items():
        if samples is None:
            continue
        no_tb, tb = _counts(samples.targets)
        boxes = sum(map(len, samples.boxes))
        splits = recipe.data.test_splits if use == "test" or samples is experiment.test else recipe.data.train_splits
        copies = experiment.copies_left_out if use == "train" else 0
        rows.append((use, " + ".join(splits), tb, no_tb, boxes, samples.dropped_boxes, copies))
    columns = ["use", "from", "TB", "no TB", "boxes", "boxes outside the crop", "copies left out"]
    return pd.DataFrame(rows, columns=columns)


def table_1(spectra: Mapping[str, Spectrum], theirs: Mapping[str, PyHessianNumbers]) -> pd.DataFrame:
    """Table 1: top eigenvalues by magnitude, their residual, PyHessian's own in its own order, and the paper's.

    Returns:
        One row per network and rank: network, rank, eigenvalue, residual, converged, pyhessian, paper.
    """
    rows = []
    for network, found in spectra.items():
        for rank, (value, residual, converged) in enumerate(
            zip(found.eigenvalues, found.residuals, found.converged, strict=True)
        ):
            own = theirs[network].eigenvalues
            pyhessian = own[rank] if rank < len(own) else np.nan
            paper = TABLE_1[network][rank] if rank < len(TABLE_1[network]) else np.nan
            rows.append((network, rank + 1, value, residual, "yes" if converged else "no", pyhessian, paper))
    return pd.DataFrame(rows, columns=["network", "rank", "eigenvalue", "residual", "converged", "pyhessian", "paper"])


def table_2(spectra: Mapping[str, Spectrum], theirs: Mapping[str, PyHessianNumbers]) -> pd.DataFrame:
    """Table 2: the trace with its 95% interval over probes, PyHessian's, the paper's, and what it cost."""
    rows = [
        (network, found.trace, *found.trace_interval, theirs[network].trace, TABLE_2[network], found.samples,
         found.products, theirs[network].eigenvalue_products + theirs[network].trace_products)
        for network, found in spectra.items()
    ]  # fmt: skip
    columns = ["network", "trace", "low", "high", "pyhessian", "paper", "radiographs", "products", "pyhessian products"]
    return pd.DataFrame(rows, columns=columns)


def table_3_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 3: teacher and student for every seed.

    Args:
        rows: From `comparisons.variant_rows`, over seeds.

    Returns:
        One row per seed: seed, teacher and student (mIOU), difference, teacher paper and student paper (the paper's
        mIOU where it has the seed), teacher matched and student matched (one-to-one IoU).
    """
    wide, matched = (rows.pivot(index="value", columns="condition", values=score) for score in ("miou", "matched"))
    table = pd.DataFrame({"seed": wide.index, "teacher": wide[TEACHER].to_numpy(), "student": wide[STUDENT].to_numpy()})
    table["difference"] = table["student"] - table["teacher"]
    for network in (TEACHER, STUDENT):
        table[f"{network} paper"] = [TABLE_3.get(seed, {}).get(network, np.nan) for seed in table["seed"]]
    return table.assign(**{f"{network} matched": matched[network].to_numpy() for network in (TEACHER, STUDENT)})


def condition_table(rows: pd.DataFrame, guesses: BlindGuesses | None = None) -> pd.DataFrame:
    """Summarizes every condition over the seeds.

    Args:
        rows: From `comparisons.variant_rows`, over seeds.
        guesses: Their best box-free guess makes the last row, of 0 seeds; None leaves it out.

    Returns:
        One row per condition: condition, seeds, mean (of mIOU), sample_std (ddof 1), population_std (ddof 0, the
        paper's "±"), low and high (95% t interval of the mean; of a guess, which has no seed, 95% bootstrap over
        radiographs), paper_mean, paper_std (ddof 0), matched, matched_low and matched_high (one-to-one IoU, likewise).
    """
    found = []
    for condition in CONDITIONS:
        own = rows[rows["condition"] == condition]
        if own.empty:
            continue
        ours, matched = across_seeds(own["miou"]), across_seeds(own["matched"])
        paper = [by_network[condition] for by_network in TABLE_3.values()] if condition in (TEACHER, STUDENT) else []
        theirs = across_seeds(paper) if paper else None
        found.append(
            (condition, ours.n, ours.mean, ours.sample_std, ours.population_std, ours.low, ours.high,
             theirs.mean if theirs else np.nan, theirs.population_std if theirs else np.nan,
             matched.mean, matched.low, matched.high)
        )  # fmt: skip
    if guesses is not None:
        score, low, high, *one_to_one = _both_scores(guesses.scores(guesses.best))
        blind = (_blind(guesses), 0, score, np.nan, np.nan, low, high, np.nan, np.nan)
        found.append((*blind, one_to_one[0], one_to_one[1], one_to_one[2]))
    columns = ["condition", "seeds", "mean", "sample_std", "population_std", "low", "high", "paper_mean", "paper_std"]
    return pd.DataFrame(found, columns=[*columns, "matched", "matched_low", "matched_high"])
