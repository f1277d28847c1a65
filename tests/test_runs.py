import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from agelib import data, env, files, runs, train
from tests.conftest import TINY

FACES = pd.DataFrame({"digest": ["a", "b"], "age": [3.0, 50.0]})


def test_a_claim_notes_recipe_and_faces_and_may_be_repeated(tmp_path):
    folder = tmp_path / "new" / "run"
    runs.claim(folder, TINY, FACES, FACES.head(1))
    noted = json.loads((folder / "recipe.json").read_text())
    assert (noted["name"], noted["learning_rate"]) == ("tiny", 2e-3)
    assert noted["training_faces"] != noted["validation_faces"]
    # the same faces elsewhere are the same faces
    runs.claim(folder, TINY, FACES.assign(path="elsewhere"), FACES.head(1))


@pytest.mark.parametrize(
    ("recipe", "train", "choice"),
    [
        (replace(TINY, seed=7), FACES, "seed is 0 there, 7 here"),
        (TINY, FACES.assign(age=[3.0, 51.0]), "training_faces"),
        (TINY, FACES.iloc[::-1], "training_faces"),
        (TINY, FACES.head(1), "training_faces"),
    ],
    ids=["recipe", "age", "order", "fewer"],
)
def test_a_folder_claimed_otherwise_is_refused(tmp_path, recipe, train, choice):
    runs.claim(tmp_path, TINY, FACES, FACES)
    with pytest.raises(ValueError, match=f"{choice}.*fresh=True"):
        runs.claim(tmp_path, recipe, train, FACES)


def test_setting_aside_numbers_the_earlier_runs_and_skips_an_empty_folder(tmp_path):
    folder = tmp_path / "run"
    for content in ("first", "second"):
        folder.mkdir()
        (folder / "note.txt").write_text(content)
        runs.set_aside(folder)
    assert not folder.exists()
    assert (tmp_path / "run.old-1" / "note.txt").read_text() == "first"
    assert (tmp_path / "run.old-2" / "note.txt").read_text() == "second"
    folder.mkdir()
    runs.set_aside(folder)
    assert folder.exists()


