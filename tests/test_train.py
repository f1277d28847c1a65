import errno
import json
import math
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from timm.optim import create_optimizer_v2
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
)

from agelib import data, loading, loop, metrics, model, predict, recipe, states, train
from agelib.ages import age_loss
from agelib.loop import Loop
from tests.conftest import TINY, stopping, that_learns_the_same


@pytest.fixture
def run(tiny, tables, tmp_path):
    """A function that trains the tiny recipe, with changes, in a folder."""

    def fit(
        name: str = "run", fresh: bool = False, loss=age_loss, loop=Loop, **changes
    ) -> pd.DataFrame:
        recipe, folder = replace(tiny, **changes), tmp_path / name
        return train.fit(recipe, *tables, folder, fresh, loss=loss, loop=loop)

    return fit


def weights(folder) -> dict[str, torch.Tensor]:
    return model.load(folder / "model.safetensors")[0].state_dict()


def test_training_lowers_the_loss_and_beats_the_constant(run, tables, tmp_path):
    history = run(epochs=12)
    assert history["epoch"].tolist() == list(range(1, 13))
    assert history["train_loss"].iloc[-1] < history["train_loss"][0]
    training, validation = tables
    constant = (validation["age"] - training["age"].median()).abs().mean()
    assert history["val_mae"].min() < 0.7 * constant


def test_the_folder_holds_the_best_epoch_and_everything_about_the_run(
    run, tables, tmp_path
):
    # a learning rate that ruins the later epochs
    history = run(epochs=4, learning_rate=0.3, schedule="step", ema_decay=0.0)
    kept = pd.read_csv(tmp_path / "run" / "validation.csv")
    assert metrics.mae(kept) == pytest.approx(history["val_mae"].min())
    again = predict.predict(
        model.load(tmp_path / "run" / "model.safetensors"), tables[1]
    )
    np.testing.assert_allclose(again["pred_age"], kept["pred_age"], atol=1e-3)
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "run" / "history.csv"), history
    )
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["epochs"] == 4


def test_a_run_ends_after_as_many_epochs_in_vain_as_it_has_patience(
    run, tmp_path, monkeypatch, capsys
):
    errors = [9.0, 9.5, 8.0, 8.0, 8.5]
    choices = {"epochs": 9, "schedule": "step", "step_epochs": 99, "warmup_epochs": 0}
    told = iter(errors)
    monkeypatch.setattr(loop.metrics, "mae", lambda _: next(told))
    history = run(patience=2, **choices)
    assert history["val_mae"].tolist() == errors
    assert "Ended early: the last 2 epochs" in capsys.readouterr().out
    # and stays ended
    pd.testing.assert_frame_equal(run(patience=2, **choices), history)
    assert "Already trained: 5 of 9 epochs" in capsys.readouterr().out
    # the third epoch is kept
    told = iter(errors)
    run("short", **choices | {"epochs": 3})
    expected, found = weights(tmp_path / "short"), weights(tmp_path / "run")
    assert all(torch.equal(expected[k], found[k]) for k in expected)


def test_an_epoch_is_judged_and_kept_at_the_size_that_it_learned(run, tables, tmp_path):
    in_the_second_epoch = stopping(3, KeyboardInterrupt())
    # 43 pixels short of 96 in the first epoch, in steps of 32
    history = run(epochs=3, image_size=96, first_size=32, loop=in_the_second_epoch)
    assert len(history) == 1
    trained = model.load(tmp_path / "run" / "model.safetensors")
    assert trained.recipe.image_size == 64
    again = predict.predict(trained, tables[1])
    assert metrics.mae(again) == pytest.approx(history["val_mae"][0], abs=1e-3)


def test_the_intervals_written_are_those_the_saved_model_gives(run, tables, tmp_path):
    history = run(head="regression")
    written = pd.read_csv(tmp_path / "run" / "validation.csv")
    trained = model.load(tmp_path / "run" / "model.safetensors")
    # of which the median of several views depends on the scale a little
    best = history["val_mae"].min()
    assert metrics.mae(written) == pytest.approx(best, abs=1e-9)
    assert trained.model.scale == pytest.approx(best, abs=0.1)
    again = predict.predict(trained, tables[1])
    np.testing.assert_allclose(written["high"], again["high"], atol=1e-3)
    np.testing.assert_allclose(written["low"], again["low"], atol=1e-3)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 7, 8])
