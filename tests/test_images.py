"""Every kind of image becomes the same picture, or a sentence that says what it is."""

import io
import os
import pickle
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageChops

from agelib import images, sample

# each level of grey once, and how much of it is seen: columns from clear to opaque
LEVELS = np.arange(256).reshape(16, 16)
OPAQUE = np.tile(np.arange(16) * 17, (16, 1))
GREY, ALPHA = (Image.fromarray(a.astype("uint8")) for a in (LEVELS, OPAQUE))
COLOUR = Image.merge("RGB", (GREY, GREY.rotate(90), ImageChops.invert(GREY)))
RGB = np.stack((LEVELS, np.rot90(LEVELS), 255 - LEVELS), axis=-1)
GREY_RGB = np.stack((LEVELS,) * 3, axis=-1)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def on_white(rgb: np.ndarray, opaque: np.ndarray) -> np.ndarray:
    share = opaque[..., None] / 255
    return np.rint(share * rgb + (1 - share) * 255)


def photo(width: int = 64, height: int = 48) -> Image.Image:
    """Colours that run, so that a lost or a turned part shows."""
    y, x = np.mgrid[:height, :width]
    colours = np.stack((x * 255 / width, y * 255 / height, 128 + 0 * x), axis=-1)
    return Image.fromarray(colours.astype("uint8"))


# -- modes ----------------------------------------------------------------------------


def with_palette(mode: str, colours: np.ndarray) -> Image.Image:
    """Grey levels as numbers of these colours."""
    image = Image.fromarray(LEVELS.astype("uint8"), "L").convert("P")
    image.putpalette(colours.astype("uint8").tobytes(), mode)
    return image


def flat(level: int) -> Image.Image:
    return Image.new("L", (16, 16), level)


def palette_and_alpha() -> Image.Image:
    image = GREY.convert("PA")
    image.putalpha(ALPHA)
    return image


def of_type(kind: str, factor: float) -> Callable[[], Image.Image]:
    return lambda: Image.fromarray((LEVELS * factor).astype(kind))


# colours in reverse order; a colour that is clear; one that is more so the higher
REVERSED = np.repeat(255 - np.arange(256)[:, None], 3, axis=1)
KEYED = np.where(LEVELS[..., None] == 7, 255, GREY_RGB)
FADED = on_white(GREY_RGB, 255 - LEVELS)
RGBA_PALETTE = np.stack((np.arange(256),) * 3 + (255 - np.arange(256),), axis=-1)

RED = GREY_RGB * (1, 0, 0)
# of JPEG's formula: red by 1.402, green by -0.714 times what Cr is above 128
REDDISH = (GREY_RGB + 100 * np.array([1.402, -0.714, 0])).clip(0, 255)
# of CIE's: the share of the light, which sRGB then encodes
LIGHT = np.where(
    GREY_RGB * 100 / 255 > 8,
    ((GREY_RGB * 100 / 255 + 16) / 116) ** 3,
    GREY_RGB * 100 / 255 / 903.3,
)
FROM_LIGHTNESS = 255 * np.where(
    LIGHT > 0.0031308, 1.055 * LIGHT ** (1 / 2.4) - 0.055, 12.92 * LIGHT
)

