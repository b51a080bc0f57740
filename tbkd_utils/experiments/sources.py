"""Sources swapped: TB and no TB of one hospital against those of two, and what the source alone tells.

Where a hospital gives most of the TB in training, a network may learn the hospital. Within one source that does not
help it; across sources it helps where they are paired as in training, and misleads where they are swapped.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tbkd_utils.data.cache import Samples
from tbkd_utils.experiments.audit import known_markers
from tbkd_utils.experiments.evaluation import probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.shortcut import markers_in_sight
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.metrics.operating import roc_auc
from tbkd_utils.metrics.statistics import bootstrap_metric, patients_of
from tbkd_utils.models.ridge import fit_ridge, thumbnails

ANY, SAME = "any", "the same source"
AS_TRAINED, SWAPPED = "another, as in training", "another, swapped"
WITH, WITHOUT = "marker", "no marker"
"""The sources of drawings, which come from one hospital: whether the side marker is in sight."""
FEWEST = 5
"""Radiographs of a source with TB, and without, for an area of the two."""
ONE_SOURCE = "one source only"


def sources_of(experiment: Experiment, samples: Samples) -> np.ndarray:
    """Returns the source of each radiograph, (n,) of strings; on drawings whether the side marker is in sight."""
    markers = known_markers(experiment)
    if not markers:
        return np.array(samples.sources, dtype=object)
    found = np.full(len(samples), WITHOUT, dtype=object)
    found[markers_in_sight(samples, markers)[0]] = WITH
    return found


def tb_shares(experiment: Experiment) -> pd.Series:
    """Returns the share of TB among the training radiographs of each source."""
    samples = experiment.full_train_as_tested
    positive = samples.targets == experiment.task.explained
    return pd.Series(positive.astype(float)).groupby(sources_of(experiment, samples)).mean()


def swapped_sources(experiment: Experiment, networks: Mapping[str, TrainedNetwork]) -> pd.DataFrame:
    """Tells TB of one source from no TB of the same and of another, for every network.

    Returns:
        One row per network and pair of sources: network, tb_from, no_tb_from, auc, low, high (drawn within source and
        label), n_tb, n_other (radiographs). The first rows pool: TB of `any` source against no TB of `any`, of `the
        same source`, of `another, as in training` (whose share of TB in training is lower) and of `another, swapped`
        (whose share is higher). Then come single sources with at least `FEWEST` of each. An area that has no
        radiographs is nan, as all across sources where there is one source.
    """
    shares, tables = tb_shares(experiment), []
    for network, trained in networks.items():
        rows = probabilities(experiment, trained)
        rows = rows.assign(source=sources_of(experiment, experiment.test))
        tables.append(_pair_areas(rows, shares, **experiment.recipe.resampling).assign(network=network))
    table = pd.concat(tables, ignore_index=True)
    return table[["network", "tb_from", "no_tb_from", "auc", "low", "high", "n_tb", "n_other"]]


def source_table(experiment: Experiment, networks: Mapping[str, TrainedNetwork]) -> pd.DataFrame:
    """Asks what the source alone tells: is it in the pixels, and how far does it go towards TB?

    A linear classifier of the source learns from the training radiographs, as thumbnails of 16 x 16 pixels. Each source
    counts alike and, within it, TB and no TB, so that TB itself is no clue to the source where a source has both.

    Returns:
        One row per question: question, value, low, high (95% over test radiographs), blind (a guess that looks at
        nothing), n. The first asks for the source (mean share of each source that is named rightly). The others are
        AUCs for TB: by the share of TB in training of the source itself, of the source by thumbnail, and by each
        network. Where all training radiographs are of one source, the first three are a row `one source only`.
    """
    test, how = experiment.test, dict(experiment.recipe.resampling)
    shares, truth = tb_shares(experiment), sources_of(experiment, test)
    label = (test.targets == experiment.task.explained).astype(int)
    known = np.isin(truth, shares.index)
    if len(shares) < 2:
        entries: list[tuple] = [(ONE_SOURCE, *[np.nan] * 4, len(test))]
    else:
        scores = _source_scores(experiment, list(shares.index))  # (n, sources)
        named = shares.index.to_numpy()[scores.argmax(axis=1)]
        right = (named == truth)[known].astype(float)
        entries = [_mean_by_source(right, truth[known], **how)]
        for question, tb in (
            ("AUC for TB: its source", shares.reindex(truth).to_numpy()),
            ("AUC for TB: its source by 16 x 16 pixels", np.clip(scores @ shares.to_numpy(), 0, 1)),
        ):
            entries.append((question, *_area(tb[known], label[known], patients=_patients(test, known), **how)))
    for network, trained in networks.items():
        rows = probabilities(experiment, trained)
        p, y = rows["probability"].to_numpy(), rows["label"].to_numpy()
        entries.append((f"AUC for TB: {network}", *_area(p, y, patients=patients_of(rows), **how)))
    return pd.DataFrame(entries, columns=["question", "value", "low", "high", "blind", "n"])


def _pair_areas(rows: pd.DataFrame, shares: pd.Series, *, resamples: int, seed: int) -> pd.DataFrame:
    """The areas of `swapped_sources` for one network's rows: name, source, label, probability."""
    tb, other = (rows[rows["label"] == label] for label in (1, 0))
    p, q = tb["probability"].to_numpy()[:, None], other["probability"].to_numpy()[None]
    wins = (p > q) + 0.5 * (p == q)  # (TB, no TB)
    chosen = _pairs(tb["source"].to_numpy(), other["source"].to_numpy(), shares)
    positive = rows["label"].to_numpy() == 1

    def areas(index: np.ndarray) -> dict[str, float]:
        counts = np.bincount(index, minlength=len(rows)).astype(float)
        a, b = counts[positive], counts[~positive]
        weights = {name: float(a @ pairs @ b) for name, (pairs, *_) in chosen.items()}
        return {
            name: float(a @ (wins * pairs) @ b) / weights[name] if weights[name] else np.nan
            for name, (pairs, *_) in chosen.items()
        }

    found = areas(np.arange(len(rows)))
    strata = rows["source"].astype(str) + rows["label"].astype(str)
    ends = bootstrap_metric(areas, strata.to_numpy(), resamples=resamples, seed=seed, clusters=patients_of(rows))
    table = [
        (*names, found[key], *ends[key], int(pairs.any(axis=1).sum()), int(pairs.any(axis=0).sum()))
        for key, (pairs, *names) in chosen.items()
    ]
    return pd.DataFrame(table, columns=["tb_from", "no_tb_from", "auc", "low", "high", "n_tb", "n_other"])


