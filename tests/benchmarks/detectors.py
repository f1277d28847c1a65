"""Which face detector finds most: detectors.py DATASET OUT.

Pastes labelled faces into larger photos, at several sizes and turns, in colour and in
grayscale, and writes the share that each detector finds, what it finds that is no face,
and how long it takes, to the table OUT. The candidates are those whose packages carry
all that they need. agelib installs the chosen one, MTCNN; the others come with

    pip install dlib-bin scikit-image 'opencv-python-headless<5'
"""

import sys
import time
from pathlib import Path

import cv2
import dlib
import numpy as np
import pandas as pd
import skimage.data
from PIL import Image
from scenes import match, sample, scene
from skimage.feature import Cascade
from sklearn.datasets import load_sample_image

from agelib import faces, mtcnn

PER_BAND = 20
SMALL, MIDDLE, LARGE = (40, 70), (90, 140), (160, 220)
CONDITIONS = {
    "small, 40 to 70 px": (SMALL, (0, 0), False),
    "middle, 90 to 140 px": (MIDDLE, (0, 0), False),
    "large, 160 to 220 px": (LARGE, (0, 0), False),
    "middle, grayscale": (MIDDLE, (0, 0), True),
    "middle, turned 10°": (MIDDLE, (10, 10), False),
    "middle, turned 20°": (MIDDLE, (20, 20), False),
    "middle, turned 30°": (MIDDLE, (30, 30), False),
    "middle, turned 90°": (MIDDLE, (90, 90), False),
}
FACELESS = [
    *("brick", "grass", "gravel", "coffee", "chelsea", "hubble_deep_field", "moon"),
    *("page", "text", "rocket", "immunohistochemistry"),
]


def _boxes(found: list) -> np.ndarray:
    return np.array(found, float).reshape(-1, 4)


def dlib_hog(upsampling: int):
    detector = dlib.get_frontal_face_detector()
    return lambda image: _boxes(
        [
            (b.left(), b.top(), b.width(), b.height())
            for b in detector(image, upsampling)
        ]
    )


def lbp_cascade():
    detector = Cascade(skimage.data.lbp_frontal_face_cascade_filename())
    sizes = {"min_size": (24, 24), "max_size": (300, 300)}
    return lambda image: _boxes(
        [
            (b["c"], b["r"], b["width"], b["height"])
            for b in detector.detect_multi_scale(
                image, scale_factor=1.2, step_ratio=1, **sizes
            )
        ]
    )


def haar_cascade(name: str):
    detector = cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_{name}.xml")
    return lambda image: _boxes(
        detector.detectMultiScale(
            cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 1.1, 4, minSize=(24, 24)
        )
    )


def five_points(image: np.ndarray) -> np.ndarray:
    points, _ = mtcnn.detect(image)
    scale, centre = faces.framing(points)
    side = np.abs(scale)
    return np.stack([centre.real - side / 2, centre.imag - side / 2, side, side], 1)


DETECTORS = {
    "dlib HOG": dlib_hog(0),
    "dlib HOG, upsampled": dlib_hog(1),
    "scikit-image LBP": lbp_cascade(),
    "OpenCV Haar default": haar_cascade("frontalface_default"),
    "OpenCV Haar alt2": haar_cascade("frontalface_alt2"),
    "MTCNN": five_points,
}


def main(dataset: Path, out: Path) -> None:
    cv2.setNumThreads(1)
    some, rows, finds = sample(dataset, held_out=False, per_band=PER_BAND), [], []
    some = some.sample(frac=1, random_state=0)
    for condition, (size, turn, grey) in CONDITIONS.items():
        rng = np.random.default_rng(0)
        for first in range(0, len(some), 6):
            chosen = some.iloc[first : first + 6]
            picture, truth = scene(chosen["path"].tolist(), rng, size, turn)
            if grey:
                picture = picture.convert("L").convert("RGB")
            for name, detect in DETECTORS.items():
                start = time.perf_counter()
                boxes = detect(np.asarray(picture))
                seconds = time.perf_counter() - start
                matched = match(boxes, truth)
                hits = [m is not None for m in matched]
                finds += [
                    (name, condition, band, hit)
                    for band, hit in zip(chosen["band"], hits, strict=True)
                ]
                extra = len(boxes) - len({m for m in matched if m is not None})
                rows.append((name, condition, seconds, extra))
        print(condition, flush=True)
    finds = pd.DataFrame(finds, columns=["detector", "condition", "band", "found"])
    scenes = pd.DataFrame(rows, columns=["detector", "condition", "seconds", "extra"])
    table = finds.pivot_table("found", "detector", "condition", sort=False)
    turned = finds["condition"].str.contains("turned")
    ages = finds[~turned].pivot_table("found", "detector", "band")
    ages.columns = [f"upright, {b} to {b + 9} years" for b in ages.columns[:-1]] + [
        "upright, 70 years and over"
    ]
    table = table.join(ages)
    upright = scenes[~scenes["condition"].str.contains("turned 90")]
    table["extra boxes a picture"] = upright.groupby("detector")["extra"].mean()
    table["boxes on faceless photos"] = pd.Series(
        {n: sum(len(d(i)) for i in faceless()) for n, d in DETECTORS.items()}
    )
    table["seconds a picture"] = scenes.groupby("detector")["seconds"].median()
    table.T.rename_axis("share of faces found").round(3).to_csv(out)
    print(table.T.round(3).to_string())


def faceless() -> list[np.ndarray]:
    """13 photos without a person's face (one has a cat's)."""
    photos = [
        Image.fromarray(load_sample_image(n)) for n in ("china.jpg", "flower.jpg")
    ]
    named = (getattr(skimage.data, name)() for name in FACELESS)
    photos += [Image.fromarray(p).convert("RGB") for p in named]
    for photo in photos:
        photo.thumbnail((1000, 1000))
    return [np.asarray(photo) for photo in photos]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
