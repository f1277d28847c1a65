"""Small datasets and models that the tests share."""

import dataclasses
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from agelib import data
from agelib.recipe import Recipe

matplotlib.use("Agg")

# timm's own model for tests: 0.4 M parameters
TINY = Recipe(
    "tiny", "test_efficientnet.r160_in1k", image_size=32, epochs=3, batch_size=8
)


# tiny networks gain nothing from more, and on a busy machine they wait for each other
torch.set_num_threads(1)


def write_faces(folder: Path, ages: list[int]) -> list[str]:
    """'Faces' whose light tells their age, one file a face; returns the file names."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(ages))
    names = [f"image_{i}.jpg" for i in range(len(ages))]
    for name, age in zip(names, ages, strict=True):
        pixels = rng.normal(40 + 2 * age, 8, (40, 40, 3)).clip(0, 255).astype("uint8")
        Image.fromarray(pixels).save(folder / name)
    return names


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """40 labelled and 5 unlabelled faces in the competition's layout."""
    folder = tmp_path / "faces"
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


@pytest.fixture
def tables(dataset: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The dataset's training and validation tables."""
    table = data.split(data.read_train(dataset), folds=4)
    held_out = table["fold"] == 0
    return table[~held_out], table[held_out]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe of seconds, its 'pretrained' weights in a local file."""
    weights = tmp_path / "weights"
    weights.mkdir()
    backbone = timm.create_model(TINY.backbone)
    save_file(backbone.state_dict(), weights / f"{TINY.backbone}.safetensors")
    monkeypatch.setenv("AGELIB_WEIGHTS", str(weights))
    return dataclasses.replace(TINY)
