"""Splits of a dataset in which every patient is on one side."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tbkd_utils.data.records import Radiograph
from tbkd_utils.data.seeding import stable_seed
from tbkd_utils.errors import DataError, UsageError

TRAIN, VALIDATION, TEST = range(3)
"""The parts of a divided set."""

Division = Callable[[Sequence[Radiograph], tuple[float, float], int], np.ndarray]
"""Radiographs (n), the shares of training and validation, and a seed, to the part of each, int64 (n,)."""


def split_by_group(
    records: Sequence[Radiograph], fraction: float, seed: int, classes: Sequence[str] = ()
) -> np.ndarray:
    """Sets a share of the radiographs aside, class by class and patient by patient.

    The patients of each class are ordered by a hash of their name; those that hash lowest are set aside until the share
    is reached. So a radiograph more or less moves no other patient to the other side of the order. A patient's class is
    that of most of its radiographs, the lower one if there is a tie.

    Args:
        records: The radiographs, n of them. One without a group is a patient of its own.
        fraction: The share, between 0 and 1; at least one patient of each class is set aside.
        seed: Of the hash.
        classes: Names of the classes, for the message.

    Returns:
        bool (n,), True for those set aside.

    Raises:
        DataError: If nothing of a class would be left.
    """
    members = _members([record.group or record.name for record in records])
    by_class = _by_class(records, members)
    aside = np.zeros(len(records), dtype=bool)
    for label, groups in sorted(by_class.items()):
        total = sum(len(members[group]) for group in groups)
        count = max(1, round(fraction * total))
        taken = 0
        for group in sorted(groups, key=lambda group: stable_seed("holdout", seed, group)):
            if taken >= count:
                break
            aside[members[group]] = True
            taken += len(members[group])
        if taken >= total:
            name = classes[label] if label < len(classes) else label
            raise DataError(
                f"Setting {count} of {total} training radiographs of class {name} aside leaves none to train on: lower "
                "validation_fraction or add radiographs."
            )
    return aside


def divide(
    records: Sequence[Radiograph],
    groups: Sequence[str],
    shares: tuple[float, float],
    order: Callable[[list[str]], Sequence[str]],
) -> np.ndarray:
    """Divides radiographs into training, validation and test, class by class, each group on one side.

    Of the g groups of a class, the first round(share * g) train, the next validate, the rest test; halves round to the
    even number. A group's class is that of most of its radiographs, the lower one if there is a tie.

    Args:
        records: n radiographs.
        groups: The group of each, such as its patient.
        shares: Of training and validation.
        order: Puts the groups of a class, sorted by name, into the order in which they are dealt out; called for each
            class in turn.

    Returns:
        int64 (n,): `TRAIN`, `VALIDATION` or `TEST`.
    """
    members = _members(groups)
    parts = np.empty(len(records), dtype=np.int64)
    for _, found in sorted(_by_class(records, members).items()):
        ends = np.cumsum([round(share * len(found)) for share in shares])
        for place, group in enumerate(order(sorted(found))):
            parts[members[group]] = int(np.searchsorted(ends, place, side="right"))
    return parts


def by_patient(records: Sequence[Radiograph], shares: tuple[float, float], seed: int) -> np.ndarray:
    """Divides by patient, in an order by a hash of the names; a radiograph without patient is one of its own."""
    return divide(records, [record.group or record.name for record in records], shares, _hashed(seed))


def by_image(records: Sequence[Radiograph], shares: tuple[float, float], seed: int) -> np.ndarray:
    """Divides image by image: radiographs of one patient fall on both sides, and the test set is known in part."""
    return divide(records, [record.name for record in records], shares, _hashed(seed))


DIVISIONS: dict[str, Division] = {"patients": by_patient, "images": by_image}
"""How a set is divided, by name; a system may have ways of its own."""


def patient_folds(records: Sequence[Radiograph], folds: int, seed: int) -> np.ndarray:
    """Deals patients into folds in which every finding is about equally frequent.

    Iterative stratification (Sechidis et al., ECML PKDD 2011, Algorithm 1), with patients for examples: the finding
    with the fewest undealt patients comes first; each of them, those with most images of it first, goes to the fold
    that lacks most images of this finding, and of such folds to the one that lacks most images in all. "Nothing" counts
    as a finding. What is still open is decided by a hash of names, so that the order of the records has no say.

    Args:
        records: n radiographs. One without a group is a patient of its own.
        folds: How many, at least 2.
        seed: Of the hash.

    Returns:
        int64 (n,), the fold of each, 0 to ``folds`` - 1. A finding of fewer patients than folds is not in all of them.

    Raises:
        UsageError: Fewer than 2 folds.
        DataError: There are fewer patients than folds.
    """
    if folds < 2:
        raise UsageError(f"folds = {folds}: expected at least 2, so that something is left to train on.")
    members = _members([record.group or record.name for record in records])
    if len(members) < folds:
        raise DataError(f"{len(members)} patients do not fill {folds} folds: ask for fewer folds or add patients.")
    order = sorted(members, key=lambda group: stable_seed("folds", seed, group))
    shown = _shown(records)
    counts = np.array([shown[members[group]].sum(axis=0) for group in order])  # (patients, findings + 1) images
    images = np.array([len(members[group]) for group in order])
    lacking = np.tile(counts.sum(axis=0) / folds, (folds, 1))
    room = np.full(folds, len(records) / folds)
    chosen = np.full(len(order), -1)
    while (undealt := chosen < 0).any():
        patients = (counts[undealt] > 0).sum(axis=0)
        finding = min(np.flatnonzero(patients), key=lambda column: (patients[column], column))
        those = np.flatnonzero(undealt & (counts[:, finding] > 0))
        for patient in those[np.argsort(-counts[those, finding], kind="stable")]:
            fold = max(range(folds), key=lambda fold: (lacking[fold, finding], room[fold], -fold))
            chosen[patient] = fold
            lacking[fold] -= counts[patient]
            room[fold] -= images[patient]
    parts = np.empty(len(records), dtype=np.int64)
    for group, fold in zip(order, chosen, strict=True):
        parts[members[group]] = fold
    return parts


def joined_by_copies(records: Sequence[Radiograph], identical: Sequence[Sequence[Radiograph]]) -> list[Radiograph]:
    """Makes one patient of those who share a file, byte for byte, whatever their names say.

    Args:
        records: The radiographs.
        identical: Groups of them whose files are the same, from `dataset.byte_identical`.

    Returns:
        The radiographs in their order; joined patients bear the first of their names.
    """
    first: dict[str, str] = {}

    def root(group: str) -> str:
        while first.get(group, group) != group:
            group = first[group]
        return group

    for copies in identical:
        names = sorted({root(record.group or record.name) for record in copies})
        first |= dict.fromkeys(names, names[0])
    joined = [root(record.group or record.name) for record in records]
    return [
        record if record.group == group or (not record.group and record.name == group)
        else dataclasses.replace(record, group=group)
        for record, group in zip(records, joined, strict=True)
    ]  # fmt: skip


def _hashed(seed: int) -> Callable[[list[str]], Sequence[str]]:
    return lambda groups: sorted(groups, key=lambda group: stable_seed("division", seed, group))


def _members(groups: Sequence[str]) -> dict[str, list[int]]:
    """Group to the positions of its radiographs."""
    members: dict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        members[group].append(place)
    return members


def _by_class(records: Sequence[Radiograph], members: Mapping[str, list[int]]) -> dict[int, list[str]]:
    """Class to the groups most of whose radiographs have it."""
    by_class: dict[int, list[str]] = defaultdict(list)
    for group, places in members.items():
        counts = Counter(_stratum(records[place]) for place in places)
        by_class[min(counts, key=lambda label: (-counts[label], label))].append(group)
    return by_class


def _stratum(record: Radiograph) -> int:
    """The class by which a radiograph is split: with several labels, whether any finding is there."""
    return record.target if isinstance(record.target, int) else int(any(record.target))


def _shown(records: Sequence[Radiograph]) -> np.ndarray:
    """Which findings each of n radiographs shows, and last, whether none: int64 (n, findings + 1) of 0 and 1."""
    targets = [record.target if isinstance(record.target, tuple) else (record.target,) for record in records]
    several = any(isinstance(record.target, tuple) for record in records)
    shown = np.zeros((len(records), 1 + max(len(t) if several else t[0] + 1 for t in targets)), dtype=np.int64)
    for row, target in zip(shown, targets, strict=True):
        row[np.flatnonzero(target) if several else list(target)] = 1
    shown[:, -1] = ~shown.any(axis=1)
    return shown
