"""All photos of a folder make one table, whatever happens on the way."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from agelib import album, conformal, env, model, photo, predict, sample
from agelib.model import Trained
from tests.conftest import TINY, untrained


@pytest.fixture(scope="module")
def wall() -> Image.Image:
    return sample.draw_wall(ages=(20, 60))


@pytest.fixture
def trained() -> Trained:
    net = untrained()
    net.calibration = np.tile(conformal.SHARES, (101, 1)).astype(np.float32)
    return Trained(net, TINY)


@pytest.fixture
def holiday(tmp_path, wall) -> object:
    """Two photos of two people, one of nobody, one that is none, and a text."""
    folder = tmp_path / "holiday"
    (folder / "beach").mkdir(parents=True)
    wall.save(folder / "b.png")
    wall.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "beach" / "a.JPG")
    Image.new("RGB", (300, 200), "teal").save(folder / "sea.png")
    (folder / "broken.jpg").write_bytes(b"not a photo")
    (folder / "notes.txt").write_text("no photo at all")
    (folder / "._b.png").write_bytes(b"what macOS writes beside a photo")
    return folder


@pytest.fixture
def stopped(monkeypatch, holiday, trained) -> Callable:
    """Has a run stopped at its n-th photo; gives the names of all photos read since."""

    def run(csv: Path, n: int) -> list[str]:
        read, genuine = [], photo.read

        def stopping(path):
            read.append(path.name)
            if len(read) == n:
                raise KeyboardInterrupt
            return genuine(path)

        monkeypatch.setattr(album, "AT_ONCE", 1)
        monkeypatch.setattr(photo, "read", stopping)
        with pytest.raises(KeyboardInterrupt):
            album.ages(holiday, trained, csv, views=1)
        return read

    return run


def by_hand(picture: Image.Image, trained: Trained, folder) -> pd.DataFrame:
    return predict.predict(
        trained, photo.crop(picture, photo.find(picture), folder), views=1
    )


def test_every_face_of_every_photo_has_a_row(holiday, wall, trained, tmp_path):
    csv = tmp_path / "ages.csv"
    with pytest.warns(UserWarning, match=r"2 of 4 photos have no age: broken\.jpg"):
        table = album.ages(holiday, trained, csv, views=1)
    assert table.columns.tolist() == album.COLUMNS
    names = ["b.png", "b.png", "beach/a.JPG", "beach/a.JPG", "broken.jpg", "sea.png"]
    assert table["photo"].tolist() == names
    expected = by_hand(wall, trained, tmp_path / "crops")
    first = table[table["photo"] == "b.png"]
    assert first["face"].tolist() == [1, 2]
    for column in ("x", "y", "side", "turn", "sure", "pred_age", "low", "high"):
        np.testing.assert_allclose(first[column], expected[column], atol=0.001)
    notes = table.set_index("photo")["note"]
    assert notes["sea.png"].startswith("No face found in this photo of 300 x 200")
    assert "can't be read" in notes["broken.jpg"]
    assert notes.loc["b.png"].isna().all()
    # and the file holds the same, beside which nothing is left
    assert pd.read_csv(csv)["pred_age"].equals(table["pred_age"])
    assert csv.read_text(encoding="utf-8").splitlines()[2].startswith("b.png,2,")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "ages.csv",
        "crops",
        "holiday",
    ]


@pytest.mark.filterwarnings("ignore:.*have no age")
def test_a_stopped_run_goes_on_where_it_was(holiday, trained, tmp_path, stopped):
    whole = album.ages(holiday, trained, tmp_path / "whole.csv", views=1)
    csv = tmp_path / "ages.csv"
    read = stopped(csv, 3)
    assert not csv.exists()
    table = album.ages(holiday, trained, csv, views=1)
    assert read == ["b.png", "a.JPG", "broken.jpg", "broken.jpg", "sea.png"]
    pd.testing.assert_frame_equal(table, whole)


@pytest.mark.parametrize(
    "change",
    ["another network", "a changed photo", "an older photo in its place", "damage"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_not_the_same_any_more_is_done_again(
    holiday, trained, tmp_path, stopped, change
):
    csv = tmp_path / "ages.csv"
    read = stopped(csv, 2)
    (unfinished,) = tmp_path.glob(".ages.csv.*")
    # what a kill leaves of a table half written
    (tmp_path / f"{unfinished.name}.unfinished").mkdir()
    if change == "another network":
        trained = Trained(untrained(seed=1), TINY)
    elif change == "damage":
        unfinished.write_text("photo\n")
    else:
        sample.draw_wall().save(holiday / "b.png")
        if "older" in change:
            os.utime(holiday / "b.png", (0, 0))
    table = album.ages(holiday, trained, csv, views=1)
    assert read[2] == "b.png"
    faces = 8 if "photo" in change else 2
    assert (table["photo"] == "b.png").sum() == faces
    # no other table tells any more where these people are
    assert not list(tmp_path.glob(".ages.csv.*"))


@pytest.mark.filterwarnings("ignore:.*have no age")
def test_a_folder_has_its_own_photos_whatever_another_ones_are_called(
    holiday, trained, tmp_path, stopped
):
    other, csv = tmp_path / "other", tmp_path / "ages.csv"
    other.mkdir()
    stopped(csv, 3)
    sample.draw_wall().save(other / "b.png")
    about = (holiday / "b.png").stat()
    os.utime(other / "b.png", ns=(about.st_mtime_ns, about.st_mtime_ns))
    assert len(album.ages(other, trained, csv, views=1)) == 8


@pytest.mark.skipif(sys.platform != "linux", reason="names there may be any bytes")
def test_a_name_that_is_no_text_is_told_by_its_numbers(wall, trained, tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    wall.save(os.fsencode(folder / "caf") + b"\xe9.png", "PNG")
    for _ in range(2):
        table = album.ages(folder, trained, tmp_path / "ages.csv", views=1)
        assert table["photo"].tolist() == [r"caf\xe9.png"] * 2


def test_a_folder_in_the_place_of_the_table_is_named_before_any_work(
    holiday, trained, monkeypatch
):
    monkeypatch.setattr(photo, "read", None)
    with pytest.raises(IsADirectoryError, match="holiday is a folder: name a file"):
        album.ages(holiday, trained, holiday)
    assert (holiday / "b.png").is_file()


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_photos_is_named(tmp_path, trained, exists):
    folder = tmp_path / "empty"
    if exists:
        folder.mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"There is no (photo in|folder) .*empty"
    ):
        album.ages(folder, trained, tmp_path / "ages.csv")


def test_a_mistake_in_the_command_is_told_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["photo", str(tmp_path / "holidy")])
    with pytest.raises(SystemExit, match=r"There is no folder .*holidy: correct its"):
        photo.main()


def test_the_command_writes_the_table(holiday, tmp_path, monkeypatch, capsys, trained):
    """Without the shipped network, which it need not have."""
    monkeypatch.delattr(env, "shipped_model")
    file, csv = tmp_path / "mine.safetensors", tmp_path / "new folder" / "out.csv"
    model.save(*trained, file)
    words = ["photo", str(holiday), "--out", str(csv), "--model", str(file)]
    monkeypatch.setattr(sys, "argv", [*words, "--views", "1"])
    with pytest.warns(UserWarning, match="have no age"):
        photo.main()
    assert f"4 faces of 4 photos: {csv}" in capsys.readouterr().out
    assert len(pd.read_csv(csv)) == 6
