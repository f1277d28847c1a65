"""What finding and cropping cost in years: framing.py DATASET MODEL OUT.

Prints where the detector sees eyes, nose and mouth in training faces (`faces.POINTS`).
Then pastes validation faces into larger photos, finds and crops them again, and
compares the ages that MODEL predicts with those of the original crops, and both with
the labels. The table OUT has one row for each kind of picture, and one for each way in
which the original crops were framed wrongly on purpose.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scenes import match, sample, scene

from agelib import data, faces, images, metrics, model, mtcnn, predict

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
        points, _ = mtcnn.detect(np.asarray(ground))
        # the likeliest, unless it is some detail
        rows += [p for p in points[:1] if abs(p[1] - p[0]) > 80]
    return (np.array(rows) - 200 - 200j) / 400


def find(picture: Image.Image) -> pd.DataFrame:
    try:
        return faces.find(picture)
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
        crops = faces.crop(picture, cut, folder / str(first))
        again.append(chosen[hit].assign(path=crops["path"].to_numpy()))
    return pd.concat(again)


def displaced(table: pd.DataFrame, off: tuple, folder: Path) -> pd.DataFrame:
    """The original crops, framed wrongly on purpose."""
    zoom, down, turn = off
    paths = []
    for number, path in enumerate(table["path"]):
        photo = images.read_image(path)
        place = faces.whole(photo)
        place["y"] += down * place["side"]
        place["side"] *= zoom
        crops = faces.crop(photo, place.assign(turn=turn), folder / str(number))
        paths.append(crops["path"][0])
    return table.assign(path=paths)


def main(dataset: Path, checkpoint: Path, out: Path) -> None:
    trained = model.load(checkpoint)
    seen = points(sample(dataset, held_out=False, per_band=60))
    print(np.median(seen.real, axis=0).round(4), np.median(seen.imag, axis=0).round(4))
    table = data.split(data.read_train(dataset), 10, 0)
    table = table[table["fold"] == 0].sample(600, random_state=0)
    original, rows = predict.predict(trained, table), []
    with tempfile.TemporaryDirectory() as name:
        for number, (label, (size, turn)) in enumerate(PICTURES.items()):
            again = recrop(table, size, turn, Path(name) / str(number))
            rows.append(compare(label, trained, again, original))
        for label, off in OFF.items():
            again = displaced(table, off, Path(name) / label)
            rows.append(compare(label, trained, again, original))
    result = pd.DataFrame(rows).round(3)
    result.to_csv(out, index=False)
    print(result.to_string())


def compare(label, trained, again: pd.DataFrame, original: pd.DataFrame) -> dict:
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


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
