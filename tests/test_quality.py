"""Image measures and duplicates, on small pictures generated here."""

import hashlib
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from scipy.ndimage import gaussian_filter

from agelib import images, quality


def picture(seed: int) -> Image.Image:
    """A colourful, smooth, random picture; another seed, another picture."""
    noise = np.random.default_rng(seed).normal(size=(200, 200, 3))
    smooth = gaussian_filter(noise, (8, 8, 0))
    return Image.fromarray(np.uint8(np.clip(128 + 1800 * smooth, 0, 255)))


@pytest.fixture
def faces(tmp_path):
    """Saves named pictures as JPEG; gives their table, as `agelib.data` reads it."""

    def save(quality=90, **images) -> pd.DataFrame:
        for name, image in images.items():
            image.convert("RGB").save(tmp_path / f"{name}.jpg", quality=quality)
        paths = [tmp_path / f"{name}.jpg" for name in images]
        digests = [hashlib.md5(path.read_bytes()).hexdigest() for path in paths]
        return pd.DataFrame({"path": map(str, paths), "digest": digests}, list(images))

    return save


def test_grey_is_judged_by_the_pixels_of_an_rgb_file(faces):
    colour = picture(0)
    grey = colour.convert("L").convert("RGB")
    table = faces(grey=grey, colour=colour, toned=Image.blend(grey, colour, 0.07))
    assert Image.open(table.loc["grey", "path"]).mode == "RGB"
    assert quality.measure(table)["grayscale"].tolist() == [True, False, False]


def test_grey_survives_the_noise_of_a_jpeg(faces):
    noise = np.random.default_rng(0).normal(0, 4, (200, 200, 3))
    noisy = (np.asarray(picture(0).convert("L"))[..., None] + noise).clip(0, 255)
    table = faces(noisy=Image.fromarray(np.uint8(noisy)))
    chroma = (
        np.asarray(images.read_image(table["path"].item()).convert("YCbCr"))[..., 1:]
        - 128.0
    )
    assert np.abs(chroma).max() >= 2
    assert quality.measure(table)["grayscale"].item()


def test_light_and_contrast_of_a_half_black_half_white_picture(faces):
    halves = np.zeros((200, 200), np.uint8)
    halves[100:] = 255  # off the JPEG's 8x8 blocks, so nearly but not quite exact
    measured = quality.measure(faces(halves=Image.fromarray(halves))).loc["halves"]
    assert measured["light"] == pytest.approx(127.5, abs=1)
    assert measured["contrast"] == pytest.approx(127.5, abs=1)


def test_a_darker_picture_has_less_light(faces):
    image = picture(0)
    dark = ImageEnhance.Brightness(image).enhance(0.3)
    light = quality.measure(faces(image=image, dark=dark))["light"]
    assert light["dark"] == pytest.approx(0.3 * light["image"], rel=0.05)


def test_sharpness_falls_with_blur(faces):
    image = picture(0)
    image.paste("white", (60, 60, 140, 140))
    blurs = {f"r{r}": image.filter(ImageFilter.GaussianBlur(r)) for r in (1, 3, 6)}
    sharpness = quality.measure(faces(r0=image, **blurs))["sharpness"]
    assert sharpness.is_monotonic_decreasing
    assert sharpness["r0"] > 2 * sharpness["r6"]


@pytest.mark.parametrize("side", [399, 1200])
def test_the_sharpness_of_a_large_photo_is_that_of_a_small_one(faces, side):
    noise = np.random.default_rng(0).normal(size=(200, 200, 3))
    fine = 500 * gaussian_filter(noise, (2, 2, 0))
    small = Image.fromarray(np.uint8(np.clip(128 + fine, 0, 255)))
    large = small.resize((side, side), Image.Resampling.BICUBIC)
    sharpness = quality.measure(faces(small=small, large=large))["sharpness"]
    # JPEG adds a little
    assert sharpness["large"] == pytest.approx(sharpness["small"], rel=0.3)


def test_sharpness_is_the_variance_of_the_laplacian(tmp_path):
    dot = np.zeros((18, 18), np.uint8)
    dot[9, 9] = 100
    Image.fromarray(dot).save(tmp_path / "dot.png")
    found = quality.measure(pd.DataFrame({"path": [str(tmp_path / "dot.png")]}))
    # the Laplacian is -400 once, 100 four times, 0 elsewhere, and its mean is 0
    assert found["sharpness"].item() == pytest.approx((400**2 + 4 * 100**2) / 324)


def test_measure_keeps_the_rows_and_adds_four_columns(faces):
    table = faces(a=picture(0), b=picture(1)).assign(age=[1.0, 2.0])
    measured = quality.measure(table)
    pd.testing.assert_frame_equal(measured[table.columns], table)
    added = ["grayscale", "light", "contrast", "sharpness"]
    assert measured.columns.tolist() == [*table.columns, *added]
    assert measured["grayscale"].dtype == bool


