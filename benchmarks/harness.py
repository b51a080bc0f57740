"""What the benchmarks share: both sides timed in turns in one process, and a table of goals."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch


@dataclass(frozen=True)
class Row:
    """One line of the results: what was asked, what was measured, and why it fell short if it did."""

    part: str
    goal: str
    measured: str
    met: bool | None  # None: a measurement without a goal
    note: str = ""


def in_turns(sides: Mapping[str, Callable[[], object]], rounds: int = 7, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of every side in every round; the sides take turns, so that a slow moment meets them all."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + warm_up):
        for name, work in sides.items():
            began = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: Mapping[str, list[float]], above: str, below: str) -> tuple[float, str]:
    """Median over the rounds of `above` / `below`, and the text "median (least to most)"."""
    each = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
    middle = statistics.median(each)
    return middle, f"{middle:.3g} ({min(each):.3g} to {max(each):.3g})"


def machine() -> str:
    """The machine in words: processor, cores, memory, versions."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    memory = psutil.virtual_memory().total / 2**30
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported() if hasattr(torch.ops, "mkldnn") else False
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{name}, {psutil.cpu_count()} cores ({'with' if bf16 else 'without'} bf16 instructions), {memory:.0f} GiB, "
        f"{gpu}; Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


def report(rows: list[Row]) -> None:
    """Prints the rows: as a table, or as JSON lines for `run_all.py`."""
    if "--json" in sys.argv:
        for row in rows:
            print(json.dumps(asdict(row)))
    else:
        print(table(rows))


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    words = {True: "met", False: "**not met**", None: ""}
    lines = ["| part | goal | measured: median (least to most) | | note |", "|---|---|---|---|---|"]
    lines += [f"| {row.part} | {row.goal} | {row.measured} | {words[row.met]} | {row.note} |" for row in rows]
    return "\n".join(lines)
