"""Growth: time per image and peak memory with 500, 2,000 and 8,000 synthetic radiographs; each size in a fresh process.

python benchmarks/bench_growth.py [--json]
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import Row, report

from tbkd_utils.data.dataset import fingerprint
from tbkd_utils.data.manifest import Manifest
from tbkd_utils.data.records import Radiograph
from tbkd_utils.data.transforms import rand_augment, standardize

SIZES = (500, 2000, 8000)


class Private(threading.Thread):
    """The most private memory of this process in bytes: what is mapped from a file is the system's to drop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.going = 0, True

    def now(self) -> int:
        resident, shared = (int(n) for n in Path("/proc/self/statm").read_text().split()[1:3])
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")

    def run(self) -> None:
        while self.going:
            self.peak = max(self.peak, self.now())
            time.sleep(0.01)


def one_size(count: int) -> None:
    """Draws, reads, caches, feeds for one epoch, trains for one epoch and makes heatmaps; prints seconds and bytes."""
    from tbkd_utils.data.loaders import training_loader
    from tbkd_utils.experiments.evaluation import localization, probabilities
    from tbkd_utils.experiments.experiment import Experiment
    from tbkd_utils.experiments.trained import train as train_network

    torch.set_num_threads(2)
    test = count // 5
    train = count - test
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "synthetic_train": (train // 4, train // 4, train - 2 * (train // 4)),
            "synthetic_val": (test // 4, test // 4, test - 2 * (test // 4)),
            "synthetic_size": 96, "resize": 73, "crop": 64, "batch_size": 32, "epochs": 1, "threads": 0,
            "resamples": 100, "early_stopping_on": "train",
        }  # fmt: skip
        experiment = Experiment.open("smoke", out=folder, overrides=overrides)
        watch = Private()
        watch.start()
        seconds, began = {}, time.perf_counter()

        def lap(name: str, images: int) -> None:
            nonlocal began
            seconds[name] = (time.perf_counter() - began) / images
            began = time.perf_counter()

        _ = experiment.root
        lap("draw", count)
        _ = experiment.full_train, experiment.test
        lap("read and cache", count)
        augment = partial(rand_augment, operations=2, magnitude=9)
        for batch in training_loader(experiment.train, augment, batch_size=32, seed=0, epoch=lambda: 0):
            standardize(batch["pixels"])
        lap("feed", train)
        trained = train_network(experiment, "teacher")
        lap("train", train)
        probabilities(experiment, trained)
        _ = localization(experiment, trained).rows
        lap("evaluate", test)
        watch.going = False
    print(json.dumps({"count": count, "seconds": seconds, "peak": watch.peak}))


def opened_again(count: int = 112_000) -> Row:
    """Seconds to name a set of the size of NIH ChestX-ray14 by its bytes, the first time and the second."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        records = []
        for number in range(count):
            path = Path(folder) / f"{number // 1000:03d}" / f"{number:08d}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"%08d" % number)
            records.append(Radiograph(path, number % 2, np.zeros((0, 4), np.float32), "made"))
        for _ in range(2):
            began = time.perf_counter()
            fingerprint(records, Manifest(Path(folder) / "manifest.json"))
            seconds.append(time.perf_counter() - began)
    goal = f"{count} files named by their bytes in under 5 s, the second time"
    return Row(
        "growth", goal, f"{seconds[1]:.1f} s", seconds[1] < 5, f"the first time {seconds[0]:.0f} s, of 8 bytes each"
    )


def measure() -> list[Row]:
    found = []
    for count in SIZES:
        command = [sys.executable, __file__, "--one", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    first, rows = found[0], [opened_again()]
    for other in found[1:]:
        both = (sum(first["seconds"].values()), sum(other["seconds"].values()))
        parts = ", ".join(f"{name} {1e3 * s:.1f}" for name, s in other["seconds"].items())
        goal = f"time per image of {other['count']} radiographs within 10% of that of {first['count']}"
        rows.append(Row("growth", goal, f"{both[1] / both[0]:.3f}x", both[1] / both[0] <= 1.1, f"ms/image: {parts}"))
        share = other["peak"] / first["peak"]
        goal = f"peak private memory of {other['count']} radiographs within 10% of that of {first['count']}"
        rows.append(Row("growth", goal, f"{share:.3f}x", share <= 1.1, f"{other['peak'] / 2**20:.0f} MiB"))
    return rows


if __name__ == "__main__":
    if "--one" in sys.argv:
        one_size(int(sys.argv[-1]))
    else:
        report(measure())
