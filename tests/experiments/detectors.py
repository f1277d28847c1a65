"""Which face detector finds most: detectors.py DATASET OUT.

Pastes labelled faces into larger photos, at several sizes and turns, in colour and in
grayscale, and writes the share that each detector finds, what it finds that is no face,
and how long it takes, to the table OUT. The candidates are those whose packages carry
all that they need. agelib installs the chosen one, MTCNN; the others come with

    pip install dlib-bin scikit-image 'opencv-python-headless<5'
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from scenes import match, sample, scene
from sklearn.datasets import load_sample_image

from agelib import detector, files, photo

# finds the faces of a photo, uint8 RGB (height, width, 3): the left, top, width and
# height of each in pixels (faces, 4)
Detector = Callable[[np.ndarray], np.ndarray]

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


def dlib_hog(upsampling: int) -> Detector:
    import dlib

    faces = dlib.get_frontal_face_detector()
    return lambda image: _boxes(
        [(b.left(), b.top(), b.width(), b.height()) for b in faces(image, upsampling)]
    )


def lbp_cascade() -> Detector:
    import skimage.data
    from skimage.feature import Cascade

    faces = Cascade(skimage.data.lbp_frontal_face_cascade_filename())
    choices = {"scale_factor": 1.2, "step_ratio": 1}
    choices |= {"min_size": (24, 24), "max_size": (300, 300)}
    return lambda image: _boxes(
        [
            (b["c"], b["r"], b["width"], b["height"])
            for b in faces.detect_multi_scale(image, **choices)
        ]
    )


def haar_cascade(name: str) -> Detector:
    faces = cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_{name}.xml")
    return lambda image: _boxes(
        faces.detectMultiScale(
            cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 1.1, 4, minSize=(24, 24)
        )
    )


def five_points(image: np.ndarray) -> np.ndarray:
    points, _ = detector.detect(image)
    scale, centre = photo.framing(points)
    side = np.abs(scale)
    return np.stack([centre.real - side / 2, centre.imag - side / 2, side, side], 1)


def candidates() -> dict[str, Detector]:
    return {
        "dlib HOG": dlib_hog(0),
        "dlib HOG, upsampled": dlib_hog(1),
        "scikit-image LBP": lbp_cascade(),
        "OpenCV Haar default": haar_cascade("frontalface_default"),
        "OpenCV Haar alt2": haar_cascade("frontalface_alt2"),
        "MTCNN": five_points,
    }


def search(
    faces: pd.DataFrame, detectors: dict[str, Detector], conditions: dict[str, tuple]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pastes the faces into scenes and has every detector look for them.

    Args:
        faces: columns `path` and `band`, as from `scenes.sample`.
        conditions: sizes and turns as `scenes.scene` takes them, and whether in grey.
    Returns:
        one row a face that was sought: `detector`, `condition`, `band`, `found`; and
        one row a picture: `detector`, `condition`, `seconds`, and `extra`, boxes that
        are no face.
    """
    sought, pictures = [], []
    for condition, (size, turn, grey) in conditions.items():
        rng = np.random.default_rng(0)
        for first in range(0, len(faces), 6):
            chosen = faces.iloc[first : first + 6]
            picture, truth = scene(chosen["path"].tolist(), rng, size, turn)
            if grey:
                picture = picture.convert("L").convert("RGB")
            for name, detect in detectors.items():
                start = time.perf_counter()
                boxes = detect(np.asarray(picture))
                seconds = time.perf_counter() - start
                matched = match(boxes, truth)
                hits = [m is not None for m in matched]
                sought += [
                    (name, condition, band, hit)
                    for band, hit in zip(chosen["band"], hits, strict=True)
                ]
                extra = len(boxes) - len({m for m in matched if m is not None})
                pictures.append((name, condition, seconds, extra))
        print(condition, flush=True)
    return (
        pd.DataFrame(sought, columns=["detector", "condition", "band", "found"]),
        pd.DataFrame(pictures, columns=["detector", "condition", "seconds", "extra"]),
    )


def compared(
    sought: pd.DataFrame, pictures: pd.DataFrame, on_faceless: dict[str, int]
) -> pd.DataFrame:
    """One row a measure, one column a detector.

    Args:
        sought, pictures: as from `search`.
        on_faceless: how many boxes each detector finds where there is no face.
    """
    table = sought.pivot_table("found", "detector", "condition", sort=False)
    turned = sought["condition"].str.contains("turned")
    ages = sought[~turned].pivot_table("found", "detector", "band")
    ages.columns = [
        f"upright, {b} to {b + 9} years" if b < 70 else "upright, 70 years and over"
        for b in ages.columns
    ]
    table = table.join(ages)
    upright = pictures[~pictures["condition"].str.contains("turned 90")]
    table["extra boxes a picture"] = upright.groupby("detector")["extra"].mean()
    table["boxes on faceless photos"] = pd.Series(on_faceless)
    table["seconds a picture"] = pictures.groupby("detector")["seconds"].median()
    return table.T.rename_axis("share of faces found").round(3)


def faceless() -> list[np.ndarray]:
    """13 photos without a person's face (one has a cat's)."""
    import skimage.data

    photos = [
        Image.fromarray(load_sample_image(n)) for n in ("china.jpg", "flower.jpg")
    ]
    named = (getattr(skimage.data, name)() for name in FACELESS)
    photos += [Image.fromarray(p).convert("RGB") for p in named]
    for picture in photos:
        picture.thumbnail((1000, 1000))
    return [np.asarray(picture) for picture in photos]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "dataset", type=Path, help="folder of faces in the competition's layout"
    )
    parser.add_argument("out", type=Path, help="the table to write")
    parser.add_argument(
        "--per-band", type=int, default=20, help="faces of each decade of age"
    )
    asked = parser.parse_args()
    files.prepare(asked.out)
    cv2.setNumThreads(1)
    detectors = candidates()
    faces = sample(asked.dataset, asked.per_band).sample(frac=1, random_state=0)
    sought, pictures = search(faces, detectors, CONDITIONS)
    photos = faceless()
    found = {n: sum(len(find(p)) for p in photos) for n, find in detectors.items()}
    table = compared(sought, pictures, found)
    table.to_csv(asked.out)
    print(table.to_string())


if __name__ == "__main__":
    main()
