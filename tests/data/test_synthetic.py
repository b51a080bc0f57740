import errno
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbkd_utils.data.synthetic.chest import draw_chest
from tbkd_utils.data.synthetic.dataset import read_synthetic_markers, write_synthetic
from tbkd_utils.data.synthetic.lesions import OTHER_FINDINGS
from tbkd_utils.data.synthetic.sample import CLASSES, SPLITS, describe_sample, render_sample
from tbkd_utils.errors import DataError, TbkdError

COUNTS = {"train": (3, 4, 6), "val": (2, 3, 4)}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("synthetic") / "set", **COUNTS, size=96, seed=3)


@pytest.fixture(scope="module")
def many_tb():
    return [describe_sample("train", "tb", index) for index in range(1200)]


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def coco_boxes(content: dict) -> dict[str, list[tuple]]:
    names = {image["id"]: image["file_name"] for image in content["images"]}
    boxes: dict[str, list[tuple]] = {name: [] for name in names.values()}
    for a in content["annotations"]:
        boxes[names[a["image_id"]]].append((a["category_id"], *a["bbox"]))
    return boxes


# --- what is written ---


def test_same_arguments_give_the_same_bytes(written, tmp_path):
    again = write_synthetic(tmp_path / "again", **COUNTS, size=96, seed=3)
    assert files(again) == files(written)


def test_another_seed_gives_other_images(written, tmp_path):
    other = write_synthetic(tmp_path / "other", **COUNTS, size=96, seed=4)
    a, b = files(written), files(other)
    assert a.keys() == b.keys()
    assert not [name for name in a if name.endswith(".png") and a[name] == b[name]]


def test_an_image_does_not_depend_on_how_many_there_are(written, tmp_path):
    smaller = write_synthetic(tmp_path / "smaller", train=(0, 1, 2), val=(2, 0, 3), size=96, seed=3)
    few, all_files = files(smaller / "imgs"), files(written / "imgs")
    assert len(few) == 8
    assert few.items() <= all_files.items()
    markers, all_markers = read_synthetic_markers(smaller), read_synthetic_markers(written)
    for name, marker in markers.items():
        np.testing.assert_equal(marker, all_markers[name])
    for split in SPLITS:
        small = coco_boxes(read_json(smaller / f"annotations/json/TBX11K_{split}.json"))
        assert small.items() <= coco_boxes(read_json(written / f"annotations/json/TBX11K_{split}.json")).items()


def test_no_two_images_are_equal(written):
    images = list(files(written / "imgs").values())
    assert len(set(images)) == len(images) == 22


def test_images_are_8_bit_gray_of_the_size_asked_for(written):
    for path in (written / "imgs").rglob("*.png"):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert image.shape == (96, 96)
        assert image.dtype == np.uint8


@pytest.mark.parametrize("split", SPLITS)
def test_lists_json_and_files_agree(written, split):
    listed = (written / f"lists/TBX11K_{split}.txt").read_text().split()
    assert [sum(name.startswith(f"{c}/") for name in listed) for c in CLASSES] == list(COUNTS[split])
    content = read_json(written / f"annotations/json/TBX11K_{split}.json")
    assert [image["file_name"] for image in content["images"]] == listed
    assert all((written / "imgs" / name).is_file() for name in listed)
    assert all(image["width"] == image["height"] == 96 for image in content["images"])
    assert [c["name"] for c in content["categories"]] == [
        "ActiveTuberculosis",
        "ObsoletePulmonaryTuberculosis",
        "PulmonaryTuberculosis",
    ]
    assert [c["id"] for c in content["categories"]] == [1, 2, 3]
    boxes = coco_boxes(content)
    assert all(bool(boxes[name]) == name.startswith("tb/") for name in listed)
    only_tb = read_json(written / f"annotations/json/TBX11K_{split}_only_tb.json")
    assert coco_boxes(only_tb) == {name: boxes[name] for name in listed if name.startswith("tb/")}
    ids = [a["id"] for a in content["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        assert min(x, y) >= 0
        assert min(w, h) > 0
        assert max(x + w, y + h) <= 96
        assert a["area"] == pytest.approx(w * h)
        assert a["category_id"] in (1, 2)


def test_splits_share_no_name_and_trainval_is_both(written):
    lists = {s: (written / f"lists/TBX11K_{s}.txt").read_text().split() for s in ("train", "val", "trainval")}
    assert lists["trainval"] == lists["train"] + lists["val"]
    assert len(set(lists["trainval"])) == 22
    assert set(lists["trainval"]) == set(files(written / "imgs"))


def test_record_holds_spec_lesions_and_markers(written):
    record = read_json(written / "synthetic.json")
    assert record["spec"] == {"train": [3, 4, 6], "val": [2, 3, 4], "size": 96, "marker_rate": 0.9, "seed": 3}
    assert "SYNTHETIC" in record["notice"]
    markers = read_synthetic_markers(written)
    assert markers.keys() == record["images"].keys() == files(written / "imgs").keys()
    for split in SPLITS:
        boxes = coco_boxes(read_json(written / f"annotations/json/TBX11K_{split}.json"))
        for name, of_image in boxes.items():
            image = record["images"][name]
            assert image["split"] == split
            assert image["has_marker"] == (markers[name] is not None)
            assert [lesion["category"] for lesion in image["lesions"]] == [b[0] for b in of_image]
            xywh = np.array([b[1:] for b in of_image]).reshape(-1, 4)
            xyxy = np.array([lesion["box"] for lesion in image["lesions"]]).reshape(-1, 4)
            np.testing.assert_allclose(np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]), xyxy, rtol=1e-6)


