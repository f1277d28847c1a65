import json
import os
import pickle
import resource
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from scipy import stats

from agelib import conformal, model, recipe
from tests import conftest
from tests.conftest import TINY, photos


@pytest.fixture
def untrained():
    return conftest.untrained()


@torch.no_grad()
def test_a_distribution_head_gives_the_softmax_of_its_logits(untrained):
    images = photos(2)
    logits = untrained(images)
    assert logits.shape == (2, 101)
    expected = logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(untrained.probabilities(images), expected)


@torch.no_grad()
def test_a_regression_head_is_a_laplace_distribution_around_its_number():
    regression = conftest.untrained(replace(TINY, head="regression"))
    regression.scale.fill_(4.0)
    regression.backbone.classifier.bias.data.fill_(30.0)
    regression.backbone.classifier.weight.data.zero_()
    (probabilities,) = regression.probabilities(photos(1))
    cdf = stats.laplace(30, 4).cdf
    assert probabilities[27] == pytest.approx(cdf(27.5) - cdf(26.5), abs=1e-5)
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_the_model_normalises_pixels_as_its_checkpoint_was_trained(untrained):
    images = photos(1)
    config = timm.get_pretrained_cfg(TINY.backbone)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    by_hand = untrained.backbone((images / 255 - mean) / std)
    torch.testing.assert_close(untrained(images), by_hand)


def test_an_unknown_backbone_is_named():
    with pytest.raises(ValueError, match="no backbone 'resnet1000'"):
        model.create(replace(TINY, backbone="resnet1000"))


@torch.no_grad()
def test_a_saved_model_loads_with_its_recipe_and_predicts_the_same(untrained, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(untrained, TINY, path)
    loaded, loaded_recipe = model.load(path)
    assert loaded_recipe == TINY
    assert not loaded.training
    assert torch.equal(loaded(photos(2)), untrained(photos(2)))
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_saved_by_halves_takes_half_and_predicts_nearly_the_same(
    untrained, tmp_path
):
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    model.save(untrained, TINY, whole)
    model.save(untrained, TINY, half, half=True)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    again, _ = model.load(half)
    assert all(p.dtype == torch.float32 for p in again.parameters())
    images = photos(4)
    difference = again.probabilities(images) - untrained.probabilities(images)
    assert 0 < difference.abs().max() < 1e-3


def calibrated(untrained, path: Path, table: np.ndarray) -> Path:
    untrained.calibration = table.astype(np.float32)
    model.save(untrained, TINY, path)
    return path


@pytest.mark.parametrize("half", [False, True])
def test_a_calibration_travels_with_the_model(untrained, tmp_path, half):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(101), 50)
    untrained.calibration = conformal.calibrate(probabilities, rng.integers(0, 101, 50))
    path = tmp_path / "model.safetensors"
    model.save(untrained, TINY, path, half)
    again = model.load(path).model.calibration
    assert again.dtype == np.float32
    np.testing.assert_allclose(again, untrained.calibration, atol=1e-3 if half else 0)


def test_a_model_of_an_earlier_version_has_no_calibration(untrained, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(untrained, TINY, path)
    assert model.load(path).model.calibration is None


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (np.tile(conformal.SHARES[::-1], (101, 1)), "does not rise from 0 to 1"),
        (np.tile(conformal.SHARES / 2, (101, 1)), "does not rise from 0 to 1"),
        (np.full((101, 101), np.nan), "does not rise from 0 to 1"),
        (np.tile(conformal.SHARES, (90, 1)), r"has the shape \(90, 101\)"),
    ],
)
def test_a_damaged_calibration_is_named(untrained, tmp_path, table, reason):
    path = calibrated(untrained, tmp_path / "model.safetensors", table)
    with pytest.raises(ValueError, match=rf"model\.safetensors.*calibration.*{reason}"):
        model.load(path)


