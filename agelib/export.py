"""Write a trained network as one ONNX file that needs no agelib.

    python -m agelib.export age.onnx                     # the shipped network
    python -m agelib.export age.onnx runs/cpu/model.safetensors --views 3

The file holds all that lies between a crop of a face and its age: the resizing, the
views, the normalisation, one network or several, and the calibration of the intervals.
`pip install agelib[export]` brings what writing and running it takes.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from agelib import ages, conformal, env, files, loading, model, photo, predict, sample
from agelib.images import decode_image, read_image
from agelib.model import Trained, folded

INPUT, OUTPUTS = "crops", ("age", "low", "high", "probabilities")
# years that an age may move by rounding
TOLERANCE = 0.01
# how many crops each new file is tried on
TRIED = 32
LICENCE = {
    "licence of the code": "agelib's code is under the MIT licence, which allows any "
    "use that keeps its notice.",
    "licence of the pretraining": "The network began with ImageNet weights, of which "
    "model card and notebook 2 name the source; those of EfficientNet-Lite0 are under "
    "the Apache licence 2.0.",
    "licence of the weights": "What a network learned from faces that are for research "
    "only, as those of the shipped one, is for research only, too.",
}


class _Look(NamedTuple):
    """One way of what `loading.resize` does, of `side` pixels to `size`."""

    # for each of `size` pixels the two between which it lies, and how far
    first: Tensor
    second: Tensor
    weight: Tensor
    inside: Tensor


class Whole(nn.Module):
    """From crops to ages: `predict.predict` in one graph.

    Args of a call:
        crops: uint8 RGB (faces, side, side, 3), framed as the training faces.
    Returns of a call:
        median ages and the ends of the intervals, in years (faces,), and the
        probabilities of the ages 0..100 (faces, 101); all float32.
    """

    def __init__(
        self,
        trained: Sequence[Trained],
        side: int,
        views: int | None = None,
        level: float = 0.9,
    ):
        super().__init__()
        self.networks = nn.ModuleList(folded(net) for net, _ in trained)
        self.views = [views or recipe.views_at_test for _, recipe in trained]
        # of each network, and of each of its views: along, then across
        sizes = [recipe.image_size for _, recipe in trained]
        self.blocks = [_blocks(side, size) for size in sizes]
        self.looks = [
            [
                (
                    _look(len(blocks), size, view.get("zoom", 1.0)),
                    _look(len(blocks), size, **view),
                )
                for view in loading.VIEWS[:n]
            ]
            for n, size, blocks in zip(self.views, sizes, self.blocks, strict=True)
        ]
        tail = (1 - conformal.check_level(level)) / 2
        self.tails = tail, 1 - tail
        table = predict.calibration(trained)
        self.calibrated = table is not None
        if self.calibrated:
            ends = [
                [np.interp(share, conformal.SHARES, row) for row in table]
                for share in self.tails
            ]
            self.register_buffer("ends", torch.tensor(ends, dtype=torch.float64))

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        faces = crops.permute(0, 3, 1, 2).double()
        parts = zip(self.networks, self.blocks, self.looks, strict=True)
        shares = sum(
            _probabilities(net, _reduced(faces, blocks), looks)
            for net, blocks, looks in parts
        )
        shares = shares / shares.sum(1, keepdim=True)
        # as `ages.quantile` does, in double precision
        shares = shares.double()
        below = shares.cumsum(1)
        median = _quantile(shares, below, 0.5)
        if self.calibrated:
            low, high = _interval(shares, below, *self.ends)
        else:
            low, high = (_quantile(shares, below, share) for share in self.tails)
        ends = torch.minimum(low, median), torch.maximum(high, median)
        return tuple(told.float() for told in (median, *ends, shares))


def _probabilities(
    net: model.AgeModel, faces: Tensor, looks: Sequence[tuple[_Look, _Look]]
) -> Tensor:
    """What a network says of the faces, the mean over its views."""
    views = [net(_seen(faces, *look)) for look in looks]
    if views[0].shape[1] == ages.N_AGES:
        shares = [outputs.softmax(1) for outputs in views]
    else:
        shares = [ages.laplace(outputs, net.scale) for outputs in views]
    return sum(shares) / len(shares)


def _blocks(side: int, size: int) -> Tensor:
    """Which of `side` pixels make up each one that `images.decode_image` leaves."""
    factor = max(1, side // size)
    return nn.functional.one_hot(torch.arange(side) // factor).T.double()


def _reduced(faces: Tensor, blocks: Tensor) -> Tensor:
    """Pillow's means of blocks of pixels, rounded as it does, by whole numbers."""
    if len(blocks) == blocks.shape[1]:
        return faces
    count = blocks.sum(1)[:, None] * blocks.sum(1)
    sums = blocks @ faces @ blocks.T + (count / 2).floor()
    return (sums * (2**24 / count).floor() / 2**24).floor()


