"""States of a training: what is damaged is set aside, and nothing runs code."""

import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.optim import create_optimizer_v2

from agelib import loop, model, outcome, predict, runs, states, train
from tests.conftest import TINY, stopping

COLUMNS = ["epoch", "train_loss", "val_mae", "lr"]


class Mark:
    """What leaves a mark where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def stopped(tiny, tables, tmp_path, monkeypatch) -> Callable:
    """A function that trains until a step begins, and gives the run's folder."""

    def stop_at(step: int, **changes) -> Path:
        recipe, run = replace(tiny, **changes), tmp_path / "run"
        stop = stopping(step, RuntimeError("stop"))
        with monkeypatch.context() as patch:
            patch.setattr(loop, "SECONDS_BETWEEN_SAVES", 0)
            with pytest.raises(RuntimeError, match="stop"):
                train.fit(recipe, *tables, run, loop=stop)
        return run

    return stop_at


@pytest.fixture
def go_on(tiny, tables, tmp_path) -> Callable:
    """A function that trains on, without what a test has to say of its choices."""

    def fit(**changes) -> pd.DataFrame:
        history = train.fit(replace(tiny, **changes), *tables, tmp_path / "run")
        return history[COLUMNS]

    return fit


@pytest.fixture
def whole(tiny, tables, tmp_path) -> pd.DataFrame:
    """The history of a run that nothing happened to, in the folder `whole`."""
    return train.fit(tiny, *tables, tmp_path / "whole")[COLUMNS]


def assert_same_model(run: Path) -> None:
    expected, found = (
        load_file(folder / runs.MODEL) for folder in (run.with_name("whole"), run)
    )
    assert all(torch.equal(found[name], w) for name, w in expected.items())


# -- no code --------------------------------------------------------------------------


def test_a_pickled_state_is_never_opened(stopped, go_on, tmp_path):
    run = stopped(4)
    for file in (run / "state-4").iterdir():
        file.unlink()
    for name in ("optimizer.bin", "custom_checkpoint_2.pkl", "random_states_0.pkl"):
        content = pickle.dumps(Mark(tmp_path / "mark"))
        (run / "state-4" / name).write_bytes(content)
    go_on()
    assert not (tmp_path / "mark").exists()
    # nothing is lost
    kept = run.with_name("run.old-1")
    assert len(list((kept / "state-4.damaged-1").iterdir())) == 3
    assert model.load(kept / runs.MODEL)


def test_other_files_in_a_state_are_never_opened(stopped, go_on, tmp_path, whole):
    state = stopped(4) / "state-4"
    for name in ("custom_checkpoint_2.pkl", "random_states_0.pkl", "scaler.pt"):
        (state / name).write_bytes(pickle.dumps(Mark(tmp_path / "mark")))
    pd.testing.assert_frame_equal(go_on(), whole, check_exact=True)
    assert not (tmp_path / "mark").exists()


def test_a_pickle_under_the_name_of_tensors_is_set_aside(stopped, go_on, tmp_path):
    state = stopped(2) / "state-2"
    content = pickle.dumps(Mark(tmp_path / "mark"))
    (state / "state.safetensors").write_bytes(content)
    (state / "state.json").write_bytes(content)
    assert len(go_on()) == 3
    assert not (tmp_path / "mark").exists()