MODES = {
    "1": (lambda: GREY.point(lambda v: 255 * (v > 99), "1"), 255 * (GREY_RGB > 99)),
    "L": (lambda: GREY, GREY_RGB),
    "LA": (lambda: Image.merge("LA", (GREY, ALPHA)), on_white(GREY_RGB, OPAQUE)),
    "La": (
        lambda: Image.merge("LA", (GREY, ALPHA)).convert("La"),
        on_white(GREY_RGB, OPAQUE),
    ),
    "P": (lambda: with_palette("RGB", REVERSED), 255 - GREY_RGB),
    "P of RGBA": (lambda: with_palette("RGBA", RGBA_PALETTE), FADED),
    "PA": (palette_and_alpha, on_white(GREY_RGB, OPAQUE)),
    "RGB": (lambda: COLOUR, RGB),
    "RGBA": (
        lambda: Image.merge("RGBA", (*COLOUR.split(), ALPHA)),
        on_white(RGB, OPAQUE),
    ),
    "RGBa": (
        lambda: Image.merge("RGBA", (*COLOUR.split(), ALPHA)).convert("RGBa"),
        on_white(RGB, OPAQUE),
    ),
    "RGBX": (lambda: COLOUR.convert("RGBX"), RGB),
    "CMYK": (
        lambda: Image.merge("CMYK", (*COLOUR.split(), ALPHA)),
        np.rint((255 - RGB) * (255 - OPAQUE[..., None]) / 255),
    ),
    "YCbCr": (lambda: Image.merge("YCbCr", (GREY, flat(128), flat(228))), REDDISH),
    "HSV": (lambda: Image.merge("HSV", (flat(0), flat(255), GREY)), RED),
    "LAB": (lambda: Image.merge("LAB", (GREY, flat(128), flat(128))), FROM_LIGHTNESS),
    "I;16 of 255": (of_type("uint16", 1), GREY_RGB),
    "I;16 times 256": (of_type("uint16", 256), GREY_RGB),
    "I;16 times 257": (of_type("uint16", 257), GREY_RGB),
    "I;16B": (
        lambda: Image.frombytes(
            "I;16B", (16, 16), (LEVELS * 257).astype(">u2").tobytes()
        ),
        GREY_RGB,
    ),
    "I of 255": (of_type("int32", 1), GREY_RGB),
    "I of 65535": (of_type("int32", 257), GREY_RGB),
    "F of 1": (of_type("float32", 1 / 255), GREY_RGB),
    "F of 255": (of_type("float32", 1), GREY_RGB),
    "F of 65535": (of_type("float32", 257), GREY_RGB),
}


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_becomes_the_picture_that_8_bits_show(mode):
    image, expected = MODES[mode]
    # a level or two where colours are computed or alpha is multiplied twice
    assert pixels(images.to_rgb(image())) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", mode) for mode in ("1", "L", "LA", "P", "P of RGBA", "RGB", "RGBA")]
    + [("TIFF", mode) for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")],
)
def test_modes_that_a_file_holds_are_the_same_picture(kind, mode):
    image, expected = MODES[mode]
    decoded = images.decode_image(encoded(image(), kind))
    assert pixels(decoded) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("mode", [m for m in MODES if m[0] in "IF"])
def test_grey_of_more_bits_is_the_same_picture_in_a_file(mode):
    image, expected = MODES[mode]
    assert (pixels(images.decode_image(encoded(image(), "TIFF"))) == expected).all()
    if mode.startswith("I;16"):
        assert (pixels(images.decode_image(encoded(image(), "PNG"))) == expected).all()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("float32", [0, np.nan]),
        ("float32", [0, np.inf]),
        ("float32", [-0.1, 1]),
        ("float32", [0, 1.1]),
        ("float32", [0, 300]),
        ("float32", [0, 1e9]),
        ("int32", [-1, 255]),
        ("int32", [0, 2**20]),
        ("uint16", [0, 1023]),
        ("uint16", [0, 4095]),
    ],
)
def test_values_that_may_mean_any_brightness_are_refused(kind, values):
    image = Image.fromarray(np.resize(values, (16, 16)).astype(kind))
    with pytest.raises(ValueError, match=r"grey values .* save it with 8 bits"):
        images.decode_image(encoded(image, "TIFF"))


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_a_tiff_in_which_zero_is_white_is_no_negative(kind):
    scale = {"uint8": 1, "uint16": 257, "float32": 1 / 255}[kind]
    image = Image.fromarray((LEVELS * scale).astype(kind))
    tiff = encoded(image, "TIFF")
    # the entry of the photometric interpretation, of 1 to 0
    entry = struct.pack("<HHII", 262, 3, 1, 1)
    assert tiff.count(entry) == 1
    decoded = images.decode_image(
        tiff.replace(entry, struct.pack("<HHII", 262, 3, 1, 0))
    )
    assert (pixels(decoded) == 255 - GREY_RGB).all()


@pytest.mark.parametrize("factor", [1, 257])
def test_the_clear_colour_of_a_grey_png_becomes_white(factor):
    grey = Image.fromarray(
        (LEVELS * factor).astype("uint8" if factor == 1 else "uint16")
    )
    decoded = images.decode_image(encoded(grey, "PNG", transparency=7 * factor))
    assert (pixels(decoded) == KEYED).all()


