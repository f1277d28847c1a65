"""Find the faces of a photo and crop them to the framing of the training faces.

data/results/detectors.csv compares the detector with others, data/results/framing.csv
says what finding and cropping cost in years.
"""

import io
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError

from agelib import mtcnn

# where both eyes, the nose and both corners of the mouth lie in the training faces, as
# shares of the side, across + down * 1j: medians that tests/benchmarks/framing.py found
EYES, NOSE = (0.298 + 0.292j, 0.691 + 0.292j), 0.493 + 0.521j
MOUTH = (0.318 + 0.692j, 0.675 + 0.692j)
POINTS = np.array([*EYES, NOSE, *MOUTH])
SIDE = 200
# pixels of the longest side in which faces are sought: a face must be about 2% of it
LONGEST = 1600


def uploaded(value: tuple | dict) -> bytes | None:
    """The last photo in the value of a FileUpload widget, if there is one.

    ipywidgets 8 holds a tuple of files, ipywidgets 7 (on Colab) a dict by name.
    """
    files = list(value.values()) if isinstance(value, dict) else value
    return bytes(files[-1]["content"]) if files else None


def read_photo(photo: Path | str | bytes) -> Image.Image:
    """A photo, from a file or its content, in RGB and upright as its EXIF data say.

    Transparent parts become white, 16 bits of grey become 8.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it can't be read, with the way out.
    """
    name = "The photo" if isinstance(photo, bytes) else str(photo)
    content = photo if isinstance(photo, bytes) else _content(Path(photo))
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    try:
        with warnings.catch_warnings():
            # Pillow warns of photos that phones take, and refuses twice as large ones
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise ValueError(
            f"{name} has more than {limit:.0f} megapixels: save it smaller."
        ) from None
    except UnidentifiedImageError:
        if content[4:8] == b"ftyp":
            advice = "a HEIC photo: pip install pillow-heif and restart"
        else:
            advice = f"no image that Pillow {Image.__version__} reads"
        raise ValueError(f"{name} is {advice}, or save it as a JPEG.") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{name} is damaged ({error}): copy it again.") from error
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) / 256).clip(0, 255).astype("uint8"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"No photo at {path}: upload one, or correct the path.")
    return path.read_bytes()


def find(photo: Image.Image) -> pd.DataFrame:
    """The faces of a photo, from left to right, one row each.

    Columns: `x`, `y`, the crop's centre, and `side`, in pixels of the photo; `turn`,
    degrees counterclockwise from upright; `sure`, the detector's confidence, 0 to 1.

    Raises:
        ValueError: if no face is found, with the ways out.
    """
    share = min(1, LONGEST / max(photo.size))
    small = photo.resize([max(1, round(share * s)) for s in photo.size], reducing_gap=2)
    points, sure = mtcnn.detect(np.asarray(small))
    if not len(points):
        least = 25 * max(1, max(photo.size) / LONGEST)
        raise ValueError(
            f"No face found in this photo of {photo.width} x {photo.height} pixels. "
            "Faces are found if they are upright to within some 30 degrees, seen from "
            f"the front, and at least {least:.0f} pixels wide in it. If the photo is "
            "one tightly cropped face already, use faces.whole."
        )
    scale, centre = framing(points * photo.width / small.width)
    table = pd.DataFrame(
        {
            "x": centre.real,
            "y": centre.imag,
            "side": np.abs(scale),
            "turn": -np.degrees(np.angle(scale)),
            "sure": sure,
        }
    )
    return table.sort_values("x", ignore_index=True)


def framing(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The similarity that brings POINTS closest to those of each face (faces, 5).

    Returns:
        scale: a complex number a face: the crop's side in pixels, and its turn.
        centre: of the crop, in pixels, across + down * 1j.
    """
    middle, wanted = points.mean(1), POINTS - POINTS.mean()
    scale = (points - middle[:, None]) @ wanted.conj() / (np.abs(wanted) ** 2).sum()
    return scale, middle + scale * (0.5 + 0.5j - POINTS.mean())


def whole(photo: Image.Image) -> pd.DataFrame:
    """The largest square in the middle of a photo as its one face, as from `find`."""
    place = {
        "x": photo.width / 2,
        "y": photo.height / 2,
        "side": float(min(photo.size)),
    }
    return pd.DataFrame([place | {"turn": 0.0, "sure": 1.0}])


def crop(photo: Image.Image, found: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Saves each face as a PNG of 200 pixels a side; adds `file_id` and `path`.

    What lies outside the photo is black, as it is in the training faces.

    Args:
        found: columns `x`, `y`, `side`, `turn`, as from `find`.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    names = [f"face_{number}.png" for number in range(1, len(found) + 1)]
    paths = [str(Path(folder) / name) for name in names]
    for path, face in zip(paths, found.itertuples(), strict=True):
        _crop(photo, face.x, face.y, face.side, face.turn).save(path)
    return found.assign(file_id=names, path=paths)


def _crop(
    photo: Image.Image, x: float, y: float, side: float, turn: float
) -> Image.Image:
    # cut out in a multiple of the size, then averaged: else large faces would alias
    times = max(1, round(side / SIDE))
    step = side / (times * SIDE) * np.exp(-1j * np.radians(turn))
    corner = complex(x, y) - step * times * SIDE * (0.5 + 0.5j)
    cut = photo.transform(
        (times * SIDE, times * SIDE),
        Image.Transform.AFFINE,
        (step.real, -step.imag, corner.real, step.imag, step.real, corner.imag),
        Image.Resampling.BICUBIC,
    )
    return cut.reduce(times)
