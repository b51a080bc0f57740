"""The settings that only this system has: those of the student of maps."""

from typing import Literal

from pydantic import Field

from tbkd_utils.experiments.recipe import Counts, Folder, Recipe, Settings


class Maps(Settings):
    """A student that learns where tuberculosis is, from cleaned maps of several teachers (ours; no paper's).

    Without `anatomy` it is told nothing but labels and what a lung is. With it, it is also told that tuberculosis
    prefers the upper half of a lung, which a person wrote down: report both.
    """

    map_teachers: Counts = Field(
        (), description="seeds of the teachers whose maps the student learns; none: no student"
    )
    mask_source: Literal["maps", "lungs", "boxes"] = Field(
        "maps",
        description="its masks: from teachers' maps; upper halves of lungs (blind); training boxes (full supervision)",
    )
    map_threshold: float = Field(
        0.5, ge=0, le=1, description="maps: a lung's region starts at this share of the lung's maximum"
    )
    map_second_lung: float = Field(
        0.5, ge=0, le=1, description="maps: the fainter lung has a mask from this share of the other's maximum"
    )
    anatomy: float = Field(
        0.0,
        ge=0,
        le=1,
        description="maps: how far edges move to the lung's upper half; knowledge written by hand, in no label",
    )
    label_weight: float = Field(0.1, ge=0, description="weight of the label's cross-entropy beside the map's")
    map_network: str = Field("efficientnet_lite0_fpn", description="network of the student of maps")
    map_epochs: int = Field(0, ge=0, description="its largest number of epochs; 0: as the others")
    map_batch_size: int = Field(0, ge=0, description="its radiographs per step; 0: as the others")
    map_balance: Literal["", "none", "sampler"] = Field(
        "", description="how its classes are balanced; empty: as the others"
    )
    map_resize: int = Field(0, ge=0, description="its shorter side after resizing, in pixels; 0: as the others")
    map_crop: int = Field(0, ge=0, description="its input, in pixels; 0: as the others")


class Beyond(Settings):
    """How the student of maps is looked at once it is trained, and what it is compared with."""

    map_cam_sizes: Counts = Field(
        (), description="its sides of the input, in pixels, whose maps are averaged; empty: as the others"
    )
    more_negatives: Folder = Field(
        "", description="a teacher with negatives_data from this folder is compared too; empty: it is left out"
    )


class TbRecipe(Recipe):
    """All settings of this system."""

    maps: Maps = Maps()
    beyond: Beyond = Beyond()
