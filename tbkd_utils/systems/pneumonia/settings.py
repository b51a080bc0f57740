"""The settings that only this system has."""

from typing import Annotated

from pydantic import AfterValidator, Field

from tbkd_utils.experiments.recipe import Counts, Folder, Recipe, Settings, Several, Words

ARMS = ("none", "sampler", "alpha", "both")
"""What corrects the imbalance of the classes; `both` is the paper's."""


def _known_arms(values: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [value for value in values if value not in ARMS]:
        raise ValueError(f"'{unknown[0]}' is no way to balance: expected some of {', '.join(ARMS)}")
    return values


class Pneumonia(Settings):
    """What a network of this system is trained with, beside the common settings."""

    focal_gamma: float = Field(
        2.0, ge=0, description="focal loss: how much less a sure answer counts; 0 is cross-entropy"
    )


class Comparisons(Settings):
    """Which networks are set against each other, and on which boxes their maps are scored."""

    arms: Annotated[Words, Several, AfterValidator(_known_arms)] = Field(
        ARMS, description="values of balance that are compared"
    )
    division_seeds: Annotated[Counts, Several] = Field(
        (0, 1, 2, 3, 4), description="divisions by patient whose spread is shown"
    )
    leak_seeds: Annotated[Counts, Several] = Field(
        (0, 1, 2), description="divisions that are made by patient and by image, to measure the leak"
    )
    compared_networks: Words = Field((), description="further networks that are trained as the first one is")
    boxes_data: Folder = Field(
        "", description="folder of NIH's or RSNA's radiographs with pneumonia boxes, where the maps are scored too"
    )


class PneumoniaRecipe(Recipe):
    """All settings of this system."""

    pneumonia: Pneumonia = Pneumonia()
    comparisons: Comparisons = Comparisons()
