"""Writes SYNTHETIC chest radiographs of persons with pneumonia, in Kermany's layout (Kaggle names). Not medical data.

One person has one to four images: the same anatomy, new noise, another exposure, a small shift. Bacterial pneumonia is
one consolidation in one lung, viral pneumonia a haze over both. Each person has a mark, a small bright ellipse outside
the lungs: a network that reads it knows the person again, so a split by images scores above a split by persons. The
option `identity` fades the mark; at 0 there is none.

Image i depends on (seed, split, kind, person, image) alone, so a larger set contains the smaller one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tbkd_utils.data.synthetic.chest import Array, Chest, Patient, chest_wall, cloud, draw_chest, expose
from tbkd_utils.data.synthetic.dataset import (
    NOTICE,
    encoded_png,
    into_new_folder,
    read_drawn,
    whole_number,
    write_sorted_json,
)
from tbkd_utils.data.synthetic.lesions import ACTIVE, Lesion, paint_lesions
from tbkd_utils.errors import DataError

SPLITS = ("train", "test")
KINDS = ("normal", "bacterial", "viral")  # the order of the counts
_FORMAT = 1  # raise when the same spec draws other pixels
_IMAGE_SHARES = (0.35, 0.68, 0.87)  # up to here 1, 2, 3 images a person, above 4: 2.1 on average
_MARK_PLACES = np.array(
    [(1.12, -0.1), (0.9, -0.02), (1.08, 0.12), (0.35, -0.1), (0.5, 1.12), (0.85, 1.12), (1.12, 1.1)]
)  # |u|, v: corners, shoulders, neck, belly, flanks
_README = f"""{NOTICE}

Folders and files as in Kermany's set on Kaggle. Odd person numbers are train, even ones test. pneumonia.json records
the settings and, for each image, the person, the kind, the boxes of the pneumonia, its mask (in masks/, 255 = inside)
and the boxes of the two lungs. Boxes are xyxy pixels, right and bottom exclusive. Images are JPEG: compression changes
pixels around a finding a little.
"""


@dataclass(frozen=True)
class Opacity:
    """Where one lung is opaque. Lengths are in the patient's own frame, see `chest`."""

    side: int  # -1 = image left
    center: tuple[float, float]  # u, v
    radius: tuple[float, float]
    strength: float  # attenuation added where it is densest


@dataclass(frozen=True)
class PersonImage:
    """Everything about one image of a person but its pixels."""

    name: str  # relative to chest_xray/
    person: str  # "IM-0001" or "person1"; numbers are never shared
    split: str
    kind: str  # one of KINDS
    index: int  # of the person, within split and kind
    number: int  # of the image, from 1
    size: int
    identity: float
    seed: int
    patient: Patient
    opacities: tuple[Opacity, ...]  # none, one (bacterial) or two (viral)
    mark: tuple[float, ...]  # x, y, radius, radius (shares of the side), angle, brightness


@dataclass(frozen=True)
class Truth:
    """What `pneumonia.json` says about an image. Boxes are xyxy pixels, right and bottom exclusive."""

    person: str
    kind: str
    boxes: NDArray[np.float32]  # (k, 4): none, one (bacterial) or two (viral, image left first)
    mask: Path | None
    lungs: NDArray[np.float32]  # (2, 4), image left first; without what the heart hides
    size: tuple[int, int]  # width and height of the image


