import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

from agelib import model, recipe
from tests.conftest import TINY


def photos(n: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), generator=generator).byte()


@pytest.fixture
def untrained():
    return model.create(TINY, pretrained=False).eval()


@torch.no_grad()
def test_a_distribution_head_gives_the_softmax_of_its_logits(untrained):
    images = photos(2)
    logits = untrained(images)
    assert logits.shape == (2, 101)
    expected = logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(untrained.probabilities(images), expected)


@torch.no_grad()
def test_a_regression_head_is_a_laplace_distribution_around_its_number():
    regression = model.create(replace(TINY, head="regression"), pretrained=False).eval()
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


def test_weights_come_from_the_local_file(tiny, tmp_path):
    stored = load_file(tmp_path / "weights" / f"{tiny.backbone}.safetensors")
    created = model.create(tiny).backbone
    assert torch.equal(created.conv_stem.weight, stored["conv_stem.weight"])
    assert created.get_classifier().out_features == 101


def test_lite0_carries_the_pip_installed_imagenet_weights():
    lite0 = model.create(recipe.get("cpu"))
    packaged = torch.load(
        model._packaged_weights("tf_efficientnet_lite0.in1k"), weights_only=True
    )
    tensors = list(lite0.backbone.state_dict().values())[:-2]
    assert len(packaged) == 296
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(tensors, list(packaged.values())[:-2], strict=True)
    )


def test_packaged_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="don't fit"):
        model._renamed({"a": torch.ones(2)}, {"b": torch.ones(3)})


def test_without_a_network_the_ways_out_are_named(tmp_path):
    """In a process of its own: the hub client reads HF_HUB_OFFLINE when imported."""
    code = "from agelib import model, recipe; model.create(recipe.get('gpu'))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert "ConnectionError: No network" in run.stderr
    assert "AGELIB_WEIGHTS" in run.stderr
    assert "AGELIB_RECIPE=quick" in run.stderr


def test_an_unknown_backbone_is_named():
    with pytest.raises(ValueError, match="no backbone 'resnet1000'"):
        model.create(replace(TINY, backbone="resnet1000"))


@pytest.mark.parametrize(
    ("checkpoint", "imagenet_only"),
    [
        ("tf_efficientnet_b4.ns_jft_in1k", False),
        ("tf_efficientnetv2_s.in1k", True),
        ("tf_efficientnetv2_s.in21k_ft_in1k", False),
        ("convnextv2_tiny.fcmae_ft_in1k", True),
        ("tf_efficientnet_lite0.in1k", True),
        ("resnet50.fb_swsl_ig1b_ft_in1k", False),
        ("vit_base_patch14_dinov2.lvd142m", False),
        ("fastvit_t8.apple_dist_in1k", False),
    ],
)
def test_pretraining_tells_what_a_checkpoint_saw(checkpoint, imagenet_only):
    seen = model.pretraining(checkpoint)
    assert (seen.checkpoint, seen.imagenet_only) == (checkpoint, imagenet_only)


def test_a_bare_b4_means_the_checkpoint_that_saw_jft():
    seen = model.pretraining("tf_efficientnet_b4")
    assert seen.checkpoint == "tf_efficientnet_b4.ns_jft_in1k"
    assert not seen.imagenet_only


def test_pretraining_of_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no pretrained 'resnet1000'"):
        model.pretraining("resnet1000")


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
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    difference = again.probabilities(images) - untrained.eval().probabilities(images)
    assert 0 < difference.abs().max() < 1e-3


def test_loading_before_training_says_what_to_run_first(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run 02_training\.ipynb first"):
        model.load(tmp_path / "model.safetensors")


def test_a_checkpoint_cut_short_is_named(untrained, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(untrained, TINY, path)
    for size in (0, 5, path.stat().st_size // 2, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"model\.safetensors is no complete"):
            model.load(path)
        model.save(untrained, TINY, path)


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the checkpoint ran')",)


def test_a_pickle_is_refused_without_being_read(tmp_path):
    path = tmp_path / "model.safetensors"
    for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps(Evil(), protocol))
        with pytest.raises(ValueError, match="is a pickle"):
            model.load(path)
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="is a pickle"):
        model.load(path)


def test_a_checkpoint_of_another_model_is_named(untrained, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="does not hold a model that agelib saved"):
        model.load(path)
    model.save(untrained, replace(TINY, backbone="test_resnet.r160_in1k"), path)
    with pytest.raises(ValueError, match="does not hold a model that agelib saved"):
        model.load(path)


def test_frozen_stages_learn_nothing_and_the_others_do(tiny):
    made = model.create(replace(tiny, frozen_stages=2))
    before = {k: v.clone() for k, v in made.backbone.state_dict().items()}
    made.train()
    optimizer = torch.optim.SGD(
        [p for p in made.parameters() if p.requires_grad], lr=0.1
    )
    made(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)).sum().backward()
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
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    made.eval()
    assert torch.equal(made(images), made(images))
    made.train()
    made.backbone.requires_grad_(False)
    for norm in made.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eval()
    assert not torch.equal(made(images), made(images))
