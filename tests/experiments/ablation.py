"""Which choices lower the error: ablation.py DATASET OUT base/0 VARIANT/SEED ...

Each run trains on the same nine tenths of the labelled faces and differs from `base`
in one choice: `base` is the recipe `quick` at 96 px, six minutes on two cores. Writes
`ablation_ages.csv`, what each run says of the validation faces, and `ablation.csv`, its
error beside that of `base` with the same seed. Runs that are in the tables are not
repeated.
"""

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap
from timm.data import rand_augment_transform
from timm.optim import create_optimizer_v2
from torch.nn.functional import binary_cross_entropy, cross_entropy
from torchvision.transforms.v2.functional import pil_to_tensor

from agelib import data, images, loading, metrics, model, recipe, train
from agelib.ages import N_AGES, age_loss, soft_labels
from agelib.loop import Loop
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


# -- losses that did not make it into the package, called as `ages.age_loss` is --------


def two_hot(outputs: torch.Tensor, age: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    age = age.clamp(max=N_AGES - 1)
    target = (1 - (all_ages(age) - age[:, None]).abs()).clamp(min=0)
    return cross_entropy(outputs, target)


def one_hot(outputs: torch.Tensor, age: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    return cross_entropy(outputs, whole_years(age))


def mean_variance(
    outputs: torch.Tensor, age: torch.Tensor, recipe: Recipe
) -> torch.Tensor:
    """Pan et al. (2018): cross-entropy, 0.2 of the mean's and 0.05 of the variance."""
    ages = all_ages(age)
    age = age.clamp(max=N_AGES - 1)
    p = outputs.softmax(1)
    mean = (p * ages).sum(1)
    variance = (p * (ages - mean[:, None]).square()).sum(1)
    error = (mean - age).square().mean() / 2
    classes = cross_entropy(outputs, whole_years(age))
    return classes + 0.2 * error + 0.05 * variance.mean()


def ordinal(outputs: torch.Tensor, age: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Cross-entropy of each 'older than k?' (Niu et al. 2016), over one softmax."""
    older = (1 - outputs.softmax(1).cumsum(1)[:, :-1]).clamp(1e-6, 1 - 1e-6)
    target = (age[:, None] > all_ages(age)[:-1] + 0.5).float()
    return binary_cross_entropy(older, target, reduction="none").sum(1).mean()


def generalised(
    outputs: torch.Tensor, age: torch.Tensor, recipe: Recipe
) -> torch.Tensor:
    """Zhang and Sabuncu (2018), q = 0.7: labels that seem wrong teach less."""
    shares = outputs.softmax(1).clamp(min=1e-8)
    target = soft_labels(age, recipe.label_std)
    return (target * (1 - shares**0.7) / 0.7).sum(1).mean()


def wide_where_heaped(
    outputs: torch.Tensor, age: torch.Tensor, recipe: Recipe
) -> torch.Tensor:
    """Labels of 26 and the multiples of five, which are too frequent, say less."""
    heaped = (age == 26) | (age % 5 == 0)
    losses = [
        len(part) * age_loss(outputs[part], age[part], replace(recipe, label_std=std))
        for chosen, std in ((heaped, 3.0), (~heaped, recipe.label_std))
        if len(part := chosen.nonzero()[:, 0])
    ]
    return sum(losses) / len(age)


def weighted(train_faces: pd.DataFrame, power: float) -> Callable:
    """A loss in which rare ages count more: the inverse of their number, to a power."""
    ages = whole_years(torch.tensor(train_faces["age"].to_numpy()))
    counts = torch.bincount(ages, minlength=N_AGES).clamp(min=20).float()

    def weighted_loss(outputs, age, recipe):
        weight = counts.to(age.device)[whole_years(age)] ** -power
        pairs = zip(outputs, age, strict=True)
        each = torch.stack([age_loss(o[None], a[None], recipe) for o, a in pairs])
        return (each * weight / weight.mean()).mean()

    return weighted_loss


def all_ages(like: torch.Tensor) -> torch.Tensor:
    return torch.arange(N_AGES, dtype=torch.float32, device=like.device)


def whole_years(age: torch.Tensor) -> torch.Tensor:
    return age.clamp(max=N_AGES - 1).round().long()


# -- other ways to train ---------------------------------------------------------------


class LayerDecay(Loop):
    """The earlier a layer, the lower its learning rate (Howard and Ruder 2018)."""

    rate = 0.85

    def create_optimizer(self, net: model.AgeModel) -> torch.optim.Optimizer:
        return create_optimizer_v2(
            net.backbone,
            opt=self.recipe.optimizer,
            lr=self.recipe.learning_rate,
            weight_decay=self.recipe.weight_decay,
            layer_decay=self.rate,
        )


class SharpnessAware(Loop):
    """Downhill from the worst place nearby (SAM, Foret et al. 2021): twice the time."""

    distance = 0.05

    def add_gradients(
        self, images: torch.Tensor, age: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        total = super().add_gradients(images, age, rows)
        learned = [w for w in self.net.parameters() if w.grad is not None]
        here = [w.detach().clone() for w in learned]
        steepness = torch.stack([w.grad.norm() for w in learned]).norm()
        with torch.no_grad():
            for weight in learned:
                weight += weight.grad * self.distance / steepness
        self.optimizer.zero_grad()
        super().add_gradients(images, age, rows)
        with torch.no_grad():
            for weight, before in zip(learned, here, strict=True):
                weight.copy_(before)
        return total


class Mixup(Loop):
    """Pairs of faces blended, their losses too (Zhang et al. 2018)."""

    alpha = 0.2

    def batch_loss(
        self, images: torch.Tensor, age: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        # the step's own random numbers are those of a run without
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed * 1_000_003 + self.updates + 500_000)
            share = torch.distributions.Beta(self.alpha, self.alpha).sample()
        faces = images.float()
        outputs = self.ddp(faces * share + faces.flip(0) * (1 - share))
        ours, others = (self.loss(outputs, a, self.recipe) for a in (age, age.flip(0)))
        return share * ours + (1 - share) * others


class RandAugmented(loading.Faces):
    """timm's RandAugment of two operations, after the recipe's own changes."""

    change = rand_augment_transform("rand-m5-n2-mstd0.5", {})

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, np.float32, int]:
        epoch, row = key
        size = self.recipe.size_in(epoch)
        rng = np.random.default_rng((self.recipe.seed, epoch, row))
        # which timm draws from
        random.seed(int(rng.integers(2**31)))
        image = images.read_image(os.fsdecode(self.paths[row]), size)
        image = self.change(loading.augment(image, size, self.recipe, rng))
        return pil_to_tensor(image), self.ages[row], row


class RandAugment(Loop):
    def augmented_faces(self) -> loading.Faces:
        return RandAugmented(self.train_faces, self.recipe.image_size, self.recipe)


# -- other training faces: the validation faces stay as they are -----------------------


def without_disagreeing_copies(
    faces: pd.DataFrame, recipe: Recipe, out: Path
) -> pd.DataFrame:
    return faces[faces.groupby("digest")["age"].transform("nunique") == 1]


def without_doubtful_labels(
    faces: pd.DataFrame, recipe: Recipe, out: Path, share: float
) -> pd.DataFrame:
    """Leaves out the share of labels that models of the other faces doubt the most.

    Three models, each of two thirds of the faces, predict the other third; cleanlab
    (Zhou et al. 2023) scores the labels. The three are kept in `out` and serve every
    seed: two seeds of this variant must not train at the same time.
    """
    from cleanlab.regression.rank import get_label_quality_scores

    predicted = []
    for part in range(3):
        third = faces["fold"] % 3 == part
        run = out / f"out_of_fold-{part}"
        one = replace(recipe, name=run.name, seed=0)
        complete(train.fit(one, faces[~third], faces[third], run), one)
        predicted.append(pd.read_csv(run / "validation.csv"))
    predicted = pd.concat(predicted).set_index("path").loc[faces["path"]]
    score = get_label_quality_scores(
        faces["age"].to_numpy(float), predicted["pred_age"].to_numpy()
    )
    return faces[score > np.quantile(score, share)]


# -- the runs --------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """What a run does; by default all as `base`."""

    recipe: Recipe = BASE
    loss: Callable = age_loss
    # makes the loss, where it depends on the training faces
    loss_of: Callable[[pd.DataFrame], Callable] | None = None
    loop: type[Loop] = Loop
    # of the training faces, the recipe and the folder of all runs: the faces to learn
    faces_of: Callable[[pd.DataFrame, Recipe, Path], pd.DataFrame] | None = None


def changed(**choices: object) -> Variant:
    return Variant(replace(BASE, **choices))


VARIANTS = {
    "base": Variant(),
    "original": Variant(ORIGINAL),
    # what is predicted, and its loss
    "L1 regression": changed(head="regression"),
    "label_std 1": changed(label_std=1.0),
    "label_std 2.5": changed(label_std=2.5),
    "one-hot labels": Variant(loss=one_hot),
    "two-hot labels": Variant(loss=two_hot),
    "mean-variance loss": Variant(loss=mean_variance),
    "ordinal loss": Variant(loss=ordinal),
    "generalised loss": Variant(loss=generalised),
    "l1_weight 0": changed(l1_weight=0.0),
    # how it is learned
    "adam": changed(optimizer="adam", weight_decay=0.0),
    "step schedule": changed(schedule="step", step_epochs=1),
    "no warm-up": changed(warmup_epochs=0.0),
    "learning rate 1e-3": changed(learning_rate=1e-3),
    "weight decay 0.1": changed(weight_decay=0.1),
    "layer decay 0.85": Variant(loop=LayerDecay),
    "SAM": Variant(loop=SharpnessAware),
    "no EMA": changed(ema_decay=0.0),
    "all stages learn": changed(frozen_stages=0),
    # the images
    "flip only": changed(rotation=0.0, zoom=0.0, shift=0.0, light=0.0, grayscale=0.0),
    "no rotation, zoom, shift": changed(rotation=0.0, zoom=0.0, shift=0.0),
    "no light, grayscale": changed(light=0.0, grayscale=0.0),
    "erasing 0.3": changed(erasing=0.3),
    "mixup 0.2": Variant(loop=Mixup),
    "RandAugment": Variant(loop=RandAugment),
    "128 px": changed(image_size=128),
    "from 64 px": changed(first_size=64),
    # the labels
    "wide at 26 and fives": Variant(loss=wide_where_heaped),
    "rare ages, root": Variant(loss_of=partial(weighted, power=0.5)),
    "no disagreeing copies": Variant(faces_of=without_disagreeing_copies),
    "no doubtful 2%": Variant(faces_of=partial(without_doubtful_labels, share=0.02)),
}


def complete(history: pd.DataFrame, recipe: Recipe) -> None:
    """Ends the script if a training was interrupted: half of one judges nothing."""
    if not recipe.is_over(history["val_mae"].tolist()):
        raise SystemExit("Interrupted: run the same command again to go on.")


def train_one(
    name: str, seed: int, dataset: Path, run: Path, **choices: object
) -> None:
    """Trains a variant in the folder `run`.

    Args:
        choices: of its recipe, to replace: a test trains a smaller network.
    """
    variant = VARIANTS[name]
    chosen = replace(variant.recipe, name=name, seed=seed, **choices)
    train_faces, validation = data.hold_out(data.read_train(dataset), chosen.folds)
    if variant.faces_of:
        train_faces = variant.faces_of(train_faces, chosen, run.parent)
    loss = variant.loss_of(train_faces) if variant.loss_of else variant.loss
    history = train.fit(
        chosen, train_faces, validation, run, loss=loss, loop=variant.loop
    )
    complete(history, chosen)


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
    options = {"n_resamples": 2000, "method": "percentile", "rng": 0}
    # in parts, or it would take gigabytes
    sample = (columns.to_numpy(),)
    found = bootstrap(sample, np.mean, batch=50, **options).confidence_interval
    return pd.DataFrame(
        {"": columns.mean().to_numpy(), "_low": found.low, "_high": found.high}
    )


def against_first(error: pd.DataFrame) -> pd.DataFrame:
    """One row a column of errors: its mean, and how much more that is than the first's.

    Each with its interval; of the difference, over the same faces.
    """
    further = error.sub(error.iloc[:, 0], axis=0)
    parts = (
        mean_interval(error).add_prefix("mae"),
        mean_interval(further).add_prefix("against_first"),
    )
    return pd.concat(parts, axis=1)


def _read(path: Path, otherwise: pd.DataFrame) -> pd.DataFrame:
    return pd.read_csv(path) if path.is_file() else otherwise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nThe variants: {'; '.join(VARIANTS)}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "dataset", type=Path, help="folder of faces in the competition's layout"
    )
    parser.add_argument("out", type=Path, help="folder of the tables and the runs")
    parser.add_argument(
        "runs", nargs="*", metavar="VARIANT/SEED", help="such as base/0"
    )
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
    there = _read(asked.out / "ablation_ages.csv", pd.DataFrame())
    bases = {f"base/{label.rpartition('/')[2]}" for label in asked.runs}
    if not asked.one and (missing := sorted(bases - {*asked.runs, *there})):
        parser.error(f"runs are compared with {missing[0]}: ask for it, too")
    run_of = {
        label: asked.out / "runs" / label.replace("/", "-") for label in asked.runs
    }
    if asked.one:
        for label, run in run_of.items():
            name, seed = label.rsplit("/", 1)
            train_one(name, int(seed), asked.dataset, run)
        return
    # a process each, with its share of the cores
    again = [sys.executable, __file__, asked.dataset, asked.out]
    threads = str(max(1, torch.get_num_threads() // asked.jobs))

    def train_apart(label: str) -> str:
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        subprocess.run([*again, label, "--one"], check=True, env=environment)
        return label

    with ThreadPoolExecutor(asked.jobs) as pool:
        for label in pool.map(train_apart, [run for run in run_of if run not in there]):
            collect(run_of[label], label, asked.out)
    ages = pd.read_csv(asked.out / "ablation_ages.csv")
    judged = judge(ages, pd.read_csv(asked.out / "ablation.csv"))
    judged.to_csv(asked.out / "ablation.csv", index=False)
    print(judged.to_string())


if __name__ == "__main__":
    main()
