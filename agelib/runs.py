"""What a run's folder holds, whose run it is, and which folder is whose.

A run is one training, whose files lie in its folder, or a cross-validation: then each
fold's training has a folder in it, `fold-0` and so on, that holds what a run's does.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from agelib import data, env, files, model, predict, results, states, tables
from agelib.ages import N_AGES, age_loss, read_off
from agelib.model import Trained
from agelib.recipe import Recipe, from_dict
from agelib.weights import printable

RECIPE, MODEL = "recipe.json", "model.safetensors"
HISTORY, VALIDATION = "history.csv", "validation.csv"
DISTRIBUTIONS = "validation.npz"
# of a cross-validation: what is predicted of each face by the network of its fold
OUT_OF_FOLD, OUT_OF_FOLD_DISTRIBUTIONS = "oof.csv", "oof.npz"
_NAMES = (RECIPE, MODEL, HISTORY, VALIDATION, DISTRIBUTIONS)
_NAMES += (OUT_OF_FOLD, OUT_OF_FOLD_DISTRIBUTIONS)
# a killed training's loader processes end some seconds after it
SECONDS_TO_WAIT = 15


def folder(recipe: Recipe, faces: pd.DataFrame) -> Path:
    """The folder of this recipe's run on these faces, made if needed.

    `runs/<recipe>`, where `env.run_folder` puts it; if that holds other faces' run,
    `runs/<recipe>-2` and so on. On Kaggle, where each notebook begins with nothing, it
    starts as a copy of the run that an attached notebook left, if that is of this
    recipe and these faces.

    Args:
        faces: all labelled faces, as `data.read_train` gives them.
    Raises:
        OSError: if the folder can't be made or written.
    """
    names = chain([recipe.name], (f"{recipe.name}-{n}" for n in count(2)))
    for path in (env.runs_folder() / name for name in names):
        if not (path.is_dir() and any(path.iterdir())):
            break
        try:
            found, theirs = read(path)
        except (OSError, ValueError) as error:
            warnings.warn(f"{error} So this run goes elsewhere.", stacklevel=2)
            continue
        if theirs in _sides(faces, found):
            return env.run_folder(path.name)
        warnings.warn(f"{path} holds a run of other faces.", stacklevel=2)
    for attached in env.attached_runs():
        if _is_of(attached, faces, recipe):
            _copy(attached, path)
            break
    return env.run_folder(path.name)


def newest(faces: pd.DataFrame) -> Path:
    """The folder of the run on these faces that was begun, or gone on with, last.

    AGELIB_RECIPE, where it is set, keeps it to runs of that recipe.

    Raises:
        FileNotFoundError: if there is none, with the way out.
    """
    wanted = os.environ.get("AGELIB_RECIPE")
    home = env.runs_folder()
    for found in (home.glob(f"*/{RECIPE}"), (a / RECIPE for a in env.attached_runs())):
        there = filter(Path.is_file, found)
        last_first = sorted(there, key=lambda path: path.stat().st_mtime, reverse=True)
        for run in (path.parent for path in last_first):
            if _is_of(run, faces) and wanted in (None, "", read(run)[0].name):
                if run.parent == home:
                    return run
                _copy(run, home / run.name)
                return home / run.name
    of = f" of the recipe {wanted}" if wanted else ""
    raise FileNotFoundError(
        f"No run{of} on these faces in {home}: run 02_training.ipynb first, with the "
        "same AGELIB_DATA and AGELIB_RECIPE."
    )


def _is_of(run: Path, faces: pd.DataFrame, recipe: Recipe | None = None) -> bool:
    try:
        found, theirs = read(run)
    except (OSError, ValueError):
        return False
    return recipe in (None, found) and theirs in _sides(faces, found)


def _sides(faces: pd.DataFrame, recipe: Recipe) -> list[tuple[str, str]]:
    """Fingerprints of the faces that a run learns and of those that it holds out.

    Of one training, and of a cross-validation, which does both with all faces.
    """
    one, all_folds = data.hold_out(faces, recipe.folds), (faces, faces)
    return [tuple(map(_fingerprint, sides)) for sides in (one, all_folds)]


def _copy(attached: Path, run: Path) -> None:
    """Copies a run's own files, and nothing else that lies beside them."""
    theirs = []
    for part in {attached, *trainings(attached)}:
        states_there = (s / name for s in states.saved(part) for name in states.FILES)
        theirs += [part / name for name in _NAMES] + list(states_there)
    env.run_folder(run.name)
    with files.replacing(run) as unfinished:
        for file in theirs:
            if file.is_file() and not file.is_symlink():
                copy = unfinished / file.relative_to(attached)
                copy.parent.mkdir(parents=True, exist_ok=True)
                # attached files are read-only, which their copies should not be
                shutil.copyfile(file, copy)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other trainings out of a run's folder.

    Raises:
        BlockingIOError: if another one works there.
    """
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    with files.writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=SECONDS_TO_WAIT)
        except Timeout:
            raise BlockingIOError(
                f"Another training works in {folder}: wait until it ends, or give the "
                "recipe another name."
            ) from None
        except OSError as error:
            # on a disk that can't be written nobody trains
            if error.errno != errno.EROFS:
                raise
    try:
        yield
    finally:
        lock.release()


def claim(
    folder: Path,
    recipe: Recipe,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    loss: Callable = age_loss,
    cross_validation: bool = False,
) -> None:
    """Notes in `recipe.json` whose run the folder holds; makes the folder.

    Args:
        cross_validation: whether it is one, which learns from all faces and holds all
            of them out; by default it is a single training.
    Raises:
        ValueError: if it holds a run of another recipe, of other faces, of the other
            kind or with another loss.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise FileExistsError(
            f"{folder} is a file, or a link to nowhere, where the run's folder should "
            "be: rename it."
        ) from error
    path = folder / RECIPE
    ours = asdict(recipe) | {
        "cross_validation": cross_validation,
        "training_faces": _fingerprint(train),
        "validation_faces": _fingerprint(validation),
        "loss": getattr(loss, "__name__", type(loss).__name__),
    }
    if not path.exists():
        files.write_text(json.dumps(ours, indent=2) + "\n", path)
    found, others = _noted(folder)
    theirs = asdict(found) | others
    for choice, value in ours.items():
        if theirs[choice] != value:
            raise ValueError(
                f"{folder} holds a run of other choices ({choice} is "
                f"{printable(theirs[choice])} there, {value} here): give the recipe "
                "another name, or pass fresh=True, which sets the earlier run aside."
            )
    # the run that was gone on with last is the one that is shown
    if os.access(path, os.W_OK):
        path.touch()