def test_a_cmyk_jpeg_of_adobe_is_no_negative():
    red = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    jpeg = encoded(red, "JPEG", quality=95)
    assert b"Adobe" in jpeg
    decoded = pixels(images.decode_image(jpeg))
    assert decoded[9, 9] == pytest.approx((255, 0, 0), abs=3)
    other = cv2.imdecode(np.frombuffer(jpeg, "uint8"), cv2.IMREAD_COLOR)[..., ::-1]
    assert decoded == pytest.approx(other.astype(int), abs=3)


def test_16_bits_of_colour_are_the_picture_of_8():
    rgb16 = (RGB[..., ::-1] * 257).astype("uint16")
    _, png = cv2.imencode(".png", rgb16)
    assert (pixels(images.decode_image(png.tobytes())) == RGB).all()


# -- formats --------------------------------------------------------------------------


def exif_of(orientation: int, *more: bytes, data: bytes = b"") -> bytes:
    """EXIF data by hand; `more` are entries whose data begin at OFFSET."""
    entries = [struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0), *more]
    head = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(entries))
    return head + b"".join(entries) + bytes(4) + data


# with one entry more than the orientation
OFFSET = 8 + 2 + 2 * 12 + 4
# a resolution that is a text; a GPS altitude that is 0/0
OF_TEXT = (struct.pack(">HHI4s", 0x011A, 2, 3, b"72\0\0"), b"")
GPS = (
    struct.pack(">HHII", 0x8825, 4, 1, OFFSET),
    struct.pack(">HHHIIIII", 1, 6, 5, 1, OFFSET + 18, 0, 0, 0),
)


def heif(image: Image.Image, thumbnails: tuple[int, ...] = (), **options) -> bytes:
    file = io.BytesIO()
    picture = pytest.importorskip("pillow_heif").from_pillow(image)
    picture[0].info["thumbnails"] = list(thumbnails)
    picture.save(file, **options)
    return file.getvalue()


def avif(image: Image.Image, **options) -> bytes:
    if ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow reads no AVIF")
    return encoded(image, "AVIF", **options)


KINDS = {
    "JPEG": lambda image, **o: encoded(image, "JPEG", quality=95, **o),
    "progressive": lambda image: encoded(image, "JPEG", quality=95, progressive=True),
    "MPO": lambda image, **o: encoded(
        image,
        "MPO",
        quality=95,
        save_all=True,
        append_images=[photo().rotate(180)],
        **o,
    ),
    "PNG": lambda image, **o: encoded(image, "PNG", **o),
    "WebP": lambda image, **o: encoded(image, "WEBP", quality=95, **o),
    "TIFF": lambda image, **o: encoded(image, "TIFF", **o),
    "TIFF, LZW": lambda image, **o: encoded(image, "TIFF", compression="tiff_lzw", **o),
    "TIFF, pages": lambda image, **o: encoded(
        image, "TIFF", save_all=True, append_images=[photo().rotate(180)], **o
    ),
    "BMP": lambda image: encoded(image, "BMP"),
    "GIF": lambda image: encoded(image, "GIF"),
    "GIF, animated": lambda image: encoded(
        image, "GIF", save_all=True, append_images=[photo().rotate(180)]
    ),
    "HEIC": lambda image: heif(image, quality=95),
    "AVIF": lambda image, **o: avif(image, quality=95, **o),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_format_shows_its_first_picture(kind):
    decoded = images.decode_image(KINDS[kind](photo()))
    # a GIF has 256 colours
    assert pixels(decoded) == pytest.approx(pixels(photo()), abs=20)


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WebP"])
@pytest.mark.parametrize(
    "more", [(b"", b""), OF_TEXT, GPS], ids=["alone", "resolution of text", "GPS 0/0"]
)
def test_a_photo_is_turned_by_its_orientation_whatever_else_its_exif_says(kind, more):
    entry, data = more
    exif = exif_of(6, *[entry] * bool(entry), data=data)
    lying = photo().rotate(90, expand=True)
    upright = images.decode_image(KINDS[kind](lying, exif=exif))
    assert pixels(upright) == pytest.approx(pixels(photo()), abs=12)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "TIFF, LZW", "TIFF, pages", "AVIF"])
