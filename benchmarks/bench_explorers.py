"""Explorers: a move of the threshold's slider beside all of it from scratch, on 200 heatmaps of two networks."""

import itertools
import tempfile

import numpy as np
from harness import Row, in_turns, ratio, report

from tbkd_utils.experiments.evaluation import Localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.localization.tables import score_rows
from tbkd_utils.runs import write_csv
from tbkd_utils.views.explorers import threshold_explorer

COUNT = 200


DRAWN = {
    "synthetic_train": (2, 2, 4), "synthetic_val": (1, 1, COUNT), "train_splits": ("train",), "test_splits": ("val",)
}  # fmt: skip


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment.open("laptop", out=folder, overrides=DRAWN)
        samples = experiment.test.subset(np.flatnonzero([len(boxes) > 0 for boxes in experiment.test.boxes]))
        rng, found = np.random.default_rng(0), []
        for role in ("teacher", "student"):
            maps = rng.gamma(0.5, size=(COUNT, 7, 7)).astype(np.float32)
            made = Localization(role, samples, maps, 172.9, experiment.run_at(role, {}), experiment)
            write_csv(made.run.file("rows.csv"), score_rows(samples.names, made.heatmaps, samples.boxes, 0.5, 172.9))
            found.append(made)
        slider = threshold_explorer(*found).controls["threshold"]
        places = itertools.cycle(range(20, 80, 3))

        def move() -> None:
            slider.index = next(places)

        def scratch() -> None:
            for made in found:
                score_rows(samples.names, made.heatmaps, samples.boxes, 0.37, made.min_area)

        seconds = in_turns({"scratch": scratch, "move": move}, rounds=15, warm_up=2)
    _, text = ratio(seconds, "scratch", "move")
    note = f"a move {np.median(seconds['move']):.3f} s, picture and all; no picture in the other"
    return [
        Row("explorers", "Algorithm 1 and every score from scratch beside a move of the slider", f"{text}x", None, note)
    ]


if __name__ == "__main__":
    report(measure())