def describe_person(
    split: str, kind: str, index: int, *, size: int = 128, identity: float = 0.0, seed: int = 0
) -> tuple[PersonImage, ...]:
    """Decide what the one to four images of a person show, without drawing them.

    Args:
        split: "train" or "test".
        kind: "normal", "bacterial" or "viral".
        index: 0, 1, 2, ... within split and kind.
        size: Side of the images in pixels.
        identity: Strength of the person's mark, 0 (none) to 1. It changes the mark alone.
        seed: Of the whole dataset.

    Raises:
        DataError: If there is no such split, kind or index.
    """
    if split not in SPLITS or kind not in KINDS or index < 0:
        raise DataError(f"{split}/{kind}/{index}: expected one of {SPLITS}, one of {KINDS}, and an index from 0")
    # Odd numbers are train, even ones test; bacterial and viral take turns: no number is given twice.
    order = index if kind == "normal" else 2 * index + KINDS.index(kind) - 1
    number = 2 * order + 1 + SPLITS.index(split)
    person = f"IM-{number:04d}" if kind == "normal" else f"person{number}"
    patient = Patient.draw(_rng(seed, split, kind, index, 0, "patient"))
    mark = _draw_mark(_rng(seed, split, kind, index, 0, "mark"))
    images = []
    for i in range(1, _image_count(seed, split, kind, index) + 1):
        if kind == "normal":
            name = f"{split}/NORMAL/{'NORMAL2-' if split == 'test' else ''}{person}-{i:04d}.jpeg"
        else:
            name = f"{split}/PNEUMONIA/{person}_{'bacteria' if kind == 'bacterial' else 'virus'}_{i}.jpeg"
        rng = _rng(seed, split, kind, index, i, "patient")
        dx, dy, tilt, gain, gamma = rng.uniform(-1, 1, 5) * (0.015, 0.012, 0.02, 0.07, 0.08)
        here = replace(
            patient,
            center=patient.center + dx,
            top=patient.top + dy,
            tilt=patient.tilt + tilt,
            gain=patient.gain * (1 + gain),
            gamma=patient.gamma * (1 + gamma),
        )
        # The person keeps side and zone; extent and strength are new in each image.
        streams = [_rng(seed, split, kind, index, k, "finding") for k in (0, i)]
        opacities = () if kind == "normal" else _bacterial(*streams) if kind == "bacterial" else _viral(*streams)
        x, y = np.clip(here.to_image(*np.array(mark[:2])), 0.03, 0.97)  # a wide patient's corner stays in view
        of_image = (float(x), float(y), *mark[2:])
        images.append(PersonImage(name, person, split, kind, index, i, size, identity, seed, here, opacities, of_image))
    return tuple(images)


def render_image(image: PersonImage, *, finding: bool = True, mark: bool = True) -> NDArray[np.uint8]:
    """Draw an image as 8-bit gray (size, size), with or without its pneumonia and its mark.

    Leaving out the pneumonia changes pixels inside its mask alone, leaving out the mark those under the mark.
    """
    chest, rise, _ = _draw(image)
    return _expose(image, chest, rise if finding else 0 * rise, mark)


