"""Where am I, where are the faces, where do results go, what can the hardware do."""

import ctypes
import os
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import torch

KAGGLE = Path("/kaggle")
COLAB = Path("/content")
REPOSITORY = Path(__file__).resolve().parents[1]


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
    """
    value = os.environ.get(variable)
    return (REPOSITORY / value).resolve() if value else None


def data_folder() -> Path:
    """The folder that holds `train.csv`, `train/`, `test/` and `submission.csv`.

    The first of: the environment variable AGELIB_DATA, an attached Kaggle input, the
    bundled sample of drawn faces.

    Raises:
        FileNotFoundError: if that folder holds no `train.csv`.
    """
    if chosen := chosen_folder("AGELIB_DATA"):
        folder, advice = chosen, "Set AGELIB_DATA to the dataset's folder"
    elif attached := _kaggle_dataset():
        return attached
    else:
        folder, advice = REPOSITORY / "data" / "sample", "Set AGELIB_DATA to your faces"
    if not (folder / "train.csv").is_file():
        raise FileNotFoundError(
            f"No dataset at {folder}: it holds no train.csv. {advice}, or "
            "draw the bundled sample again with: python -m agelib.sample"
        )
    return folder


def _kaggle_dataset() -> Path | None:
    for depth in range(1, 5):
        pattern = "/".join(["*"] * depth) + "/train.csv"
        found = sorted((KAGGLE / "input").glob(pattern))
        folders = [csv.parent for csv in found if (csv.parent / "train").is_dir()]
        if folders:
            return folders[0]
    return None


def run_folder(name: str) -> Path:
    """The folder of one run's files, made if needed: `runs/<name>`.

    `runs` is AGELIB_RUNS if set, else it lies in `/kaggle/working` on Kaggle, in
    `/content` on Colab, and beside the package in a local clone.

    Raises:
        OSError: if the folder can't be made or written.
    """
    homes = {"Kaggle": KAGGLE / "working", "Colab": COLAB, "local": REPOSITORY}
    runs = chosen_folder("AGELIB_RUNS") or homes[place()] / "runs"
    folder = runs / name
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
