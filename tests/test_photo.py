"""Faces are found, placed, turned and cropped; photos of all kinds are read."""

import io
import os

import ipywidgets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from agelib import images, photo, sample

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def wall() -> Image.Image:
    return sample.draw_wall()


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def at_points(side: float, turn: float, centre: complex) -> np.ndarray:
    """The five points of a face that is framed so."""
    return centre + (photo.POINTS - 0.5 - 0.5j) * side * np.exp(-1j * np.radians(turn))


# -- where ----------------------------------------------------------------------------


def test_a_face_whose_points_lie_as_in_training_is_its_own_crop():
    scale, centre = photo.framing(photo.POINTS[None] * 200)
    assert scale == pytest.approx([200])
    assert centre == pytest.approx([100 + 100j])


def test_the_framing_follows_size_place_and_turn():
    points = [at_points(120, 30, 50 + 70j), at_points(40, -15, 300 + 10j)]
    scale, centre = photo.framing(np.array(points))
    assert abs(scale) == pytest.approx([120, 40])
    # across and down, so that counterclockwise is negative
    assert np.degrees(np.angle(scale)) == pytest.approx([-30, 15])
    assert centre == pytest.approx([50 + 70j, 300 + 10j])


def test_each_portrait_is_found_from_left_to_right(wall):
    found = photo.find(wall)
    # two rows of cells of 310 pixels, a portrait near the middle of each
    columns, rows = (found[["x", "y"]] // 310).to_numpy(int).T
    assert columns.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sorted(zip(columns, rows, strict=True)) == [
        (column, row) for column in range(4) for row in range(2)
    ]
    assert found["x"].is_monotonic_increasing
    assert found["sure"].between(0.9, 1).all()
    # portraits hang askew by up to 12 degrees, and heads lean a little
    assert found["turn"].abs().between(0, 20).all()


@pytest.mark.parametrize("turn", [-20, 25])
def test_a_turned_photo_has_turned_faces(wall, turn):
    portrait = wall.crop((310, 0, 620, 310))
    (before,), (after,) = (
        photo.find(p)["turn"] for p in (portrait, portrait.rotate(turn))
    )
    assert after - before == pytest.approx(turn, abs=4)


def test_places_count_in_pixels_of_a_large_photo(wall):
    small = photo.find(wall)
    large = photo.find(wall.resize((wall.width * 3, wall.height * 3)))
    assert len(large) == len(small)
    # sorted alike, unless two in one column change places
    for name in ("x", "y", "side"):
        assert sorted(large[name]) == pytest.approx(sorted(small[name] * 3), rel=0.08)


def test_a_photo_without_a_face_says_what_to_do():
    with pytest.raises(ValueError, match=r"No face found .* 3200 x 90 .* 50 pixels"):
        photo.find(Image.new("RGB", (3200, 90), "grey"))
    with pytest.raises(ValueError, match=r"use photo\.whole"):
        photo.find(Image.new("RGB", (1, 1)))


def test_faces_are_numbered_from_left_to_right(wall):
    found = photo.find(wall)
    assert found.index.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found.index.name == photo.whole(wall).index.name == "face"
    assert found["x"].is_monotonic_increasing


def test_a_whole_photo_is_its_middle_square():
    (face,) = photo.whole(Image.new("RGB", (300, 200))).to_dict("records")
    assert face == {"x": 150, "y": 100, "side": 200, "turn": 0, "sure": 1}


# -- crops ----------------------------------------------------------------------------


def cut(picture: Image.Image, folder, **place) -> np.ndarray:
    found = photo.whole(picture).assign(**place)
    (path,) = photo.crop(picture, found, folder)["path"]
    return np.asarray(Image.open(path)).astype(int)


def test_the_crop_of_a_whole_face_photo_is_that_photo(tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype="uint8"))
    assert (cut(picture, tmp_path) == np.asarray(picture)).all()


def test_a_large_face_is_averaged_not_sampled(tmp_path):
    # columns of black and white, which sampling would show as one of them
    stripes = np.zeros((800, 800, 3), "uint8")
    stripes[:, ::2] = 255
    with pytest.warns(UserWarning, match="one colour"):
        pixels = cut(Image.fromarray(stripes), tmp_path)
    assert pixels.shape == (200, 200, 3)
    assert np.abs(pixels - 127.5).max() < 3


def test_a_turned_face_stands_upright_in_its_crop(tmp_path):
    # a face's top is red: turned a quarter counterclockwise, red is on the left
    picture = Image.new("RGB", (200, 200), "blue")
    picture.paste("red", (0, 0, 100, 200))
    pixels = cut(picture, tmp_path, turn=90.0)
    assert (pixels[:98] == (255, 0, 0)).all()
    assert (pixels[102:] == (0, 0, 255)).all()


