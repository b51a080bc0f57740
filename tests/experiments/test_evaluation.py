"""Rows per image and what is made of them: every number is computed again from the files that are kept."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_dataset as tiny
import torch

from tbkd_utils.errors import TbkdError, UsageError
from tbkd_utils.experiments import evaluation as module
from tbkd_utils.experiments.evaluation import (
    THRESHOLDS,
    Localization,
    classification,
    localization,
    paired_rows,
    probabilities,
)
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import TrainedNetwork, train
from tbkd_utils.localization.boxes import boxes_from_heatmap, boxes_from_json
from tbkd_utils.localization.heatmaps import compute_heatmaps, grad_cam, upsample
from tbkd_utils.localization.scores import energy_inside, image_score, iou_matrix, matched_score, mean_iou, pointing_hit
from tbkd_utils.localization.tables import DELTAS, SCORES, max_box_acc, threshold_rows
from tbkd_utils.metrics.classification import METRICS, metrics_from_counts
from tbkd_utils.metrics.statistics import bootstrap_interval
from tbkd_utils.runs import Run


@pytest.fixture(scope="module")
def teacher(smoke: Experiment) -> TrainedNetwork:
    return train(smoke, "teacher")


@pytest.fixture(scope="module")
def student(smoke: Experiment) -> TrainedNetwork:
    return train(smoke, "student")


@pytest.fixture(scope="module")
def found(smoke: Experiment, teacher: TrainedNetwork) -> Localization:
    return localization(smoke, teacher)


def changed(experiment: Experiment, **settings) -> Experiment:
    """The same data and folders under other settings."""
    return dataclasses.replace(experiment, recipe=experiment.recipe.changed(**settings))


def elsewhere(experiment: Experiment, folder: Path, **settings) -> Experiment:
    """The same data under other settings, with runs in a folder of its own."""
    return Experiment(experiment.recipe.changed(**settings), folder, experiment.root)


@pytest.fixture
def blobs(smoke: Experiment, teacher: TrainedNetwork, tmp_path: Path, monkeypatch) -> Callable[..., Localization]:
    """Scores hand-made heatmaps, under some settings: one blob each, from a speck to half the image."""
    y, x = np.mgrid[:64, :64] + 0.5
    maps = []
    for spread, boxes in zip(np.geomspace(1, 20, 8), smoke.test.subset(range(8)).boxes, strict=True):
        cx, cy = (boxes[0, :2] + boxes[0, 2:]) / 2
        maps.append(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * spread**2)))
    monkeypatch.setattr(module, "compute_heatmaps", lambda *_, **__: np.float32(maps))
    return lambda **settings: localization(elsewhere(smoke, tmp_path, **settings), teacher)


# --- probabilities and Table 4 --------------------------------------------------------------------------------------


def test_one_row_per_test_radiograph_in_order(smoke: Experiment, teacher: TrainedNetwork) -> None:
    rows = probabilities(smoke, teacher)
    assert list(rows.columns) == ["name", "source", "label", "probability"]
    assert rows["name"].tolist() == list(smoke.test.names)
    assert rows["label"].tolist() == smoke.test.targets.tolist()
    assert rows["probability"].between(0, 1).all()
    with torch.inference_mode():
        alone = [teacher.model()(smoke.test.images(i, i + 1)).softmax(dim=1)[0, 1].item() for i in range(len(rows))]
    assert np.allclose(rows["probability"], alone, atol=1e-5)


def test_table_4_is_computed_from_the_kept_rows(smoke: Experiment, teacher: TrainedNetwork) -> None:
    table = classification(smoke, teacher).set_index("metric")
    (file,) = [f for f in smoke.runs.glob("probabilities-*/rows.csv") if made_by(f, teacher)]
    rows = pd.read_csv(file)
    tb, other = rows.loc[rows["label"] == 1, "probability"], rows.loc[rows["label"] == 0, "probability"]
    tp, fp = int((tb > 0.5).sum()), int((other > 0.5).sum())
    expected = metrics_from_counts(tp, len(tb) - tp, len(other) - fp, fp)
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in tb for b in other]
    expected["auc"] = sum(wins) / len(wins)
    assert list(table.index) == list(METRICS)
    for metric in METRICS:
        assert table.loc[metric, "value"] == pytest.approx(expected[metric], abs=1e-12, nan_ok=True)
    assert (table["n"] == len(smoke.test)).all()
    defined = table.dropna()
    assert {"accuracy", "auc"} <= set(defined.index)
    assert (defined["low"] <= defined["high"]).all()


def made_by(file: Path, trained: TrainedNetwork) -> bool:
    return json.loads((file.parent / "settings.json").read_text())["network"] == trained.run.path.name


def test_every_network_has_rows_of_its_own(smoke: Experiment, teacher, student) -> None:
    assert not np.array_equal(
        probabilities(smoke, teacher)["probability"], probabilities(smoke, student)["probability"]
    )


def test_best_and_last_epoch_are_kept_apart(smoke: Experiment, teacher: TrainedNetwork, tmp_path: Path) -> None:
    experiment = elsewhere(smoke, tmp_path)
    folders = []
    for keep in ("best", "last", "best"):
        probabilities(experiment, dataclasses.replace(teacher, recipe=teacher.recipe.changed(keep=keep)))
        folders.append(len(list(experiment.runs.glob("probabilities-*"))))
    assert folders == [1, 2, 2]


def test_a_second_call_reads_from_disk(smoke: Experiment, teacher: TrainedNetwork, found, monkeypatch) -> None:
    rows, table = probabilities(smoke, teacher), classification(smoke, teacher)

    def refuse(self: TrainedNetwork) -> torch.nn.Module:
        raise AssertionError("the network was asked for again")

    monkeypatch.setattr(TrainedNetwork, "model", refuse)
    pd.testing.assert_frame_equal(probabilities(smoke, teacher), rows)
    pd.testing.assert_frame_equal(classification(smoke, teacher), table)
    again = localization(smoke, teacher)
    assert np.array_equal(again.maps, found.maps)
    pd.testing.assert_frame_equal(again.rows, found.rows)
    pd.testing.assert_frame_equal(again.summary, found.summary)
    # Other boxes from the same heatmaps need no network either.
    higher = localization(changed(smoke, threshold=0.8), teacher)
    assert np.array_equal(higher.maps, found.maps)
    assert higher.run.path != found.run.path
    assert not higher.rows["boxes"].equals(found.rows["boxes"])


# --- heatmaps, boxes and their scores -------------------------------------------------------------------------------


def test_the_scored_radiographs_are_those_with_a_box(smoke: Experiment, found: Localization) -> None:
    boxed = [name for name, boxes in zip(smoke.test.names, smoke.test.boxes, strict=True) if len(boxes)]
    assert list(found.samples.names) == boxed == found.rows["name"].tolist()
    assert len(boxed) == 8
    assert found.role == "teacher"


def test_the_heatmaps_are_grad_cam_of_tb(smoke: Experiment, teacher: TrainedNetwork, found: Localization) -> None:
    maps = compute_heatmaps(teacher.model(), found.samples.images(), grad_cam(teacher.network, 1, method="captum"))
    expected = upsample(maps, found.samples.size)
    assert found.heatmaps.shape == (8, 64, 64)
    assert np.allclose(found.heatmaps, expected, atol=1e-6)
    assert found.heatmaps.max() > 0


def test_the_minimum_area_is_the_smallest_training_box(smoke: Experiment, teacher, found: Localization) -> None:
    scale = (smoke.recipe.pixels.resize / smoke.recipe.synthetic.synthetic_size) ** 2
    areas = [
        (right - left) * (bottom - top) * scale for r in smoke.train_records for left, top, right, bottom in r.boxes
    ]
    assert len(areas) == 23
    assert found.min_area == pytest.approx(min(areas), rel=1e-5)
    median = localization(changed(smoke, min_area_quantile=0.5), teacher)
    assert median.min_area == pytest.approx(float(np.median(areas)), rel=1e-5)


def test_the_minimum_area_can_be_a_share_of_the_image_which_no_box_decides(smoke: Experiment, teacher) -> None:
    share = localization(changed(smoke, min_area="share", min_area_share=0.05), teacher)
    none = localization(changed(smoke, min_area="none"), teacher)
    assert (share.min_area, none.min_area) == (pytest.approx(0.05 * 64**2), 0)
    for kept, every in zip(share.boxes, none.boxes, strict=True):
        areas = (every[:, 2] - every[:, 0]) * (every[:, 3] - every[:, 1])
        assert np.array_equal(kept, every[areas > share.min_area])


@pytest.mark.parametrize("area", ["rectangle", "contour"])
@pytest.mark.parametrize("normalization", ["minmax", "max"])
def test_the_boxes_follow_algorithm_1(blobs, area: str, normalization: str) -> None:
    found = blobs(area=area, normalization=normalization, threshold=0.3)
    expected = [
        boxes_from_heatmap(heat, 0.3, found.min_area, area=area, method=normalization) for heat in found.heatmaps
    ]
    assert 0 < sum(map(len, expected)) <= 8
    assert all(map(np.array_equal, found.boxes, expected))


def test_the_recipe_chooses_sign_layer_and_upsampling(smoke: Experiment, teacher, found: Localization) -> None:
    signed = localization(changed(smoke, cam_relu=False), teacher)
    assert np.array_equal(np.maximum(signed.maps, 0), found.maps)
    assert signed.maps.min() < 0
    nearest = localization(changed(smoke, cam_upsampling="nearest"), teacher)
    assert np.array_equal(nearest.maps, found.maps)
    steps = 64 // found.maps.shape[1]
    assert np.array_equal(nearest.heatmaps[:, ::steps, ::steps], found.maps)
    finer = localization(changed(smoke, cam_layer="blocks.3"), teacher)
    assert finer.maps.shape[1] == 2 * found.maps.shape[1]


def test_every_number_of_a_row_is_computed_from_its_boxes(found: Localization) -> None:
    rows = pd.read_csv(found.run.file("rows.csv"))
    for row, truth, heat in zip(rows.itertuples(), found.samples.boxes, found.heatmaps, strict=True):
        gt, pred = boxes_from_json(row.gt_boxes), boxes_from_json(row.boxes)
        assert np.array_equal(gt, truth)
        assert (row.n_gt, row.n_pred) == (len(gt), len(pred))
        assert row.score == image_score(gt, pred)
        assert row.matched == matched_score(gt, pred)
        assert [row.hit_30, row.hit_50, row.hit_70] == [int(row.best_iou >= delta) for delta in DELTAS]
        assert row.pointing == pointing_hit(heat, gt)
        assert row.energy == energy_inside(heat, gt)


def test_rows_whose_columns_meant_something_else_are_not_believed(
    smoke: Experiment, found: Localization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS_FORMAT", module.ROWS_FORMAT - 1)
    older = localization(smoke, train(smoke, found.role))
    assert older.run.path != found.run.path
    assert older.run.settings["heatmaps"] == found.run.settings["heatmaps"]  # those are not made again


def test_every_number_of_the_summary_is_computed_from_the_rows(smoke: Experiment, found: Localization) -> None:
    rows = pd.read_csv(found.run.file("rows.csv"))
    rows["no_box"] = rows["n_pred"] == 0
    summary = found.summary.set_index("metric")
    assert list(summary.index) == [*SCORES, "max_box_acc_v2"]
    for metric in SCORES:
        values = rows[metric].to_numpy(float)
        low, high = bootstrap_interval(
            values, resamples=smoke.recipe.statistics.resamples, seed=smoke.recipe.statistics.statistics_seed
        )
        expected = [values.mean(), low, high, len(rows)]
        assert summary.loc[metric].tolist() == pytest.approx(expected, abs=1e-12)
    assert found.miou == pytest.approx(rows["score"].mean(), abs=1e-12)

    curve = pd.read_csv(found.run.file("thresholds_all_sizes.csv"))
    best = []
    for delta in DELTAS:
        best.append(max((part["best_iou"] >= delta).mean() for _, part in curve.groupby("threshold")))
    assert summary.loc["max_box_acc_v2", "mean"] == pytest.approx(np.mean(best), abs=1e-12)
    assert summary.loc["max_box_acc_v2", "n"] == len(rows)


def test_the_interval_of_max_box_acc_chooses_the_threshold_anew_in_each_resample() -> None:
    rng = np.random.default_rng(3)
    best = rng.random((25, 4)) * [0.6, 0.8, 0.9, 0.5]  # (images, thresholds)
    rows = pd.DataFrame(
        [(f"{i}.png", t, best[i, j]) for i in range(25) for j, t in enumerate((0.2, 0.4, 0.6, 0.8))],
        columns=["name", "threshold", "best_iou"],
    ).sort_values("name")

    def value(sample: np.ndarray) -> float:
        return np.mean([max((column >= delta).mean() for column in sample.T) for delta in DELTAS])

    table = max_box_acc(rows, resamples=300, seed=5)
    row = table.iloc[0]
    assert row["mean"] == pytest.approx(value(best), abs=1e-12)
    ordered = best[np.argsort([f"{i}.png" for i in range(25)])]  # the table's images, by name
    draws = np.random.default_rng(5)
    values = [value(ordered[draws.integers(25, size=25)]) for _ in range(300)]
    assert [row["low"], row["high"]] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-12)
    assert row["low"] < row["mean"] < row["high"]


def test_the_threshold_rows_hold_the_operating_point(smoke: Experiment, blobs) -> None:
    found = blobs()
    curve = found.threshold_rows()
    assert sorted(set(curve["threshold"])) == THRESHOLDS.tolist()
    assert len(curve) == len(found.rows) * len(THRESHOLDS)
    here = curve[curve["threshold"] == smoke.recipe.scores.threshold].reset_index(drop=True)
    shared = ["name", "n_gt", "n_pred", "score", "matched", "best_iou"]
    pd.testing.assert_frame_equal(here[shared], found.rows[shared])
    every = found.threshold_rows(all_sizes=True)
    assert (every["n_pred"] >= curve["n_pred"]).all()
    assert (every["n_pred"] > curve["n_pred"]).any()


def test_max_box_acc_on_blobs_that_lie_near_their_boxes() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :40]
    centers = rng.uniform(12, 28, (12, 2))
    maps = np.float32([np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 50) for cx, cy in centers])
    shifted = centers + rng.normal(0, 3, centers.shape)
    truths = [np.float32([[cx - 7, cy - 7, cx + 7, cy + 7]]).clip(0, 40) for cx, cy in shifted]
    names = [f"{i}.png" for i in rng.permutation(12)]  # the table's order of images does not matter
    row = max_box_acc(threshold_rows(names, maps, truths, 0.0, THRESHOLDS))
    found = [[boxes_from_heatmap(heat, t, 0.0) for t in THRESHOLDS] for heat in maps]  # images of thresholds
    best = np.array([[iou_matrix(t, p).max(initial=0) for p in each] for t, each in zip(truths, found, strict=True)])
    expected = np.mean([(best >= delta).mean(axis=0).max() for delta in DELTAS])
    assert 0.3 < expected < 1
    assert row.loc[0, ["metric", "mean", "n"]].tolist() == ["max_box_acc_v2", pytest.approx(expected), 12]


# --- the recipe's choices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["image", "box"])
@pytest.mark.parametrize("no_prediction", ["zero", "skip"])
def test_averaging_follows_the_recipe(blobs, average: str, no_prediction: str) -> None:
    plain = blobs()
    assert 0 < (plain.rows["n_pred"] == 0).sum() < len(plain.rows)  # specks are below the minimum area
    assert plain.rows["n_gt"].nunique() > 1
    options = {"average": average, "no_prediction": no_prediction}
    other = blobs(**options)
    expected = mean_iou(plain.samples.boxes, plain.boxes, **options)
    assert other.miou == pytest.approx(expected, abs=1e-12)
    score = other.summary.set_index("metric").loc["score"]
    assert score["mean"] == pytest.approx(expected, abs=1e-12)
    assert score["low"] <= score["mean"] <= score["high"]
    unchanged = options == {"average": "image", "no_prediction": "zero"}
    assert (abs(other.miou - plain.miou) < 1e-9) == unchanged
    others = other.summary.set_index("metric").drop("score")
    pd.testing.assert_frame_equal(others, plain.summary.set_index("metric").drop("score"))


def test_no_prediction_at_all_has_no_mean_when_such_images_are_skipped(blobs) -> None:
    settings = {"min_area_quantile": 1.0, "threshold": 1.0}
    assert blobs(**settings).miou == 0
    skipped = blobs(**settings, no_prediction="skip")
    assert np.isnan(skipped.miou)
    assert skipped.summary.set_index("metric").loc["score", "n"] == 0


def test_only_radiographs_called_tb_are_scored_if_the_recipe_says_so(
    smoke: Experiment, teacher, student, found: Localization, tmp_path: Path, monkeypatch
) -> None:
    experiment = elsewhere(smoke, tmp_path, scored_images="boxed_and_predicted")
    names = list(found.samples.names)
    called = {"teacher": names[:5], "student": names[3:7]}

    def called_tb(experiment: Experiment, trained: TrainedNetwork) -> pd.DataFrame:
        p = [0.51 if name in called[trained.role] else 0.5 for name in experiment.test.names]
        return pd.DataFrame({"name": experiment.test.names, "probability": p})

    monkeypatch.setattr(module, "probabilities", called_tb)
    both = [localization(experiment, network) for network in (teacher, student)]
    assert [one.rows["name"].tolist() for one in both] == [called["teacher"], called["student"]]
    shared = found.rows.set_index("name").loc[called["teacher"], "score"]
    assert np.allclose(both[0].rows["score"], shared)

    pairs = paired_rows(*both)  # the networks were scored on different radiographs: those of both are compared
    assert pairs["name"].tolist() == names[3:5]
    assert pairs["score_teacher"].tolist() == both[0].rows["score"][3:5].tolist()
    assert pairs["score_student"].tolist() == both[1].rows["score"][:2].tolist()


def test_networks_without_a_common_radiograph_cannot_be_compared(found: Localization) -> None:
    other = dataclasses.replace(found)
    other.__dict__["rows"] = found.rows.assign(name="other " + found.rows["name"])
    with pytest.raises(UsageError, match="no radiograph is scored for both"):
        paired_rows(found, other)


def test_nothing_called_tb_is_an_error(smoke: Experiment, teacher, tmp_path: Path, monkeypatch) -> None:
    experiment = elsewhere(smoke, tmp_path, scored_images="boxed_and_predicted")
    table = pd.DataFrame({"probability": np.zeros(len(experiment.test))})
    monkeypatch.setattr(module, "probabilities", lambda *_: table)
    with pytest.raises(UsageError, match="and is predicted TB"):
        localization(experiment, teacher)


@pytest.mark.parametrize(("split", "said"), [("val", r"\(val\).*ground-truth box"), ("train", "minimum area")])
def test_without_boxes_there_is_nothing_to_score(smoke: Experiment, tmp_path: Path, split: str, said: str) -> None:
    root = tiny.write_tbx11k(tmp_path / "TBX11K")
    tiny.edit_json(root, lambda content: content["annotations"].clear(), split)
    experiment = Experiment.open("smoke", root, tmp_path, {"early_stopping_on": "val"})
    untrained = TrainedNetwork("teacher", experiment.recipe, Run.at(experiment.runs, "teacher", {}))
    with pytest.raises(UsageError, match=said) as caught:  # said before any network is needed
        localization(experiment, untrained)
    assert str(root) in str(caught.value)
    assert isinstance(caught.value, TbkdError)
