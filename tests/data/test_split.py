"""Splits by patient: every patient on one side, a share of every class, and the same sides whoever else is there."""

from pathlib import Path

import numpy as np
import pytest

from tbkd_utils.data.records import Radiograph
from tbkd_utils.data.seeding import stable_seed
from tbkd_utils.data.split import (
    TEST,
    TRAIN,
    VALIDATION,
    by_image,
    by_patient,
    joined_by_copies,
    patient_folds,
    split_by_group,
)
from tbkd_utils.errors import DataError, UsageError


def records(patients: int, each: int, target: int, prefix: str) -> list[Radiograph]:
    return [
        Radiograph(Path(f"{prefix}{p}_{i}.png"), target, np.zeros((0, 4)), "made", group=f"{prefix}{p}")
        for p in range(patients)
        for i in range(each)
    ]


@pytest.fixture
def cohort() -> list[Radiograph]:
    return [*records(20, 3, 0, "a"), *records(10, 2, 1, "b"), *records(8, 1, 2, "c")]


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_on_both_sides_and_every_class_is_on_both(cohort: list[Radiograph], seed: int) -> None:
    aside = split_by_group(cohort, 0.2, seed)
    sides = [{r.group for r, held in zip(cohort, aside, strict=True) if held == side} for side in (True, False)]
    assert not sides[0] & sides[1]
    for target, expected in ((0, 12), (1, 4), (2, 2)):
        held = sum(held for r, held in zip(cohort, aside, strict=True) if r.target == target)
        assert expected <= held <= expected + 2  # whole patients


def test_others_move_nobody_to_the_other_side(cohort: list[Radiograph]) -> None:
    held = {r.group for r, held in zip(cohort, split_by_group(cohort, 0.2, 0), strict=True) if held}
    fewer = [r for r in cohort if r.group != min(g for g in {r.group for r in cohort} if g not in held)]
    now = {r.group for r, held in zip(fewer, split_by_group(fewer, 0.2, 0), strict=True) if held}
    assert now <= held
    turned = split_by_group(cohort[::-1], 0.2, 0)[::-1]
    assert np.array_equal(turned, split_by_group(cohort, 0.2, 0))


def test_a_radiograph_without_a_patient_is_a_patient_of_its_own() -> None:
    plain = [Radiograph(Path(f"{i}.png"), i % 2, np.zeros((0, 4)), "made") for i in range(40)]
    assert split_by_group(plain, 0.25, 0).sum() == 10


def test_a_patient_of_two_classes_counts_where_most_of_its_radiographs_are() -> None:
    mixed = [*records(4, 3, 0, "a"), *records(4, 3, 1, "b")]
    odd = Radiograph(Path("odd.png"), 1, np.zeros((0, 4)), "made", group="a0")
    aside = split_by_group([*mixed, odd], 0.25, 1)
    assert len({aside[i] for i in (0, 1, 2, -1)}) == 1


def test_several_findings_are_split_by_whether_there_is_any() -> None:
    several = [
        Radiograph(Path(f"{i}.png"), (i % 2, int(i % 3 == 0)), np.zeros((0, 4)), "made", group=str(i))
        for i in range(60)
    ]
    aside = split_by_group(several, 0.2, 0)
    assert sum(any(r.target) for r, held in zip(several, aside, strict=True) if held) == 8
    assert aside.sum() == 12


def test_a_class_that_would_be_gone_is_named() -> None:
    with pytest.raises(DataError, match="class pneumonia aside leaves none"):
        split_by_group([*records(5, 1, 0, "a"), *records(1, 4, 1, "b")], 0.2, 0, ("normal", "pneumonia"))


# --- training, validation and test at once --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_division_keeps_patients_together_and_every_share(cohort: list[Radiograph], seed: int) -> None:
    parts = by_patient(cohort, (0.7, 0.15), seed)
    where = {r.group: set(parts[[o.group == r.group for o in cohort]].tolist()) for r in cohort}
    assert all(len(part) == 1 for part in where.values())
    for target, patients in ((0, (14, 3, 3)), (1, (7, 2, 1)), (2, (6, 1, 1))):  # round(.7 n), round(.15 n), the rest
        found = [where[group].copy().pop() for group in {r.group for r in cohort if r.target == target}]
        assert tuple(found.count(part) for part in (TRAIN, VALIDATION, TEST)) == patients
    assert np.array_equal(by_patient(cohort[::-1], (0.7, 0.15), seed)[::-1], parts)
    assert not np.array_equal(by_patient(cohort, (0.7, 0.15), seed + 1), parts)


