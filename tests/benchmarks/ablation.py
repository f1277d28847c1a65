"""Which choices lower the error: ablation.py DATASET OUT [--runs VARIANT/SEED ...].

Each run trains on the same nine tenths of the labelled faces and differs from `base`
in one choice: `base` is the recipe `quick` with the first three stages frozen, about
six minutes on two cores. Runs that are complete in the folder OUT are not repeated.
Without --runs, writes `ablation.csv` into OUT.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap
from torch.nn.functional import cross_entropy, one_hot

from agelib import data, loading, loop, metrics, model, recipe, train
from agelib.recipe import Recipe

BASE = replace(recipe.get("quick"), name="base", frozen_stages=3)
# the first solution's choices, but for what costs time
ORIGINAL = replace(
    recipe.get("original"),
    **{
        choice: getattr(BASE, choice)
        for choice in ("backbone", "image_size", "epochs", "batch_size")
    },
    step_epochs=1,
)
AGES = torch.arange(model.N_AGES, dtype=torch.float32)


# -- losses that did not make it into the package --------------------------------------


def two_hot(outputs: torch.Tensor, age: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    age = age.clamp(max=model.N_AGES - 1)
    target = (1 - (AGES - age[:, None]).abs()).clamp(min=0)
    return cross_entropy(outputs, target)


def one_hot_only(outputs: torch.Tensor, age: torch.Tensor, recipe: Recipe):
    return cross_entropy(outputs, age.clamp(max=model.N_AGES - 1).round().long())


def mean_variance(outputs: torch.Tensor, age: torch.Tensor, recipe: Recipe):
    """Pan et al. (2018): cross-entropy, 0.2 of the mean's and 0.05 of the variance."""
    age = age.clamp(max=model.N_AGES - 1)
    p = outputs.softmax(1)
    mean = (p * AGES).sum(1)
    variance = (p * (AGES - mean[:, None]).square()).sum(1)
    error = (mean - age).square().mean() / 2
    classes = cross_entropy(outputs, age.round().long())
    return classes + 0.2 * error + 0.05 * variance.mean()


def ordinal(outputs: torch.Tensor, age: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Cross-entropy of each 'older than k?' (Niu et al. 2016), over one softmax."""
    older = (1 - outputs.softmax(1).cumsum(1)[:, :-1]).clamp(1e-6, 1 - 1e-6)
    target = (age[:, None] > AGES[:-1] + 0.5).float()
    loss = torch.nn.functional.binary_cross_entropy(older, target, reduction="none")
    return loss.sum(1).mean()


def ranked(outputs: torch.Tensor, age: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """The cross-entropy to soft labels plus a tenth of the ranked probability score."""
    older = 1 - outputs.softmax(1).cumsum(1)[:, :-1]
    target = (age[:, None] > AGES[:-1] + 0.5).float()
    score = (older - target).square().sum(1).mean()
    return _LOSS(outputs, age, replace(recipe, l1_weight=0.0)) + 0.1 * score


_LOSS = loop.age_loss


def loss(function: Callable) -> Callable:
    return lambda: setattr(loop, "age_loss", function)


def weighted(power: float) -> None:
    """Rare ages count more: the inverse of an age's frequency, to some power."""
    counts = torch.ones(model.N_AGES)

    def fit(given: Recipe, training: pd.DataFrame, *rest):
        ages = torch.tensor(training["age"].to_numpy()).clamp(max=100).long()
        counts.copy_(one_hot(ages, model.N_AGES).float().sum(0).clamp(min=20))
        return _FIT(given, training, *rest)

    def weighted_loss(outputs, age, recipe):
        weight = counts[age.clamp(max=100).long()] ** -power
        each = torch.stack(
            [_LOSS(o[None], a[None], recipe) for o, a in zip(outputs, age, strict=True)]
        )
        return (each * weight / weight.mean()).mean()

    train.fit, loop.age_loss = fit, weighted_loss


_FIT = train.fit


# -- models and images -----------------------------------------------------------------


def layer_decay(rate: float) -> None:
    create = loop.create_optimizer_v2
    loop.create_optimizer_v2 = lambda model, **options: create(
        model.backbone, layer_decay=rate, **options
    )


def randaugment(magnitude: int) -> None:
    """timm's RandAugment of two operations, after the recipe's own changes."""
    import random

    from timm.data import rand_augment_transform

    change = rand_augment_transform(f"rand-m{magnitude}-n2-mstd0.5", {})
    augment = loading.augment

    def augment_more(image, size, recipe, rng):
        random.seed(int(rng.integers(2**31)))
        return change(augment(image, size, recipe, rng))

    loading.augment = augment_more


def mixup(alpha: float) -> None:
    """Pairs of faces blended, their losses too (Zhang et al. 2018)."""
    update = loop.Loop.update

    def blended(self, images, age, rows):
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.updates + 500_000)
        share = torch.distributions.Beta(alpha, alpha).sample()
        mixed = images.float() * share + images.float().flip(0) * (1 - share)
        loop.age_loss = lambda outputs, age, recipe: (
            share * _LOSS(outputs, age, recipe)
            + (1 - share) * _LOSS(outputs, age.flip(0), recipe)
        )
        update(self, mixed, age, rows)

    loop.Loop.update = blended