def read(folder: Path) -> tuple[Recipe, tuple[str, str]]:
    """The recipe of a run, and fingerprints of its training and validation faces.

    Raises:
        FileNotFoundError, OSError, ValueError: if `recipe.json` does not tell them.
    """
    recipe, others = _noted(folder)
    return recipe, (others["training_faces"], others["validation_faces"])


def _noted(folder: Path) -> tuple[Recipe, dict[str, str]]:
    """The recipe in a run's `recipe.json`, and what else it says of the run."""
    path = folder / RECIPE
    try:
        noted = json.loads(files.read_text(path))
        # which earlier runs did not note, for they had no choice
        others = {"loss": age_loss.__name__, "cross_validation": False}
        others = {name: noted.pop(name, default) for name, default in others.items()}
        for side in ("training_faces", "validation_faces"):
            others[side] = noted.pop(side)
        return from_dict(noted), others
    except (KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} does not tell whose run this is ({error}): rename {folder}, or "
            "pass fresh=True, which sets it aside."
        ) from error


def trainings(folder: Path) -> list[Path]:
    """The folders of a run's trainings: of each fold that has begun, or its own."""
    numbered = re.compile(r"fold-\d{1,4}")
    folds = [p for p in folder.glob("fold-*") if numbered.fullmatch(p.name)]
    folds = [p for p in folds if (p / RECIPE).is_file()]
    return sorted(folds, key=fold_number) or [folder]


def fold_number(training: Path) -> int:
    """Which fold a training holds out; a single one the first."""
    name = training.name.removeprefix("fold-")
    return int(name) if name.isdigit() else 0


