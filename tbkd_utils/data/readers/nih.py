"""Read NIH ChestX-ray14 (Wang et al., CVPR 2017): fourteen findings by image, boxes for eight of them."""

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from tbkd_utils.data.readers.reader import Reader
from tbkd_utils.data.readers.scaled import (
    ORIGINAL,
    csv_columns,
    csv_rows,
    first_present,
    numbers,
    scaled_to_stored,
)
from tbkd_utils.data.records import OnError, Radiograph, box_from_xywh, collect_errors, read_text, relative_name
from tbkd_utils.errors import DataError

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
)
"""The findings that have boxes, in the order of the target."""
OTHER_FINDINGS = ("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia")
"""The findings without boxes, which have no place in the target."""
NO_FINDING = "No Finding"
COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
"""What is read of the table of images."""
CATEGORIES = dict(enumerate(FINDINGS, start=1))
"""Category of a box to its finding, from 1."""

_ENTRIES, _BOXES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"), "BBox_List_2017.csv"
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
ENDINGS = (".png", ".jpg", ".jpeg")
"""Of image files, in the order of preference."""
_BOX_COLUMNS = ("Image Index", "Finding Label", "Bbox x", "Bbox y", "Bbox w", "Bbox h")
_SPELLINGS = {"Infiltrate": "Infiltration"}  # as the list of boxes spells it


@dataclass
class _Entry:
    """The row of one image, and its boxes in pixels of the original."""

    labels: frozenset[str]
    patient: str
    boxes: list[np.ndarray] = field(default_factory=list)
    categories: list[int] = field(default_factory=list)