def _seen(faces: Tensor, along: _Look, across: _Look) -> Tensor:
    """The faces, double (faces, 3, side, side), as a network takes them.

    As Pillow computes it, in the same order and in double precision: it cuts the grey
    levels off, so that the last digit can make a whole level.
    """
    wide = _mixed(faces, across, 3)
    return _mixed(wide, along, 2).floor().float()


def _mixed(pixels: Tensor, look: _Look, axis: int) -> Tensor:
    one, other = (pixels.index_select(axis, at) for at in (look.first, look.second))
    shape = (-1,) if axis == 3 else (-1, 1)
    mixed = one + (other - one) * look.weight.view(shape)
    # outside of the crop it is black
    return mixed * look.inside.view(shape)


def _look(side: int, size: int, zoom: float = 1.0, mirror: bool = False) -> _Look:
    step = (-1 if mirror else 1) * side / size * (1 / zoom)
    place = step * (np.arange(size) + 0.5) + (side / 2 - step * (size / 2))
    first = np.floor(place - 0.5)
    weight, inside = place - 0.5 - first, (place >= 0) & (place < side)
    at = [(first + n).clip(0, side - 1).astype(np.int64) for n in (0, 1)]
    return _Look(*map(torch.from_numpy, (*at, weight, inside.astype(float))))


def _quantile(shares: Tensor, below: Tensor, share: float) -> Tensor:
    """`ages.quantile`, of rows that sum to one."""
    age = (below < share).sum(1, keepdim=True).clamp(max=ages.N_AGES - 1)
    own = shares.gather(1, age)
    inside = (share - (below.gather(1, age) - own)) / own
    return (age - 0.5 + inside).clamp(0, ages.N_AGES - 1)[:, 0]


def _interval(
    shares: Tensor, below: Tensor, least: Tensor, most: Tensor
) -> tuple[Tensor, Tensor]:
    """`conformal.intervals`, whose shares of an age are from `least` to `most`."""
    middle = below - shares / 2
    likely = (least <= middle) & (middle <= most)
    nearest = (middle - 0.5).abs().argmin(1, keepdim=True)
    years = torch.arange(ages.N_AGES, device=shares.device).double()
    likely = likely | (years == nearest)
    low = torch.where(likely, years, torch.inf).amin(1)
    return low, torch.where(likely, years, -torch.inf).amax(1)