def test_halves_round_to_the_even_number_as_in_the_pneumonia_paper() -> None:
    few = [*records(10, 1, 0, "n"), *records(20, 1, 1, "p")]
    for divided in (by_patient(few, (0.7, 0.15), 3), by_image(few, (0.7, 0.15), 3)):
        counts = [[int((divided[start:stop] == part).sum()) for part in (TRAIN, VALIDATION, TEST)]
                  for start, stop in ((0, 10), (10, 30))]  # fmt: skip
        assert counts == [[7, 2, 1], [14, 3, 3]]


def test_a_division_by_image_tears_patients_apart(cohort: list[Radiograph]) -> None:
    parts = by_image(cohort, (0.7, 0.15), 0)
    assert any(len({p for r, p in zip(cohort, parts, strict=True) if r.group == f"a{i}"}) > 1 for i in range(20))


def test_those_who_share_a_file_become_one_patient() -> None:
    some = [*records(4, 2, 0, "a"), Radiograph(Path("alone.png"), 0, np.zeros((0, 4)), "made")]
    joined = joined_by_copies(some, [(some[1], some[2]), (some[3], some[8]), (some[6], some[7])])
    assert [r.group for r in joined] == ["a0"] * 4 + ["a2", "a2", "a3", "a3", "a0"]
    assert [r.path for r in joined] == [r.path for r in some]
    assert joined_by_copies(some, []) == some


# --- folds ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def findings() -> list[Radiograph]:
    """Patients of one to four images; each shows up to three of five findings, the last of which is rare."""
    rng = np.random.default_rng(0)
    return [
        Radiograph(
            Path(f"{p}_{i}.png"),
            tuple(int(there) for there in rng.random(5) < (0.4, 0.2, 0.15, 0.1, 0.05)),
            np.zeros((0, 4)),
            "made",
            group=f"p{p}",
        )
        for p in range(200)
        for i in range(rng.integers(1, 5))
    ]


def counts_per_fold(some: list[Radiograph], parts: np.ndarray) -> np.ndarray:
    """Images of each finding in each fold, and last those without any; (folds, findings + 1)."""
    shown = np.array([(*record.target, int(not any(record.target))) for record in some])
    return np.stack([shown[parts == fold].sum(axis=0) for fold in range(parts.max() + 1)])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("folds", [2, 5])
def test_folds_keep_patients_whole_and_balance_every_finding(findings, folds, seed) -> None:
    parts = patient_folds(findings, folds, seed)
    assert parts.dtype == np.int64
    assert set(parts.tolist()) == set(range(folds))
    assert all(len({p for r, p in zip(findings, parts, strict=True) if r.group == f"p{i}"}) == 1 for i in range(200))
    found = counts_per_fold(findings, parts)
    assert np.abs(found - found.mean(axis=0)).max() <= 4  # a patient has up to four images
    hashed = np.array([stable_seed("a coarse rule", seed, r.group) % folds for r in findings])
    assert np.ptp(found, axis=0).sum() < 0.3 * np.ptp(counts_per_fold(findings, hashed), axis=0).sum()


def test_folds_depend_on_the_seed_and_not_on_the_order(findings: list[Radiograph]) -> None:
    parts = patient_folds(findings, 5, 0)
    assert np.array_equal(patient_folds(findings[::-1], 5, 0)[::-1], parts)
    assert not np.array_equal(patient_folds(findings, 5, 1), parts)


def test_folds_of_single_images_of_one_class_are_exact() -> None:
    some = [*records(10, 1, 0, "a"), *records(5, 1, 1, "b"), *records(20, 1, 2, "c")]
    parts = patient_folds(some, 5, 3)
    for start, stop in ((0, 10), (10, 15), (15, 35)):
        assert np.bincount(parts[start:stop], minlength=5).tolist() == [(stop - start) // 5] * 5


def test_a_finding_of_few_patients_is_spread_as_far_as_it_goes() -> None:
    some = [*records(12, 2, 0, "a"), *records(3, 1, 1, "b")]
    parts = patient_folds(some, 4, 0)
    assert sorted(np.bincount(parts[24:], minlength=4).tolist()) == [0, 1, 1, 1]


def test_folds_without_a_patient_each_are_refused() -> None:
    with pytest.raises(DataError, match="3 patients do not fill 4 folds"):
        patient_folds(records(3, 5, 0, "a"), 4, 0)
    with pytest.raises(UsageError, match="expected at least 2"):
        patient_folds(records(3, 5, 0, "a"), 1, 0)
