"""Draw the bundled sample: faces in the competition's layout, with its faults.

    python -m agelib.sample [folder]

Nobody is shown: every face is drawn from a seed. The ages are as uneven and the
pictures as faulty as UTKFace's, so what the notebooks look for is there to be found.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from agelib import env
from agelib.files import read_text
from agelib.sample.canvas import Canvas, at, curve, oval
from agelib.sample.portrait import draw_face

__all__ = ["draw_face", "draw_wall", "plan_sample", "write_sample"]

FOLDER = env.HOME / "data" / "sample"
LAYOUT = {"train", "test", "train.csv", "submission.csv", "solution.csv"}
FAULTS = {"grayscale": 0.10, "dark": 0.04, "overexposed": 0.04, "blurred": 0.05}
FAULTS |= {"rotated": 0.05, "hidden": 0.06}
EXACT_PAIRS, NEAR_PAIRS = 4, 3


@dataclass(frozen=True)
class Portrait:
    """What one file shows, and the age its table tells."""

    label: int
    age: int
    fault: str
    seed: int
    copy: bool = False  # saved once more, a little lighter and coarser

    def jpeg(self) -> bytes:
        """The file: equal portraits give equal bytes."""
        rng = np.random.default_rng(self.seed)
        portrait = _spoil(draw_face(self.age, rng, size=330), self.fault, rng)
        # as tight as the competition's: from the hairline to the chin
        face = portrait.crop((65, 85, 265, 285))
        if self.copy:
            face = ImageEnhance.Brightness(face).enhance(1.06)
        file = BytesIO()
        face.save(file, "JPEG", quality=70 if self.copy else 88)
        return file.getvalue()


def write_sample(
    folder: Path, n_train: int = 240, n_test: int = 60, seed: int = 0
) -> None:
    """Draw the sample into `folder`, all of it or nothing.

    Raises:
        FileExistsError: if `folder` holds anything that is not a sample.
        ValueError: if there are too few faces for the duplicates.
    """
    folder = Path(folder).resolve()
    _refuse_foreign(folder)
    train, test = plan_sample(n_train, n_test, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".sample-") as name:
        new, old = Path(name) / "new", Path(name) / "old"
        for split, portraits in (("train", train), ("test", test)):
            (new / split).mkdir(parents=True)
            for i, portrait in enumerate(portraits):
                (new / split / f"image_{i}.jpg").write_bytes(portrait.jpeg())
        _write_table(new / "train.csv", [portrait.label for portrait in train])
        _write_table(new / "solution.csv", [portrait.label for portrait in test])
        _write_table(new / "submission.csv", [0] * n_test)
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        # also an interrupt
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise


def plan_sample(
    n_train: int = 240, n_test: int = 60, seed: int = 0
) -> tuple[list[Portrait], list[Portrait]]:
    """The portraits of train and test, some of them in two places.

    Raises:
        ValueError: if there are too few faces for the duplicates.
    """
    needed = 2 * (EXACT_PAIRS + NEAR_PAIRS) + 1
    if n_train < needed or n_test < 1:
        raise ValueError(f"needs {needed} train faces and 1 test face, or more")
    rng = np.random.default_rng(seed)
    train, test = _plan_split(n_train, rng), _plan_split(n_test, rng)
    *paired, shared = rng.choice(n_train, needed, replace=False)
    for pair, (one, two) in enumerate(np.reshape(paired, (-1, 2))):
        if pair < EXACT_PAIRS:
            # One pair agrees on the age; the others were labelled twice.
            apart = int(rng.integers(3, 13)) if pair else 0
            label = train[one].label + (apart if train[one].label < 50 else -apart)
            train[two] = replace(train[one], label=label)
        else:
            train[two] = replace(train[one], copy=True)
    test[rng.integers(n_test)] = train[shared]
    return train, test


def draw_wall(
    ages: Sequence[float] = (4, 11, 19, 28, 37, 49, 63, 81), seed: int = 0
) -> Image.Image:
    """A photo of a wall with a drawn portrait of each age, in two rows, none straight.

    An example for those who have no photo of people at hand: some portraits are large,
    some small, and each hangs askew by up to 12 degrees.
    """
    rng, columns = np.random.default_rng(seed), -(-len(ages) // 2)
    dim = np.linspace(188, 150, 620)[:, None, None] * (1, 1.02, 0.97)
    plaster = dim + rng.normal(0, 2, (620, 310 * columns, 1))
    wall = Image.fromarray(plaster.clip(0, 255).astype("uint8"))
    for number, age in enumerate(ages):
        face = ImageOps.expand(draw_face(age, rng), 14, "#f4f1ea")
        frame = ImageOps.expand(face, 6, "#5b4636").convert("RGBA")
        # a transparent margin, for smooth edges when it is turned
        frame = ImageOps.expand(frame, 2, (0, 0, 0, 0))
        side = round(rng.uniform(150, 240))
        frame = frame.resize((side, side), Image.Resampling.LANCZOS)
        frame = frame.rotate(
            rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True
        )
        row, column = divmod(number, columns)
        middle = 310 * column + 155, 310 * row + 155
        corner = [m - s // 2 for m, s in zip(middle, frame.size, strict=True)]
        wall.paste(frame, corner, frame)
    return wall


def _plan_split(n: int, rng: np.random.Generator) -> list[Portrait]:
    ages = _draw_ages(n, rng).tolist()
    counts = [round(share * n) for share in FAULTS.values()]
    faults = np.repeat([*FAULTS, ""], [*counts, n - sum(counts)])
    seeds = rng.integers(2**32, size=n).tolist()
    return list(map(Portrait, ages, ages, rng.permutation(faults).tolist(), seeds))


def _draw_ages(n: int, rng: np.random.Generator) -> np.ndarray:
    """Whole years from 1 to 100, spread as in UTKFace, in random order.

    Read off the distribution at equal steps, so that a small set has its tail too.
    """
    age = np.arange(1, 101)
    share = 3.5 * np.exp(-age / 2.2) + np.exp(-(((age - 29) / 8.5) ** 2) / 2)
    share += 0.30 * np.exp(-(((age - 50) / 19) ** 2) / 2) + 0.03
    share[(age % 5 == 0) & (age >= 30)] *= 2
    share[age == 26] = 0
    share *= 0.91 / share.sum()
    share[age == 26] = 0.09
    steps = (np.arange(n) + 0.5) / n
    return rng.permutation(age[np.searchsorted(share.cumsum(), steps)])


def _spoil(face: Image.Image, fault: str, rng: np.random.Generator) -> Image.Image:
    """The face with one of `FAULTS`, or as it is."""
    if fault == "grayscale":
        return ImageOps.grayscale(face).convert("RGB")
    if fault == "dark":
        return ImageEnhance.Brightness(face).enhance(rng.uniform(0.3, 0.45))
    if fault == "overexposed":
        return ImageEnhance.Brightness(face).enhance(rng.uniform(1.35, 1.6))
    if fault == "blurred":
        return face.filter(ImageFilter.GaussianBlur(rng.uniform(2.5, 4)))
    if fault == "rotated":
        angle = rng.choice([-1, 1]) * rng.uniform(20, 40)
        return face.rotate(angle, Image.BICUBIC, fillcolor=face.getpixel((3, 3)))
    return _hide(face, rng) if fault == "hidden" else face


def _hide(face: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The face behind sunglasses, a scarf, a hand or a box."""
    canvas = Canvas(face.resize((600, 600)), rng.normal(0, 0.08))
    what, side = rng.choice(["sunglasses", "scarf", "hand", "box"]), rng.choice([-1, 1])
    colour, skin = rng.uniform(40, 200, 3), np.array([214, 160, 125])
    if what == "sunglasses":
        bar = curve((-0.56, -0.09), (0, -0.11), (0.56, -0.09))
        for shape in (oval(-0.25, 0, 0.22, 0.17), oval(0.25, 0, 0.22, 0.17)):
            canvas.fill(shape - at(0, 0.04), colour * 0.25)
        canvas.stroke(bar, colour * 0.25, 0.05, taper=0)
    elif what == "scarf":
        edge = curve((-1.2, 0.2), (-0.4, 0.3), (0.1, 0.22), (1.2, 0.32))
        canvas.fill(np.vstack([edge, at(1.5, 1.5), at(-1.5, 1.5)]), colour)
        for drop in (0.14, 0.30, 0.46, 0.62):
            canvas.stroke(edge + at(0, drop), colour * 0.75, 0.05, 1, 0.02)
    elif what == "hand":
        for y in np.linspace(-0.05, 0.5, 4):
            finger = curve((1.2, y + 0.4), (0.5, y + 0.08), (0.0, y)) * (side, 1)
            canvas.stroke(finger, skin * 0.75, 0.20, taper=0.3)
            canvas.stroke(finger, skin, 0.17, taper=0.3)
    else:
        box = np.array([(0, 0), (0.6, 0), (0.6, 0.5), (0, 0.5)])
        canvas.fill(box + rng.uniform((-0.6, -0.4), (0.1, 0.3)), colour)
    return canvas.image.resize(face.size, Image.LANCZOS)


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    found = _names(folder) if folder.is_dir() else {""}
    if found and (found != LAYOUT or not _is_drawn(folder)):
        raise FileExistsError(
            f"{folder} holds {sorted(found - LAYOUT) or 'other faces'}, so it is no "
            "sample to draw again: choose another folder, or remove it yourself"
        )


def _is_drawn(folder: Path) -> bool:
    """Whether the tables list what `write_sample` drew, and there is nothing else."""
    for split, table in (("train", "train.csv"), ("test", "solution.csv")):
        listed = [row.split(",")[0] for row in read_text(folder / table).split()[1:]]
        drawn = [f"image_{i}.jpg" for i in range(len(listed))]
        if listed != drawn or _names(folder / split) != set(drawn):
            return False
    return True


def _names(folder: Path) -> set[str]:
    """What a folder holds, but for what a desktop leaves in each that it shows."""
    names = {path.name for path in folder.iterdir()}
    return {n for n in names if n[0] != "." and n not in ("Thumbs.db", "desktop.ini")}


def _write_table(path: Path, ages: list[int]) -> None:
    rows = [f"image_{i}.jpg,{age}\n" for i, age in enumerate(ages)]
    path.write_text("file_id,age\n" + "".join(rows), encoding="utf-8", newline="\n")
