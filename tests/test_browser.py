"""The explorers as a reader meets them: JupyterLab and Voila in a real browser, by mouse and keyboard."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

from tbkd_utils.experiments.curvature import network_spectrum
from tbkd_utils.experiments.evaluation import localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import train

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = (1400, 800)
EXPLORERS = {
    "03_student_distillation": ("softening",),
    "04_gradcam_boxes": ("threshold",),
    "05_localization_miou": ("surplus", "cases", "shortcut"),
    "06_hessian_spectrum": ("spectrum",),
}
FAILED = ".jp-OutputArea [data-mime-type='application/vnd.jupyter.error']"
PATIENCE = 240_000  # milliseconds for a notebook or a page of explorers to be executed


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail(f"No browser: expected one of {', '.join(BROWSERS)} on the PATH. Install Chromium and run again.")
    with sync_playwright() as playwright:
        # A sandbox needs rights that root in a container does not have.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def prepared(smoke: Experiment) -> Experiment:
    """Both networks and their spectra, so that a page opens in seconds."""
    for network in (train(smoke, "teacher"), train(smoke, "student")):
        network_spectrum(smoke, network)
    return smoke


@pytest.fixture(scope="session")
def lab(prepared: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab on copies of the notebooks; gives the address of a notebook up to its name."""
    folder = tmp_path_factory.mktemp("lab")
    for stem in EXPLORERS:
        copy(ROOT / "notebooks" / f"{stem}.ipynb", folder, prepared)
    settings = {
        # Every cell stands in the page, also those out of sight.
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    for name, values in settings.items():
        path = folder / ".settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    port, token = free_port(), "a-test"
    command = ["jupyterlab", "--no-browser", f"--port={port}", f"--IdentityProvider.token={token}",
               f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=0", "--allow-root"]  # fmt: skip
    own = {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".workspaces"),
    }
    with serving(command, own, folder / "server.log", f"http://127.0.0.1:{port}/api?token={token}"):
        yield f"http://127.0.0.1:{port}/doc/tree/{{}}?token={token}"


@pytest.fixture(scope="session")
def voila(prepared: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app, served by Voila; gives its address."""
    folder = tmp_path_factory.mktemp("voila")
    path, port = copy(ROOT / "app" / "explorers.ipynb", folder, prepared), free_port()
    address = f"http://127.0.0.1:{port}/"
    command = ["voila", "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1", "--template=offline", str(path)]
    with serving(
        command, {"JUPYTER_PATH": str(ROOT / "app")}, folder / "server.log", f"{address}voila/static/voila.js"
    ):
        yield address


@dataclass
class Watched:
    """A page and what went wrong on it."""

    page: Page
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 1000})
    yield Watched(page)
    page.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that TBKD_SCREENSHOTS names, or a temporary one."""
    folder = Path(os.environ.get("TBKD_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("stem", EXPLORERS)
def test_a_notebook_runs_and_its_explorers_respond(stem: str, lab: str, watched: Watched, screenshots: Path) -> None:
    page = watched.page
    page.goto(lab.format(f"{stem}.ipynb"))
    run_all_cells(page)
    for name in EXPLORERS[stem]:
        explorer = found(page, name)
        exercise(explorer)
        shoot(page, explorer, screenshots / f"lab_{name}")
    assert watched.errors == []


def test_a_page_opens_at_the_recipes_setting(lab: str, watched: Watched, prepared: Experiment) -> None:
    """The browser moves no slider by itself: the first mIOU is the evaluation's."""
    page = watched.page
    page.goto(lab.format("04_gradcam_boxes.ipynb"))
    run_all_cells(page)
    shown = numbers(found(page, "threshold"))
    for trained in (train(prepared, "teacher"), train(prepared, "student")):
        one = localization(prepared, trained)
        assert f"threshold {prepared.recipe.scores.threshold:.2f}, boxes larger than {one.min_area:.0f} square" in shown
        assert f"{one.role}: mIOU of all {len(one.samples)} radiographs {one.miou:.4f}," in shown


def test_the_app_runs_and_its_explorers_respond(voila: str, watched: Watched, screenshots: Path) -> None:
    page = watched.page
    page.goto(voila, timeout=PATIENCE)
    for name in [name for names in EXPLORERS.values() for name in names]:
        explorer = found(page, name)
        exercise(explorer)
        shoot(page, explorer, screenshots / f"app_{name}")
    assert watched.errors == []


# --- what a reader does ---------------------------------------------------------------------------------------------


def run_all_cells(page: Page) -> None:
    """Runs every cell from the menu and waits until each has its number; a failed cell ends the test."""
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    prompts, until = page.locator(".jp-CodeCell .jp-InputPrompt"), time.monotonic() + PATIENCE / 1000
    while not all(re.fullmatch(r"\[\d+\]:", text.strip()) for text in prompts.all_inner_texts()):
        assert page.locator(FAILED).all_inner_texts() == []
        assert time.monotonic() < until, f"not finished: {prompts.all_inner_texts()}"
        page.wait_for_timeout(200)
    assert page.locator(FAILED).all_inner_texts() == []


def found(page: Page, name: str) -> Locator:
    explorer = page.locator(f".tbkd-{name}")
    expect(explorer).to_be_visible(timeout=PATIENCE)
    expect(explorer).to_have_count(1)
    explorer.scroll_into_view_if_needed()
    return explorer


def exercise(explorer: Locator) -> None:
    """Moves every control by the keyboard alone, and looks whether numbers and picture follow."""
    sliders, buttons = explorer.get_by_role("slider"), explorer.get_by_role("button")
    choices, ticks = explorer.get_by_role("combobox"), explorer.get_by_role("checkbox")
    assert sliders.count() + choices.count() + ticks.count() >= 2
    pictures = {picture(explorer)}
    for slider in sliders.all():
        slider.focus()
        for key in ("ArrowRight", "ArrowLeft"):
            with changing(explorer, numbers):
                slider.press(key)
            pictures.add(picture(explorer))
    for name in ("next", "previous") if buttons.count() else ():
        with changing(explorer, numbers), changing(explorer, picture):
            explorer.get_by_role("button", name=name).press("Enter")
    for tick in ticks.all():
        with changing(explorer, picture):
            tick.press("Space")
        pictures.add(picture(explorer))
    for choice in choices.all():
        choose_another(explorer, choice)
    assert len(pictures) >= 2


def choose_another(explorer: Locator, choice: Locator) -> None:
    """Goes down a list from its top until something else is shown, for a filter may let all pass; then to the top."""
    top = choice.locator("option").first.inner_text()
    choice.select_option(top)
    before = settled(explorer, numbers)
    for _ in range(choice.locator("option").count() - 1):
        choice.focus()
        for key in ("Space", "ArrowDown", "Enter"):  # Space opens it: JupyterLab keeps the arrows to itself otherwise
            choice.press(key)
        if settled(explorer, numbers) != before:
            break
    else:
        raise AssertionError(f"the list {choice.inner_text()[:200]!r} changes nothing in: {before}")
    with changing(explorer, numbers):
        choice.select_option(top)


def numbers(explorer: Locator) -> str:
    return explorer.locator(".tbkd-numbers").inner_text()


def picture(explorer: Locator) -> str:
    return explorer.locator("img").get_attribute("src") or ""


def settled(explorer: Locator, what: Callable[[Locator], str]) -> str:
    """What is shown, once it has stayed the same for half a second: the picture comes after the numbers."""
    last, since = what(explorer), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.05)
        if (now := what(explorer)) != last:
            last, since = now, time.monotonic()
    return last


@contextmanager
def changing(explorer: Locator, what: Callable[[Locator], str]) -> Iterator[None]:
    """Waits at its end until what is shown differs from before, when all earlier moves had been drawn."""
    before = settled(explorer, what)
    yield
    until = time.monotonic() + 20
    while what(explorer) == before:
        assert time.monotonic() < until, f"after 20 s the {what.__name__} are still {before[:200]}"
        time.sleep(0.05)


def shoot(page: Page, explorer: Locator, path: Path) -> None:
    """Takes a screenshot at each width, and finds nothing cut off in it."""
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(500)
        explorer.scroll_into_view_if_needed()
        image = explorer.locator("img")
        assert image.get_attribute("alt")
        assert explorer.evaluate("node => node.scrollWidth <= node.clientWidth + 1")
        outer, inner = explorer.bounding_box(), image.bounding_box()
        assert outer is not None
        assert inner is not None
        assert inner["x"] + inner["width"] <= outer["x"] + outer["width"] + 1
        assert outer["x"] + outer["width"] <= width
        explorer.screenshot(path=path.with_name(f"{path.name}_{width}.png"))
        page.screenshot(path=path.with_name(f"{path.name}_{width}_page.png"))
    page.set_viewport_size({"width": WIDTHS[0], "height": 1000})


# --- servers --------------------------------------------------------------------------------------------------------


def copy(path: Path, folder: Path, experiment: Experiment) -> Path:
    """Copies a notebook without outputs, its parameters set to the experiment's."""
    notebook = nbformat.read(path, as_version=4)
    (given,) = [cell for cell in notebook.cells if cell.metadata.get("tags") == ["parameters"]]
    given.source += f"\nrecipe, out = {experiment.recipe.name!r}, {str(experiment.out)!r}"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    target = folder / path.name
    nbformat.write(notebook, target)
    return target


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(module: list[str], environment: dict[str, str], log: Path, address: str) -> Iterator[None]:
    """A server in a process of its own, from when it answers until the block ends."""
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", *module], stdout=stream, stderr=stream, env=os.environ | environment
        )
    try:
        until = time.monotonic() + 60
        while not answers(address):
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"{module[0]} does not answer:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(30)


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True
