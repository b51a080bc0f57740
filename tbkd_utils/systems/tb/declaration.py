"""The first system: tuberculosis located by a student distilled from a teacher of its own size (arXiv 2512.11057)."""

from pathlib import Path
from typing import Any

from tbkd_utils.data.readers import Tbx11k, Tbx11kKaggle
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.experiments.system import Role, System, Targets, Task, register
from tbkd_utils.systems.tb.grid import GRIDS
from tbkd_utils.systems.tb.presets import PRESETS
from tbkd_utils.systems.tb.report import ITEMS
from tbkd_utils.systems.tb.settings import TbRecipe


def draw(root: Path, recipe: Recipe) -> None:
    """Draws the recipe's radiographs with TB, without it, and with something else, in TBX11K's layout.

    Raises:
        DataError: If a count is out of range, or the folder cannot be written.
    """
    from tbkd_utils.data.synthetic.dataset import write_synthetic  # OpenCV: not for naming a recipe

    spec = recipe.synthetic
    write_synthetic(
        root,
        train=spec.synthetic_train,
        val=spec.synthetic_val,
        size=spec.synthetic_size,
        marker_rate=spec.synthetic_marker_rate,
        seed=spec.synthetic_seed,
    )


def masks(experiment: Any) -> Targets:
    """Returns what the student of maps learns from."""
    from tbkd_utils.systems.tb.masks import TbMasks  # torch: not for naming a recipe

    return TbMasks(experiment)


TB = register(
    System(
        name="tb",
        summary="tuberculosis, located by a distilled student",
        task=Task(classes=("no TB", "TB"), finding="tuberculosis"),
        roles={
            "teacher": Role("cross_entropy"),
            "map_student": Role(
                "map",
                groups=("data", "pixels", "training", "maps"),
                settings={
                    "network": "map_network",
                    "epochs": "map_epochs",
                    "batch_size": "map_batch_size",
                    "balance": "map_balance",
                    "cam_sizes": "map_cam_sizes",
                    "resize": "map_resize",
                    "crop": "map_crop",
                },
                targets=masks,
            ),
            "student": Role("distillation", teacher="teacher", groups=("data", "pixels", "training", "distillation")),
        },
        readers=(Tbx11k, Tbx11kKaggle),
        presets=PRESETS,
        draw=draw,
        grids=GRIDS,
        recipe=TbRecipe,
        report=ITEMS,
    )
)
