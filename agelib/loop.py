"""The training loop: averaged weights, the best epoch kept, saved states, resume.

The same code runs in one process or in each of several that accelerate started.
"""

import math
import os
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

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
from tqdm.auto import tqdm

from agelib import env, files, loading, metrics, model, predict, runs, states
from agelib.loss import age_loss
from agelib.recipe import Recipe

SECONDS_BETWEEN_SAVES = 300


class Loop:
    """The state of one run: what a checkpoint saves and a resume brings back."""

    def __init__(
        self,
        recipe: Recipe,
        train: pd.DataFrame,
        validation: pd.DataFrame,
        folder: Path,
        fresh: bool = False,
        bar: bool = True,
        parts: int = 1,
        deadline: float = math.inf,
        start: dict[str, torch.Tensor] | None = None,
    ):
        self.recipe, self.folder = recipe, folder
        self.training, self.validation = train, validation
        self.bar, self.parts, self.deadline = bar, parts, deadline
        self.updates, self.history = 0, []
        # the best epoch's weights
        self.best: dict[str, torch.Tensor] = {}
        # of the epoch that is not finished: its losses' sum, its time so far
        self.loss = self.seconds = 0.0
        env.keep_freed_memory()
        device = env.device()
        self.accelerator = accelerator = Accelerator(
            mixed_precision=env.precision(device),
            cpu=device.type == "cpu",
            # the recipe's batch size is that of all processes together
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
        self.main = accelerator.is_main_process
        with accelerator.main_process_first(), files.writing(folder):
            if self.main and fresh:
                runs.set_aside(folder)
            runs.claim(folder, recipe, train, validation)
        workers = env.workers(device, accelerator.num_processes)
        faces = loading.Faces(train, recipe.image_size, augment=recipe)
        batches = loading.loader(faces, recipe.batch_size, workers)
        self.held_out_faces = loading.Faces(
            validation, recipe.image_size, views=recipe.views_at_test
        )
        held_out = loading.loader(self.held_out_faces, 64, workers)
        self.batches, self.held_out = accelerator.prepare(batches, held_out)
        (self.state,) = broadcast_object_list([self.newest_state()])
        # a resume brings its own weights, and may have no network to fetch others
        net = model.create(recipe, pretrained=not (self.state or start))
        if start:
            net.load_state_dict(start)
        if accelerator.num_processes > 1 and device.type == "cuda":
            # or each would normalise its share of the batch by itself
            net = convert_sync_batchnorm(net)
        self.plain = net.to(accelerator.device)
        # without a decay the average is the weights themselves
        decay = recipe.ema_decay
        self.average = ModelEmaV3(self.plain, decay, use_warmup=decay > 0)
        optimizer = self.create_optimizer(self.plain)
        self.schedule, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.schedule,
            num_epochs=recipe.epochs,
            decay_epochs=recipe.step_epochs,
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=recipe.learning_rate / 100,
            step_on_epochs=False,
            updates_per_epoch=len(self.batches),
        )
        self.net, self.optimizer = accelerator.prepare(self.plain, optimizer)

    def create_optimizer(self, net: model.AgeModel) -> torch.optim.Optimizer:
        """The recipe's optimizer of a network's weights."""
        return create_optimizer_v2(
            net,
            opt=self.recipe.optimizer,
            lr=self.recipe.learning_rate,
            weight_decay=self.recipe.weight_decay,
        )

    def run(self) -> pd.DataFrame:
        """Trains the epochs that are left; the history of all of them."""
        self.resume()
        with tqdm(
            desc="training",
            initial=self.updates,
            total=len(self.batches) * self.recipe.epochs,
            leave=False,
            disable=not (self.bar and self.main),
        ) as bar:
            try:
                while not self.is_complete():
                    epoch = len(self.history)
                    self.check_time(epoch)
                    self.train_epoch(epoch, bar)
                    self.finish_epoch(epoch)
                if len(self.history) < self.recipe.epochs:
                    self.say(
                        f"Ended early: the last {self.recipe.patience} epochs were no "
                        "better than the best before them"
                    )
            except (KeyboardInterrupt, TimeoutError) as stop:
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
        del self.batches, self.held_out
        self.accelerator.free_memory()

    def say(self, sentence: str) -> None:
        if self.main:
            tqdm.write(sentence)

    def is_complete(self) -> bool:
        """Whether all epochs are done, or the last of them gained nothing."""
        errors = [row["val_mae"] for row in self.history]
        n = self.recipe.patience
        if 0 < n < len(errors) and min(errors[-n:]) >= min(errors[:-n]):
            return True
        return len(errors) == self.recipe.epochs

    def check_time(self, epoch: int) -> None:
        """Raises TimeoutError if the epoch would end after the deadline.

        By the time that the one before took, and the number of pixels.
        """
        if not self.history:
            return
        growth = self.recipe.size_in(epoch) / self.recipe.size_in(epoch - 1)
        needed = self.history[-1]["seconds"] * growth**2 - self.seconds
        late = torch.tensor(
            time.perf_counter() + needed - self.deadline,
            device=self.accelerator.device,
        )
        if broadcast(late) > 0:
            raise TimeoutError(
                f"Stopped before epoch {epoch + 1} of {self.recipe.epochs}, which "
                "would not end within the time limit"
            )

    def train_epoch(self, epoch: int, bar: tqdm) -> None:
        """What is left of one pass over the training faces."""
        self.batches.set_epoch(epoch)
        self.net.train()
        n = len(self.batches)
        done = self.updates - epoch * n
        left = skip_first_batches(self.batches, done) if done else self.batches
        # the loader that skips has the first epoch's order, before accelerate 1.15
        left.set_epoch(epoch)
        saved = time.perf_counter()
        self.clock = saved - self.seconds
        for images, age, rows in left:
            self.update(images, age, rows)
            bar.set_postfix(loss=f"{self.loss / (self.updates - epoch * n):.2f}")
            bar.update()
            now = time.perf_counter()
            clocks = torch.tensor(
                [now - saved, now - self.deadline], device=self.accelerator.device
            )
            unsaved, late = broadcast(clocks).tolist()
            if self.updates % n and (unsaved > SECONDS_BETWEEN_SAVES or late > 0):
                self.seconds, saved = now - self.clock, now
                self.save_state()
            if self.updates % n and late > 0:
                raise TimeoutError(
                    f"Stopped in epoch {epoch + 1} of {self.recipe.epochs} by the time "
                    "limit"
                )

    def update(
        self, images: torch.Tensor, age: torch.Tensor, rows: torch.Tensor
    ) -> None:
        """One step of the optimizer, with randomness that follows its number alone."""
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.updates)
        total = self.add_gradients(images, age)
        value = self.accelerator.reduce(total, "mean").item()
        if not math.isfinite(value):
            files = self.batches.dataset.paths[rows.cpu()][:4]
            raise FloatingPointError(
                f"The loss became {value} at step {self.updates + 1}, in the batch of "
                f"{', '.join(map(os.fsdecode, files))}, ...: lower the recipe's "
                f"learning_rate. The best epoch so far is in {self.folder}."
            )
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss += value
        self.updates += 1
        self.schedule.step_update(self.updates)
        self.average.update(self.plain, self.updates)

    def add_gradients(self, images: torch.Tensor, age: torch.Tensor) -> torch.Tensor:
        """The batch's mean loss, its gradients computed part by part."""
        total = torch.zeros((), device=images.device)
        several = images.tensor_split(self.parts)
        ages = age.tensor_split(self.parts)
        for number, faces in enumerate(several):
            # the processes add their gradients up once, with the last part
            last = number == len(several) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.net):
                loss = age_loss(self.net(faces), ages[number], self.recipe)
                loss = loss * (len(faces) / len(images))
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def finish_epoch(self, epoch: int) -> None:
        """Judges the epoch, keeps it if it is the best, and tells about it.

        At the size that it learned: before it has seen larger faces, a network is years
        off on them. The model that is kept predicts at that size.
        """
        self.held_out_faces.set_size(self.recipe.size_in(epoch))
        predicted = self.predict_validation()
        val_mae = metrics.mae(predicted)
        best = val_mae < min((row["val_mae"] for row in self.history), default=math.inf)
        row = {
            "epoch": epoch + 1,
            "train_loss": self.loss / len(self.batches),
            "val_mae": val_mae,
            "lr": self.lr,
            "seconds": time.perf_counter() - self.clock,
        }
        self.history.append(row)
        self.loss = self.seconds = 0.0
        if best:
            ema = self.average.module
            ema.scale.fill_(val_mae)
            if self.recipe.head == "regression":
                # its intervals follow the error that is only now known
                predicted = self.predict_validation()
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

    def write_best(self, predicted: pd.DataFrame) -> None:
        """Keeps the averaged weights as they are, which made these predictions."""
        if self.main:
            model.save(self.average.module, self.learned(), self.folder / runs.MODEL)
            files.write_csv(predicted, self.folder / runs.VALIDATION)

    def write_history(self) -> None:
        if self.main:
            files.write_csv(pd.DataFrame(self.history), self.folder / runs.HISTORY)

    def learned(self) -> Recipe:
        """The recipe, with the size of faces that the best epoch learned."""
        best = min(self.history, key=lambda row: row["val_mae"])
        return replace(self.recipe, image_size=self.recipe.size_in(best["epoch"] - 1))

    def predict_validation(self) -> pd.DataFrame:
        """The validation table with predictions, the same in every process."""
        for statistics in self.average.module.buffers():
            # each process saw its own share of the faces
            broadcast(statistics)
        probabilities = predict.infer(
            self.average.module,
            self.held_out,
            self.accelerator.device,
            self.accelerator.gather_for_metrics,
        )
        return predict.decode(self.validation, probabilities)

    def save_state(self) -> None:
        """Saves all that a resume needs."""
        if not self.main:
            return
        moments, numbers, counts = states.of_optimizer(self.optimizer, self.plain)
        parts = {
            "net": self.plain.state_dict(),
            "ema": self.average.module.state_dict(),
            "best": self.best,
            "optimizer": moments,
        }
        scaler = self.accelerator.scaler
        position = {
            "updates": self.updates,
            "history": self.history,
            "loss": self.loss,
            "seconds": self.seconds,
            "scaler": scaler.state_dict() if scaler else {},
            "numbers": numbers,
            "counts": counts,
        }
        states.save(self.folder, self.updates, parts, position)

    def newest_state(self) -> Path | None:
        """The state to go on from; where none is whole, the folder is set aside."""
        if not self.main:
            return None
        if not (states.saved(self.folder) or (self.folder / runs.MODEL).exists()):
            return None
        if state := states.newest(self.folder, self.check_state, self.say):
            return state
        aside = runs.set_aside(self.folder)
        runs.claim(self.folder, self.recipe, self.training, self.validation)
        self.say(f"No saved state can go on: the run begins again. {aside} is kept.")
        return None

    def check_state(self, parts: states.Parts, position: dict) -> None:
        """Raises a ValueError if a saved state is not of this training."""
        # the random numbers that follow are those of a run that found no state
        with torch.random.fork_rng():
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
        self.plain.load_state_dict(parts["net"])
        self.average.module.load_state_dict(parts["ema"])
        self.best = dict(parts["best"])
        self.updates, self.history = position["updates"], position["history"]
        self.loss, self.seconds = position["loss"], position["seconds"]
        states.into_optimizer(
            self.optimizer,
            self.plain,
            parts["optimizer"],
            position["numbers"],
            position["counts"],
        )
        self.schedule.step_update(self.updates)
        scaler = self.accelerator.scaler
        if scaler and position["scaler"]:
            scaler.load_state_dict(position["scaler"])
        self.mend_files()
        if self.main:
            states.remove_others(self.state)
        done = len(self.history)
        if self.is_complete():
            self.say(f"Already trained: {done} of {self.recipe.epochs} epochs")
        else:
            self.say(f"Going on in epoch {done + 1}, after step {self.updates}")

    def mend_files(self) -> None:
        """Makes the files of the best epoch again if one is missing or damaged."""
        (whole,) = broadcast_object_list([self.main and self.files_are_whole()])
        if whole or not self.best:
            return
        ema = self.average.module
        now = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
        ema.load_state_dict(self.best)
        self.held_out_faces.set_size(self.learned().image_size)
        self.write_best(self.predict_validation())
        self.write_history()
        ema.load_state_dict(now)
        self.say(f"Files in {self.folder} were not of its state: made again from it")

    def files_are_whole(self) -> bool:
        """Whether model, predictions and history are those of the state."""
        try:
            kept, learned = model.load(self.folder / runs.MODEL)
            runs.validation(self.folder, self.validation)
            history = files.read_text(self.folder / runs.HISTORY)
        except (OSError, ValueError):
            return False
        weights = kept.state_dict()
        return (
            learned == self.learned()
            and history == pd.DataFrame(self.history).to_csv(index=False)
            and all(torch.equal(weights[name], t) for name, t in self.best.items())
        )
