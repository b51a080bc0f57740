"""The source's division against a second implementation, and what an experiment makes of patients and copies."""

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tbkd_utils.data.records import Radiograph
from tbkd_utils.data.split import DIVISIONS, TEST, TRAIN, VALIDATION, by_patient
from tbkd_utils.data.synthetic.pneumonia import write_pneumonia
from tbkd_utils.errors import DataError, SettingsError
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.systems.pneumonia.division import as_the_source, source_patient

SHARES = (0.7, 0.15)
PUBLISHED = {"division": "published", "train_splits": ("train",), "test_splits": ("test",)}


def radiograph(stem: str, target: int, group: str = "") -> Radiograph:
    name = f"{('NORMAL', 'PNEUMONIA')[target]}/{stem}.jpeg"
    return Radiograph(Path("/nowhere") / name, target, np.zeros((0, 4)), "made", name=name, group=group)


def cohort(normal: int, pneumonia: int, each: int = 1) -> list[Radiograph]:
    """Patients by the source's rule, so many images each."""
    healthy = [radiograph(f"NORMAL2-IM-{p:04d}-{i:04d}", 0) for p in range(normal) for i in range(each)]
    ill = [radiograph(f"person{p}_bacteria_{i}", 1) for p in range(pneumonia) for i in range(each)]
    return [*healthy, *ill]


def counts_of(parts: np.ndarray) -> tuple[int, ...]:
    return tuple(int((parts == part).sum()) for part in (TRAIN, VALIDATION, TEST))


# --- the source's patients ---


@pytest.mark.parametrize(
    ("stem", "patient"),
    [
        ("IM-0491-0001-0002", "IM-0491-0001"),
        ("IM-0491-0002", "IM-0491-0002"),
        ("NORMAL2-IM-0433-0001", "NORMAL2-IM-0433"),
        ("BACTERIA-1083680-0012", "BACTERIA-1083680-0012"),
        ("person14_bacteria_51", "PERSON14"),
        ("person14_virus_3", "PERSON14"),
        ("im-0491-0002", "IM-0491-0002"),
        ("NORMAL2-IM-1154-0001-0002", "NORMAL2-IM-1154"),
        ("scan1", "SCAN1"),
        ("a-b", "A-B"),
    ],
)
def test_the_sources_patient_of_a_name(stem: str, patient: str) -> None:
    assert source_patient(stem) == patient


# --- the source's division ---


def reference(records: list[Radiograph], seed: int) -> dict[str, int]:
    """`data_processing.py` of the source, rewritten from its description: patient to part."""
    labels: dict[str, list[int]] = {}
    for record in records:
        stem = record.path.stem.upper()
        match = re.match(r"^(PERSON\d+)", stem) or re.match(r"^([A-Z]+-\d{4}-\d{4})", stem)
        patient = match.group(1) if match else "-".join(stem.split("-")[:3])
        labels.setdefault(patient, []).append(record.target)
    rng, parts = np.random.RandomState(seed), {}
    for label in (0, 1):
        ids = sorted(p for p, found in labels.items() if (2 * sum(found) > len(found)) == bool(label))
        rng.shuffle(ids)
        train, val = round(0.7 * len(ids)), round(0.15 * len(ids))
        parts |= {p: 0 if i < train else 1 if i < train + val else 2 for i, p in enumerate(ids)}
    return parts


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_the_division_equals_a_second_implementation(seed: int) -> None:
    records = [*cohort(33, 57, 2), *(radiograph(f"IM-{p:04d}-{i:04d}", 0) for p in range(9) for i in (1, 2))]
    records += [radiograph(f"BACTERIA-{p}-0001", 1) for p in range(1000, 1013)]
    np.random.default_rng(seed).shuffle(records)  # the order of files does not matter
    expected = reference(records, seed)
    found = as_the_source(records, SHARES, seed)
    assert found.dtype == np.int64
    assert found.tolist() == [expected[source_patient(record.path.stem)] for record in records]


