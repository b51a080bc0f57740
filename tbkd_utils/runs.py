"""Run folders: named by what made them, written atomically, believed only when complete.

`runs/<recipe>/<kind>-<digest>/` holds one artifact: the digest is over the settings that matter for it. Files are
written beside their place and renamed; a `done` marker with every file's checksum comes last. A folder without a valid
marker is resumed or redone, never believed.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import filelock
import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch

from tbkd_utils.errors import RunError

FORMAT = 2  # raise it when the content of run folders changes its meaning: old ones are then made anew
DONE = "done.json"
HISTORY = "history.csv"  # of a training: a row per epoch
ENVIRONMENT = "environment.json"  # of a training: versions, threads and time
PROGRESS = ".progress.json"  # of a training that goes on; dotted: not part of the result


def digest(settings: Mapping[str, Any]) -> str:
    """Returns 12 hexadecimal digits that name these settings; the order of the keys does not matter."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(f"{FORMAT}:{text}".encode()).hexdigest()[:12]


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class RunWarning(UserWarning):
    """A run folder that was complete once and cannot be believed any more; it is made again."""


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an operating system error about `path` into a `RunError` that says what to do."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "The disk is full: free some space and run again; what is finished is kept.",
            errno.EFBIG: "The file is larger than allowed here (ulimit -f): raise the limit and run again.",
            errno.EDQUOT: "Your disk quota is used up: free some space and run again; what is finished is kept.",
            errno.EACCES: "The folder is not writable: choose another one with --out.",
            errno.EPERM: "The folder is not writable: choose another one with --out.",
            errno.EROFS: "The disk is read-only: choose another folder with --out.",
            errno.ENOTDIR: "A file stands where a folder is needed: choose another folder with --out.",
            errno.EEXIST: "A file stands where a folder is needed: choose another folder with --out.",
        }.get(error.errno or 0, "Check the disk and run again; what is finished is kept.")
        raise RunError(f"{path}: cannot be written or read ({error.strerror or error}). {advice}") from error


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> Path:
    """Writes a file so that a reader sees the old content or the new one, never a part.

    Args:
        path: The file to write; its folder is made.
        write: Called with a binary stream, writes the content.

    Raises:
        RunError: If the disk is full, or the folder cannot be written.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with open(temporary, "xb") as stream:  # not mkstemp: the user's umask decides who may read the file
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes a file atomically."""
    return write_atomic(path, lambda stream: stream.write(content))


