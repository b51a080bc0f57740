"""Where the arithmetic runs, and in which precision it trains fastest there: measured, on the training step itself."""

import time
from importlib.metadata import version
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F

from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.models.networks import build_classifier

CANDIDATES = ("32-true", "bf16-mixed")
CLEARLY = 1.1
"""The narrower format is taken when it is at least this many times as fast: below that, noise would decide."""


def compute_device(recipe: Recipe) -> torch.device:
    """Where the recipe's `accelerator` puts a network: a GPU where there is one, unless told otherwise."""
    if recipe.accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if recipe.accelerator == "mps" else "cpu")


def probe_precision(recipe: Recipe, *, rounds: int = 3, images: int = 16) -> pd.DataFrame:
    """Times a teacher's training step in every candidate precision, in turns.

    Args:
        recipe: Network, input size, memory format and device.
        rounds: Timed steps of each, after one that is not timed.
        images: In a step; less where the recipe's batch is smaller. The global random state is left as it was.

    Returns:
        One row per precision: precision, seconds (median of a step), images_per_second.
    """
    device, count = compute_device(recipe), min(images, recipe.batch_size)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        inputs = torch.randn(count, 3, recipe.crop, recipe.crop).to(device).contiguous(memory_format=layout)
        labels = torch.arange(count, device=device) % 2
        # Its own start does not matter for time, so nothing is downloaded for it.
        model = build_classifier(recipe.backbone, "none", 0).to(device).to(memory_format=layout).train()
        adam = torch.optim.Adam(model.parameters(), lr=1e-6)

        def step(precision: str) -> float:
            began = time.perf_counter()
            adam.zero_grad()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision != "32-true"):
                loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            adam.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - began

        turns = [{precision: step(precision) for precision in CANDIDATES} for _ in range(rounds + 1)]
    seconds = pd.DataFrame(turns[1:]).median()
    return pd.DataFrame(
        {"precision": CANDIDATES, "seconds": seconds.to_numpy(), "images_per_second": count / seconds.to_numpy()}
    )


def fastest_precision(rows: pd.DataFrame) -> str:
    """Returns the precision to train in, from `probe_precision`: full, unless the narrower one is clearly faster."""
    seconds = rows.set_index("precision")["seconds"]
    full, narrow = CANDIDATES
    return narrow if seconds[full] >= CLEARLY * seconds[narrow] else full


def environment() -> dict[str, Any]:
    """Returns what the numbers of a run depend on besides its settings: versions, device and threads."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "device": device,
        "threads": torch.get_num_threads(),
    }
