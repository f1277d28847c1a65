"""Larger pictures with known faces in them, for detectors.py and framing.py."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_sample_image

from agelib import data, images

WIDTH, HEIGHT = 1000, 700


def sample(dataset: Path, per_band: int) -> pd.DataFrame:
    """Training faces, `per_band` of each decade of age, the last being 70 and over."""
    faces, _ = data.hold_out(data.read_train(dataset))
    bands = (faces["age"] // 10 * 10).clip(upper=70).astype(int)
    grouped = faces.assign(band=bands).groupby("band")
    return grouped.sample(per_band, random_state=0).reset_index(drop=True)


def background(rng: np.random.Generator) -> Image.Image:
    """A piece of one of scikit-learn's two photos: buildings or flowers, no people."""
    photo = Image.fromarray(load_sample_image(rng.choice(["china.jpg", "flower.jpg"])))
    width = rng.uniform(0.5, 1) * photo.width
    height = min(width * HEIGHT / WIDTH, photo.height)
    left = rng.uniform(0, photo.width - width)
    top = rng.uniform(0, photo.height - height)
    box = (left, top, left + width, top + height)
    return photo.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box)


def scene(
    paths: list[str],
    rng: np.random.Generator,
    size: tuple[float, float],
    turn: tuple[float, float] = (0, 0),
) -> tuple[Image.Image, np.ndarray]:
    """Up to six face photos on a background, in two rows.

    Args:
        size: least and greatest side of a face photo in the picture, up to 220 pixels.
        turn: least and greatest turn in degrees, counterclockwise; even odds of both
            signs.
    Returns:
        the picture, and for each face its centre across and down and its side, in
        pixels, and its turn in degrees: (faces, 4).
    """
    picture, truth = background(rng), []
    for number, path in enumerate(paths):
        side, angle = rng.uniform(*size), rng.uniform(*turn) * rng.choice([-1, 1])
        cell_x, cell_y = (
            (number % 3 + 0.5) * WIDTH / 3,
            (number // 3 + 0.5) * HEIGHT / 2,
        )
        free = (WIDTH / 3 - 1.42 * side) / 2
        x, y = cell_x + rng.uniform(-free, free), cell_y + rng.uniform(-15, 15)
        photo = images.read_image(path).convert("RGBA")
        photo = photo.resize((round(side), round(side)), Image.Resampling.LANCZOS)
        photo = photo.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        at = round(x - photo.width / 2), round(y - photo.height / 2)
        picture.paste(photo, at, photo)
        centre = at[0] + photo.width / 2, at[1] + photo.height / 2
        truth.append((*centre, round(side), angle))
    return picture, np.array(truth)


def match(boxes: np.ndarray, truth: np.ndarray) -> list[int | None]:
    """For each true face, the row of the box that is it, if any.

    A box is the face if its centre is closer to the face's than a quarter of its side,
    and it is 0.3 to 1.3 times as large.

    Args:
        boxes: left, top, width and height in pixels (boxes, 4).
        truth: as from `scene`.
    """
    found = []
    for x, y, side, _ in truth:
        centres = boxes[:, :2] + boxes[:, 2:] / 2
        off = np.hypot(*(centres - (x, y)).T)
        scale = np.sqrt(boxes[:, 2] * boxes[:, 3]) / side
        fits = (off < side / 4) & (scale > 0.3) & (scale < 1.3)
        found.append(int(np.where(fits, off, np.inf).argmin()) if fits.any() else None)
    return found