@pytest.mark.parametrize("content", [None, b"", b"no image", b"cut"])
def test_an_unreadable_image_is_named(faces, content):
    table = faces(good=picture(0), bad=picture(1))
    path = Path(table.loc["bad", "path"])
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[: len(whole) // 2] if content == b"cut" else content)
    for function in (quality.measure, quality.near_duplicates):
        with pytest.raises(ValueError, match=r"Can't read the image .*bad\.jpg"):
            function(table)


def test_exact_duplicates_are_grouped_and_sorted(faces):
    one, two = picture(0), picture(1)
    table = faces(e=one, d=two, c=picture(2), b=one, a=two)
    table["part"] = ["train", "train", "train", "test", "train"]
    twins = quality.exact_duplicates(table)
    assert twins.index.tolist() == ["b", "e", "a", "d"]
    assert twins["group"].tolist() == [0, 0, 1, 1]
    assert twins["part"].tolist() == ["test", "train", "train", "train"]
    assert quality.exact_duplicates(table.loc[["a", "b", "c"]]).empty


def test_label_disagreement_by_hand():
    table = pd.DataFrame(
        {
            "path": list("abcdefgh"),
            "digest": ["x", "x", "x", "y", "y", "z", "z", "w"],
            "age": [20.0, 26, 50, 30, 30, 8, np.nan, 70],
        }
    )
    found = quality.label_disagreement(table)
    # z has one label only and w one file only
    assert found["faces"].tolist() == [3, 2]
    assert found["youngest"].tolist() == [20, 30]
    assert found["oldest"].tolist() == [50, 30]
    assert found["spread"].tolist() == [30, 0]
    assert found["deviation"].tolist() == [(6 + 0 + 24) / 3, 0]


def test_without_duplicates_no_label_disagrees(faces):
    table = faces(a=picture(0), b=picture(1)).assign(age=[1.0, 2.0])
    assert quality.label_disagreement(table).empty


def test_near_duplicates_are_found_after_encoding_anew_but_strangers_are_not(faces):
    strangers = {f"s{seed}": picture(seed) for seed in range(2, 12)}
    table = faces(a=picture(0), twin=picture(0), b=picture(1), **strangers)
    smaller = picture(1).resize((120, 120)).resize((200, 200))
    copies = faces(quality=40, a_again=picture(0), b_again=smaller)
    both = pd.concat([table, copies]).reset_index(names="name")
    pairs = quality.near_duplicates(both)
    # twin is the same bytes as a: no near but an exact duplicate
    assert sorted(zip(pairs["name_a"], pairs["name_b"], strict=True)) == [
        ("a", "a_again"),
        ("b", "b_again"),
    ]
    assert pairs["distance"].is_monotonic_increasing
    assert pairs["distance"].between(0, 40).all()
    assert set(pairs["path_b"]) == set(copies["path"])


def test_distance_counts_the_bits_that_differ(faces):
    table = faces(a=picture(0), b=picture(1))
    everything = quality.near_duplicates(table, max_distance=256)
    grey = (Image.open(path).convert("L") for path in table["path"])
    first, second = (imagehash.phash(face, hash_size=16) for face in grey)
    # of 256 bits
    distance = first - second
    assert everything["distance"].tolist() == [distance]
    assert len(quality.near_duplicates(table, max_distance=distance)) == 1
    assert quality.near_duplicates(table, max_distance=distance - 1).empty


@pytest.mark.parametrize(
    ("function", "column"),
    [
        (quality.measure, "path"),
        (quality.exact_duplicates, "digest"),
        (quality.near_duplicates, "digest"),
        (quality.label_disagreement, "age"),
    ],
)
def test_a_missing_column_or_an_empty_table_is_named(function, column):
    table = pd.DataFrame({"path": ["a"], "digest": ["x"], "age": [1.0]})
    with pytest.raises(ValueError, match=f"no column '{column}'"):
        function(table.drop(columns=column))
    with pytest.raises(ValueError, match="empty"):
        function(table.head(0))


def test_flag_marks_the_lowest_tenth_of_the_reference():
    known = pd.DataFrame({"light": range(100), "sharpness": range(100, 0, -1)})
    flagged = quality.flag(known)
    assert flagged.index[flagged["dark"]].tolist() == list(range(10))
    assert flagged.index[flagged["blurred"]].tolist() == list(range(90, 100))
    # a table with other light is held against the reference, not against itself
    other = pd.DataFrame({"light": [5, 50], "sharpness": [50, 5]})
    assert quality.flag(other, known)["dark"].tolist() == [True, False]
    assert quality.flag(other, known)["blurred"].tolist() == [False, True]


def test_census_by_hand(faces):
    """Four photos: one in black and white, one twice with two ages, one also a test."""
    grey = picture(3).convert("L")
    train = faces(one=picture(0), two=picture(1), three=picture(2), grey=grey)
    train = pd.concat([train, train.loc[["one"]]]).assign(age=[26.0, 26, 40, 60, 30])
    train["path"] += ["", "", "", "", ".copy"]
    measured = train.assign(grayscale=[False, False, False, True, False])
    test = train.loc[["two"], ["path", "digest"]]
    pairs = pd.DataFrame({"part_a": ["train", "train"], "part_b": ["train", "test"]})
    told = quality.census(measured, test, pairs)
    assert told[["training faces", "test faces"]].tolist() == [5, 1]
    assert told["half are younger than"] == 30
    assert told[["% aged 26", "% in black and white"]].tolist() == [40, 20]
    assert told["median age in black and white"] == 60
    assert told["median age in colour"] == 28
    # one and its copy, two and the test face
    assert told["files with an exact copy"] == 4
    assert told["groups of copies across train and test"] == 1
    assert told["groups of copies in train"] == 1
    assert told["of these, groups whose ages differ"] == 1
    assert told["by how many years, on average"] == 4
    assert told["least error on copies, years"] == 2
    assert told["near copies, pairs"] == 2
    assert told["of these, across train and test"] == 1
    # 4, 4, 10, 30 and 0 years from the median of 30
    assert told["error of the constant, years"] == pytest.approx(48 / 5)


def test_census_without_copies_or_test_faces(faces):
    train = faces(one=picture(0)).assign(age=30.0, grayscale=False)
    none = pd.DataFrame({"path": [], "digest": []}, dtype=str)
    told = quality.census(train, none, pd.DataFrame({"part_a": [], "part_b": []}))
    assert told["files with an exact copy"] == 0
    assert np.isnan(told["by how many years, on average"])
    assert np.isnan(told["median age in black and white"])
