from pathlib import Path

import numpy as np
import pytest

from agelib import data, files, model, outcome, predict, results
from tests.conftest import TINY
from tests.test_runs import begin, faces, home

# fixtures of the tests of folders
__all__ = ["faces", "home"]


@pytest.fixture
def judged(home, faces) -> Path:
    run = begin(TINY, faces)
    folds = data.split(faces, TINY.folds)
    held_out = folds[folds["fold"] == 0]
    predicted = held_out.assign(pred_age=30.5, low=20.0, high=40.0)
    files.write_csv(predicted, run / "validation.csv")
    return run


def test_predictions_are_those_of_the_held_out_faces_wherever_these_lie(
    judged, faces, dataset
):
    moved = faces.assign(path=faces["path"].str.replace("train", "elsewhere"))
    table = outcome.validation(judged, moved)
    folds = data.split(faces, TINY.folds)
    assert table["file_id"].tolist() == folds.loc[folds.fold == 0, "file_id"].tolist()
    assert table["path"].str.contains("elsewhere").all()
    assert (table[["pred_age", "low", "high"]] == [30.5, 20, 40]).all(axis=None)
    assert table["age"].equals(folds.loc[folds.fold == 0, "age"].reset_index(drop=True))


def saved(recipe, path: Path) -> Path:
    model.save(model.create(recipe, pretrained=False), recipe, path)
    return path


def test_a_run_is_judged_by_what_its_training_predicted(judged, faces):
    saved(TINY, judged / "model.safetensors")
    trained, table = outcome.judged(judged, faces)
    assert trained.recipe == TINY
    assert table.equals(outcome.validation(judged, faces))


def test_a_checkpoint_is_judged_on_the_faces_that_agelib_held_out(
    faces, tmp_path, monkeypatch
):
    path = saved(TINY, tmp_path / "mine.safetensors")
    # none of these faces was held out when the shipped network learned: all are new
    trained, table = outcome.judged(path, faces)
    assert table["path"].tolist() == faces["path"].tolist()
    assert table.equals(predict.predict(trained, faces).assign(fold=0))
    # the second and the fourth are of the competition's
    digests = faces["digest"].iloc[[3, 1]]
    monkeypatch.setattr(results, "held_out", lambda: digests)
    _, table = outcome.judged(path, faces)
    assert table["path"].tolist() == faces["path"].iloc[[1, 3]].tolist()
    # which have calibrated it, so that each is judged by the others
    held_out = faces.iloc[[1, 3]]
    probabilities = predict.distributions(trained, held_out)
    expected = predict.cross_calibrated(probabilities, held_out)
    assert table["low"].tolist() == expected["low"].tolist()


def test_a_model_in_a_run_is_judged_on_the_faces_that_the_run_held_out(judged, faces):
    kept = saved(TINY, judged / "model.safetensors")
    held_out = outcome.validation(judged, faces)
    _, table = outcome.judged(kept, faces)
    assert table.equals(held_out)
    # and so is another that lies there, by what it says itself
    other = saved(TINY, judged / "other.safetensors")
    trained, table = outcome.judged(other, faces)
    assert table["file_id"].tolist() == held_out["file_id"].tolist()
    told = predict.predict(trained, held_out)["pred_age"]
    assert table["pred_age"].tolist() == told.tolist()
    # each by a calibration that the others of them made
    expected = predict.cross_calibrated(
        predict.distributions(trained, held_out), held_out
    )
    assert table["low"].tolist() == expected["low"].tolist()
    assert len(outcome.distributions(other, faces)) == len(held_out) < len(faces)


def test_networks_speak_together_of_what_is_new_to_any_of_them():
    """By hand: of four faces the second is new to both, the last to none."""
    first = np.zeros((2, 101)), np.array([True, True, False, False])
    second = np.zeros((2, 101)), np.array([False, True, True, False])
    first[0][:, 20] = second[0][:, 40] = 1
    known, mean = outcome.together([first[::-1], second[::-1]])
    assert known.tolist() == [True, True, True, False]
    assert mean[:, 20].tolist() == [1, 0.5, 0]
    assert mean[:, 40].tolist() == [0, 0.5, 1]


def drop_rows(text: str) -> str:
    return "\n".join(text.splitlines()[:4]) + "\n"


def repeat_a_row(text: str) -> str:
    return text + text.splitlines()[1] + "\n"


def other_face(text: str) -> str:
    first, *others = text.splitlines()
    return "\n".join([first, "image_99" + others[0][7:], *others[1:]]) + "\n"


@pytest.mark.parametrize(
    "change",
    [
        drop_rows,
        repeat_a_row,
        other_face,
        lambda text: text.replace("30.5", "old", 1),
        lambda text: text.replace("30.5", "nan", 1),
        lambda text: text.replace("30.5", "1e300", 1),
        lambda text: text.replace("20.0", "-4", 1),
        lambda text: text.replace("40.0", "30.4", 1),
        lambda text: "",
        lambda text: "<html>",
        lambda text: text.replace("pred_age", "predicted"),
    ],
)
def test_a_changed_table_of_predictions_is_named(judged, faces, change):
    csv = judged / "validation.csv"
    csv.write_text(change(csv.read_text()))
    with pytest.raises(ValueError, match=r"validation\.csv"):
        outcome.validation(judged, faces)


def test_predictions_of_other_faces_are_not_shown(judged, faces):
    corrected = faces.assign(age=faces["age"] + 1)
    with pytest.raises(ValueError, match="run's held-out faces, or not all"):
        outcome.validation(judged, corrected)
    (judged / "validation.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"validation\.csv"):
        outcome.validation(judged, faces)
