"""What a run's folder holds: whose run it is, and files that are never half-written."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError

from agelib.recipe import Recipe

# what a disk is that takes no more, and what to do about it
_REFUSALS = {
    errno.ENOSPC: ("full", "make room"),
    errno.EDQUOT: ("full up to your quota", "make room"),
    errno.EROFS: ("read-only", "make it writable"),
}


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Says in one sentence, whichever library writes, that the disk takes no more.

    Raises:
        OSError: if the folder's disk, or the share of it one may use, is full, or if it
            is read-only.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _reason(error, folder)
        if reason not in _REFUSALS:
            raise
        state, remedy = _REFUSALS[reason]
        raise OSError(
            f"The disk of {folder} is {state}: {remedy} and run again, a training goes "
            "on from its last saved state."
        ) from error


def _reason(error: Exception, folder: Path) -> int | None:
    """The system's number of the error, if a failed write has one."""
    if isinstance(error, OSError):
        return error.errno
    if told := re.search(r"\(os error (\d+)\)", str(error)):
        return int(told[1])
    # torch's RuntimeError tells nothing, but what it wrote still fills the disk
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(2**20))
    except OSError as refusal:
        return refusal.errno
    return None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file name that becomes `path` if the block succeeds.

    If it fails, or the process dies, the earlier file at `path` is untouched.
    """
    # a folder, as safetensors writes yet another file beside the one it is given
    unfinished = path.with_name(f"{path.name}.unfinished")
    with writing(path.parent):
        try:
            unfinished.mkdir(exist_ok=True)
            yield unfinished / path.name
            os.replace(unfinished / path.name, path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Writes the table without its index, all or nothing."""
    with replacing(path) as unfinished:
        table.to_csv(unfinished, index=False)


def claim(
    folder: Path, recipe: Recipe, train: pd.DataFrame, validation: pd.DataFrame
) -> None:
    """Notes in `recipe.json` whose run the folder holds; makes the folder.

    Raises:
        ValueError: if it holds a run of another recipe or of other faces.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.json"
    ours = asdict(recipe) | {
        "training_faces": _fingerprint(train),
        "validation_faces": _fingerprint(validation),
    }
    if not path.is_file():
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(ours, indent=2) + "\n")
    theirs = json.loads(path.read_text())
    for choice, value in ours.items():
        if theirs.get(choice) != value:
            raise ValueError(
                f"{folder} holds a run of other choices ({choice} is "
                f"{theirs.get(choice)} there, {value} here): give the recipe another "
                "name, or pass fresh=True, which sets the earlier run aside."
            )


def _fingerprint(table: pd.DataFrame) -> str:
    """Equal for the same images with the same ages in the same order, wherever."""
    faces = (table["digest"] + table["age"].astype(str)).str.cat(sep=" ")
    return hashlib.md5(faces.encode(), usedforsecurity=False).hexdigest()


def set_aside(folder: Path) -> None:
    """Renames a folder that holds anything to `<folder>.old-N`."""
    if folder.is_dir() and any(folder.iterdir()):
        numbered = (folder.with_name(f"{folder.name}.old-{n}") for n in range(1, 9999))
        folder.rename(next(old for old in numbered if not old.exists()))
