"""The batches of an epoch: their order and the augmentation of each sample, functions of (seed, epoch, sample)."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from tbkd_utils.data.cache import Samples
from tbkd_utils.data.seeding import stable_seed
from tbkd_utils.data.transforms import augment
from tbkd_utils.experiments.recipe import Recipe


class EpochOrder(Sampler[tuple[int, int]]):
    """Yields (epoch, index) in an order that depends on (seed, epoch) alone."""

    def __init__(self, count: int, seed: int, epoch: Callable[[], int]) -> None:
        self.count, self.seed, self.epoch = count, seed, epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch()
        order = np.random.default_rng(stable_seed("order", self.seed, epoch)).permutation(self.count)
        return ((epoch, int(index)) for index in order)


class TrainingImages(Dataset):
    """Maps (epoch, index) to (augmented uint8 (H, W), label): a pure function, so workers cannot change it."""

    def __init__(self, samples: Samples, recipe: Recipe) -> None:
        self.samples, self.recipe = samples, recipe

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        epoch, index = key
        seed = stable_seed("augment", self.recipe.data_seed, epoch, self.samples.names[index])
        image = augment(
            self.samples.pixels[index], self.recipe.randaugment_ops, self.recipe.randaugment_magnitude, seed
        )
        return torch.from_numpy(np.array(image)), int(self.samples.labels[index])


class MonitoredImages(Dataset):
    """Maps an index to (uint8 (H, W), label), not augmented."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(np.array(self.samples.pixels[index])), int(self.samples.labels[index])


def training_loader(samples: Samples, recipe: Recipe, epoch: Callable[[], int]) -> DataLoader:
    """Returns the batches of an epoch: uint8 (b, H, W) augmented and int64 (b,).

    Args:
        samples: What is trained on.
        recipe: Batch size, augmentation, seed and workers.
        epoch: Called when an epoch's batches are asked for; returns its number.
    """
    return DataLoader(
        TrainingImages(samples, recipe),
        batch_size=recipe.batch_size,
        sampler=EpochOrder(len(samples), recipe.data_seed, epoch),
        num_workers=recipe.workers,
        persistent_workers=recipe.workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def monitor_loader(samples: Samples, recipe: Recipe) -> DataLoader:
    """Returns the batches whose loss is monitored, in order and not augmented: uint8 (b, H, W) and int64 (b,)."""
    return DataLoader(MonitoredImages(samples), batch_size=recipe.batch_size)