def test_every_orientation_is_set_upright(kind, orientation):
    # how each lies in the file: mirrored or not, then a turn counterclockwise
    mirror, turn = {
        1: (False, 0), 2: (True, 0), 3: (False, 180), 4: (True, 180),
        5: (True, 90), 6: (False, 90), 7: (True, 270), 8: (False, 270),
    }[orientation]  # fmt: skip
    lying = photo()
    if mirror:
        lying = lying.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = KINDS[kind](lying.rotate(turn, expand=True), exif=exif)
    assert pixels(images.decode_image(content)) == pytest.approx(pixels(photo()), abs=9)


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0nonsense", exif_of(99)])
def test_exif_data_that_say_nothing_turn_nothing(exif, recwarn):
    decoded = images.decode_image(KINDS["JPEG"](photo(), exif=exif))
    assert pixels(decoded) == pytest.approx(pixels(photo()), abs=9)
    assert not recwarn.list


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_large_image_is_reduced_but_not_below_the_size_that_is_enough(
    tmp_path, suffix
):
    path = str(tmp_path / f"large{suffix}")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (1000, 600), (200, 30, 90)).save(path, exif=exif)
    assert images.read_image(path).size == (600, 1000)
    reduced = images.read_image(path, 96)
    assert 96 <= min(reduced.size) < 2 * 96
    assert reduced.height > reduced.width
    middle = reduced.getpixel((reduced.width // 2, reduced.height // 2))
    assert middle == pytest.approx((200, 30, 90), abs=3)
    assert images.read_image(path, 601).size == (600, 1000)


def test_a_jpeg_is_decoded_to_the_pixels_that_pillow_reads():
    jpeg = encoded(sample.draw_wall([30]), "JPEG")
    whole = Image.open(io.BytesIO(jpeg))
    assert (pixels(images.decode_image(jpeg)) == pixels(whole)).all()
    drafted = Image.open(io.BytesIO(jpeg))
    drafted.draft(None, (64, 64))
    assert drafted.width < whole.width
    expected = drafted.reduce(min(drafted.size) // 64)
    assert (pixels(images.decode_image(jpeg, 64)) == pixels(expected)).all()


def test_a_heic_is_reduced_from_its_picture_not_from_its_thumbnail():
    content = heif(photo(400, 300), thumbnails=(128,))
    assert images.decode_image(content, 64).size == (100, 75)


# -- what is refused ------------------------------------------------------------------


def box(brand: bytes, *more: bytes) -> bytes:
    """The beginning of a file of the MP4 family, and something."""
    kinds = brand + bytes(4) + b"".join(more)
    return struct.pack(">I", 8 + len(kinds)) + b"ftyp" + kinds + bytes(range(256))


EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n"
    b"0 0 40 40 rectfill\nshowpage\n%%EOF\n"
)
STRANGERS = {
    "nothing": (b"", "zero bytes"),
    "text": (b"hello", "not an image but text"),
    "umlauts": ("ä".encode() * 2000, "not an image but text"),
    "SVG": (b"<?xml version='1.0'?><svg width='9'></svg>", "an SVG drawing"),
    "web page": (b"<!DOCTYPE html><HTML>404</HTML>", "but a web page"),
    "EPS": (EPS, "PostScript"),
    "EPS of Windows": (b"\xc5\xd0\xd3\xc6" + bytes(28) + EPS, "PostScript"),
    "PDF": (b"%PDF-1.7\n\xe2\xe3", "a PDF"),
    "ZIP": (b"PK\3\4" + bytes(40), "a ZIP archive"),
    "noise": (bytes(range(255, -1, -1)), "not an image of the kinds"),
    "zeros": (bytes(999), "not an image of the kinds"),
    "MP4": (box(b"isom", b"isom", b"iso2", b"avc1", b"mp41"), "a video"),
    "MOV": (box(b"qt  ", b"qt  "), "a video"),
    "AVI": (b"RIFF\x99\0\0\0AVI LIST" + bytes(99), "a video"),
    "CR3": (box(b"crx ", b"crx ", b"isom"), "a camera's raw photo"),
    "WebM": (b"\x1a\x45\xdf\xa3" + bytes(99), "a video"),
    "PPM": (encoded(photo(), "PPM"), "not an image of the kinds"),
    "ICO": (encoded(photo(), "ICO"), "not an image of the kinds"),
    "TGA": (encoded(photo(), "TGA"), "not an image of the kinds"),
}


@pytest.mark.parametrize("what", STRANGERS)
def test_a_file_that_is_no_photo_is_said_to_be_what_it_is(what, tmp_path, recwarn):
    content, message = STRANGERS[what]
    (tmp_path / "face.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=rf"face\.jpg: .*{message}.*Restore"):
        images.read_image(str(tmp_path / "face.jpg"))
    assert not recwarn.list


def test_an_eps_named_jpg_starts_no_program(monkeypatch):
    started = []

    def start(*args):
        started.append(args)
        return Image.new("RGB", (40, 40)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    Image.open(io.BytesIO(EPS)).load()
    assert started.pop()  # which Pillow does, left to itself
    with pytest.raises(ValueError, match="PostScript"):
        images.decode_image(EPS)
    assert not started


def told(content: bytes) -> str | None:
    """The sentence about an image, if it can't be decoded."""
    try:
        images.decode_image(content)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_cut_short_is_refused_unless_its_picture_is_whole(kind):
    content = KINDS[kind](photo())
    whole = pixels(images.decode_image(content))
    cuts = [content[:n] for n in range(16, len(content), len(content) // 20)]
    refused = [told(cut) for cut in cuts]
    name = {"progressive": "JPEG", "MPO": "JPEG", "WebP": "WEBP"}.get(kind, kind)
    sentence = f"a damaged {name.split(',')[0]} image, cut short or of a rare kind"
    # further pictures may be missing
    assert sum(refusal is not None for refusal in refused) > 8
    for cut, refusal in zip(cuts, refused, strict=True):
        if refusal is None:
            assert (pixels(images.decode_image(cut)) == whole).all()
        else:
            assert refusal.startswith(sentence)
            assert refusal.isprintable()


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_image_is_a_picture_or_a_sentence(kind, monkeypatch, recwarn):
    # nobody waits here for pictures of a hundred megapixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    content = KINDS[kind](photo())
    rng = np.random.default_rng(len(content))
    for _ in range(40):
        mutant = np.frombuffer(content, "uint8").copy()
        # half of them near the beginning, where sizes and kinds are
        end = len(mutant) if rng.random() < 0.5 else min(len(mutant), 300)
        mutant[rng.integers(0, end, rng.integers(1, 5))] = rng.integers(256)
        sentence = told(mutant.tobytes())
        assert sentence is None or sentence.isprintable()
    assert not recwarn.list


@pytest.mark.parametrize(
    "error",
    [
        OSError, SyntaxError, ValueError, RuntimeError, NotImplementedError,
        struct.error, TypeError, IndexError, KeyError, ZeroDivisionError,
        OverflowError, EOFError, MemoryError, AttributeError, AssertionError,
    ],
)  # fmt: skip
def test_whatever_a_decoder_raises_becomes_the_sentence(monkeypatch, tmp_path, error):
    def fail(self):
        raise error("as it likes")

    photo().save(tmp_path / "face.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(
        ValueError, match=r"Can't read the image .*face\.png: .*Restore"
    ):
        images.read_image(str(tmp_path / "face.png"))


def test_without_pillow_heif_a_heic_says_what_to_install():
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from agelib import images\n"
        f"try: images.decode_image({box(b'heic', b'mif1', b'heic')!r})\n"
        "except ValueError as error: print(error)"
    )
    run = [sys.executable, "-c", code]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert said == "HEIC, without pillow-heif: pip install pillow-heif and restart\n"


def test_a_heic_is_read_whatever_was_imported_before(tmp_path):
    (tmp_path / "face.jpg").write_bytes(heif(photo()))
    code = "import sys; from agelib import images; images.read_image(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path / "face.jpg"], check=True)


def test_with_pillow_heif_a_damaged_heic_is_called_damaged():
    pytest.importorskip("pillow_heif")
    for brands in [(b"heic", b"mif1"), (b"mif1", b"heic"), (b"heix",)]:
        with pytest.raises(ValueError, match="a damaged HEIC image, cut short"):
            images.decode_image(box(*brands))


def test_an_avif_that_pillow_is_too_old_for_says_so(monkeypatch):
    monkeypatch.setattr(Image, "ID", [kind for kind in Image.ID if kind != "AVIF"])
    monkeypatch.delitem(Image.EXTENSION, ".avif", raising=False)
    with pytest.raises(ValueError, match=r"AVIF, .*pip install -U pillow"):
        images.decode_image(box(b"avif", b"mif1", b"avif"))


def test_the_preview_in_a_cameras_raw_photo_is_not_taken_for_it():
    raw = encoded(photo(), "TIFF", tiffinfo={254: 1})
    with pytest.raises(ValueError, match="raw photo"):
        images.decode_image(raw)


def test_one_limit_of_megapixels_without_a_warning_below(monkeypatch, recwarn):
    contents = [encoded(photo(100, 100), kind) for kind in ("PNG", "TIFF", "JPEG")]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    for content in contents:
        assert images.decode_image(content).size == (100, 100)
    assert not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    for content in contents:
        with pytest.raises(
            ValueError, match=r"more than 0 megapixels: save it smaller"
        ):
            images.decode_image(content)


def test_threads_leave_the_filters_of_warnings_as_they_were(monkeypatch):
    content = encoded(photo(100, 100), "TIFF")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        sizes = {i.size for i in threads.map(images.decode_image, [content] * 200)}
    assert sizes == {(100, 100)}
    assert list(warnings.filters) == before


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (20000, 1), (15, 16), (16, 15)])
def test_an_image_too_small_for_any_face_is_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels"):
        images.decode_image(encoded(Image.new("RGB", size), "PNG"))
    assert images.decode_image(encoded(Image.new("RGB", (16, 16)), "PNG")).size[0] == 16


# -- what is doubtful -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "doubt"),
    [
        (photo(31, 60), "31 x 60 pixels show little"),
        (photo(32, 65), "32 x 65 pixels can't be framed"),
        (photo(200, 99), "200 x 99 pixels can't be framed"),
        (Image.new("RGB", (64, 64), (9, 80, 200)), "one colour"),
        (Image.effect_noise((64, 64), 2).convert("RGB"), "one colour"),
        (photo(32, 32), None),
        (photo(32, 64), None),
        (sample.draw_wall([30]), None),
        (sample.draw_wall([30]).point([v // 4 for v in range(256)] * 3), None),
    ],
)
def test_an_image_of_which_an_age_means_little_says_why(image, doubt):
    found = images.concern(image)
    assert found is None if doubt is None else doubt in found


def test_no_face_of_the_sample_is_doubtful():
    faces = sorted((sample.FOLDER / "train").iterdir())
    assert len(faces) > 100
    assert [f for f in faces if images.concern(images.read_image(str(f)))] == []


# -- files ----------------------------------------------------------------------------


def test_read_image_gives_rgb_or_names_the_file(tmp_path):
    path = tmp_path / "image_3.jpg"
    photo().save(path)
    assert images.read_image(str(path)).mode == "RGB"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"Can't read the image .*image_3\.jpg: "):
        images.read_image(str(path))
    with pytest.raises(ValueError, match=r"image_77\.jpg: No such file"):
        images.read_image(str(tmp_path / "image_77.jpg"))
    with pytest.raises(ValueError, match=r"Can't read the image .*: not a file"):
        images.read_image(str(tmp_path))


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "endless.jpg"):
        with pytest.raises(ValueError, match=rf"{name}: not a file"):
            images.read_image(str(tmp_path / name))


def test_a_link_to_an_image_is_followed(tmp_path):
    photo().save(tmp_path / "face.png")
    (tmp_path / "link.png").symlink_to("face.png")
    assert images.read_image(str(tmp_path / "link.png")).size == (64, 48)


def test_a_file_of_many_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(2**40)  # nothing but holes
    with pytest.raises(ValueError, match=r"huge\.jpg: 1024\.0 GB, too large"):
        images.read_image(str(tmp_path / "huge.jpg"))


def test_loader_processes_can_be_sent_the_reader():
    assert pickle.loads(pickle.dumps(images.read_image)) is images.read_image
