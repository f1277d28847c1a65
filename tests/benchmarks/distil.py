"""A network that learns from others: distil.py DATASET OUT MODEL [MODEL ...].

A label is one opinion about a face, and often years off; what trained networks say of
it, though they have seen that label, may be nearer to what most would say. The student
is the Lite0 of the recipe `cpu`, trained anew for 20 epochs of up to 160 px, on a tenth
of the label and nine tenths of the teachers' mean distribution (Hinton et al. 2015;
born-again networks, Furlanello et al. 2018). The teachers must have held out the same
faces. OUT is a run's folder, with `model.safetensors` of the best epoch. A run that was
interrupted goes on.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from agelib import data, loop, model, predict, recipe, train
from agelib.loss import gaussian_labels
from agelib.recipe import Recipe

STUDENT = replace(recipe.get("cpu"), name="student", epochs=20, image_size=160, seed=2)
SHARE_OF_TEACHERS = 0.9
AGES = torch.arange(model.N_AGES, dtype=torch.float32)


def soft_loss(
    outputs: torch.Tensor, age: torch.Tensor, taught: torch.Tensor, recipe: Recipe
) -> torch.Tensor:
    """`loss.age_loss` to the mean of the label's Gaussian and what the teachers say.

    Args:
        outputs: logits (faces, 101).
        age: true ages in years (faces,).
        taught: the teachers' probabilities (faces, 101).
    """
    label = gaussian_labels(age, recipe.label_std)
    target = SHARE_OF_TEACHERS * taught + (1 - SHARE_OF_TEACHERS) * label
    shift = ((outputs.softmax(1) - target) * AGES).sum(1)
    return cross_entropy(outputs, target) + recipe.l1_weight * shift.abs().mean()


def student_loop(taught: torch.Tensor) -> type[loop.Loop]:
    """The training loop for faces of which the teachers say (faces, 101)."""

    class StudentLoop(loop.Loop):
        def update(self, images, age, rows):
            loop.age_loss = lambda outputs, age, recipe: soft_loss(
                outputs, age, taught[rows], recipe
            )
            super().update(images, age, rows)

    return StudentLoop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    asked = parser.parse_args()
    faces = data.split(data.read_train(asked.dataset), STUDENT.folds)
    held_out = faces["fold"] == 0
    teachers = [model.load(path) for path in asked.models]
    taught = predict.distributions(teachers, faces[~held_out])
    train.Loop = student_loop(torch.from_numpy(taught))
    train.fit(STUDENT, faces[~held_out], faces[held_out], asked.out)


if __name__ == "__main__":
    main()
