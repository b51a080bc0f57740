from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tbkd_utils.data.check import check_dataset
from tbkd_utils.data.dataset import read_dataset, read_negatives
from tbkd_utils.data.readers.nih import FINDINGS, Nih
from tbkd_utils.data.records import Radiograph
from tbkd_utils.errors import DataError

ENTRIES = {
    "00000001_000.png": ("Infiltration|Pneumonia|Edema", 1),
    "00000001_001.png": ("No Finding", 1),
    "00000002_000.png": ("Hernia", 2),
    "00000003_000.png": ("Atelectasis", 3),
}
BOXES = (
    "00000001_000.png,Infiltrate,512,256,256,128",
    "00000001_000.png,Pneumonia,0,0,1024.5,1024",
    "00000003_000.png,Atelectasis,100,200,300,400",
)
PLAIN = "Image Index,Finding Label,Bbox x,Bbox y,Bbox w,Bbox h"
OFFICIAL = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
TABLE, LIST = "Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"


def save(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(exist_ok=True)
    picture = np.random.default_rng(len(path.name) + width).integers(0, 256, (height, width), dtype=np.uint8)
    Image.fromarray(picture).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rows = [f"{name},{labels},0,{patient},058Y,M" for name, (labels, patient) in ENTRIES.items()]
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender"
    (tmp_path / TABLE).write_text("\n".join([header, *rows]) + "\n")
    (tmp_path / LIST).write_text("\n".join([PLAIN, *BOXES]) + "\n")
    for number, name in enumerate(ENTRIES):
        save(tmp_path / "images" / name, 64 + number, 32)
    return tmp_path


@pytest.fixture
def listed(root: Path) -> Path:
    (root / "train_val_list.txt").write_text("00000003_000.png\n\n00000002_000.png\n")
    (root / "test_list.txt").write_text("00000001_000.png\n00000001_001.png\n")
    return root


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def add(file: Path, line: str) -> None:
    file.write_text(file.read_text() + line + "\n")


def read(root: Path, split: str = "all", partial: bool = False) -> list[Radiograph]:
    return read_dataset(root, split, partial, readers=(Nih,))


def test_all_comes_in_the_order_of_the_table_with_targets_kinds_and_patients(root: Path) -> None:
    records = read(root)
    assert [record.name for record in records] == list(ENTRIES)
    assert [record.path for record in records] == [root / "images" / name for name in ENTRIES]
    assert [record.target for record in records] == [
        (0, 0, 0, 1, 0, 0, 1, 0),
        (0,) * 8,
        (0,) * 8,
        (1, 0, 0, 0, 0, 0, 0, 0),
    ]
    assert [record.kind for record in records] == ["finding", "no_finding", "other", "finding"]
    assert [record.group for record in records] == ["1", "1", "2", "3"]
    assert {record.source for record in records} == {"NIH"}
    assert tuple(Nih.categories.values()) == FINDINGS


def test_boxes_are_scaled_to_the_stored_image_and_clipped_before(root: Path) -> None:
    records = read(root)
    assert records[0].size == (64, 32)
    assert records[0].boxes.tolist() == [[32, 8, 48, 12], [0, 0, 64, 32]]
    assert records[0].categories == (4, 7)
    assert records[1].boxes.shape == (0, 4)
    assert records[1].size is None
    assert records[3].size == (67, 32)
    np.testing.assert_allclose(records[3].boxes, [[100 * 67 / 1024, 6.25, 400 * 67 / 1024, 18.75]], rtol=1e-6)


def test_a_jpeg_of_the_same_stem_stands_for_the_png(root: Path) -> None:
    (root / "images/00000001_000.png").unlink()
    save(root / "images/00000001_000.jpg", 128, 128)
    (root / "images/00000001_001.png").rename(root / "images/00000001_001.jpeg")
    records = read(root)
    assert [record.name for record in records[:2]] == ["00000001_000.jpg", "00000001_001.jpeg"]
    assert records[0].boxes.tolist() == [[64, 32, 96, 48], [0, 0, 128, 128]]


def test_an_absent_image_counts_as_a_png_and_keeps_the_pixels_of_the_original(root: Path) -> None:
    (root / "images/00000003_000.png").unlink()
    with pytest.raises(DataError, match=r"1 of the 4 radiographs .* absent .*00000003_000\.png"):
        read(root)
    assert len(read(root, partial=True)) == 3
    absent = Nih(root).records("all", pytest.fail)[3]
    assert (absent.size, absent.boxes.tolist()) == ((1024, 1024), [[100, 200, 400, 600]])


def test_only_headers_of_images_with_a_box_are_read(root: Path) -> None:
    (root / "images/00000001_001.png").write_text("no image")
    assert len(read(root)) == 4
    whole = (root / "images/00000001_000.png").read_bytes()
    (root / "images/00000001_000.png").write_bytes(whole[:60])
    assert read(root)[0].size == (64, 32)


@pytest.mark.parametrize("header", [OFFICIAL, "Image Index,Finding Label,Bbox [x, y, w, h],,,"])
def test_the_official_header_of_the_box_list_is_read(root: Path, header: str) -> None:
    before = read(root)
    (root / LIST).write_text("\n".join([header, *(f"{line},,," for line in BOXES)]) + "\n")
    assert read(root) == before


def test_splits_are_the_lists_that_are_there(listed: Path) -> None:
    assert Nih(listed).splits() == ("train", "test", "all")
    assert Nih(listed).listed_splits() == ("train", "test")
    assert [record.group for record in read(listed, "train")] == ["3", "2"]
    assert [record.group for record in read(listed, "test")] == ["1", "1"]
    (listed / "train_val_list.txt").unlink()
    assert Nih(listed).splits() == ("test", "all")
    assert Nih(listed).listed_splits() == ("all",)
    assert len(read(listed, "test")) == 2


def test_a_check_counts_it_and_finds_nothing(listed: Path) -> None:
    report = check_dataset(listed, readers=(Nih,))
    assert report.ok, report.problems
    assert report.boxes["category"].tolist() == ["Atelectasis", "Infiltration", "Pneumonia"]


def test_one_bad_row_is_one_problem(listed: Path) -> None:
    change(listed / TABLE, "Pneumonia|Edema", "Pneumonia|Oedema")  # its boxes and its line say nothing more
    (problem,) = check_dataset(listed, readers=(Nih,)).problems
    assert "'Oedema'" in problem


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (TABLE, "Hernia", "Hiccups", r"2020\.csv, line 4 \(00000002_000\.png\): finding label 'Hiccups' is unknown"),
        (TABLE, "Hernia", "", "finding label '' is unknown"),
        (TABLE, "Hernia", "No Finding|Hernia", "contradicts itself"),
        (TABLE, "00000001_001.png", "00000001_000.png", r"line 3: a duplicate row of 00000001_000\.png"),
        (TABLE, "00000001_001.png", "../1.png", "not a path inside the image folder"),
        (TABLE, "Hernia,0,2", "Hernia,0,", r"line 4 .* no Patient ID"),
        (TABLE, "Patient ID", "Patient", "missing columns Patient ID"),
        (TABLE, "Hernia", '"Hernia', "not valid CSV"),
        (LIST, "Finding Label", "Finding", "Expected Image Index, Finding Label, Bbox x"),
        (LIST, "Bbox x,Bbox y", "Bbox y,Bbox x", "Expected Image Index, Finding Label, Bbox x"),
        (LIST, "00000003_000", "00000004_000", r"line 4 \(00000004_000\.png\): a box for an image that Data_Entry"),
        (LIST, "Atelectasis", "Hernia", "finding 'Hernia' is unknown"),
        (LIST, "Atelectasis", "Mass", r"line 4 .* a box of Mass, but .* labels the image Atelectasis\."),
        (LIST, "100,200,300,400", "100,200,300,wide", "is not four numbers"),
        (LIST, "100,200,300,400", "100,200,300", "not an image, a finding and 4 numbers"),
        (LIST, "100,200,300,400", "100,200,300,400,5", "not an image, a finding and 4 numbers"),
        (LIST, "100,200,300,400", "100,200,nan,400", "NaN or infinity"),
        (LIST, "100,200,300,400", "100,200,-3,400", "empty or inverted"),
        (LIST, "100,200,300,400", "100,200,925,400", "outside its 1024x1024 image"),
    ],
)
def test_bad_tables_are_refused(root: Path, file: str, old: str, new: str, message: str) -> None:
    change(root / file, old, new)
    with pytest.raises(DataError, match=message):
        read(root)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("00000009_000.png", r"train_val_list\.txt, line 4: 00000009_000\.png has no row"),
        ("00000003_000.png", "is a duplicate of line 1"),
        ("/00000003_000.png", "not a path inside the image folder"),
    ],
)
def test_bad_lines_of_a_list_are_refused(listed: Path, line: str, message: str) -> None:
    add(listed / "train_val_list.txt", line)
    with pytest.raises(DataError, match=message):
        read(listed, "train")
    assert len(read(listed, "all")) == 4


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_image_in_both_lists_is_refused_in_either(listed: Path, split: str) -> None:
    add(listed / "train_val_list.txt", "00000001_001.png")
    with pytest.raises(DataError, match=r"00000001_001\.png is in (test|train_val)_list\.txt too"):
        read(listed, split)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_patient_in_both_lists_is_refused_in_either(listed: Path, split: str) -> None:
    change(listed / "test_list.txt", "00000001_001.png\n", "")
    add(listed / "train_val_list.txt", "00000001_001.png")
    with pytest.raises(DataError, match=r"patient 1 of 00000001_00[01]\.png is in (test|train_val)_list\.txt too"):
        read(listed, split)


