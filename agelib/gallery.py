"""Draw the faces themselves, with their ages, on a figure of their own.

A table that lacks a column or holds a number that is not finite is a ValueError, and
so is a photo that can't be read.
"""

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from pandas import DataFrame
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid
from tqdm.auto import tqdm

from agelib import degrade, metrics
from agelib.images import read_image
from agelib.plots import BLUE, ORANGE, PALETTE, RED, SKY, dress, grid
from agelib.tables import finite, require


def face_grid(
    table: DataFrame, captions: Sequence[str] | None = None, columns: int = 10
) -> np.ndarray:
    """The photos, each under its caption; by default its age in years.

    An empty table, such as the copies in a dataset without any, is drawn as such.
    """
    if table.empty:
        ax = grid(1, 1, (2, 0.5))[0, 0]
        ax.set_title("no such faces", fontsize="small")
        ax.axis("off")
        return np.array([[ax]])
    require(table, "path")
    if captions is None:
        captions = [f"{age:.0f}" for age in finite(table, "age")]
    # twice as many pixels as a tile has
    photos = [read_image(path, 200) for path in table["path"]]
    return _tiles(photos, captions, columns)


def prediction_faces(table: DataFrame, columns: int = 10) -> np.ndarray:
    """The photos, each under its true and its predicted age in years."""
    ages = [finite(table, column) for column in ("age", "pred_age")]
    captions = [f"{true:.0f} → {pred:.0f}" for true, pred in zip(*ages, strict=True)]
    axes = face_grid(table, captions, columns)
    axes[0, 0].figure.suptitle("true → predicted age, years", fontsize="medium")
    return axes


def spoiled(path: str, columns: int = 8) -> np.ndarray:
    """A photo in each of the ways of `degrade.PHOTOS`, under its name."""
    photo = degrade.as_measured(path)
    photos = [
        change(photo, np.random.default_rng(0)) for change in degrade.PHOTOS.values()
    ]
    return _tiles(photos, [fill(name, 11) for name in degrade.PHOTOS], columns)


def mean_faces(table: DataFrame, width: int = 10) -> np.ndarray:
    """The mean photo of each band, `width` years wide, under its ages and its count."""
    require(table, "path")
    images, captions, bands = [], [], metrics.age_bands(table, width)
    for band, paths in table["path"].groupby(bands, observed=True):
        bar = tqdm(paths, f"averaging {band}", delay=2, leave=False)
        faces = (np.asarray(read_image(p, 100).resize((100, 100)), float) for p in bar)
        images.append((sum(faces) / len(paths)).astype("uint8"))
        captions.append(f"{band} years\nn = {len(paths):,}")
    return _tiles(images, captions, columns=6, size=1.3)


def age_distributions(table: DataFrame, probabilities: np.ndarray) -> np.ndarray:
    """A few photos, each beside its predicted distribution over ages.

    Args:
        table: columns `path`, `pred_age`, `low`, `high`, and `age` where it is known.
        probabilities: (faces, ages), row for row the table's.
    Returns:
        axes (faces, 2)
    """
    require(table, "path")
    for column in ("pred_age", "low", "high"):
        finite(table, column)
    if len(probabilities) != len(table):
        raise ValueError(
            f"{len(probabilities)} distributions for {len(table)} faces: pass one each."
        )
    size = 7, 1.3 * len(table) + 0.7
    axes = grid(len(table), 2, size, width_ratios=(1, 5), sharex="col")
    rows = zip(axes, table.iterrows(), probabilities, strict=True)
    for (photo, ax), (number, face), chance in rows:
        photo.imshow(read_image(face["path"]))
        photo.axis("off")
        # where faces have numbers, as those of a photo have
        if table.index.name == "face":
            photo.set_title(number, fontsize="small", pad=2)
        dress(ax, "", "", "")
        low, high = face["low"], face["high"]
        ax.axvspan(low, high, color=ORANGE, alpha=0.25, label="90% interval")
        ax.fill_between(range(len(chance)), chance, color=SKY, lw=0)
        ax.axvline(face["pred_age"], color=BLUE, lw=2, label="predicted age")
        if "age" in face:
            ax.axvline(face["age"], color=RED, ls="--", lw=2, label="true age")
        ax.set(xlim=(0, len(chance) - 1), ylim=(0, None), yticks=[])
    ax.set_xlabel("age, years")
    legend = ax.get_legend_handles_labels()
    ax.figure.legend(*legend, loc="outside upper right", ncols=3)
    return axes


