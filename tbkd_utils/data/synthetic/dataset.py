"""Writes SYNTHETIC chest radiographs in TBX11K's layout, with known lesions and a known shortcut. Not medical data.

Tuberculosis shows as nodules, consolidations, cavities or calcified nodules, in boxes whose sizes and counts follow
TBX11K's; "sick but not TB" shows effusions, enlarged hearts or lower-zone haze, without boxes. A bright "L" side marker
(the marker) comes with TB at a chosen rate in train, and with half of every class in val: a network that reads the
marker does well in training and is found out in val.
"""

from __future__ import annotations

import contextlib
import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from tbkd_utils.data.synthetic.sample import CLASSES, SPLITS, Sample, describe_sample, index_of, render_sample
from tbkd_utils.errors import DataError

Part = TypeVar("Part")
_CATEGORIES = ("ActiveTuberculosis", "ObsoletePulmonaryTuberculosis", "PulmonaryTuberculosis")
_FORMAT = 1  # raise when the same spec draws other pixels
NOTICE = (
    "SYNTHETIC images drawn by a program (tbkd_utils.synthetic). Not medical data: no patient, no radiograph "
    "and no diagnosis stands behind any of them. For trying and teaching the method only."
)
_README = f"""{NOTICE}

Folders and files as in TBX11K. Odd image numbers are train, even ones val; boxes are in pixels of the images here.
synthetic.json records the settings and, for each image, the marker (a bright "L" in the upper right corner, which
goes with tuberculosis in train but not in val), the finding and the lesions. Boxes are xyxy pixels there.
"""


