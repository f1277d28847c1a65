"""The ages of all faces in the photos of a folder, as one table.

python -m agelib.photo holiday --out ages.csv
"""

import argparse
import hashlib
import tempfile
import warnings
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from agelib import data, env, files, model, photo, predict, tables
from agelib.model import Trained

COLUMNS = ["photo", "face", "x", "y", "side", "turn", "sure"]
COLUMNS += ["pred_age", "low", "high", "note"]
# photos whose faces are predicted together, and then saved
AT_ONCE = 16


def ages(
    folder: Path, trained: Trained, csv: Path, views: int | None = None
) -> pd.DataFrame:
    """Finds, crops and predicts every face of every photo, and writes the table.

    The photos of folders inside are among them. What is done is kept beside the table
    as it goes, so that a run that was stopped goes on where it was; photos that were
    changed since, and those of another network, are done again. The table itself is
    written in the end, all or nothing.

    Args:
        trained: what `model.load` returns.
        csv: the table to write.
        views: of each face, as `predict.predict` takes it.
    Returns:
        one row a face: `photo`, its path in the folder; `face`, `x`, `y`, `side`,
        `turn` and `sure` as from `photo.find`; `pred_age`, `low` and `high` in years;
        and a `note` if that age means little. A photo without faces, or that can't be
        read, has a row with a note alone.
    Raises:
        FileNotFoundError: if there is no such folder, or no photo in it.
        OSError: if the table can't be written.
    """
    folder, csv = Path(folder), Path(csv)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: correct its name.")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in data.SUFFIXES and path.is_file()
    )
    if not found:
        raise FileNotFoundError(f"There is no photo in {folder}: name another folder.")
    # what is asked for must not fail for want of a folder, after all the work
    csv.parent.mkdir(parents=True, exist_ok=True)
    unfinished = csv.with_name(f".{csv.name}.{_digest(trained, views)}.unfinished")
    done = _read(unfinished, folder)
    left = [path for path in found if _name(path, folder) not in set(done["photo"])]
    bar = tqdm(total=len(found), initial=len(found) - len(left), desc="photos")
    with bar, files.writing(csv.parent):
        for start in range(0, len(left), AT_ONCE):
            some = left[start : start + AT_ONCE]
            done = pd.concat([done, _predicted(some, folder, trained, views)])
            files.write_csv(done, unfinished)
            bar.update(len(some))
        names = [_name(path, folder) for path in found]
        done = done[done["photo"].isin(names)]
        order = done["photo"].map({name: n for n, name in enumerate(names)})
        done = done.iloc[order.argsort(kind="stable")].reset_index(drop=True)
        files.write_csv(done, csv)
        unfinished.unlink(missing_ok=True)
    table = _table(csv)
    _tell(table)
    return table


def _predicted(
    paths: list[Path], folder: Path, trained: Trained, views: int | None
) -> pd.DataFrame:
    """The rows of some photos."""
    notes, faces = [], []
    with tempfile.TemporaryDirectory() as crops:
        for number, path in enumerate(paths):
            name = _name(path, folder)
            try:
                picture = photo.read(path)
                found = photo.find(picture)
            except (OSError, ValueError) as error:
                notes.append({"photo": name, "note": _reason(error, path)})
                continue
            cuts = photo.cuts(picture, found)
            for (face, row), (cut, doubt) in zip(found.iterrows(), cuts, strict=True):
                file = Path(crops) / f"{number}_{face}.png"
                cut.save(file, compress_level=1)
                told = {"photo": name, "face": face, **row, "path": str(file)}
                faces.append(told | {"note": doubt})
        table = pd.DataFrame(faces)
        if faces:
            table = predict.predict(trained, table, views)
    both = pd.concat([table, pd.DataFrame(notes)]).reindex(columns=COLUMNS)
    return both.round(3)


def _reason(error: Exception, path: Path) -> str:
    """The first sentence of an error, without the path, which the row has."""
    told = str(error).removeprefix(f"{path} ")
    return told.split(". ")[0].removesuffix(".")


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _digest(trained: Trained, views: int | None) -> str:
    """Differs if the ages would: of the weights, the recipe and the views."""
    digest = hashlib.md5(usedforsecurity=False)
    for name, tensor in trained.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().numpy().tobytes())
    digest.update(repr((trained.recipe, views)).encode())
    if trained.model.calibration is not None:
        digest.update(trained.model.calibration.tobytes())
    return digest.hexdigest()[:8]


def _table(csv: Path) -> pd.DataFrame:
    return pd.read_csv(csv, dtype={"photo": str, "face": "Int64", "note": object})


def _read(unfinished: Path, folder: Path) -> pd.DataFrame:
    """The rows of an earlier run, of photos that are still what they were."""
    if not unfinished.is_file():
        return pd.DataFrame(columns=COLUMNS)
    try:
        tables.read_table(unfinished, *COLUMNS)
        done = _table(unfinished)
        since = unfinished.stat().st_mtime
        paths = done["photo"].map(lambda name: folder / name)
        same = paths.map(lambda p: p.is_file() and p.stat().st_mtime < since)
        return done[same.astype(bool)]
    except ValueError as error:
        warnings.warn(f"{error} So all photos are read again.", stacklevel=3)
        return pd.DataFrame(columns=COLUMNS)


def _tell(done: pd.DataFrame) -> None:
    """Warns of photos that have no age."""
    without = done[done["face"].isna()]
    if len(without):
        some = without.head(10)
        named = ", ".join(some["photo"] + " (" + some["note"] + ")")
        warnings.warn(
            f"{len(without):,} of {done['photo'].nunique():,} photos have no age: "
            f"{named}",
            stacklevel=3,
        )


def main() -> None:
    parser = argparse.ArgumentParser("agelib.photo", description=__doc__)
    parser.add_argument("folder", type=Path, help="of photos, and of folders of them")
    parser.add_argument("--out", type=Path, default=Path("ages.csv"), help="the table")
    parser.add_argument("--model", type=Path, default=env.shipped_model())
    parser.add_argument("--views", type=int, help="of each face, by default as trained")
    asked = parser.parse_args()
    table = ages(asked.folder, model.load(asked.model), asked.out, asked.views)
    told = table["face"].notna()
    print(f"{told.sum():,} faces of {table['photo'].nunique():,} photos: {asked.out}")