def models(folder: Path) -> list[Path]:
    """The models of a run: one, or of a cross-validation that of each fold so far."""
    found = [part / MODEL for part in trainings(folder) if (part / MODEL).is_file()]
    return found or [folder / MODEL]


def history(folder: Path) -> pd.DataFrame:
    """What a run's trainings wrote of each epoch, with its `fold`."""
    parts = [model.parent for model in models(folder)]
    tables = [pd.read_csv(part / HISTORY) for part in parts]
    folds = map(fold_number, parts)
    return pd.concat(
        [table.assign(fold=fold) for table, fold in zip(tables, folds, strict=True)],
        ignore_index=True,
    )


def error(folder: Path) -> str:
    """The validation error of the best epoch, of a cross-validation of all folds."""
    table = history(folder)
    best = table.loc[table.groupby("fold")["val_mae"].idxmin()]
    told = f"{best['val_mae'].mean():.2f} years"
    if len(best) > 1:
        return f"{told}, the mean of {len(best)} folds"
    return f"{told}, after epoch {best['epoch'].item()} of {len(table)}"


def validation(folder: Path, faces: pd.DataFrame) -> pd.DataFrame:
    """The run's held-out faces with the predictions that the training wrote.

    Of a cross-validation those of all folds so far, in the order of `faces`, each face
    predicted by the network that has not learned from it. The column `fold` tells which
    one that is.

    Their paths are those in `faces`, as `data.read_train` gives them: the training may
    have been another session's, which had them elsewhere.

    Raises:
        FileNotFoundError: if the training wrote none.
        ValueError: if the file is damaged, or not of all the faces held out.
    """
    table, order = _validation(folder, faces)
    return table.iloc[order].reset_index(drop=True)


def distributions(folder: Path, faces: pd.DataFrame) -> np.ndarray:
    """The probability of each age 0..100 for each row of `validation`, float32.

    Raises:
        FileNotFoundError: if the training wrote none.
        ValueError: if a file is damaged, or not of all the faces held out.
    """
    table, order = _validation(folder, faces)
    probabilities = [
        _read_distributions(path.with_name(DISTRIBUTIONS), n)
        for path, n in zip(models(folder), table.groupby("fold").size(), strict=True)
    ]
    return np.concatenate(probabilities)[order]


