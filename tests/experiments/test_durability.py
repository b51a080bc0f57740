"""Faults put into real trainings: kills at any moment, a disk that takes no more, files that were changed."""

import hashlib
import multiprocessing
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tbkd_utils.errors import RunError
from tbkd_utils.experiments.evaluation import classification, localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import train
from tbkd_utils.runs import RunWarning

pytestmark = pytest.mark.slow
KILLS = 20


def whole(out: Path) -> None:
    """Draws the radiographs, trains both networks, and evaluates them: all that a notebook of the grid computes."""
    experiment = Experiment.open("smoke", out=out, overrides={"epochs": 3})
    for role in ("teacher", "student"):
        trained = train(experiment, role)
        classification(experiment, trained)
        localization(experiment, trained)


def contents(out: Path) -> dict[str, str]:
    """The checksum of every result: weights, histories, probabilities, heatmaps, boxes, radiographs."""
    files = sorted(path for path in (out / "runs").rglob("*") if path.is_file())
    names = {path: str(path.relative_to(out)) for path in files}
    timed = ("environment.json", "done.json", "manifest.json")  # hold times, and the checksum of those
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path, name in names.items()
        if path.name not in timed and not any(part.startswith(".") for part in path.parts)
    }


@pytest.fixture(scope="module")
def server() -> multiprocessing.context.BaseContext:
    """Starts processes that have torch imported already, so that kills fall into the work and not into the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tbkd_utils.experiments.evaluation", "tbkd_utils.models.loop"])
    return context


@pytest.fixture(scope="module")
def undisturbed(server: multiprocessing.context.BaseContext, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """The results of a run that nothing interrupts, and the seconds that it took."""
    out = tmp_path_factory.mktemp("undisturbed")
    start(server, tmp_path_factory.mktemp("warm")).join()  # the first one starts the server
    began = time.monotonic()
    process = start(server, out)
    process.join()
    assert process.exitcode == 0
    return contents(out), time.monotonic() - began


def start(server: multiprocessing.context.BaseContext, out: Path) -> multiprocessing.Process:
    process = server.Process(target=whole, args=(out,))  # type: ignore[attr-defined]
    process.start()
    return process


def test_twenty_kills_at_random_moments_change_nothing(
    server: multiprocessing.context.BaseContext, undisturbed: tuple, tmp_path: Path
) -> None:
    """Each run is killed and continued, again and again, until it ends; then the next one begins."""
    expected, seconds = undisturbed
    rng, killed, finished, out = np.random.default_rng(2512), 0, 0, tmp_path / "0"
    while killed < KILLS or out.exists():
        process = start(server, out)
        process.join(rng.uniform(0.05, seconds) if killed < KILLS else None)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
        else:
            assert process.exitcode == 0, f"after {killed} kills"
            assert contents(out) == expected, f"after {killed} kills"
            shutil.rmtree(out)
            finished += 1
            out = tmp_path / str(finished)
    assert killed == KILLS
    assert finished >= 1


def limited(out: Path, size: int) -> None:
    """Trains while no file may grow beyond `size` bytes, as on a disk that is full; exits with 3 if that is said."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        whole(out)
    except RunError as error:
        os._exit(3 if "cannot be written" in str(error) and "run again" in str(error) else 4)


@pytest.mark.parametrize("size", [30_000, 1_000_000, 15_000_000])  # no pixels, no weights, no checkpoint
def test_a_full_disk_is_said_and_the_next_call_goes_on(
    server: multiprocessing.context.BaseContext, undisturbed: tuple, tmp_path: Path, size: int
) -> None:
    process = server.Process(target=limited, args=(tmp_path, size))  # type: ignore[attr-defined]
    process.start()
    process.join()
    assert process.exitcode == 3
    process = start(server, tmp_path)
    process.join()
    assert process.exitcode == 0
    assert contents(tmp_path) == undisturbed[0]


def test_a_finished_run_that_was_changed_is_said_and_made_again(smoke: Experiment, tmp_path: Path) -> None:
    experiment = Experiment.open("smoke", out=tmp_path)
    trained = train(experiment, "teacher")
    weights = trained.run.file("best.safetensors")
    good = weights.read_bytes()
    for damage in (good[:-100], good[:-1] + bytes([good[-1] ^ 1]), b""):
        weights.write_bytes(damage)
        with pytest.warns(RunWarning, match=r"best\.safetensors is not the file that was written, so it is made again"):
            train(Experiment.open("smoke", out=tmp_path), "teacher")
        assert weights.read_bytes() == good
    weights.unlink()
    with pytest.warns(RunWarning, match=r"best\.safetensors is missing, so it is made again"):
        train(Experiment.open("smoke", out=tmp_path), "teacher")
    trained.run.file("done.json").write_text("{}")
    with pytest.warns(RunWarning, match=r"done\.json cannot be read"):
        train(Experiment.open("smoke", out=tmp_path), "teacher")
    assert weights.read_bytes() == good
