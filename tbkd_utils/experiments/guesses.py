"""Blind guesses of an experiment: boxes on its test radiographs from something that looks at no disease."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from tbkd_utils.data.cache import Samples
from tbkd_utils.errors import UsageError
from tbkd_utils.experiments.chests import lungs_in, training_chest
from tbkd_utils.experiments.evaluation import Localization, averaging, with_patients
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.localization.boxes import Boxes, boxes_from_json, boxes_to_json
from tbkd_utils.localization.guesses import best_constant_boxes, grid_boxes, guess_rows, upper_half, whole_image
from tbkd_utils.localization.scores import average_score, scores_of
from tbkd_utils.localization.tables import ROWS_FORMAT, summarize
from tbkd_utils.metrics.statistics import bootstrap_interval, paired_permutation_test, patients_of
from tbkd_utils.runs import Run, cached_rows

WHOLE, UPPER, LUNGS = "whole image", "upper half of the image", "upper halves of the lungs"
CONSTANT = {"one constant box": 1, "two constant boxes": 2}
"""Guesses that need training boxes, and how many boxes each has."""
BOX_FREE = (WHOLE, UPPER, LUNGS)
"""Guesses that need no box, in the order in which they are drawn."""


@dataclass(frozen=True)
class BlindGuesses:
    """What guesses that look at no disease score on the test radiographs that have a box.

    Attributes:
        rows: One row per guess and radiograph: the columns of `localization.tables.score_rows`, and guess.
        training: The same of the box-free guesses on the training radiographs that have a box; maybe no row.
        lungs: One row per test radiograph with a box: name, boxes, upper (for `boxes_from_json`), confidence, fallback;
            no row if the training radiographs have no mean chest, as when they are too few.
        experiment: Recipe and data.
    """

    rows: pd.DataFrame
    training: pd.DataFrame
    lungs: pd.DataFrame
    experiment: Experiment

    @cached_property
    def best(self) -> str:
        """The box-free guess of the highest mIOU on the training radiographs.

        Where those have no box: the lungs, or the upper half of the image if no lungs were found.
        """
        if self.training.empty:
            return UPPER if self.missing else LUNGS
        return str(self.training.groupby("guess", sort=False)["score"].mean().idxmax())

    def of(self, guess: str) -> pd.DataFrame:
        """Returns the rows of one guess.

        Raises:
            UsageError: If there is none of this name.
        """
        found = self.rows[self.rows["guess"] == guess]
        if found.empty:
            known = ", ".join(dict.fromkeys(self.rows["guess"]))
            raise UsageError(f"There is no blind guess '{guess}': expected {known}.")
        return found.drop(columns="guess").reset_index(drop=True)

    def kind(self, guess: str) -> str:
        """Says what a guess is made from."""
        if guess not in BOX_FREE:
            return "guess from training boxes"
        return "best box-free guess" if guess == self.best else "box-free guess"

    @property
    def missing(self) -> str:
        """Says which guess is missing and why, as a sentence; empty if none is."""
        if len(self.lungs):
            return ""
        return (
            f"There is no guess from the {LUNGS}: the training radiographs have no mean chest with two lungs, by which "
            "lungs are found."
        )

    def scores(self, guess: str) -> pd.DataFrame:
        """Returns every metric of one guess with its interval, as `Localization.scores` does of a network.

        Raises:
            UsageError: If there is none of this name.
        """
        return summarize(self.of(guess), **self.experiment.recipe.resampling, **averaging(self.experiment))

    @property
    def line(self) -> tuple[str, float]:
        """The best box-free guess and its mIOU, as figures draw it."""
        summary = summarize(self.of(self.best), resamples=1, **averaging(self.experiment)).set_index("metric")
        return self.best, float(summary["mean"]["score"])


def blind_guesses(experiment: Experiment) -> BlindGuesses:
    """Scores the blind guesses; computed once and kept.

    Lungs are found by alignment to the mean chest of training radiographs, so from no annotation; without a mean chest
    their guess is left out. Constant boxes come from training boxes, and are left out where there are none.

    Raises:
        UsageError: If no test radiograph has a box.
        RunError: If a run folder cannot be written.
    """
    train, tested = _boxed(experiment.full_train_as_tested), _boxed(experiment.test)
    if not len(tested):
        raise UsageError(f"{experiment.root}: no test radiograph has a box, so that no guess can be scored.")
    lungs, learned = _lungs(experiment, tested, "test"), _lungs(experiment, train, "training")
    rows = _rows(experiment, tested, lungs, "test", train)
    return BlindGuesses(rows, _rows(experiment, train, learned, "training"), lungs, experiment)


def blind_table(guesses: BlindGuesses, networks: Mapping[str, Localization] | None = None) -> pd.DataFrame:
    """Sets blind guesses and networks into one table.

    Returns:
        One row per guess or network: guess_or_network, kind, miou, low, high, matched (one-to-one IoU; missed and
        surplus boxes count 0), matched_low, matched_high (95% over radiographs, or patients where known), boxes (per
        radiograph), n.
    """
    found = {guess: guesses.scores(guess) for guess in dict.fromkeys(guesses.rows["guess"])}
    found |= {name: one.scores for name, one in (networks or {}).items()}
    lines = []
    for name, scores in found.items():
        summary, ends = scores.set_index("metric"), ["mean", "low", "high"]
        kind = "network" if networks and name in networks else guesses.kind(name)
        score, matched = summary.loc["score", ends], summary.loc["matched", ends]
        lines.append((name, kind, *score, *matched, summary.loc["n_pred", "mean"], int(summary["n"]["score"])))
    columns = [
        "guess_or_network",
        "kind",
        "miou",
        "low",
        "high",
        "matched",
        "matched_low",
        "matched_high",
        "boxes",
        "n",
    ]
    return pd.DataFrame(lines, columns=columns)


def minus_best_guess(guesses: BlindGuesses, network: Localization) -> pd.DataFrame:
    """Asks radiograph by radiograph whether a network knows more than the best box-free guess.

    Returns:
        Two rows (score = the paper's, matched): guess, metric, difference (network minus guess), low, high (95%
        bootstrap over radiographs, or patients where known), p (paired permutation test), n.
    """
    recipe, rows = guesses.experiment.recipe, []
    own = network.rows
    blind = guesses.of(guesses.best).set_index("name").loc[own["name"]]
    for metric in ("score", "matched"):
        ours, theirs = own[metric].to_numpy(float), blind[metric].to_numpy(float)
        low, high = bootstrap_interval(ours - theirs, **recipe.resampling, clusters=patients_of(own))
        p = paired_permutation_test(ours, theirs, **recipe.resampling_of_tests, clusters=patients_of(own))
        rows.append((guesses.best, metric, float((ours - theirs).mean()), low, high, p, len(own)))
    return pd.DataFrame(rows, columns=["guess", "metric", "difference", "low", "high", "p", "n"])


def surplus_curve(found: Localization, most: int = 30) -> pd.DataFrame:
    """Adds boxes that look at nothing to a network's own, and scores them: what a measure says of surplus boxes.

    Args:
        found: The network's boxes.
        most: Boxes added at most, in the order of `grid_boxes`.

    Returns:
        One row per number of added boxes, from 0: added, miou (the paper's), matched (one-to-one IoU).
    """
    grid, truths = grid_boxes(most, found.samples.size), found.samples.boxes
    n_gt, own = np.array([len(truth) for truth in truths]), np.array([len(boxes) for boxes in found.boxes])
    rows = []
    for added in range(most + 1):
        pairs = zip(truths, found.boxes, strict=True)
        both = [scores_of(truth, np.concatenate([boxes, grid[:added]]))[:2] for truth, boxes in pairs]
        score, matched = np.array(both).T  # (n,) each
        miou = average_score(score, n_gt, own + added, **averaging(found.experiment))
        rows.append((added, miou, float(matched.mean())))
    return pd.DataFrame(rows, columns=["added", "miou", "matched"])


def _boxed(samples: Samples) -> Samples:
    return samples.subset([place for place, boxes in enumerate(samples.boxes) if len(boxes)])


def _run(experiment: Experiment, kind: str, part: str, more: Mapping[str, Any] | None = None) -> Run:
    resize, crop, aspect = experiment.recipe.evaluation_scale
    settings = {"fingerprint": experiment.fingerprint, "resize": resize, "crop": crop, "aspect": aspect, "part": part}
    settings["upper"] = "lung"  # tables of upper halves of the lungs' boxes, which this once meant, are not read
    return experiment.run_at(kind, settings | experiment.recipe.differences("data") | dict(more or {}))


def _lungs(experiment: Experiment, samples: Samples, part: str) -> pd.DataFrame:
    """The lungs of radiographs, a row each; see `BlindGuesses.lungs`."""
    columns = ["name", "boxes", "upper", "confidence", "fallback"]

    def compute() -> pd.DataFrame:
        try:
            mean = training_chest(experiment)
        except UsageError:  # too few radiographs, or no frontal chests
            return pd.DataFrame(columns=columns)
        found = lungs_in(samples, mean)
        rows = [
            (name, boxes_to_json(one.boxes), boxes_to_json(one.upper), one.confidence, one.fallback)
            for name, one in zip(samples.names, found, strict=True)
        ]
        return pd.DataFrame(rows, columns=columns)

    return cached_rows(_run(experiment, "lungs", part), compute)


def _rows(
    experiment: Experiment, samples: Samples, lungs: pd.DataFrame, part: str, train: Samples | None = None
) -> pd.DataFrame:
    """The rows of all guesses; those from boxes only where training radiographs are given."""

    def compute() -> pd.DataFrame:
        guesses: dict[str, list[Boxes]] = {
            WHOLE: whole_image(len(samples), samples.size),
            UPPER: upper_half(len(samples), samples.size),
        }
        if train is not None and len(train):
            guesses |= {
                name: [best_constant_boxes(train.boxes, count)] * len(samples) for name, count in CONSTANT.items()
            }
        if len(lungs):
            guesses[LUNGS] = [boxes_from_json(text) for text in lungs["upper"]]
        scored = (samples.names, samples.boxes, samples.size)
        return pd.concat(
            [guess_rows(scored[0], boxes, *scored[1:]).assign(guess=name) for name, boxes in guesses.items()],
            ignore_index=True,
        )

    if not len(samples):
        return pd.DataFrame(columns=["name", "score", "guess"])
    run = _run(experiment, "guesses", part, {"rows": ROWS_FORMAT})
    return with_patients(cached_rows(run, compute), samples)
