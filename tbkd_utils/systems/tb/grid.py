"""The trainings behind Figures 8 and 9, Table 3 and the controls, and those beyond the paper."""

from collections.abc import Callable, Mapping
from typing import Any

from tbkd_utils.errors import SettingsError
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.experiments.system import Variant, named_recipe, overrides_of
from tbkd_utils.systems.tb.presets import BEYOND, PRESETS
from tbkd_utils.systems.tb.settings import TbRecipe

TEACHER, STUDENT, MAP_STUDENT = "teacher", "student", "map_student"
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


# --- beyond the paper -------------------------------------------------------------------------------------------------

LABELS, ANATOMY, BLIND, BOXES = "image labels", "image labels, anatomy", "no label: lungs alone", "training boxes"
FULL = "student of training boxes"
BEST = "student of cleaned maps"
NEGATIVES = "the same, and negatives of another dataset"
_ONE_A_LUNG: Mapping[str, Any] = {"inside_lungs": True, "boxes_by": "lung"}
STEPS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "teacher, one size, not mirrored": (TEACHER, LABELS, {"cam_flip": False, "cam_sizes": ()}),
    "teacher": (TEACHER, LABELS, {}),
    "teacher, inside the lungs": (TEACHER, LABELS, {"inside_lungs": True}),
    "teacher, one box a lung": (TEACHER, LABELS, _ONE_A_LUNG),
    "the same, but whole radiographs": (TEACHER, LABELS, {"augmentation": "randaugment", **_ONE_A_LUNG}),
    "the same, but classes as they come": (TEACHER, LABELS, {"balance": "none", **_ONE_A_LUNG}),
    NEGATIVES: (TEACHER, LABELS, _ONE_A_LUNG),
    BEST: (MAP_STUDENT, LABELS, {}),
    "student told of upper lobes": (MAP_STUDENT, ANATOMY, {"anatomy": 0.5}),
    "student of upper halves": (MAP_STUDENT, BLIND, {"mask_source": "lungs"}),
    FULL: (MAP_STUDENT, BOXES, {"mask_source": "boxes"}),
}
"""The conditions from a blind guess to full supervision: name to network, what it learned from, and how it differs from
the recipe. `NEGATIVES` is left out where the recipe names no other dataset."""


def beyond(recipe: Recipe) -> TbRecipe:
    """Returns the recipe that goes beyond the paper's on the same radiographs; a recipe beyond it as it is.

    Settings that were given by hand go along, unless that recipe sets them itself.

    Raises:
        SettingsError: If the recipe has no such counterpart.
    """
    if recipe.name not in {*BEYOND, *BEYOND.values()}:
        raise SettingsError(f"No recipe goes beyond '{recipe.name}': expected one of {', '.join(BEYOND)}.")
    if recipe.name in BEYOND:
        name = BEYOND[recipe.name]
        given = {key: value for key, value in overrides_of(recipe).items() if key not in PRESETS[name]}
        recipe = named_recipe(name, recipe.system, **given)
    assert isinstance(recipe, TbRecipe)
    return recipe


def steps_of(recipe: TbRecipe) -> tuple[str, ...]:
    """Returns the names of the conditions that a recipe allows, in the order of `STEPS`."""
    return tuple(name for name in STEPS if name != NEGATIVES or recipe.beyond.more_negatives)


def at_step(recipe: TbRecipe, condition: str) -> TbRecipe:
    """Returns the recipe under the settings of a condition."""
    more = {"negatives_data": recipe.beyond.more_negatives} if condition == NEGATIVES else {}
    return recipe.changed(**STEPS[condition][2], **more)


def chains(recipe: TbRecipe) -> list[TbRecipe]:
    """Returns one recipe per seed, each with teachers of its own: as many as `map_teachers`, counted on."""
    first, found = recipe.maps.map_teachers, []
    for place, seed in enumerate(recipe.ablation.seeds):
        own = tuple(teacher + place * len(first) for teacher in first)
        found.append(recipe.changed(seed=seed, map_teachers=own))
    return found


def teachers_of(chain: TbRecipe) -> list[TbRecipe]:
    """Returns the recipes of a chain's teachers."""
    return [chain.changed(seed=seed) for seed in chain.maps.map_teachers]


def beyond_variants(recipe: Recipe) -> list[Variant]:
    """The networks between a blind guess and full supervision, all teachers first; none without such a recipe."""
    if recipe.name not in BEYOND:
        return []
    ours, teachers, others = beyond(recipe), [], []
    for condition in steps_of(ours):
        role = STEPS[condition][0]
        for chain in chains(at_step(ours, condition)):
            own = teachers_of(chain)
            if role == TEACHER:
                others.append(Variant(condition, TEACHER, own[0].training.seed, own[0]))
            else:
                others.append(Variant(condition, role, chain.training.seed, chain))
                teachers += [Variant(condition, TEACHER, one.training.seed, one) for one in own if condition == BEST]
    return [*teachers, *others]


GRIDS: Mapping[str, Callable[[Recipe], list[Variant]]] = {
    "seeds": seed_variants,
    "controls": control_variants,
    "temperature": temperature_variants,
    "alpha": alpha_variants,
    "beyond": beyond_variants,
}
"""Grids by the name that a notebook asks for, those first that others need or that the report needs most."""
