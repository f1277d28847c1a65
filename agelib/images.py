"""Decode images, the faces of a dataset and people's own photos, in one way."""

import io
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError


def decode_image(content: bytes, size: int | None = None) -> Image.Image:
    """An encoded image in RGB, turned upright as its EXIF orientation says.

    Args:
        size: pixels a side that are enough: a larger image is reduced by a whole
            factor, which makes JPEG decoding faster, but not below this.
    Raises:
        ValueError: if it is not a complete image of a kind that Pillow reads.
    """
    if not content:
        raise ValueError("zero bytes")
    try:
        image = Image.open(io.BytesIO(content))
        if size:
            image.draft(None, (size, size))
        image = ImageOps.exif_transpose(image).convert("RGB")
        factor = min(image.size) // size if size else 1
        return image.reduce(factor) if factor > 1 else image
    except UnidentifiedImageError:
        raise ValueError("not an image") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def read_image(path: str, size: int | None = None) -> Image.Image:
    """An image file in RGB, upright, and reduced as `decode_image` does.

    Raises:
        ValueError: naming the file, if it can't be read.
    """
    try:
        return decode_image(Path(path).read_bytes(), size)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Can't read the image {path}: {error}. Restore it or leave its row out."
        ) from error
