"""Find the faces of a photo and crop them to the framing of the training faces.

data/results/detectors.csv compares the detector with others, data/results/framing.csv
says what finding and cropping cost in years.

    python -m agelib.photo holiday

tells the ages of all faces in the photos of a folder, as `album.ages` does.
"""

import io
import itertools
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from agelib import detector
from agelib.images import SMALL, concern, decode_image, read_file

if TYPE_CHECKING:
    import ipywidgets

# where both eyes, the nose and both corners of the mouth lie in the training faces, as
# shares of the side, across + down * 1j: the medians that tests/experiments/framing.py
# finds
EYES, NOSE = (0.298 + 0.292j, 0.691 + 0.292j), 0.493 + 0.521j
MOUTH = (0.318 + 0.692j, 0.675 + 0.692j)
POINTS = np.array([*EYES, NOSE, *MOUTH])
SIDE = 200
# pixels of the longest side in which faces are sought: a face must be about 2% of it
LONGEST = 1600


class Upload(NamedTuple):
    """A file that a browser sent; as text, its name."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


@cache
def upload_button() -> "ipywidgets.FileUpload":
    """The one button of this session: shown again, it still holds its photo.

    Once a photo has arrived, the button bears its name.
    """
    # imported here, for only notebooks need it
    from ipywidgets import FileUpload, Layout

    button = FileUpload(
        accept="image/*,.heic,.heif",
        description="Your photo",
        layout=Layout(width="auto"),
    )
    button.observe(lambda change: _name(button, uploaded(change["new"])), "value")
    return button


def _name(button: "ipywidgets.FileUpload", photo: Upload | None) -> None:
    button.description = photo.name if photo else "Your photo"


def uploaded(value: tuple | dict) -> Upload | None:
    """The last photo in the value of a FileUpload widget, if there is one.

    ipywidgets 8 holds a tuple of files, ipywidgets 7 (on Colab) a dict by name.
    """
    if not isinstance(value, dict):
        value = {file["name"]: file for file in value}
    if not value:
        return None
    name, file = list(value.items())[-1]
    return Upload(name, bytes(file["content"]))


def read(photo: Path | str | bytes | Upload) -> Image.Image:
    """A photo, from a file or its content, in RGB and upright as its EXIF data say.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it can't be read, with the way out.
    """
    if isinstance(photo, bytes):
        photo = Upload("The photo", photo)
    name = str(photo)
    try:
        upload = isinstance(photo, Upload)
        content = photo.content if upload else read_file(os.path.expanduser(photo))
        return decode_image(content)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"No photo at {name}: upload one, or correct the path."
        ) from None
    except (OSError, ValueError) as error:
        fault = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{name} can't be read: {fault}. Try another copy of it, or save it anew "
            "as a JPEG."
        ) from None  # a notebook would show the decoder's own traceback first


def find(photo: Image.Image) -> pd.DataFrame:
    """The faces of a photo, from left to right, one row each, numbered from 1.

    Columns: `x`, `y`, the crop's centre, and `side`, in pixels of the photo; `turn`,
    degrees counterclockwise from upright; `sure`, the detector's confidence, 0 to 1.

    Raises:
        ValueError: if no face is found, with the ways out.
    """
    share = min(1, LONGEST / max(photo.size))
    small = photo.resize([max(1, round(share * s)) for s in photo.size], reducing_gap=2)
    points, sure = detector.detect(np.asarray(small))
    if not len(points):
        least = 25 * max(1, max(photo.size) / LONGEST)
        raise ValueError(
            f"No face found in this photo of {photo.width} x {photo.height} pixels. "
            "Faces are found if they are upright to within some 30 degrees, seen from "
            f"the front, and at least {least:.0f} pixels wide in it. If the photo is "
            "one tightly cropped face already, use photo.whole."
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
    return _numbered(table.sort_values("x"))


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
    return _numbered(pd.DataFrame([place | {"turn": 0.0, "sure": 1.0}]))


def _numbered(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_axis(pd.RangeIndex(1, len(table) + 1, name="face"))


def crop(photo: Image.Image, found: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Saves each face as a PNG of 200 pixels a side; adds `file_id` and `path`.

    The files are `face_1.png`, `face_2.png` and so on, after those of other photos that
    the folder holds: no crop ever replaces another. The same faces cropped again, in
    the same order, get their earlier files. What lies outside the photo is black, as it
    is in the training faces. Warns of crops that show too little of a face.

    Args:
        found: columns `x`, `y`, `side`, `turn`, as from `find`.
    """
    folder = Path(os.path.expanduser(folder))
    folder.mkdir(parents=True, exist_ok=True)
    numbers = itertools.count(1)
    paths = []
    for cut, doubt in cuts(photo, found):
        paths.append(_save(cut, folder, numbers))
        if doubt:
            warnings.warn(
                f"{paths[-1]} is {doubt}: an age of it means little.", stacklevel=2
            )
    names = [path.name for path in paths]
    return found.assign(file_id=names, path=[str(path) for path in paths])


def cuts(
    photo: Image.Image, found: pd.DataFrame
) -> Iterator[tuple[Image.Image, str | None]]:
    """Each face of 200 pixels a side, and why an age of it means little, if it does.

    Args:
        found: as `crop` takes it.
    """
    for face in found.itertuples():
        cut = _crop(photo, face.x, face.y, face.side, face.turn)
        small = f"only {face.side:.0f} pixels wide in the photo"
        yield cut, small if face.side < SMALL else concern(cut)


def _save(face: Image.Image, folder: Path, numbers: Iterator[int]) -> Path:
    """Under the first number whose file is free, or holds this face already."""
    file = io.BytesIO()
    face.save(file, "PNG")
    for number in numbers:
        path = folder / f"face_{number}.png"
        with suppress(FileExistsError), path.open("xb") as new:
            new.write(file.getvalue())
            return path
        if path.is_file() and path.read_bytes() == file.getvalue():
            return path


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


def main() -> None:
    # it imports this module
    from agelib import album

    album.main()


if __name__ == "__main__":
    main()
