import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from agelib import conformal, data, metrics, predict, trust
from agelib.model import Trained
from tests.conftest import TINY, untrained
from tests.test_conformal import said, seen


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson 1927, by its formula."""
    z, share = norm.ppf(0.975), hits / n
    middle = share + z**2 / (2 * n)
    reach = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (middle - reach) / (1 + z**2 / n), (middle + reach) / (1 + z**2 / n)


def predicted(age: list, pred: list, reach: float | list = 5.0) -> pd.DataFrame:
    table = pd.DataFrame({"age": age, "pred_age": pred}, dtype=float)
    return table.assign(low=table["pred_age"] - reach, high=table["pred_age"] + reach)


def test_calibrated_intervals_hold_what_they_promise_at_each_level():
    """Of a network that errs by 8 years, and says by 4."""
    rng = np.random.default_rng(0)
    age = rng.integers(15, 86, 3000)
    faces = pd.DataFrame({"age": age, "digest": np.arange(3000).astype(str)})
    table = trust.reliability(said(seen(age, 8, rng), 4), faces, (0.5, 0.9))
    assert table["level"].tolist() == [0.5, 0.9]
    np.testing.assert_allclose(table["coverage"], [0.5, 0.9], atol=0.02)
    # a Gaussian quantile of half the spread, to the whole year
    honest = [2 * norm.cdf(norm.ppf(0.5 + q / 2) / 2) - 1 for q in (0.5, 0.9)]
    np.testing.assert_allclose(table["uncalibrated"], honest, atol=0.04)
    hits = round(table["coverage"].iloc[1] * 3000)
    assert table.loc[1, ["low", "high"]].tolist() == pytest.approx(wilson(hits, 3000))


def test_coverage_is_told_of_groups_that_are_large_enough():
    """40 faces of which 30 are inside, 30 of which all are, and 29."""
    age = [20] * 99
    pred = [20] * 30 + [40] * 10 + [20] * 30 + [40] * 29
    groups = pd.Categorical(["b"] * 40 + ["a"] * 30 + ["c"] * 29, ["c", "b", "a"])
    table = trust.coverage(predicted(age, pred), groups)
    assert table.index.tolist() == ["b", "a"]
    assert table["faces"].tolist() == [40, 30]
    assert table["coverage"].tolist() == [0.75, 1]
    assert table.loc["b", ["low", "high"]].tolist() == pytest.approx(wilson(30, 40))
    assert table["width"].tolist() == [10, 10]
    none = trust.coverage(predicted([20], [20]), ["only one"])
    assert none.empty
    assert none.columns.tolist() == table.columns.tolist()


def test_the_surest_are_answered_first():
    """Widths 2, 4, 6, 8 with errors 1, 3, 2, 10; the youngest answers are 47 and 51."""
    table = predicted([50] * 4, [51, 47, 52, 60], [1, 2, 3, 4])
    told = trust.abstention(table.sample(frac=1, random_state=0), shares=4)
    assert told["share"].tolist() == [0.25, 0.5, 0.75, 1]
    assert told["mae"].tolist() == [1, 2, 2, 4]
    assert told["at_most"].tolist() == [2, 4, 6, 8]
    assert told["youngest"].tolist() == [3, 2, 2, 4]
    assert told["ideal"].tolist() == [1, 1.5, 2, 4]


def test_equally_wide_intervals_are_answered_together():
    table = predicted([50] * 4, [51, 47, 52, 60], [1, 2, 2, 4])
    told = trust.abstention(table, shares=4)
    assert told["share"].tolist() == [0.25, 0.75, 1]
    assert told["mae"].tolist() == [1, 2, 4]


def test_an_abstention_of_fewer_faces_than_steps_answers_one_at_least():
    told = trust.abstention(predicted([50, 50], [51, 53], [2, 1]), shares=10)
    assert told["share"].tolist() == [0.5, 1]
    assert told["mae"].tolist() == [3, 2]


def test_who_passes_a_gate_and_who_is_refused():
    """A gate at 18 and at 25, of ages 10, 14, 17 | 18, 24, 40."""
    table = predicted([10, 14, 17, 18, 24, 40], [9, 19, 26, 17, 24.9, 30])
    told = trust.age_gate(table, (18, 25)).set_index(["challenge", "who"])
    shares = {
        (18, "minors passed"): (2, 3),
        (18, "14 to 17 passed"): (2, 2),
        (18, "adults refused"): (1, 3),
        (25, "minors passed"): (1, 3),
        (25, "14 to 17 passed"): (1, 2),
        (25, "adults refused"): (2, 3),
    }
    assert set(told.index) == set(shares)
    for key, (hits, n) in shares.items():
        row = told.loc[key]
        assert (row["share"], row["faces"]) == (hits / n, n)
        ends = pytest.approx(wilson(hits, n), abs=1e-9)
        assert (row["low"], row["high"]) == ends


@pytest.mark.parametrize(
    ("ages", "missing"),
    [([30, 40], ["minors passed", "14 to 17 passed"]), ([3, 16], ["adults refused"])],
)
def test_of_nobody_a_gate_has_no_share(ages, missing):
    told = trust.age_gate(predicted(ages, ages), [18]).set_index("who")
    assert told.index[told["share"].isna()].tolist() == missing
    assert (told.loc[missing, "faces"] == 0).all()
    assert told.drop(index=missing).notna().all(axis=None)


def test_a_column_of_few_values_is_a_grouping():
    table = predicted([20] * 40, [20] * 40).assign(
        file_id=[f"{n}.jpg" for n in range(40)],
        fold=0,
        camera=["a", "b"] * 20,
        year=[*range(12)] * 3 + [0] * 4,
        clinic=range(40),
        country="here",
        nothing=np.nan,
    )
    names, others = trust.grouping(table)
    assert names == ["camera", "year"]
    assert list(others) == ["clinic", "country", "nothing"]
    assert others["clinic"] == "it has 40 values, not 2 to 12"
    assert others["country"] == "it has 1 value, not 2 to 12"


def test_the_error_by_a_column_is_told_by_age_as_well():
    """Two cameras of 40 faces: `a` errs by 2 years, `b` by 4, half of them inside."""
    age = [25] * 30 + [65] * 10 + [25] * 10 + [45] * 30
    pred = [*(np.array(age[:40]) + 2), *(np.array(age[40:]) - 4)]
    reach = [5] * 60 + [3] * 20
    cameras = ["a"] * 40 + ["b"] * 40
    table = predicted(age, pred, reach).assign(camera=cameras)
    told = trust.by_column(table, "camera").set_index(["value", "ages"])
    found = told[["faces", "mae", "bias", "coverage"]].T.to_dict("list")
    assert found == {
        ("a", "all"): [40, 2, 2, 1],
        ("a", "20-39"): [30, 2, 2, 1],
        ("b", "all"): [40, 4, -4, 0.5],
        ("b", "40-59"): [30, 4, -4, pytest.approx(1 / 3)],
    }
    # an empty value is no group
    without = trust.by_column(table.replace({"camera": {"a": np.nan}}), "camera")
    assert set(without["value"]) == {"b"}


def test_a_group_of_one_face_is_left_out():
    table = predicted([20] * 31, [20] * 31).assign(camera=["a"] * 30 + ["b"])
    assert set(trust.by_column(table, "camera")["value"]) == {"a"}
    nobody = trust.by_column(table.head(3), "camera")
    assert nobody.empty
    assert "coverage" in nobody
    with pytest.raises(ValueError, match="no column 'clinic'"):
        trust.by_column(table, "clinic")


def test_a_bad_photo_is_compared_with_the_same_faces_as_they_are(dataset):
    faces = data.read_train(dataset).head(6)
    net = untrained()
    net.calibration = np.tile(conformal.SHARES, (101, 1)).astype(np.float32)
    trained = {"mine": Trained(net, TINY)}
    told = trust.bad_photos(trained, faces, ["as it is", "grey"], views=1)
    assert told["photo"].tolist() == ["as it is", "grey"]
    clean = predict.predict(trained["mine"], faces, views=1)
    row = told.iloc[0]
    assert row["mae"] == pytest.approx(metrics.mae(clean), abs=1e-4)
    assert row["width"] == pytest.approx((clean["high"] - clean["low"]).mean())
    assert row["coverage"] == metrics.interval_coverage(clean)
    assert told["cost"].tolist() == pytest.approx([0, told["mae"].diff().iloc[1]])
