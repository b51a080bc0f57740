"""Find the dataset below a folder and read one of its splits into records."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tbkd_utils.data.manifest import Manifest
from tbkd_utils.data.readers import READERS, Reader
from tbkd_utils.data.readers.reader import missing_parts
from tbkd_utils.data.records import OnError, Radiograph
from tbkd_utils.errors import DataError

_WITHOUT_FINDING = ("health", "no_tb", "normal", "no_finding")
"""Kinds of radiographs without any finding, in the datasets' own words; RSNA's "no_pneumonia" may show another."""


def read_dataset(
    root: str | Path, split: str, partial: bool = False, readers: Sequence[type[Reader]] = READERS
) -> list[Radiograph]:
    """Read one split of a dataset on disk; no image is decoded.

    TBX11K as published, which the paper uses, has the splits "train", "val" and "trainval" (the official lists), and
    "extra_train" and "extra_val" (image labels only, no boxes). Kaggle's "tbx11k-simplified" has "train", "val" and
    "trainval". Images without a box are kept.

    Args:
        root: The dataset's folder, or the folder that holds it under its usual name, such as ``TBX11K/``.
        split: The split's name.
        partial: Accept a copy in which files are absent, and leave those out.
        readers: The layouts that are tried.

    Returns:
        The radiographs in the order of the dataset's list (extra images: by path). Boxes overshooting the
        image by less than a pixel are clipped.

    Raises:
        DataError: The root is absent or not a dataset; the split is unknown or empty; files are absent and
            ``partial`` is not set, or none is left; lists, JSON or CSV are malformed, contradict each other,
            or hold a bad box.
    """
    layout = find_layout(root, readers)
    if split not in layout.splits():
        raise DataError(
            f"{layout.root}: there is no split {split!r}. This {layout.name} copy has: "
            f"{', '.join(layout.splits()) or 'none'}. Name one of these."
        )
    records = split_records(layout, split, _raise)
    present = [record for record in records if record.present]
    if len(present) < len(records) and not (partial and present):
        _refuse_partial(layout.root, split, records, present, partial)
    return present


def read_negatives(folder: str | Path, readers: Sequence[type[Reader]] = READERS) -> list[Radiograph]:
    """Read the radiographs of a dataset that it says are without any finding, as negatives of another dataset.

    Args:
        folder: The dataset's folder, of any layout that is known.
        readers: The layouts that are tried.

    Returns:
        One record per radiograph that is present: target 0, no boxes, its name below the dataset's.

    Raises:
        DataError: As `read_dataset`, or no radiograph is without finding.
    """
    layout = find_layout(folder, readers)
    found = {}  # by file: splits may overlap
    for split in layout.splits():
        for record in read_dataset(folder, split, partial=True, readers=readers):
            target = record.target if isinstance(record.target, tuple) else (record.target,)
            if not any(target) and not len(record.boxes) and record.kind in _WITHOUT_FINDING:
                found[record.path] = replace(record, target=0, name=f"{layout.name}/{record.name}", masks=())
    if not found:
        raise DataError(f"{folder}: no radiograph of this {layout.name} copy is without finding.")
    return list(found.values())


def find_layout(root: str | Path, readers: Sequence[type[Reader]] = READERS) -> Reader:
    """Recognize the dataset layout of a folder.

    Args:
        root: The dataset's folder, or the folder that holds it under its usual name.
        readers: The layouts that are tried.

    Returns:
        The layout, at the folder where it was found.

    Raises:
        DataError: The folder is absent, holds no known layout, or holds two.
    """
    root = Path(root)
    if not root.is_dir():
        what = "this is a file, not a folder" if root.exists() else "no such folder"
        raise DataError(f"{root}: {what}. Give the folder that holds the dataset.")
    for layout in readers:
        if not missing_parts(layout, root):
            return layout(root)
    nested = [layout(root / layout.name) for layout in readers if not missing_parts(layout, root / layout.name)]
    if len(nested) == 1:
        return nested[0]
    if nested:
        raise DataError(f"{root}: holds {' and '.join(n.name for n in nested)}. Give one of these folders.")
    looked = "; ".join(
        f"{layout.name}: needs {' and '.join(layout.needs)}, missing {' and '.join(missing_parts(layout, root))}"
        for layout in readers
    )
    raise DataError(
        f"{root}: not a dataset. Looked for {looked}; also inside {' and '.join(x.name for x in readers)}. "
        "Give the folder that holds these."
    )


def split_records(layout: Reader, split: str, on_error: OnError) -> list[Radiograph]:
    """List everything that a split names, present on disk or not.

    Args:
        layout: From `find_layout`.
        split: One of the layout's splits.
        on_error: Called with each bad entry; if it returns, that entry is left out.

    Returns:
        The radiographs in the order of the dataset's list.

    Raises:
        DataError: A file of the dataset cannot be read as a whole.
    """
    records = layout.records(split, on_error)
    if not records:
        on_error(DataError(f"{layout.root}: split '{split}' is empty. Complete its list or folder."))
    return records


def require_classes(records: Iterable[Radiograph], split: str, classes: Sequence[str]) -> None:
    """Refuse a split from which a class cannot be learned or measured, because it is not there.

    Args:
        records: The split's radiographs.
        split: Its name, for the message.
        classes: Names of the classes, in the order of the targets.

    Raises:
        DataError: A class has no radiograph, or a target is no index of a class.
    """
    counts = Counter[int]()
    for record in records:
        target = record.target
        found = [i for i, entry in enumerate(target) if entry] if isinstance(target, tuple) else [target]
        if (isinstance(target, tuple) and len(target) != len(classes)) or max(found, default=0) >= len(classes):
            raise DataError(f"{record.path}: target {target} does not fit the classes {', '.join(classes)}.")
        counts.update(found)
    if any(not counts[index] for index in range(len(classes))):
        there = ", ".join(f"{counts[index]} {name}" for index, name in enumerate(classes))
        raise DataError(
            f"split '{split}' has {there} radiographs; every class is needed here. Complete the dataset's copy, or "
            "add a split that has the other class."
        )


def fingerprint(records: Iterable[Radiograph], manifest: Manifest | None = None) -> str:
    """Digest what a dataset says and shows, so that a changed dataset under the same name is noticed.

    The place of the dataset on disk does not matter; the order of the records does.

    Args:
        records: Radiographs whose files are present.
        manifest: The digests that are known already; it is added to, and saved.

    Returns:
        64 hexadecimal digits: SHA-256 over name, target, boxes and file content (masks too) of each record.

    Raises:
        DataError: A file cannot be read.
    """
    manifest = manifest if manifest is not None else Manifest()
    total = hashlib.sha256()
    for record in records:
        said = [record.name, record.target, record.boxes.astype("<f4").tobytes().hex()]
        total.update(json.dumps(said + ([record.group] if record.group else [])).encode() + b"\n")
        for file in (record.path, *record.masks):
            total.update(bytes.fromhex(manifest.digest(file)))
    manifest.save()
    return total.hexdigest()


def byte_identical(records: Sequence[Radiograph], manifest: Manifest | None = None) -> list[tuple[Radiograph, ...]]:
    """Find radiographs whose files are the same, byte for byte.

    Args:
        records: Radiographs whose files are present.
        manifest: The digests that are known already; it is added to, and saved.

    Returns:
        Groups of two or more, in the order of their first member; members in the order of ``records``.

    Raises:
        DataError: A file cannot be read.
    """
    by_size: dict[int, list[Radiograph]] = defaultdict(list)
    for record in records:
        try:
            by_size[record.path.stat().st_size].append(record)
        except OSError as error:
            raise DataError(f"{record.path}: cannot be read ({error.strerror}). Restore it.") from error
    manifest = manifest if manifest is not None else Manifest()
    groups: dict[tuple[int, str], list[Radiograph]] = defaultdict(list)
    for size, candidates in by_size.items():
        if len(candidates) > 1:  # a file of unique size has no twin and is not read
            for record in candidates:
                groups[size, manifest.digest(record.path)].append(record)
    manifest.save()
    position = {id(record): number for number, record in enumerate(records)}
    found = [tuple(group) for group in groups.values() if len(group) > 1]
    return sorted(found, key=lambda group: position[id(group[0])])


def _raise(error: DataError) -> None:
    raise error


def _refuse_partial(
    root: Path, split: str, records: list[Radiograph], present: list[Radiograph], partial: bool
) -> None:
    named = Counter(record.kind for record in records)
    there = Counter(record.kind for record in present)
    counts = "; ".join(f"{kind}: {there[kind]} present, {named[kind] - there[kind]} absent" for kind in named)
    first = next(record.path for record in records if not record.present)
    advice = (
        "Not one radiograph is left, so partial=True does not help: complete the copy."
        if partial or not present
        else "Complete the copy, or accept it as it is with partial=True (recipe setting partial)."
    )
    raise DataError(
        f"{root}: {len(records) - len(present)} of the {len(records)} radiographs that split '{split}' names "
        f"are absent ({counts}); the first is {first}. {advice}"
    )
