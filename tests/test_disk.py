"""A run whose disk is full or read-only says so, and goes on when that is mended."""

import errno
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError

from agelib import files, loop, model, predict, runs, train


@pytest.fixture
def disk(tmp_path):
    """A folder with a small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "none", folder]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"only root may mount a file system: {error}")
    yield folder
    # lazily: the error of a test that fails may hold a file open
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def at_step(monkeypatch):
    """A function that has something done once, as a step begins; saved or not."""

    def at_step(step: int, do, saved: bool = True) -> None:
        if saved:
            monkeypatch.setattr(loop, "SECONDS_BETWEEN_SAVES", 0)
        update, done = loop.Loop.update, []

        def updating(self, *batch):
            if self.updates == step and not done:
                done.append(step)
                do()
            update(self, *batch)

        monkeypatch.setattr(loop.Loop, "update", updating)

    return at_step


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)


def leave(disk: Path, room: int) -> None:
    """Fills the disk but for some bytes."""
    (disk / "others").write_bytes(bytes(shutil.disk_usage(disk).free - room))


def sentence(run: Path, state: str) -> str:
    return (
        f"The disk of {re.escape(str(run))} is {state} and run again, .* goes on from"
    )


def assert_same(run: Path, other: Path) -> None:
    history, expected = (
        pd.read_csv(r / "history.csv").drop(columns="seconds") for r in (run, other)
    )
    pd.testing.assert_frame_equal(history, expected, check_exact=True)
    found, weights = (
        model.load(r / "model.safetensors")[0].state_dict() for r in (run, other)
    )
    assert all(torch.equal(found[key], weights[key]) for key in weights)
    files, others = ({file.name for file in r.iterdir()} for r in (run, other))
    assert files == others


@pytest.mark.parametrize(
    ("step", "saved", "room", "cause", "left"),
    [
        (0, True, 0, SafetensorError, []),
        # 3 steps an epoch. First the state is written, of 5 models' size: the weights,
        # the averaged and the best ones, and two moments of the optimizer
        (2, True, 0, SafetensorError, ["state-2"]),
        (2, True, 4.5, SafetensorError, ["state-2"]),
        (4, True, 3.5, SafetensorError, ["state-4"]),
        # then the model, if no earlier state made room for it
        (2, False, 5.5, SafetensorError, ["state-3"]),
    ],
)
def test_a_full_disk_ends_a_run_that_goes_on_when_there_is_room(
    tiny, tables, tmp_path, disk, at_step, step, saved, room, cause, left
):
    """As a step begins there is room for so many models; whatever fails to write."""
    train.fit(tiny, *tables, tmp_path / "run")
    size = (tmp_path / "run" / "model.safetensors").stat().st_size
    room = math.ceil(room * size / 4096) * 4096
    at_step(step, lambda: leave(disk, room), saved)
    run = disk / "run"
    with pytest.raises(OSError, match=sentence(run, "full: make room")) as raised:
        train.fit(tiny, *tables, run)
    assert type(raised.value.__cause__) is cause
    assert [state.name for state in run.glob("state-*")] == left
    # as long as it is full it says so
    with pytest.raises(OSError, match=sentence(run, "full: make room")):
        train.fit(tiny, *tables, run)
    remount(disk, "size=64m")
    train.fit(tiny, *tables, run)
    assert_same(run, tmp_path / "run")


def test_a_disk_too_full_for_a_table_ends_a_run_that_goes_on(
    tiny, tables, tmp_path, disk, at_step
):
    train.fit(replace(tiny, epochs=1), *tables, tmp_path / "first")
    large = [*(tmp_path / "first").glob("**/*.safetensors")]
    room = sum(math.ceil(file.stat().st_size / 4096) for file in large)
    # the state's other file takes a page, and the table of predictions, of 10 rows, one
    at_step(2, lambda: leave(disk, 4096 * (room + 1)), saved=False)
    run = disk / "run"
    with pytest.raises(OSError, match=sentence(run, "full: make room")) as raised:
        train.fit(tiny, *tables, run)
    assert type(raised.value.__cause__) is OSError
    names = {file.name for file in run.iterdir()}
    assert names == {"recipe.json", "state-3", "model.safetensors"}
    remount(disk, "size=64m")
    train.fit(tiny, *tables, run)
    train.fit(tiny, *tables, tmp_path / "run")
    assert_same(run, tmp_path / "run")


def test_a_run_does_not_begin_on_a_full_disk(tiny, tables, disk):
    leave(disk, 0)
    with pytest.raises(OSError, match=sentence(disk / "run", "full: make room")):
        train.fit(tiny, *tables, disk / "run")


def test_a_read_only_disk_ends_a_run_whose_model_is_still_of_use(
    tiny, tables, tmp_path, disk, at_step, monkeypatch
):
    train.fit(tiny, *tables, tmp_path / "run")
    # a file system that fails turns read-only; a remount waits until no file is open
    elsewhere = FileLock(tmp_path / "lock")
    monkeypatch.setattr(runs, "FileLock", lambda _: elsewhere)
    at_step(4, lambda: remount(disk, "ro"))
    run = disk / "run"
    refused = sentence(run, "read-only: make it writable")
    for fresh in (False, False, True):
        with pytest.raises(OSError, match=refused):
            train.fit(tiny, *tables, run, fresh)
    predicted = predict.predict(model.load(run / "model.safetensors"), tables[1])
    validation = pd.read_csv(run / "validation.csv")
    np.testing.assert_allclose(predicted["pred_age"], validation["pred_age"], atol=1e-3)
    remount(disk, "rw")
    train.fit(tiny, *tables, run)
    assert_same(run, tmp_path / "run")
    # nothing has to be written to say that there is nothing to do
    monkeypatch.undo()
    remount(disk, "ro")
    assert len(train.fit(tiny, *tables, run)) == 3


@pytest.mark.parametrize(
    ("systems", "number"), [(("linux", "win32"), 28), (("win32",), 112)]
)
def test_a_full_disk_is_known_by_each_systems_number(
    tmp_path, monkeypatch, systems, number
):
    """28 is C's ENOSPC, which torch tells everywhere; 112 is Windows' own."""
    error = SafetensorError(f"I/O error: no space (os error {number})")
    for told in ("linux", "win32"):
        monkeypatch.setattr(files.sys, "platform", told)
        kind, words = (OSError, "is full") if told in systems else (type(error), "I/O")
        with pytest.raises(kind, match=words), files.writing(tmp_path):
            raise error


def test_an_error_that_the_disk_is_not_to_blame_for_is_left_alone(tmp_path):
    for error in (RuntimeError("out of memory"), OSError(errno.EACCES, "not yours")):
        with pytest.raises(type(error)) as raised, files.writing(tmp_path):
            raise error
        assert raised.value is error
