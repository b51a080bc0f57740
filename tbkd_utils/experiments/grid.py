"""The trainings behind Figures 8 and 9, Table 3 and the controls: one cell per network, shared where it is the same."""

from collections.abc import Iterable
from dataclasses import dataclass

from tbkd_utils.experiments.evaluation import Localization, classification, localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.experiments.trained import TrainedClassifier, train_student, train_teacher

TEACHER, STUDENT = "teacher", "student"
SECOND, SMOOTHED, UNTRAINED = "second teacher", "label smoothing", "untrained teacher's student"
CONTROLS = (SECOND, SMOOTHED, UNTRAINED)
ARMS = {
    TEACHER: "labels alone",
    STUDENT: "labels and the trained teacher",
    SECOND: "labels alone, the last layer from another seed: another roll of the dice",
    SMOOTHED: "labels alone, smoothed: a regulariser without a teacher",
    UNTRAINED: "labels and the teacher as it was before training: a teacher without knowledge",
}
"""What each network of notebook 9 learns from; all have the same start, batches and epochs."""


@dataclass(frozen=True)
class Cell:
    """One network of the grid.

    Attributes:
        arm: One of `ARMS`.
        value: What the ablation varies: temperature, alpha, or the seed that the cell is compared at.
        recipe: All settings of this network.
    """

    arm: str
    value: float
    recipe: Recipe

    @property
    def role(self) -> str:
        """`teacher` (trained by notebook 2) or `student` (by notebook 3)."""
        return STUDENT if self.arm in (STUDENT, UNTRAINED) else TEACHER

    @property
    def identity(self) -> tuple:
        """Equal for cells that are the same network: a teacher does not depend on distillation."""
        parts = ("training", "distillation") if self.role == STUDENT else ("training",)
        return self.role, *((key, value) for key, value in self.recipe.part(*parts).items())

    def train(self, experiment: Experiment, *, progress: bool = False) -> TrainedClassifier:
        """Trains the network, or returns it if it is trained already; `experiment` may differ in these settings."""
        train = train_student if self.role == STUDENT else train_teacher
        return train(self.within(experiment), progress=progress)

    def localize(self, experiment: Experiment) -> Localization:
        """Returns heatmaps, boxes and scores of the network, which is trained first if need be."""
        return localization(self.within(experiment), self.train(experiment))

    def classify(self, experiment: Experiment) -> dict[str, float]:
        """Returns the network's metrics of Table 4, by name."""
        table = classification(self.within(experiment), self.train(experiment))
        return dict(zip(table["metric"], table["value"], strict=True))

    def within(self, experiment: Experiment) -> Experiment:
        """Returns the experiment with this cell's settings."""
        return experiment.changed(**self.recipe.part("training", "distillation"))


def temperature_cells(recipe: Recipe) -> list[Cell]:
    """Figure 8: a student for each of the recipe's `temperatures`."""
    return [Cell(STUDENT, value, recipe.changed(temperature=value)) for value in recipe.temperatures]


def alpha_cells(recipe: Recipe) -> list[Cell]:
    """Figure 9: a student for each of the recipe's `alphas`."""
    return [Cell(STUDENT, value, recipe.changed(alpha=value)) for value in recipe.alphas]


def seed_cells(recipe: Recipe) -> list[Cell]:
    """Table 3: a teacher and a student for each of the recipe's `seeds`."""
    return [Cell(arm, seed, recipe.changed(seed=seed)) for arm in (TEACHER, STUDENT) for seed in recipe.seeds]


def control_cells(recipe: Recipe) -> list[Cell]:
    """The control arms for each of the recipe's `seeds`, at the student's budget."""
    changes = {
        SECOND: lambda seed: {"seed": seed + recipe.control_seed_shift},
        SMOOTHED: lambda seed: {"seed": seed, "label_smoothing": recipe.control_smoothing},
        UNTRAINED: lambda seed: {"seed": seed, "teacher_trained": False},
    }
    return [Cell(arm, seed, recipe.changed(**changes[arm](seed))) for arm in CONTROLS for seed in recipe.seeds]


def all_cells(recipe: Recipe) -> list[Cell]:
    """Every cell once, those first that others need or that the report needs most."""
    return distinct([*seed_cells(recipe), *control_cells(recipe), *temperature_cells(recipe), *alpha_cells(recipe)])


def distinct(cells: Iterable[Cell]) -> list[Cell]:
    """Leaves out the cells that are the same network as an earlier one."""
    first: dict[tuple, Cell] = {}
    for cell in cells:
        first.setdefault(cell.identity, cell)
    return list(first.values())
