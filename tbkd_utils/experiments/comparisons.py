"""Networks set against each other: rows per network of a grid, then how sure their differences are."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from tbkd_utils.experiments.evaluation import Localization, paired_rows, with_patients
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.grid import classify_variant, localize_variant
from tbkd_utils.experiments.system import Variant
from tbkd_utils.localization.boxes import Boxes
from tbkd_utils.localization.guesses import guess_rows
from tbkd_utils.localization.tables import DELTAS, max_box_acc, summarize
from tbkd_utils.metrics.statistics import (
    bootstrap_interval,
    paired_difference,
    paired_permutation_test,
    patients_of,
)

HOLDS, FAILS, OPEN = "yes", "no", "not shown"
"""What a run says of a claim."""


def side(low: float, high: float, boundary: float = 0.0) -> str:
    """Says whether an interval lies above the boundary, which is the claim (`HOLDS`), below it, or across (`OPEN`)."""
    if low > boundary:
        return HOLDS
    return FAILS if high < boundary else OPEN


def variant_rows(experiment: Experiment, variants: Sequence[Variant]) -> pd.DataFrame:
    """Measures every network of an ablation; what was computed is read back.

    Returns:
        One row per network: condition, value, miou with low and high (95% bootstrap over images), matched
        (one-to-one), energy (share of the heatmap inside the lesions), accuracy, auc.
    """
    rows = []
    for variant in variants:
        found = localize_variant(experiment, variant).scores.set_index("metric")
        score, classes = found.loc["score"], classify_variant(experiment, variant)
        rows.append(
            (variant.condition, variant.value, score["mean"], score["low"], score["high"], found.loc["matched", "mean"],
             found.loc["energy", "mean"], classes["accuracy"], classes["auc"])
        )  # fmt: skip
    columns = ["condition", "value", "miou", "low", "high", "matched", "energy", "accuracy", "auc"]
    return pd.DataFrame(rows, columns=columns)


def curve_rows(experiment: Experiment, variants: Sequence[Variant]) -> pd.DataFrame:
    """Figure 8 or 9 as data: `variant_rows` and how often each value comes out best.

    Returns:
        `variant_rows` with `best`: the share of bootstrap resamples of the images in which this value has the highest
        mIOU. One training per value: the shares say nothing about another seed.
    """
    recipe, rows = experiment.recipe, variant_rows(experiment, variants)
    scores = image_scores([localize_variant(experiment, variant) for variant in variants])  # (images, variants)
    wins = np.zeros(len(variants))
    rng = np.random.default_rng(recipe.statistics.statistics_seed)
    for _ in range(recipe.statistics.resamples if len(scores) else 0):
        means = scores[rng.integers(len(scores), size=len(scores))].mean(axis=0)
        best = means == means.max()
        wins += best / best.sum()  # a tie is shared
    return rows.assign(best=wins / recipe.statistics.resamples if len(scores) else np.nan)


def difference_table(
    experiment: Experiment, variants: Sequence[Variant], compared: Sequence[tuple[str, str]]
) -> pd.DataFrame:
    """Sets conditions against each other, for both sources of doubt: other seeds, and other radiographs.

    Args:
        experiment: Recipe and data.
        variants: The networks, several seeds of each condition.
        compared: Which conditions are set against which.

    Returns:
        One row per pair whose conditions are there: comparison, seeds, difference (mean over seeds), std
        (sample), seed_low and seed_high (95% t interval over seeds), image_low and image_high (95% bootstrap interval
        over radiographs of the difference averaged over the seeds), image_p (paired permutation test of it).
    """
    recipe, found = experiment.recipe, []
    located = {(variant.condition, variant.value): localize_variant(experiment, variant) for variant in variants}
    for first, second in compared:
        seeds = [seed for condition, seed in located if condition == first and (second, seed) in located]
        if not seeds:
            continue
        summary = paired_difference(
            [located[first, seed].miou for seed in seeds], [located[second, seed].miou for seed in seeds]
        )
        pairs = image_scores(
            [located[condition, seed] for condition in (first, second) for seed in seeds]
        )  # (images, 2 * seeds)
        low = high = p = np.nan
        if len(pairs):
            a, b = (pairs[:, start : start + len(seeds)].mean(axis=1) for start in (0, len(seeds)))
            low, high = bootstrap_interval(a - b, **recipe.resampling)
            p = paired_permutation_test(
                a, b, resamples=5 * recipe.statistics.resamples, seed=recipe.statistics.statistics_seed
            )
        found.append(
            (
                f"{first} - {second}",
                summary.n,
                summary.mean,
                summary.sample_std,
                summary.low,
                summary.high,
                low,
                high,
                p,
            )
        )
    columns = [
        "comparison",
        "seeds",
        "difference",
        "std",
        "seed_low",
        "seed_high",
        "image_low",
        "image_high",
        "image_p",
    ]
    return pd.DataFrame(found, columns=columns)


def image_scores(found: Sequence[Localization]) -> np.ndarray:
    """Returns the paper's score of every radiograph that all networks are scored on, float64 (images, networks)."""
    columns = [one.rows.set_index("name")["score"] for one in found]
    return pd.concat(columns, axis=1, join="inner").to_numpy(dtype=np.float64)


