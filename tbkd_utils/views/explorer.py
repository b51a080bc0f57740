"""Controls with a picture and a few numbers that follow them; a still picture where nobody can move anything.

The controls are ipywidgets' own, so that the keyboard works: Tab goes from one to the next, arrow keys move a slider.
"""

import base64
import html
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import ipywidgets as widgets
import numpy as np
from IPython import get_ipython
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tbkd_utils.experiments.notebooks import injected_names

STILL_DPI = 80  # of the picture that is kept in a notebook
WHOLE = {"description_width": "initial"}  # a control's description is never cut off
WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class View:
    """What an explorer shows for one setting of its controls.

    Attributes:
        figure: The picture; None if there is nothing to draw.
        lines: The numbers, as sentences.
        alt: What the picture shows, for readers who cannot see it.
    """

    figure: Figure | None
    lines: Sequence[str]
    alt: str = ""


class Explorer(widgets.VBox):
    """Controls, numbers and a picture, drawn anew whenever a control moves.

    Attributes:
        controls: The controls by name.
        numbers: The sentences, as HTML.
        picture: The picture, as HTML: an image with its alternative text.
        view: What is shown.
    """

    def __init__(
        self,
        name: str,
        show: Callable[..., View],
        controls: Mapping[str, widgets.Widget],
        follow: Sequence[str] | None = None,
        together: Sequence[str] = (),
    ) -> None:
        """Draws the first view.

        Args:
            name: Marks the explorer on the page, as the CSS class `tbkd-<name>`.
            show: Gives the view; called with the values of the controls in `follow` under their names.
            controls: The controls, in the order in which they stand.
            follow: Names of the controls whose values matter; None for all.
            together: Names of controls, one after the other, that stay side by side when the page is narrow.
        """
        self.controls = dict(controls)
        self._show, self._follow = show, tuple(controls if follow is None else follow)
        self.numbers, self.picture = widgets.HTML(), widgets.HTML()
        row = [one for key, one in self.controls.items() if key not in together]
        if together:
            group = widgets.HBox([self.controls[key] for key in together])
            row.insert(list(self.controls).index(together[0]), group)
        top = widgets.HBox(row, layout=widgets.Layout(flex_flow="row wrap"))
        super().__init__([top, self.numbers, self.picture])
        for part, mark in ((self, "explorer"), (self, name), (self.numbers, "numbers"), (self.picture, "picture")):
            part.add_class(f"tbkd-{mark}")
        for one in self._follow:
            self.controls[one].observe(lambda change: self.redraw(), names="value")
        self.redraw()

    def redraw(self) -> None:
        """Shows what the controls ask for now."""
        self.view = self._show(**{name: self.controls[name].value for name in self._follow})
        lines = "<br>".join(html.escape(line) for line in self.view.lines)
        picture = _image(self.view)  # drawn before anything is sent, so that numbers and picture change together
        self.numbers.value = f'<div style="line-height:1.5">{lines}</div>'
        self.picture.value = picture

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The live explorer and, for readers without a kernel, a still; in a batch run the still alone."""
        data = {"text/plain": "\n".join(self.view.lines)}
        metadata: dict[str, Any] = {}
        if self.view.figure is not None:
            kind, picture = still(self.view.figure)
            data[kind], metadata[kind] = base64.b64encode(picture).decode(), {"alt": self.view.alt}
        if not in_batch():
            data[WIDGET] = super()._repr_mimebundle_(**kwargs)[WIDGET]
        return data, metadata


def dropdown(description: str, options: Sequence[Any], value: Any = None) -> widgets.Dropdown:
    """Returns a list to choose from; the first option is chosen if no value is given."""
    given = {} if value is None else {"value": value}
    return widgets.Dropdown(description=description, options=options, style=WHOLE, layout=width("22em"), **given)


def slider(description: str, value: float, others: Iterable[float], form: str = "g") -> widgets.SelectionSlider:
    """Returns a slider over a number and others, each kept to the last digit.

    A slider of ipywidgets with steps moves a start that lies between two of them as soon as it is shown.

    Args:
        description: Its name.
        value: Where it starts.
        others: Where else it can go; those written like the start are left out.
        form: How a number is written.
    """
    written = {format(other, form): other for other in others} | {format(value, form): value}
    options = sorted(written.items(), key=lambda item: item[1])
    return widgets.SelectionSlider(
        description=description, options=options, value=value, style=WHOLE, layout=width("26em")
    )


def case_controls(names: Sequence[str]) -> dict[str, Any]:
    """Returns what one goes through cases with: `previous` and `next` (buttons), `case` (a slider), `name` (a list)."""
    case = widgets.IntSlider(description="case", value=1, min=1, max=len(names), style=WHOLE, layout=width("26em"))
    return {
        "previous": widgets.Button(description="previous", layout=width("6em", 4)),
        "next": widgets.Button(description="next", layout=width("6em", 4)),
        "case": case,
        "name": dropdown("radiograph", names),
    }


def link_cases(controls: Mapping[str, Any]) -> None:
    """Lets the controls of `case_controls` follow each other; `case` counts from 1."""
    case, name = controls["case"], controls["name"]

    def step(by: int) -> None:
        case.value = min(max(case.value + by, case.min), case.max)

    def follow_name(change: Any) -> None:
        if name.index is not None:
            case.value = name.index + 1

    def follow_case(change: Any) -> None:
        if name.options:
            name.index = case.value - 1

    controls["previous"].on_click(lambda button: step(-1))
    controls["next"].on_click(lambda button: step(1))
    name.observe(follow_name, names="index")
    case.observe(follow_case, names="value")


def width(size: str, right: int = 16) -> widgets.Layout:
    """Returns a layout of this width, or less on a narrow page, with some room to the right."""
    return widgets.Layout(width=size, max_width="100%", margin=f"2px {right}px 2px 0")


def in_batch() -> bool:
    """Whether papermill executes this notebook and no Jupyter server shows it, so that nobody can move a control."""
    shell = get_ipython()
    cells = shell.user_ns.get("In", ()) if shell is not None else ()
    return bool(injected_names(cells)) and "JPY_SESSION_NAME" not in os.environ


def still(figure: Figure) -> tuple[str, bytes]:
    """Returns a figure as (MIME type, bytes) for keeping in a notebook: PNG or JPEG, whichever is smaller."""
    dpi = figure.dpi
    try:
        figure.set_dpi(min(dpi, STILL_DPI))
        pixels = _pixels(figure)
    finally:
        figure.set_dpi(dpi)
    png, jpeg = _encoded(".png", pixels, cv2.IMWRITE_PNG_COMPRESSION, 9), _jpeg(pixels, 75)
    return ("image/png", png) if len(png) < len(jpeg) else ("image/jpeg", jpeg)


def _image(view: View) -> str:
    """A view's picture as an HTML image that shrinks with the page; a JPEG, which is quick to make and to send."""
    if view.figure is None:
        return ""
    source = base64.b64encode(_jpeg(_pixels(view.figure), 95)).decode()
    style = "display:block;max-width:100%;height:auto"
    return f'<img alt="{html.escape(view.alt)}" style="{style}" src="data:image/jpeg;base64,{source}">'


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """A JPEG that keeps the colors of thin lines."""
    whole = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    return _encoded(".jpg", pixels, cv2.IMWRITE_JPEG_QUALITY, quality, *whole)


def _encoded(suffix: str, pixels: np.ndarray, *options: int) -> bytes:
    done, data = cv2.imencode(suffix, pixels[..., ::-1], options)
    if not done:
        raise RuntimeError(f"OpenCV cannot encode {suffix}: reinstall opencv-python-headless")
    return data.tobytes()


def _pixels(figure: Figure) -> np.ndarray:
    """A figure drawn, uint8 (h, w, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
