"""A system that the package does not know, defined here alone: trained, scored and drawn without a change to it.

Three classes, patients, masks, a layout of its own, a network of two layers, a loss of two terms: every seam at once.
"""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pydantic
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from tbkd_utils.data.check import check_dataset
from tbkd_utils.data.records import OnError, Radiograph
from tbkd_utils.errors import DataError, SettingsError
from tbkd_utils.experiments import Experiment, Variant, classification, load_trained, localization, locate, train
from tbkd_utils.experiments.grid import train_variant
from tbkd_utils.experiments.recipe import Recipe, Settings
from tbkd_utils.experiments.series import plan
from tbkd_utils.experiments.system import SYSTEMS, Role, System, Task, register
from tbkd_utils.models.losses import LOSSES, Batch, Outputs, Terms
from tbkd_utils.models.networks import NETWORKS, Network
from tbkd_utils.views import save_figure, save_table
from tbkd_utils.views.figures import algorithm_1, histories, radiographs

CLASSES = ("round", "square", "nothing")


class Shapes:
    """`shapes.json` names pictures with class, patient and box; `masks/` holds what is drawn in each."""

    name = "shapes"
    needs = ("shapes.json", "images/", "masks/")
    kinds = CLASSES
    categories: dict[int, str] = {}  # noqa: RUF012

    def __init__(self, root: Path) -> None:
        self.root = root

    def splits(self) -> tuple[str, ...]:
        return ("train", "test")

    def listed_splits(self) -> tuple[str, ...]:
        return self.splits()

    def records(self, split: str, on_error: OnError) -> list[Radiograph]:
        found = []
        for row in json.loads((self.root / "shapes.json").read_text()):
            if row["class"] not in CLASSES:
                on_error(DataError(f"{self.root / 'shapes.json'}: unknown class {row['class']!r}."))
            elif row["split"] == split:
                boxes = np.array(row["boxes"], np.float32).reshape(-1, 4)
                found.append(
                    Radiograph(
                        self.root / "images" / row["name"], CLASSES.index(row["class"]), boxes, "drawn", row["name"],
                        row["class"], size=(48, 48), group=row["patient"], masks=(self.root / "masks" / row["name"],),
                    )
                )  # fmt: skip
        return found


def draw(root: Path, recipe: Recipe) -> None:
    """Bright discs, bright squares and nothing, on noise; three pictures of each patient."""
    rng, rows = np.random.default_rng(recipe.synthetic.synthetic_seed), []
    y, x = np.mgrid[:48, :48]
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    counts = {"train": recipe.synthetic.synthetic_train, "test": recipe.synthetic.synthetic_val}
    for split, numbers in counts.items():
        for kind, patients in zip(CLASSES, numbers, strict=True):
            for number in range(3 * patients):
                cx, cy = rng.integers(14, 34, 2)
                mask = np.maximum(abs(x - cx), abs(y - cy)) < 8 if kind == "square" else np.hypot(x - cx, y - cy) < 8
                mask &= kind != "nothing"
                name = f"{split}_{kind}_{number}.png"
                image = 40 + 150 * mask + rng.normal(0, 10, mask.shape)
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / name)
                Image.fromarray((255 * mask).astype(np.uint8)).save(root / "masks" / name)
                box = [[int(cx - 7), int(cy - 7), int(cx + 8), int(cy + 8)]] if kind != "nothing" else []
                rows.append({"name": name, "split": split, "class": kind, "boxes": box,
                             "patient": f"{split}{kind}{number // 3}"})  # fmt: skip
    (root / "shapes.json").write_text(json.dumps(rows))


class Two(nn.Module):
    """A convolution whose maps are looked at, and a linear layer; a second output says where the shape is."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.ReLU())
        self.where, self.fc = nn.Conv2d(8, 1, 1), nn.Linear(8, classes)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.conv(images)  # (b, 8, H / 2, W / 2)
        return {"logits": self.fc(maps.mean(dim=(2, 3))), "where": self.where(maps)[:, 0]}


class TwoTerms:
    """Cross-entropy, and how well the second output covers the mask."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, outputs: Outputs, batch: Batch, teacher: Outputs | None) -> Terms:
        assert not isinstance(outputs, torch.Tensor)
        classes = F.cross_entropy(outputs["logits"], batch["targets"])
        small = F.interpolate(batch["masks"][:, None].float(), outputs["where"].shape[1:])[:, 0]
        mask = F.binary_cross_entropy_with_logits(outputs["where"], small)
        return {"loss": classes + self.weight * mask, "classes": classes, "mask": mask}


class Own(Settings):
    """Settings that only this system has."""

    mask_weight: float = pydantic.Field(0.5, ge=0, description="weight of the mask's term")
    view: Literal["front", "side"] = pydantic.Field("front", description="which way a picture was taken")


class ShapesRecipe(Recipe):
    shapes: Own = Own()