def guess_scores(
    found: Localization, guesses: Mapping[str, Sequence[Boxes]], names: Collection[str] | None = None
) -> pd.DataFrame:
    """Sets a network beside blind guesses on the same radiographs.

    Args:
        found: The network's boxes and scores.
        guesses: Name to the boxes that it guesses for each radiograph, in the order of `found.samples`.
        names: The radiographs that count; all of them, if left out.

    Returns:
        One row per network or guess and metric: guess_or_network, metric, mean, low, high, n, blind. The network, named
        by its role, comes first. A guess has no heatmap, so its MaxBoxAccV2 is the share that it hits at once.
    """
    resampling = found.experiment.recipe.resampling
    thresholds = _among(found.threshold_rows(all_sizes=True), names)
    own = pd.concat([summarize(_among(found.rows, names), **resampling), max_box_acc(thresholds, **resampling)])
    tables = [own.assign(guess_or_network=found.role, blind=False)]
    for name, rows in guessed_rows(found, guesses, names).items():
        hits = rows[[f"hit_{round(100 * delta)}" for delta in DELTAS]].mean(axis=1)
        best = (
            "max_box_acc_v2",
            hits.mean(),
            *bootstrap_interval(hits, **resampling, clusters=patients_of(rows)),
            len(hits),
        )
        one = pd.concat([summarize(rows, **resampling), pd.DataFrame([best], columns=list(own))])
        tables.append(one.assign(guess_or_network=name, blind=True))
    columns = ["guess_or_network", "metric", "mean", "low", "high", "n", "blind"]
    return pd.concat(tables, ignore_index=True)[columns]


def guess_differences(
    found: Localization, guesses: Mapping[str, Sequence[Boxes]], names: Collection[str] | None = None
) -> pd.DataFrame:
    """Asks image by image whether a network knows more than each guess.

    Args:
        found: The network's boxes and scores.
        guesses: As in `guess_scores`.
        names: As in `guess_scores`.

    Returns:
        One row per guess and metric (score, matched, pointing, energy): guess, metric, difference (network minus
        guess), low and high (95% bootstrap over radiographs, or over patients where known), p (paired permutation
        test), n.
    """
    recipe, found_rows, own = found.experiment.recipe, [], _among(found.rows, names)
    for name, rows in guessed_rows(found, guesses, names).items():
        for metric in ("score", "matched", "pointing", "energy"):
            ours, theirs = own[metric].to_numpy(float), rows[metric].to_numpy(float)
            low, high = bootstrap_interval(ours - theirs, **recipe.resampling, clusters=patients_of(own))
            p = paired_permutation_test(ours, theirs, **recipe.resampling_of_tests, clusters=patients_of(own))
            found_rows.append((name, metric, float((ours - theirs).mean()), low, high, p, len(ours)))
    return pd.DataFrame(found_rows, columns=["guess", "metric", "difference", "low", "high", "p", "n"])


def guessed_rows(
    found: Localization, guesses: Mapping[str, Sequence[Boxes]], names: Collection[str] | None = None
) -> dict[str, pd.DataFrame]:
    """Returns the rows of `guesses.guess_rows` for each guess, of all radiographs or those named."""
    samples = found.samples
    return {
        name: _among(with_patients(guess_rows(samples.names, boxes, samples.boxes, samples.size), samples), names)
        for name, boxes in guesses.items()
    }


def _among(rows: pd.DataFrame, names: Collection[str] | None) -> pd.DataFrame:
    return rows if names is None else rows[rows["name"].isin(names)]


def localization_table(found: Mapping[str, Localization]) -> pd.DataFrame:
    """Every localization metric of each network with its interval over images."""
    table: pd.DataFrame | None = None
    for network, localization in found.items():
        columns = {"mean": network, "low": f"{network} low", "high": f"{network} high"}
        ours = localization.summary.drop(columns="n").rename(columns=columns)
        table = ours if table is None else table.merge(ours, on="metric")
    assert table is not None
    return table


def student_minus_teacher(teacher: Localization, student: Localization) -> pd.DataFrame:
    """Compares the networks image by image: difference, its 95% bootstrap interval, and a paired permutation test.

    Every radiograph that both networks are scored on counts alike, whatever the recipe's `average` and `no_prediction`.

    Returns:
        One row per metric (score = the paper's, matched, energy): metric, difference, low, high, p, n. One seed of
        training says nothing about other seeds: the interval covers the choice of images only.

    Raises:
        UsageError: If no radiograph is scored for both.
    """
    recipe = teacher.experiment.recipe
    pairs = paired_rows(teacher, student)
    rows = []
    for metric in ("score", "matched", "energy"):
        ours = pairs[f"{metric}_student"].to_numpy(), pairs[f"{metric}_teacher"].to_numpy()
        difference = ours[0] - ours[1]
        low, high = bootstrap_interval(difference, **recipe.resampling)
        p = paired_permutation_test(
            *ours, resamples=5 * recipe.statistics.resamples, seed=recipe.statistics.statistics_seed
        )
        rows.append((metric, float(difference.mean()), low, high, p, len(difference)))
    return pd.DataFrame(rows, columns=["metric", "difference", "low", "high", "p", "n"])
