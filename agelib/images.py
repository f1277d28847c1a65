"""Decode images, the faces of a dataset and people's own photos, in one way."""

import codecs
import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageStat, UnidentifiedImageError
from tqdm.auto import tqdm

with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()

# of the formats that photos come in, Pillow calls MPO a JPEG until it is open; others
# may start programs, as EPS does
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "HEIF", "AVIF")
AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
# how files begin that are taken for photos
OTHERS = {
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF": "a PDF",
    b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x1a\x45\xdf\xa3": "a video",
    b"\0\0\1\xba": "a video",
}
# bytes: twice what 179 megapixels take up in colour of 16 bits
LARGEST_FILE = 2**31
# pixels of the shorter side: below the first no face is seen, below the second hardly
SMALLEST, SMALL = 16, 32
# standard deviation of the most varied colour: the competition's least varied of 23,290
# faces has 15.7, a photo of a dark room or through a lens cap only noise
ONE_COLOUR = 4.0
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# after pillow-heif, so that all is known before threads ask for it
Image.init()
_ONE_AT_A_TIME = threading.Lock()


class _Refusal(ValueError):
    """Pillow decodes it, but we don't take it."""


def decode_image(content: bytes, size: int | None = None) -> Image.Image:
    """An encoded image in RGB, turned upright as its EXIF orientation says.

    Transparent parts become white; 16 bits, whole numbers and fractions become 8 bits.
    Of several pictures it is the first.

    Args:
        size: pixels a side that are enough: a larger image is reduced by a whole
            factor, which makes JPEG decoding faster, but not below this.
    Raises:
        ValueError: if it is not a complete image of a kind that photos come in, is
            below 16 pixels wide or high, or too large.
    """
    try:
        image = _load(content, size)
        turn = TURNS.get(_orientation(image))
        image = to_rgb(image)
        if turn is not None:
            image = image.transpose(turn)
    except _Refusal:
        raise
    except Exception as error:
        # of damaged files decoders raise errors of nearly every kind
        raise ValueError(_fault(content, error)) from error
    factor = min(image.size) // size if size else 1
    return image.reduce(factor) if factor > 1 else image


def read_image(path: str, size: int | None = None) -> Image.Image:
    """An image file in RGB, upright, and reduced as `decode_image` does.

    Raises:
        ValueError: naming the file, if it can't be read.
    """
    try:
        return decode_image(read_file(path), size)
    except (OSError, ValueError) as error:
        fault = getattr(error, "strerror", None) or error
        raise ValueError(
            f"Can't read the image {path}: {fault}. Restore it or leave its row out."
        ) from error


def read_file(path: Path | str) -> bytes:
    """The content of a file that may be an image.

    Raises:
        OSError: if it can't be opened.
        ValueError: if it is no file, but a folder, a pipe or a device, or is too large.
    """
    about = Path(path).stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("not a file")
    if about.st_size > LARGEST_FILE:
        raise ValueError(f"{about.st_size / 2**30:.1f} GB, too large for a photo")
    return Path(path).read_bytes()


def each(function: Callable, paths: Sequence[str], doing: str) -> list:
    """What a function makes of each file, in order; a bar shows what it is doing."""
    # more than cores, for a mounted folder keeps them waiting
    with ThreadPool((os.cpu_count() or 1) + 4) as threads:
        # one by one, a million files that wait would take two gigabytes
        made = threads.imap(function, paths, chunksize=16)
        return list(tqdm(made, doing, len(paths), delay=2, leave=False))


