"""Kermany's layout: classes by folder, patients by name, and every copy that cannot be trusted is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tbkd_utils.data.cache import Samples, load_samples
from tbkd_utils.data.check import check_dataset
from tbkd_utils.data.dataset import find_layout, read_dataset
from tbkd_utils.data.images import read_image
from tbkd_utils.data.readers import Kermany, KermanyPooled, KermanyPooledUpper
from tbkd_utils.data.readers.kermany import patient_of
from tbkd_utils.data.records import Radiograph
from tbkd_utils.data.synthetic.pneumonia import read_pneumonia_truth, write_pneumonia
from tbkd_utils.errors import DataError
from tbkd_utils.runs import Run

READERS = (Kermany, KermanyPooled, KermanyPooledUpper)
KAGGLE = (
    "test/NORMAL/NORMAL2-IM-0433-0001.jpeg",
    "test/PNEUMONIA/person14_virus_3.jpeg",
    "train/NORMAL/IM-0433-0001.jpeg",
    "train/NORMAL/IM-0491-0001-0002.jpeg",
    "train/NORMAL/IM-0491-0002.jpeg",
    "train/PNEUMONIA/person14_bacteria_51.jpeg",
    "train/PNEUMONIA/person2_bacteria_4.jpg",
    "train/PNEUMONIA/person3_virus_16.png",
)
MENDELEY = (
    "test/NORMAL/NORMAL-1049278-0001.jpeg",
    "test/PNEUMONIA/VIRUS-1980593-0001.jpeg",
    "train/NORMAL/NORMAL-115218-0001.jpeg",
    "train/PNEUMONIA/BACTERIA-1083680-0001.jpeg",
    "train/PNEUMONIA/BACTERIA-1083680-0012.jpeg",
)


def save(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> None:
    """Gray noise, different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write(root: Path, names: tuple[str, ...]) -> Path:
    for seed, name in enumerate(names):
        save(root / name, seed)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "chest_xray", KAGGLE)


def read(root: Path, split: str = "all") -> list[Radiograph]:
    return read_dataset(root, split, readers=READERS)


@pytest.fixture
def samples(tmp_path: Path) -> Callable[[Path], Samples]:
    """Decodes a folder's radiographs to 32 pixels, squashed."""
    return lambda root: load_samples(
        read(root), lambda kind, settings: Run.at(tmp_path / "runs", kind, settings), 32, 32, "squash"
    )


# --- what is read ---


def test_classes_kinds_and_patients_of_kaggles_names(root: Path) -> None:
    found = [(r.name, r.target, r.kind, r.group) for r in read(root, "train")]
    assert found == [
        ("train/NORMAL/IM-0433-0001.jpeg", 0, "normal", "IM-0433"),
        ("train/NORMAL/IM-0491-0001-0002.jpeg", 0, "normal", "IM-0491"),
        ("train/NORMAL/IM-0491-0002.jpeg", 0, "normal", "IM-0491"),
        ("train/PNEUMONIA/person14_bacteria_51.jpeg", 1, "bacterial", "PERSON14"),
        ("train/PNEUMONIA/person2_bacteria_4.jpg", 1, "bacterial", "PERSON2"),
        ("train/PNEUMONIA/person3_virus_16.png", 1, "viral", "PERSON3"),
    ]
    assert [(r.target, r.kind, r.group) for r in read(root, "test")] == [
        (0, "normal", "IM-0433"), (1, "viral", "PERSON14")
    ]  # fmt: skip
    for record in read(root):
        assert (record.path, record.source) == (root / record.name, "Kermany")
        assert record.boxes.shape == (0, 4)
        assert record.size is None


def test_classes_kinds_and_patients_of_mendeleys_names(tmp_path: Path) -> None:
    records = read(write(tmp_path / "set", MENDELEY))
    assert [(r.target, r.kind, r.group) for r in records] == [
        (0, "normal", "115218"),
        (1, "bacterial", "1083680"),
        (1, "bacterial", "1083680"),
        (0, "normal", "1049278"),
        (1, "viral", "1980593"),
    ]


