"""The trainings behind the comparisons: arms, seeds, divisions, and other networks."""

from collections.abc import Callable, Mapping

from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.experiments.system import Variant
from tbkd_utils.systems.pneumonia.settings import PneumoniaRecipe

CLASSIFIER = "classifier"
BY_PATIENT, BY_IMAGE = "by patient", "by image"
SECOND_WEIGHTS = ("resnet50", "mobilenet_v2", "mobilenet_v3_large")
"""Networks that the source starts from torchvision's second set of ImageNet weights."""
SEVEN = ("resnet18", "densenet121", "efficientnet_b0", "vit_b_16", *SECOND_WEIGHTS)
"""The networks of the paper."""


def _own(recipe: Recipe) -> PneumoniaRecipe:
    assert isinstance(recipe, PneumoniaRecipe)
    return recipe


def source_weights(network: str) -> str:
    """Returns the name of the ImageNet weights from which the source starts a network."""
    return "imagenet1k_v2" if network in SECOND_WEIGHTS else "imagenet1k_v1"


def arm_variants(recipe: Recipe) -> list[Variant]:
    """A network for each way to correct the imbalance."""
    return [
        Variant(arm, CLASSIFIER, recipe.training.seed, recipe.changed(balance=arm))
        for arm in _own(recipe).comparisons.arms
    ]


def seed_variants(recipe: Recipe) -> list[Variant]:
    """The recipe's own arm for each of its `seeds`."""
    return [
        Variant(recipe.training.balance, CLASSIFIER, seed, recipe.changed(seed=seed)) for seed in recipe.ablation.seeds
    ]


def division_variants(recipe: Recipe) -> list[Variant]:
    """The recipe's own network on several divisions by patient."""
    return [
        Variant(
            BY_PATIENT, CLASSIFIER, seed, recipe.changed(division="patients", division_seed=seed, drop_duplicates=True)
        )
        for seed in _own(recipe).comparisons.division_seeds
    ]


def leak_variants(recipe: Recipe) -> list[Variant]:
    """The same files divided by patient and by image, pair by pair."""
    return [
        Variant(name, CLASSIFIER, seed, recipe.changed(division=division, division_seed=seed, drop_duplicates=True))
        for seed in _own(recipe).comparisons.leak_seeds
        for name, division in ((BY_PATIENT, "patients"), (BY_IMAGE, "images"))
    ]


def network_variants(recipe: Recipe) -> list[Variant]:
    """The recipe's own network and those it is compared with, each from the weights that the paper started from."""
    variants = [Variant(recipe.training.network, CLASSIFIER, recipe.training.seed, recipe)]
    for network in _own(recipe).comparisons.compared_networks:
        named = recipe.training.weights.startswith("imagenet") and network in SEVEN
        weights = source_weights(network) if named else recipe.training.weights
        variants.append(
            Variant(network, CLASSIFIER, recipe.training.seed, recipe.changed(network=network, weights=weights))
        )
    return variants


GRIDS: Mapping[str, Callable[[Recipe], list[Variant]]] = {
    "arms": arm_variants,
    "seeds": seed_variants,
    "leak": leak_variants,
    "divisions": division_variants,
    "networks": network_variants,
}
"""Grids by the name that a notebook asks for."""
