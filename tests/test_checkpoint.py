"""The trained model that is shipped says what it said when it was made."""

from pathlib import Path

import numpy as np
import pandas as pd

from agelib import data, metrics, model, predict

DATA = Path(__file__).parents[1] / "data"
CHECKPOINT = DATA / "checkpoints" / "lite0.safetensors"


def test_the_checkpoint_is_small_and_learned_by_the_recipe_cpu():
    assert CHECKPOINT.stat().st_size < 8_000_000
    recipe = model.load(CHECKPOINT)[1]
    assert (recipe.name, recipe.backbone) == ("cpu", "tf_efficientnet_lite0.in1k")


def test_the_checkpoint_reproduces_its_stored_answers():
    stored = pd.read_csv(CHECKPOINT.with_suffix(".csv"))
    faces = data.read_test(DATA / "sample").set_index("file_id", drop=False)
    trained = model.load(CHECKPOINT)
    again = predict.predict(trained, faces.loc[stored["file_id"]])
    for column in ("pred_age", "low", "high"):
        np.testing.assert_allclose(again[column], stored[column], atol=0.02)


def test_the_results_of_the_checkpoint_are_those_that_are_told():
    results = pd.read_csv(DATA / "results" / "lite0" / "validation.csv")
    assert len(results) == 2135
    for page in ("README.md", "data/checkpoints/README.md"):
        text = (DATA.parent / page).read_text(encoding="utf-8")
        assert f"{metrics.mae(results):.2f}" in text
