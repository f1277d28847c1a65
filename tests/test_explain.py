"""Occlusion maps of networks whose answers are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from agelib import explain
from agelib.model import AgeModel, Trained

SIZE = 32


class Corner(nn.Module):
    """Says 20 years and a tenth of the light in the upper left eighth of a face."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        corner = images[:, :, : SIZE // 8, : SIZE // 8]
        return 20 + corner.mean((1, 2, 3), keepdim=True)[:, 0, 0] / 10


@pytest.fixture
def trained(tiny) -> Trained:
    # pixels reach the network as they are
    net = AgeModel(Corner(), [0.0] * 3, [1 / 255] * 3)
    net.scale.fill_(0.1)
    return Trained(net.eval(), tiny)


@pytest.fixture
def white(tmp_path) -> pd.DataFrame:
    Image.new("RGB", (SIZE, SIZE), "white").save(tmp_path / "face.png")
    return pd.DataFrame({"path": [str(tmp_path / "face.png")]})


def test_a_network_that_sees_one_corner_lights_up_that_corner(trained, white):
    (found,) = explain.occlusion(trained, white, side=0.25, steps=5)
    # behind grey of 128 the corner says (128 - 255) / 10 years less; within an age the
    # median is read off a flat piece of its distribution
    assert found[0, 0] == pytest.approx(-12.7, abs=0.3)
    others = np.ones((5, 5), dtype=bool)
    others[0, 0] = False
    assert np.abs(found[others]).max() < 0.01


def test_a_square_hides_as_much_as_it_is_said_to(trained, white):
    """Of half a side, its centre a quarter from the corner still covers it."""
    (found,) = explain.occlusion(trained, white, side=0.5, steps=5)
    moved = np.abs(found) > 1
    assert moved.tolist() == [
        [True, True, False, False, False],
        [True, True, False, False, False],
        *[[False] * 5] * 3,
    ]


def test_the_table_and_its_images_stay_as_they_are(trained, white):
    before = white.copy()
    twice = pd.concat([white, white], ignore_index=True)
    found = explain.occlusion(trained, twice, steps=3)
    assert found.shape == (2, 3, 3)
    assert (found[0] == found[1]).all()
    assert white.equals(before)
    assert Image.open(white["path"].item()).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("wrong", [{"side": 0}, {"side": 1.5}, {"steps": 1}])
def test_a_square_that_hides_nothing_is_refused(trained, white, wrong):
    with pytest.raises(ValueError, match="above 0 and at most 1, steps at least 2"):
        explain.occlusion(trained, white, **wrong)


def test_a_table_without_faces_is_refused(trained, white):
    with pytest.raises(ValueError, match="empty"):
        explain.occlusion(trained, white.head(0))
