import math
import os
import shutil
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from agelib import env


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """Neither Kaggle nor Colab, and no AGELIB_ variable set."""
    for name in os.environ:
        if name.startswith(("AGELIB_", "KAGGLE_", "COLAB_")):
            monkeypatch.delenv(name)


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "KAGGLE", tmp_path)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    return tmp_path


def test_place_is_read_from_the_environment(monkeypatch):
    assert env.place() == "local"
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    assert env.place() == "Colab"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert env.place() == "Kaggle"


def test_the_chosen_folder_comes_before_kaggle_and_the_sample(
    dataset, kaggle, monkeypatch
):
    attached = kaggle / "input" / "smai" / "content" / "faces_dataset"
    assert env.data_folder() == env.HOME / "data" / "sample"
    (attached / "train").mkdir(parents=True)
    (attached / "train.csv").touch()
    assert env.data_folder() == attached
    monkeypatch.setenv("AGELIB_DATA", str(dataset))
    assert env.data_folder() == dataset


def test_a_relative_folder_counts_from_the_clone(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(env, "HOME", tmp_path / "clone" / "main")
    monkeypatch.setenv("AGELIB_DATA", "../../faces")
    assert env.data_folder() == dataset


def test_no_dataset_at_the_chosen_path_is_named_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("AGELIB_DATA", str(tmp_path / "faces"))
    with pytest.raises(FileNotFoundError, match=r"faces: .*no train\.csv.*AGELIB_DATA"):
        env.data_folder()


def test_a_path_that_no_disk_takes_is_no_dataset(monkeypatch):
    monkeypatch.setenv("AGELIB_DATA", "/" + 300 * "x")
    with pytest.raises(FileNotFoundError, match="No dataset at /xxx"):
        env.data_folder()


@pytest.mark.parametrize("variable", ["AGELIB_DATA", "AGELIB_RUNS", "AGELIB_WEIGHTS"])
def test_the_home_of_an_unknown_user_is_named_with_the_way_out(variable, monkeypatch):
    monkeypatch.setenv(variable, "~nobody-of-this-name/x")
    with pytest.raises(ValueError, match=f"{variable} is '~nobody-of.*path in full"):
        env.chosen_folder(variable)


def test_results_go_beside_the_package_to_kaggle_working_or_where_told(
    kaggle, tmp_path, monkeypatch
):
    assert env.run_folder("cpu") == kaggle / "working" / "runs" / "cpu"
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    monkeypatch.setattr(env, "HOME", tmp_path / "clone")
    assert env.run_folder("cpu") == tmp_path / "clone" / "runs" / "cpu"
    monkeypatch.setenv("AGELIB_RUNS", str(tmp_path / "mine"))
    assert env.run_folder("cpu") == tmp_path / "mine" / "cpu"
    assert (tmp_path / "mine" / "cpu").is_dir()


def test_a_run_folder_that_cannot_be_written_is_named_with_the_way_out(
    tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AGELIB_RUNS", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"run folder .*file/cpu.*Set AGELIB_RUNS"):
        env.run_folder("cpu")
    assert list(Path(tmp_path).iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize(
    "mounted", ["training", "notebooks/anna/training"], ids=["earlier", "since 2026"]
)
def test_on_kaggle_attached_runs_are_listed_and_not_taken_over(kaggle, mounted):
    attached = kaggle / "input" / mounted / "runs" / "cpu"
    assert env.attached_runs() == []
    attached.mkdir(parents=True)
    (attached / "note").touch()
    assert env.attached_runs() == [attached]
    assert not list(env.run_folder("cpu").iterdir())


def test_elsewhere_nothing_is_attached(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "KAGGLE", tmp_path)
    (tmp_path / "input" / "training" / "runs" / "cpu").mkdir(parents=True)
    assert env.attached_runs() == []


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AGELIB_RUNS", "~/runs")
    assert env.run_folder("cpu") == tmp_path / "runs" / "cpu"


def test_the_submission_lies_in_the_run_and_on_kaggle_where_it_looks(
    kaggle, tmp_path, monkeypatch
):
    assert env.submission_file(tmp_path / "run") == kaggle / "working/submission.csv"
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    assert env.submission_file(tmp_path / "run") == tmp_path / "run/submission.csv"


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """Colab with nothing mounted and agelib installed: there is no clone."""
    monkeypatch.setattr(env, "COLAB", tmp_path / "content")
    monkeypatch.setattr(env, "HOME", tmp_path / "content")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    return tmp_path / "content"


def test_on_colab_the_faces_lie_in_content_or_in_the_mounted_drive(colab, dataset):
    with pytest.raises(FileNotFoundError, match=r"/content .*Drive.*KAGGLE_API_TOKEN"):
        env.data_folder()
    drive = colab / "drive" / "MyDrive"
    shutil.copytree(dataset, drive / "my faces")
    assert env.data_folder() == drive / "my faces"
    shutil.copytree(dataset, colab / "faces_dataset")
    assert env.data_folder() == colab / "faces_dataset"


def test_on_colab_kagglehub_brings_the_faces_if_it_knows_an_account(
    colab, dataset, monkeypatch, tmp_path
):
    """With stand-ins for kagglehub's two functions, of the same names."""
    shutil.copytree(dataset, tmp_path / "cache" / "content" / "faces_dataset")
    hub, config = ModuleType("kagglehub"), ModuleType("kagglehub.config")
    hub.__spec__ = ModuleSpec("kagglehub", None)
    asked = []
    hub.competition_download = lambda name: asked.append(name) or tmp_path / "cache"
    config.get_kaggle_credentials = lambda: None
    monkeypatch.setitem(sys.modules, "kagglehub", hub)
    monkeypatch.setitem(sys.modules, "kagglehub.config", config)
    with pytest.raises(FileNotFoundError, match="secrets"):
        env.data_folder()
    config.get_kaggle_credentials = lambda: ("anna", "key")
    assert env.data_folder() == tmp_path / "cache" / "content" / "faces_dataset"
    assert asked == ["smai-24-age-prediction"]


def test_weights_lie_in_the_chosen_folder_or_beside_the_wheel(tmp_path, monkeypatch):
    assert env.weights_folder() is None
    monkeypatch.setattr(env, "_INSTALLED", tmp_path / "agelib-1.0-py3-none-any.whl")
    assert env.weights_folder() == tmp_path
    monkeypatch.setenv("AGELIB_WEIGHTS", str(tmp_path / "mine"))
    assert env.weights_folder() == tmp_path / "mine"


def test_the_shipped_model_lies_in_the_clone_or_beside_the_wheel(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "HOME", tmp_path / "clone")
    with pytest.raises(
        FileNotFoundError, match=r"data/checkpoints/lite0\.safetensors: "
    ):
        env.shipped_model()
    monkeypatch.setattr(env, "_INSTALLED", tmp_path / "agelib-1.0-py3-none-any.whl")
    with pytest.raises(FileNotFoundError, match="set AGELIB_WEIGHTS to it"):
        env.shipped_model()
    beside = tmp_path / "lite0.safetensors"
    beside.touch()
    assert env.shipped_model() == beside
    in_clone = tmp_path / "clone" / "data" / "checkpoints" / "lite0.safetensors"
    in_clone.parent.mkdir(parents=True)
    in_clone.touch()
    assert env.shipped_model() == in_clone


def test_the_notebooks_are_those_with_a_number_and_no_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "HOME", tmp_path)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("02_b.ipynb", "01_a.ipynb", "01_a-Copy1.ipynb", "mine.ipynb", "03_c"):
        (folder / name).touch()
    assert env.notebooks() == [folder / "01_a.ipynb", folder / "02_b.ipynb"]


def test_the_time_limit_is_kaggles_or_the_one_chosen(kaggle, monkeypatch):
    monkeypatch.setattr(env, "_IMPORTED", time.monotonic() - 3600)
    assert env.time_limit_hours() == pytest.approx(11, abs=0.01)
    monkeypatch.setattr(env, "_IMPORTED", time.monotonic() - 13 * 3600)
    assert env.time_limit_hours() == 0
    monkeypatch.setenv("AGELIB_TIME_LIMIT_HOURS", "0.5")
    assert env.time_limit_hours() == 0.5
    for wrong in ("soon", "0", "nan"):
        monkeypatch.setenv("AGELIB_TIME_LIMIT_HOURS", wrong)
        with pytest.raises(ValueError, match=f"'{wrong}': set it to a number"):
            env.time_limit_hours()
    monkeypatch.delenv("AGELIB_TIME_LIMIT_HOURS")
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    assert env.time_limit_hours() == math.inf