def answers(
    path: str, label: np.ndarray, given: Mapping[str, np.ndarray]
) -> np.ndarray:
    """A photo beside its soft label and what networks say of it.

    Args:
        label, given: probabilities of the ages from 0 (ages,), the answers by name.
    Returns:
        axes (2,): the photo, the distributions.
    """
    photo, ax = axes = grid(1, 2, (9, 2.6), width_ratios=(1, 3.4))[0]
    photo.imshow(read_image(path))
    photo.axis("off")
    dress(ax, "", "age, years", "probability")
    ax.fill_between(range(len(label)), label, color=ORANGE, alpha=0.5, label="label")
    ax.set_prop_cycle(color=[RED, BLUE, *PALETTE[4:]])
    for name, answer in given.items():
        ax.plot(answer, lw=2, label=name)
    ax.set(xlim=(0, len(label) - 1), ylim=(0, None))
    ax.legend()
    return axes


def occlusion_maps(table: DataFrame, maps: np.ndarray) -> np.ndarray:
    """Photos, and below them what `explain.occlusion` says of each.

    Args:
        table: columns `path`, `age`, `pred_age`.
        maps: years (faces, steps, steps), row for row the table's.
    Returns:
        axes (2, faces)
    """
    ages = zip(finite(table, "age"), finite(table, "pred_age"), strict=True)
    axes = grid(2, len(table), (1.8 * len(table) + 0.7, 4))
    most = max(1.0, np.abs(maps).max())
    # a cell's centre is that of its square, so the outer cells reach over the edge
    over = 0.5 / (maps.shape[1] - 1)
    place = {"extent": (-over, 1 + over, 1 + over, -over), "interpolation": "bilinear"}
    colours = {"cmap": "RdBu_r", "vmin": -most, "vmax": most, "alpha": 0.6}
    for (photo, ax), path, (true, pred), moved in zip(
        axes.T, table["path"], ages, maps, strict=True
    ):
        face = read_image(path)
        photo.imshow(face)
        photo.set_title(f"{true:.0f} → {pred:.0f}", fontsize="small")
        ax.imshow(face.convert("L"), extent=(0, 1, 1, 0), cmap="gray")
        drawn = ax.imshow(moved, **place, **colours)
        ax.set(xlim=(0, 1), ylim=(1, 0))
        for each in (photo, ax):
            each.axis("off")
    figure = ax.figure
    figure.suptitle("true → predicted age, and where hiding a part moves it")
    figure.colorbar(drawn, ax=axes[1], label="years older when hidden", shrink=0.9)
    return axes


def people(photo: Image.Image, table: DataFrame, ax: Axes | None = None) -> Axes:
    """The photo, each face framed, under its number, its age and its 90% interval.

    Args:
        table: columns `x`, `y`, `side`, `turn`, as from `photo.find`, and `pred_age`,
            `low`, `high`; its index numbers the faces.
    """
    names = ("x", "y", "side", "turn", "pred_age", "low", "high")
    faces = np.column_stack([finite(table, name) for name in names])
    inch = max(photo.width / 9, photo.height / 7)
    size = photo.width / inch, photo.height / inch
    ax = ax or grid(1, 1, size)[0, 0]
    shown = photo.reduce(max(1, int(inch / 200)))
    ax.imshow(shown, extent=(0, photo.width, photo.height, 0))
    square = np.array([-1 - 1j, 1 - 1j, 1 + 1j, -1 + 1j, -1 - 1j]) / 2
    for number, face in zip(table.index, faces, strict=True):
        x, y, side, turn, age, low, high = face
        frame = x + 1j * y + square * side * np.exp(-1j * np.radians(turn))
        for colour, width in (("white", 4), (BLUE, 2)):
            ax.plot(frame.real, frame.imag, color=colour, lw=width)
        # as wide as the face at most, so that neighbours' words stay apart
        points = np.clip(0.18 * 72 * side / inch, 6, 11)
        top = max(frame.imag.min(), 2.6 * points * inch / 72)
        words = {"ha": "center", "va": "bottom", "size": points, "linespacing": 1.0}
        ground = {"facecolor": "white", "edgecolor": BLUE, "pad": 0.15 * points}
        text = f"{number}: {age:.0f}\n{low:.0f} to {high:.0f}"
        ax.text(x, top, text, color="black", bbox=ground, **words)
    ax.set(xlim=(0, photo.width), ylim=(photo.height, 0))
    ax.axis("off")
    return ax


def batch(images: Tensor, columns: int = 10) -> Axes:
    """A batch as a network sees it: uint8 (faces, 3, size, size) in rows."""
    rows = -(-len(images) // columns)
    ax = grid(1, 1, (columns, rows))[0, 0]
    ax.imshow(make_grid(images, nrow=columns).permute(1, 2, 0).numpy())
    ax.axis("off")
    return ax


def _tiles(images: Sequence, captions: Sequence, columns: int, size=1.0) -> np.ndarray:
    if len(captions) != len(images):
        raise ValueError(
            f"{len(captions)} captions for {len(images)} faces: pass one each."
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    axes = grid(rows, columns, (columns * size, rows * (size + 0.2) + 0.3))
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, caption in zip(axes.flat, images, captions, strict=False):
        ax.imshow(image)
        ax.set_title(caption, fontsize="small", pad=2)
    return axes
