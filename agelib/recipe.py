"""Every choice of one training run in one frozen dataclass; the named recipes."""

import json
import os
import reprlib
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace

import pandas as pd
import torch
from timm.optim import list_optimizers

from agelib import env

# how many ways `loading.VIEWS` knows to look at a face
MOST_VIEWS = 6
# the least and the most that a choice may be
_RANGES = {
    "image_size": (32, 1024),
    "epochs": (1, 10_000),
    "patience": (0, 10_000),
    "first_size": (0, 1024),
    "grown_by": (0.01, 1),
    # `model.create` knows how many the backbone has
    "frozen_stages": (0, 100),
    "dropout": (0, 0.99),
    "batch_size": (1, 100_000),
    "label_std": (0, 50),
    "l1_weight": (0, 1000),
    "learning_rate": (1e-15, 100),
    "weight_decay": (0, 100),
    "warmup_epochs": (0, 10_000),
    "step_epochs": (1, 10_000),
    "ema_decay": (0, 0.999999),
    "flip": (0, 1),
    "rotation": (0, 180),
    "zoom": (0, 0.9),
    "shift": (0, 1),
    "light": (0, 1),
    "grayscale": (0, 1),
    "erasing": (0, 1),
    "degraded": (0, 1),
    "views_at_test": (1, MOST_VIEWS),
    "folds": (2, 10_000),
    "seed": (0, 2**32 - 1),
}
_WORDS = {
    "head": ("distribution", "regression"),
    # without those that other packages bring, that want second derivatives, or whose
    # state JSON can't hold
    "optimizer": tuple(
        name
        for name in list_optimizers()
        if not name.startswith(("bnb", "fused", "adahessian", "kron"))
    ),
    # of timm's those that go by steps, with no further choices
    "schedule": ("cosine", "tanh", "step"),
}


@dataclass(frozen=True)
class Recipe:
    """The choices of one training run.

    Ages and `label_std` are years, `rotation` is degrees, `zoom`, `shift` and `light`
    are shares (0.1 is ten percent), `dropout`, `flip`, `grayscale`, `erasing` and
    `degraded` probabilities.

    Raises:
        ValueError: if a choice can't be, naming it, its value and what it should be.
    """

    name: str
    backbone: str
    image_size: int
    epochs: int
    # it ends early once this many in a row are no better than the best; 0: never
    patience: int = 0
    # faces are learned at this size at first, growing to image_size until this share of
    # the epochs is over
    first_size: int = 0
    grown_by: float = 1.0
    # the stem and this many stages keep their ImageNet weights: no gradients, less time
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
    # the probability that a face is learned from a bad photo: `degrade.at_random`
    degraded: float = 0.0
    # how many views of a face are predicted, and averaged
    views_at_test: int = 3
    # one of this many folds is held out for validation
    folds: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not _possible(field.name, field.type, value):
                wanted = _wanted(field.name, field.type)
                self._refuse(field.name, wanted)
        if self.first_size and not 32 <= self.first_size <= self.image_size:
            self._refuse("first_size", f"0, or from 32 to {self.image_size}")
        if self.head == "distribution" and self.label_std < 0.01:
            self._refuse("label_std", "at least 0.01 years with this head")

    def _refuse(self, choice: str, wanted: str) -> None:
        value = reprlib.repr(getattr(self, choice))
        raise ValueError(
            f"recipe {reprlib.repr(self.name)}: {choice} is {value}, but should be "
            f"{wanted}"
        )

    def is_over(self, errors: Sequence[float]) -> bool:
        """Whether a run is whose epochs had these validation errors, in years.

        All epochs are done, or the last `patience` gained nothing.
        """
        n = self.patience
        if 0 < n < len(errors) and min(errors[-n:]) >= min(errors[:-n]):
            return True
        return len(errors) == self.epochs

    def size_in(self, epoch: int) -> int:
        """Pixels a side of the faces learned in an epoch, counted from 0.

        Small faces first, after EfficientNetV2's progressive learning (Tan and Le,
        2021): an epoch of them takes a fraction of the time.
        """
        if not self.first_size:
            return self.image_size
        grown = min(1.0, (epoch + 1) / (self.grown_by * self.epochs))
        missing = (self.image_size - self.first_size) * (1 - grown)
        return max(self.first_size, self.image_size - 32 * round(missing / 32))


