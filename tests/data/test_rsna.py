from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_dicom import dicom

from tbkd_utils.data.cache import load_samples
from tbkd_utils.data.check import check_dataset
from tbkd_utils.data.dataset import read_dataset
from tbkd_utils.data.geometry import Aspect
from tbkd_utils.data.readers.rsna import Rsna
from tbkd_utils.data.records import Radiograph
from tbkd_utils.errors import DataError
from tbkd_utils.runs import Run

LABELS, FOLDER = "stage_2_train_labels.csv", "stage_2_train_images"
ROWS = """patientId,x,y,width,height,Target
0004cfab,,,,,0
00436515,512.0,256.0,256.0,128.0,1
00436515,0,0,1024.5,1024,1
00313ee0,,,,,0
00704310,100,200,300,400,1
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / LABELS).write_text(ROWS)
    for number, patient in enumerate(("0004cfab", "00436515", "00313ee0", "00704310")):
        dicom(tmp_path / FOLDER / f"{patient}.dcm", np.full((32, 64), number, np.uint16))
    return tmp_path


def read(root: Path, partial: bool = False) -> list[Radiograph]:
    return read_dataset(root, "all", partial, readers=(Rsna,))


def test_one_record_for_each_patient_in_the_order_of_the_table(root: Path) -> None:
    records = read(root)
    assert [record.group for record in records] == ["0004cfab", "00436515", "00313ee0", "00704310"]
    assert [record.name for record in records] == [f"{record.group}.dcm" for record in records]
    assert [record.target for record in records] == [0, 1, 0, 1]
    assert [record.kind for record in records] == ["no_pneumonia", "pneumonia", "no_pneumonia", "pneumonia"]
    assert [record.categories for record in records] == [(), (1, 1), (), (1,)]
    assert {record.source for record in records} == {"RSNA"}
    assert Rsna(root).splits() == Rsna(root).listed_splits() == ("all",)


def test_boxes_are_scaled_to_the_stored_image_and_clipped_before(root: Path) -> None:
    records = read(root)
    assert [record.size for record in records] == [None, (64, 32), None, (64, 32)]
    assert records[1].boxes.tolist() == [[32, 8, 48, 12], [0, 0, 64, 32]]
    assert records[3].boxes.tolist() == [[6.25, 6.25, 25, 18.75]]
    assert records[0].boxes.shape == (0, 4)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".jpeg"])
def test_a_converted_image_stands_for_the_dicom_if_that_is_gone(root: Path, ending: str) -> None:
    Image.new("L", (128, 128)).save(root / FOLDER / f"00436515{ending}")
    assert read(root)[1].name == "00436515.dcm"
    (root / FOLDER / "00436515.dcm").unlink()
    record = read(root)[1]
    assert (record.name, record.size, record.boxes[0].tolist()) == (f"00436515{ending}", (128, 128), [64, 32, 96, 48])


def test_an_absent_image_counts_as_dicom(root: Path) -> None:
    (root / FOLDER / "00436515.dcm").unlink()
    with pytest.raises(DataError, match=r"1 of the 4 radiographs .* absent .*00436515\.dcm"):
        read(root)
    assert len(read(root, partial=True)) == 3
    absent = Rsna(root).records("all", pytest.fail)[1]
    assert (absent.size, absent.boxes[0].tolist()) == ((1024, 1024), [512, 256, 768, 384])


def test_a_bad_row_is_left_out_and_the_rest_is_read(root: Path) -> None:
    (root / LABELS).write_text(ROWS.replace("256.0,128.0", "256.0,-128.0"))
    errors: list[DataError] = []
    records = Rsna(root).records("all", errors.append)
    assert len(errors) == 1
    assert [len(record.boxes) for record in records] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("00313ee0", "0004cfab", r"labels\.csv, line 5 \(0004cfab\): a duplicate row"),
        ("00313ee0", "00436515", r"line 5 \(00436515\): the image has rows with Target 0 and with Target 1"),
        ("00704310", "00313ee0", r"line 6 \(00313ee0\): the image has rows with Target 0 and with Target 1"),
        ("00313ee0,,,,,0", "00313ee0,,,,,1", r"line 5 .*: Target 1 without a box"),
        ("100,200,300,400,1", "100,200,300,400,0", r"line 6 .*: Target 0 with a box"),
        ("100,200,300,400,1", "100,200,300,,1", "is not four numbers"),
        ("100,200,300,400,1", "100,200,300,tall,1", "is not four numbers"),
        ("100,200,300,400,1", "100,200,300,400,2", "Target '2' is unknown"),
        ("100,200,300,400,1", "100,200,300", "Target '' is unknown"),
        ("100,200,300,400", "100,200,300,inf", "NaN or infinity"),
        ("100,200,300,400", "100,200,925,400", "outside its 1024x1024 image"),
        ("00313ee0", "../00313ee0", "not a path inside the image folder"),
        ("width,height", "w,h", "missing columns width, height"),
        ("00313ee0", '"00313ee0', "not valid CSV"),
        (ROWS, "", "empty"),
    ],
)
def test_bad_tables_are_refused(root: Path, old: str, new: str, message: str) -> None:
    assert old in ROWS
    (root / LABELS).write_text(ROWS.replace(old, new))
    with pytest.raises(DataError, match=message):
        read(root)


def test_damaged_headers_are_refused(root: Path) -> None:
    file = root / FOLDER / "00436515.dcm"
    whole = file.read_bytes()
    file.write_text("<html>")
    with pytest.raises(DataError, match=r"00436515\.dcm: not a DICOM file"):
        read(root)
    file.write_bytes(whole[:140])
    with pytest.raises(DataError, match=r"00436515\.dcm: "):
        read(root)
    dicom(file, np.zeros((32, 64), np.uint16), Rows=None)
    with pytest.raises(DataError, match=r"00436515\.dcm: image size 64 x None"):
        read(root)


def test_a_header_of_an_image_without_a_box_is_not_read(root: Path) -> None:
    (root / FOLDER / "0004cfab.dcm").write_text("no image")
    assert len(read(root)) == 4


# --- pixels -----------------------------------------------------------------------------------------------------------


def spotted(shape: tuple[int, int], left: int, top: int, width: int, height: int) -> tuple[np.ndarray, str]:
    """A dark image with a bright rectangle, uint8, and the rectangle's cells in pixels of the 1024x1024 original."""
    image = np.zeros(shape, np.uint8)
    image[top : top + height, left : left + width] = 255
    down, across = 1024 / shape[0], 1024 / shape[1]
    return image, f"{left * across},{top * down},{width * across},{height * down}"