def test_a_run_stopped_at_any_step_goes_on_to_the_same_weights(
    run, tmp_path, monkeypatch, step
):
    """Three steps an epoch; the state is saved after every one."""
    whole = run("whole")
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_SAVES", 0)
    with pytest.raises(RuntimeError, match="power"):
        run("stopped", loop=stopping(step, RuntimeError("the power went off")))
    # the pretrained weights are not needed again
    monkeypatch.delenv("AGELIB_WEIGHTS")
    stopped = run("stopped")
    columns = ["epoch", "train_loss", "val_mae", "lr"]
    pd.testing.assert_frame_equal(stopped[columns], whole[columns], check_exact=True)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(expected[k], found[k]) for k in expected)


def test_an_interrupt_keeps_the_complete_epochs(run, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(loop=stopping(2, KeyboardInterrupt()))
    assert run(loop=stopping(4, KeyboardInterrupt()))["epoch"].tolist() == [1]
    assert "Interrupted in epoch 2" in capsys.readouterr().out
    assert weights(tmp_path / "run")


def test_a_batch_in_parts_has_the_gradients_of_the_whole(tiny, tables, tmp_path):
    gradients = []
    for parts in (1, 3):
        torch.manual_seed(0)
        whole = Loop(tiny, *tables, tmp_path / str(parts), micro_batches=parts)
        # batch norm in evaluation: its statistics are those of a part
        whole.net.eval()
        images, age, rows = next(iter(whole.batches))
        total = whole.add_gradients(images, age, rows)
        mean = age_loss(whole.net(images), age, tiny)
        assert total == pytest.approx(mean.item(), rel=1e-5)
        gradients.append([p.grad for p in whole.net.parameters()])
        whole.close()
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def too_small_for(faces: int, sizes: list[int]):
    """The loss on a GPU whose memory ends at so many faces; notes how many it gets."""

    def age_loss_in_memory(outputs, *others):
        if len(outputs) > faces:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to ...")
        sizes.append(len(outputs))
        return age_loss(outputs, *others)

    return age_loss_in_memory


def test_a_batch_that_does_not_fit_is_halved_until_it_does(run, tmp_path, capsys):
    sizes = []
    loss = too_small_for(3, sizes)
    run(epochs=1, loss=loss)
    history = run(fresh=True, epochs=2, loss=loss)
    # three batches of 8 an epoch, in quarters; halved anew in each of the two runs
    assert sizes == [2] * 4 * 3 * (1 + 2)
    assert history["epoch"].tolist() == [1, 2]
    # each try starts from the first one's folder
    assert [p.name for p in sorted(tmp_path.glob("run*"))] == ["run", "run.old-1"]
    told = capsys.readouterr().out
    assert told.count("each batch in 4 parts of at most 2 faces") == 2


def failed(reason: str) -> ChildFailedError:
    """What torch's launcher raises if a process ends with an error."""
    failure = ProcessFailure(0, 1234, 1, "")
    failure.message = reason
    return ChildFailedError("_run", {0: failure})


def test_processes_that_run_out_of_memory_are_started_anew(
    tiny, tables, tmp_path, monkeypatch, capsys
):
    """With a stand-in for the launcher, which tells what a process raised."""
    parts, started = [], []

    class Noting(Loop):
        def create_loaders(self):
            parts.append(self.micro_batches)
            super().create_loaders()

    def launch(function, arguments, num_processes):
        started.append(num_processes)
        if len(started) == 1:
            raise failed("torch.OutOfMemoryError: CUDA out of memory. Tried ...")
        function(*arguments)

    monkeypatch.setattr(train, "notebook_launcher", launch)
    folder = tmp_path / "run"
    history = train.fit(tiny, *tables, folder, processes=2, loop=Noting)
    assert (started, parts) == ([2, 2], [2])
    # half of each batch is a process's share, in two parts
    assert "each batch in 2 parts of at most 2 faces" in capsys.readouterr().out
    assert history["epoch"].tolist() == [1, 2, 3]


def test_an_interrupt_of_several_processes_keeps_the_complete_epochs(
    tiny, tables, tmp_path, monkeypatch, capsys
):
    """The launcher makes a SignalException of it, here by a stand-in."""
    stop = signal.SIGINT

    def launch(function, arguments, num_processes):
        if epochs_complete:
            function(*arguments)
        raise SignalException("Process 1 got signal", stop)

    monkeypatch.setattr(train, "notebook_launcher", launch)
    folder = tmp_path / "run"
    epochs_complete = False
    with pytest.raises(KeyboardInterrupt):
        train.fit(tiny, *tables, folder, processes=2)
    epochs_complete = True
    history = train.fit(tiny, *tables, folder, processes=2)
    assert history["epoch"].tolist() == [1, 2, 3]
    told = f"Interrupted. {folder} holds the best epoch so far; run again to go on."
    assert told in capsys.readouterr().out
    stop = signal.SIGTERM
    with pytest.raises(SignalException):
        train.fit(tiny, *tables, folder, processes=2)


def test_processes_that_cannot_share_a_batch_are_refused(tiny, tables, tmp_path):
    with pytest.raises(ValueError, match="3 processes can't share batches of 8 faces"):
        train.fit(tiny, *tables, tmp_path / "run", processes=3)
    assert not (tmp_path / "run").exists()


def test_memory_too_small_for_two_faces_is_an_error(run):
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run(epochs=1, loss=too_small_for(1, []))


@pytest.fixture
def clock(monkeypatch):
    """Time as the loop sees it; with `clock.loop` a second for every step."""

    class Clock:
        now = 1000.0

        def perf_counter(self):
            return self.now

    @that_learns_the_same
    class Slow(Loop):
        def update(self, *batch):
            clock.now += 1
            super().update(*batch)

    clock = Clock()
    clock.loop = Slow
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(train, "time", clock)
    return clock


def test_an_epoch_that_would_end_too_late_is_not_begun(
    tiny, tables, tmp_path, clock, capsys
):
    """Three seconds an epoch; a twentieth of the ten seconds is kept."""
    choices, folder = replace(tiny, epochs=5), tmp_path / "run"
    limit = 10 / 3600
    history = train.fit(choices, *tables, folder, time_limit=limit, loop=clock.loop)
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["seconds"].tolist() == [3, 3, 3]
    assert clock.now == 1009
    assert "Stopped before epoch 4 of 5" in capsys.readouterr().out
    assert weights(folder)
    # without a limit it goes on
    history = train.fit(choices, *tables, folder)
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5]