def write_text(path: Path, text: str) -> Path:
    """Writes a text file atomically, as UTF-8."""
    return write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> Path:
    """Writes a value as JSON, atomically."""
    return write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Returns the value in a JSON file; None if there is no such file or it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_csv(path: Path, table: pd.DataFrame) -> Path:
    """Writes a table as CSV, atomically; floats keep every digit."""
    return write_text(path, table.to_csv(index=False, lineterminator="\n"))


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Writes named tensors as safetensors, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_bytes(path, safetensors.torch.save(plain))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads named tensors.

    Raises:
        RunError: If the file is absent or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: cannot be read as safetensors ({error}). Delete its folder and run again.") from error


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        path: The folder, `<out>/runs/<recipe>/<kind>-<digest>`.
        settings: What made it, as plain JSON values.
    """

    path: Path
    settings: dict[str, Any]

    @classmethod
    def at(cls, root: Path, kind: str, settings: Mapping[str, Any]) -> "Run":
        """Returns the folder for an artifact; nothing is written yet."""
        plain = json.loads(json.dumps({**settings, "kind": kind}))  # as the marker gives them back: lists, no tuples
        return cls(root / f"{kind}-{digest(plain)}", plain)

    def file(self, name: str) -> Path:
        """Returns the path of one of its files."""
        return self.path / name

    @property
    def lock(self) -> Path:
        """The file that is locked while the folder is made."""
        return self.path.with_name(f".{self.path.name}.lock")

    @property
    def done(self) -> bool:
        """Whether the folder is complete: the marker is there and every file has the recorded checksum."""
        return self.problem is None

    @property
    def problem(self) -> str | None:
        """Says why the folder is not complete; None if it is."""
        try:
            marker = json.loads(self.file(DONE).read_text())
            if marker["settings"] != self.settings:
                return f"{DONE} is of other settings"
            for name, sha in marker["files"].items():
                if not self.file(name).is_file():
                    return f"{name} is missing"
                if file_sha256(self.file(name)) != sha:
                    return f"{name} is not the file that was written"
        except FileNotFoundError:
            return "it is not finished"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{DONE} cannot be read ({type(error).__name__})"
        return None

    def finish(self) -> None:
        """Marks the folder as complete, with the checksum of every file in it; hidden files do not count."""
        with explained(self.path):
            names = sorted(
                str(entry.relative_to(self.path))
                for entry in self.path.rglob("*")
                if entry.is_file() and not _hidden(entry.relative_to(self.path)) and entry != self.file(DONE)
            )
            files = {name: file_sha256(self.file(name)) for name in names}
        write_json(self.file(DONE), {"settings": self.settings, "files": files})

    @contextlib.contextmanager
    def making(self, redo: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Holds the folder while its content is made; yields whether there is anything to make.

        Two processes may ask for the same folder: the second waits and then finds it done. A folder whose marker does
        not hold (a file changed, lost, or cut short) is said by a `RunWarning` and made again.

        Args:
            redo: Called when the folder is complete; whether to make it again all the same.

            with run.making() as needed:
                if needed:
                    ...  # write the files; the marker is written when the block ends without an error
        """
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.lock)
            lock.acquire()
        try:
            problem = self.problem
            needed = problem is not None or redo()
            if problem and self.file(DONE).exists():
                warnings.warn(f"{self.path}: {problem}, so it is made again.", RunWarning, stacklevel=3)
            if needed:
                with explained(self.path):
                    self.path.mkdir(exist_ok=True)
                    self.file(DONE).unlink(missing_ok=True)  # a marker that does not hold is worse than none
                    for leftover in self.path.glob(".*"):  # of a process that was killed while it wrote
                        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
                write_json(self.file("settings.json"), self.settings)
            yield needed
            if needed:
                self.finish()
        finally:
            lock.release()


def _hidden(path: Path) -> bool:
    """Whether a name in a relative path begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


ARRAYS = "arrays.safetensors"
NUMBERS = "numbers.json"
ROWS = "rows.csv"
Result = TypeVar("Result")


def cached_result(run: Run, kind: type[Result], compute: Callable[[], Result]) -> Result:
    """Returns a result that is a dataclass of arrays, numbers and tuples of numbers.

    Args:
        run: The folder that it is kept in; its settings have to say all that the result depends on.
        kind: The dataclass.
        compute: Called if the folder does not hold it yet.

    Raises:
        RunError: If the folder cannot be written.
    """
    with run.making() as needed:
        if needed:
            found = compute()
            values = {field.name: getattr(found, field.name) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
            arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
            tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
            write_tensors(run.file(ARRAYS), tensors)
            write_json(run.file(NUMBERS), {name: value for name, value in values.items() if name not in arrays})
    stored: dict[str, Any] = {name: tensor.numpy() for name, tensor in read_tensors(run.file(ARRAYS)).items()}
    for name, value in json.loads(run.file(NUMBERS).read_text()).items():
        stored[name] = tuple(value) if isinstance(value, list) else value
    return kind(**stored)


def cached_rows(run: Run, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Returns a table that is kept as a CSV file.

    Args:
        run: As in `cached_result`.
        compute: As in `cached_result`.

    Raises:
        RunError: If the folder cannot be written.
    """
    with run.making() as needed:
        if needed:
            write_csv(run.file(ROWS), compute())
    return pd.read_csv(run.file(ROWS))
