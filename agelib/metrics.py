"""Numbers from true and predicted ages, computed once over all faces of a table."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from agelib.tables import finite


def errors(table: pd.DataFrame) -> np.ndarray:
    """Predicted minus true age of every face, in years: positive is too old."""
    return finite(table, "pred_age") - finite(table, "age")


def mae(table: pd.DataFrame) -> float:
    """Mean absolute error over all faces, in years.

    Args:
        table: one row a face, columns `age` and `pred_age` in years.
    Raises:
        ValueError: if a column is missing, empty or not finite, as everywhere below.
    """
    return float(np.abs(errors(table)).mean())


def within(table: pd.DataFrame, years: float) -> float:
    """Share of faces whose error is at most `years`.

    The 'cumulative score' of Geng, Zhou and Smith-Miles (2007).
    """
    return float((np.abs(errors(table)) <= years).mean())


def summary(table: pd.DataFrame) -> pd.Series:
    """What a report says about one set of predictions.

    Returns:
        faces; mae with the low and high end of its 95% interval, median_error,
        rmse and bias (predicted minus true), all in years; within_5, a share.
    """
    error = errors(table)
    return pd.Series(
        {
            **_row(error),
            "rmse": np.sqrt((error**2).mean()),
            "within_5": within(table, 5),
        }
    )


def compare(table: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    """How much more a predictor errs than another, in years, on the same faces.

    A face that is hard for one is hard for the other. So the difference is known more
    finely than either error.

    Args:
        table, other: the same faces, row for row, with `age` and `pred_age` in years.
    Returns:
        `difference` of the mean absolute errors, below zero if `table` errs less, with
        the `low` and `high` end of its 95% bootstrap interval.
    Raises:
        ValueError: if their ages are not the same.
    """
    if finite(table, "age").tolist() != finite(other, "age").tolist():
        raise ValueError(
            "The tables are not of the same faces in the same order: their ages differ."
        )
    more = np.abs(errors(table)) - np.abs(errors(other))
    low, high = interval(more)
    return pd.Series({"difference": more.mean(), "low": low, "high": high})


def age_bands(table: pd.DataFrame, width: int = 10) -> pd.Categorical:
    """The band of each face's true age: '0-9', '10-19' and so on, where any exist."""
    if width < 1:
        raise ValueError(f"A band {width} years wide holds no age: use width >= 1.")
    starts, codes = np.unique(finite(table, "age") // width, return_inverse=True)
    names = [f"{n * width:.0f}-{n * width + width - 1:.0f}" for n in starts]
    return pd.Categorical.from_codes(codes, names, ordered=True)


def by_age_band(table: pd.DataFrame, width: int = 10) -> pd.DataFrame:
    """Error of each band of true ages that has a face, youngest first.

    Returns:
        one row a band: faces, mae, low, high (95% interval), bias and median_error, in
        years.
    """
    error, band = errors(table), age_bands(table, width)
    return _rows({name: _row(error[band == name]) for name in band.categories}, "age")


def by_slice(
    table: pd.DataFrame, slices: Mapping[str, np.ndarray] | pd.DataFrame
) -> pd.DataFrame:
    """Error of some groups of faces beside that of all of them.

    Args:
        slices: a name and a boolean mask a slice, row for row with the table;
            masks may overlap.
    Returns:
        rows 'all' and one a slice: faces, mae, low, high (95% interval), bias and
        median_error, in years; a slice with no face has nan.
    Raises:
        ValueError: if a mask is not boolean or not aligned with the table.
    """
    error = errors(table)
    rows = {"all": _row(error)}
    for name, mask in slices.items():
        if isinstance(mask, pd.Series) and not mask.index.equals(table.index):
            raise ValueError(f"Slice {name!r} has another index than the table.")
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != error.shape:
            raise ValueError(
                f"Slice {name!r} must be {len(error)} booleans, one a face: "
                f"it is {mask.dtype} of shape {mask.shape}."
            )
        rows[name] = _row(error[mask])
    return _rows(rows, "slice")


def constant_mae(train_table: pd.DataFrame, table: pd.DataFrame) -> float:
    """Error in years of always answering the median age of the training faces.

    The median is the constant with the least mean absolute error: a model that
    does not beat this has learned nothing from the pixels.
    """
    answer = np.median(finite(train_table, "age"))
    return float(np.abs(finite(table, "age") - answer).mean())


def interval_coverage(table: pd.DataFrame) -> float:
    """Share of true ages inside `low`..`high`, ends included."""
    return float(inside(table).mean())


def inside(table: pd.DataFrame) -> np.ndarray:
    """Whether each true age lies in `low`..`high`, ends included.

    In whole years; above 100, the last age that a network tells, it counts as 100.
    """
    age, low, high = (finite(table, column) for column in ("age", "low", "high"))
    age = age.round().clip(max=100)
    return (low <= age) & (age <= high)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of their mean.

    Of fewer than ten values nan: drawn from so few, it would be far too short.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    if len(values) < 10:
        return np.nan, np.nan
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=2000,
        # BCa compares every face with every other: 20,000 faces would need 3 GB
        method="percentile",
        batch=max(1, 2_000_000 // len(values)),
        rng=0,
    ).confidence_interval
    return float(found.low), float(found.high)


def _row(error: np.ndarray) -> dict[str, float]:
    # pandas knows that no faces have the mean nan
    error = pd.Series(error)
    low, high = interval(error.abs())
    return {
        "faces": len(error),
        "mae": error.abs().mean(),
        "low": low,
        "high": high,
        "bias": error.mean(),
        "median_error": error.abs().median(),
    }


def _rows(rows: dict[str, dict[str, float]], name: str) -> pd.DataFrame:
    table = pd.DataFrame.from_dict(rows, orient="index").astype({"faces": int})
    return table.rename_axis(name)
