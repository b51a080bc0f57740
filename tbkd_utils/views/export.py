"""What was located, for people to correct: COCO JSON, tables, overlays, in a folder that is written as a whole."""

import contextlib
import dataclasses
import io
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from tbkd_utils import __version__
from tbkd_utils.data.files import picture_name, read_radiograph
from tbkd_utils.errors import RunError, TbkdError
from tbkd_utils.experiments.predict import Finding, Located, reason
from tbkd_utils.runs import DONE, Run, explained, read_json, write_bytes, write_csv, write_json
from tbkd_utils.views.overlays import overlay_png

CATEGORY = 1  # the only one in the file: the finding
KIND = "suggestions"
OVERLAYS, PICTURES = "overlays", "pictures"


def coco(located: Located) -> dict[str, Any]:
    """Returns boxes in COCO's form, as pycocotools, CVAT and Label Studio read it.

    An image's `file_name` is the file that an annotation tool can show: the radiograph itself or, for DICOM, the PNG
    made from it; `source` is the radiograph in either case. `bbox` is left, top, width, height in pixels of the file.
    `score` is the radiograph's probability of the finding, the same for all its boxes.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, found in enumerate(located.findings, start=1):
        images.append({
            "id": number, "file_name": _shown_name(found), "source": found.name, "width": found.geometry.width,
            "height": found.geometry.height, "probability": found.probability,
        })  # fmt: skip
        for left, top, right, bottom in found.boxes.astype(np.float64).tolist():
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": CATEGORY,
                "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
                "segmentation": [], "iscrowd": 0, "score": found.probability,
            })  # fmt: skip
    description = "Boxes suggested by a network, to be corrected by a reader. Not for use on patients."
    info = {"description": description, "version": __version__, **_made_by(located)}
    category = {"id": CATEGORY, "name": located.trained.task.words, "supercategory": ""}
    return {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": [category]}


def box_table(located: Located) -> pd.DataFrame:
    """Returns one row per box: file, probability, x, y, width, height (pixels of the file), area."""
    rows = [
        (found.name, found.probability, left, top, right - left, bottom - top, (right - left) * (bottom - top))
        for found in located.findings
        for left, top, right, bottom in found.boxes.astype(np.float64).tolist()
    ]
    return pd.DataFrame(rows, columns=["file", "probability", "x", "y", "width", "height", "area"])


def image_table(located: Located) -> pd.DataFrame:
    """Returns one row per radiograph: file, width, height, probability, boxes (how many), note."""
    rows = [
        (f.name, f.geometry.width, f.geometry.height, f.probability, len(f.boxes), f.note) for f in located.findings
    ]
    return pd.DataFrame(rows, columns=["file", "width", "height", "probability", "boxes", "note"])


def failure_table(located: Located) -> pd.DataFrame:
    """Returns one row per file that could not be read: file, reason."""
    return pd.DataFrame(list(located.failures), columns=["file", "reason"])


def check_writable(out: Path) -> None:
    """Refuses a folder that holds anything but the untouched outcome of an earlier call.

    Raises:
        RunError: If something else is there, or a file was changed or added since.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    advice = "Name another folder with --out, or move this one away."
    marker = read_json(out / DONE) if out.is_dir() else None
    settings = marker.get("settings") if isinstance(marker, dict) else None
    if marker is None or not isinstance(settings, dict) or settings.get("kind") != KIND:
        raise RunError(f"{out}: holds something that `tbkd locate` did not write. {advice}")
    problem = Run(out, settings).problem
    known = {*marker["files"], DONE}
    added = sorted(str(one.relative_to(out)) for one in out.rglob("*") if one.is_file())
    added = [name for name in added if name not in known]
    if problem or added:
        raise RunError(f"{out}: {problem or f'{added[0]} was added'} since it was written. {advice}")


def write_suggestions(
    located: Located, out: Path, progress: Callable[[int, int], object] = lambda done, total: None
) -> Located:
    """Writes everything into a folder, which is there as a whole or not at all.

    The folder receives `boxes.json` (`coco`), `boxes.csv`, `images.csv`, `failed.csv`, `overlays/` and, for DICOM
    files, `pictures/`: the radiograph as an 8-bit PNG of the same size, for tools that do not read DICOM. Nothing of
    a DICOM header is written. The untouched outcome of an earlier call is replaced.

    Args:
        located: From `locate`.
        out: The folder.
        progress: Called with the number of overlays that are drawn, and of all.

    Returns:
        What was written: files that could not be read a second time have become failures.

    Raises:
        RunError: If the folder holds anything else.
        RunError: If the disk is full or not writable; the folder is then as it was.
    """
    out = out.expanduser().resolve()
    check_writable(out)
    inside = [found.path for found in located.findings if out in found.path.resolve().parents]
    if inside:
        raise RunError(f"{inside[0]}: lies in {out}, which would be replaced. Name another folder with --out.")
    fresh = out.with_name(f".{out.name}.{secrets.token_hex(8)}")
    written, failures = [], list(located.failures)
    try:
        with explained(out):
            fresh.mkdir(parents=True)
        for number, found in enumerate(located.findings, start=1):
            try:
                drawn = overlay_png(found, located.trained.role)
                picture = _picture(found)
            except (TbkdError, OSError, MemoryError) as error:  # the file was changed or removed meanwhile
                failures.append((found.name, reason(found.path, error)))
                continue
            write_bytes(fresh / OVERLAYS / picture_name(found.name), drawn)
            if picture:
                write_bytes(fresh / PICTURES / picture_name(found.name), picture)
            written.append(found)
            progress(number, len(located.findings))
        left = dataclasses.replace(located, findings=tuple(written), failures=tuple(sorted(failures)))
        write_json(fresh / "boxes.json", coco(left))
        tables = {"boxes": box_table(left), "images": image_table(left), "failed": failure_table(left)}
        for name, table in tables.items():
            write_csv(fresh / f"{name}.csv", table)
        Run(fresh, {"kind": KIND, **_made_by(left)}).finish()
        with explained(out):
            _replace(out, fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return left


def _made_by(located: Located) -> dict[str, Any]:
    """Which network under which settings: enough to make the boxes again."""
    trained = located.trained
    return {
        "network": trained.run.path.name, "recipe": trained.recipe.name,
        "settings": trained.recipe.flat("pixels", "heatmaps", "scores"),
        "min_area": located.min_area, "min_probability": located.min_probability,
    }  # fmt: skip


def _shown_name(found: Finding) -> str:
    return picture_name(found.name) if found.dicom else found.name


def _picture(found: Finding) -> bytes:
    """A DICOM radiograph as the bytes of an 8-bit PNG of the same size; nothing for other files."""
    if not found.dicom:
        return b""
    stream = io.BytesIO()
    Image.fromarray(read_radiograph(found.path)).save(stream, format="PNG")
    return stream.getvalue()


def _replace(out: Path, fresh: Path) -> None:
    """Puts the new folder into the place of the old one; the old one goes only when the new one stands."""
    if not out.exists():
        os.rename(fresh, out)
        return
    check_writable(out)  # again: drawing took a while
    old = out.with_name(f".{out.name}.{secrets.token_hex(8)}.old")
    os.rename(out, old)
    try:
        os.rename(fresh, out)
    except BaseException:
        os.rename(old, out)
        raise
    with contextlib.suppress(OSError):
        shutil.rmtree(old)
