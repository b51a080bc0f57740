"""Where steps run: inline, side by side, and what a user reads when a cluster is not there."""

import threading
from pathlib import Path

import pytest

from tbkd_utils.experiments.executors import ExecutorError, Inline, dask, local, threads_each


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


def test_two_jobs_run_at_the_same_time() -> None:
    barrier = threading.Barrier(2, timeout=20)  # passed only if both wait at it at once
    with local(2) as executor:
        futures = [executor.submit(barrier.wait) for _ in range(2)]
        assert sorted(future.result() for future in futures) == [0, 1]


def test_what_has_not_begun_is_dropped_after_an_error() -> None:
    barrier, go, ran = threading.Barrier(3, timeout=20), threading.Event(), []

    def slow() -> None:
        barrier.wait()
        go.wait(20)

    def let_go() -> None:
        go.set()

    with pytest.raises(KeyboardInterrupt), local(2) as executor:  # noqa: PT012
        for _ in range(2):
            executor.submit(slow)
        waiting = executor.submit(ran.append, 1)
        barrier.wait()  # both threads are busy now
        threading.Timer(0.5, let_go).start()
        raise KeyboardInterrupt
    assert waiting.cancelled()
    assert ran == []


def test_the_cores_are_shared_out() -> None:
    assert threads_each(1) >= 1
    assert threads_each(1) >= threads_each(2) >= 1
    assert threads_each(10_000) == 1


def test_wrong_options_are_said(tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match="--jobs 0: expected at least 1"), local(0):
        pass
    with pytest.raises(ExecutorError, match=r"does not answer.*`dask scheduler`"), dask("tcp://127.0.0.1:9", 0.5):
        pass
    with pytest.raises(ExecutorError, match=r"nowhere\.json: there is no such scheduler file"):  # noqa: SIM117
        with dask(str(tmp_path / "nowhere.json"), 0.5):
            pass
