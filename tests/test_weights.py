"""Weights are whole and tensors alone, wherever they come from."""

import errno
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from agelib import model, recipe, weights
from tests.conftest import TINY

NAME = TINY.backbone
SAFE, PTH, BIN = ENDS = (".safetensors", ".pth", ".bin")
LITE0 = "tf_efficientnet_lite0.in1k"


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """A checkpoint's: not what a model of that name begins with."""
    net = timm.create_model(NAME)
    torch.nn.init.uniform_(net.bn1.running_mean)
    return net.state_dict()


@pytest.fixture
def attached(tmp_path, monkeypatch):
    """Attaches a file of weights with that ending; the file."""
    folder = tmp_path / "attached"
    folder.mkdir()
    monkeypatch.setenv("AGELIB_WEIGHTS", str(folder))

    def attach(content: object, end: str = PTH) -> Path:
        path = folder / f"{NAME}{end}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif end == SAFE:
            save_file(content, path)
        else:
            torch.save(content, path)
        return path

    return attach


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """The folder of weights of another package in the place of Lite0's."""
    folder = tmp_path / "site" / weights.PIP_WEIGHTS[LITE0] / "models"
    folder.mkdir(parents=True)
    folder.with_name("__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


class Evil:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def same(backbone: torch.nn.Module, tensors: dict, but: tuple = ()) -> bool:
    held = backbone.state_dict()
    return all(torch.equal(held[n], t) for n, t in tensors.items() if n not in but)


HEAD = ("classifier.weight", "classifier.bias")


# -- what is taken ---------------------------------------------------------------------


@pytest.mark.parametrize("end", ENDS)
def test_weights_come_from_the_attached_file(attached, tensors, end):
    attached(tensors, end)
    assert same(weights.pretrained_backbone(NAME), tensors)
    created = model.create(TINY).backbone
    assert same(created, tensors, but=HEAD)
    assert created.get_classifier().out_features == 101
    # the next room would copy them with every copy of the model
    assert "state_dict" not in created.pretrained_cfg


@pytest.mark.parametrize(
    "changed",
    [
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"model": t},
        lambda t: {f"module.{name}": tensor for name, tensor in t.items()},
        lambda t: {n: torch.nn.Parameter(x) for n, x in t.items() if "num_b" not in n},
        lambda t: {
            n: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
            for n, x in t.items()
        },
        lambda t: {n: x.double() if x.is_floating_point() else x for n, x in t.items()},
    ],
    ids=["state_dict", "model", "module", "parameters", "channels_last", "double"],
)
def test_the_usual_forms_of_a_pth_are_taken(attached, tensors, changed):
    attached(changed(tensors))
    assert same(weights.pretrained_backbone(NAME), tensors)


@pytest.mark.parametrize("end", [SAFE, PTH])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(attached, tensors, dtype, end):
    less = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    attached(less, end)
    backbone = weights.pretrained_backbone(NAME)
    assert all(p.dtype == torch.float32 for p in backbone.parameters())
    assert same(backbone, {n: t.to(tensors[n].dtype) for n, t in less.items()})


@pytest.mark.parametrize("classes", [None, 5, 101])
def test_only_the_head_may_be_missing_or_of_another_size(attached, tensors, classes):
    for name in HEAD:
        other = tensors.pop(name)
        if classes:
            tensors[name] = other[:classes].clone()
    attached(tensors, SAFE)
    backbone = weights.pretrained_backbone(NAME, num_classes=101)
    assert same(backbone, tensors, but=HEAD if classes != 101 else ())
    assert backbone.get_classifier().out_features == 101


def test_timm_still_converts_weights_of_another_form(tmp_path, monkeypatch):
    """The patches' projection of a ViT, that a linear layer once was."""
    name = "test_vit.r160_in1k"
    tensors = timm.create_model(name).state_dict()
    kept = tensors["patch_embed.proj.weight"]
    save_file(
        tensors | {"patch_embed.proj.weight": kept.flatten(1)},
        tmp_path / f"{name}.safetensors",
    )
    monkeypatch.setenv("AGELIB_WEIGHTS", str(tmp_path))
    assert same(
        weights.pretrained_backbone(name, num_classes=1),
        tensors,
        but=("head.weight", "head.bias"),
    )