def _pairs(tb: np.ndarray, other: np.ndarray, shares: pd.Series) -> dict[str, tuple[np.ndarray, str, str]]:
    """Which pairs of a radiograph with TB and one without each area is of, (TB, no TB), and the names of both sides."""
    same = tb[:, None] == other[None]
    lead = shares.reindex(tb).to_numpy()[:, None] - shares.reindex(other).to_numpy()[None]
    pooled = {ANY: np.ones_like(same), SAME: same, AS_TRAINED: ~same & (lead > 0), SWAPPED: ~same & (lead < 0)}
    chosen = {name: (pairs, ANY, name) for name, pairs in pooled.items()}
    for a in sorted(set(tb)):
        for b in sorted(set(other)):
            if min((tb == a).sum(), (other == b).sum()) >= FEWEST:
                chosen[f"{a} / {b}"] = ((tb == a)[:, None] & (other == b)[None], a, b)
    return chosen


def _source_scores(experiment: Experiment, names: list[str]) -> np.ndarray:
    """The score of every source for the test radiographs, (n, sources)."""
    train = experiment.full_train_as_tested
    classes = np.array([names.index(one) for one in sources_of(experiment, train)])
    cells = pd.DataFrame({"source": classes, "tb": train.targets == experiment.task.explained})
    labels = cells.groupby("source")["tb"].transform("nunique")
    weights = 1 / (cells.groupby(["source", "tb"])["tb"].transform("size") * labels)
    fitted = fit_ridge(thumbnails(np.array(train.pixels)), classes, weights.to_numpy(float))
    return fitted.scores(thumbnails(np.array(experiment.test.pixels)))


def _mean_by_source(right: np.ndarray, source: np.ndarray, **how: Any) -> tuple:
    """The share of each source that is named rightly, averaged over sources."""

    def mean(index: np.ndarray) -> dict[str, float]:
        return {"right": float(pd.Series(right[index]).groupby(source[index]).mean().mean())}

    strata = source.astype(str)
    ends = bootstrap_metric(mean, strata, **how)["right"]
    blind = 1 / len(set(strata))
    return ("source named by 16 x 16 pixels", mean(np.arange(len(right)))["right"], *ends, blind, len(right))


def _area(score: np.ndarray, label: np.ndarray, *, patients: Any, **how: Any) -> tuple:
    """An area for TB with its interval, its blind guess, and the number of radiographs; nan without both classes."""
    if not 0 < label.sum() < len(label):
        return np.nan, np.nan, np.nan, 0.5, len(label)
    ends = bootstrap_metric(
        lambda index: {"auc": roc_auc(score[index], label[index])}, label, **how, clusters=patients
    )["auc"]
    return roc_auc(score, label), *ends, 0.5, len(label)


def _patients(samples: Samples, known: np.ndarray) -> np.ndarray | None:
    return np.array(samples.groups)[known] if any(samples.groups) else None
