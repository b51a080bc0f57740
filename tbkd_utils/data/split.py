"""Splits of a dataset in which every patient is on one side."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from tbkd_utils.data.records import Radiograph
from tbkd_utils.data.seeding import stable_seed
from tbkd_utils.errors import DataError


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
    members: dict[str, list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        members[record.group or record.name].append(place)
    by_class: dict[int, list[str]] = defaultdict(list)
    for group, places in members.items():
        counts = Counter(_stratum(records[place]) for place in places)
        by_class[min(counts, key=lambda label: (-counts[label], label))].append(group)
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


def _stratum(record: Radiograph) -> int:
    """The class by which a radiograph is split: with several labels, whether any finding is there."""
    return record.target if isinstance(record.target, int) else int(any(record.target))
