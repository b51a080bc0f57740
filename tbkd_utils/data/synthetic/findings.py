"""Writes SYNTHETIC chest radiographs with one of eight findings, in NIH ChestX-ray14's layout. Not medical data.

Each finding is a change of attenuation on a healthy chest, inside its box and nowhere else: the box is that of the
pixels whose change is above a tenth of the largest, and what little lies outside is left out. An enlarged heart has the
box of the whole heart. The option `strength` multiplies the change and moves nothing: at 0 the findings cannot be seen
and the boxes stay, so that nothing can be learned and everything can be scored.

A patient has one to three images: the same anatomy and the same finding on the same side, with new noise, another
exposure and another extent. Image i depends on (seed, split, finding, i) alone, so a larger set contains the smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkd_utils.data.readers.nih import FINDINGS
from tbkd_utils.data.synthetic.chest import (
    Array,
    Chest,
    Patient,
    chest_wall,
    cloud,
    draw_chest,
    draw_heart,
    expose,
    smooth_step,
)
from tbkd_utils.data.synthetic.dataset import (
    NOTICE,
    encoded_png,
    into_new_folder,
    read_drawn,
    whole_number,
    write_sorted_json,
)
from tbkd_utils.data.synthetic.lesions import ACTIVE, Lesion, effusion_density, paint_lesions
from tbkd_utils.errors import DataError

SPLITS = ("train", "test")
TRUTH = "findings.json"
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
_FORMAT = 1  # raise when the same spec draws other pixels
_IMAGE_SHARES = (0.4, 0.8)  # up to here 1, 2 images a patient, above 3: 1.8 on average
_ORIGINAL = 1024  # NIH's boxes count pixels of images of this side
_README = f"""{NOTICE}

