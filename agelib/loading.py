"""Serve the faces of a table to a model: decode, augment, resize, batch."""

import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.transforms.v2.functional import pil_to_tensor

from agelib import degrade, hardware
from agelib.images import read_image
from agelib.recipe import Recipe

# how a face that is predicted is looked at, as `resize` takes it; the answers' errors
# partly cancel
VIEWS = (
    {},
    {"zoom": 0.9, "mirror": True},
    {"zoom": 1.1, "mirror": True},
    {"mirror": True},
    {"zoom": 0.9},
    {"zoom": 1.1},
)

SHARED_MEMORY = Path("/dev/shm")


class Faces(Dataset):
    """Items are (images uint8 (views, 3, size, size), age in years or nan, row number).

    The images are the first `views` of `VIEWS`.

    With a `recipe` an item is one image (3, size, size), its key is (epoch, row), and
    the face is changed at random as it says. The changes follow its seed, the
    epoch and the row alone: they are the same whichever process loads the face, and
    after a resume.

    Raises:
        ValueError: if there are fewer views.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        size: int,
        recipe: Recipe | None = None,
        views: int = 1,
    ):
        if views not in range(1, len(VIEWS) + 1):
            raise ValueError(
                f"There are 1 to {len(VIEWS)} views of a face, not {views}."
            )
        # bytes in one array: workers share it, where a list of str would be copied
        self.paths = np.array([os.fsencode(p) for p in table["path"]])
        self.ages = table.get("age", pd.Series(np.nan, table.index)).to_numpy("float32")
        self._size = torch.tensor(size)
        self.views = VIEWS[:views]
        self.recipe = recipe

    def set_size(self, size: int) -> None:
        """Serves faces that are not augmented at another size from now on."""
        self._size.fill_(size)

    def share(self) -> None:
        """Lets loader processes that have started already see another size, too."""
        self._size.share_memory_()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(
        self, key: int | tuple[int, int]
    ) -> tuple[torch.Tensor, np.float32, int]:
        if self.recipe is None:
            row, size = key, int(self._size)
            face = self._image(row, size)
            seen = [pil_to_tensor(resize(face, size, **view)) for view in self.views]
            return torch.stack(seen), self.ages[row], row
        epoch, row = key
        size = self.recipe.size_in(epoch)
        rng = np.random.default_rng((self.recipe.seed, epoch, row))
        # with a generator of its own, so that the other changes stay what they are
        spoiling = np.random.default_rng((self.recipe.seed, epoch, row, 1))
        image = self._image(row, size)
        if spoiling.random() < self.recipe.degraded:
            image = degrade.at_random(image, spoiling)
        image = augment(image, size, self.recipe, rng)
        return pil_to_tensor(image), self.ages[row], row

    def _image(self, row: int, size: int) -> Image.Image:
        return read_image(os.fsdecode(self.paths[row]), size)


def batch(table: pd.DataFrame, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """The faces as a network learns them, each changed at random.

    Returns:
        images uint8 (faces, 3, size, size) and ages in years (faces,).
    """
    faces = Faces(table, recipe.image_size, recipe)
    # of the last epoch, when faces have grown to the recipe's size
    items = [faces[recipe.epochs - 1, row] for row in range(len(faces))]
    images, ages, _ = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(ages)


class _Shuffled(DistributedSampler):
    """A new order each epoch; the keys that augmented faces want."""

    def __init__(self, faces: Faces):
        super().__init__(faces, 1, 0, shuffle=True, seed=faces.recipe.seed)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, row) for row in super().__iter__())


def resize(
    image: Image.Image,
    size: int,
    turn: float = 0.0,
    zoom: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    mirror: bool = False,
) -> Image.Image:
    """The image as a square of `size` pixels, moved about its centre on the way.

    One interpolation does it all, so that faces that are moved in training are no less
    sharp than those that are not when predicted; and it takes a third of the time.

    Args:
        turn: degrees, counterclockwise.
        zoom: above one the face grows.
        shift: to the right and down, as shares of the side.
    """
    cos, sin = math.cos(math.radians(turn)) / zoom, math.sin(math.radians(turn)) / zoom
    right, down = (size / 2 + size * s for s in shift)
    across = (-1 if mirror else 1) * image.width / size
    along = image.height / size
    # from a pixel of the square back to the point of the image that it shows
    a, b, d, e = across * cos, -across * sin, along * sin, along * cos
    c = image.width / 2 - a * right - b * down
    f = image.height / 2 - d * right - e * down
    return image.transform(
        (size, size),
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        Image.Resampling.BILINEAR,
    )


def augment(
    image: Image.Image, size: int, recipe: Recipe, rng: np.random.Generator
) -> Image.Image:
    """A square of `size` pixels with the recipe's random changes.

    What RandomHorizontalFlip, RandomAffine, ColorJitter, RandomGrayscale and
    RandomErasing of `torchvision.transforms.v2` do, with one interpolation in all and a
    generator of its own.
    """
    flip, grayscale = rng.random(2) < (recipe.flip, recipe.grayscale)
    turn, zoom, right, down, light, contrast = rng.uniform(-1, 1, 6)
    image = resize(
        image,
        size,
        turn * recipe.rotation,
        1 + zoom * recipe.zoom,
        (right * recipe.shift, down * recipe.shift),
        flip,
    )
    if recipe.light:
        around_grey = (np.arange(256) - 128) * (1 + contrast * recipe.light) + 128
        levels = around_grey * (1 + light * recipe.light)
        levels = levels.round().clip(0, 255).astype("uint8")
        image = Image.fromarray(levels[np.asarray(image)])
    if grayscale:
        image = image.convert("L").convert("RGB")
    if rng.random() < recipe.erasing:
        # random erasing (Zhong et al. 2020), with grey and smaller than there
        area, ratio = rng.uniform(0.02, 0.2), math.exp(rng.uniform(-1.2, 1.2))
        width, height = (round(size * math.sqrt(area * r)) for r in (ratio, 1 / ratio))
        left, top = (rng.random(2) * (size - width, size - height)).astype(int)
        image.paste((128, 128, 128), (left, top, left + width, top + height))
    return image


def _shared_memory() -> int:
    """Bytes of shared memory that are free, where a folder limits them."""
    if sys.platform != "linux":
        return sys.maxsize
    writable = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)
    return shutil.disk_usage(SHARED_MEMORY).free if writable else 0


def loader(
    faces: Faces, batch_size: int, workers: int = 0, processes: int = 1
) -> DataLoader:
    """Batches of faces: in order; augmented ones shuffled anew, whole batches only.

    Workers hand batches over in shared memory, of which a container may have little:
    there are no more of them than it has room for their batches.

    The order of an epoch follows the recipe's seed and the loader's `set_epoch` alone.

    Args:
        batch_size: at most, for there may be fewer faces, and the processes share each
            batch equally.
    """
    batch_size = min(batch_size, max(len(faces), processes))
    batch_size -= batch_size % processes
    shuffled = faces.recipe is not None
    # starting a worker takes a second or two, longer than a few faces take
    workers = workers if len(faces) >= 1000 else 0
    pixels = int(faces.recipe.image_size if faces.recipe else faces._size) ** 2
    batch = batch_size * 3 * pixels * (1 if shuffled else len(faces.views))
    # each has three batches on the way, and so have those of the other loader
    if workers := min(workers, _shared_memory() // (6 * batch)):
        faces.share()
    return DataLoader(
        faces,
        batch_size,
        sampler=_Shuffled(faces) if shuffled else None,
        num_workers=workers,
        drop_last=shuffled,
        pin_memory=hardware.device().type == "cuda",
        # forked anew each epoch they would make Linux copy the memory of the training
        persistent_workers=workers > 0,
    )
