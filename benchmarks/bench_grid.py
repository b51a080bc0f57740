"""The grid: six teachers by one process and by two, one thread each; whole notebooks, as the series runs them."""

import tempfile
import time

from harness import Row, report

from tbkd_utils.experiments import executors
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.grid import TEACHER, seed_cells
from tbkd_utils.experiments.series import cell_steps, raise_failures, run

SEEDS = (0, 1, 2, 3, 4, 5)
ROUNDS = 2


def seconds_of(jobs: int) -> float:
    """Seconds for the teachers of all seeds, in a fresh folder; their radiographs are drawn before."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment.open("smoke", out=folder, overrides={"seeds": list(SEEDS)})
        _ = experiment.full_train, experiment.test
        steps = cell_steps(experiment, [cell for cell in seed_cells(experiment.recipe) if cell.arm == TEACHER])
        began = time.perf_counter()
        with executors.local(jobs) as executor:
            raise_failures(run(steps, executor, at_a_time=jobs))
        return time.perf_counter() - began


def measure() -> list[Row]:
    seconds_of(2)  # so that no side pays for a cold disk
    pairs = [(seconds_of(1), seconds_of(2)) for _ in range(ROUNDS)]
    speeds = sorted(one / two for one, two in pairs)
    middle = sum(speeds) / 2
    goal = "a grid of one-thread notebooks by 2 processes at least 1.7x as fast as by 1, on 2 cores"
    note = ", ".join(f"{one:.0f} s and {two:.0f} s" for one, two in pairs)
    return [Row("grid", goal, f"{middle:.2f} ({speeds[0]:.2f} to {speeds[-1]:.2f})x", middle >= 1.7, note)]


if __name__ == "__main__":
    report(measure())