def test_larger_faces_are_expected_to_take_longer(tiny, tables, tmp_path, clock):
    """64, then 96 pixels a side: 3 seconds, then 3 (96 / 64)^2 = 6.75."""
    choices = replace(tiny, epochs=2, image_size=96, first_size=32)
    assert [choices.size_in(epoch) for epoch in (0, 1)] == [64, 96]
    for number, (left, epochs) in enumerate([(9.7, [1]), (9.8, [1, 2])]):
        limit, folder = left / 0.95 / 3600, tmp_path / str(number)
        history = train.fit(choices, *tables, folder, time_limit=limit, loop=clock.loop)
        assert history["epoch"].tolist() == epochs


def test_the_limit_ends_an_epoch_that_turns_out_too_slow(
    run, tiny, tables, tmp_path, clock, capsys
):
    whole, folder = run("whole"), tmp_path / "run"
    with pytest.raises(TimeoutError, match="Stopped in epoch 1 of 3"):
        train.fit(tiny, *tables, folder, time_limit=1 / 3600, loop=clock.loop)
    # what was learned is kept: one second, and so one step, is done
    history = train.fit(tiny, *tables, folder)
    assert "Going on in epoch 1, after step 1" in capsys.readouterr().out
    columns = ["epoch", "train_loss", "val_mae", "lr"]
    pd.testing.assert_frame_equal(history[columns], whole[columns], check_exact=True)


def test_a_finished_run_is_not_trained_again(run, capsys):
    first = run()
    again = run(loop=stopping(0, AssertionError("trained again")))
    pd.testing.assert_frame_equal(again, first)
    assert "Already trained: 3 of 3 epochs" in capsys.readouterr().out


def test_the_seed_decides_the_outcome_and_the_worlds_randomness_is_left_alone(
    run, tmp_path
):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    run("one", epochs=1)
    assert torch.rand(1) == expected
    run("two", epochs=1)
    run("three", epochs=1, seed=1)
    one, two, three = (weights(tmp_path / n) for n in ("one", "two", "three"))
    assert all(torch.equal(one[k], two[k]) for k in one)
    key = "backbone.conv_stem.weight"
    assert not torch.equal(one[key], three[key])


def test_a_folder_with_another_recipe_or_other_faces_is_refused(run, tables, tmp_path):
    run(epochs=1)
    with pytest.raises(
        ValueError, match=r"run holds .*image_size is 32 there, 48 here"
    ):
        run(epochs=1, image_size=48)
    tables[0].loc[tables[0].index[0], "age"] += 1
    with pytest.raises(ValueError, match=r"training_faces .*fresh=True"):
        run(epochs=1)


