"""Counts what notebook 1 tells of the real faces: faces.py DATASET [OUT].

Writes `faces.csv`, what `quality.census` says of a dataset in the competition's layout,
and `ages.csv`, how many training faces have each age, into OUT.
"""

import argparse
from pathlib import Path

import pandas as pd

from agelib import data, files, quality

RESULTS = Path(__file__).parents[2] / "data" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=RESULTS)
    asked = parser.parse_args()
    train_faces = data.read_train(asked.dataset)
    test_faces = data.read_test(asked.dataset)
    parts = [train_faces.assign(part="train"), test_faces.assign(part="test")]
    pairs = quality.near_duplicates(pd.concat(parts))
    told = quality.census(quality.measure(train_faces), test_faces, pairs)
    files.write_csv(told.round(2).reset_index(), asked.out / "faces.csv")
    ages = train_faces["age"].value_counts().sort_index()
    files.write_csv(ages.rename("faces").reset_index(), asked.out / "ages.csv")


if __name__ == "__main__":
    main()