@pytest.mark.parametrize(
    ("stem", "patient", "kind"),
    [
        ("IM-0491-0001-0002", "IM-0491", "normal"),
        ("IM-0491-0002", "IM-0491", "normal"),
        ("NORMAL2-IM-0433-0001", "IM-0433", "normal"),
        ("NORMAL2-IM-1154-0001-0002", "IM-1154", "normal"),
        ("BACTERIA-1083680-0012", "1083680", "bacterial"),
        ("VIRUS-1083680-0001", "1083680", "viral"),
        ("NORMAL-1083680-0001", "1083680", "normal"),
        ("person14_bacteria_51", "PERSON14", "bacterial"),
        ("person14_virus_51", "PERSON14", "viral"),
        ("PERSON14_BACTERIA_51", "PERSON14", "bacterial"),
        ("im-0491-0002", "IM-0491", "normal"),
    ],
)
def test_the_patient_is_read_the_careful_way(stem: str, patient: str, kind: str) -> None:
    assert patient_of(stem) == (patient, kind)


@pytest.mark.parametrize(
    "stem", ["", "person14", "person_bacteria_1", "person14_fungus_1", "IM-491-0001", "IM-0491", "NORMAL3-IM-0433-0001",
             "BACTERIA-1083680", "xIM-0491-0002", "IM-0491-0002 (1)", "person14_bacteria_51-copy"],
)  # fmt: skip
def test_a_name_of_no_known_form_tells_no_patient(stem: str) -> None:
    with pytest.raises(DataError, match="tells no patient"):
        patient_of(stem)


def test_splits_are_the_folders_that_are_there_and_all_joins_them(root: Path) -> None:
    layout = find_layout(root, READERS)
    assert (type(layout), layout.splits(), layout.listed_splits()) == (
        Kermany, ("train", "test", "all"), ("train", "test")
    )  # fmt: skip
    save(root / "val/NORMAL/NORMAL2-IM-1427-0001.jpeg", 90)
    save(root / "val/PNEUMONIA/person1946_bacteria_4874.jpeg", 91)
    assert layout.splits() == ("train", "val", "test", "all")
    assert read(root) == [*read(root, "train"), *read(root, "val"), *read(root, "test")]
    with pytest.raises(DataError, match=r"no split 'valid'.*train, val, test, all"):
        read(root, "valid")


def test_the_set_is_found_in_the_folder_above(root: Path) -> None:
    assert find_layout(root.parent, READERS).root == root


@pytest.mark.parametrize(
    ("folders", "reader"),
    [(("Normal", "Pneumonia"), KermanyPooled), (("NORMAL", "PNEUMONIA"), KermanyPooledUpper)],
)
def test_a_pooled_folder_is_one_split_in_either_spelling(tmp_path: Path, folders: tuple[str, str], reader) -> None:
    pooled = tmp_path / "pooled"
    for seed, name in enumerate((*KAGGLE, *MENDELEY)):
        _, label, file = name.split("/")
        save(pooled / folders[label == "PNEUMONIA"] / file, seed)
    layout = find_layout(pooled, READERS)
    assert (type(layout), layout.splits(), layout.listed_splits()) == (reader, ("all",), ("all",))
    records = read(pooled)
    assert [r.target for r in records] == [0] * 6 + [1] * 7
    assert [r.name for r in records] == sorted(r.name for r in records)
    assert {r.group for r in records} == {
        "IM-0433", "IM-0491", "PERSON14", "PERSON2", "PERSON3", "115218", "1049278", "1083680", "1980593"
    }  # fmt: skip
    assert {r.kind for r in records if r.target} == {"bacterial", "viral"}


def test_folders_within_a_class_are_read_too(root: Path) -> None:
    save(root / "train/NORMAL/more/still/IM-0001-0001.jpeg", 90)
    found = {r.name: r for r in read(root, "train")}
    assert found["train/NORMAL/more/still/IM-0001-0001.jpeg"].group == "IM-0001"
    assert len(found) == 7


