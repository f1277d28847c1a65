"""Read and check the tables and their images, and split them.

What flows is a table (pandas), one row a face: `file_id`, `path`, `digest`, and for
labelled faces `age` in years. Train and test reuse file names: identity is the path.
"""

import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.errors import EmptyDataError, ParserError
from sklearn.model_selection import StratifiedGroupKFold
from tqdm.auto import tqdm

from agelib.images import decode_image

OLDEST = 120
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def read_train(folder: Path, unreadable: str = "raise") -> pd.DataFrame:
    """The labelled faces of `train.csv`: `file_id`, `path`, `age`, `digest`.

    Args:
        folder: holds `train.csv` (`file_id,age`) and the images in `train/`.
        unreadable: "raise" stops at images that are missing or can't be decoded,
            "drop" leaves them out with a warning that names and counts them.
    Raises:
        FileNotFoundError, ValueError: naming the file, line or value at fault.
    """
    csv = Path(folder) / "train.csv"
    table = _read_ids(csv, Path(folder) / "train")
    table["age"] = _ages(table, csv)
    return check_images(table, unreadable)


def read_test(folder: Path) -> pd.DataFrame:
    """The unlabelled faces of the template `submission.csv`, in its order.

    Raises:
        FileNotFoundError, ValueError: naming the file, line or value at fault.
    """
    csv = Path(folder) / "submission.csv"
    table = _read_ids(csv, Path(folder) / "test")
    return check_images(table.drop(columns="age"))


def read_validation(csv: Path, faces: pd.DataFrame) -> pd.DataFrame:
    """The held-out faces with the predictions that a training wrote.

    Their paths are those in `faces`, as `read_train` gives them: the training may have
    been another session's, which had them elsewhere.

    Raises:
        ValueError: if a face of the file is not among `faces`.
    """
    table = pd.read_csv(csv, dtype={"file_id": str})
    table["path"] = table["file_id"].map(faces.set_index("file_id")["path"])
    missing = table["file_id"][table["path"].isna()]
    if len(missing):
        raise ValueError(
            f"{csv} is of other faces: {missing.iloc[0]} is not in train.csv. Run "
            "02_training.ipynb with the same AGELIB_DATA."
        )
    return table


def _read_ids(csv: Path, images: Path) -> pd.DataFrame:
    if not csv.is_file():
        raise FileNotFoundError(f"No table {csv}: it should list file_id,age.")
    try:
        # as text: an id like 007 stays as it is, and a wrong age is shown as written;
        # utf-8-sig, for tables that Excel saved
        table = pd.read_csv(
            csv,
            dtype=str,
            keep_default_na=False,
            skipinitialspace=True,
            encoding="utf-8-sig",
        )
    except (EmptyDataError, ParserError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{csv} is no table of comma-separated file_id,age lines: {error}"
        ) from error
    for column in ("file_id", "age"):
        if column not in table:
            raise ValueError(
                f"{csv} has no column {column!r}, only {', '.join(table.columns)}: "
                "its first line should read file_id,age."
            )
    if table.empty:
        raise ValueError(f"{csv} has no rows below its first line.")
    repeated = table["file_id"].duplicated()
    _refuse(
        csv, table["file_id"][repeated], "lists a file_id a second time", "keep one"
    )
    return table[["file_id"]].assign(
        path=_paths(table["file_id"], images), age=table["age"]
    )


def _paths(file_ids: pd.Series, images: Path) -> list[str]:
    """Where each image lies; an id may leave out the suffix."""
    names = set(os.listdir(images)) if images.is_dir() else set()
    found = (
        next((i + s for s in ("", *SUFFIXES) if i + s in names), i) for i in file_ids
    )
    return [str(images / name) for name in found]


def _ages(table: pd.DataFrame, csv: Path) -> pd.Series:
    age = pd.to_numeric(table["age"], errors="coerce")
    wrong = ~age.between(0, OLDEST)
    _refuse(
        csv,
        table["age"][wrong],
        f"has an age that is not a number of years from 0 to {OLDEST}",
        "correct or remove the line",
    )
    return age.astype(float)


def _refuse(csv: Path, values: pd.Series, fault: str, advice: str) -> None:
    if len(values):
        line, value = values.index[0] + 2, values.iloc[0]
        more = f" and {len(values) - 1:,} more lines" if len(values) > 1 else ""
        raise ValueError(f"{csv} line {line}{more} {fault} ({value!r}): {advice}.")


def check_images(table: pd.DataFrame, unreadable: str = "raise") -> pd.DataFrame:
    """Decode every image once; adds `digest`, equal for byte-identical files.

    Raises:
        ValueError: naming an image that is missing, truncated, empty or no image,
            unless `unreadable` is "drop", or if no image is left.
    """
    with ThreadPoolExecutor() as threads:
        inspected = threads.map(_inspect, table["path"])
        bar = tqdm(inspected, "checking images", len(table), delay=2, leave=False)
        digests, problems = zip(*bar, strict=True)
    table = table.assign(digest=digests)
    bad = pd.Series(problems, index=table.index).dropna()
    if bad.empty:
        return table
    summary = f"{len(bad):,} of {len(table):,} images can't be used: {bad.iloc[0]}"
    if unreadable != "drop" or len(bad) == len(table):
        advice = "Restore the file"
        if "age" in table:
            advice += ", or pass unreadable='drop' to leave such faces out"
        raise ValueError(f"{summary}. {advice}.")
    names = ", ".join(table["file_id"][bad.index[:10]])
    warnings.warn(f"{summary}. Left out: {names}", stacklevel=2)
    return table.drop(index=bad.index).reset_index(drop=True)


def _inspect(path: str) -> tuple[str, str | None]:
    try:
        content = Path(path).read_bytes()
        decode_image(content)
    except OSError as error:
        return "", f"{path} ({error.strerror})"
    except ValueError as error:
        return "", f"{path} ({error})"
    return hashlib.md5(content, usedforsecurity=False).hexdigest(), None


def split(table: pd.DataFrame, folds: int = 10, seed: int = 0) -> pd.DataFrame:
    """Adds `fold` (0..folds-1), each with the same mix of ages.

    Byte-identical files share a fold, so that no face is both learned and judged.

    Raises:
        ValueError: if there are fewer faces than folds.
    """
    if len(table) < folds:
        raise ValueError(f"{len(table)} faces can't be split into {folds} folds.")
    # by rank, for bands of equal size whatever ages are crowded
    rank, n_bands = table["age"].rank(method="first"), min(20, len(table) // folds)
    bands = pd.qcut(rank, n_bands, labels=False)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold = np.empty(len(table), dtype=int)
    for number, (_, rows) in enumerate(splitter.split(table, bands, table["digest"])):
        fold[rows] = number
    return table.assign(fold=fold)