def test_what_lies_outside_the_photo_is_black(tmp_path):
    pixels = cut(Image.new("RGB", (200, 200), "white"), tmp_path, x=0.0)
    assert (pixels[:, :98] == 0).all()
    assert (pixels[:, 102:] == 255).all()


def test_crops_are_files_a_row_that_models_can_read(wall, tmp_path):
    people = photo.crop(wall, photo.find(wall), tmp_path / "new" / "folder")
    assert people["file_id"].tolist() == [f"face_{n}.png" for n in range(1, 9)]
    assert all(Image.open(p).size == (200, 200) for p in people["path"])


def noise(seed: int, side: int = 200) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype="uint8"))


def test_a_home_folder_is_expanded(wall, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    wall.save(tmp_path / "wall.png")
    picture = photo.read("~/wall.png")
    found = photo.crop(picture, photo.whole(picture), "~/crops")
    assert found["path"].tolist() == [str(tmp_path / "crops" / "face_1.png")]
    assert (tmp_path / "crops" / "face_1.png").is_file()


def test_crops_of_several_photos_in_one_folder_stay_those_of_their_photos(tmp_path):
    people = [noise(seed) for seed in range(3)]
    tables = [photo.crop(p, photo.whole(p), tmp_path) for p in people]
    assert [t["file_id"].item() for t in tables] == [
        "face_1.png", "face_2.png", "face_3.png"
    ]  # fmt: skip
    for person, table in zip(people, tables, strict=True):
        assert table["path"].item() == str(tmp_path / table["file_id"].item())
        assert images.read_image(table["path"].item()) == person


def test_a_face_cropped_again_gets_its_earlier_file(wall, tmp_path):
    found = photo.find(wall)
    first = photo.crop(wall, found, tmp_path)
    other = photo.crop(noise(0), photo.whole(noise(0)), tmp_path)
    assert other["file_id"].item() == "face_9.png"
    assert photo.crop(wall, found, tmp_path).equals(first)
    # also one by one
    for row in range(8):
        alone = photo.crop(wall, found.iloc[[row]], tmp_path)
        assert alone["path"].item() == first["path"].iloc[row]
    assert len(list(tmp_path.iterdir())) == 9


def test_two_crops_that_look_the_same_are_two_files(tmp_path):
    face = photo.whole(noise(0))
    twice = photo.crop(noise(0), pd.concat([face, face]), tmp_path)
    assert twice["file_id"].tolist() == ["face_1.png", "face_2.png"]


def test_what_else_has_the_name_of_a_crop_is_left_alone(tmp_path):
    (tmp_path / "face_1.png").write_text("mine")
    (tmp_path / "face_2.png").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "face_3.png").mkdir()
    table = photo.crop(noise(0), photo.whole(noise(0)), tmp_path)
    assert table["file_id"].item() == "face_4.png"
    assert (tmp_path / "face_1.png").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()


def test_a_crop_that_shows_too_little_of_a_face_is_named(tmp_path, recwarn):
    picture, found = noise(0), photo.whole(noise(0))
    photo.crop(picture, found.assign(side=32.0), tmp_path)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"face_2\.png is only 31 pixels wide"):
        photo.crop(picture, found.assign(side=31.0), tmp_path)
    with pytest.warns(UserWarning, match=r"face_3\.png is all of one colour: an age"):
        photo.crop(picture, found.assign(x=-1000.0), tmp_path)


def test_a_face_found_again_in_a_wider_crop_is_upright_and_in_its_middle(
    wall, tmp_path
):
    found = photo.find(wall)
    people = photo.crop(wall, found.assign(side=2 * found["side"]), tmp_path)
    for path in people["path"]:
        (again,) = photo.find(Image.open(path)).to_dict("records")
        assert (again["x"], again["y"]) == pytest.approx((100, 100), abs=4)
        assert again["side"] == pytest.approx(100, rel=0.08)
        assert again["turn"] == pytest.approx(0, abs=4)


# -- photos ---------------------------------------------------------------------------


def test_a_phones_turned_photo_is_set_upright():
    image = Image.new("RGB", (30, 20), "blue")
    image.paste("red", (0, 0, 10, 20))
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be shown a quarter turn clockwise
    picture = photo.read(encoded(image, "JPEG", exif=exif, quality=95))
    assert picture.size == (20, 30)
    red, _, blue = picture.getpixel((10, 3))
    assert (red > 200, blue < 60) == (True, True)