def _possible(choice: str, kind: type, value: object) -> bool:
    # a bool is an int for Python, and a whole number will do for any number
    kinds = (int, float) if kind is float else kind
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    if choice in _RANGES:
        least, most = _RANGES[choice]
        return least <= value <= most
    if choice in _WORDS:
        return value in _WORDS[choice]
    return _is_file_name(value)


def _is_file_name(name: str) -> bool:
    """Whether it can name a file on every system, with room for an ending."""
    return (
        name.isprintable()
        and 0 < len(name.encode()) <= 100
        and not set(name) & set('/\\:*?"<>|')
        and not name.startswith((".", " "))
        and not name.endswith((".", " "))
    )


def _wanted(choice: str, kind: type) -> str:
    if choice in _RANGES:
        number = "a whole number" if kind is int else "a number"
        return "{} from {} to {}".format(number, *_RANGES[choice])
    if words := _WORDS.get(choice):
        few = len(words) < 10
        return f"one of {', '.join(words)}" if few else f"an {choice} that timm brings"
    return "a name that a file can have, of at most 100 letters"


def from_dict(choices: object) -> Recipe:
    """The recipe whose choices a file holds, as `dataclasses.asdict` gives them.

    Choices that have a default may be missing, as from a file of an earlier version.

    Raises:
        ValueError: if it is no recipe. Its sentence goes behind the file's name.
    """
    if not isinstance(choices, dict):
        raise ValueError(f"it is no recipe, but {reprlib.repr(choices)}")
    known = fields(Recipe)
    needed = {field.name for field in known if field.default is MISSING}
    if missing := needed - choices.keys():
        raise ValueError(f"its recipe lacks {', '.join(sorted(missing))}")
    if unknown := choices.keys() - {field.name for field in known}:
        names = ", ".join(sorted(map(reprlib.repr, unknown))[:3])
        raise ValueError(f"its recipe has choices that this agelib lacks: {names}")
    return Recipe(**choices)


def from_json(text: str) -> Recipe:
    """The recipe that a text in JSON tells.

    Raises:
        ValueError: if it is none. Its sentence goes behind the file's name.
    """
    try:
        return from_dict(json.loads(text, object_pairs_hook=_once))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"its recipe is not in JSON: {error}") from error


def _once(pairs: list[tuple[str, object]]) -> dict:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("its recipe tells a choice twice")
    return dict(pairs)


_ORIGINAL = Recipe(
    "original",
    "tf_efficientnet_b4.ns_jft_in1k",
    image_size=224,
    epochs=35,
    batch_size=8,
    head="regression",
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
    "grown_by": 0.8,
    "dropout": 0.2,
    "ema_decay": 0.999,
    "rotation": 20.0,
    "zoom": 0.15,
    "shift": 0.06,
    "light": 0.3,
    "erasing": 0.3,
    "degraded": 0.3,
}
_CPU = replace(_QUICK, name="cpu", image_size=160, frozen_stages=0, **_LONGER)
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
    columns = {r.name: [_told(r, choice) for choice in choices] for r in recipes}
    return pd.DataFrame(columns, index=pd.Index(choices, name="choice"))


def _told(recipe: Recipe, choice: str) -> str:
    """A choice as text; empty where another choice makes it meaningless."""
    needs = {"label_std": "distribution", "l1_weight": "distribution"}
    needs["step_epochs"] = "step"
    used = needs.get(choice) in (None, recipe.head, recipe.schedule)
    return str(getattr(recipe, choice)) if used else ""
