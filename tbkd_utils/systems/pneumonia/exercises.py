"""Small experiments that the solutions of the notebook's exercises run; none trains a network."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.localization.guesses import guess_rows
from tbkd_utils.metrics.operating import best_f1_threshold, operating_metrics
from tbkd_utils.systems.pneumonia.looks import Looked


def threshold_optimism(rows: pd.DataFrame, draws: int = 200, seed: int = 0) -> pd.DataFrame:
    """Chooses the threshold of the best F1 on half of the radiographs and looks at it on the other half.

    Args:
        rows: Columns label and probability.
        draws: How often the radiographs are halved at random, class by class.
        seed: Of the halves.

    Returns:
        One row per half: half ("that chose", "other"), f1 (mean over the draws), f1_at_half (the same at 0.5).
    """
    p, y = rows["probability"].to_numpy(), rows["label"].to_numpy()
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        order = np.concatenate([rng.permutation(np.flatnonzero(y == label)) for label in (0, 1)])
        halves = order[::2], order[1::2]
        threshold = best_f1_threshold(p[halves[0]], y[halves[0]])
        found.append([operating_metrics(p[half], y[half], at)["f1"] for half in halves for at in (threshold, 0.5)])
    own, own_half, other, other_half = np.mean(found, axis=0)
    return pd.DataFrame({"half": ["that chose", "other"], "f1": [own, other], "f1_at_half": [own_half, other_half]})


def known_share(experiment: Experiment, shares: Sequence[float], draws: int = 50, seed: int = 0) -> pd.DataFrame:
    """Counts how many test images are of patients who are trained on, when images are divided instead of patients.

    Args:
        experiment: Whose radiographs are divided.
        shares: Of the images that train; the rest tests.
        draws: Divisions at random for each share.
        seed: Of the divisions.

    Returns:
        One row per share: share, known (mean share of the test images).
    """
    groups = np.array([record.group for record in experiment.pooled_records])
    rng, rows = np.random.default_rng(seed), []
    for share in shares:
        count, known = round(share * len(groups)), []
        for _ in range(draws):
            order = rng.permutation(len(groups))
            known.append(np.isin(groups[order[count:]], groups[order[:count]]).mean())
        rows.append((share, float(np.mean(known))))
    return pd.DataFrame(rows, columns=["share", "known"])


def lower_parts(looked: Sequence[Looked], parts: Sequence[float]) -> pd.DataFrame:
    """Scores guesses that cover the lower part of each lung, or of the image where the lungs are not known.

    Args:
        looked: From `looks.look`; each is guessed on.
        parts: Shares of the height, each above 0 and at most 1.

    Returns:
        One row per set of radiographs and part: where, part, miou, matched, energy; the network's own row has no part.
    """
    rows = []
    for one in looked:
        samples = one.found.samples
        regions = one.guesses.get("both lungs", one.guesses["whole image"])
        for part in parts:
            guesses = [np.array(boxes, np.float32) for boxes in regions]
            for guess in guesses:
                guess[:, 1] = guess[:, 3] - part * (guess[:, 3] - guess[:, 1])
            scored = guess_rows(samples.names, guesses, samples.boxes, samples.size)
            rows.append((one.where, part, *scored[["score", "matched", "energy"]].mean()))
        rows.append((one.where, np.nan, *one.found.rows[["score", "matched", "energy"]].mean()))
    return pd.DataFrame(rows, columns=["where", "part", "miou", "matched", "energy"])
