import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from agelib import data, loop, metrics, model, predict, recipe, train
from agelib.loss import age_loss
from tests.conftest import TINY


def test_the_regression_loss_is_the_mean_absolute_error():
    outputs, age = torch.tensor([[20.0], [50.0]]), torch.tensor([23.0, 49.0])
    loss = age_loss(outputs, age, replace(TINY, head="regression"))
    assert loss == pytest.approx((3 + 1) / 2)


def test_the_distribution_loss_is_cross_entropy_to_a_gaussian_plus_l1_of_the_mean():
    recipe = replace(TINY, label_std=2.0, l1_weight=0.5)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 101, generator=generator)
    ages = np.arange(101)
    expected = []
    # an age above 100 is learned as 100
    for row, age in zip(logits.numpy().astype(float), (30, 116), strict=True):
        p = np.exp(row) / np.exp(row).sum()
        target = np.exp(-((ages - min(age, 100)) ** 2) / (2 * 2.0**2))
        target /= target.sum()
        error = abs((p * ages).sum() - min(age, 100))
        expected.append(-(target * np.log(p)).sum() + 0.5 * error)
    loss = age_loss(logits, torch.tensor([30.0, 116.0]), recipe)
    assert loss == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.fixture
def run(tiny, tables, tmp_path):
    """A function that trains the tiny recipe, with changes, in a folder."""

    def fit(name: str = "run", fresh: bool = False, **changes) -> pd.DataFrame:
        recipe = replace(tiny, **changes)
        return train.fit(recipe, *tables, tmp_path / name, fresh)

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


def test_an_epoch_is_judged_and_kept_at_the_size_that_it_learned(
    run, tables, tmp_path, monkeypatch
):
    update = loop.Loop.update

    def stop_in_the_second_epoch(self, *batch):
        if self.history:
            raise KeyboardInterrupt
        update(self, *batch)

    monkeypatch.setattr(loop.Loop, "update", stop_in_the_second_epoch)
    # 43 pixels short of 96 in the first epoch, in steps of 32
    history = run(epochs=3, image_size=96, first_size=32)
    trained = model.load(tmp_path / "run" / "model.safetensors")
    assert trained[1].image_size == 64
    again = predict.predict(trained, tables[1])
    assert metrics.mae(again) == pytest.approx(history["val_mae"][0], abs=1e-3)


def test_the_intervals_written_are_those_the_saved_model_gives(run, tables, tmp_path):
    history = run(head="regression")
    written = pd.read_csv(tmp_path / "run" / "validation.csv")
    trained = model.load(tmp_path / "run" / "model.safetensors")
    assert trained[0].scale == pytest.approx(history["val_mae"].min())
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
    update = loop.Loop.update

    def stop(self, *batch):
        if self.updates == step:
            raise RuntimeError("the power went off")
        update(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "update", stop)
        with pytest.raises(RuntimeError, match="power"):
            run("stopped")
    # the pretrained weights are not needed again
    monkeypatch.delenv("AGELIB_WEIGHTS")
    stopped = run("stopped")
    columns = ["epoch", "train_loss", "val_mae", "lr"]
    pd.testing.assert_frame_equal(stopped[columns], whole[columns], check_exact=True)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(expected[k], found[k]) for k in expected)


def test_an_interrupt_keeps_the_complete_epochs(run, tmp_path, monkeypatch, capsys):
    update = loop.Loop.update

    def interrupt(self, *batch):
        if self.updates == interrupted_at:
            raise KeyboardInterrupt
        update(self, *batch)

    monkeypatch.setattr(loop.Loop, "update", interrupt)
    interrupted_at = 2
    with pytest.raises(KeyboardInterrupt):
        run()
    interrupted_at = 4
    assert run()["epoch"].tolist() == [1]
    assert "Interrupted in epoch 2" in capsys.readouterr().out
    assert weights(tmp_path / "run")


def test_a_batch_in_parts_has_the_gradients_of_the_whole(tiny, tables, tmp_path):
    gradients = []
    for parts in (1, 3):
        torch.manual_seed(0)
        whole = loop.Loop(tiny, *tables, tmp_path / str(parts), parts=parts)
        # batch norm in evaluation: its statistics are those of a part
        whole.net.eval()
        images, age, _ = next(iter(whole.batches))
        total = whole.add_gradients(images, age)
        mean = age_loss(whole.net(images), age, tiny)
        assert total == pytest.approx(mean.item(), rel=1e-5)
        gradients.append([p.grad for p in whole.plain.parameters()])
        whole.close()
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def too_small_for(faces: int, sizes: list[int], monkeypatch) -> None:
    """A GPU whose memory ends at so many faces; notes how many were computed."""

    def forward(outputs, *others):
        if len(outputs) > faces:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to ...")
        sizes.append(len(outputs))
        return age_loss(outputs, *others)

    monkeypatch.setattr(loop, "age_loss", forward)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    run, tmp_path, monkeypatch, capsys
):
    sizes = []
    too_small_for(3, sizes, monkeypatch)
    run(epochs=1)
    history = run(fresh=True, epochs=2)
    # three batches of 8 an epoch, in quarters; halved anew in each of the two runs
    assert sizes == [2] * 4 * 3 * (1 + 2)
    assert history["epoch"].tolist() == [1, 2]
    # each try starts from the first one's folder
    assert [p.name for p in sorted(tmp_path.glob("run*"))] == ["run", "run.old-1"]
    told = capsys.readouterr().out
    assert told.count("each batch in 4 parts of at most 2 faces") == 2


