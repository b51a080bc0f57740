"""Where a network looks, beside guesses: on drawings, on folders laid out as NIH's and RSNA's, and without any box."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_network as tiny
from PIL import Image

from tbkd_utils.data.readers import Nih
from tbkd_utils.errors import DataError, SettingsError
from tbkd_utils.experiments import evaluation
from tbkd_utils.experiments.evaluation import elsewhere
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.metrics.statistics import bootstrap_interval, paired_permutation_test
from tbkd_utils.systems.pneumonia.looks import (
    SHOWN,
    Looked,
    drawn_lungs,
    look,
    looks_differences,
    looks_table,
    looks_wide,
    transfer_table,
)

GUESSES = ["whole image", "both lungs", "lower half of each lung", "one constant box", "two constant boxes"]
BLACK = tiny.TINY | {"drop_duplicates": False, "resamples": 100}  # the toy's normal images are all the same


@pytest.fixture(scope="module", autouse=True)
def _declared() -> Iterator[None]:
    with tiny.declared():
        yield


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment.open("smoke", out=tmp_path_factory.mktemp("looks"), overrides=tiny.TINY, system="pneumonia")


@pytest.fixture(scope="module")
def looked(experiment: Experiment) -> Looked:
    (found,) = look(experiment, tiny.placed(experiment, tiny.brightness()))
    return found


@pytest.fixture(scope="module")
def truth(experiment: Experiment) -> dict[str, Any]:
    return json.loads((experiment.root.parent / "pneumonia.json").read_text())["images"]


def union(boxes: Any) -> np.ndarray:
    """A mask of 64x64 pixels; boxes of whole pixels."""
    mask = np.zeros((64, 64), bool)
    for x1, y1, x2, y2 in np.asarray(boxes, int):
        mask[y1:y2, x1:x2] = True
    return mask


# --- the drawn test set ---


def test_the_drawn_test_set_is_looked_at_beside_every_guess(looked: Looked, truth: dict[str, Any]) -> None:
    assert (looked.where, looked.slug) == ("test set", "test_set")
    assert list(looked.guesses) == GUESSES
    names = looked.found.samples.names
    assert set(names) == {name for name in looked.rows["name"] if truth[name]["boxes"]}
    kinds = {kind: {name for name in names if truth[name]["kind"] == kind} for kind in ("bacterial", "viral")}
    assert list(looked.kinds) == ["all", "bacterial", "viral"]
    assert looked.kinds["all"] is None
    assert {kind: set(looked.kinds[kind] or ()) for kind in kinds} == kinds
    assert all(len(boxes) == len(names) for boxes in looked.guesses.values())


def test_tables_say_where_and_of_which_kind(looked: Looked) -> None:
    table, rows = looked.table, looked.found.rows
    assert table.columns.tolist()[:4] == ["where", "kind", "guess_or_network", "metric"]
    assert set(table["where"]) == {"test set"}
    for kind, names in looked.kinds.items():
        of_kind = table[table["kind"] == kind]
        assert of_kind["guess_or_network"].unique().tolist() == ["classifier", *GUESSES]
        own = rows if names is None else rows[rows["name"].isin(names)]
        assert set(of_kind["n"]) == {len(own)}
        for metric in ("score", "matched", "pointing", "energy"):
            assert looked.own(metric, kind) == pytest.approx(own[metric].mean())
    assert not table.loc[table["guess_or_network"] == "classifier", "blind"].any()
    assert table.loc[table["guess_or_network"] != "classifier", "blind"].all()
    assert set(looked.shown["metric"]) == set(SHOWN)
    assert set(looked.shown["kind"]) == {"all"}


def test_guesses_score_what_their_pixels_say(looked: Looked, truth: dict[str, Any]) -> None:
    """The drawings are 64 pixels wide and so is the crop: boxes are whole pixels."""
    for guess in ("whole image", "both lungs"):
        energy = []
        for name, boxes in zip(looked.found.samples.names, looked.guesses[guess], strict=True):
            guessed, ill = union(boxes), union(truth[name]["boxes"])
            energy.append((guessed & ill).sum() / guessed.sum())
        rows = looked.table.query("kind == 'all' and metric == 'energy'").set_index("guess_or_network")
        assert rows.loc[guess, "mean"] == pytest.approx(np.mean(energy))


def test_the_best_guess_is_the_highest_and_the_network_is_set_against_it(looked: Looked) -> None:
    for kind in looked.kinds:
        for metric in ("score", "pointing", "energy"):
            means = looked.table.query("blind and metric == @metric and kind == @kind").set_index("guess_or_network")
            best, against = looked.best_guess(metric, kind), looked.against_best_guess(metric, kind)
            assert best["mean"] == means["mean"].max()
            assert against["guess"] == best["guess_or_network"]
            assert against["difference"] == pytest.approx(looked.own(metric, kind) - best["mean"])
            assert against["low"] <= against["difference"] <= against["high"]
    assert looked.best_boxes is looked.guesses[looked.best_guess()["guess_or_network"]]


def test_differences_are_paired_radiograph_by_radiograph(looked: Looked, truth: dict[str, Any]) -> None:
    table, rows, resampling = looked.differences, looked.found.rows, looked.found.experiment.recipe
    assert table.columns.tolist()[:4] == ["where", "kind", "guess", "metric"]
    for kind, names in looked.kinds.items():
        own = rows if names is None else rows[rows["name"].isin(names)]
        whole = [union(truth[name]["boxes"]).mean() for name in own["name"]]  # the whole image's energy
        of_kind = table[table["kind"] == kind]
        found = of_kind.query("guess == 'whole image' and metric == 'energy'").iloc[0]
        apart = own["energy"].to_numpy() - whole
        assert found["difference"] == pytest.approx(apart.mean())
        assert (found["low"], found["high"]) == pytest.approx(
            bootstrap_interval(apart, **resampling.resampling, clusters=own["patient"])
        )
        p = paired_permutation_test(own["energy"], whole, **resampling.resampling_of_tests, clusters=own["patient"])
        assert found["p"] == pytest.approx(p)
        assert found["n"] == len(own)


def test_lungs_follow_the_pixels_of_the_crop(experiment: Experiment, looked: Looked, truth: dict[str, Any]) -> None:
    small = experiment.changed(resize=32, crop=32)
    lungs = drawn_lungs(small)
    assert lungs is not None
    assert list(lungs) == list(small.test.names)
    for name, boxes in lungs.items():
        np.testing.assert_allclose(boxes, np.array(truth[name]["lungs"]) / 2, rtol=1e-6)
    both, lower = looked.guesses["both lungs"], looked.guesses["lower half of each lung"]
    for name, whole, half in zip(looked.found.samples.names, both, lower, strict=True):
        np.testing.assert_allclose(whole, truth[name]["lungs"])
        expected = [[x1, (y1 + y2) / 2, x2, y2] for x1, y1, x2, y2 in truth[name]["lungs"]]
        np.testing.assert_allclose(half, expected)


def test_constant_boxes_are_of_other_patients(looked: Looked, truth: dict[str, Any]) -> None:
    names = looked.found.samples.names
    for guess, count in (("one constant box", 1), ("two constant boxes", 2)):
        for name, boxes in zip(names, looked.guesses[guess], strict=True):
            others = [truth[n]["boxes"] for n in names if truth[n]["person"] != truth[name]["person"]]
            known = {tuple(box) for found in others for box in found}
            assert len(boxes) == count
            assert {tuple(box) for box in boxes.astype(int).tolist()} <= known


def test_cases_are_spread_in_rank_and_named_with_their_probability(looked: Looked) -> None:
    scores = looked.found.rows["score"]
    cases = looked.spread_of_cases(3)
    assert scores[cases].tolist() == [scores.min(), scores.sort_values().iloc[len(scores) // 2], scores.max()]
    assert sorted(looked.spread_of_cases(99)) == list(range(len(scores)))
    by_name = dict(zip(looked.rows["name"], looked.rows["probability"], strict=True))
    assert looked.probabilities == [by_name[name] for name in looked.found.samples.names]


def test_a_table_of_metrics_is_wide_and_the_network_comes_first(looked: Looked, experiment: Experiment) -> None:
    wide = looks_wide([looked])
    assert wide.columns.tolist() == ["where", "guess_or_network", *SHOWN]
    assert wide["guess_or_network"].tolist() == ["classifier", *GUESSES]
    assert wide["energy"][0] == pytest.approx(looked.own("energy"))
    assert len(looks_table([looked, looked])) == 2 * len(looked.table)
    assert len(looks_differences([looked])) == len(looked.differences)
    (row,) = transfer_table([looked], experiment).to_dict("records")
    p, y = looked.rows["probability"].to_numpy(), looked.rows["label"].to_numpy()
    pairs = (p[y == 1][:, None] > p[y == 0]) + 0.5 * (p[y == 1][:, None] == p[y == 0])
    assert (row["where"], row["radiographs"], row["pneumonia"]) == ("test set", len(y), y.sum())
    assert row["roc_auc"] == pytest.approx(pairs.mean())


# --- a toy whose answer is known ---


@pytest.fixture(scope="module")
def toy(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawings' boxes, each with one bright blob in it, on black."""
    root = tmp_path_factory.mktemp("toy") / "drawn"
    shutil.copytree(experiment.root.parent, root)
    y, x = np.mgrid[:64, :64] + 0.5
    for name, record in json.loads((root / "pneumonia.json").read_text())["images"].items():
        image = np.zeros((64, 64))
        for x1, y1, x2, y2 in record["boxes"]:
            away = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2
            image = np.maximum(image, 255 * np.exp(-2 * away))
        Image.fromarray(image.round().astype(np.uint8)).save(root / "chest_xray" / name, quality=95)
    return root


