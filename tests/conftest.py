"""Small datasets and models that the tests share."""

import dataclasses
import gc
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from agelib import data, model
from agelib.loop import Loop
from agelib.recipe import Recipe

matplotlib.use("Agg")

# timm's own model for tests: 0.4 M parameters
TINY = Recipe(
    "tiny", "test_efficientnet.r160_in1k", image_size=32, epochs=3, batch_size=8
)


# tiny networks gain nothing from more, and on a busy machine they wait for each other
torch.set_num_threads(1)
# a training ends with a collection of garbage, which needs half a second to pass by all
# that was imported
gc.freeze()


def photos(n: int, size: int = 32) -> torch.Tensor:
    """Noise for a network, uint8 (n, 3, size, size), the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), generator=generator).byte()


def untrained(recipe: Recipe = TINY, seed: int = 0) -> model.AgeModel:
    """The recipe's network with weights that follow the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model.create(recipe, pretrained=False).eval()


def that_learns_the_same(loop: type[Loop]) -> type[Loop]:
    """The loop under the name of the usual one, whose runs go on with it."""
    loop.__name__ = Loop.__name__
    return loop


def stopping(step: int, error: BaseException) -> type[Loop]:
    """A training that raises an error as a step begins."""

    @that_learns_the_same
    class Stopping(Loop):
        def update(self, *batch: torch.Tensor) -> None:
            if self.updates == step:
                raise error
            super().update(*batch)

    return Stopping


def write_faces(folder: Path, ages: list[int]) -> list[str]:
    """'Faces' whose light tells their age, one file a face; returns the file names."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(ages))
    names = [f"image_{i}.jpg" for i in range(len(ages))]
    for name, age in zip(names, ages, strict=True):
        pixels = rng.normal(40 + 2 * age, 8, (40, 40, 3)).clip(0, 255).astype("uint8")
        Image.fromarray(pixels).save(folder / name)
    return names


def write_dataset(folder: Path) -> Path:
    """40 labelled and 5 unlabelled faces in the competition's layout."""
    ages = [1 + 2 * i for i in range(40)]
    names = write_faces(folder / "train", ages)
    pd.DataFrame({"file_id": names, "age": ages}).to_csv(
        folder / "train.csv", index=False
    )
    names = write_faces(folder / "test", [5, 25, 45, 65, 85])
    pd.DataFrame({"file_id": names, "age": 0}).to_csv(
        folder / "submission.csv", index=False
    )
    return folder


def write_weights(folder: Path) -> Path:
    """A file of 'pretrained' weights for TINY."""
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = timm.create_model(TINY.backbone)
    save_file(backbone.state_dict(), folder / f"{TINY.backbone}.safetensors")
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "faces")


@pytest.fixture
def tables(dataset: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The dataset's training and validation tables."""
    return data.hold_out(data.read_train(dataset), folds=4)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe of seconds, its 'pretrained' weights in a local file."""
    monkeypatch.setenv("AGELIB_WEIGHTS", str(write_weights(tmp_path / "weights")))
    return dataclasses.replace(TINY)
