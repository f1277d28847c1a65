"""The bundled sample has the competition's layout, its faults, and faces that age."""

import csv
import hashlib
import shutil
from collections import Counter, defaultdict
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agelib import sample

FOLDER = Path(__file__).resolve().parents[1] / "data" / "sample"
SMALL = {"n_train": 15, "n_test": 2}


def ages(name: str) -> dict[str, int]:
    with open(FOLDER / name, newline="") as file:
        return {row["file_id"]: int(row["age"]) for row in csv.DictReader(file)}


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def twins(names: list[str]) -> list[list[str]]:
    """Groups of byte-identical files among the names."""
    groups = {}
    found = digests(FOLDER)
    for name in names:
        groups.setdefault(found[name], []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def jpegs(split: str) -> list[str]:
    return [f"{split}/{path.name}" for path in (FOLDER / split).iterdir()]


def pixels(name: str) -> np.ndarray:
    return np.asarray(Image.open(FOLDER / name), float)


def thumbnail(name: str, side: int) -> np.ndarray:
    face = Image.open(FOLDER / name).convert("L")
    return np.asarray(face.resize((side, side)), float).ravel()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "sample"
    sample.write_sample(folder, **SMALL)
    return folder


def test_layout_is_the_competitions():
    assert {path.name for path in FOLDER.iterdir()} == {
        "train", "test", "train.csv", "submission.csv", "solution.csv",
    }  # fmt: skip
    train, test = ages("train.csv"), ages("solution.csv")
    assert len(train) == 240
    assert len(test) == 60
    assert sorted(jpegs("train")) == sorted(f"train/{name}" for name in train)
    assert sorted(jpegs("test")) == sorted(f"test/{name}" for name in test)
    assert list(ages("submission.csv")) == list(test)
    assert set(ages("submission.csv").values()) == {0}
    assert (FOLDER / "train.csv").read_text().startswith("file_id,age\nimage_0.jpg,")


def test_every_face_is_a_200_pixel_rgb_jpeg():
    for name in jpegs("train") + jpegs("test"):
        with Image.open(FOLDER / name) as face:
            assert (face.format, face.mode, face.size) == ("JPEG", "RGB", (200, 200))


def test_sample_is_small_enough_to_commit():
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) < 3e6


def test_same_seed_same_bytes(small, tmp_path):
    sample.write_sample(tmp_path / "again", **SMALL)
    assert digests(tmp_path / "again") == digests(small)


def test_other_seed_other_faces(small):
    train, _ = sample.plan_sample(**SMALL, seed=1)
    assert train[0].jpeg() != (small / "train" / "image_0.jpg").read_bytes()


