import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from agelib import data, hardware, loading
from agelib.recipe import RECIPES


def test_an_image_that_breaks_after_the_check_is_named_when_loaded(dataset):
    faces = loading.Faces(data.read_train(dataset), 32)
    (dataset / "train" / "image_3.jpg").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"Can't read the image .*image_3\.jpg"):
        faces[3]


def test_an_item_is_the_resized_rgb_image_its_age_and_its_row(dataset):
    images, age, row = loading.Faces(data.read_train(dataset), 24)[6]
    assert images.shape == (1, 3, 24, 24)
    assert images.dtype == torch.uint8
    assert (age, row) == (13, 6)
    # the light of a test face is 40 + 2 * age
    assert images.float().mean() == pytest.approx(40 + 2 * 13, abs=2)


def test_a_batch_holds_the_faces_as_the_last_epoch_learns_them(dataset):
    faces = data.read_train(dataset).iloc[[6, 2]]
    recipe = replace(RECIPES["cpu"], first_size=32, image_size=64, epochs=2)
    images, ages = loading.batch(faces, recipe)
    assert ages.tolist() == [13, 5]
    learned = loading.Faces(faces, 64, recipe)
    assert torch.equal(images, torch.stack([learned[1, row][0] for row in (0, 1)]))
    assert images.shape == (2, 3, 64, 64)


def test_a_face_has_six_views_half_of_them_mirrored_some_closer_some_wider(dataset):
    faces = data.read_train(dataset)
    rows = np.arange(50, 250, dtype="uint8")
    image = Image.fromarray(np.add.outer(rows * 0, rows))  # lighter to the right
    image.save(faces["path"][0], format="PNG")
    views = loading.Faces(faces, 200, views=6)[0][0][:, 0].float()
    middle = views[:, 100]
    lighter = (middle[:, 120] - middle[:, 80]) / 40
    # a pixel of light a pixel, fewer where the face is larger, falling if mirrored
    expected = [1, -1 / 0.9, -1 / 1.1, -1, 1 / 0.9, 1 / 1.1]
    assert lighter.tolist() == pytest.approx(expected, abs=0.04)
    for count in (0, 7):
        with pytest.raises(ValueError, match=f"1 to 6 views of a face, not {count}"):
            loading.Faces(faces, 200, views=count)


def test_augmentation_changes_with_the_epoch_and_follows_the_seed_alone(dataset):
    table = data.read_train(dataset)
    faces = loading.Faces(table, 32, RECIPES["cpu"])
    torch.manual_seed(0)
    first, second = faces[0, 0][0], faces[1, 0][0]
    assert not torch.equal(second, first)
    torch.manual_seed(1)
    again = loading.Faces(table, 32, RECIPES["cpu"])
    assert torch.equal(again[0, 0][0], first)
    other = loading.Faces(table, 32, replace(RECIPES["cpu"], seed=1))
    assert not torch.equal(other[0, 0][0], first)


def test_faces_grow_with_the_epochs(dataset):
    faces = data.read_train(dataset)
    growing = replace(RECIPES["cpu"], image_size=128, first_size=64, epochs=4)
    growing = replace(growing, grown_by=1.0)
    learned = loading.Faces(faces, 128, growing)
    # 48, 32, 16 and 0 pixels short of 128, in steps of 32
    assert [learned[e, 0][0].shape[-1] for e in range(4)] == [64, 96, 128, 128]
    earlier = replace(growing, image_size=160, epochs=5, grown_by=0.8)
    learned = loading.Faces(faces, 160, earlier)
    # 72, 48, 24, 0 and 0 pixels short of 160
    assert [learned[e, 0][0].shape[-1] for e in range(5)] == [96, 96, 128, 160, 160]


def test_loader_processes_that_have_started_follow_a_new_size(dataset):
    table = data.read_train(dataset)
    faces = loading.Faces(table.loc[table.index.repeat(25)], 16)
    batches = loading.loader(faces, 500, workers=1)
    assert [images.shape[-1] for images, _, _ in batches] == [16, 16]
    faces.set_size(24)
    assert [images.shape[-1] for images, _, _ in batches] == [24, 24]


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), "uint8")
    return Image.fromarray(pixels)


def test_the_original_augmentation_only_mirrors():
    image, rng = noise(16, 16), np.random.default_rng(0)
    recipe = RECIPES["original"]
    seen = {loading.augment(image, 16, recipe, rng).tobytes() for _ in range(40)}
    assert seen == {image.tobytes(), np.array(image)[:, ::-1].tobytes()}


def test_our_augmentation_sometimes_takes_the_colour_away():
    red, rng = Image.new("RGB", (16, 16), (200, 0, 0)), np.random.default_rng(0)
    pixels = [
        np.array(loading.augment(red, 16, RECIPES["cpu"], rng)) for _ in range(400)
    ]
    gray = [np.array_equal(p[..., 0], p[..., 1]) for p in pixels]
    assert 0.05 < np.mean(gray) < 0.15


def test_erasing_hides_a_share_of_some_faces():
    white, rng = Image.new("RGB", (100, 100), "white"), np.random.default_rng(0)
    recipe = replace(RECIPES["original"], erasing=0.25)
    seen = [
        np.array(loading.augment(white, 100, recipe, rng))[..., 0] for _ in range(400)
    ]
    hidden = np.array([(pixels == 128).mean() for pixels in seen])
    assert 0.2 < (hidden > 0).mean() < 0.3
    assert 0.01 < hidden[hidden > 0].min() < hidden.max() < 0.21
    # all else stays as it was, and what is hidden is one rectangle
    for pixels in seen:
        ys, xs = np.nonzero(pixels != 255)
        if len(ys):
            assert len(ys) == (np.ptp(ys) + 1) * (np.ptp(xs) + 1)
            assert (pixels[ys, xs] == 128).all()