def find_truth(image: PersonImage) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Where the pneumonia and the lungs are: mask (size, size), boxes (k, 4) and lung boxes (2, 4), xyxy pixels."""
    chest, _, mask = _draw(image)
    return mask, *_boxes(image, chest, mask)


def write_pneumonia(
    root: str | Path,
    *,
    train: Sequence[int] = (41, 71, 38),
    test: Sequence[int] = (11, 19, 10),
    size: int = 128,
    identity: float = 0.0,
    seed: int = 0,
) -> Path:
    """Write a synthetic pneumonia dataset in the layout of Kermany's set on Kaggle.

    `pneumonia.json`, written last, records the settings and the truth. The same arguments give the same bytes (with
    the same versions of numpy and OpenCV). Nothing is cleaned up when writing fails half way: write under a temporary
    name and rename.

    Args:
        root: Folder to write; it must not exist or be empty.
        train: Number of normal, bacterial and viral persons; each has one to four images.
        test: The same for test, which is drawn from other persons.
        size: Side of the images in pixels, at least 64.
        identity: Strength of the persons' marks, from 0 (none) to 1.
        seed: Not negative.

    Returns:
        The folder.

    Raises:
        DataError: If an argument is out of range, the folder is not empty, or a file cannot be written.
    """
    root = Path(root)
    spec = _check_spec(train, test, size, identity, seed)
    settings = {name: spec[name] for name in ("size", "identity", "seed")}
    with into_new_folder(root):
        for folder in (*(f"chest_xray/{s}/{c}" for s in SPLITS for c in ("NORMAL", "PNEUMONIA")), "masks"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        records: dict[str, Any] = {}
        persons = [(s, k, i) for s in SPLITS for k, n in zip(KINDS, spec[s], strict=True) for i in range(n)]
        for image in (image for person in persons for image in describe_person(*person, **settings)):
            chest, rise, mask = _draw(image)
            (root / "chest_xray" / image.name).write_bytes(_jpeg(_expose(image, chest, rise, True)))
            masked = f"masks/{Path(image.name).stem}.png" if image.opacities else None
            if masked:
                (root / masked).write_bytes(encoded_png(mask.astype(np.uint8) * np.uint8(255)))
            boxes, lungs = _boxes(image, chest, mask)
            truth = {"boxes": boxes.tolist(), "mask": masked, "lungs": lungs.tolist()}
            records[image.name] = {"person": image.person, "kind": image.kind, **truth}
        (root / "README.txt").write_text(_README)
        write_sorted_json(
            root / "pneumonia.json", {"notice": NOTICE, "format": _FORMAT, "spec": spec, "images": records}
        )
    return root


def read_pneumonia_truth(root: str | Path) -> dict[str, Truth]:
    """What is drawn in each image of a dataset from `write_pneumonia`, for scoring, never for training.

    Returns:
        Image name relative to chest_xray/ -> truth, in the order of writing.

    Raises:
        DataError: If the folder has no readable pneumonia.json.
    """
    path = Path(root) / "pneumonia.json"

    def truth(record: dict[str, Any], spec: dict[str, Any]) -> Truth:
        if record["kind"] not in KINDS:
            raise ValueError(f"kind {record['kind']!r}")
        boxes = np.array(record["boxes"], np.float32).reshape(-1, 4)
        lungs = np.array(record["lungs"], np.float32).reshape(2, 4)
        mask = None if record["mask"] is None else path.parent / record["mask"]
        return Truth(str(record["person"]), record["kind"], boxes, mask, lungs, (spec["size"], spec["size"]))

    return read_drawn(path, truth, "write_pneumonia")


def _draw(image: PersonImage) -> tuple[Chest, Array, NDArray[np.bool_]]:
    """The healthy chest, the attenuation that the pneumonia adds (0 outside the mask), and the mask."""
    # Vessels and texture are the person's own: number 0.
    chest = draw_chest(image.patient, _stream(image, "chest", 0), image.size)
    rise, rng = np.zeros_like(chest.attenuation), _stream(image, "opacity", image.number)
    if image.kind == "bacterial":
        lesions = [_consolidation(image.patient, opacity, rng) for opacity in image.opacities]
        rise = (paint_lesions(chest.attenuation, chest, lesions) - chest.attenuation) * chest.lungs
    for opacity in image.opacities if image.kind == "viral" else ():
        across = (chest.u - opacity.center[0]) / opacity.radius[0]
        down = (chest.v - opacity.center[1]) / opacity.radius[1]
        haze = np.float32(opacity.strength) * np.exp(-(across**2) - down**2) * (chest.u * opacity.side > 0)
        rise += haze * np.clip(1 + 0.3 * cloud(rng, image.size, 10, 24), 0.4, 1.6) * chest.lungs
    risen = (rise > 0.1 * rise.max()) & (chest.lungs > 0.5)
    mask = np.zeros_like(risen)
    for opacity in image.opacities:  # the largest piece in each lung
        part = risen & (chest.u * opacity.side > 0)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(part.astype(np.uint8))
        mask |= labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])
    return chest, rise * mask, mask


def _expose(image: PersonImage, chest: Chest, rise: Array, mark: bool) -> NDArray[np.uint8]:
    pixels = expose(chest.attenuation + rise, image.patient, _stream(image, "noise", image.number))
    if not mark or image.identity == 0:
        return pixels
    x, y, rx, ry, angle, brightness = image.mark
    axis = (np.arange(image.size) + 0.5) / image.size
    dx, dy = axis[None, :] - x, axis[:, None] - y
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    edge = (1 - np.hypot(along / rx, across / ry)) * min(rx, ry) * image.size
    cover = np.clip(edge + 0.5, 0, 1) * (image.identity * brightness)
    return np.asarray(np.round(pixels + cover * (255.0 - pixels)), np.uint8)


def _boxes(image: PersonImage, chest: Chest, mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Boxes around the mask, one for each opacity, and around both lungs."""

    def around(part: NDArray[np.bool_]) -> list[int]:
        x, y = np.flatnonzero(part.any(axis=0)), np.flatnonzero(part.any(axis=1))
        return [x[0], y[0], x[-1] + 1, y[-1] + 1]

    boxes = [around(mask & (chest.u * opacity.side > 0)) for opacity in image.opacities]
    lungs = [around((chest.lungs > 0.5) & (chest.u * side > 0)) for side in (-1, 1)]
    return np.array(boxes, np.int64).reshape(-1, 4), np.array(lungs, np.int64)


def _bacterial(person: np.random.Generator, image: np.random.Generator) -> tuple[Opacity, ...]:
    """One consolidation: lower zone in six persons of ten, else the middle or the upper one."""
    side, zone = int(person.choice([-1, 1])), person.choice([0.68, 0.48, 0.27], p=[0.6, 0.2, 0.2])
    v, half_v = zone + image.uniform(-0.04, 0.04), image.uniform(0.23, 0.45)
    # The heart hides the inner lower part of the patient's left lung.
    inner, wall = (0.3 if side > 0 and zone > 0.4 else 0.16), float(chest_wall(v))
    half_u = 0.5 * (wall - inner) * image.uniform(1.05, 1.35)
    u = 0.5 * (inner + wall) + image.uniform(-0.04, 0.04)
    return (Opacity(side, (side * u, v), (half_u, half_v), 0.115 * image.uniform(0.7, 1.15)),)


