"""The second system: pneumonia in children's radiographs, and where Grad-CAM looks (arXiv 2511.00456)."""

from pathlib import Path

from tbkd_utils.data.readers import Kermany, KermanyPooled, KermanyPooledUpper
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.experiments.system import Role, System, Task, register
from tbkd_utils.systems.pneumonia.division import as_the_source
from tbkd_utils.systems.pneumonia.grid import CLASSIFIER, GRIDS
from tbkd_utils.systems.pneumonia.presets import PRESETS
from tbkd_utils.systems.pneumonia.report import ITEMS
from tbkd_utils.systems.pneumonia.settings import PneumoniaRecipe


def draw(root: Path, recipe: Recipe) -> None:
    """Draws the recipe's persons, normal and with pneumonia, in the layout of Kermany's set.

    Raises:
        DataError: If a count is out of range, or the folder cannot be written.
    """
    from tbkd_utils.data.synthetic.pneumonia import write_pneumonia  # OpenCV: not for naming a recipe

    spec = recipe.synthetic
    write_pneumonia(
        root,
        train=spec.synthetic_train,
        test=spec.synthetic_val,
        size=spec.synthetic_size,
        identity=spec.synthetic_identity,
        seed=spec.synthetic_seed,
    )


PNEUMONIA = register(
    System(
        name="pneumonia",
        summary="pneumonia in children, located by Grad-CAM",
        task=Task(classes=("normal", "pneumonia")),
        roles={CLASSIFIER: Role("focal", groups=("data", "pixels", "training", "pneumonia"))},
        readers=(Kermany, KermanyPooled, KermanyPooledUpper),
        presets=PRESETS,
        draw=draw,
        drawn="pneumonia.json",
        divisions={"source": as_the_source},
        grids=GRIDS,
        recipe=PneumoniaRecipe,
        report=ITEMS,
    )
)
