"""Read findings by folder, with one list of test images and one of their boxes.

The layout is that of the source of "Weakly supervised chest X-ray abnormality localization with non-linear modulation
and foreground control" (Wang et al., Scientific Reports 2024).
"""

import filecmp
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from tbkd_utils.data.readers.nih import CATEGORIES, ENDINGS, FINDINGS, known_finding
from tbkd_utils.data.readers.reader import Reader
from tbkd_utils.data.readers.scaled import scaled_to_stored
from tbkd_utils.data.records import OnError, Radiograph, checked_size, collect_errors, read_text, relative_name
from tbkd_utils.errors import DataError

LIST, BOXES = "test_list.txt", "test_gt.txt"
"""The lists of test images, ``Class/x.png;Class``, and of their boxes, ``Class/x.png w h;x0 y0 x1 y1``."""
# The source's training wants blanks around the semicolon, its inference none: both are read.
_BOX_LINE = re.compile(r"(?P<name>\S.*?)\s+(?P<size>\d+\s+\d+)\s*;\s*(?P<box>.*\S)")
_PATIENT = re.compile(r"\d{8}")


@dataclass
class _Image:
    """An image, under each of its findings."""

    patient: str
    files: dict[str, Path] = field(default_factory=dict)  # by finding


@dataclass
class _Boxes:
    """The boxes of one file, xyxy in pixels of an image of the stated size; no size if all lines were refused."""

    size: tuple[int, int] | None = None
    lines: dict[tuple[float, ...], int] = field(default_factory=dict)  # box to the number of its line


class Sr(Reader):
    """The layout of the source of the paper below one folder.

    ``train/<finding>/x.png`` and ``test/<finding>/x.png`` (or ``val/``, if there is no ``test/``) give the labels. The
    source counts a file in two folders as two images of one label each; here they are one radiograph with both labels,
    which `labels.once_per_finding` takes apart again. All boxes of a file are kept, where the source keeps the last.
    They are matched by name, where the source's training pairs the two lists line by line.

    Args:
        root: The folder that holds ``train/``, ``test_list.txt`` and ``test_gt.txt``.
    """

    name = "sr"
    needs = ("train/", LIST, BOXES)
    kinds = ("finding",)
    categories = CATEGORIES

    def __init__(self, root: Path) -> None:
        self.root = root
        self.test = root / ("test" if (root / "test").is_dir() or not (root / "val").is_dir() else "val")

    def splits(self) -> tuple[str, ...]:
        """Name the splits of this layout.

        Returns:
            "train" and "test".
        """
        return ("train", "test")

    listed_splits = splits

    def records(self, split: str, on_error: OnError) -> list[Radiograph]:
        """List the radiographs of a split, whether their files are present or not.

        Args:
            split: One of `splits`.
            on_error: Called with each bad line, folder or file; if it returns, that entry is left out.

        Returns:
            One record per image, sorted by finding and name ("test": in the order of the list). The target has a 0 or 1
            for each of `nih.FINDINGS`, the group is the patient, the first 8 digits of the name. Boxes ("test" only)
            are in pixels of the stored image; of the size that their line states if the image is absent.

        Raises:
            DataError: A list or folder cannot be read as a whole.
        """
        if split == "train":
            names = self._names_in(self.root / "train", on_error)
            images = _joined(self.root / "train", names, on_error)
            return [self._record(image, {}) for image in images.values()]
        listed = self._listed(on_error)
        boxes = self._boxes(listed, on_error)
        known = self._with_boxes(listed, boxes, on_error)
        # What the training images themselves have wrong is said when they are read.
        trained = {PurePosixPath(name).stem for name in self._names_in(self.root / "train", lambda error: None)}
        records = []
        for stem, image in _joined(self.test, known, on_error).items():
            with collect_errors(on_error):
                if stem in trained:
                    raise DataError(f"{self.test}: {stem} is in train too, so test is no test. Remove it from one.")
                records.append(self._record(image, boxes))
        return records

    def _record(self, image: _Image, boxes: dict[Path, _Boxes]) -> Radiograph:
        path = next((file for file in image.files.values() if file.is_file()), next(iter(image.files.values())))
        found: list[np.ndarray] = []
        categories: list[int] = []
        stated: set[tuple[int, int]] = set()
        for finding, file in image.files.items():
            of_file = boxes.get(file)
            if of_file is not None and of_file.size is not None:
                found += [np.array(box) for box in of_file.lines]
                categories += [FINDINGS.index(finding) + 1] * len(of_file.lines)
                stated.add(of_file.size)
        if len(stated) > 1:
            raise DataError(f"{self.root / BOXES} ({path.name}): states the sizes {sorted(stated)}. Correct the lines.")
        scaled, size = scaled_to_stored(found, path, *stated)
        return Radiograph(
            path=path,
            target=tuple(int(finding in image.files) for finding in FINDINGS),
            boxes=scaled,
            source="SR",
            name=path.relative_to(self.root).as_posix(),
            kind="finding",
            categories=tuple(categories),
            size=size,
            group=image.patient,
        )

    def _names_in(self, folder: Path, on_error: OnError) -> list[str]:
        """The images in the finding folders of a split, as ``Class/x.png``."""
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder. Expected one folder in it for each finding: complete the copy.")
        names: list[str] = []
        for place in sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
            with collect_errors(on_error):
                known_finding(place.name, str(place))
                names += [
                    f"{place.name}/{file.name}"
                    for file in sorted(place.iterdir())
                    if file.suffix.lower() in ENDINGS and not file.name.startswith(".")
                ]
        return names

    def _listed(self, on_error: OnError) -> list[str]:
        """The test images as the list names them, each once; it and the folder have to agree."""
        seen: dict[str, int] = {}
        for number, where, line in _lines(self.root / LIST):
            with collect_errors(on_error):
                said, *label = (part.strip() for part in line.split(";"))
                name, finding = _finding_and_name(said, where)
                if len(label) != 1 or known_finding(label[0], where) != finding:
                    raise DataError(f"{where}: {line!r} is not Class/x.png;Class with one class. Correct the line.")
                if name in seen:
                    raise DataError(f"{where}: {name} is a duplicate of line {seen[name]}. Remove one of the two.")
                seen[name] = number
        for name in self._names_in(self.test, on_error):
            if name not in seen:
                on_error(DataError(f"{self.test / name}: not in {LIST}. Add a line for it, or remove the image."))
        return list(seen)

    def _boxes(self, listed: list[str], on_error: OnError) -> dict[Path, _Boxes]:
        """The boxes of each test image, by its file."""
        boxes: dict[Path, _Boxes] = {}
        for number, where, line in _lines(self.root / BOXES):
            with collect_errors(on_error):
                parts = _BOX_LINE.fullmatch(line)
                if parts is None:
                    raise DataError(f"{where}: {line!r} is not 'Class/x.png w h;x0 y0 x1 y1'. Correct the line.")
                name, _ = _finding_and_name(parts["name"], where)
                if name not in listed:
                    raise DataError(f"{where}: {name} is not in {LIST}. Take both lists of one release.")
                of_file = boxes.setdefault(self.test / name, _Boxes())
                width, height = map(int, parts["size"].split())
                size = checked_size(width, height, where)
                if of_file.size not in (None, size):
                    raise DataError(
                        f"{where}: size {size}, but {of_file.size} in an earlier line of {name}. Correct it."
                    )
                box = _box(parts["box"], size, where)
                if box in of_file.lines:
                    raise DataError(f"{where}: the same box as in line {of_file.lines[box]}. Remove one of the two.")
                of_file.size = size
                of_file.lines[box] = number
        return boxes

    def _with_boxes(self, listed: list[str], boxes: dict[Path, _Boxes], on_error: OnError) -> list[str]:
        """Those of the list that have a line in the list of boxes."""
        for name in listed:
            if self.test / name not in boxes:
                on_error(DataError(f"{self.root / BOXES}: no box for {name}, which {LIST} names. Add its line."))
        return [name for name in listed if boxes.get(self.test / name, _Boxes()).size is not None]


