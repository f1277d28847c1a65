"""Plots: what they say and the data of what they draw. conftest chooses Agg."""

from dataclasses import replace
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.colors import to_hex
from PIL import Image

from agelib import metrics, plots
from agelib.recipe import RECIPES


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


def ages(true, pred=None) -> pd.DataFrame:
    return pd.DataFrame({"age": true, "pred_age": true if pred is None else pred})


@pytest.fixture
def shell():
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def test_sharp_figures_have_two_pixels_a_point(shell, ax):
    plots.use_sharp_figures()
    ax.figure.set_size_inches(4, 3)
    seen, told = shell.display_formatter.format(ax.figure)
    assert "image/jpeg" not in seen
    chart = Image.open(BytesIO(seen["image/png"]))
    points = told["image/png"]["width"], told["image/png"]["height"]
    assert points == (chart.width // 2, chart.height // 2)
    assert len(chart.getcolors()) <= 64
    # 100 points an inch, but for the margins that are cut
    assert 300 < points[0] <= 410
    # what holds a photo is no chart
    ax.imshow(np.zeros((2, 2)))
    seen, told = shell.display_formatter.format(ax.figure)
    assert "image/png" not in seen
    photo = Image.open(BytesIO(seen["image/jpeg"]))
    assert photo.width // 2 == told["image/jpeg"]["width"]


THREE = ages([20, 40, 60], [21, 38, 63])
BANDED = ages(6 * [5, 8, 25, 26] + [116], 6 * [6, 11, 20, 25] + [100])


def bars(ax, colour=None):
    """Left edge and height of the bars that show, perhaps of one colour."""
    return {
        round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height()
        for bar in ax.patches
        if bar.get_height() and colour in (None, to_hex(bar.get_facecolor()))
    }


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def ticks(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def test_age_histogram_has_a_bar_a_year_and_colours_what_stands_out(ax):
    table = ages([1, 1, 25, 26, 26, 26, 26.9, 30, 31])
    assert plots.age_histogram(table, ax=ax) is ax
    assert bars(ax) == {1: 2, 25: 1, 26: 4, 30: 1, 31: 1}
    assert bars(ax, plots.RED) == {26: 4}
    assert bars(ax, plots.ORANGE) == {25: 1, 30: 1}
    assert bars(ax, plots.BLUE) == {1: 2, 31: 1}
    assert legend(ax) == ["26", "multiples of five", "other ages"]
    assert ax.get_title() == "9 faces, 44% of them aged 26"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("age, years", "faces")


def test_cumulative_score_gives_each_predictor_a_colour_of_its_own():
    ax = plots.cumulative_score(dict.fromkeys("abcde", THREE))
    assert len({line.get_color() for line in ax.lines}) == 5


def test_age_histogram_can_highlight_another_age():
    ax = plots.age_histogram(ages([30, 30, 26, 35]), highlight=30)
    assert bars(ax, plots.RED) == {30: 2}
    assert bars(ax, plots.ORANGE) == {35: 1}
    assert ax.get_title() == "4 faces, 50% of them aged 30"


def test_quality_histograms_count_every_face():
    measured = pd.DataFrame(
        {"light": [10.0, 20, 90], "contrast": [3.0, 3, 5], "sharpness": [0, 10.0, 1000]}
    )
    axes = plots.quality_histograms(measured)
    titles = ["light, median 20", "contrast, median 3", "sharpness, median 10"]
    assert [ax.get_title() for ax in axes] == titles
    assert [sum(bars(ax).values()) for ax in axes] == [3, 3, 3]
    assert [ax.get_xscale() for ax in axes] == ["linear", "linear", "log"]
    assert all(ax.get_xlabel() and ax.get_ylabel() == "faces" for ax in axes)


def test_title_reports_the_mae_over_all_faces():
    ax = plots.pred_vs_true(THREE)
    assert ax.get_title() == "MAE 2.00 years, n = 3"


def test_pred_vs_true_draws_every_face_and_the_identity(ax):
    assert plots.pred_vs_true(THREE, ax) is ax
    points = ax.collections[0].get_offsets().data.tolist()
    assert sorted(points) == [[20, 21], [40, 38], [60, 63]]
    x, y = ax.lines[0].get_data()
    assert list(x) == list(y) == [0, 66]
    assert ax.get_xlim() == ax.get_ylim() == tuple(x)
    assert (ax.get_xlabel(), ax.get_ylabel()) == (plots.TRUE, plots.PRED)


def test_crowded_faces_are_darker_and_on_top():
    crowd = ages([50.0] * 30 + [10, 90], [50.0] * 30 + [12, 88])
    dots = plots.pred_vs_true(crowd).collections[0]
    shade = dict(
        zip(map(tuple, dots.get_offsets().data), dots.get_array(), strict=True)
    )
    assert shade[50, 50] > shade[10, 12]
    assert dots.get_array().tolist() == sorted(dots.get_array())
    low, high = dots.cmap(0.0), dots.cmap(1.0)
    assert sum(high[:3]) < sum(low[:3])


@pytest.mark.parametrize("n", [1, 20_000])
def test_one_face_or_very_many_can_be_drawn(n):
    true = np.random.default_rng(0).integers(1, 117, n)
    ax = plots.pred_vs_true(ages(true, true + 1.0))
    assert len(ax.collections[0].get_offsets()) == n
    assert ax.get_title() == f"MAE 1.00 years, n = {n:,}"


@pytest.mark.parametrize("given", [BANDED, metrics.by_age_band(BANDED)])
def test_error_by_age_band_shows_error_interval_and_count(ax, given):
    assert plots.error_by_age_band(given, ax) is ax
    assert ax.lines[0].get_ydata().tolist() == [2, 3, 16]
    assert ticks(ax.xaxis) == ["0-9\n12", "20-29\n12", "110-119\n1"]
    reach = np.array([s[:, 1] for s in ax.collections[0].get_segments()[:2]])
    bands = metrics.by_age_band(BANDED)
    assert reach == pytest.approx(bands[["low", "high"]].to_numpy()[:2])
    assert ax.get_ylabel() == "MAE, years"
    assert ax.get_ylim()[0] == 0


def test_error_by_slice_is_read_from_top_to_bottom(ax):
    slices = metrics.by_slice(BANDED, {"dark": BANDED["age"] < 26})
    assert plots.error_by_slice(slices, ax) is ax
    assert ticks(ax.yaxis) == ["all (25)", "dark (18)"]
    assert ax.lines[0].get_xdata().tolist() == slices["mae"].tolist() == [3.04, 3]
    reach = np.array([s[:, 0] for s in ax.collections[0].get_segments()])
    assert reach == pytest.approx(slices[["low", "high"]].to_numpy())
    assert ax.yaxis_inverted()
    assert ax.get_xlabel() == "MAE, years"


def test_bias_by_age_is_the_mean_of_signed_errors(ax):
    assert plots.bias_by_age(BANDED, ax=ax) is ax
    assert ax.lines[0].get_ydata().tolist() == [2, -3, -16]
    young, _, oldest = (line.get_ydata() for line in ax.lines[1:4])
    by_hand = metrics.interval(np.array(6 * [1, 3]))
    assert (np.nanmin(young), np.nanmax(young)) == pytest.approx(by_hand)
    assert np.isnan(oldest).all()
    assert ticks(ax.xaxis) == ["0-9", "20-29", "110-119"]
    assert ax.get_title() == "Bias: -1.12 years over all faces"
    assert (ax.get_xlabel(), ax.get_ylabel()) == (plots.TRUE, plots.ERROR)


def test_bias_may_be_told_by_predicted_age(ax):
    plots.bias_by_age(BANDED, "pred_age", ax)
    assert ax.lines[0].get_ydata().tolist() == [1, 3, -3, -16]
    assert ticks(ax.xaxis) == ["0-9", "10-19", "20-29", "100-109"]
    assert ax.get_xlabel() == plots.PRED


def test_cumulative_score_has_a_line_a_predictor(ax):
    tables = {"ours": THREE, "median": THREE.assign(pred_age=40)}
    assert plots.cumulative_score(tables, ax) is ax
    ours, median = ax.lines
    assert ours.get_xdata().tolist() == [*range(16)]
    assert ours.get_ydata() == pytest.approx([0, 100 / 3, 200 / 3] + 13 * [100])
    assert median.get_ydata() == pytest.approx([100 / 3] * 16)
    assert legend(ax) == ["ours: 100% within 5 years", "median: 33% within 5 years"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("k, years", "faces, %")


def test_history_curves_mark_the_best_epoch():
    history = pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "train_loss": [3.0, 2.0, 1.0],
            "val_mae": [6.0, 4.5, 5.0],
            "lr": [0.1, 0.2, 0.3],
            "seconds": [1, 1, 1],
        }
    )
    axes = plots.history_curves(history)
    drawn = [ax.lines[0].get_ydata().tolist() for ax in axes]
    assert drawn == [[3, 2, 1], [6, 4.5, 5], [0.1, 0.2, 0.3]]
    assert axes[1].get_title() == "Validation: 4.50 years, epoch 2"
    assert [data[0] for data in axes[1].lines[1].get_data()] == [2, 4.5]
    assert {ax.get_xlabel() for ax in axes} == {"epoch"}
    assert [ax.get_ylabel() for ax in axes] == ["loss", "MAE, years", "learning rate"]
    with pytest.raises(ValueError, match="no column 'lr'"):
        plots.history_curves(history.drop(columns="lr"))


def test_history_curves_tell_where_the_faces_grow():
    """64 px in the first epoch, 96 in the second, 128 in the third and the last."""
    growing = replace(RECIPES["cpu"], first_size=64, image_size=128, epochs=4)
    growing = replace(growing, grown_by=1.0)
    history = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": 1.0, "val_mae": 5.0})
    axes = plots.history_curves(history.assign(lr=0.1), growing)
    assert [text.get_text() for text in axes[0].texts] == ["96 px", "128 px"]
    for ax, more in zip(axes, (0, 1, 0), strict=True):
        lines = [line.get_xdata()[0] for line in ax.lines[1 : len(ax.lines) - more]]
        assert lines == ([] if ax is axes[2] else [1.5, 2.5])


def test_robustness_has_room_for_more_networks_than_colours(ax):
    table = pd.DataFrame({"network": list("abcdefghij"), "photo": "as it is"})
    plots.robustness(table.assign(mae=4.0, low=3.0, high=5.0), ax)
    assert len(ax.containers) == 10


def test_robustness_has_a_row_a_kind_of_photo_and_a_colour_a_network(ax):
    table = pd.DataFrame(
        {
            "network": ["old", "old", "new", "new"],
            "photo": ["as it is", "noise", "noise", "as it is"],
            "mae": [4.0, 9.0, 5.0, 4.1],
            "low": [3.9, 8.5, 4.8, 4.0],
            "high": [4.2, 9.6, 5.3, 4.3],
        }
    )
    plots.robustness(table, ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["as it is", "noise"]
    drawn = {}
    for container in ax.containers:
        dots, _, (reach,) = container
        ends = [segment[:, 0].tolist() for segment in reach.get_segments()]
        rows = zip(dots.get_ydata(), dots.get_xdata(), ends, strict=True)
        drawn[container.get_label()] = {round(y, 2): (x, *end) for y, x, end in rows}
    expected = {
        "old": {-0.15: (4.0, 3.9, 4.2), 0.85: (9.0, 8.5, 9.6)},
        "new": {0.15: (4.1, 4.0, 4.3), 1.15: (5.0, 4.8, 5.3)},
    }
    for name, rows in expected.items():
        for y, row in rows.items():
            assert drawn[name][y] == pytest.approx(row)
    # the worse is further down where the y axis points down
    assert ax.yaxis_inverted()


def test_history_curves_draw_a_line_for_each_fold():
    history = pd.DataFrame(
        {
            "epoch": [1, 2, 1, 2],
            "train_loss": [3.0, 2.0, 3.5, 2.5],
            "val_mae": [6.0, 4.5, 5.0, 5.5],
            "lr": [0.1, 0.2, 0.1, 0.2],
            "fold": [0, 0, 1, 1],
        }
    )
    axes = plots.history_curves(history)
    drawn = [line.get_ydata().tolist() for line in axes[1].lines]
    assert drawn == [[6, 4.5], [5, 5.5], [4.5, 5]]
    assert axes[1].lines[2].get_xdata().tolist() == [2, 1]
    assert axes[1].get_title() == "Validation: 4.75 years, mean of 2 folds"


def test_beside_draws_one_plot_of_each_table_under_its_name():
    tables = {"mine": ages([20, 40], [21, 43]), "yours": ages([30], [30])}
    axes = plots.beside(plots.pred_vs_true, tables)
    titles = ["mine\nMAE 2.00 years, n = 2", "yours\nMAE 0.00 years, n = 1"]
    assert [ax.get_title() for ax in axes] == titles
    assert axes[0].get_ylim() == axes[1].get_ylim()


def test_errors_beside_smaller_ones_are_all_in_the_picture():
    tables = {"mine": ages([20, 25], [21, 26]), "yours": ages([100], [79])}
    axes = plots.beside(plots.error_by_age_band, tables)
    axes[0].figure.canvas.draw()
    for ax in axes:
        assert ax.get_ylim()[0] == 0
        assert 21 < ax.get_ylim()[1] < 25


def test_forest_orders_changes_by_group_and_colours_what_is_more_than_chance(ax):
    table = pd.DataFrame(
        {
            "group": ["loss", "loss", "images"],
            "change": ["a", "b", "c"],
            "seeds": 1,
            "difference": [0.3, 0.0, -0.2],
            "low": [0.2, -0.1, -0.3],
            "high": [0.5, 0.1, -0.1],
        }
    )
    plots.forest(table, ax)
    drawn = {}
    for container in ax.containers:
        dots, _, (reach,) = container
        for x, y, ends in zip(*dots.get_data(), reach.get_segments(), strict=True):
            colour = to_hex(dots.get_color())
            drawn[y] = x, ends[0][0], ends[1][0], colour
    rows = [drawn[y] for y in sorted(drawn)]
    assert [row[:3] for row in rows] == [
        pytest.approx(row)
        for row in ((0.3, 0.2, 0.5), (0, -0.1, 0.1), (-0.2, -0.3, -0.1))
    ]
    red, blue = to_hex(plots.RED), to_hex(plots.BLUE)
    assert [row[3] for row in rows] == [red, "#808080", blue]
    # from top to bottom, and below their group's name
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert [t.get_text() for t in ax.texts] == ["loss", "images"]
    assert ax.texts[0].get_position()[1] < min(drawn)


def test_prediction_histogram_compares_shares_of_each(ax):
    test = pd.DataFrame({"pred_age": [3.0, 21.0, 22.0, 119.0]})
    assert plots.prediction_histogram(test, ages([1, 22]), ax) is ax
    shares = {to_hex(line.get_color()): line.get_ydata() for line in ax.lines}
    # in bins of five years; the line ends where the last bin does
    assert shares[plots.ORANGE].tolist() == [50, 0, 0, 0, 50] + 20 * [0]
    assert shares[plots.BLUE].tolist() == [25, 0, 0, 0, 50] + 18 * [0] + [25, 25]
    assert legend(ax) == ["labelled (2)", "predicted (4)"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("age, years", "faces, %")


TABLE_IN = {
    plots.age_histogram: "age",
    plots.pred_vs_true: "pred_age",
    plots.error_by_age_band: "age",
    plots.bias_by_age: "pred_age",
    lambda table: plots.cumulative_score({"ours": table}): "age",
    lambda table: plots.prediction_histogram(table, table): "pred_age",
    lambda table: plots.quality_histograms(table.assign(light=1.0)): "contrast",
    plots.error_by_slice: "faces",
    plots.history_curves: "epoch",
    plots.robustness: "network",
}


@pytest.mark.parametrize(("function", "column"), TABLE_IN.items())
def test_a_missing_column_or_an_empty_table_is_named(function, column):
    with pytest.raises(ValueError, match=f"no column '{column}'"):
        function(THREE.drop(columns=column, errors="ignore"))
    needed = ["contrast", "sharpness", "faces", "low", "high", "epoch", "train_loss"]
    needed += ["network", "photo"]
    with pytest.raises(ValueError, match="empty"):
        function(
            THREE.head(0).reindex(columns=[*THREE, *needed, "mae", "val_mae", "lr"])
        )


def test_plots_without_axes_make_their_own():
    first, second = plots.pred_vs_true(THREE), plots.pred_vs_true(THREE)
    assert first.figure is not second.figure
