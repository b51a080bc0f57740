"""Findings by folder with two lists: both spellings of the boxes, several labels, and every contradiction refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tbkd_utils.cli import app
from tbkd_utils.data.check import check_dataset
from tbkd_utils.data.dataset import find_layout, read_dataset
from tbkd_utils.data.readers import Sr
from tbkd_utils.data.records import Radiograph
from tbkd_utils.errors import DataError

TRAIN = ("Infiltrate/00000001_000.png", "Mass/00000002_000.png", "Mass/00000002_001.jpg", "Nodule/00000002_000.png")
TEST = ("Effusion/00000003_000.png", "Mass/00000004_000.png", "Nodule/00000004_000.png")
LIST, BOXES = "test_list.txt", "test_gt.txt"
LINES = (
    "Effusion/00000003_000.png 100 50;10 20 30 40",
    "Mass/00000004_000.png 100 50;0 0 100 50",
    "Effusion/00000003_000.png 100 50;40.5 5 60 10.25",
    "Nodule/00000004_000.png 100 50;1 2 3 4",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, names in (("train", TRAIN), ("test", TEST)):
        for name in names:
            file = tmp_path / split / name
            file.parent.mkdir(parents=True, exist_ok=True)
            seed = int(file.stem.replace("_", ""))  # so a name gives one picture, in whatever folder
            picture = np.random.default_rng(seed).integers(0, 256, (50, 100), dtype=np.uint8)
            Image.fromarray(picture).save(file)
    (tmp_path / LIST).write_text("".join(f"{name};{name.split('/')[0]}\n" for name in TEST))
    (tmp_path / BOXES).write_text("\n".join(LINES) + "\n")
    return tmp_path


def read(root: Path, split: str = "test", partial: bool = False) -> list[Radiograph]:
    return read_dataset(root, split, partial, readers=(Sr,))


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_the_layout_is_found_among_all(root: Path) -> None:
    assert isinstance(find_layout(root), Sr)
    assert Sr(root).splits() == Sr(root).listed_splits() == ("train", "test")


def test_folders_give_labels_and_a_name_in_two_folders_has_both(root: Path) -> None:
    records = read(root, "train")
    assert [record.name for record in records] == [f"train/{name}" for name in TRAIN[:3]]
    assert [record.target for record in records] == [
        (0, 0, 0, 1, 0, 0, 0, 0),
        (0, 0, 0, 0, 1, 1, 0, 0),
        (0, 0, 0, 0, 1, 0, 0, 0),
    ]
    assert [record.group for record in records] == ["00000001", "00000002", "00000002"]
    assert all(not len(record.boxes) and record.kind == "finding" for record in records)


def test_every_box_of_an_image_is_kept_with_its_finding(root: Path) -> None:
    effusion, both = read(root)
    assert effusion.boxes.tolist() == [[10, 20, 30, 40], [40.5, 5, 60, 10.25]]
    assert effusion.categories == (3, 3)
    assert both.boxes.tolist() == [[0, 0, 100, 50], [1, 2, 3, 4]]
    assert both.categories == (5, 6)
    assert both.target == (0, 0, 0, 0, 1, 1, 0, 0)
    assert effusion.size == both.size == (100, 50)


@pytest.mark.parametrize("between", [" ; ", " ;", "; ", "\t;  "])
def test_blanks_around_the_semicolon_change_nothing(root: Path, between: str) -> None:
    before = read(root)
    change(root / BOXES, ";", between)
    assert read(root) == before
    change(root / LIST, ";", between)
    assert read(root) == before


def test_the_lists_are_matched_by_name_and_not_by_line(root: Path) -> None:
    before = read(root)
    (root / BOXES).write_text("\n".join([LINES[1], LINES[3], LINES[0], LINES[2]]))
    assert read(root) == before


def test_boxes_follow_the_stored_size(root: Path) -> None:
    with Image.open(root / "test" / TEST[0]) as image:
        image.resize((50, 50)).save(root / "test" / TEST[0])
    effusion, both = read(root)
    assert effusion.boxes.tolist() == [[5, 20, 15, 40], [20.25, 5, 30, 10.25]]
    assert (effusion.size, both.size) == ((50, 50), (100, 50))


def test_val_stands_for_test_as_in_the_inference(root: Path) -> None:
    before = [(record.boxes.tolist(), record.target) for record in read(root)]
    (root / "test").rename(root / "val")
    records = read(root)
    assert [(record.boxes.tolist(), record.target) for record in records] == before
    assert records[0].name == "val/Effusion/00000003_000.png"
    shutil.rmtree(root / "val")
    with pytest.raises(DataError, match="test: no such folder"):
        read(root)


def test_a_missing_image_is_absent_and_keeps_the_stated_pixels(root: Path) -> None:
    (root / "test" / TEST[0]).unlink()
    with pytest.raises(DataError, match=r"1 of the 2 radiographs .* absent .*00000003_000\.png"):
        read(root)
    assert len(read(root, partial=True)) == 1
    assert Sr(root).records("test", pytest.fail)[0].boxes.tolist()[0] == [10, 20, 30, 40]
    (root / "test" / TEST[1]).unlink()  # the copy under Nodule is left
    (left,) = read(root, partial=True)
    assert (left.name, left.categories) == ("test/Nodule/00000004_000.png", (5, 6))


def test_a_check_counts_it_and_finds_nothing(root: Path) -> None:
    report = check_dataset(root)
    assert report.ok, report.problems
    assert report.boxes["category"].tolist() == ["Effusion", "Effusion", "Mass", "Nodule"]
    assert report.tables()["patients"].values.tolist() == [["train", 2, 0], ["test", 2, 0]]
    result = CliRunner().invoke(app, ["data", "check", str(root)])
    assert result.exit_code == 0, result.output
    assert "No problem found" in result.output


def test_a_patient_of_both_splits_is_counted_by_the_check(root: Path) -> None:
    (root / "train/Mass/00000002_001.jpg").rename(root / "train/Mass/00000004_001.jpg")
    assert check_dataset(root).tables()["patients"].values.tolist() == [["train", 3, 1], ["test", 2, 1]]


def test_a_check_names_each_bad_entry_once(root: Path) -> None:
    change(root / BOXES, "Nodule/00000004_000.png 100 50;1 2 3 4", "Nodule/00000004_000.png 100 50;1 2 3 51")
    (root / "train/Nodule").rename(root / "train/Hernia")
    report = check_dataset(root)
    assert len(report.problems) == 2
    assert "Hernia: finding 'Hernia' is unknown" in report.problems[0]
    assert "test_gt.txt, line 4: box '1 2 3 51'" in report.problems[1]
    result = CliRunner().invoke(app, ["data", "check", str(root)])
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (BOXES, ";10 20 30 40", ";10 20 101 40", r"test_gt\.txt, line 1: box .* does not lie in its 100x50 image"),
        (BOXES, ";10 20 30 40", ";-1 20 30 40", "does not lie in its 100x50 image"),
        (BOXES, ";10 20 30 40", ";30 20 10 40", "expected 0 <= x0 < x1 <= 100"),
        (BOXES, ";10 20 30 40", ";10 20 nan 40", "does not lie in"),
        (BOXES, ";10 20 30 40", ";10 20 30", "is not four numbers"),
        (BOXES, ";10 20 30 40", ";10 20 30 wide", "is not four numbers"),
        (BOXES, " 100 50;10", " 100;10", r"line 1: .* is not 'Class/x\.png w h;x0 y0 x1 y1'"),
        (BOXES, " 100 50;10", " 100 0;10", "image size 100 x 0"),
        (BOXES, "100 50;40.5", "1024 1024;40.5", r"size \(1024, 1024\), but \(100, 50\) in an earlier line"),
        (BOXES, "40.5 5 60 10.25", "10 20 30 40", "line 3: the same box as in line 1"),
        (BOXES, "Nodule/00000004_000.png 100 50", "Nodule/00000004_000.png 100 51", "states the sizes"),
        (BOXES, "Effusion/", "Hernia/", "finding 'Hernia' is unknown. Known are Atelectasis"),
        (BOXES, "Effusion/", "Edge/Effusion/", r"is not Class/x\.png"),
        (BOXES, "Effusion/", "../Effusion/", "not a path inside the image folder"),
        (BOXES, LINES[3], LINES[3].replace("4_000", "5_000"), r"Nodule/00000005_000\.png is not in test_list\.txt"),
        (BOXES, LINES[3], "", r"no box for Nodule/00000004_000\.png"),
        (LIST, "png;Mass", "png;Hernia", "line 2: finding 'Hernia' is unknown"),
        (LIST, "png;Mass", "png;Nodule", r"line 2: .* is not Class/x\.png;Class"),
        (LIST, "png;Mass", "png", r"is not Class/x\.png;Class"),
        (LIST, "Mass/00000004_000.png;Mass", "Effusion/00000003_000.png;Effusion", "line 2: .* duplicate of line 1"),
        (LIST, "Mass/00000004_000.png;Mass\n", "", "not in test_list"),
    ],
)
def test_bad_lists_are_refused(root: Path, file: str, old: str, new: str, message: str) -> None:
    change(root / file, old, new)
    with pytest.raises(DataError, match=message):
        read(root)


def test_two_folders_with_two_pictures_of_one_name_are_refused(root: Path) -> None:
    Image.new("L", (100, 50)).save(root / "train/Nodule/00000002_000.png")
    with pytest.raises(DataError, match=r"Nodule/00000002_000\.png: another picture than .*Mass/00000002_000\.png"):
        read(root, "train")


def test_two_files_of_one_name_in_a_folder_are_refused(root: Path) -> None:
    shutil.copy(root / "train/Mass/00000002_000.png", root / "train/Mass/00000002_000.jpg")
    with pytest.raises(DataError, match=r"00000002_000\.png: a duplicate of .*00000002_000\.jpg"):
        read(root, "train")


def test_an_image_of_both_train_and_test_is_refused(root: Path) -> None:
    shutil.copy(root / "test" / TEST[0], root / "train/Mass")
    with pytest.raises(DataError, match="00000003_000 is in train too"):
        read(root)


def test_an_unlisted_image_is_refused(root: Path) -> None:
    shutil.copy(root / "test" / TEST[0], root / "test/Mass/00000009_000.png")
    with pytest.raises(DataError, match=r"Mass/00000009_000\.png: not in test_list\.txt"):
        read(root)


def test_a_name_without_a_patient_is_refused(root: Path) -> None:
    (root / "train/Mass/00000002_001.jpg").rename(root / "train/Mass/chest.jpg")
    with pytest.raises(DataError, match=r"chest\.jpg: the name tells no patient"):
        read(root, "train")


def test_an_unknown_folder_is_refused_and_hidden_ones_are_not_seen(root: Path) -> None:
    (root / "train/.cache").mkdir()
    (root / "train/Mass/.00000007_000.png").write_text("")
    assert len(read(root, "train")) == 3
    (root / "train/No Finding").mkdir()
    with pytest.raises(DataError, match="finding 'No Finding' is unknown"):
        read(root, "train")
