from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from agelib import model, recipe

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_the_original_recipe_is_the_first_solution():
    r = recipe.get("original")
    assert r.backbone == "tf_efficientnet_b4.ns_jft_in1k"
    assert (r.image_size, r.batch_size, r.epochs) == (224, 8, 35)
    assert (r.head, r.optimizer, r.learning_rate) == ("regression", "adam", 1e-3)
    assert (r.schedule, r.step_epochs, r.weight_decay) == ("step", 7, 0)
    assert (r.flip, r.rotation, r.zoom, r.shift, r.light, r.grayscale) == (
        *(0.5, 0, 0, 0, 0, 0),
    )
    assert (r.ema_decay, r.views_at_test) == (0, 1)


def test_recipes_carry_their_own_names_and_cannot_be_changed():
    assert all(name == r.name for name, r in recipe.RECIPES.items())
    assert {"original", "gpu", "gpu_jft", "cpu", "quick", "sample"} <= set(
        recipe.RECIPES
    )
    with pytest.raises(FrozenInstanceError):
        recipe.get("cpu").epochs = 1


def test_the_default_follows_data_hardware_weights_and_the_environment(
    monkeypatch, tmp_path
):
    monkeypatch.delenv("AGELIB_RECIPE", raising=False)
    assert recipe.default(240, CUDA).name == "sample"
    assert recipe.default(20_000, CPU).name == "quick"
    assert recipe.default(20_000, CUDA).name == "gpu"
    monkeypatch.setenv("AGELIB_WEIGHTS", str(tmp_path))
    assert recipe.default(20_000, CUDA).name == "cpu"
    (tmp_path / "tf_efficientnetv2_s.in1k.safetensors").touch()
    assert recipe.default(20_000, CUDA).name == "gpu"
    monkeypatch.setenv("AGELIB_RECIPE", "original")
    assert recipe.default(240, CPU).name == "original"


def test_the_gpu_recipes_differ_in_what_their_checkpoints_saw_alone():
    strict, jft = recipe.get("gpu"), recipe.get("gpu_jft")
    assert replace(strict, name="gpu_jft", backbone=jft.backbone) == jft
    assert model.pretraining(strict.backbone).imagenet_only
    assert not model.pretraining(jft.backbone).imagenet_only


def test_an_unknown_recipe_is_named_with_the_ones_there_are(monkeypatch):
    monkeypatch.setenv("AGELIB_RECIPE", "fastest")
    with pytest.raises(ValueError, match=r"'fastest'.*original.*quick"):
        recipe.default(240, CPU)


def test_compare_shows_one_row_a_choice_and_one_column_a_recipe():
    table = recipe.compare(recipe.get("original"), recipe.get("cpu"))
    assert list(table) == ["original", "cpu"]
    assert table.loc["image_size"].tolist() == ["224", "192"]
    assert "name" not in table.index
