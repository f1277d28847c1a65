"""Fit a recipe: the loop, the averaged weights, the best epoch kept, resume."""

import math
import shutil
import time
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch.nn.functional import cross_entropy, l1_loss
from tqdm.auto import tqdm

from agelib import env, loading, metrics, model, predict, runs
from agelib.recipe import Recipe

SECONDS_BETWEEN_SAVES = 300
_POSITION = ("updates", "history", "loss", "seconds")


def fit(
    recipe: Recipe,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    folder: Path,
    fresh: bool = False,
) -> pd.DataFrame:
    """Trains the recipe and keeps the epoch with the least validation error.

    Goes on from the last saved state, at most some minutes back, if the folder holds an
    unfinished run of the same recipe and faces. An interrupt (Ctrl-C, or the stop
    button of a notebook) ends it with the epochs that are complete.

    Writes `model.safetensors`, `recipe.json`, `history.csv` and `validation.csv` (the
    validation table with predictions) into the folder.

    Args:
        train, validation: tables with `path`, `digest` and `age` in years.
        folder: the run's folder, as `env.run_folder` makes it.
        fresh: set an earlier run's files aside as `<folder>.old-N` and start over.
    Returns:
        The history, one row an epoch: `epoch` from 1, `train_loss`, `val_mae` in years,
        `lr`, `seconds`.
    Raises:
        ValueError: if the folder holds a run of another recipe or of other faces.
        FloatingPointError: if the loss is not finite.
        KeyboardInterrupt: if interrupted before one epoch is complete.
    """
    if fresh:
        runs.set_aside(folder)
    runs.claim(folder, recipe, train, validation)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return _Training(recipe, train, validation, folder).run()


