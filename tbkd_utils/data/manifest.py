"""Digests of files that were read before, so that nothing reads every byte twice."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

from tbkd_utils.errors import DataError
from tbkd_utils.runs import file_sha256, write_text

SAVE_AFTER = 30.0
"""Seconds of reading after which the manifest is saved, so that an interrupted first look is not lost."""


class Manifest:
    """File -> (size, modification time, SHA-256), kept as one JSON file.

    A file of the size and time that were noted is not read again. `changed` reads it all the same: a file can change
    under the same size and time.

    Args:
        path: The JSON file; None keeps nothing on disk.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._known: dict[str, list] = _load(path)
        self._unsaved = 0
        self._saved_at = time.monotonic()

    @classmethod
    def beside(cls, out: Path) -> "Manifest":
        """Returns the manifest of an output folder, `runs/manifest.json` in it."""
        return cls(out / "runs" / "manifest.json")

    def digest(self, file: Path) -> str:
        """Returns the SHA-256 of a file in hexadecimal, read only if its size or time is not the noted one.

        Raises:
            DataError: If the file cannot be read.
        """
        key = str(file)
        try:
            stat = file.stat()
            known = self._known.get(key)
            if known is not None and known[0] == stat.st_size and known[1] == stat.st_mtime_ns:
                return known[2]
            found = file_sha256(file)
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}). Restore it.") from error
        self._known[key] = [stat.st_size, stat.st_mtime_ns, found]
        self._unsaved += 1
        if time.monotonic() - self._saved_at > SAVE_AFTER:
            self.save()
        return found

    def changed(self, files: Iterable[Path]) -> list[Path]:
        """Reads every file and returns those whose bytes changed under the size and time that were noted.

        Raises:
            DataError: If a file cannot be read.
        """
        suspects = []
        for file in files:
            known = self._known.pop(str(file), None)
            found = self.digest(file)
            if known is not None and known[:2] == self._known[str(file)][:2] and known[2] != found:
                suspects.append(file)
        return suspects

    def save(self) -> None:
        """Writes what is new; another process may do the same: each adds what it read.

        Raises:
            RunError: If the disk takes no more.
        """
        if self.path is not None and self._unsaved:
            self._known = _load(self.path) | self._known
            write_text(self.path, json.dumps({"files": self._known}, separators=(",", ":")))
        self._unsaved, self._saved_at = 0, time.monotonic()


def _load(path: Path | None) -> dict[str, list]:
    """The noted files; a manifest that cannot be read costs time, not correctness."""
    try:
        files = json.loads(path.read_text())["files"] if path is not None else {}
        sound = isinstance(files, dict) and all(
            isinstance(entry, list) and [type(part) for part in entry] == [int, int, str] for entry in files.values()
        )
        return files if sound else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