def test_fresh_sets_the_earlier_run_aside(run, tmp_path):
    run(epochs=1)
    run(fresh=True, epochs=1, image_size=48)
    run(fresh=True, epochs=1)
    sizes = [
        json.loads((tmp_path / name / "recipe.json").read_text())["image_size"]
        for name in ("run.old-1", "run.old-2", "run")
    ]
    assert sizes == [32, 48, 32]


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_files(run, tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"nan at step 1, .*image_\d+\.jpg.*another name\.$"
    ):
        run(loss=lambda outputs, *_: outputs.sum() * math.nan)

    def breaks_later(outputs, age, recipe):
        broken = (tmp_path / "later" / "model.safetensors").exists()
        return age_loss(outputs, age, recipe) * (math.nan if broken else 1)

    with pytest.raises(FloatingPointError, match=r"step 4, .*best epoch so far is in "):
        run("later", loss=breaks_later)


def test_a_disk_that_does_not_answer_is_no_time_limit(run, monkeypatch):
    save = states.save

    def slow(folder, updates, *rest):
        if updates == 6:
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")
        save(folder, updates, *rest)

    monkeypatch.setattr(states, "save", slow)
    with pytest.raises(TimeoutError, match="Connection timed out"):
        run()


# -- a loss and a loop of one's own ----------------------------------------------------


def mean_age(outputs, age, recipe):
    """A loss that nothing can be learned from: the mean age of a batch."""
    return 0 * outputs.sum() + age.mean()


def noted(folder: Path) -> dict:
    return json.loads((folder / "recipe.json").read_text())


def test_a_loss_of_ones_own_is_what_is_learned_by(run, tables, tmp_path):
    # all faces in one batch: the loss of an epoch is that of all of them
    mean = tables[0]["age"].mean()
    history = run(loss=mean_age, batch_size=len(tables[0]))
    assert history["train_loss"].tolist() == pytest.approx([mean] * 3)
    assert noted(tmp_path / "run")["loss"] == "mean_age"
    run("usual", epochs=1)
    assert noted(tmp_path / "usual")["loss"] == "age_loss"


def test_a_run_goes_on_with_the_loss_that_it_began_with_alone(run):
    assert len(run(loss=mean_age, loop=stopping(4, KeyboardInterrupt()))) == 1
    with pytest.raises(ValueError, match="loss is mean_age there, age_loss here"):
        run()
    assert len(run(loss=mean_age)) == 3


def test_a_run_goes_on_with_the_loop_and_the_start_that_it_began_with_alone(
    run, tiny, tables, tmp_path
):
    run("first", epochs=1)
    run("second", epochs=1, seed=1)
    first, second = (tmp_path / n / "model.safetensors" for n in ("first", "second"))
    folder = tmp_path / "run"
    train.fit(tiny, *tables, folder, start=first)
    for start, told in ((second, "start is [0-9a-f]{32} there"), (None, "null|None")):
        with pytest.raises(ValueError, match=f"holds a run of other choices .*{told}"):
            train.fit(tiny, *tables, folder, start=start)
    # the same weights in another file are the same start
    copy = shutil.copy(first, tmp_path / "copy.safetensors")
    assert len(train.fit(tiny, *tables, folder, start=Path(copy))) == 3

    class Other(Loop):
        pass

    with pytest.raises(ValueError, match="loop is Loop there, Other here"):
        train.fit(tiny, *tables, folder, start=first, loop=Other)


def test_a_run_that_begins_again_keeps_its_loss(run, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_SAVES", 0)
    run(loss=mean_age, loop=stopping(4, KeyboardInterrupt()))
    for state in (tmp_path / "run").glob("state-*/state.safetensors"):
        state.write_bytes(b"")
    assert len(run(loss=mean_age)) == 3
    assert noted(tmp_path / "run")["loss"] == "mean_age"


def test_a_run_of_an_earlier_version_which_noted_no_loss_goes_on(run, tmp_path):
    whole = run("whole")
    run(loop=stopping(4, KeyboardInterrupt()))
    older = noted(tmp_path / "run")
    for choice in ("loss", "loop", "start"):
        del older[choice]
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(older))
    with pytest.raises(ValueError, match="loss is age_loss there, mean_age here"):
        run(loss=mean_age)
    columns = ["epoch", "train_loss", "val_mae", "lr"]
    pd.testing.assert_frame_equal(run()[columns], whole[columns], check_exact=True)


