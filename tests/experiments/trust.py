"""How far can one trust a run on the real faces: trust.py DATASET RUN OUT.

RUN is the folder of a training, of a cross-validation, or a checkpoint. Of the faces
that it held out, the script writes to the folder OUT:

- `faces.csv`: their true and predicted ages, and calibrated 90% intervals;
- `reliability.csv`: what intervals of several levels hold;
- `coverage.csv`: the coverage by band of true and of predicted ages, and that of the
  network's own quantiles;
- `bandwidth.csv`: what a narrower or wider calibration trades;
- `groups.csv`: error, bias and coverage by each column of --columns. That table lists
  `file_id` and a column or more, and stays where it is: no face's group is written.

Each face is judged by a network that has not learned from it and by a calibration that
other faces made.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from agelib import data, metrics, outcome, predict, tables, trust

BANDWIDTHS = 5, 10, 20, 40, 1000
# of a decade of true ages, for the least coverage
LEAST = 40


def by_age(faces: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    predicted = faces.assign(age=faces["pred_age"])
    kinds = {
        "calibrated, by true age": trust.coverage(faces, metrics.age_bands(faces)),
        "uncalibrated, by true age": trust.coverage(own, metrics.age_bands(faces)),
        "calibrated, by predicted age": trust.coverage(
            faces, metrics.age_bands(predicted)
        ),
    }
    return pd.concat(kinds, names=["kind", "ages"])


def by_bandwidth(probabilities: np.ndarray, faces: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for years in BANDWIDTHS:
        told = predict.cross_calibrated(probabilities, faces, bandwidth=years)
        decades = trust.coverage(told, metrics.age_bands(told))
        row = {
            "bandwidth": years,
            "coverage": metrics.interval_coverage(told),
            "width": (told["high"] - told["low"]).mean(),
            "least": decades["coverage"][decades["faces"] >= LEAST].min(),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def by_columns(faces: pd.DataFrame, csv: Path) -> pd.DataFrame:
    joined = faces.merge(tables.read_table(csv, "file_id"), on="file_id")
    joined = joined.where(joined != "")
    names, others = trust.grouping(joined)
    for name, reason in others.items():
        print(f"{name} is left out: {reason}")
    return pd.concat([trust.by_column(joined, name) for name in names])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path, help="the folder for the tables")
    parser.add_argument("--columns", type=Path, help="a table of groups by file_id")
    asked = parser.parse_args()
    labelled = data.read_train(asked.dataset)
    _, held_out = outcome.judged(asked.run, labelled)
    probabilities = outcome.distributions(asked.run, labelled)
    faces = predict.cross_calibrated(probabilities, held_out)
    own = trust.uncalibrated(probabilities, faces)
    found = {
        "faces": faces[["age", "pred_age", "low", "high", "fold"]],
        "reliability": trust.reliability(probabilities, faces),
        "coverage": by_age(faces, own).reset_index(),
        "bandwidth": by_bandwidth(probabilities, faces),
    }
    if asked.columns:
        found["groups"] = by_columns(faces, asked.columns)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, table in found.items():
        path = asked.out / f"{name}.csv"
        table.round(2 if name == "faces" else 4).to_csv(path, index=False)
        if name != "faces":
            print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