def _lines(file: Path) -> Iterator[tuple[int, str, str]]:
    """Number, place and text of each line of a list that is not blank."""
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if line.strip():
            yield number, f"{file}, line {number}", line.strip()


def _finding_and_name(text: str, where: str) -> tuple[str, str]:
    """The name ``Class/x.png`` in normal form, and its finding."""
    name = relative_name(text, where)
    place, *rest = PurePosixPath(name).parts
    if len(rest) != 1:
        raise DataError(f"{where}: {text!r} is not Class/x.png. Correct the line.")
    return name, known_finding(place, where)


def _box(text: str, size: tuple[int, int], where: str) -> tuple[float, ...]:
    """The four numbers of a box, xyxy in pixels, inside its image."""
    try:
        x0, y0, x1, y1 = map(float, text.split())
    except ValueError as error:
        raise DataError(f"{where}: box {text!r} is not four numbers (x0 y0 x1 y1). Correct it.") from error
    if not (0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]):  # true for NaN too
        raise DataError(
            f"{where}: box {text!r} (x0 y0 x1 y1) does not lie in its {size[0]}x{size[1]} image: expected "
            f"0 <= x0 < x1 <= {size[0]} and 0 <= y0 < y1 <= {size[1]}. Correct or remove it."
        )
    return x0, y0, x1, y1


def _joined(folder: Path, names: Iterable[str], on_error: OnError) -> dict[str, _Image]:
    """Images by stem, each with the files of all its findings, which must be the same."""
    images: dict[str, _Image] = {}
    for name in names:
        with collect_errors(on_error):
            file = folder / name
            patient = _PATIENT.match(file.stem)
            if patient is None:
                raise DataError(
                    f"{file}: the name tells no patient. Expected 8 digits first, as in 00000001_000.png. Rename the "
                    "file, so that images of one patient stay on one side of a split."
                )
            image = images.setdefault(file.stem, _Image(patient[0]))
            finding = known_finding(file.parent.name, str(file))
            for earlier, other in image.files.items():
                if earlier == finding:
                    raise DataError(f"{file}: a duplicate of {other}. Remove one of the two.")
                if file.is_file() and other.is_file() and not filecmp.cmp(file, other):
                    raise DataError(f"{file}: another picture than {other}, of the same name. Rename one of the two.")
            image.files[finding] = file
    return images