def test_hidden_files_and_files_of_other_kinds_are_ignored(root: Path) -> None:
    for name in (".DS_Store", "._IM-0433-0001.jpeg", ".hidden.png", "Thumbs.db", "notes.txt"):
        (root / "train/NORMAL" / name).write_bytes(b"no image")
    assert len(read(root)) == len(KAGGLE)
    assert check_dataset(root, readers=READERS).ok


# --- bad input ---


@pytest.mark.parametrize("label", ["NORMAL", "PNEUMONIA"])
def test_a_class_folder_that_is_missing_is_named(root: Path, label: str) -> None:
    shutil.rmtree(root / "test" / label)
    with pytest.raises(DataError, match=rf"test/{label}: no such folder.*NORMAL and PNEUMONIA"):
        read(root, "test")
    assert len(read(root, "train")) == 6
    (problem,) = check_dataset(root, readers=READERS).problems
    assert f"test/{label}: no such folder" in problem


@pytest.mark.parametrize("left", ["nothing", "a hidden file"])
@pytest.mark.parametrize("label", ["NORMAL", "PNEUMONIA"])
def test_a_class_folder_without_an_image_is_named(root: Path, label: str, left: str) -> None:
    shutil.rmtree(root / "test" / label)
    (root / "test" / label).mkdir()
    if left == "a hidden file":
        (root / "test" / label / ".x.jpeg").touch()
    with pytest.raises(DataError, match=rf"test/{label}: no image in it"):
        read(root, "all")


def test_without_a_class_folder_in_train_it_is_no_such_set(root: Path) -> None:
    shutil.rmtree(root / "train/PNEUMONIA")
    with pytest.raises(DataError, match="missing train/PNEUMONIA/"):
        read(root)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train/NORMAL/scan1.jpeg", r"train/NORMAL: scan1: the name tells no patient"),
        ("train/PNEUMONIA/person14.jpeg", r"train/PNEUMONIA: person14: the name tells no patient"),
        ("train/NORMAL/person14_bacteria_52.jpeg", r"person14_bacteria_52\.jpeg: the name says bacterial, .* NORMAL"),
        ("train/NORMAL/VIRUS-1-0001.jpeg", "the name says viral, the folder NORMAL"),
        ("test/PNEUMONIA/NORMAL2-IM-0434-0001.jpeg", r"IM-0434-0001\.jpeg: the name says normal, the folder PNEUMONIA"),
        ("test/PNEUMONIA/NORMAL-7-0001.jpeg", "the name says normal, the folder PNEUMONIA"),
    ],
)
def test_a_name_that_contradicts_its_folder_or_tells_no_patient_is_one_problem(
    root: Path, name: str, said: str
) -> None:
    save(root / name, 90)
    with pytest.raises(DataError, match=said):
        read(root)
    report = check_dataset(root, readers=READERS)
    assert len(report.problems) == 1
    assert len(report.images) == len(KAGGLE)  # the others are still read


def test_a_truncated_file_is_named(root: Path, samples: Callable[[Path], Samples]) -> None:
    file = root / "train/PNEUMONIA/person14_bacteria_51.jpeg"
    file.write_bytes(file.read_bytes()[:-200])
    assert len(read(root)) == len(KAGGLE)  # nothing is decoded
    (problem,) = check_dataset(root, readers=READERS).problems
    assert problem.startswith(f"{file}: the image is truncated or damaged")
    with pytest.raises(DataError, match=r"person14_bacteria_51\.jpeg: the image is truncated or damaged"):
        samples(root)


# --- pixels ---


