"""What a system is: one published method, declared in one place; and the list of all of them.

A system says what its labels mean (`Task`), which networks it trains and what each learns from (`Role`), which layouts
on disk it reads, and its presets. Everything else in this room works for any system.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tbkd_utils.data.readers.reader import Reader
from tbkd_utils.errors import SettingsError
from tbkd_utils.experiments.recipe import DEFAULT_SYSTEM, Recipe

if TYPE_CHECKING:
    from tbkd_utils.data.cache import Samples


@dataclass(frozen=True)
class Task:
    """What a label means.

    Attributes:
        classes: Names of the classes, in the order of the network's outputs.
        kind: `single`: each image has one class (an int); `multi`: any number of them (a 0 or 1 for each class);
            `mask`: each image has a mask of its foreground.
        explained: The class that heatmaps, AUC and probabilities are about.
        finding: What that class shows, in words, such as "tuberculosis"; empty if its name says it.
    """

    classes: tuple[str, ...]
    kind: Literal["single", "multi", "mask"] = "single"
    explained: int = 1
    finding: str = ""

    @property
    def label(self) -> str:
        """The name of the explained class, such as "TB"."""
        return self.classes[self.explained]

    @property
    def words(self) -> str:
        """The finding in words; the explained class's name if the task has none."""
        return self.finding or self.label


class Targets(Protocol):
    """What a role learns from in place of what the dataset says, such as masks that other networks drew."""

    @property
    def name(self) -> str:
        """Says what they are made from, without making them: a digest names the trained network with it."""
        ...

    def given_to(self, samples: "Samples") -> "Samples":
        """Returns training radiographs, at any scale, with these targets; those without one may be left out."""
        ...


@dataclass(frozen=True)
class Role:
    """One network of a system.

    Attributes:
        loss: A key of `models.LOSSES`.
        teacher: The role that it learns from; None if it learns from labels alone.
        groups: The groups of the recipe that its training depends on.
        settings: Common settings to those of the role's own that stand in their place unless they are 0 or empty, as in
            {"epochs": "map_epochs"}.
        targets: From the experiment, as the other roles see it, what this one learns from; None for the dataset's own
            labels and masks.
    """

    loss: str
    teacher: str | None = None
    groups: tuple[str, ...] = ("data", "pixels", "training")
    settings: Mapping[str, str] = field(default_factory=dict)
    targets: Callable[[Any], Targets] | None = None


@dataclass(frozen=True)
class Variant:
    """One network of a grid.

    Attributes:
        condition: What it learns from, in a word: the network's own name, or that of a control.
        role: Which of the system's networks it is.
        value: What the grid varies, such as the temperature, or the seed that conditions are compared at.
        recipe: All settings of this network.
    """

    condition: str
    role: str
    value: float
    recipe: Recipe


@dataclass(frozen=True)
class Item:
    """A part of the report: one artifact of a paper or one of ours.

    Attributes:
        title: Its heading.
        note: How to read it, one or two sentences.
        figures: Names of figures in the figures folder, without ending.
        tables: Names of tables there, without ending.
    """

    title: str
    note: str
    figures: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


@dataclass(frozen=True)
class System:
    """A published method.

    Attributes:
        name: How it is called on the command line.
        task: What its labels mean.
        roles: Its networks by name, those first that others learn from.
        readers: The layouts on disk that it reads.
        presets: Name to the settings that differ from the recipe's defaults.
        draw: Draws the synthetic set of a recipe into a new folder, in one of the layouts; None if there is none.
        drawn: The file, in the folder of a drawn set or the one above, by which it is told from radiographs.
        divisions: Ways to divide a set that only this system has, beside `data.split.DIVISIONS`.
        grids: Name of a grid to its networks, as a function of the recipe.
        recipe: The recipe's class, where a system has groups of settings of its own.
        report: The parts of its report.
        summary: One line for the command's help.
    """

    name: str
    task: Task
    roles: Mapping[str, Role]
    readers: tuple[type[Reader], ...]
    presets: Mapping[str, Mapping[str, Any]]
    draw: Callable[[Path, Recipe], None] | None = None
    drawn: str = "synthetic.json"
    divisions: Mapping[str, Callable[..., Any]] = field(default_factory=dict, repr=False)
    grids: Mapping[str, Callable[[Recipe], list[Variant]]] = field(default_factory=dict, repr=False)
    recipe: type[Recipe] = Recipe
    report: tuple[Item, ...] = field(default=(), repr=False)
    summary: str = ""


SYSTEMS: dict[str, System] = {}
"""Every system by name; the room `systems` fills it."""


def register(system: System) -> System:
    """Adds a system to the list; returns it."""
    SYSTEMS[system.name] = system
    return system


def find_system(name: str) -> System:
    """Returns a system.

    Raises:
        SettingsError: If there is none of this name.
    """
    if name not in SYSTEMS:
        raise SettingsError(f"There is no system '{name}': expected one of {', '.join(SYSTEMS)}.")
    return SYSTEMS[name]


def named_recipe(name: str, system: str = DEFAULT_SYSTEM, /, **overrides: Any) -> Recipe:
    """Returns a preset of a system, with any setting overridden.

    Args:
        name: One of the system's presets: `smoke`, `demo`, `laptop`, `paper`.
        system: One of `SYSTEMS`.
        **overrides: Settings and their values, flat.

    Raises:
        SettingsError: If the system, the preset or a setting does not exist, or a value is out of range.
    """
    found = find_system(system)
    if name not in found.presets:
        raise SettingsError(f"There is no recipe '{name}': expected one of {', '.join(found.presets)}.")
    preset = found.recipe.build(name, found.presets[name], system)
    return preset.changed(**overrides) if overrides else preset


def draw_set(recipe: Recipe, folder: Path) -> None:
    """Draws a recipe's synthetic set into a new folder.

    Raises:
        SettingsError: If the system draws none, or the recipe names no counts.
        DataError: If a count is out of range, or the folder cannot be written.
    """
    draw = find_system(recipe.system).draw
    if draw is None:
        raise SettingsError(f"The system '{recipe.system}' draws no radiographs: give a folder with --data DIR.")
    if not recipe.synthetic.synthetic_train:
        raise SettingsError(
            f"The recipe '{recipe.name}' draws no radiographs: use --recipe demo, or set synthetic_train."
        )
    draw(folder, recipe)


def overrides_of(recipe: Recipe) -> dict[str, Any]:
    """Returns the settings that differ from the recipe's preset, as plain JSON values."""
    preset = named_recipe(recipe.name, recipe.system).flat()
    return {key: value for key, value in recipe.flat().items() if value != preset[key]}
