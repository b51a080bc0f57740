"""The paper's own division into training, validation and test, with its own idea of who is a patient."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from tbkd_utils.data.records import Radiograph
from tbkd_utils.data.split import divide

_PERSON = re.compile(r"PERSON\d+")
_STUDY = re.compile(r"[A-Z]+-\d{4}-\d{4}")


def source_patient(stem: str) -> str:
    """Returns the patient that the source reads from a file's name (`data_processing.py`).

    `IM-0491-0001-0002` keeps the image's number and `BACTERIA-1083680-0012` its own, so that images of one patient
    count as several patients.

    Args:
        stem: The file's name without its ending.
    """
    name = stem.upper()
    found = _PERSON.match(name) or _STUDY.match(name)
    if found:
        return found[0]
    return "-".join(name.split("-")[:3]) if "-" in name else name


def as_the_source(records: Sequence[Radiograph], shares: tuple[float, float], seed: int) -> np.ndarray:
    """Divides as the source does: its patients, in alphabetical order, shuffled class by class by one generator.

    Args:
        records: n radiographs.
        shares: Of training and validation; the source's are 0.7 and 0.15.
        seed: The source's is 42.

    Returns:
        int64 (n,), see `data.split`.
    """
    generator = np.random.RandomState(seed)  # the source's: its shuffles are the same under every version of numpy

    def shuffled(patients: list[str]) -> list[str]:
        generator.shuffle(patients)
        return patients

    return divide(records, [source_patient(PurePosixPath(record.name).stem) for record in records], shares, shuffled)