def test_lite0_carries_the_pip_installed_imagenet_weights():
    lite0 = model.create(recipe.get("cpu"))
    (package,) = find_spec(weights.PIP_WEIGHTS[LITE0]).submodule_search_locations
    (file,) = Path(package).glob("models/*.pth")
    packaged = torch.load(file, weights_only=True)
    tensors = list(lite0.backbone.state_dict().values())[:-2]
    assert len(packaged) == 296
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(tensors, list(packaged.values())[:-2], strict=True)
    )


def test_a_full_disk_is_not_taken_for_a_missing_network(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights.timm, "create_model", full)
    with pytest.raises(OSError, match="No space left") as told:
        weights.pretrained_backbone("tf_efficientnetv2_s.in1k", num_classes=101)
    assert not isinstance(told.value, ConnectionError)


def test_without_a_network_the_ways_out_are_named(tmp_path):
    """In a process of its own: the hub client reads HF_HUB_OFFLINE when imported."""
    code = "from agelib import model, recipe; model.create(recipe.get('gpu'))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert "ConnectionError: The weights of tf_efficientnetv2_s" in run.stderr
    assert "AGELIB_WEIGHTS" in run.stderr
    assert "AGELIB_RECIPE=quick" in run.stderr


# -- what would run code ---------------------------------------------------------------


def hostile(mark: Path) -> dict[str, object]:
    evil = Evil(mark)
    return {
        "bare": pickle.dumps(evil, 2),
        "bare, protocol 4": pickle.dumps(evil, 4),
        "torch": evil,
        "beside tensors": {"conv_stem.weight": torch.ones(2), "evil": evil},
        "beside a state_dict": {"state_dict": {"a": torch.ones(2)}, "args": evil},
        "as a name": {evil: torch.ones(2)},
    }


FORMS = list(hostile(Path()))


@pytest.mark.parametrize("form", FORMS)
def test_the_files_of_this_test_would_leave_a_mark(attached, tmp_path, form):
    content = hostile(tmp_path / "mark")[form]
    with suppress(RuntimeError, TypeError):
        torch.load(attached(content), weights_only=False)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("end", ENDS)
def test_no_attached_file_runs_code(attached, tmp_path, form, end):
    content = hostile(tmp_path / "mark")[form]
    path = attached(content, PTH)
    path = path.rename(path.with_suffix(end))
    with pytest.raises(ValueError, match="could run code when it is read") as refused:
        model.create(TINY)
    assert str(refused.value).startswith(str(path))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("form", FORMS)
def test_no_package_runs_code(package, tmp_path, form):
    content, path = hostile(tmp_path / "mark")[form], package / "lite0.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="could run code when it is read") as refused:
        model.create(recipe.get("quick"))
    assert str(refused.value).startswith(str(path))
    assert not (tmp_path / "mark").exists()


# -- what is no whole set of weights ---------------------------------------------------


def test_a_package_of_another_network_is_refused(package):
    tensors = dict.fromkeys(map(str, range(296)), torch.ones(2))
    torch.save(tensors, package / "lite0.pth")
    told = r"conv_stem\.weight has the shape \(2,\), not \(32, 3, 3, 3\)"
    with pytest.raises(ValueError, match=rf"lite0\.pth does not hold.*{told}"):
        model.create(recipe.get("quick"))


def test_a_package_without_weights_says_how_to_get_them(package):
    with pytest.raises(FileNotFoundError, match="--force-reinstall efficientnet-lite0"):
        model.create(recipe.get("quick"))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git-lfs"),
        (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"{}", "is damaged|is no complete"),
        (bytes(range(256)) * 9, "is damaged|is no complete"),
        (b"\xff" * 7 + b"\x00{}", "is damaged|is no complete"),
        (b"\x02" + bytes(7) + b"{}", "is damaged|holds no weights"),
    ],
)
def test_what_lies_in_the_place_of_weights_is_told(attached, content, told, end):
    path = attached(content, end)
    with pytest.raises(ValueError, match=told) as refused:
        model.create(TINY)
    assert str(refused.value).startswith(str(path))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_file_cut_short_is_told(attached, tensors, end, share):
    path = attached(tensors, end)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"is damaged|is no complete") as refused:
        model.create(TINY)
    assert str(refused.value).startswith(str(path))


