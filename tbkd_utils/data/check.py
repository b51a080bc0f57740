"""Look at a whole dataset, decode every image, and report what is in it and what is wrong with it."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tbkd_utils.data.dataset import byte_identical, find_layout, split_records
from tbkd_utils.data.files import listed_as_dicom, read_listed
from tbkd_utils.data.images import stored_mode
from tbkd_utils.data.manifest import Manifest
from tbkd_utils.data.readers import READERS, Reader
from tbkd_utils.data.records import Radiograph
from tbkd_utils.errors import TbkdError

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""The quantiles of box area that the report shows."""
DICOM = "DICOM"
"""What stands for the mode of a DICOM file, of which there are too many kinds for a word."""
LONG = 10
"""From how many groups of identical files on the report counts them too."""
_IMAGE_TYPES: dict[str, Any] = {
    "split": str,
    "name": str,
    "source": str,
    "kind": str,
    "target": object,
    "patient": str,
    "present": bool,
    "n_boxes": int,
    "mode": object,
    "width": "Int64",
    "height": "Int64",
}
_BOX_TYPES: dict[str, Any] = {"split": str, "name": str, "category": str, "area_share": float}


@dataclass(frozen=True, eq=False)
class DatasetReport:
    """What `check_dataset` found.

    Attributes:
        root: The folder where the dataset was found.
        layout: How the dataset lies on disk: where and in which form it was found.
        images: One row per radiograph that a split names: split, name, source, kind, target, patient (empty if
            unknown), present, n_boxes, and mode, width, height of the stored image (empty if absent or unreadable).
        boxes: One row per box of a present radiograph: split, name, category (its name),
            area_share (box area as a share of the image's, 0 to 1).
        identical: Groups of (split, name) whose files are the same, byte for byte.
        problems: Everything that has to be mended, one message each.
    """

    root: Path
    layout: Reader
    images: pd.DataFrame
    boxes: pd.DataFrame
    identical: tuple[tuple[tuple[str, str], ...], ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the dataset can be used.

        True without problems. Absent files, byte-identical files and TB images without a box are findings,
        not problems: the first needs ``partial=True``, the others are part of TBX11K as published.
        """
        return not self.problems

    def tables(self) -> dict[str, pd.DataFrame]:
        """Summarize the rows for showing.

        Returns:
            Title -> table: "images" and "absent files" (per split and class), "byte-identical files" (and whether they
            cross from train to val or test), "stored images" (mode and size); "patients" where they are known;
            "duplicates" (counts of the identical files) where their list is long. Where a dataset has boxes: "boxes"
            (per split and category), "box area" (quantiles of the share of the image), "without a box" (where others
            of their kind have one), "boxes of several categories".
        """
        present = self.images[self.images["present"]]
        # A collection without boxes, such as TBX11K's extra images, lacks none.
        boxed = present.groupby(["source", "kind"])["n_boxes"].transform("max") > 0
        boxless = boxed & (present["n_boxes"] == 0)
        stored = present.groupby(["source", "mode", "width", "height"]).size()
        patients = {"patients": _patients_table(present)} if (present["patient"] != "").any() else {}
        boxes = {
            "boxes": _boxes_table(self.boxes, list(self.layout.categories.values())),
            "box area": _area_table(self.boxes),
            "without a box": present.loc[boxless, ["split", "name"]].reset_index(drop=True),
            "boxes of several categories": _both_table(self.boxes),
        }
        long = len(self.identical) >= LONG
        return {
            **patients,
            "images": _images_table(present, self.layout.kinds),
            **(boxes if len(self.boxes) or self.layout.categories else {}),  # some layouts never have any
            **({"duplicates": _duplicates_table(self.identical, self.images)} if long else {}),
            "byte-identical files": _identical_table(self.identical),
            "absent files": _absent_table(self.images),
            "stored images": stored.reset_index(name="images"),
        }


def check_dataset(
    root: str | Path,
    progress: Callable[[int, int], None] | None = None,
    readers: Sequence[type[Reader]] = READERS,
    manifest: Manifest | None = None,
) -> DatasetReport:
    """Check a dataset on disk: every list, every box, every image.

    Problems are collected, not raised. Beside what `read_dataset` refuses, these are problems: an image that
    cannot be decoded, one whose stored size differs from the size its boxes refer to, one radiograph in both
    train and val, identical files under different labels, and a file whose bytes changed under the size and time that
    the manifest notes.

    Args:
        root: As for `read_dataset`.
        progress: Called now and then with (images decoded, images in all).
        readers: The layouts that are tried.
        manifest: The digests of an earlier look; every file is read again, whatever it says.

    Returns:
        The report. The split "trainval" has no rows of its own, since it joins train and val.

    Raises:
        DataError: The root is absent or not a dataset.
    """
    layout = find_layout(root, readers)
    problems: dict[str, None] = {}  # an ordered set: trainval can repeat the messages of train and val

    def note(error: TbkdError | str) -> None:
        problems[str(error)] = None

    listed: dict[str, list[Radiograph]] = {}
    for split in layout.listed_splits():  # what joins others is read with them
        try:
            listed[split] = split_records(layout, split, note)
        except TbkdError as error:
            note(error)
    if not layout.splits():
        note(f"{layout.root}: no split found. Complete the copy.")
    trainval = listed.pop("trainval", None)
    names = {split: {record.name for record in records} for split, records in listed.items()}
    train, val = names.get("train", set()), names.get("val", set())
    for name in sorted(train & val):
        note(f"{layout.root}: {name} is in both train and val, so val is no test. Remove it from one.")
    if trainval is not None and train and val and {record.name for record in trainval} != train | val:
        note(f"{layout.root}: split 'trainval' is not train and val together. Take lists of one release.")

    rows = [(split, record) for split, records in listed.items() for record in records]
    stored = _decode([record for _, record in rows], note, progress)
    images, boxes, readable = [], [], []
    for (split, record), (mode, size) in zip(rows, stored, strict=True):
        present = record.present
        said = (record.name, record.source, record.kind, record.target, record.group, present, len(record.boxes))
        images.append((split, *said, mode, *size))
        if present:
            for box, category in zip(record.boxes, record.categories or [0] * len(record.boxes), strict=True):
                named = layout.categories.get(category, "")
                boxes.append((split, record.name, named, _area_share(box, record)))
        if mode is not None:
            readable.append((split, record))
            if record.size not in (None, size):
                note(
                    f"{record.path}: stored with (width, height) {size}, but the annotations refer to "
                    f"{record.size}, so boxes would be misplaced. Take images and annotations from the same "
                    "release."
                )

    split_of = {id(record): split for split, record in readable}
    manifest = manifest if manifest is not None else Manifest()
    for path in manifest.changed(file for _, record in readable for file in (record.path, *record.masks)):
        note(f"{path}: its bytes changed under the same size and time, so results from before do not belong to it.")
    groups = byte_identical([record for _, record in readable], manifest)
    for group in groups:
        if len({record.target for record in group}) > 1:
            note(f"{' and '.join(str(r.path) for r in group)}: the same file under two labels. Remove the wrong one.")
    return DatasetReport(
        root=layout.root,
        layout=layout,
        images=pd.DataFrame(images, columns=list(_IMAGE_TYPES)).astype(_IMAGE_TYPES),
        boxes=pd.DataFrame(boxes, columns=list(_BOX_TYPES)).astype(_BOX_TYPES),
        identical=tuple(tuple((split_of[id(r)], r.name) for r in group) for group in groups),
        problems=tuple(problems),
    )


def _decode(
    records: list[Radiograph],
    note: Callable[[TbkdError | str], None],
    progress: Callable[[int, int], None] | None,
) -> list[tuple[str | None, tuple[int | None, int | None]]]:
    """Decode every present image into (mode, (width, height)); all None if absent or unreadable."""

    def decode(record: Radiograph) -> tuple[str, tuple[int, int]] | TbkdError | None:
        if not record.present:
            return None
        try:
            height, width = read_listed(record.path).shape[:2]
            return DICOM if listed_as_dicom(record.path) else stored_mode(record.path), (width, height)
        except TbkdError as error:
            return error

    found: list[tuple[str | None, tuple[int | None, int | None]]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the interpreter lock
        for done, result in enumerate(pool.map(decode, records), start=1):
            if isinstance(result, TbkdError):
                note(result)
            found.append(result if isinstance(result, tuple) else (None, (None, None)))
            if progress is not None:
                progress(done, len(records))
    return found


def _area_share(box: np.ndarray, record: Radiograph) -> float:
    """Area of a box as a share of the image that it refers to; every box comes with that image's size."""
    if record.size is None:
        raise ValueError(f"{record.path}: a box without an image size")
    width, height = record.size
    return float((box[2] - box[0]) * (box[3] - box[1])) / (width * height)


def _images_table(present: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """Count present radiographs per split, source and class."""
    counts = pd.crosstab([present["split"], present["source"]], present["kind"])
    kinds = [*(kind for kind in order if kind in counts), *(kind for kind in counts if kind not in order)]
    counts = counts.reindex(columns=kinds).assign(total=counts.sum(axis=1))
    counts.columns.name = None
    return _in_order(counts.reset_index(), present)


def _patients_table(present: pd.DataFrame) -> pd.DataFrame:
    """Count patients per split, and those of them that are in another split too."""
    named = present[present["patient"] != ""]
    splits = named.groupby("patient")["split"].nunique()
    crossing = named["patient"].map(splits) > 1
    counts = named.groupby("split", sort=False)["patient"].nunique().rename("patients")
    both = named[crossing].groupby("split")["patient"].nunique().rename("in another split too")
    table = pd.concat([counts, both], axis=1).fillna(0).astype(int).rename_axis("split").reset_index()
    return _in_order(table, named)


def _boxes_table(boxes: pd.DataFrame, categories: Sequence[str]) -> pd.DataFrame:
    """Count boxes per split and category."""
    counts = pd.crosstab(boxes["split"], boxes["category"])
    if categories:
        counts = counts.reindex(columns=list(categories), fill_value=0)
    counts = counts.assign(total=counts.sum(axis=1))
    counts.columns.name = None
    return _in_order(counts.reset_index(), boxes)


def _area_table(boxes: pd.DataFrame) -> pd.DataFrame:
    """Quantiles of box area, one column per split and one for all."""
    columns = {split: boxes.loc[boxes["split"] == split, "area_share"] for split in boxes["split"].unique()}
    columns["all"] = boxes["area_share"]
    table = pd.DataFrame({name: share.quantile(list(QUANTILES)) for name, share in columns.items()})
    return table.rename_axis("quantile").reset_index()


def _both_table(boxes: pd.DataFrame) -> pd.DataFrame:
    """List images that carry boxes of several categories."""
    categories = boxes.groupby(["split", "name"], sort=False)["category"].agg(set)
    both = [key for key, found in categories.items() if len(found) > 1]
    return pd.DataFrame(both, columns=["split", "name"])


def _identical_table(identical: tuple[tuple[tuple[str, str], ...], ...]) -> pd.DataFrame:
    """One row per group of identical files."""
    rows = [
        (
            ", ".join(name for _, name in group),
            ", ".join(split for split, _ in group),
            _cross_splits(group),
        )
        for group in identical
    ]
    return pd.DataFrame(rows, columns=["files", "splits", "cross_splits"])


def _cross_splits(group: tuple[tuple[str, str], ...]) -> bool:
    """Whether identical files are on several sides; extra images are on the side of their split."""
    return len({split.removeprefix("extra_") for split, _ in group}) > 1


def _duplicates_table(identical: tuple[tuple[tuple[str, str], ...], ...], images: pd.DataFrame) -> pd.DataFrame:
    """Count groups of identical files, and those within and across patients (where known), splits and classes."""
    rows = zip(images["split"], images["name"], images["patient"], images["target"], strict=True)
    known = {(split, name): (patient, target) for split, name, patient, target in rows}
    groups = [[known[one] for one in group] for group in identical]
    patients = [{patient for patient, _ in group} for group in groups]
    files = sum(map(len, groups))
    counts = {"groups": len(groups), "files": files, "surplus copies": files - len(groups)}
    if (images["patient"] != "").any():
        sure = [found for found in patients if "" not in found]
        counts["groups within one patient"] = sum(len(found) == 1 for found in sure)
        counts["groups across patients"] = sum(len(found) > 1 for found in sure)
    counts["groups across splits"] = sum(map(_cross_splits, identical))
    counts["groups across classes"] = sum(len({target for _, target in group}) > 1 for group in groups)
    return pd.DataFrame(counts.items(), columns=["what", "count"])


def _absent_table(images: pd.DataFrame) -> pd.DataFrame:
    """Count present and absent files per split and class folder, for the splits in which some are absent."""
    there = images.groupby(["split", "kind"], sort=False)["present"].agg(["sum", "size"])
    counts = pd.DataFrame({"present": there["sum"], "absent": there["size"] - there["sum"]}).astype(int)
    counts = counts.reset_index()
    partial = counts.loc[counts["absent"] > 0, "split"]
    return counts[counts["split"].isin(partial)].reset_index(drop=True)


def _in_order(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Sort a table's splits as they come in the rows: train, val, then the extra ones."""
    order = list(rows["split"].unique())
    return table.sort_values("split", key=lambda s: s.map(order.index), kind="stable", ignore_index=True)
