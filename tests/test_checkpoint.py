"""The trained model that is shipped says what it said when it was made."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from agelib import data, metrics, model, predict

DATA = Path(__file__).parents[1] / "data"
CHECKPOINT = DATA / "checkpoints" / "lite0.safetensors"
RESULTS = pd.read_csv(DATA / "results" / "lite0" / "oof.csv")


def test_the_checkpoint_is_small_and_learned_from_spoiled_faces_too():
    assert CHECKPOINT.stat().st_size < 8_000_000
    recipe = model.load(CHECKPOINT).recipe
    assert recipe.backbone == "tf_efficientnet_lite0.in1k"
    assert (recipe.name, recipe.degraded) == ("lite0", 0.4)


def test_the_checkpoint_reproduces_its_stored_answers():
    stored = pd.read_csv(CHECKPOINT.with_suffix(".csv"))
    faces = data.read_test(DATA / "sample").set_index("file_id", drop=False)
    trained = model.load(CHECKPOINT)
    again = predict.predict(trained, faces.loc[stored["file_id"]])
    np.testing.assert_allclose(again["pred_age"], stored["pred_age"], atol=0.02)
    # whole ages, of which the next one may be as likely
    for end in ("low", "high"):
        np.testing.assert_allclose(again[end], stored[end], atol=1)


def test_the_readme_tells_the_checkpoints_error():
    text = (DATA.parent / "README.md").read_text(encoding="utf-8")
    assert f"{metrics.mae(RESULTS):.2f}" in text


def test_the_model_card_tells_faces_and_error_in_the_row_of_all_faces():
    """Its other rows: `tests/test_project.py`."""
    card = (DATA / "checkpoints" / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| all \| ([\d,]+) \| ([\d.]+) ", card, re.MULTILINE)
    assert row == (f"{len(RESULTS):,}", f"{metrics.mae(RESULTS):.2f}")
