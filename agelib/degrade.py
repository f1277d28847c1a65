"""What photos go through before they reach us: dim rooms, noise, blur, compression.

Each function takes and returns a square or any other RGB image. `at_random` is how a
network learns to bear them: it draws some of them at random strengths, in the order in
which a camera and the web apply them.
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from agelib.images import read_image

GREY = (128, 128, 128)


def light(image: Image.Image, factor: float) -> Image.Image:
    """A darker face (a factor below one) or a lighter, where white is cut off."""
    return ImageEnhance.Brightness(image).enhance(factor)


def grey(image: Image.Image) -> Image.Image:
    return ImageOps.grayscale(image).convert("RGB")


def turn(image: Image.Image, degrees: float) -> Image.Image:
    """The face turned counterclockwise; grey corners."""
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=GREY)


def hide(
    image: Image.Image, left: float, top: float, right: float, bottom: float
) -> Image.Image:
    """Grey over the part between the edges, which are shares of the sides."""
    width, height = image.size
    box = (left * width, top * height, right * width, bottom * height)
    image = image.copy()
    image.paste(GREY, tuple(map(round, box)))
    return image


def blur(image: Image.Image, share: float) -> Image.Image:
    """Gaussian blur, its standard deviation a share of the image's width."""
    return image.filter(ImageFilter.GaussianBlur(share * image.width))


def reduce(image: Image.Image, size: int) -> Image.Image:
    """As small as `size` pixels across, and enlarged again."""
    height = max(1, round(size * image.height / image.width))
    small = image.resize((size, height), Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def noise(image: Image.Image, std: float, rng: np.random.Generator) -> Image.Image:
    """Gaussian noise of `std` grey levels, each pixel and colour by itself."""
    pixels = np.asarray(image, dtype=np.float32)
    noisy = pixels + std * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Compressed to a JPEG of that quality, 1 to 95."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def at_random(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One to three of these changes, at strengths from mild to very bad.

    `augment` in `loading` turns faces, and takes their colour away.
    """
    chosen = rng.permutation(6) < rng.integers(1, 4)
    if chosen[0]:
        image = light(image, np.exp(rng.uniform(-1.1, 0.7)))
    if chosen[1]:
        image = hide(image, *_part(rng))
    if chosen[2]:
        image = blur(image, rng.uniform(0.002, 0.013))
    if chosen[3]:
        image = reduce(image, round(np.exp(rng.uniform(np.log(24), np.log(100)))))
    if chosen[4]:
        image = noise(image, rng.uniform(4, 45), rng)
    if chosen[5]:
        image = jpeg(image, int(rng.integers(8, 60)))
    return image


def _part(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A mask, a hand, sunglasses: the lower part, a side, or a band somewhere."""
    depth = rng.uniform(0.15, 0.45)
    start = rng.uniform(0, 1 - depth)
    parts = (
        (0, 1 - depth, 1, 1),
        (0, 0, depth, 1),
        (1 - depth, 0, 1, 1),
        (0, start, 1, start + depth / 2),
    )
    return parts[rng.integers(len(parts))]


def _plain(change: Callable, *strength: float) -> Callable:
    """A change that draws no random numbers."""
    return lambda image, rng: change(image, *strength)


# the kinds of photo that networks are measured on, `as_measured`
PHOTOS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "as it is": _plain(lambda image: image),
    "noise of 20 grey levels": lambda image, rng: noise(image, 20, rng),
    "noise of 40 grey levels": lambda image, rng: noise(image, 40, rng),
    "JPEG quality 30": _plain(jpeg, 30),
    "JPEG quality 10": _plain(jpeg, 10),
    "reduced to 64 px": _plain(reduce, 64),
    "reduced to 32 px": _plain(reduce, 32),
    "blurred by 1 px": _plain(blur, 0.005),
    "blurred by 2 px": _plain(blur, 0.01),
    "0.4 times the light": _plain(light, 0.4),
    "1.8 times the light": _plain(light, 1.8),
    "grey": _plain(grey),
    "eyes hidden": _plain(hide, 0, 0.25, 1, 0.45),
    "lower 40% hidden": _plain(hide, 0, 0.6, 1, 1),
    "turned by 10 degrees": _plain(turn, 10),
    "turned by 20 degrees": _plain(turn, 20),
}


def as_measured(path: str) -> Image.Image:
    """A photo at the size of the faces that `PHOTOS` are for: its shorter side
    has 200 px at most.

    In a larger one a pixel's noise would vanish when it is reduced for the network.
    """
    image = read_image(path, 200)
    factor = min(1, 200 / min(image.size))
    return image.resize([round(factor * side) for side in image.size])


def spoil(faces: pd.DataFrame, photo: str, folder: Path) -> pd.DataFrame:
    """The faces `as_measured`, each spoiled and written without further loss.

    The noise of a face follows its place in the table alone: all networks see the same
    photos.

    Args:
        photo: one of `PHOTOS`.
    """
    paths = []
    for row, path in enumerate(faces["path"]):
        spoiled = PHOTOS[photo](as_measured(path), np.random.default_rng(row))
        paths.append(str(folder / f"{row}.png"))
        spoiled.save(paths[-1], compress_level=1)
    return faces.assign(path=paths)
