"""Where a network of this system looks, beside guesses that look at no disease: on its test set and on other sets."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from tbkd_utils.data.readers import Nih, Rsna
from tbkd_utils.data.synthetic.pneumonia import read_pneumonia_truth
from tbkd_utils.experiments.comparisons import guess_differences, guess_scores
from tbkd_utils.experiments.evaluation import Localization, elsewhere, localization, probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.localization.boxes import Boxes
from tbkd_utils.localization.guesses import constant_boxes, lower_halves, whole_image
from tbkd_utils.metrics.operating import area_table
from tbkd_utils.systems.pneumonia.settings import PneumoniaRecipe

ALL = "all"
SHOWN = ("score", "matched", "pointing", "energy", "max_box_acc_v2")
"""The metrics that tables in the notebook show."""


@dataclass(frozen=True)
class Looked:
    """What a network shows on one set of radiographs with boxes.

    Attributes:
        where: Which set, such as "test set" or "NIH".
        found: The network's boxes and scores.
        rows: What it says of every radiograph of the set, also of those without box: name, label, probability.
        guesses: Name of a blind guess to its boxes for each scored radiograph.
        kinds: Kind of pneumonia to the names of its radiographs, None for all; `all` comes first.
    """

    where: str
    found: Localization
    rows: pd.DataFrame
    guesses: Mapping[str, Sequence[Boxes]]
    kinds: Mapping[str, Collection[str] | None]

    @cached_property
    def table(self) -> pd.DataFrame:
        """`comparisons.guess_scores` for each kind, with the columns where and kind before it."""
        tables = [guess_scores(self.found, self.guesses, names).assign(kind=kind) for kind, names in self.kinds.items()]
        return _first(pd.concat(tables, ignore_index=True).assign(where=self.where))

    @cached_property
    def differences(self) -> pd.DataFrame:
        """`comparisons.guess_differences` for each kind, with the columns where and kind before it."""
        tables = [
            guess_differences(self.found, self.guesses, names).assign(kind=kind) for kind, names in self.kinds.items()
        ]
        return _first(pd.concat(tables, ignore_index=True).assign(where=self.where))

    def best_guess(self, metric: str = "score", kind: str = ALL) -> dict[Hashable, Any]:
        """Returns the row of `table` of the blind guess that scores best by a metric on these very images."""
        rows = self.table[self.table["blind"] & (self.table["metric"] == metric) & (self.table["kind"] == kind)]
        return max(rows.to_dict("records"), key=lambda row: row["mean"])

    def against_best_guess(self, metric: str = "score", kind: str = ALL) -> dict[Hashable, Any]:
        """Returns the row of `differences` that sets the network against that guess."""
        rows, guess = self.differences, self.best_guess(metric, kind)["guess_or_network"]
        chosen = rows[(rows["guess"] == guess) & (rows["metric"] == metric) & (rows["kind"] == kind)]
        return chosen.to_dict("records")[0]

    def own(self, metric: str, kind: str = ALL) -> float:
        """Returns the network's own mean of a metric."""
        rows = self.table[~self.table["blind"] & (self.table["metric"] == metric) & (self.table["kind"] == kind)]
        return float(rows["mean"].iloc[0])

    @property
    def shown(self) -> pd.DataFrame:
        """The rows of `table` of all kinds together and of the metrics that are drawn."""
        return self.table[(self.table["kind"] == ALL) & self.table["metric"].isin(SHOWN)]

    @property
    def best_boxes(self) -> Sequence[Boxes]:
        """The boxes of the blind guess of the highest mIOU."""
        return self.guesses[self.best_guess()["guess_or_network"]]

    @property
    def slug(self) -> str:
        """The set's name as part of a file's."""
        return self.where.replace(" ", "_").lower()

    def spread_of_cases(self, count: int = 4) -> list[int]:
        """Returns radiographs evenly spaced in rank by their score, from worst to best, none hand-picked."""
        order = np.argsort(self.found.rows["score"].to_numpy(), kind="stable")
        return order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)].tolist()

    @property
    def probabilities(self) -> list[float]:
        """The probability of pneumonia of each scored radiograph."""
        return self.rows.set_index("name")["probability"].loc[list(self.found.samples.names)].tolist()


def look(experiment: Experiment, trained: TrainedNetwork) -> list[Looked]:
    """Scores the maps of a network wherever there are boxes: on the test set, and in the folder `boxes_data`.

    Raises:
        DataError: If `boxes_data` is no dataset of NIH or RSNA with boxes of pneumonia.
    """
    recipe = experiment.recipe
    assert isinstance(recipe, PneumoniaRecipe)
    found: list[Looked] = []
    if any(len(boxes) for boxes in experiment.test.boxes):
        own = localization(experiment, trained)
        guesses = blind_guesses(own, drawn_lungs(experiment))
        found.append(Looked("test set", own, probabilities(experiment, trained), guesses, _kinds(experiment, own)))
    if recipe.comparisons.boxes_data:
        other = elsewhere(experiment, trained, recipe.comparisons.boxes_data, "pneumonia", (Nih, Rsna))
        where = other.located.samples.sources[0]
        found.append(Looked(where, other.located, other.rows, blind_guesses(other.located), {ALL: None}))
    return found