@pytest.fixture
def mixed_root(tmp_path: Path) -> Path:
    """Two DICOM files and a PNG, none of them square, each with a box around its bright part but the second."""
    folder, rows = tmp_path / "rsna" / FOLDER, ["patientId,x,y,width,height,Target"]
    image, cells = spotted((64, 128), 32, 16, 32, 16)
    dicom(folder / "0001.dcm", image.astype(np.uint16) * 16)
    rows.append(f"0001,{cells},1")
    image, _ = spotted((96, 64), 8, 8, 16, 16)
    dicom(folder / "0002.dcm", image.astype(np.uint16) * 16)
    rows.append("0002,,,,,0")
    image, cells = spotted((128, 64), 16, 64, 16, 32)
    Image.fromarray(image).save(folder / "0003.png")
    rows.append(f"0003,{cells},1")
    (tmp_path / "rsna" / LABELS).write_text("\n".join(rows))
    return tmp_path / "rsna"


def test_a_check_reads_dicom_files_and_names_them_so(mixed_root: Path) -> None:
    report = check_dataset(mixed_root)
    assert report.problems == ()
    assert report.images["mode"].tolist() == ["DICOM", "DICOM", "L"]
    assert report.images[["width", "height"]].to_numpy().tolist() == [[128, 64], [64, 96], [64, 128]]
    (mixed_root / FOLDER / "0002.dcm").write_bytes(b"x" * 200)
    (problem,) = check_dataset(mixed_root).problems
    assert "0002.dcm: not a DICOM file" in problem


@pytest.mark.parametrize("aspect", ["keep", "squash"])
def test_dicom_files_are_loaded_with_their_boxes_in_place(mixed_root: Path, tmp_path: Path, aspect: Aspect) -> None:
    records = read(mixed_root)
    samples = load_samples(records, lambda kind, settings: Run.at(tmp_path / "runs", kind, settings), 64, 64, aspect)
    assert samples.names == ("0001.dcm", "0002.dcm", "0003.png")
    assert [len(boxes) for boxes in samples.boxes] == [1, 0, 1]
    for index in (0, 2):
        y, x = np.nonzero(samples.pixels[index] > 127)
        seen = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert np.abs(samples.boxes[index][0] - seen).max() <= 1
