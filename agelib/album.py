"""The ages of all faces in the photos of a folder, as one table.

python -m agelib.photo holiday --out ages.csv
"""

import argparse
import glob
import hashlib
import os
import tempfile
import warnings
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from agelib import data, env, files, model, photo, predict, tables
from agelib.model import Trained

COLUMNS = ["photo", "face", "x", "y", "side", "turn", "sure"]
COLUMNS += ["pred_age", "low", "high", "note"]
# what tells a photo that was changed or replaced; of the unfinished table alone
STAMP = "stamp"
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
        OSError: if the table can't be written, which is tried first.
    """
    folder, csv = Path(folder), Path(csv)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: correct its name.")
    photos = {
        _name(path, folder): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in data.SUFFIXES
        # which macOS writes beside each photo on other systems' disks
        and not path.name.startswith("._")
        and path.is_file()
    }
    if not photos:
        raise FileNotFoundError(f"There is no photo in {folder}: name another folder.")
    files.prepare(csv)
    digest = _digest(folder, trained, views)
    unfinished = csv.with_name(f".{csv.name}.{digest}.unfinished")
    done = _read(unfinished, photos)
    known = set(done["photo"])
    left = [name for name in photos if name not in known]
    with tqdm(total=len(photos), initial=len(known), desc="photos") as bar:
        for start in range(0, len(left), AT_ONCE):
            some = {name: photos[name] for name in left[start : start + AT_ONCE]}
            new = _predicted(some, trained, views)
            # an empty table would turn its numbers into objects
            done = new if done.empty else pd.concat([done, new])
            files.write_csv(done, unfinished)
            bar.update(len(some))
    order = done["photo"].map({name: n for n, name in enumerate(photos)})
    done = done.iloc[order.argsort(kind="stable")]
    files.write_csv(done[COLUMNS], csv)
    # also those of other networks, which tell where people are
    for table in csv.parent.glob(f".{glob.escape(csv.name)}.*.unfinished"):
        files.remove(table)
    table = _table(csv)
    _tell(table)
    return table


def _predicted(
    photos: dict[str, Path], trained: Trained, views: int | None
) -> pd.DataFrame:
    """The rows of some photos."""
    notes, faces = [], []
    place = Path(tempfile.gettempdir())
    with files.writing(place), tempfile.TemporaryDirectory() as crops:
        for number, (name, path) in enumerate(photos.items()):
            about = {"photo": name}
            try:
                about[STAMP] = _stamp(path)
                picture = photo.read(path)
                found = photo.find(picture)
            except (OSError, ValueError) as error:
                notes.append(about | {"note": _reason(error, path)})
                continue
            cuts = photo.cuts(picture, found)
            for (face, row), (cut, doubt) in zip(found.iterrows(), cuts, strict=True):
                file = Path(crops) / f"{number}_{face}.png"
                cut.save(file, compress_level=1)
                told = about | {"face": face, **row, "path": str(file)}
                faces.append(told | {"note": doubt})
        table = pd.DataFrame(faces)
        if faces:
            table = predict.predict(trained, table, views)
    both = pd.concat([table, pd.DataFrame(notes)]).reindex(columns=[*COLUMNS, STAMP])
    return both.round(3).astype({"face": "Int64"})


def _reason(error: Exception, path: Path) -> str:
    """The first sentence of an error, without the path, which the row has."""
    told = str(error).removeprefix(f"{path} ")
    return told.split(". ")[0].removesuffix(".")


def _name(path: Path, folder: Path) -> str:
    """A photo's path in the folder; a byte that is not UTF-8 as its number."""
    name = os.fsencode(path.relative_to(folder).as_posix())
    return name.decode("utf-8", "backslashreplace")


def _stamp(path: Path) -> str:
    about = path.stat()
    return f"{about.st_mtime_ns} {about.st_size}"


def _digest(folder: Path, trained: Trained, views: int | None) -> str:
    """Differs if the ages would: of folder, weights, recipe and views."""
    digest = hashlib.md5(os.fsencode(folder.resolve()), usedforsecurity=False)
    for name, tensor in trained.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().numpy().tobytes())
    digest.update(repr((trained.recipe, views)).encode())
    if trained.model.calibration is not None:
        digest.update(trained.model.calibration.tobytes())
    return digest.hexdigest()[:8]


def _table(csv: Path) -> pd.DataFrame:
    kinds = {"photo": str, "face": "Int64", "note": object, STAMP: str}
    return pd.read_csv(csv, dtype=kinds)


def _read(unfinished: Path, photos: dict[str, Path]) -> pd.DataFrame:
    """The rows of an earlier run, of photos that are still what they were."""
    nothing = pd.DataFrame(columns=[*COLUMNS, STAMP])
    if not unfinished.is_file():
        return nothing
    try:
        tables.read_table(unfinished, *nothing)
        done = _table(unfinished)
        now = {name: _stamp(path) for name, path in photos.items()}
        return done[done["photo"].map(now) == done[STAMP]]
    except ValueError as error:
        warnings.warn(f"{error} So all photos are read again.", stacklevel=3)
        return nothing


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
    parser.add_argument("--model", type=Path, help="else the shipped one")
    parser.add_argument("--views", type=int, help="of each face, by default as trained")
    asked = parser.parse_args()
    with env.plain_errors():
        trained = model.load(asked.model or env.shipped_model())
        table = ages(asked.folder, trained, asked.out, asked.views)
    told = table["face"].notna()
    print(f"{told.sum():,} faces of {table['photo'].nunique():,} photos: {asked.out}")