def test_markers_are_read_back_where_they_are_drawn(written):
    markers = read_synthetic_markers(written)
    assert 0 < sum(t is not None for t in markers.values()) < len(markers)
    for name, marker in markers.items():
        image = cv2.imread(str(written / "imgs" / name), cv2.IMREAD_UNCHANGED)
        corner = image[: 96 // 5, 3 * 96 // 4 :] == 250
        if marker is None:
            assert corner.sum() == 0
            continue
        assert marker.dtype == np.float32
        x0, y0, x1, y1 = marker.astype(int)
        rows, columns = np.nonzero(image == 250)
        drawn = (columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1)
        assert (columns[drawn].min(), rows[drawn].min()) == (x0, y0)
        assert (columns[drawn].max() + 1, rows[drawn].max() + 1) == (x1, y1)


def test_readme_says_that_it_is_synthetic(written):
    readme = (written / "README.txt").read_text()
    assert "SYNTHETIC" in readme
    assert "Not medical data" in readme


# --- statistics of what is drawn, without drawing it ---


def test_box_areas_follow_tbx11k(many_tb):
    boxes = np.concatenate([s.boxes for s in many_tb]) / 256
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    assert areas.min() >= 0.002 * (1 - 1e-5)
    assert areas.max() <= 0.265 * (1 + 1e-5)
    expected = {0.05: 0.0112, 0.25: 0.034, 0.5: 0.055, 0.75: 0.0803, 0.95: 0.143}
    measured = np.quantile(areas, list(expected))
    np.testing.assert_allclose(measured, list(expected.values()), rtol=0.12)
    assert np.median(areas) == pytest.approx(0.055, rel=0.06)


def test_boxes_lie_mostly_in_the_upper_zones(many_tb):
    centers = np.array([(s.boxes[:, 1] + s.boxes[:, 3]).mean() / 2 / 256 for s in many_tb])
    assert 0.28 < np.median(centers) < 0.36  # TBX11K: 0.29
    assert np.mean(centers > 0.5) < 0.15


@pytest.mark.parametrize("n", [50, 200, 1200])
def test_box_counts_follow_tbx11k(many_tb, n):
    counts = np.bincount([len(s.lesions) for s in many_tb[:n]], minlength=5)
    assert counts[0] == 0
    assert abs(counts[1] - 0.52 * n) <= 3
    assert abs(counts[2] - 0.44 * n) <= 3
    assert abs(counts[3:].sum() - 0.04 * n) <= 3
    assert len(counts) == 5


def test_categories_are_mostly_active(many_tb):
    lesions = [lesion for s in many_tb for lesion in s.lesions]
    assert {lesion.category for lesion in lesions} == {1, 2}
    assert np.mean([lesion.category == 2 for lesion in lesions]) == pytest.approx(0.2, abs=0.04)
    assert all((lesion.kind == "calcified") == (lesion.category == 2) for lesion in lesions)
    assert {lesion.kind for lesion in lesions} == {"nodules", "consolidation", "cavity", "calcified"}


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("folder", CLASSES)
@pytest.mark.parametrize("split", SPLITS)
def test_marker_rate_is_kept_by_every_number_of_images(split, folder, rate):
    expected = 0.5 if split == "val" else rate if folder == "tb" else 1 - rate
    has = [describe_sample(split, folder, i, marker_rate=rate, size=64).marker is not None for i in range(60)]
    surplus = np.cumsum(has) - expected * np.arange(1, 61)
    assert np.abs(surplus).max() <= (2 if 0 < expected < 1 else 1e-9)


def test_number_of_boxes_says_nothing_about_the_marker_in_val():
    samples = [describe_sample("val", "tb", i) for i in range(300)]
    several = np.array([len(s.lesions) > 1 for s in samples])
    marker = np.array([s.marker is not None for s in samples])
    assert abs(marker[several].mean() - marker[~several].mean()) < 0.06


def test_sick_findings_come_in_equal_shares_and_without_boxes():
    samples = [describe_sample("train", "sick", i) for i in range(90)]
    assert all(s.boxes.shape == (0, 4) and s.boxes.dtype == np.float32 for s in samples)
    counts = [sum(s.finding == f for s in samples) for f in OTHER_FINDINGS]
    assert sum(counts) == 90
    assert max(counts) - min(counts) <= 4
    usual = [describe_sample("train", "health", i).patient.heart for i in range(90)]
    assert max(usual) < min(s.patient.heart for s in samples if s.finding == "cardiomegaly")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(SPLITS), st.integers(0, 5000), st.integers(64, 600))
