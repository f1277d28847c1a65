"""Run the notebooks in order and say where the results are: `python -m agelib`."""

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
            print("   ", msg["content"]["text"].strip().replace("\n", "\n    "))
        return super().output(outs, msg, display_id, cell_index)


def main() -> None:
    """Executes each notebook in a process of its own and keeps it as HTML.

    Raises:
        SystemExit: with a failing cell's error in one line.
    """
    n_faces = len(pd.read_csv(env.data_folder() / "train.csv"))
    run = env.run_folder(recipe.default(n_faces, env.device()).name)
    for path in sorted((env.REPOSITORY / "notebooks").glob("0[1-4]_*.ipynb")):
        print(f"{path.name} ...", flush=True)
        _execute(path, run / f"{path.stem}.html")
    error = metrics.mae(pd.read_csv(run / "validation.csv"))
    print(f"\nValidation error   {error:.2f} years")
    print(f"Submission         {run / 'submission.csv'}")
    print(f"Notebooks to read  {run / '0*.html'}")


def _execute(path: Path, page: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = _Narrated(
        notebook, timeout=None, resources={"metadata": {"path": str(path.parent)}}
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise SystemExit(
            f"{path.name} stopped: {error.ename}: {error.evalue}"
        ) from None
    finally:
        page.write_text(HTMLExporter().from_notebook_node(notebook)[0])


if __name__ == "__main__":
    main()
