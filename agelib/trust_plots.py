"""Draw what `trust` counts: on the axes given or on new ones, always returned."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from agelib.plots import BLUE, ORANGE, PALETTE, RED, TRUE, dress, grid, reach
from agelib.tables import finite, require
from agelib.trust import LEAST

_COLOURS = BLUE, ORANGE, PALETTE[2], RED, *PALETTE[4:]


def reliability(tables: Mapping[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """The share that intervals hold against the share that they promise.

    Args:
        tables: of `trust.reliability`, by name.
    """
    ax = dress(ax, "Is the promise kept?", "promised, %", "held, %", (5, 5))
    ends = (40, 100)
    ax.plot(ends, ends, color="0.5", lw=1, label="as promised")
    for colour, name, table, aside in _each(tables):
        require(table, "level", "coverage", "low", "high", "uncalibrated")
        promised = 100 * table["level"] + 4 * aside
        style = {"fmt": "o", "ms": 5, "capsize": 3, "color": colour}
        held = 100 * table["coverage"]
        bars = 100 * reach(table, "coverage")
        ax.errorbar(promised, held, yerr=bars, label=name, **style)
        own = 100 * table["uncalibrated"]
        label = f"{name}, uncalibrated"
        ax.plot(promised, own, "x", ms=6, color=colour, label=label)
    ax.set(xlim=ends, ylim=(min(ends[0], ax.get_ylim()[0]), 102))
    ax.legend(loc="upper left", fontsize="small")
    return ax


def levels(
    table: pd.DataFrame, ages: Sequence[tuple[int, int]] = ((0, 9), (20, 39), (60, 79))
) -> np.ndarray:
    """Where in its distribution each true age lies, a histogram for some ages each.

    The grey line is what there would be if the distributions were right.

    Args:
        table: `age` in years, and `level`, the share of the distribution below it, as
            `conformal.level_of_age` gives it.
        ages: the first and the last of each histogram.
    """
    axes = grid(1, len(ages), (10, 3), sharey=True)[0]
    level, age = finite(table, "level"), finite(table, "age")
    for ax, (first, last) in zip(axes, ages, strict=True):
        these = level[(first <= age) & (age <= last)]
        title = f"ages {first} to {last}, {len(these):,} faces"
        dress(ax, title, "share below the true age", "faces, %")
        bins = {"bins": 20, "binrange": (0, 1), "stat": "percent"}
        sns.histplot(these, color=BLUE, alpha=1, edgecolor="white", ax=ax, **bins)
        ax.axhline(100 / 20, color="0.5", lw=1)
    return axes


def coverage(tables: Mapping[str, pd.DataFrame], level: float = 0.9) -> np.ndarray:
    """Coverage and mean width of the intervals, side by side, a colour a table.

    Args:
        tables: of `trust.coverage`, by name; their groups are bands of ages.
        level: the share promised, a line.
    """
    axes = grid(1, 2, (10, 3.5))[0]
    dress(axes[0], "Who is covered?", "age, years", "held, %")
    tables = {name: table for name, table in tables.items() if len(table)}
    dress(axes[1], "How wide are the intervals?", "age, years", "mean width, years")
    bands = sorted({b for t in tables.values() for b in t.index}, key=_first_age)
    for colour, name, table, aside in _each(tables):
        require(table, "faces", "coverage", "low", "high", "width")
        at = np.array([bands.index(band) for band in table.index]) + aside
        style = {"fmt": "o", "ms": 5, "capsize": 3, "color": colour, "label": name}
        bars = 100 * reach(table, "coverage")
        axes[0].errorbar(at, 100 * table["coverage"], yerr=bars, **style)
        axes[1].plot(at, table["width"], "o", color=colour, label=name)
    axes[0].axhline(100 * level, color="0.5", lw=1)
    axes[0].set_ylim(top=102)
    axes[1].set_ylim(bottom=0)
    for ax in axes:
        ax.set_xticks(range(len(bands)), bands, size="x-small")
        ax.legend(fontsize="small")
    return axes


def abstention(tables: Mapping[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """The error of the surest share of the faces, of the youngest, and of the best.

    Args:
        tables: of `trust.abstention`, by name.
    """
    title = "What is gained by saying nothing?"
    ax = dress(ax, title, "faces that get an answer, %", "MAE of these, years")
    for colour, name, table, _ in _each(tables):
        require(table, "share", "mae", "youngest", "ideal")
        answered = 100 * table["share"]
        ax.plot(answered, table["mae"], "o-", ms=3, color=colour, label=name)
        label = f"{name}, the youngest first"
        ax.plot(answered, table["youngest"], "--", lw=1, color=colour, label=label)
        label = f"{name}, chosen by their errors"
        ax.plot(answered, table["ideal"], ":", color=colour, label=label)
    # with room for the legend above the curves
    ax.set(xlim=(0, 102), ylim=(0, 1.7 * ax.get_ylim()[1]))
    ax.legend(fontsize="small", loc="upper left")
    return ax


def age_gate(
    tables: Mapping[str, pd.DataFrame],
    published: Mapping[str, float] | None = None,
    challenges: tuple[int, ...] = (18, 21, 25),
    ax: Axes | None = None,
) -> Axes:
    """Minors of 14 to 17 who pass against adults who are refused, on log axes.

    Layout after the trade-off curves of NIST IR 8525.

    Args:
        tables: of `trust.age_gate`, by name. Where nobody passes or is refused there is
            no point, for a log axis has no zero; of too few faces of a kind there is no
            curve, and the legend says so.
        published: shares of minors passed that others have reached, as lines.
        challenges: which points bear their challenge age.
    """
    title = "A gate for adults: who passes, who is refused? (log axes)"
    labels = "adults refused", "14 to 17 year olds who pass"
    ax = dress(ax, title, *labels, (6.5, 5))
    ax.set(xscale="log", yscale="log")
    for colour, name, table, _ in _each(tables):
        require(table, "challenge", "who", "share", "faces")
        rows = dict(list(table.set_index("challenge").groupby("who")))
        x, y = (rows[who] for who in ("adults refused", "14 to 17 passed"))
        if reason := _too_few(x, "of adults") or _too_few(y, "of 14 to 17"):
            ax.plot([], [], color=colour, label=f"{name}: {reason}")
            continue
        curve = pd.DataFrame({"x": x["share"], "y": y["share"]})
        curve = curve.where(curve > 0)
        ax.plot(curve["x"], curve["y"], color=colour, label=name)
        for challenge in curve.dropna().index.intersection(challenges):
            point = curve.loc[challenge].to_numpy()
            ax.plot(*point, "o", color=colour)
            offset = {"xytext": (5, 5), "textcoords": "offset points"}
            ax.annotate(f"{challenge}", point, color=colour, **offset)
    for name, share in (published or {}).items():
        ax.axhline(share, color="0.4", ls=":", lw=1)
        # the curves fall: at that end they are far from the line
        is_low = share**2 < math.prod(ax.get_ylim())
        x, end = (0.01, "left") if is_low else (0.99, "right")
        place = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3)}
        style = {"textcoords": "offset points", "size": "x-small", "ha": end}
        ax.annotate(name, (x, share), **place, **style)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(_percent))
        axis.set_minor_locator(NullLocator())
    ax.legend(fontsize="small", loc="lower left")
    return ax


def _percent(share: float, _: int) -> str:
    return f"{100 * share:g}%"


def _too_few(rows: pd.DataFrame, who: str) -> str:
    n = rows["faces"].max()
    return f"only {n} face{'' if n == 1 else 's'} {who}" if n < LEAST else ""


def by_column(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The error of each value of a column by band of ages, with its interval.

    Args:
        table: of `trust.by_column`; without rows the figure says why.
    """
    ax = dress(ax, "Error by group", TRUE, "MAE, years", (9, 3.8))
    if table.empty:
        reason = f"no group has {LEAST} faces"
        ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center")
        return ax
    require(table, "column", "value", "ages", "mae", "low", "high")
    ax.set_title(f"Error by {table['column'].iloc[0]}")
    bands = ["all", *sorted(set(table["ages"]) - {"all"}, key=_first_age)]
    for colour, value, rows, aside in _each(dict(list(table.groupby("value")))):
        at = rows["ages"].map(bands.index).to_numpy() + aside
        style = {"fmt": "o", "ms": 5, "capsize": 3, "color": colour, "label": value}
        ax.errorbar(at, rows["mae"], yerr=reach(rows), **style)
    ax.set_xticks(range(len(bands)), ["all ages", *bands[1:]])
    if bands[1:]:
        ax.axvline(0.5, color="0.8")
    ax.set(xlim=(-0.5, len(bands) - 0.5), ylim=(0, None))
    ax.legend(fontsize="small")
    return ax


def _each(tables: Mapping[str, pd.DataFrame]) -> Iterator:
    """Colour, name and table of each, and how far it stands aside from the others."""
    n = len(tables)
    aside = (np.arange(n) - (n - 1) / 2) * min(0.2, 0.6 / max(1, n))
    parts = zip(cycle(_COLOURS), tables.items(), aside, strict=False)
    return ((colour, name, table, by) for colour, (name, table), by in parts)


def _first_age(band: str) -> int:
    return int(str(band).split("-")[0])
