import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from agelib import trust, trust_plots
from tests.test_plots import legend
from tests.test_trust import predicted


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def dots(ax, label: str) -> tuple[list, list]:
    """The points of what a legend calls so."""
    (found,) = [c for c in ax.containers if c.get_label() == label]
    return found[0].get_xdata().tolist(), found[0].get_ydata().tolist()


RELIABILITY = pd.DataFrame(
    {
        "level": [0.5, 0.9],
        "coverage": [0.52, 0.91],
        "low": [0.5, 0.9],
        "high": [0.54, 0.92],
        "uncalibrated": [0.3, 0.7],
    }
)


def test_reliability_shows_what_is_held_against_what_is_promised():
    ax = trust_plots.reliability({"ours": RELIABILITY})
    assert dots(ax, "ours") == ([50, 90], [52, 91])
    ax = trust_plots.reliability({"ours": RELIABILITY, "theirs": RELIABILITY})
    assert dots(ax, "ours")[0][0] < 50 < dots(ax, "theirs")[0][0]
    crosses = {line.get_label(): line.get_ydata().tolist() for line in ax.lines}
    assert crosses["ours, uncalibrated"] == [30, 70]
    # no point is cut off
    assert ax.get_ylim()[0] < 30
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("promised, %", "held, %")


def coverage(**bands: float) -> pd.DataFrame:
    names = [band.strip("_").replace("_", "-") for band in bands]
    table = pd.DataFrame({"coverage": [*bands.values()]}, index=names)
    return table.assign(faces=30, low=0.5, high=1.0, width=np.arange(len(bands)) + 10)


def test_coverage_has_a_place_for_each_band_of_any_table():
    tables = {
        "true": coverage(_90_99=0.8, _100_109=0.7),
        "predicted": coverage(_0_9=1.0, _90_99=0.9),
    }
    axes = trust_plots.coverage(tables, level=0.8)
    names = [tick.get_text() for tick in axes[0].get_xticklabels()]
    assert names == ["0-9", "90-99", "100-109"]
    at, held = dots(axes[0], "true")
    assert (np.round(at).tolist(), held) == ([1, 2], [80, 70])
    at, held = dots(axes[0], "predicted")
    assert (np.round(at).tolist(), held) == ([0, 1], [100, 90])
    assert 80 in [line.get_ydata()[0] for line in axes[0].lines]
    widths = {line.get_label(): line.get_ydata().tolist() for line in axes[1].lines}
    assert widths == {"true": [10, 11], "predicted": [10, 11]}


def test_abstention_draws_the_errors_of_the_surest_and_the_ideal():
    table = trust.abstention(predicted([50, 50], [51, 53], [2, 1]), shares=2)
    ax = trust_plots.abstention({"ours": table})
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines["ours"] == [[50, 3], [100, 2]]
    assert lines["ours, chosen by their errors"] == [[50, 1], [100, 2]]
    assert lines["ours, the youngest first"] == [[50, 1], [100, 2]]


