"""What do 8 bits cost? quantise.py DATASET OUT [MODEL].

Exports a network, by default the shipped one, to ONNX, and its convolutions once more
in 8 bits: weights a channel at a time, activations in the range that some training
faces give (onnxruntime's static quantisation). OUT gets both files and `export.csv`,
one row a file: its size, its speed, its error on the held-out faces, and how far its
ages are from those of the first.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
from ablation import against_first
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quantize_static,
)

from agelib import data, env, export, files, model, outcome

CALIBRATED_BY = 256
BATCH = 32


class Crops(CalibrationDataReader):
    """Hands out crops (faces, side, side, 3) as the network takes them."""

    def __init__(self, crops: np.ndarray):
        self.batches = iter(np.split(crops, range(BATCH, len(crops), BATCH)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {export.INPUT: batch}


def quantise(path: Path, out: Path, crops: np.ndarray) -> None:
    """Writes an ONNX file with convolutions in 8 bits.

    Args:
        crops: uint8 RGB (faces, side, side, 3), whose activations set the ranges.
    """
    quantize_static(
        path,
        out,
        Crops(crops),
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def ages(path: Path, crops: np.ndarray) -> tuple[np.ndarray, float]:
    """What a file says of the crops in years, and how many it takes a second."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    told, seconds = [], []
    for batch in np.split(crops, range(BATCH, len(crops), BATCH)):
        start = time.perf_counter()
        told.append(session.run(["age"], {export.INPUT: batch})[0])
        seconds.append((time.perf_counter() - start) / len(batch))
    # others may want the cores as well
    return np.concatenate(told), 1 / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "dataset", type=Path, help="folder of faces in the competition's layout"
    )
    parser.add_argument("out", type=Path, help="folder of the files and the table")
    parser.add_argument("model", type=Path, nargs="?", default=env.shipped_model())
    asked = parser.parse_args()
    faces = data.read_train(asked.dataset)
    _, held_out = outcome.judged(asked.model, faces)
    learned = faces[~faces["file_id"].isin(held_out["file_id"])]
    if learned.empty:
        parser.error(f"{asked.model} has learned from none of these faces: bring some")
    some = export.read_crops(
        learned.sample(min(CALIBRATED_BY, len(learned)), random_state=0)
    )
    crops = export.read_crops(held_out)
    asked.out.mkdir(parents=True, exist_ok=True)
    paths = {name: asked.out / f"{name}.onnx" for name in ("float32", "int8")}
    export.write(model.load(asked.model), paths["float32"], some[: export.TRIED])
    quantise(paths["float32"], paths["int8"], some)
    told = {name: ages(path, crops) for name, path in paths.items()}
    error = pd.DataFrame(
        {name: np.abs(said - held_out["age"]) for name, (said, _) in told.items()}
    )
    first = told["float32"][0]
    table = pd.DataFrame(
        {
            "file": list(paths),
            "megabytes": [path.stat().st_size / 1e6 for path in paths.values()],
            "faces_per_second": [speed for _, speed in told.values()],
            "mean_change": [np.abs(said - first).mean() for said, _ in told.values()],
            "largest_change": [np.abs(said - first).max() for said, _ in told.values()],
        }
    )
    judged = pd.concat([table, against_first(error)], axis=1).round(3)
    files.write_csv(judged, asked.out / "export.csv")
    print(judged.to_string(index=False))


if __name__ == "__main__":
    main()
