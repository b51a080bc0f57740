"""Read Kermany's pediatric chest radiographs (Cell 2018): a folder for each class, the patient in each file's name."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tbkd_utils.data.readers.reader import Reader
from tbkd_utils.data.records import OnError, Radiograph, collect_errors
from tbkd_utils.errors import DataError

CLASSES = ("NORMAL", "PNEUMONIA")
"""The class folders, in the order of the targets."""
ENDINGS = (".jpeg", ".jpg", ".png")
TRUTH = "pneumonia.json"
"""What is drawn in each image of a synthetic set, beside or above the class folders; it gives boxes for scoring."""
_SPLITS = ("train", "val", "test")
_PATIENT = re.compile(
    r"(?P<person>person\d+)_(?P<kind>bacteria|virus)_\d+(_\d+)?"  # Kaggle
    r"|(?P<mendeley>BACTERIA|VIRUS|NORMAL)-(?P<number>\d+)-\d+"
    r"|(NORMAL2-)?(?P<study>IM-\d{4})-\d{4}(-\d{4})?",  # Kaggle's normal ones
    re.IGNORECASE,
)
_KINDS = {"bacteria": "bacterial", "virus": "viral"}


class Kermany(Reader):
    """The published layout: ``train/``, ``test/`` and perhaps ``val/``, each with ``NORMAL/`` and ``PNEUMONIA/``.

    Args:
        root: The folder that holds them, usually called ``chest_xray``.
    """

    name = "chest_xray"
    needs: tuple[str, ...] = ("train/NORMAL/", "train/PNEUMONIA/")
    kinds = ("normal", "bacterial", "viral")
    categories: Mapping[int, str] = {}
    folders: tuple[str, ...] = CLASSES

    def __init__(self, root: Path) -> None:
        self.root = root

    def splits(self) -> tuple[str, ...]:
        """Name the splits of this copy.

        Returns:
            Those of "train", "val" and "test" whose folder is there, and "all", which joins them.
        """
        return (*self.listed_splits(), "all")

    def listed_splits(self) -> tuple[str, ...]:
        """Leave out "all".

        Returns:
            Those of "train", "val" and "test" whose folder is there.
        """
        return tuple(split for split in _SPLITS if (self.root / split).is_dir())

    def records(self, split: str, on_error: OnError) -> list[Radiograph]:
        """List the radiographs of a split.

        Args:
            split: One of `splits`.
            on_error: Called with each bad entry; if it returns, that entry is left out.

        Returns:
            One record per image, split by split, NORMAL first, sorted by name. The target is 1 for pneumonia, the
            kind "normal", "bacterial" or "viral", the group the patient by `patient_of`.

        Raises:
            DataError: A class folder is missing or holds no image.
        """
        truth = _boxes_of(self.root)
        return [
            record
            for target, folder in self._class_folders(split)
            for record in _class_records(self.root, folder, target, truth, on_error)
        ]

    def _class_folders(self, split: str) -> list[tuple[int, str]]:
        """Target and folder of each class in a split."""
        splits = self.listed_splits() if split == "all" else (split,)
        return [(target, f"{one}/{folder}") for one in splits for target, folder in enumerate(self.folders)]


class KermanyPooled(Kermany):
    """All images in two class folders, without splits, as the paper of 2511.00456 pools them.

    Args:
        root: The folder that holds ``Normal/`` and ``Pneumonia/``.
    """

    name = "chest_xray_pooled"
    needs = ("Normal/", "Pneumonia/")
    folders = ("Normal", "Pneumonia")

    def listed_splits(self) -> tuple[str, ...]:
        """Name the one list.

        Returns:
            "all".
        """
        return ("all",)

    splits = listed_splits

    def _class_folders(self, split: str) -> list[tuple[int, str]]:
        return list(enumerate(self.folders))


class KermanyPooledUpper(KermanyPooled):
    """The same with the folders named as in the published splits.

    Args:
        root: The folder that holds ``NORMAL/`` and ``PNEUMONIA/``.
    """

    name = "chest_xray_upper"
    needs = ("NORMAL/", "PNEUMONIA/")
    folders = CLASSES


def patient_of(stem: str) -> tuple[str, str]:
    """Tell the patient and the kind of pneumonia from a file's name.

    Numbers of one patient are read in the careful way: bacterial and viral images of one `personN` are one patient, and
    so are the images of one study `IM-dddd`, with or without `NORMAL2-` before it.

    Args:
        stem: The file's name without its ending.

    Returns:
        The patient, such as `PERSON14`, `IM-0433` or `1083680`; and "bacterial", "viral" or "normal".

    Raises:
        DataError: The name is of none of these forms.
    """
    found = _PATIENT.fullmatch(stem)
    if found is None:
        raise DataError(
            f"{stem}: the name tells no patient. Expected person14_bacteria_51, IM-0433-0001, NORMAL2-IM-0433-0001 or "
            "BACTERIA-1083680-0012. Rename the file, so that images of one patient stay on one side of a split."
        )
    if found["person"]:
        return found["person"].upper(), _KINDS[found["kind"].lower()]
    if found["number"]:
        return found["number"], _KINDS.get(found["mendeley"].lower(), "normal")
    return found["study"].upper(), "normal"


def _class_records(
    root: Path, folder: str, target: int, truth: Mapping[str, tuple[np.ndarray, tuple[int, int]]], on_error: OnError
) -> list[Radiograph]:
    """The records of one class folder, sorted by name."""
    path = root / folder
    if not path.is_dir():
        raise DataError(f"{path}: no such folder. Expected one for each class, {' and '.join(CLASSES)}: complete it.")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and not file.name.startswith("."))
    if not files:
        raise DataError(f"{path}: no image in it ({', '.join(ENDINGS)}). Complete the copy.")
    records = []
    for file in files:
        with collect_errors(on_error):
            try:
                patient, kind = patient_of(file.stem)
            except DataError as error:
                raise DataError(f"{file.parent}: {error}") from None
            if (kind == "normal") == bool(target):
                raise DataError(f"{file}: the name says {kind}, the folder {CLASSES[target]}. Put it where it belongs.")
            name = file.relative_to(root).as_posix()
            boxes, size = truth.get(name, (np.zeros((0, 4), np.float32), None))
            records.append(Radiograph(file, target, boxes, "Kermany", name, kind, size=size, group=patient))
    return records


def _boxes_of(root: Path) -> Mapping[str, tuple[np.ndarray, tuple[int, int]]]:
    """Image to its boxes and size in a drawn set; empty for radiographs."""
    for folder in (root, root.parent):
        if (folder / TRUTH).is_file():
            from tbkd_utils.data.synthetic.pneumonia import read_pneumonia_truth  # OpenCV: real sets do without

            return {name: (truth.boxes, truth.size) for name, truth in read_pneumonia_truth(folder).items()}
    return {}
