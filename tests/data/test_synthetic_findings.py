import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tbkd_utils.data.check import check_dataset
from tbkd_utils.data.dataset import find_layout, read_dataset
from tbkd_utils.data.readers import Nih
from tbkd_utils.data.readers.nih import FINDINGS
from tbkd_utils.data.synthetic.chest import draw_chest, draw_heart
from tbkd_utils.data.synthetic.findings import (
    SPLITS,
    FindingImage,
    describe_images,
    describe_patient,
    find_boxes,
    read_drawn_findings,
    render_findings,
    write_findings,
)
from tbkd_utils.errors import DataError

SPEC = {"train": 3, "test": 2, "size": 64, "second": 0.5, "seed": 3}
# Area of a box as a share of the image.
SHARES = {
    "Atelectasis": (0.02, 0.06),
    "Cardiomegaly": (0.1, 0.21),
    "Effusion": (0.04, 0.15),
    "Infiltration": (0.02, 0.12),
    "Mass": (0.015, 0.05),
    "Nodule": (0.002, 0.008),
    "Pneumonia": (0.05, 0.15),
    "Pneumothorax": (0.03, 0.1),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_findings(tmp_path_factory.mktemp("findings") / "set", **SPEC)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def first_images(finding: str, n: int, **settings) -> list[FindingImage]:
    return [describe_patient("train", finding, i, **settings)[0] for i in range(n)]


def inside(boxes: np.ndarray, size: int) -> np.ndarray:
    covered = np.zeros((size, size), bool)
    for x0, y0, x1, y1 in boxes.tolist():
        covered[y0:y1, x0:x1] = True
    return covered


def change(image: FindingImage, strength: float = 1.0) -> np.ndarray:
    return render_findings(image, strength).astype(int) - render_findings(image, 0.0)


# --- what is written ---


def test_it_is_read_as_nih_and_a_check_finds_nothing(written):
    assert isinstance(find_layout(written), Nih)
    report = check_dataset(written)
    assert report.ok, report.problems
    assert report.tables()["patients"]["in another split too"].tolist() == [0, 0]
    for split in SPLITS:
        records = read_dataset(written, split)
        assert len(records) == 8 * SPEC[split]
        first = Counter(FINDINGS[record.categories[0] - 1] for record in records)
        assert first == dict.fromkeys(FINDINGS, SPEC[split])


@pytest.mark.parametrize("size", [64, 96])
def test_boxes_come_back_from_the_list_as_they_were_drawn(tmp_path, size):
    root = write_findings(tmp_path / "set", **{**SPEC, "size": size})
    said = json.loads((root / "findings.json").read_text())["images"]
    records = {record.name: record for split in SPLITS for record in read_dataset(root, split)}
    assert list(said) == list(records)
    for name, image in read_drawn_findings(root).items():
        record = records[name]
        assert image.name == name
        np.testing.assert_allclose(record.boxes, find_boxes(image), atol=1e-4)
        np.testing.assert_allclose(record.boxes, said[name]["boxes"], atol=1e-4)
        assert [FINDINGS[c - 1] for c in record.categories] == said[name]["findings"]
        assert {FINDINGS[i] for i, there in enumerate(record.target) if there} == set(said[name]["findings"])
        assert record.group == str(int(said[name]["patient"]))
        stored = cv2.imread(str(record.path), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(stored, render_findings(image))


def test_same_arguments_give_the_same_bytes(written, tmp_path):
    assert files(write_findings(tmp_path / "again", **SPEC)) == files(written)
    other = files(write_findings(tmp_path / "other", **{**SPEC, "seed": 4}))
    assert other["findings.json"] != files(written)["findings.json"]


def test_an_image_does_not_depend_on_how_many_there_are(written, tmp_path):
    smaller = files(write_findings(tmp_path / "smaller", **{**SPEC, "train": 2, "test": 1}) / "images")
    assert len(smaller) == 24
    assert smaller.items() <= files(written / "images").items()


def test_strength_changes_pixels_and_no_box(written, tmp_path):
    blank = write_findings(tmp_path / "blank", **SPEC, strength=0)
    assert (blank / "BBox_List_2017.csv").read_bytes() == (written / "BBox_List_2017.csv").read_bytes()
    for name, image in read_drawn_findings(written).items():
        stored = cv2.imread(str(blank / "images" / name), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(stored, render_findings(image, 0.0))


def test_without_a_finding_nothing_tells_which_it_was():
    """A healthy patient's numbers are drawn alike whatever the finding: no heart is wide before it is painted."""
    hearts = np.array([[image.patient.heart for image in first_images(name, 40)] for name in FINDINGS])
    assert hearts.max() <= 1.1
    assert np.ptp(hearts.mean(axis=1)) < 0.06


# --- patients ---


@pytest.mark.parametrize("finding", ["Mass", "Cardiomegaly"])
def test_images_per_patient_are_even_for_every_number_of_patients(finding):
    counts = np.array([len(describe_patient("train", finding, i)) for i in range(120)])
    assert set(counts) == {1, 2, 3}
    assert np.abs(np.cumsum(counts) - 1.8 * np.arange(1, 121)).max() < 4


def test_no_patient_stands_for_two():
    ids = [describe_patient(s, f, i)[0].patient_id for s in SPLITS for f in FINDINGS for i in range(20)]
    assert len(set(ids)) == len(ids)
    assert describe_patient("train", "Atelectasis", 0)[0].name == "00000001_000.png"
    assert describe_patient("test", "Atelectasis", 0)[0].name == "00000002_000.png"
    assert describe_patient("train", "Cardiomegaly", 0)[0].name == "00000003_000.png"


def test_a_patient_keeps_the_anatomy_the_finding_and_the_side():
    images = next(p for i in range(9) if len(p := describe_patient("train", "Effusion", i, size=96)) > 2)
    assert len({image.patient.heart for image in images}) == 1
    assert len({(f.name, f.side) for image in images for f in image.findings}) == 1
    assert len({image.patient.gain for image in images}) == len(images)
    one, other = (render_findings(image).astype(float) for image in images[:2])
    assert (one != other).mean() > 0.5
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9


# --- the truth ---


@pytest.mark.parametrize("finding", FINDINGS)
@pytest.mark.parametrize("size", [64, 128])
def test_a_finding_changes_its_box_and_nothing_else(finding, size):
    for image in first_images(finding, 8, size=size):
        boxes = find_boxes(image)
        changed = change(image)
        assert boxes.shape == (1, 4)
        assert not changed[~inside(boxes, size)].any()
        assert np.abs(changed).max() > 20  # seen by eye, in gray levels


@pytest.mark.parametrize("finding", [name for name in FINDINGS if name != "Cardiomegaly"])
def test_every_side_of_a_box_touches_what_was_drawn(finding):
    for image in first_images(finding, 8):
        (x0, y0, x1, y1) = find_boxes(image)[0]
        # Above the rounding to whole gray levels, by adding up three times the change.
        touched = np.abs(change(image, 3.0))[y0:y1, x0:x1] > 1
        assert all(edge.any() for edge in (touched[:2], touched[-2:], touched[:, :2], touched[:, -2:]))


@pytest.mark.parametrize("finding", FINDINGS)
def test_boxes_have_the_area_that_the_finding_should_have(finding):
    size = 256
    boxes = np.array([find_boxes(image)[0] for image in first_images(finding, 24, size=size)]) / size
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    low, high = SHARES[finding]
    assert low <= areas.min() < areas.max() <= high
    assert areas.max() > 1.25 * areas.min()


@pytest.mark.parametrize("finding", FINDINGS)
def test_each_finding_is_where_it_belongs_and_of_its_shade(finding):
    """In the patient's own frame: v is 0 at the apex of the lung and 1 in the angle below."""
    for image in first_images(finding, 12, size=128):
        chest = draw_chest(image.patient, np.random.default_rng(0), 128)
        x0, y0, x1, y1 = find_boxes(image)[0]
        u, v = (grid[y0:y1, x0:x1] for grid in (chest.u, chest.v))
        changed = change(image)[y0:y1, x0:x1]
        middle_u, middle_v = u[len(u) // 2, u.shape[1] // 2], v[len(v) // 2, v.shape[1] // 2]
        if finding == "Cardiomegaly":
            assert abs(middle_u) < 0.35
            assert draw_heart(image.patient, 128)[y0:y1, x0:x1].sum() == draw_heart(image.patient, 128).sum()
        else:
            assert middle_u * image.findings[0].side > 0.2
        if finding == "Pneumothorax":
            assert v.min() < 0.08  # at the apex
            assert v.max() < 0.5
            assert changed[np.abs(changed) > 5].mean() < -5
        else:
            assert changed[np.abs(changed) > 3].mean() > 5
        if finding in ("Atelectasis", "Effusion"):
            assert middle_v > 0.6
        if finding in ("Mass", "Nodule"):
            assert abs((x1 - x0) - (y1 - y0)) <= 2
            assert chest.lungs[y0:y1, x0:x1].mean() > 0.6


def test_a_pneumothorax_hides_the_vessels_that_reach_its_rim():
    seen = {0.0: 0, 1.0: 0}  # strength to gray levels in which a chest differs from the same one without vessels
    for image in first_images("Pneumothorax", 24, size=128):
        bare = replace(image, patient=replace(image.patient, vessel_contrast=0.0))
        rim = change(image) < -15
        assert rim.sum() > 30
        for strength in seen:
            difference = render_findings(image, strength).astype(int) - render_findings(bare, strength)
            seen[strength] += np.abs(difference[rim]).sum()
    assert seen[0.0] > 100
    assert seen[1.0] < 0.25 * seen[0.0]


@pytest.mark.parametrize("size", [64, 128])
def test_the_whole_image_passes_on_exactly_the_large_boxes(size, tmp_path):
    root = write_findings(tmp_path / "set", train=0, test=6, size=size)
    said = json.loads((root / "findings.json").read_text())
    shares = {name: np.prod(np.subtract(r["boxes"][0][2:], r["boxes"][0][:2])) / said["spec"]["size"] ** 2
              for name, r in said["images"].items()}  # fmt: skip
    for record in read_dataset(root, "test"):
        x0, y0, x1, y1 = record.boxes[0]
        overlap = (x1 - x0) * (y1 - y0)
        assert overlap / (size**2) == pytest.approx(shares[record.name], rel=1e-5)
    large = Counter(r["findings"][0] for name, r in said["images"].items() if shares[name] > 0.1)
    assert large["Cardiomegaly"] == 6
    assert not {"Mass", "Nodule", "Atelectasis", "Pneumothorax"} & set(large)


# --- two findings ---


def test_a_second_finding_is_another_one_in_the_other_lung():
    pairs = [image for name in FINDINGS for image in first_images(name, 40, size=64, second=0.15)]
    twice = [image for image in pairs if len(image.findings) == 2]
    assert 0.12 < len(twice) / len(pairs) < 0.18
    for image in twice:
        first, second = image.findings
        assert first.name != second.name
        assert first.side == -second.side
        boxes = find_boxes(image)
        assert boxes.shape == (2, 4)
        assert not change(image)[~inside(boxes, 64)].any()


def test_a_second_finding_changes_nothing_of_the_first():
    for alone, both in zip(first_images("Mass", 6), first_images("Mass", 6, second=1.0), strict=True):
        assert len(both.findings) == 2
        assert both.findings[0] == alone.findings[0]
        np.testing.assert_array_equal(find_boxes(both)[0], find_boxes(alone)[0])


# --- bad input ---


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": -1}, "train = -1"),
        ({"test": 1.5}, r"test = 1\.5.*whole number"),
        ({"train": 0, "test": 0}, "both zero"),
        ({"strength": -0.1}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"strength": float("inf")}, "strength"),
        ({"second": 1.01}, "second"),
        ({"second": "half"}, "second"),
        ({"size": 63}, "size.*at least 64"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(DataError, match=message):
        write_findings(tmp_path / "set", **{"train": 1, "test": 1, "size": 64, **wrong})
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("patient", [("val", "Mass", 0), ("train", "Hernia", 0), ("train", "Mass", -1)])
def test_unknown_patient(patient):
    with pytest.raises(DataError, match="expected one of"):
        describe_patient(*patient)


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not empty"):
        write_findings(tmp_path, train=1, test=0, size=64)
    assert files(tmp_path) == {"mine.txt": b"keep"}


@pytest.mark.parametrize("broken", [{"findings": []}, {"findings": ["Hernia"]}, {"number": 7}, {"split": 3}])
def test_a_broken_entry(written, tmp_path, broken):
    content = json.loads((written / "findings.json").read_text())
    next(iter(content["images"].values())).update(broken)
    (tmp_path / "findings.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"findings\.json cannot be read"):
        read_drawn_findings(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"images": 3}', '{"images": {"a": {"findings": []}}, "spec": {}}'])
def test_a_broken_record(tmp_path, content):
    (tmp_path / "findings.json").write_text(content)
    with pytest.raises(DataError, match=r"findings\.json cannot be read"):
        read_drawn_findings(tmp_path)


def test_the_number_of_images_is_that_asked_for():
    images = describe_images("train", "Nodule", 7)
    assert len({image.name for image in images}) == 7
    assert describe_images("train", "Nodule", 4) == images[:4]
