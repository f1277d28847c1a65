"""Where am I, where are the faces, where do results go, what can the hardware do."""

import ctypes
import os
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
    if torch.cuda.is_available() and _cuda_works():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _cuda_works() -> bool:
    """Whether torch was built for this GPU: a P100 is 'available' yet runs nothing."""
    major, minor = torch.cuda.get_device_capability()
    built = [a for a in torch.cuda.get_arch_list() if a.startswith("sm_")]
    return any(int(a[3:-1]) == major and int(a[-1]) <= minor for a in built)


def precision(device: torch.device, image_size: int) -> str:
    """The mixed precision that is fastest on the device: "no", "fp16" or "bf16".

    GPUs from Ampere on compute fast in bfloat16, Turing and Volta (T4, V100) only in
    float16. CPUs with bfloat16 instructions gain from it on large images only: a two
    core Xeon trains EfficientNet-Lite0 1.6 times faster at 224 px, slower at 128 px.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability()
        return "bf16" if major >= 8 else "fp16" if major == 7 else "no"
    if device.type == "cpu" and image_size >= 192 and _cpu_has_bf16():
        return "bf16"
    return "no"


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported()


def workers(device: torch.device) -> int:
    """How many loader processes to start, leaving a CPU's cores to the training."""
    # not on macOS and Windows; it knows how many cores a container may use
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(8, cores) if device.type == "cuda" else max(1, cores // 4)


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
