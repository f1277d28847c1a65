"""Ages from trained models: decoding.py DATASET RUN [RUN ...] [--sizes 192 224].

Compares, on the validation faces that none of the runs learned from: the median, mean
and mode of the distribution, with and without the mirror image, faces of other
sizes, all runs together (distributions averaged), and one model of their averaged
weights. Prints the table and writes it to `decoding.csv` beside the first run.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from agelib import data, metrics, model, predict
from agelib.predict import Trained

AGES = np.arange(model.N_AGES)
VIEWS = 1, 2, 3, 6


def decoded(faces: pd.DataFrame, p: np.ndarray) -> dict[str, pd.DataFrame]:
    return {
        "median": predict.decode(faces, p),
        "mean": faces.assign(pred_age=p @ AGES),
        "mode": faces.assign(pred_age=p.argmax(1)),
    }


def averaged(several: list[Trained]) -> Trained:
    """One model whose weights are the mean of the others' (Wortsman et al. 2022)."""
    states = [trained[0].state_dict() for trained in several]
    soup, recipe = several[0]
    mean = {name: sum(state[name] for state in states) for name in states[0]}
    soup.load_state_dict({name: w / len(states) for name, w in mean.items()})
    return soup, recipe


def compare(runs: list[Path], faces: pd.DataFrame, sizes: list[int]) -> pd.DataFrame:
    """One row a way to read ages off the runs' models."""
    several = {run.name: model.load(run / "model.safetensors") for run in runs}
    predicted = {
        (name, trained[1].image_size, views): predict.distributions(
            trained, faces, views
        )
        for name, trained in several.items()
        for views in VIEWS
    } | {
        (name, size, 3): predict.distributions(
            (trained[0], replace(trained[1], image_size=size)), faces, 3
        )
        for name, trained in several.items()
        for size in sizes
    }
    if len(several) > 1:
        together = list(several.values())
        predicted["together", 0, 3] = predict.distributions(together, faces, 3)
        if len({trained[1].backbone for trained in together}) == 1:
            soup = averaged(together)
            p = predict.distributions(soup, faces, 3)
            predicted["averaged weights", soup[1].image_size, 3] = p
    rows = []
    for (name, size, views), p in predicted.items():
        for decoding, table in decoded(faces, p).items():
            summary = metrics.summary(table)[["mae", "low", "high", "within_5", "bias"]]
            way = {"model": name, "size": size, "views": views, "decoding": decoding}
            rows.append(way | dict(summary))
    return pd.DataFrame(rows).round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--sizes", type=int, nargs="*", default=[])
    asked = parser.parse_args()
    faces = data.split(data.read_train(asked.dataset), 10, seed=0)
    table = compare(asked.runs, faces[faces["fold"] == 0], asked.sizes)
    table.to_csv(asked.runs[0].parent / "decoding.csv", index=False)
    print(table.to_string())


if __name__ == "__main__":
    main()