def test_halves_round_to_the_even_number() -> None:
    parts = as_the_source(cohort(10, 20), SHARES, 42)
    assert counts_of(parts[:10]) == (7, 2, 1)
    assert counts_of(parts[10:]) == (14, 3, 3)


@pytest.mark.parametrize("seed", range(4))
def test_every_id_is_in_one_part_and_every_image_in_some(seed: int) -> None:
    records = cohort(31, 58, 3)
    parts = as_the_source(records, SHARES, seed)
    assert set(parts.tolist()) == {TRAIN, VALIDATION, TEST}
    ids = np.array([source_patient(record.path.stem) for record in records])
    where = {patient: set(parts[ids == patient].tolist()) for patient in ids}
    assert all(len(part) == 1 for part in where.values())
    for prefix, n in (("NORMAL2", 31), ("PERSON", 58)):
        found = Counter(part for patient, (part,) in where.items() if patient.startswith(prefix))
        train, validation = round(0.7 * n), round(0.15 * n)
        assert found == {TRAIN: train, VALIDATION: validation, TEST: n - train - validation}


def test_a_seed_decides_and_files_order_does_not() -> None:
    records = cohort(20, 30, 2)
    parts = as_the_source(records, SHARES, 42)
    np.testing.assert_array_equal(as_the_source(records, SHARES, 42), parts)
    np.testing.assert_array_equal(as_the_source(records[::-1], SHARES, 42)[::-1], parts)
    assert not np.array_equal(as_the_source(records, SHARES, 43), parts)
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the global one is meant
    as_the_source(records, SHARES, 0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_the_source_tears_patients_apart_whom_the_careful_names_keep_together() -> None:
    records = [radiograph(f"IM-0491-{i:04d}", 0, "IM-0491") for i in range(20)] + cohort(0, 20)
    assert len(set(as_the_source(records, SHARES, 42)[:20].tolist())) == 3
    assert len(set(by_patient(records, SHARES, 42)[:20].tolist())) == 1


@pytest.mark.parametrize("division", ["source", "patients"])
def test_a_patient_of_both_labels_counts_where_most_of_its_images_are(division: str) -> None:
    """Ten and twenty patients still give 7/2/1 and 14/3/3 when the mixed ones are counted so."""

    def images(patient: int, targets: str) -> list[Radiograph]:
        return [radiograph(f"person{patient}_virus_{i}", int(t), f"P{patient}") for i, t in enumerate(targets)]

    normal = [images(p, "001" if p < 5 else "0") for p in range(9)] + [images(9, "01")]  # a tie is the lower label
    ill = [images(p, "0111" if p < 16 else "1") for p in range(10, 30)]
    records = [record for patient in (*normal, *ill) for record in patient]
    parts = dict(
        zip(
            (r.group for r in records),
            (DIVISIONS | {"source": as_the_source})[division](records, SHARES, 42).tolist(),
            strict=True,
        )
    )
    assert counts_of(np.array([parts[f"P{p}"] for p in range(10)])) == (7, 2, 1)
    assert counts_of(np.array([parts[f"P{p}"] for p in range(10, 30)])) == (14, 3, 3)


# --- an experiment ---


@pytest.fixture(scope="module")
def smoke_pneumonia(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment.open("smoke", out=tmp_path_factory.mktemp("pneumonia"), system="pneumonia")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "set"
    return write_pneumonia(root, train=(8, 8, 6), test=(4, 4, 4), size=64, identity=1.0)


@pytest.fixture
def root(drawn: Path, tmp_path: Path) -> Path:
    """A copy of a drawn set that a test may change."""
    shutil.copytree(drawn, tmp_path / "set")
    return tmp_path / "set" / "chest_xray"


@pytest.fixture
def opened(root: Path, tmp_path: Path) -> Callable[..., Experiment]:
    """Opens an experiment on that copy, with some settings changed."""
    return lambda **changes: Experiment.open("smoke", root, tmp_path / "out", changes, system="pneumonia")


def patients(records: list[Radiograph], parts: np.ndarray, part: int) -> set[str]:
    return {record.group for record, own in zip(records, parts, strict=True) if own == part}


def two_normals(root: Path) -> tuple[Path, Path]:
    """Files of two normal patients, one in train and one in test."""
    return sorted((root / "train/NORMAL").iterdir())[0], sorted((root / "test/NORMAL").iterdir())[-1]


def test_patients_are_on_one_side_only(smoke_pneumonia: Experiment) -> None:
    records, parts = smoke_pneumonia.pooled_records, smoke_pneumonia.parts
    train, validation, test = (patients(records, parts, part) for part in (TRAIN, VALIDATION, TEST))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(train | validation | test) == 34
    of_label = [[sum(p.startswith(prefix) for p in part) for part in (train, validation, test)]
                for prefix in ("IM", "PERSON")]  # fmt: skip
    assert of_label == [[6, 2, 4], [11, 4, 7]]  # half, a fifth, the rest
    assert {record.group for record in smoke_pneumonia.test_records} == test
    assert {record.group for record in smoke_pneumonia.train_records} == train | validation


def test_samples_follow_the_division(smoke_pneumonia: Experiment) -> None:
    of = smoke_pneumonia
    assert set(of.train.groups).isdisjoint({*of.validation.groups, *of.test.groups})
    assert set(of.validation.groups).isdisjoint(of.test.groups)
    names = [*of.train.names, *of.validation.names, *of.test.names]
    assert sorted(names) == sorted(record.name for record in of.pooled_records)
    assert of.class_counts == tuple(np.bincount(of.train.targets))


def test_another_seed_divides_otherwise_and_the_same_one_does_not(smoke_pneumonia: Experiment) -> None:
    again, other = (smoke_pneumonia.changed(division_seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(again.parts, smoke_pneumonia.parts)
    assert not np.array_equal(other.parts, smoke_pneumonia.parts)


def test_an_experiment_can_divide_as_the_source(smoke_pneumonia: Experiment) -> None:
    of = smoke_pneumonia.changed(division="source", division_seed=42, train_share=0.7, validation_share=0.15)
    expected = reference(of.pooled_records, 42)
    assert of.parts.tolist() == [expected[source_patient(record.path.stem)] for record in of.pooled_records]


def test_two_patients_who_share_a_file_end_in_one_part_and_the_later_copy_is_dropped(
    root: Path, opened: Callable[..., Experiment]
) -> None:
    kept, copy = two_normals(root)
    apart = 0
    before = {seed: opened(division_seed=seed).parts for seed in range(6)}
    records = opened().pooled_records
    place = {record.path: number for number, record in enumerate(records)}
    owner, other = (records[place[path]].group for path in (kept, copy))
    assert owner != other
    for parts in before.values():
        apart += parts[place[kept]] != parts[place[copy]]
    assert apart > 0  # else the rest shows nothing
    copy.write_bytes(kept.read_bytes())
    for seed in before:
        of = opened(division_seed=seed)
        names = {record.path: record.group for record in of.pooled_records}
        assert kept in names
        assert copy not in names
        assert of.copies_left_out == 1
        of_both = [r.path for r in records if r.group in (owner, other) and r.path != copy]
        assert {names[path] for path in of_both} == {min(owner, other)}
        found = {int(p) for r, p in zip(of.pooled_records, of.parts, strict=True) if r.path in of_both}
        assert len(found) == 1


def test_copies_stay_where_the_recipe_keeps_them(root: Path, opened: Callable[..., Experiment]) -> None:
    kept, copy = two_normals(root)
    copy.write_bytes(kept.read_bytes())
    of = opened(drop_duplicates=False)
    assert {kept, copy} <= {record.path for record in of.pooled_records}
    assert of.copies_left_out == 0


@pytest.mark.parametrize("division", ["patients", "images", "source"])
def test_the_same_bytes_in_both_class_folders_are_refused(
    root: Path, opened: Callable[..., Experiment], division: str
) -> None:
    ill = sorted((root / "test/PNEUMONIA").iterdir())[0]
    ill.write_bytes(two_normals(root)[0].read_bytes())
    with pytest.raises(DataError, match=rf"{re.escape(str(ill))}: the same file under two labels"):
        _ = opened(division=division).parts


@pytest.mark.parametrize(
    ("shares", "part"),
    [((0.9, 0.05), "test"), ((0.5, 0.01), "validation"), ((0.01, 0.5), "training")],
)
def test_a_division_that_leaves_a_part_without_a_class_is_refused(
    smoke_pneumonia: Experiment, shares: tuple[float, float], part: str
) -> None:
    of = smoke_pneumonia.changed(train_share=shares[0], validation_share=shares[1])
    with pytest.raises(DataError, match=rf"'{part} \(divided by patients\)' has .*0 normal.*every class is needed"):
        _ = of.parts


def test_an_unknown_division_is_refused(smoke_pneumonia: Experiment) -> None:
    with pytest.raises(SettingsError, match="no division 'persons': expected published, patients, images, source"):
        _ = smoke_pneumonia.changed(division="persons").parts


def test_a_patient_with_both_labels_follows_most_of_its_images_in_an_experiment(tmp_path: Path, drawn: Path) -> None:
    """Mendeley's names give a normal and a pneumonia image of one number."""
    pixels = sorted((drawn / "chest_xray").rglob("*.jpeg"))
    names = [f"NORMAL/NORMAL-{p}-0001" for p in range(10)] + [f"PNEUMONIA/VIRUS-{p}-0001" for p in range(10, 30)]
    names += [f"PNEUMONIA/VIRUS-{p}-0002" for p in range(10, 30)] + [f"NORMAL/NORMAL-{p}-0001" for p in (10, 11)]
    for place, name in enumerate(names):
        file = tmp_path / "set" / f"{name}.jpeg"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pixels[place], file)
    changes = {"train_share": 0.7, "validation_share": 0.15}
    of = Experiment.open("smoke", tmp_path / "set", tmp_path / "out", changes, system="pneumonia")
    part_of = {}
    for record, part in zip(of.pooled_records, of.parts.tolist(), strict=True):
        assert part_of.setdefault(record.group, part) == part
    assert counts_of(np.array([part_of[str(p)] for p in range(10)])) == (7, 2, 1)
    assert counts_of(np.array([part_of[str(p)] for p in range(10, 30)])) == (14, 3, 3)


# --- the published division ---


def splits_of(records: list[Radiograph]) -> Any:
    return {record.name.split("/")[0] for record in records}


def test_the_published_division_is_that_of_the_folders(opened: Callable[..., Experiment]) -> None:
    of = opened(**PUBLISHED)
    assert not of.divided
    assert splits_of(of.train_records) == {"train"}
    assert splits_of(of.test_records) == {"test"}
    assert {r.group for r in of.train_records}.isdisjoint(r.group for r in of.test_records)
    assert set(of.train.groups).isdisjoint(of.validation.groups)  # set aside by patient
    assert sorted([*of.train.names, *of.validation.names]) == sorted(r.name for r in of.train_records)
    assert (len(of.test), of.copies_left_out) == (len(of.test_records), 0)


def test_a_file_of_the_published_test_is_left_out_of_train(root: Path, opened: Callable[..., Experiment]) -> None:
    in_train, in_test = two_normals(root)
    before = len(opened(**PUBLISHED).train_records)
    in_train.write_bytes(in_test.read_bytes())
    of = opened(**PUBLISHED)
    assert in_train not in {record.path for record in of.train_records}
    assert in_test in {record.path for record in of.test_records}
    assert (of.copies_left_out, len(of.train_records)) == (1, before - 1)
    assert in_train in {record.path for record in opened(**PUBLISHED, drop_duplicates=False).train_records}
