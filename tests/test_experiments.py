"""The experiments and the benchmark run on a few faces, and write what they promise."""

import importlib.util
import inspect
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import stats

from agelib import (
    ages,
    data,
    degrade,
    export,
    files,
    metrics,
    model,
    outcome,
    predict,
    results,
    runs,
    train,
)
from agelib.model import Trained
from tests.conftest import TINY, untrained, write_dataset, write_weights

HERE = Path(__file__).parent
SAMPLE = HERE.parent / "data" / "sample"
# the fixture's faces are noise of one grey
pytestmark = pytest.mark.filterwarnings("ignore:.*hardly show a face")


def load(name: str, folder: str = "experiments") -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, HERE / folder / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture
def call(monkeypatch) -> Callable:
    """A function that runs a script as its command line does."""

    def main(script: ModuleType, *words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, words)])
        script.main()

    return main


@pytest.fixture
def beside(monkeypatch) -> Callable:
    """`load` for the scripts that import another script."""
    monkeypatch.syspath_prepend(HERE / "experiments")
    return load


def distributions(seed: int, table: pd.DataFrame, views: int) -> np.ndarray:
    return predict.distributions(Trained(untrained(seed=seed), TINY), table, views)


@pytest.fixture
def models(tmp_path) -> list[Path]:
    """The files of two untrained models, in the folders `run-0` and `run-1`."""
    files = [tmp_path / f"run-{seed}" / runs.MODEL for seed in (0, 1)]
    for seed, file in enumerate(files):
        file.parent.mkdir()
        model.save(untrained(seed=seed), TINY, file)
    return files


@pytest.fixture
def held_out(dataset) -> pd.DataFrame:
    return data.hold_out(data.read_train(dataset))[1]


# -- ablation: one short training of each variant --------------------------------------

ABLATION = load("ablation")
SMALL = {"backbone": TINY.backbone, "epochs": 1, "batch_size": 8}


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> Iterator[Callable]:
    """A function that trains a variant with a small network, once; the run's folder."""
    home = tmp_path_factory.mktemp("ablation")
    faces = write_dataset(home / "faces")

    def train(name: str) -> Path:
        run = home / "runs" / name
        size = max(32, ABLATION.VARIANTS[name].recipe.first_size)
        if not run.exists():
            ABLATION.train_one(name, 0, faces, run, image_size=size, **SMALL)
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGELIB_WEIGHTS", str(write_weights(home / "weights")))
        yield train


def only_epoch(run: Path) -> tuple[float, float]:
    (epoch,) = pd.read_csv(run / runs.HISTORY).to_dict("records")
    return epoch["train_loss"], epoch["val_mae"]


@pytest.mark.parametrize("name", ABLATION.VARIANTS)
def test_each_variant_trains_and_is_not_the_base(small_run, name):
    if "doubtful" in name:
        pytest.importorskip("cleanlab", reason="cleanlab finds the doubtful labels")
    run = small_run(name)
    assert np.isfinite(only_epoch(run)).all()
    noted = json.loads((run / runs.RECIPE).read_text())
    assert (noted["name"], noted["seed"], noted["folds"]) == (name, 0, 10)
    assert len(pd.read_csv(run / runs.VALIDATION)) == 4
    # here all faces are as small, and no two are copies
    same = name in ("base", "128 px", "no disagreeing copies")
    assert (only_epoch(run) == only_epoch(small_run("base"))) == same


