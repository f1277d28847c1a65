"""Training shared by two real processes, as GPUs and machines would share it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from agelib import data, metrics, model, outcome, predict, states, train

HERE = Path(__file__).parent


def launch(processes: int, *command: object) -> str:
    """What torch's launcher, which accelerate's uses, prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run"]
    launcher += ["--nproc_per_node", str(processes), "--master_port", str(port)]
    run = subprocess.run(
        [*launcher, *map(str, command)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def reports(run: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(run.glob("report-*.json"))]


def test_two_processes_learn_the_same_faces_in_the_same_steps_as_one(
    dataset, tiny, tmp_path
):
    """And, batch-norm statistics frozen, come to the same losses and weights."""
    script = HERE / "one_of_several.py"
    for processes in (1, 2):
        launch(processes, script, dataset, tmp_path / f"{processes}", "frozen")
    (alone,), (first, second) = reports(tmp_path / "1"), reports(tmp_path / "2")
    shared = [a + b for a, b in zip(first["rows"], second["rows"], strict=True)]
    assert shared == alone["rows"]
    # 30 faces in 3 batches of 8: each face at most once an epoch
    assert [np.unique(shared[e : e + 3]).size for e in (0, 3, 6)] == [24, 24, 24]
    for name in ("train_loss", "val_mae", "lr"):
        expected = alone["history"][name]
        np.testing.assert_allclose(first["history"][name], expected, rtol=1e-5)
        assert second["history"][name] == first["history"][name]
    expected, found = (
        states.read(tmp_path / f"{n}" / "state-9")[0]["ema"] for n in (1, 2)
    )
    for key, weights in expected.items():
        torch.testing.assert_close(found[key], weights, rtol=1e-3, atol=1e-5)


def test_live_batch_norm_is_judged_and_saved_as_the_main_process_has_it(
    dataset, tiny, tables, tmp_path
):
    """Each process normalises its own share, so the weights are not those of one."""
    launch(2, HERE / "one_of_several.py", dataset, tmp_path / "run")
    first, second = reports(tmp_path / "run")
    assert first["history"]["val_mae"] == second["history"]["val_mae"]
    validation = pd.read_csv(tmp_path / "run" / "validation.csv")
    # 10 faces, in one batch that two processes share
    assert validation["file_id"].tolist() == tables[1]["file_id"].tolist()
    again = predict.predict(
        model.load(tmp_path / "run" / "model.safetensors"), tables[1]
    )
    assert metrics.mae(again) == pytest.approx(metrics.mae(validation), abs=1e-4)
    np.testing.assert_allclose(validation["pred_age"], again["pred_age"], atol=1e-3)


def test_only_the_main_process_writes_and_shows_progress(dataset, tiny, tmp_path):
    out = launch(2, HERE / "one_of_several.py", dataset, tmp_path / "run")
    assert out.count("epoch  1 of 3") == 1
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert names == {
        "model.safetensors",
        "recipe.json",
        "history.csv",
        "validation.csv",
        "validation.npz",
        "state-9",
        "report-0.json",
        "report-1.json",
    }


TAKING_OVER = """
import sys
import time
from pathlib import Path
from agelib import env, recipe, runs, train
from tests.conftest import TINY

env.KAGGLE = Path(sys.argv.pop())
recipe.RECIPES["sample"] = TINY
copy = runs.shutil.copyfile


def slowly(*given):
    time.sleep(0.5)
    copy(*given)


runs.shutil.copyfile = slowly
train.main()
"""


def test_of_two_processes_one_takes_an_attached_run_over(
    dataset, tiny, tables, tmp_path, monkeypatch
):
    """While the other waits, or each would remove what the other has copied."""
    kaggle, script = tmp_path / "kaggle", tmp_path / "taking_over.py"
    faces = data.read_train(dataset)
    attached = kaggle / "input" / "training" / "runs" / "tiny"
    train.fit(tiny, *data.hold_out(faces, tiny.folds), attached)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.setenv("AGELIB_DATA", str(dataset))
    monkeypatch.delenv("AGELIB_RECIPE", raising=False)
    script.write_text(TAKING_OVER)
    assert "Already trained" in launch(2, script, kaggle)
    copied = kaggle / "working" / "runs"
    assert [run.name for run in copied.iterdir() if run.is_dir()] == ["tiny"]
    for name in ("recipe.json", "history.csv", "state-12/state.json"):
        assert (copied / "tiny" / name).read_bytes() == (attached / name).read_bytes()


FOLDS = """
import atexit
import sys
from dataclasses import replace
from pathlib import Path
import torch
from agelib import data, train
from tests.conftest import TINY


@atexit.register  # what is registered first runs last
def tell_group():
    print("in no group:", not torch.distributed.is_initialized())


faces, run = map(Path, sys.argv[1:])
table = data.read_train(faces)
history = train.cross_validate(replace(TINY, folds=2, epochs=2), table, run)
assert history["fold"].tolist() == [0, 0, 1, 1]
"""


def test_two_processes_share_each_fold(dataset, tiny, tmp_path):
    """And leave their group before they exit, or gloo's threads may abort them."""
    script, run = tmp_path / "folds.py", tmp_path / "run"
    script.write_text(FOLDS)
    for trained in (0, 2):
        out = launch(2, script, dataset, run)
        assert out.count("in no group: True") == 2
        assert out.count("number 2 of 2") == 1
        assert out.count("Already trained") == trained
    faces = data.read_train(dataset)
    table = outcome.validation(run, faces)
    assert table["file_id"].tolist() == faces["file_id"].tolist()
    assert len(pd.read_csv(run / "oof.csv")) == len(faces)
