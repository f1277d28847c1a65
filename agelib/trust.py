"""How far can one trust it: numbers on intervals, on abstaining, on gates, on groups.

Each of these tables is of faces that did not train the network, nor calibrate it unless
that is said, and each share has its 95% interval (Wilson's). A few faces prove nothing:
a number of fewer than `LEAST` is left out where groups are compared.
"""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from tqdm.auto import tqdm

from agelib import conformal, data, degrade, metrics, predict
from agelib.ages import read_off
from agelib.model import Trained
from agelib.tables import finite, require

LEAST = 30
# a column with more values than these is no grouping
MOST_GROUPS = 12
ADULT = 18
# the minors who can be taken for adults at all
NEARLY_ADULT = 14


def reliability(
    probabilities: np.ndarray,
    faces: pd.DataFrame,
    levels: Iterable[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
) -> pd.DataFrame:
    """What intervals of several levels promise, and what they hold.

    Args:
        probabilities: (faces, 101) of networks that have not learned from the faces.
        faces: row for row, with `age` in years and `digest`.
    Returns:
        one row a level: `level`, `coverage` with its interval `low`..`high`, and the
        mean `width` in years, of intervals calibrated on the other faces; and
        `uncalibrated`, what intervals hold that take the network at its word.
    """
    rows = []
    for level in levels:
        calibrated = predict.cross_calibrated(probabilities, faces, level)
        own = uncalibrated(probabilities, faces, level)
        held = metrics.interval_coverage(own)
        rows.append({"level": level, **_coverage(calibrated), "uncalibrated": held})
    return pd.DataFrame(rows)


def uncalibrated(
    probabilities: np.ndarray, faces: pd.DataFrame, level: float = 0.9
) -> pd.DataFrame:
    """The faces with ages and intervals that take the network at its word.

    Of whole ages, as calibrated ones are, so that their widths can be compared.
    """
    own = read_off(probabilities, conformal.UNCALIBRATED, level)
    return faces.assign(**own)


def coverage(table: pd.DataFrame, groups: pd.Series | pd.Categorical) -> pd.DataFrame:
    """The coverage of each group's intervals, and how wide they are.

    Args:
        table: `age`, `low` and `high` in years, one row a face.
        groups: which group each face is in, row for row.
    Returns:
        one row a group of at least `LEAST` faces, in the order of the categories:
        `faces`, `coverage` with its interval, mean `width` in years.
    """
    parts = table.groupby(pd.Categorical(groups), observed=True)
    rows = {
        name: {"faces": len(faces), **_coverage(faces)}
        for name, faces in parts
        if len(faces) >= LEAST
    }
    columns = ["faces", "coverage", "low", "high", "width"]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return found.astype({"faces": int})


def _coverage(table: pd.DataFrame) -> dict[str, float]:
    inside = metrics.inside(table)
    width = finite(table, "high") - finite(table, "low")
    return {**_share("coverage", inside), "width": width.mean()}


def _share(name: str, hits: np.ndarray) -> dict[str, float]:
    """A share and the ends `low` and `high` of its interval; of nobody it is nan."""
    if not len(hits):
        return {name: np.nan, "low": np.nan, "high": np.nan}
    found = binomtest(int(np.sum(hits)), len(hits)).proportion_ci(method="wilson")
    return {name: np.mean(hits), "low": found.low, "high": found.high}


def abstention(table: pd.DataFrame, shares: int = 20) -> pd.DataFrame:
    """The error if only the surest answers are given: 'risk against coverage'.

    A network is sure that has a narrow interval (Geifman and El-Yaniv 2017, with the
    width in place of a confidence).

    Args:
        table: `age`, `pred_age`, `low`, `high` in years, one row a face.
        shares: how many steps from nobody to everybody.
    Returns:
        one row a step: the `share` of faces that are answered, their `mae`, and the
        widest interval `at_most` among them; what the error of the same share would be
        if the `youngest` by predicted age were answered, or, the `ideal`, those with
        the least errors; in years. Of equally wide intervals all are answered, so that
        a share may be larger than its step.
    """
    width = finite(table, "high") - finite(table, "low")
    error = np.abs(metrics.errors(table))
    young, best = error[finite(table, "pred_age").argsort()], np.sort(error)
    rows = []
    for step in range(1, shares + 1):
        at_most = np.sort(width)[max(1, round(len(width) * step / shares)) - 1]
        answered = width <= at_most
        n = answered.sum()
        row = {"share": n / len(width), "mae": error[answered].mean()}
        row |= {"youngest": young[:n].mean(), "ideal": best[:n].mean()}
        rows.append(row | {"at_most": at_most})
    return pd.DataFrame(rows).drop_duplicates("share", ignore_index=True)


def age_gate(
    table: pd.DataFrame, challenges: Iterable[float] = range(15, 41)
) -> pd.DataFrame:
    """Who would pass a gate that lets through whom the network takes for old enough.

    As NIST IR 8525 counts: a gate for adults may ask for more than 18 years, so that
    fewer minors pass; then more adults are refused.

    Args:
        table: `age` and `pred_age` in years, one row a face.
        challenges: the predicted ages from which one passes, in years.
    Returns:
        one row a challenge and kind of face, `who`: "minors passed", "14 to 17 passed"
        and "adults refused"; its `share` with the interval `low`..`high`, of so many
        `faces`. Without such faces it is nan.
    """
    age, answer = finite(table, "age"), finite(table, "pred_age")
    nearly = (age >= NEARLY_ADULT) & (age < ADULT)
    rows = []
    for challenge in challenges:
        passes = answer >= challenge
        kinds = {
            "minors passed": passes[age < ADULT],
            "14 to 17 passed": passes[nearly],
            "adults refused": ~passes[age >= ADULT],
        }
        for who, hits in kinds.items():
            row = {"challenge": challenge, "who": who, "faces": len(hits)}
            rows.append(row | _share("share", hits))
    return pd.DataFrame(rows)


def grouping(table: pd.DataFrame) -> tuple[list[str], dict[str, str]]:
    """The columns of the user's own that sort the faces into groups.

    Returns:
        their names, and for each further column why it is none.
    """
    known = data.RESERVED | {"file_id", "age"}
    names, others = [], {}
    for name in (column for column in table if column not in known):
        n = table[name].nunique()
        if 2 <= n <= MOST_GROUPS:
            names.append(name)
        else:
            values = "value" if n == 1 else "values"
            others[name] = f"it has {n:,} {values}, not 2 to {MOST_GROUPS}"
    return names, others


def by_column(table: pd.DataFrame, column: str, width: int = 20) -> pd.DataFrame:
    """Error, bias and coverage by a column's value and by band of true ages.

    By age as well, for a group that is older errs more for that alone.

    Args:
        table: the column and `age`, `pred_age`, `low`, `high` in years.
        width: of a band of true ages, in years.
    Returns:
        one row a value and band of at least `LEAST` faces, and for each value one over
        all ages: `column`, `value`, `ages`, `faces`, `mae` with its 95% bootstrap
        interval `low`..`high`, `bias` and `coverage`.
    Raises:
        ValueError: if there is no such column, or no face.
    """
    require(table, column)
    rows = []
    known = table[table[column].notna()]
    for value, group in known.groupby(column, observed=True):
        bands = group.groupby(metrics.age_bands(group, width), observed=True)
        for ages, faces in [("all", group), *bands]:
            if len(faces) >= LEAST:
                told = metrics.summary(faces)[["faces", "mae", "low", "high", "bias"]]
                inside = metrics.interval_coverage(faces)
                row = {"column": column, "value": str(value), "ages": ages, **told}
                rows.append(row | {"coverage": inside})
    names = ["column", "value", "ages", "faces", "mae", "low", "high", "bias"]
    return pd.DataFrame(rows, columns=[*names, "coverage"]).astype({"faces": int})


def bad_photos(
    trained: Mapping[str, Trained],
    faces: pd.DataFrame,
    photos: Iterable[str] = tuple(degrade.PHOTOS),
    views: int | None = None,
) -> pd.DataFrame:
    """What spoiled photos of the same faces cost each network.

    Args:
        trained: the networks by their names.
        faces: held out from all of them, with `path` and `age`.
        photos: the kinds, of `degrade.PHOTOS`; the others are compared with the first.
        views: of each face, as `predict.predict` takes it.
    Returns:
        one row a network and kind of `photo`: `mae` with its 95% interval
        `low`..`high`, `bias`, `cost` (how much more than on the first kind) and the
        mean `width` of the intervals, in years, and their `coverage`. The intervals are
        the network's own: it may have been calibrated on these faces as they are.
    """
    rows, first = [], {}
    for photo in tqdm(list(photos), "photos", delay=2, leave=False):
        with tempfile.TemporaryDirectory() as folder:
            spoiled = degrade.spoil(faces, photo, Path(folder))
            for name, one in trained.items():
                table = predict.predict(one, spoiled, views)
                told = metrics.summary(table)[["mae", "low", "high", "bias"]]
                cost = told["mae"] - first.setdefault(name, told["mae"])
                held = _coverage(table)
                row = {"network": name, "photo": photo, **told, "cost": cost}
                rows.append(row | {key: held[key] for key in ("coverage", "width")})
    return pd.DataFrame(rows)
