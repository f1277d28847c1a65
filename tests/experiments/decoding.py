"""Ages from trained models: decoding.py DATASET RUN [RUN ...] [--sizes 128 192].

Compares, on the validation faces that none of the runs learned from: the median, mean
and mode of the distribution, one to six views, faces of other sizes, all runs together
(distributions averaged), and one model of their averaged weights. Prints the table and
writes it to `decoding.csv` beside the first run.
"""

import argparse
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from agelib import ages, data, files, metrics, model, outcome, predict
from agelib.model import Trained
from agelib.runs import MODEL

VIEWS = 1, 2, 3, 6


def decoded(faces: pd.DataFrame, p: np.ndarray) -> dict[str, pd.DataFrame]:
    """The faces with `pred_age` in years, read off (faces, 101) in three ways."""
    return {
        "median": faces.assign(**ages.read_off(p)),
        "mean": faces.assign(pred_age=p @ np.arange(ages.N_AGES)),
        "mode": faces.assign(pred_age=p.argmax(1)),
    }


def averaged(several: list[Trained]) -> Trained:
    """One model whose weights are the mean of the others' (Wortsman et al. 2022)."""
    states = [trained.model.state_dict() for trained in several]
    mean = {name: sum(state[name] for state in states) for name in states[0]}
    soup = copy.deepcopy(several[0].model)
    soup.load_state_dict({name: w / len(states) for name, w in mean.items()})
    return Trained(soup, several[0].recipe)


def compare(runs: list[Path], faces: pd.DataFrame, sizes: list[int]) -> pd.DataFrame:
    """One row a way to read ages off the runs' models."""
    several = {run.name: model.load(run / MODEL) for run in runs}
    predicted = {}
    for name, trained in several.items():
        for views in VIEWS:
            p = predict.distributions(trained, faces, views)
            predicted[name, trained.recipe.image_size, views] = p
    for name, trained in several.items():
        for size in sizes:
            resized = Trained(trained.model, replace(trained.recipe, image_size=size))
            predicted[name, size, 3] = predict.distributions(resized, faces, 3)
    if len(several) > 1:
        together = list(several.values())
        predicted["together", 0, 3] = predict.distributions(together, faces, 3)
        if len({trained.recipe.backbone for trained in together}) == 1:
            soup = averaged(together)
            p = predict.distributions(soup, faces, 3)
            predicted["averaged weights", soup.recipe.image_size, 3] = p
    rows = []
    for (name, size, views), p in predicted.items():
        for decoding, table in decoded(faces, p).items():
            summary = metrics.summary(table)[["mae", "low", "high", "within_5", "bias"]]
            way = {"model": name, "size": size, "views": views, "decoding": decoding}
            rows.append(way | dict(summary))
    return pd.DataFrame(rows).round(3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "dataset", type=Path, help="folder of faces in the competition's layout"
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of trained runs")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[], help="of faces, pixels a side"
    )
    asked = parser.parse_args()
    if len({run.name for run in asked.runs}) < len(asked.runs):
        parser.error("two of the runs have the same name: rename a folder")
    out = asked.runs[0].parent / "decoding.csv"
    files.prepare(out)
    models = [run / MODEL for run in asked.runs]
    new = outcome.new_to_all(models, data.read_train(asked.dataset))
    table = compare(asked.runs, new, asked.sizes)
    files.write_csv(table, out)
    print(table.to_string())


if __name__ == "__main__":
    main()
