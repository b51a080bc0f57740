"""The input path on one core: ours from the cache, against torchvision's transforms on PIL images."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from harness import Row, in_turns, ratio, report
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from tbkd_utils.data.cache import load_samples
from tbkd_utils.data.dataset import read_dataset
from tbkd_utils.data.loaders import training_loader
from tbkd_utils.data.synthetic.dataset import write_synthetic
from tbkd_utils.data.transforms import IMAGENET_MEAN, IMAGENET_STD, rand_augment, standardize
from tbkd_utils.runs import Run

COUNT = 128


class Reference(Dataset):
    """What a user writes from section 3.2.1: open, resize, crop, RandAugment, tensor, normalize."""

    def __init__(self, paths: list[Path], labels: list[int]) -> None:
        self.paths, self.labels = paths, labels
        self.transform = transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                transforms.RandAugment(2, 9),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.paths[index]).convert("RGB")), self.labels[index]


def measure() -> list[Row]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = write_synthetic(Path(folder) / "TBX11K", train=(COUNT // 2, 0, COUNT // 2), val=(1, 0, 1), size=512)
        records = read_dataset(root, "train")
        for record in records:  # TBX11K's PNGs have three equal channels
            Image.open(record.path).convert("RGB").save(record.path)
        run_at = functools.partial(Run.at, Path(folder) / "runs")
        first = in_turns({"build": lambda: load_samples(records, run_at, 256, 224)}, rounds=1, warm_up=0)
        samples = load_samples(records, run_at, 256, 224)
        reference = DataLoader(Reference([r.path for r in records], [r.target for r in records]), 32, shuffle=True)
        augment = functools.partial(rand_augment, operations=2, magnitude=9)
        ours = training_loader(samples, augment, batch_size=32, seed=0, epoch=lambda: 0)

        def epoch() -> None:
            for batch in ours:
                standardize(batch["pixels"])  # (b, 3, 224, 224), as the reference's batches

        seconds = in_turns({"reference": lambda: [None for _ in reference], "ours": epoch}, rounds=5)
    speed, text = ratio(seconds, "reference", "ours")
    per_second = {name: COUNT / float(np.median(values)) for name, values in seconds.items()}
    note = (
        f"{per_second['ours']:.0f} images/s against {per_second['reference']:.0f}; building the cache once: "
        f"{COUNT / first['build'][0]:.0f} images/s"
    )
    goal = "input with RandAugment, 224 px, one core: at least 20x torchvision on 512 px PNGs"
    return [Row("input", goal, f"{text}x", speed >= 20, note)]


if __name__ == "__main__":
    report(measure())