def test_rgba_and_16_bit_files_are_converted_as_documented(root: Path, samples: Callable[[Path], Samples]) -> None:
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 2**16, (30, 40), dtype=np.uint16)
    Image.fromarray(deep).save(root / "train/NORMAL/IM-0700-0001.png")
    rgba = rng.integers(0, 256, (30, 40, 4), dtype=np.uint8)
    rgba[..., 1:3] = rgba[..., :1]  # gray with alpha
    Image.fromarray(rgba, "RGBA").save(root / "train/NORMAL/IM-0701-0001.png")
    expected = {
        "IM-0700": np.round(deep / 257).astype(np.uint8),
        "IM-0701": rgba[..., 0] * (rgba[..., 3] / 255),  # on black
    }
    paths = {record.group: record.path for record in read(root)}
    for patient, pixels in expected.items():
        found = read_image(paths[patient])
        assert (found.dtype, found.shape) == (np.uint8, (30, 40))
        np.testing.assert_allclose(found.astype(float), pixels, atol=0 if patient == "IM-0700" else 1)
    report = check_dataset(root, readers=READERS)
    assert report.ok, report.problems
    assert {"I;16", "RGBA", "L"} == set(report.images["mode"])
    decoded = samples(root)
    place = decoded.groups.index("IM-0700")
    small = Image.fromarray(expected["IM-0700"]).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decoded.pixels[place], np.asarray(small))
    assert decoded.size == (32, 32)


# --- the drawn set ---


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pneumonia(tmp_path_factory.mktemp("drawn") / "set", train=(3, 3, 3), test=(2, 2, 2), size=64)


def test_a_drawn_set_is_read_with_its_boxes_and_sizes(drawn: Path, samples: Callable[[Path], Samples]) -> None:
    truth, records = read_pneumonia_truth(drawn), read(drawn)
    assert {record.name for record in records} == set(truth)
    for record in records:
        said = truth[record.name]
        np.testing.assert_array_equal(record.boxes, said.boxes)
        assert (record.size, record.kind, record.group) == ((64, 64), said.kind, said.person.upper())
        assert record.target == (said.kind != "normal")
        assert len(record.boxes) == {"normal": 0, "bacterial": 1, "viral": 2}[said.kind]
    assert read(drawn / "chest_xray") == records
    half = samples(drawn)
    np.testing.assert_array_equal(np.concatenate(half.boxes), np.concatenate([r.boxes for r in records]) / 2)


def test_a_drawn_set_has_no_patient_in_two_splits(drawn: Path) -> None:
    report = check_dataset(drawn, readers=READERS)
    assert report.ok, report.problems
    patients = report.tables()["patients"]
    assert patients.to_dict("list") == {
        "split": ["train", "test"], "patients": [9, 6], "in another split too": [0, 0]
    }  # fmt: skip


# --- a check ---


def test_a_check_counts_patients_duplicates_and_those_that_cross(root: Path) -> None:
    shutil.copy(root / "train/NORMAL/IM-0433-0001.jpeg", root / "test/NORMAL/NORMAL2-IM-0500-0001.jpeg")
    shutil.copy(root / "train/PNEUMONIA/person2_bacteria_4.jpg", root / "train/PNEUMONIA/person5_bacteria_1.jpg")
    report = check_dataset(root, readers=READERS)
    assert report.ok, report.problems  # duplicates are findings
    tables = report.tables()
    assert tables["patients"].to_dict("list") == {
        "split": ["train", "test"], "patients": [6, 3], "in another split too": [2, 2]
    }  # fmt: skip
    assert report.identical == (
        (("train", "train/NORMAL/IM-0433-0001.jpeg"), ("test", "test/NORMAL/NORMAL2-IM-0500-0001.jpeg")),
        (("train", "train/PNEUMONIA/person2_bacteria_4.jpg"), ("train", "train/PNEUMONIA/person5_bacteria_1.jpg")),
    )
    assert tables["byte-identical files"]["cross_splits"].tolist() == [True, False]
    assert tables["images"].to_dict("list") == {
        "split": ["train", "test"], "source": ["Kermany"] * 2, "normal": [3, 2], "bacterial": [3, 0], "viral": [1, 1],
        "total": [7, 3]
    }  # fmt: skip


def test_the_same_file_in_both_classes_is_a_problem(root: Path) -> None:
    shutil.copy(root / "train/NORMAL/IM-0433-0001.jpeg", root / "test/PNEUMONIA/person9_virus_1.jpeg")
    (problem,) = check_dataset(root, readers=READERS).problems
    assert "the same file under two labels" in problem
