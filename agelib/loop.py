"""The training loop: averaged weights, the best epoch kept, saved states, resume.

The same code runs in one process or in each of several that accelerate started.
"""

import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import (
    DataLoaderConfiguration,
    broadcast,
    broadcast_object_list,
)
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from agelib import (
    conformal,
    files,
    hardware,
    loading,
    metrics,
    model,
    outcome,
    predict,
    runs,
    states,
)
from agelib.ages import age_loss, read_off
from agelib.recipe import Recipe

SECONDS_BETWEEN_SAVES = 300


class OutOfTime(TimeoutError):
    """The time limit ends: not a disk or a network that does not answer."""


class Loop:
    """The state of one run: what a checkpoint saves and a resume brings back.

    `net` is the network that learns, `ddp` the same wrapped for several processes,
    `ema` the average of its weights, which predicts and is kept.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: pd.DataFrame,
        validation: pd.DataFrame,
        folder: Path,
        loss: Callable = age_loss,
        fresh: bool = False,
        bar: bool = True,
        micro_batches: int = 1,
        deadline: float = math.inf,
        start: dict[str, torch.Tensor] | None = None,
    ):
        self.recipe, self.folder, self.loss = recipe, folder, loss
        self.train_faces, self.validation = train, validation
        self.bar, self.micro_batches, self.deadline = bar, micro_batches, deadline
        self.start = start
        self.updates = 0
        self.history: list[dict[str, float]] = []
        # the best epoch's weights
        self.best: dict[str, torch.Tensor] = {}
        # of the epoch that is not finished: its losses' sum, its time so far
        self.loss_sum = self.seconds_so_far = 0.0
        hardware.keep_freed_memory()
        self.accelerator = self.create_accelerator()
        self.is_main = self.accelerator.is_main_process
        self.claim_folder(fresh)
        self.create_loaders()
        (self.state,) = broadcast_object_list([self.newest_state()])
        self.create_networks()
        optimizer = self.create_optimizer(self.net)
        self.schedule = self.create_schedule(optimizer)
        self.ddp, self.optimizer = self.accelerator.prepare(self.net, optimizer)

    def create_accelerator(self) -> Accelerator:
        device = hardware.device()
        return Accelerator(
            mixed_precision=hardware.precision(device),
            cpu=device.type == "cpu",
            # the recipe's batch size is that of all processes together
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )

    def claim_folder(self, fresh: bool) -> None:
        """Makes the run's folder this run's, or raises a ValueError."""
        with self.accelerator.main_process_first(), files.writing(self.folder):
            if self.is_main and fresh:
                runs.set_aside(self.folder)
            self.claim()

    def claim(self) -> None:
        runs.claim(
            self.folder,
            self.recipe,
            self.train_faces,
            self.validation,
            self.loss,
            type(self).__name__,
            self.start,
        )

    def create_loaders(self) -> None:
        """The batches to learn from, and those to judge by."""
        recipe, processes = self.recipe, self.accelerator.num_processes
        workers = hardware.workers(hardware.device(), processes)
        faces = self.augmented_faces()
        self.validation_faces = loading.Faces(
            self.validation, recipe.image_size, views=recipe.views_at_test
        )
        self.batches, self.validation_batches = self.accelerator.prepare(
            loading.loader(faces, recipe.batch_size, workers, processes),
            loading.loader(self.validation_faces, 64, workers, processes),
        )

    def augmented_faces(self) -> loading.Faces:
        """The faces to learn from, changed at random."""
        return loading.Faces(self.train_faces, self.recipe.image_size, self.recipe)

    def create_networks(self) -> None:
        """The network that learns, and the average of its weights."""
        # a resume brings its own weights, and may have no network to fetch others
        net = model.create(self.recipe, pretrained=not (self.state or self.start))
        if self.start:
            net.load_state_dict(self.start)
        device = self.accelerator.device
        if self.accelerator.num_processes > 1 and device.type == "cuda":
            # or each would normalise its share of the batch by itself
            net = convert_sync_batchnorm(net)
        self.net = net.to(device)
        # without a decay the average is the weights themselves
        decay = self.recipe.ema_decay
        self.ema = ModelEmaV3(self.net, decay, use_warmup=decay > 0)

    def create_optimizer(self, net: model.AgeModel) -> torch.optim.Optimizer:
        """The recipe's optimizer of a network's weights."""
        return create_optimizer_v2(
            net,
            opt=self.recipe.optimizer,
            lr=self.recipe.learning_rate,
            weight_decay=self.recipe.weight_decay,
        )

    def create_schedule(self, optimizer: torch.optim.Optimizer):
        """The recipe's learning rate, by the number of the step (timm's Scheduler)."""
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=self.recipe.schedule,
            num_epochs=self.recipe.epochs,
            decay_epochs=self.recipe.step_epochs,
            warmup_epochs=self.recipe.warmup_epochs,
            warmup_lr=self.recipe.learning_rate / 100,
            step_on_epochs=False,
            updates_per_epoch=len(self.batches),
        )
        return schedule

    def run(self) -> pd.DataFrame:
        """Trains the epochs that are left; the history of all of them."""
        self.resume()
        with tqdm(
            desc="training",
            initial=self.updates,
            total=len(self.batches) * self.recipe.epochs,
            leave=False,
            disable=not (self.bar and self.is_main),
        ) as bar:
            try:
                while not self.recipe.is_over(self.errors()):
                    epoch = len(self.history)
                    self.check_time(epoch)
                    self.train_epoch(epoch, bar)
                    self.finish_epoch(epoch)
                if len(self.history) < self.recipe.epochs:
                    self.say(
                        f"Ended early: the last {self.recipe.patience} epochs were no "
                        "better than the best before them"
                    )
            except (KeyboardInterrupt, OutOfTime) as stop:
                if not (self.folder / runs.MODEL).is_file():
                    raise
                reason = str(stop) or f"Interrupted in epoch {len(self.history) + 1}"
                self.say(
                    f"{reason}. {self.folder} holds the best epoch so far; run again "
                    "to go on."
                )
        return pd.DataFrame(self.history)

    def close(self) -> None:
        """Ends the loader processes, which would wait for another epoch."""
        del self.batches, self.validation_batches
        self.accelerator.free_memory()

    def say(self, sentence: str) -> None:
        if self.is_main:
            tqdm.write(sentence)

    def errors(self) -> list[float]:
        """The validation error of each epoch that is done, in years."""
        return [row["val_mae"] for row in self.history]

    def check_time(self, epoch: int) -> None:
        """Raises OutOfTime if the epoch would end after the deadline.

        By the time that the one before took, and the number of pixels.
        """
        needed = 0.0
        if self.history:
            growth = self.recipe.size_in(epoch) / self.recipe.size_in(epoch - 1)
            needed = self.history[-1]["seconds"] * growth**2 - self.seconds_so_far
        late = torch.tensor(
            time.perf_counter() + needed - self.deadline,
            device=self.accelerator.device,
        )
        if broadcast(late) > 0:
            raise OutOfTime(
                f"Stopped before epoch {epoch + 1} of {self.recipe.epochs}, which "
                "would not end within the time limit"
            )

    def train_epoch(self, epoch: int, bar: tqdm) -> None:
        """What is left of one pass over the training faces."""
        self.ddp.train()
        self.last_save = time.perf_counter()
        self.epoch_began = self.last_save - self.seconds_so_far
        n = len(self.batches)
        for images, age, rows in self.batches_left(epoch):
            self.update(images, age, rows)
            bar.set_postfix(loss=f"{self.loss_sum / (self.updates - epoch * n):.2f}")
            bar.update()
            if self.updates % n:
                self.watch_clock(epoch)

    def batches_left(self, epoch: int) -> DataLoader:
        """The epoch's batches without those that were learned before a resume."""
        self.batches.set_epoch(epoch)
        done = self.updates - epoch * len(self.batches)
        left = skip_first_batches(self.batches, done) if done else self.batches
        # the loader that skips has the first epoch's order, before accelerate 1.15
        left.set_epoch(epoch)
        return left

    def watch_clock(self, epoch: int) -> None:
        """Saves the state now and then; at the deadline, raises OutOfTime."""
        now = time.perf_counter()
        clocks = torch.tensor(
            [now - self.last_save, now - self.deadline], device=self.accelerator.device
        )
        unsaved, late = broadcast(clocks).tolist()
        if unsaved > SECONDS_BETWEEN_SAVES or late > 0:
            self.seconds_so_far = now - self.epoch_began
            self.last_save = now
            self.save_state()
        if late > 0:
            raise OutOfTime(
                f"Stopped in epoch {epoch + 1} of {self.recipe.epochs} by the time "
                "limit"
            )

    def update(
        self, images: torch.Tensor, age: torch.Tensor, rows: torch.Tensor
    ) -> None:
        """One step of the optimizer, with randomness that follows its number alone."""
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.updates)
        total = self.add_gradients(images, age, rows)
        value = self.accelerator.reduce(total, "mean").item()
        if not math.isfinite(value):
            paths = self.batches.dataset.paths[rows.cpu()][:4]
            kept = f" The best epoch so far is in {self.folder}." if self.best else ""
            raise FloatingPointError(
                f"The loss became {value} at step {self.updates + 1}, in the batch of "
                f"{', '.join(map(os.fsdecode, paths))}, ...: give the recipe a lower "
                f"learning_rate, and another name.{kept}"
            )
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss_sum += value
        self.updates += 1
        self.schedule.step_update(self.updates)
        self.ema.update(self.net, self.updates)

    def add_gradients(
        self, images: torch.Tensor, age: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """The batch's mean loss, its gradients computed part by part."""
        total = torch.zeros((), device=images.device)
        n = self.micro_batches
        parts = [batch.tensor_split(n) for batch in (images, age, rows)]
        for number, part in enumerate(zip(*parts, strict=True), start=1):
            # the processes add their gradients up once, with the last part
            last = number == n
            with nullcontext() if last else self.accelerator.no_sync(self.ddp):
                share = len(part[0]) / len(images)
                loss = self.batch_loss(*part) * share
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def batch_loss(
        self, images: torch.Tensor, age: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """The mean loss of images uint8 (faces, 3, size, size).

        Args:
            age: in years (faces,).
            rows: of the training table (faces,), for losses that know more of a face.
        """
        return self.loss(self.ddp(images), age, self.recipe)

    def finish_epoch(self, epoch: int) -> None:
        """Judges the epoch, keeps it if it is the best, and tells about it.

        At the size that it learned: before it has seen larger faces, a network is years
        off on them. The model that is kept predicts at that size.
        """
        self.validation_faces.set_size(self.recipe.size_in(epoch))
        ema = self.ema.module
        predicted, val_mae = self.judge()
        if self.recipe.head == "regression":
            # the median over several views depends on how far answers are off
            ema.scale.fill_(val_mae)
            predicted, val_mae = self.judge()
        best = val_mae < min(self.errors(), default=math.inf)
        row = {
            "epoch": epoch + 1,
            "train_loss": self.loss_sum / len(self.batches),
            "val_mae": val_mae,
            "lr": self.lr,
            "seconds": time.perf_counter() - self.epoch_began,
        }
        self.history.append(row)
        self.loss_sum = self.seconds_so_far = 0.0
        if best:
            self.best = {n: t.cpu().clone() for n, t in ema.state_dict().items()}
        # first the state, from which the other files can be made again
        self.save_state()
        if best:
            self.write_best(predicted)
        self.write_history()
        self.say(
            f"epoch {epoch + 1:2} of {self.recipe.epochs}   "
            f"training loss {row['train_loss']:6.3f}   "
            f"validation error {val_mae:5.2f} years   {row['seconds']:4.0f} s"
            f"{'   best' * best}"
        )

    def write_best(self, predicted: np.ndarray) -> None:
        """Keeps the averaged weights as they are, which made these predictions."""
        if self.is_main:
            ema, age = self.ema.module, self.validation["age"].to_numpy()
            ema.calibration = conformal.calibrate(predicted, age)
            model.save(ema, self.learned(), self.folder / runs.MODEL)
            table = predict.cross_calibrated(predicted, self.validation)
            files.write_csv(table, self.folder / runs.VALIDATION)
            outcome.write_distributions(predicted, self.folder / runs.DISTRIBUTIONS)

    def write_history(self) -> None:
        if self.is_main:
            files.write_csv(pd.DataFrame(self.history), self.folder / runs.HISTORY)

    def learned(self) -> Recipe:
        """The recipe, with the size of faces that the best epoch learned."""
        best = min(self.history, key=lambda row: row["val_mae"])
        return replace(self.recipe, image_size=self.recipe.size_in(best["epoch"] - 1))

    def judge(self) -> tuple[np.ndarray, float]:
        """What the average says of the validation faces, and its error in years."""
        predicted = self.predict_validation()
        return predicted, metrics.mae(self.validation.assign(**read_off(predicted)))

    def predict_validation(self) -> np.ndarray:
        """Probabilities (faces, 101) of the validation faces, in every process."""
        for statistics in self.ema.module.buffers():
            # each process saw its own share of the faces
            broadcast(statistics)
        return predict.infer(
            self.ema.module,
            self.validation_batches,
            self.accelerator.device,
            self.accelerator.gather_for_metrics,
        )

    def save_state(self) -> None:
        """Saves all that a resume needs."""
        if not self.is_main:
            return
        moments, numbers, counts = states.of_optimizer(self.optimizer, self.net)
        parts = {
            "net": self.net.state_dict(),
            "ema": self.ema.module.state_dict(),
            "best": self.best,
            "optimizer": moments,
        }
        scaler = self.accelerator.scaler
        position = {
            "updates": self.updates,
            "history": self.history,
            "loss": self.loss_sum,
            "seconds": self.seconds_so_far,
            "scaler": scaler.state_dict() if scaler else {},
            "numbers": numbers,
            "counts": counts,
        }
        states.save(self.folder, self.updates, parts, position)

    def newest_state(self) -> Path | None:
        """The state to go on from; where none is whole, the folder is set aside."""
        if not self.is_main:
            return None
        if not (states.saved(self.folder) or (self.folder / runs.MODEL).exists()):
            return None
        if state := states.newest(self.folder, self.check_state, self.say):
            return state
        aside = runs.set_aside(self.folder)
        self.claim()
        self.say(f"No saved state can go on: the run begins again. {aside} is kept.")
        return None

    def check_state(self, parts: states.Parts, position: dict) -> None:
        """Raises a ValueError if a saved state is not of this training."""
        # the random numbers that follow are those of a run that found no state
        with torch.random.fork_rng(devices=[]):
            net = model.create(self.recipe, pretrained=False)
        net.to(self.accelerator.device)
        optimizer = self.create_optimizer(net)
        n, epochs = len(self.batches), self.recipe.epochs
        states.check(parts, position, net, optimizer, n, epochs)

    def resume(self) -> None:
        """Goes back to the state that was found, if there is one."""
        if not self.state:
            return
        if not self.state.is_dir():
            raise FileNotFoundError(
                f"{self.state} is not to be seen from every machine: set AGELIB_RUNS "
                "to a folder on a disk that they share."
            )
        parts, position = states.read(self.state)
        self.net.load_state_dict(parts["net"])
        self.ema.module.load_state_dict(parts["ema"])
        self.best = dict(parts["best"])
        self.updates, self.history = position["updates"], position["history"]
        self.loss_sum, self.seconds_so_far = position["loss"], position["seconds"]
        states.into_optimizer(
            self.optimizer,
            self.net,
            parts["optimizer"],
            position["numbers"],
            position["counts"],
        )
        self.schedule.step_update(self.updates)
        scaler = self.accelerator.scaler
        if scaler and position["scaler"]:
            scaler.load_state_dict(position["scaler"])
        self.mend_files()
        if self.is_main:
            states.remove_others(self.state)
        done = len(self.history)
        if self.recipe.is_over(self.errors()):
            self.say(f"Already trained: {done} of {self.recipe.epochs} epochs")
        else:
            self.say(f"Going on in epoch {done + 1}, after step {self.updates}")

    def mend_files(self) -> None:
        """Makes the files of the best epoch again if one is missing or damaged."""
        (whole,) = broadcast_object_list([self.is_main and self.files_are_whole()])
        if whole or not self.best:
            return
        ema = self.ema.module
        now = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
        ema.load_state_dict(self.best)
        self.validation_faces.set_size(self.learned().image_size)
        self.write_best(self.predict_validation())
        self.write_history()
        ema.load_state_dict(now)
        self.say(f"Files in {self.folder} were not of its state: made again from it")

    def files_are_whole(self) -> bool:
        """Whether model, predictions and history are those of the state."""
        try:
            kept, learned = model.load(self.folder / runs.MODEL)
            outcome.validation(self.folder, self.validation)
            outcome.distributions(self.folder, self.validation)
            history = files.read_text(self.folder / runs.HISTORY)
        except (OSError, ValueError):
            return False
        weights, table = kept.state_dict(), pd.DataFrame(self.history)
        return (
            learned == self.learned()
            and history == table.to_csv(index=False, lineterminator="\n")
            and all(torch.equal(weights[name], t) for name, t in self.best.items())
        )
