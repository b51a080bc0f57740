"""What is written for annotators: COCO JSON, tables and overlays, as a whole or not at all; and the command."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import good, run
from PIL import Image
from pycocotools.coco import COCO
from tiny_dicom import dicom, mixed
from untrained import untrained

from tbkd_utils.data.dicom import read_dicom
from tbkd_utils.data.images import read_image
from tbkd_utils.errors import DataError, RunError
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.predict import Located, locate
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.views import export as module
from tbkd_utils.views.export import box_table, check_writable, coco, image_table, write_suggestions
from tbkd_utils.views.overlays import overlay

pytestmark = pytest.mark.slow  # files are made and made again


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment.open("smoke", out=tmp_path_factory.mktemp("suggestions"))


@pytest.fixture(scope="module")
def trained(experiment: Experiment) -> TrainedNetwork:
    return untrained(experiment)


@pytest.fixture(scope="module")
def folder(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good files, four bad ones, and one that is no radiograph."""
    record = next(record for record in experiment.test_records if record.target == 1)
    return mixed(tmp_path_factory.mktemp("in"), read_image(record.path))


@pytest.fixture(scope="module")
def located(trained: TrainedNetwork, folder: Path) -> Located:
    return locate(folder, trained, threshold=0.4, min_area=4)


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


# --- COCO and tables --------------------------------------------------------------------------------------------------


def test_the_json_is_coco(located: Located, tmp_path: Path) -> None:
    write_suggestions(located, tmp_path / "out")
    content = json.loads((tmp_path / "out/boxes.json").read_text())
    assert set(content) == {"info", "licenses", "images", "annotations", "categories"}
    assert content["categories"] == [{"id": 1, "name": "tuberculosis", "supercategory": ""}]
    assert [image["file_name"] for image in content["images"]] == ["a.png", "sub/b.jpg", "sub/c.dcm.png"]
    assert [image["source"] for image in content["images"]] == ["a.png", "sub/b.jpg", "sub/c.dcm"]
    assert len({image["id"] for image in content["images"]}) == 3
    assert len(content["annotations"]) == sum(len(found.boxes) for found in located.findings) > 0
    for image, found in zip(content["images"], located.findings, strict=True):
        assert (image["height"], image["width"]) == read_image(located.findings[0].path).shape
        mine = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        for entry, (left, top, right, bottom) in zip(mine, found.boxes.astype(float), strict=True):
            assert entry["bbox"] == [left, top, right - left, bottom - top]
            assert entry["area"] == entry["bbox"][2] * entry["bbox"][3] > 0
            assert (entry["category_id"], entry["iscrowd"], entry["segmentation"]) == (1, 0, [])
            assert entry["score"] == found.probability
    assert [entry["id"] for entry in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    info = content["info"]
    assert (info["network"], info["min_area"]) == (located.trained.run.path.name, 4)
    assert info["settings"]["threshold"] == 0.4
    assert len(COCO(str(tmp_path / "out/boxes.json")).anns) == len(content["annotations"])


def test_tables_hold_a_row_per_box_and_a_row_per_radiograph(located: Located) -> None:
    boxes, images = box_table(located), image_table(located)
    assert boxes[["x", "y", "width", "height"]].to_numpy().tolist() == [
        entry["bbox"] for entry in coco(located)["annotations"]
    ]
    assert images["boxes"].tolist() == [len(found.boxes) for found in located.findings]
    assert boxes.groupby("file").size().to_dict() == {row.file: row.boxes for row in images.itertuples() if row.boxes}
    assert images["probability"].between(0, 1).all()


# --- overlays ---------------------------------------------------------------------------------------------------------


def test_an_overlay_shows_boxes_heatmap_and_probability_in_the_files_pixels(located: Located) -> None:
    found = located.findings[0]
    figure = overlay(found, "student")
    boxed, heated = figure.axes[:2]
    rectangles = [p for p in boxed.patches if p.get_linewidth() > 1]
    drawn = [[p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height()] for p in rectangles]
    assert np.allclose(drawn, found.boxes)
    assert f"{found.probability:.3f}" in boxed.get_title()
    assert all(f"{found.probability:.2f}" in text.get_text() for text in boxed.texts)
    left, right, bottom, top = heated.images[1].get_extent()
    assert np.allclose([left, top, right, bottom], found.seen)
    assert boxed.get_xlim() == (0, found.geometry.width)
    assert boxed.get_ylim() == (found.geometry.height, 0)


def test_the_finding_is_called_as_its_system_calls_it(located: Located, folder: Path, tmp_path: Path) -> None:
    assert overlay(located.findings[0], "student").axes[0].get_title().startswith("p(TB) ")
    network = untrained(Experiment.open("smoke", out=tmp_path, system="pneumonia"), "classifier")
    other = locate(folder / "a.png", network)
    assert coco(other)["categories"] == [{"id": 1, "name": "pneumonia", "supercategory": ""}]
    title = overlay(other.findings[0], network.role).axes[0].get_title()
    assert title.startswith("p(pneumonia) ")
    assert "by the classifier" in title


def test_odd_names_are_drawn_as_they_are(trained: TrainedNetwork, folder: Path, tmp_path: Path) -> None:
    name = f"$x_1$ 100% {'long ' * 30}.png"
    shutil.copy(folder / "a.png", tmp_path / name)
    (found,) = locate(tmp_path, trained).findings
    assert len(module.overlay_png(found, "teacher")) > 1000


def test_a_file_that_is_gone_cannot_be_drawn(trained: TrainedNetwork, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "a.png", tmp_path / "a.png")
    shutil.copy(folder / "a.png", tmp_path / "b.png")
    gone = locate(tmp_path, trained)
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError):
        overlay(gone.findings[0], "student")
    written = write_suggestions(gone, tmp_path / "out")
    assert [found.name for found in written.findings] == ["b.png"]
    assert [name for name, _ in written.failures] == ["a.png"]
    assert pd.read_csv(tmp_path / "out/failed.csv")["file"].tolist() == ["a.png"]