def blind_guesses(found: Localization, lungs: Mapping[str, np.ndarray] | None = None) -> dict[str, list[Boxes]]:
    """Returns what guesses that look at no disease say of these radiographs.

    Args:
        found: A network's boxes, on radiographs whose patients are known.
        lungs: Name of a radiograph to the boxes of its lungs, (2, 4) in pixels of the crop, where they are known.
    """
    samples = found.samples
    guesses = {"whole image": whole_image(len(samples), samples.size)}
    if lungs is not None:
        both = [lungs[name] for name in samples.names]
        guesses |= {"both lungs": both, "lower half of each lung": lower_halves(both)}
    patients = [group or name for group, name in zip(samples.groups, samples.names, strict=True)]
    for count, name in ((1, "one constant box"), (2, "two constant boxes")):
        if len(set(patients)) > 1:
            guesses[name] = constant_boxes(samples.boxes, patients, count)
    return guesses


def drawn_lungs(experiment: Experiment) -> dict[str, np.ndarray] | None:
    """Returns the boxes of the lungs of every drawn test image in pixels of the crop; None for radiographs."""
    if not experiment.synthetic:
        return None
    beside = (experiment.root / experiment.system.drawn).is_file()
    truth = read_pneumonia_truth(experiment.root if beside else experiment.root.parent)
    samples = experiment.test
    return {
        name: geometry.boxes(truth[name].lungs)
        for name, geometry in zip(samples.names, samples.geometries, strict=True)
    }


def looks_table(looked: Sequence[Looked]) -> pd.DataFrame:
    """Joins the tables of several sets of radiographs; no row if there is none."""
    columns = ["where", "kind", "guess_or_network", "metric", "mean", "low", "high", "n", "blind"]
    return pd.concat([one.table for one in looked], ignore_index=True) if looked else pd.DataFrame(columns=columns)


def looks_differences(looked: Sequence[Looked]) -> pd.DataFrame:
    """Joins the differences of several sets of radiographs; no row if there is none."""
    columns = ["where", "kind", "guess", "metric", "difference", "low", "high", "p", "n"]
    joined = pd.concat([one.differences for one in looked], ignore_index=True) if looked else None
    return joined if joined is not None else pd.DataFrame(columns=columns)


def looks_wide(looked: Sequence[Looked]) -> pd.DataFrame:
    """Returns the means of `looks_table` of all kinds together, a row for each network and guess, a column a metric."""
    table = looks_table(looked)
    chosen = table[(table["kind"] == ALL) & table["metric"].isin(SHOWN)]
    wide = chosen.pivot_table("mean", ["where", "guess_or_network"], "metric", sort=False)
    return wide.reindex(columns=list(SHOWN)).reset_index().rename_axis(columns=None)


def transfer_table(looked: Sequence[Looked], experiment: Experiment) -> pd.DataFrame:
    """Says how well the network tells pneumonia from the negative radiographs of each set; see `evaluation.elsewhere`.

    Returns:
        One row per set: where, radiographs, pneumonia, roc_auc, low, high (95% bootstrap within class; nan where all
        have pneumonia).
    """
    rows = []
    for one in looked:
        area = (np.nan,) * 3
        if one.rows["label"].nunique() > 1:
            areas = area_table(one.rows, **experiment.recipe.resampling).set_index("metric")
            area = tuple(areas.loc["roc_auc", ["value", "low", "high"]])
        rows.append((one.where, len(one.rows), int(one.rows["label"].sum()), *area))
    return pd.DataFrame(rows, columns=["where", "radiographs", "pneumonia", "roc_auc", "low", "high"])


def _kinds(experiment: Experiment, found: Localization) -> dict[str, Collection[str] | None]:
    """The kinds of pneumonia that were scored, each with the names of its radiographs; `all` comes first."""
    scored = set(found.samples.names)
    kinds: dict[str, list[str]] = {}
    for record in experiment.test_records:
        if record.name in scored:
            kinds.setdefault(record.kind, []).append(record.name)
    return {ALL: None, **(kinds if len(kinds) > 1 else {})}


def _first(table: pd.DataFrame) -> pd.DataFrame:
    """The columns where and kind before all others."""
    return table[["where", "kind", *table.columns.drop(["where", "kind"])]]
