import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_dataset as tiny
from PIL import Image

from tbkd_utils.data.check import LONG, QUANTILES, check_dataset
from tbkd_utils.errors import DataError

EXTRA = ("da+db/train/n1.png", "da+db/train/px2.jpg", "da+db/val/n3.png", "mc+shenzhen/val/CHNCXR_0001_1.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny.write_tbx11k(tmp_path / "TBX11K", EXTRA)


def rows(table: pd.DataFrame) -> list[tuple]:
    return list(table.itertuples(index=False, name=None))


def problem(root: Path) -> str:
    """The only problem of a dataset."""
    (only,) = check_dataset(root).problems
    return only


# --- what a sound dataset gives -----------------------------------------------------------------------------


def test_a_sound_dataset_is_ok_and_complete(root: Path) -> None:
    report = check_dataset(root.parent)
    assert report.problems == ()
    assert report.ok
    assert report.images["present"].all()
    assert (report.root, report.layout.name) == (root, "TBX11K")


def test_one_row_per_image_and_per_box(root: Path) -> None:
    report = check_dataset(root)
    assert len(report.images) == 7 + len(EXTRA)
    first = report.images.iloc[0].to_dict()
    assert first == {
        "split": "train",
        "name": "tb/tb0002.png",
        "source": "TBX11K",
        "kind": "tb",
        "target": 1,
        "patient": "",
        "present": True,
        "n_boxes": 1,
        "mode": "L",
        "width": 64,
        "height": 48,
    }
    expected = [20 * 16 / (64 * 48), 1.0, 3 * 4 / (64 * 48), 16 * 12 / (64 * 48)]
    assert np.allclose(report.boxes["area_share"], expected)
    assert report.boxes["split"].tolist() == ["train"] * 3 + ["val"]


def test_tables_of_counts(root: Path) -> None:
    tables = check_dataset(root).tables()
    images = tables["images"]
    assert list(images.columns) == ["split", "source", "tb", "sick", "health", "no_tb", "total"]
    assert rows(images) == [
        ("train", "TBX11K", 3, 1, 1, 0, 5),
        ("val", "TBX11K", 1, 0, 1, 0, 2),
        ("extra_train", "DA", 0, 0, 0, 1, 1),
        ("extra_train", "DB", 1, 0, 0, 0, 1),
        ("extra_val", "DA", 0, 0, 0, 1, 1),
        ("extra_val", "Shenzhen", 1, 0, 0, 0, 1),
    ]
    assert rows(tables["boxes"]) == [("train", 2, 1, 0, 3), ("val", 1, 0, 0, 1)]
    assert rows(tables["without a box"]) == [("train", "tb/tb0003.png")]
    assert rows(tables["boxes of several categories"]) == [("train", "tb/tb0001.png")]
    assert rows(tables["absent files"]) == []
    assert rows(tables["byte-identical files"]) == []
    assert ("TBX11K", "L", 64, 48, 7) in rows(tables["stored images"])


def test_table_of_box_areas_holds_the_quantiles_of_the_rows(root: Path) -> None:
    report = check_dataset(root)
    table = report.tables()["box area"]
    assert table["quantile"].tolist() == list(QUANTILES)
    train = report.boxes.loc[report.boxes["split"] == "train", "area_share"]
    assert np.allclose(table["train"], np.quantile(train, QUANTILES))
    assert np.allclose(table["all"], np.quantile(report.boxes["area_share"], QUANTILES))
    assert table["all"].iloc[-1] == 1.0


def test_identical_files_and_whether_they_cross_splits(root: Path) -> None:
    images = root / "imgs"
    shutil.copy(images / "health/h0001.png", images / "health/h0009.png")  # train = val
    shutil.copy(images / "tb/tb0001.png", images / "tb/tb0002.png")  # within train
    shutil.copy(images / "sick/s0001.png", images / "extra/da+db/train/n1.png")  # train = extra_train: same side
    report = check_dataset(root)
    assert rows(report.tables()["byte-identical files"]) == [
        ("tb/tb0002.png, tb/tb0001.png", "train, train", False),
        ("health/h0001.png, health/h0009.png", "train, val", True),
        ("sick/s0001.png, extra/da+db/train/n1.png", "train, extra_train", False),
    ]
    assert report.identical[1] == (("train", "health/h0001.png"), ("val", "health/h0009.png"))
    assert report.ok


def kermany(root: Path, copies: dict[str, str]) -> Path:
    """Kermany's layout: a file for each name, the same pixels for the same word."""
    words = sorted(set(copies.values()))
    for name, word in copies.items():
        tiny.write_image(root / "chest_xray" / name, words.index(word))
    return root


def test_many_identical_files_are_counted_too(tmp_path: Path) -> None:
    copies = {f"train/PNEUMONIA/person{n}_virus_{k}.png": f"v{n}" for n in range(LONG - 2) for k in (1, 2)}
    copies |= {"train/PNEUMONIA/person90_virus_1.png": "x", "test/PNEUMONIA/person91_virus_1.png": "x"}
    copies |= {f"train/NORMAL/IM-0001-000{n}.png": "y" for n in (1, 2, 3)}
    copies |= {"train/NORMAL/IM-0002-0001.png": "alone", "test/NORMAL/IM-0003-0001.png": "alone too"}
    tables = check_dataset(kermany(tmp_path, copies)).tables()
    assert rows(tables["duplicates"]) == [
        ("groups", LONG), ("files", 2 * LONG + 1), ("surplus copies", LONG + 1),
        ("groups within one patient", LONG - 1), ("groups across patients", 1),
        ("groups across splits", 1), ("groups across classes", 0),
    ]  # fmt: skip
    assert list(tables).index("duplicates") < list(tables).index("byte-identical files")
    shutil.copy(tmp_path / "chest_xray/train/NORMAL/IM-0001-0001.png", tmp_path / "chest_xray/test/PNEUMONIA/"
                "person92_virus_1.png")  # fmt: skip
    counts = dict(rows(check_dataset(tmp_path).tables()["duplicates"]))
    assert (counts["groups across patients"], counts["groups across splits"]) == (2, 2)
    assert counts["groups across classes"] == 1


def test_few_identical_files_are_only_listed_and_unknown_patients_not_counted(root: Path) -> None:
    assert "duplicates" not in check_dataset(root).tables()
    names = [f"da+db/train/n{n}.png" for n in range(10, 10 + 2 * LONG)]
    for number, name in enumerate(names):
        tiny.write_image(root / "imgs/extra" / name, 100 + number // 2)
    counts = dict(rows(check_dataset(root).tables()["duplicates"]))
    assert counts["groups"] == LONG
    assert not any("patient" in what for what in counts)


def test_a_layout_that_has_no_boxes_gets_no_table_of_boxes(tmp_path: Path) -> None:
    names = ("train/NORMAL/IM-1111-0001.png", "train/PNEUMONIA/person1_virus_1.png")
    tables = check_dataset(kermany(tmp_path, {name: name for name in names})).tables()
    assert list(tables) == ["patients", "images", "byte-identical files", "absent files", "stored images"]


def test_stored_modes_are_counted(root: Path) -> None:
    Image.open(root / "imgs/sick/s0001.png").convert("RGBA").save(root / "imgs/sick/s0001.png")
    report = check_dataset(root)
    assert ("TBX11K", "RGBA", 64, 48, 1) in rows(report.tables()["stored images"])
    assert report.ok


def test_absent_files_are_counted_not_problems(root: Path) -> None:
    shutil.rmtree(root / "imgs" / "health")
    report = check_dataset(root)
    assert report.ok
    assert not report.images["present"].all()
    assert rows(report.tables()["absent files"]) == [
        ("train", "tb", 3, 0),
        ("train", "health", 0, 1),
        ("train", "sick", 1, 0),
        ("val", "tb", 1, 0),
        ("val", "health", 0, 1),
    ]
    assert rows(report.tables()["images"])[0] == ("train", "TBX11K", 3, 1, 0, 4)


def test_boxes_of_absent_images_are_not_counted(root: Path) -> None:
    (root / "imgs/tb/tb0001.png").unlink()
    assert rows(check_dataset(root).tables()["boxes"]) == [("train", 1, 0, 0, 1), ("val", 1, 0, 0, 1)]


def test_progress_counts_to_the_end(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    check_dataset(root, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 11) for n in range(1, 12)]


def test_kaggle_copy(tmp_path: Path) -> None:
    report = check_dataset(tiny.write_kaggle(tmp_path))
    assert (report.ok, report.layout.name) == (True, "tbx11k-simplified")
    assert rows(report.tables()["images"]) == [("train", "TBX11K", 2, 0, 1, 3), ("val", "TBX11K", 1, 1, 0, 2)]
    assert rows(report.tables()["without a box"]) == [("train", "tb0010.png")]


# --- problems are collected ---------------------------------------------------------------------------------


def test_every_problem_is_collected(root: Path) -> None:
    images = root / "imgs"
    (images / "tb/tb0002.png").write_bytes(b"")
    (images / "sick/s0001.png").write_bytes((images / "sick/s0001.png").read_bytes()[:500])
    (images / "health/h0009.png").write_text("<html>")
    (images / "extra/da+db/val/scan.png").touch()
    tiny.edit_json(root, lambda c: c["annotations"][1].update(bbox=[1, 2, -3, 4]))
    tiny.edit_json(root, lambda c: c["annotations"][0].update(category_id=9), "val")
    tiny.write_list(root, "train", [*tiny.TRAIN, "tb/tb0001.png", "../x.png"])
    report = check_dataset(root)
    expected = [
        "line 6: tb/tb0001.png is a duplicate",
        "line 7: '../x.png' is not a path",
        "TBX11K_train.json, annotations[1] (tb/tb0001.png): box [1, 2, -3, 4] is empty or inverted",
        "TBX11K_val.json, annotations[0] (tb/tb0009.png): category_id 9",
        "scan.png: the file name gives no label",
        "tb0002.png: the file is empty",
        "s0001.png: the image is truncated",
        "h0009.png: not a PNG",
    ]
    assert len(report.problems) == len(expected)
    for message, part in zip(report.problems, expected, strict=True):
        assert part in message
    assert not report.ok
    # The good boxes beside a bad one are still counted.
    assert rows(report.tables()["boxes"]) == [("train", 2, 0, 0, 2)]


def test_a_bad_image_entry_is_not_reported_again_by_each_of_its_boxes(root: Path) -> None:
    tiny.edit_json(root, lambda c: c["images"][2].update(width=0))
    report = check_dataset(root)
    assert "images[2] (tb/tb0001.png): image size 0 x 48" in report.problems[0]
    assert "no usable image entry for tb/tb0001.png" in report.problems[1]
    assert len(report.problems) == 2


def test_stored_size_that_differs_from_the_boxes_scale(root: Path) -> None:
    tiny.write_image(root / "imgs/tb/tb0001.png", 0, (128, 96))
    message = problem(root)
    assert "tb0001.png: stored with (width, height) (128, 96)" in message
    assert "(64, 48)" in message


def test_one_radiograph_in_train_and_val(root: Path) -> None:
    tiny.edit_json(root, lambda c: c["images"].append({**c["images"][0], "id": 9, "file_name": "tb/tb0001.png"}), "val")
    tiny.write_list(root, "val", [*tiny.VAL, "tb/tb0001.png"])
    report = check_dataset(root)
    assert report.problems == (
        f"{root}: tb/tb0001.png is in both train and val, so val is no test. Remove it from one.",
    )
    assert report.identical == ((("train", "tb/tb0001.png"), ("val", "tb/tb0001.png")),)


def test_same_file_under_both_labels(root: Path) -> None:
    shutil.copy(root / "imgs/tb/tb0001.png", root / "imgs/sick/s0001.png")
    assert "tb0001.png and " in problem(root)
    assert "the same file under two labels" in problem(root)


def test_trainval_list_of_another_release(root: Path) -> None:
    tiny.write_list(root, "trainval", [*tiny.TRAIN, *tiny.VAL])
    assert check_dataset(root).ok
    assert len(check_dataset(root).images) == 11
    tiny.write_list(root, "trainval", tiny.TRAIN)
    assert "'trainval' is not train and val together" in problem(root)


def test_a_broken_split_does_not_hide_the_others(root: Path) -> None:
    tiny.json_file(root, "train").write_text("{")
    report = check_dataset(root)
    assert "TBX11K_train.json, line 1, column 2: not valid JSON" in problem(root)
    assert rows(report.tables()["boxes"]) == [("val", 1, 0, 0, 1)]


def test_tables_of_an_empty_dataset(tmp_path: Path) -> None:
    (tmp_path / "imgs").mkdir()
    (tmp_path / "lists").mkdir()
    report = check_dataset(tmp_path)
    assert "no split found" in report.problems[0]
    assert all(isinstance(table, pd.DataFrame) for table in report.tables().values())
    tiny.write_list(tmp_path, "train", [])
    tiny.json_file(tmp_path, "train").parent.mkdir(parents=True)
    tiny.json_file(tmp_path, "train").write_text('{"images": [], "annotations": [], "categories": []}')
    report = check_dataset(tmp_path)
    assert "split 'train' is empty" in report.problems[0]
    assert report.tables()["images"].empty


def test_tables_of_a_dataset_without_a_single_image_or_box(root: Path) -> None:
    shutil.rmtree(root / "imgs")
    (root / "imgs").mkdir()
    report = check_dataset(root)
    assert report.tables()["images"].empty
    assert report.tables()["boxes"].empty
    assert report.tables()["absent files"]["absent"].sum() == 7


def test_a_root_that_is_not_a_dataset_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a dataset"):
        check_dataset(tmp_path)


# --- the radiographs themselves -----------------------------------------------------------------------------


@pytest.mark.real_data
def test_tbx11k_has_the_published_numbers() -> None:
    report = check_dataset(os.environ["TBKD_DATA"])
    tables = report.tables()
    assert report.problems == ()
    official = tables["images"].query("source == 'TBX11K'").set_index("split")
    assert official["tb"].to_dict() == {"train": 600, "val": 200}
    boxes = tables["boxes"].set_index("split")
    assert boxes["total"].to_dict() == {"train": 902, "val": 309}
    assert boxes["ActiveTuberculosis"].to_dict() == {"train": 724, "val": 248}
    assert boxes["PulmonaryTuberculosis"].sum() == 0
    assert rows(tables["without a box"]) == [("train", "tb/tb1199.png")]
    assert len(tables["boxes of several categories"]) == 30
    identical = tables["byte-identical files"]
    extra = identical[identical["files"].str.contains("da+db", regex=False)]
    assert len(extra) == 4
    assert extra["cross_splits"].sum() == 2
    area = tables["box area"].set_index("quantile")["all"]
    assert (round(area[0.0], 3), round(area[0.5], 3), round(area[1.0], 3)) == (0.002, 0.055, 0.265)
