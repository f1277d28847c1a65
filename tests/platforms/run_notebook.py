"""Runs a notebook in a fresh kernel: `run_notebook.py NOTEBOOK FOLDER`.

Prints what it wrote to the home folder, and the error of a cell that fails.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

notebook, folder = sys.argv[1:]
client = NotebookClient(
    nbformat.read(notebook, as_version=4),
    kernel_name="platform",
    timeout=None,
    resources={"metadata": {"path": folder}},
    # a machine without network may not even reach itself
    config=Config(KernelManager={"transport": "ipc"}),
)
try:
    client.execute()
except CellExecutionError as error:
    raise SystemExit(f"{error.ename}: {error.evalue}\n{error}") from None
print(*sorted(path.name for path in Path.home().iterdir()))
