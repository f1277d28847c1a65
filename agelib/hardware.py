"""What can this machine do: device, precision, loader processes, memory."""

import ctypes
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache

import torch


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
        # a signal leaves no words
        said = tried.stderr.strip().splitlines()
        reason = said[-1] if said else f"it ended with {tried.returncode}"
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
    if mallopt := _of_c_library("mallopt"):
        mallopt(-4, 0)  # M_MMAP_MAX: no mappings of their own for large tensors
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: and no shrinking of the heap


def return_freed_memory() -> None:
    """Gives Linux what `keep_freed_memory` has kept, once the work is done.

    Predictions of ever other numbers of faces leave holes in the heap that fit no
    other: after 36 of 70 to 128 faces it had 4.4 GB, with this 0.6 GB.
    """
    if trim := _of_c_library("malloc_trim"):
        trim(0)


def _of_c_library(name: str) -> Callable | None:
    """A function of the C library, where that is glibc or has it as well."""
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
