"""A run that is killed and started again comes to the files of one never stopped."""

import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from agelib import loop, model, train

HERE = Path(__file__).parent


@pytest.fixture
def no_hang() -> Iterator[None]:
    """Raises where a test hangs."""

    def late(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(150)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def live(dataset, tiny, tmp_path, no_hang) -> Iterator[Callable]:
    """A function that trains in a new process and yields what `killed.py` prints."""
    errors = tmp_path / "errors.txt"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, HERE / "killed.py", dataset],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            # threads don't survive a fork
            env=os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"},
        ) as server,
    ):

        def live(run: str, batch_size: int, die: bool = False, folds: int = 1):
            line = tmp_path / run, batch_size, int(die), folds
            print(*line, file=server.stdin, flush=True)
            for line in server.stdout:
                word, told = line.strip().split(" ", 1)
                yield word, told
                if word == "ended":
                    assert told in ("0", "-9"), errors.read_text()[-3000:]
                    return

        yield live


def assert_same(run: Path, other: Path) -> None:
    """Bit for bit, but for the seconds that the training took; nothing left over."""
    files, others = (
        {str(f.relative_to(r)): f for f in r.rglob("*") if f.is_file()}
        for r in (run, other)
    )
    assert files.keys() == others.keys()
    # both tell the time
    differ = {"history.csv", "state.json"}
    for name in files:
        if files[name].suffix == ".safetensors":
            # whose metadata is in any order
            ours, theirs = load_file(files[name]), load_file(others[name])
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
        elif files[name].name not in differ:
            assert files[name].read_bytes() == others[name].read_bytes(), name
    for name in (name for name in files if files[name].name == "history.csv"):
        history, expected = (
            pd.read_csv(table[name]).drop(columns="seconds")
            for table in (others, files)
        )
        pd.testing.assert_frame_equal(history, expected, check_exact=True)


@pytest.mark.parametrize("folds", [1, 3])
def test_twenty_kills_at_random_moments_change_nothing(live, tmp_path, folds):
    life = live("whole", 15, folds=folds)
    told = [(time.perf_counter(), word) for word, _ in life]
    gap = np.median(np.diff([moment for moment, _ in told]))
    rng, reached = np.random.default_rng(0), []
    for steps, share in zip(rng.integers(0, 3, 20), rng.random(20), strict=True):
        life = live("killed", 15, folds=folds)
        _, pid = next(life)
        reached += [int(step) for _, step in itertools.islice(life, steps)]
        time.sleep(1.5 * gap * share)
        os.kill(int(pid), signal.SIGKILL)
        *_, end = life
        assert end == ("ended", "-9")
    # steps count anew in each fold
    if folds == 1:
        assert reached[-1] > 5
    else:
        assert (tmp_path / "killed" / "fold-1").is_dir()
    *_, end = live("killed", 15, folds=folds)
    assert end == ("ended", "0")
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_a_kill_at_any_change_of_a_file_changes_nothing(live, tmp_path):
    """Each life dies at another; one step an epoch, so that each comes to all."""
    *_, end = live("whole", 30)
    assert end == ("ended", "0")
    run, deaths = tmp_path / "killed", tmp_path / "killed.deaths"
    while True:
        *_, end = live("killed", 30, True)
        if end == ("ended", "0"):
            break
        # what is not called unfinished is whole, whenever
        if (run / "model.safetensors").exists():
            model.load(run / "model.safetensors")
    assert_same(tmp_path / "whole", run)
    died = deaths.read_text().splitlines()
    assert len(died) == len(set(died))
    assert set(died) >= {
        "start open recipe.json.unfinished/recipe.json",
        "step half model.safetensors.unfinished/model.safetensors",
        "step open history.csv.unfinished/history.csv",
        "step half state-N/state.safetensors",
        "step open state-N/state.json",
        # between the new state's name and the end of the earlier one
        "step os.rename state-N.unfinished/state-N",
        "step os.remove killed/state-N/state.safetensors",
        "step os.rmdir killed/state-N",
        # and while the next life clears up after that
        "start os.remove killed/state-N/state.safetensors",
        "start os.rmdir killed/state-N",
    }


def test_a_start_clears_up_what_a_kill_left(tiny, tables, tmp_path):
    """Also that of a kill in the last moment of a run, with nothing left to train."""
    run = tmp_path / "run"
    train.fit(tiny, *tables, run)
    files = {file.name for file in run.iterdir()}
    for left in ("state-8", "state-8.unfinished"):
        shutil.copytree(run / "state-9", run / left)
    train.fit(tiny, *tables, run)
    assert {file.name for file in run.iterdir()} == files


def test_a_killed_loader_worker_ends_the_run_which_then_goes_on(
    tiny, tables, tmp_path, monkeypatch, no_hang
):
    recipe = replace(tiny, epochs=1, batch_size=64)
    # fewer are loaded without workers
    training = pd.concat([tables[0]] * 34, ignore_index=True)
    whole = train.fit(recipe, training, tables[1], tmp_path / "whole")
    # a training that is over keeps no process
    assert multiprocessing.active_children() == []
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_SAVES", 0)
    update = loop.Loop.update

    def kill(self, *batch):
        if self.updates == 4:
            (worker,) = multiprocessing.active_children()
            worker.kill()
        update(self, *batch)

    run = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "update", kill)
        with pytest.raises(RuntimeError, match=r"DataLoader worker .*(killed|exited)"):
            train.fit(recipe, training, tables[1], run)
    assert [state.name for state in run.glob("state-*")] != []
    history = train.fit(recipe, training, tables[1], run)
    pd.testing.assert_frame_equal(
        history.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True
    )


FAILING = """
import os, sys
from pathlib import Path
from agelib import loop
from tests import one_of_several

update = loop.Loop.update
faces, run, failing = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def fail(self, *batch):
    process = self.accelerator.process_index
    (run / f"pid-{process}").write_text(str(os.getpid()))
    if self.updates == 4 and process == failing:
        raise RuntimeError(f"process {process} gives up")
    update(self, *batch)

loop.Loop.update = fail
one_of_several.main(faces, run, False)
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_one_of_two_processes_ends_both(dataset, tiny, tmp_path, failing):
    script, run = tmp_path / "failing.py", tmp_path / "run"
    script.write_text(FAILING)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ended = subprocess.run(
        [*launcher, "--nproc_per_node", "2", script, dataset, run, str(failing)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        timeout=120,
    )
    assert ended.returncode != 0
    assert f"RuntimeError: process {failing} gives up" in ended.stderr
    for process in (0, 1):
        with pytest.raises(ProcessLookupError):
            os.kill(int((run / f"pid-{process}").read_text()), 0)
