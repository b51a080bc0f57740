"""Which files are taken from a folder, what they are called, and how any one of them is read."""

import os
from pathlib import Path

import numpy as np
import pytest
import tiny_dataset as tiny
from PIL import Image
from tiny_dicom import dicom

from tbkd_utils.data.dicom import read_dicom
from tbkd_utils.data.files import find_radiographs, picture_name, read_listed, read_radiograph
from tbkd_utils.data.images import read_image
from tbkd_utils.errors import DataError

RAMP = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) * 20


def names(folder: Path, **options) -> list[str]:
    return [name for name, _ in find_radiographs(folder, **options).files]


def test_a_folder_is_read_with_all_below_it_and_names_are_relative(tmp_path: Path) -> None:
    for name in ("b.png", "a/c.PNG", "a/b/d.jpeg", "z.tif", "y.bmp"):
        tiny.write_image(tmp_path / "in" / name)
    dicom(tmp_path / "in/a/e.dcm", RAMP)
    dicom(tmp_path / "in/a/1.2.840.113619", RAMP)  # archives give such names
    found = find_radiographs(tmp_path / "in")
    expected = ["a/1.2.840.113619", "a/b/d.jpeg", "a/c.PNG", "a/e.dcm", "b.png", "y.bmp", "z.tif"]
    assert [name for name, _ in found.files] == expected
    assert all(path == tmp_path / "in" / name for name, path in found.files)
    assert (found.problems, found.others) == ((), 0)


def test_hidden_files_other_files_and_links_to_folders_are_passed_over(tmp_path: Path) -> None:
    for name in ("a.png", ".b.png", ".hidden/c.png", "._a.png"):
        tiny.write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "labels.csv").write_text("x")
    dicom(tmp_path / "DICOMDIR", RAMP)  # the index of a CD, not an image
    (tmp_path / "circle").symlink_to(tmp_path)
    found = find_radiographs(tmp_path)
    assert [name for name, _ in found.files] == ["a.png"]
    assert found.others == 3


def test_folders_can_be_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "out/b.png", "in/out/c.png"):
        tiny.write_image(tmp_path / name)
    assert names(tmp_path, leave_out=[tmp_path / "out"]) == ["a.png", "in/out/c.png"]


def test_a_file_that_is_named_counts_whatever_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("no image")
    assert names(tmp_path / "x.txt") == ["x.txt"]
    assert find_radiographs(str(tmp_path / "x.txt")).files == (("x.txt", tmp_path / "x.txt"),)


def test_several_files_are_named_from_the_folder_they_share(tmp_path: Path) -> None:
    for name in ("p/1.png", "q/1.png", "q/r/2.png"):
        tiny.write_image(tmp_path / name)
    found = find_radiographs([tmp_path / "p/1.png", tmp_path / "q", tmp_path / "q/1.png"])
    assert [name for name, _ in found.files] == ["p/1.png", "q/1.png", "q/r/2.png"]


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_image(tmp_path / "in/1.png")
    monkeypatch.chdir(tmp_path)
    assert names(Path("in")) == names(Path("in/1.png")) == ["1.png"]


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent: no such file"):
        find_radiographs(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no radiograph in it \(1 other files\).*\.dcm"):
        find_radiographs(tmp_path)
    with pytest.raises(DataError, match="No file"):
        find_radiographs([])


def test_what_cannot_be_tried_is_a_problem_of_its_own(tmp_path: Path) -> None:
    tiny.write_image(tmp_path / "good.png")
    tiny.write_image(tmp_path / "x.jpg")
    tiny.write_image(tmp_path / "x.jpg.png")  # as the picture of x.jpg would be called
    tiny.write_image(tmp_path / f"{'l' * 230}.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(b"")
    found = find_radiographs(tmp_path)
    assert [name for name, _ in found.files] == ["good.png", "x.jpg"]
    problems = dict(found.problems)
    assert set(problems) == {"x.jpg.png", f"{'l' * 230}.png", "\\udcff.png"}
    assert "x.jpg" in problems["x.jpg.png"]
    assert "too long" in problems[f"{'l' * 230}.png"]
    assert "UTF-8" in problems["\\udcff.png"]


def test_a_folder_that_cannot_be_read_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_image(tmp_path / "a.png")
    tiny.write_image(tmp_path / "closed/b.png")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_radiographs(tmp_path)
    assert [name for name, _ in found.files] == ["a.png"]
    ((name, reason),) = found.problems
    assert name == "closed"
    assert "Permission denied" in reason


def test_pictures_are_called_after_the_whole_name() -> None:
    assert [picture_name(name) for name in ("a/b.png", "b.PNG", "b.dcm", "b")] == [
        "a/b.png", "b.PNG", "b.dcm.png", "b.png"
    ]  # fmt: skip


def test_every_format_is_read_as_its_own_reader_does(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 192).astype(np.uint16).reshape(12, 16)
    Image.fromarray(deep).save(tmp_path / "16.png")
    Image.fromarray(np.dstack([(deep // 257).astype(np.uint8), *[np.zeros((12, 16), np.uint8)] * 2])).save(
        tmp_path / "rgb.png"
    )
    tiny.write_image(tmp_path / "gray.jpg")
    for name in ("16.png", "rgb.png", "gray.jpg"):
        assert np.array_equal(read_radiograph(tmp_path / name), read_image(tmp_path / name))
    path = dicom(tmp_path / "without_ending", RAMP)
    assert np.array_equal(read_radiograph(path), read_dicom(path))


def test_the_reader_that_knows_most_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(b"not DICOM" * 50)
    with pytest.raises(DataError, match="DICM"):
        read_radiograph(tmp_path / "x.dcm")
    (tmp_path / "empty.dcm").write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        read_radiograph(tmp_path / "empty.dcm")
    (tmp_path / "x.png").write_text("hello")
    with pytest.raises(DataError, match="not a PNG"):
        read_radiograph(tmp_path / "x.png")


def test_a_strip_is_no_radiograph(tmp_path: Path) -> None:
    tiny.write_image(tmp_path / "x.png", size=(500, 20))
    with pytest.raises(DataError, match="500 x 20"):
        read_radiograph(tmp_path / "x.png")


def test_a_listed_file_is_dicom_by_its_ending_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dicom(tmp_path / "x.DCM", RAMP)
    assert np.array_equal(read_listed(path), read_dicom(path))
    Image.fromarray(np.full((4, 6), 9, np.uint8)).save(tmp_path / "x.png")
    monkeypatch.setattr("tbkd_utils.data.files.is_dicom", lambda _: pytest.fail("opened twice"))
    assert read_listed(tmp_path / "x.png").tolist() == [[9] * 6] * 4
    with pytest.raises(DataError, match="no such file"):
        read_listed(tmp_path / "absent.png")
