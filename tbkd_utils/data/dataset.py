"""Find the dataset below a folder and read one of its splits into records."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from tbkd_utils.data.readers.tbx11k import Tbx11k
from tbkd_utils.data.readers.tbx11k_kaggle import Kaggle
from tbkd_utils.data.records import DatasetError, Problem, Radiograph

LAYOUTS = (Tbx11k, Kaggle)


def read_dataset(root: str | Path, split: str, partial: bool = False) -> list[Radiograph]:
    """Read one split of a dataset on disk; no image is decoded.

    Two layouts are recognised. TBX11K as published, which the paper uses, has the splits "train", "val" and
    "trainval" (the official lists), and "extra_train" and "extra_val" (image labels only, no boxes). Kaggle's
    "tbx11k-simplified" has "train", "val" and "trainval". TB images without a box are kept.

    Args:
        root: The dataset's folder, or the folder that holds it as ``TBX11K/`` or ``tbx11k-simplified/``.
        split: The split's name.
        partial: Accept a copy in which files are absent, and leave those out.

    Returns:
        The radiographs in the order of the dataset's list (extra images: by path). Boxes overshooting the
        image by less than a pixel are clipped.

    Raises:
        DatasetError: The root is absent or not a dataset; the split is unknown or empty; files are absent and
            ``partial`` is not set, or none is left; lists, JSON or CSV are malformed, contradict each other,
            or hold a bad box.
    """
    layout = find_layout(root)
    if split not in layout.splits():
        raise DatasetError(
            f"{layout.root}: there is no split {split!r}. This {layout.name} copy has: "
            f"{', '.join(layout.splits()) or 'none (lists/TBX11K_train.txt is missing)'}. Name one of these."
        )
    records = split_records(layout, split, _raise)
    present = [record for record in records if record.present]
    if len(present) < len(records) and not (partial and present):
        _refuse_partial(layout.root, split, records, present, partial)
    return present


def find_layout(root: str | Path) -> Tbx11k | Kaggle:
    """Recognise the dataset layout of a folder.

    Args:
        root: The dataset's folder, or the folder that holds it under its usual name.

    Returns:
        The layout, at the folder where it was found.

    Raises:
        DatasetError: The folder is absent, holds no known layout, or holds two.
    """
    root = Path(root)
    if not root.is_dir():
        what = "this is a file, not a folder" if root.exists() else "no such folder"
        raise DatasetError(f"{root}: {what}. Give the folder that holds the dataset.")
    for layout in LAYOUTS:
        if not layout.missing_parts(root):
            return layout(root)
    nested = [layout(root / layout.name) for layout in LAYOUTS if not layout.missing_parts(root / layout.name)]
    if len(nested) == 1:
        return nested[0]
    if nested:
        raise DatasetError(f"{root}: holds {' and '.join(n.name for n in nested)}. Give one of these folders.")
    looked = "; ".join(
        f"{layout.name}: needs {' and '.join(layout.needs)}, missing {' and '.join(layout.missing_parts(root))}"
        for layout in LAYOUTS
    )
    raise DatasetError(
        f"{root}: not a dataset. Looked for {looked}; also inside {' and '.join(x.name for x in LAYOUTS)}. "
        "Give the folder that holds these."
    )


def split_records(layout: Tbx11k | Kaggle, split: str, problem: Problem) -> list[Radiograph]:
    """List everything that a split names, present on disk or not.

    Args:
        layout: From `find_layout`.
        split: One of the layout's splits.
        problem: Called with each bad entry; if it returns, that entry is left out.

    Returns:
        The radiographs in the order of the dataset's list.

    Raises:
        DatasetError: A file of the dataset cannot be read as a whole.
    """
    records = layout.records(split, problem)
    if not records:
        problem(DatasetError(f"{layout.root}: split '{split}' is empty. Complete its list or folder."))
    return records


def require_both_classes(records: Iterable[Radiograph], split: str) -> None:
    """Refuse a split from which nothing can be learnt or measured because it has one class.

    Args:
        records: The split's radiographs.
        split: Its name, for the message.

    Raises:
        DatasetError: There is no radiograph with label 0, or none with label 1.
    """
    counts = Counter(record.label for record in records)
    if not (counts[0] and counts[1]):
        raise DatasetError(
            f"split '{split}' has {counts[1]} TB and {counts[0]} non-TB radiographs; both classes are needed "
            "here. Complete the dataset's copy, or add a split that has the other class."
        )


def fingerprint(records: Iterable[Radiograph]) -> str:
    """Digest what a dataset says and shows, so that a changed dataset under the same name is noticed.

    The place of the dataset on disk does not matter; the order of the records does.

    Args:
        records: Radiographs whose files are present.

    Returns:
        64 hexadecimal digits: SHA-256 over name, label, boxes and file content of each record.

    Raises:
        DatasetError: A file cannot be read.
    """
    total = hashlib.sha256()
    for record in records:
        said = [record.name, record.label, record.boxes.astype("<f4").tobytes().hex()]
        total.update(json.dumps(said).encode() + b"\n")
        total.update(_file_digest(record.path))
    return total.hexdigest()


def byte_identical(records: Sequence[Radiograph]) -> list[tuple[Radiograph, ...]]:
    """Find radiographs whose files are the same, byte for byte.

    Args:
        records: Radiographs whose files are present.

    Returns:
        Groups of two or more, in the order of their first member; members in the order of ``records``.

    Raises:
        DatasetError: A file cannot be read.
    """
    by_size: dict[int, list[Radiograph]] = defaultdict(list)
    for record in records:
        try:
            by_size[record.path.stat().st_size].append(record)
        except OSError as error:
            raise DatasetError(f"{record.path}: cannot be read ({error.strerror}). Restore it.") from error
    groups: dict[tuple[int, bytes], list[Radiograph]] = defaultdict(list)
    for size, candidates in by_size.items():
        if len(candidates) > 1:  # a file of unique size has no twin and is not read
            for record in candidates:
                groups[size, _file_digest(record.path)].append(record)
    position = {id(record): number for number, record in enumerate(records)}
    found = [tuple(group) for group in groups.values() if len(group) > 1]
    return sorted(found, key=lambda group: position[id(group[0])])


def _raise(error: DatasetError) -> None:
    raise error


def _file_digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}). Restore it.") from error


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
    raise DatasetError(
        f"{root}: {len(records) - len(present)} of the {len(records)} radiographs that split '{split}' names "
        f"are absent ({counts}); the first is {first}. {advice}"
    )