# -- recipe.json ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"{",
        b"\xff\xfe",
        b"<html>",
        b"[" * 99999,
        b'{"name": "tiny", "training_faces": 1, "validation_faces": 2}',
    ],
)
def test_a_recipe_json_that_tells_nothing_is_one_sentence(tmp_path, content):
    (tmp_path / "recipe.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"recipe\.json does not tell whose .*rename"):
        runs.claim(tmp_path, TINY, FACES, FACES)
    assert (tmp_path / "recipe.json").read_bytes() == content


def test_a_folder_in_place_of_recipe_json_is_named(tmp_path):
    (tmp_path / "recipe.json").mkdir()
    with pytest.raises(OSError, match=r"recipe\.json is a folder"):
        runs.claim(tmp_path, TINY, FACES, FACES)


# -- whose folder ---------------------------------------------------------------------


@pytest.fixture
def faces(dataset) -> pd.DataFrame:
    return data.read_train(dataset)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("AGELIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("AGELIB_RECIPE", raising=False)
    return tmp_path / "runs"


def begin(recipe, faces, folder: Path | None = None) -> Path:
    """A run of the recipe, with nothing but its recipe.json."""
    folder = folder or runs.folder(recipe, faces)
    folds = data.split(faces, recipe.folds)
    held_out = folds["fold"] == 0
    runs.claim(folder, recipe, folds[~held_out], folds[held_out])
    return folder


def test_other_faces_get_a_folder_of_their_own(home, faces):
    assert begin(TINY, faces) == home / "tiny"
    assert begin(TINY, faces) == home / "tiny"
    corrected = faces.assign(age=faces["age"].replace(5, 6))
    with pytest.warns(UserWarning, match="tiny holds a run of other faces"):
        assert begin(TINY, corrected) == home / "tiny-2"
    with pytest.warns(UserWarning, match="other faces"):
        assert begin(TINY, faces.head(20)) == home / "tiny-3"
    # and keep it
    assert runs.folder(TINY, faces) == home / "tiny"
    with pytest.warns(UserWarning, match="other faces"):
        assert runs.folder(TINY, corrected) == home / "tiny-2"


def test_a_folder_that_says_nothing_of_its_run_is_left_alone(home, faces):
    (home / "tiny").mkdir(parents=True)
    (home / "tiny" / "notes.txt").write_text("mine")
    with pytest.warns(UserWarning, match=r"no file .*recipe\.json"):
        assert begin(TINY, faces) == home / "tiny-2"
    assert [p.name for p in (home / "tiny").iterdir()] == ["notes.txt"]


def test_a_disk_that_does_not_give_a_run_today_does_not_begin_another(
    home, faces, monkeypatch
):
    begin(TINY, faces)

    def fail(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    for find in (lambda: runs.folder(TINY, faces), lambda: runs.newest(faces)):
        with monkeypatch.context() as patch:
            patch.setattr(files, "read_text", fail)
            with pytest.raises(OSError, match=r"Input/output error: .*recipe\.json"):
                find()
    assert [run.name for run in home.iterdir()] == ["tiny"]


def test_runs_of_another_recipe_are_passed_by_without_splitting_the_faces(
    home, faces, monkeypatch
):
    """Which takes seconds of many faces."""
    begin(TINY, faces)
    begin(replace(TINY, name="second"), faces)
    split = []

    def hold_out(faces, folds):
        split.append(folds)
        return data.split(faces, folds), faces

    monkeypatch.setattr(runs.data, "hold_out", hold_out)
    monkeypatch.setenv("AGELIB_RECIPE", "cpu")
    with pytest.raises(FileNotFoundError):
        runs.newest(faces)
    assert split == []


def set_begun(folder: Path, moment: int) -> None:
    os.utime(folder / "recipe.json", (moment, moment))


def test_the_newest_run_on_these_faces_is_the_one_gone_on_with_last(
    home, faces, monkeypatch
):
    with pytest.raises(FileNotFoundError, match=r"No run on these .*02_training"):
        runs.newest(faces)
    first = begin(TINY, faces)
    second = begin(replace(TINY, name="second"), faces)
    other = begin(replace(TINY, name="other"), faces.head(20))
    set_begun(first, 1000)
    set_begun(second, 2000)
    set_begun(other, 3000)
    (home / "broken").mkdir()
    (home / "broken" / "recipe.json").write_text("null")
    assert runs.newest(faces) == second
    # to begin it again is to go on with it
    begin(TINY, faces)
    assert runs.newest(faces) == first
    assert runs.newest(faces.head(20)) == other
    monkeypatch.setenv("AGELIB_RECIPE", "second")
    assert runs.newest(faces) == second
    monkeypatch.setenv("AGELIB_RECIPE", "cpu")
    with pytest.raises(FileNotFoundError, match="No run of the recipe cpu on these"):
        runs.newest(faces)


@pytest.fixture
def attached(tmp_path, monkeypatch) -> Path:
    """Where another notebook's runs are mounted on a pretended Kaggle."""
    monkeypatch.setattr(env, "KAGGLE", tmp_path / "kaggle")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.delenv("AGELIB_RECIPE", raising=False)
    return tmp_path / "kaggle" / "input" / "training" / "runs"


def test_an_attached_run_of_this_recipe_and_these_faces_is_taken_over(attached, faces):
    run = begin(TINY, faces, attached / "tiny")
    (run / "state-3").mkdir()
    for name in ("model.safetensors", "state-3/state.json", "state-3/evil.pkl", "evil"):
        (run / name).write_text(name)
        (run / name).chmod(0o444)
    (run / "history.csv").symlink_to("/etc/hostname")
    copy = runs.folder(TINY, faces)
    assert copy == env.KAGGLE / "working" / "runs" / "tiny"
    found = {str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file()}
    assert found == {"recipe.json", "model.safetensors", "state-3/state.json"}
    # what is copied can be written, and what this session did stays
    (copy / "model.safetensors").write_text("better")
    assert (runs.folder(TINY, faces) / "model.safetensors").read_text() == "better"


@pytest.mark.parametrize("whose", ["nobody's", "other faces", "another recipe"])
def test_any_other_attached_run_is_not(attached, faces, whose):
    if whose == "nobody's":
        (attached / "tiny").mkdir(parents=True)
    elif whose == "other faces":
        begin(TINY, faces.head(20), attached / "tiny")
    else:
        begin(replace(TINY, seed=7), faces, attached / "tiny")
    (attached / "tiny" / "model.safetensors").write_text("a stranger's")
    assert list(runs.folder(TINY, faces).iterdir()) == []


def test_the_newest_run_may_be_an_attached_one(attached, faces):
    run = begin(TINY, faces, attached / "tiny")
    (run / "validation.csv").write_text("theirs")
    found = runs.newest(faces)
    assert found == env.KAGGLE / "working" / "runs" / "tiny"
    assert (found / "validation.csv").read_text() == "theirs"


def test_what_else_is_attached_does_not_stand_in_the_way_of_a_run(attached, faces):
    begin(TINY, faces, attached / "tiny")
    (attached / "nobody's").mkdir()
    (attached / "a link").symlink_to("a link")
    assert runs.newest(faces).name == "tiny"


def test_a_file_in_the_place_of_all_runs_is_named(attached, faces):
    begin(TINY, faces, attached / "tiny")
    (env.KAGGLE / "working" / "runs").parent.mkdir(parents=True, exist_ok=True)
    (env.KAGGLE / "working" / "runs").write_text("mine")
    with pytest.raises(OSError, match=r"Can't write to the run folder .*runs/tiny"):
        runs.newest(faces)


def test_whose_run_it_is_is_told_in_one_line(faces, tmp_path):
    run = begin(TINY, faces, tmp_path / "run")
    noted = json.loads((run / "recipe.json").read_text())
    changed = noted | {"training_faces": "two\nlines"}
    (run / "recipe.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"training_faces is two lines there"):
        begin(TINY, faces, run)


# -- one training at a time -----------------------------------------------------------


def test_two_trainings_in_one_folder_are_one_too_many(
    tiny, tables, tmp_path, monkeypatch
):
    code = """
import sys
from pathlib import Path
from agelib import runs
with runs.locked(Path(sys.argv[1])):
    print("locked", flush=True)
    input()
"""
    run = tmp_path / "run"
    monkeypatch.setattr(runs, "SECONDS_TO_WAIT", 0.1)
    with subprocess.Popen(
        [sys.executable, "-c", code, run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(BlockingIOError, match=r"Another training works in .*run"):
            train.fit(replace(tiny, epochs=1), *tables, run)
        assert not run.exists()
        # it ends, however
        other.kill()
    assert len(train.fit(replace(tiny, epochs=1), *tables, run)) == 1
    # and after an error the folder is free again
    with pytest.raises(ValueError, match="other choices"):
        train.fit(replace(tiny, epochs=2), *tables, run)
    assert len(train.fit(replace(tiny, epochs=1), *tables, run)) == 1
    shutil.rmtree(run)