# -- labels ----------------------------------------------------------------------------


def training_faces(change: Callable[[pd.DataFrame, Path], pd.DataFrame]) -> Callable:
    """Trains on other faces or other ages; the validation faces stay as they are."""

    def fit(given: Recipe, training: pd.DataFrame, validation: pd.DataFrame, run: Path):
        return _FIT(given, change(training, run.parent), validation, run)

    return lambda: setattr(train, "fit", fit)


def without_disagreeing_copies(faces: pd.DataFrame, out: Path) -> pd.DataFrame:
    return faces[faces.groupby("digest")["age"].transform("nunique") == 1]


def copies_agree(faces: pd.DataFrame, out: Path) -> pd.DataFrame:
    return faces.assign(age=faces.groupby("digest")["age"].transform("median"))


def without_doubtful_labels(
    faces: pd.DataFrame, out: Path, share: float
) -> pd.DataFrame:
    """Leaves out the share of labels that models of the other faces doubt the most.

    Three models, each of two thirds of the faces, predict the other third; cleanlab
    (Zhou et al. 2023) scores the labels.
    """
    from cleanlab.regression.rank import get_label_quality_scores

    predicted = []
    for part in range(3):
        third = faces["fold"] % 3 == part
        run = out / f"out_of_fold-{part}"
        _FIT(replace(BASE, name=run.name), faces[~third], faces[third], run)
        predicted.append(_read(run / "validation.csv"))
    predicted = pd.concat(predicted).set_index("path").loc[faces["path"]]
    score = get_label_quality_scores(
        faces["age"].to_numpy(float), predicted["pred_age"].to_numpy()
    )
    return faces[score > np.quantile(score, share)]


# -- the runs --------------------------------------------------------------------------

