"""Where steps are executed: one at a time here, several at a time here, or on a Dask cluster.

Anything with the interface of `concurrent.futures` will do. A step's notebook is a process of its own (a Jupyter
kernel), so threads are enough to drive several of them.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from tbkd_utils.errors import TbkdError


class ExecutorError(TbkdError, RuntimeError):
    """A cluster that cannot be reached, or options that do not go together."""


class Inline(Executor):
    """Runs what is submitted at once, in the caller: one step at a time, and Ctrl-C reaches it."""

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
        ExecutorError: If `jobs` is below 1.
    """
    if jobs < 1:
        raise ExecutorError(f"--jobs {jobs}: expected at least 1.")
    if jobs == 1:
        yield Inline()
        return
    kernels = _kernels()
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="step")
    try:
        yield pool
    except BaseException:  # Ctrl-C among them: a notebook half executed is executed again, its training goes on
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(_kernels()) - set(kernels):
            with contextlib.suppress(psutil.Error):
                process.terminate()
        raise
    finally:
        pool.shutdown()


@contextlib.contextmanager
def dask(address: str, timeout: float = 20.0) -> Iterator[Executor]:
    """Opens an executor on a Dask cluster, whose workers see the same folders as this machine.

    A step whose worker is lost is executed again on another one.

    Args:
        address: The scheduler's address, such as `tcp://host:8786`, or the path of a scheduler file (JSON).
        timeout: Seconds to wait for its answer.

    Raises:
        ExecutorError: If Dask is not installed or the scheduler does not answer.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ExecutorError("--dask needs Dask: pip install 'tbkd-utils[dask]'.") from error
    in_file = address.endswith(".json")
    if in_file and not Path(address).is_file():  # the client would wait for it without end
        raise ExecutorError(
            f"--dask {address}: there is no such scheduler file. `dask scheduler --scheduler-file FILE` writes one."
        )
    where = {"scheduler_file": address} if in_file else {"address": address}
    try:
        client = Client(**where, timeout=timeout)
    except (OSError, ValueError) as error:
        raise ExecutorError(
            f"--dask {address}: the scheduler does not answer ({error}). Start one with `dask scheduler` and name the "
            "address that it prints."
        ) from error
    with client, client.get_executor(pure=False) as executor:
        yield executor


def threads_each(jobs: int) -> int:
    """Returns how many CPU threads each of several steps may use, so that the cores are not oversubscribed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def _kernels() -> list[psutil.Process]:
    """The Jupyter kernels that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("ipykernel" in word for word in process.cmdline()):
                found.append(process)
    return found
