"""Fit a recipe in this process, in several, or from a launcher's command line.

    accelerate launch --num_processes 2 -m agelib.train

trains as notebook 02 does, with the same environment variables, on as many GPUs or
machines as the launcher starts processes.
"""

import argparse
import atexit
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from accelerate import notebook_launcher
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from agelib import data, env, files, hardware, model, outcome, runs
from agelib.ages import age_loss
from agelib.loop import Loop, OutOfTime
from agelib.recipe import Recipe, default


def fit(
    recipe: Recipe,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    folder: Path,
    fresh: bool = False,
    processes: int = 1,
    time_limit: float = math.inf,
    start: Path | None = None,
    loss: Callable[[torch.Tensor, torch.Tensor, Recipe], torch.Tensor] = age_loss,
    loop: type[Loop] = Loop,
) -> pd.DataFrame:
    """Trains the recipe and keeps the epoch with the least validation error.

    Goes on from the last saved state, at most some minutes back, if the folder holds an
    unfinished run of the same recipe and faces. An interrupt (Ctrl-C, or the stop
    button of a notebook) ends it with the epochs that are complete.

    A batch that does not fit into the GPU's memory is computed in two parts whose
    gradients are added up, or in four, and so on: the recipe's choices stay, except
    that batch norm sees a part at a time.

    Writes into the folder `model.safetensors`, `recipe.json`, `history.csv`,
    `validation.csv` (the validation table with predictions), their distributions
    `validation.npz`, and the state from which it goes on.

    Args:
        train, validation: tables with `file_id`, `path`, `digest` and `age` in years.
        folder: the run's folder, as `runs.folder` makes it.
        fresh: set an earlier run's files aside as `<folder>.old-N` and start over.
        processes: how many to start, each with a GPU of its own; they share every batch
            of the recipe, so that the outcome is that of one process.
        time_limit: hours. An epoch that would not end in time is not begun; a twentieth
            of the limit, at most ten minutes, is left for what follows the training.
        start: a model that `model.save` wrote, of the same kind of network, whose
            weights a run begins with in place of ImageNet's: noted by their checksum,
            so that it goes on with the start it began with.
        loss: a loss of one's own in place of `ages.age_loss`, called as that is. Its
            name is noted in `recipe.json`: a run goes on with the loss it began with.
        loop: a `Loop` with other methods, for what neither the recipe nor a loss can
            change; noted by its name, as a loss is.
    Returns:
        The history, one row an epoch: `epoch` from 1, `train_loss`, `val_mae` in years,
        `lr`, `seconds`.
    Raises:
        ValueError: if the folder holds a run of another recipe or of other faces, or
            `start` another network, if there are fewer than two faces to learn from or
            none to judge by, or if the processes can't share a batch equally.
        BlockingIOError: if another training works in the folder.
        ChildFailedError: of torch, telling what one of several processes raised.
        FloatingPointError: if the loss is not finite.
        OSError: if the folder can't be written, or its disk is full.
        TimeoutError: if the limit ends before one epoch is complete.
        KeyboardInterrupt: if interrupted before one epoch is complete.
    """
    if len(train) < 2 or validation.empty:
        raise ValueError(
            f"A training needs two faces to learn from, and one to judge by: there are "
            f"{len(train)} and {len(validation)}. Bring more faces."
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.batch_size % (processes * launched):
        raise ValueError(
            f"{processes * launched} processes can't share batches of "
            f"{recipe.batch_size} faces equally: choose a number of processes that "
            "divides it, or another batch_size."
        )
    limit = 3600 * time_limit
    deadline = time.perf_counter() + limit - min(limit / 20, 600)
    share = min(recipe.batch_size, len(train)) // (processes * launched)
    # progress bars are widgets of the notebook's own process
    bar = processes == 1
    micro_batches = 1
    weights = _weights(start, recipe) if start else None
    while True:
        create = partial(
            loop,
            recipe,
            train,
            validation,
            folder,
            loss=loss,
            fresh=fresh,
            bar=bar,
            micro_batches=micro_batches,
            deadline=deadline,
            start=weights,
        )
        try:
            if processes == 1:
                return _run(create, recipe, folder)
            # an earlier fit of this process left its state of one process
            AcceleratorState._reset_state(True)
            run = create, recipe, folder
            _launch(run, processes, folder)
            return pd.read_csv(folder / runs.HISTORY)
        except RuntimeError as error:
            micro_batches *= 2
            # one of several that a launcher started can't try again by itself, and
            # batch norm can't do with one face
            again = launched == 1 and micro_batches <= share // 2
            if not (again and should_reduce_batch_size(error)):
                raise
        # outside of the except clause, for the error holds on to the memory
        clear_device_cache(garbage_collection=True)
        fresh = False
        print(
            f"Out of memory: going on with each batch in {micro_batches} parts of at "
            f"most {-(-share // micro_batches)} faces."
        )


def cross_validate(
    recipe: Recipe,
    faces: pd.DataFrame,
    folder: Path,
    fresh: bool = False,
    time_limit: float = math.inf,
    **options: object,
) -> pd.DataFrame:
    """Trains as many networks as the recipe has folds, each without one of them.

    So every face is predicted by a network that has not learned from it, and the error
    is known on all faces rather than on a tenth. Each fold is a run as `fit` makes it,
    in its own folder `fold-N`: one that is complete is not trained again, and one that
    was stopped goes on. In the end `oof.csv` holds the answers of all folds so far, and
    `oof.npz` their distributions.

    Args:
        faces: all labelled faces, as `data.read_train` gives them.
        folder: the run's folder, as `runs.folder` makes it.
        fresh: set an earlier run's files aside as `<folder>.old-N` and start over.
        time_limit: hours, for all folds together.
        options: for `fit`, but no `start`.
    Returns:
        The histories of all folds so far, as `outcome.history` gives them.
    Raises:
        ValueError: if the folder holds a run of another recipe, with another number of
            folds or of other faces, or no cross-validation; or if there is a `start`.
        BlockingIOError, FloatingPointError, OSError, TimeoutError, KeyboardInterrupt:
            as `fit`; the last two only before the first fold has completed an epoch.
    """
    if options.get("start"):
        raise ValueError(
            "A cross-validation begins with ImageNet's weights: those of a trained "
            f"network, as {options['start']}, may know the faces that a fold holds "
            "out. Leave `start` out."
        )
    first = _is_first()
    with runs.locked(folder) if first else nullcontext():
        if first and fresh:
            runs.set_aside(folder)
        if first:
            chosen = options.get("loss", age_loss), options.get("loop", Loop).__name__
            with files.writing(folder):
                runs.claim(folder, recipe, faces, faces, *chosen, cross_validation=True)
        history = _fit_folds(recipe, faces, folder, time_limit, **options)
        if first:
            outcome.write_out_of_fold(folder, faces)
    return history


def _fit_folds(
    recipe: Recipe,
    faces: pd.DataFrame,
    folder: Path,
    time_limit: float,
    **options: object,
) -> pd.DataFrame:
    began = time.perf_counter()
    histories = []
    # as many as there are different photos, if these are fewer
    faces = data.split(faces, recipe.folds)
    folds = faces["fold"].nunique()
    for fold in range(folds):
        if _is_first():
            print(f"Fold {fold}, number {fold + 1} of {folds}")
        left = time_limit - (time.perf_counter() - began) / 3600
        held_out, place = faces["fold"] == fold, folder / f"fold-{fold}"
        sides = faces[~held_out], faces[held_out]
        try:
            history = fit(recipe, *sides, place, time_limit=left, **options)
        except (OutOfTime, KeyboardInterrupt) as stop:
            if fold == 0:
                raise
            if _is_first():
                reason = str(stop) or "Interrupted before this fold's first epoch ended"
                print(f"{reason}. Run again to go on.")
            break
        histories.append(history.assign(fold=fold))
        if not recipe.is_over(history["val_mae"].tolist()):
            break
    return pd.concat(histories, ignore_index=True)


def _weights(start: Path, recipe: Recipe) -> dict[str, torch.Tensor]:
    net, trained = model.load(start)
    kinds = [(r.backbone, r.head) for r in (trained, recipe)]
    if kinds[0] != kinds[1]:
        there, here = (f"{backbone} with a {head}" for backbone, head in kinds)
        raise ValueError(f"{start} holds {there}, but the recipe wants {here}.")
    return net.state_dict()


def _launch(run: tuple, processes: int, folder: Path) -> None:
    # not above: on Windows and macOS it prints a note
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    complete = folder / runs.HISTORY
    try:
        notebook_launcher(_run, run, num_processes=processes)
    except SignalException as stop:
        # the launcher makes one of an interrupt
        if stop.sigval != signal.SIGINT:
            raise
        if not complete.is_file():
            raise KeyboardInterrupt from stop
        print(f"Interrupted. {folder} holds the best epoch so far; run again to go on.")
    except ChildFailedError as error:
        # what a process of several raised is known by its text alone
        told = RuntimeError(str(error))
        if should_reduce_batch_size(told):
            raise told from error
        if OutOfTime.__name__ not in str(error):
            raise
        raise OutOfTime(
            "Stopped by the time limit before one epoch was complete"
        ) from error


def _run(create: Callable[[], Loop], recipe: Recipe, folder: Path) -> pd.DataFrame:
    with (
        runs.locked(folder) if _is_first() else nullcontext(),
        # by default it would wake every GPU
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(recipe.seed)
        loop = create()
        try:
            history = loop.run()
        finally:
            loop.close()
    # not yet: the next fold needs the group. Only after success: a process that failed
    # would wait for the others
    atexit.register(_leave_group)
    return history


def _is_first() -> bool:
    """Whether this is the first of several processes, which keeps the folder."""
    return os.environ.get("RANK", "0") == "0"


def _leave_group() -> None:
    """Ends the threads of a group of processes, which may abort an exit otherwise."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser("agelib.train", description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="start over")
    parser.add_argument(
        "--folds",
        type=int,
        help="train so many networks, each without one fold of the faces",
    )
    asked = parser.parse_args()
    # not of the training: where a process failed, a launcher tells by its traceback
    with env.plain_errors():
        folds = env.folds() if asked.folds is None else asked.folds
        faces = data.read_train(env.data_folder())
        chosen = default(len(faces), hardware.device())
        options = {"fresh": asked.fresh, "time_limit": env.time_limit_hours()}
    if folds < 1:
        parser.error(f"--folds is {folds}, but should be 1 or more")
    if folds > 1:
        chosen = replace(chosen, folds=folds)
    # one after the other, for the first may have a run to copy; and none begins before
    # all have found it as it is
    processes = PartialState(cpu=hardware.device().type == "cpu")
    with processes.main_process_first():
        folder = runs.folder(chosen, faces, cross_validation=folds > 1)
    processes.wait_for_everyone()
    if folds > 1:
        cross_validate(chosen, faces, folder, **options)
    else:
        fit(chosen, *data.hold_out(faces, chosen.folds), folder, **options)


if __name__ == "__main__":
    main()