def _validation(folder: Path, faces: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The held-out faces of one training after the other, and the order of `faces`."""
    parts = [model.parent for model in models(folder)]
    tables = [_held_out(part, faces).assign(fold=fold_number(part)) for part in parts]
    table = pd.concat(tables, ignore_index=True)
    place = pd.Index(faces["file_id"]).get_indexer(table["file_id"])
    return table, place.argsort()


def write_out_of_fold(folder: Path, faces: pd.DataFrame) -> None:
    """Writes what `validation` and `distributions` of a cross-validation give."""
    files.write_csv(validation(folder, faces), folder / OUT_OF_FOLD)
    probabilities = distributions(folder, faces)
    write_distributions(probabilities, folder / OUT_OF_FOLD_DISTRIBUTIONS)


def write_distributions(probabilities: np.ndarray, path: Path) -> None:
    """Writes (faces, 101) probabilities to four decimals in float16, compressed."""
    with files.replacing(path) as unfinished:
        rounded = probabilities.round(4).astype(np.float16)
        np.savez_compressed(unfinished, probabilities=rounded)


def _read_distributions(path: Path, faces: int) -> np.ndarray:
    advice = "run 02_training.ipynb again, it makes the file anew"
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}: {advice}.")
    files.regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            # before any memory is taken
            if archive.getinfo("probabilities.npy").file_size > 202 * faces + 1000:
                raise ValueError(f"it is of more than {faces:,} faces")
        # a pickle inside would run code
        with np.load(path, allow_pickle=False) as content:
            probabilities = content["probabilities"]
        if (probabilities.shape, probabilities.dtype) != ((faces, N_AGES), np.float16):
            raise ValueError(f"it is not of {faces:,} faces and {N_AGES} ages")
        # each of them was rounded
        if not np.allclose(probabilities.sum(1, dtype=np.float32), 1, atol=0.02):
            raise ValueError("its rows do not sum to one")
    # numpy and zipfile know many ways to say that a file is damaged
    except Exception as error:
        raise ValueError(
            f"{path} does not hold the distributions of a training ({error}): {advice}."
        ) from error
    return probabilities.astype(np.float32)


def _held_out(folder: Path, faces: pd.DataFrame) -> pd.DataFrame:
    csv = folder / VALIDATION
    predicted = tables.read_table(csv, "file_id", "pred_age", "low", "high")
    ages = ("pred_age", "low", "high")
    predicted = predicted[["file_id"]].assign(
        **{name: tables.numbers(predicted, name, csv) for name in ages}
    )
    bounds = predicted.assign(least=0, most=100)
    bounds = bounds[["least", "low", "pred_age", "high", "most"]]
    if wrong := predicted["file_id"][(bounds.diff(axis=1) < 0).any(axis=1)].tolist():
        raise ValueError(
            f"{csv} has ages of {wrong[0]} that are not in order, or not from 0 to "
            "100: run 02_training.ipynb again, it makes the file anew."
        )
    table = predicted.merge(faces, on="file_id")
    _, held_out = read(folder)[1]
    if _fingerprint(table) != held_out:
        raise ValueError(
            f"{csv} does not hold the {folder.name} run's held-out faces, or not all: "
            "run 02_training.ipynb again, with the same AGELIB_DATA; it makes the file "
            "anew."
        )
    return table


def judged(run: Path, faces: pd.DataFrame) -> tuple[Trained, pd.DataFrame]:
    """A trained network, and what a run predicts of faces that were new to it.

    Args:
        run: a run's folder, which holds both: of a cross-validation the network is that
            of the first fold, and each face is predicted by that of its own. Or a
            checkpoint alone. The shipped one is judged on the competition's faces that
            it held out where they are at hand, any checkpoint else on all faces, which
            should be new to it. Their fold is 0.
        faces: all labelled faces, as `data.read_train` gives them.
    Raises:
        FileNotFoundError, OSError, ValueError: if the files are missing or damaged.
    """
    run = Path(run)
    if run.is_dir():
        return model.load(models(run)[0]), validation(run, faces)
    trained = model.load(run)
    held_out = faces["digest"].isin(results.held_out())
    new = faces[held_out | ~held_out.any()]
    return trained, predict.predict(trained, new).assign(fold=0)


def unseen(
    paths: Sequence[Path], faces: pd.DataFrame, views: int | None = None
) -> pd.DataFrame:
    """What several models say of faces that they have not learned from.

    Each face is predicted by those of them which held it out, whose distributions are
    averaged; faces from which all have learned are left out. So the error of an
    ensemble is never measured on a face that one of its networks knows by heart.

    Args:
        paths: models in the folders of their trainings, as `models` gives them.
        faces: all labelled faces, as `data.read_train` gives them.
        views: how many of `loading.VIEWS` of each face to average; by default as many
            as the recipe says.
    Raises:
        FileNotFoundError, OSError, ValueError: if the files are missing or damaged.
    """
    total = np.zeros((len(faces), N_AGES), np.float32)
    voices = np.zeros(len(faces))
    for path in map(Path, paths):
        held_out = validation(path.parent, faces)
        new = faces["file_id"].isin(held_out["file_id"]).to_numpy()
        if views is None:
            total[new] += distributions(path.parent, faces)
        else:
            total[new] += predict.distributions(model.load(path), faces[new], views)
        voices += new
    known = voices > 0
    mean = total[known] / voices[known, None]
    return faces[known].assign(**read_off(mean))


def _fingerprint(table: pd.DataFrame) -> str:
    """Equal for the same images with the same ages in the same order, wherever."""
    faces = (table["digest"] + table["age"].astype(str)).str.cat(sep=" ")
    return hashlib.md5(faces.encode(), usedforsecurity=False).hexdigest()


def set_aside(folder: Path) -> Path | None:
    """Renames a folder that holds anything to `<folder>.old-N`."""
    if folder.is_dir() and any(folder.iterdir()):
        return files.set_aside(folder)
    return None
