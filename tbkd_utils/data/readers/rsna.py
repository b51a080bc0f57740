"""Read the RSNA Pneumonia Detection Challenge 2018: one CSV row per box, one folder of DICOM files."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tbkd_utils.data.readers.reader import Reader
from tbkd_utils.data.readers.scaled import ORIGINAL, csv_columns, first_present, numbers, scaled_to_stored
from tbkd_utils.data.records import OnError, Radiograph, box_from_xywh, collect_errors, relative_name
from tbkd_utils.errors import DataError

COLUMNS = ("patientId", "x", "y", "width", "height", "Target")
CATEGORIES = {1: "pneumonia"}
_ENDINGS = (".dcm", ".png", ".jpg", ".jpeg")
_LABELS, _FOLDER = "stage_2_train_labels.csv", "stage_2_train_images"


@dataclass
class _Image:
    """The rows of one image, put together; boxes in pixels of the original."""

    target: int
    boxes: list[np.ndarray] = field(default_factory=list)


class Rsna(Reader):
    """The layout of the RSNA challenge below one folder.

    Each patient has one image: DICOM as published, or PNG or JPEG of the same stem, of any size.

    Args:
        root: The folder that holds ``stage_2_train_labels.csv`` and ``stage_2_train_images/``.
    """

    name = "rsna-pneumonia"
    needs = (_LABELS, f"{_FOLDER}/")
    kinds = ("pneumonia", "no_pneumonia")
    categories = CATEGORIES

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = root / _FOLDER

    def splits(self) -> tuple[str, ...]:
        """Name the splits of this layout.

        Returns:
            "all": the challenge publishes no labels of its test images.
        """
        return ("all",)

    def listed_splits(self) -> tuple[str, ...]:
        """Name the splits that are lists of their own.

        Returns:
            "all".
        """
        return ("all",)

    def records(self, split: str, on_error: OnError) -> list[Radiograph]:
        """List the radiographs, whether their files are present or not.

        Args:
            split: "all".
            on_error: Called with each bad row or image header; if it returns, that entry is left out.

        Returns:
            One record per radiograph, in the order of the CSV. Boxes are in pixels of the stored image; of the
            1024x1024 original if the image is absent.

        Raises:
            DataError: The CSV is not readable as a whole or lacks a column.
        """
        images: dict[str, _Image] = {}
        for where, row in csv_columns(self.root / _LABELS, COLUMNS):
            with collect_errors(on_error):
                _add_row(images, row, where)
        records = []
        for patient, image in images.items():
            with collect_errors(on_error):
                records.append(self._record(patient, image))
        return records

    def _record(self, patient: str, image: _Image) -> Radiograph:
        path = first_present(self.images, patient, _ENDINGS)
        boxes, size = scaled_to_stored(image.boxes, path)
        return Radiograph(
            path=path,
            target=image.target,
            boxes=boxes,
            source="RSNA",
            name=path.relative_to(self.images).as_posix(),
            kind="pneumonia" if image.target else "no_pneumonia",
            categories=(1,) * len(boxes),
            size=size,
            group=patient,
        )


def _add_row(images: dict[str, _Image], row: dict[str, str], where: str) -> None:
    """Check one row and add its image and box to ``images``."""
    patient = relative_name(row["patientId"], where)
    where = f"{where} ({patient})"
    cells = [row[column] for column in ("x", "y", "width", "height")]
    if row["Target"] not in ("0", "1"):
        raise DataError(f"{where}: Target {row['Target']!r} is unknown. Known are 0 (no pneumonia) and 1. Correct it.")
    target = int(row["Target"])
    if target and not any(cells):
        raise DataError(f"{where}: Target 1 without a box. Add x, y, width and height, or correct Target.")
    if not target and any(cells):
        raise DataError(f"{where}: Target 0 with a box. Correct Target or remove the box.")
    box = box_from_xywh(numbers(cells, where), ORIGINAL, where) if target else None

    # Everything about the row is checked before the image is entered, so that a refused row leaves no trace.
    if patient in images:
        if images[patient].target != target:
            raise DataError(f"{where}: the image has rows with Target 0 and with Target 1. Correct them.")
        if box is None:
            raise DataError(f"{where}: a duplicate row: only an image with several boxes has several rows.")
    image = images.setdefault(patient, _Image(target))
    if box is not None:
        image.boxes.append(box)
