"""The detector's boxes by hand, and what it sees in drawn faces."""

import numpy as np
import pytest
import torch

from agelib import detector, sample


def test_moves_are_shares_of_width_and_height():
    boxes = torch.tensor([[10.0, 20, 30, 60]])
    moves = torch.tensor([[0.1, -0.1, 0.5, 0.25]])
    assert detector._moved(boxes, moves).tolist() == [[12, 16, 40, 70]]


def test_a_box_becomes_a_square_about_its_centre():
    boxes = torch.tensor([[10.0, 20, 30, 60], [0, 0, 4, 2]])
    assert detector._square(boxes).tolist() == [[0, 20, 40, 60], [0, -1, 4, 3]]


def test_a_box_inside_a_likelier_or_larger_one_is_left_out():
    inside = [2.0, 2, 6, 6]
    boxes = torch.tensor([[0.0, 0, 10, 10], inside, [20, 0, 30, 10], [5, 0, 15, 10]])
    chance = torch.tensor([0.8, 0.9, 0.7, 0.99])
    # the last shares half of the first, which is allowed
    assert detector._outermost(boxes, chance) == [3, 1, 2]
    assert detector._outermost(boxes[:0], chance[:0]) == []


def test_what_lies_outside_the_picture_is_black_for_a_network():
    seen = {}

    class Network:
        def setInput(self, pixels):
            seen["pixels"] = pixels

        def forward(self, names):
            return np.zeros((1, 4), "float32"), np.full((1, 2), 0.5, "float32")

    white = np.full((24, 24, 3), 255, "uint8")
    box = torch.tensor([[-12.0, 0, 12, 24]])
    moves, chance = detector._look(Network(), white, box, 24, ("moves", "chance"))
    assert (moves.tolist(), chance.tolist()) == ([[0, 0, 0, 0]], [0.5])
    # columns first: the left half of the box lies outside
    pixels = seen["pixels"][0]
    assert pixels[:11] == pytest.approx(-127.5 / 128)
    assert pixels[13:] == pytest.approx(127.5 / 128)


@pytest.mark.parametrize("age", [3, 30, 80])
def test_the_points_of_a_drawn_face_are_where_they_are_drawn(age):
    face = sample.draw_face(age, np.random.default_rng(age), size=300)
    (points,), (sure,) = detector.detect(np.asarray(face))
    left, right, nose, mouth_left, mouth_right = points
    assert sure > 0.9
    assert left.real < nose.real < right.real
    assert mouth_left.real < nose.real < mouth_right.real
    assert (
        max(left.imag, right.imag) < nose.imag < min(mouth_left.imag, mouth_right.imag)
    )
    # the pupils are darker than the skin between them
    luma = np.asarray(face.convert("L"), int)
    patch = [
        luma[int(p.imag) - 4 : int(p.imag) + 5, int(p.real) - 4 : int(p.real) + 5].min()
        for p in (left, right, (left + right) / 2)
    ]
    assert max(patch[:2]) < patch[2] - 20


@pytest.mark.parametrize("shape", [(1, 1), (12, 12), (20, 20), (5, 400), (300, 200)])
def test_pictures_without_faces_have_none(shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype="uint8")
    for image in (noise, np.zeros_like(noise)):
        points, sure = detector.detect(image)
        assert (points.shape, sure.shape) == ((0, 5), (0,))
