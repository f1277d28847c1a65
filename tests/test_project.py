"""What stands in two places says the same in both."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pip_requirements() -> set[str]:
    extras = PROJECT["optional-dependencies"].values()
    listed = {r for extra in [PROJECT["dependencies"], *extras] for r in extra}
    return {r for r in listed if not r.startswith("agelib")}


def conda_lines() -> list[str]:
    text = (ROOT / "environment.yml").read_text()
    return [line.strip() for line in text.split("- pip:\n")[1].splitlines()]


def test_pip_and_conda_install_the_same_packages():
    conda = {line.removeprefix("- ").split("  #")[0].strip() for line in conda_lines()}
    assert conda == pip_requirements()


def test_every_package_has_a_reason():
    assert all(re.search(r"  # .{10,}", line) for line in conda_lines())


def test_both_allow_the_same_pythons():
    assert f"python{PROJECT['requires-python']}" in (
        ROOT / "environment.yml"
    ).read_text().replace("  - ", "")


@pytest.mark.parametrize("target", ["run", "test", "lab"])
def test_the_readme_names_each_make_target(target):
    assert re.search(rf"^{target}:.*\$\(SETUP\)", (ROOT / "Makefile").read_text(), re.M)
    assert f"make {target}" in (ROOT / "README.md").read_text()


def test_ci_runs_the_readmes_test_command():
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
