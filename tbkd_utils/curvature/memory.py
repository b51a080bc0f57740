"""The most memory that a block of code held at once."""

import threading
from types import TracebackType
from typing import Self

import psutil
import torch


class PeakMemory:
    """Measures, as a context manager, the peak of memory in use above that at the start.

    On a GPU this is the allocator's own count. On the CPU a thread reads the process's resident memory every few
    milliseconds: a shorter peak is missed, and what other threads allocate is counted.

    Args:
        device: where the work runs.

    Attributes:
        bytes: the peak, known after the block.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0
        self._before = self._peak = 0
        self._stop = threading.Event()
        self._process = psutil.Process()

    def _in_use(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return self._process.memory_info().rss

    def _watch(self) -> None:
        while not self._stop.wait(0.003):
            self._peak = max(self._peak, self._in_use())

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._before = self._peak = self._in_use()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if self.device.type != "cuda":
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self._stop.set()
            self._thread.join()
            peak = max(self._peak, self._in_use())
        self.bytes = peak - self._before
