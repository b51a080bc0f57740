"""Where the arithmetic runs, and what its numbers depend on there."""

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
