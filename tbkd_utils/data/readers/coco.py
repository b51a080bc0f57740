"""Read boxes from COCO-style JSON files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tbkd_utils.data.records import OnError, box_from_xywh, checked_size, collect_errors, read_text, relative_name
from tbkd_utils.errors import DataError


@dataclass
class Annotated:
    """What a COCO-style file says about one image.

    Attributes:
        size: (width, height) in pixels.
        boxes: Each float32 (4,), xyxy in pixels.
        categories: The id of each box's category.
    """

    size: tuple[int, int]
    boxes: list[np.ndarray] = field(default_factory=list)
    categories: list[int] = field(default_factory=list)


def read_coco(file: Path, categories: Mapping[int, str], on_error: OnError) -> dict[str, Annotated]:
    """Read a COCO-style file.

    Args:
        file: Such as ``annotations/json/TBX11K_train.json``; its boxes are [left, top, width, height] in
            pixels.
        categories: Those that may occur, by id.
        on_error: Called with each bad entry; if it returns, that entry is left out.

    Returns:
        Image name relative to ``imgs/`` -> size, boxes and categories.

    Raises:
        DataError: The file is absent, not JSON, or lacks one of its lists.
    """
    text = read_text(file)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}). Correct it, "
            "or copy the file again."
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, endless nesting
        raise DataError(f"{file}: not usable JSON ({error}). Copy the file again.") from error
    for category in _entries(content, "categories", file):
        with collect_errors(on_error):
            number, name = _values(category, ("id", "name"), f"{file}, categories")
            if type(number) is not int or categories.get(number) != name:
                raise DataError(
                    f"{file}: category {number!r} named {name!r} is unknown. Known are {categories}. Renumber it."
                )

    annotated: dict[str, Annotated] = {}
    names: dict[int, str] = {}  # image id -> name
    refused: set[int] = set()  # ids of bad image entries, not to be reported again by each of their boxes
    for index, entry in enumerate(_entries(content, "images", file)):
        where = f"{file}, images[{index}]"
        with collect_errors(on_error):
            number, said = _values(entry, ("id", "file_name"), where)
            if type(number) is not int or not isinstance(said, str):
                raise DataError(f"{where}: id must be a whole number and file_name a text. Correct the entry.")
            refused.add(number)
            name = relative_name(said, where)
            if number in names or name in annotated:
                raise DataError(f"{where}: a duplicate: id {number} or {name} came before. Remove one.")
            width, height = _values(entry, ("width", "height"), where)
            size = checked_size(width, height, f"{where} ({name})")
            names[number], annotated[name] = name, Annotated(size)
            refused.discard(number)

    for index, entry in enumerate(_entries(content, "annotations", file)):
        where = f"{file}, annotations[{index}]"
        with collect_errors(on_error):
            number, category, xywh = _values(entry, ("image_id", "category_id", "bbox"), where)
            if type(number) is int and number in refused:
                continue
            if type(number) is not int or number not in names:
                raise DataError(f"{where}: image_id {number!r} is not among the images. Correct or remove it.")
            name = names[number]
            where = f"{where} ({name})"
            if type(category) is not int or category not in categories:
                raise DataError(f"{where}: category_id {category!r} is unknown. Known are {categories}. Correct it.")
            annotated[name].boxes.append(box_from_xywh(xywh, annotated[name].size, where))
            annotated[name].categories.append(category)
    return annotated


def _entries(content: Any, key: str, file: Path) -> list[Any]:
    """Get one of the lists of a COCO-style file."""
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise DataError(
            f"{file}: the key {key!r} with a list is missing. Expected a COCO-style file with the keys "
            "images, annotations and categories."
        )
    return content[key]


def _values(entry: Any, keys: tuple[str, ...], where: str) -> list[Any]:
    """Get the values of an entry's keys."""
    missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise DataError(f"{where}: missing {', '.join(map(repr, missing))}. Complete the entry.")
    return [entry[key] for key in keys]
