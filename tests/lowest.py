"""Prints the lowest versions that pyproject.toml allows, as constraints for pip."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(
    (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
)["project"]
extras = project["optional-dependencies"].values()
for requirement in sum(extras, project["dependencies"]):
    if not requirement.startswith("agelib["):
        print(re.sub(">=([^,]+).*", r"==\1", requirement))
