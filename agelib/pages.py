"""Notebooks as pages to read, and an index of them: one folder, no network, no script.

`page.html.j2` says how a page looks.
"""

import html
import os
import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from nbconvert import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from agelib import env, files, outcome, runs

INDEX = "index.html"
COLUMNS = {
    "train_loss": "training loss",
    "val_mae": "validation error, years",
    "lr": "learning rate",
}
DECIMALS = {"train_loss": 3, "val_mae": 2, "seconds": 0}


def write(notebooks: Mapping[Path, NotebookNode], folder: Path) -> None:
    """Writes a page for each notebook; in a run's folder also an index of them.

    Args:
        notebooks: with their outputs, in the order to read them, by the paths that
            their links count from.
    Raises:
        OSError: if the folder can't be written.
    """
    pages = {path: page_name(path) for path in notebooks}
    links = [(heading(notebooks[path]), name) for path, name in pages.items()]
    is_run = (folder / runs.RECIPE).is_file()
    for n, (path, notebook) in enumerate(notebooks.items()):
        beside = [(f"← {title}", name) for title, name in links[max(0, n - 1) : n]]
        beside += [("All notebooks", INDEX)] * is_run
        beside += [(f"{title} →", name) for title, name in links[n + 1 : n + 2]]
        text = page(notebook, path.parent, folder, pages, beside)
        files.write_text(text, folder / pages[path])
    if is_run:
        text = page(index(folder, links), folder, folder)
        files.write_text(text, folder / INDEX)


def page_name(path: Path) -> str:
    """The file name of a notebook's page."""
    return f"{path.stem}.html"


def heading(notebook: NotebookNode) -> str:
    """The first heading of a notebook."""
    texts = (c.source for c in notebook.cells if c.cell_type == "markdown")
    headings = re.findall(r"^#+ (.+)", "\n".join(texts), re.M)
    return headings[0] if headings else "A notebook"


def page(
    notebook: NotebookNode,
    home: Path,
    folder: Path,
    pages: Mapping[Path, str] | None = None,
    navigation: list[tuple[str, str]] | None = None,
) -> str:
    """A notebook as a page of HTML that holds all it shows.

    Args:
        home: the folder that the notebook's links and pictures count from.
        folder: where the page will lie.
        pages: of other notebooks there, which links to these then lead to.
        navigation: the words of each link and the page it leads to.
    """
    exporter = HTMLExporter(
        template_name="classic",
        raw_template=_template(),
        filters={"follow": _links(home, folder, pages or {})},
        embed_images=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    told = {"title": heading(notebook), "navigation": navigation or []}
    told["metadata"] = {"path": str(home)}
    return exporter.from_notebook_node(notebook, told)[0]


def index(run: Path, links: list[tuple[str, str]]) -> NotebookNode:
    """What a run has found, in a notebook of words alone: pages, error, submission."""
    lines = [f"# The run {run.name}", "What its notebooks show, in order:", ""]
    lines += [f"- [{title}]({name})" for title, name in links]
    if outcome.models(run)[0].with_name(runs.HISTORY).is_file():
        history = outcome.history(run)
        if history["fold"].nunique() == 1:
            history = history.drop(columns="fold")
        lines += ["## What came out", f"Validation error: **{outcome.error(run)}**."]
        submission = env.submission_file(run)
        if submission.is_file():
            lines += ["", f"Submission: [{submission.name}]({_url(submission, run)})."]
        table = history.round(DECIMALS).rename(columns=COLUMNS)
        lines += ["## The training, epoch by epoch"]
        lines += [table.to_html(index=False)]
    return new_notebook(cells=[new_markdown_cell("\n".join(lines))])


def _template() -> str:
    return (resources.files("agelib") / "page.html.j2").read_text(encoding="utf-8")


def _links(home: Path, folder: Path, pages: Mapping[Path, str]) -> Callable[[str], str]:
    """A filter of HTML from `home`, whose links then lead there from `folder` too."""

    def lead(match: re.Match) -> str:
        url = urlsplit(html.unescape(match[2]))
        if url.scheme or url.netloc or not url.path:
            return match[0]
        target = Path(os.path.normpath(home / unquote(url.path)))
        there = pages.get(target) or _url(target, folder)
        return match[1] + html.escape(there + url._replace(path="").geturl())

    return lambda text: re.sub(r'(<a [^>]*?href=")([^"]*)', lead, text)


def _url(path: Path, folder: Path) -> str:
    """The path as a page in the folder links to it."""
    try:
        return quote(Path(os.path.relpath(path, folder)).as_posix())
    except ValueError:  # on another drive of Windows
        return path.as_uri()
