import numpy as np
import pytest
import torch
from PIL import Image

from agelib import data, loading
from agelib.recipe import RECIPES


def test_an_image_that_breaks_after_the_check_is_named_when_loaded(dataset):
    faces = loading.Faces(data.read_train(dataset), 32)
    (dataset / "train" / "image_3.jpg").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"Can't read the image .*image_3\.jpg"):
        faces[3]


def test_an_item_is_the_resized_rgb_image_its_age_and_its_row(dataset):
    image, age, row = loading.Faces(data.read_train(dataset), 24)[6]
    assert image.shape == (3, 24, 24)
    assert image.dtype == torch.uint8
    assert (age, row) == (13, 6)
    # the light of a test face is 40 + 2 * age
    assert image.float().mean() == pytest.approx(40 + 2 * 13, abs=2)


def test_augmentation_changes_with_the_epoch_and_leaves_the_worlds_randomness_alone(
    dataset,
):
    augment = loading.augmentation(RECIPES["cpu"])
    faces = loading.Faces(data.read_train(dataset), 32, augment, seed=1)
    torch.manual_seed(0)
    first = faces[0][0]
    drawn = torch.rand(1)
    faces.epoch = 1
    second = faces[0][0]
    faces.epoch = 0
    assert torch.equal(faces[0][0], first)
    assert not torch.equal(second, first)
    torch.manual_seed(0)
    assert torch.rand(1) == drawn


def test_the_original_augmentation_only_mirrors():
    augment = loading.augmentation(RECIPES["original"])
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), "uint8")
    seen = {augment(Image.fromarray(pixels)).tobytes() for _ in range(40)}
    assert seen == {pixels.tobytes(), pixels[:, ::-1].tobytes()}


def test_our_augmentation_sometimes_takes_the_colour_away():
    augment = loading.augmentation(RECIPES["cpu"])
    red = Image.new("RGB", (16, 16), (200, 0, 0))
    torch.manual_seed(0)
    pixels = [np.array(augment(red)) for _ in range(400)]
    gray = [np.array_equal(p[..., 0], p[..., 1]) for p in pixels]
    assert 0.05 < np.mean(gray) < 0.15


def rows(loader) -> list[int]:
    return [int(row) for _, _, batch in loader for row in batch]


def test_batches_come_in_order_or_shuffled_by_seed_and_epoch(dataset):
    faces = loading.Faces(data.read_train(dataset), 16)
    assert rows(loading.loader(faces, 16)) == list(range(40))
    shuffled = loading.loader(faces, 16, shuffle=True)
    first = rows(shuffled)
    assert len(set(first)) == 32  # two whole batches, each face at most once
    assert rows(loading.loader(faces, 16, shuffle=True)) == first
    shuffled.sampler.set_epoch(1)
    assert rows(shuffled) != first
    other_seed = loading.Faces(data.read_train(dataset), 16, seed=1)
    assert rows(loading.loader(other_seed, 16, shuffle=True)) != first


def test_workers_load_large_tables_only(dataset):
    table = data.read_train(dataset)
    assert loading.loader(loading.Faces(table, 16), 8, workers=2).num_workers == 0
    large = table.loc[table.index.repeat(25)]
    assert loading.loader(loading.Faces(large, 16), 8, workers=2).num_workers == 2


def test_the_last_batch_waits_for_the_next_epoch_only_if_it_is_not_whole(tables):
    faces = loading.Faces(tables[0], 16)
    assert sorted(rows(loading.loader(faces, 10, shuffle=True))) == list(range(30))