def test_loading_before_training_says_what_to_run_first(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run 02_training\.ipynb first"):
        model.load(tmp_path / "model.safetensors")


def test_a_checkpoint_cut_short_is_named(untrained, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(untrained, TINY, path)
    whole = path.read_bytes()
    for size in (1, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model\.safetensors is no complete"):
            model.load(path)


def write(path: Path, tensors: dict, choices: object, **more: str) -> Path:
    """A checkpoint with those choices as its recipe, or with that text."""
    text = choices if isinstance(choices, str) else json.dumps(choices)
    save_file(tensors, path, {"agelib_recipe": text} | more)
    return path


@pytest.fixture
def tensors(untrained) -> dict[str, torch.Tensor]:
    return {n: t.contiguous() for n, t in untrained.state_dict().items()}


def refusal(path: Path) -> str:
    """The one sentence with which a checkpoint is refused."""
    with pytest.raises(ValueError, match=rf"^{path} ") as refused:
        model.load(path)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert len(sentence) < 800
    return sentence


class Evil:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_is_refused_without_being_read(tmp_path):
    path, mark = tmp_path / "model.safetensors", tmp_path / "mark"
    for protocol in (2, 3, 4, 5):
        path.write_bytes(pickle.dumps(Evil(mark), protocol))
        assert "is a pickle" in refusal(path)
        pickle.loads(path.read_bytes())
        mark.rmdir()
    torch.save({"weight": torch.ones(2), "evil": Evil(mark)}, path)
    assert "is a pickle" in refusal(path)
    assert not mark.exists()


def test_a_header_that_begins_like_a_pickle_is_none(tmp_path):
    path = tmp_path / "model.safetensors"
    # 640 bytes of header, of which some are missing: 0x80, 0x02
    path.write_bytes((640).to_bytes(8, "little") + b'{"a"')
    assert "is no complete safetensors file" in refusal(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<html><body>Sign in</body></html>", "is a web page"),
        ((2**23).to_bytes(8, "little") + b"{" + b" " * 2**23, "too long"),
        ((2**62).to_bytes(8, "little") + b"{}", "is no complete"),
        ((2).to_bytes(8, "little") + b"{}", "it has no recipe"),
    ],
)
def test_what_lies_in_the_place_of_a_checkpoint_is_told(tmp_path, content, told):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert told in refusal(path)


def test_a_folder_and_a_pipe_are_no_checkpoints(tmp_path):
    with pytest.raises(OSError, match="is a folder"):
        model.load(tmp_path)
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(OSError, match="is a device or a pipe"):
        model.load(tmp_path / "model.safetensors")


def test_a_checkpoint_of_another_model_is_named(untrained, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    assert "does not hold a model that agelib saved (it has no recipe)" in refusal(path)
    model.save(untrained, replace(TINY, backbone="test_resnet.r160_in1k"), path)
    assert "tensors are missing, backbone.conv1.0.weight first" in refusal(path)
    model.save(untrained, replace(TINY, head="regression"), path)
    assert "classifier.weight has the shape (101, 256), not (1, 256)" in refusal(path)


def test_a_checkpoint_of_an_earlier_version_has_the_newer_choices_defaults(
    tensors, tmp_path
):
    older = {"name": "old", "backbone": TINY.backbone, "image_size": 32, "epochs": 2}
    path = write(tmp_path / "model.safetensors", tensors, older)
    assert model.load(path)[1] == recipe.Recipe(**older)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not in JSON"),
        ("{", "not in JSON"),
        ("[" * 50_000, "not in JSON"),
        ("null", "no recipe, but None"),
        ("[]", r"no recipe, but []"),
        ('{"name": "a", "name": "b"}', "tells a choice twice"),
        ('{"name": "a"}', "lacks backbone, epochs, image_size"),
        ("[" + "9" * 10_000 + "]", "limit"),
    ],
)
def test_a_checkpoint_whose_recipe_is_none_is_refused(tmp_path, text, told):
    path = write(tmp_path / "model.safetensors", {}, text)
    assert told in refusal(path)


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({"image_size": 0}, "image_size is 0, but should be a whole number from 32"),
        ({"image_size": 40_000}, "image_size is 40000"),
        ({"image_size": "160"}, "image_size is '160'"),
        ({"image_size": 160.0}, "image_size is 160.0"),
        ({"frozen_stages": 2**31}, "frozen_stages is 2147483648"),
        ({"frozen_stages": 6}, "frozen_stages is 6, but the backbone has 5 stages"),
        ({"views_at_test": 7}, "views_at_test is 7, but should be a whole number fr"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"dropout": float("inf")}, "dropout is inf"),
        ({"backbone": "resnet1000"}, "no backbone 'resnet1000'"),
        ({"backbone": "resnet18.mine"}, "no backbone 'resnet18.mine'"),
        ({"backbone": "hf-hub:a/b"}, "backbone is 'hf-hub:a/b'"),
        ({"backbone": "test_vit.r160_in1k"}, "takes faces of 160 pixels a side alone"),
        (
            {"backbone": "test_vit.r160_in1k", "image_size": 160, "first_size": 96},
            "first_size is 96, but test_vit.r160_in1k takes faces of 160 pixels",
        ),
        ({"more": 1}, "choices that this agelib lacks: 'more'"),
    ],
)
def test_a_checkpoint_whose_recipe_can_not_be_is_refused(
    tensors, tmp_path, choices, told
):
    path = tmp_path / "model.safetensors"
    assert told in refusal(write(path, tensors, asdict(TINY) | choices))


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("backbone.conv_stem.weight", lambda t: t * torch.nan, "is not finite"),
        ("backbone.conv_stem.weight", lambda t: t / 0, "is not finite"),
        ("backbone.conv_stem.weight", lambda t: t.double() * 1e300, "is not finite"),
        ("backbone.conv_stem.weight", lambda t: t.long(), "of the type torch.int64"),
        ("backbone.conv_stem.weight", lambda t: t.to(torch.float8_e5m2), "F8_E5M2"),
        ("backbone.conv_stem.weight", lambda t: t.flatten(), "has the shape (648,)"),
        ("backbone.bn1.weight", lambda t: t[0].clone(), "has the shape (), not (24,)"),
        ("backbone.bn1.weight", lambda t: t[:0].clone(), "has the shape (0,)"),
        ("backbone.bn1.running_var", lambda t: t - 2, "is a variance below zero"),
        ("backbone.bn1.num_batches_tracked", lambda t: t.float(), "of the type"),
        ("mean", lambda t: t * torch.inf, "mean is not finite"),
        ("std", lambda t: t * 0, "std or scale is not above zero"),
        ("std", lambda t: -t, "std or scale is not above zero"),
        ("scale", lambda t: t * 0, "std or scale is not above zero"),
        ("scale", lambda t: t[None], "scale has the shape (1,), not ()"),
    ],
)
def test_a_checkpoint_that_would_spoil_all_ages_is_refused(
    tensors, tmp_path, name, change, told
):
    path = tmp_path / "model.safetensors"
    tensors[name] = change(tensors[name])
    assert told in refusal(write(path, tensors, asdict(TINY)))