@pytest.mark.parametrize("network", ["tiny", pytest.param("tiny_captum", marks=pytest.mark.slow)])
def test_where_the_blob_is_all_there_is_the_map_points_at_it(toy: Path, tmp_path: Path, network: str) -> None:
    of = Experiment.open("smoke", toy, tmp_path, BLACK | {"network": network}, system="pneumonia")
    (found,) = look(of, tiny.placed(of, tiny.brightness()))
    for kind in found.kinds:
        assert found.own("pointing", kind) == 1
        assert found.own("energy", kind) > 0.8
    assert found.against_best_guess("pointing")["difference"] > 0
    assert found.against_best_guess("energy")["difference"] > 0
    assert transfer_table([found], of)["roc_auc"].tolist() == [1.0]


def test_a_network_that_looks_away_has_an_empty_map(toy: Path, tmp_path: Path) -> None:
    of = Experiment.open("smoke", toy, tmp_path, BLACK, system="pneumonia")
    (found,) = look(of, tiny.placed(of, tiny.brightness(-1.0)))
    assert not found.found.maps.any()
    assert not found.found.rows[["score", "pointing", "energy"]].any(axis=None)
    assert transfer_table([found], of)["roc_auc"].tolist() == [0.0]


# --- other datasets ---

NIH = {
    "00000001_000.png": ("Pneumonia|Infiltration", 40),
    "00000002_000.png": ("Pneumonia", 90),
    "00000003_000.png": ("No Finding", 140),
    "00000004_000.png": ("No Finding", 200),
    "00000005_000.png": ("Atelectasis", 220),  # with a box of its own
    "00000006_000.png": ("Pneumonia", 230),  # without a box
    "00000007_000.png": ("Effusion", 240),
}
NIH_BOXES = (
    "00000001_000.png,Infiltrate,0,0,1024,1024",
    "00000001_000.png,Pneumonia,256,128,512,256",
    "00000002_000.png,Pneumonia,0,512,256,256",
    "00000002_000.png,Pneumonia,512,512,256,512",
    "00000005_000.png,Atelectasis,100,200,300,400",
)


