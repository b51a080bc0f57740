"""The upload button, pressed by the test: what stands in the area below it."""

import base64
import json
import re
from datetime import datetime
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pytest
from tiny_dicom import dicom, mixed
from untrained import untrained

from tbkd_utils.data.images import read_image
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.predict import locate
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.views.export import coco
from tbkd_utils.views.upload import locate_upload


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedNetwork:
    return untrained(Experiment.open("smoke", out=tmp_path_factory.mktemp("upload")))


@pytest.fixture(scope="module")
def folder(trained: TrainedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    experiment = Experiment.open("smoke", out=trained.run.path.parent.parent.parent)
    record = next(record for record in experiment.test_records if record.target == 1)
    return mixed(tmp_path_factory.mktemp("in"), read_image(record.path))


def upload(box: widgets.VBox, *files: Path, names: tuple[str, ...] = ()) -> tuple[str, str]:
    """Gives files to the button as a browser does; returns the status and the results."""
    button, _, status, results = box.children
    given = names or [file.name for file in files]
    button.value = tuple(
        {"name": name, "type": "", "size": file.stat().st_size, "content": memoryview(file.read_bytes()),
         "last_modified": datetime(2025, 1, 1)}
        for name, file in zip(given, files, strict=True)
    )  # fmt: skip
    return status.value, results.value


def test_a_button_that_the_keyboard_reaches_and_an_area(trained: TrainedNetwork) -> None:
    box = locate_upload(trained)
    button, hint, status, results = box.children
    assert isinstance(button, widgets.FileUpload)
    assert button.multiple
    assert button.description
    assert not button.disabled
    assert ".dcm" in button.accept
    assert all(part in hint.value for part in ("DICOM", "10 MB", "suggestions"))
    assert status.value == results.value == ""


def test_uploaded_radiographs_are_located_as_by_the_function(trained: TrainedNetwork, folder: Path) -> None:
    files = [folder / "a.png", folder / "sub/c.dcm"]
    box = locate_upload(trained, threshold=0.4)
    status, results = upload(box, *files)
    expected = [locate(file, trained, threshold=0.4).findings[0] for file in files]
    assert "role='status'" in status  # is announced
    assert "2 located" in status
    assert results.count("<img ") == 2
    for found in expected:
        assert f"{found.name}: probability of TB {found.probability:.2f}" in results
        for left, top, right, bottom in found.boxes:
            assert f"left {left:.0f}, top {top:.0f}, right {right:.0f}, bottom {bottom:.0f}" in results
    for picture in re.findall(r"src='data:image/png;base64,([^']*)'", results):
        assert base64.b64decode(picture).startswith(b"\x89PNG")
    saved = json.loads(base64.b64decode(re.search(r"json;base64,([^']*)'", results)[1]))  # type: ignore[index]
    direct = coco(locate(files, trained, threshold=0.4))
    assert [a["bbox"] for a in saved["annotations"]] == [a["bbox"] for a in direct["annotations"]]
    assert box.children[0].value == ()  # the same file can be chosen again


def test_another_systems_finding_is_called_by_its_name(folder: Path, tmp_path: Path) -> None:
    experiment = Experiment.open("smoke", out=tmp_path, system="pneumonia")
    _, results = upload(locate_upload(untrained(experiment, "classifier")), folder / "a.png")
    assert "a.png: probability of pneumonia " in results
    assert "TB" not in re.sub(r"base64,[^']*", "", results)


def test_bad_files_are_named_beside_the_good_ones(trained: TrainedNetwork, folder: Path) -> None:
    status, results = upload(locate_upload(trained), folder / "a.png", folder / "cut.png", folder / "sub/empty.dcm")
    assert "1 located" in status
    assert "2 not located" in status
    assert "<b>cut.png</b>: the image is truncated" in results
    assert "<b>empty.dcm</b>: a DICOM file without an image" in results
    assert "/tmp" not in results


def test_one_upload_replaces_what_the_last_one_showed(trained: TrainedNetwork, folder: Path) -> None:
    box = locate_upload(trained)
    upload(box, folder / "cut.png")
    status, results = upload(box, folder / "a.png")
    assert "cut.png" not in results
    assert "not located" not in status


def test_names_are_only_names(trained: TrainedNetwork, folder: Path) -> None:
    names = ("../../x.png", "C:\\scans\\x.png", "<b>x' onload='y.png", "")
    status, results = upload(locate_upload(trained), *[folder / "a.png"] * 4, names=names)
    assert "4 located" in status
    assert "x.png: probability" in results
    assert "x (2).png: probability" in results
    assert "<b>x" not in results
    assert "onload='" not in results
    assert "radiograph: probability" in results


def test_errors_stand_in_the_area(
    trained: TrainedNetwork, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, results = upload(locate_upload(trained, threshold=7), folder / "a.png")
    assert "Failed:" in status
    assert "threshold is 7" in status
    assert results == ""
    monkeypatch.setattr("tbkd_utils.views.upload.locate", lambda *_, **__: 1 / 0)
    status, _ = upload(locate_upload(trained), folder / "a.png")
    assert "ZeroDivisionError" in status


def test_notes_are_shown(trained: TrainedNetwork, tmp_path: Path) -> None:
    dicom(tmp_path / "x.dcm", np.full((80, 80), 3, np.uint16))
    _, results = upload(locate_upload(trained), tmp_path / "x.dcm")
    assert "<figcaption>x.dcm: very dark" in results
