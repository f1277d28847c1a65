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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock, Timeout

from agelib import data, env, files, states
from agelib.ages import age_loss
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


def folder(recipe: Recipe, faces: pd.DataFrame, cross_validation: bool = False) -> Path:
    """The folder of this recipe's run on these faces, made if needed.

    `runs/<recipe>`, where `env.run_folder` puts it, or of a cross-validation
    `runs/<recipe>-5-folds`; if that holds other faces' run, `runs/<recipe>-2` and so
    on. On Kaggle, where each notebook begins with nothing, it
    starts as a copy of the run that an attached notebook left, if that is of this
    recipe and these faces.

    Args:
        faces: all labelled faces, as `data.read_train` gives them.
    Raises:
        OSError: if the folder can't be made, read or written.
    """
    name = f"{recipe.name}-{recipe.folds}-folds" if cross_validation else recipe.name
    names = chain([name], (f"{name}-{n}" for n in count(2)))
    for path in (env.runs_folder() / name for name in names):
        if not (path.is_dir() and any(path.iterdir())):
            break
        try:
            found, theirs = read(path)
        except (OSError, ValueError) as error:
            if files.may_pass(error):
                raise
            warnings.warn(f"{error} So this run goes elsewhere.", stacklevel=2)
            continue
        if theirs == _sides(faces, found)[cross_validation]:
            return env.run_folder(path.name)
        warnings.warn(f"{path} holds a run of other faces.", stacklevel=2)
    for attached in env.attached_runs():
        if _is_of(attached, faces, (recipe, cross_validation)):
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
            if _is_of(run, faces, name=wanted):
                if run.parent == home:
                    return run
                _copy(run, home / run.name)
                return home / run.name
    of = f" of the recipe {wanted}" if wanted else ""
    raise FileNotFoundError(
        f"No run{of} on these faces in {home}: run 02_training.ipynb first, with the "
        "same AGELIB_DATA and AGELIB_RECIPE."
    )


def _is_of(
    run: Path,
    faces: pd.DataFrame,
    wanted: tuple[Recipe, bool] | None = None,
    name: str | None = None,
) -> bool:
    """Whether a run is of these faces, and of a recipe and kind if one is wanted.

    Args:
        name: that of the recipe, if its other choices don't matter.
    """
    try:
        found, theirs = read(run)
    except (OSError, ValueError) as error:
        if files.may_pass(error):
            raise
        return False
    # before the faces are split, which takes seconds
    if name not in (None, "", found.name) or (wanted and wanted[0] != found):
        return False
    kinds = [
        (found, number == 1)
        for number, sides in enumerate(_sides(faces, found))
        if sides == theirs
    ]
    return bool(kinds) and wanted in (None, *kinds)


def _sides(faces: pd.DataFrame, recipe: Recipe) -> list[tuple[str, str]]:
    """Fingerprints of the faces that a run learns and of those that it holds out.

    Of one training, and of a cross-validation, which does both with all faces.
    """
    one, all_folds = data.hold_out(faces, recipe.folds), (faces, faces)
    return [tuple(map(fingerprint, sides)) for sides in (one, all_folds)]


def _copy(attached: Path, run: Path) -> None:
    """Copies a run's own files, and nothing else that lies beside them."""
    theirs = []
    for part in {attached, *trainings(attached).values()}:
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
    loop: str = "Loop",
    start: dict[str, torch.Tensor] | None = None,
    cross_validation: bool = False,
) -> None:
    """Notes in `recipe.json` whose run the folder holds; makes the folder.

    Args:
        loop: the name of the training loop's class.
        start: the weights with which it begins, if not with ImageNet's.
        cross_validation: whether it is one, which learns from all faces and holds all
            of them out; by default it is a single training.
    Raises:
        ValueError: if it holds a run of another recipe, of other faces, of the other
            kind, or with another loss, loop or start.
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
        "training_faces": fingerprint(train),
        "validation_faces": fingerprint(validation),
        "loss": getattr(loss, "__name__", type(loss).__name__),
        "loop": loop,
        "start": _checksum(start) if start else None,
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
        others = {"loss": age_loss.__name__, "loop": "Loop", "start": None}
        others |= {"cross_validation": False}
        others = {name: noted.pop(name, default) for name, default in others.items()}
        for side in ("training_faces", "validation_faces"):
            others[side] = noted.pop(side)
        return from_dict(noted), others
    except (KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} does not tell whose run this is ({error}): rename {folder}, or "
            "pass fresh=True, which sets it aside."
        ) from error


def trainings(folder: Path) -> dict[int, Path]:
    """The folders of a run's trainings by the fold that each holds out.

    Of a cross-validation those of the folds that have begun; else the run's own, 0.
    """
    numbered = re.compile(r"fold-([0-9]{1,4})")
    found = {numbered.fullmatch(path.name): path for path in folder.glob("fold-*")}
    folds = {int(m[1]): path for m, path in found.items() if m and _has_begun(path)}
    return dict(sorted(folds.items())) or {0: folder}


def _has_begun(training: Path) -> bool:
    return (training / RECIPE).is_file()


def fingerprint(table: pd.DataFrame) -> str:
    """Equal for the same images with the same ages in the same order, wherever."""
    faces = (table["digest"] + table["age"].astype(str)).str.cat(sep=" ")
    return hashlib.md5(faces.encode(), usedforsecurity=False).hexdigest()


def _checksum(weights: dict[str, torch.Tensor]) -> str:
    """Equal for the same weights, whatever their file is called."""
    found = hashlib.md5(usedforsecurity=False)
    for name in sorted(weights):
        found.update(name.encode() + weights[name].cpu().numpy().tobytes())
    return found.hexdigest()


def set_aside(folder: Path) -> Path | None:
    """Renames a folder that holds anything to `<folder>.old-N`."""
    if folder.is_dir() and any(folder.iterdir()):
        return files.set_aside(folder)
    return None
