"""The threshold of Algorithm 1, chosen by protocols that read more and more: side by side, never mixed.

A threshold is a setting, and whoever chooses it from boxes has no longer learned from image labels alone. So each
protocol says what it read. Those that read no box leave Algorithm 1's minimum area out too, since that comes from
training boxes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tbkd_utils.data.cache import Samples
from tbkd_utils.errors import UsageError
from tbkd_utils.experiments.evaluation import (
    averaging,
    drawing,
    is_positive,
    kept_heatmaps,
    localization,
    with_patients,
)
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.localization.boxes import Boxes, boxes_at_thresholds
from tbkd_utils.localization.heatmaps import upsample
from tbkd_utils.localization.scores import average_score, scores_of
from tbkd_utils.localization.tables import ROWS_FORMAT, threshold_rows
from tbkd_utils.metrics.statistics import bootstrap_metric, patients_of
from tbkd_utils.runs import Run, cached_rows

NO_BOX, AGREEMENT, TRAINING_BOXES, ORACLE = "no box", "no box: agreement", "training boxes", "oracle"
"""The protocols, in the order of what they read."""
READ = {
    NO_BOX: "nothing: the recipe's threshold",
    AGREEMENT: "heatmaps of training radiographs with the finding",
    TRAINING_BOXES: "boxes of the training radiographs",
    ORACLE: "boxes of the test set",
}
"""What the protocols choose from, beside the image labels that the networks learned from."""
CHOICES = tuple(round(step / 10, 1) for step in range(1, 10))
"""The thresholds to choose from: 0.1 to 0.9 in steps of 0.1."""
SHUFFLES = 5
"""How many other radiographs each one is paired with."""
MOST = 1000
"""Of more training radiographs than that, as many are looked at, evenly spaced."""
FINDING, BOX = "finding", "box"
"""What a training radiograph is looked at for: its label, or its boxes."""


def threshold_choices(
    experiment: Experiment, networks: Sequence[TrainedNetwork], *, thresholds: Iterable[float] = CHOICES
) -> pd.DataFrame:
    """Chooses the threshold by each protocol, and scores the test set at it.

    One threshold is chosen for all networks, by what they score, or agree, on average. *no box* takes the recipe's.
    *no box: agreement* takes the one at which two networks' boxes on one training radiograph agree most (mean
    one-to-one IoU), less how well their boxes on different radiographs do: large boxes agree everywhere. *training
    boxes* takes the highest mean one-to-one IoU on the training radiographs' boxes, and *oracle* that on the test set
    itself, so that its score is optimistic. Of equally good thresholds the lowest is taken.

    Args:
        experiment: Recipe and data.
        networks: At least two of one role, such as trainings from different seeds.
        thresholds: To choose from, in [0, 1].

    Returns:
        One row per protocol: protocol, read (what it chose from), threshold, min_area (square pixels; without boxes the
        recipe's, or 0 where that would come from boxes), miou with low and high, matched (one-to-one) with matched_low
        and matched_high (averaged over the networks; 95% over the test radiographs that all networks are scored on, or
        their patients), boxes (per radiograph), n, networks. Where no training radiograph has a box,
        *training boxes* is left out.

    Raises:
        UsageError: Fewer than two networks, the same one twice, or several roles; no threshold or one out of range;
            no test radiograph with a box, or fewer than two training radiographs with the finding.
        RunError: If a run folder cannot be written.
    """
    levels = _checked(networks, thresholds)
    experiment = experiment.for_role(networks[0].role)
    usual, smallest = _whole(experiment.recipe.scores.threshold), localization(experiment, networks[0]).min_area
    free = experiment.recipe.boxless_min_area or 0.0
    agreed = agreement_rows(experiment, networks, thresholds=levels)
    boxed = _training_rows(experiment, networks, levels, smallest)
    tested = {area: _test_rows(experiment, networks, sorted({*levels, usual}), area) for area in {free, smallest}}
    oracle = tested[smallest][tested[smallest]["threshold"].isin(levels)]
    chosen = [
        (NO_BOX, usual, free),
        (AGREEMENT, best_threshold(agreed.assign(gain=agreed["agreement"] - agreed["shuffled"]), "gain"), free),
        *([(TRAINING_BOXES, best_threshold(boxed, "matched"), smallest)] if len(boxed) else []),
        (ORACLE, best_threshold(oracle, "matched"), smallest),
    ]
    lines = [
        {"protocol": name, "read": READ[name], "threshold": threshold, "min_area": area}
        | _summary(experiment, tested[area][tested[area]["threshold"] == threshold])
        for name, threshold, area in chosen
    ]
    return pd.DataFrame(lines)


def agreement_rows(
    experiment: Experiment, networks: Sequence[TrainedNetwork], *, thresholds: Iterable[float] = CHOICES
) -> pd.DataFrame:
    """Measures how well two networks' boxes agree on the training radiographs with the finding; reads no box.

    Args:
        experiment: Recipe and data.
        networks: As in `threshold_choices`; each two are compared.
        thresholds: As in `threshold_choices`.

    Returns:
        One row per pair of networks, radiograph and threshold: first, second (places of the networks), name,
        threshold, agreement (one-to-one IoU of their boxes on it: boxes left over count 0, and so does a radiograph on
        which either network draws none), shuffled (mean of the same between the first network's boxes on it and the
        second's on `SHUFFLES` others). Computed once and kept.

    Raises:
        UsageError: As `threshold_choices`.
        RunError: If a run folder cannot be written.
    """
    levels = _checked(networks, thresholds)
    experiment = experiment.for_role(networks[0].role)
    looked = [_Looked.at_training(experiment, network).among(FINDING) for network in networks]
    names, seed = looked[0].samples.names, experiment.recipe.statistics.statistics_seed
    if len(names) < 2:
        raise UsageError(
            f"{experiment.root}: {len(names)} training radiographs have the finding, but agreement is compared with "
            "that on another one: at least 2 are needed."
        )
    tables = []
    for first, second in itertools.combinations(range(len(networks)), 2):
        run = looked[first].run(
            "agreement", levels, {"second": looked[second].made_from, "shuffles": SHUFFLES, "seed": seed}
        )
        compute = functools.partial(_compared, looked[first], looked[second], levels, seed)
        tables.append(_read(run, compute).assign(first=first, second=second))
    return pd.concat(tables, ignore_index=True)[["first", "second", "name", "threshold", "agreement", "shuffled"]]


def agreements(
    names: Sequence[str],
    first: Sequence[Sequence[Boxes]],
    second: Sequence[Sequence[Boxes]],
    thresholds: Sequence[float],
    seed: int,
) -> pd.DataFrame:
    """Compares two networks' boxes on the same radiographs and on different ones.

    Args:
        names: n names, n >= 2.
        first: Of each radiograph, the first network's boxes (k, 4) at each threshold.
        second: The same of the second network.
        thresholds: Their values.
        seed: Of which others a radiograph is paired with: min(`SHUFFLES`, n - 1) different ones, never itself.

    Returns:
        One row per radiograph and threshold: name, threshold, agreement, shuffled; see `agreement_rows`.
    """
    others, rows = _others(len(names), seed), []
    for place, name in enumerate(names):
        for column, threshold in enumerate(thresholds):
            own = first[place][column]
            apart = [_agreement(own, second[other][column]) for other in others[place]]
            rows.append((name, threshold, _agreement(own, second[place][column]), float(np.mean(apart))))
    return pd.DataFrame(rows, columns=["name", "threshold", "agreement", "shuffled"])


def best_threshold(rows: pd.DataFrame, column: str) -> float:
    """Returns the threshold of the highest mean of a column; the lowest of equally good ones.

    Args:
        rows: Per radiograph and threshold, maybe also per network.
        column: What counts.
    """
    means = rows.groupby("threshold")[column].mean().round(12)  # rounding errors are no reason to prefer one
    return float(means.index.to_numpy()[means.to_numpy().argmax()])


@dataclass(frozen=True)
class _Looked:
    """Heatmaps of one network on some radiographs."""

    experiment: Experiment
    network: TrainedNetwork
    samples: Samples
    maps: np.ndarray  # (n, h, w)
    made_from: str  # names the heatmaps

    @classmethod
    def at_training(cls, experiment: Experiment, network: TrainedNetwork) -> Self:
        """Looks at the training radiographs with the finding or a box."""
        everyone = experiment.full_train_as_tested
        places = np.flatnonzero(_has_finding(network, everyone) | _has_box(everyone))
        kept = np.linspace(0, len(places) - 1, min(len(places), MOST)).round().astype(int)
        samples = everyone.subset(places[kept])
        which = {"part": "training", "most": MOST, "fingerprint": experiment.fingerprint}
        if not len(samples):
            return cls(experiment, network, samples, np.zeros((0, 1, 1), np.float32), "")
        maps, heat = kept_heatmaps(experiment, network, samples, which)
        return cls(experiment, network, samples, maps, heat.path.name)

    @classmethod
    def at_test(cls, experiment: Experiment, network: TrainedNetwork) -> Self:
        """Looks at the test radiographs that are scored."""
        found = localization(experiment, network)
        return cls(experiment, network, found.samples, found.maps, found.run.path.name)

    def among(self, part: str) -> Self:
        """Leaves out the radiographs without the finding, or without a box."""
        has = _has_finding(self.network, self.samples) if part == FINDING else _has_box(self.samples)
        places = np.flatnonzero(has)
        made_from = f"{self.made_from} {part}"
        return dataclasses.replace(
            self, samples=self.samples.subset(places), maps=self.maps[places], made_from=made_from
        )

    def run(self, kind: str, levels: Sequence[float], more: Mapping[str, Any]) -> Run:
        """The folder of what is computed from the heatmaps at these thresholds."""
        settings = {"heatmaps": self.made_from, "thresholds": list(levels), "rows": ROWS_FORMAT}
        return self.experiment.run_at(kind, self.experiment.recipe.differences("scores") | settings | dict(more))

    def boxes(self, levels: Sequence[float]) -> list[list[Boxes]]:
        """Of each radiograph, the boxes at each threshold, of a size that no box decides."""
        how = drawing(self.experiment, self.network, self.samples)
        lungs, free = how.pop("lungs", [None] * len(self.samples)), self.experiment.recipe.boxless_min_area or 0.0
        return [
            boxes_at_thresholds(heat, levels, free, **how, lungs=own)
            for heat, own in zip(self._heatmaps(), lungs, strict=True)
        ]

    def scores(self, levels: Sequence[float], min_area: float) -> pd.DataFrame:
        """Returns `tables.threshold_rows` of the radiographs, all with a box; kept."""

        def compute() -> pd.DataFrame:
            how = drawing(self.experiment, self.network, self.samples)
            maps = np.stack(list(self._heatmaps()))  # (n, H, W)
            return threshold_rows(self.samples.names, maps, self.samples.boxes, min_area, levels, **how)

        rows = _read(self.run("thresholds", levels, {"min_area": min_area}), compute)
        return with_patients(rows, self.samples)

    def _heatmaps(self) -> Iterator[NDArray[np.float32]]:
        """The maps at the resolution of the crop, (H, W) each, one at a time."""
        upsampling = self.experiment.recipe.scores.cam_upsampling
        for place in range(len(self.maps)):
            yield upsample(self.maps[place : place + 1], self.samples.size, upsampling)[0]


def _has_finding(network: TrainedNetwork, samples: Samples) -> NDArray[np.bool_]:
    return is_positive(network, samples) == 1


def _has_box(samples: Samples) -> NDArray[np.bool_]:
    return np.array([len(boxes) > 0 for boxes in samples.boxes], bool)


def _checked(networks: Sequence[TrainedNetwork], thresholds: Iterable[float]) -> list[float]:
    """The thresholds in order; refuses networks and thresholds that do not serve."""
    roles, folders = {network.role for network in networks}, {network.run.path for network in networks}
    if len(networks) < 2 or len(folders) < len(networks) or len(roles) > 1:
        given = ", ".join(f"{network.role} {network.run.path.name}" for network in networks) or "none"
        raise UsageError(f"Expected at least two networks of one role that differ, as in their seeds; got {given}.")
    levels = sorted({_whole(threshold) for threshold in thresholds})
    if not levels or not (levels[0] >= 0 and levels[-1] <= 1):
        raise UsageError(f"Expected thresholds in [0, 1], at least one; got {levels}.")
    return levels


def _whole(threshold: float) -> float:
    """A threshold to nine digits, as it is read back from a file."""
    return round(float(threshold), 9)


def _read(run: Run, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Kept rows; thresholds are the numbers that were written, to the last bit."""
    rows = cached_rows(run, compute)
    return rows.assign(threshold=rows["threshold"].round(9))


def _compared(first: _Looked, second: _Looked, levels: Sequence[float], seed: int) -> pd.DataFrame:
    return agreements(first.samples.names, first.boxes(levels), second.boxes(levels), levels, seed)


def _others(count: int, seed: int) -> NDArray[np.intp]:
    """Other radiographs for each of `count`, all different, by chance: (count, min(`SHUFFLES`, count - 1))."""
    order = np.random.default_rng(seed).permutation(count)
    others = np.empty((count, min(SHUFFLES, count - 1)), np.intp)
    for step in range(others.shape[1]):
        others[order, step] = np.roll(order, -step - 1)
    return others


def _agreement(first: Boxes, second: Boxes) -> float:
    """One-to-one IoU of two lists of boxes; 0 if either is empty, or both."""
    return scores_of(first, second)[1] if len(first) else 0.0


def _training_rows(
    experiment: Experiment, networks: Sequence[TrainedNetwork], levels: Sequence[float], min_area: float
) -> pd.DataFrame:
    """Scores of the training radiographs that have a box, of all networks; no row if none has."""
    looked = [_Looked.at_training(experiment, network).among(BOX) for network in networks]
    found = [one.scores(levels, min_area) for one in looked if len(one.samples)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["threshold", "matched"])


def _test_rows(
    experiment: Experiment, networks: Sequence[TrainedNetwork], levels: Sequence[float], min_area: float
) -> pd.DataFrame:
    """Scores of the test radiographs on which every network is scored, of all networks, in the first one's order."""
    found = [_Looked.at_test(experiment, network).scores(levels, min_area) for network in networks]
    common = set.intersection(*(set(rows["name"]) for rows in found))
    if not common:
        raise UsageError(
            f"{experiment.root}: no test radiograph is scored for every network, so they have no mean. Set "
            "scored_images to 'boxed'."
        )
    return pd.concat(
        [rows[rows["name"].isin(common)].assign(network=place) for place, rows in enumerate(found)], ignore_index=True
    )


def _summary(experiment: Experiment, rows: pd.DataFrame) -> dict[str, float]:
    """Means over networks and radiographs at one threshold, with intervals over radiographs or patients."""
    first = rows[rows["network"] == 0]
    wide = {
        column: rows.pivot(index="name", columns="network", values=column).loc[first["name"]].to_numpy(float)
        for column in ("score", "matched", "n_gt", "n_pred")
    }  # (n, networks) each

    def means(index: NDArray[np.intp]) -> dict[str, float]:
        columns = zip(*(wide[column][index].T for column in ("score", "n_gt", "n_pred")), strict=True)
        mious = [average_score(*given, **averaging(experiment)) for given in columns]
        return {"miou": float(np.mean(mious)), "matched": float(wide["matched"][index].mean())}

    value, n = means(np.arange(len(first))), len(first)
    ends = bootstrap_metric(means, np.zeros(n), **experiment.recipe.resampling, clusters=patients_of(first))
    found = {"miou": value["miou"], "low": ends["miou"][0], "high": ends["miou"][1]}
    found |= {"matched": value["matched"], "matched_low": ends["matched"][0], "matched_high": ends["matched"][1]}
    return found | {"boxes": float(wide["n_pred"].mean()), "n": n, "networks": wide["score"].shape[1]}