def write_nih(root: Path, entries: dict[str, tuple[str, int]] = NIH, boxes: tuple[str, ...] = NIH_BOXES) -> Path:
    """Images of 128x64 pixels, each of one gray; the tables speak of 1024x1024."""
    (root / "images").mkdir(parents=True)
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender"
    rows = [f"{name},{labels},0,{int(name[:8])},058Y,M" for name, (labels, _) in entries.items()]
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join([header, *rows]) + "\n")
    listed = "\n".join(["Image Index,Finding Label,Bbox x,Bbox y,Bbox w,Bbox h", *boxes])
    (root / "BBox_List_2017.csv").write_text(listed + "\n")
    for name, (_, gray) in entries.items():
        Image.fromarray(np.full((64, 128), gray, np.uint8)).save(root / "images" / name)
    return root


@pytest.fixture
def looking_at(experiment: Experiment) -> Callable[[Path], list[Looked]]:
    def at(folder: Path) -> list[Looked]:
        of = experiment.changed(boxes_data=str(folder))
        return look(of, tiny.placed(of, tiny.brightness()))

    return at


def test_only_boxes_of_pneumonia_are_scored_elsewhere(
    looking_at: Callable[[Path], list[Looked]], tmp_path: Path, experiment: Experiment
) -> None:
    own, other = looking_at(write_nih(tmp_path / "nih"))
    assert (own.where, other.where, other.slug) == ("test set", "NIH", "nih")
    # No box of another finding, no other finding's image, and none with pneumonia but without a box of it.
    assert other.rows["name"].tolist() == list(NIH)[:4]
    assert other.rows["label"].tolist() == [1, 1, 0, 0]
    assert (other.rows["probability"].diff()[1:] > 0).all()  # the brighter, the likelier for this network
    samples = other.found.samples
    assert list(samples.names) == list(NIH)[:2]
    # 1024x1024 -> 128x64 -> squashed to 64x64: both axes by 1/16.
    expected = [[[16, 8, 48, 24]], [[0, 32, 16, 48], [32, 32, 48, 64]]]
    assert [boxes.tolist() for boxes in samples.boxes] == expected
    assert list(other.guesses) == ["whole image", "one constant box", "two constant boxes"]
    assert other.guesses["one constant box"][1].tolist() == expected[0]  # the only one of another patient
    assert list(other.kinds) == ["all"]
    assert set(other.table["n"]) == {2}
    table = transfer_table([own, other], experiment)
    assert table["where"].tolist() == ["test set", "NIH"]
    assert table.iloc[1][["radiographs", "pneumonia", "roc_auc"]].tolist() == [4, 2, 0]


