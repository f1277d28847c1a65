"""What several networks say together: ensemble.py DATASET OUT NETWORK [NETWORK ...].

A NETWORK is the file of a trained model, or a folder that this script has written: so
what a network said outlives its weights. Averages their distributions over ages, as
notebook 4 does with `MODELS`. Writes into OUT

    oof.csv, oof.npz    each face as those networks predict it that held it out
    test.csv, test.npz  the test faces as all of them predict them
    submission.csv      the same ages in the competition's format

where the intervals are calibrated on the faces held out, and a .npz holds the
probabilities of each age. Prints each network's error on the faces that it held out,
and theirs together. One network will do.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from agelib import conformal, data, files, metrics, model, outcome, predict, tables
from agelib.ages import read_off

TOLD = ["file_id", "pred_age", "low", "high"]


def answers(
    network: Path, faces: pd.DataFrame, test: pd.DataFrame, views: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `outcome.answers`, and the distributions of the test faces (tests, 101)."""
    if network.is_dir():
        new, probabilities = kept(network, "oof", faces)
        known, of_tests = kept(network, "test", test)
        if not known.all():
            missing = test["file_id"][~known].iloc[0]
            raise ValueError(f"{network}/test.csv lacks {missing}: write it anew.")
        return new, probabilities, of_tests
    of_tests = predict.distributions(model.load(network), test, views)
    return *outcome.answers(network, faces, views), of_tests


def kept(folder: Path, name: str, faces: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Which faces a table lists, and their distributions, in the order of the faces."""
    path = folder / f"{name}.csv"
    table = tables.read_table(path, "file_id")
    if repeated := table["file_id"][table["file_id"].duplicated()].tolist():
        raise ValueError(f"{path} lists {repeated[0]} more than once.")
    probabilities = outcome.read_distributions(path.with_suffix(".npz"), len(table))
    row = pd.Index(table["file_id"]).get_indexer(faces["file_id"])
    new, row = row >= 0, row[row >= 0]
    if not new.any():
        raise ValueError(f"{path} lists none of the dataset's faces.")
    if "digest" in table:
        other = faces[new][table["digest"].to_numpy()[row] != faces["digest"][new]]
        if len(other):
            raise ValueError(
                f"{path} is of another dataset: its {other['file_id'].iloc[0]} is "
                "another photo."
            )
    return new, probabilities[row]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "dataset", type=Path, help="folder of faces in the competition's layout"
    )
    parser.add_argument("out", type=Path, help="folder of the five files")
    parser.add_argument("networks", type=Path, nargs="+", help="models, or answers")
    parser.add_argument(
        "--views", type=int, help="of each face, for models; else the recipes'"
    )
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    faces, test = data.read_train(asked.dataset), data.read_test(asked.dataset)
    several, mean_of_tests, errors = [], 0.0, {}
    for network in asked.networks:
        new, probabilities, of_tests = answers(network, faces, test, asked.views)
        alone = faces[new].assign(**read_off(probabilities))
        errors[str(network)] = metrics.summary(alone)
        several.append((new, probabilities))
        mean_of_tests += of_tests / len(asked.networks)
    known, mean = outcome.together(several)
    held_out = faces[known]
    told = predict.cross_calibrated(mean, held_out)
    errors["together"] = metrics.summary(told)
    print(pd.DataFrame(errors).T.round(3).to_string())
    write(asked.out / "oof", told[["age", "digest", *TOLD]], mean)
    calibration = conformal.calibrate(mean, held_out["age"].to_numpy())
    tested = test.assign(**read_off(mean_of_tests, calibration))
    write(asked.out / "test", tested[TOLD], mean_of_tests)
    template = asked.dataset / "submission.csv"
    predict.write_submission(tested, template, asked.out / "submission.csv")


def write(path: Path, table: pd.DataFrame, probabilities: np.ndarray) -> None:
    files.write_csv(table.round(3), path.with_suffix(".csv"))
    outcome.write_distributions(probabilities, path.with_suffix(".npz"))


if __name__ == "__main__":
    main()