def test_boxes_lie_inside_the_image_apart_from_each_other_and_from_the_marker(seed, split, index, size):
    sample = describe_sample(split, "tb", index, size=size, seed=seed, marker_rate=1.0)
    boxes = sample.boxes
    assert boxes.dtype == np.float32
    assert boxes.min() >= 0
    assert boxes.max() <= size
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    others = list(np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1))
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        for a0, b0, a1, b1 in boxes[:i]:
            assert min(x1, a1) <= max(x0, a0) or min(y1, b1) <= max(y0, b0)
    if sample.marker is not None:
        x0, y0, x1, y1 = sample.marker
        assert all(min(x1, a1) <= max(x0, a0) or min(y1, b1) <= max(y0, b0) for a0, b0, a1, b1 in others)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 5000))
def test_blobs_fill_their_box_and_stay_inside(seed, index):
    for lesion in describe_sample("train", "tb", index, seed=seed).lesions:
        centers, radii = lesion.blobs[:, :2], lesion.blobs[:, 2:4]
        assert (radii > 0).all()
        np.testing.assert_allclose((centers - radii).min(axis=0), lesion.box[:2], atol=1e-9)
        np.testing.assert_allclose((centers + radii).max(axis=0), lesion.box[2:], atol=1e-9)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 5000), st.integers(64, 1100))
def test_marker_survives_resize_and_center_crop(seed, index, size):
    marker = describe_sample("train", "tb", index, size=size, seed=seed, marker_rate=1.0).marker
    x0, y0, x1, y1 = (value * 256 / size for value in marker)
    assert min(x0, y0) >= 16
    assert max(x1, y1) <= 240
    assert x1 > x0
    assert y1 > y0


# --- pixels ---


@pytest.mark.parametrize("index", range(12))
def test_lesions_change_their_boxes_and_nothing_else(index):
    sample = describe_sample("train", "tb", index, size=192)
    change = np.abs(render_sample(sample).astype(int) - render_sample(sample, finding=False))
    inside = np.zeros_like(change, dtype=bool)
    for x0, y0, x1, y1 in sample.boxes:
        part = (slice(int(y0), int(np.ceil(y1))), slice(int(x0), int(np.ceil(x1))))
        inside[part] = True
        assert change[part].max() >= 8  # seen by eye, in gray levels
        # Tight: what changed visibly spans nearly the whole box.
        rows, columns = np.nonzero(change[part] >= 2)
        seen = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert seen >= 0.6 * change[part].size
    assert change[~inside].max() == 0


def test_marker_changes_its_box_and_nothing_else():
    sample = describe_sample("train", "tb", 0, size=128, marker_rate=1.0)
    change = render_sample(sample) != render_sample(sample, marker=False)
    x0, y0, x1, y1 = sample.marker
    assert change[y0:y1, x0:x1].any()
    change[y0:y1, x0:x1] = False
    assert not change.any()


def test_rate_decides_on_the_marker_alone():
    with_marker = describe_sample("train", "tb", 5, size=96, marker_rate=1.0)
    without = describe_sample("train", "tb", 5, size=96, marker_rate=0.0)
    assert without.marker is None
    np.testing.assert_array_equal(render_sample(with_marker, marker=False), render_sample(without))