def test_the_table_of_the_first_release_is_read_too(root: Path) -> None:
    before = read(root)
    (root / TABLE).rename(root / "Data_Entry_2017.csv")
    assert read(root) == before
    (root / "Data_Entry_2017.csv").unlink()
    with pytest.raises(DataError, match=r"Data_Entry_2017_v2020\.csv: cannot be read"):
        read(root)


def test_an_image_without_a_readable_size_cannot_have_boxes(root: Path) -> None:
    (root / "images/00000001_000.png").write_text("<html>")
    with pytest.raises(DataError, match=r"00000001_000\.png: its size cannot be read"):
        read(root)


def test_empty_tables_are_refused(root: Path) -> None:
    (root / LIST).write_text("")
    with pytest.raises(DataError, match=r"BBox_List_2017\.csv: empty"):
        read(root)


def test_radiographs_without_any_finding_can_be_another_datasets_negatives(listed: Path) -> None:
    kinds = {record.name: record.kind for record in read(listed)}
    found = read_negatives(listed)
    assert sorted(record.name for record in found) == sorted(
        f"nih-chestx-ray14/{name}" for name, kind in kinds.items() if kind == "no_finding"
    )
    assert all(record.target == 0 and not len(record.boxes) for record in found)
    change(listed / "Data_Entry_2017_v2020.csv", "No Finding", "Hernia")
    with pytest.raises(DataError, match="no radiograph of this nih-chestx-ray14 copy is without finding"):
        read_negatives(listed)
