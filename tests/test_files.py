import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

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


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, str]]:
    """What reaches the disk, in order: names of what is flushed and renamed."""
    noted, fsync, replace = [], os.fsync, os.replace

    def flush(descriptor):
        noted.append(("flush", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def rename(source, target):
        noted.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    return noted


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path, calls
):
    files.write_text("later", tmp_path / "note.txt")
    renamed = ("rename", "note.txt")
    assert calls == [("flush", "note.txt"), renamed, ("flush", tmp_path.name)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_folder_gets_its_name_when_all_that_it_holds_is_on_the_disk(tmp_path, calls):
    with files.replacing(tmp_path / "state-1") as state:
        (state / "deeper").mkdir(parents=True)
        (state / "a").write_text("1")
        (state / "deeper" / "b").write_text("2")
    at = calls.index(("rename", "state-1"))
    flushed = [name for _, name in calls[:at]]
    assert sorted(flushed) == ["a", "b", "deeper", "state-1"]
    # a folder after what is in it
    assert flushed.index("b") < flushed.index("deeper")
    assert flushed[-1] == "state-1"
    assert calls[at + 1 :] == [("flush", tmp_path.name)]


@pytest.mark.parametrize("kind", ["link", "dangling", "file", "folder"])
def test_what_lies_in_the_place_of_an_unfinished_file_is_removed_not_followed(
    tmp_path, kind
):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (elsewhere / "note.txt").write_text("mine")
    left = run / "note.txt.unfinished"
    if kind == "file":
        left.write_text("half")
    elif kind == "folder":
        left.mkdir()
        (left / "note.txt").symlink_to(elsewhere / "note.txt")
    else:
        left.symlink_to(elsewhere if kind == "link" else "nowhere")
    files.write_text("ours", run / "note.txt")
    assert (run / "note.txt").read_text() == "ours"
    assert (elsewhere / "note.txt").read_text() == "mine"
    assert [path.name for path in run.iterdir()] == ["note.txt"]


def test_a_disk_that_flushes_no_folders_is_written_all_the_same(tmp_path, monkeypatch):
    """As some network disks: EINVAL or EBADF of a folder, but not of a file."""
    fsync = os.fsync

    def flush(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) or refuses_files:
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    refuses_files = False
    files.write_text("kept", tmp_path / "note.txt")
    refuses_files = True
    with pytest.raises(OSError, match="Invalid argument"):
        files.write_text("lost", tmp_path / "note.txt")
    assert (tmp_path / "note.txt").read_text(encoding="utf-8") == "kept"


def test_a_link_is_replaced_itself(tmp_path):
    (tmp_path / "mine.csv").write_text("mine")
    (tmp_path / "faces.csv").symlink_to(tmp_path / "mine.csv")
    files.write_csv(FACES, tmp_path / "faces.csv")
    assert (tmp_path / "mine.csv").read_text() == "mine"
    assert not (tmp_path / "faces.csv").is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such thing there")
def test_only_a_regular_file_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, fault in {
        "pipe": "a device or a pipe",
        "zero": "a device or a pipe",
        "": "a folder",
    }.items():
        with pytest.raises(OSError, match=fault):
            files.read_text(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere"):
        files.read_text(tmp_path / "nowhere")


def test_text_is_in_utf_8_whatever_the_machine_writes_by_default(tmp_path):
    code = """
import locale, sys
from pathlib import Path
import pandas as pd
from agelib import files
folder = Path(sys.argv[1])
print(locale.getpreferredencoding(False))
files.write_text("år → 岁", folder / "note.txt")
files.write_csv(pd.DataFrame({"file_id": ["år.jpg"]}), folder / "faces.csv")
print(ascii(files.read_text(folder / "note.txt")))
"""
    script = tmp_path / "script.py"
    script.write_text(code, encoding="utf-8")
    own = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = subprocess.run(
        [sys.executable, script, tmp_path],
        env=os.environ | own | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    encoding, told = ran.stdout.splitlines()
    assert encoding != "UTF-8", ran.stderr
    assert told == ascii("år → 岁")
    assert (tmp_path / "note.txt").read_bytes() == "år → 岁".encode()
    assert (tmp_path / "faces.csv").read_bytes() == "file_id\når.jpg\n".encode()


def test_what_is_to_be_written_is_tried_before_the_work(tmp_path):
    file = tmp_path / "new" / "folders" / "ages.csv"
    files.prepare(file)
    assert list(file.parent.iterdir()) == []
    file.write_text("an earlier table")
    files.prepare(file)
    assert file.read_text() == "an earlier table"
    with pytest.raises(IsADirectoryError, match="folders is a folder: name a file"):
        files.prepare(file.parent)
    with pytest.raises(OSError, match=r"within can't be written \(.+\): name another"):
        files.prepare(file / "within")
