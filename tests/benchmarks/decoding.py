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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--sizes", type=int, nargs="*", default=[])
    asked = parser.parse_args()
    faces = data.split(data.read_train(asked.dataset), 10, seed=0)
    faces = faces[faces["fold"] == 0]
    rows, together = [], {False: [], True: []}

    def add(name: str, trained: Trained, flip: bool, decodings: tuple) -> np.ndarray:
        p = predict.distributions(trained, faces, flip)
        note(name, p, trained[1].image_size, flip, decodings)
        return p

    def note(name: str, p: np.ndarray, size: object, flip: bool, decodings: tuple):
        tables = decoded(faces, p)
        for decoding in decodings:
            summary = metrics.summary(tables[decoding])
            row = {"model": name, "size": size, "flip": flip, "decoding": decoding}
            rows.append(row | dict(summary[["mae", "low", "high", "within_5", "bias"]]))

    several = [model.load(run / "model.safetensors") for run in asked.runs]
    for run, trained in zip(asked.runs, several, strict=True):
        for flip in (False, True):
            decodings = ("median", "mean", "mode") if flip else ("median",)
            together[flip].append(add(run.name, trained, flip, decodings))
        for size in asked.sizes:
            other = trained[0], replace(trained[1], image_size=size)
            add(run.name, other, True, ("median",))
    if len(several) > 1:
        sizes = "/".join(sorted({str(trained[1].image_size) for trained in several}))
        for flip, distributions in together.items():
            p = np.mean(distributions, axis=0)
            note("together", p, sizes, flip, ("median", "mean"))
        if len({trained[1].backbone for trained in several}) == 1:
            add("averaged weights", averaged(several), True, ("median",))
    table = pd.DataFrame(rows).round(3)
    table.to_csv(asked.runs[0].parent / "decoding.csv", index=False)
    print(table.to_string())


if __name__ == "__main__":
    main()
