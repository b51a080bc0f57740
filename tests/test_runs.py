"""Files appear whole or not at all, and a run folder is believed only when every byte is as it was finished."""

import errno
import json
import multiprocessing
import os
import stat
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tbkd_utils import runs
from tbkd_utils.errors import RunError, TbkdError
from tbkd_utils.runs import (
    DONE,
    Run,
    digest,
    explained,
    file_sha256,
    read_tensors,
    write_atomic,
    write_bytes,
    write_csv,
    write_json,
    write_tensors,
    write_text,
)

SETTINGS = {"seed": 42, "alpha": 0.75, "splits": ["train"], "nested": {"a": 1}}


def names(folder):
    """Every name in a folder, hidden ones too, but not the locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# ----------------------------------------------------------------------------------------------------------- digest

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=8), plain, max_size=6), st.randoms())
def test_digest_does_not_depend_on_the_order(settings, random):
    keys = list(settings)
    random.shuffle(keys)
    assert digest({key: settings[key] for key in keys}) == digest(settings)
    assert digest({"outer": {key: settings[key] for key in keys}}) == digest({"outer": settings})


def test_digest_is_stable():
    """Pinned: another value would orphan every finished run."""
    assert digest({}) == "50690c8335f8"
    assert digest(SETTINGS) == "a0049c2578d6"


def test_digest_tells_settings_apart():
    variants = [{}, {"a": 1}, {"a": 2}, {"a": "1"}, {"a": True}, {"a": None}, {"b": 1}, {"a": [1]}, {"a": {"b": 1}},
                {"a": 1, "b": 1}, {"a": 0.1}, {"a": 0.1 + 2**-56}]  # fmt: skip
    digests = {digest(variant) for variant in variants}
    assert len(digests) == len(variants)
    assert all(len(entry) == 12 and set(entry) <= set("0123456789abcdef") for entry in digests)


def test_digest_depends_on_the_format(monkeypatch):
    before = digest(SETTINGS)
    monkeypatch.setattr(runs, "FORMAT", runs.FORMAT + 1)
    assert digest(SETTINGS) != before


def test_file_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-4
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# ------------------------------------------------------------------------------------------------------ atomic writing


def test_a_file_is_written_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    assert write_text(path, "grüß\n") == path
    assert path.read_bytes() == "grüß\n".encode()
    assert names(path.parent) == ["file.txt"]


def test_a_file_is_replaced_whole(tmp_path):
    path = write_bytes(tmp_path / "file", b"a long old content")
    with open(path, "rb") as reader:
        write_bytes(path, b"new")
        assert reader.read() == b"a long old content"  # who has it open keeps what was there
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def failing_writer(error):
    def write(stream):
        stream.write(b"half of the new con")
        raise error

    return write


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failing_writer_leaves_the_old_content_and_nothing_else(tmp_path, old, error):
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(type(error)) as caught:
        write_atomic(path, failing_writer(error))
    assert caught.value is error
    assert names(tmp_path) == ([] if old is None else ["file"])
    assert old is None or path.read_bytes() == old


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "not writable.*--out"),
        (errno.EPERM, "not writable.*--out"),
        (errno.EROFS, "read-only.*--out"),
        (errno.EIO, "Check the disk"),
    ],
)
def test_errors_of_the_disk_are_explained(tmp_path, monkeypatch, step, code, advice):
    def refuse(*args):
        raise OSError(code, os.strerror(code))

    path = write_bytes(tmp_path / "rows.csv", b"old")
    with monkeypatch.context() as patch:
        if step != "write":
            patch.setattr(os, step, refuse)
        with pytest.raises(RunError, match=advice) as caught:
            write_atomic(path, refuse if step == "write" else lambda stream: stream.write(b"new"))
    assert str(path) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["rows.csv"]


def test_a_device_without_space_is_explained():
    """A real one: every byte written to /dev/full is refused."""
    full = Path("/dev/full")
    with pytest.raises(RunError, match=r"/dev/full.*disk is full"), explained(full):
        full.write_bytes(b"x")


@pytest.mark.parametrize("depth", [1, 2])
def test_a_file_where_a_folder_is_needed_is_explained(tmp_path, depth):
    (tmp_path / "runs").write_text("a file")
    target = tmp_path.joinpath("runs", *"ab"[:depth])
    with pytest.raises(RunError, match="A file stands where a folder is needed"):
        write_text(target, "x")
    with pytest.raises(RunError, match="A file stands where a folder is needed"), Run.at(target, "k", {}).making():
        pytest.fail("the block must not run")
    assert (tmp_path / "runs").read_text() == "a file"


def test_a_file_in_place_of_the_run_folder_is_explained(tmp_path):
    run = Run.at(tmp_path, "teacher", SETTINGS)
    run.path.write_text("a file")
    assert not run.done
    with pytest.raises(RunError, match="A file stands where a folder is needed"), run.making():
        pytest.fail("the block must not run")


def test_a_full_disk_error_is_one_that_the_user_can_mend():
    assert issubclass(RunError, TbkdError)
    assert issubclass(RunError, RuntimeError)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_users_umask_decides_who_may_read(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_readers_never_see_a_part(tmp_path):
    contents = {letter * 200_000 for letter in "abc"}
    path = write_text(tmp_path / "file", "a" * 200_000)
    stop = threading.Event()
    seen = []

    def read():
        while not stop.is_set():
            seen.append(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(10):
        for content in contents:
            write_text(path, content)
    stop.set()
    reader.join()
    assert seen
    assert set(seen) <= contents


# ---------------------------------------------------------------------------------------------------------- formats


def test_json_does_not_depend_on_the_order(tmp_path):
    write_json(tmp_path / "a", {"b": 1, "a": [1.5, None, "ü"]})
    write_json(tmp_path / "b", {"a": [1.5, None, "ü"], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text()) == {"b": 1, "a": [1.5, None, "ü"]}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_csv_keeps_every_digit(tmp_path_factory, values):
    path = write_csv(tmp_path_factory.getbasetemp() / "rows.csv", pd.DataFrame({"value": values}))
    lines = path.read_text().splitlines()
    assert lines[0] == "value"
    assert [float(line) for line in lines[1:]] == values


def test_csv_keeps_text_and_gaps(tmp_path):
    table = pd.DataFrame({"name": ['a,"b"', "ü\n"], "score": [0.1 + 0.2, np.nan]})
    assert pd.read_csv(write_csv(tmp_path / "rows.csv", table)).equals(table)


def test_tensors_there_and_back(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "transposed": base.t(),
        "part": base[:, 1:3],
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.empty(0, 4),
        "half": base.to(torch.bfloat16),
        "grad": base.clone().requires_grad_(),
        "channels_last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    found = read_tensors(write_tensors(tmp_path / "t.safetensors", tensors))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor.detach())
        assert not found[name].requires_grad


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    tensors = {f"layer.{i}": torch.full((i + 1,), float(i)) for i in range(20)}
    first = write_tensors(tmp_path / "a", tensors).read_bytes()
    assert write_tensors(tmp_path / "b", dict(reversed(tensors.items()))).read_bytes() == first


@pytest.mark.parametrize("damage", ["absent", "folder", "empty", "truncated", "header", "pickle"])
def test_damaged_tensors_are_explained(tmp_path, damage):
    path = write_tensors(tmp_path / "t.safetensors", {"a": torch.zeros(100)})
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "pickle":
        torch.save({"a": torch.zeros(3)}, path)
    elif damage != "absent":
        path.write_bytes({"empty": b"", "truncated": content[:-1], "header": b"\xff" * 8 + content[8:]}[damage])
    with pytest.raises(RunError, match=r"t\.safetensors: cannot be read as safetensors.*run again"):
        read_tensors(path)


# ------------------------------------------------------------------------------------------------- what is believed


def finished(root, settings=SETTINGS):
    """A complete run folder with two files, one of them in a subfolder."""
    run = Run.at(root, "teacher", settings)
    with run.making() as needed:
        assert needed
        write_text(run.file("rows.csv"), "name,probability\na,0.5\n")
        write_bytes(run.file("sub/best.bin"), bytes(range(256)))
    return run


def test_a_folder_is_named_by_kind_and_settings(tmp_path):
    run = Run.at(tmp_path, "teacher", SETTINGS)
    assert run.path == tmp_path / f"teacher-{digest(SETTINGS | {'kind': 'teacher'})}"
    assert run.settings == SETTINGS | {"kind": "teacher"}
    assert not tmp_path.joinpath(run.path).exists()
    assert Run.at(tmp_path, "teacher", dict(reversed(SETTINGS.items()))).path == run.path
    others = [Run.at(tmp_path, "student", SETTINGS), Run.at(tmp_path, "teacher", SETTINGS | {"seed": 1})]
    assert len({run.path, *(other.path for other in others)}) == 3


def test_a_finished_folder_is_done_and_is_not_made_again(tmp_path):
    run = finished(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert run.done
    assert Run.at(tmp_path, "teacher", SETTINGS).done
    with run.making() as needed:
        assert not needed
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_the_marker_names_every_file_with_its_checksum(tmp_path):
    run = finished(tmp_path)
    marker = json.loads(run.file(DONE).read_text())
    assert marker["settings"] == run.settings
    assert marker["files"] == {
        name: file_sha256(run.file(name)) for name in ("rows.csv", "settings.json", "sub/best.bin")
    }
    assert json.loads(run.file("settings.json").read_text()) == run.settings


def test_settings_with_tuples_are_done_too(tmp_path):
    """JSON has no tuples: the marker gives lists back."""
    run = finished(tmp_path, {"splits": ("train", "extra"), "counts": {"a": (1, 2)}})
    assert run.done
    assert Run.at(tmp_path, "teacher", {"splits": ["train", "extra"], "counts": {"a": [1, 2]}}).done


def edit(path, change):
    path.write_bytes(change(path.read_bytes()))


DAMAGE = {
    "no marker": lambda run: run.file(DONE).unlink(),
    "empty marker": lambda run: edit(run.file(DONE), lambda old: b""),
    "truncated marker": lambda run: edit(run.file(DONE), lambda old: old[:-10]),
    "marker is no text": lambda run: edit(run.file(DONE), lambda old: b"\xff\xfe" + old),
    "marker is a list": lambda run: edit(run.file(DONE), lambda old: b"[]"),
    "marker is null": lambda run: edit(run.file(DONE), lambda old: b"null"),
    "marker without files": lambda run: write_json(run.file(DONE), {"settings": run.settings}),
    "marker with a list of files": lambda run: write_json(
        run.file(DONE), {"settings": run.settings, "files": ["rows.csv"]}
    ),
    "marker of other settings": lambda run: write_json(
        run.file(DONE), json.loads(run.file(DONE).read_text()) | {"settings": run.settings | {"seed": 43}}
    ),
    "a bit flipped": lambda run: edit(run.file("sub/best.bin"), lambda old: old[:7] + bytes([old[7] ^ 1]) + old[8:]),
    "a file truncated": lambda run: edit(run.file("rows.csv"), lambda old: old[:-1]),
    "a file emptied": lambda run: edit(run.file("rows.csv"), lambda old: b""),
    "a file longer": lambda run: edit(run.file("rows.csv"), lambda old: old + b"b,0.5\n"),
    "a file removed": lambda run: run.file("rows.csv").unlink(),
    "the settings removed": lambda run: run.file("settings.json").unlink(),
    "a folder in place of a file": lambda run: (run.file("rows.csv").unlink(), run.file("rows.csv").mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_not_believed_and_is_made_again(tmp_path, damage):
    run = finished(tmp_path)
    DAMAGE[damage](run)
    assert not run.done
    if damage == "a folder in place of a file":
        run.file("rows.csv").rmdir()
    with run.making() as needed:
        assert needed
        assert not run.file(DONE).exists()  # killed now, it would not be believed either
        assert json.loads(run.file("settings.json").read_text()) == run.settings
        write_text(run.file("rows.csv"), "name,probability\na,0.5\n")
        write_bytes(run.file("sub/best.bin"), bytes(range(256)))
    assert run.done


def test_a_folder_of_other_settings_is_not_believed(tmp_path):
    """A copied or renamed folder, or two settings with one digest."""
    run = finished(tmp_path)
    other = Run.at(tmp_path, "teacher", SETTINGS | {"seed": 43})
    run.path.rename(other.path)
    assert not other.done
    with other.making() as needed:
        assert needed
    assert other.done
    assert not run.done


def test_nothing_is_done_at_first(tmp_path):
    run = Run.at(tmp_path / "absent", "teacher", SETTINGS)
    assert not run.done
    assert not run.path.parent.exists()
    with run.making() as needed:
        assert needed
        assert run.path.is_dir()
        assert not run.done
    assert run.done


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_an_error_while_making_leaves_it_undone_and_unlocked(tmp_path, error):
    run = Run.at(tmp_path, "teacher", SETTINGS)

    def make():
        with run.making():
            write_text(run.file("rows.csv"), "half")
            raise error

    with pytest.raises(type(error)) as caught:
        make()
    assert caught.value is error
    assert not run.done
    with run.making() as needed:  # would wait for ever if the lock were still held
        assert needed
        assert run.file("rows.csv").read_text() == "half"  # what is half done can be resumed
    assert run.done


def test_a_full_disk_at_the_end_leaves_it_undone(tmp_path, monkeypatch):
    run = Run.at(tmp_path, "teacher", SETTINGS)

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    def make():
        with run.making():
            write_text(run.file("rows.csv"), "whole")
            monkeypatch.setattr(os, "fsync", refuse)

    with pytest.raises(RunError, match="disk is full"):
        make()
    assert not run.done
    assert names(run.path) == ["rows.csv", "settings.json"]


def test_leftovers_of_a_killed_writer_are_swept_and_never_counted(tmp_path):
    run = Run.at(tmp_path, "teacher", SETTINGS)
    run.path.mkdir()
    (run.path / ".best.safetensors.0123456789abcdef").write_bytes(b"half")
    (run.path / ".drawing-abc").mkdir()
    (run.path / ".drawing-abc" / "image.png").write_bytes(b"half")
    with run.making():
        assert names(run.path) == ["settings.json"]
        (run.path / ".checkpoints").mkdir()
        (run.path / ".checkpoints" / "open.ipynb").write_bytes(b"an editor's own")
    (run.path / ".checkpoints" / "open.ipynb").write_bytes(b"changed")
    assert run.done


# ------------------------------------------------------------------------------------------------------- two processes


def meet_at(barrier):
    race.start = barrier


def race(root, log):
    """Makes the folder if need be, slowly; returns whether it was needed and what it holds afterwards."""
    race.start.wait(60)
    run = Run.at(root, "teacher", SETTINGS)
    with run.making() as needed:
        if needed:
            with open(log, "a") as stream:
                stream.write(f"{os.getpid()}\n")
            time.sleep(0.5)
            write_text(run.file("rows.csv"), "made once")
    return os.getpid(), needed, run.file("rows.csv").read_text()


def die_while_making(root):
    run = Run.at(root, "student", SETTINGS)
    with run.making():
        write_text(run.file("rows.csv"), "half")
        os._exit(9)  # as after kill -9: no clean-up runs


@pytest.mark.slow
def test_two_processes_make_a_folder_once_and_a_killed_one_does_not_block(tmp_path):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, initializer=meet_at, initargs=(context.Barrier(2),)) as pool:
        log = tmp_path / "log"
        found = [job.result() for job in [pool.submit(race, tmp_path, log) for _ in range(2)]]
        assert len({pid for pid, _, _ in found}) == 2
        assert sorted(needed for _, needed, _ in found) == [False, True]
        assert [content for _, _, content in found] == ["made once", "made once"]
        assert len(log.read_text().splitlines()) == 1
        with pytest.raises(RuntimeError):  # the pool's word for a worker that was killed
            pool.submit(die_while_making, tmp_path).result()
    run = Run.at(tmp_path, "student", SETTINGS)
    assert run.file("rows.csv").read_text() == "half"
    assert not run.done
    with run.making() as needed:
        assert needed
        write_text(run.file("rows.csv"), "whole")
    assert run.done


def test_threads_make_a_folder_once(tmp_path):
    meet_at(threading.Barrier(3))
    found = []
    threads = [threading.Thread(target=lambda: found.append(race(tmp_path, tmp_path / "log"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(needed for _, needed, _ in found) == [False, False, True]
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_explained_leaves_other_errors_alone():
    with pytest.raises(ZeroDivisionError), explained("x"):
        _ = 1 / 0
    with pytest.raises(RunError, match=r"x: .*\(without a number\)"), explained("x"):
        raise OSError("without a number")
