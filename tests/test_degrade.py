import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from agelib import data, degrade, loading
from agelib.recipe import RECIPES, replace


def plain(level: int = 100, size: int = 200) -> Image.Image:
    return Image.new("RGB", (size, size), (level, level, level))


def halves(size: int = 200) -> Image.Image:
    """Black on the left, white on the right."""
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[:, size // 2 :] = 255
    return Image.fromarray(pixels)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(float)


def test_noise_has_the_strength_that_it_is_told():
    noisy = pixels(degrade.noise(plain(), 20, np.random.default_rng(0)))
    assert noisy.shape == (200, 200, 3)
    assert noisy.std() == pytest.approx(20, rel=0.02)
    assert noisy.mean() == pytest.approx(100, abs=0.3)
    # the colours by themselves
    red, green = noisy[..., 0].ravel(), noisy[..., 1].ravel()
    assert abs(np.corrcoef(red, green)[0, 1]) < 0.02


def test_light_is_a_factor_and_white_stays_white():
    assert pixels(degrade.light(plain(100), 0.4)).max() == 40
    assert pixels(degrade.light(plain(100), 1.8)).max() == 180
    assert pixels(degrade.light(plain(200), 1.8)).min() == 255


def test_grey_has_three_equal_colours():
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    # the weight of red in Rec. 601 is 0.299
    assert degrade.grey(red).getpixel((3, 3)) == (76, 76, 76)


def test_what_is_hidden_is_the_part_that_is_named():
    hidden = pixels(degrade.hide(plain(0), 0, 0.6, 1, 1))[..., 0]
    assert (hidden[:120] == 0).all()
    assert (hidden[120:] == 128).all()
    band = pixels(degrade.hide(plain(0), 0.25, 0.5, 0.75, 0.75))[..., 0]
    assert (band == 128).sum() == 100 * 50
    assert (band[100:150, 50:150] == 128).all()


def test_a_blur_spreads_an_edge_as_a_gaussian_does():
    edge = pixels(degrade.blur(halves(), 0.01))[100, :, 0]
    # a Gaussian of 2 px is at 84% one standard deviation behind the edge
    assert edge[102] / 255 == pytest.approx(0.84, abs=0.06)
    assert edge[[90, 109]].tolist() == [0, 255]


def test_reduced_and_enlarged_only_what_is_large_is_left():
    fine = np.zeros((200, 200, 3), np.uint8)
    fine[:, ::2] = 255
    assert pixels(degrade.reduce(Image.fromarray(fine), 32)).std() < 5
    coarse = degrade.reduce(halves(), 32)
    assert coarse.size == (200, 200)
    assert pixels(coarse)[:, [20, 180]].mean(axis=(0, 2)).tolist() == [0, 255]


def test_the_lower_the_quality_of_a_jpeg_the_further_it_is_off():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype="uint8"))
    off = [
        np.abs(pixels(degrade.jpeg(image, quality)) - pixels(image)).mean()
        for quality in (95, 30, 10)
    ]
    assert off[0] < off[1] < off[2]


def test_a_face_is_turned_counterclockwise():
    turned = pixels(degrade.turn(halves(), 90))[..., 0]
    # what was right is above
    assert turned[20, 100] == 255
    assert turned[180, 100] == 0


def test_random_changes_follow_their_generator_and_reach_all_kinds(monkeypatch):
    image, seen = halves(64), set()
    kinds = ("light", "hide", "blur", "reduce", "noise", "jpeg")
    for kind in kinds:
        change = getattr(degrade, kind)

        def noted(image, *strength, kind=kind, change=change):
            seen.add(kind)
            return change(image, *strength)

        monkeypatch.setattr(degrade, kind, noted)
    several = []
    for seed in range(60):
        seen.clear()
        once = degrade.at_random(image, np.random.default_rng(seed))
        several.append(frozenset(seen))
        again = degrade.at_random(image, np.random.default_rng(seed))
        assert once.tobytes() == again.tobytes()
        assert (once.size, once.mode) == ((64, 64), "RGB")
    assert {len(changes) for changes in several} == {1, 2, 3}
    assert set().union(*several) == set(kinds)


def test_a_recipe_spoils_the_share_of_faces_that_it_says(dataset, monkeypatch):
    """And the other faces are those of a recipe that spoils none."""
    faces = data.read_train(dataset)
    plain = replace(RECIPES["cpu"], image_size=32, first_size=0, light=0.0)
    black = Image.new("RGB", (40, 40))
    monkeypatch.setattr(degrade, "at_random", lambda image, rng: black)
    spoiled = loading.Faces(faces, 32, replace(plain, degraded=0.3, erasing=0.0))
    dark = [(spoiled[e, row][0] < 30).all() for e in range(10) for row in range(40)]
    assert 0.24 < np.mean(dark) < 0.36
    none = loading.Faces(faces, 32, replace(plain, degraded=0.0, erasing=0.0))
    for row in range(40):
        if not dark[row]:
            assert torch.equal(spoiled[0, row][0], none[0, row][0])


def test_a_large_photo_is_spoiled_as_a_small_one_is(tmp_path):
    """At its own size the noise would vanish with the pixels."""
    for width, height in ((200, 200), (1600, 1200), (120, 90)):
        path = tmp_path / f"{width}.png"
        plain(size=10).resize((width, height)).save(path)
        faces = pd.DataFrame({"path": [str(path)]})
        (spoiled,) = degrade.spoil(faces, "noise of 20 grey levels", tmp_path)["path"]
        image = Image.open(spoiled)
        # nothing is enlarged
        side = min(200, height)
        assert image.size == (round(side * width / height), side)
        assert pixels(image).std() == pytest.approx(20, rel=0.05)
