"""Labels mended by networks that never saw them: denoise.py DATASET MODEL OUT ...

The teachers of `distil.py` have learned the labels that they are asked about, errors
and all. Here each training face is judged by a network of an inner cross-validation
that held it out, and no teacher sees the validation faces. Then MODEL, a network that
held these out as well, learns on for four epochs from a mix of each label with what the
teachers say, once for each SHARE of theirs: with 0 from the labels alone.

OUT gets the runs `teachers` and `share-<SHARE>`, and `denoise.csv`, one row a share:
how far a mended label is from the label of another copy of the same photo, which no
training needs; the error in years, and the difference to the first share over the same
faces, each with its interval. Runs that were interrupted go on.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from ablation import against_first, complete
from distil import held_out_all, student_loop

from agelib import data, files, outcome, recipe, train

TEACHER = replace(recipe.get("quick"), name="teacher", folds=4)
STUDENT = replace(
    recipe.get("cpu"),
    name="student",
    first_size=0,
    epochs=4,
    patience=0,
    frozen_stages=3,
    learning_rate=7e-4,
    degraded=0.5,
)


def teach(faces: pd.DataFrame, run: Path) -> torch.Tensor:
    """What networks that held them out say of the faces: probabilities (faces, 101)."""
    history = train.cross_validate(TEACHER, faces, run)
    for fold in range(TEACHER.folds):
        complete(history[history["fold"] == fold], TEACHER)
    return torch.from_numpy(outcome.distributions(run, faces)).float()


def to_copies(table: pd.DataFrame, share: float) -> float:
    """Years between mended labels and the labels of other copies of their photos.

    Args:
        table: `file_id`, `digest`, `age`, and `pred_age` by a network that saw no copy.
        share: what `pred_age` counts in a mended label.
    """
    mended = (1 - share) * table["age"] + share * table["pred_age"]
    pairs = table.assign(mended=mended).merge(
        table, on="digest", suffixes=("", "_copy")
    )
    pairs = pairs[pairs["file_id"] != pairs["file_id_copy"]]
    return (pairs["mended"] - pairs["age_copy"]).abs().mean()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "dataset", type=Path, help="folder of faces in the competition's layout"
    )
    parser.add_argument("model", type=Path, help="the network that learns on")
    parser.add_argument("out", type=Path, help="folder of the runs and the table")
    parser.add_argument("shares", type=float, nargs="*", default=[0.0, 0.5])
    asked = parser.parse_args()
    faces = data.read_train(asked.dataset)
    sides = data.hold_out(faces, STUDENT.folds)
    held_out_all(asked.model, faces, sides[1])
    taught = teach(sides[0], asked.out / "teachers")
    of_teachers = outcome.validation(asked.out / "teachers", sides[0])
    distance = [to_copies(of_teachers, share) for share in asked.shares]
    errors = {}
    for share in asked.shares:
        run = asked.out / f"share-{share:g}"
        loop = student_loop(taught, share)
        history = train.fit(STUDENT, *sides, run, start=asked.model, loop=loop)
        complete(history, STUDENT)
        table = outcome.validation(run, sides[1])
        errors[share] = (table["pred_age"] - table["age"]).abs()
    shares = pd.DataFrame({"share": asked.shares, "to_copies": distance})
    judged = against_first(pd.DataFrame(errors))
    found = pd.concat([shares, judged], axis=1).round(3)
    files.write_csv(found, asked.out / "denoise.csv")
    print(found.to_string(index=False))


if __name__ == "__main__":
    main()
