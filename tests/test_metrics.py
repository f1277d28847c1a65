"""Metrics against numbers worked out by hand or by an independent path."""

import numpy as np
import pandas as pd
import pytest

from agelib import metrics


def ages(true, pred, **columns) -> pd.DataFrame:
    return pd.DataFrame({"age": true, "pred_age": pred, **columns}, dtype=float)


@pytest.fixture
def many() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    true = rng.integers(1, 90, 400)
    return ages(true, true + rng.laplace(1, 5, 400))


THREE = ages([20, 40, 60], [21, 38, 63])


def test_mae_is_the_mean_over_all_faces():
    assert metrics.mae(THREE) == 2.0


def test_errors_are_positive_when_the_answer_is_too_old():
    assert metrics.errors(THREE).tolist() == [1, -2, 3]


def test_within_counts_an_error_of_exactly_that_many_years():
    assert metrics.within(THREE, 2) == pytest.approx(2 / 3)
    assert metrics.within(THREE, 0.5) == 0


def interval(table: pd.DataFrame) -> tuple[float, float]:
    return tuple(metrics.summary(table)[["low", "high"]])


def test_interval_equals_a_bootstrap_by_hand(many):
    error = np.abs(many["pred_age"] - many["age"]).to_numpy()
    drawn = np.random.default_rng(7).integers(0, 400, (4000, 400))
    by_hand = np.percentile(error[drawn].mean(axis=1), [2.5, 97.5])
    assert interval(many) == pytest.approx(by_hand, abs=0.06)


def test_interval_holds_the_mae_and_narrows_with_more_faces(many):
    few = many.head(25)
    low, high = interval(many)
    few_low, few_high = interval(few)
    assert low < metrics.mae(many) < high
    assert few_low < metrics.mae(few) < few_high
    assert high - low < (few_high - few_low) / 2


def test_interval_is_the_same_each_time(many):
    assert interval(many) == interval(many)


def test_fewer_than_ten_faces_have_no_interval(many):
    assert np.isfinite(interval(many.head(10))).all()
    for few in (1, 2, 9):
        assert np.isnan(interval(many.head(few))).all()


def test_summary_by_hand():
    table = ages([20, 40, 60, 80], [21, 38, 63, 74])
    found = metrics.summary(table)
    assert found["faces"] == 4
    assert found["mae"] == 3
    assert found["median_error"] == 2.5
    assert found["rmse"] == pytest.approx(np.sqrt(50 / 4))
    assert found["bias"] == -1
    assert found["within_5"] == 0.75


def test_bands_keep_the_edges_in_the_right_one():
    table = ages([10, 116, 0, 9, 9.5], [13, 100, 4, 8, 9.5])
    assert list(metrics.age_bands(table)) == ["10-19", "110-119", "0-9", "0-9", "0-9"]
    bands = metrics.by_age_band(table)
    assert bands.index.tolist() == ["0-9", "10-19", "110-119"]
    assert bands["faces"].tolist() == [3, 1, 1]
    assert bands["mae"].tolist() == pytest.approx([5 / 3, 3, 16])
    assert bands["bias"].tolist() == pytest.approx([1, 3, -16])
    assert bands["median_error"].tolist() == pytest.approx([1, 3, 16])
    assert bands["low"].isna().all()


def test_bands_of_another_width(many):
    bands = metrics.by_age_band(many, width=30)
    assert bands.index.tolist() == ["0-29", "30-59", "60-89"]
    middle = many[many["age"].between(30, 59)]
    assert bands.loc["30-59", "faces"] == len(middle)
    expected = (metrics.mae(middle), *interval(middle))
    assert tuple(bands.loc["30-59", ["mae", "low", "high"]]) == pytest.approx(expected)


def test_a_band_has_a_width():
    with pytest.raises(ValueError, match="width >= 1"):
        metrics.by_age_band(THREE, width=0)


def test_slices_may_overlap_and_may_be_empty():
    slices = {"old": THREE["age"] > 30, "low": [False, True, False], "no": [False] * 3}
    rows = metrics.by_slice(THREE, slices)
    assert rows.index.tolist() == ["all", "old", "low", "no"]
    assert rows["faces"].tolist() == [3, 2, 1, 0]
    assert rows["mae"].tolist() == pytest.approx([2, 2.5, 2, np.nan], nan_ok=True)
    assert rows["bias"].tolist() == pytest.approx([2 / 3, 0.5, -2, np.nan], nan_ok=True)


def test_slices_come_as_a_table_too():
    slices = pd.DataFrame({"a": [True, False, True]}, index=THREE.index)
    assert metrics.by_slice(THREE, slices).loc["a", "mae"] == 2


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([True], "3 booleans"),
        ([0, 1, 1], "booleans"),
        (pd.Series([True] * 3, index=[2, 1, 0]), "another index"),
    ],
)
def test_a_slice_must_fit_the_table(mask, message):
    with pytest.raises(ValueError, match=message) as raised:
        metrics.by_slice(THREE, {"dark": mask})
    assert "'dark'" in str(raised.value)


def test_constant_mae_answers_the_training_median():
    train = pd.DataFrame({"age": [10, 20, 90]})
    assert metrics.constant_mae(train, THREE) == pytest.approx((0 + 20 + 40) / 3)


def test_coverage_counts_the_ends_of_the_interval():
    table = ages([20, 40, 60, 70], [0] * 4, low=[20, 41, 50, 0], high=[25, 45, 60, 69])
    assert metrics.interval_coverage(table) == 0.5


def test_coverage_counts_whole_years_and_all_above_100_as_100():
    table = ages([20.4, 20.6, 116], [0] * 3, low=[20, 20, 90], high=[20, 20, 100])
    assert metrics.inside(table).tolist() == [True, False, True]


def test_two_predictors_are_compared_face_by_face():
    true = np.tile([20.0, 40.0, 60.0], 100)
    one, other = ages(true, true + 3), ages(true, true - np.tile([2.0, 4.0, 6.0], 100))
    # 3 - 2, 3 - 4 and 3 - 6 years
    found = metrics.compare(one, other)
    assert found["difference"] == pytest.approx(-1)
    # of a mean of 300 such, whose standard deviation is 1.63
    assert found["low"] == pytest.approx(-1 - 1.96 * 1.63 / 300**0.5, abs=0.02)
    assert found["high"] == pytest.approx(-1 + 1.96 * 1.63 / 300**0.5, abs=0.02)
    # whichever way each of them errs, and however hard the faces are
    assert metrics.compare(ages(true, true - 30), ages(true, true + 30)).eq(0).all()
    with pytest.raises(ValueError, match="not of the same faces"):
        metrics.compare(one, other.iloc[::-1])


TABLE_IN = [
    metrics.mae,
    metrics.errors,
    lambda table: metrics.within(table, 5),
    metrics.summary,
    metrics.by_age_band,
    lambda table: metrics.by_slice(table, {}),
    lambda table: metrics.constant_mae(table, table),
    metrics.interval_coverage,
    lambda table: metrics.compare(table, table),
]


@pytest.mark.parametrize("function", TABLE_IN)
@pytest.mark.parametrize("fault", ["empty", "no column", "'age' is not finite"])
def test_every_metric_refuses_a_table_it_cannot_judge(function, fault):
    table = ages([20, 30], [21, 29], low=[0, 0], high=[99, 99])
    broken = {
        "empty": table.head(0),
        "no column": table.drop(columns="age"),
        "'age' is not finite": table.assign(age=[20, np.nan]),
    }
    with pytest.raises(ValueError, match=fault):
        function(broken[fault])
