"""Draw ages and errors: on the axes given or on new ones, always returned.

Plots that need many axes make their own figure and return their array. A table that is
empty, lacks a column or holds a number that is not finite is a ValueError everywhere.
"""

from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from itertools import cycle, islice, pairwise

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator, MultipleLocator
from pandas import DataFrame, Series
from PIL import Image
from scipy.ndimage import gaussian_filter

from agelib import metrics
from agelib.recipe import Recipe
from agelib.tables import finite, require

PALETTE = sns.color_palette("colorblind").as_hex()
BLUE, ORANGE, RED, SKY = (PALETTE[i] for i in (0, 1, 3, 9))
TRUE, PRED, ERROR = "true age, years", "predicted age, years", "predicted - true, years"


def use_sharp_figures() -> None:
    """Shows a notebook's figures with two pixels a point, as dense screens have.

    Pictures as JPEG and charts as PNG with 64 colours: IPython's own 'retina' figures
    are three times as large.
    """
    # in notebooks alone, which bring it along
    from IPython import get_ipython

    # loaded with the first figure, the notebooks' backend would choose formats again
    plt.switch_backend(plt.get_backend())
    formatters = get_ipython().display_formatter.formatters
    formatters["image/png"].for_type(Figure, partial(_sharp, pictures=False))
    formatters["image/jpeg"].for_type(Figure, partial(_sharp, pictures=True))


