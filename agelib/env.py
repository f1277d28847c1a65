"""Where am I, where are the faces, where do results go, what can the hardware do."""

import ctypes
import math
import os
import subprocess
import sys
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

KAGGLE = Path("/kaggle")
COLAB = Path("/content")
COMPETITION = "smai-24-age-prediction"
# a clone, or what holds an installed package: site-packages or a wheel
_HOME = Path(__file__).resolve().parents[1]
REPOSITORY = _HOME if (_HOME / "pyproject.toml").is_file() else Path.cwd()


def place() -> str:
    """The kind of machine: "Kaggle", "Colab" or "local"."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "Kaggle"
    if "COLAB_RELEASE_TAG" in os.environ:
        return "Colab"
    return "local"


def chosen_folder(variable: str) -> Path | None:
    """The folder that an environment variable names, if it is set.

    A relative path counts from the clone, where `make` runs: notebooks run below it.
    Without a clone it counts from the folder that the notebook runs in.

    Raises:
        ValueError: if it begins with the home of a user that this machine lacks.
    """
    value = os.environ.get(variable)
    try:
        return (REPOSITORY / Path(value).expanduser()).resolve() if value else None
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
        folder, advice = REPOSITORY / "data" / "sample", _ADVICE[place()]
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
    """The first folder with a dataset, at most so many levels below the root."""
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
    beside = _HOME.parent if _HOME.suffix == ".whl" else None
    return chosen_folder("AGELIB_WEIGHTS") or beside


def shipped_model() -> Path:
    """The trained model that comes with agelib, `lite0.safetensors`.

    In a clone it lies in `data/checkpoints`, else where weights lie.

    Raises:
        FileNotFoundError: if it lies in neither, with the ways out.
    """
    folders = [REPOSITORY / "data" / "checkpoints", weights_folder()]
    paths = [folder / "lite0.safetensors" for folder in folders if folder]
    if found := [path for path in paths if path.is_file()]:
        return found[0]
    raise FileNotFoundError(
        f"No trained model at {' or '.join(map(str, paths))}: copy lite0.safetensors "
        "from agelib's data/checkpoints into a folder and set AGELIB_WEIGHTS to it."
    )


def time_limit_hours() -> float:
    """How long a notebook may train: AGELIB_TIME_LIMIT_HOURS, 12 on Kaggle, else inf.

    Kaggle ends a session after 12 hours.

    Raises:
        ValueError: if the variable is not a positive number.
    """
    default = "12" if place() == "Kaggle" else "inf"
    value = os.environ.get("AGELIB_TIME_LIMIT_HOURS") or default
    try:
        hours = float(value)
    except ValueError:
        hours = math.nan
    if not hours > 0:
        raise ValueError(
            f"AGELIB_TIME_LIMIT_HOURS is {value!r}: set it to a number of hours."
        )
    return hours


def runs_folder() -> Path:
    """Where runs lie, a folder each: `runs`.

    AGELIB_RUNS if set, else in `/kaggle/working` on Kaggle, in `/content` on Colab, and
    beside the package in a local clone.
    """
    homes = {"Kaggle": KAGGLE / "working", "Colab": COLAB, "local": REPOSITORY}
    return chosen_folder("AGELIB_RUNS") or homes[place()] / "runs"


def run_folder(name: str) -> Path:
    """The folder of one run's files, made if needed: `runs/<name>`.

    Raises:
        OSError: if the folder can't be made or written.
    """
    folder = runs_folder() / name
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
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


def device() -> torch.device:
    """The fastest device on which the installed torch can compute."""
    if _gpu():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@cache
def _gpu() -> tuple[int, int] | None:
    """The compute capability of the first GPU, if this torch can compute on it.

    torch may call a GPU available for which it has no kernels (a P100), so it is tried;
    in a process of its own, since a notebook that touched a GPU can't start processes
    that use several.
    """
    if not torch.cuda.is_available():
        return None
    code = (
        "import torch; torch.ones(8, device='cuda').sum().item(); "
        "print(*torch.cuda.get_device_capability())"
    )
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if tried.returncode:
        reason = tried.stderr.strip().splitlines()[-1]
        warnings.warn(
            f"The GPU is not used, torch can't compute on it ({reason}). On Kaggle, "
            "choose the accelerator T4 x2.",
            stacklevel=3,
        )
        return None
    major, minor = map(int, tried.stdout.split())
    return major, minor


def precision(device: torch.device) -> str:
    """The mixed precision that trains fastest on the device: "no", "fp16" or "bf16".

    GPUs from Ampere on compute fast in bfloat16, Turing and Volta (T4, V100) only in
    float16. CPUs with bfloat16 instructions gain nothing: torch has no fast bfloat16
    gradient of depthwise convolutions (data/results/speed.md).
    """
    major, _ = (_gpu() if device.type == "cuda" else None) or (0, 0)
    return "bf16" if major >= 8 else "fp16" if major == 7 else "no"


def workers(device: torch.device, processes: int = 1) -> int:
    """How many loader processes each training process of this machine should start.

    On a CPU they leave the cores to the training.
    """
    # not on macOS and Windows; it knows how many cores a container may use
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    share = cores if device.type == "cuda" else cores // 4
    return max(1, min(8, share // processes))


def keep_freed_memory() -> None:
    """Lets this process keep memory that it frees, where the C library is glibc.

    By default glibc gives the large tensors of each training step back to Linux, which
    must clear them again for the next: on a two core Xeon EfficientNet-Lite0 trains 1.1
    times faster at 96 px and 1.35 times at 160 px without that.
    """
    mallopt = (
        getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    )
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no mappings of their own for large tensors
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: and no shrinking of the heap
