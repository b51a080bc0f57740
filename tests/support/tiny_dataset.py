"""Datasets of a few small images, written where a test wants them."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (64, 48)  # width, height
CATEGORIES = [
    {"id": 1, "name": "ActiveTuberculosis", "supercategory": "Tuberculosis"},
    {"id": 2, "name": "ObsoletePulmonaryTuberculosis", "supercategory": "Tuberculosis"},
    {"id": 3, "name": "PulmonaryTuberculosis", "supercategory": "Tuberculosis"},
]

Boxes = list[tuple[int, list[float]]]  # (category, [left, top, width, height])

TRAIN: dict[str, Boxes] = {
    "tb/tb0002.png": [(1, [10.5, 4.25, 20.0, 16.0])],
    "health/h0001.png": [],
    "tb/tb0001.png": [(2, [0.0, 0.0, 64.0, 48.0]), (1, [1.0, 2.0, 3.0, 4.0])],
    "tb/tb0003.png": [],
    "sick/s0001.png": [],
}
VAL: dict[str, Boxes] = {"tb/tb0009.png": [(1, [30.0, 20.0, 16.0, 12.0])], "health/h0009.png": []}


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> None:
    """Gray noise, different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def coco(images: Mapping[str, Boxes]) -> dict[str, Any]:
    content: dict[str, Any] = {"categories": CATEGORIES, "images": [], "annotations": []}
    for number, (name, boxes) in enumerate(images.items(), start=1):
        content["images"].append({"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
        for category, bbox in boxes:
            identity = len(content["annotations"]) + 1
            content["annotations"].append(
                {"id": identity, "image_id": number, "category_id": category, "bbox": bbox, "iscrowd": 0}
            )
    return content


def write_list(root: Path, split: str, names: Iterable[str]) -> Path:
    file = root / "lists" / f"TBX11K_{split}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{name}\n" for name in names))
    return file


def json_file(root: Path, split: str) -> Path:
    return root / "annotations" / "json" / f"TBX11K_{split}.json"


def write_tbx11k(root: Path, extra: Iterable[str] = ()) -> Path:
    """TRAIN and VAL in the TBX11K layout, and extra images by their names below imgs/extra/."""
    for split, images in (("train", TRAIN), ("val", VAL)):
        write_list(root, split, images)
        json_file(root, split).parent.mkdir(parents=True, exist_ok=True)
        json_file(root, split).write_text(json.dumps(coco(images)))
    names = [*TRAIN, *VAL, *(f"extra/{name}" for name in extra)]
    for seed, name in enumerate(names):
        write_image(root / "imgs" / name, seed)
    return root


def edit_json(root: Path, edit: Callable[[dict[str, Any]], object], split: str = "train") -> None:
    """Change a split's JSON in place."""
    content = json.loads(json_file(root, split).read_text())
    edit(content)
    json_file(root, split).write_text(json.dumps(content))


KAGGLE_HEADER = "fname,image_height,image_width,source,bbox,target,tb_type,image_type"
KAGGLE_ROWS = (
    "h0001.png,48,64,train,none,no_tb,none,healthy",
    """tb0001.png,48,64,train,"{'xmin': 10.5, 'ymin': 4.25, 'width': 20.0, 'height': 16.0}",tb,active_tb,tb""",
    """tb0001.png,48,64,train,"{'xmin': 1, 'ymin': 2, 'width': 3, 'height': 4}",tb,latent_tb,tb""",
    "s0001.png,48,64,val,none,no_tb,none,sick_but_no_tb",
    """tb0009.png,48,64,val,"{'xmin': 30.0, 'ymin': 20.0, 'width': 16.0, 'height': 12.0}",tb,latent_tb,latent_tb""",
    "tb0010.png,48,64,train,none,tb,none,tb",
)


def write_kaggle(root: Path, rows: Iterable[str] = KAGGLE_ROWS, header: str = KAGGLE_HEADER) -> Path:
    rows = list(rows)
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "data.csv").write_text("\n".join([header, *rows]) + "\n")
    for seed, name in enumerate(sorted({row.split(",")[0] for row in rows})):
        if name.endswith(".png") and "/" not in name:
            write_image(root / "images" / name, seed)
    return root