def test_a_safetensors_file_renamed_from_pth_is_told(attached, tensors):
    path = attached(tensors, PTH)
    path.rename(path.with_suffix(SAFE))
    with pytest.raises(ValueError, match=r"is a pickle.*save its tensors as safetens"):
        model.create(TINY)


@pytest.mark.parametrize("end", ENDS)
def test_a_folder_a_pipe_and_a_link_to_nowhere_are_told(attached, end):
    path = attached(b"", end)
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="is a folder") as refused:
        model.create(TINY)
    assert str(path) in str(refused.value)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(OSError, match="is a device or a pipe"):
        model.create(TINY)
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        model.create(TINY)


def without(part: str):
    return lambda t: {n: x for n, x in t.items() if part not in n}


def changed(**new):
    return lambda t: (
        t
        | {
            n.replace("__", "."): change(t[n.replace("__", ".")])
            for n, change in new.items()
        }
    )


@pytest.mark.parametrize("end", [SAFE, PTH])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("blocks"), r"63 of 75 tensors are missing, blocks\.0"),
        (without("conv_stem"), r"1 of 75 tensors are missing, conv_stem\.weight"),
        (without("running_var"), r"bn1\.running_var first"),
        (
            lambda t: {f"net.{n}": x for n, x in t.items()},
            r"88 do not belong there, net\.",
        ),
        (lambda t: t | {"more": torch.ones(2)}, "1 do not belong there, more first"),
        (changed(conv_stem__weight=lambda x: x[:8].clone()), r"shape \(8, 3, 3, 3\)"),
        (changed(bn1__weight=lambda x: x[0].clone()), r"shape \(\), not"),
        (
            changed(bn1__weight=lambda x: x[:0].clone()),
            r"bn1\.weight is of the.* shape \(0,\)",
        ),
        (changed(bn1__bias=lambda x: x * torch.nan), r"bn1\.bias is not finite"),
        (changed(bn1__bias=lambda x: x.double() + 1e300), r"bn1\.bias is not finite"),
        (changed(bn1__running_var=lambda x: -x), r"bn1\.running_var is a variance"),
        (changed(bn1__weight=lambda x: x.long()), r"bn1\.weight is of the type.*int64"),
        (
            changed(bn1__weight=lambda x: x.bool()),
            r"bn1\.weight is of the type.*(?i:bool)",
        ),
        (changed(bn1__weight=lambda x: x.to(torch.float8_e4m3fn)), "is of.*(?i:e4m3)"),
        (changed(bn1__num_batches_tracked=lambda x: x.float()), None),
    ],
)
def test_weights_that_are_not_whole_are_refused(attached, tensors, change, told, end):
    path = attached(change(tensors), end)
    if told is None:
        assert model.create(TINY)
        return
    with pytest.raises(ValueError, match=told) as refused:
        model.create(TINY)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(2)],
        torch.ones(2),
        {},
        {"state_dict": {}},
        {"a": [torch.ones(2)]},
        {1: torch.ones(2)},
        {"a": 1.0},
        {"a": torch.ones(1).expand(1000, 1000)},
        {"a": torch.ones(2, 2).to_sparse()},
        {"a": torch.ones(2, device="meta")},
    ],
)
def test_a_pth_without_plain_tensors_by_name_is_refused(attached, content):
    path = attached(content)
    with pytest.raises(ValueError, match="something else than tensors by name"):
        weights.read(path)


def test_complex_numbers_are_no_weights(attached):
    path = attached({"a": torch.ones(2, dtype=torch.complex64)})
    with pytest.raises(ValueError, match=r"a is of the type torch\.complex64"):
        weights.read(path)


