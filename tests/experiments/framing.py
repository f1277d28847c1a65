"""What finding and cropping cost in years: framing.py DATASET MODEL OUT.

Prints where the detector sees eyes, nose and mouth in training faces (`photo.POINTS`).
Then pastes validation faces into larger photos, finds and crops them again, and
compares the ages that MODEL predicts with those of the original crops, and both with
the labels. The table OUT has one row for each kind of picture, and one for each way in
which the original crops were framed wrongly on purpose.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scenes import match, sample, scene

from agelib import (
    data,
    detector,
    files,
    images,
    metrics,
    model,
    outcome,
    photo,
    predict,
)

UPRIGHT, TURNED = (0, 0), (5, 30)
PICTURES = {
    "160 to 220 px": ((160, 220), UPRIGHT),
    "100 to 160 px": ((100, 160), UPRIGHT),
    "60 to 100 px": ((60, 100), UPRIGHT),
    "40 to 60 px": ((40, 60), UPRIGHT),
    "100 to 160 px, turned 5 to 30°": ((100, 160), TURNED),
}
# framings that are off: times the side, shares of the side down, degrees
OFF = {
    "the crop 10% too tight": (0.9, 0, 0),
    "the crop 10% too wide": (1.1, 0, 0),
    "the crop 20% too tight": (0.8, 0, 0),
    "the crop 20% too wide": (1.2, 0, 0),
    "the crop 40% too wide": (1.4, 0, 0),
    "the crop 10% too low": (1, 0.1, 0),
    "the crop turned 20°": (1, 0, 20),
}


def points(table: pd.DataFrame) -> np.ndarray:
    """The detector's points in face photos on a grey ground, shares of the side."""
    rows = []
    for path in table["path"]:
        ground = Image.new("RGB", (800, 800), (110, 120, 130))
        ground.paste(images.read_image(path).resize((400, 400)), (200, 200))
        points, _ = detector.detect(np.asarray(ground))
        # the likeliest, unless it is some detail
        rows += [p for p in points[:1] if abs(p[1] - p[0]) > 80]
    return (np.array(rows) - 200 - 200j) / 400


def find(picture: Image.Image) -> pd.DataFrame:
    try:
        return photo.find(picture)
    except ValueError:
        return pd.DataFrame(columns=["x", "y", "side", "turn", "sure"], dtype=float)


def recrop(table: pd.DataFrame, size: tuple, turn: tuple, folder: Path) -> pd.DataFrame:
    """The faces that were found again, with the path of the new crop."""
    rng, again = np.random.default_rng(0), []
    for first in range(0, len(table), 6):
        chosen = table.iloc[first : first + 6]
        picture, truth = scene(chosen["path"].tolist(), rng, size, turn)
        found = find(picture)
        corner = found[["x", "y"]].sub(found["side"] / 2, axis=0)
        boxes = corner.assign(width=found["side"], height=found["side"]).to_numpy()
        rows = match(boxes, truth)
        hit = [row is not None for row in rows]
        cut = found.iloc[[row for row in rows if row is not None]]
        crops = photo.crop(picture, cut, folder / str(first))
        again.append(chosen[hit].assign(path=crops["path"].to_numpy()))
    return pd.concat(again)


def displaced(table: pd.DataFrame, off: tuple, folder: Path) -> pd.DataFrame:
    """The original crops, framed wrongly on purpose."""
    zoom, down, turn = off
    paths = []
    for number, path in enumerate(table["path"]):
        picture = images.read_image(path)
        place = photo.whole(picture)
        place["y"] += down * place["side"]
        place["side"] *= zoom
        crops = photo.crop(picture, place.assign(turn=turn), folder / str(number))
        paths.append(crops["path"].item())
    return table.assign(path=paths)


def compare(
    label: str, trained: model.Trained, again: pd.DataFrame, original: pd.DataFrame
) -> dict:
    """What one kind of picture changes, in years.

    Args:
        again: the faces that were cropped again.
        original: all of them, with the ages predicted from their original crops.
    """
    new, old = predict.predict(trained, again), original.loc[again.index]
    change = new["pred_age"] - old["pred_age"]
    row = {
        "faces": label,
        "found": len(again) / len(original),
        "mean_change": change.abs().mean(),
        "mean_shift": change.mean(),
        "mae_original": metrics.mae(old),
        "mae_again": metrics.mae(new),
    }
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "dataset", type=Path, help="folder of faces in the competition's layout"
    )
    parser.add_argument("model", type=Path, help="file of a trained model")
    parser.add_argument("out", type=Path, help="the table to write")
    parser.add_argument(
        "--faces", type=int, default=600, help="validation faces to crop again"
    )
    parser.add_argument(
        "--per-band",
        type=int,
        default=60,
        help="training faces of each decade of age whose points are sought",
    )
    asked = parser.parse_args()
    files.prepare(asked.out)
    trained = model.load(asked.model)
    seen = points(sample(asked.dataset, asked.per_band))
    print(np.median(seen.real, axis=0).round(4), np.median(seen.imag, axis=0).round(4))
    new = outcome.new_to(asked.model, data.read_train(asked.dataset))
    table = new.sample(asked.faces, random_state=0)
    original, rows = predict.predict(trained, table), []
    with tempfile.TemporaryDirectory() as name:
        for number, (label, (size, turn)) in enumerate(PICTURES.items()):
            again = recrop(table, size, turn, Path(name) / str(number))
            rows.append(compare(label, trained, again, original))
        for label, off in OFF.items():
            again = displaced(table, off, Path(name) / label)
            rows.append(compare(label, trained, again, original))
    result = pd.DataFrame(rows).round(3)
    files.write_csv(result, asked.out)
    print(result.to_string())


if __name__ == "__main__":
    main()
