"""What a reader of one layout on disk is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tbkd_utils.data.records import OnError, Radiograph


class Reader(Protocol):
    """One layout of a dataset on disk.

    Attributes:
        name: Of the layout, and of the folder that usually holds it.
        needs: Files and folders (with a slash at the end) by which the layout is recognized.
        kinds: What `Radiograph.kind` may be, in the order of reports.
        categories: Category of a box to its name; empty if boxes have none.
        root: The folder where the layout was found.
    """

    name: str
    needs: tuple[str, ...]
    kinds: tuple[str, ...]
    categories: Mapping[int, str]
    root: Path

    def __init__(self, root: Path) -> None:
        """Takes the folder that holds what the layout needs."""
        ...

    def splits(self) -> tuple[str, ...]:
        """Returns the names of the splits that this copy has."""
        ...

    def listed_splits(self) -> tuple[str, ...]:
        """Returns those of `splits` that are lists of their own, and not others put together."""
        ...

    def records(self, split: str, on_error: OnError) -> list[Radiograph]:
        """Returns the radiographs of a split, whether their files are present or not.

        Args:
            split: One of `splits`.
            on_error: Called with each bad entry; if it returns, that entry is left out.

        Raises:
            DataError: A file of the dataset cannot be read as a whole.
        """
        ...


def missing_parts(reader: type[Reader], root: Path) -> list[str]:
    """Returns which of the parts that a layout needs a folder lacks; empty if the layout is recognized."""
    return [
        part for part in reader.needs if not ((root / part).is_dir() if part.endswith("/") else (root / part).is_file())
    ]
