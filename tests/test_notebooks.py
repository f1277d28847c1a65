"""The notebooks keep the rules that make them pleasant to read."""

import ast
import base64
import itertools
import re
from io import BytesIO
from pathlib import Path
from statistics import median

import nbformat
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = ["01_eda", "02_training", "03_validation", "04_submission", "05_your_photo"]


def cells(name: str, kind: str | None = None) -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    return [c for c in notebook.cells if kind in (None, c.cell_type)]


def code_lines(cell: nbformat.NotebookNode) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip()]


def tree(name: str) -> ast.Module:
    """All code of a notebook, without the lines that only IPython reads."""
    lines = [line for c in cells(name, "code") for line in code_lines(c)]
    return ast.parse("\n".join(line for line in lines if line[0] not in "%!"))


def test_there_are_five_notebooks_in_order():
    assert sorted(p.stem for p in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_short(name):
    assert 20 <= len(cells(name)) <= 40
    lengths = [len(code_lines(c)) for c in cells(name, "code")]
    assert sum(lengths) <= 90
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
def test_a_notebook_imports_once_then_sets_its_parameters(name):
    _, first, second, *others = cells(name, "code")
    assert "from agelib import" in first.source
    assert not [c for c in others if re.search(r"^\s*(import|from) ", c.source, re.M)]
    assigned = re.findall(r"^(\w+)[\w, ]* = ", second.source, re.M)
    assert assigned
    assert all(variable.isupper() for variable in assigned)


def test_all_notebooks_begin_with_the_same_cell():
    assert len({cells(name, "code")[0].source for name in NAMES}) == 1


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
    assert [n for n in ast.walk(tree(name)) if isinstance(n, ast.Assert)]


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
    assert all("image/jpeg" in str(c.outputs) for c in plots)


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
    pictures = [o for o in outputs if "image/jpeg" in o.get("data", {})]
    assert pictures
    assert not [o for o in outputs if "image/png" in o.get("data", {})]
    for output in pictures:
        jpeg = base64.b64decode(output.data["image/jpeg"])
        width = output.metadata["image/jpeg"]["width"]
        assert Image.open(BytesIO(jpeg)).width // 2 == width
        # ten inches and their margins, which a page holds
        assert width <= 1020
