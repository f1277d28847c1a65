"""Which choices lower the error: ablation.py DATASET OUT base/0 VARIANT/SEED ...

Each run trains on the same nine tenths of the labelled faces and differs from `base`
in one choice: `base` is the recipe `quick` at 96 px, six minutes on two cores. Writes
`ablation_ages.csv`, what each run says of the validation faces, and `ablation.csv`, its
error beside that of `base` with the same seed. Runs that are in the tables are not
repeated.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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

BASE = replace(recipe.get("quick"), image_size=96)
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


def wide_where_heaped(outputs: torch.Tensor, age: torch.Tensor, recipe: Recipe):
    """Labels of 26 and the multiples of five, which are too frequent, say less."""
    heaped = (age == 26) | (age % 5 == 0)
    losses = [
        len(part) * _LOSS(outputs[part], age[part], replace(recipe, label_std=std))
        for chosen, std in ((heaped, 3.0), (~heaped, recipe.label_std))
        if len(part := chosen.nonzero()[:, 0])
    ]
    return sum(losses) / len(age)


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


def without_doubtful_labels(
    faces: pd.DataFrame, out: Path, share: float
) -> pd.DataFrame:
    """Leaves out the share of labels that models of the other faces doubt the most.

    Three models, each of two thirds of the faces, predict the other third; cleanlab
    (Zhou et al. 2023) scores the labels. The three are kept and serve every seed: two
    seeds of this variant must not train at the same time.
    """
    from cleanlab.regression.rank import get_label_quality_scores

    predicted = []
    for part in range(3):
        third = faces["fold"] % 3 == part
        run = out / f"out_of_fold-{part}"
        _FIT(replace(BASE, name=run.name), faces[~third], faces[third], run)
        predicted.append(pd.read_csv(run / "validation.csv"))
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
    # what is predicted, and its loss
    "L1 regression": replace(BASE, head="regression"),
    "label_std 1": replace(BASE, label_std=1.0),
    "label_std 2.5": replace(BASE, label_std=2.5),
    "one-hot labels": (BASE, loss(one_hot_only)),
    "two-hot labels": (BASE, loss(two_hot)),
    "mean-variance loss": (BASE, loss(mean_variance)),
    "ordinal loss": (BASE, loss(ordinal)),
    "l1_weight 0": replace(BASE, l1_weight=0.0),
    # how it is learned
    "adam": replace(BASE, optimizer="adam", weight_decay=0.0),
    "step schedule": replace(BASE, schedule="step", step_epochs=1),
    "no warm-up": replace(BASE, warmup_epochs=0.0),
    "learning rate 1e-3": replace(BASE, learning_rate=1e-3),
    "weight decay 0.1": replace(BASE, weight_decay=0.1),
    "layer decay 0.85": (BASE, partial(layer_decay, 0.85)),
    "no EMA": replace(BASE, ema_decay=0.0),
    "all stages learn": replace(BASE, frozen_stages=0),
    # the images
    "flip only": replace(
        BASE, rotation=0.0, zoom=0.0, shift=0.0, light=0.0, grayscale=0.0
    ),
    "no rotation, zoom, shift": replace(BASE, rotation=0.0, zoom=0.0, shift=0.0),
    "no light, grayscale": replace(BASE, light=0.0, grayscale=0.0),
    "erasing 0.3": replace(BASE, erasing=0.3),
    "mixup 0.2": (BASE, partial(mixup, 0.2)),
    "RandAugment": (BASE, partial(randaugment, 5)),
    "128 px": recipe.get("quick"),
    "from 64 px": replace(BASE, first_size=64),
    # the labels
    "wide at 26 and fives": (BASE, loss(wide_where_heaped)),
    "rare ages, root": (BASE, partial(weighted, 0.5)),
    "no disagreeing copies": (BASE, training_faces(without_disagreeing_copies)),
    "no doubtful 2%": (
        BASE,
        training_faces(partial(without_doubtful_labels, share=0.02)),
    ),
}


def train_one(name: str, seed: int, dataset: Path, run: Path) -> None:
    chosen, change = VARIANTS[name], None
    if isinstance(chosen, tuple):
        chosen, change = chosen
    if change:
        change()
    faces = data.split(data.read_train(dataset))
    held_out = faces["fold"] == 0
    chosen = replace(chosen, name=name, seed=seed)
    train.fit(chosen, faces[~held_out], faces[held_out], run)


def collect(run: Path, label: str, out: Path) -> None:
    """Adds a complete run's validation ages and its time to the tables in OUT."""
    predicted = pd.read_csv(run / "validation.csv")
    ages = _read(out / "ablation_ages.csv", predicted[["file_id", "age"]])
    runs = _read(out / "ablation.csv", pd.DataFrame())
    if ages["file_id"].tolist() != predicted["file_id"].tolist():
        raise ValueError(f"{out / 'ablation_ages.csv'} is of other validation faces.")
    history = pd.read_csv(run / "history.csv")
    row = {
        "run": label,
        "epochs": len(history),
        "minutes": round(history["seconds"].sum() / 60, 1),
    }
    ages[label] = predicted["pred_age"].round(2)
    ages.to_csv(out / "ablation_ages.csv", index=False)
    pd.concat([runs, pd.DataFrame([row])]).to_csv(out / "ablation.csv", index=False)