def test_a_head_of_many_short_rows_takes_no_memory(attached, tensors):
    attached(tensors | {"classifier.weight": torch.ones(10**6, 1)}, SAFE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        ValueError, match=r"classifier\.weight has the shape \(1000000, 1"
    ):
        model.create(TINY)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_a_packed_pth_is_refused_before_it_fills_the_memory(attached, tmp_path):
    path = attached({"a": torch.zeros(10**6)})
    with zipfile.ZipFile(path) as plain:
        parts = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in parts.items():
            packed.writestr(name, content)
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match="is damaged"):
        weights.read(path)


class Bytes:
    """A few bytes that tell of many."""

    def __reduce__(self):
        return bytearray, (8 * 10**9,)


def test_a_pth_that_tells_of_more_bytes_than_it_has_is_refused_at_once(attached):
    path = attached({"a": torch.ones(2), "more": Bytes()})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="is damaged"):
        weights.read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_names_of_a_file_are_told_in_one_short_line(attached, tensors):
    attached(tensors | {"a\nb\x1b" + "x" * 10**6: torch.ones(2)}, SAFE)
    with pytest.raises(ValueError, match="1 do not belong there, a b x") as refused:
        model.create(TINY)
    assert len(str(refused.value)) < 600


def test_weights_of_the_hub_that_are_damaged_are_told(monkeypatch):
    def damaged(*args, **kwargs):
        raise SafetensorError("header too small")

    monkeypatch.setattr(timm, "create_model", damaged)
    with pytest.raises(
        ValueError, match=r"are damaged.*header too small.*empty the ca"
    ):
        weights.pretrained_backbone("tf_efficientnetv2_s.in1k")


@pytest.mark.parametrize("kind", [MemoryError, partial(OSError, errno.ENOSPC)])
def test_a_machine_that_is_full_is_not_called_a_network_that_fails(monkeypatch, kind):
    error = kind("no room")

    def failing(*args, **kwargs):
        raise error

    monkeypatch.setattr(timm, "create_model", failing)
    with pytest.raises(type(error), match="no room") as raised:
        weights.pretrained_backbone("tf_efficientnetv2_s.in1k")
    assert raised.value is error


@pytest.mark.parametrize(
    "error",
    [
        OSError("We couldn't connect to the hub"),
        RuntimeError("Data processing error: CAS service error"),
        # what the hub's client raises is no OSError in each version
        Exception("The read operation timed out"),
    ],
)
def test_a_network_that_fails_is_told_with_the_ways_out(monkeypatch, error):
    def failing(*args, **kwargs):
        raise error

    monkeypatch.setattr(timm, "create_model", failing)
    told = rf"can't be fetched \({error}\)\. Either put its file .*AGELIB_RECIPE=quick"
    with pytest.raises(ConnectionError, match=told):
        weights.pretrained_backbone("tf_efficientnetv2_s.in1k")


def test_a_network_that_timm_has_no_weights_of_is_told():
    with pytest.raises(ValueError, match="has no weights of efficientnet_b6"):
        weights.pretrained_backbone("efficientnet_b6")


# -- what they saw ---------------------------------------------------------------------


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
        # distilled, though the tag names ImageNet alone
        ("deit_tiny_distilled_patch16_224.fb_in1k", False),
        ("hrnet_w18_ssld.paddle_in1k", False),
        ("edgenext_small.usi_in1k", False),
    ],
)
def test_pretraining_tells_what_a_checkpoint_saw(checkpoint, imagenet_only):
    seen = weights.pretraining(checkpoint)
    assert (seen.checkpoint, seen.imagenet_only) == (checkpoint, imagenet_only)


def test_a_bare_b4_means_the_checkpoint_that_saw_jft():
    seen = weights.pretraining("tf_efficientnet_b4")
    assert seen.checkpoint == "tf_efficientnet_b4.ns_jft_in1k"
    assert not seen.imagenet_only


@pytest.mark.parametrize("name", ["resnet1000", "resnet18.of_my_own", "hf-hub:a/b"])
def test_pretraining_of_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match=f"no backbone '{name}'"):
        weights.pretraining(name)