def write_synthetic(
    root: str | Path,
    *,
    train: Sequence[int] = (120, 120, 120),
    val: Sequence[int] = (40, 40, 40),
    size: int = 256,
    marker_rate: float = 0.9,
    seed: int = 0,
) -> Path:
    """Write a synthetic dataset in TBX11K's layout.

    `synthetic.json`, written last, records the settings, markers and lesions. The same arguments give the same bytes
    (with the same versions of numpy and OpenCV). Nothing is cleaned up when writing fails half way: write under a
    temporary name and rename.

    Args:
        root: Folder to write; it must not exist or be empty.
        train: Number of healthy, sick-but-not-TB and TB images.
        val: The same for val, which is drawn from other patients.
        size: Side of the images in pixels, at least 64.
        marker_rate: Share of TB images with the marker in train, 0..1 (see `describe_sample`).
        seed: Not negative.

    Returns:
        The folder.

    Raises:
        DataError: If an argument is out of range, the folder is not empty, or a file cannot be written.
    """
    root = Path(root)
    spec = _check_spec(train, val, size, marker_rate, seed)
    with into_new_folder(root):
        for folder in (*(f"imgs/{c}" for c in CLASSES), "annotations/json", "lists"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        records: dict[str, Any] = {}
        listed: dict[str, list[str]] = {}
        for split in SPLITS:
            counts = list(zip(CLASSES, spec[split], strict=True))
            settings = {"size": spec["size"], "marker_rate": spec["marker_rate"], "seed": spec["seed"]}
            # TB first, as in TBX11K.
            samples = [describe_sample(split, c, i, **settings) for c, n in reversed(counts) for i in range(n)]
            for sample in samples:
                (root / "imgs" / sample.name).write_bytes(encoded_png(render_sample(sample)))
                records[sample.name] = _record(sample)
            write_sorted_json(root / f"annotations/json/TBX11K_{split}.json", _coco(samples))
            only_tb = [sample for sample in samples if sample.lesions]
            write_sorted_json(root / f"annotations/json/TBX11K_{split}_only_tb.json", _coco(only_tb))
            listed[split] = [sample.name for sample in samples]
        listed["trainval"] = listed["train"] + listed["val"]
        for split, names in listed.items():
            (root / f"lists/TBX11K_{split}.txt").write_text("".join(f"{name}\n" for name in names))
        (root / "README.txt").write_text(_README)
        write_sorted_json(
            root / "synthetic.json", {"notice": NOTICE, "format": _FORMAT, "spec": spec, "images": records}
        )
    return root


@contextlib.contextmanager
def into_new_folder(root: Path) -> Iterator[None]:
    """Guards the writing of a drawn set.

    Raises:
        DataError: If the folder is not empty, or a file cannot be written.
    """
    try:
        if root.is_dir() and any(root.iterdir()):
            raise DataError(f"{root} is not empty: give a new folder, or empty this one")
        yield
    except OSError as error:
        raise DataError(
            f"cannot write the synthetic dataset to {root} ({error.strerror or error}: {error.filename}): "
            "give a folder that can be written and has room"
        ) from error


def read_synthetic_markers(root: str | Path) -> dict[str, NDArray[np.float32] | None]:
    """Where the marker is in each image of a dataset from `write_synthetic`.

    Args:
        root: The dataset's folder.

    Returns:
        Image name relative to imgs/ -> (4,) float32 xyxy pixels, or None where the image has no marker.

    Raises:
        DataError: If the folder has no readable synthetic.json.
    """

    def marker(record: dict[str, Any]) -> NDArray[np.float32] | None:
        return None if record["marker"] is None else np.array(record["marker"], np.float32).reshape(4)

    return _read_records(root, marker)


def read_synthetic_lesions(root: str | Path) -> dict[str, tuple[str, ...]]:
    """What is drawn in each image of a dataset from `write_synthetic`.

    Returns:
        Image name relative to imgs/ -> the kind of each lesion, in the order of its boxes.

    Raises:
        DataError: If the folder has no readable synthetic.json.
    """
    return _read_records(root, lambda record: tuple(str(lesion["kind"]) for lesion in record["lesions"]))


def read_synthetic_samples(root: str | Path) -> dict[str, Sample]:
    """What each image of a dataset from `write_synthetic` shows, by the image's name; `draw_lungs` takes it.

    Raises:
        DataError: If the folder has no readable synthetic.json.
    """

    def known(record: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
        settings = {key: spec[key] for key in ("size", "marker_rate", "seed")}
        return {"split": record["split"], "folder": record["class"], **settings}

    records = read_drawn(Path(root) / "synthetic.json", known, "write_synthetic")
    return {name: describe_sample(index=index_of(name), **record) for name, record in records.items()}


def _read_records(root: str | Path, part: Callable[[dict[str, Any]], Part]) -> dict[str, Part]:
    """One part of every image's record in synthetic.json, by the image's name."""
    return read_drawn(Path(root) / "synthetic.json", lambda record, spec: part(record), "write_synthetic")


def read_drawn(path: Path, part: Callable[[dict[str, Any], dict[str, Any]], Part], writer: str) -> dict[str, Part]:
    """Reads what a drawn set says of its images.

    Args:
        path: Its JSON file.
        part: Makes what is wanted of an image's record and the settings of the set.
        writer: The function that writes such sets, for the message.

    Returns:
        Image name to what was made.

    Raises:
        DataError: If the file is absent or of another form.
    """
    try:
        content = json.loads(path.read_text())
        return {name: part(record, content["spec"]) for name, record in content["images"].items()}
    except FileNotFoundError as error:
        raise DataError(
            f"{path} not found: expected a dataset from {writer}, written to the end; write it again"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read as a synthetic record ({error!r}): write the dataset again") from error


def whole_number(name: str, value: Any, least: int) -> int:
    """Returns a whole number of at least `least`, or raises a `DataError` that names the argument."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise DataError(f"{name} = {value!r}: expected a whole number, at least {least}")
    return number


def _check_spec(train: Sequence[int], val: Sequence[int], size: int, marker_rate: float, seed: int) -> dict[str, Any]:
    """The arguments of `write_synthetic` as plain numbers, or an error that names the wrong one."""
    spec: dict[str, Any] = {}
    for split, counts in (("train", train), ("val", val)):
        if not isinstance(counts, Sequence) or len(counts) != len(CLASSES):
            raise DataError(f"{split} = {counts!r}: expected three counts (healthy, sick, tb)")
        spec[split] = [whole_number(f"{split} count of {c}", n, 0) for c, n in zip(CLASSES, counts, strict=True)]
    if not any(spec["train"] + spec["val"]):
        raise DataError("train and val are all zero: ask for at least one image")
    if not isinstance(marker_rate, int | float) or not 0 <= marker_rate <= 1:
        raise DataError(f"marker_rate = {marker_rate!r}: expected a share from 0 to 1")
    return {
        **spec,
        "size": whole_number("size", size, 64),
        "marker_rate": float(marker_rate),
        "seed": whole_number("seed", seed, 0),
    }


def encoded_png(image: NDArray[np.uint8]) -> bytes:
    """Returns a gray image (h, w) as the bytes of a PNG file."""
    done, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise DataError("OpenCV cannot encode a PNG: reinstall opencv-python-headless")
    return bytes(data)


def _record(sample: Sample) -> dict[str, Any]:
    lesions = [
        {"kind": lesion.kind, "category": lesion.category, "box": box}
        for lesion, box in zip(sample.lesions, sample.boxes.tolist(), strict=True)
    ]
    about = {"split": sample.split, "class": sample.folder, "finding": sample.finding}
    return {**about, "has_marker": sample.marker is not None, "marker": sample.marker, "lesions": lesions}


def _coco(samples: Sequence[Sample]) -> dict[str, Any]:
    """COCO's structure as TBX11K fills it: ids from 1, boxes as xywh floats."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, sample in enumerate(samples, 1):
        side = {"width": sample.size, "height": sample.size}
        images.append({"id": image_id, "file_name": sample.name, **side})
        for lesion, (x0, y0, x1, y1) in zip(sample.lesions, sample.boxes.tolist(), strict=True):
            box = {"area": (x1 - x0) * (y1 - y0), "bbox": [x0, y0, x1 - x0, y1 - y0]}
            link = {"id": len(annotations) + 1, "image_id": image_id, "category_id": lesion.category, "iscrowd": 0}
            annotations.append({**link, **box, **side})
    categories = [{"id": i, "name": name, "supercategory": "Tuberculosis"} for i, name in enumerate(_CATEGORIES, 1)]
    info = [{"description": NOTICE, "version": str(_FORMAT)}]
    return {"info": info, "licenses": [], "categories": categories, "images": images, "annotations": annotations}


def write_sorted_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file whose bytes depend on its content alone."""
    path.write_text(json.dumps(content, indent=1) + "\n")
