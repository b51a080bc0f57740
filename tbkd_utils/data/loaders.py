"""The batches of an epoch: their order and the augmentation of each sample, functions of (seed, epoch, sample)."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from tbkd_utils.data.cache import Samples
from tbkd_utils.data.seeding import stable_seed

Augment = Callable[[np.ndarray, np.ndarray | None, int], tuple[np.ndarray, np.ndarray | None]]
"""Image uint8 (H, W), its mask uint8 (H, W) or None, and a seed, to both augmented alike."""

RawBatch = dict[str, torch.Tensor]
"""`pixels` uint8 (b, H, W), `targets` int64 (b,) or (b, classes), and `masks` uint8 (b, H, W) where there are some."""


def unchanged(image: np.ndarray, mask: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns image and mask as they are: no augmentation."""
    return image, mask


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
    """Maps (epoch, index) to an augmented sample: a pure function, so workers cannot change it."""

    def __init__(self, samples: Samples, augment: Augment, seed: int) -> None:
        self.samples, self.augment, self.seed = samples, augment, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> RawBatch:
        epoch, index = key
        seed = stable_seed("augment", self.seed, epoch, self.samples.names[index])
        masks = self.samples.masks
        mask = None if masks is None else np.asarray(masks[index])
        return _sample(*self.augment(self.samples.pixels[index], mask, seed), self.samples.targets[index])


class PlainImages(Dataset):
    """Maps an index to a sample, not augmented."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> RawBatch:
        masks = self.samples.masks
        mask = None if masks is None else np.asarray(masks[index])
        return _sample(self.samples.pixels[index], mask, self.samples.targets[index])


def _sample(image: np.ndarray, mask: np.ndarray | None, target: np.ndarray) -> RawBatch:
    sample = {"pixels": torch.from_numpy(np.array(image)), "targets": torch.as_tensor(target)}
    return sample if mask is None else sample | {"masks": torch.from_numpy(np.array(mask))}


def training_loader(
    samples: Samples, augment: Augment, *, batch_size: int, seed: int, epoch: Callable[[], int], workers: int = 0
) -> DataLoader:
    """Returns the batches of an epoch, augmented; see `RawBatch`.

    Args:
        samples: What is trained on.
        augment: Applied to each sample with a seed of its own.
        batch_size: Samples a batch; the last one may be smaller.
        seed: Of the order and the augmentation.
        epoch: Called when an epoch's batches are asked for; returns its number.
        workers: Processes that load and augment; batches do not depend on it.
    """
    return DataLoader(
        TrainingImages(samples, augment, seed),
        batch_size=batch_size,
        sampler=EpochOrder(len(samples), seed, epoch),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def plain_loader(samples: Samples, *, batch_size: int) -> DataLoader:
    """Returns the samples in order and not augmented; see `RawBatch`."""
    return DataLoader(PlainImages(samples), batch_size=batch_size)