def test_half_the_tensors_and_others_are_refused(tensors, tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, tensors | {"more": torch.ones(2)}, asdict(TINY))
    assert "(1 do not belong there, more first)" in refusal(path)
    write(path, dict(list(tensors.items())[:44]), asdict(TINY))
    assert "of 78 tensors are missing" in refusal(path)


def test_a_small_file_that_names_a_huge_network_takes_no_memory(tmp_path):
    huge = asdict(TINY) | {"backbone": "convnext_xxlarge.clip_laion2b_soup_ft_in1k"}
    path = write(tmp_path / "m.safetensors", {"a": torch.ones(2)}, huge)
    assert path.stat().st_size < 1000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "tensors are missing" in refusal(path)
    # it would take 3.4 GB, which this process has not taken before either
    assert before < 3_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", recipe.RECIPES)
def test_what_is_saved_with_a_named_recipe_is_loaded(tmp_path, name, half):
    small = replace(recipe.get(name), backbone=TINY.backbone)
    path = tmp_path / "model.safetensors"
    model.save(model.create(small, pretrained=False), small, path, half)
    assert model.load(path)[1] == small


def test_answers_that_are_not_finite_are_no_ages(untrained):
    # finite weights, but their sum is not
    untrained.backbone.conv_stem.weight.data.fill_(3e38)
    with pytest.raises(ValueError, match="answers of the network are not finite"):
        untrained.probabilities(photos(1))


def test_the_file_of_a_model_without_finite_answers_is_named(untrained, tmp_path):
    untrained.backbone.conv_stem.weight.data.fill_(3e38)
    model.save(untrained, TINY, tmp_path / "spoiled.safetensors")
    with pytest.raises(
        ValueError, match=r"The answers of .*spoiled\.safetensors are not"
    ):
        model.load(tmp_path / "spoiled.safetensors")[0].probabilities(photos(1))


@pytest.mark.parametrize("stages", [6, 100])
def test_more_frozen_stages_than_the_backbone_has_are_refused(stages):
    with pytest.raises(ValueError, match=f"frozen_stages is {stages}, but.* 5 stages"):
        model.create(replace(TINY, frozen_stages=stages), pretrained=False)


def test_frozen_stages_learn_nothing_and_the_others_do(tiny):
    made = model.create(replace(tiny, frozen_stages=2))
    before = {k: v.clone() for k, v in made.backbone.state_dict().items()}
    made.train()
    optimizer = torch.optim.SGD(
        [p for p in made.parameters() if p.requires_grad], lr=0.1
    )
    made(photos(4)).sum().backward()
    optimizer.step()
    changed = {
        k.split(".")[0] + "." + k.split(".")[1]
        for k, v in made.backbone.state_dict().items()
        if not torch.equal(v, before[k])
    }
    # statistics of batch norms too: the stem and blocks 0 and 1 stay
    assert not changed & {"conv_stem.weight", "blocks.0", "blocks.1"}
    assert not any(k.startswith("bn1") for k in changed)
    assert {"blocks.2", "blocks.3", "blocks.4", "classifier.weight"} <= changed


def test_dropout_silences_outputs_in_training_only(tiny):
    made = model.create(replace(tiny, dropout=0.5))
    images = photos(2)
    made.eval()
    assert torch.equal(made(images), made(images))
    made.train()
    made.backbone.requires_grad_(False)
    for norm in made.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eval()
    assert not torch.equal(made(images), made(images))