def gate(n: int = 40) -> pd.DataFrame:
    """Ages 16 and 30: of each half are taken for 17, a quarter for 20, one for 28."""
    pred = [17] * (n // 2) + [20] * (n // 4) + [28] * (n - n // 2 - n // 4)
    table = predicted([16] * n + [30] * n, pred + pred)
    return trust.age_gate(table, (18, 21, 25, 30))


def test_levels_are_counted_by_twentieths_at_some_ages():
    """Of the ages from 20 to 29, three of four faces lie in the last twentieth."""
    table = pd.DataFrame(
        {"age": [20, 25, 29, 29, 30], "level": [0.97, 0.99, 1.0, 0.12, 0.5]}
    )
    young, thirty = trust_plots.levels(table, [(20, 29), (30, 30)])
    heights = [bar.get_height() for bar in young.patches]
    assert heights == [0, 0, 25, *[0] * 16, 75]
    assert [bar.get_height() for bar in thirty.patches][10] == 100
    assert young.get_title() == "ages 20 to 29, 4 faces"
    assert [line.get_ydata()[0] for line in young.lines] == [5]
    with pytest.raises(ValueError, match="no column 'level'"):
        trust_plots.levels(table[["age"]])


def test_an_age_gate_is_drawn_where_logarithms_exist():
    ax = trust_plots.age_gate({"ours": gate()}, {"theirs": 0.1}, (18, 25, 99))
    (curve,) = [line for line in ax.lines if line.get_label() == "ours"]
    # at 30 nobody passes, which has no logarithm
    expected = [[0.5, 0.5], [0.75, 0.25], [0.75, 0.25], [1, np.nan]]
    np.testing.assert_allclose(curve.get_xydata(), expected)
    assert {text.get_text() for text in ax.texts} == {"18", "25", "theirs"}
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    ax.figure.canvas.draw()
    assert "50%" in [tick.get_text() for tick in ax.get_yticklabels()]


def test_what_others_reached_is_named_at_the_end_that_the_curve_leaves_free():
    """The curve falls from a half to a quarter."""
    ax = trust_plots.age_gate({"ours": gate()}, {"worse": 0.49, "better": 0.26})
    sides = {text.get_text(): text.get_ha() for text in ax.texts}
    assert (sides["worse"], sides["better"]) == ("right", "left")


def test_a_gate_without_enough_faces_of_a_kind_says_so():
    grown_up = trust.age_gate(predicted([30] * 40, [30] * 40), (18, 25))
    children = trust.age_gate(predicted([16] * 40, [16] * 40), (18, 25))
    tables = {"few": gate(8), "no minors": grown_up, "no adults": children}
    ax = trust_plots.age_gate(tables)
    assert legend(ax) == [
        "few: only 8 faces of adults",
        "no minors: only 0 faces of 14 to 17",
        "no adults: only 0 faces of adults",
    ]
    assert not [line for line in ax.lines if len(line.get_xdata())]


def test_faces_of_one_age_alone_still_have_their_figures():
    same = predicted([30] * 40, [28] * 40)
    bands = trust.coverage(same, ["30-39"] * 40)
    axes = trust_plots.coverage({"ours": bands})
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["30-39"]
    assert dots(axes[0], "ours")[1] == [100]


def test_groups_too_small_for_a_coverage_leave_the_figure_empty():
    none = trust.coverage(predicted([30] * 3, [30] * 3), ["30-39"] * 3)
    axes = trust_plots.coverage({"few": none})
    assert not axes[0].containers


def test_errors_by_a_column_stand_side_by_side_in_each_band():
    age = [25] * 60 + [45] * 30
    table = predicted(age, [a + 3 for a in age]).assign(camera=["a"] * 30 + ["b"] * 60)
    ax = trust_plots.by_column(trust.by_column(table, "camera"))
    assert ax.get_title() == "Error by camera"
    names = [tick.get_text() for tick in ax.get_xticklabels()]
    assert names == ["all ages", "20-39", "40-59"]
    at, error = dots(ax, "b")
    assert (np.round(at).tolist(), error) == ([0, 1, 2], [3, 3, 3])
    assert np.round(dots(ax, "a")[0]).tolist() == [0, 1]
    assert legend(ax) == ["a", "b"]


def test_a_column_without_a_large_group_leaves_its_place_empty_with_the_reason():
    table = trust.by_column(predicted([20], [20]).assign(camera="a"), "camera")
    ax = trust_plots.by_column(table)
    assert [text.get_text() for text in ax.texts] == ["no group has 30 faces"]


@pytest.mark.parametrize(
    ("plot", "table", "column"),
    [
        (trust_plots.reliability, RELIABILITY, "uncalibrated"),
        (trust_plots.coverage, coverage(_0_9=1.0), "width"),
        (trust_plots.abstention, trust.abstention(predicted([50], [51])), "ideal"),
        (trust_plots.age_gate, gate(), "share"),
    ],
)
def test_a_missing_column_is_named(plot, table, column):
    with pytest.raises(ValueError, match=f"no column '{column}'"):
        plot({"ours": table.drop(columns=column)})


def test_more_tables_than_colours_are_all_drawn():
    many = {f"table {n}": RELIABILITY for n in range(15)}
    ax = trust_plots.reliability(many)
    assert len(ax.containers) == 15
