"""Ways to train on radiographs that may show several findings at once."""

import dataclasses
from collections.abc import Callable, Sequence

from tbkd_utils.data.records import Radiograph


def once_per_finding(records: Sequence[Radiograph]) -> list[Radiograph]:
    """Counts a radiograph once for each of its findings, as folders of findings do (Wang et al., 2024).

    A cross-entropy over the findings is then told that the others are absent, though another record of the same image
    says that one of them is there: this is noise in the labels, and it is the source's.

    Args:
        records: Radiographs whose target is a 0 or 1 for each finding, or the index of the one. Categories of boxes
            count the findings from 1.

    Returns:
        In their order, a record for each finding: its target is the index of the finding, its boxes are those of the
        finding (all, where the categories are unknown). A radiograph without any finding has no place among them and is
        left out; one whose target is an index stays as it is.
    """
    found: list[Radiograph] = []
    for record in records:
        if isinstance(record.target, int):
            found.append(record)
            continue
        for index in (index for index, there in enumerate(record.target) if there):
            kept = [place for place, category in enumerate(record.categories) if category == index + 1]
            boxes = record.boxes[kept] if record.categories else record.boxes
            categories = tuple(record.categories[place] for place in kept)
            found.append(dataclasses.replace(record, target=index, boxes=boxes, categories=categories))
    return found


def all_at_once(records: Sequence[Radiograph]) -> list[Radiograph]:
    """Counts each radiograph once, with a 0 or 1 for each finding; those without any finding stay.

    Args:
        records: Radiographs of such targets.

    Returns:
        The same.
    """
    return list(records)


LABELS: dict[str, Callable[[Sequence[Radiograph]], list[Radiograph]]] = {
    "single": once_per_finding,
    "multi": all_at_once,
}
"""What is trained on, by name: one finding a record for a softmax, or all of them for a sigmoid each."""
