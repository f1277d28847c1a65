"""What does a bad photo cost in years: robustness.py DATASET OUT NAME=MODEL ...

Spoils the held-out faces in one way after the other, most of them at two strengths, and
writes each network's error to the table OUT. NAME is what the table calls the network,
MODEL its file. The noise of a face follows its place in the table alone: all networks
see the same photos.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from agelib import data, degrade, images, metrics, model, predict, results

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def plain(change: Callable, *strength: float) -> Change:
    """A change that draws no random numbers."""
    return lambda image, rng: change(image, *strength)


# the faces are 200 px wide
PHOTOS: dict[str, Change] = {
    "as it is": plain(lambda image: image),
    "noise of 20 grey levels": partial(lambda i, rng: degrade.noise(i, 20, rng)),
    "noise of 40 grey levels": partial(lambda i, rng: degrade.noise(i, 40, rng)),
    "JPEG quality 30": plain(degrade.jpeg, 30),
    "JPEG quality 10": plain(degrade.jpeg, 10),
    "reduced to 64 px": plain(degrade.reduce, 64),
    "reduced to 32 px": plain(degrade.reduce, 32),
    "blurred by 1 px": plain(degrade.blur, 0.005),
    "blurred by 2 px": plain(degrade.blur, 0.01),
    "0.4 times the light": plain(degrade.light, 0.4),
    "1.8 times the light": plain(degrade.light, 1.8),
    "grey": plain(degrade.grey),
    "eyes hidden": plain(degrade.hide, 0, 0.25, 1, 0.45),
    "lower 40% hidden": plain(degrade.hide, 0, 0.6, 1, 1),
    "turned by 10 degrees": plain(degrade.turn, 10),
    "turned by 20 degrees": plain(degrade.turn, 20),
}


def spoil(faces: pd.DataFrame, change: Change, folder: Path) -> pd.DataFrame:
    """The faces, each changed and written to the folder without further loss."""
    paths = []
    for row, path in enumerate(faces["path"]):
        changed = change(images.read_image(path), np.random.default_rng(row))
        paths.append(str(folder / f"{row}.png"))
        changed.save(paths[-1], compress_level=1)
    return faces.assign(path=paths)


def measure(
    trained: dict[str, model.Trained], faces: pd.DataFrame, views: int | None = None
) -> pd.DataFrame:
    """One row a network and kind of photo: its error, and how much the change costs.

    Args:
        trained: the networks by their names.
        faces: held out from all of them.
        views: of each face, as `predict.predict` takes it.
    """
    rows, clean = [], {}
    for photo, change in tqdm(PHOTOS.items(), "photos"):
        with tempfile.TemporaryDirectory() as folder:
            spoiled = spoil(faces, change, Path(folder))
            for name, one in trained.items():
                table = predict.predict(one, spoiled, views)
                error = metrics.mae(table)
                told = metrics.summary(table)[["mae", "low", "high", "bias"]]
                cost = error - clean.setdefault(name, error)
                rows.append({"network": name, "photo": photo, **told, "cost": cost})
    return pd.DataFrame(rows).round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path, help="the table to write")
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--faces", type=int, help="so many of them, at random")
    parser.add_argument("--views", type=int, help="instead of the recipe's")
    asked = parser.parse_args()
    faces = data.read_train(asked.dataset)
    held_out = faces[faces["digest"].isin(results.held_out())]
    if held_out.empty:
        parser.error(f"{asked.dataset} holds none of the competition's held-out faces")
    if asked.faces:
        held_out = held_out.sample(asked.faces, random_state=0)
    named = (text.partition("=") for text in asked.models)
    trained = {name: model.load(path) for name, _, path in named}
    table = measure(trained, held_out.reset_index(drop=True), asked.views)
    table.to_csv(asked.out, index=False)
    print(table.to_string())


if __name__ == "__main__":
    main()
