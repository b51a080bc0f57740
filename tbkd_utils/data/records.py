"""One image on disk as the rest of the package knows it: a path, a target, boxes, masks and a patient, all checked."""

import os.path
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from tbkd_utils.errors import DataError

OnError = Callable[[DataError], None]
"""What a reader does with bad data: raise it (`read_dataset`) or note it and go on (`check_dataset`)."""


@contextmanager
def collect_errors(on_error: OnError) -> Iterator[None]:
    """Hands the error of one entry to ``on_error``; if that returns, goes on after the block.

    Args:
        on_error: Raises or notes the error.
    """
    try:
        yield
    except DataError as error:
        on_error(error)


@dataclass(frozen=True, eq=False)
class Radiograph:
    """One radiograph of a dataset; the pixels stay on disk.

    Two radiographs are equal when all their fields are; they hash, so they can be put in a set.

    Attributes:
        path: The image file.
        target: The index of its class, at least 0; where any number of classes may hold, a 0 or 1 for each.
        boxes: float32 (k, 4), xyxy in pixels of the stored image, right and bottom exclusive; k may be 0.
        source: The collection it comes from, such as "TBX11K" or "Shenzhen".
        name: Path relative to the dataset's image folder, with forward slashes; the file name if left out.
        kind: What is known of it beyond its class, in the dataset's own word, such as "sick" or "viral".
        categories: The dataset's category of each box; empty if unknown.
        size: (width, height) in pixels that the annotations state, or None; the file itself was not opened.
        group: The patient, so that splits can keep each on one side; empty if unknown.
        masks: Files of its masks, white where the finding is: one, or one of each reader.
    """

    path: Path
    target: int | tuple[int, ...]
    boxes: np.ndarray
    source: str
    name: str = ""
    kind: str = ""
    categories: tuple[int, ...] = ()
    size: tuple[int, int] | None = None
    group: str = ""
    masks: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, dtype=np.float32)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{self.path}: boxes must be (k, 4), got {boxes.shape}")
        targets = self.target if isinstance(self.target, tuple) else (self.target,)
        if not targets or any(type(entry) is not int or entry < 0 for entry in targets):
            raise ValueError(f"{self.path}: target must be a class index or a tuple of 0 and 1, got {self.target!r}")
        if isinstance(self.target, tuple) and max(self.target) > 1:
            raise ValueError(f"{self.path}: a target of several classes must hold 0 and 1, got {self.target!r}")
        if self.categories and len(self.categories) != len(boxes):
            raise ValueError(f"{self.path}: {len(self.categories)} categories for {len(boxes)} boxes")
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "name", self.name or self.path.name)

    @property
    def present(self) -> bool:
        """Whether the image file is on disk now."""
        return os.path.isfile(self.path)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Radiograph):
            return NotImplemented
        return self._plain() == other._plain() and np.array_equal(self.boxes, other.boxes)

    def __hash__(self) -> int:
        return hash(self._plain())

    def _plain(self) -> tuple:
        return (
            self.path, self.target, self.source, self.name, self.kind, self.categories, self.size, self.group,
            self.masks
        )  # fmt: skip


def box_from_xywh(xywh: object, size: tuple[int, int], where: str) -> np.ndarray:
    """Turn an annotated box into the package's form, or refuse it.

    A box that overshoots the image by less than one pixel is a rounding matter and is clipped to the image.

    Args:
        xywh: Four numbers: left, top, width, height in pixels.
        size: (width, height) of the image in pixels.
        where: File and entry, for the message.

    Returns:
        float32 (4,), xyxy, inside the image, of positive area.

    Raises:
        DataError: Not four numbers; NaN or infinite; width or height not positive (an inverted box);
            one pixel or more outside the image; nothing left after clipping.
    """
    if not isinstance(xywh, list | tuple) or len(xywh) != 4 or any(type(v) not in (int, float) for v in xywh):
        raise DataError(f"{where}: box {xywh!r} is not four numbers (left, top, width, height). Correct it.")
    if not all(abs(v) <= sys.float_info.max for v in xywh):  # false for NaN too
        raise DataError(f"{where}: box {xywh} holds NaN or infinity. Correct or remove it.")
    x, y, w, h = xywh
    if w <= 0 or h <= 0:
        raise DataError(
            f"{where}: box {xywh} is empty or inverted: width and height must be positive (the form is left, "
            "top, width, height). Correct or remove it."
        )
    if max(-x, -y, x + w - size[0], y + h - size[1]) >= 1:
        raise DataError(
            f"{where}: box {xywh} (left, top, width, height) lies outside its {size[0]}x{size[1]} image. Are "
            "box and image on the same scale? Correct or remove it."
        )
    box = np.clip(np.array([x, y, x + w, y + h]), 0, [*size, *size]).astype(np.float32)
    if box[2] <= box[0] or box[3] <= box[1]:
        raise DataError(f"{where}: nothing of box {xywh} lies inside its image. Correct or remove it.")
    return box


def checked_size(width: object, height: object, where: str) -> tuple[int, int]:
    """Check the stated width and height of an image.

    Args:
        width: In pixels.
        height: In pixels.
        where: File and entry, for the message.

    Returns:
        (width, height).

    Raises:
        DataError: One of them is not a positive whole number.
    """
    if type(width) is int and type(height) is int and width > 0 and height > 0:
        return width, height
    raise DataError(f"{where}: image size {width!r} x {height!r} is not two positive whole numbers. Correct it.")


def relative_name(text: str, where: str) -> str:
    """Check a file name that a dataset gives relative to its image folder.

    Args:
        text: Such as ``tb/tb0005.png``.
        where: File and entry, for the message.

    Returns:
        The name in normal form: forward slashes, no ``./``.

    Raises:
        DataError: The name is empty, absolute, or leads out of the image folder.
    """
    path = PurePosixPath(text)
    foreign = any(c in text for c in "\\:\0")
    if foreign or path.is_absolute() or ".." in path.parts or not path.parts:
        raise DataError(f"{where}: {text!r} is not a path inside the image folder. Use forward slashes and no '..'.")
    return str(path)


def read_text(file: Path) -> str:
    """Read a text file of a dataset as UTF-8, with or without a byte-order mark.

    Args:
        file: A list, JSON or CSV file.

    Returns:
        Its text.

    Raises:
        DataError: The file is absent, not readable, or not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}). Complete the dataset's copy.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error.reason}). Save it as UTF-8.") from error