def test_light_and_contrast_change_within_the_recipes_share():
    grey, rng = Image.new("RGB", (1, 1), (160, 160, 160)), np.random.default_rng(0)
    recipe = replace(RECIPES["original"], light=0.2)
    seen = [
        loading.augment(grey, 1, recipe, rng).getpixel((0, 0))[0] for _ in range(400)
    ]
    # 32 above the middle grey: contrast makes it 25.6 to 38.4, light 0.8 to 1.2 of all
    assert min(seen) == pytest.approx(0.8 * (128 + 25.6), abs=5)
    assert max(seen) == pytest.approx(1.2 * (128 + 38.4), abs=5)


@pytest.mark.parametrize(
    ("move", "where"),
    [
        ({}, (30, 20)),
        ({"mirror": True}, (9, 20)),
        ({"shift": (-0.25, -0.25)}, (20, 10)),
        ({"zoom": 1.5}, (35, 20)),
        # counterclockwise: what lies to the right of the centre goes above it
        ({"turn": 90.0}, (20, 9)),
    ],
    ids=lambda value: next(iter(value), "still") if isinstance(value, dict) else "",
)
def test_resize_moves_a_face_about_the_centre(move, where):
    """A white spot of 5 pixels, its centre 10 to the right of the image's."""
    pixels = np.zeros((40, 40, 3), "uint8")
    pixels[18:23, 28:33] = 255
    light = np.array(loading.resize(Image.fromarray(pixels), 40, **move).convert("L"))
    ys, xs = np.nonzero(light > 127)
    assert (xs.mean(), ys.mean()) == pytest.approx(where, abs=1)


def test_resize_gives_a_square_of_any_image():
    image = Image.new("RGB", (60, 30), (10, 20, 30))
    assert np.unique(
        np.array(loading.resize(image, 24)).reshape(-1, 3), axis=0
    ).tolist() == [[10, 20, 30]]
    assert loading.resize(noise(7, 7), 24).size == (24, 24)


def rows(loader) -> list[int]:
    return [int(row) for _, _, batch in loader for row in batch]


def test_batches_come_in_order_or_shuffled_by_seed_and_epoch(dataset):
    faces = loading.Faces(data.read_train(dataset), 16)
    assert rows(loading.loader(faces, 16)) == list(range(40))
    table = data.read_train(dataset)
    faces = loading.Faces(table, 16, RECIPES["quick"])
    shuffled = loading.loader(faces, 16)
    first = rows(shuffled)
    assert len(set(first)) == 32  # two whole batches, each face at most once
    assert rows(loading.loader(faces, 16)) == first
    shuffled.sampler.set_epoch(1)
    assert rows(shuffled) != first
    other_seed = loading.Faces(table, 16, replace(RECIPES["quick"], seed=1))
    assert rows(loading.loader(other_seed, 16)) != first


def test_workers_load_large_tables_only(dataset):
    table = data.read_train(dataset)
    assert loading.loader(loading.Faces(table, 16), 8, workers=2).num_workers == 0
    large = table.loc[table.index.repeat(25)]
    assert loading.loader(loading.Faces(large, 16), 8, workers=2).num_workers == 2


def test_several_processes_share_each_batch_equally(tables):
    """The 30 faces of one table, and the most that a batch may hold."""
    faces = loading.Faces(tables[0], 16)
    sizes = [
        loading.loader(faces, most, processes=processes).batch_size
        for most, processes in ((64, 1), (64, 4), (10, 3), (64, 40))
    ]
    assert sizes == [30, 28, 9, 40]


def test_the_last_batch_waits_for_the_next_epoch_only_if_it_is_not_whole(tables):
    faces = loading.Faces(tables[0], 16, RECIPES["quick"])
    assert sorted(rows(loading.loader(faces, 10))) == list(range(30))


def test_there_are_no_more_workers_than_shared_memory_has_room_for(
    dataset, monkeypatch
):
    """A batch of 64 faces of 32 pixels in two views is 393,216 bytes."""
    table = pd.concat([data.read_train(dataset)] * 25, ignore_index=True)
    faces = loading.Faces(table, 32, views=2)
    batch = 64 * 2 * 3 * 32 * 32
    for free, workers in ((0, 0), (6 * batch - 1, 0), (6 * batch, 1), (10**12, 4)):
        monkeypatch.setattr(loading, "_shared_memory", lambda free=free: free)
        assert loading.loader(faces, 64, workers=4).num_workers == workers


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_memory_is_pinned_for_the_device_that_is_used(tables, monkeypatch, kind):
    """There may be a GPU on which torch can't compute."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware, "device", lambda: torch.device(kind))
    batches = loading.loader(loading.Faces(tables[1], 16), 4)
    assert batches.pin_memory == (kind == "cuda")


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory is a folder there")
def test_faces_are_read_where_there_is_no_shared_memory(dataset, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.setattr(
        torch.Tensor, "share_memory_", lambda _: pytest.fail("there is none")
    )
    table = pd.concat([data.read_train(dataset)] * 25, ignore_index=True)
    batches = loading.loader(loading.Faces(table, 32), 64, workers=4)
    assert sum(len(rows) for *_, rows in batches) == 1000
