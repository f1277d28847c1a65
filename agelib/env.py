"""Where am I, where are the faces and the weights, where do results go."""

import math
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from subprocess import CalledProcessError

KAGGLE = Path("/kaggle")
COLAB = Path("/content")
COMPETITION = "smai-24-age-prediction"
# about when the session began
_IMPORTED = time.monotonic()
# a clone, or what holds an installed package: site-packages or a wheel
_INSTALLED = Path(__file__).resolve().parents[1]
HOME = _INSTALLED if (_INSTALLED / "pyproject.toml").is_file() else Path.cwd()


def place() -> str:
    """The kind of machine: "Kaggle", "Colab" or "local"."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "Kaggle"
    if "COLAB_RELEASE_TAG" in os.environ:
        return "Colab"
    return "local"


@contextmanager
def plain_errors() -> Iterator[None]:
    """Ends a command with the sentence of an error that its user can mend."""
    try:
        yield
    except (OSError, ValueError, ImportError, CalledProcessError) as error:
        raise SystemExit(str(error)) from None


def resolve(path: str | Path) -> Path:
    """A path in full: `~` is the home folder, and relative ones count from the clone.

    There `make` runs, and the notebooks run below it. Without a clone they count from
    the folder that the notebook runs in.

    Raises:
        RuntimeError: if it begins with the home of a user that this machine lacks.
    """
    return (HOME / Path(path).expanduser()).resolve()


def chosen_folder(variable: str) -> Path | None:
    """The folder that an environment variable names, as `resolve` reads it, if any.

    Raises:
        ValueError: if it begins with the home of a user that this machine lacks.
    """
    value = os.environ.get(variable)
    try:
        return resolve(value) if value else None
    except RuntimeError:
        raise ValueError(
            f"{variable} is {value!r}, in the home of a user that is not known here: "
            "write the folder's path in full."
        ) from None


def data_folder() -> Path:
    """The folder that holds `train.csv`, `train/`, `test/` and `submission.csv`.

    The first of: the environment variable AGELIB_DATA; an attached Kaggle input; on
    Colab a folder in `/content` or in the mounted Drive, or a download by kagglehub,
    where it knows an account; the bundled sample of drawn faces.

    Raises:
        FileNotFoundError: if that folder holds no `train.csv`.
    """
    if chosen := chosen_folder("AGELIB_DATA"):
        folder, advice = chosen, "Set AGELIB_DATA to the dataset's folder"
    elif attached := _dataset_below(KAGGLE / "input", depth=4):
        return attached
    elif place() == "Colab" and (found := _colab_dataset()):
        return found
    else:
        folder, advice = HOME / "data" / "sample", _ADVICE[place()]
    # which of a path that is too long says no, where Path.is_file raises
    if not os.path.isfile(folder / "train.csv"):
        raise FileNotFoundError(
            f"No dataset at {folder}: it holds no train.csv. {advice}."
        )
    return folder


_ADVICE = {
    "Kaggle": f"With 'Add Input', attach the competition {COMPETITION}",
    "Colab": "Put the faces into a folder of /content or of your mounted Drive, set "
    "AGELIB_DATA to where they are, or add your Kaggle account's KAGGLE_API_TOKEN to "
    "the notebook's secrets",
    "local": "Set AGELIB_DATA to your faces, or draw the bundled sample again with: "
    "python -m agelib.sample",
}


def _dataset_below(root: Path, depth: int) -> Path | None:
    """The first folder with a dataset, at most `depth` levels below the root."""
    for level in range(depth + 1):
        found = sorted(root.glob("/".join(["*"] * level + ["train.csv"])))
        folders = [csv.parent for csv in found if (csv.parent / "train").is_dir()]
        if folders:
            return folders[0]
    return None


def _colab_dataset() -> Path | None:
    for mounted in (COLAB, COLAB / "drive" / "MyDrive"):
        if found := _dataset_below(mounted, depth=1):
            return found
    if find_spec("kagglehub"):
        import kagglehub
        from kagglehub.config import get_kaggle_credentials

        if get_kaggle_credentials():
            return _dataset_below(Path(kagglehub.competition_download(COMPETITION)), 3)
    return None


def weights_folder() -> Path | None:
    """Where weights lie that need no network, if anywhere.

    AGELIB_WEIGHTS if set, else beside the wheel that agelib was imported from, as in
    the dataset that `make kaggle` builds.
    """
    beside = _INSTALLED.parent if _INSTALLED.suffix == ".whl" else None
    return chosen_folder("AGELIB_WEIGHTS") or beside


def shipped_model() -> Path:
    """The trained model that comes with agelib, `lite0.safetensors`.

    In a clone it lies in `data/checkpoints`, else where weights lie.

    Raises:
        FileNotFoundError: if it lies in neither, with the ways out.
    """
    folders = [HOME / "data" / "checkpoints", weights_folder()]
    paths = [folder / "lite0.safetensors" for folder in folders if folder]
    if found := [path for path in paths if path.is_file()]:
        return found[0]
    raise FileNotFoundError(
        f"No trained model at {' or '.join(map(str, paths))}: copy lite0.safetensors "
        "from agelib's data/checkpoints into a folder and set AGELIB_WEIGHTS to it."
    )


def time_limit_hours() -> float:
    """How long a notebook may train: AGELIB_TIME_LIMIT_HOURS, else as Kaggle lets it.

    Kaggle ends a session after 12 hours, of which some are over. Elsewhere it is inf.

    Raises:
        ValueError: if the variable is not a positive number.
    """
    value = os.environ.get("AGELIB_TIME_LIMIT_HOURS")
    if not value:
        over = (time.monotonic() - _IMPORTED) / 3600
        return max(0.0, 12 - over) if place() == "Kaggle" else math.inf
    try:
        hours = float(value)
    except ValueError:
        hours = math.nan
    if not hours > 0:
        raise ValueError(
            f"AGELIB_TIME_LIMIT_HOURS is {value!r}: set it to a number of hours."
        )
    return hours


def folds() -> int:
    """How many folds notebook 2 trains, each held out in turn: AGELIB_FOLDS, else 1.

    Raises:
        ValueError: if the variable is no whole number above zero.
    """
    value = os.environ.get("AGELIB_FOLDS") or "1"
    if not (value.isascii() and value.isdigit() and int(value)):
        raise ValueError(
            f"AGELIB_FOLDS is {value!r}: set it to a number of folds, such as 5, or to "
            "1 for a single training."
        )
    return int(value)


def notebooks() -> list[Path]:
    """The notebooks of a clone, in order, without copies such as `01_eda-Copy1`.

    Raises:
        FileNotFoundError: if there are none.
    """
    folder = HOME / "notebooks"
    named = re.compile(r"[0-9]{2}_\w+\.ipynb")
    found = sorted(p for p in folder.glob("*.ipynb") if named.fullmatch(p.name))
    if not found:
        raise FileNotFoundError(f"No notebooks in {folder}: run this in a clone.")
    return found


def runs_folder() -> Path:
    """Where runs lie, a folder each: `runs`.

    AGELIB_RUNS if set, else in `/kaggle/working` on Kaggle, in `/content` on Colab, and
    beside the package in a local clone.
    """
    homes = {"Kaggle": KAGGLE / "working", "Colab": COLAB, "local": HOME}
    return chosen_folder("AGELIB_RUNS") or homes[place()] / "runs"


def run_folder(name: str) -> Path:
    """The folder of one run's files, made if needed: `runs/<name>`.

    Raises:
        OSError: if the folder can't be made or written.
    """
    folder = runs_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise type(error)(
            f"Can't write to the run folder {folder} ({error.strerror}). "
            "Set AGELIB_RUNS to a folder you may write to."
        ) from error
    return folder


def attached_runs() -> list[Path]:
    """The folders of runs that notebooks attached on Kaggle have left.

    Anyone's: whether such a run is to be trusted, and taken over, is not said.
    """
    if place() != "Kaggle":
        return []
    # mounted at input/<notebook>, or at input/notebooks/<owner>/<notebook>
    patterns = (f"{above}/runs/*/" for above in ("*", "notebooks/*/*"))
    inputs = KAGGLE / "input"
    return sorted(run for pattern in patterns for run in inputs.glob(pattern))


def submission_file(run: Path) -> Path:
    """Where the submission goes: into the run's folder, on Kaggle where it looks."""
    folder = KAGGLE / "working" if place() == "Kaggle" else run
    return folder / "submission.csv"
