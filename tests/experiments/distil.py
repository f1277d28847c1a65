"""A network that learns from others: distil.py DATASET OUT MODEL [MODEL ...].

A label is one opinion about a face, and often years off; what trained networks say of
it, though they have seen that label, may be nearer to what most would say. The student
is the Lite0 of the recipe `cpu`, trained anew for 20 epochs on clean faces, on a tenth
of the label and nine tenths of the teachers' mean distribution (Hinton et al. 2015;
born-again networks, Furlanello et al. 2018). The teachers must have held out the same
faces. OUT is a run's folder, with `model.safetensors` of the best epoch. A run that was
interrupted goes on.
"""

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from agelib import data, model, outcome, predict, recipe, train
from agelib.ages import N_AGES, soft_labels
from agelib.loop import Loop
from agelib.recipe import Recipe

# of faces as they are, by a network whose first stages stay as ImageNet has them
STUDENT = replace(
    recipe.get("cpu"),
    name="student",
    epochs=20,
    grown_by=1.0,
    frozen_stages=3,
    rotation=15.0,
    degraded=0.0,
    seed=2,
)
SHARE_OF_TEACHERS = 0.9


def taught_loss(
    outputs: torch.Tensor,
    age: torch.Tensor,
    taught: torch.Tensor,
    recipe: Recipe,
    share: float = SHARE_OF_TEACHERS,
) -> torch.Tensor:
    """`ages.age_loss` to the mean of the label's Gaussian and what the teachers say.

    Args:
        outputs: logits (faces, 101).
        age: true ages in years (faces,).
        taught: the teachers' probabilities (faces, 101).
        share: what the teachers' word counts; the label's counts the rest.
    """
    label = soft_labels(age, recipe.label_std)
    target = share * taught + (1 - share) * label
    ages = torch.arange(N_AGES, dtype=torch.float32, device=age.device)
    shift = ((outputs.softmax(1) - target) * ages).sum(1)
    return cross_entropy(outputs, target) + recipe.l1_weight * shift.abs().mean()


def student_loop(taught: torch.Tensor, share: float = SHARE_OF_TEACHERS) -> type[Loop]:
    """The training loop for faces of which the teachers say (faces, 101)."""

    class StudentLoop(Loop):
        def batch_loss(
            self, images: torch.Tensor, age: torch.Tensor, rows: torch.Tensor
        ) -> torch.Tensor:
            of_these = taught[rows.cpu()].to(age.device)
            outputs = self.ddp(images)
            return taught_loss(outputs, age, of_these, self.recipe, share)

    return StudentLoop


def held_out_all(path: Path, faces: pd.DataFrame, validation: pd.DataFrame) -> None:
    """Raises a ValueError if a model has learned from one of the validation faces."""
    learned = ~validation["file_id"].isin(outcome.new_to(path, faces)["file_id"])
    if learned.any():
        raise ValueError(
            f"{path} has learned from {learned.sum():,} of the {len(validation):,} "
            "validation faces: name a model that held them all out."
        )


def distil(
    student: Recipe, teachers: list[model.Trained], faces: pd.DataFrame, run: Path
) -> pd.DataFrame:
    """Trains a student of the teachers in the folder `run`; its history."""
    train_faces, validation = data.hold_out(faces, student.folds)
    taught = torch.from_numpy(predict.distributions(teachers, train_faces))
    return train.fit(student, train_faces, validation, run, loop=student_loop(taught))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "dataset", type=Path, help="folder of faces in the competition's layout"
    )
    parser.add_argument("out", type=Path, help="folder of the student's run")
    parser.add_argument("models", type=Path, nargs="+", help="the teachers' files")
    asked = parser.parse_args()
    faces = data.read_train(asked.dataset)
    for path in asked.models:
        held_out_all(path, faces, data.hold_out(faces, STUDENT.folds)[1])
    teachers = [model.load(path) for path in asked.models]
    # so that a run goes on with the teachers that it began with
    sums = sorted(hashlib.md5(path.read_bytes()).digest() for path in asked.models)
    of_all = hashlib.md5(b"".join(sums)).hexdigest()[:8]
    student = replace(STUDENT, name=f"{STUDENT.name} of {of_all}")
    distil(student, teachers, faces, asked.out)


if __name__ == "__main__":
    main()
