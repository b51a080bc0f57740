"""Where steps run: inline, side by side, and what a user reads when a cluster is not there."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tbkd_utils.errors import RunError
from tbkd_utils.experiments.executors import Inline, dask, local, threads_each


def test_one_job_runs_here_and_in_order() -> None:
    order: list[int] = []
    with local() as executor:
        assert isinstance(executor, Inline)
        futures = [executor.submit(order.append, number) for number in range(3)]
        assert order == [0, 1, 2]
        assert all(future.done() for future in futures)
        failing = executor.submit(int, "three")
    with pytest.raises(ValueError, match="three"):
        failing.result()


def test_ctrl_c_reaches_the_caller_of_one_job() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), local() as executor:
        executor.submit(interrupted)


def waited_for(mine: Path, other: Path) -> int:
    """Leaves a file and waits for another: returns only if both run at once. Gives its process away."""
    mine.touch()
    deadline = time.monotonic() + 60
    while not other.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{other} never came")
        time.sleep(0.01)
    return os.getpid()


@pytest.mark.slow
def test_two_jobs_run_at_the_same_time_in_processes_of_their_own(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    with local(2) as executor:
        futures = [executor.submit(waited_for, *files) for files in ((a, b), (b, a))]
        processes = {future.result() for future in futures}
        again = {executor.submit(os.getpid).result() for _ in range(3)}
    assert len(processes | {os.getpid()}) == 3
    assert again <= processes  # they stay, so that nothing is imported for each task


def killed(pid_file: Path) -> None:
    pid_file.write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_that_is_killed_fails_its_own_task_alone(tmp_path: Path) -> None:
    with local(2) as executor:
        lost = executor.submit(killed, tmp_path / "pid")
        others = [executor.submit(abs, -number) for number in range(6)]
        with pytest.raises(RunError, match="its process was killed"):
            lost.result()
        assert [future.result() for future in others] == [0, 1, 2, 3, 4, 5]
    assert int((tmp_path / "pid").read_text()) != os.getpid()


@pytest.mark.slow
def test_what_has_not_begun_is_dropped_after_an_error_and_no_process_stays() -> None:
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(KeyboardInterrupt), local(2) as executor:  # noqa: PT012
        for _ in range(2):
            executor.submit(time.sleep, 300)
        waiting = executor.submit(abs, 1)
        time.sleep(0.5)
        raise KeyboardInterrupt
    assert waiting.cancelled()
    left = set(psutil.Process().children(recursive=True)) - before
    _, alive = psutil.wait_procs(left, timeout=20)
    assert not [process for process in alive if "resource_tracker" not in " ".join(process.cmdline())]


def test_the_cores_are_shared_out() -> None:
    assert threads_each(1) >= 1
    assert threads_each(1) >= threads_each(2) >= 1
    assert threads_each(10_000) == 1


def test_wrong_options_are_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--jobs 0: expected at least 1"), local(0):
        pass
    with pytest.raises(RunError, match=r"does not answer.*`dask scheduler`"), dask("tcp://127.0.0.1:9", 0.5):
        pass
    with pytest.raises(RunError, match=r"nowhere\.json: there is no such scheduler file"):  # noqa: SIM117
        with dask(str(tmp_path / "nowhere.json"), 0.5):
            pass
