"""Digests of files: read once, noticed when they change, and never a wrong one that is believed."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tbkd_utils.data import manifest as module
from tbkd_utils.data.dataset import byte_identical, fingerprint
from tbkd_utils.data.manifest import Manifest
from tbkd_utils.data.records import Radiograph
from tbkd_utils.errors import DataError


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = []
    for number in range(5):
        made.append(tmp_path / f"{number}.png")
        made[-1].write_bytes(f"content {number % 4}".encode())
    return made


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read for their digest."""
    seen: list[Path] = []
    real = module.file_sha256

    def noting(file: Path) -> str:
        seen.append(file)
        return real(file)

    monkeypatch.setattr(module, "file_sha256", noting)
    return seen


def test_a_digest_is_that_of_the_bytes_and_read_once(files: list[Path], reads: list[Path], tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "runs" / "manifest.json")
    for _ in range(3):
        for file in files:
            assert manifest.digest(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert reads == files
    manifest.save()
    again = Manifest(tmp_path / "runs" / "manifest.json")
    assert [again.digest(file) for file in files] == [manifest.digest(file) for file in files]
    assert reads == files


def test_a_changed_file_is_read_again(files: list[Path], reads: list[Path]) -> None:
    manifest = Manifest()
    before = manifest.digest(files[0])
    files[0].write_bytes(b"something longer than before")
    assert manifest.digest(files[0]) != before
    os.utime(files[0], ns=(1, 1))
    manifest.digest(files[0])
    assert len(reads) == 3


def test_a_change_under_the_same_size_and_time_is_found_when_asked(files: list[Path], tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "manifest.json")
    for file in files:
        manifest.digest(file)
    stat = files[2].stat()
    files[2].write_bytes(b"CONTENT 2")
    os.utime(files[2], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    files[3].write_bytes(b"changed openly, which is no secret")
    assert manifest.digest(files[2]) != hashlib.sha256(b"CONTENT 2").hexdigest()  # believed, until somebody looks
    assert manifest.changed(files) == [files[2]]
    assert manifest.digest(files[2]) == hashlib.sha256(b"CONTENT 2").hexdigest()


@pytest.mark.parametrize(
    "content",
    ["", "[1, 2", "[]", "null", '{"files": 3}', '{"files": {"a": [1, 2]}}', '{"files": {"a": ["1", 2, "x"]}}'],
)
def test_a_damaged_manifest_costs_time_and_nothing_else(files: list[Path], tmp_path: Path, content: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(content)
    manifest = Manifest(path)
    assert manifest.digest(files[0]) == hashlib.sha256(files[0].read_bytes()).hexdigest()
    manifest.save()
    assert list(json.loads(path.read_text())["files"]) == [str(files[0])]


def test_two_that_read_at_once_keep_what_both_read(files: list[Path], reads: list[Path], tmp_path: Path) -> None:
    first, second = (Manifest(tmp_path / "manifest.json") for _ in range(2))
    first.digest(files[0])
    second.digest(files[1])
    first.save()
    second.save()
    third = Manifest(tmp_path / "manifest.json")
    third.digest(files[0])
    third.digest(files[1])
    assert len(reads) == 2


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: cannot be read"):
        Manifest().digest(tmp_path / "gone.png")


def test_fingerprint_and_copies_share_what_was_read(files: list[Path], reads: list[Path]) -> None:
    records = [Radiograph(file, 0, np.zeros((0, 4)), "made") for file in files]
    manifest = Manifest()
    (group,) = byte_identical(records, manifest)
    assert [record.path for record in group] == [files[0], files[4]]
    first = fingerprint(records, manifest)
    assert len(reads) == len(files)
    assert fingerprint(records) == first
    assert fingerprint(records[:4], manifest) != first


def test_a_set_of_112_000_files_opens_from_what_was_noted(tmp_path: Path, reads: list[Path]) -> None:
    """The size of NIH ChestX-ray14, as notes on one file under many names; `benchmarks/` times it on real files."""
    noted = {f"/data/{number:08d}.png": [1000 + number, 10**18 + number, "ab" * 32] for number in range(112_000)}
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"files": noted}))
    manifest = Manifest(path)
    assert len(manifest._known) == 112_000
    assert reads == []
