"""How far can one trust a run on the real faces: trust.py DATASET RUN OUT.

RUN is the folder of a training, of a cross-validation, or a checkpoint. Of the faces
that it held out, the script writes to the folder OUT:

- `faces.csv`: their true and predicted ages, and calibrated 90% intervals;
- `reliability.csv`: what intervals of several levels hold;
- `coverage.csv`: the coverage by band of true and of predicted ages, and that of the
  network's own quantiles;
- `bandwidth.csv`: what a narrower or wider calibration trades;
- `methods.csv`: what other ways to calibrate hold;
- `groups.csv`: error, bias and coverage by each column of --columns. That table lists
  `file_id` and a column or more, and stays where it is: no face's group is written.

Each face is judged by a network that has not learned from it and by a calibration that
other faces made.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from agelib import conformal, data, metrics, outcome, predict, tables, trust
from agelib.ages import read_off

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
        rows.append({"bandwidth": years} | _kept(told))
    return pd.DataFrame(rows)


def by_method(
    probabilities: np.ndarray, faces: pd.DataFrame, level: float = 0.9
) -> pd.DataFrame:
    """What other ways to calibrate hold: half of the faces calibrate, half judge.

    Conformalised quantile regression (Romano et al. 2019) widens every interval by as
    much as `level` of the calibrating faces need; by group, each sixth of the predicted
    ages by its own. Over six ways to halve the faces.
    """
    # its ends lie between the years, which the scores need, and are made whole last
    own = faces.assign(**read_off(probabilities, None, level))
    age = faces["age"].clip(upper=100).to_numpy()
    needed = np.maximum(own["low"] - age, age - own["high"]).to_numpy()
    in_order = own["pred_age"].rank(method="first")
    sixth = pd.qcut(in_order, 6, labels=False).to_numpy()
    told = defaultdict(list)
    # copies of a photo calibrate or judge together
    photo, _ = pd.factorize(faces["digest"])
    for seed in range(6):
        half = np.random.default_rng(seed).permutation(photo.max() + 1) % 2 == 0
        learns = half[photo]
        judged = own[~learns]
        table = conformal.calibrate(probabilities[learns], age[learns])
        by_label = read_off(probabilities[~learns], table, level)
        more = _enough(needed[learns], level)
        each = [_enough(needed[learns & (sixth == n)], level) for n in range(6)]
        told["none"].append(_widened(judged, 0))
        told["conformalised quantile regression"].append(_widened(judged, more))
        by_group = _widened(judged, np.take(each, sixth[~learns]))
        told["the same by predicted age"].append(by_group)
        told["agelib"].append(judged.assign(**by_label))
    # each face judges three of six times
    rows = [
        {"method": method} | _kept(pd.concat(six), 3 * LEAST)
        for method, six in told.items()
    ]
    return pd.DataFrame(rows)


def _enough(needed: np.ndarray, level: float) -> float:
    """How many years suffice for a share of the faces, and one that may come."""
    rank = int(np.ceil((len(needed) + 1) * level))
    return np.sort(needed)[min(rank, len(needed)) - 1]


def _widened(table: pd.DataFrame, years: float | np.ndarray) -> pd.DataFrame:
    low = np.ceil(table["low"] - years).clip(lower=0)
    high = np.floor(table["high"] + years).clip(upper=100)
    # the answer is always inside
    middle = table["pred_age"].round()
    return table.assign(low=np.minimum(low, middle), high=np.maximum(high, middle))


def _kept(table: pd.DataFrame, least: int = LEAST) -> dict[str, float]:
    decades = trust.coverage(table, metrics.age_bands(table))
    return {
        "coverage": metrics.interval_coverage(table),
        "width": (table["high"] - table["low"]).mean(),
        "least": decades["coverage"][decades["faces"] >= least].min(),
    }


def read_groups(csv: Path, faces: pd.DataFrame) -> pd.DataFrame:
    groups = tables.read_table(csv, "file_id")
    if repeated := groups["file_id"][groups["file_id"].duplicated()].tolist():
        raise ValueError(f"{csv} lists {repeated[0]} more than once: keep one row.")
    if not groups["file_id"].isin(faces["file_id"]).any():
        raise ValueError(f"{csv} lists none of the faces: compare the file_id of both.")
    return groups.where(groups != "")


def by_columns(faces: pd.DataFrame, groups: pd.DataFrame) -> pd.DataFrame:
    told = faces[["file_id", "age", "pred_age", "low", "high"]]
    joined = told.merge(groups, on="file_id", suffixes=("", " of the groups"))
    names, others = trust.grouping(joined)
    for name, reason in others.items():
        print(f"{name} is left out: {reason}")
    found = [trust.by_column(joined, name) for name in names]
    return pd.concat(found) if found else pd.DataFrame()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path, help="the folder for the tables")
    parser.add_argument("--columns", type=Path, help="a table of groups by file_id")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    labelled = data.read_train(asked.dataset)
    groups = read_groups(asked.columns, labelled) if asked.columns else None
    _, held_out = outcome.judged(asked.run, labelled)
    probabilities = outcome.distributions(asked.run, labelled)
    faces = predict.cross_calibrated(probabilities, held_out)
    own = trust.uncalibrated(probabilities, faces)
    faces["level"] = conformal.level_of_age(probabilities, faces["age"])
    found = {
        "faces": faces[["age", "pred_age", "low", "high", "fold", "level"]],
        "reliability": trust.reliability(probabilities, faces),
        "coverage": by_age(faces, own).reset_index(),
        "bandwidth": by_bandwidth(probabilities, faces),
        "methods": by_method(probabilities, faces),
    }
    if groups is not None:
        found["groups"] = by_columns(faces, groups)
    for name, table in found.items():
        path = asked.out / f"{name}.csv"
        table.round(2 if name == "faces" else 4).to_csv(path, index=False)
        if name != "faces":
            print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
