import nbformat
import pandas as pd
import pytest

from agelib import __main__, env

PROGRESS_BAR = "from tqdm.notebook import tqdm\nfor _ in tqdm(range(2)): pass"


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone whose notebooks are given as lists of cells; its run is finished."""
    monkeypatch.setattr(env, "REPOSITORY", tmp_path)
    monkeypatch.setenv("AGELIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("AGELIB_RECIPE", "quick")
    for name in ("notebooks", "data/sample", "runs/quick"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data/sample/train.csv").write_text("file_id,age\nimage_0.jpg,5\n")
    predicted = pd.DataFrame({"age": [10, 20], "pred_age": [11, 24]})
    predicted.to_csv(tmp_path / "runs/quick/validation.csv")

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
            "02_b": ["print(open('note').read())"],
            "01_a": ["open('note', 'w').write('from the first')"],
            "06_other": ["raise ValueError"],
        }
    )
    __main__.main()
    out = capfd.readouterr().out
    assert out.index("01_a.ipynb") < out.index("02_b.ipynb")
    assert "    from the first\n" in out
    # (1 + 4) / 2
    assert "Validation error   2.50 years" in out
    assert f"Submission         {folder / 'runs/quick/submission.csv'}" in out
    assert "from the first" in (folder / "runs/quick/02_b.html").read_text()


def test_a_failing_cell_is_one_sentence_and_the_page_shows_where(clone):
    folder = clone(**{"01_a": ["print('so far')", "raise ValueError('no faces')"]})
    with pytest.raises(SystemExit, match=r"01_a\.ipynb stopped: ValueError: no faces"):
        __main__.main()
    assert "so far" in (folder / "runs/quick/01_a.html").read_text()


def test_saved_notebooks_hold_outputs_but_no_dead_progress_bars(clone):
    folder = clone(**{"01_a": ["1 + 1", PROGRESS_BAR]})
    __main__.main(save=True)
    first, second = nbformat.read(folder / "notebooks/01_a.ipynb", as_version=4).cells
    assert first.outputs[0]["data"]["text/plain"] == "2"
    assert second.outputs == []