def test_size_decides_on_the_resolution_alone():
    small, large = (describe_sample("val", "tb", 2, size=size) for size in (128, 256))
    np.testing.assert_allclose(2 * small.boxes, large.boxes, rtol=1e-6)
    assert small.patient == large.patient
    shrunk = cv2.resize(render_sample(large), (128, 128), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(shrunk.ravel(), render_sample(small).ravel())[0, 1] > 0.97


@pytest.mark.parametrize("index", range(6))
def test_a_chest_looks_like_a_chest(index):
    sample = describe_sample("train", "health", index, size=128)
    image = render_sample(sample, marker=False).astype(float)
    chest = draw_chest(sample.patient, np.random.default_rng(0), 128)
    lungs, u, v = chest.lungs > 0.8, chest.u, chest.v
    spine = (np.abs(u) < 0.08) & (v > 0.2) & (v < 1)
    belly = (np.abs(u) < 0.8) & (v > 1.1)
    air = (np.abs(u) > 1.35) & (v > 1)
    assert air.sum() == 0 or image[air].mean() < 40
    assert image[lungs].mean() + 25 < image[belly].mean() < image[spine].mean() + 40
    assert image[lungs].mean() + 40 < image[spine].mean()
    # Both lungs are there; the heart, on the image's right, takes from the left lung.
    right, left = (lungs & (u < 0)).sum(), (lungs & (u > 0)).sum()
    assert 0.05 * 128**2 < left < right < 0.25 * 128**2
    # The right dome of the diaphragm (image left) stands higher.
    lowest = [np.nonzero((lungs & (np.abs(u - side * 0.6) < 0.06)).any(axis=1))[0].max() for side in (-1, 1)]
    assert lowest[0] <= lowest[1] + np.tan(abs(sample.patient.tilt)) * 128 * 0.5


@pytest.mark.parametrize("index", range(9))
def test_other_findings_lie_in_the_lower_zones(index):
    sample = describe_sample("train", "sick", index, size=128)
    change = render_sample(sample).astype(int) - render_sample(sample, finding=False)
    _, v = sample.patient.to_body(128)
    assert change.max() >= 5
    assert np.abs(change[v < 0.35]).mean() < 0.1 * change[(v > 0.5) & (v < 1)].mean()


def test_marker_lies_outside_the_lungs():
    for index in range(15):
        sample = describe_sample("train", "tb", index, size=128, marker_rate=1.0)
        x0, y0, x1, y1 = sample.marker
        chest = draw_chest(sample.patient, np.random.default_rng(0), 128)
        assert chest.lungs[y0:y1, x0:x1].max() < 0.1


# --- bad input ---


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": (1, -1, 1)}, "train count of sick"),
        ({"val": (1, 1)}, "three counts"),
        ({"val": 7}, "three counts"),
        ({"train": (1, 1.5, 1)}, "whole number"),
        ({"train": (0, 0, 0), "val": (0, 0, 0)}, "all zero"),
        ({"marker_rate": 1.01}, "marker_rate"),
        ({"marker_rate": -0.1}, "marker_rate"),
        ({"marker_rate": float("nan")}, "marker_rate"),
        ({"marker_rate": "high"}, "marker_rate"),
        ({"size": 63}, "at least 64"),
        ({"size": 96.5}, "at least 64"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(DataError, match=message):
        write_synthetic(tmp_path / "set", **{"train": (1, 1, 1), "val": (1, 1, 1), "size": 64, **wrong})
    assert not (tmp_path / "set").exists()


def test_error_is_the_users_to_mend():
    assert issubclass(DataError, TbkdError)
    assert issubclass(DataError, ValueError)


@pytest.mark.parametrize("sample", [("test", "tb", 0), ("train", "extra", 0), ("train", "tb", -1)])
def test_unknown_sample(sample):
    with pytest.raises(DataError, match="expected one of"):
        describe_sample(*sample)


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not empty"):
        write_synthetic(tmp_path, train=(1, 0, 0), val=(0, 0, 0), size=64)
    assert files(tmp_path) == {"mine.txt": b"keep"}


def test_an_empty_folder_is_used(tmp_path):
    assert write_synthetic(tmp_path, train=(1, 0, 0), val=(0, 0, 0), size=64) == tmp_path
    assert (tmp_path / "imgs/health/h0001.png").is_file()


@pytest.mark.parametrize("target", ["file", "file/set"])
def test_a_file_in_the_way(tmp_path, target):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*file"):
        write_synthetic(tmp_path / target, train=(1, 0, 0), val=(0, 0, 0), size=64)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_refuses(tmp_path, monkeypatch, number):
    def refuse(path, data):
        raise OSError(number, "refused", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(DataError, match=r"refused: .*h0001\.png.*can be written and has room"):
        write_synthetic(tmp_path / "set", train=(1, 0, 0), val=(0, 0, 0), size=64)
    assert not (tmp_path / "set/synthetic.json").exists()  # so a reader sees that it is not whole


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"images": 3}', '{"images": {"a": {"marker": [1, 2]}}}', "\xff"]
)
def test_a_broken_record(tmp_path, content):
    (tmp_path / "synthetic.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"synthetic\.json cannot be read"):
        read_synthetic_markers(tmp_path)


def test_no_record(tmp_path):
    with pytest.raises(DataError, match=r"synthetic\.json not found"):
        read_synthetic_markers(tmp_path)
