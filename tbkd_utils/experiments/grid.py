"""Grids of networks: what the variants of an experiment share, and training and measuring each.

What trains and measures is imported when it is called: planning a series should not take those seconds.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.system import Variant, named_recipe

if TYPE_CHECKING:
    from tbkd_utils.experiments.evaluation import Localization
    from tbkd_utils.experiments.trained import TrainedNetwork


def within(experiment: Experiment, variant: Variant) -> Experiment:
    """Returns the experiment with a variant's settings of data and training; of another preset, with all of them."""
    if variant.recipe.name != experiment.recipe.name:
        return replace(experiment, recipe=variant.recipe)
    groups = {group for role in experiment.system.roles.values() for group in role.groups}
    return experiment.changed(**variant.recipe.flat(*groups))


def train_variant(experiment: Experiment, variant: Variant, *, progress: bool = False) -> "TrainedNetwork":
    """Trains a variant, or returns it if it is trained already; `experiment` may differ in its settings."""
    from tbkd_utils.experiments.trained import train

    return train(within(experiment, variant), variant.role, progress=progress)


def localize_variant(experiment: Experiment, variant: Variant) -> "Localization":
    """Returns heatmaps, boxes and scores of a variant, which is trained first if need be."""
    from tbkd_utils.experiments.evaluation import localization

    return localization(within(experiment, variant), train_variant(experiment, variant))


def classify_variant(experiment: Experiment, variant: Variant) -> dict[str, float]:
    """Returns a variant's metrics of Table 4, by name; it is trained first if need be."""
    from tbkd_utils.experiments.evaluation import classification

    table = classification(within(experiment, variant), train_variant(experiment, variant))
    return dict(zip(table["metric"], table["value"], strict=True))


def identity(experiment: Experiment, variant: Variant) -> str:
    """Returns a text that is equal for variants that are the same network: a teacher does not depend on alpha."""
    settings = within(experiment, variant).training_settings(variant.role)
    return f"{variant.role} {json.dumps(settings, sort_keys=True)}"


def changes(experiment: Experiment, variant: Variant) -> dict[str, Any]:
    """Returns the settings of a variant's training that are not the experiment's own; of another preset, not that's."""
    groups, recipe = experiment.role(variant.role).groups, experiment.recipe
    if variant.recipe.name != recipe.name:
        recipe = named_recipe(variant.recipe.name, recipe.system)
    usual = recipe.flat(*groups)
    return {key: value for key, value in variant.recipe.flat(*groups).items() if value != usual[key]}


def distinct(experiment: Experiment, variants: Iterable[Variant]) -> list[Variant]:
    """Leaves out the variants that are the same network as an earlier one."""
    first: dict[str, Variant] = {}
    for variant in variants:
        first.setdefault(identity(experiment, variant), variant)
    return list(first.values())


def all_variants(experiment: Experiment) -> list[Variant]:
    """Returns every variant of the system's grids once, in the grids' order."""
    grids = experiment.system.grids.values()
    return distinct(experiment, (variant for grid in grids for variant in grid(experiment.recipe)))
