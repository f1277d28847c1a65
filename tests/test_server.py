"""Beside a Jupyter server: large photos get in, and no faces get into tracked files."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from jupyter_server.serverapp import ServerApp

from agelib import server

ROOT = Path(__file__).parents[1]
FACE = "the face of somebody"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """A server as `make lab` starts it, without the user's own configuration."""
    folder = tmp_path_factory.mktemp("server")
    make = (ROOT / "Makefile").read_text()
    put, start = re.search(r"^lab:.*\n\t(.+)\n\t(.+)", make, re.M).groups()
    source, target = re.fullmatch(r"cp (\S+) \.venv/etc/jupyter/(\S+)", put).groups()
    (folder / "jupyter" / target).parent.mkdir(parents=True)
    shutil.copy(ROOT / source, folder / "jupyter" / target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_CONFIG_PATH", str(folder / "jupyter"))
        patch.setenv("JUPYTER_CONFIG_DIR", str(folder / "none"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
        # `make lab` serves the clone, so that `runs` and links out of a notebook open
        assert "--notebook-dir=. " in start
        (folder / "notebooks").mkdir()
        app = ServerApp(root_dir=str(folder), open_browser=False)
        options = [word for word in start.split() if word == "--allow-root"]
        app.initialize(options, new_httpserver=False)
        yield app
        app.clear_instance()


def with_faces(name: str) -> nbformat.NotebookNode:
    """A notebook whose every cell and whose widget's state show a face."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            jpeg = nbformat.v4.new_output("display_data", {"image/jpeg": FACE})
            cell.update(outputs=[jpeg], execution_count=number)
    notebook.metadata.widgets = {"photo": FACE}
    return notebook


def save(app: ServerApp, notebook: nbformat.NotebookNode, name: str) -> Path:
    return save_model(
        app, {"type": "notebook", "format": "json", "content": notebook}, name
    )


def save_model(app: ServerApp, model: dict, name: str) -> Path:
    app.io_loop.run_sync(lambda: app.contents_manager.save(model, name))
    return Path(app.root_dir, name)


@pytest.mark.parametrize("name", ["notebooks/05_your_photo.ipynb", "a copy.ipynb"])
def test_a_saved_notebook_of_photos_holds_no_face(app, name):
    before = with_faces("05_your_photo")
    path = save(app, before, name)
    assert FACE not in path.read_text()
    after = nbformat.read(path, as_version=4)
    nbformat.validate(after)
    assert [c.source for c in after.cells] == [c.source for c in before.cells]
    code = [c for c in after.cells if c.cell_type == "code"]
    assert all((c.outputs, c.execution_count) == ([], None) for c in code)
    # so that the next save, and that of a copy, does the same
    assert after.metadata.agelib == {"save_outputs": False}


def test_other_notebooks_are_saved_with_their_outputs(app):
    before = with_faces("01_eda")
    path = save(app, before, "01_eda.ipynb")
    assert nbformat.read(path, as_version=4) == before


def test_what_is_no_notebook_is_saved_as_it_is(app):
    text = {"type": "file", "format": "text", "content": "agelib"}
    assert save_model(app, text, "notes.txt").read_text() == "agelib"
    assert save_model(app, {"type": "directory"}, "folder").is_dir()


def test_a_photo_of_100_megabytes_fits_into_a_message(app):
    assert app.web_app.settings["websocket_max_message_size"] > 110e6


def test_a_limit_of_the_users_own_stays(app):
    settings = app.web_app.settings
    before = settings["websocket_max_message_size"]
    try:
        settings["websocket_max_message_size"] = 5
        server._load_jupyter_server_extension(app)
        assert settings["websocket_max_message_size"] == 5
    finally:
        settings["websocket_max_message_size"] = before


def test_make_lab_works_for_root(app):
    assert app.allow_root


def test_the_committed_notebook_shows_the_example():
    """make notebooks keeps its outputs, so PHOTO must be nobody's then."""
    notebook = nbformat.read(ROOT / "notebooks/05_your_photo.ipynb", as_version=4)
    assert notebook.metadata.agelib == {"save_outputs": False}
    results = [c for c in notebook.cells if "print(title)" in c.source]
    assert len(results) == 5
    for cell in results:
        assert cell.outputs[0].text == "The example, 1240 x 620 pixels\n"
