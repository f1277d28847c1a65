import asyncio
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from agelib import __main__, env

# what notebook 2 does with the run's folder
TRAIN = """
from pathlib import Path
import pandas as pd
run = Path("../runs/quick")
run.mkdir(parents=True, exist_ok=True)
(run / "recipe.json").touch()
pd.DataFrame({"val_mae": [3.0, 2.5, 2.75]}).to_csv(run / "history.csv")
"""
PROGRESS_BAR = "from tqdm.notebook import tqdm\nfor _ in tqdm(range(2)): pass"


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone whose notebooks are given as lists of cells."""
    monkeypatch.setattr(env, "HOME", tmp_path)
    monkeypatch.setenv("AGELIB_RUNS", str(tmp_path / "runs"))
    (tmp_path / "notebooks").mkdir()

    def write(**notebooks: list[str]):
        for name, sources in notebooks.items():
            cells = [nbformat.v4.new_code_cell(source) for source in sources]
            notebook = nbformat.v4.new_notebook(cells=cells)
            nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
        return tmp_path

    return write


def test_the_notebooks_run_in_order_and_become_pages(clone, capfd):
    folder = clone(
        **{
            "02_b": ["print(open('note').read())", TRAIN],
            "01_a": ["open('note', 'w').write('from the first')"],
            "draft": ["raise ValueError"],
        }
    )
    __main__.main()
    out = capfd.readouterr().out
    assert out.index("01_a.ipynb") < out.index("02_b.ipynb")
    assert "    from the first\n" in out
    assert "Validation error   2.50 years" in out
    assert "Submission " not in out
    assert "from the first" in (folder / "runs/quick/02_b.html").read_text()
    assert sorted(p.name for p in (folder / "runs").rglob("*.html")) == [
        "01_a.html",
        "02_b.html",
        "index.html",
    ]
    assert out.endswith(f"Pages to read      {folder / 'runs/quick/index.html'}\n")
    assert (folder / "runs/quick/01_a.html").is_file()


def test_without_a_list_of_test_faces_there_is_no_submission(
    clone, dataset, monkeypatch, capfd
):
    monkeypatch.setenv("AGELIB_DATA", str(dataset))
    folder = clone(**{"03_a": [TRAIN], "04_submission": ["1"], "05_b": ["print(5)"]})
    __main__.main()
    out = capfd.readouterr().out
    assert f"Submission         {folder / 'runs/quick/submission.csv'}\n" in out
    (dataset / "submission.csv").unlink()
    __main__.main()
    out = capfd.readouterr().out
    assert f"left out: there is no {dataset / 'submission.csv'}\n05_b.ipynb\n" in out
    assert "Submission " not in out


def test_a_page_that_moves_into_the_runs_folder_links_from_there(clone):
    folder = clone(**{"01_a": ["1"], "02_b": [TRAIN]})
    path = folder / "notebooks/01_a.ipynb"
    notebook = nbformat.read(path, as_version=4)
    words = "# First\n[faces](../data/README.md), [next](02_b.ipynb)"
    notebook.cells.append(nbformat.v4.new_markdown_cell(words))
    nbformat.write(notebook, path)
    __main__.main()
    page = (folder / "runs/quick/01_a.html").read_text()
    assert '<a href="../../data/README.md">faces</a>' in page
    assert '<a href="02_b.html">next</a>' in page


def test_a_failing_cell_is_one_sentence_and_the_page_shows_where(clone):
    folder = clone(**{"01_a": ["print('so far')", "raise ValueError('no faces')"]})
    with pytest.raises(SystemExit, match=r"01_a\.ipynb stopped: ValueError: no faces"):
        __main__.main()
    assert "so far" in (folder / "runs/01_a.html").read_text()


def test_saved_notebooks_hold_outputs_but_no_dead_progress_bars(clone):
    folder = clone(**{"01_a": ["1 + 1", PROGRESS_BAR], "02_b": [TRAIN]})
    __main__.main(save=True)
    first, second = nbformat.read(folder / "notebooks/01_a.ipynb", as_version=4).cells
    assert first.outputs[0]["data"]["text/plain"] == "2"
    assert second.outputs == []


def test_a_killed_kernel_is_one_sentence_and_what_it_printed_is_kept(clone):
    kill = "import os, time; print('so far', flush=True); time.sleep(0.5); os._exit(9)"
    folder = clone(**{"01_a": [kill]})
    with pytest.raises(SystemExit, match=r"01_a\.ipynb stopped: .* killed.* Run again"):
        __main__.main()
    assert "so far" in (folder / "runs/01_a.html").read_text()


def test_ctrl_c_is_one_sentence_and_what_was_printed_is_kept(clone, monkeypatch):
    # not half a minute of asking the notebook's process to end by itself
    monkeypatch.setattr(__main__._Narrated, "shutdown_kernel", "immediate")
    stop = "import os, signal, time; print('so far', flush=True); time.sleep(0.5)"
    stop += "; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    folder = clone(**{"01_a": [stop]})
    with pytest.raises(SystemExit, match=r"01_a\.ipynb stopped: .*Ctrl-C.* Run again"):
        __main__.main()
    assert "so far" in (folder / "runs/01_a.html").read_text()


@pytest.mark.parametrize("error", [asyncio.CancelledError, AssertionError])
def test_ctrl_c_before_the_first_cell_is_one_sentence(clone, monkeypatch, error):
    def start(*_):
        raise error  # as nbclient does when it has ended the process meanwhile

    monkeypatch.setattr(__main__, "_execute", start)
    clone(**{"01_a": ["1"]})
    with pytest.raises(SystemExit, match=r"01_a\.ipynb stopped: .*Ctrl-C.* Run again"):
        __main__.main()


def test_runs_that_cannot_be_written_are_told_before_any_notebook_runs(clone):
    folder = clone(**{"01_a": ["open('note', 'w')"]})
    (folder / "runs").touch()
    with pytest.raises(OSError, match=r"Can't write to .*Set AGELIB_RUNS"):
        __main__.main()
    assert not (folder / "notebooks/note").exists()


def test_a_folder_without_notebooks_is_told(clone):
    clone()
    with pytest.raises(FileNotFoundError, match=r"No notebooks in .*: run"):
        __main__.main()


def test_what_cannot_be_written_is_one_sentence_on_the_command_line(tmp_path):
    (tmp_path / "file").touch()
    ran = subprocess.run(
        [sys.executable, "-m", "agelib"],
        env=os.environ
        # of which other packages may warn
        | {"PYTHONWARNDEFAULTENCODING": "", "AGELIB_RUNS": str(tmp_path / "file")},
        cwd=env.HOME,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("Can't write to the run folder")
    assert len(ran.stderr.splitlines()) == 1


def test_pages_of_an_earlier_run_on_other_faces_stay(clone):
    folder = clone(**{"01_a": ["print('first')"], "02_b": [TRAIN]})
    __main__.main()
    os.utime(folder / "runs/quick/recipe.json", (1000, 1000))
    other = TRAIN.replace("quick", "quick-2")
    clone(**{"01_a": ["print('second')"], "02_b": [other]})
    __main__.main()
    assert "first" in (folder / "runs/quick/01_a.html").read_text()
    assert "second" in (folder / "runs/quick-2/01_a.html").read_text()


def test_pages_are_in_utf_8_whatever_the_machine_writes_by_default(clone):
    folder = clone(**{"01_a": ["print('år → 岁')"], "02_b": [TRAIN]})
    code = f"""
import sys
from pathlib import Path
from agelib import env
import runpy
env.HOME = Path({str(folder)!r})
sys.argv = ["agelib"]
runpy.run_module("agelib", run_name="__main__")
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert b"Validation error   2.50 years" in ran.stdout
    page = (folder / "runs/quick/01_a.html").read_bytes()
    assert "år → 岁".encode() in page
