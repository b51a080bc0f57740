"""Lungs behind heatmaps and boxes: found without annotation, kept with the network, and off unless asked for."""

import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from untrained import untrained

from tbkd_utils.errors import RunError
from tbkd_utils.experiments.chests import CHEST, read_chest, training_chest
from tbkd_utils.experiments.evaluation import activation_maps, localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.predict import locate
from tbkd_utils.experiments.trained import TrainedNetwork, load_trained
from tbkd_utils.localization.boxes import PerLung, boxes_from_heatmap
from tbkd_utils.localization.lungs import find_lungs, middle_of

LUNGS = {"inside_lungs": True, "boxes_by": "lung"}
COUNTS = {"synthetic_train": (10, 10, 20), "synthetic_size": 160, "resize": 128, "crop": 128}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment.open("smoke", out=tmp_path_factory.mktemp("chests"), overrides=COUNTS)


@pytest.fixture(scope="module")
def network(plain: Experiment) -> TrainedNetwork:
    return untrained(plain)


def test_nothing_is_kept_and_no_name_changes_unless_lungs_are_asked_for(
    plain: Experiment, network: TrainedNetwork
) -> None:
    found = localization(plain, network)
    assert not network.run.file(CHEST).exists()
    assert plain.recipe.differences("heatmaps", "scores") == {}
    assert localization(plain.changed(second_lung=0.9, boxes_by="regions"), network).maps.shape == found.maps.shape


def test_the_mean_chest_is_that_of_the_training_radiographs_without_their_boxes(plain: Experiment) -> None:
    class Bare(Experiment):
        @property
        def full_train(self):
            samples = super().full_train
            return replace(samples, boxes=(), areas=(), targets=np.zeros(0))

    bare = Bare(plain.recipe, plain.out / "bare", plain.root)
    for field in fields(training_chest(plain)):
        assert np.array_equal(getattr(training_chest(plain), field.name), getattr(training_chest(bare), field.name))


def test_scores_and_locate_agree_and_the_folder_alone_is_enough(
    plain: Experiment, network: TrainedNetwork, tmp_path: Path
) -> None:
    experiment = plain.changed(**LUNGS)
    asked = TrainedNetwork(network.role, experiment.recipe, network.run)
    with pytest.raises(RunError, match=r"has no chest\.safetensors.*inside_lungs"):
        activation_maps(asked, plain.test.subset([0]), experiment.recipe)
    found = localization(experiment, asked)
    assert found.maps.shape[1:] == (32, 32)
    mean = read_chest(network.run)
    place = 0
    lungs = find_lungs(np.array(found.samples.pixels[place]), mean)
    outside = np.array(found.heatmaps[place])[:4]  # above the lungs
    assert outside.max() <= 0.05 * max(found.heatmaps[place].max(), 1e-9)
    expected = boxes_from_heatmap(
        found.heatmaps[place], 0.5, found.min_area, lungs=PerLung(middle_of(lungs), 0.5)
    )  # fmt: skip
    assert np.array_equal(found.boxes[place], expected)
    assert all(len(boxes) <= 2 for boxes in found.boxes)

    copied = tmp_path / "copied"
    shutil.copytree(network.run.path, copied)
    again = load_trained(copied, "smoke", LUNGS)
    name = found.samples.names[place]
    (one,) = locate(plain.root / "imgs" / name, again, min_area=found.min_area).findings
    back = found.samples.geometries[place].invert_boxes(found.boxes[place])
    np.testing.assert_allclose(one.boxes, back, atol=1e-3)
