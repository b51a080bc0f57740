"""Boxes and mIOU of a whole set at any setting: the very numbers of the package's own functions."""

import numpy as np
import pytest
from tiny_maps import boxes_of

from tbkd_utils.errors import UsageError
from tbkd_utils.experiments.evaluation import Localization, localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import train
from tbkd_utils.localization.scores import mean_iou
from tbkd_utils.views.live_boxes import LiveBoxes

SETTINGS = [(0.0, 0.0), (0.2, 30.0), (0.5, 0.0), (0.5, 108.5), (0.73, 60.0), (1.0, 0.0), (0.5, 1e9)]


@pytest.fixture(scope="module")
def found(smoke: Experiment) -> Localization:
    return localization(smoke, train(smoke, "student"))


def wavy(found: Localization, **changes) -> Localization:
    """The same radiographs with heatmaps that break into several regions, and some settings changed."""
    experiment = found.experiment.changed(**changes)
    maps = np.random.default_rng(0).random(found.maps.shape, dtype=np.float32)
    return Localization(found.role, found.samples, maps, found.min_area, found.run, experiment)


@pytest.mark.parametrize(("threshold", "min_area"), SETTINGS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"area": "contour"}, {"normalization": "max"}, {"no_prediction": "skip"}, {"average": "box"}],
    ids=str,
)
def test_boxes_and_miou_are_the_packages_own(
    found: Localization, changes: dict, threshold: float, min_area: float
) -> None:
    case = wavy(found, **changes)
    recipe, live = case.experiment.recipe, LiveBoxes(case)
    boxes = live.boxes(threshold, min_area)
    expected = boxes_of(case.heatmaps, threshold, min_area, area=recipe.scores.area, method=recipe.scores.normalization)
    for own, theirs in zip(boxes, expected, strict=True):
        assert own.dtype == theirs.dtype
        assert np.array_equal(own, theirs)
    miou = mean_iou(
        case.samples.boxes, expected, no_prediction=recipe.scores.no_prediction, average=recipe.scores.average
    )
    assert live.miou(boxes) == pytest.approx(miou, abs=0, nan_ok=True)


def test_at_the_recipes_setting_it_is_the_evaluations_own_number(found: Localization) -> None:
    live = LiveBoxes(found)
    assert live.miou(live.boxes(found.experiment.recipe.scores.threshold, found.min_area)) == found.miou


def test_the_settings_give_several_boxes_and_none(found: Localization) -> None:
    live = LiveBoxes(wavy(found))
    assert max(len(one) for one in live.boxes(0.73, 0.0)) > 1
    assert sum(len(one) for one in live.boxes(0.5, 1e9)) == 0


def test_going_back_to_a_threshold_changes_nothing(found: Localization) -> None:
    live = LiveBoxes(wavy(found))
    first = live.boxes(0.5, 10.0)
    live.boxes(0.6, 10.0)
    assert all(np.array_equal(a, b) for a, b in zip(first, live.boxes(0.5, 10.0), strict=True))


@pytest.mark.parametrize(("threshold", "min_area"), [(-0.1, 0.0), (1.1, 0.0), (0.5, -1.0), (float("nan"), 0.0)])
def test_a_setting_out_of_range_is_refused(found: Localization, threshold: float, min_area: float) -> None:
    with pytest.raises(UsageError, match=r"threshold in \[0, 1\] and a minimum area"):
        LiveBoxes(found).boxes(threshold, min_area)
