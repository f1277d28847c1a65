"""Read and check the tables and their images, and split them.

What flows is a table (pandas), one row a face: `file_id`, `path`, `digest`, and for
labelled faces `age` in years. Train and test reuse file names: identity is the path.
"""

import hashlib
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path, PurePath

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from agelib import images, tables

OLDEST = 120
# columns that agelib adds to the tables of faces
RESERVED = {"path", "digest", "fold", "pred_age", "low", "high"}
RESERVED |= {"grayscale", "light", "contrast", "sharpness"}
# what photos are called, in small letters, of the formats that `images` opens
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".tif", ".tiff"}
SUFFIXES |= {".bmp", ".dib", ".gif", ".heic", ".heics", ".heif", ".heifs", ".hif"}
SUFFIXES |= {".avif", ".avifs", ".mpo"}


def read_train(folder: Path, unreadable: str = "raise") -> pd.DataFrame:
    """The labelled faces of `train.csv`: `file_id`, `path`, `age`, `digest`.

    Further columns of that table, such as a camera or a clinic, follow as text, where
    they are filled in: no training learns from them, but errors can be told by them.
    Those that are called as a column of agelib's own are left out, with a warning.

    Args:
        folder: holds `train.csv` (`file_id,age`) and the images in `train/`.
        unreadable: "raise" stops at images that are missing or can't be decoded,
            "drop" leaves them out with a warning that names and counts them.
    Raises:
        FileNotFoundError, OSError, ValueError: naming the file, line or value at fault.
    """
    csv = Path(folder) / "train.csv"
    listed = read_listed(csv)
    table = listed.assign(
        path=_paths(listed, Path(folder) / "train", csv),
        age=tables.numbers(listed, "age", csv, 0, OLDEST),
    )
    table = table[["file_id", "path", "age"]].join(_further(listed, csv))
    return check_images(table.reset_index(drop=True), unreadable)


def _further(listed: pd.DataFrame, csv: Path) -> pd.DataFrame:
    """The columns of the user's own; what is empty is missing."""
    further = [name for name in listed if name not in ("file_id", "age")]
    if taken := [name for name in further if name in RESERVED]:
        warnings.warn(
            f"{csv} has a column {taken[0]!r}, which agelib uses for something of its "
            "own: it is left out. To have it shown, rename it.",
            stacklevel=3,
        )
    own = listed[[name for name in further if name not in RESERVED]]
    return own.apply(lambda column: column.str.strip()).where(lambda text: text != "")


def read_test(folder: Path, optional: bool = False) -> pd.DataFrame:
    """The unlabelled faces of the template `submission.csv`, in its order.

    Columns `file_id`, `path` and `digest`.

    Args:
        optional: a folder without that file gives a table without faces.
    Raises:
        FileNotFoundError, OSError, ValueError: naming the file, line or value at fault.
    """
    csv = Path(folder) / "submission.csv"
    if optional and not csv.exists():
        return pd.DataFrame({"file_id": [], "path": [], "digest": []}, dtype=str)
    listed = read_listed(csv)
    table = listed.assign(path=_paths(listed, Path(folder) / "test", csv))
    return check_images(table[["file_id", "path"]].reset_index(drop=True))


def read_ages(csv: Path) -> pd.DataFrame:
    """The ages that a table tells, such as a submission's: `file_id`, `age` in years.

    Raises:
        FileNotFoundError, OSError, ValueError: naming the file, line or value at fault.
    """
    listed = read_listed(csv)
    table = listed.assign(age=tables.numbers(listed, "age", csv, 0, OLDEST))
    return table[["file_id", "age"]].reset_index(drop=True)


def read_listed(csv: Path) -> pd.DataFrame:
    """The faces that a table lists, each once: `file_id` and `age` as text, by line.

    Spaces around an id are left out, with a warning.

    Raises:
        FileNotFoundError, OSError, ValueError: naming the file, line or value at fault.
    """
    table = tables.read_table(csv, "file_id", "age")
    written, file_id = table["file_id"], table["file_id"].str.strip()
    if len(spaced := written[written != file_id]):
        warnings.warn(
            f"{csv} {tables.at(spaced)} has spaces around a file_id "
            f"({spaced.iloc[0]!r}): they are left out.",
            stacklevel=3,
        )
    tables.refuse(
        csv,
        file_id[~file_id.map(_is_inside)],
        "has a file_id that names no file in the folder of its images",
        "write the file's name or remove the line",
    )
    tables.refuse(
        csv, file_id[file_id.duplicated()], "lists a file_id a second time", "keep one"
    )
    return table.assign(file_id=file_id)


def _is_inside(file_id: str) -> bool:
    path = PurePath(file_id)
    return bool(path.parts) and not path.anchor and ".." not in path.parts


def _paths(listed: pd.DataFrame, folder: Path, csv: Path) -> pd.Series:
    """Where each image lies; an id may leave out the suffix, or write it otherwise.

    Raises:
        ValueError: if an id may be one of several files, or two ids are the same file.
    """
    contents = cache(_contents)
    fitting = listed["file_id"].map(lambda i: _fitting(folder, i, contents))
    tables.refuse(
        csv,
        listed["file_id"][fitting.map(len) > 1],
        f"has a file_id that fits several files of {folder}",
        "write the name of one in full",
    )
    paths = fitting.map(lambda found: str(found[0]))
    tables.refuse(
        csv,
        listed["file_id"][paths.duplicated()],
        "lists an image a second time, under another file_id",
        "keep one",
    )
    return paths