def write(
    trained: Trained | Sequence[Trained],
    path: Path,
    crops: np.ndarray,
    views: int | None = None,
    level: float = 0.9,
) -> float:
    """Writes the ONNX file, if it says what torch says.

    Args:
        trained: what `model.load` returns; of several, the distributions are averaged.
        crops: uint8 RGB (faces, side, side, 3) to try it on; the file takes such.
        views: how many of `loading.VIEWS` are averaged inside; by default as many as
            the recipe says.
        level: the share of true ages that the intervals should hold.
    Returns:
        the largest change of an age against torch, in years.
    Raises:
        ImportError: if the packages for it are missing, with the way to get them.
        ValueError: if an age changes by more than `TOLERANCE` years, or intervals do.
            Then nothing is written, and an earlier file is still there.
        OSError: if the file can't be written, which is tried first.
    """
    onnx, runtime, onnxscript = _packages()
    several = [trained] if isinstance(trained, Trained) else list(trained)
    files.prepare(path)
    # which may be on a GPU, if it has predicted there
    whole = Whole(several, crops.shape[1], views, level).cpu().eval()
    batch = torch.export.Dim("faces", min=1)
    with warnings.catch_warnings():
        # of torch's own calls
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            whole,
            # of one face torch would make a file for one face alone
            (torch.zeros(2, *crops.shape[1:], dtype=torch.uint8),),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: batch},),
            optimize=True,
        )
    # where on this machine each part of the graph comes from
    onnxscript.ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    found = program.model_proto
    told = {"recipe": json.dumps([asdict(recipe) for _, recipe in several])}
    told |= {"level of the intervals": f"{level:g}", **LICENCE}
    told["intervals"] = "calibrated" if whole.calibrated else "not calibrated"
    onnx.helper.set_model_props(found, told)
    with files.replacing(path) as unfinished:
        onnx.save(found, unfinished)
        change = _change(runtime, unfinished, several, crops, views, level)
        if not change <= TOLERANCE:
            raise ValueError(
                f"The exported network tells ages that differ by {change:.3f} years "
                f"from torch's, more than {TOLERANCE}: {path} is not written. Try "
                "other versions of torch and onnxruntime."
            )
    return change


def _packages() -> tuple:
    try:
        import onnx
        import onnxruntime

        # torch's exporter wants it, too
        import onnxscript
    except ImportError as error:
        raise ImportError(
            f"Writing ONNX takes packages that are not installed ({error}): "
            "pip install 'agelib[export]'."
        ) from error
    return onnx, onnxruntime, onnxscript


def _change(runtime, path, several, crops, views, level) -> float:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    told = dict(zip(OUTPUTS, session.run(OUTPUTS, {INPUT: crops}), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{n}.png") for n in range(len(crops))]
        for pixels, png in zip(crops, paths, strict=True):
            Image.fromarray(pixels).save(png)
        table = pd.DataFrame({"path": paths})
        by_torch = predict.predict(several, table, views, level)
    ends = np.abs([told[end] - by_torch[end] for end in ("low", "high")]).max(0)
    # an end may lie just where the last digit decides on the next age
    if (ends > TOLERANCE).sum() > max(1, len(crops) // 20):
        raise ValueError(
            f"The intervals of the exported network are not torch's: {path} is not "
            "written. Try other versions of torch and onnxruntime."
        )
    return float(np.abs(told["age"] - by_torch["pred_age"]).max())


def read_crops(faces: pd.DataFrame) -> np.ndarray:
    """The faces of a table as `write` takes them, of 200 pixels a side."""
    images = map(read_image, faces["path"])
    return np.stack([np.array(image.resize((photo.SIDE,) * 2)) for image in images])


def drawn_crops() -> np.ndarray:
    """Drawn faces to try an exported file on, which need no dataset."""
    portraits, _ = sample.plan_sample(TRIED, 1)
    return np.stack([decode_image(portrait.jpeg()) for portrait in portraits])


def main() -> None:
    parser = argparse.ArgumentParser("agelib.export", description=__doc__)
    parser.add_argument("out", type=Path, help="the ONNX file to write")
    parser.add_argument(
        "models",
        nargs="*",
        type=Path,
        help="files that a training wrote, whose answers are averaged; by default the "
        "network that comes with agelib",
    )
    parser.add_argument("--views", type=int, help="of each face, by default as trained")
    parser.add_argument("--level", type=float, default=0.9, help="of the intervals")
    asked = parser.parse_args()
    if asked.out.suffix != ".onnx":
        parser.error(f"{asked.out} is to be written: give it a name that ends in .onnx")
    with env.plain_errors():
        trained = [model.load(path) for path in asked.models or [env.shipped_model()]]
        crops = drawn_crops()
        change = write(trained, asked.out, crops, asked.views, asked.level)
    size = asked.out.stat().st_size / 1e6
    print(
        f"{asked.out}: {size:.1f} MB; on {len(crops)} faces its ages differ from "
        f"torch's by at most {change:.5f} years"
    )


if __name__ == "__main__":
    main()
