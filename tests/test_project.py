"""The project's own files agree with each other."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: list[str]) -> dict[str, str]:
    matches = [re.fullmatch(r"([A-Za-z0-9_.-]+)==(\S+)", line.strip()) for line in lines]
    return {canonical(match[1]): match[2] for match in matches if match}


def constraints() -> dict[str, str]:
    return pins((ROOT / "constraints.txt").read_text().splitlines())


def required(extras: bool) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + (project["optional-dependencies"]["dev"] if extras else [])
    return {canonical(re.split(r"[<>=\[ ;]", entry)[0]) for entry in wanted}


def test_everything_needed_is_pinned() -> None:
    assert required(extras=True) <= constraints().keys()


def test_conda_users_get_the_same_versions() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    conda = pins(listed)
    assert required(extras=True) <= conda.keys()
    assert conda == {name: constraints()[name] for name in conda}


def test_no_host_is_named() -> None:
    for name in ("constraints.txt", "environment.yml", "pyproject.toml", "Makefile", ".ci/run"):
        text = (ROOT / name).read_text()
        assert not re.search(r"https?://|index-url|find-links", text), name


# A room imports rooms further to the right; `systems` and `views` do not know each other, nor do `metrics` and `runs`.
BELOW = {
    "cli": {
        "systems",
        "views",
        "experiments",
        "localization",
        "curvature",
        "models",
        "data",
        "metrics",
        "runs",
        "errors",
    },
    "systems": {"experiments", "localization", "curvature", "models", "data", "metrics", "runs", "errors"},
    "views": {"experiments", "localization", "curvature", "models", "data", "metrics", "runs", "errors"},
    "experiments": {"localization", "curvature", "models", "data", "metrics", "runs", "errors"},
    "localization": {"models", "data", "metrics", "runs", "errors"},
    "curvature": {"models", "data", "metrics", "runs", "errors"},
    "models": {"data", "metrics", "runs", "errors"},
    "data": {"metrics", "runs", "errors"},
    "metrics": {"errors"},
    "runs": {"errors"},
    "errors": set(),
    "__main__": {"cli"},
    "__init__": {"systems"},  # so that the list of systems is full whatever is imported
}
PACKAGE = ROOT / "tbkd_utils"
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: Path) -> str:
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


def dotted(module: Path) -> str:
    parts = ("tbkd_utils", *module.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(module: Path) -> set[str]:
    """Every module of the package that a file imports, anywhere in it, by its dotted name."""
    known = {dotted(other) for other in MODULES}
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("tbkd_utils")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            if node.module and node.module.split(".")[0] == "tbkd_utils":
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {name if name in known else node.module for name in whole}
    return found


def test_a_room_imports_only_rooms_below_it() -> None:
    for module in MODULES:
        room = room_of(module)
        for name in imports(module):
            other = name.split(".")[1] if "." in name else "__init__"
            allowed = BELOW[room] | {room, "__init__"}  # the root holds the version alone
            assert other in allowed, f"{dotted(module)} imports {name}: the room {room} may import {sorted(allowed)}"


def test_no_circle_of_modules() -> None:
    graph = {dotted(module): imports(module) - {dotted(module), "tbkd_utils"} for module in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_there_are_at_most_thirteen_rooms_and_contributing_shows_them() -> None:
    rooms = {room_of(module) for module in MODULES} - {"__init__", "__main__"}
    assert len(rooms) <= 13
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f"`{room}" in text for room in rooms)


@pytest.mark.parametrize("room", ["data", "models", "localization", "metrics", "curvature", "experiments", "views"])
def test_a_room_has_a_face_and_says_what_is_inside(room: str) -> None:
    face = importlib.import_module(f"tbkd_utils.{room}")
    assert 5 <= len(face.__all__) <= 14
    assert all(getattr(face, name) is not None for name in face.__all__)
    assert all(part in face.__doc__ for part in ("Inside:", "may import", "Start reading"))


def test_numerics_know_no_recipe() -> None:
    for room in ("data", "models", "localization", "metrics", "curvature"):
        for module in (PACKAGE / room).rglob("*.py"):
            names = {node.id for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Name)}
            assert not names & {"Recipe", "Experiment"}, module


def test_a_module_and_a_function_never_share_a_name() -> None:
    for module in MODULES:
        tree = ast.parse(module.read_text())
        assert module.stem not in {getattr(node, "name", "") for node in tree.body}, module


def test_training_a_student_enters_few_rooms() -> None:
    """The modules that the training loop needs, from `experiments.trained` down."""
    seen, waiting = set(), ["tbkd_utils.experiments.trained"]
    while waiting:
        name = waiting.pop()
        if name not in seen and name != "tbkd_utils":
            seen.add(name)
            path = PACKAGE.joinpath(*name.split(".")[1:])
            waiting += imports(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
    rooms = {name.split(".")[1] for name in seen} - {"errors", "runs"}  # what a room is built with
    assert rooms <= {"experiments", "models", "data", "metrics", "localization"}
    assert len(rooms - {"metrics"}) <= 4


def test_the_command_and_the_list_of_systems_need_no_torch() -> None:
    code = "import sys, tbkd_utils.cli; print(*sorted({'torch', 'cv2', 'pandas', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
