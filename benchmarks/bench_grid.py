"""The grid: six teachers by one process and by two, one thread each, as the series trains them."""

import tempfile
import time

from harness import Row, report

from tbkd_utils.experiments import executors
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.series import raise_failures, run, training_steps
from tbkd_utils.systems.tb.grid import seed_variants

SEEDS = (0, 1, 2, 3, 4, 5)
ROUNDS = 2


def seconds_of(jobs: int) -> float:
    """Seconds for the teachers of all seeds, in a fresh folder; their radiographs are drawn before."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment.open("smoke", out=folder, overrides={"seeds": list(SEEDS)})
        _ = experiment.full_train, experiment.test
        teachers = [variant for variant in seed_variants(experiment.recipe) if variant.role == "teacher"]
        steps = training_steps(experiment, teachers)
        began = time.perf_counter()
        with executors.local(jobs) as executor:
            raise_failures(run(steps, executor, at_a_time=jobs))
        return time.perf_counter() - began


def measure() -> list[Row]:
    seconds_of(2)  # so that no side pays for a cold disk
    pairs = [(seconds_of(1), seconds_of(2)) for _ in range(ROUNDS)]
    speeds = sorted(one / two for one, two in pairs)
    middle = sum(speeds) / 2
    goal = "a grid of one-thread trainings by 2 processes at least 1.7x as fast as by 1, on 2 cores"
    note = ", ".join(f"{one:.0f} s and {two:.0f} s" for one, two in pairs)
    return [Row("grid", goal, f"{middle:.2f} ({speeds[0]:.2f} to {speeds[-1]:.2f})x", middle >= 1.7, note)]


if __name__ == "__main__":
    report(measure())
