"""The measured tables are in a clone and in a wheel, and agree with each other."""

import zipfile

import numpy as np
import pandas as pd
import pytest

from agelib import env, kaggle, metrics, results


def test_ages_are_counted_as_often_as_they_occur():
    ages = results.ages()["age"]
    faces = results.faces()
    assert len(ages) == faces["training faces"] == 21340
    assert 100 * (ages == 26).mean() == pytest.approx(faces["% aged 26"], abs=0.005)
    assert ages.median() == faces["half are younger than"]
    constant = (ages - ages.median()).abs().mean()
    assert constant == pytest.approx(faces["error of the constant, years"], abs=0.005)


@pytest.mark.parametrize("run", ["cpu", "quick", "lite0"])
def test_the_best_epoch_is_the_one_that_predicted(run):
    best = results.history(run)["val_mae"].min()
    assert metrics.mae(results.validation(run)) == pytest.approx(best, abs=0.001)


def test_all_runs_predicted_the_faces_that_were_held_out():
    tables = [results.validation(run) for run in ("cpu", "quick", "lite0", "best")]
    for table in tables:
        assert table["age"].tolist() == tables[0]["age"].tolist()
        assert len(table) == results.held_out().size == 2135


def test_a_variant_is_compared_with_the_base_of_its_seeds():
    """By hand from `ablation.csv`: mixup with seeds 0 to 2."""
    table = results.ablation().set_index("change")
    mixup = table.loc["mixup added"]
    told = pd.read_csv(env.HOME / "data" / "results" / "ablation_ages.csv")
    error = [
        (told[f"{run}/{seed}"] - told["age"]).abs().mean()
        for run in ("mixup 0.2", "base")
        for seed in range(3)
    ]
    assert mixup["seeds"] == 3
    assert mixup["mae"] == pytest.approx(np.mean(error[:3]), abs=0.001)
    assert mixup["difference"] == pytest.approx(
        np.mean(error[:3]) - np.mean(error[3:]), abs=0.001
    )
    assert table.notna().all(axis=None)


@pytest.mark.parametrize(
    ("network", "run"),
    [
        ("quick", "quick"),
        ("earlier cpu", "folds/cpu-192"),
        ("four networks averaged", "folds/four"),
    ],
)
def test_a_score_stands_beside_the_validation_error(network, run):
    told = results.scores().loc[network]
    measured = metrics.summary(results.validation(run))
    for ours, theirs in (("validation", "mae"), ("low", "low"), ("high", "high")):
        assert told[ours] == round(measured[theirs], 2)


def test_the_folds_are_told_as_they_answered():
    told = results.folds()
    answers = pd.read_csv(env.HOME / "data" / "results" / "folds" / "quick" / "oof.csv")
    held_out = [answers["fold"] == n for n in range(5)]
    assert told["faces"].tolist() == [21340, *map(sum, held_out)]
    measured = [metrics.mae(answers), *(metrics.mae(answers[h]) for h in held_out)]
    np.testing.assert_allclose(told["mae"], measured, atol=0.002)


def test_the_best_answer_is_the_mean_of_three():
    told = [
        results.validation(run)["pred_age"] for run in ("folds/four", "lite0", "cpu")
    ]
    best = results.validation("best")["pred_age"]
    np.testing.assert_allclose(best, np.mean(told, axis=0), atol=0.002)


def test_what_a_spoiled_photo_costs_is_told_beside_the_same_faces_as_they_are():
    table = results.robustness()
    as_it_is = table[table["photo"] == "as it is"].set_index("network")["mae"]
    assert len(as_it_is) == 3
    cost = table["mae"] - table["network"].map(as_it_is)
    np.testing.assert_allclose(table["cost"], cost, atol=0.0015)
    assert table["mae"].between(table["low"], table["high"]).all()


def test_every_variant_that_was_run_has_its_place():
    runs = results._read("ablation.csv")["run"].str.rpartition("/")[0]
    named = results._read("ablation_groups.csv")["run"]
    assert set(named) == set(runs) - {"base"}


def test_the_wheel_brings_the_tables_and_no_picture(tmp_path):
    kaggle._wheel(tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        sizes = {
            file.filename.removeprefix("agelib/measured/"): file.compress_size
            for file in archive.infolist()
            if file.filename.startswith("agelib/measured/")
        }
    needed = {"faces.csv", "ages.csv", "ablation.csv", "ablation_groups.csv"}
    needed |= {"robustness.csv", "decoding.csv", "detectors.csv", "framing.csv"}
    needed |= {"scores.csv"}
    needed |= {f"{run}/oof.csv" for run in ("cpu", "quick", "lite0", "best")}
    needed |= {f"{run}/history.csv" for run in ("cpu", "quick", "lite0")}
    tables = ("faces", "reliability", "coverage", "groups")
    needed |= {f"trust/{name}.csv" for name in tables}
    assert needed <= sizes.keys()
    assert all(name.endswith(".csv") for name in sizes)
    assert sum(sizes.values()) < 500_000
