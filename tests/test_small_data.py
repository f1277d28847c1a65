"""Few faces, or faces of one age, go through the notebooks to a submission."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest

from agelib import plots, recipe
from tests.conftest import write_faces

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.fixture
def series(tmp_path, tiny, monkeypatch, capsys):
    """A function that runs notebooks 1 to 4 on such faces, and gives what they say."""
    monkeypatch.setenv("AGELIB_DATA", str(tmp_path / "faces"))
    monkeypatch.setenv("AGELIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("AGELIB_RECIPE", raising=False)
    monkeypatch.setitem(recipe.RECIPES, "sample", tiny)
    # needs a notebook's front end
    monkeypatch.setattr(plots, "use_sharp_figures", lambda: None)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))

    def run(ages: list[float], n_test: int) -> str:
        for part, csv, of in (
            ("train", "train.csv", ages),
            ("test", "submission.csv", [0] * n_test),
        ):
            names = write_faces(tmp_path / "faces" / part, of)
            table = pd.DataFrame({"file_id": names, "age": of})
            if part == "test":
                table["age"] = ""  # which a template need not tell
            table.to_csv(tmp_path / "faces" / csv, index=False)
        solution = tmp_path / "faces" / "solution.csv"
        solution.write_text("file_id,age\nof_other_faces.jpg,30\n")
        for path in sorted(NOTEBOOKS.glob("0[1-4]_*.ipynb")):
            cells = nbformat.read(path, as_version=4).cells
            code = [cell.source for cell in cells if cell.cell_type == "code"]
            # without the set-up that finds agelib
            exec(compile("\n".join(code[1:]), path.name, "exec"), {})
        return capsys.readouterr().out

    return run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("ages", "n_test"),
    [
        ([5, 30, 80], 1),
        ([2 * n for n in range(19)], 4),
        ([2 * n + 1 for n in range(40)], 5),
    ],
)
def test_a_few_faces_end_in_a_submission(series, tmp_path, ages, n_test):
    told = series(ages, n_test)
    assert re.search(r"The network (beats|does not beat) the constant: \d+\.", told)
    assert "error on 0 test faces: nan years" in told
    submission = pd.read_csv(tmp_path / "runs" / "tiny" / "submission.csv")
    assert submission["file_id"].tolist() == [f"image_{n}.jpg" for n in range(n_test)]
    assert submission["age"].between(0, 120).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ages", [[26] * 40, [24, 25, 26, 27, 28] * 8])
def test_where_nothing_can_be_learned_that_is_said_and_the_series_goes_on(
    series, tmp_path, ages
):
    told = series(ages, 5)
    assert "The network does not beat the constant" in told
    assert len(pd.read_csv(tmp_path / "runs" / "tiny" / "submission.csv")) == 5