def _viral(person: np.random.Generator, image: np.random.Generator) -> tuple[Opacity, ...]:
    """A haze over each lung, image left first, of its own strength."""
    level = person.uniform(0.45, 0.7)
    hazes = []
    for side in (-1, 1):
        u, v, strength = side * image.uniform(0.42, 0.6), level + image.uniform(-0.06, 0.06), image.uniform(0.65, 1.1)
        radius = (float(image.uniform(0.28, 0.42)), float(image.uniform(0.2, 0.32)))
        hazes.append(Opacity(side, (u, v), radius, 0.105 * strength))
    return tuple(hazes)


def _consolidation(patient: Patient, opacity: Opacity, rng: np.random.Generator) -> Lesion:
    """A dense core and patches that flow together around it, within the ellipse of the opacity."""
    middle = patient.to_image(*np.array(opacity.center))
    half = np.array([opacity.radius[0] * patient.half_width, opacity.radius[1] * patient.height])
    angle, away = rng.uniform(0, 2 * np.pi, 8), rng.uniform(0.2, 0.6, (8, 1))
    centers = middle + away * half * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    patches = np.hstack([centers, rng.uniform(0.3, 0.4, (8, 2)) * half, np.tile([0.5, 1.5], (8, 1))])
    core = np.array([[*middle, *(0.85 * half), 0.45, 1.5]])
    box = np.clip([*(middle - half), *(middle + half)], 0, 1)
    blobs = np.concatenate([core, patches])
    return Lesion("consolidation", ACTIVE, box, blobs, opacity.strength, int(rng.integers(2**31)))


def _draw_mark(rng: np.random.Generator) -> tuple[float, ...]:
    """A person's mark: u, v in the patient's frame, then radii (shares of the side), angle, brightness."""
    u, v = rng.choice(_MARK_PLACES) * (rng.choice([-1, 1]), 1) + rng.uniform(-1, 1, 2) * (0.06, 0.02)
    radius, aspect = rng.uniform(0.014, 0.024), np.exp(rng.uniform(-0.5, 0.5) / 2)
    drawn = (u, v, radius * aspect, radius / aspect, rng.uniform(0, np.pi), rng.uniform(0.5, 1.0))
    return tuple(float(value) for value in drawn)


_STREAMS = {"patient": 0, "chest": 1, "noise": 2, "finding": 3, "opacity": 4, "mark": 5, "count": 6}


def _rng(seed: int, split: str, kind: str, index: int, number: int, stream: str) -> np.random.Generator:
    """Random numbers for one use; image `number` 0 stands for the person."""
    key = (SPLITS.index(split), KINDS.index(kind), index, number, _STREAMS[stream])
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _stream(image: PersonImage, stream: str, number: int) -> np.random.Generator:
    return _rng(image.seed, image.split, image.kind, image.index, number, stream)


def _image_count(seed: int, split: str, kind: str, index: int) -> int:
    """One to four, from term `index` of a Kronecker sequence: the shares are even for every number of persons."""
    share = (_rng(seed, split, kind, 0, 0, "count").random() + index * (5**0.5 - 1) / 2) % 1
    return 1 + int(np.searchsorted(_IMAGE_SHARES, share, side="right"))


def _check_spec(train: Sequence[int], test: Sequence[int], size: int, identity: float, seed: int) -> dict[str, Any]:
    """The arguments of `write_pneumonia` as plain numbers, or an error that names the wrong one."""
    spec: dict[str, Any] = {}
    for split, counts in (("train", train), ("test", test)):
        if not isinstance(counts, Sequence) or len(counts) != len(KINDS):
            raise DataError(f"{split} = {counts!r}: expected three counts of persons (normal, bacterial, viral)")
        spec[split] = [whole_number(f"{split} count of {k}", n, 0) for k, n in zip(KINDS, counts, strict=True)]
    if not any(spec["train"] + spec["test"]):
        raise DataError("train and test are all zero: ask for at least one person")
    if not isinstance(identity, int | float) or not 0 <= identity <= 1:
        raise DataError(f"identity = {identity!r}: expected a strength from 0 to 1")
    numbers = {
        "size": whole_number("size", size, 64),
        "identity": float(identity),
        "seed": whole_number("seed", seed, 0),
    }
    return {**spec, **numbers}


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(".jpeg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    if not done:
        raise DataError("OpenCV cannot encode a JPEG: reinstall opencv-python-headless")
    return bytes(data)
