"""The batches of an epoch: their order and the augmentation of each sample, functions of (seed, epoch, sample)."""

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from tbkd_utils.data.cache import Samples
from tbkd_utils.data.seeding import stable_seed
from tbkd_utils.data.transforms import Augment
from tbkd_utils.errors import UsageError

RawBatch = dict[str, torch.Tensor]
"""`pixels` uint8 (b, H, W), `targets` int64 (b,) or (b, classes), and `masks` uint8 (b, H, W) where there are some."""


def unchanged(image: np.ndarray, mask: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns image and mask as they are: no augmentation."""
    return image, mask


class EpochOrder(Sampler[tuple[int, int, int]]):
    """Yields (epoch, index, times) in an order that depends on (seed, epoch) alone; `times` counts earlier draws.

    Args:
        targets: The class of each sample, (n,).
        seed: Of the order.
        epoch: Returns the number of the epoch.
        balanced: False: each sample once. True: n draws with replacement in which every class is as likely as another.
    """

    def __init__(self, targets: np.ndarray, seed: int, epoch: Callable[[], int], balanced: bool = False) -> None:
        self.seed, self.epoch, self.balanced = seed, epoch, balanced
        self.members = [np.flatnonzero(targets == one) for one in np.unique(targets)] if balanced else []
        self.count = len(targets)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        epoch = self.epoch()
        rng = np.random.default_rng(stable_seed("order", self.seed, epoch))
        if not self.balanced:
            return ((epoch, int(index), 0) for index in rng.permutation(self.count))
        chosen = rng.integers(len(self.members), size=self.count)  # (n,) a class for each draw
        places = rng.random(self.count)
        drawn = [
            int(self.members[one][int(place * len(self.members[one]))])
            for one, place in zip(chosen, places, strict=True)
        ]
        times: Counter[int] = Counter()
        keys = []
        for index in drawn:
            keys.append((epoch, index, times[index]))
            times[index] += 1
        return iter(keys)


class TrainingImages(Dataset):
    """Maps (epoch, index, times) to an augmented sample: a pure function, so workers cannot change it."""

    def __init__(self, samples: Samples, augment: Augment, seed: int) -> None:
        self.samples, self.augment, self.seed = samples, augment, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int, int]) -> RawBatch:
        epoch, index, times = key
        again = [times] if times else []  # drawn more than once in an epoch, a sample looks different each time
        seed = stable_seed("augment", self.seed, epoch, self.samples.names[index], *again)
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
    samples: Samples,
    augment: Augment,
    *,
    batch_size: int,
    seed: int,
    epoch: Callable[[], int],
    workers: int = 0,
    balanced: bool = False,
    drop_last: bool = False,
) -> DataLoader:
    """Returns the batches of an epoch, augmented; see `RawBatch`.

    Args:
        samples: What is trained on.
        augment: Applied to each sample with a seed of its own.
        batch_size: Samples a batch; the last one may be smaller, unless it is dropped.
        seed: Of the order and the augmentation.
        epoch: Called when an epoch's batches are asked for; returns its number.
        workers: Processes that load and augment; batches do not depend on it.
        balanced: Whether every class is drawn as often as another, with replacement.
        drop_last: Whether a last batch that is not full is left out.

    Raises:
        UsageError: If samples of several classes each are to be balanced, or no batch is full.
    """
    if balanced and samples.targets.ndim > 1:
        raise UsageError("Only samples of one class each can be drawn evenly by class.")
    if drop_last and len(samples) < batch_size:
        raise UsageError(f"{len(samples)} samples fill no batch of {batch_size}: lower batch_size.")
    return DataLoader(
        TrainingImages(samples, augment, seed),
        batch_size=batch_size,
        sampler=EpochOrder(samples.targets, seed, epoch, balanced),
        drop_last=drop_last,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def plain_loader(samples: Samples, *, batch_size: int) -> DataLoader:
    """Returns the samples in order and not augmented; see `RawBatch`."""
    return DataLoader(PlainImages(samples), batch_size=batch_size)