class Nih(Reader):
    """The layout of NIH ChestX-ray14 below one folder, with all images in one folder.

    The tables name PNG files; a copy may hold JPEG of the same stem, and images of another size than 1024x1024.

    Args:
        root: The folder that holds ``Data_Entry_2017_v2020.csv`` (or ``Data_Entry_2017.csv``, as first released),
            ``BBox_List_2017.csv`` and ``images/``.
    """

    name = "nih-chestx-ray14"
    needs = (_BOXES, "images/")
    kinds = ("finding", "other", "no_finding")
    categories = CATEGORIES

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = root / "images"
        self.table = next((root / name for name in _ENTRIES if (root / name).is_file()), root / _ENTRIES[0])

    def splits(self) -> tuple[str, ...]:
        """Name the splits that this copy has.

        Returns:
            "train" and "test" where the official lists of images are there, and "all": every row of the table.
        """
        return (*(split for split in _LISTS if self._list(split).is_file()), "all")

    def listed_splits(self) -> tuple[str, ...]:
        """Leave out "all" where train and test cover it.

        Returns:
            "train" and "test" if both are there, else "all".
        """
        splits = self.splits()
        return tuple(_LISTS) if set(_LISTS) <= set(splits) else ("all",)

    def records(self, split: str, on_error: OnError) -> list[Radiograph]:
        """List the radiographs of a split, whether their files are present or not.

        Args:
            split: One of `splits`.
            on_error: Called with each bad row, line or image header; if it returns, that entry is left out.

        Returns:
            One record per radiograph, in the order of the list ("all": of the table). Boxes are in pixels of the
            stored image; of the 1024x1024 original if the image is absent.

        Raises:
            DataError: A table or list is not readable as a whole or lacks a column.
        """
        entries = self._entries(on_error)
        self._add_boxes(entries, on_error)
        records = []
        for stem in entries if split == "all" else self._listed(split, entries, on_error):
            entry = entries[stem]
            if entry is not None:
                with collect_errors(on_error):
                    records.append(self._record(stem, entry))
        return records

    def _record(self, stem: str, entry: _Entry) -> Radiograph:
        path = first_present(self.images, stem, ENDINGS)
        boxes, size = scaled_to_stored(entry.boxes, path)
        target = tuple(int(finding in entry.labels) for finding in FINDINGS)
        return Radiograph(
            path=path,
            target=target,
            boxes=boxes,
            source="NIH",
            name=path.relative_to(self.images).as_posix(),
            kind="finding" if any(target) else "no_finding" if NO_FINDING in entry.labels else "other",
            categories=tuple(entry.categories),
            size=size,
            group=entry.patient,
        )

    def _entries(self, on_error: OnError) -> dict[str, _Entry | None]:
        """Read the table of images by stem; None is an image whose row was refused, so that it is reported once."""
        entries: dict[str, _Entry | None] = {}
        for where, row in csv_columns(self.table, COLUMNS):
            with collect_errors(on_error):
                name = relative_name(row["Image Index"], where)
                stem = _stem(name)
                if stem in entries:
                    raise DataError(f"{where}: a duplicate row of {name}. Remove one of the two rows.")
                entries[stem] = None
                where = f"{where} ({name})"
                labels = frozenset(_labels(row["Finding Labels"], where))
                if not row["Patient ID"]:
                    raise DataError(f"{where}: no Patient ID, which keeps a patient in one split. Add it.")
                entries[stem] = _Entry(labels, row["Patient ID"])
        return entries

    def _add_boxes(self, entries: dict[str, _Entry | None], on_error: OnError) -> None:
        """Read the list of boxes and add each to its image."""
        file = self.root / _BOXES
        (_, header), *rows = csv_rows(file)
        # The official header writes "Bbox [x,y,w,h]" without quotes, which makes four cells, and ends in empty ones.
        plain = [*header[:2], *(f"Bbox {re.sub(r'bbox|[][ ]', '', cell.lower())}" for cell in header[2:6])]
        if plain != list(_BOX_COLUMNS):
            raise DataError(
                f"{file}: its columns are {', '.join(header)!r}. Expected {', '.join(_BOX_COLUMNS)}. Copy it again."
            )
        for where, row in rows:
            with collect_errors(on_error):
                if len(row) < len(_BOX_COLUMNS) or any(row[len(_BOX_COLUMNS) :]):
                    raise DataError(f"{where}: {','.join(row)!r} is not an image, a finding and 4 numbers. Correct it.")
                name = relative_name(row[0], where)
                where = f"{where} ({name})"
                if _stem(name) not in entries:
                    raise DataError(
                        f"{where}: a box for an image that {self.table.name} lacks. Take files of one release."
                    )
                finding = known_finding(row[1], where)
                box = box_from_xywh(numbers(row[2:6], where), ORIGINAL, where)
                entry = entries[_stem(name)]
                if entry is not None:
                    if finding not in entry.labels:
                        raise DataError(
                            f"{where}: a box of {finding}, but {self.table.name} labels the image "
                            f"{'|'.join(sorted(entry.labels))}. Correct the label or remove the box."
                        )
                    entry.boxes.append(box)
                    entry.categories.append(FINDINGS.index(finding) + 1)

    def _list(self, split: str) -> Path:
        return self.root / _LISTS[split]

    def _listed(self, split: str, entries: dict[str, _Entry | None], on_error: OnError) -> list[str]:
        """Read the stems of a list, each in the table, unique and not in the other list."""
        file = self._list(split)
        other = self._list("test" if split == "train" else "train")
        here = {_stem(line.strip()) for line in read_text(file).splitlines()}
        elsewhere = {_stem(line.strip()) for line in read_text(other).splitlines()} if other.is_file() else set()
        there = {entry.patient for stem in elsewhere - here if (entry := entries.get(stem)) is not None}
        seen: dict[str, int] = {}
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            if not line.strip():
                continue
            with collect_errors(on_error):
                where = f"{file}, line {number}"
                name = relative_name(line.strip(), where)
                stem = _stem(name)
                if stem in seen:
                    raise DataError(
                        f"{where}: {name} is a duplicate of line {seen[stem]}. Remove one of the two lines."
                    )
                if stem not in entries:
                    raise DataError(
                        f"{where}: {name} has no row in {self.table.name}. Take list and table of one release."
                    )
                if stem in elsewhere:
                    raise DataError(f"{where}: {name} is in {other.name} too. Remove it from one of the two lists.")
                entry = entries[stem]
                if entry is not None and entry.patient in there:
                    raise DataError(
                        f"{where}: patient {entry.patient} of {name} is in {other.name} too, so test would not be of "
                        "other patients. Take the official lists, or move the patient to one of them."
                    )
                seen[stem] = number
        return list(seen)


def known_finding(text: str, where: str) -> str:
    """Find the name of a finding that has boxes.

    Args:
        text: As a list or folder spells it; "Infiltrate" is "Infiltration".
        where: File and entry, for the message.

    Returns:
        One of `FINDINGS`.

    Raises:
        DataError: It is none of them.
    """
    finding = _SPELLINGS.get(text, text)
    if finding not in FINDINGS:
        raise DataError(f"{where}: finding {text!r} is unknown. Known are {', '.join(FINDINGS)}. Correct it.")
    return finding


def _stem(name: str) -> str:
    """The name without the ending of an image file."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in ENDINGS else name


def _labels(text: str, where: str) -> list[str]:
    """The finding labels of one image, each known."""
    labels = [label.strip() for label in text.split("|")]
    known = (*FINDINGS, *OTHER_FINDINGS, NO_FINDING)
    for label in labels:
        if label not in known:
            raise DataError(f"{where}: finding label {label!r} is unknown. Known are {', '.join(known)}. Correct it.")
    if NO_FINDING in labels and len(labels) > 1:
        raise DataError(f"{where}: Finding Labels {text!r} contradicts itself: {NO_FINDING} stands alone. Correct it.")
    return labels
