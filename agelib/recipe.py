"""Every choice of one training run in one frozen dataclass; the named recipes."""

import os
from dataclasses import asdict, dataclass, fields, replace

import pandas as pd
import torch

from agelib import env


@dataclass(frozen=True)
class Recipe:
    """The choices of one training run.

    Ages and `label_std` are years, `rotation` is degrees, `zoom`, `shift` and `light`
    are shares (0.1 is ten percent), `dropout`, `flip`, `grayscale` and `erasing`
    probabilities.
    """

    name: str
    backbone: str
    image_size: int
    epochs: int
    # fewer, if so many in a row are no better than the best before them
    patience: int = 0
    # faces are learned at this size at first, growing to image_size by the last epoch
    first_size: int = 0
    # the stem and so many stages keep their ImageNet weights: no gradients, less time
    frozen_stages: int = 0
    dropout: float = 0.0
    batch_size: int = 64
    # "distribution" predicts a share for each age 0..100, "regression" one number
    head: str = "distribution"
    # width of the Gaussian put around each true age, and the weight of an added L1
    label_std: float = 1.5
    l1_weight: float = 0.1
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    schedule: str = "cosine"
    warmup_epochs: float = 0.3
    step_epochs: int = 7
    ema_decay: float = 0.998
    flip: float = 0.5
    rotation: float = 12.0
    zoom: float = 0.1
    shift: float = 0.05
    light: float = 0.2
    grayscale: float = 0.1
    erasing: float = 0.0
    # so many views of a face are predicted and averaged
    views_at_test: int = 3
    # one of so many folds is held out for validation
    folds: int = 10
    seed: int = 0

    def size_in(self, epoch: int) -> int:
        """Pixels a side of the faces learned in an epoch, counted from 0.

        Small faces first, after EfficientNetV2's progressive learning (Tan and Le,
        2021): an epoch of them takes a fraction of the time.
        """
        if not self.first_size:
            return self.image_size
        missing = (self.image_size - self.first_size) * (1 - (epoch + 1) / self.epochs)
        return self.image_size - 32 * round(missing / 32)


_ORIGINAL = Recipe(
    "original",
    "tf_efficientnet_b4.ns_jft_in1k",
    image_size=224,
    epochs=35,
    batch_size=8,
    head="regression",
    label_std=0.0,
    l1_weight=1.0,
    optimizer="adam",
    learning_rate=1e-3,
    weight_decay=0.0,
    schedule="step",
    warmup_epochs=0,
    ema_decay=0.0,
    rotation=0.0,
    zoom=0.0,
    shift=0.0,
    light=0.0,
    grayscale=0.0,
    views_at_test=1,
)
_QUICK = Recipe(
    "quick",
    "tf_efficientnet_lite0.in1k",
    image_size=128,
    epochs=3,
    frozen_stages=3,
)
# a longer training sees each face more often, and can bear that it changes more
_LONGER = {
    "epochs": 30,
    "patience": 4,
    "first_size": 96,
    "dropout": 0.2,
    "ema_decay": 0.999,
    "rotation": 15.0,
    "zoom": 0.15,
    "shift": 0.06,
    "light": 0.3,
    "erasing": 0.3,
}
_CPU = replace(_QUICK, name="cpu", image_size=192, **_LONGER)
_GPU = Recipe(
    "gpu",
    "tf_efficientnetv2_s.in1k",
    image_size=288,
    learning_rate=1e-3,
    warmup_epochs=1,
    **_LONGER,
)
# drawn faces look less like ImageNet's photos than real ones: all stages learn
_SAMPLE = replace(
    _QUICK,
    name="sample",
    image_size=96,
    epochs=12,
    batch_size=16,
    frozen_stages=0,
    folds=4,
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        _ORIGINAL,
        _GPU,
        replace(_GPU, name="gpu_jft", backbone=_ORIGINAL.backbone),
        _CPU,
        _QUICK,
        _SAMPLE,
    )
}


def get(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in RECIPES:
        raise ValueError(f"No recipe {name!r}: choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]


def default(n_faces: int, device: torch.device) -> Recipe:
    """The recipe that fits the data and the hardware.

    AGELIB_RECIPE names another. Otherwise fewer than 1,000 faces take `sample`, a GPU
    takes `gpu`, and a CPU takes `quick`: ten minutes on two cores. Where weights are
    attached, but not those of `gpu`, a GPU takes `cpu`.
    """
    fitting = "gpu" if device.type == "cuda" else "quick"
    attached = env.weights_folder()
    if fitting == "gpu" and attached and not any(attached.glob(f"{_GPU.backbone}.*")):
        fitting = "cpu"
    return get(
        os.environ.get("AGELIB_RECIPE") or ("sample" if n_faces < 1000 else fitting)
    )


def compare(*recipes: Recipe) -> pd.DataFrame:
    """The recipes side by side: one row a choice, one column a recipe."""
    choices = [field.name for field in fields(Recipe) if field.name != "name"]
    columns = {r.name: [str(asdict(r)[c]) for c in choices] for r in recipes}
    return pd.DataFrame(columns, index=pd.Index(choices, name="choice"))