# --- the folder as a whole --------------------------------------------------------------------------------------------


def test_all_files_are_there(located: Located, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    write_suggestions(located, tmp_path / "deep/out", lambda *step: steps.append(step))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    out = tmp_path / "deep/out"
    assert set(contents(out)) == {
        "boxes.json", "boxes.csv", "images.csv", "failed.csv", "done.json",
        "overlays/a.png", "overlays/sub/b.jpg.png", "overlays/sub/c.dcm.png", "pictures/sub/c.dcm.png",
    }  # fmt: skip
    assert list(tmp_path.joinpath("deep").iterdir()) == [out]  # nothing is left beside it
    pd.testing.assert_frame_equal(pd.read_csv(out / "boxes.csv"), box_table(located))
    failed = pd.read_csv(out / "failed.csv")
    assert list(failed.itertuples(index=False, name=None)) == list(located.failures)


def test_a_dicoms_picture_has_its_pixels_and_nothing_of_its_header(located: Located, tmp_path: Path) -> None:
    write_suggestions(located, tmp_path / "out")
    source = located.findings[2].path
    picture = tmp_path / "out/pictures/sub/c.dcm.png"
    assert np.array_equal(np.asarray(Image.open(picture)), read_dicom(source))
    assert b"Doe" in source.read_bytes()
    assert not any(b"Doe" in content or b"4711" in content for content in contents(tmp_path / "out").values())


def test_an_untouched_outcome_is_replaced_as_a_whole(located: Located, tmp_path: Path) -> None:
    write_suggestions(located, tmp_path / "out")
    first = contents(tmp_path / "out")
    write_suggestions(located, tmp_path / "out")
    assert contents(tmp_path / "out") == first  # the same bytes
    fewer = Located(located.findings[:1], (), 0, located.trained, located.min_area, 0.0)
    write_suggestions(fewer, tmp_path / "out")
    assert "overlays/sub/b.jpg.png" not in contents(tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_used(located: Located, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_suggestions(located, tmp_path / "out")
    assert (tmp_path / "out/boxes.json").is_file()


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda out: (out / "boxes.json").write_text("{}"), "boxes.json is not the file that was written"),
        (lambda out: (out / "corrected.json").write_text("{}"), "corrected.json was added"),
        (lambda out: (out / "overlays/a.png").unlink(), "a.png is missing"),
        (lambda out: (out / "done.json").unlink(), "did not write"),
    ],
)
def test_what_people_changed_is_never_overwritten(located: Located, tmp_path: Path, spoil, part: str) -> None:
    write_suggestions(located, tmp_path / "out")
    spoil(tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(RunError, match=part):
        write_suggestions(located, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_what_is_changed_while_overlays_are_drawn_is_kept_too(located: Located, tmp_path: Path) -> None:
    write_suggestions(located, tmp_path / "out")
    with pytest.raises(RunError, match=r"corrected\.json was added"):
        write_suggestions(located, tmp_path / "out", lambda *_: (tmp_path / "out/corrected.json").write_text("{}"))
    assert (tmp_path / "out/corrected.json").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_foreign_folders_and_files_are_refused(located: Located, trained: TrainedNetwork, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt", trained.run.path):
        with pytest.raises(RunError, match="did not write"):
            check_writable(out)


def test_the_radiographs_themselves_are_never_replaced(
    located: Located, trained: TrainedNetwork, tmp_path: Path
) -> None:
    write_suggestions(located, tmp_path / "out")
    again = locate(tmp_path / "out/pictures", trained)
    with pytest.raises(RunError, match="would be replaced"):
        write_suggestions(again, tmp_path / "out")


def test_a_full_disk_leaves_the_old_outcome(located: Located, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_suggestions(located, tmp_path / "out")
    before = contents(tmp_path / "out")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="disk is full"):
            write_suggestions(located, tmp_path / "out")
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if Path(target).name == "out" and not str(source).endswith(".old"):
            raise OSError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(RunError, match="not writable"):
        write_suggestions(located, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_finishes_the_good_files_and_says_which_are_bad(
    trained: TrainedNetwork, folder: Path, tmp_path: Path
) -> None:
    result = run("locate", folder, "--run", trained.run.path, "--out", tmp_path / "out")
    assert result.exit_code == 3
    assert result.output.count("\nfailed: ") + result.output.startswith("failed: ") == 4
    assert "failed: cut.png: the image is truncated" in result.output
    assert "Radiographs located: 3 " in result.output
    assert " with a probability of TB above 0.5); boxes: " in result.output
    assert "failed: 4; other files, not looked at: 1." in result.output
    assert len(json.loads((tmp_path / "out/boxes.json").read_text())["images"]) == 3


def test_the_command_on_one_good_file(
    trained: TrainedNetwork, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = good("locate", folder / "sub/c.dcm", "--run", trained.run.path)
    assert f"Written: {tmp_path / 'located'}" in text
    assert set(pd.read_csv("located/images.csv")["file"]) == {"c.dcm"}
    good("locate", folder / "sub/c.dcm", "--run", trained.run.path)  # again, in its place


def test_the_command_with_a_network_of_another_system(folder: Path, tmp_path: Path) -> None:
    experiment = Experiment.open("smoke", out=tmp_path, system="pneumonia")
    network = untrained(experiment, "classifier").run.path
    assert network.parent.name == "pneumonia-smoke"
    text = good("locate", folder / "a.png", "--run", network, "--out", tmp_path / "out")
    assert " with a probability of pneumonia above 0.5); boxes: " in text
    assert json.loads((tmp_path / "out/boxes.json").read_text())["categories"][0]["name"] == "pneumonia"
    assert (tmp_path / "out/overlays/a.png").is_file()


def test_the_commands_options_reach_the_boxes(trained: TrainedNetwork, folder: Path, tmp_path: Path) -> None:
    options = ("--threshold", "0.3", "--min-area", "5", "--min-probability", "0.01", "--set", "area=contour")
    good("locate", folder / "a.png", "--run", trained.run.path, "--out", tmp_path / "out", *options)
    info = json.loads((tmp_path / "out/boxes.json").read_text())["info"]
    assert (info["min_area"], info["min_probability"]) == (5, 0.01)
    assert (info["settings"]["threshold"], info["settings"]["area"]) == (0.3, "contour")


def test_an_outcome_inside_the_folder_is_not_read_again(trained: TrainedNetwork, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "a.png", tmp_path / "a.png")
    for _ in range(2):
        text = good("locate", tmp_path, "--run", trained.run.path, "--out", tmp_path / "located")
        assert "Radiographs located: 1 " in text
        assert "not looked at: 0" in text


def test_the_command_says_what_is_wrong_and_writes_nothing(
    trained: TrainedNetwork, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for arguments, part in (
        ((tmp_path / "absent", "--run", trained.run.path), "no such file"),
        ((folder, "--run", tmp_path), "not a finished network"),
        ((folder, "--run", trained.run.path, "--threshold", "7"), "threshold"),
        ((folder, "--run", trained.run.path, "--set", "epochs=3"), "belongs to the training"),
    ):
        result = run("locate", *arguments, "--out", out)
        assert result.exit_code == 1
        assert part in str(result.exception)
    assert not out.exists()
    result = run("locate", folder, "--run", trained.run.path, "--out", folder)
    assert "did not write" in str(result.exception)


def test_a_dark_file_is_noted(trained: TrainedNetwork, tmp_path: Path) -> None:
    dicom(tmp_path / "in/x.dcm", np.full((80, 80), 3, np.uint16))
    text = good("locate", tmp_path / "in", "--run", trained.run.path, "--out", tmp_path / "out")
    assert "note: x.dcm: very dark" in text


def test_help_says_what_the_exit_status_means() -> None:
    text = " ".join(good("locate", "--help").split())
    assert all(part in text for part in ("--run", "--out", "--threshold", "COCO", "Exit status", "suggestions"))
    assert "probability of the finding" in " ".join(text.replace("│", " ").split())
    assert "TB" not in text
    assert "locate" in good("--help")
