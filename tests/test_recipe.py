import json
import math
from dataclasses import FrozenInstanceError, asdict, fields, replace

import pytest
import torch

from agelib import loading, recipe, weights
from agelib.recipe import Recipe
from tests.conftest import TINY

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
    assert weights.pretraining(strict.backbone).imagenet_only
    assert not weights.pretraining(jft.backbone).imagenet_only


def test_an_unknown_recipe_is_named_with_the_ones_there_are(monkeypatch):
    monkeypatch.setenv("AGELIB_RECIPE", "fastest")
    with pytest.raises(ValueError, match=r"'fastest'.*original.*quick"):
        recipe.default(240, CPU)


def test_compare_shows_one_row_a_choice_and_one_column_a_recipe():
    table = recipe.compare(recipe.get("original"), recipe.get("cpu"))
    assert list(table) == ["original", "cpu"]
    assert table.loc["image_size"].tolist() == ["224", "160"]
    assert "name" not in table.index


def test_compare_leaves_a_choice_empty_that_another_makes_meaningless():
    original, cpu = recipe.get("original"), recipe.get("cpu")
    table = recipe.compare(original, cpu)
    # a regression has no soft labels, and a cosine no steps
    assert table.loc["label_std"].tolist() == ["", "1.5"]
    assert table.loc["l1_weight"].tolist() == ["", "0.1"]
    assert table.loc["step_epochs"].tolist() == ["7", ""]
    others = table.drop(index=["label_std", "l1_weight", "step_epochs"])
    assert (others != "").all(axis=None)


NAMES = "a name that a file can have, of at most 100 letters"


@pytest.mark.parametrize(
    ("choice", "value", "wanted"),
    [
        ("name", "", NAMES),
        ("name", "..", NAMES),
        ("name", "../runs", NAMES),
        ("name", "a\\b", NAMES),
        ("name", "a\nb", NAMES),
        ("name", "\ud800", NAMES),
        ("name", "quick ", NAMES),
        ("name", "x" * 101, NAMES),
        ("name", 1, NAMES),
        ("backbone", "/etc/passwd", NAMES),
        ("backbone", None, NAMES),
        ("image_size", 31, "a whole number from 32 to 1024"),
        ("image_size", 1025, "a whole number from 32 to 1024"),
        ("image_size", "160", "a whole number from 32 to 1024"),
        ("image_size", 160.0, "a whole number from 32 to 1024"),
        ("image_size", True, "a whole number from 32 to 1024"),
        ("epochs", 0, "a whole number from 1 to 10000"),
        ("patience", -1, "a whole number from 0 to 10000"),
        ("first_size", 31, "0, or from 32 to 64"),
        ("first_size", 65, "0, or from 32 to 64"),
        ("grown_by", 0, "a number from 0.01 to 1"),
        ("frozen_stages", 2**31, "a whole number from 0 to 100"),
        ("dropout", 1.0, "a number from 0 to 0.99"),
        ("batch_size", 0, "a whole number from 1 to 100000"),
        ("head", "ages", "one of distribution, regression"),
        ("head", ["distribution"], "one of distribution, regression"),
        ("label_std", 0.0, "at least 0.01 years with this head"),
        ("label_std", -1.0, "a number from 0 to 50"),
        ("l1_weight", math.inf, "a number from 0 to 1000"),
        ("optimizer", "gradient descent", "an optimizer that timm brings"),
        ("learning_rate", 0, "a number from 1e-15 to 100"),
        ("learning_rate", math.nan, "a number from 1e-15 to 100"),
        ("learning_rate", 10**400, "a number from 1e-15 to 100"),
        ("learning_rate", "1e-3", "a number from 1e-15 to 100"),
        ("weight_decay", -0.1, "a number from 0 to 100"),
        ("optimizer", "kron", "an optimizer that timm brings"),
        ("schedule", "plateau", "one of cosine, tanh, step"),
        ("schedule", "poly", "one of cosine, tanh, step"),
        ("warmup_epochs", -1, "a number from 0 to 10000"),
        ("step_epochs", 0, "a whole number from 1 to 10000"),
        ("ema_decay", 1.0, "a number from 0 to 0.999999"),
        ("flip", 1.1, "a number from 0 to 1"),
        ("flip", False, "a number from 0 to 1"),
        ("rotation", 181, "a number from 0 to 180"),
        ("zoom", 1.0, "a number from 0 to 0.9"),
        ("shift", -0.1, "a number from 0 to 1"),
        ("light", 2, "a number from 0 to 1"),
        ("grayscale", [0.1], "a number from 0 to 1"),
        ("erasing", 1.5, "a number from 0 to 1"),
        ("views_at_test", 0, "a whole number from 1 to 6"),
        ("views_at_test", 7, "a whole number from 1 to 6"),
        ("folds", 1, "a whole number from 2 to 10000"),
        ("seed", -1, "a whole number from 0 to 4294967295"),
        ("seed", 2**32, "a whole number from 0 to 4294967295"),
    ],
)
def test_a_choice_that_can_not_be_is_named_with_what_it_should_be(
    choice, value, wanted
):
    with pytest.raises(ValueError, match=rf"^recipe .*: {choice} is ") as refused:
        replace(TINY, **({"image_size": 64} | {choice: value}))
    assert str(refused.value).endswith(f", but should be {wanted}")
    assert "\n" not in str(refused.value)


