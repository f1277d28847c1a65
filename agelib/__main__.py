"""Run the notebooks in order and say where the results are: `python -m agelib`."""

import argparse
from pathlib import Path

import nbformat
import pandas as pd
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

from agelib import env, metrics, recipe


class _Narrated(NotebookClient):
    """Prints what cells print, so that a long training shows its progress."""

    def output(self, outs, msg, display_id, cell_index):
        if msg["content"].get("name") == "stdout":
            text = msg["content"]["text"].rstrip()
            print("   ", text.replace("\n", "\n    "), flush=True)
        return super().output(outs, msg, display_id, cell_index)


def main(save: bool = False) -> None:
    """Executes each notebook in a process of its own and keeps it as HTML.

    Args:
        save: keep the outputs in the notebooks as well.
    Raises:
        SystemExit: with a failing cell's error in one line.
    """
    n_faces = len(pd.read_csv(env.data_folder() / "train.csv"))
    run = env.run_folder(recipe.default(n_faces, env.device()).name)
    for path in sorted((env.REPOSITORY / "notebooks").glob("0[1-5]_*.ipynb")):
        print(path.name, flush=True)
        notebook = nbformat.read(path, as_version=4)
        try:
            _execute(notebook, path.parent)
        except CellExecutionError as error:
            cause = f"{error.ename}: {error.evalue}"
            raise SystemExit(f"{path.name} stopped: {cause}") from None
        finally:
            page = HTMLExporter().from_notebook_node(notebook)[0]
            (run / f"{path.stem}.html").write_text(page)
        if save:
            nbformat.write(notebook, path)
    error = metrics.mae(pd.read_csv(run / "validation.csv"))
    print(f"\nValidation error   {error:.2f} years")
    print(f"Submission         {env.submission_file(run)}")
    print(f"Notebooks to read  {run / '0*.html'}")


def _execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    client = _Narrated(
        notebook,
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],
    )
    client.execute()
    # a progress bar is a widget, which says 0% for ever once its kernel is gone
    widget = "application/vnd.jupyter.widget-view+json"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if widget not in o.get("data", {})]
    notebook.metadata.pop("widgets", None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="agelib", description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the outputs")
    main(**vars(parser.parse_args()))