def _sharp(figure: Figure, pictures: bool) -> tuple[bytes, dict[str, int | str]] | None:
    if any(ax.images for ax in figure.axes) != pictures:
        return None
    drawn, file = BytesIO(), BytesIO()
    figure.savefig(drawn, dpi=200, bbox_inches="tight")
    image = Image.open(drawn).convert("RGB")
    if pictures:
        image.save(file, "JPEG", quality=50)
    else:
        few = image.quantize(64, dither=Image.Dither.NONE)
        few.save(file, "PNG", optimize=True)
    width, height = image.size
    told = {"width": width // 2, "height": height // 2, "alt": _message(figure)}
    return file.getvalue(), told


def _message(figure: Figure) -> str:
    """A figure's words, for who can't see it: its titles, or what it has instead."""
    said = [words for ax in figure.axes if (words := _words(ax))]
    if len(said) > 12:
        said[12:] = [f"and {len(said) - 12} more"]
    pictures = sum(bool(ax.images) for ax in figure.axes)
    kind = {0: "", 1: "a picture"}.get(pictures, f"{pictures} pictures")
    said = [figure.get_suptitle(), kind, *said, *map(_labels, figure.legends)]
    return "; ".join(filter(None, said))


def _words(ax: Axes) -> str:
    x, y = ax.get_xlabel(), ax.get_ylabel()
    texts = "; ".join(text.get_text() for text in ax.texts)
    words = ax.get_title() or (f"{y} by {x}" if x and y else x or y or texts)
    legend = ax.get_legend()
    return words.replace("\n", ", ") + (f" ({_labels(legend)})" if legend else "")


def _labels(legend: Legend) -> str:
    return ", ".join(text.get_text() for text in legend.get_texts())


def age_histogram(
    table: DataFrame, highlight: int = 26, ax: Axes | None = None
) -> Axes:
    """Faces of each year of age; `highlight` and the multiples of five stand out."""
    age = np.floor(finite(table, "age"))
    colours = {f"{highlight}": RED, "multiples of five": ORANGE, "other ages": BLUE}
    one, five, other = colours
    kind = np.select([age == highlight, age % 5 == 0], [one, five], other)
    title = f"{len(age):,} faces, {np.mean(age == highlight):.0%} of them aged {one}"
    ax = dress(ax, title, "age, years", "faces", (9, 3.5))
    style = {"hue_order": colours, "palette": colours, "alpha": 1, "edgecolor": "white"}
    sns.histplot(x=age, hue=kind, multiple="stack", discrete=True, ax=ax, **style)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def quality_histograms(measured: DataFrame) -> np.ndarray:
    """Light, contrast and sharpness of the photos, from `quality.measure`."""
    units = {
        "light": "mean luma, 0 to 255",
        "contrast": "standard deviation of the luma",
        "sharpness": "variance of the Laplacian, log scale",
    }
    axes = grid(1, 3, (10, 3))[0]
    for ax, (name, unit) in zip(axes, units.items(), strict=True):
        # a flat picture has no sharpness, and zero no logarithm
        values, log = finite(measured, name).clip(0.1), name == "sharpness"
        sns.histplot(x=values, log_scale=log, bins=40, color=BLUE, alpha=1, ax=ax)
        dress(ax, f"{name}, median {np.median(values):.0f}", unit, "faces")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return axes


def pred_vs_true(table: DataFrame, ax: Axes | None = None) -> Axes:
    """Predicted against true age with the identity line; darker where faces crowd.

    Layout after scikit-learn's PredictionErrorDisplay.
    """
    title = f"MAE {metrics.mae(table):.2f} years, n = {len(table):,}"
    ax = dress(ax, title, TRUE, PRED, (5, 5))
    ages = table[["age", "pred_age"]].to_numpy(float)
    _dots(ax, *ages.T)
    ends = min(0, ages.min() - 3), ages.max() + 3
    ax.plot(ends, ends, color=RED, label="predicted = true")
    ax.set(xlim=ends, ylim=ends, aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MultipleLocator(20))
    ax.legend(loc="upper left")
    return ax


def error_by_age_band(table: DataFrame, ax: Axes | None = None) -> Axes:
    """Mean absolute error of each band, its 95% interval and its number of faces.

    Args:
        table: faces with `age` and `pred_age`, or what `metrics.by_age_band` returned.
    """
    bands = table if "mae" in table else metrics.by_age_band(table)
    require(bands, "faces")
    ax = dress(ax, "Error by age", f"{TRUE} (faces below)", "MAE, years", (8, 3.5))
    names = [f"{band}\n{faces:,}" for band, faces in bands["faces"].items()]
    ax.errorbar(names, bands["mae"], yerr=reach(bands), fmt="o", color=BLUE, capsize=3)
    ax.tick_params("x", labelsize="small")
    # axes that share it go on to grow with their faces
    ax.set_ylim(bottom=0, auto=None)
    return ax


def error_by_slice(slices: DataFrame, ax: Axes | None = None) -> Axes:
    """Mean absolute error and its 95% interval in each row of `metrics.by_slice`."""
    require(slices, "faces")
    size = 6, 0.8 + 0.4 * len(slices)
    ax = dress(ax, "Error by kind of photo", "MAE, years", "", size)
    names = [f"{name} ({faces:,})" for name, faces in slices["faces"].items()]
    ax.errorbar(
        slices["mae"], names, xerr=reach(slices), fmt="o", color=BLUE, capsize=3
    )
    ax.set_ylim(len(names) - 0.5, -0.5)
    return ax


def bias_by_age(table: DataFrame, by: str = "age", ax: Axes | None = None) -> Axes:
    """Mean of predicted minus true age in each band, with its 95% interval.

    Args:
        by: whose bands, those of the true `age` or of `pred_age`.
    """
    error, ages = metrics.errors(table), finite(table, by)
    band = metrics.age_bands(DataFrame({"age": ages}))
    style = {"color": BLUE, "ls": "none", "capsize": 0.15, "err_kws": {"lw": 1.5}}
    ax = dress(ax, f"Bias: {error.mean():+.2f} years over all faces", "", "", (8, 3.5))
    sns.pointplot(
        x=band, y=error, errorbar=metrics.interval, markersize=5, ax=ax, **style
    )
    ax.axhline(0, color=RED, zorder=0)
    ax.set(xlabel=TRUE if by == "age" else PRED, ylabel=ERROR)
    ax.tick_params("x", labelsize="small")
    return ax


def cumulative_score(tables: Mapping[str, DataFrame], ax: Axes | None = None) -> Axes:
    """Share of faces predicted within k years of their age, one line a predictor."""
    ax = dress(ax, "Share of faces within k years", "k, years", "faces, %")
    ax.set_prop_cycle(color=[BLUE, RED, ORANGE, *PALETTE[4:]])
    years = range(16)
    for name, table in tables.items():
        share = [100 * metrics.within(table, year) for year in years]
        label = f"{name}: {metrics.within(table, 5):.0%} within 5 years"
        ax.plot(years, share, marker="o", ms=3, label=label)
    ax.set(xlim=(0, 15), ylim=(0, 100))
    ax.legend(loc="lower right")
    return ax


def beside(
    plot: Callable[..., Axes], tables: Mapping[str, DataFrame], size=(10, 4.5)
) -> np.ndarray:
    """One of these plots of several tables, side by side, each under its name."""
    axes = grid(1, len(tables), size, sharey=True)[0]
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        plot(table, ax=ax)
        ax.set_title(f"{name}\n{ax.get_title()}")
        ax.tick_params("y", labelleft=True)
        ax.tick_params("x", labelsize="x-small")
    return axes


def forest(table: DataFrame, ax: Axes | None = None) -> Axes:
    """The difference that each change makes, with its interval; below zero is better.

    Blue is better than nothing changed, red worse, grey may be chance. A hollow dot
    comes from one seed alone.

    Args:
        table: as `results.ablation` gives it: `group`, `change`, `seeds`,
            `difference`, `low`, `high`, in years.
    """
    require(table, "group", "change", "seeds", "difference", "low", "high")
    groups = list(dict.fromkeys(table["group"]))
    ax = dress(
        ax, "What one changed choice is worth", "", "", (9, 1.2 + 0.26 * len(table))
    )
    y = np.arange(len(table)) + 1.2 * table["group"].map(groups.index).to_numpy()
    better, worse = table["high"] < 0, table["low"] > 0
    colours = {BLUE: better, RED: worse, "0.5": ~better & ~worse}
    for colour, rows in colours.items():
        some = table[rows]
        style = {"fmt": "o", "color": colour, "capsize": 2, "ms": 4}
        ends = reach(some, "difference")
        ax.errorbar(some["difference"], y[rows], xerr=ends, **style)
    once = table["seeds"] == 1
    hollow = {"color": "white", "ms": 2, "zorder": 3}
    ax.plot(table["difference"][once], y[once], "o", **hollow)
    kinds = {BLUE: "better", RED: "worse", "0.5": "may be chance"}
    for colour, name in kinds.items():
        ax.plot([], [], "o", color=colour, ms=4, label=name)
    ax.plot([], [], "o", color="0.5", mfc="white", ms=4, label="of one seed alone")
    ax.legend(loc="lower right")
    for group in groups:
        first = y[(table["group"] == group).to_numpy()].min()
        ax.text(
            -0.02,
            first - 0.95,
            group,
            transform=ax.get_yaxis_transform(),
            ha="right",
            va="center",
            weight="bold",
            size="small",
        )
    ax.axvline(0, color="0.3", lw=1)
    ax.set_yticks(y, table["change"], size="small")
    ax.set_ylim(y.max() + 0.8, -1.5)
    ax.set_xlabel("← better    difference of the error, years    worse →")
    return ax


def robustness(table: DataFrame, ax: Axes | None = None) -> Axes:
    """The error on each kind of spoiled photo, a colour a network, with its interval.

    Args:
        table: as `results.robustness` gives it: `network`, `photo`, `mae`, `low`,
            `high`, in years.
    """
    require(table, "network", "photo", "mae", "low", "high")
    photos = list(dict.fromkeys(table["photo"]))
    ax = dress(ax, "The error on bad photos", "", "", (9, 1 + 0.28 * len(photos)))
    networks = dict(list(table.groupby("network", sort=False)))
    colours = islice(cycle((ORANGE, BLUE, RED, *PALETTE[4:])), len(networks))
    # side by side, or equal errors would hide each other
    beside = np.linspace(-0.15, 0.15, len(networks))
    named = zip(colours, beside, networks.items(), strict=True)
    for colour, aside, (name, rows) in named:
        y = rows["photo"].map(photos.index) + aside
        style = {"fmt": "o", "color": colour, "capsize": 2, "ms": 4, "label": name}
        ax.errorbar(rows["mae"], y, xerr=reach(rows), **style)
    ax.set_yticks(range(len(photos)), photos, size="small")
    ax.set(ylim=(len(photos) - 0.5, -0.5), xlabel="MAE, years")
    ax.legend()
    return ax


def history_curves(history: DataFrame, recipe: Recipe | None = None) -> np.ndarray:
    """Training loss, validation error with its best epoch, learning rate, by epoch.

    Args:
        history: as `outcome.history` gives it; several folds have a line each.
        recipe: if given, dotted lines tell from which epoch on it has larger faces.
    """
    units = {"train_loss": "loss", "val_mae": "MAE, years", "lr": "learning rate"}
    require(history, "epoch", *units)
    fold = history.get("fold", Series(0, history.index))
    best = history.loc[history["val_mae"].groupby(fold).idxmin()]
    found = f"Validation: {best['val_mae'].mean():.2f} years, "
    one = len(best) == 1
    found += f"epoch {best['epoch'].item()}" if one else f"mean of {len(best)} folds"
    titles = "Training loss", found, "Learning rate"
    axes = grid(1, 3, (10, 3))[0]
    for ax, (column, unit), title in zip(axes, units.items(), titles, strict=True):
        dress(ax, title, "epoch", unit)
        for _, rows in history.groupby(fold):
            ax.plot(rows["epoch"], rows[column], marker="o", ms=3, color=BLUE)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if recipe:
        sizes = [
            recipe.size_in(epoch - 1) for epoch in range(1, history["epoch"].max() + 1)
        ]
        for epoch, (size, larger) in enumerate(pairwise(sizes), 2):
            if larger > size:
                style = {"transform": axes[0].get_xaxis_transform(), "size": "x-small"}
                axes[0].text(epoch - 0.4, 0.97, f"{larger} px", va="top", **style)
                for ax in axes[:2]:
                    ax.axvline(epoch - 0.5, color="0.5", ls=":", lw=1)
    axes[1].plot(best["epoch"], best["val_mae"], "o", ms=8 if one else 5, color=RED)
    return axes


def prediction_histogram(
    table: DataFrame, train_table: DataFrame, ax: Axes | None = None
) -> Axes:
    """The outline of predicted ages over that of labelled faces, as shares of each."""
    true, pred = finite(train_table, "age"), finite(table, "pred_age")
    ages = {f"labelled ({len(true):,})": true, f"predicted ({len(pred):,})": pred}
    ax = dress(ax, "Predicted beside labelled ages", "", "", (7, 3.5))
    style = {"element": "step", "fill": False, "palette": [ORANGE, BLUE]}
    bins = {
        "binrange": (0, 5 * (max(true.max(), pred.max()) // 5 + 1)),
        "binwidth": 5,
        "stat": "percent",
        "common_norm": False,
    }
    sns.histplot(ages, alpha=1, ax=ax, **style, **bins)
    ax.set(xlabel="age, years", ylabel="faces, %")
    return ax


def grid(rows: int, columns: int, size: tuple, **options) -> np.ndarray:
    """New axes (rows, columns) on a figure of `size` inches."""
    options |= {"figsize": size, "squeeze": False, "layout": "constrained"}
    return plt.subplots(rows, columns, **options)[1]


def dress(ax, title, xlabel, ylabel, size=(6, 4)) -> Axes:
    """Title, labels and a light grid for the axes, which are new if there are none."""
    ax = ax or grid(1, 1, size)[0, 0]
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, axisbelow=True)
    ax.grid(alpha=0.25)
    sns.despine(ax=ax)
    return ax


def _dots(ax: Axes, x: np.ndarray, y: np.ndarray) -> None:
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=50)
    cells = np.digitize(x, x_edges[1:-1]), np.digitize(y, y_edges[1:-1])
    crowd = gaussian_filter(counts, 1, mode="constant")[cells]
    order = np.argsort(crowd)  # the crowded ones last, on top
    size = np.clip(3000 / len(x), 4, 30)
    style = {"cmap": "crest", "vmin": 0, "lw": 0, "rasterized": True}
    ax.scatter(x[order], y[order], size, crowd[order], **style)


def reach(rows: DataFrame, value: str = "mae") -> np.ndarray:
    """How far the interval `low`..`high` of a column reaches to both sides: (2, n)."""
    require(rows, value, "low", "high")
    return rows[["low", "high"]].sub(rows[value], axis=0).abs().to_numpy().T