def concern(image: Image.Image) -> str | None:
    """Why an age of this face would mean little, if there is a reason."""
    pixels = f"{image.width} x {image.height} pixels"
    short, long = sorted(image.size)
    if short < SMALL:
        return f"{pixels} show little of a face"
    if long > 2 * short:
        return f"{pixels} can't be framed as a face"
    if max(ImageStat.Stat(image).stddev) < ONE_COLOUR:
        return "all of one colour"
    return None


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as one of 8 bits shows it, on white.

    Raises:
        ValueError: if its values may mean any brightness.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits: its values tell which of the usual ranges they have."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    ranges = (1, 255, 65535) if image.mode == "F" else (255, 65535)
    top = next((top for top in ranges if high <= top), None)
    # in any but the smallest range a picture of such values would be nearly black
    if top is None or not low >= 0 or ranges[0] < high < top / 16:
        raise _Refusal(
            f"its grey values are from {low:.6g} to {high:.6g}, which can mean any "
            "brightness: save it with 8 bits"
        )
    # as Pillow reads colour of 16 bits: the higher 8
    grey = (values * (255 / top)).round() if top < 256 else values // 256
    if getattr(image, "tag_v2", {}).get(ExifTags.Base.PhotometricInterpretation) == 0:
        grey = 255 - grey  # a TIFF in which 0 is white; Pillow heeds it in 8 bits only
    if (clear := image.info.get("transparency")) is not None:
        grey = np.where(values == clear, 255, grey)
    return Image.fromarray(grey.astype("uint8"))


def _load(content: bytes, size: int | None) -> Image.Image:
    if not content:
        raise _Refusal("zero bytes")
    with _quiet():
        image = Image.open(io.BytesIO(content), formats=_known())
    if min(image.size) < SMALLEST:
        raise _Refusal(
            f"{image.width} x {image.height} pixels, where a face needs {SMALLEST} "
            "either way"
        )
    if getattr(image, "tag_v2", {}).get(ExifTags.Base.NewSubfileType) == 1:
        raise _Refusal("a camera's raw photo, of which Pillow reads the preview only")
    # of a HEIC it would be the thumbnail, which may be of another picture
    if size and image.format in ("JPEG", "MPO"):
        image.draft(None, (size, size))
    # a TIFF's tags are read once more when it is loaded
    with _quiet() if image.format == "TIFF" else nullcontext():
        image.load()
    return image


def _known() -> list[str]:
    return [name for name in FORMATS if name in Image.ID]


def _orientation(image: Image.Image) -> int | None:
    try:
        with _quiet():
            return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        # like every viewer: what EXIF data can't be read turn nothing
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of Pillow, which tell neither the file nor anything that matters."""
    # Python's filters are one for all threads, so that one at a time may change them
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _fault(content: bytes, error: Exception) -> str:
    """What is wrong with a file that could not be decoded."""
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        return f"more than {limit:.0f} megapixels: save it smaller"
    if isinstance(error, MemoryError):
        return "too large for the memory: save it smaller"
    brands = _brands(content)
    known = [k for k in _known() if Image.OPEN[k][1](content[:16]) is True]
    if brands & AVIF_BRANDS:
        kind = "AVIF"
        if ".avif" not in Image.registered_extensions():
            return "AVIF, for which Pillow is too old: pip install -U pillow"
    elif brands & HEIC_BRANDS:
        kind = "HEIC"
        if "HEIF" not in Image.ID:
            return "HEIC, without pillow-heif: pip install pillow-heif and restart"
    elif b"crx " in brands:
        return "a camera's raw photo: save it as a JPEG"
    elif brands or content[8:12] == b"AVI ":
        return "a video, not a photo"
    elif known:
        (kind,) = known
    else:
        return f"not an image{_mistaken(content)}"
    fault = f"a damaged {kind} image, cut short or of a rare kind"
    if isinstance(error, UnidentifiedImageError):
        return fault
    detail = " ".join(str(error).split()) or type(error).__name__
    return f"{fault} ({detail})"


def _brands(content: bytes) -> set[bytes]:
    """The kinds that a file of the MP4 family, as HEIC and AVIF are, says it is of."""
    if content[4:8] != b"ftyp" or len(content) < 12:
        return set()
    end = min(int.from_bytes(content[:4], "big"), 256)
    return {content[8:12]} | {content[i : i + 4] for i in range(16, end, 4)}


def _mistaken(content: bytes) -> str:
    """What a file is that is no image, as far as its beginning tells."""
    for beginning, name in OTHERS.items():
        if content.startswith(beginning):
            return f" but {name}"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(content[:2000]).lower()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return " of the kinds that photos come in (JPEG, PNG, WebP, TIFF, HEIC...)"
    if "<svg" in text:
        return " of pixels but an SVG drawing"
    return " but a web page" if "<html" in text else " but text"