# a variant is a recipe, or a recipe and what to change before training it
VARIANTS: dict[str, Recipe | tuple[Recipe, Callable]] = {
    "base": BASE,
    "original": ORIGINAL,
    "original but for augmentation": replace(
        ORIGINAL,
        **{
            choice: getattr(BASE, choice)
            for choice in ("rotation", "zoom", "shift", "light", "grayscale")
        },
    ),
    # what is predicted, and its loss
    "L1 regression": replace(BASE, head="regression"),
    "label_std 1": replace(BASE, label_std=1.0),
    "label_std 2.5": replace(BASE, label_std=2.5),
    "label_std 4": replace(BASE, label_std=4.0),
    "one-hot labels": (BASE, loss(one_hot_only)),
    "two-hot labels": (BASE, loss(two_hot)),
    "mean-variance loss": (BASE, loss(mean_variance)),
    "ordinal loss": (BASE, loss(ordinal)),
    "ranked probability": (BASE, loss(ranked)),
    "l1_weight 0": replace(BASE, l1_weight=0.0),
    "l1_weight 0.5": replace(BASE, l1_weight=0.5),
    # how it is learned
    "learning rate 1e-3": replace(BASE, learning_rate=1e-3),
    "learning rate 4e-3": replace(BASE, learning_rate=4e-3),
    "step schedule": replace(BASE, schedule="step", step_epochs=1),
    "no warm-up": replace(BASE, warmup_epochs=0.0),
    "weight decay 0": replace(BASE, weight_decay=0.0),
    "weight decay 0.1": replace(BASE, weight_decay=0.1),
    "adam": replace(BASE, optimizer="adam", weight_decay=0.0),
    "no EMA": replace(BASE, ema_decay=0.0),
    "EMA 0.99": replace(BASE, ema_decay=0.99),
    "layer decay 0.85": (BASE, partial(layer_decay, 0.85)),
    "all stages learn": replace(BASE, frozen_stages=0),
    "dropout 0.2": replace(BASE, dropout=0.2),
    "drop path 0.1": replace(BASE, drop_path=0.1),
    # the images
    "flip only": replace(
        BASE, rotation=0.0, zoom=0.0, shift=0.0, light=0.0, grayscale=0.0
    ),
    "no rotation": replace(BASE, rotation=0.0),
    "no zoom, shift": replace(BASE, zoom=0.0, shift=0.0),
    "no light": replace(BASE, light=0.0),
    "no grayscale": replace(BASE, grayscale=0.0),
    "erasing 0.3": replace(BASE, erasing=0.3),
    "mixup 0.2": (BASE, partial(mixup, 0.2)),
    "RandAugment": (BASE, partial(randaugment, 5)),
    "128 px": replace(BASE, image_size=128),
    "from 64 px": replace(BASE, first_size=64),
    # the labels
    "rare ages, root": (BASE, partial(weighted, 0.5)),
    "no disagreeing copies": (BASE, training_faces(without_disagreeing_copies)),
    "copies agree": (BASE, training_faces(copies_agree)),
    "no doubtful 2%": (
        BASE,
        training_faces(partial(without_doubtful_labels, share=0.02)),
    ),
}


def run(name: str, seed: int, dataset: Path, out: Path) -> None:
    chosen, change = VARIANTS[name], None
    if isinstance(chosen, tuple):
        chosen, change = chosen
    if change:
        change()
    faces = data.split(data.read_train(dataset), 10, seed=0)
    held_out = faces["fold"] == 0
    chosen = replace(chosen, name=name, seed=seed)
    train.fit(chosen, faces[~held_out], faces[held_out], folder(out, name, seed))


def folder(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(' ', '_')}-{seed}"


def table(out: Path) -> pd.DataFrame:
    """One row a complete run, beside `base` with the same seed on the same faces."""
    rows = []
    for name, chosen in VARIANTS.items():
        for seed in range(9):
            done, base = folder(out, name, seed), folder(out, "base", seed)
            history = _read(done / "history.csv")
            epochs = (chosen[0] if isinstance(chosen, tuple) else chosen).epochs
            if len(history) < epochs or not (base / "validation.csv").is_file():
                continue
            predicted = _read(done / "validation.csv")
            difference = _absolute(predicted) - _absolute(
                _read(base / "validation.csv")
            )
            interval = bootstrap((difference,), np.mean, n_resamples=2000, rng=0)
            low, high = interval.confidence_interval
            summary = metrics.summary(predicted)
            rows.append(
                {
                    "variant": name,
                    "seed": seed,
                    "epochs": epochs,
                    "minutes": history["seconds"].sum() / 60,
                    **summary[["mae", "low", "high", "within_5"]],
                    "against_base": difference.mean(),
                    "against_base_low": low,
                    "against_base_high": high,
                }
            )
    return pd.DataFrame(rows).round(3)


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path) if path.is_file() else pd.DataFrame()


def _absolute(predicted: pd.DataFrame) -> np.ndarray:
    return np.abs(metrics.errors(predicted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", nargs="*", default=[])
    parser.add_argument("--one", action="store_true")
    asked = parser.parse_args()
    for text in asked.runs:
        name, seed = text.rsplit("/", 1)
        if asked.one:
            run(name, int(seed), asked.dataset, asked.out)
        else:
            # a process each: a variant changes the package it runs in
            again = [sys.executable, __file__, asked.dataset, asked.out]
            subprocess.run([*again, "--one", "--runs", text], check=True)
    if not asked.one:
        runs = table(asked.out)
        runs.to_csv(asked.out / "ablation.csv", index=False)
        print(runs.to_string())


if __name__ == "__main__":
    main()
