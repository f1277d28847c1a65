"""Run the notebooks in order and say where the results are: `python -m agelib`."""

import argparse
import sys
import time
from asyncio import CancelledError
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from agelib import env, outcome, pages, runs

SUBMISSION = "04_submission.ipynb"


class _Narrated(NotebookClient):
    """Prints what cells print, so that a long training shows its progress."""

    def output(self, outs, msg, display_id, cell_index):
        if msg["content"].get("name") == "stdout":
            text = msg["content"]["text"].rstrip()
            print("   ", text.replace("\n", "\n    "), flush=True)
        return super().output(outs, msg, display_id, cell_index)


def main(save: bool = False) -> None:
    """Executes each notebook in a process of its own and keeps it as a page to read.

    The pages and their index go into the folder of the run that notebook 2 began, or
    went on with. Where the faces come without a `submission.csv`, the notebook that
    fills it in is left out.

    Args:
        save: keep the outputs in the notebooks as well.
    Raises:
        SystemExit: with a failing cell's error in one line.
        OSError, ValueError: if the folder of runs can't be written.
    """
    begun = time.time()
    env.run_folder("")
    ran = {}
    notebooks = env.notebooks()
    for path in notebooks:
        if path.name == SUBMISSION:
            template = env.data_folder() / "submission.csv"
            if not template.is_file():
                print(f"{path.name} left out: there is no {template}", flush=True)
                continue
        print(path.name, flush=True)
        ran[path] = notebook = nbformat.read(path, as_version=4)
        try:
            _execute(notebook, path.parent)
        except CellExecutionError as error:
            cause = f"{error.ename}: {error.evalue}"
            raise SystemExit(f"{path.name} stopped: {cause}") from None
        # the first two are nbclient's own after Ctrl-C; a cell's are the kind above
        except (AssertionError, CancelledError, DeadKernelError):
            raise SystemExit(
                f"{path.name} stopped: its process was killed, by Ctrl-C or probably "
                "for want of memory. Run again: a training goes on from its last saved "
                "state."
            ) from None
        finally:
            run = _keep_pages(ran, begun)
        if save:
            nbformat.write(notebook, path)
    print(f"\nValidation error   {outcome.error(run)}")
    if any(path.name == SUBMISSION for path in ran):
        print(f"Submission         {env.submission_file(run)}")
    print(f"Pages to read      {run / pages.INDEX}")


def _keep_pages(ran: dict[Path, nbformat.NotebookNode], begun: float) -> Path:
    """Writes the pages into the folder of the run that went on since a moment.

    Before a run has, as in notebook 1, into the folder of runs. The next notebook's
    then move on: all are made anew, for their links depend on where they lie.
    """
    home = env.runs_folder()
    noted = [(path.stat().st_mtime, path) for path in home.glob(f"*/{runs.RECIPE}")]
    moment, path = max(noted, default=(0, home / runs.RECIPE))
    # clocks of file systems tick coarsely
    run = path.parent if moment >= begun - 1 else home
    pages.write(ran, run)
    if run != home:
        for path in ran:
            (home / pages.page_name(path)).unlink(missing_ok=True)
    return run


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
    # what notebooks print may hold characters that a terminal does not know
    sys.stdout.reconfigure(errors="replace")
    parser = argparse.ArgumentParser(prog="agelib", description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the outputs")
    asked = parser.parse_args()
    try:
        with env.plain_errors():
            main(**vars(asked))
    except KeyboardInterrupt:
        sys.exit("Stopped. Run again: a training goes on from its last saved state.")