def test_processes_that_run_out_of_memory_are_started_anew(
    tiny, tables, tmp_path, monkeypatch
):
    """With a stand-in for the launcher, which wraps what a process raised."""
    parts = []

    def launch(function, arguments, num_processes):
        *_, options = arguments
        parts.append(options["parts"])
        if len(parts) == 1:
            raise RuntimeError("An issue was found ...: CUDA out of memory. Tried ...")
        function(*arguments)

    monkeypatch.setattr(train, "notebook_launcher", launch)
    history = train.fit(tiny, *tables, tmp_path / "run", processes=2)
    assert parts == [1, 2]
    assert history["epoch"].tolist() == [1, 2, 3]


def test_memory_too_small_for_two_faces_is_an_error(run, monkeypatch):
    too_small_for(1, [], monkeypatch)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run(epochs=1)


@pytest.fixture
def clock(monkeypatch):
    """Time as the loop sees it: a second for every step."""

    class Clock:
        now = 1000.0

        def perf_counter(self):
            return self.now

    clock, update = Clock(), loop.Loop.update

    def slow(self, *batch):
        clock.now += 1
        update(self, *batch)

    monkeypatch.setattr(loop.Loop, "update", slow)
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(train, "time", clock)
    return clock


def test_an_epoch_that_would_end_too_late_is_not_begun(
    tiny, tables, tmp_path, clock, capsys
):
    """Three seconds an epoch; a twentieth of the ten seconds is kept."""
    choices = replace(tiny, epochs=5)
    history = train.fit(choices, *tables, tmp_path / "run", time_limit=10 / 3600)
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["seconds"].tolist() == [3, 3, 3]
    assert clock.now == 1009
    assert "Stopped before epoch 4 of 5" in capsys.readouterr().out
    assert weights(tmp_path / "run")
    # without a limit it goes on
    history = train.fit(choices, *tables, tmp_path / "run")
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5]


def test_larger_faces_are_expected_to_take_longer(tiny, tables, tmp_path, clock):
    """64, then 96 pixels a side: 3 seconds, then 3 (96 / 64)^2 = 6.75."""
    choices = replace(tiny, epochs=2, image_size=96, first_size=32)
    assert [choices.size_in(epoch) for epoch in (0, 1)] == [64, 96]
    for number, (left, epochs) in enumerate([(9.7, [1]), (9.8, [1, 2])]):
        limit = left / 0.95 / 3600
        history = train.fit(choices, *tables, tmp_path / str(number), time_limit=limit)
        assert history["epoch"].tolist() == epochs


def test_the_limit_ends_an_epoch_that_turns_out_too_slow(
    run, tiny, tables, tmp_path, clock, capsys
):
    whole = run("whole")
    with pytest.raises(TimeoutError, match="Stopped in epoch 1 of 3"):
        train.fit(tiny, *tables, tmp_path / "run", time_limit=1 / 3600)
    # what was learned is kept: one second, and so one step, is done
    history = train.fit(tiny, *tables, tmp_path / "run")
    assert "Going on in epoch 1, after step 1" in capsys.readouterr().out
    columns = ["epoch", "train_loss", "val_mae", "lr"]
    pd.testing.assert_frame_equal(history[columns], whole[columns], check_exact=True)


def test_a_finished_run_is_not_trained_again(run, monkeypatch, capsys):
    first = run()
    monkeypatch.setattr(
        loop.Loop, "train_epoch", lambda *_: pytest.fail("trained again")
    )
    pd.testing.assert_frame_equal(run(), first)
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


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_files(run, monkeypatch):
    monkeypatch.setattr(loop, "age_loss", lambda outputs, *_: outputs.sum() * math.nan)
    with pytest.raises(
        FloatingPointError, match=r"nan at step 1, .*image_\d+\.jpg.*learning_rate"
    ):
        run()


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
    faces = data.split(data.read_train(dataset), folds=4)
    held_out = faces.loc[faces["fold"] == 0, "file_id"].tolist()
    assert pd.read_csv(folder / "validation.csv")["file_id"].tolist() == held_out
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
