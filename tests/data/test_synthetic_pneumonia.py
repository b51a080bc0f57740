import errno
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from tbkd_utils.data.synthetic.chest import draw_chest
from tbkd_utils.data.synthetic.pneumonia import (
    KINDS,
    SPLITS,
    describe_person,
    find_truth,
    read_pneumonia_truth,
    render_image,
    write_pneumonia,
)
from tbkd_utils.errors import DataError

COUNTS = {"train": (3, 4, 3), "test": (2, 2, 3)}
NAMES = {
    ("train", "normal"): r"train/NORMAL/(IM-\d*[13579])-(\d{4})\.jpeg",
    ("test", "normal"): r"test/NORMAL/NORMAL2-(IM-\d*[02468])-(\d{4})\.jpeg",
    ("train", "bacterial"): r"train/PNEUMONIA/(person\d*[13579])_bacteria_(\d)\.jpeg",
    ("test", "bacterial"): r"test/PNEUMONIA/(person\d*[02468])_bacteria_(\d)\.jpeg",
    ("train", "viral"): r"train/PNEUMONIA/(person\d*[13579])_virus_(\d)\.jpeg",
    ("test", "viral"): r"test/PNEUMONIA/(person\d*[02468])_virus_(\d)\.jpeg",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_pneumonia(tmp_path_factory.mktemp("pneumonia") / "set", **COUNTS, size=64, identity=0.5, seed=3)


@pytest.fixture(scope="module")
def truth(written):
    return read_pneumonia_truth(written)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def images_of(split, kind, persons, **settings):
    return [image for i in range(persons) for image in describe_person(split, kind, i, **settings)]


def inside(boxes, size):
    covered = np.zeros((size, size), bool)
    for x0, y0, x1, y1 in boxes.astype(int):
        covered[y0:y1, x0:x1] = True
    return covered


# --- what is written ---


def test_names_follow_the_layout_and_persons_have_their_number_of_images(written, truth):
    assert truth.keys() == files(written / "chest_xray").keys()
    for split in SPLITS:
        for kind, persons in zip(KINDS, COUNTS[split], strict=True):
            numbers: dict[str, list[int]] = {}
            for name, of_image in truth.items():
                if name.startswith(split) and of_image.kind == kind:
                    person, number = re.fullmatch(NAMES[split, kind], name).groups()
                    assert of_image.person == person
                    numbers.setdefault(person, []).append(int(number))
            assert len(numbers) == persons
            assert all(n == list(range(1, len(n) + 1)) and len(n) <= 4 for n in numbers.values())


def test_no_person_stands_for_two():
    persons = {(s, k, i): describe_person(s, k, i)[0].person for s in SPLITS for k in KINDS for i in range(20)}
    assert len(set(persons.values())) == len(persons)
    assert describe_person("train", "normal", 0)[0].name == "train/NORMAL/IM-0001-0001.jpeg"
    assert describe_person("test", "normal", 0)[0].name == "test/NORMAL/NORMAL2-IM-0002-0001.jpeg"
    assert describe_person("train", "bacterial", 0)[0].name == "train/PNEUMONIA/person1_bacteria_1.jpeg"
    assert describe_person("train", "viral", 0)[0].name == "train/PNEUMONIA/person3_virus_1.jpeg"


@pytest.mark.parametrize("kind", KINDS)
def test_images_per_person_are_even_for_every_number_of_persons(kind):
    counts = np.array([len(describe_person("train", kind, i)) for i in range(120)])
    assert counts.min() == 1
    assert counts.max() == 4
    assert np.abs(np.cumsum(counts) - 2.1 * np.arange(1, 121)).max() < 5


def test_record_and_files(written, truth):
    content = json.loads((written / "pneumonia.json").read_text())
    assert content["spec"] == {**{s: list(n) for s, n in COUNTS.items()}, "size": 64, "identity": 0.5, "seed": 3}
    assert "SYNTHETIC" in content["notice"]
    assert "Not medical data" in (written / "README.txt").read_text()
    masks = {of_image.mask for of_image in truth.values() if of_image.mask}
    assert masks == set((written / "masks").iterdir())
    for name, of_image in truth.items():
        image = cv2.imread(str(written / "chest_xray" / name), cv2.IMREAD_UNCHANGED)
        assert image.shape == (64, 64)
        assert image.dtype == np.uint8
        assert of_image.boxes.shape == (KINDS.index(of_image.kind), 4)
        assert of_image.lungs.shape == (2, 4)
        assert of_image.boxes.dtype == of_image.lungs.dtype == np.float32
        assert (of_image.mask is None) == (of_image.kind == "normal")


def test_record_is_what_the_descriptions_say(written, truth):
    for image in images_of("test", "viral", 3, size=64, identity=0.5, seed=3):
        mask, boxes, lungs = find_truth(image)
        np.testing.assert_array_equal(truth[image.name].boxes, boxes)
        np.testing.assert_array_equal(truth[image.name].lungs, lungs)
        stored = cv2.imread(str(truth[image.name].mask), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(stored, mask * np.uint8(255))
        decoded = cv2.imread(str(written / "chest_xray" / image.name), cv2.IMREAD_UNCHANGED)
        assert np.abs(decoded.astype(int) - render_image(image)).mean() < 2  # JPEG


def test_same_arguments_give_the_same_bytes(written, tmp_path):
    assert files(write_pneumonia(tmp_path / "again", **COUNTS, size=64, identity=0.5, seed=3)) == files(written)


def test_an_image_does_not_depend_on_how_many_there_are(written, truth, tmp_path):
    smaller = write_pneumonia(tmp_path / "smaller", train=(0, 1, 2), test=(1, 0, 1), size=64, identity=0.5, seed=3)
    for folder in ("chest_xray", "masks"):
        few = files(smaller / folder)
        assert len(few) >= 4
        assert few.items() <= files(written / folder).items()
    for name, of_image in read_pneumonia_truth(smaller).items():
        np.testing.assert_array_equal(of_image.boxes, truth[name].boxes)


def test_another_seed_gives_other_images():
    one, other = (describe_person("train", "normal", 0, size=64, seed=seed)[0] for seed in (0, 1))
    assert (render_image(one) != render_image(other)).mean() > 0.5


# --- the truth ---


@pytest.mark.parametrize("kind", ["bacterial", "viral"])
@pytest.mark.parametrize("size", [64, 128])
def test_pneumonia_changes_its_mask_and_nothing_else(kind, size):
    for image in images_of("train", kind, 6, size=size):
        mask, boxes, lungs = find_truth(image)
        change = render_image(image).astype(int) - render_image(image, finding=False)
        assert np.abs(change[~mask]).max() == 0
        assert change[mask].mean() > 5  # seen by eye, in gray levels
        assert change.max() < 100
        assert not (mask & ~inside(boxes, size)).any()
        assert not (mask & ~inside(lungs, size)).any()


def test_a_normal_image_has_no_finding():
    image = describe_person("train", "normal", 0, size=64)[0]
    mask, boxes, _ = find_truth(image)
    assert not mask.any()
    assert boxes.shape == (0, 4)
    np.testing.assert_array_equal(render_image(image), render_image(image, finding=False))


@pytest.mark.parametrize("kind", ["bacterial", "viral"])
def test_boxes_are_the_bounding_boxes_of_the_mask(kind):
    for seed in range(12):
        image = describe_person("test", kind, seed, size=96, seed=seed)[-1]
        mask, boxes, lungs = find_truth(image)
        count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        assert len(boxes) == count - 1 == (1 if kind == "bacterial" else 2)
        found = stats[1:, :4] + np.pad(stats[1:, :2], ((0, 0), (2, 0)))  # xywh to xyxy
        assert sorted(map(tuple, found)) == sorted(map(tuple, boxes))
        for part in (boxes, lungs):
            assert part.min() >= 0
            assert part.max() <= 96
            assert (part[:, 2:] > part[:, :2]).all()
        assert lungs[0, 2] < 96 * image.patient.center < lungs[1, 0] + 6
        if kind == "viral":
            assert boxes[0, 2] <= lungs[0, 2]
            assert boxes[1, 0] >= lungs[1, 0]
            assert boxes[0, 2] <= boxes[1, 0]


def test_consolidations_have_the_size_and_the_place_of_lobes():
    images = [describe_person("train", "bacterial", i)[0] for i in range(60)]
    boxes = np.concatenate([find_truth(image)[1] for image in images]) / 128
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    assert 0.03 < areas.min() < 0.05
    assert 0.09 < areas.max() < 0.15
    assert 0.5 < np.mean(boxes[:, [1, 3]].mean(axis=1) > 0.5) < 0.8
    assert 0.3 < np.mean(boxes[:, 2] < 0.55) < 0.7  # both sides


def test_a_person_keeps_the_anatomy_and_the_side():
    for i in range(20):
        images = describe_person("train", "bacterial", i)
        assert len({image.opacities[0].side for image in images}) == 1
        assert len({image.patient.heart for image in images}) == 1
        assert len({image.patient.gain for image in images}) == len(images)
        assert np.ptp([image.patient.center for image in images]) <= 0.03
    images = next(p for i in range(9) if len(p := describe_person("train", "normal", i)) > 1)
    one, other = (render_image(image).astype(float) for image in images[:2])
    assert (one != other).mean() > 0.5
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9


# --- the mark ---


@pytest.mark.parametrize("kind", KINDS)
def test_no_identity_means_no_mark_and_changes_nothing_else(kind):
    for i in range(3):
        without, with_mark = (describe_person("train", kind, i, size=96, identity=k)[0] for k in (0.0, 1.0))
        plain = render_image(without)
        np.testing.assert_array_equal(plain, render_image(without, mark=False))
        np.testing.assert_array_equal(plain, render_image(with_mark, mark=False))
        mask, boxes, _ = find_truth(with_mark)
        np.testing.assert_array_equal(boxes, find_truth(without)[1])
        change = render_image(with_mark).astype(int) - plain
        assert change.min() == 0
        assert change.max() >= 15
        assert 2 <= (change > 0).sum() < 0.01 * 96**2
        assert change[mask].sum() == 0


def test_brightness_of_the_mark_follows_identity():
    images = (describe_person("train", "normal", 2, identity=k)[0] for k in (0.0, 0.5, 1.0))
    none, half, full = (render_image(image).astype(float) for image in images)
    assert (half - none).sum() == pytest.approx(0.5 * (full - none).sum(), rel=0.05)


def test_the_mark_lies_in_the_image_and_outside_the_lungs():
    for i in range(40):
        image = describe_person("train", "normal", i, identity=1.0)[0]
        x, y, rx, ry = image.mark[:4]
        assert min(x, y) >= 0.03
        assert max(x, y) <= 0.97
        chest = draw_chest(image.patient, np.random.default_rng(0), 128)
        axis = (np.arange(128) + 0.5) / 128
        near = np.hypot(axis[None, :] - x, axis[:, None] - y) < max(rx, ry)
        assert chest.lungs[near].max() < 0.25


def test_marks_tell_persons_apart_and_move_with_the_image():
    places = []
    for i in range(60):
        images = describe_person("train", KINDS[i % 3], i)
        marks = np.array([image.mark for image in images])
        assert np.ptp(marks[:, :2], axis=0).max() < 0.06
        assert (marks[:, 2:] == marks[0, 2:]).all()  # size, angle and brightness are the person's
        shifts = np.array([(image.patient.center, image.patient.top) for image in images])
        moved = marks[:, :2] - shifts
        assert np.ptp(moved, axis=0).max() < 0.045  # what is left is the tilt
        places.append(marks[0])
    places = np.array(places)
    assert len(np.unique(places[:, 2:], axis=0)) == 60
    regions = np.unique((places[:, :2] * 6).astype(int), axis=0)
    assert len(regions) >= 8


# --- bad input ---


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": (1, -1, 1)}, "train count of bacterial"),
        ({"test": (1, 1)}, "test = .*three counts"),
        ({"test": 7}, "test = .*three counts"),
        ({"train": (1, 1, 1.5)}, "train count of viral.*whole number"),
        ({"train": (0, 0, 0), "test": (0, 0, 0)}, "all zero"),
        ({"identity": 1.01}, "identity"),
        ({"identity": -0.1}, "identity"),
        ({"identity": float("nan")}, "identity"),
        ({"identity": "high"}, "identity"),
        ({"size": 63}, "size.*at least 64"),
        ({"size": 96.5}, "size.*at least 64"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(DataError, match=message):
        write_pneumonia(tmp_path / "set", **{"train": (1, 1, 1), "test": (1, 1, 1), "size": 64, **wrong})
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("person", [("val", "viral", 0), ("train", "tb", 0), ("train", "viral", -1)])
def test_unknown_person(person):
    with pytest.raises(DataError, match="expected one of"):
        describe_person(*person)


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not empty"):
        write_pneumonia(tmp_path, train=(1, 0, 0), test=(0, 0, 0), size=64)
    assert files(tmp_path) == {"mine.txt": b"keep"}


def test_a_disk_that_refuses(tmp_path, monkeypatch):
    def refuse(path, data):
        raise OSError(errno.ENOSPC, "refused", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(DataError, match=r"refused: .*IM-0001-0001\.jpeg.*can be written and has room"):
        write_pneumonia(tmp_path / "set", train=(1, 0, 0), test=(0, 0, 0), size=64)
    assert not (tmp_path / "set/pneumonia.json").exists()  # so a reader sees that it is not whole


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"images": 3}', '{"images": {"a": {"kind": "tb"}}}', "\xff"]
    + [
        json.dumps({"images": {"a": {"person": "p", "kind": "viral", "mask": None, "boxes": b, "lungs": lungs}}})
        for b, lungs in [([[1, 2]], [[0, 0, 1, 1]] * 2), ([], [[0, 0, 1, 1]])]
    ],
)
def test_a_broken_record(tmp_path, content):
    (tmp_path / "pneumonia.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"pneumonia\.json cannot be read"):
        read_pneumonia_truth(tmp_path)


def test_no_record(tmp_path):
    with pytest.raises(DataError, match=r"pneumonia\.json not found"):
        read_pneumonia_truth(tmp_path)
