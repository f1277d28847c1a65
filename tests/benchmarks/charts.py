"""The charts of data/results, drawn from its tables: charts.py DATASET.

`pred_vs_true.png` and `error_by_age.png` of the runs of `cpu` and `quick`, and
`cpu/within_years.png`, which also compares them with the original's choices
(`original/0` in `ablation_ages.csv`) and the median of DATASET's training faces.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from agelib import data, plots

RESULTS = Path(__file__).parents[2] / "data" / "results"


def save(ax: Axes, name: str) -> None:
    ax.figure.savefig(RESULTS / name, dpi=120, bbox_inches="tight")
    plt.close(ax.figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    labelled = data.split(data.read_train(parser.parse_args().dataset))
    median = labelled.loc[labelled["fold"] != 0, "age"].median()

    runs = {n: pd.read_csv(RESULTS / n / "validation.csv") for n in ("cpu", "quick")}
    for name, faces in runs.items():
        save(plots.pred_vs_true(faces), f"{name}/pred_vs_true.png")
        save(plots.error_by_age_band(faces), f"{name}/error_by_age.png")
    original = pd.read_csv(RESULTS / "ablation_ages.csv")
    predictors = runs | {
        "original's choices": original.assign(pred_age=original["original/0"]),
        "training median": runs["cpu"].assign(pred_age=median),
    }
    save(plots.cumulative_score(predictors), "cpu/within_years.png")


if __name__ == "__main__":
    main()