def test_another_dataset_is_scored_once(
    looking_at: Callable[[Path], list[Looked]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_nih(tmp_path / "nih")
    first = looking_at(folder)[1]

    def again(*_: Any) -> None:
        raise AssertionError("computed again")

    for name in ("activation_maps", "class_probabilities"):
        monkeypatch.setattr(evaluation, name, again)
    second = looking_at(folder)[1]
    pd.testing.assert_frame_equal(second.rows, first.rows)
    pd.testing.assert_frame_equal(second.found.rows, first.found.rows)
    Image.fromarray(np.full((64, 128), 3, np.uint8)).save(folder / "images/00000001_000.png")
    with pytest.raises(AssertionError, match="computed again"):
        looking_at(folder)


def test_the_names_case_and_the_absent_images_do_not_matter(experiment: Experiment, tmp_path: Path) -> None:
    folder = write_nih(tmp_path / "nih")
    (folder / "images/00000004_000.png").unlink()
    found = elsewhere(experiment, tiny.placed(experiment, tiny.brightness()), folder, "PNEUMONIA", (Nih,))
    assert found.rows["name"].tolist() == list(NIH)[:3]
    other = elsewhere(experiment, tiny.placed(experiment, tiny.brightness()), folder, "atelectasis", (Nih,))
    assert list(other.located.samples.names) == ["00000005_000.png"]
    assert other.rows["label"].tolist() == [0, 1]


@pytest.mark.parametrize("finding", ["Hernia", "Consolidation", "Edema"])
def test_a_finding_that_never_has_boxes_is_no_normal_radiograph(
    looking_at: Callable[[Path], list[Looked]], tmp_path: Path, finding: str
) -> None:
    other = looking_at(write_nih(tmp_path / "nih", NIH | {"00000008_000.png": (finding, 120)}))[1]
    assert "00000008_000.png" not in other.rows["name"].tolist()


def test_a_folder_of_radiographs_with_pneumonia_alone_still_has_a_row(
    looking_at: Callable[[Path], list[Looked]], tmp_path: Path, experiment: Experiment
) -> None:
    found = looking_at(write_nih(tmp_path / "nih", dict(list(NIH.items())[:2]), NIH_BOXES[:4]))
    assert transfer_table(found, experiment)["pneumonia"].tolist()[1] == 2


def test_rsnas_layout_is_looked_at_too(looking_at: Callable[[Path], list[Looked]], tmp_path: Path) -> None:
    folder = tmp_path / "stage_2_train_images"
    folder.mkdir()
    rows = ["patientId,x,y,width,height,Target", "a,256,256,512,256,1", "b,,,,,0", "c,0,0,512,512,1"]
    (tmp_path / "stage_2_train_labels.csv").write_text("\n".join(rows) + "\n")
    for name in "abc":
        Image.fromarray(np.full((64, 64), ord(name), np.uint8)).save(folder / f"{name}.png")
    other = looking_at(tmp_path)[1]
    assert (other.where, other.rows["label"].tolist()) == ("RSNA", [1, 0, 1])
    assert [boxes.tolist() for boxes in other.found.samples.boxes] == [[[16, 16, 48, 32]], [[0, 0, 32, 32]]]


def test_a_folder_that_cannot_be_scored_is_said(looking_at: Callable[[Path], list[Looked]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no box of the finding 'pneumonia'\. It has Atelectasis, .*Pneumonia"):
        looking_at(write_nih(tmp_path / "nih", boxes=(NIH_BOXES[0], NIH_BOXES[-1])))
    with pytest.raises(SettingsError, match=r"there is no such folder \(.*nowhere\); expected that of another dataset"):
        looking_at(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: not a dataset\. Looked for nih-chestx-ray14: needs .*rsna"):
        looking_at(tmp_path / "empty")


# --- no boxes, and the truth in another place ---


def test_without_any_box_the_tables_are_empty(experiment: Experiment, looked: Looked, tmp_path: Path) -> None:
    shutil.copytree(experiment.root, tmp_path / "chest_xray")
    of = Experiment.open("smoke", tmp_path, tmp_path / "out", tiny.TINY, system="pneumonia")
    found = look(of, tiny.placed(of, tiny.brightness()))
    assert found == []
    assert not of.synthetic
    assert drawn_lungs(of) is None
    full = [looked]
    for empty, same in (
        (looks_table(found), looks_table(full)),
        (looks_differences(found), looks_differences(full)),
        (looks_wide(found), looks_wide(full)),
        (transfer_table(found, of), transfer_table(full, experiment)),
    ):
        assert empty.empty
        assert empty.columns.tolist() == same.columns.tolist()


def test_radiographs_without_boxes_are_looked_at_elsewhere(experiment: Experiment, tmp_path: Path) -> None:
    shutil.copytree(experiment.root, tmp_path / "chest_xray")
    changes = tiny.TINY | {"boxes_data": str(write_nih(tmp_path / "nih"))}
    of = Experiment.open("smoke", tmp_path, tmp_path / "out", changes, system="pneumonia")
    (found,) = look(of, tiny.placed(of, tiny.brightness()))
    assert found.where == "NIH"


def test_the_truth_may_lie_beside_the_class_folders(experiment: Experiment, tmp_path: Path) -> None:
    shutil.copytree(experiment.root, tmp_path / "chest_xray")
    for name in ("pneumonia.json", "masks"):
        (shutil.copytree if name == "masks" else shutil.copy)(
            experiment.root.parent / name, tmp_path / "chest_xray" / name
        )
    of = Experiment.open("smoke", tmp_path / "chest_xray", tmp_path / "out", tiny.TINY, system="pneumonia")
    assert of.synthetic
    assert any(len(boxes) for boxes in of.test.boxes)
    (found,) = look(of, tiny.placed(of, tiny.brightness()))
    assert list(found.guesses) == GUESSES
