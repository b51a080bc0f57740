"""Where the arithmetic runs, and what its numbers depend on there."""

import contextlib
import ctypes
import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch


def compute_device(accelerator: str) -> torch.device:
    """Returns where a network is put.

    Args:
        accelerator: `auto` or `gpu` for a GPU where there is one; `cpu`; `mps` for Apple's.
    """
    if accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if accelerator == "mps" else "cpu")


def environment() -> dict[str, Any]:
    """Returns what the numbers of a run depend on besides its settings: versions, device and threads."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "device": device,
        "threads": torch.get_num_threads(),
    }


# glibc's mallopt(3): parameter, value while memory is kept, and the default.
_MALLOPT = ((-4, 0, 65_536), (-1, 2**31 - 1, 128 * 1024), (-2, 64 * 2**20, 128 * 1024))  # MMAP_MAX, TRIM, TOP_PAD


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Keeps freed memory for the next batch instead of handing it back to the system, and hands it back at the end.

    By default glibc maps every large tensor anew, and the system fills its pages with zeros: a third to half of the
    time of a training step on a CPU. Changes no number. Does nothing elsewhere than under Linux with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    for parameter, kept, _ in _MALLOPT:
        libc.mallopt(parameter, kept)
    try:
        yield
    finally:
        for parameter, _, default in _MALLOPT:
            libc.mallopt(parameter, default)
        libc.malloc_trim(0)


@contextlib.contextmanager
def restored_determinism() -> Iterator[None]:
    """Restores torch's switches of determinism at the end, and meanwhile fills no memory that is yet to be written.

    Under deterministic algorithms torch fills every new tensor with NaN, lest a program read what it never wrote; that
    costs a quarter of a training step and changes no number of a program that does not.
    """
    filling: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), filling.fill_uninitialized_memory
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        filling.fill_uninitialized_memory = before[1]
