"""The notebooks keep the rules that make them pleasant to read."""

import ast
import base64
import gc
import itertools
import re
import sys
from io import BytesIO
from pathlib import Path
from statistics import median

import nbformat
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = ["01_eda", "02_training", "03_validation", "04_submission", "05_your_photo"]
NAMES += ["06_trust"]
# numbers in the prose that are no results: how many faces the sample has, bits of a
# hash, the ages of a distribution, the confidence of an interval, a year, a report
KNOWN = {
    "01_eda": {300, 256},
    "02_training": {0, 95, 100},
    "03_validation": {95},
    "06_trust": {90, 95, 2024, 8525},
}


def cells(name: str, kind: str | None = None) -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    return [c for c in notebook.cells if kind in (None, c.cell_type)]


def code_lines(cell: nbformat.NotebookNode) -> list[str]:
    lines = cell.source.splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def parsed(lines: list[str]) -> ast.Module:
    """The code, without the lines that only IPython reads."""
    code = "\n".join(line for line in lines if line[:1] not in ("%", "!"))
    # up to Python 3.11.7 it may fail if garbage is collected meanwhile (gh-106905)
    gc.disable()
    try:
        return ast.parse(code)
    finally:
        gc.enable()


def tree(name: str) -> ast.Module:
    """All code of a notebook."""
    return parsed([line for c in cells(name, "code") for line in code_lines(c)])


def test_there_are_six_notebooks_in_order():
    assert sorted(p.stem for p in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_short(name):
    assert 20 <= len(cells(name)) <= 45
    lengths = [len(code_lines(c)) for c in cells(name, "code")]
    assert sum(lengths) <= 100
    assert median(lengths) <= 3
    assert max(lengths) <= 12
    assert max(len(line) for c in cells(name, "code") for line in code_lines(c)) <= 88
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 1_000_000


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_only_uses_what_agelib_defines(name):
    nodes = list(ast.walk(tree(name)))
    definitions = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
    assert not [n for n in nodes if isinstance(n, definitions)]
    loops = (ast.For, ast.While)
    inside = [c for n in nodes if isinstance(n, loops) for c in ast.walk(n) if c != n]
    assert not [n for n in inside if isinstance(n, loops)]
    imports = [n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
    assert all(alias.name != "*" for n in imports for alias in n.names)
    assert "agelib" in {n.module for n in imports if isinstance(n, ast.ImportFrom)}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_imports_once_and_agelib_first(name):
    """Before torch, for what agelib tells OpenMP counts only until torch loads it."""
    _, imports, *others = cells(name, "code")
    lines = re.findall(r"^(?:from|import) (\w+)", imports.source, re.M)
    ours = [line for line in lines if line not in sys.stdlib_module_names]
    assert ours[0] == "agelib"
    assert not [c for c in others if re.search(r"^\s*(import|from) ", c.source, re.M)]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_reader_may_edit_stands_in_one_cell_in_capitals(name):
    _, _, parameters, *others = cells(name, "code")
    found = {assigned.isupper() for assigned in names_assigned(parameters.source)}
    assert True in found
    assert not [n for c in others for n in names_assigned(c.source) if n.isupper()]


def names_assigned(source: str) -> list[str]:
    nodes = ast.walk(parsed(source.splitlines()))
    return [
        n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    ]


def test_all_notebooks_begin_with_the_same_cell():
    first = [cells(name, "code")[0] for name in NAMES]
    assert len({cell.source for cell in first}) == 1
    # folded away in JupyterLab, on Kaggle and on Colab
    for cell in first:
        assert cell.metadata["jupyter"]["source_hidden"]
        assert cell.metadata["_kg_hide-input"]
        assert cell.metadata["cellView"] == "form"
        assert cell.source.startswith("# @title ")


@pytest.mark.parametrize("name", NAMES)
def test_prose_stands_before_and_after_every_code_cell(name):
    kinds = [c.cell_type for c in cells(name)]
    assert kinds[:2] == ["markdown", "code"]
    assert kinds[-1] == "markdown"
    assert ("code", "code") not in set(itertools.pairwise(kinds))
    texts = [c.source for c in cells(name, "markdown")]
    assert texts[0].startswith(f"# {int(name[:2])}. ")
    assert "## What we learned" in texts[-1]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_asserts_its_one_decisive_claim(name):
    claims = [n.test for n in ast.walk(tree(name)) if isinstance(n, ast.Assert)]
    assert claims
    # of something that the notebook worked out
    assert all(variables(claim) for claim in claims)


def variables(claim: ast.expr) -> list[str]:
    return [node.id for node in ast.walk(claim) if isinstance(node, ast.Name)]


@pytest.mark.parametrize("name", NAMES)
def test_each_number_in_the_prose_is_shown_by_the_notebook(name):
    shown = set()
    for cell in cells(name, "code"):
        for output in cell.outputs:
            told = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            shown |= numbers(told)
        shown |= numbers(cell.source)
    told = numbers("\n".join(map(prose, cells(name, "markdown"))))
    assert told - shown - KNOWN.get(name, set()) == set()


def prose(cell: nbformat.NotebookNode) -> str:
    """A text without code, addresses, and the numbers of notebooks and of lists."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|\[\d\d_\w+", " ", cell.source)
    return re.sub(r"^#* ?\d\. |notebooks? \d", " ", text, flags=re.M)


def numbers(text: str) -> set[float]:
    found = re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", text)
    return {float(number.replace(",", "")) for number in found}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_ends_with_exercises_and_ways_on(name):
    last = cells(name, "markdown")[-1].source
    exercises = last.split("## Try it")[1]
    assert re.findall(r"^(\d)\. ", exercises, re.M) == ["1", "2", "3"]
    place = NAMES.index(name)
    for neighbour in NAMES[max(0, place - 1) : place] + NAMES[place + 1 : place + 2]:
        assert f"({neighbour}.ipynb)" in exercises


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_one_run_from_top_to_bottom(name):
    code = cells(name, "code")
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    # a widget without its kernel is only a line of text that says 0%
    assert not [o for o in outputs if "widget-view" in str(o.get("data", {}).keys())]
    assert not [c for c in code if "execution" in c.metadata]
    plots = [c for c in code if "plt.show()" in c.source]
    assert plots
    assert all("image/" in str(c.outputs) for c in plots)


@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_is_the_one_every_machine_has(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"
    nbformat.validate(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_tell_no_path_of_a_machine(name):
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert not re.search(r"/(home|root|tmp|Users|work)/", text)


@pytest.mark.parametrize("name", NAMES)
def test_figures_have_two_pixels_a_point(name):
    outputs = [o for c in cells(name, "code") for o in c.outputs]
    pictures = [
        (base64.b64decode(content), output.metadata[kind]["width"])
        for output in outputs
        for kind, content in output.get("data", {}).items()
        if kind.startswith("image/")
    ]
    assert pictures
    for content, width in pictures:
        assert Image.open(BytesIO(content)).width // 2 == width
        # ten inches and their margins, which a page holds
        assert width <= 1020
