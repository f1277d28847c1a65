import pandas as pd
import pytest

from agelib import files

FACES = pd.DataFrame({"digest": ["a", "b"], "age": [3.0, 50.0]})


def test_a_file_is_replaced_when_the_block_succeeds(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("earlier")
    with files.replacing(path) as unfinished:
        unfinished.write_text("later")
        assert path.read_text() == "earlier"
    assert path.read_text() == "later"
    assert list(tmp_path.iterdir()) == [path]


def fill_the_disk(path):
    with files.replacing(path) as unfinished:
        unfinished.write_text("half")
        raise OSError("disk full")


def test_a_file_stays_when_the_block_fails(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("earlier")
    with pytest.raises(OSError, match="disk full"):
        fill_the_disk(path)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_is_written_without_its_index(tmp_path):
    files.write_csv(FACES, tmp_path / "faces.csv")
    assert (tmp_path / "faces.csv").read_text() == "digest,age\na,3.0\nb,50.0\n"