def test_every_choice_has_a_range_or_words_to_choose_from():
    names = {field.name for field in fields(Recipe)} - {"name", "backbone"}
    assert names == recipe._RANGES.keys() | recipe._WORDS.keys()


def test_the_ends_of_each_range_are_legal():
    for number in (0, 1):
        ends = {name: ends[number] for name, ends in recipe._RANGES.items()}
        replace(TINY, head="regression", **ends)


def test_whole_numbers_will_do_and_labels_may_be_sharp_where_none_are_soft():
    assert replace(TINY, warmup_epochs=0, flip=1).flip == 1
    assert replace(TINY, head="regression", label_std=0.0).label_std == 0
    assert replace(TINY, name="ä second one").name == "ä second one"


def test_as_many_views_as_the_loader_knows_may_be_asked_for():
    assert len(loading.VIEWS) == recipe.MOST_VIEWS


def test_faces_are_never_smaller_than_the_first():
    odd = replace(TINY, image_size=83, first_size=32, epochs=30)
    sizes = [odd.size_in(epoch) for epoch in range(30)]
    assert (sizes[0], sizes[-1]) == (32, 83)
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("name", recipe.RECIPES)
def test_a_recipe_goes_through_a_file_unchanged(name):
    chosen = recipe.get(name)
    assert recipe.from_dict(asdict(chosen)) == chosen
    assert recipe.from_json(json.dumps(asdict(chosen))) == chosen


def test_choices_with_a_default_may_be_missing_from_a_file():
    few = {"name": "old", "backbone": "resnet18", "image_size": 64, "epochs": 2}
    assert recipe.from_dict(few) == Recipe(**few)


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        (None, "it is no recipe, but None"),
        ([], r"it is no recipe, but \[\]"),
        ("quick", "it is no recipe, but 'quick'"),
        ({}, "its recipe lacks backbone, epochs, image_size, name"),
        (
            {**asdict(TINY), "lr": 1},
            "its recipe has choices that this agelib lacks: 'lr'",
        ),
        ({**asdict(TINY), "epochs": None}, "recipe 'tiny': epochs is None"),
        ({**asdict(TINY), "name": ["tiny"]}, r"recipe \['tiny'\]: name is \['tiny'\]"),
    ],
)
def test_what_is_no_recipe_is_told(choices, told):
    with pytest.raises(ValueError, match=f"^{told}"):
        recipe.from_dict(choices)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not in JSON"),
        ("[" * 100_000, "not in JSON"),
        ('{"name": "a", "name": "b"}', "tells a choice twice"),
        (json.dumps(asdict(TINY) | {"zoom": math.nan}), "zoom is nan"),
        (json.dumps(asdict(TINY)).replace("0.02", "1e999"), "weight_decay is inf"),
    ],
)
def test_a_text_that_tells_no_recipe_is_refused(text, told):
    with pytest.raises(ValueError, match=told):
        recipe.from_json(text)
