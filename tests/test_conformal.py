import numpy as np
import pandas as pd
import pytest
from scipy import stats

from agelib import ages, conformal, metrics, predict

GRID = np.arange(101)


def said(centre: np.ndarray, std: float) -> np.ndarray:
    """Distributions (faces, 101): a Gaussian around each centre."""
    distance = (GRID - np.asarray(centre, float)[:, None]) / std
    weights = np.exp(-(distance**2) / 2)
    return weights / weights.sum(1, keepdims=True)


def seen(age: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Where a network that errs by `std` puts its distributions."""
    return age + rng.normal(0, std, len(age))


def covered(low: np.ndarray, high: np.ndarray, age: np.ndarray) -> np.ndarray:
    return (low <= age) & (age <= high)


def test_the_level_of_an_age_is_the_share_below_it_with_half_its_own():
    probabilities = np.zeros((2, 101))
    probabilities[0, [20, 30, 40]] = 0.25, 0.5, 0.25
    probabilities[1, 0] = 1
    assert conformal.level_of_age(probabilities, [30, 0]) == pytest.approx([0.5, 0.5])
    assert conformal.level_of_age(probabilities, [40, 7]) == pytest.approx([0.875, 1])
    # to the whole year; ages above the last one count as that
    assert conformal.level_of_age(probabilities, [19.6, 116]) == pytest.approx(
        [0.125, 1]
    )


def test_a_calibration_of_three_faces_worked_out_by_hand():
    """All of one age, where neither distance nor the second step changes anything.

    Between the ends, which weigh half a face each, the faces' levels 0.2, 0.5 and 0.6
    lie at the places 1/4, 2/4 and 3/4 of the whole weight of 4; the ends at 1/16 and
    15/16. The second step finds the same places again.
    """
    probabilities = np.zeros((3, 101))
    for row, below in zip(probabilities, (0.2, 0.5, 0.6), strict=True):
        # nothing at 50 itself
        row[[10, 90]] = below, 1 - below
    table = conformal.calibrate(probabilities, np.array([50, 50, 50]))
    assert table.shape == conformal.SHAPE
    at = {0: 0, 25: 0.2, 50: 0.5, 75: 0.6, 100: 1}
    for share, level in at.items():
        assert table[50, share] == pytest.approx(level, abs=1e-6)
    # at an age of which no face is known, everything may be
    assert table[0, 6] == 0
    assert table[0, 94] == 1


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("std_said", [3, 16])
def test_intervals_hold_what_they_promise_where_the_network_does_not(level, std_said):
    """A network that errs by 8 years, and says that it errs by 3, or by 16."""
    rng = np.random.default_rng(0)
    age = rng.integers(15, 86, 6000)
    probabilities = said(seen(age, 8, rng), std_said)
    table = conformal.calibrate(probabilities[:3000], age[:3000])
    new = covered(*conformal.intervals(probabilities[3000:], table, level), age[3000:])
    # of 3,000 faces, and as many to calibrate by: three standard errors
    error = 3 * np.sqrt(2 * level * (1 - level) / 3000)
    assert new.mean() == pytest.approx(level, abs=error)
    tail = (1 - level) / 2
    low, high = (ages.quantile(probabilities[3000:], q) for q in (tail, 1 - tail))
    assert abs(covered(low, high, age[3000:]).mean() - level) > 0.04


def test_the_old_are_covered_though_the_network_takes_them_for_younger():
    rng = np.random.default_rng(1)
    age = rng.integers(15, 96, 8000)
    centre = seen(age, 5, rng) - 12 * (age > 70)
    probabilities = said(centre, 5)
    table = conformal.calibrate(probabilities[:4000], age[:4000])
    everyone = conformal.calibrate(probabilities[:4000], age[:4000], bandwidth=1e6)
    old = np.arange(8000)[4000:][age[4000:] > 74]
    by_age, alike = (
        covered(*conformal.intervals(probabilities[old], t, 0.9), age[old]).mean()
        for t in (table, everyone)
    )
    assert by_age > alike + 0.03
    assert by_age > 0.8


def test_on_faces_of_another_kind_the_promise_is_broken_and_it_shows():
    rng = np.random.default_rng(2)
    age = rng.integers(15, 86, 4000)
    table = conformal.calibrate(said(seen(age, 5, rng), 5), age)
    worse = said(seen(age, 15, rng), 5)
    assert covered(*conformal.intervals(worse, table, 0.9), age).mean() < 0.6


def test_a_promise_kept_by_few_faces_is_kept_by_wide_intervals():
    """With ten faces nobody can say where the outer twentieth lies."""
    rng = np.random.default_rng(3)
    kept = []
    for _ in range(300):
        age = rng.integers(40, 61, 11)
        probabilities = said(seen(age, 6, rng), 6)
        table = conformal.calibrate(probabilities[:10], age[:10])
        low, high = conformal.intervals(probabilities[10:], table, 0.9)
        kept.append(covered(low, high, age[10:]).item())
    assert np.mean(kept) > 0.9 - 3 * np.sqrt(0.09 / 300)


def test_more_promised_is_never_narrower():
    rng = np.random.default_rng(4)
    age = rng.integers(0, 101, 500)
    probabilities = said(seen(age, 8, rng), 5)
    table = conformal.calibrate(probabilities, age)
    low, high = conformal.intervals(probabilities, table, 0.1)
    for level in (0.5, 0.9, 0.99):
        wider = conformal.intervals(probabilities, table, level)
        assert (wider[0] <= low).all()
        assert (high <= wider[1]).all()
        low, high = wider


def test_an_interval_is_of_whole_ages_and_never_without_the_answer():
    rng = np.random.default_rng(5)
    age = rng.integers(0, 101, 300)
    probabilities = said(seen(age, 8, rng), 5)
    table = conformal.calibrate(probabilities, age)
    for level in (0.001, 0.9):
        told = ages.read_off(probabilities, table, level)
        assert (told["low"] <= told["pred_age"]).all()
        assert (told["pred_age"] <= told["high"]).all()
    whole = told["low"].round() == told["low"]
    assert (whole | (told["low"] == told["pred_age"])).all()
    assert whole.mean() > 0.99


@pytest.mark.parametrize("level", [0, 1, -0.1, 90, float("nan")])
def test_a_level_that_is_no_share_is_refused(level):
    uniform = np.full((2, 101), 1 / 101)
    table = conformal.calibrate(uniform, np.array([20, 60]))
    for calibration in (None, table):
        with pytest.raises(ValueError, match=r"between 0 and 1, such as 0\.9"):
            ages.read_off(uniform, calibration, level)


@pytest.mark.parametrize(("faces", "known"), [(0, 0), (3, 2)])
def test_a_calibration_needs_the_age_of_each_face(faces, known):
    with pytest.raises(ValueError, match=f"there are {known} of {faces} faces"):
        conformal.calibrate(np.full((faces, 101), 1 / 101), np.full(known, 30))


def test_a_calibration_needs_finite_ages_and_some_reach():
    three = np.full((3, 101), 1 / 101)
    with pytest.raises(ValueError, match="ages that are finite"):
        conformal.calibrate(three, np.array([20, np.nan, 30]))
    for bandwidth in (0, -5, np.nan):
        with pytest.raises(ValueError, match="should be above 0"):
            conformal.calibrate(three, np.array([20, 25, 30]), bandwidth)


def faces(n: int, rng: np.random.Generator) -> tuple[np.ndarray, pd.DataFrame]:
    age = rng.integers(15, 86, n).astype(float)
    table = pd.DataFrame({"age": age, "digest": [f"photo {i // 2}" for i in range(n)]})
    return said(seen(age, 8, rng), 3), table


def test_a_face_judges_an_interval_that_neither_it_nor_its_copy_has_made():
    probabilities, table = faces(400, np.random.default_rng(6))
    told = predict.cross_calibrated(probabilities, table)
    swapped = table.copy()
    pair = table.index[:2]
    swapped.loc[pair, "age"] = table.loc[pair[::-1], "age"].to_numpy()
    again = predict.cross_calibrated(probabilities, swapped)
    ends = ["low", "high"]
    assert told.loc[pair, ends].equals(again.loc[pair, ends])
    assert not told[ends].equals(again[ends])
    coverage = metrics.interval_coverage(told)
    assert coverage == pytest.approx(0.9, abs=3 * np.sqrt(0.09 / 400))


def test_a_single_photo_has_an_interval_that_nothing_calibrates():
    probabilities, table = faces(2, np.random.default_rng(7))
    told = predict.cross_calibrated(probabilities, table)
    expected = ages.read_off(probabilities)
    for column, values in expected.items():
        assert told[column].to_numpy() == pytest.approx(values)


def test_the_method_agrees_with_scipy_on_whole_distributions():
    """Levels of a right network are uniform: its calibration is the diagonal."""
    rng = np.random.default_rng(8)
    centre = rng.uniform(30, 70, 5000)
    probabilities = said(centre, 8)
    age = np.array([rng.choice(GRID, p=row) for row in probabilities])
    found = conformal.level_of_age(probabilities, age)
    assert stats.kstest(found, "uniform").statistic < 0.04
    table = conformal.calibrate(probabilities, age, bandwidth=1e6)
    assert np.abs(table - conformal.SHARES).max() < 0.03
