"""The trainings behind Figures 8 and 9, Table 3 and the controls."""

from collections.abc import Callable, Mapping

from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.experiments.system import Variant

TEACHER, STUDENT = "teacher", "student"
SECOND, SMOOTHED, UNTRAINED = "second teacher", "label smoothing", "untrained teacher's student"
CONTROLS = (SECOND, SMOOTHED, UNTRAINED)
CONDITIONS = {
    TEACHER: "labels alone",
    STUDENT: "labels and the trained teacher",
    SECOND: "labels alone, the last layer from another seed: seed variance alone",
    SMOOTHED: "labels alone, smoothed: a regularizer without a teacher",
    UNTRAINED: "labels and the teacher as it was before training: a teacher without knowledge",
}
"""What each network of Table 3 learns from; all have the same start, batches and epochs."""
COMPARED = ((STUDENT, TEACHER), *((STUDENT, other) for other in CONTROLS), *((other, TEACHER) for other in CONTROLS))
"""Which conditions are set against which: the paper's comparison, then the student and the controls."""


def temperature_variants(recipe: Recipe) -> list[Variant]:
    """Figure 8: a student for each of the recipe's `temperatures`."""
    return [
        Variant(STUDENT, STUDENT, value, recipe.changed(temperature=value)) for value in recipe.ablation.temperatures
    ]


def alpha_variants(recipe: Recipe) -> list[Variant]:
    """Figure 9: a student for each of the recipe's `alphas`."""
    return [Variant(STUDENT, STUDENT, value, recipe.changed(alpha=value)) for value in recipe.ablation.alphas]


def seed_variants(recipe: Recipe) -> list[Variant]:
    """Table 3: a teacher and a student for each of the recipe's `seeds`."""
    return [
        Variant(role, role, seed, recipe.changed(seed=seed))
        for role in (TEACHER, STUDENT)
        for seed in recipe.ablation.seeds
    ]


def control_variants(recipe: Recipe) -> list[Variant]:
    """The control conditions for each of the recipe's `seeds`, at the student's budget."""
    ablation = recipe.ablation
    changes = {
        SECOND: (TEACHER, lambda seed: {"seed": seed + ablation.control_seed_shift}),
        SMOOTHED: (TEACHER, lambda seed: {"seed": seed, "label_smoothing": ablation.control_smoothing}),
        UNTRAINED: (STUDENT, lambda seed: {"seed": seed, "teacher_trained": False}),
    }
    return [
        Variant(condition, role, seed, recipe.changed(**change(seed)))
        for condition, (role, change) in changes.items()
        for seed in ablation.seeds
    ]


GRIDS: Mapping[str, Callable[[Recipe], list[Variant]]] = {
    "seeds": seed_variants,
    "controls": control_variants,
    "temperature": temperature_variants,
    "alpha": alpha_variants,
}
"""Grids by the name that a notebook asks for, those first that others need or that the report needs most."""
