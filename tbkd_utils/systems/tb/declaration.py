"""The first system: tuberculosis located by a student distilled from a teacher of its own size (arXiv 2512.11057)."""

from pathlib import Path

from tbkd_utils.data.readers import Tbx11k, Tbx11kKaggle
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.experiments.system import Role, System, Task, register
from tbkd_utils.systems.tb.grid import GRIDS
from tbkd_utils.systems.tb.presets import PRESETS
from tbkd_utils.systems.tb.report import ITEMS


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


TB = register(
    System(
        name="tb",
        summary="tuberculosis, located by a distilled student",
        task=Task(classes=("no TB", "TB"), finding="tuberculosis"),
        roles={
            "teacher": Role("cross_entropy"),
            "student": Role("distillation", teacher="teacher", groups=("data", "pixels", "training", "distillation")),
        },
        readers=(Tbx11k, Tbx11kKaggle),
        presets=PRESETS,
        draw=draw,
        grids=GRIDS,
        report=ITEMS,
    )
)