Files as in NIH ChestX-ray14; images are of another size than 1024x1024, to which the boxes of BBox_List_2017.csv refer.
findings.json records the settings and, for each image, its patient, its findings and their boxes: xyxy pixels of the
image as stored, right and bottom exclusive.
"""


@dataclass(frozen=True)
class Finding:
    """One finding before it is painted."""

    name: str  # one of FINDINGS
    side: int  # -1 = image left; without meaning for the heart
    seed: int  # of its place, extent and texture


@dataclass(frozen=True)
class FindingImage:
    """Everything about one image but its pixels."""

    name: str  # relative to images/, such as 00000001_000.png: the patient and the number of the image
    patient_id: str
    split: str
    index: int  # of the patient, within split and first finding
    number: int  # of the image, from 0
    size: int  # side in pixels
    seed: int
    patient: Patient
    findings: tuple[Finding, ...]  # one or two


def describe_patient(
    split: str, finding: str, index: int, *, size: int = 128, second: float = 0.0, seed: int = 0
) -> tuple[FindingImage, ...]:
    """Decide what the one to three images of a patient show, without drawing them.

    Args:
        split: "train" or "test".
        finding: One of `FINDINGS`, which all of the images show.
        index: 0, 1, 2, ... within split and finding.
        size: Side of the images in pixels.
        second: Share of patients who have another finding too, 0 to 1: of another kind and in the other lung. It
            changes nothing of the first.
        seed: Of the whole dataset.

    Raises:
        DataError: If there is no such split, finding or index.
    """
    if split not in SPLITS or finding not in FINDINGS or index < 0:
        raise DataError(f"{split}/{finding}/{index}: expected one of {SPLITS}, of {FINDINGS}, and an index from 0")
    number = 1 + (index * len(FINDINGS) + FINDINGS.index(finding)) * len(SPLITS) + SPLITS.index(split)
    patient = Patient.draw(_rng(seed, split, finding, index, 0, "patient"))
    rng = _rng(seed, split, finding, index, 0, "findings")
    side = int(rng.choice([-1, 1]))
    kinds = [(finding, side)]
    if _share(seed, split, finding, index, "second") < second:
        kinds.append((str(rng.choice([other for other in FINDINGS if other != finding])), -side))
    images = []
    for i in range(_image_count(seed, split, finding, index)):
        rng = _rng(seed, split, finding, index, 1 + i, "patient")
        dx, dy, tilt, gain, gamma = rng.uniform(-1, 1, 5) * (0.015, 0.012, 0.02, 0.07, 0.08)
        here = replace(
            patient,
            center=patient.center + dx,
            top=patient.top + dy,
            tilt=patient.tilt + tilt,
            gain=patient.gain * (1 + gain),
            gamma=patient.gamma * (1 + gamma),
        )
        rng = _rng(seed, split, finding, index, 1 + i, "findings")
        shown = tuple(Finding(kind, side, int(rng.integers(2**31))) for kind, side in kinds)
        name = f"{number:08d}_{i:03d}.png"
        images.append(FindingImage(name, f"{number:08d}", split, index, i, size, seed, here, shown))
    return tuple(images)


def describe_images(split: str, finding: str, n: int, **settings: Any) -> list[FindingImage]:
    """Describe the first n images of a finding, patient by patient.

    Args:
        split: "train" or "test".
        finding: One of `FINDINGS`.
        n: How many.
        settings: Those of `describe_patient`.

    Raises:
        DataError: As `describe_patient`.
    """

    def images() -> Iterator[FindingImage]:
        for index in count():
            yield from describe_patient(split, finding, index, **settings)

    return list(islice(images(), n))


def render_findings(image: FindingImage, strength: float = 1.0) -> NDArray[np.uint8]:
    """Draw an image as 8-bit gray (size, size); at strength 0 without its findings, which changes their boxes alone."""
    chest, rises, _ = _draw(image)
    return _exposed(image, chest, rises, strength)


def find_boxes(image: FindingImage) -> NDArray[np.int64]:
    """Where the findings are: (k, 4) xyxy pixels, right and bottom exclusive, in the order of `image.findings`."""
    return _draw(image)[2]


def write_findings(
    root: str | Path,
    *,
    train: int = 60,
    test: int = 20,
    size: int = 128,
    strength: float = 1.0,
    second: float = 0.0,
    seed: int = 0,
) -> Path:
    """Write a synthetic dataset of eight findings in the layout of NIH ChestX-ray14.

    `findings.json`, written last, records the settings and the truth. The same arguments give the same bytes (with the
    same versions of numpy and OpenCV). Nothing is cleaned up when writing fails half way: write under a temporary name
    and rename.

    Args:
        root: Folder to write; it must not exist or be empty.
        train: Number of images of each of the eight findings.
        test: The same for test, which is drawn from other patients.
        size: Side of the images in pixels, at least 64.
        strength: Multiplies the change that a finding makes, at least 0.
        second: Share of patients with a second finding, from 0 to 1.
        seed: Not negative.

    Returns:
        The folder.

    Raises:
        DataError: If an argument is out of range, the folder is not empty, or a file cannot be written.
    """
    root = Path(root)
    spec = _check_spec(train, test, size, strength, second, seed)
    settings = {name: spec[name] for name in ("size", "second", "seed")}
    entries = ["Image Index,Finding Labels,Follow-up #,Patient ID"]
    boxed = ["Image Index,Finding Label,Bbox [x,y,w,h],,,"]  # four columns under one name, as published
    records: dict[str, Any] = {}
    with into_new_folder(root):
        (root / "images").mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            of_split = [image for name in FINDINGS for image in describe_images(split, name, spec[split], **settings)]
            for image in of_split:
                chest, rises, boxes = _draw(image)
                pixels = _exposed(image, chest, rises, spec["strength"])
                (root / "images" / image.name).write_bytes(encoded_png(pixels))
                names = [finding.name for finding in image.findings]
                entries.append(f"{image.name},{'|'.join(names)},{image.number},{int(image.patient_id)}")
                for name, (x0, y0, x1, y1) in zip(names, boxes.tolist(), strict=True):
                    xywh = [edge * _ORIGINAL / size for edge in (x0, y0, x1 - x0, y1 - y0)]
                    spelled = "Infiltrate" if name == "Infiltration" else name  # as the list of boxes has it
                    boxed.append(",".join([image.name, spelled, *map(str, xywh)]))
                about = {"split": split, "patient": image.patient_id, "index": image.index, "number": image.number}
                records[image.name] = {**about, "findings": names, "boxes": boxes.tolist()}
            (root / _LISTS[split]).write_text("".join(f"{image.name}\n" for image in of_split))
        (root / "Data_Entry_2017_v2020.csv").write_text("\n".join(entries) + "\n")
        (root / "BBox_List_2017.csv").write_text("\n".join(boxed) + "\n")
        (root / "README.txt").write_text(_README)
        write_sorted_json(root / TRUTH, {"notice": NOTICE, "format": _FORMAT, "spec": spec, "images": records})
    return root


def read_drawn_findings(root: str | Path) -> dict[str, FindingImage]:
    """What each image of a dataset from `write_findings` shows; `render_findings` draws it again, in any strength.

    Args:
        root: The dataset's folder.

    Returns:
        Image name relative to images/ -> description, in the order of writing.

    Raises:
        DataError: If the folder has no readable findings.json.
    """

    def image(record: dict[str, Any], spec: dict[str, Any]) -> FindingImage:
        settings = {key: spec[key] for key in ("size", "second", "seed")}
        of_patient = describe_patient(record["split"], record["findings"][0], record["index"], **settings)
        return of_patient[record["number"]]

    return read_drawn(Path(root) / TRUTH, image, "write_findings")


@dataclass(frozen=True)
class _Canvas:
    """A healthy chest, and how the same person would look in another state."""

    patient: Patient
    chest: Chest
    redraw: Callable[[Patient], Chest]

    @property
    def size(self) -> int:
        return len(self.chest.attenuation)

    def inside(self, side: int) -> Array:
        """0..1, the air of one lung."""
        return self.chest.lungs * (self.chest.u * side > 0)

    def change(self, **state: float) -> Array:
        """What another state of the patient adds to the attenuation."""
        return self.redraw(replace(self.patient, **state)).attenuation - self.chest.attenuation


def _draw(image: FindingImage) -> tuple[Chest, list[Array], NDArray[np.int64]]:
    """The healthy chest, the attenuation that each finding adds (0 outside its box), and the boxes."""

    def draw(patient: Patient) -> Chest:  # vessels and texture are the patient's own: number 0
        first = image.findings[0].name
        return draw_chest(patient, _rng(image.seed, image.split, first, image.index, 0, "chest"), image.size)

    canvas = _Canvas(image.patient, draw(image.patient), draw)
    rises, boxes = [], []
    for finding in image.findings:
        rise = _PAINTED[finding.name](canvas, finding.side, np.random.default_rng(finding.seed))
        shown = np.abs(rise) > 0.1 * np.abs(rise).max()
        if finding.name == "Cardiomegaly":
            heart = _heart_width(np.random.default_rng(finding.seed))
            shown |= draw_heart(replace(image.patient, heart=heart), image.size)
        x, y = np.flatnonzero(shown.any(axis=0)), np.flatnonzero(shown.any(axis=1))
        x0, y0, x1, y1 = box = [int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1]
        inside = np.zeros_like(rise)
        inside[y0:y1, x0:x1] = rise[y0:y1, x0:x1]
        rises.append(inside)
        boxes.append(box)
    return canvas.chest, rises, np.array(boxes, np.int64)


def _exposed(image: FindingImage, chest: Chest, rises: list[Array], strength: float) -> NDArray[np.uint8]:
    attenuation = np.maximum(chest.attenuation + np.float32(strength) * np.sum(rises, axis=0), 0)
    noise = _rng(image.seed, image.split, image.findings[0].name, image.index, 1 + image.number, "noise")
    return expose(attenuation, image.patient, noise)


# Each function below returns what its finding adds to the attenuation, (size, size).
def _atelectasis(canvas: _Canvas, side: int, rng: np.random.Generator) -> Array:
    """An oblique band over a diaphragm that is pulled up."""
    raised, slope, thick = rng.uniform(0.02, 0.03), rng.uniform(-0.22, -0.12), rng.uniform(0.017, 0.022)
    middle, half = rng.uniform(0.58, 0.64), rng.uniform(0.13, 0.17)
    dome = canvas.patient.dome + (0.025 if side < 0 else -0.02) + raised
    u, v = np.abs(canvas.chest.u), canvas.chest.v
    line = 1 - dome - rng.uniform(0.025, 0.045) + slope * (u - middle)
    band = np.exp(-(((v - line) / thick) ** 4)) * smooth_step((half - np.abs(u - middle)) * 60)
    pulled = canvas.change(raised=side * raised)
    return 0.2 * np.asarray(band, np.float32) * canvas.inside(side) + pulled


def _heart_width(rng: np.random.Generator) -> float:
    return float(rng.uniform(1.28, 1.5))  # normal hearts reach 1.1: cardiothoracic ratio above one half


def _cardiomegaly(canvas: _Canvas, side: int, rng: np.random.Generator) -> Array:
    """A wide heart."""
    return canvas.change(heart=_heart_width(rng))


def _effusion(canvas: _Canvas, side: int, rng: np.random.Generator) -> Array:
    """Fluid in the angle between diaphragm and chest wall."""
    density = rng.uniform(0.7, 1.2) * effusion_density(canvas.chest, side, rng.uniform(0.03, 0.2))
    return np.asarray(density, np.float32) * canvas.inside(side)


def _infiltration(canvas: _Canvas, side: int, rng: np.random.Generator) -> Array:
    """A faint, uneven haze without border."""
    u, v, ru, rv = rng.uniform((0.48, 0.3, 0.2, 0.12), (0.62, 0.62, 0.28, 0.18))
    haze = np.exp(-(((canvas.chest.u * side - u) / ru) ** 2) - ((canvas.chest.v - v) / rv) ** 2)
    texture = np.clip(1 + 0.6 * cloud(rng, canvas.size, 14, 30, 50), 0.1, 2.2)
    return np.asarray(rng.uniform(0.085, 0.12) * haze * texture, np.float32) * canvas.inside(side)


def _mass(canvas: _Canvas, side: int, rng: np.random.Generator) -> Array:
    """A round shadow as large as a plum, or larger."""
    return _round(canvas, side, rng, share=rng.uniform(0.018, 0.05), density=rng.uniform(0.13, 0.17))


def _nodule(canvas: _Canvas, side: int, rng: np.random.Generator) -> Array:
    """A small round shadow."""
    return _round(canvas, side, rng, share=rng.uniform(0.0025, 0.008), density=rng.uniform(0.14, 0.18))


def _round(canvas: _Canvas, side: int, rng: np.random.Generator, *, share: float, density: float) -> Array:
    """A dense disk within one lung; the share is that of the square around it in the image."""
    radius = 0.5 * share**0.5
    ru, rv = radius / canvas.patient.half_width, radius / canvas.patient.height
    v = rng.uniform(0.12 + rv, 0.74 - 0.5 * rv)
    # The heart hides the inner lower part of the patient's left lung.
    inner = (0.4 if side > 0 and v > 0.4 else 0.18) + 0.9 * ru
    outer = min(float(chest_wall(v - rv)), float(chest_wall(v))) - ru
    u = rng.uniform(inner, outer) if inner < outer else 0.5 * (inner + outer)
    x, y = canvas.patient.to_image(np.array(side * u), np.array(v))
    box = np.clip([x - radius, y - radius, x + radius, y + radius], 0, 1)
    lesion = Lesion("nodules", ACTIVE, box, np.array([[x, y, radius, radius, 1.0, 2.5]]), density, 0)
    return paint_lesions(canvas.chest.attenuation, canvas.chest, [lesion]) - canvas.chest.attenuation


def _pneumonia(canvas: _Canvas, side: int, rng: np.random.Generator) -> Array:
    """A dense part of a lobe: sharp where it ends at a fissure, fading on the other side, with air in its bronchi."""
    above = rng.random() < 0.4  # over the fissure or under it
    fissure = rng.uniform(0.36, 0.42) if above else rng.uniform(0.44, 0.52)
    reach = rng.uniform(0.22, 0.36)
    away = (canvas.chest.v - fissure - rng.uniform(0.05, 0.12) * (np.abs(canvas.chest.u) - 0.5)) * (-1 if above else 1)
    lobe = smooth_step(away * 150) * np.exp(-((np.maximum(away, 0) / reach) ** 4))
    bronchi = np.clip(1 + 0.35 * cloud(rng, canvas.size, 9, 22), 0.45, 1.4)
    return np.asarray(rng.uniform(0.15, 0.2) * lobe * bronchi, np.float32) * canvas.inside(side)


def _pneumothorax(canvas: _Canvas, side: int, rng: np.random.Generator) -> Array:
    """Air around the apex: a dark rim without vessels, bordered by the thin line of the pleura."""
    end, down, inwards = rng.uniform((0.24, 0.07, 0.15), (0.4, 0.11, 0.24))
    u, v, patient = np.abs(canvas.chest.u), canvas.chest.v, canvas.patient
    fade = np.clip(1 - v / end, 0, None)
    lung = v - down * fade  # where this height was before the lung fell
    # How deep a pixel lies in the fallen lung, as a share of the image; negative in the rim.
    depth = np.minimum((chest_wall(lung) - inwards * fade**0.5 - u) * patient.half_width, lung * patient.height)
    rim = smooth_step(-depth * 400) * (v < end)
    pleura = np.exp(-((depth / 0.006) ** 2)) * (v < end)
    no_vessels = canvas.change(vessel_contrast=0.0)
    return np.asarray((no_vessels - 0.09) * rim + 0.08 * pleura, np.float32) * canvas.inside(side)


_PAINTED: dict[str, Callable[[_Canvas, int, np.random.Generator], Array]] = {
    "Atelectasis": _atelectasis,
    "Cardiomegaly": _cardiomegaly,
    "Effusion": _effusion,
    "Infiltration": _infiltration,
    "Mass": _mass,
    "Nodule": _nodule,
    "Pneumonia": _pneumonia,
    "Pneumothorax": _pneumothorax,
}
_STREAMS = {"patient": 0, "chest": 1, "noise": 2, "findings": 3, "count": 4, "second": 5}


def _rng(seed: int, split: str, finding: str, index: int, number: int, stream: str) -> np.random.Generator:
    """Random numbers for one use; number 0 stands for the patient, 1, 2, 3 for the images."""
    key = (SPLITS.index(split), FINDINGS.index(finding), index, number, _STREAMS[stream])
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _share(seed: int, split: str, finding: str, index: int, stream: str) -> float:
    """Term `index` of a Kronecker sequence in 0..1, so that shares are even for every number of patients."""
    step = {"count": (5**0.5 - 1) / 2, "second": 2**0.5 - 1}[stream]
    return float((_rng(seed, split, finding, 0, 0, stream).random() + index * step) % 1)


def _image_count(seed: int, split: str, finding: str, index: int) -> int:
    return 1 + int(np.searchsorted(_IMAGE_SHARES, _share(seed, split, finding, index, "count"), side="right"))


def _check_spec(train: int, test: int, size: int, strength: float, second: float, seed: int) -> dict[str, Any]:
    """The arguments of `write_findings` as plain numbers, or an error that names the wrong one."""
    spec: dict[str, Any] = {"train": whole_number("train", train, 0), "test": whole_number("test", test, 0)}
    if not any(spec.values()):
        raise DataError("train and test are both zero: ask for at least one image of each finding")
    if not isinstance(strength, int | float) or not 0 <= strength < float("inf"):
        raise DataError(f"strength = {strength!r}: expected a number of at least 0")
    if not isinstance(second, int | float) or not 0 <= second <= 1:
        raise DataError(f"second = {second!r}: expected a share from 0 to 1")
    return {
        **spec,
        "size": whole_number("size", size, 64),
        "strength": float(strength),
        "second": float(second),
        "seed": whole_number("seed", seed, 0),
    }