def age_loss(outputs: torch.Tensor, age: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """The mean loss of a batch.

    A regression head takes the absolute error in years. A distribution over ages takes
    the cross-entropy to a Gaussian around the true age (DLDL, Gao et al. 2017), plus
    `l1_weight` times the absolute error of its mean (DLDL-v2, Gao et al. 2018).

    Args:
        outputs: logits (faces, 101) or years (faces, 1).
        age: true ages in years (faces,).
    """
    outputs = outputs.float()
    if recipe.head == "regression":
        return l1_loss(outputs[:, 0], age)
    ages = torch.arange(model.N_AGES, device=age.device)
    age = age.clamp(max=model.N_AGES - 1)
    distance = (ages - age[:, None]) / recipe.label_std
    target = (-distance.square() / 2).softmax(1)
    mean = (outputs.softmax(1) * ages).sum(1)
    return cross_entropy(outputs, target) + recipe.l1_weight * l1_loss(mean, age)


class _Training:
    """The state of one run: what a checkpoint saves and a resume brings back."""

    def __init__(
        self,
        recipe: Recipe,
        train: pd.DataFrame,
        validation: pd.DataFrame,
        folder: Path,
    ):
        self.recipe, self.validation, self.folder = recipe, validation, folder
        self.updates, self.history = 0, []
        # of the epoch that is not finished: its losses' sum, its time so far
        self.loss = self.seconds = 0.0
        self.accelerator = accelerator = _accelerator(recipe)
        workers, size = env.workers(accelerator.device), recipe.image_size
        self.paths = train["path"].to_numpy()
        self.faces = loading.Faces(
            train, size, loading.augmentation(recipe), recipe.seed
        )
        batches = loading.loader(self.faces, recipe.batch_size, workers, shuffle=True)
        self.held_out = loading.loader(loading.Faces(validation, size), 64, workers)
        # a resume brings its own weights, and may have no network to fetch others
        net = model.create(recipe, pretrained=not _states(folder))
        self.plain = net.to(accelerator.device)
        # without a decay the average is the weights themselves
        decay = recipe.ema_decay
        self.average = ModelEmaV3(self.plain, decay, use_warmup=decay > 0)
        optimizer = create_optimizer_v2(
            self.plain,
            opt=recipe.optimizer,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
        )
        self.schedule, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.schedule,
            num_epochs=recipe.epochs,
            decay_epochs=recipe.step_epochs,
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=recipe.learning_rate / 100,
            step_on_epochs=recipe.schedule == "step",
            updates_per_epoch=len(batches),
        )
        self.net, self.optimizer, self.batches = accelerator.prepare(
            self.plain, optimizer, batches
        )
        accelerator.register_for_checkpointing(self.schedule, self.average, self)

    def run(self) -> pd.DataFrame:
        """Trains the epochs that are left; the history of all of them."""
        self.resume()
        done, total = self.updates, len(self.batches) * self.recipe.epochs
        with tqdm(desc="training", initial=done, total=total, leave=False) as bar:
            try:
                for epoch in range(len(self.history), self.recipe.epochs):
                    self.train_epoch(epoch, bar)
                    tqdm.write(self.finish_epoch(epoch))
            except KeyboardInterrupt:
                if not self.history:
                    raise
                tqdm.write(
                    f"Interrupted in epoch {epoch + 1}. {self.folder} holds the best "
                    "epoch so far; run again to go on."
                )
        return pd.DataFrame(self.history)

    def train_epoch(self, epoch: int, bar: tqdm) -> None:
        """What is left of one pass over the training faces."""
        self.faces.epoch = epoch
        self.batches.set_epoch(epoch)
        self.schedule.step(epoch)
        self.net.train()
        n = len(self.batches)
        left = skip_first_batches(self.batches, self.updates - epoch * n)
        saved = time.perf_counter()
        self.clock = saved - self.seconds
        for images, age, rows in left:
            self.update(images, age, rows)
            bar.set_postfix(loss=f"{self.loss / (self.updates - epoch * n):.2f}")
            bar.update()
            now = time.perf_counter()
            if now - saved > SECONDS_BETWEEN_SAVES and self.updates % n:
                self.seconds, saved = now - self.clock, now
                self.save_state()

    def update(
        self, images: torch.Tensor, age: torch.Tensor, rows: torch.Tensor
    ) -> None:
        """One step of the optimizer, with randomness that follows its number alone."""
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.updates)
        loss = age_loss(self.net(images), age, self.recipe)
        value = loss.item()
        if not math.isfinite(value):
            files = ", ".join(self.paths[rows.cpu()][:4])
            raise FloatingPointError(
                f"The loss became {value} at step {self.updates + 1}, in the batch of "
                f"{files}, ...: lower the recipe's learning_rate. The best epoch so "
                f"far is in {self.folder}."
            )
        self.accelerator.backward(loss)
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss += value
        self.updates += 1
        self.schedule.step_update(self.updates)
        self.average.update(self.plain, self.updates)

    def finish_epoch(self, epoch: int) -> str:
        """Judges the epoch, keeps it if it is the best, and tells about it."""
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
            self.average.module.scale.fill_(val_mae)
            if self.recipe.head == "regression":
                # its intervals follow the error that is only now known
                predicted = self.predict_validation()
            path = self.folder / "model.safetensors"
            model.save(self.average.module, self.recipe, path)
            runs.write_csv(predicted, self.folder / "validation.csv")
        runs.write_csv(pd.DataFrame(self.history), self.folder / "history.csv")
        self.save_state()
        return (
            f"epoch {epoch + 1:2} of {self.recipe.epochs}   "
            f"training loss {row['train_loss']:6.3f}   "
            f"validation error {val_mae:5.2f} years   {row['seconds']:4.0f} s"
            f"{'   best' * best}"
        )

    def predict_validation(self) -> pd.DataFrame:
        probabilities = predict.infer(
            self.average.module,
            self.held_out,
            self.accelerator.device,
            self.recipe.flip_at_test,
        )
        return predict.decode(self.validation, probabilities)

    def state_dict(self) -> dict:
        """Where the run is; accelerate saves the weights and the rest itself."""
        return {name: getattr(self, name) for name in _POSITION}

    def load_state_dict(self, state: dict) -> None:
        for name in _POSITION:
            setattr(self, name, state[name])

    def save_state(self) -> None:
        """Keeps the newest state only, and never a half-written one."""
        unfinished = self.folder / "state.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.save_state(str(unfinished))
        earlier = _states(self.folder)
        unfinished.rename(self.folder / f"state-{self.updates}")
        for state in earlier:
            shutil.rmtree(state)

    def resume(self) -> None:
        """Brings back the newest state of the folder, if there is one."""
        for state in _states(self.folder)[-1:]:
            self.accelerator.load_state(str(state))
            done = len(self.history)
            if done == self.recipe.epochs:
                print(f"Already trained, all {done} epochs")
            else:
                print(f"Going on in epoch {done + 1}, after step {self.updates}")


def _accelerator(recipe: Recipe) -> Accelerator:
    env.keep_freed_memory()
    device = env.device()
    precision = env.precision(device, recipe.image_size)
    if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        # an earlier fit of this process chose another precision
        AcceleratorState._reset_state(True)
    return Accelerator(
        mixed_precision=precision,
        cpu=device.type == "cpu",
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*"), key=lambda s: int(s.name.split("-")[1]))
