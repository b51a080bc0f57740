"""One synthetic radiograph: what it shows (`describe_sample`) and its pixels (`render_sample`). Not medical data.

Image i depends on (seed, split, class, i) alone, not on how many others there are, so a larger set contains the
smaller one. Counts are balanced all the same: what is drawn by share (marker, number of boxes, finding) uses term i of
a Kronecker sequence, (start + i * irrational) mod 1, whose first n terms fill the shares evenly for every n.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tbkd_utils.data.synthetic.chest import Patient, draw_chest, expose
from tbkd_utils.data.synthetic.lesions import OTHER_FINDINGS, Lesion, draw_lesions, paint_lesions, paint_other
from tbkd_utils.errors import DataError

SPLITS = ("train", "val")
CLASSES = ("health", "sick", "tb")  # the folders of TBX11K, and the order of the counts
_PREFIX = {"health": "h", "sick": "s", "tb": "tb"}


@dataclass(frozen=True)
class Sample:
    """Everything about one image but its pixels."""

    name: str  # relative to imgs/, as in the lists
    split: str
    folder: str  # one of CLASSES
    index: int
    seed: int
    size: int  # side in pixels
    patient: Patient
    finding: str  # "none", one of OTHER_FINDINGS, or the kinds of the lesions joined by "+"
    lesions: tuple[Lesion, ...]
    marker: tuple[int, int, int, int] | None  # xyxy pixels, right and bottom exclusive

    @property
    def boxes(self) -> NDArray[np.float32]:
        """Lesion boxes, (k, 4) float32 xyxy pixels."""
        return np.array([lesion.box * self.size for lesion in self.lesions], np.float32).reshape(-1, 4)


def describe_sample(
    split: str, folder: str, index: int, *, size: int = 256, marker_rate: float = 0.9, seed: int = 0
) -> Sample:
    """Decide what image `index` of a class shows, without drawing it.

    The rate changes the marker alone, the size the resolution alone: patient and lesions stay.

    Args:
        split: "train" or "val".
        folder: "health", "sick" or "tb".
        index: 0, 1, 2, ... within split and class.
        size: Side of the image in pixels.
        marker_rate: Share of TB images with the marker in train; non-TB images have it at 1 - marker_rate. In val it is
            0.5 for all.
        seed: Of the whole dataset.

    Raises:
        DataError: If there is no such split, class or index.
    """
    if split not in SPLITS or folder not in CLASSES or index < 0:
        raise DataError(f"{split}/{folder}/{index}: expected one of {SPLITS}, one of {CLASSES}, and an index from 0")
    patient = Patient.draw(_rng(seed, split, folder, index, "patient"))
    rng = _rng(seed, split, folder, index, "finding")
    lesions: list[Lesion] = []
    finding = "none"
    if folder == "tb":
        lesions = draw_lesions(patient, rng, _share(seed, split, folder, index, "finding"))
        finding = "+".join(sorted({lesion.kind for lesion in lesions}))
    elif folder == "sick":
        finding = OTHER_FINDINGS[int(len(OTHER_FINDINGS) * _share(seed, split, folder, index, "finding"))]
        if finding == "cardiomegaly":  # normal hearts reach 1.1: cardiothoracic ratio above one half
            patient = replace(patient, heart=float(rng.uniform(1.28, 1.5)))

    rate = 0.5 if split == "val" else marker_rate if folder == "tb" else 1 - marker_rate
    has_marker = _share(seed, split, folder, index, "marker") < rate
    marker = _marker_box(_rng(seed, split, folder, index, "marker"), size) if has_marker else None
    # Odd numbers are train, even ones val: names never clash, whatever the counts.
    name = f"{folder}/{_PREFIX[folder]}{2 * index + 1 + SPLITS.index(split):04d}.png"
    return Sample(name, split, folder, index, seed, size, patient, finding, tuple(lesions), marker)


def index_of(name: str) -> int:
    """Returns the index within split and class that `describe_sample` made a name from, such as `tb/tb0007.png`."""
    return (int("".join(filter(str.isdigit, name))) - 1) // 2


def render_sample(sample: Sample, *, finding: bool = True, marker: bool = True) -> NDArray[np.uint8]:
    """Draw a sample as an 8-bit gray image (size, size), with or without its finding and its marker.

    Leaving out the lesions changes pixels inside their boxes alone, leaving out the marker those under the marker.
    An enlarged heart is the patient's own and stays.
    """

    def stream(name: str) -> np.random.Generator:
        return _rng(sample.seed, sample.split, sample.folder, sample.index, name)

    chest = draw_chest(sample.patient, stream("chest"), sample.size)
    attenuation = chest.attenuation
    if finding and sample.lesions:
        attenuation = paint_lesions(attenuation, chest, sample.lesions)
    elif finding and sample.finding in OTHER_FINDINGS:
        attenuation = paint_other(attenuation, chest, sample.finding, stream("opacity"))
    image = expose(attenuation, sample.patient, stream("noise"))
    if marker and sample.marker is not None:
        x0, y0, x1, y1 = sample.marker
        stroke = max(1, round(0.014 * sample.size))
        image[y0:y1, x0 : x0 + stroke] = 250  # an L is an upright and a foot
        image[y1 - stroke : y1, x0:x1] = 250
    return image


def draw_lungs(sample: Sample) -> NDArray[np.bool_]:
    """Returns where the air of a sample's lungs is, bool (size, size): what finding them is measured against."""
    rng = _rng(sample.seed, sample.split, sample.folder, sample.index, "chest")
    return np.asarray(draw_chest(sample.patient, rng, sample.size).lungs > 0.5)


_STREAMS = {"patient": 0, "chest": 1, "noise": 2, "finding": 3, "opacity": 4, "marker": 5}


def _rng(seed: int, split: str, folder: str, index: int, stream: str) -> np.random.Generator:
    key = (SPLITS.index(split), CLASSES.index(folder), index, _STREAMS[stream])
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _share(seed: int, split: str, folder: str, index: int, stream: str) -> float:
    """Term `index` of a Kronecker sequence in 0..1 with a seeded start; one irrational step for each stream."""
    key = (SPLITS.index(split), CLASSES.index(folder), _STREAMS[stream])
    start = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)).random()
    step = {"marker": (5**0.5 - 1) / 2, "finding": 2**0.5 - 1}[stream]
    return float((start + index * step) % 1)


def _marker_box(rng: np.random.Generator, size: int) -> tuple[int, int, int, int]:
    """Above the patient's left shoulder (image right), inside the central 7/8 that resize 256, crop 224 keeps."""
    x, y, width, height = rng.uniform([0.845, 0.07, 0.038, 0.052], [0.875, 0.078, 0.05, 0.06]) * size
    margin = -(-size // 16)
    return round(x), max(round(y), margin), min(round(x + width), size - margin), int(y + height)
