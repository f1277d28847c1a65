"""Saved states of a training, in its run's folder: the newest, never half-written."""

import shutil
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from agelib import files

_UNFINISHED = "state.unfinished"


def saved(folder: Path) -> list[Path]:
    """The folders `state-<step>`, the newest last."""
    return sorted(folder.glob("state-*"), key=lambda s: int(s.name.split("-")[1]))


def save(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Saves all that accelerate holds or was told of, in place of earlier states.

    Raises:
        OSError: if the disk takes no more; the earlier state is still there.
    """
    with files.writing(folder):
        accelerator.save_state(str(folder / _UNFINISHED))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        earlier = saved(folder)
        (folder / _UNFINISHED).rename(folder / f"state-{step}")
        for state in earlier:
            shutil.rmtree(state)


def load(accelerator: Accelerator, folder: Path) -> bool:
    """Brings back the newest state, if there is one, in every process.

    Raises:
        FileNotFoundError: if another machine's process can't see it.
    """
    newest = broadcast_object_list([saved(folder)[-1:]])[0]
    if accelerator.is_main_process:
        # what a kill, or a full disk, left of saving another
        for left in (*saved(folder)[:-1], folder / _UNFINISHED):
            shutil.rmtree(left, ignore_errors=True)
    for state in newest:
        if not state.is_dir():
            raise FileNotFoundError(
                f"{state} is not to be seen from every machine: set AGELIB_RUNS to a "
                "folder on a disk that they share."
            )
        accelerator.load_state(str(state))
    return bool(newest)