def test_a_photo_is_decoded_as_the_faces_of_a_dataset_are(tmp_path):
    # 16 bits of grey, fractions, a clear colour: what once were two ways to decode
    rng = np.random.default_rng(0)
    levels = rng.random((20, 20))
    pictures = {
        "16.png": Image.fromarray((levels * 65535).astype("uint16")),
        "f.tif": Image.fromarray(levels.astype("float32")),
        "cut.png": Image.new("RGBA", (20, 20), (0, 0, 0, 128)),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
        picture = photo.read(tmp_path / name)
        assert picture == images.read_image(str(tmp_path / name))
        assert picture == photo.read((tmp_path / name).read_bytes())
    assert picture.getpixel((0, 0)) == (127, 127, 127)


def test_an_iphones_heic_is_read():
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 48), "red")).save(file, quality=90)
    picture = photo.read(file.getvalue())
    assert picture.size == (64, 48)
    assert picture.getpixel((9, 9))[0] > 200


def test_without_pillow_heif_a_heic_says_what_to_install(monkeypatch):
    monkeypatch.setattr(Image, "ID", [k for k in Image.ID if k != "HEIF"])
    content = b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(100)
    with pytest.raises(ValueError, match=r"The photo .*HEIC.* pip install pillow-heif"):
        photo.read(content)


def test_a_photo_of_many_megapixels_is_read_without_a_warning(monkeypatch, recwarn):
    png = encoded(Image.new("L", (100, 100)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    assert photo.read(png).size == (100, 100)
    assert not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(ValueError, match=r"more than 0 megapixels: save it smaller"):
        photo.read(png)


def test_what_can_not_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No photo at .*me\.jpg: upload"):
        photo.read(tmp_path / "me.jpg")
    (tmp_path / "notes.jpg").write_text("no photo")
    with pytest.raises(ValueError, match=r"notes\.jpg .* text\. .* anew as a JPEG\.$"):
        photo.read(tmp_path / "notes.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path, tmp_path / "pipe.jpg"):
        with pytest.raises(ValueError, match=f"{path.name} can't be read: not a file"):
            photo.read(path)
    whole = encoded(sample.draw_wall([30]), "JPEG")
    cut = whole[: len(whole) // 2]
    with pytest.raises(ValueError, match=r"The photo .* damaged .*Try another copy"):
        photo.read(cut)
    with pytest.raises(ValueError, match=r"The photo can't be read: zero bytes\. Try"):
        photo.read(b"")


def sent(name: str, content: bytes) -> dict:
    """A file as the browser's part of ipywidgets 8 sends it."""
    about = {"type": "image/jpeg", "size": len(content), "last_modified": 0}
    return {"name": name, "content": memoryview(content)} | about


def test_an_upload_is_what_the_browser_sent():
    upload = ipywidgets.FileUpload()
    assert photo.uploaded(upload.value) is None
    upload.set_state({"value": [sent("a.jpg", b"a")]})
    assert photo.uploaded(upload.value) == ("a.jpg", b"a")
    assert str(photo.uploaded(upload.value)) == "a.jpg"


def test_an_upload_of_ipywidgets_7_is_its_last_file():
    value = {"a.jpg": {"content": b"a"}, "b.jpg": {"content": b"b"}}
    assert photo.uploaded(value) == ("b.jpg", b"b")
    assert photo.uploaded({}) is None


def test_the_upload_button_is_one_that_keeps_its_photo():
    button = photo.upload_button()
    assert not button.multiple
    button.set_state({"value": [sent("a.jpg", b"a")]})
    try:
        assert photo.uploaded(photo.upload_button().value) == ("a.jpg", b"a")
        # and bears its name
        assert button.description == "a.jpg"
        button.set_state({"value": []})
        assert button.description == "Your photo"
    finally:
        photo.upload_button.cache_clear()


def test_an_upload_is_read_and_an_unreadable_one_is_named():
    whole = encoded(noise(0), "PNG")
    assert photo.read(photo.Upload("me.png", whole)) == noise(0)
    for content, fault in {
        b"": "zero bytes",
        b"no photo": "not an image but text",
        b"<svg xmlns=''/>": "an SVG drawing",
        whole[:50]: "a damaged PNG image",
    }.items():
        upload = ipywidgets.FileUpload()
        upload.set_state({"value": [sent("me.jpg", content)]})
        chosen = photo.uploaded(upload.value)
        # an empty file was chosen all the same, so that no example takes its place
        assert chosen
        with pytest.raises(ValueError, match=rf"me\.jpg can't be read: .*{fault}"):
            photo.read(chosen)
