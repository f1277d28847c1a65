"""Each named recipe, from pretrained weights to a prediction."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from agelib import data, loop, model, predict, recipe, train
from tests.conftest import stopping

SAMPLE = Path(__file__).parents[1] / "data" / "sample"


@pytest.mark.parametrize("name", recipe.RECIPES)
def test_each_recipe_trains_saves_goes_on_and_predicts(name, tmp_path, monkeypatch):
    """Two steps on small drawn faces, from weights in a local file made at random."""
    chosen = replace(
        recipe.get(name), image_size=64, first_size=0, epochs=1, batch_size=8
    )
    weights = tmp_path / "weights"
    weights.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = timm.create_model(chosen.backbone)
    save_file(backbone.state_dict(), weights / f"{chosen.backbone}.safetensors")
    monkeypatch.setenv("AGELIB_WEIGHTS", str(weights))
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_SAVES", 0)
    faces = data.read_train(SAMPLE).head(20)
    sides, run = (faces.head(16), faces.tail(4)), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train.fit(chosen, *sides, run, loop=stopping(1, KeyboardInterrupt()))
    (state,) = run.glob("state-*")
    assert state.name == "state-1"
    learned = load_file(state / "state.safetensors")
    history = train.fit(chosen, *sides, run)
    assert np.isfinite(history[["train_loss", "val_mae"]]).all(axis=None)
    trained = model.load(run / "model.safetensors")
    assert trained.recipe.backbone == recipe.get(name).backbone
    predicted = predict.predict(trained, faces.tail(4))
    assert predicted["pred_age"].between(0, 100).all()
    np.testing.assert_allclose(
        predicted["pred_age"], pd.read_csv(run / "validation.csv")["pred_age"], atol=0.1
    )
    # the step after the resume moved what may learn, and nothing else
    net = load_file(next(run.glob("state-2/*.safetensors")))
    stages = model.create(chosen, pretrained=False).frozen
    frozen = [f"net.backbone.{stage}." for stage in stages]
    assert bool(frozen) == bool(chosen.frozen_stages)
    kept = [n for n in net if n.startswith("net.") and net[n].is_floating_point()]
    still = {n for n in kept if torch.equal(net[n], learned[n])}
    there = {n for n in kept if n.startswith(tuple(frozen))}
    assert len(there) >= len(frozen)
    assert still >= there
    assert "net.backbone.classifier.weight" not in still