@pytest.fixture
def answers() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Logits and ages of two faces, and the probabilities in double precision."""
    logits = torch.randn(2, 101, generator=torch.Generator().manual_seed(0))
    p = np.exp(logits.numpy().astype(float))
    return logits, torch.tensor([30.0, 116.0]), p / p.sum(1, keepdims=True)


def test_the_losses_of_classes_are_those_of_their_papers(answers):
    logits, age, p = answers
    # an age above 100 is learned as 100
    of_class = -np.log([p[0, 30], p[1, 100]]).mean()
    assert ABLATION.one_hot(logits, age, TINY) == pytest.approx(of_class, rel=1e-5)
    quarter = torch.tensor([30.25, 116.0])
    between = -(0.75 * np.log(p[0, 30]) + 0.25 * np.log(p[0, 31]) + np.log(p[1, 100]))
    found = ABLATION.two_hot(logits, quarter, TINY)
    assert found == pytest.approx(between / 2, rel=1e-5)
    years = np.arange(101)
    mean = p @ years
    variance = p @ years**2 - mean**2
    error = ((mean - (30, 100)) ** 2).mean() / 2
    expected = of_class + 0.2 * error + 0.05 * variance.mean()
    found = ABLATION.mean_variance(logits, age, TINY)
    assert found == pytest.approx(expected, rel=1e-4)
    older = 1 - p.cumsum(1)[:, :-1]
    is_older = np.array([[30], [116]]) > years[:-1]
    expected = -np.log(np.where(is_older, older, 1 - older)).sum(1).mean()
    assert ABLATION.ordinal(logits, age, TINY) == pytest.approx(expected, rel=1e-3)


def test_labels_where_ages_are_heaped_are_wider(answers):
    logits, _, _ = answers
    age = torch.tensor([26.0, 27.0])
    apart = [
        ages.age_loss(logits[[face]], age[[face]], replace(TINY, label_std=std))
        for face, std in ((0, 3.0), (1, TINY.label_std))
    ]
    found = ABLATION.wide_where_heaped(logits, age, TINY)
    assert found == pytest.approx(sum(apart).item() / 2, rel=1e-5)


def test_rare_ages_weigh_as_their_number_in_training_says(answers):
    logits, age, _ = answers
    # 36 faces of 30 years; of 100 years and more fewer than the least that counts, 20
    faces = pd.DataFrame({"age": [30] * 36 + [100, 116]})
    apart = [ages.age_loss(logits[[face]], age[[face]], TINY).item() for face in (0, 1)]
    expected = np.average(apart, weights=[36**-0.5, 20**-0.5])
    found = ABLATION.weighted(faces, power=0.5)(logits, age, TINY)
    assert found == pytest.approx(expected, rel=1e-5)


def test_mixup_draws_a_share_and_leaves_the_steps_random_numbers(
    tiny, tables, tmp_path
):
    training = ABLATION.Mixup(replace(tiny, seed=2), *tables, tmp_path / "run")
    training.net.eval()
    images, age, rows = next(iter(training.batches))
    training.updates = 3
    torch.manual_seed(5)
    found = training.batch_loss(images, age, rows)
    following = torch.rand(1)
    torch.manual_seed(2 * 1_000_003 + 3 + 500_000)
    share = torch.distributions.Beta(0.2, 0.2).sample().item()
    mixed = share * images.float() + (1 - share) * images.flip(0).float()
    of_each = [
        ages.age_loss(training.net(mixed), a, tiny).item() for a in (age, age.flip(0))
    ]
    assert found.item() == pytest.approx(
        np.average(of_each, weights=[share, 1 - share])
    )
    torch.manual_seed(5)
    assert torch.rand(1) == following
    training.close()


def test_sam_learns_from_the_gradients_of_the_worst_place_nearby(
    tiny, tables, tmp_path
):
    training = ABLATION.SharpnessAware(tiny, *tables, tmp_path / "run")
    net = training.net.eval()
    images, age, rows = next(iter(training.batches))
    weights = list(net.parameters())
    before = [weight.detach().clone() for weight in weights]
    loss = training.add_gradients(images, age, rows)
    found = [weight.grad for weight in weights]
    assert all(map(torch.equal, weights, before))

    def slope() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        here = ages.age_loss(net(images), age, tiny)
        return here, torch.autograd.grad(here, weights)

    here, uphill = slope()
    assert loss.item() == pytest.approx(here.item(), rel=1e-5)
    length = sum(part.square().sum() for part in uphill).sqrt()
    with torch.no_grad():
        for weight, part in zip(weights, uphill, strict=True):
            weight += 0.05 * part / length
    worse, expected = slope()
    assert worse > here
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    training.close()


def test_layer_decay_slows_the_early_layers(tiny, tables, tmp_path):
    training = ABLATION.LayerDecay(tiny, *tables, tmp_path / "run")
    scales = [group["lr_scale"] for group in training.optimizer.param_groups]
    powers = np.log(scales) / np.log(0.85)
    assert (min(powers.round(6)), max(powers) > 3) == (0, True)
    np.testing.assert_allclose(powers, powers.round(), atol=1e-6)
    training.close()


def test_copies_whose_ages_differ_are_left_out():
    faces = pd.DataFrame({"digest": list("aabbc"), "age": [3, 4, 5, 5, 6]})
    left = ABLATION.without_disagreeing_copies(faces, TINY, Path())
    assert left["age"].tolist() == [5, 5, 6]


def test_a_variant_is_judged_beside_the_base_of_its_seed():
    predicted = pd.DataFrame(
        {
            "age": [20.0, 40.0],
            "base/0": [22.0, 44.0],
            "base/1": [26.0, 40.0],
            "new/0": [21.0, 43.0],
            "new/1": [20.0, 40.0],
        }
    )
    trained = pd.DataFrame({"run": list(predicted)[1:], "epochs": 3, "minutes": 1.5})
    judged = ABLATION.judge(predicted, trained).set_index("run")
    # errors: 2 and 4, 6 and 0; 1 and 3, 0 and 0
    assert judged["mae"].to_dict() == {"base/0": 3, "base/1": 3, "new/0": 2, "new/1": 0}
    assert judged["against_base"].tolist() == [0, 0, -1, -3]
    assert judged["of_all_seeds"].tolist() == [0, 0, -2, -2]
    # of the face that gained 1 and 6, and of that which gained 1 and 0
    interval = judged.loc["new/1", ["of_all_seeds_low", "of_all_seeds_high"]]
    assert interval.tolist() == [-3.5, -0.5]
    assert judged.loc["new/0", "within_5"] == 1


def test_the_ablation_trains_what_is_not_in_its_tables_and_judges_all(
    call, dataset, tiny, tmp_path, monkeypatch
):
    for name in ("base", "l1_weight 0"):
        small = replace(ABLATION.VARIANTS[name].recipe, image_size=32, **SMALL)
        monkeypatch.setitem(ABLATION.VARIANTS, name, ABLATION.Variant(small))
    started = []

    def run_here(command, check, env):
        """In place of a process for each training."""
        started.append((command[-2], env["OMP_NUM_THREADS"]))
        call(ABLATION, *command[2:])

    monkeypatch.setattr(ABLATION.subprocess, "run", run_here)
    out = tmp_path / "out"
    call(ABLATION, dataset, out, "base/0")
    call(ABLATION, dataset, out, "base/0", "l1_weight 0/0")
    assert started == [("base/0", "1"), ("l1_weight 0/0", "1")]
    judged = pd.read_csv(out / "ablation.csv")
    assert judged["run"].tolist() == ["base/0", "l1_weight 0/0"]
    assert judged["epochs"].tolist() == [1, 1]
    told = pd.read_csv(out / "ablation_ages.csv")
    assert list(told) == ["file_id", "age", "base/0", "l1_weight 0/0"]
    error = (told["base/0"] - told["age"]).abs().mean()
    assert judged["mae"][0] == pytest.approx(error, abs=1e-3)
    kept = pd.read_csv(out / "runs" / "base-0" / "history.csv")
    assert judged["mae"][0] == pytest.approx(kept["val_mae"].min(), abs=0.01)
    for wrong in ("faster/0", "l1_weight 0/7"):
        with pytest.raises(SystemExit):
            call(ABLATION, dataset, out, wrong)
    assert len(started) == 2


def test_an_interrupted_training_is_not_judged(tiny):
    history = pd.DataFrame({"val_mae": [3.0, 2.0, 2.5]})
    ABLATION.complete(history, replace(tiny, epochs=3))
    ABLATION.complete(history, replace(tiny, epochs=9, patience=1))
    with pytest.raises(SystemExit, match="run the same command again"):
        ABLATION.complete(history, replace(tiny, epochs=4))


# -- others that train or predict ------------------------------------------------------


@pytest.mark.parametrize("share", [0.9, 0.5, 0.0])
def test_a_student_learns_a_share_of_its_teachers_and_the_rest_of_the_label(
    answers, share
):
    distil = load("distil")
    logits, age, p = answers
    taught = np.eye(101, dtype="float32")[[10, 20]]
    labels = [stats.norm(a, 1.5).pdf(np.arange(101)) for a in (30, 100)]
    labels = np.array([row / row.sum() for row in labels])
    target = share * taught + (1 - share) * labels
    shift = np.abs((p - target) @ np.arange(101)).mean()
    expected = -(target * np.log(p)).sum(1).mean() + TINY.l1_weight * shift
    found = distil.taught_loss(logits, age, torch.from_numpy(taught), TINY, share)
    assert found == pytest.approx(expected, rel=1e-4)
    by_default = distil.taught_loss(logits, age, torch.from_numpy(taught), TINY)
    assert (by_default == found) == (share == 0.9)


def test_distil_trains_a_student_of_what_the_teachers_say_of_each_face(
    call, dataset, tiny, models, tmp_path, monkeypatch
):
    distil = load("distil")
    monkeypatch.setattr(distil, "STUDENT", replace(tiny, name="student", epochs=1))
    asked = []

    def loss(outputs, age, taught, recipe, share):
        asked.append((age, taught))
        return ages.age_loss(outputs, age, recipe)

    monkeypatch.setattr(distil, "taught_loss", loss)
    call(distil, dataset, tmp_path / "out", *models)
    assert asked
    assert pd.read_csv(tmp_path / "out" / "history.csv")["epoch"].tolist() == [1]
    train_faces, _ = data.hold_out(data.read_train(dataset))
    both = [distributions(seed, train_faces, TINY.views_at_test) for seed in (0, 1)]
    taught = dict(zip(train_faces["age"], np.mean(both, axis=0), strict=True))
    # all ages are different
    for age, shares in ((a, s) for batch in asked for a, s in zip(*batch, strict=True)):
        np.testing.assert_allclose(shares, taught[age.item()], atol=1e-6)


@pytest.mark.parametrize("name", ["distil", "denoise"])
def test_a_network_that_knows_the_validation_faces_is_no_teacher_and_no_start(
    call, beside, dataset, models, tmp_path, monkeypatch, name
):
    """Of the four that are held out it has learned three."""
    _, held_out = data.hold_out(data.read_train(dataset))
    monkeypatch.setattr(results, "held_out", lambda: held_out["digest"].head(1))
    given = [tmp_path / "out", models[0]]
    given = given[::-1] if name == "denoise" else given
    told = f"{models[0]} has learned from 3 of the 4 validation faces"
    with pytest.raises(ValueError, match=re.escape(told)):
        call(beside(name), dataset, *given)
    assert not (tmp_path / "out").exists()


def test_mended_labels_come_from_networks_that_never_saw_them(
    call, beside, dataset, tiny, models, tmp_path, monkeypatch
):
    denoise = beside("denoise")
    short = replace(tiny, epochs=1)
    monkeypatch.setattr(denoise, "TEACHER", replace(short, name="teacher", folds=2))
    monkeypatch.setattr(denoise, "STUDENT", replace(short, name="student", folds=4))
    out, taught = tmp_path / "out", []

    def noting(of_teachers, share):
        taught.append(of_teachers.numpy())
        return student_loop(of_teachers, share)

    student_loop = denoise.student_loop
    monkeypatch.setattr(denoise, "student_loop", noting)
    call(denoise, dataset, models[0], out, 0, 0.5)
    train_faces, held_out = data.hold_out(data.read_train(dataset), 4)
    for fold in (0, 1):
        taught_by, new = data.hold_out(train_faces, 2, fold)
        assert not {*held_out["digest"]} & {*taught_by["digest"], *new["digest"]}
        teacher = model.load(out / "teachers" / f"fold-{fold}" / "model.safetensors")
        told = predict.distributions(teacher, new)
        rows = train_faces["file_id"].isin(new["file_id"]).to_numpy()
        np.testing.assert_allclose(taught[0][rows], told, atol=1e-3)
    table = pd.read_csv(out / "denoise.csv")
    for share, row in zip((0, 0.5), table.to_dict("records"), strict=True):
        found = pd.read_csv(out / f"share-{share}" / "validation.csv")
        assert row["share"] == share
        assert row["mae"] == pytest.approx(metrics.mae(found), abs=1e-3)
    # what the teachers say makes a difference
    plain, mended = (model.load(out / f"share-{s}" / runs.MODEL)[0] for s in (0, 0.5))
    pairs = zip(plain.parameters(), mended.parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)
    first, second = table["mae"]
    assert table["against_first"].tolist() == pytest.approx(
        [0, second - first], abs=2e-3
    )


def test_a_mended_label_is_held_against_the_labels_of_copies(beside):
    table = pd.DataFrame(
        {
            "file_id": list("abcde"),
            "digest": [1, 2, 1, 3, 3],
            "age": [20, 70, 30, 50, 50],
            "pred_age": [24, 10, 24, 44, 44],
        }
    )
    to_copies = beside("denoise").to_copies
    # 20 and 30 become 22 and 27, both 50 become 47
    assert to_copies(table, 0.5) == (8 + 7 + 3 + 3) / 4
    assert to_copies(table, 0) == (10 + 10 + 0 + 0) / 4


def test_quantised_files_are_judged_beside_the_exported_one(
    call, beside, dataset, models, tmp_path, monkeypatch
):
    quantise = beside("quantise")
    monkeypatch.setattr(quantise, "CALIBRATED_BY", 8)
    faces, out = data.read_train(dataset), tmp_path / "out"
    held_out = faces.head(20)
    monkeypatch.setattr(results, "held_out", lambda: held_out["digest"])
    call(quantise, dataset, out, models[0])
    table = pd.read_csv(out / "export.csv").set_index("file")
    by_torch = predict.predict(model.load(models[0]), held_out)
    # the export takes crops of 200 pixels, which these faces are not
    assert table["mae"]["float32"] == pytest.approx(metrics.mae(by_torch), abs=0.5)
    crops = export.read_crops(held_out)
    names = ("float32", "int8")
    first, second = (quantise.ages(out / f"{n}.onnx", crops)[0] for n in names)
    change = np.abs(second - first)
    assert table["mean_change"]["int8"] == pytest.approx(change.mean(), abs=0.01)
    assert table["largest_change"]["float32"] == 0
    assert 0 < change.max() < 20
    assert table["megabytes"]["int8"] < 0.8 * table["megabytes"]["float32"]


def test_the_ensemble_says_the_median_of_the_mean_distribution(
    call, dataset, models, held_out, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(results, "held_out", lambda: held_out["digest"])
    out = tmp_path / "out"
    call(load("ensemble"), dataset, out, *models, "--views", 2)
    together = pd.read_csv(out / "oof.csv")
    assert together["file_id"].tolist() == held_out["file_id"].tolist()
    test_faces = pd.read_csv(out / "test.csv")
    for table, faces in (
        (together, held_out),
        (test_faces, data.read_test(dataset)),
    ):
        both = [distributions(seed, faces, views=2) for seed in (0, 1)]
        expected = ages.quantile(np.mean(both, axis=0), 0.5)
        np.testing.assert_allclose(table["pred_age"], expected, atol=2e-3)
        assert (table["low"] < table["high"]).all()
    told = capsys.readouterr().out.splitlines()
    assert told[0].split()[:2] == ["faces", "mae"]
    *alone, last = (line.split() for line in told[1:])
    assert [row[0] for row in alone] == list(map(str, models))
    assert last[0] == "together"
    assert float(last[2]) == pytest.approx(metrics.mae(together), abs=2e-3)
    submission = pd.read_csv(out / "submission.csv")
    template = pd.read_csv(dataset / "submission.csv")
    assert submission["file_id"].equals(template["file_id"])
    assert submission["age"].tolist() == test_faces["pred_age"].tolist()


def test_what_a_network_said_takes_its_place_in_an_ensemble(
    call, dataset, models, held_out, tmp_path, monkeypatch
):
    monkeypatch.setattr(results, "held_out", lambda: held_out["digest"])
    said, out = tmp_path / "said", tmp_path / "out"
    call(load("ensemble"), dataset, said, models[1], "--views", 1)
    test_faces = data.read_test(dataset)
    both = ("oof", held_out), ("test", test_faces)
    # as if it were sure that they are 20, 21, 22, ... years old; the last face first
    for name, faces in both:
        sure = np.eye(ages.N_AGES)[20 + np.arange(len(faces))]
        outcome.write_distributions(sure[::-1], said / f"{name}.npz")
        backwards = pd.read_csv(said / f"{name}.csv").iloc[::-1]
        backwards.to_csv(said / f"{name}.csv", index=False)
    call(load("ensemble"), dataset, out, models[0], said, "--views", 1)
    for name, faces in both:
        half = distributions(0, faces, views=1) / 2
        half[np.arange(len(faces)), 20 + np.arange(len(faces))] += 0.5
        expected = ages.quantile(half, 0.5)
        told = pd.read_csv(out / f"{name}.csv")
        np.testing.assert_allclose(told["pred_age"], expected, atol=2e-3)
    backwards.head(2).to_csv(said / "test.csv", index=False)
    with pytest.raises(ValueError, match=r"said/test\.npz .* not of 2 faces"):
        call(load("ensemble"), dataset, out, models[0], said)
    told = pd.read_csv(said / "oof.csv")
    told.assign(digest="x").to_csv(said / "oof.csv", index=False)
    with pytest.raises(ValueError, match=r"of another dataset: its .*\.jpg is another"):
        call(load("ensemble"), dataset, out, said)
    elsewhere = "other-" + held_out["file_id"]
    for ids, told in ((elsewhere, "none of the"), ("a.jpg", "a.jpg more than once")):
        held_out.assign(file_id=ids).to_csv(said / "oof.csv", index=False)
        with pytest.raises(ValueError, match=f"oof.csv lists {told}"):
            call(load("ensemble"), dataset, out, said)


def test_robustness_tells_what_each_spoiled_photo_costs(
    call, dataset, models, held_out, tmp_path, monkeypatch
):
    robustness = load("robustness")
    monkeypatch.setattr(results, "held_out", lambda: held_out["digest"])
    out = tmp_path / "robustness.csv"
    networks = [f"{name}={file}" for name, file in zip("ab", models, strict=True)]
    call(robustness, dataset, out, *networks, "--views", 1)
    table = pd.read_csv(out).set_index(["network", "photo"])
    assert len(table) == 2 * len(degrade.PHOTOS)
    # by hand: the faces with less light
    dim = Trained(untrained(seed=1), TINY)
    darker = held_out.assign(path=[str(tmp_path / f"{n}.png") for n in held_out.index])
    for source, path in zip(held_out["path"], darker["path"], strict=True):
        pixels = np.asarray(Image.open(source).convert("RGB")) * 0.4
        Image.fromarray(pixels.astype("uint8")).save(path)
    row = table.loc[("b", "0.4 times the light")]
    error = metrics.mae(predict.predict(dim, darker, views=1))
    assert row["mae"] == pytest.approx(error, abs=0.02)
    plain = metrics.mae(predict.predict(dim, held_out, views=1))
    assert table.loc[("b", "as it is"), "mae"] == pytest.approx(plain, abs=0.001)
    assert row["cost"] == pytest.approx(row["mae"] - plain, abs=0.002)
    for wrong in (["a"], [*networks, networks[0]]):
        with pytest.raises(SystemExit):
            call(robustness, dataset, out, *wrong)


def test_photos_are_spoiled_of_faces_that_no_network_has_learned_from(
    call, dataset, tiny, tmp_path, monkeypatch
):
    faces, asked = data.read_train(dataset), []
    runs_of_folds = []
    for seed, folds in enumerate((2, 4)):
        one = replace(tiny, name=f"of-{folds}", epochs=1, folds=folds, seed=seed)
        runs_of_folds.append(tmp_path / one.name)
        train.fit(one, *data.hold_out(faces, folds), runs_of_folds[-1])
    networks = [f"{run.name}={run / runs.MODEL}" for run in runs_of_folds]
    monkeypatch.setattr(
        load("robustness").trust,
        "bad_photos",
        lambda trained, new, views: asked.append(new) or pd.DataFrame({"mae": [1.0]}),
    )
    call(load("robustness"), dataset, tmp_path / "robustness.csv", *networks)
    held_out = [set(data.hold_out(faces, folds)[1]["file_id"]) for folds in (2, 4)]
    assert set(asked[0]["file_id"]) == held_out[0] & held_out[1] != set()


def test_trust_tells_how_far_a_run_can_be_trusted(call, dataset, models, tmp_path):
    # a checkpoint, to which all these faces are new
    run, table = models[0], data.read_train(dataset)
    groups = table[["file_id"]].assign(sex=["male", "female"] * (len(table) // 2))
    groups.assign(note=groups["file_id"]).to_csv(tmp_path / "groups.csv", index=False)
    out = tmp_path / "out"
    call(load("trust"), dataset, run, out, "--columns", tmp_path / "groups.csv")
    written = {path.stem: pd.read_csv(path) for path in out.iterdir()}
    kinds = {"faces", "reliability", "coverage", "bandwidth", "methods", "groups"}
    assert set(written) == kinds
    # no name of a face, and no group of one
    columns = ["age", "pred_age", "low", "high", "fold", "level"]
    assert written["faces"].columns.tolist() == columns
    probabilities = distributions(0, table, TINY.views_at_test)
    below = [
        float(p[: int(age)].sum() + p[int(age)] / 2)
        for p, age in zip(probabilities, table["age"], strict=True)
    ]
    told = predict.cross_calibrated(probabilities, table).assign(fold=0, level=below)
    pd.testing.assert_frame_equal(written["faces"], told[columns], atol=0.006)
    at_90 = written["reliability"].set_index("level").loc[0.9, "coverage"]
    assert at_90 == pytest.approx(metrics.interval_coverage(told), abs=1e-4)
    assert written["bandwidth"]["bandwidth"].tolist() == [5, 10, 20, 40, 1000]


def test_trust_tells_what_is_wrong_with_a_table_of_groups(
    call, dataset, models, tmp_path
):
    trust, out, csv = load("trust"), tmp_path / "out", tmp_path / "groups.csv"
    faces = data.read_train(dataset)
    ids = faces["file_id"]
    for table, told in (
        ({"file_id": [*ids, ids[0]], "sex": "f"}, f"{ids[0]} more than once"),
        ({"file_id": ["x.jpg"], "sex": "f"}, "lists none of the faces"),
    ):
        pd.DataFrame(table).to_csv(csv, index=False)
        with pytest.raises(ValueError, match=f"groups.csv .*{told}"):
            call(trust, dataset, models[0], out, "--columns", csv)
    # a column that the predictions have as well, and none that groups the faces
    pd.DataFrame({"file_id": ids, "age": faces["age"]}).to_csv(csv, index=False)
    call(trust, dataset, models[0], out, "--columns", csv)
    assert len(pd.read_csv(out / "faces.csv")) == len(faces)


def test_copies_of_a_photo_calibrate_or_judge_together():
    """Eighty faces that exist twice."""
    rng = np.random.default_rng(0)
    faces = pd.DataFrame({"age": 20.0 + rng.integers(40, size=80), "digest": range(80)})
    faces = pd.concat([faces, faces], ignore_index=True)
    probabilities = rng.dirichlet(np.ones(ages.N_AGES), 160)
    halves = []
    script = load("trust")
    calibrate = script.conformal.calibrate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            script.conformal,
            "calibrate",
            lambda p, age: halves.append(sorted(age)) or calibrate(p, age),
        )
        table = script.by_method(probabilities, faces)
    assert len(halves) == 6
    for half in halves:
        assert len(half) == 80
        # whoever is there is there twice
        assert half[::2] == half[1::2]
    assert table["method"].tolist()[0] == "none"
    assert table["coverage"].between(0, 1).all()


def test_conformalised_quantile_regression_widens_as_much_as_is_needed():
    trust = load("trust")
    # of nineteen faces, the eighteenth must be reached to hold nine of the next ten
    assert trust._enough(np.arange(19.0), 0.9) == 17
    assert trust._enough(np.arange(5.0), 0.9) == 4
    table = pd.DataFrame(
        {"pred_age": [30.2, 2.0], "low": [20.5, 0.5], "high": [41.9, 9]}
    )
    wider = trust._widened(table, np.array([2.0, 3.0]))
    assert wider["low"].tolist() == [19, 0]
    assert wider["high"].tolist() == [43, 12]
    # never without the answer
    narrow = trust._widened(table, -15.0)
    assert (narrow["low"] <= narrow["pred_age"].round()).all()
    assert (narrow["high"] >= narrow["pred_age"].round()).all()


def test_decoding_compares_medians_means_and_modes_of_each_view_and_size(
    call, dataset, models, held_out, tmp_path, monkeypatch
):
    monkeypatch.setattr(results, "held_out", lambda: held_out["digest"])
    folders = [file.parent for file in models]
    call(load("decoding"), dataset, *folders, "--sizes", 48)
    table = pd.read_csv(tmp_path / "decoding.csv")
    assert list(table)[:5] == ["model", "size", "views", "decoding", "mae"]
    # two models in four numbers of views and at another size, then both together
    assert len(table) == (2 * 4 + 2 * 1 + 2) * 3
    told = table.set_index(["model", "size", "views", "decoding"])["mae"]
    p = distributions(0, held_out, views=2)
    years = {
        "median": ages.quantile(p, 0.5),
        "mean": (p * np.arange(101)).sum(1),
        "mode": np.argmax(p, axis=1),
    }
    for way, answer in years.items():
        error = np.abs(answer - held_out["age"]).mean()
        assert told["run-0", 32, 2, way] == pytest.approx(error, abs=2e-3)
    both = [distributions(seed, held_out, views=3) for seed in (0, 1)]
    error = np.abs(ages.quantile(np.mean(both, 0), 0.5) - held_out["age"]).mean()
    assert told["together", 0, 3, "median"] == pytest.approx(error, abs=2e-3)
    assert {"run-0", "run-1", "together", "averaged weights"} == set(table["model"])


def test_averaged_weights_are_the_mean_and_leave_the_models_alone():
    decoding = load("decoding")
    several = [Trained(untrained(seed=seed), TINY) for seed in (0, 1)]
    first, second = (trained.model.backbone.conv_stem.weight for trained in several)
    before = first.clone()
    mean = decoding.averaged(several).model.backbone.conv_stem.weight
    torch.testing.assert_close(mean, (before + second) / 2)
    assert torch.equal(first, before)


# -- faces in larger photos ------------------------------------------------------------


def test_as_many_training_faces_of_each_decade_are_taken(beside):
    faces = beside("scenes").sample(SAMPLE, per_band=2)
    assert faces["band"].value_counts().to_dict() == dict.fromkeys(range(0, 80, 10), 2)
    decade = (faces["age"] // 10 * 10).where(faces["age"] < 70, 70)
    assert decade.tolist() == faces["band"].tolist()
    learned, _ = data.hold_out(data.read_train(SAMPLE))
    assert set(faces["path"]) <= set(learned["path"])


def test_a_face_lies_in_the_scene_where_it_is_told(beside, tmp_path):
    for name, colour in (("red", (255, 0, 0)), ("white", (255, 255, 255))):
        Image.new("RGB", (50, 50), colour).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / f"{name}.png") for name in ("white", "red")]
    rng = np.random.default_rng(0)
    picture, truth = beside("scenes").scene(paths, rng, (100, 120), (10, 20))
    assert picture.size == (1000, 700)
    pixels = np.asarray(picture)
    for (x, y, side, turn), colour in zip(truth, ([255] * 3, [255, 0, 0]), strict=True):
        assert (100 <= side <= 120, 10 <= abs(turn) <= 20) == (True, True)
        # the circle inside the square, however that is turned
        down, across = np.ogrid[:700, :1000]
        inside = np.hypot(across - x, down - y) < side / 2 - 3
        assert (np.abs(pixels[inside].astype(int) - colour) < 3).all()


def test_a_box_is_a_face_that_it_lies_on_and_is_about_as_large_as(beside):
    truth = np.array([[100.0, 100, 80, 0], [300, 100, 80, 5]])
    boxes = np.array(
        [
            [60, 60, 80, 80],  # the first face exactly
            [65, 60, 80, 80],  # it again, a little off
            [281, 60, 80, 80],  # more than a quarter of a side off the second
            [290, 90, 20, 20],  # on it, but too small
        ],
        dtype=float,
    )
    match = beside("scenes").match
    assert match(boxes, truth) == [0, None]
    assert match(boxes[1:], truth) == [0, None]
    boxes[2, 0] = 279
    assert match(boxes, truth) == [0, 2]
    assert match(boxes[:0], truth) == [None, None]


@pytest.fixture
def detectors(beside):
    return beside("detectors")


def corners(truth: np.ndarray) -> np.ndarray:
    x, y, side, _ = truth.T
    return np.stack([x - side / 2, y - side / 2, side, side], 1)


def test_detectors_are_compared_by_what_they_find(detectors, monkeypatch):
    """One that finds all faces and something else, and one that finds nothing."""
    faces, places = detectors.sample(SAMPLE, per_band=1), []

    def scene(*given):
        picture, truth = paste(*given)
        places.append(truth)
        return picture, truth

    paste = detectors.scene
    monkeypatch.setattr(detectors, "scene", scene)
    some = {
        "all": lambda image: np.vstack([corners(places[-1]), [[0, 0, 9, 9]]]),
        "none": lambda image: np.zeros((0, 4)),
    }
    names = ["middle, 90 to 140 px", "middle, turned 90°"]
    conditions = {name: detectors.CONDITIONS[name] for name in names}
    sought, pictures = detectors.search(faces, some, conditions)
    # eight faces are two pictures
    assert (len(sought), len(pictures)) == (2 * 2 * 8, 2 * 2 * 2)
    table = detectors.compared(sought, pictures, {"all": 13, "none": 0})
    assert list(table) == ["all", "none"]
    assert table.loc[names, "all"].tolist() == [1, 1]
    assert table.loc["upright, 70 years and over"].tolist() == [1, 0]
    assert table.loc["extra boxes a picture"].tolist() == [1, 0]
    assert table.loc["boxes on faceless photos"].tolist() == [13, 0]
    bands = [name for name in table.index if name.startswith("upright")]
    assert bands[:2] == ["upright, 0 to 9 years", "upright, 10 to 19 years"]
    assert len(bands) == 8
    assert table.index[-1] == "seconds a picture"


@pytest.mark.parametrize("name", ["MTCNN", "OpenCV Haar alt2"])
def test_the_detectors_that_agelib_installs_find_drawn_faces(detectors, name):
    found = detectors.five_points
    if name != "MTCNN":
        found = detectors.haar_cascade("frontalface_alt2")
    faces = detectors.sample(SAMPLE, per_band=1).head(6)
    picture, truth = detectors.scene(
        faces["path"].tolist(), np.random.default_rng(0), detectors.MIDDLE
    )
    boxes = found(np.asarray(picture))
    assert sum(row is not None for row in detectors.match(boxes, truth)) >= 4
    assert found(np.zeros((200, 300, 3), "uint8")).shape == (0, 4)


def test_all_detectors_of_the_published_table_are_there(detectors):
    pytest.importorskip("dlib", reason="dlib-bin is no part of agelib")
    pytest.importorskip("skimage", reason="scikit-image is no part of agelib")
    published = pd.read_csv(HERE.parent / "data" / "results" / "detectors.csv")
    assert list(published)[1:] == list(detectors.candidates())


def test_framing_compares_faces_that_are_found_and_cropped_again(
    call, beside, models, tmp_path, capsys
):
    """With a model of noise, on drawn faces."""
    framing = beside("framing")
    out = tmp_path / "framing.csv"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*an age of it means little")
        call(framing, SAMPLE, models[0], out, "--faces", 6, "--per-band", 1)
    table = pd.read_csv(out)
    assert table["faces"].tolist() == [*framing.PICTURES, *framing.OFF]
    assert (table["found"] >= 0.5).all()
    # all of them are new to this model
    six = data.read_train(SAMPLE).sample(6, random_state=0)
    p = distributions(0, six, TINY.views_at_test)
    error = np.abs(ages.quantile(p, 0.5) - six["age"]).mean()
    whole = table.tail(len(framing.OFF))
    np.testing.assert_allclose(whole["mae_original"], error, atol=2e-3)
    assert (whole["mean_change"] > 0).all()
    # where the eyes are, the nose and the mouth: two rows of shares, across and down
    shares = capsys.readouterr().out.splitlines()[0].replace("[", "").replace("]", "")
    assert np.array(shares.split(), float).reshape(2, 5)[1, 2] == pytest.approx(
        0.52, abs=0.1
    )


# -- tables and pictures ---------------------------------------------------------------


def test_faces_counts_what_is_in_a_dataset(call, dataset, tmp_path):
    call(load("faces"), dataset, tmp_path)
    counted = pd.read_csv(tmp_path / "ages.csv")
    assert counted["age"].tolist() == list(range(1, 80, 2))
    assert counted["faces"].tolist() == [1] * 40
    told = pd.read_csv(tmp_path / "faces.csv").set_index("measure")["value"]
    assert (told["training faces"], told["test faces"]) == (40, 5)
    # the constant says 40
    assert told["error of the constant, years"] == 20


def test_charts_are_drawn_from_the_tables(call, dataset, tmp_path, monkeypatch):
    charts = load("charts")
    results, run = tmp_path / "results", tmp_path / "run"
    shutil.copytree(
        charts.RESULTS, results, ignore=shutil.ignore_patterns("*.png", "*.jpg")
    )
    monkeypatch.setattr(charts, "RESULTS", results)
    learned, judged = data.hold_out(data.read_train(SAMPLE), folds=4)
    runs.claim(run, replace(TINY, folds=4), learned, judged)
    predicted = judged.assign(pred_age=judged["age"], low=0.0, high=100.0)
    files.write_csv(predicted, run / runs.VALIDATION)
    call(charts, dataset, "--sample", run)
    drawn = {
        f"{file.parent.name}/{file.name}"
        for end in ("png", "jpg")
        for file in results.glob(f"**/*.{end}")
    }
    assert drawn >= {
        "cpu/pred_vs_true.png",
        "cpu/error_by_age.png",
        "cpu/within_years.png",
        "quick/pred_vs_true.png",
        "quick/error_by_age.png",
        "results/sample_faces.jpg",
    }
    with pytest.raises(SystemExit):
        call(charts)


# -- the benchmark ---------------------------------------------------------------------


@pytest.fixture
def speed(tmp_path, monkeypatch) -> ModuleType:
    """The script with turns of no time, and a file of its own."""
    script = load("speed", "benchmarks")
    monkeypatch.setattr(script, "SECONDS", 0)
    monkeypatch.setattr(script, "CSV", tmp_path / "speed.csv")
    monkeypatch.setenv("AGELIB_RUNS", str(tmp_path))
    monkeypatch.delenv("AGELIB_DATA", raising=False)
    return script


def test_each_line_of_the_benchmark_can_be_called(speed):
    for line in speed.LINES:
        for command in filter(None, (line.ours, line.other)):
            function, *given = command.split()
            inspect.signature(getattr(speed, function)).bind(*given)


def test_the_benchmark_trains_in_agelibs_way_and_in_the_plain_one(call, speed, capsys):
    call(speed, "--call", "our_training", TINY.backbone, 32, 8, 0)
    assert float(capsys.readouterr().out) > 0
    assert speed.plain_training(TINY.backbone, 32) > 0


def test_the_benchmark_keeps_the_best_of_several_rounds(call, speed, monkeypatch):
    told = {"our_prediction": [30.0, 50.0, 40.0], "plain_prediction": [9.0, 8.0, 10.0]}
    monkeypatch.setattr(speed, "_run", lambda call, alone: [told[call].pop()])
    call(speed, "prediction by")
    call(speed, "no such line")
    (row,) = pd.read_csv(speed.CSV, keep_default_na=False).to_dict("records")
    assert row["measure"].startswith("prediction by Lite0")
    assert (row["ours"], row["other"], row["ratio"]) == (50, 10, 5)


def test_a_line_measured_again_takes_the_place_of_the_earlier_one(speed):
    measures = [line.measure for line in speed.LINES]
    for at, ours in ((3, 1.0), (0, 2.0), (3, 3.0)):
        speed.keep({"measure": measures[at], "ours": ours})
    table = pd.read_csv(speed.CSV)
    assert table["measure"].tolist() == [measures[0], measures[3]]
    assert table["ours"].tolist() == [2, 3]


def test_the_benchmarks_faces_are_repeated_if_there_are_fewer(speed):
    table = speed.faces(300)
    assert len(table) == 300
    assert table["path"].nunique() < 300
    assert all(os.path.isfile(path) for path in table["path"].head(5))