@pytest.fixture(scope="module", autouse=True)
def _declared():
    with pytest.MonkeyPatch.context() as patch:
        for registry, name, entry in (
            (NETWORKS, "two", Network(Two, "fc", "conv", pooled_linear=True, mean=(0.5,) * 3, std=(0.25,) * 3)),
            (LOSSES, "two_terms", lambda settings: TwoTerms(settings["mask_weight"])),
        ):
            patch.setitem(registry, name, entry)
        patch.setitem(SYSTEMS, "shapes", None)  # so that it is gone afterwards
        register(
            System(
                name="shapes",
                task=Task(CLASSES, explained=0),
                roles={"finder": Role("two_terms", groups=("data", "pixels", "training", "shapes"))},
                readers=(Shapes,),
                presets={
                    "demo": {
                        "synthetic_train": [8, 8, 8], "synthetic_val": [3, 3, 3], "network": "two", "weights": "none",
                        "train_splits": ["train"], "test_splits": ["test"], "randaugment_ops": 0,
                        "resize": 48, "crop": 48,
                        "early_stopping_on": "validation", "validation_fraction": 0.2, "epochs": 12, "batch_size": 8,
                        "learning_rate": 0.02, "threads": 1, "resamples": 200,
                    }
                },
                draw=draw,
                recipe=ShapesRecipe,
                grids={
                    "weights": lambda recipe: [
                        Variant("finder", "finder", w, recipe.changed(mask_weight=w)) for w in (0.0, 0.5)
                    ]
                },
            )
        )  # fmt: skip
        yield


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment.open("demo", out=tmp_path_factory.mktemp("shapes"), system="shapes")


def test_its_folders_and_settings_are_its_own(experiment: Experiment) -> None:
    assert experiment.runs.name == experiment.figures.name == "shapes-demo"
    assert experiment.recipe.shapes.mask_weight == 0.5
    assert experiment.changed(mask_weight=2.0).recipe.shapes.mask_weight == 2.0
    with pytest.raises(SettingsError, match="Did you mean 'mask_weight'"):
        experiment.changed(mask_weigth=1.0)


def test_patients_stay_on_one_side_and_masks_follow_the_pixels(experiment: Experiment) -> None:
    assert experiment.validation is not None
    assert not set(experiment.train.groups) & set(experiment.validation.groups)
    assert len(experiment.train) + len(experiment.validation) == 72
    for samples in (experiment.train, experiment.test):
        assert samples.masks is not None
        assert samples.masks.shape == samples.pixels.shape
        bright = np.array(samples.pixels[:]) > 115
        assert (bright == np.array(samples.masks[:])).mean() > 0.99


def test_it_trains_logs_every_term_and_learns(experiment: Experiment) -> None:
    trained = train(experiment, "finder")
    history = trained.history
    assert {"train_loss", "train_classes", "train_mask", "validation_loss", "validation_accuracy"} <= set(history)
    both = history["train_classes"] + 0.5 * history["train_mask"]
    assert np.allclose(history["train_loss"], both, rtol=1e-5)
    assert history["train_mask"].iloc[-1] < 0.7 * history["train_mask"].iloc[0]
    other = train_variant(experiment, SYSTEMS["shapes"].grids["weights"](experiment.recipe)[0])
    assert other.run.path != trained.run.path
    assert train(experiment.changed(mask_weight=0.5, threshold=0.3), "finder").run.path == trained.run.path


def test_it_is_scored(experiment: Experiment) -> None:
    trained = train(experiment, "finder")
    table = classification(experiment, trained).set_index("metric")["value"]
    assert table["auc"] > 0.5
    found = localization(experiment, trained)
    assert len(found.rows) == 18  # those with a box, whatever their class
    assert found.maps.shape == (18, 24, 24)
    assert 0 <= found.miou <= 1
    assert {"score", "matched", "max_box_acc_v2"} <= set(found.summary["metric"])


def test_it_is_drawn_and_saved(experiment: Experiment) -> None:
    trained = train(experiment, "finder")
    found = localization(experiment, trained)
    save_figure(experiment, radiographs(experiment.test, CLASSES), "radiographs")
    save_figure(experiment, algorithm_1(found, 0), "boxes")
    save_figure(experiment, histories({"finder": trained.history}), "training")
    save_table(experiment, found.summary, "localization")
    assert {path.suffix for path in experiment.figures.iterdir()} == {".png", ".svg", ".csv", ".md"}
    assert len(pd.read_csv(experiment.figures / "localization.csv")) == len(found.summary)


def test_its_network_is_loaded_from_its_folder_and_locates(experiment: Experiment) -> None:
    trained = train(experiment, "finder")
    again = load_trained(trained.run.path)
    assert (again.role, again.recipe) == ("finder", experiment.recipe)
    located = locate(experiment.root / "images", again)
    assert len(located.findings) == 99
    assert not located.failures
    brightest = [f for f in located.findings if f.name.startswith("test_round")]
    assert all(0 <= f.probability <= 1 for f in brightest)


def test_its_dataset_is_checked(experiment: Experiment) -> None:
    report = check_dataset(experiment.root, readers=(Shapes,))
    assert report.ok
    assert report.tables()["patients"]["patients"].tolist() == [24, 9]
    assert report.tables()["images"]["total"].tolist() == [72, 27]
    rows = json.loads((experiment.root / "shapes.json").read_text())
    assert len({row["patient"] for row in rows}) == 33


def test_its_notebooks_would_run_as_a_series_of_their_own(experiment: Experiment, tmp_path: Path) -> None:
    import nbformat

    notebook = nbformat.v4.new_notebook(
        metadata={"tbkd": {"system": "shapes", "trains": "finder", "grid": ["weights"]}}
    )
    nbformat.write(notebook, tmp_path / "21_shapes.ipynb")
    assert [step.name for step in plan(experiment, tmp_path)] == ["finder (mask_weight=0.0)", "21_shapes"]


def test_a_mask_that_is_not_there_is_named(experiment: Experiment, tmp_path: Path) -> None:
    draw(tmp_path / "drawn", experiment.recipe)
    lost = next((tmp_path / "drawn" / "masks").glob("train_round_*"))
    lost.unlink()
    broken = Experiment.open("demo", tmp_path / "drawn", tmp_path, system="shapes")
    with pytest.raises(DataError, match=f"{lost.name}: cannot be read"):
        _ = broken.train
