"""Find the radiographs that a user names, and read one of any format."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tbkd_utils.data.dicom import is_dicom, read_dicom
from tbkd_utils.data.images import read_image
from tbkd_utils.errors import DataError

DICOM_ENDINGS = (".dcm", ".dicom")
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", *DICOM_ENDINGS)
"""Endings of files in a folder that are taken for radiographs; a DICOM file may have any name."""
LONGEST_NAME = 220  # bytes; file systems allow 255, of which names made from it take some
LONGEST = 10
"""The longer side of a radiograph, in shorter sides; what exceeds it is a strip or a scan line."""


@dataclass(frozen=True)
class Intake:
    """The files behind what a user named.

    Attributes:
        files: (name, path) of each, sorted by name. Names have forward slashes and are relative to the folder, or to
            the one that several files and folders share.
        problems: (name, reason) of what cannot even be tried.
        others: How many files in the folders are no radiographs.
    """

    files: tuple[tuple[str, Path], ...]
    problems: tuple[tuple[str, str], ...]
    others: int


def read_radiograph(path: str | Path) -> np.ndarray:
    """Read a PNG, JPEG, TIFF, BMP or DICOM file.

    Args:
        path: The file. It is DICOM by its first bytes or its ending; the others are known by their content alone.

    Returns:
        uint8 (h, w) for gray or (h, w, 3) for color; see `images.read_image` and `dicom.read_dicom`.

    Raises:
        DataError: It cannot be read, or is far too long for its width.
    """
    path = Path(path)
    dicom = is_dicom(path) or (path.suffix.lower() in DICOM_ENDINGS and path.is_file() and path.stat().st_size > 0)
    image = read_dicom(path) if dicom else read_image(path)
    height, width = image.shape[:2]
    if max(height, width) > LONGEST * min(height, width):
        raise DataError(f"{path}: {width} x {height} pixels is no radiograph's shape. Look at the file.")
    return image


def read_listed(path: Path) -> np.ndarray:
    """Read a file that a dataset lists: DICOM by its ending, anything else by `images.read_image`.

    Unlike `read_radiograph`, this opens no image twice.

    Args:
        path: The file.

    Returns:
        uint8 (h, w) for gray or (h, w, 3) for color.

    Raises:
        DataError: It cannot be read.
    """
    return read_dicom(path) if listed_as_dicom(path) else read_image(path)


def listed_as_dicom(path: Path) -> bool:
    """Whether a file that a dataset lists is DICOM, by its ending."""
    return path.suffix.lower() in DICOM_ENDINGS


def picture_name(name: str) -> str:
    """Returns what a PNG made from a file is called: `a/b.png` stays, `a/b.dcm` becomes `a/b.dcm.png`."""
    return name if name.lower().endswith(".png") else f"{name}.png"


def find_radiographs(paths: str | Path | Iterable[str | Path], leave_out: Sequence[Path] = ()) -> Intake:
    """List the files behind files and folders; folders with all that is below them.

    In a folder counts what has one of `ENDINGS` or begins as DICOM does. Hidden files and folders are passed over,
    and so are links to folders, which may lead in a circle. A file that is named itself always counts.

    Args:
        paths: A file, a folder, or several.
        leave_out: Folders that are not looked into.

    Raises:
        DataError: Something does not exist, or there is no radiograph at all.
    """
    given = [Path(os.path.abspath(path)) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    for path in given:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder. Check the name.")
    if not given:
        raise DataError("No file was given: name an image or a folder.")
    base = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in given]))
    skipped = {folder.resolve() for folder in leave_out}
    found: set[Path] = set()
    problems: list[tuple[str, str]] = []
    others = 0

    def unreadable(error: OSError) -> None:
        name = Path(os.path.relpath(error.filename, base)).as_posix()
        problems.append((name, f"the folder cannot be read ({error.strerror}). Change its rights."))

    for path in given:
        if not path.is_dir():
            found.add(path)
            continue
        for where, folders, files in os.walk(path, onerror=unreadable):
            here = Path(where)
            folders[:] = [one for one in folders if not one.startswith(".") and (here / one).resolve() not in skipped]
            for file in (here / one for one in files if not one.startswith(".")):
                if file.suffix.lower() in ENDINGS or (file.name != "DICOMDIR" and is_dicom(file)):
                    found.add(file)
                else:
                    others += 1
    if not found and not problems:
        raise DataError(
            f"{', '.join(map(str, given))}: no radiograph in it ({others} other files). Expected files that end in "
            f"{', '.join(ENDINGS)}, or DICOM files of any name."
        )
    listed: list[tuple[str, Path]] = []
    taken: dict[str, str] = {}  # the name of the picture that is made from a file, to the file's
    for name, file in sorted((file.relative_to(base).as_posix(), file) for file in found):
        shown = name.encode(errors="backslashreplace").decode()
        if shown != name:
            problems.append((shown, "the file's name is not UTF-8 text. Rename it."))
        elif len(file.name.encode()) > LONGEST_NAME:
            problems.append((name, "the file's name is too long to make others from it. Shorten it."))
        elif (other := taken.setdefault(picture_name(name), name)) != name:
            problems.append((name, f"its picture would be called as that of {other}. Rename one of them."))
        else:
            listed.append((name, file))
    return Intake(tuple(listed), tuple(problems), others)
