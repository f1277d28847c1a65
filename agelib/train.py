"""Fit a recipe: the loop, the averaged weights, the best epoch kept, resume."""

import math
import shutil
import time
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch.nn.functional import cross_entropy, l1_loss
from tqdm.auto import tqdm

from agelib import env, loading, metrics, model, predict, runs
from agelib.recipe import Recipe


def fit(
    recipe: Recipe,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    folder: Path,
    fresh: bool = False,
) -> pd.DataFrame:
    """Trains the recipe and keeps the epoch with the least validation error.

    Goes on after the last complete epoch if the folder holds an unfinished run of the
    same recipe and faces. Writes `model.safetensors`, `recipe.json`, `history.csv` and
    `validation.csv` (the validation table with predictions) into the folder.

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
        accelerator.register_for_checkpointing(self.schedule, self.average)

    def run(self) -> pd.DataFrame:
        history = self.resume()
        n, epochs = len(self.batches), self.recipe.epochs
        bar = tqdm(
            desc="training", initial=n * len(history), total=n * epochs, leave=False
        )
        for epoch in range(len(history), epochs):
            started = time.perf_counter()
            lr, train_loss = self.train_epoch(epoch, bar)
            predicted = self.predict_validation()
            val_mae = metrics.mae(predicted)
            best = val_mae < min((row["val_mae"] for row in history), default=math.inf)
            seconds = time.perf_counter() - started
            values = (epoch + 1, train_loss, val_mae, lr, seconds)
            names = ("epoch", "train_loss", "val_mae", "lr", "seconds")
            history.append(dict(zip(names, values, strict=True)))
            if best:
                self.average.module.scale.fill_(val_mae)
                model.save(
                    self.average.module, self.recipe, self.folder / "model.safetensors"
                )
                runs.write_csv(predicted, self.folder / "validation.csv")
            runs.write_csv(pd.DataFrame(history), self.folder / "history.csv")
            self.save_state(epoch + 1)
            bar.write(
                f"epoch {epoch + 1:2} of {epochs}   training loss {train_loss:6.3f}   "
                f"validation error {val_mae:5.2f} years   {seconds:4.0f} s"
                f"{'   best' * best}"
            )
        bar.close()
        return pd.DataFrame(history)

    def train_epoch(self, epoch: int, bar: tqdm) -> tuple[float, float]:
        """One pass over the training faces; the last learning rate and mean loss."""
        self.faces.epoch = epoch
        self.batches.set_epoch(epoch)
        self.schedule.step(epoch)
        self.net.train()
        total, n = 0.0, len(self.batches)
        for step, (images, age, rows) in enumerate(self.batches, epoch * n + 1):
            loss = age_loss(self.net(images), age, self.recipe)
            value = loss.item()
            if not math.isfinite(value):
                files = ", ".join(self.paths[rows.cpu()][:4])
                raise FloatingPointError(
                    f"The loss became {value} at step {step}, in the batch of {files}, "
                    "...: lower the recipe's learning_rate. The last good epoch is "
                    f"in {self.folder}."
                )
            self.accelerator.backward(loss)
            lr = self.optimizer.param_groups[0]["lr"]
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step_update(step)
            self.average.update(self.plain, step)
            total += value
            bar.set_postfix(loss=f"{value:.2f}", refresh=False)
            bar.update()
        return lr, total / n

    def predict_validation(self) -> pd.DataFrame:
        probabilities = predict.infer(
            self.average.module,
            self.held_out,
            self.accelerator.device,
            self.recipe.flip_at_test,
        )
        return predict.decode(self.validation, probabilities)

    def save_state(self, epochs_done: int) -> None:
        """Keeps the newest state only, and never a half-written one."""
        unfinished = self.folder / "state.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.save_state(str(unfinished), safe_serialization=True)
        earlier = _states(self.folder)
        unfinished.rename(self.folder / f"state-{epochs_done}")
        for state in earlier:
            shutil.rmtree(state)

    def resume(self) -> list[dict]:
        """Brings back the last complete epoch, if any; returns the history up to it."""
        states = _states(self.folder)
        if not states:
            return []
        self.accelerator.load_state(str(states[-1]))
        done = _epochs_done(states[-1])
        print(f"Going on after epoch {done} of {self.recipe.epochs} in {self.folder}")
        return pd.read_csv(self.folder / "history.csv").head(done).to_dict("records")


def _accelerator(recipe: Recipe) -> Accelerator:
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
    return sorted(folder.glob("state-*"), key=_epochs_done)


def _epochs_done(state: Path) -> int:
    return int(state.name.rpartition("-")[2])
