"""Where steps are executed: one at a time here, several at a time in processes of their own, or on a Dask cluster.

Anything with the interface of `concurrent.futures` will do.
"""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil

from tbkd_utils.errors import RunError


class Inline(Executor):
    """Runs each task immediately in the calling thread: one step at a time, and Ctrl-C reaches it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Calls the function and returns its future, which is finished."""
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextlib.contextmanager
def local(jobs: int = 1) -> Iterator[Executor]:
    """Opens an executor on this machine.

    Args:
        jobs: Steps at a time.

    Raises:
        RunError: If `jobs` is below 1.
    """
    if jobs < 1:
        raise RunError(f"--jobs {jobs}: expected at least 1.")
    if jobs == 1:
        yield Inline()
        return
    before = _descendants()
    pool = Workers(jobs)
    try:
        yield pool
    except BaseException:  # Ctrl-C among them: a notebook half executed is executed again, a training resumes
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(_descendants()) - set(before):
            with contextlib.suppress(psutil.Error):
                process.terminate()
        raise
    finally:
        pool.shutdown()


class Workers(Executor):
    """Runs tasks in a few processes that stay; one that is killed fails its own task alone.

    Two trainings in one process would share torch's random state, and a plain process pool gives all of its tasks up
    when it loses a worker. So each thread here drives a pool of one process, and starts another if it is lost.

    Args:
        count: Processes.
    """

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="step")
        self._own = threading.local()
        self._pools: list[ProcessPoolExecutor] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Runs a function in a process; returns its future.

        Its result, its arguments and the function itself have to be picklable.
        """
        return self._threads.submit(self._call, fn, args, kwargs)

    def _call(self, fn: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        if getattr(self._own, "pool", None) is None:
            self._own.pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            self._pools.append(self._own.pool)
        try:
            return self._own.pool.submit(fn, *args, **kwargs).result()
        except BrokenProcessPool as error:
            self._own.pool = None
            raise RunError(
                "its process was killed, perhaps for want of memory: run again, what was half done resumes"
            ) from error

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the processes once their tasks are done."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        for pool in self._pools:
            pool.shutdown(wait, cancel_futures=cancel_futures)


@contextlib.contextmanager
def dask(address: str, timeout: float = 20.0) -> Iterator[Executor]:
    """Opens an executor on a Dask cluster, whose workers see the same folders as this machine.

    A step whose worker is lost is executed again on another one.

    Args:
        address: The scheduler's address, such as `tcp://host:8786`, or the path of a scheduler file (JSON).
        timeout: Seconds to wait for its answer.

    Raises:
        RunError: If Dask is not installed or the scheduler does not answer.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise RunError("--dask needs Dask: pip install 'tbkd-utils[dask]'.") from error
    in_file = address.endswith(".json")
    if in_file and not Path(address).is_file():  # the client would wait for it without end
        raise RunError(
            f"--dask {address}: there is no such scheduler file. `dask scheduler --scheduler-file FILE` writes one."
        )
    where = {"scheduler_file": address} if in_file else {"address": address}
    try:
        client = Client(**where, timeout=timeout)
    except (OSError, ValueError) as error:
        raise RunError(
            f"--dask {address}: the scheduler does not answer ({error}). Start one with `dask scheduler` and name the "
            "address that it prints."
        ) from error
    with client, client.get_executor(pure=False) as executor:
        yield executor


def threads_each(jobs: int) -> int:
    """Returns how many CPU threads each of several steps may use, so that the cores are not oversubscribed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def _descendants() -> list[psutil.Process]:
    """The processes that this one has started, and those that they have."""
    return psutil.Process().children(recursive=True)
