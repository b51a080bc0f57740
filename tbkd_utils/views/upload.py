"""The same as `tbkd locate`, in a notebook: a button that takes radiographs, and an area that shows what was found."""

import base64
import json
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import ipywidgets as widgets

from tbkd_utils.data.files import ENDINGS
from tbkd_utils.errors import TbkdError
from tbkd_utils.experiments.predict import Finding, Located, locate
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.views.export import box_table, coco
from tbkd_utils.views.overlays import overlay_png

HINT = (
    "PNG, JPEG, TIFF, BMP or DICOM; 200 MB at a time under <code>make lab</code>. Jupyter started otherwise drops more "
    "than 10 MB without a word: then run this cell again, and use <code>locate</code> with paths. "
    "Boxes are suggestions to be corrected, not a diagnosis."
)


def locate_upload(trained: TrainedNetwork, **settings: Any) -> widgets.VBox:
    """Returns a widget that locates the finding in the radiographs that are given to its button.

    The button is reached with Tab and opened with Enter or Space. What goes wrong is said in the area below it, file
    by file. The files lie in a temporary folder while they are read, and nowhere afterwards.

    Args:
        trained: The network, from `train` or `load_trained`.
        **settings: As `locate` takes them: threshold, min_area, min_probability, data.

    Returns:
        The button and the area: `children` are the FileUpload, a hint, the status and the results, all ipywidgets.
    """
    button = widgets.FileUpload(
        accept=",".join(ENDINGS), multiple=True, description="Radiographs", tooltip="Choose radiographs to look at",
        layout=widgets.Layout(width="14em"),
    )  # fmt: skip
    hint, status, results = widgets.HTML(f"<p>{HINT}</p>"), widgets.HTML(), widgets.HTML()

    def show(change: Mapping[str, Any]) -> None:
        if not change["new"]:
            return
        results.value = ""
        status.value = _status(f"Looking at {len(change['new'])} …")
        try:
            with tempfile.TemporaryDirectory() as folder:
                located = locate(_saved(change["new"], Path(folder)), trained, **settings)
                results.value = _page(located)
            status.value = _status(_summary(located))
        except TbkdError as error:
            status.value = _status(str(error), failed=True)
        except Exception as error:  # a callback's traceback would go to a log that nobody reads
            status.value = _status(f"This should not have happened: {type(error).__name__}: {error}", failed=True)
        button.value = ()  # so that the same file can be chosen again

    button.observe(show, names="value")
    return widgets.VBox([button, hint, status, results])


def _saved(uploads: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Writes uploaded files under their own names; of two with one name, the second is called `name (2)`."""
    paths: list[Path] = []
    for upload in uploads:
        name = PureWindowsPath(PurePosixPath(upload["name"]).name).name or "radiograph"  # never a path out of here
        path, number = folder / name, 1
        while path in paths:
            number += 1
            path = folder / f"{Path(name).stem} ({number}){Path(name).suffix}"
        path.write_bytes(upload["content"])
        paths.append(path)
    return paths


def _page(located: Located) -> str:
    """Everything found, as HTML: each radiograph, the failures, and the boxes for saving."""
    parts = [
        f"<figure style='margin: 0'>{_image(found, located.trained)}{_note(found)}</figure>"
        for found in located.findings
    ]
    if located.failures:
        rows = "".join(f"<li><b>{escape(name)}</b>: {escape(why)}</li>" for name, why in located.failures)
        parts.append(f"<p>Not located:</p><ul>{rows}</ul>")
    if located.findings:
        files = {
            "boxes.json": ("application/json", json.dumps(coco(located), indent=2)),
            "boxes.csv": ("text/csv", box_table(located).to_csv(index=False)),
        }
        links = [_link(name, kind, text.encode()) for name, (kind, text) in files.items()]
        parts.append(f"<p>Save the boxes, in pixels of the files: {', '.join(links)}.</p>")
    return "".join(parts)


def _link(name: str, kind: str, content: bytes) -> str:
    data = base64.b64encode(content).decode()
    return f"<a style='text-decoration: underline' download='{name}' href='data:{kind};base64,{data}'>{name}</a>"


def _image(found: Finding, trained: TrainedNetwork) -> str:
    picture = base64.b64encode(overlay_png(found, trained.role)).decode()
    boxes = "; ".join("left {:.0f}, top {:.0f}, right {:.0f}, bottom {:.0f}".format(*box) for box in found.boxes)
    told = f"{found.name}: probability of {trained.task.label} {found.probability:.2f}; boxes: {boxes or 'none'}"
    return f"<img alt='{escape(told)}' style='max-width: 100%' src='data:image/png;base64,{picture}'>"


def _note(found: Finding) -> str:
    return f"<figcaption>{escape(found.name)}: {escape(found.note)}</figcaption>" if found.note else ""


def _summary(located: Located) -> str:
    boxes = sum(len(found.boxes) for found in located.findings)
    failed = f"; {len(located.failures)} not located, see below" if located.failures else ""
    return f"{len(located.findings)} located, {boxes} box{'' if boxes == 1 else 'es'}{failed}."


def _status(text: str, failed: bool = False) -> str:
    """A line that screen readers announce; what failed is said in words, not in color alone."""
    return f"<p role='status'>{'<b>Failed:</b> ' if failed else ''}{escape(text)}</p>"
