"""The pictures of data/results: charts.py [DATASET] [--sample RUN].

With DATASET, the charts of the runs `cpu` and `quick`, from their committed tables:
`pred_vs_true.png`, `error_by_age.png` and `cpu/within_years.png`. The last compares
them with the original's choices (`original/0` in `ablation_ages.csv`) and the median
age of DATASET's training faces.

With --sample, `sample_faces.jpg`: drawn faces that RUN, the folder of a run on the
bundled sample, held out, each with its true and its predicted age.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from agelib import data, gallery, outcome, plots

DATA = Path(__file__).parents[2] / "data"
RESULTS = DATA / "results"
# columns of the wall of faces, and its rows
WALL = 10, 2


def charts(dataset: Path) -> None:
    training, _ = data.hold_out(data.read_train(dataset), folds=10)
    names = ("cpu", "quick")
    tables = {n: pd.read_csv(RESULTS / n / "oof.csv") for n in names}
    for name, faces in tables.items():
        save(plots.pred_vs_true(faces), f"{name}/pred_vs_true.png")
        save(plots.error_by_age_band(faces), f"{name}/error_by_age.png")
    original = pd.read_csv(RESULTS / "ablation_ages.csv")
    predictors = tables | {
        "original's choices": original.assign(pred_age=original["original/0"]),
        "training median": tables["cpu"].assign(pred_age=training["age"].median()),
    }
    save(plots.cumulative_score(predictors), "cpu/within_years.png")


def wall(run: Path) -> None:
    """Every third or so of the held-out faces, by age: good answers and bad ones."""
    held_out = outcome.validation(run, data.read_train(DATA / "sample"))
    columns, rows = WALL
    by_age = held_out.sort_values("age", kind="stable")
    shown = by_age.iloc[:: len(held_out) // (columns * rows)].head(columns * rows)
    axes = gallery.prediction_faces(shown, columns)
    save(axes[0, 0], "sample_faces.jpg", pil_kwargs={"quality": 85})


def save(ax: Axes, name: str, **options) -> None:
    ax.figure.savefig(RESULTS / name, dpi=120, bbox_inches="tight", **options)
    plt.close(ax.figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "dataset",
        type=Path,
        nargs="?",
        help="folder of faces in the competition's layout, for the charts",
    )
    parser.add_argument(
        "--sample",
        type=Path,
        metavar="RUN",
        help="folder of a run on the bundled sample, for sample_faces.jpg",
    )
    asked = parser.parse_args()
    if not (asked.dataset or asked.sample):
        parser.error("name a DATASET, or a RUN after --sample, or both")
    if asked.dataset:
        charts(asked.dataset)
    if asked.sample:
        wall(asked.sample)


if __name__ == "__main__":
    main()
