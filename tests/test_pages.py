"""Pages made of notebooks, without running any."""

import base64
import tomllib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from agelib import pages, plots

ROOT = Path(__file__).parents[1]
HISTORY = """epoch,train_loss,val_mae,lr,seconds
1,3.21234,12.345,0.001,33.21
2,2.2,10.1,0.0005,32.9
3,2.1,10.3,0.00001,33
"""


@pytest.fixture
def clone(tmp_path):
    """A clone with a run, from whose folder pages must link back."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "runs/quick").mkdir(parents=True)
    (tmp_path / "runs/quick/recipe.json").touch()
    return tmp_path


@pytest.fixture
def shell():
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()
    plt.close("all")


def made(clone: Path, run: str = "quick", **notebooks: list) -> dict:
    """The pages of notebooks given as lists of cells, and their index, parsed."""
    folder = clone / "runs" / run
    paths = [clone / "notebooks" / f"{name}.ipynb" for name in notebooks]
    cells = [
        [new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in listed]
        for listed in notebooks.values()
    ]
    written = [new_notebook(cells=listed) for listed in cells]
    pages.write(dict(zip(paths, written, strict=True)), folder)
    return {path.stem: parsed(path) for path in folder.glob("*.html")}


def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def links(page: BeautifulSoup, below: str) -> dict[str, str]:
    return {a.text: a["href"] for a in page.select(f"{below} a:not(.anchor-link)")}


def test_a_pages_title_is_its_notebooks_heading(clone):
    page = made(clone, **{"01_a": ["# 1. Faces <& labels>\n## Ages"]})["01_a"]
    assert page.title.text == "1. Faces <& labels> \N{EN DASH} agelib"
    assert page.html["lang"] == "en"
    assert page.select_one("meta[name=viewport]")


def test_links_lead_from_the_page_to_pages_or_into_the_clone(clone):
    text = """# A