@pytest.mark.parametrize("split", [0, 1], ids=["train", "test"])
def test_committed_sample_is_a_fresh_drawing(split):
    table, folder = [("train.csv", "train"), ("solution.csv", "test")][split]
    plan = sample.plan_sample()[split]
    assert [portrait.label for portrait in plan] == list(ages(table).values())
    for i in range(0, len(plan), len(plan) // 8):
        path = f"{folder}/image_{i}.jpg"
        fresh = np.asarray(Image.open(BytesIO(plan[i].jpeg())), float)
        assert np.abs(fresh - pixels(path)).mean() < 2, path


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_tenth_is_grayscale(split):
    colourless = [np.ptp(pixels(name), axis=2).max() == 0 for name in jpegs(split)]
    assert 0.05 <= np.mean(colourless) <= 0.15


def test_some_faces_are_dark_and_some_overexposed():
    faults = [portrait.fault for portrait in sample.plan_sample()[0]]
    light = defaultdict(list)
    for number, fault in enumerate(faults):
        light[fault].append(pixels(f"train/image_{number}.jpg").mean())
    assert max(light["dark"]) < 80 < np.median(light[""])
    assert np.median(light["overexposed"]) > 1.2 * np.median(light[""])
    assert min(len(light["dark"]), len(light["overexposed"])) >= 5


def test_four_train_pairs_are_identical_and_disagree_on_the_age():
    label = ages("train.csv")
    pairs = twins(jpegs("train"))
    apart = [abs(label[Path(a).name] - label[Path(b).name]) for a, b in pairs]
    assert len(apart) == 4
    assert sum(3 <= years <= 12 for years in apart) >= 3


def test_one_face_is_in_train_and_test():
    across = [
        group
        for group in twins(jpegs("train") + jpegs("test"))
        if len({name.split("/")[0] for name in group}) == 2
    ]
    assert [len(group) for group in across] == [2]


def test_some_train_faces_are_nearly_the_same():
    thumbs = np.array([thumbnail(name, 16) for name in jpegs("train")])
    alike = np.triu(np.corrcoef(thumbs) > 0.9995, 1).sum()
    assert 2 <= alike - len(twins(jpegs("train"))) <= 3


@pytest.mark.parametrize("table", ["train.csv", "solution.csv"])
def test_ages_are_spread_as_in_the_competition(table):
    label = np.array(list(ages(table).values()))
    age, count = Counter(label.tolist()).most_common(1)[0]
    assert age == 26
    assert 0.07 <= count / len(label) <= 0.11
    assert label.min() == 1
    assert 90 <= label.max() <= 105
    assert 0.05 <= (label <= 4).mean() <= 0.15
    older = label[label >= 30]
    assert (older % 5 == 0).mean() > 0.25


def test_hair_turns_light_with_age():
    def crown(age):
        """Mean light above the forehead, of the same eight people."""
        faces = [sample.draw_face(age, np.random.default_rng(i), 60) for i in range(8)]
        return np.mean([np.asarray(face.convert("L"))[6:12, 24:36] for face in faces])

    assert crown(30) + 20 < crown(60) < crown(90) - 20


def test_a_childs_eyes_are_larger_and_lower():
    def whites(age):
        """White pixels of the eyes, and their mean row, where dark skin shows them."""
        faces = [sample.draw_face(age, np.random.default_rng(i), 100) for i in range(9)]
        middle = np.array([np.asarray(face)[35:65, 30:70] for face in faces])
        dark = middle[middle.mean((1, 2, 3)) < 130]
        _, row, _ = np.nonzero(dark.min(-1) > 190)
        return len(row) / len(dark), row.mean()

    (child_area, child_row), (adult_area, adult_row) = whites(3), whites(30)
    assert child_area > 1.5 * adult_area
    assert child_row > adult_row + 5


def test_age_can_be_learned_from_the_pixels():
    """Ridge regression on thumbnails, fitted on train, beats the median on test."""

    def thumbnails(table, split):
        label = ages(table)
        thumbs = np.array([thumbnail(f"{split}/{name}", 20) for name in label])
        thumbs -= thumbs.mean(1, keepdims=True)
        return thumbs / (thumbs.std(1, keepdims=True) + 1), np.array([*label.values()])

    (train, train_age), (test, true_age) = [
        thumbnails("train.csv", "train"), thumbnails("solution.csv", "test"),
    ]  # fmt: skip
    middle = np.median(train_age)
    weights = np.linalg.solve(train @ train.T + 100 * np.eye(240), train_age - middle)
    pred_age = test @ train.T @ weights + middle
    assert np.abs(pred_age - true_age).mean() < 0.8 * np.abs(middle - true_age).mean()


def test_face_has_the_size_asked_for():
    face = sample.draw_face(40, np.random.default_rng(0), size=64)
    assert (face.mode, face.size) == ("RGB", (64, 64))


def test_refuses_to_overwrite_what_is_no_sample(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="no sample"):
        sample.write_sample(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("stranger", ["train/mine.jpg", "test/image_99.jpg"])
def test_a_sample_that_holds_other_faces_is_not_replaced(small, tmp_path, stranger):
    folder = tmp_path / "sample"
    shutil.copytree(small, folder)
    Image.new("RGB", (200, 200)).save(folder / stranger)
    before = digests(folder)
    with pytest.raises(FileExistsError, match="holds other faces, so it is no sample"):
        sample.write_sample(folder, **SMALL)
    assert digests(folder) == before


@pytest.mark.parametrize("left", [".DS_Store", "train/.DS_Store", "test/Thumbs.db"])
def test_what_a_desktop_leaves_in_a_sample_does_not_keep_it(small, tmp_path, left):
    folder = tmp_path / "sample"
    shutil.copytree(small, folder)
    (folder / left).touch()
    sample.write_sample(folder, **SMALL)
    assert digests(folder) == digests(small)


def test_failure_leaves_the_old_sample_whole(small, monkeypatch):
    before = digests(small)
    calls = iter(range(3))
    monkeypatch.setattr(
        sample,
        "draw_face",
        lambda age, rng, size: Image.new("RGB", (9, next(calls) + 9)),
    )
    with pytest.raises(StopIteration):
        sample.write_sample(small, **SMALL)
    assert digests(small) == before
    assert list(small.parent.iterdir()) == [small]


def test_an_existing_sample_is_replaced(small, monkeypatch, tmp_path):
    folder = tmp_path / "sample"
    small = Image.new("RGB", (9, 9))
    monkeypatch.setattr(sample, "draw_face", lambda age, rng, size: small)
    sample.write_sample(folder, **SMALL)
    sample.write_sample(folder, n_train=16, n_test=3)
    assert len(list((folder / "train").iterdir())) == 16
    assert list(tmp_path.iterdir()) == [folder]


def test_too_few_faces_for_the_duplicates(tmp_path):
    with pytest.raises(ValueError, match="15 train faces"):
        sample.write_sample(tmp_path / "sample", n_train=10, n_test=5)


def test_a_wall_shows_a_portrait_of_each_age_in_two_rows(monkeypatch):
    drawn = []

    def face(age, rng):
        drawn.append(age)
        return Image.new("RGB", (200, 200), "red")

    monkeypatch.setattr(sample, "draw_face", face)
    wall = np.asarray(sample.draw_wall([7, 50, 80]))
    assert drawn == [7, 50, 80]
    assert wall.shape == (620, 620, 3)
    # the middle of each cell of 310 pixels; the fourth is bare wall
    middles = [
        wall[y, x].tolist() == [255, 0, 0] for y in (155, 465) for x in (155, 465)
    ]
    assert middles == [True, True, True, False]


def test_a_wall_is_the_same_for_the_same_seed():
    one, same, other = (sample.draw_wall([30], seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
