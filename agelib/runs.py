"""What a run's folder holds, whose run it is, and which folder is whose."""

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from agelib import data, env, files, model, predict, results, states, tables
from agelib.ages import age_loss
from agelib.model import Trained
from agelib.recipe import Recipe, from_dict
from agelib.weights import printable

RECIPE, MODEL = "recipe.json", "model.safetensors"
HISTORY, VALIDATION = "history.csv", "validation.csv"
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
        if theirs == _sides(faces, found):
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
    return recipe in (None, found) and theirs == _sides(faces, found)


def _sides(faces: pd.DataFrame, recipe: Recipe) -> tuple[str, str]:
    """Fingerprints of the faces that the recipe learns and of those it holds out."""
    train_faces, validation = data.hold_out(faces, recipe.folds)
    return _fingerprint(train_faces), _fingerprint(validation)


def _copy(attached: Path, run: Path) -> None:
    """Copies a run's own files, and nothing else that lies beside them."""
    names = [RECIPE, MODEL, HISTORY, VALIDATION]
    saved = states.saved(attached)
    names += [f"{state.name}/{name}" for state in saved for name in states.FILES]
    env.run_folder(run.name)
    with files.replacing(run) as unfinished:
        for name in names:
            if (attached / name).is_file() and not (attached / name).is_symlink():
                (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                # attached files are read-only, which their copies should not be
                shutil.copyfile(attached / name, unfinished / name)


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
) -> None:
    """Notes in `recipe.json` whose run the folder holds; makes the folder.

    Raises:
        ValueError: if it holds a run of another recipe, of other faces or with another
            loss.
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
        # before runs had a loss of their own, they did not note it
        others = {"loss": noted.pop("loss", age_loss.__name__)}
        for side in ("training_faces", "validation_faces"):
            others[side] = noted.pop(side)
        return from_dict(noted), others
    except (KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} does not tell whose run this is ({error}): rename {folder}, or "
            "pass fresh=True, which sets it aside."
        ) from error


def validation(folder: Path, faces: pd.DataFrame) -> pd.DataFrame:
    """The run's held-out faces with the predictions that the training wrote.

    Their paths are those in `faces`, as `data.read_train` gives them: the training may
    have been another session's, which had them elsewhere.

    Raises:
        FileNotFoundError: if the training wrote none.
        ValueError: if the file is damaged, or not of all the faces held out.
    """
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
    """A trained network, and what it predicts of faces that it has not learned from.

    Args:
        run: a run's folder, which holds both; or a checkpoint alone. The shipped one
            is judged on the competition's faces that it held out where they are at
            hand, any checkpoint else on all faces, which should be new to it.
        faces: all labelled faces, as `data.read_train` gives them.
    Raises:
        FileNotFoundError, OSError, ValueError: if the files are missing or damaged.
    """
    run = Path(run)
    if run.is_dir():
        return model.load(run / MODEL), validation(run, faces)
    trained = model.load(run)
    held_out = faces["digest"].isin(results.held_out())
    return trained, predict.predict(trained, faces[held_out | ~held_out.any()])


def _fingerprint(table: pd.DataFrame) -> str:
    """Equal for the same images with the same ages in the same order, wherever."""
    faces = (table["digest"] + table["age"].astype(str)).str.cat(sep=" ")
    return hashlib.md5(faces.encode(), usedforsecurity=False).hexdigest()


def set_aside(folder: Path) -> Path | None:
    """Renames a folder that holds anything to `<folder>.old-N`."""
    if folder.is_dir() and any(folder.iterdir()):
        return files.set_aside(folder)
    return None
