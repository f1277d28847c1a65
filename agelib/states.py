"""Saved states of a training, in its run's folder: tensors and JSON, never a pickle.

A state is a folder `state-<step>`, of which only two files are ever opened. Random
numbers are no part of it, for those of a step follow its number, and neither is the
schedule, whose rate does too.
"""

import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from agelib import files
from agelib.weights import kinds, printable

_TENSORS, _POSITION = "state.safetensors", "state.json"
FILES = _TENSORS, _POSITION
_HISTORY = {"epoch", "train_loss", "val_mae", "lr", "seconds"}

_UNREADABLE = (OSError, ValueError, SafetensorError, RecursionError)

# tensors by the part of the training that they belong to, and by name
Parts = dict[str, dict[str, Tensor]]


def saved(folder: Path) -> list[Path]:
    """The folders `state-<step>`, the newest last; what only looks like one is not."""
    found = {
        int(match[1]): path
        for path in folder.glob("state-*")
        if (match := re.fullmatch(r"state-([1-9][0-9]{0,17})", path.name))
        and path.is_dir()
        and not path.is_symlink()
    }
    return [found[step] for step in sorted(found)]


def save(folder: Path, step: int, parts: Parts, position: dict) -> None:
    """Saves a state in place of the earlier ones.

    Args:
        position: what JSON can hold.
    Raises:
        OSError: if the disk takes no more; the earlier state is still there.
    """
    tensors = {
        f"{part}.{name}": tensor.contiguous()
        for part, named in parts.items()
        for name, tensor in named.items()
    }
    with files.replacing(folder / f"state-{step}") as state:
        state.mkdir()
        save_file(tensors, state / _TENSORS)
        # so that a state of which a part is damaged, or another's, is found out
        position = position | {"sha256": _digest((state / _TENSORS).read_bytes())}
        text = json.dumps(position, allow_nan=False)
        (state / _POSITION).write_text(text, encoding="utf-8")
    remove_others(folder / f"state-{step}")


def remove_others(state: Path) -> None:
    """Removes all states but this one, and what a kill left of saving another."""
    for left in state.parent.glob(f"state-*{files.UNFINISHED}"):
        files.remove(left)
    for other in saved(state.parent):
        if other != state:
            files.remove(other)


def newest(
    folder: Path, check: Callable[[Parts, dict], None], say: Callable[[str], None]
) -> Path | None:
    """The newest state that is whole; what can't be read is set aside.

    Args:
        check: raises a ValueError if a state is not of this training.
        say: is told what was set aside, and why.
    """
    for state in reversed(saved(folder)):
        try:
            check(*read(state))
        except ValueError as error:
            aside = files.set_aside(state, "damaged")
            reason = printable(error)
            say(f"{state} can't be read ({reason}), and is kept as {aside.name}.")
        else:
            return state
    return None


def read(state: Path) -> tuple[Parts, dict]:
    """The tensors of a state, and its position.

    Raises:
        ValueError: if a file is missing, damaged or of another kind.
        OSError: if the disk does not give it.
    """
    parts = defaultdict(dict)
    try:
        position = json.loads(files.read_text(state / _POSITION))
        # which sees at once that a file is longer than it says, before it is read
        with safe_open(files.regular(state / _TENSORS), "pt"):
            content = (state / _TENSORS).read_bytes()
        tensors = load(content)
    except _UNREADABLE as error:
        if files.may_pass(error):
            raise
        raise ValueError(str(error)) from error
    if not isinstance(position, dict) or position.get("sha256") != _digest(content):
        raise ValueError(f"{_POSITION} is not that of {_TENSORS}")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite")
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    return parts, position


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check(
    parts: Parts,
    position: dict,
    net: nn.Module,
    optimizer: Optimizer,
    steps: int,
    epochs: int,
) -> None:
    """Whether a state is of this network and optimizer, and of their steps and epochs.

    Args:
        optimizer: one of the network's; both are used up, for it makes a step.
    Raises:
        ValueError: naming what is not.
    """
    weights = kinds(net.state_dict())
    judged = bool(_history(position, steps, epochs))
    # only a step shows what an optimizer keeps
    for weight in net.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    optimizer.step()
    moments, *others = of_optimizer(optimizer, net)
    wanted = {
        "net": weights,
        "ema": weights,
        "best": weights if judged else {},
        "optimizer": kinds(moments),
    }
    for part in wanted | parts:
        found, right = kinds(parts.get(part, {})), wanted.get(part, {})
        if found != right:
            other = min(name for name, _ in found.items() ^ right.items())
            raise ValueError(f"{part}.{other} is not as the recipe has it")
    for name, right in zip(("numbers", "counts"), others, strict=True):
        if position[name].keys() != right.keys():
            raise ValueError(f"{_POSITION} has {name} of another optimizer")


def _history(position: dict, steps: int, epochs: int) -> list[dict]:
    """The epochs that a position tells of.

    Raises:
        ValueError: if it is none.
    """
    history = position.get("history")
    numbers = [position.get(name) for name in ("scaler", "numbers", "counts")]
    ok = (
        type(position.get("updates")) is int
        and 0 < position["updates"] <= steps * epochs
        and isinstance(history, list)
        and len(history) == position["updates"] // steps
        and all(isinstance(row, dict) and row.keys() == _HISTORY for row in history)
        and [row["epoch"] for row in history] == [*range(1, len(history) + 1)]
        and all(isinstance(named, dict) for named in numbers)
        and _finite(position.get("loss"), position.get("seconds"))
        and all(_finite(*row.values()) for row in history)
        # Muon keeps a bool for each weight
        and all(
            isinstance(value, bool) or _finite(value)
            for named in numbers
            for value in named.values()
        )
    )
    if not ok:
        raise ValueError(f"{_POSITION} tells of no position in this training")
    return history


def _finite(*values: object) -> bool:
    """Whether all are numbers, as JSON has them, that a float can hold."""
    return all(
        type(value) in (int, float) and abs(value) <= sys.float_info.max
        for value in values
    )


def of_optimizer(optimizer: Optimizer, net: nn.Module) -> tuple[dict, dict, dict]:
    """What an optimizer knows of each weight, tensors and numbers, and its counts.

    The first two by the weight's name and the optimizer's own, `<weight>.<key>`.
    """
    names = {weight: name for name, weight in net.named_parameters()}
    tensors, numbers = {}, {}
    for weight, values in optimizer.state.items():
        for key, value in values.items():
            held = tensors if isinstance(value, Tensor) else numbers
            held[f"{names[weight]}.{key}"] = value
    # where some of timm's optimizers count their steps
    groups = enumerate(optimizer.param_groups)
    counts = {str(n): int(group["step"]) for n, group in groups if "step" in group}
    return tensors, numbers, counts


def into_optimizer(
    optimizer: Optimizer, net: nn.Module, tensors: dict, numbers: dict, counts: dict
) -> None:
    """Brings back what `of_optimizer` gave."""
    content, state = optimizer.state_dict(), defaultdict(dict)
    weights = dict(net.named_parameters())
    given = (w for group in optimizer.param_groups for w in group["params"])
    number = {weight: n for n, weight in enumerate(given)}
    for name, value in (tensors | numbers).items():
        of, _, key = name.rpartition(".")
        weight = weights[of]
        if isinstance(value, Tensor) and value.shape == weight.shape:
            # in the weight's memory format, for the same sums in the same order
            value = torch.empty_like(weight, device="cpu").copy_(value)
        state[number[weight]][key] = value
    for n, count in counts.items():
        content["param_groups"][int(n)]["step"] = count
    optimizer.load_state_dict(content | {"state": dict(state)})
