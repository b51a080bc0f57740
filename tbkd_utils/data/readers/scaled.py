"""What readers share whose boxes count pixels of originals, such as 1024x1024, while a copy may hold smaller images."""

import csv
import io
import os.path
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tbkd_utils.data.images import FORMATS
from tbkd_utils.data.records import checked_size, read_text
from tbkd_utils.errors import DataError

ORIGINAL = (1024, 1024)
"""(width, height) of the image that the boxes refer to."""
_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, OverflowError, AttributeError,
           RuntimeError, struct.error, Image.DecompressionBombError)  # fmt: skip


def scaled_to_stored(
    boxes: Sequence[np.ndarray], path: Path, original: tuple[int, int] = ORIGINAL
) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Bring the boxes of one image to the pixels in which it is stored; only the header is read, and only for a box.

    Args:
        boxes: Each (4,) xyxy in pixels of the original.
        path: The image, DICOM if it ends in ``.dcm``; it may be absent.
        original: (width, height) of the original in pixels.

    Returns:
        float32 (k, 4) and the (width, height) to which they refer: the stored size, that of the original if the file
        is absent, None without a box.

    Raises:
        DataError: The file's header cannot be read.
    """
    given = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    if not len(given):
        return given.astype(np.float32), None
    size = stored_size(path) if os.path.isfile(path) else original
    factor = np.array(size) / original
    return (given * np.tile(factor, 2)).astype(np.float32), size


def stored_size(path: Path) -> tuple[int, int]:
    """Read the size of an image from its header.

    Args:
        path: A PNG, JPEG, TIFF or BMP file, or DICOM if it ends in ``.dcm``.

    Returns:
        (width, height) in pixels, as stored.

    Raises:
        DataError: The header is damaged, of another format, or lacks the size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd but harmless, or refused when the pixels are read
            if path.suffix.lower() != ".dcm":
                with Image.open(path, formats=FORMATS) as image:
                    return image.size
            import pydicom  # here, since other layouts do without

            try:
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
                width, height = header.get("Columns"), header.get("Rows")
            except pydicom.errors.InvalidDicomError as error:
                raise DataError(f"{path}: not a DICOM file (the mark DICM is missing). Copy it again.") from error
    except DataError:
        raise
    except _ERRORS as error:
        raise DataError(
            f"{path}: its size cannot be read, which its boxes need ({error}). Copy or download the file again."
        ) from error
    return checked_size(width, height, str(path))


def first_present(folder: Path, stem: str, endings: Sequence[str]) -> Path:
    """Find the file of an image that a copy may hold in another format.

    Args:
        folder: The image folder.
        stem: The image's path inside it, without an ending.
        endings: In the order of preference, with dots.

    Returns:
        The first file that is there; with the first ending if none is.
    """
    paths = [folder / f"{stem}{ending}" for ending in endings]
    return next((path for path in paths if os.path.isfile(path)), paths[0])


def csv_rows(file: Path) -> list[tuple[str, list[str]]]:
    """Read a CSV file.

    Args:
        file: The file.

    Returns:
        (where, cells) for each row that is not blank, the header too; cells are stripped text.

    Raises:
        DataError: The file cannot be read, is empty, or is not CSV.
    """
    reader = csv.reader(io.StringIO(read_text(file)), strict=True)
    try:
        rows = [(f"{file}, line {reader.line_num}", [cell.strip() for cell in row]) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: not valid CSV ({error}). Copy it again.") from error
    if not rows:
        raise DataError(f"{file}: empty. Copy it again.")
    return rows


def csv_columns(file: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Read some columns of a CSV file by the names in its header.

    Args:
        file: The file.
        columns: The names.

    Returns:
        (where, column to value) for each row below the header; a value is stripped text, empty in a short row.

    Raises:
        DataError: As `csv_rows`; or a column is missing.
    """
    (_, header), *rows = csv_rows(file)
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{file}: missing columns {', '.join(missing)}. Expected {', '.join(columns)}. Copy it again.")
    places = {column: header.index(column) for column in columns}
    return [(where, {c: row[i] if i < len(row) else "" for c, i in places.items()}) for where, row in rows]


def numbers(cells: Sequence[str], where: str) -> list[float]:
    """Turn the four cells of a box into numbers.

    Args:
        cells: Left, top, width, height as text.
        where: File and entry, for the message.

    Returns:
        The numbers.

    Raises:
        DataError: One of them is not a number.
    """
    try:
        return [float(cell) for cell in cells]
    except ValueError as error:
        raise DataError(
            f"{where}: box {', '.join(cells)!r} is not four numbers (left, top, width, height). Correct it."
        ) from error
