"""A cross-validation: a network for each fold, and answers of it for all faces."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
)

from agelib import (
    ages,
    data,
    env,
    loop,
    metrics,
    model,
    outcome,
    pages,
    predict,
    runs,
    train,
)
from agelib.loop import Loop
from tests.conftest import stopping, that_learns_the_same

FOLDS = 3


@pytest.fixture
def faces(dataset) -> pd.DataFrame:
    return data.read_train(dataset)


@pytest.fixture
def recipe(tiny):
    return replace(tiny, folds=FOLDS, epochs=2)


@pytest.fixture
def run(recipe, faces, tmp_path) -> Path:
    """A cross-validation that is complete."""
    train.cross_validate(recipe, faces, tmp_path / "tiny")
    return tmp_path / "tiny"


def test_each_face_is_judged_by_the_network_that_has_not_learned_from_it(run, faces):
    oof = pd.read_csv(run / "oof.csv")
    assert oof["file_id"].tolist() == faces["file_id"].tolist()
    assert oof["fold"].tolist() == data.split(faces, FOLDS)["fold"].tolist()
    for fold in range(FOLDS):
        learned, held_out = data.hold_out(faces, FOLDS, fold)
        net = model.load(run / f"fold-{fold}" / "model.safetensors")
        own = predict.predict(net, held_out)["pred_age"]
        there = oof.loc[oof["fold"] == fold, "pred_age"]
        np.testing.assert_allclose(own, there, atol=1e-3)
        assert not set(learned["digest"]) & set(held_out["digest"])


def test_the_distributions_beside_the_answers_are_theirs(run, faces):
    stored = np.load(run / "oof.npz")["probabilities"]
    assert (stored.dtype, stored.shape) == (np.float16, (40, 101))
    there = outcome.distributions(run, faces)
    np.testing.assert_array_equal(there, stored.astype("float32"))
    oof = pd.read_csv(run / "oof.csv")
    medians = ages.read_off(there)["pred_age"]
    np.testing.assert_allclose(medians, oof["pred_age"], atol=0.1)


def test_histories_and_models_of_all_folds_are_the_runs(run, recipe, faces):
    history = outcome.history(run)
    assert history["fold"].tolist() == [0, 0, 1, 1, 2, 2]
    assert history["epoch"].tolist() == [1, 2] * 3
    assert [p.parent.name for p in outcome.models(run)] == [
        "fold-0",
        "fold-1",
        "fold-2",
    ]
    best = history.groupby("fold")["val_mae"].min()
    by_fold = outcome.validation(run, faces).groupby("fold")[["age", "pred_age"]]
    np.testing.assert_allclose(by_fold.apply(metrics.mae), best)
    assert outcome.error(run) == f"{best.mean():.2f} years, the mean of 3 folds"


def test_a_complete_fold_is_not_trained_again(run, recipe, faces, capsys):
    before = load_file(run / "fold-1" / "model.safetensors")
    capsys.readouterr()
    never = stopping(0, AssertionError("it trains"))
    history = train.cross_validate(recipe, faces, run, loop=never)
    assert capsys.readouterr().out.count("Already trained: 2 of 2 epochs") == FOLDS
    assert len(history) == 6
    after = load_file(run / "fold-1" / "model.safetensors")
    assert all((before[name] == after[name]).all() for name in before)


@that_learns_the_same
class StopsInTheSecondFold(Loop):
    """Ctrl-C at a step of the fold that is trained second."""

    step = 4

    def update(self, *batch):
        if self.folder.name == "fold-1" and self.updates == self.step:
            raise KeyboardInterrupt
        super().update(*batch)


@that_learns_the_same
class StopsBeforeItsFirstEpoch(StopsInTheSecondFold):
    step = 1


@pytest.mark.parametrize("loop", [StopsInTheSecondFold, StopsBeforeItsFirstEpoch])
def test_an_interrupt_ends_all_folds_and_the_next_start_goes_on(
    recipe, faces, run, tmp_path, loop, capsys
):
    stopped = tmp_path / "stopped"
    train.cross_validate(recipe, faces, stopped, loop=loop)
    told = capsys.readouterr().out
    if loop is StopsInTheSecondFold:
        assert "Interrupted in epoch 2. " in told
    else:
        assert "Interrupted before this fold's first epoch ended. Run again" in told
    # three steps an epoch: one epoch of the second fold is complete, or none
    folds = [0, 1] if loop is StopsInTheSecondFold else [0]
    oof = pd.read_csv(stopped / "oof.csv")
    assert sorted(oof["fold"].unique()) == folds
    assert not (stopped / "fold-2").exists()
    train.cross_validate(recipe, faces, stopped)
    for name in ("oof.csv", "oof.npz"):
        assert (stopped / name).read_bytes() == (run / name).read_bytes()


def test_the_time_limit_is_that_of_all_folds(recipe, faces, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])

    class Slow(Loop):
        def train_epoch(self, epoch, bar):
            super().train_epoch(epoch, bar)
            now[0] += 600

    # an epoch takes ten minutes, so that three end within the 38 that are left of 40
    history = train.cross_validate(
        recipe, faces, tmp_path / "tiny", time_limit=40 / 60, loop=Slow
    )
    assert history["fold"].tolist() == [0, 0, 1]
    now[0] = 0.0
    history = train.cross_validate(recipe, faces, tmp_path / "tiny", loop=Slow)
    assert history["fold"].tolist() == [0, 0, 1, 1, 2, 2]


def test_no_time_for_a_first_epoch_is_an_error(recipe, faces, tmp_path):
    with pytest.raises(TimeoutError, match="before epoch 1 of 2"):
        train.cross_validate(recipe, faces, tmp_path / "tiny", time_limit=1e-9)


def test_a_trained_network_may_know_what_a_fold_holds_out(recipe, faces, tmp_path):
    start = tmp_path / "trained.safetensors"
    with pytest.raises(ValueError, match=r"trained\.safetensors, may know the faces"):
        train.cross_validate(recipe, faces, tmp_path / "tiny", start=start)
    assert not (tmp_path / "tiny").exists()


def test_processes_out_of_time_are_known_by_what_they_say(
    recipe, faces, tmp_path, monkeypatch, capsys
):
    """What they raise is known by its text alone; the folds before are kept."""
    now, said = [0.0], ["OutOfTime: Stopped in epoch 1 of 2 by the time limit"]
    monkeypatch.setattr(train.time, "perf_counter", lambda: now[0])

    def launch(run, given, num_processes):
        if given[-1].name == "fold-1":
            now[0] = 3600.0
            failure = ProcessFailure(0, 0, 1, "")
            failure.message = said[0]
            raise ChildFailedError("run", {0: failure})
        run(*given)

    monkeypatch.setattr(train, "notebook_launcher", launch)
    history = train.cross_validate(
        recipe, faces, tmp_path / "tiny", processes=2, time_limit=1
    )
    assert history["fold"].tolist() == [0, 0]
    assert "Stopped by the time limit before one epoch" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "tiny" / "oof.csv")["fold"].unique().tolist() == [0]
    # another error is one, whatever the time
    now[0], said[0] = 0.0, "OSError: The disk of tiny is full"
    with pytest.raises(ChildFailedError, match="disk of tiny"):
        train.cross_validate(recipe, faces, tmp_path / "tiny", processes=2)


def test_two_cross_validations_in_one_folder_are_one_too_many(
    recipe, faces, tmp_path, monkeypatch
):
    monkeypatch.setattr(runs, "SECONDS_TO_WAIT", 0.1)
    run = tmp_path / "tiny"
    with runs.locked(run), pytest.raises(BlockingIOError, match="Another training"):
        train.cross_validate(recipe, faces, run, fresh=True)


def test_a_recipe_named_like_a_fold_is_no_fold(recipe, faces, tmp_path):
    sides = data.hold_out(faces, FOLDS)
    for name in ("7", "fold-3"):
        train.fit(replace(recipe, epochs=1), *sides, tmp_path / name)
        assert outcome.history(tmp_path / name)["fold"].tolist() == [0]
        assert set(outcome.validation(tmp_path / name, faces)["fold"]) == {0}


def test_another_number_of_folds_is_refused(run, recipe, faces):
    with pytest.raises(ValueError, match=r"folds is 3 there, 4 here.*fresh=True"):
        train.cross_validate(replace(recipe, folds=4), faces, run)
    # one training alone in the folder of several, and the other way round
    sides = data.hold_out(faces, FOLDS)
    with pytest.raises(ValueError, match="cross_validation is True there, False here"):
        train.fit(recipe, *sides, run)
    train.fit(recipe, *sides, run.with_name("single"))
    with pytest.raises(ValueError, match="cross_validation is False there, True here"):
        train.cross_validate(recipe, faces, run.with_name("single"))
    # nothing was touched
    assert len(outcome.history(run)) == 6
    train.cross_validate(replace(recipe, folds=2), faces, run, fresh=True)
    assert len(pd.read_csv(run / "oof.csv")) == len(faces)
    assert outcome.history(run.with_name("tiny.old-1"))["fold"].nunique() == FOLDS


def test_fewer_photos_than_folds_make_fewer_folds(recipe, faces, tmp_path):
    five = replace(recipe, folds=5, epochs=1)
    copies = (
        faces.head(4)
        .loc[[0, 0, 1, 1, 2, 3]]
        .assign(file_id=list("abcdef"), path=lambda t: t["path"])
    )
    history = train.cross_validate(five, copies.reset_index(drop=True), tmp_path / "t")
    assert history["fold"].tolist() == [0, 1, 2, 3]


def test_a_network_judges_only_faces_that_it_held_out(run, faces, recipe, tmp_path):
    """Two runs that hold out the same faces are averaged there, folds are not."""
    models = outcome.models(run)
    oof = outcome.unseen(models, faces)
    medians = ages.read_off(outcome.distributions(run, faces))["pred_age"]
    np.testing.assert_allclose(oof["pred_age"], medians)
    sides = data.hold_out(faces, FOLDS)
    for seed in (1, 2):
        one = replace(recipe, seed=seed)
        train.fit(one, *sides, run.with_name(f"seed-{seed}"))
    two = [run.with_name(f"seed-{seed}") / "model.safetensors" for seed in (1, 2)]
    table = outcome.unseen(two, faces)
    assert table["path"].tolist() == sides[1]["path"].tolist()
    both = [predict.distributions(model.load(path), sides[1], views=3) for path in two]
    mean = ages.read_off(np.mean(both, axis=0))["pred_age"]
    np.testing.assert_allclose(table["pred_age"], mean, atol=0.02)
    one_view = outcome.unseen(two, faces, views=1)
    assert not np.allclose(one_view["pred_age"], table["pred_age"], atol=1e-3)
    # one outside of a run judges what the shipped network held out, of others all
    alone = two[0].rename(tmp_path / "alone.safetensors")
    told = predict.predict(model.load(alone), faces)["pred_age"]
    np.testing.assert_allclose(outcome.unseen([alone], faces)["pred_age"], told)
    alone.rename(two[0])
    # together: three networks for the faces of fold 0, one for the others
    # another file in a run's folder is judged by itself
    other = models[0].with_name("other.safetensors")
    shutil.copy(models[1], other)
    held_out = outcome.validation(other.parent, faces)
    told = predict.predict(model.load(other), held_out)["pred_age"]
    np.testing.assert_allclose(outcome.unseen([other], faces)["pred_age"], told)
    other.unlink()
    all_five = outcome.unseen([*models, *two], faces)
    assert len(all_five) == len(faces)
    elsewhere = oof["path"].isin(sides[0]["path"])
    same = np.isclose(all_five["pred_age"], oof["pred_age"], atol=1e-3)
    assert same[elsewhere].all()
    assert not same[~elsewhere].all()


# -- the files ------------------------------------------------------------------------


def test_a_run_of_folds_is_found_and_judged_like_any_other(
    recipe, faces, tmp_path, monkeypatch
):
    monkeypatch.setenv("AGELIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("AGELIB_RECIPE", raising=False)
    folder = runs.folder(recipe, faces, cross_validation=True)
    train.cross_validate(recipe, faces, folder)
    assert folder == tmp_path / "runs" / "tiny-3-folds"
    again = runs.folder(recipe, faces, cross_validation=True)
    assert again == runs.newest(faces) == folder
    with pytest.warns(UserWarning, match="a run of other faces"):
        other = runs.folder(recipe, faces.head(30), cross_validation=True)
    assert other.name == "tiny-3-folds-2"
    # a single training, and one of more folds, have folders of their own
    assert runs.folder(recipe, faces).name == "tiny"
    more = replace(recipe, folds=4)
    assert runs.folder(more, faces, cross_validation=True).name == "tiny-4-folds"
    trained, table = outcome.judged(folder, faces)
    assert table["path"].tolist() == faces["path"].tolist()
    first = table[table["fold"] == 0]
    again = predict.predict(trained, first)
    np.testing.assert_allclose(again["pred_age"], first["pred_age"], atol=1e-3)
    told = pages.index(folder, [])["cells"][0]["source"]
    assert f"Validation error: **{outcome.error(folder)}**." in told


def test_an_attached_run_of_folds_is_taken_over(
    run, recipe, faces, tmp_path, monkeypatch
):
    monkeypatch.setattr(env, "KAGGLE", tmp_path / "kaggle")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.delenv("AGELIB_RUNS", raising=False)
    attached = tmp_path / "kaggle" / "input" / "training" / "runs" / "folds"
    attached.parent.mkdir(parents=True)
    run.rename(attached)
    (attached / "fold-0" / "stranger.txt").write_text("not a run's file")
    assert not any(runs.folder(recipe, faces).iterdir())
    copy = runs.folder(recipe, faces, cross_validation=True)
    assert copy == env.KAGGLE / "working" / "runs" / "tiny-3-folds"
    never = stopping(0, AssertionError("it trains"))
    assert len(train.cross_validate(recipe, faces, copy, loop=never)) == 6
    assert not (copy / "fold-0" / "stranger.txt").exists()


def of_fewer_faces(path: Path) -> None:
    few = np.full((3, 101), 1 / 101, np.float16)
    np.savez_compressed(path, probabilities=few)


def of_many_faces(path: Path) -> None:
    many = np.zeros((500_000, 101), np.float16)
    np.savez_compressed(path, probabilities=many)


def of_objects(path: Path) -> None:
    np.savez_compressed(path, probabilities=np.array([print], dtype=object))


def of_negative_shares(path: Path) -> None:
    shares = np.load(path)["probabilities"]
    shares[:, 0], shares[:, 1] = -1, 2 - shares[:, 2:].sum(1)
    np.savez_compressed(path, probabilities=shares)


def of_no_probabilities(path: Path) -> None:
    n = len(np.load(path)["probabilities"])
    np.savez_compressed(path, probabilities=np.ones((n, 101), np.float16))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"<html>"),
        lambda path: path.write_bytes(path.read_bytes()[:-200]),
        lambda path: path.unlink(),
        lambda path: np.savez_compressed(path, ages=[1]),
        of_fewer_faces,
        of_many_faces,
        of_objects,
        of_no_probabilities,
        of_negative_shares,
    ],
)
def test_damaged_distributions_are_named_and_made_again(
    run, recipe, faces, damage, capsys
):
    path = run / "fold-1" / "validation.npz"
    kept = path.read_bytes()
    damage(path)
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"fold-1/validation\.npz"
    ):
        outcome.distributions(run, faces)
    train.cross_validate(recipe, faces, run)
    assert path.read_bytes() == kept


# -- the ways in ----------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["0", "-1", "five", "2.5", "²"])
def test_a_number_of_folds_that_is_none_is_named(monkeypatch, wrong):
    monkeypatch.setenv("AGELIB_FOLDS", wrong)
    with pytest.raises(ValueError, match=r"AGELIB_FOLDS is .*: set it to a number"):
        env.folds()


def test_one_fold_is_trained_unless_more_are_asked_for(monkeypatch):
    monkeypatch.delenv("AGELIB_FOLDS", raising=False)
    assert env.folds() == 1
    monkeypatch.setenv("AGELIB_FOLDS", "5")
    assert env.folds() == 5


def test_the_command_line_trains_as_many_folds_as_asked(
    dataset, tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("AGELIB_DATA", str(dataset))
    monkeypatch.setenv("AGELIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(train, "default", lambda *_: replace(tiny, epochs=1))
    monkeypatch.setattr(sys, "argv", ["train", "--folds", "2"])
    train.main()
    assert len(pd.read_csv(tmp_path / "runs" / "tiny-2-folds" / "oof.csv")) == 40
    monkeypatch.setattr(sys, "argv", ["train", "--folds", "0"])
    with pytest.raises(SystemExit):
        train.main()


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("AGELIB_FOLDS", "x", "AGELIB_FOLDS"),
        ("AGELIB_DATA", "nowhere", "it holds no train.csv"),
    ],
)
def test_the_command_ends_with_a_sentence_where_a_setting_is_wrong(
    dataset, monkeypatch, variable, value, told
):
    monkeypatch.setenv("AGELIB_DATA", str(dataset))
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "argv", ["train"])
    # a text, where a traceback would be an error of another kind
    with pytest.raises(SystemExit, match=told):
        train.main()
