"""What a run's folder holds: whose run it is."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from agelib import files
from agelib.recipe import Recipe


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
        files.write_text(json.dumps(ours, indent=2) + "\n", path)
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
