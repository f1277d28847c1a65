"""Where a network looks: how an answer moves when a part of the face is hidden."""

import numpy as np
import pandas as pd
import torch

from agelib import ages, hardware, loading
from agelib.model import Trained, folded
from agelib.tables import require

GREY = 128


@torch.inference_mode()
def occlusion(
    trained: Trained, table: pd.DataFrame, side: float = 0.25, steps: int = 13
) -> np.ndarray:
    """How many years each answer moves when a grey square hides a part of the face.

    The square moves over the face in `steps` rows and columns, its centre from edge to
    edge: where the map is red the hidden part made the face look younger, where it is
    blue, older. Source: Zeiler and Fergus (2014), section 4.2, with an age in place of
    a class.

    Args:
        table: one row a face, column `path`.
        side: of the square, as a share of the face's.
        steps: 2 or more; each face is predicted steps x steps + 1 times, in one view.
    Returns:
        years (faces, steps, steps): predicted with the square minus without it.
    Raises:
        ValueError: if the table is empty, an image can't be read, or there is no such
            square.
    """
    require(table, "path")
    if not (0 < side <= 1 and steps >= 2):
        raise ValueError(
            f"A square of {side:g} times the face's side in {steps} steps hides "
            "nothing: side must be above 0 and at most 1, steps at least 2."
        )
    device = hardware.device()
    net = folded(trained.model.to(device))
    size = trained.recipe.image_size
    faces = loading.Faces(table, size)
    maps = []
    for row in range(len(faces)):
        whole = faces[row][0].to(device)
        answers = np.concatenate(
            [
                _answers(net, torch.cat([whole, hidden]))
                for hidden in _hidden(whole, round(side * size), steps)
            ]
        ).reshape(steps, steps + 1)
        maps.append(answers[:, 1:] - answers[:, :1])
    return np.stack(maps)


def _hidden(whole: torch.Tensor, side: int, steps: int):
    """For each row of squares, the face (1, 3, size, size) behind each of them."""
    size = whole.shape[-1]
    # where squares begin and end; those at the edge are cut off by it
    begins = np.linspace(0, size, steps).round().astype(int) - side // 2
    spans = [slice(max(0, begin), begin + side) for begin in begins]
    for down in spans:
        row = whole.repeat(steps, 1, 1, 1)
        for face, across in zip(row, spans, strict=True):
            face[:, down, across] = GREY
        yield row


def _answers(net: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    return ages.quantile(net.probabilities(images).cpu().numpy(), 0.5)