def judge(ages: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs' errors, and how far from that of `base` with the same seed.

    Each with its 95% bootstrap interval, over the faces; of the difference, over the
    same faces. `of_all_seeds` is a variant's difference averaged over its seeds.
    """
    error = ages[runs["run"]].sub(ages["age"], axis=0).abs()
    variant = runs["run"].str.rsplit("/", n=1).str[0].set_axis(runs["run"])
    base = "base/" + runs["run"].str.rsplit("/", n=1).str[1]
    further = error - error[base].set_axis(error.columns, axis=1)
    of_all_seeds = further.T.groupby(variant).mean().T[variant]
    told = pd.DataFrame(
        metrics.summary(ages[["age"]].assign(pred_age=ages[run])) for run in error
    )
    parts = (
        runs[["run", "epochs", "minutes"]],
        told[["mae", "low", "high", "within_5"]],
        mean_interval(further).add_prefix("against_base"),
        mean_interval(of_all_seeds).add_prefix("of_all_seeds"),
    )
    return pd.concat([part.reset_index(drop=True) for part in parts], axis=1).round(3)


def mean_interval(columns: pd.DataFrame) -> pd.DataFrame:
    """One row a column: its mean, and the ends of that mean's bootstrap interval."""
    found = bootstrap(
        (columns.to_numpy(),), np.mean, n_resamples=2000, method="percentile", rng=0
    ).confidence_interval
    return pd.DataFrame(
        {"": columns.mean().to_numpy(), "_low": found.low, "_high": found.high}
    )


def _read(path: Path, otherwise: pd.DataFrame) -> pd.DataFrame:
    return pd.read_csv(path) if path.is_file() else otherwise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="*", metavar="VARIANT/SEED")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="trainings at a time, which share the cores (one thread each trains 1.16 "
        "times as many faces a second as one training with two)",
    )
    # how the script calls itself
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    for label in asked.runs:
        name, _, seed = label.rpartition("/")
        if name not in VARIANTS or not seed.isdigit():
            parser.error(
                f"no run {label!r}: VARIANT/SEED, as base/0. The variants: "
                f"{'; '.join(VARIANTS)}."
            )
    run_of = {
        label: asked.out / "runs" / label.replace("/", "-") for label in asked.runs
    }
    if asked.one:
        for label, run in run_of.items():
            name, seed = label.rsplit("/", 1)
            train_one(name, int(seed), asked.dataset, run)
        return
    # a process each: a variant changes the package it runs in
    again = [sys.executable, __file__, asked.dataset, asked.out]
    threads = str(max(1, torch.get_num_threads() // asked.jobs))

    def train_apart(label: str) -> str:
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        subprocess.run([*again, label, "--one"], check=True, env=environment)
        return label

    there = _read(asked.out / "ablation_ages.csv", pd.DataFrame())
    with ThreadPoolExecutor(asked.jobs) as pool:
        for label in pool.map(train_apart, [run for run in run_of if run not in there]):
            collect(run_of[label], label, asked.out)
    ages = pd.read_csv(asked.out / "ablation_ages.csv")
    judged = judge(ages, pd.read_csv(asked.out / "ablation.csv"))
    judged.to_csv(asked.out / "ablation.csv", index=False)
    print(judged.to_string())


if __name__ == "__main__":
    main()