def _fitting(
    folder: Path, file_id: str, contents: Callable[[Path], dict[str, set[str]]]
) -> list[Path]:
    """The files that an id may mean; if there is none, the one that it would be."""
    paths = [folder]
    for part in PurePath(file_id).parts:
        paths = [
            path / name
            for path in paths
            for name in _called(part, contents(path).get(_plain(part), set()))
        ]
    return paths


def _called(name: str, alike: set[str]) -> list[str]:
    return [name] if name in alike or not alike else sorted(alike)


def _contents(folder: Path) -> dict[str, set[str]]:
    """The names in a folder by what an id may write, if need be without the suffix."""
    alike = defaultdict(set)
    for path in folder.iterdir() if folder.is_dir() else ():
        alike[_plain(path.name)].add(path.name)
        if path.suffix.lower() in SUFFIXES:
            alike[_plain(path.stem)].add(path.name)
    return alike


def _plain(name: str) -> str:
    """Equal for names that differ in capitals, or in how accents are put together.

    Some disks hold such names for the same, and macOS takes accents apart.
    """
    return unicodedata.normalize("NFC", name.casefold())


def check_images(table: pd.DataFrame, unreadable: str = "raise") -> pd.DataFrame:
    """Decode every image once; adds `digest`, equal for byte-identical files.

    Warns of images that hardly show a face, with their number and some names.

    Raises:
        ValueError: naming an image that is missing, truncated, empty or no image,
            unless `unreadable` is "drop", or if no image is left.
    """
    inspected = images.each(_inspect, table["path"], "checking images")
    digests, faults, concerns = zip(*inspected, strict=True)
    table = table.assign(digest=digests)
    bad = pd.Series(faults, table.index).dropna()
    if len(bad):
        summary = f"{len(bad):,} of {len(table):,} images can't be used: {bad.iloc[0]}"
        if unreadable != "drop" or len(bad) == len(table):
            advice = "Restore the file"
            if "age" in table:
                advice += ", or pass unreadable='drop' to leave such faces out"
            raise ValueError(f"{summary}. {advice}.")
        names = ", ".join(table["file_id"][bad.index[:10]])
        warnings.warn(f"{summary}. Left out: {names}", stacklevel=3)
    doubtful = pd.Series(concerns, table.index).dropna()
    if len(doubtful):
        first = doubtful.head(10)
        names = ", ".join(table["file_id"][first.index] + " (" + first + ")")
        warnings.warn(
            f"{len(doubtful):,} of {len(table):,} images hardly show a face, so that "
            f"an age of theirs means little: {names}",
            stacklevel=3,
        )
    return table.drop(index=bad.index).reset_index(drop=True)


def _inspect(path: str) -> tuple[str, str | None, str | None]:
    """The digest of an image file, or why it can't be used; what it may not show."""
    try:
        content = images.read_file(path)
        concern = images.concern(images.decode_image(content))
    except (OSError, ValueError) as error:
        # what can't be seen in a name is the reason that no file has it
        name = path if path.isprintable() and len(path) < 400 else tables.brief(path)
        return "", f"{name} ({getattr(error, 'strerror', None) or error})", None
    return hashlib.md5(content, usedforsecurity=False).hexdigest(), None, concern


def split(table: pd.DataFrame, folds: int = 10, seed: int = 0) -> pd.DataFrame:
    """Adds `fold` (0..folds-1), each with the same mix of ages.

    Byte-identical files share a fold, so that no face is both learned and judged; of
    fewer different files than folds, each gets a fold of its own. Versions of
    scikit-learn differ in which fold a face gets.

    Raises:
        ValueError: if there are no two different files.
    """
    photos = table["digest"].nunique()
    if photos < 2:
        raise ValueError(
            f"Some faces are held out to judge by, but these {len(table):,} are all "
            "the same photo: at least two different ones are needed."
        )
    folds = min(folds, photos)
    # by rank, for bands of equal size whatever ages are crowded
    rank, n_bands = table["age"].rank(method="first"), min(20, len(table) // folds)
    bands = pd.qcut(rank, n_bands, labels=False)
    stratified = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # of few faces, not each fold has one of each band
        warnings.filterwarnings("ignore", "The least populated class")
        fold = _numbered(stratified.split(table, bands, table["digest"]), len(table))
    if len(np.unique(fold)) < folds:
        # of few photos with many copies it may leave a fold empty; now the photo with
        # the most copies comes last, so that it is not what is held out
        by_size = GroupKFold(folds).split(table, groups=table["digest"])
        fold = folds - 1 - _numbered(by_size, len(table))
    return table.assign(fold=fold)


def hold_out(
    table: pd.DataFrame, folds: int = 10, fold: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The faces to learn from, and those of one fold of `split` to judge by.

    Raises:
        ValueError: as `split`.
    """
    table = split(table, folds)
    held_out = table["fold"] == fold
    return table[~held_out], table[held_out]


def _numbered(splits: Iterable[tuple[np.ndarray, np.ndarray]], rows: int) -> np.ndarray:
    """The number of the fold that holds each row out."""
    fold = np.empty(rows, dtype=int)
    for number, (_, held_out) in enumerate(splits):
        fold[held_out] = number
    return fold
