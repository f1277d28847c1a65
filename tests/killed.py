"""Trains a tiny recipe again and again, each time in a process that may be killed.

    python killed.py FACES

Each line of the input, `RUN BATCH DIE FOLDS`, forks a process that trains in the folder
RUN with batches of BATCH faces and saves its state after every step. If DIE is 1 it
kills itself at the first change of a file at which no earlier one did, and notes that
in RUN.deaths. FOLDS above 1 is a cross-validation, of fewer epochs. Printed are
`pid <its id>`, `step <n>` as each step begins, and `ended <exit code>`. Forked, since
importing torch takes longer than the training.
"""

import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import RLock

import torch
from safetensors.torch import save_file

from agelib import data, loop, model, states, train
from tests.conftest import TINY

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def main(faces: Path) -> None:
    table = data.split(data.read_train(faces), folds=4)
    held_out = table["fold"] == 0
    for line in sys.stdin:
        run, batch_size, die, folds = line.split()
        # the error falls and rises again, so that not every epoch is kept
        recipe = replace(TINY, epochs=30, learning_rate=0.03, ema_decay=0.5)
        recipe = replace(recipe, batch_size=int(batch_size))
        if folds == "1":
            fit = partial(train.fit, recipe, table[~held_out], table[held_out])
        else:
            recipe = replace(recipe, folds=int(folds), epochs=10)
            fit = partial(train.cross_validate, recipe, table)
        if not (child := os.fork()):
            live(fit, Path(run), die == "1")
        _, status = os.waitpid(child, 0)
        tell("ended", os.waitstatus_to_exitcode(status))


def tell(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def live(fit: Callable, run: Path, die: bool) -> None:
    code = 1
    tell("pid", os.getpid())
    # processes forked from one share tqdm's lock, which one that is killed may keep
    loop.tqdm.set_lock(RLock())
    try:
        # what the library itself prints goes elsewhere
        sys.stdout = sys.stderr
        torch.set_num_threads(1)
        loop.SECONDS_BETWEEN_SAVES = 0
        if die:
            die_at_a_change(run.with_name(f"{run.name}.deaths"))
        loop.Loop.update = before(loop.Loop.update, lambda it: tell("step", it.updates))
        fit(run)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def before(method: Callable, do: Callable) -> Callable:
    def both(self, *given):
        do(self)
        return method(self, *given)

    return both


def die_at_a_change(noted: Path) -> None:
    """Just before it, or with half of a file of weights written."""
    notes = noted.open("a+")
    notes.seek(0)
    deaths = notes.read().splitlines()
    phase = ["start"]

    def reach(
        change: str, path: object, prepare: Callable = lambda: None, folder: int = -1
    ) -> None:
        # what is removed with its folder is told by its name alone
        parts = 2 if folder < 0 else 3
        above = f"/proc/self/fd/{folder}" if folder >= 0 else ""
        path = Path(os.path.realpath(above), os.fsdecode(path))
        name = "/".join(path.parts[-parts:])
        name = re.sub(r"state-\d+", "state-N", name)
        death = f"{phase[0]} {change} {name}"
        if phase != ["death"] and death not in deaths:
            print(death, file=notes, flush=True)
            phase[0] = "death"
            prepare()
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple) -> None:
        opened = event == "open" and set(arguments[1] or "r") & set("wax+")
        if opened or event in CHANGES:
            removed = event in ("os.remove", "os.rmdir")
            reach(event, arguments[0], folder=arguments[1] if removed else -1)

    def halfway(write: Callable, left: str = "{}") -> Callable:
        def written(what, path, *given, **options):
            def halve():
                os.truncate(path, os.path.getsize(path) // 2)
                os.rename(path, Path(path).with_name(left.format(Path(path).name)))

            write(what, path, *given, **options)
            reach("half", path, halve)

        return written

    # this doesn't tell Python which file it opens: one that it then renames
    model.save_file = states.save_file = halfway(save_file, ".tmp{}")
    loop.Loop.update = before(loop.Loop.update, lambda _: phase.__setitem__(0, "step"))
    sys.addaudithook(watch)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
