"""What the machine can do, with GPUs that are pretended."""

import os
import subprocess
import sys

import pytest
import torch

from agelib import hardware

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def pretend_gpu(monkeypatch, outcome: str, returncode: int = 0) -> None:
    """A GPU that torch calls available, and what trying to compute on it says."""
    tried = subprocess.CompletedProcess([], returncode, outcome, outcome)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: tried)


@pytest.fixture(autouse=True)
def no_gpu_remembered():
    hardware._gpu.cache_clear()
    yield
    hardware._gpu.cache_clear()


@pytest.mark.parametrize(
    ("capability", "precision"),
    [("7 0", "fp16"), ("7 5", "fp16"), ("8 6", "bf16"), ("9 0", "bf16")],
    ids=["V100", "T4", "RTX 30", "H100"],
)
def test_a_gpu_computes_in_the_precision_it_is_fast_in(
    monkeypatch, capability, precision
):
    pretend_gpu(monkeypatch, f"{capability}\n")
    assert hardware.device().type == "cuda"
    assert hardware.precision(hardware.device()) == precision


def test_a_gpu_that_torch_has_no_kernels_for_is_left_with_advice(monkeypatch):
    error = "Traceback ...\nRuntimeError: CUDA error: no kernel image is available\n"
    pretend_gpu(monkeypatch, error, returncode=1)
    with pytest.warns(UserWarning, match=r"no kernel image is available.*T4 x2"):
        assert hardware.device().type == "cpu"
    assert hardware.precision(hardware.device()) == "no"


def test_a_gpu_whose_trial_is_killed_is_left_too(monkeypatch):
    pretend_gpu(monkeypatch, "", returncode=-11)
    with pytest.warns(UserWarning, match=r"\(it ended with -11\)"):
        assert hardware.device().type == "cpu"


def test_freed_memory_is_kept_and_used_again():
    """In a process of its own, for it cannot be undone: no page is asked for twice."""
    code = """
import resource
from agelib import hardware
import torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16_000_000).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
default = faults()
hardware.keep_freed_memory()
faults()
print(default, faults())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    default, kept = map(int, run.stdout.split())
    assert kept <= default / 10


def test_freed_memory_that_was_kept_can_be_returned():
    """Also from below what is still in use: 19 tensors of 16 MB below a twentieth."""
    code = """
from pathlib import Path
from agelib import hardware
import torch
def megabytes():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) // 1024
hardware.keep_freed_memory()
tensors = [torch.ones(4_000_000) for _ in range(20)]
full = megabytes()
del tensors[:-1]
kept = megabytes()
hardware.return_freed_memory()
print(full - kept, full - megabytes())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    at_first, in_the_end = map(int, run.stdout.split())
    assert at_first < 50
    assert in_the_end > 250


def test_loader_workers_follow_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert hardware.workers(CUDA) == 8
    assert hardware.workers(CUDA, processes=2) == 6
    assert hardware.workers(CPU) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert hardware.workers(CUDA) == 2
    assert hardware.workers(CPU) == 1
