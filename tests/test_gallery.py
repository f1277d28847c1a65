"""Photos with their ages: what is shown and what is said. conftest chooses Agg."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from agelib import degrade, gallery


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def faces(tmp_path) -> pd.DataFrame:
    """Three faces: black and white in their first decade, grey in their third."""
    table = pd.DataFrame({"age": [4.0, 6, 26], "pred_age": [5.4, 5.6, 30]})
    table = table.assign(low=[0, 1, 20], high=[10, 9, 41])
    table["path"] = [str(tmp_path / f"{light}.png") for light in (0, 255, 100)]
    for path, light in zip(table["path"], (0, 255, 100), strict=True):
        Image.new("RGB", (20, 20), (light,) * 3).save(path)
    return table


def test_face_grid_shows_each_photo_under_its_age(faces):
    axes = gallery.face_grid(faces, columns=2)
    assert axes.shape == (2, 2)
    assert [ax.get_title() for ax in axes.flat] == ["4", "6", "26", ""]
    shown = [ax.images[0].get_array()[0, 0, 0] for ax in axes.flat[:3]]
    assert shown == [0, 255, 100]
    assert not axes[1, 1].images
    assert not any(ax.axison for ax in axes.flat)


def test_face_grid_takes_other_captions_and_needs_no_age_then(faces):
    axes = gallery.face_grid(faces[["path"]], captions=["a", "b", "c"])
    assert [ax.get_title() for ax in axes.flat] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="2 captions for 3 faces"):
        gallery.face_grid(faces, captions=["a", "b"])


def test_face_grid_says_if_there_are_no_faces_and_names_a_missing_column(faces):
    (ax,) = gallery.face_grid(faces.head(0), []).flat
    assert ax.get_title() == "no such faces"
    with pytest.raises(ValueError, match="no column 'path'"):
        gallery.face_grid(faces.drop(columns="path"))


def test_prediction_faces_are_captioned_with_true_and_predicted_age(faces):
    axes = gallery.prediction_faces(faces, columns=3)
    assert [ax.get_title() for ax in axes.flat] == ["4 → 5", "6 → 6", "26 → 30"]
    assert axes[0, 0].figure.get_suptitle() == "true → predicted age, years"


def test_mean_faces_average_each_band(faces):
    axes = gallery.mean_faces(faces.iloc[::-1])
    titles = [ax.get_title() for ax in axes.flat]
    assert titles == ["0-9 years\nn = 2", "20-29 years\nn = 1"]
    young, grown = (ax.images[0].get_array() for ax in axes.flat)
    assert (young == 127).all()
    assert (grown == 100).all()
    assert len(gallery.mean_faces(faces, width=5).flat) == 3


def test_a_photo_is_shown_in_each_way_that_networks_are_measured_on(faces):
    axes = gallery.spoiled(faces["path"].iloc[2], columns=6)
    named = {
        ax.get_title().replace("\n", " "): ax.images[0].get_array()
        for ax in axes.flat
        if ax.images
    }
    assert list(named) == list(degrade.PHOTOS)
    assert (named["as it is"] == 100).all()
    assert (named["0.4 times the light"] == 40).all()
    assert 18 < named["noise of 20 grey levels"].std() < 22
    assert axes.shape == (3, 6)


def test_age_distributions_mark_truth_prediction_and_interval(faces):
    chance = np.eye(101)[[5, 6, 30]]
    axes = gallery.age_distributions(faces, chance)
    assert axes.shape == (3, 2)
    photo, ax = axes[2]
    assert photo.images[0].get_array()[0, 0, 0] == 100
    marks = {line.get_label(): line.get_xdata()[0] for line in ax.lines}
    assert marks == {"predicted age": 30, "true age": 26}
    span = ax.patches[0]
    assert (span.get_x(), span.get_x() + span.get_width()) == (20, 41)
    outline = ax.collections[0].get_paths()[0].vertices
    assert outline[outline[:, 1].argmax()].tolist() == [30, 1]
    assert ax.get_xlabel() == "age, years"
    assert len(ax.figure.legends) == 1


def test_age_distributions_of_test_faces_have_no_true_age(faces):
    axes = gallery.age_distributions(faces.drop(columns="age"), np.eye(101)[[5, 6, 30]])
    assert [line.get_label() for line in axes[0, 1].lines] == ["predicted age"]
    with pytest.raises(ValueError, match="2 distributions for 3 faces"):
        gallery.age_distributions(faces, np.eye(101)[:2])


def test_a_batch_stands_in_rows_in_its_order():
    lights = torch.tensor([10, 20, 30], dtype=torch.uint8)
    images = lights[:, None, None, None].expand(3, 3, 8, 8)
    shown = gallery.batch(images, columns=2).images[0].get_array()
    # tiles of 8 pixels, 2 pixels apart
    assert [shown[y, x, 0] for y, x in ((6, 6), (6, 16), (16, 6))] == [10, 20, 30]


TABLE_IN = {
    gallery.prediction_faces: "pred_age",
    gallery.mean_faces: "path",
    lambda table: gallery.age_distributions(table, np.eye(101)[: len(table)]): "low",
}


@pytest.mark.parametrize(("function", "column"), TABLE_IN.items())
def test_a_missing_column_or_an_empty_table_is_named(faces, function, column):
    with pytest.raises(ValueError, match=f"no column '{column}'"):
        function(faces.drop(columns=column))
    with pytest.raises(ValueError, match="empty"):
        function(faces.head(0))


def test_people_are_framed_under_their_number_age_and_interval():
    photo = Image.new("RGB", (400, 300))
    table = pd.DataFrame({"x": [100.0, 300], "y": [200.0, 40], "side": [100.0, 60]})
    table = table.assign(turn=[0.0, 90], pred_age=[30.4, 7], low=[20, 2], high=[41, 12])
    table.index = [1, 2]
    ax = gallery.people(photo, table)
    assert [t.get_text() for t in ax.texts] == ["1: 30\n20 to 41", "2: 7\n2 to 12"]
    # each frame is drawn twice, for a white edge; its first corner is the top left
    first, second = (np.transpose(line.get_data()) for line in ax.lines[::2])
    corners = np.array([(50, 150), (150, 150), (150, 250), (50, 250)])
    assert first[:4] == pytest.approx(corners)
    # turned a quarter counterclockwise, what was top left is bottom left
    assert second[0] == pytest.approx((270, 70))
    # the words stand on the frame, and inside the photo
    assert ax.texts[0].get_position() == pytest.approx((100, 150))
    ax.figure.canvas.draw()
    box = ax.texts[1].get_window_extent()
    assert ax.transData.inverted().transform(box)[:, 1].min() > 0
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 400), (300, 0))


def test_people_of_a_large_photo_stay_apart_and_its_pixels_few():
    photo = Image.new("RGB", (8000, 4000))
    table = pd.DataFrame({"x": [3000.0, 3410], "y": 2000.0, "side": 400.0, "turn": 0.0})
    table = table.assign(pred_age=50.0, low=40.0, high=60.0)
    ax = gallery.people(photo, table)
    assert ax.images[0].get_array().shape[1] <= 2700
    ax.figure.canvas.draw()
    left, right = (t.get_bbox_patch().get_window_extent() for t in ax.texts)
    assert left.x1 < right.x0
    with pytest.raises(ValueError, match="no column 'turn'"):
        gallery.people(photo, table.drop(columns="turn"))


def test_faces_that_have_numbers_bear_them(faces):
    numbered = faces.set_axis(pd.RangeIndex(1, 4, name="face"))
    for table, titles in ((faces, ["", "", ""]), (numbered, ["1", "2", "3"])):
        axes = gallery.age_distributions(table, np.full((3, 101), 1 / 101))
        assert [ax.get_title() for ax in axes[:, 0]] == titles


def test_answers_stand_over_the_label_each_under_its_name(faces):
    label, answer = np.eye(101)[26], np.full(101, 1 / 101)
    given = {"untrained": answer, "trained": label, "better": label}
    photo, ax = gallery.answers(faces["path"][2], label, given)
    assert photo.images[0].get_array()[0, 0, 0] == 100
    drawn = [line.get_ydata() for line in ax.lines]
    assert np.array_equal(drawn, [answer, label, label])
    assert len({line.get_color() for line in ax.lines}) == 3
    assert (ax.get_xlim(), ax.get_xlabel()) == ((0, 100), "age, years")
    assert [t.get_text() for t in ax.get_legend().texts] == ["label", *given]


def test_occlusion_maps_lie_over_their_photos_on_one_scale(faces):
    maps = np.zeros((3, 5, 5))
    maps[1, 0, 4], maps[2, 4, 0] = -8, 4
    axes = gallery.occlusion_maps(faces, maps)
    assert [ax.get_title() for ax in axes[0]] == ["4 → 5", "6 → 6", "26 → 30"]
    for ax, years in zip(axes[1], maps, strict=True):
        photo, drawn = ax.images
        assert np.array_equal(drawn.get_array(), years)
        assert drawn.get_clim() == (-8, 8)
        # the first cell's centre is the photo's upper left corner
        assert drawn.get_extent() == [-0.125, 1.125, 1.125, -0.125]
        assert photo.get_extent() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match="shorter"):
        gallery.occlusion_maps(faces, maps[:2])
