"""Serve the faces of a table to a model: decode, resize, augment, batch."""

import os

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.transforms import v2

from agelib.data import read_image
from agelib.recipe import Recipe


def augmentation(recipe: Recipe) -> v2.Compose:
    """The recipe's random changes of one image."""
    zoom, shift = (1 - recipe.zoom, 1 + recipe.zoom), (recipe.shift, recipe.shift)
    steps: list[v2.Transform] = [v2.RandomHorizontalFlip(recipe.flip)]
    if recipe.rotation or recipe.zoom or recipe.shift:
        bilinear = v2.InterpolationMode.BILINEAR
        steps.append(v2.RandomAffine(recipe.rotation, shift, zoom, None, bilinear))
    if recipe.light:
        steps.append(v2.ColorJitter(recipe.light, recipe.light))
    if recipe.grayscale:
        steps.append(v2.RandomGrayscale(recipe.grayscale))
    return v2.Compose(steps)


class Faces(Dataset):
    """Items are (image uint8 (3, size, size), age in years or nan, row number).

    The random changes of a face depend on the seed, the epoch and the row alone: they
    are the same whichever process loads it, and after a resume.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        size: int,
        augment: v2.Transform | None = None,
        seed: int = 0,
    ):
        # bytes in one array: workers share it, where a list of str would be copied
        self.paths = np.array([os.fsencode(p) for p in table["path"]])
        self.ages = table.get("age", pd.Series(np.nan, table.index)).to_numpy("float32")
        self.size, self.augment, self.seed, self.epoch = size, augment, seed, 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, np.float32, int]:
        image = read_image(os.fsdecode(self.paths[row]))
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if self.augment is not None:
            with torch.random.fork_rng(devices=[]):
                key = np.random.SeedSequence((self.seed, self.epoch, row))
                # not torch.manual_seed, which would reseed a GPU's dropout as well
                torch.default_generator.manual_seed(int(key.generate_state(1)[0]))
                image = self.augment(image)
        return v2.functional.pil_to_tensor(image), self.ages[row], row


def loader(
    faces: Faces, batch_size: int, workers: int = 0, shuffle: bool = False
) -> DataLoader:
    """Batches of faces: in order, or shuffled anew each epoch and whole batches only.

    The order of an epoch follows `faces.seed` and the loader's `set_epoch` alone.
    """
    sampler = DistributedSampler(faces, 1, 0, shuffle, faces.seed) if shuffle else None
    return DataLoader(
        faces,
        min(batch_size, len(faces)),
        sampler=sampler,
        # starting a worker takes a second or two, longer than a few faces take
        num_workers=workers if len(faces) >= 1000 else 0,
        drop_last=shuffle,
        pin_memory=torch.cuda.is_available(),
    )
