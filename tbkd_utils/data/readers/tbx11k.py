"""Read TBX11K as its authors publish it: image lists, class folders and COCO-style JSON."""

import re
from pathlib import Path

import numpy as np

from tbkd_utils.data.readers.coco import Annotated, read_coco
from tbkd_utils.data.readers.reader import Reader
from tbkd_utils.data.records import OnError, Radiograph, collect_errors, read_text, relative_name
from tbkd_utils.errors import DataError

CATEGORIES = {1: "ActiveTuberculosis", 2: "ObsoletePulmonaryTuberculosis", 3: "PulmonaryTuberculosis"}
"""TBX11K's box categories: 1 active, 2 latent, 3 uncertain (no box in train and val)."""
KIND_LABELS = {"tb": 1, "sick": 0, "health": 0}
"""TBX11K's class folders and the label that each gives: 0 no TB, 1 TB."""

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")
# Label from the file name, as the four small datasets were published: n / 0 normal, p / 1 tuberculosis.
_EXTRA_NAMES = {
    "Shenzhen": re.compile(r"CHNCXR_\d+_([01])"),
    "Montgomery": re.compile(r"MCUCXR_\d+_([01])"),
    "DB": re.compile(r"([np])x\d+"),
    "DA": re.compile(r"([np])\d+"),
}


class Tbx11k(Reader):
    """The TBX11K layout below one folder.

    Args:
        root: The folder that holds ``imgs/``, ``lists/`` and ``annotations/json/``.
    """

    name = "TBX11K"
    needs = ("imgs/", "lists/")
    kinds = ("tb", "sick", "health", "no_tb")  # "no_tb" is what is known of a normal extra image
    categories = CATEGORIES

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = root / "imgs"

    def splits(self) -> tuple[str, ...]:
        """Name the splits that this copy has.

        Returns:
            Some of "train", "val", "trainval", "extra_train", "extra_val". "trainval" is the list of that
            name or, without one, train followed by val.
        """
        listed = [s for s in ("train", "val", "trainval") if self._list(s).is_file()]
        if {"train", "val"} <= set(listed) and "trainval" not in listed:
            listed.append("trainval")
        extra = [f"extra_{side}" for side in ("train", "val") if self._extra_folders(side)]
        return (*listed, *extra)

    def listed_splits(self) -> tuple[str, ...]:
        """Leave out "trainval" where it is only train and val together.

        Returns:
            Some of `splits`.
        """
        return tuple(s for s in self.splits() if s != "trainval" or self._list(s).is_file())

    def records(self, split: str, on_error: OnError) -> list[Radiograph]:
        """List the radiographs of a split, whether their files are present or not.

        Args:
            split: One of `splits`.
            on_error: Called with each bad entry; if it returns, that entry is left out.

        Returns:
            One record per radiograph, in the order of the list (extra images: by path).

        Raises:
            DataError: A file of the dataset is absent or not readable as a whole.
        """
        if split.startswith("extra_"):
            return self._extra(split.removeprefix("extra_"), on_error)
        names = self._listed(split, on_error)
        files = self._json_files(split)
        annotated: dict[str, Annotated] = {}
        for file in files:
            annotated |= read_coco(file, CATEGORIES, on_error)
        # The *_only_tb files leave out images without a box, so absence means nothing there.
        complete = not any(file.stem.endswith("_only_tb") for file in files)
        records = []
        for name in names:
            kind = name.split("/")[0]
            entry = annotated.get(name)
            if entry and entry.boxes and kind != "tb":
                on_error(
                    DataError(
                        f"{files[0]} ({name}): a TB box on an image outside tb/. Move the image or remove the box."
                    )
                )
                continue
            if entry is None and complete and kind == "tb":
                on_error(
                    DataError(
                        f"{files[0]}: no usable image entry for {name}, which the list of '{split}' names; its "
                        "boxes would be lost. Take list and JSON from the same release."
                    )
                )
                continue
            records.append(
                Radiograph(
                    path=self.images / name,
                    target=KIND_LABELS[kind],
                    boxes=np.array(entry.boxes if entry else [], dtype=np.float32).reshape(-1, 4),
                    source="TBX11K",
                    name=name,
                    kind=kind,
                    categories=tuple(entry.categories) if entry else (),
                    size=entry.size if entry else None,
                )
            )
        return records

    def _list(self, split: str) -> Path:
        return self.root / "lists" / f"TBX11K_{split}.txt"

    def _listed(self, split: str, on_error: OnError) -> list[str]:
        """Read the names of a list, each checked and unique."""
        file = self._list(split)
        if split == "trainval" and not file.is_file():
            train, val = self._listed("train", on_error), self._listed("val", on_error)
            for name in sorted({*train} & {*val}):
                on_error(DataError(f"{file.parent}: {name} is in the lists of both train and val. Remove it from one."))
            return list(dict.fromkeys(train + val))
        seen: dict[str, int] = {}
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            if not line.strip():
                continue
            with collect_errors(on_error):
                where = f"{file}, line {number}"
                name = relative_name(line.strip(), where)
                folder = name.split("/")[0]
                if folder not in KIND_LABELS or "/" not in name:
                    raise DataError(
                        f"{where}: {name!r} gives no class: its folder must be one of "
                        f"{', '.join(KIND_LABELS)}. Correct the entry."
                    )
                if name in seen:
                    raise DataError(
                        f"{where}: {name} is a duplicate of line {seen[name]}. Remove one of the two lines."
                    )
                seen[name] = number
        return list(seen)

    def _json_files(self, split: str) -> list[Path]:
        """Choose the annotation files: the full one, else the one of TB images only."""
        folder = self.root / "annotations" / "json"
        for file in (folder / f"TBX11K_{split}.json", folder / f"TBX11K_{split}_only_tb.json"):
            if file.is_file():
                return [file]
        if split == "trainval":
            return self._json_files("train") + self._json_files("val")
        raise DataError(
            f"{folder}: neither TBX11K_{split}.json nor TBX11K_{split}_only_tb.json is there, so '{split}' "
            "has no boxes. Complete the copy of the dataset."
        )

    def _extra_folders(self, side: str) -> list[Path]:
        return sorted(folder for folder in self.images.glob(f"extra/*/{side}") if folder.is_dir())

    def _extra(self, side: str, on_error: OnError) -> list[Radiograph]:
        """List the images of DA, DB, Montgomery and Shenzhen: image labels, no boxes."""
        records = []
        for folder in self._extra_folders(side):
            for path in sorted(folder.iterdir()):
                if path.name.startswith(".") or path.suffix.lower() not in IMAGE_ENDINGS:
                    continue
                with collect_errors(on_error):
                    source, label = _extra_label(path)
                    name = path.relative_to(self.images).as_posix()
                    kind = "tb" if label else "no_tb"
                    records.append(Radiograph(path, label, np.zeros((0, 4), np.float32), source, name, kind))
        return records


def _extra_label(path: Path) -> tuple[str, int]:
    """Tell source and label of an extra image from its file name."""
    for source, pattern in _EXTRA_NAMES.items():
        if match := pattern.fullmatch(path.stem):
            return source, int(match[1] in "1p")
    raise DataError(
        f"{path}: the file name gives no label. Expected CHNCXR_<n>_<0|1>, MCUCXR_<n>_<0|1>, n<k>, p<k>, "
        "nx<k> or px<k>. Rename the file or move it out of imgs/extra/."
    )