[next](02_b.ipynb#What-we-learned) [later](03_c.ipynb) [read](../README.md#Start)
[odd](../data/a%20b.md?x=1&y=2) [web](https://example.org/02_b.ipynb)
[mail](mailto:a@example.org) [here](#Ages) `<a href="02_b.ipynb">`"""
    page = made(clone, **{"01_a": [text], "02_b": ["# B"]})["01_a"]
    assert links(page, ".cell") == {
        "next": "02_b.html#What-we-learned",
        "later": "../../notebooks/03_c.ipynb",
        "read": "../../README.md#Start",
        "odd": "../../data/a%20b.md?x=1&y=2",
        "web": "https://example.org/02_b.ipynb",
        "mail": "mailto:a@example.org",
        "here": "#Ages",
    }
    assert page.select_one(".cell code").text == '<a href="02_b.ipynb">'


def test_pages_lead_to_their_neighbours_and_to_the_index(clone):
    made_of = made(clone, **{"01_a": ["# A"], "02_b": ["# B & b"], "03_c": ["# C"]})
    index = {"All notebooks": "index.html"}
    assert links(made_of["01_a"], "nav") == {"B & b →": "02_b.html"} | index
    both = {"← A": "01_a.html", "C →": "03_c.html"}
    assert links(made_of["02_b"], "nav") == both | index
    assert links(made_of["03_c"], "nav") == {"← B & b": "02_b.html"} | index
    assert len(made_of["02_b"].select("nav")) == 2
    assert not made_of["index"].select("nav")


def test_before_a_run_has_begun_there_is_no_index(clone):
    (clone / "runs/index.html").write_text("a reader's own")
    page = made(clone, ".", **{"01_a": ["# A"], "02_b": ["# B"]})["02_b"]
    assert links(page, "nav") == {"← A": "01_a.html"}
    assert (clone / "runs/index.html").read_text() == "a reader's own"


def test_a_hidden_cell_is_folded_and_its_output_is_not(clone):
    hidden = new_code_cell("import sys", metadata={"jupyter": {"source_hidden": True}})
    hidden.outputs = [new_output("stream", text="ready")]
    page = made(clone, **{"01_a": ["# A", hidden, new_code_cell("1 + 1")]})["01_a"]
    (folded,) = page.select("details:not([open])")
    assert folded.summary.text == "Set-up"
    assert "import sys" in folded.text
    assert "ready" not in folded.text
    assert "ready" in page.text
    assert "1 + 1" in page.text


@pytest.mark.filterwarnings("ignore:Your element with mimetype")
def test_a_page_holds_its_pictures_and_asks_no_one_for_anything(clone):
    plt.imsave(clone / "notebooks/small.png", np.zeros((2, 2)))
    widget = new_code_cell("upload")
    state = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    script = {"application/javascript": "fetch('https://example.org')"}
    widget.outputs = [
        new_output("display_data", data) for data in (state, script, TABLE)
    ]
    made_of = made(clone, **{"01_a": ["# A\n![a picture](small.png)", widget]})
    for page in made_of.values():
        assert foreign(page) == []
    assert made_of["01_a"].img["alt"] == "a picture"
    assert made_of["01_a"].td.text == "28.0"


TABLE = {"text/html": "<table><tr><td>28.0</td></tr></table>"}


def foreign(page: BeautifulSoup) -> list[str]:
    """What a page would load or run, beyond itself."""
    loading = page.select("script, link, iframe, object, embed, base, [srcset]")
    asked = [t["src"] for t in page.select("[src]") if t["src"][:11] != "data:image/"]
    styles = " ".join(style.text for style in page.select("style"))
    words = [word for word in ("@import", "url(", "http") if word in styles]
    return [*loading, *asked, *words]


def figure_cell(shell: InteractiveShell, figure) -> nbformat.NotebookNode:
    """A cell that has drawn a figure, as a kernel sends it."""
    plots.use_sharp_figures()
    data, told = shell.display_formatter.format(figure)
    for kind in data.keys() & {"image/jpeg", "image/png"}:
        data[kind] = base64.b64encode(data[kind]).decode()
    shown = new_output("display_data", data, metadata=told)
    return new_code_cell("plt.show()", outputs=[shown])


def titled(title="", xlabel="", ylabel="", text="", suptitle=""):
    figure, ax = plt.subplots()
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    ax.text(0, 0, text)
    figure.suptitle(suptitle)
    return figure


def faces(count: int, suptitle: str = ""):
    figure, axes = plt.subplots(1, count, squeeze=False)
    for n, ax in enumerate(axes.flat):
        ax.imshow(np.zeros((2, 2)))
        ax.set_title(f"{n} years")
    figure.suptitle(suptitle)
    return figure


def labelled():
    figure = titled("Share of faces", "k, years", "faces, %")
    figure.axes[0].plot([0, 1], label="median: 10% within 5 years")
    figure.axes[0].legend()
    return figure


@pytest.mark.parametrize(
    ("draw", "alt"),
    [
        (lambda: titled('MAE "4.25" years', "age"), 'MAE "4.25" years'),
        (lambda: titled("0-9 years\nn = 3"), "0-9 years, n = 3"),
        (lambda: titled("", "age", "faces"), "faces by age"),
        (lambda: titled("", "age"), "age"),
        (lambda: titled(text="41\n30 to 52"), "41, 30 to 52"),
        (lambda: titled("Bias", suptitle="By age"), "By age; Bias"),
        (labelled, "Share of faces (median: 10% within 5 years)"),
        (lambda: faces(1), "a picture; 0 years"),
        (lambda: faces(2, "oldest"), "oldest; 2 pictures; 0 years; 1 years"),
    ],
)
def test_a_figure_says_its_message_to_who_cannot_see_it(clone, shell, draw, alt):
    page = made(clone, **{"01_a": ["# A", figure_cell(shell, draw())]})["01_a"]
    assert page.img["alt"] == alt
    assert page.img["width"].isdigit()


def test_of_many_faces_the_first_dozen_is_told(clone, shell):
    page = made(clone, **{"01_a": ["# A", figure_cell(shell, faces(14))]})["01_a"]
    assert page.img["alt"].startswith("14 pictures; 0 years; 1 years; ")
    assert page.img["alt"].endswith("; 11 years; and 2 more")


def test_the_index_leads_to_the_pages_and_says_what_came_out(clone):
    (clone / "runs/quick/history.csv").write_text(HISTORY)
    (clone / "runs/quick/submission.csv").touch()
    index = made(clone, **{"01_a": ["# 1. Faces"], "02_b": ["# 2. Training"]})["index"]
    assert index.title.text == "The run quick \N{EN DASH} agelib"
    assert links(index, "ul") == {
        "1. Faces": "01_a.html",
        "2. Training": "02_b.html",
    }
    assert "Validation error: 10.10 years, after epoch 2 of 3." in index.text
    assert links(index, "p") == {"submission.csv": "submission.csv"}
    head, first, *_ = [
        [cell.text for cell in row.select("th, td")] for row in index.select("tr")
    ]
    assert head[1:4] == ["training loss", "validation error, years", "learning rate"]
    assert first == ["1", "3.212", "12.34", "0.00100", "33.0"]


def test_the_index_of_a_run_that_is_not_done_lists_what_there_is(clone):
    index = made(clone, **{"01_a": ["# 1. Faces"]})["index"]
    assert links(index, "main") == {"1. Faces": "01_a.html"}
    assert "Validation" not in index.text


def test_on_kaggle_the_index_leads_to_where_the_submission_lies(clone, monkeypatch):
    monkeypatch.setattr("agelib.env.submission_file", lambda _: clone / "my file.csv")
    (clone / "my file.csv").touch()
    (clone / "runs/quick/history.csv").write_text(HISTORY)
    index = made(clone, **{"01_a": ["# A"]})["index"]
    assert links(index, "p") == {"my file.csv": "../../my%20file.csv"}


def test_the_committed_notebooks_pages_need_no_network_and_no_link_is_dead(tmp_path):
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    (tmp_path / "recipe.json").touch()
    notebooks = {path: nbformat.read(path, as_version=4) for path in paths}
    pages.write(notebooks, tmp_path)
    assert len(list(tmp_path.glob("*.html"))) == len(paths) + 1
    for path in tmp_path.glob("*.html"):
        page = parsed(path)
        assert foreign(page) == []
        for link in page.select("a"):
            url = urlsplit(link["href"])
            if not url.scheme:
                assert (tmp_path / unquote(url.path)).exists(), link
                other = parsed(tmp_path / url.path) if "html" in url.path else page
                assert not url.fragment or other.find(id=unquote(url.fragment)), link


def test_an_installed_agelib_has_the_template():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    (name,) = tools["setuptools"]["package-data"]["agelib"]
    assert (ROOT / "agelib" / name).is_file()
