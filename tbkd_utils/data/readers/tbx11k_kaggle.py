"""Read TBX11K in the form of the Kaggle copy "tbx11k-simplified": one CSV row per box, one image folder."""

import ast
import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tbkd_utils.data.readers.reader import Reader
from tbkd_utils.data.readers.tbx11k import CATEGORIES, KIND_LABELS
from tbkd_utils.data.records import (
    OnError,
    Radiograph,
    box_from_xywh,
    checked_size,
    collect_errors,
    read_text,
    relative_name,
)
from tbkd_utils.errors import DataError

COLUMNS = ("fname", "image_height", "image_width", "source", "bbox", "target", "tb_type", "image_type")
_TARGET_LABELS = {"no_tb": 0, "tb": 1}
_IMAGE_TYPE_KINDS = {
    "healthy": "health",
    "sick_but_no_tb": "sick",
    "tb": "tb",
    "active_tb": "tb",
    "latent_tb": "tb",
    "uncertain_tb": "tb",
}
_TB_TYPE_CATEGORIES = {"none": 0, "active_tb": 1, "latent_tb": 2, "uncertain_tb": 3}


@dataclass
class _Image:
    """The rows of one image, put together."""

    split: str
    kind: str
    size: tuple[int, int]
    boxes: list[np.ndarray] = field(default_factory=list)
    categories: list[int] = field(default_factory=list)


class Tbx11kKaggle(Reader):
    """The "tbx11k-simplified" layout below one folder.

    Args:
        root: The folder that holds ``data.csv`` and ``images/``.
    """

    name = "tbx11k-simplified"
    needs = ("data.csv", "images/")
    kinds = ("tb", "sick", "health", "no_tb")
    categories = CATEGORIES

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = root / "images"

    def splits(self) -> tuple[str, ...]:
        """Name the splits of this layout.

        Returns:
            "train", "val" and "trainval" (both, in the order of the CSV); it has no extra images.
        """
        return ("train", "val", "trainval")

    def listed_splits(self) -> tuple[str, ...]:
        """Leave out "trainval", which is train and val together.

        Returns:
            "train" and "val".
        """
        return ("train", "val")

    def records(self, split: str, on_error: OnError) -> list[Radiograph]:
        """List the radiographs of a split, whether their files are present or not.

        Args:
            split: One of `splits`.
            on_error: Called with each bad row; if it returns, that row is left out.

        Returns:
            One record per radiograph, in the order of the CSV.

        Raises:
            DataError: ``data.csv`` is not readable as a whole or lacks a column.
        """
        wanted = ("train", "val") if split == "trainval" else (split,)
        images: dict[str, _Image] = {}
        for where, row in self._rows():
            with collect_errors(on_error):
                source = _known(row, "source", ("train", "val"), where)
                if source in wanted:
                    _add_row(images, row, source, where)
        return [
            Radiograph(
                path=self.images / name,
                target=KIND_LABELS[image.kind],
                boxes=np.array(image.boxes, dtype=np.float32).reshape(-1, 4),
                source="TBX11K",
                name=name,
                kind=image.kind,
                categories=tuple(image.categories),
                size=image.size,
            )
            for name, image in images.items()
        ]

    def _rows(self) -> list[tuple[str, dict[str, str]]]:
        """Read data.csv into (where, row) pairs; a row's values are stripped text."""
        file = self.root / "data.csv"
        reader = csv.DictReader(io.StringIO(read_text(file)), restval="")
        try:
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{file}: missing columns {', '.join(missing)}. Expected {', '.join(COLUMNS)}. Copy it again."
                )
            return [(f"{file}, line {reader.line_num}", {c: row[c].strip() for c in COLUMNS}) for row in reader]
        except csv.Error as error:
            raise DataError(f"{file}, after line {reader.line_num}: not valid CSV ({error}). Copy it again.") from error


def _known(row: dict[str, str], column: str, values: tuple[str, ...], where: str) -> str:
    """Get a value that must be one of a few."""
    value = row[column].lower()
    if value not in values:
        raise DataError(f"{where}: {column} {row[column]!r} is unknown. Known are {', '.join(values)}. Correct it.")
    return value


def _add_row(images: dict[str, _Image], row: dict[str, str], split: str, where: str) -> None:
    """Check one row and add its image and box to ``images``."""
    name = relative_name(row["fname"], where)
    where = f"{where} ({name})"
    label = _TARGET_LABELS[_known(row, "target", tuple(_TARGET_LABELS), where)]
    image_type = _known(row, "image_type", tuple(_IMAGE_TYPE_KINDS), where)
    tb_type = _known(row, "tb_type", tuple(_TB_TYPE_CATEGORIES), where)
    kind = _IMAGE_TYPE_KINDS[image_type]
    if KIND_LABELS[kind] != label:
        raise DataError(f"{where}: target {row['target']!r} contradicts image_type {image_type!r}. Correct it.")
    try:
        width, height = int(row["image_width"]), int(row["image_height"])
    except ValueError as error:
        raise DataError(
            f"{where}: image_width {row['image_width']!r} or image_height {row['image_height']!r} is not a "
            "whole number. Correct it."
        ) from error
    size = checked_size(width, height, where)

    # Everything about the row is checked before the image is entered, so that a refused row leaves no trace.
    xywh = _bbox(row["bbox"], where)
    box = None
    category = _TB_TYPE_CATEGORIES[tb_type] or _TB_TYPE_CATEGORIES.get(image_type, 0)
    if xywh is not None:
        if kind != "tb":
            raise DataError(f"{where}: a TB box on an image without TB. Correct target or remove the box.")
        if not category:
            raise DataError(f"{where}: a box needs a tb_type other than 'none'. Correct it.")
        box = box_from_xywh(xywh, size, where)
    if name in images:
        image = images[name]
        if box is None or not image.boxes:
            raise DataError(f"{where}: a duplicate row: only an image with several boxes has several rows.")
        if (image.split, image.kind, image.size) != (split, kind, size):
            raise DataError(f"{where}: source, class or size differ from the image's first row. Correct it.")
    image = images.setdefault(name, _Image(split, kind, size))
    if box is not None:
        image.boxes.append(box)
        image.categories.append(category)


def _bbox(text: str, where: str) -> list[object] | None:
    """Parse the bbox column into [left, top, width, height], or None where there is no box."""
    if text.lower() == "none":
        return None
    try:
        box = ast.literal_eval(text)  # a literal only: nothing in the file is ever executed
        return [box["xmin"], box["ymin"], box["width"], box["height"]]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise DataError(
            f"{where}: bbox {text[:80]!r} is neither 'none' nor a dict with numbers for xmin, ymin, width "
            "and height. Correct it."
        ) from error
