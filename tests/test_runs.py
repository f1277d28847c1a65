import json
from dataclasses import replace

import pandas as pd
import pytest

from agelib import runs
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