def test_a_loop_of_ones_own_knows_whose_faces_are_in_a_batch(run, tables):
    seen = []

    class Noting(Loop):
        def batch_loss(self, images, age, rows):
            seen.append((images, age, rows))
            return super().batch_loss(images, age, rows)

    history, usual = run(loop=Noting), run("usual")
    # three batches an epoch
    assert len(seen) == 3 * 3
    for images, age, rows in seen:
        assert (images.shape, images.dtype) == ((8, 3, 32, 32), torch.uint8)
        assert age.tolist() == tables[0]["age"].iloc[rows.tolist()].tolist()
    assert history["val_mae"].equals(usual["val_mae"])


def test_a_loop_of_ones_own_serves_other_faces_to_another_optimizer(run, tables):
    learned = []

    class Other(Loop):
        def augmented_faces(self):
            some = self.train_faces.head(16)
            return loading.Faces(some, self.recipe.image_size, self.recipe)

        def create_optimizer(self, net):
            return create_optimizer_v2(net, opt="sgd", lr=self.recipe.learning_rate / 2)

        def batch_loss(self, images, age, rows):
            learned.extend(rows.tolist())
            return super().batch_loss(images, age, rows)

    choices = {"epochs": 1, "schedule": "step", "warmup_epochs": 0}
    history = run(loop=Other, **choices)
    # 16 faces are two batches of 8
    assert sorted(learned) == list(range(16))
    assert history["lr"].tolist() == [TINY.learning_rate / 2]
    assert run("usual", **choices)["lr"].tolist() == [TINY.learning_rate]


# -- schedules, and other ways to begin ------------------------------------------------


@pytest.mark.parametrize("warmup_epochs", [0, 0.5])
def test_the_original_choices_follow_the_step_schedule(run, warmup_epochs):
    """A warm-up of half an epoch has ended when the epoch's last rate is noted."""
    history = run(
        head="regression",
        schedule="step",
        step_epochs=1,
        warmup_epochs=warmup_epochs,
        optimizer="adam",
    )
    np.testing.assert_allclose(history["lr"], [2e-3, 2e-4, 2e-5])


def test_a_cosine_schedule_warms_up_and_ends_near_zero(run, tables):
    lr = run(epochs=4, warmup_epochs=1)["lr"]
    # the last update of the first epoch ends the warm-up
    n = len(tables[0]) // TINY.batch_size
    start = 2e-3 / 100
    assert lr[0] == pytest.approx(start + (2e-3 - start) * (n - 1) / n)
    assert lr[3] < 0.1 * 2e-3


def test_the_command_trains_as_notebook_2_does(dataset, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(recipe.RECIPES, "sample", replace(tiny, folds=4, seed=3))
    monkeypatch.setenv("AGELIB_DATA", str(dataset))
    monkeypatch.setenv("AGELIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(sys, "argv", ["train"])
    train.main()
    folder = tmp_path / "runs" / "tiny"
    # the held-out faces are those of every seed: models of several can be averaged
    _, held_out = data.hold_out(data.read_train(dataset), folds=4)
    judged = pd.read_csv(folder / "validation.csv")
    assert judged["file_id"].tolist() == held_out["file_id"].tolist()
    monkeypatch.setattr(sys, "argv", ["train", "--fresh"])
    train.main()
    assert len(pd.read_csv(folder.with_name("tiny.old-1") / "history.csv")) == 3


def test_processes_forked_from_a_notebook_train_together(tables, tiny, tmp_path):
    """In a process of its own: the launcher wants one that has trained nothing yet."""
    tables[0].to_pickle(tmp_path / "train.pkl")
    tables[1].to_pickle(tmp_path / "validation.pkl")
    code = f"""
from pathlib import Path
import pandas as pd, torch
from agelib import train
from tests.conftest import TINY
torch.ones(2000, 2000) @ torch.ones(2000, 2000)  # a notebook has used torch before
folder = Path({str(tmp_path)!r})
faces = [pd.read_pickle(folder / n) for n in ("train.pkl", "validation.pkl")]
history = train.fit(TINY, *faces, folder / "run", processes=2)
print(history["epoch"].tolist())
"""
    root = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=200,
    )
    assert "[1, 2, 3]" in run.stdout, run.stderr[-2000:]
    assert run.stdout.count("epoch  1 of 3") == 1


def test_too_few_faces_to_learn_from_or_to_judge_by_are_counted(tiny, tables, tmp_path):
    training, validation = tables
    for faces, told in (
        ((training.head(1), validation), "1 and 10"),
        ((training, validation.head(0)), "30 and 0"),
    ):
        with pytest.raises(ValueError, match=f"there are {told}"):
            train.fit(tiny, *faces, tmp_path / "run")
    assert not (tmp_path / "run").exists()
