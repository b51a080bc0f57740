"""The project's own files agree with each other."""

import re
import tomllib
from pathlib import Path

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


def test_a_module_imports_only_what_comes_before_it() -> None:
    """The modules, in the order in which data flows; CONTRIBUTING.md shows the same list."""
    order = re.findall(r"^\d+\. `(\w+)`", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    modules = {path.stem for path in (ROOT / "tbkd_utils").glob("*.py")} - {"__init__"}
    assert set(order) == modules
    assert len(order) == len(modules)
    for module in modules:
        source = (ROOT / "tbkd_utils" / f"{module}.py").read_text()
        used = set(re.findall(r"from tbkd_utils\.(\w+) import", source))
        later = {other for other in used if order.index(other) > order.index(module)}
        assert not later, f"{module} imports {later}, which come after it"