# -- damage ---------------------------------------------------------------------------


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def edit(**changes) -> Callable:
    def change(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def note_the_tensors(file: Path) -> None:
    """Makes the position that of changed tensors, as if both were saved together."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    edit(sha256=digest)(file.with_name("state.json"))


def of_another_network(file: Path) -> None:
    tensors = load_file(file)
    tensors["net.backbone.conv_stem.weight"] = torch.zeros(2, 2)
    save_file(tensors, file)
    note_the_tensors(file)


def endless(file: Path) -> None:
    tensors = load_file(file)
    tensors["ema.backbone.conv_stem.weight"][0] = torch.nan
    save_file(tensors, file)
    note_the_tensors(file)


def tensors_that(change: Callable) -> Callable:
    """What gives each tensor another name or value; none leaves it out."""

    def do(file: Path) -> None:
        changed = (change(*named) for named in load_file(file).items())
        save_file(dict(filter(None, changed)), file)
        note_the_tensors(file)

    return do


def be_of(optimizer: str) -> Callable:
    """What makes the moments of AdamW those of another optimizer."""
    name = {"sgd": "momentum_buffer", "none": None}[optimizer]
    return tensors_that(
        lambda n, t: (
            (n, t)
            if not n.startswith("optimizer")
            else (n.replace("exp_avg", name), t)
            if name and n.endswith("exp_avg")
            else None
        )
    )


def as_json(value: str) -> Callable:
    """What writes a number of the loss that Python's JSON can't write."""

    def change(file: Path) -> None:
        file.write_text(file.read_text().replace('"loss": 4.5', f'"loss": {value}'))

    return change


ROW = {"epoch": 1, "train_loss": 4.6, "val_mae": 9.0, "lr": 0.1, "seconds": 2.0}
DAMAGES = {
    "tensors cut": ("state.safetensors", cut),
    "tensors empty": ("state.safetensors", lambda file: file.write_bytes(b"")),
    "tensors missing": ("state.safetensors", Path.unlink),
    "tensors a folder": ("state.safetensors", become_a_folder),
    "a bit flipped": ("state.safetensors", flip_a_bit),
    "another network": ("state.safetensors", of_another_network),
    "not finite": ("state.safetensors", endless),
    "position cut": ("state.json", cut),
    "position missing": ("state.json", Path.unlink),
    "position a list": ("state.json", lambda file: file.write_text("[]")),
    "position null": ("state.json", lambda file: file.write_text("null")),
    "position deep": ("state.json", lambda file: file.write_text("[" * 99999)),
    "position in latin-1": ("state.json", lambda file: file.write_bytes(b'"\xe9"')),
    "no step": ("state.json", edit(updates="4")),
    "step of another epoch": ("state.json", edit(updates=40)),
    "no history": ("state.json", edit(history={})),
    "history of words": ("state.json", edit(history=[{"epoch": "one"}])),
    "loss not finite": ("state.json", edit(loss=float("nan"))),
    "no scaler": ("state.json", edit(scaler=None)),
    "a loss of 400 digits": ("state.json", as_json("1" + "0" * 400)),
    "a loss of 5,000 digits": ("state.json", as_json("1" + "0" * 5000)),
    "a loss that is true": ("state.json", edit(loss=True)),
    "more epochs than the recipe": (
        "state.json",
        edit(updates=12, history=[ROW | {"epoch": n} for n in range(1, 5)]),
    ),
    "best weights of no epoch": ("state.json", edit(updates=2, history=[])),
    "numbers of unknown weights": ("state.json", edit(numbers={"no.weight.step": 3})),
    "numbers of nothing": ("state.json", edit(numbers={"step": 3})),
    "counts of no group": ("state.json", edit(counts={"99": 3})),
    "counts of a word": ("state.json", edit(counts={"x": 3})),
    "moments of sgd": ("state.safetensors", be_of("sgd")),
    "no moments": ("state.safetensors", be_of("none")),
    "moments of whole numbers": (
        "state.safetensors",
        tensors_that(lambda n, t: (n, t.long() if n.endswith("exp_avg") else t)),
    ),
    "moments of one number": (
        "state.safetensors",
        tensors_that(lambda n, t: (n, t.sum() if n.endswith("exp_avg") else t)),
    ),
    "a name of two lines": (
        "state.safetensors",
        tensors_that(lambda n, t: (n.replace("conv_stem", "a\nb"), t)),
    ),
    "longer than the memory": (
        "state.safetensors",
        lambda file: os.truncate(file, 2**42),
    ),
    "a text longer than the memory": (
        "state.json",
        lambda file: os.truncate(file, 2**42),
    ),
}


@pytest.fixture(scope="module")
def net():
    return model.create(TINY, pretrained=False)


@pytest.fixture(scope="module")
def two_states(net, tmp_path_factory) -> Path:
    """A folder with `state-4` and, newer, `state-5`, of three steps an epoch."""
    optimizer = create_optimizer_v2(net, "adamw")
    for weight in net.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    moments, numbers, counts = states.of_optimizer(optimizer, net)
    weights = net.state_dict()
    parts = {"net": weights, "ema": weights, "best": weights, "optimizer": moments}
    parts = {n: {k: t.clone() for k, t in part.items()} for n, part in parts.items()}
    position = {"updates": 4, "history": [ROW], "loss": 4.5, "seconds": 1.0}
    position |= {"scaler": {}, "numbers": numbers, "counts": counts}
    folder = tmp_path_factory.mktemp("run")
    states.save(folder, 4, parts, position)
    shutil.copytree(folder / "state-4", folder / "state-5")
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_state_is_set_aside_for_the_one_before(
    net, two_states, tmp_path, damage
):
    run = tmp_path / "run"
    shutil.copytree(two_states, run)
    name, do = DAMAGES[damage]
    do(run / "state-5" / name)
    told = []

    def check(parts, position):
        states.check(parts, position, net, create_optimizer_v2(net, "adamw"), 3, 3)

    assert states.newest(run, check, told.append) == run / "state-4"
    (sentence,) = told
    assert f"{run / 'state-5'} can't be read" in sentence
    assert "kept as state-5.damaged-1" in sentence
    assert "\n" not in sentence
    assert {p.name for p in run.iterdir()} == {"state-4", "state-5.damaged-1"}
    # the one before is as it was
    for file in (run / "state-4").iterdir():
        assert file.read_bytes() == (two_states / "state-4" / file.name).read_bytes()


def test_a_state_that_the_disk_does_not_give_today_is_left_for_another_day(
    two_states, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    shutil.copytree(two_states, run)

    def fail(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(OSError, match=r"Input/output error: .*state-5"):
            states.newest(run, lambda parts, position: None, print)
    assert {p.name for p in run.iterdir()} == {"state-4", "state-5"}
    found = states.newest(run, lambda parts, position: None, print)
    assert found == run / "state-5"


def test_the_run_goes_on_from_the_state_before_a_damaged_one(
    stopped, go_on, whole, capsys
):
    run = stopped(4)
    shutil.copytree(run / "state-4", run / "state-999")
    (run / "state-999" / "state.json").write_text("")
    pd.testing.assert_frame_equal(go_on(), whole, check_exact=True)
    assert_same_model(run)
    assert "state-999.damaged-1" in capsys.readouterr().out
    assert [state.name for state in states.saved(run)] == ["state-9"]


def test_without_a_whole_state_the_run_begins_again_and_keeps_what_there_was(
    stopped, go_on, whole, capsys
):
    run = stopped(4)
    kept = (run / runs.MODEL).read_bytes()
    cut(run / "state-4" / "state.safetensors")
    pd.testing.assert_frame_equal(go_on(), whole, check_exact=True)
    assert "the run begins again" in capsys.readouterr().out
    assert (run.with_name("run.old-1") / runs.MODEL).read_bytes() == kept


def test_what_only_looks_like_a_state_is_ignored(stopped, go_on, whole, tmp_path):
    run = stopped(4)
    for name in ("state-foo", "state-132 (copy)", "state-", "state-1e9", "state-٣"):
        (run / name).mkdir()
    # nor does it hide the state of that number
    (run / "state-04").mkdir()
    (run / "state-132.zip").write_bytes(b"PK")
    (run / "state-500").write_text("a file")
    (tmp_path / "elsewhere").mkdir()
    (run / "state-600").symlink_to(tmp_path / "elsewhere")
    pd.testing.assert_frame_equal(go_on(), whole, check_exact=True)
    assert (run / "state-132 (copy)").is_dir()
    assert (tmp_path / "elsewhere").is_dir()


# -- a complete run is one whose files are whole --------------------------------------


def dangle(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def keep_three_rows(file: Path) -> None:
    file.write_text("\n".join(file.read_text().splitlines()[:4]) + "\n")


def of_other_weights(file: Path) -> None:
    net, learned = model.load(file)
    net.backbone.conv_stem.weight.data += 1
    model.save(net, learned, file)


@pytest.mark.parametrize(
    ("name", "do"),
    [
        (runs.MODEL, Path.unlink),
        (runs.MODEL, cut),
        (runs.MODEL, dangle),
        (runs.MODEL, of_other_weights),
        (runs.VALIDATION, Path.unlink),
        (runs.VALIDATION, keep_three_rows),
        (runs.VALIDATION, lambda file: file.write_text("<html>")),
        (runs.HISTORY, cut),
        (runs.HISTORY, lambda file: file.write_bytes(b"\xff\xfe")),
    ],
)
def test_a_complete_runs_files_are_made_again_from_its_state(
    go_on, tables, tmp_path, name, do, capsys
):
    # the second of three epochs is the best
    choices = {"learning_rate": 0.3, "schedule": "step", "ema_decay": 0.5}
    history = go_on(**choices)
    run = tmp_path / "run"
    before = {n: (run / n).read_bytes() for n in (runs.VALIDATION, runs.HISTORY)}
    weights = {n: w.clone() for n, w in load_file(run / runs.MODEL).items()}
    do(run / name)
    pd.testing.assert_frame_equal(go_on(**choices), history, check_exact=True)
    told = capsys.readouterr().out
    assert "made again from it" in told
    assert "Already trained" in told
    assert {n: (run / n).read_bytes() for n in before} == before
    again = load_file(run / runs.MODEL)
    assert all(torch.equal(again[key], weights[key]) for key in weights)
    assert len(outcome.validation(run, tables[1])) == 10


def test_a_link_in_place_of_what_a_save_writes_is_removed_not_followed(
    stopped, go_on, whole, tmp_path
):
    run = stopped(4)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "state-6").mkdir()
    (elsewhere / "mine").write_text("mine")
    for name in ("state-6", "model.safetensors", "history.csv"):
        (run / f"{name}.unfinished").symlink_to(elsewhere)
    (tmp_path / "mine.csv").write_text("mine")
    (run / runs.VALIDATION).unlink()
    (run / runs.VALIDATION).symlink_to(tmp_path / "mine.csv")
    pd.testing.assert_frame_equal(go_on(), whole, check_exact=True)
    assert (tmp_path / "mine.csv").read_text() == "mine"
    assert {p.name for p in elsewhere.iterdir()} == {"state-6", "mine"}
    assert list((elsewhere / "state-6").iterdir()) == []
    assert not list(run.glob("*.unfinished"))


def test_what_lies_in_the_place_of_files_is_set_aside(stopped, go_on, whole):
    run = stopped(4)
    (run / "state-6").write_text("mine")
    (run / "state-9").symlink_to("nowhere")
    for name in (runs.MODEL, runs.VALIDATION, runs.HISTORY):
        (run / name).unlink()
        (run / name).mkdir()
        (run / name / "mine").write_text("mine")
    pd.testing.assert_frame_equal(go_on(), whole, check_exact=True)
    assert_same_model(run)
    assert (run / "state-6.old-1").read_text() == "mine"
    assert (run / "state-9.old-1").is_symlink()
    assert (run / "history.csv.old-1" / "mine").read_text() == "mine"


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_folder_where_the_run_should_be_is_named(go_on, tmp_path, make):
    make(tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"/run is a file, or a link to nowhere"):
        go_on()


@pytest.mark.parametrize("where", [states, model])
def test_an_interrupt_before_the_first_model_is_kept_tells_of_none(
    go_on, whole, tmp_path, monkeypatch, where
):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go_on()
    pd.testing.assert_frame_equal(go_on(), whole, check_exact=True)
    assert_same_model(tmp_path / "run")


# -- all of it ------------------------------------------------------------------------


def test_files_with_the_line_ends_of_windows_are_whole(go_on, monkeypatch, capsys):
    monkeypatch.setattr(os, "linesep", "\r\n")
    go_on()
    go_on()
    told = capsys.readouterr().out
    assert "Already trained" in told
    assert "made again" not in told


@pytest.mark.parametrize("optimizer", ["sgd", "lamb", "adafactor", "muon"])
def test_any_optimizer_goes_on_to_the_same_weights(
    stopped, go_on, tiny, tables, tmp_path, optimizer
):
    choices = {"optimizer": optimizer, "learning_rate": 1e-3}
    recipe = replace(tiny, **choices)
    history = train.fit(recipe, *tables, tmp_path / "whole")[COLUMNS]
    run = stopped(5, **choices)
    pd.testing.assert_frame_equal(go_on(**choices), history, check_exact=True)
    assert_same_model(run)


def test_a_training_may_start_from_a_models_weights(tiny, tables, tmp_path):
    train.fit(tiny, *tables, tmp_path / "run")
    start = tmp_path / "run" / runs.MODEL
    before = predict.predict(model.load(start), tables[1])["pred_age"]
    # steps too small to change anything
    still = replace(tiny, epochs=1, learning_rate=1e-12, ema_decay=0.0)
    # in its own folder, which is set aside for that
    train.fit(still, *tables, tmp_path / "run", fresh=True, start=start)
    after = predict.predict(model.load(start), tables[1])["pred_age"]
    # but for what batch norm saw
    assert (after - before).abs().max() < 5
    other = replace(tiny, head="regression")
    with pytest.raises(ValueError, match=r"distribution, but the recipe wants .*regr"):
        train.fit(other, *tables, tmp_path / "other", start=start)
