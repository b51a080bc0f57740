"""The scored radiographs of both networks as a list to look through: sorted, and filtered by lesion and size."""

import numpy as np
import pandas as pd

from tbkd_utils.data.synthetic.dataset import read_synthetic_lesions
from tbkd_utils.errors import UsageError
from tbkd_utils.experiments.evaluation import Localization, paired_rows

ORDERS = {
    "student gains most first": ("gain", False),
    "student loses most first": ("gain", True),
    "student's worst first": ("score_student", True),
    "teacher's worst first": ("score_teacher", True),
    "name": ("name", True),
}
"""How a reader may sort: the column of `case_table`, and whether its smallest value comes first."""
ALL = "all"
SIZES = (ALL, "smallest third", "middle third", "largest third")
"""Thirds of the radiographs by the area of their largest lesion."""
_NAMES = {1: "active TB", 2: "latent TB", 3: "uncertain TB"}


def case_table(teacher: Localization, student: Localization) -> pd.DataFrame:
    """Returns one row per radiograph that both networks are scored on, in the test set's order.

    Returns:
        Columns name, score_teacher, score_student (Algorithm 2), matched_teacher, matched_student (one-to-one), gain
        (student's score minus teacher's), lesions (how many),
        kinds (tuple of what they are: TBX11K's category and, of drawings, what was drawn), area (the largest lesion, in
        square pixels of the crop), size (one of `SIZES`), teacher and student (positions among their radiographs).

    Raises:
        UsageError: If no radiograph is scored for both.
    """
    experiment, samples = teacher.experiment, teacher.samples
    pairs = paired_rows(teacher, student)
    drawn = read_synthetic_lesions(experiment.root) if experiment.synthetic else {}
    kinds = {
        record.name: tuple(dict.fromkeys([*(_NAMES[c] for c in record.categories), *drawn.get(record.name, ())]))
        for record in experiment.test_records
    }
    table = pairs[["name", "score_teacher", "score_student", "matched_teacher", "matched_student"]].copy()
    table["gain"] = table["score_student"] - table["score_teacher"]
    for role, found in (("teacher", teacher), ("student", student)):
        places = {name: place for place, name in enumerate(found.samples.names)}
        table[role] = [places[name] for name in table["name"]]
    boxes = [samples.boxes[place] for place in table["teacher"]]
    table["lesions"] = [len(one) for one in boxes]
    table["kinds"] = [kinds[name] for name in table["name"]]
    table["area"] = [float((one[:, 2:] - one[:, :2]).prod(axis=1).max()) for one in boxes]
    rank = table["area"].rank(method="first").to_numpy() - 1  # 0 to n - 1
    table["size"] = [SIZES[1 + int(place)] for place in np.minimum(3 * rank // len(table), 2)]
    return table


def kinds_of(table: pd.DataFrame) -> list[str]:
    """Returns `ALL` and every kind of lesion in a `case_table`, in alphabetical order."""
    return [ALL, *sorted({kind for kinds in table["kinds"] for kind in kinds})]


def chosen_cases(table: pd.DataFrame, order: str, kind: str = ALL, size: str = ALL) -> pd.DataFrame:
    """Sorts and filters a `case_table`; it may come out empty.

    Args:
        table: From `case_table`.
        order: A key of `ORDERS`.
        kind: Keep radiographs with a lesion of this kind.
        size: One of `SIZES`.

    Raises:
        UsageError: If there is no such order or size.
    """
    if order not in ORDERS or size not in SIZES:
        raise UsageError(
            f"Expected an order of {', '.join(ORDERS)} and a size of {', '.join(SIZES)}; got {order}, {size}."
        )
    kept = [
        (kind == ALL or kind in kinds) and size in (ALL, own)
        for kinds, own in zip(table["kinds"], table["size"], strict=True)
    ]
    column, ascending = ORDERS[order]
    return table[kept].sort_values(column, ascending=ascending, kind="stable")
