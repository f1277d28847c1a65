import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from agelib import ages, conformal, data, loading, model, predict
from agelib.model import Trained
from tests.conftest import TINY, photos, untrained


@pytest.fixture
def trained(dataset):
    network, generator = untrained(), torch.Generator().manual_seed(0)
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            # as training leaves them; new ones do nothing
            for numbers in (norm.weight, norm.bias, norm.running_mean):
                torch.nn.init.normal_(numbers, 0.5, 0.5, generator)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2, generator)
    return Trained(network, TINY)


def by_hand(trained: Trained, table: pd.DataFrame, views: int) -> np.ndarray:
    """One view of a face at a time, without any of predict's code."""
    rows = []
    for images, _, _ in loading.Faces(table, TINY.image_size, views=views):
        with torch.no_grad():
            seen = [trained.model(image[None])[0].softmax(0) for image in images]
        rows.append((sum(seen) / views).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("views", [1, 3, 6])
def test_distributions_are_those_of_each_face_in_the_tables_order(
    trained, dataset, views
):
    table = data.read_train(dataset).sample(frac=1, random_state=0)
    expected = by_hand(trained, table, views)
    found = predict.distributions(trained, table, views)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_prediction_folds_batch_norms_into_convolutions_of_a_copy(trained, dataset):
    network, _ = trained
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    predict.distributions(trained, data.read_test(dataset))
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    folded = model.folded(network)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())


@torch.no_grad()
def test_a_network_of_another_family_is_predicted_as_it_is():
    other = replace(TINY, backbone="test_resnet.r160_in1k")
    network, faces = untrained(other), photos(2)
    torch.testing.assert_close(
        model.folded(network).probabilities(faces), network.probabilities(faces)
    )


def test_the_recipe_decides_on_the_views_unless_told(trained, dataset):
    table = data.read_test(dataset)
    other = trained._replace(recipe=replace(TINY, views_at_test=2))
    np.testing.assert_array_equal(
        predict.distributions(other, table), predict.distributions(trained, table, 2)
    )


def test_answers_too_large_for_half_precision_are_worked_out_in_single(
    trained, dataset, monkeypatch
):
    table = data.read_test(dataset)
    expected = predict.distributions(trained, table)
    monkeypatch.setattr(predict.hardware, "precision", lambda device: "bf16")
    asked, plain = [], model.AgeModel.forward

    def overflows(network, images):
        asked.append(torch.is_autocast_enabled("cpu"))
        return plain(network, images) * (math.inf if asked[-1] else 1)

    monkeypatch.setattr(model.AgeModel, "forward", overflows)
    found = predict.distributions(trained, table)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert asked == [True, False]


def test_an_ensemble_averages_the_distributions(trained, dataset):
    other = Trained(untrained(seed=1), TINY)
    table = data.read_test(dataset)
    both = predict.distributions([trained, other], table)
    each = [predict.distributions(t, table) for t in (trained, other)]
    np.testing.assert_allclose(both, (each[0] + each[1]) / 2, atol=1e-6)
    assert not np.allclose(each[0], each[1])


def test_at_least_one_network_predicts(dataset):
    with pytest.raises(ValueError, match="no network to predict with"):
        predict.predict([], data.read_test(dataset))


def test_predict_returns_the_table_with_ages_and_ordered_intervals(trained, dataset):
    table = data.read_test(dataset)
    predicted = predict.predict(trained, table)
    assert predicted["path"].equals(table["path"])
    assert (predicted["low"] < predicted["pred_age"]).all()
    assert (predicted["pred_age"] < predicted["high"]).all()


def with_calibration(seed: int, power: float) -> Trained:
    net = untrained(seed=seed)
    net.calibration = np.tile(conformal.SHARES**power, (101, 1)).astype(np.float32)
    return Trained(net, TINY)


def test_intervals_are_those_of_the_models_calibration(dataset):
    table, calibrated = data.read_test(dataset), with_calibration(0, 0.5)
    told = predict.predict(calibrated, table, level=0.8)
    probabilities = predict.distributions(calibrated, table)
    ends = conformal.intervals(probabilities, calibrated.model.calibration, 0.8)
    assert (told["low"] == np.minimum(ends[0], told["pred_age"])).all()
    assert (told["high"] == np.maximum(ends[1], told["pred_age"])).all()


def test_several_models_have_the_mean_of_their_calibrations(recwarn):
    both = [with_calibration(0, 0.5), with_calibration(1, 1.5)]
    expected = (conformal.SHARES**0.5 + conformal.SHARES**1.5) / 2
    found = predict.calibration(both)
    np.testing.assert_allclose(found, np.tile(expected, (101, 1)), atol=1e-6)
    assert not recwarn


def test_a_model_without_calibration_is_taken_at_its_word_with_a_warning(
    trained, dataset
):
    table = data.read_test(dataset)
    trained.model.origin = "runs/old/model.safetensors"
    for models in (trained, [with_calibration(0, 1), trained]):
        with pytest.warns(UserWarning, match=r"of runs/old/model\.safetensors are not"):
            told = predict.predict(models, table)
        expected = ages.quantile(predict.distributions(models, table), 0.05)
        np.testing.assert_allclose(told["low"], expected)


def test_a_level_that_is_no_share_is_refused_before_any_work(trained, dataset):
    with pytest.raises(ValueError, match=r"it can't be 95"):
        predict.predict(trained, data.read_test(dataset), level=95)


def test_an_empty_table_is_refused(trained, dataset):
    with pytest.raises(ValueError, match="the table is empty"):
        predict.predict(trained, data.read_test(dataset).head(0))


@pytest.fixture
def predicted(dataset):
    table = data.read_test(dataset)
    return table.assign(pred_age=[5.12345, 25, 45, 65, 85])


def test_a_submission_holds_the_templates_ids_in_order_with_our_ages(
    dataset, predicted, tmp_path
):
    path = tmp_path / "out.csv"
    predict.write_submission(predicted, dataset / "submission.csv", path)
    assert path.read_text().splitlines()[:3] == [
        "file_id,age",
        "image_0.jpg,5.123",
        "image_1.jpg,25.0",
    ]
    assert len(path.read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.drop(index=3), r"image_3\.jpg of .* has no prediction"),
        (
            lambda t: pd.concat([t, t.tail(1).assign(file_id="image_9.jpg")]),
            r"image_9\.jpg is not in .*submission\.csv",
        ),
        (
            lambda t: pd.concat([t, t.head(2)]),
            r"image_0\.jpg \(and 1 more\) is predicted",
        ),
        (lambda t: t.iloc[::-1], r"Row 0 is image_4\.jpg, where .* has image_0\.jpg"),
        (
            lambda t: t.replace({"pred_age": {45: math.nan}}),
            r"image_2\.jpg is not finite",
        ),
        (
            lambda t: t.replace({"pred_age": {45: math.inf}}),
            r"image_2\.jpg is not finite",
        ),
        (
            lambda t: t.astype({"pred_age": object}).replace({"pred_age": {45: "old"}}),
            r"image_2\.jpg is not finite",
        ),
        (lambda t: t.drop(columns="pred_age"), "no column 'pred_age'"),
    ],
    ids=["missing", "extra", "repeated", "re-ordered", "nan", "inf", "text", "column"],
)
def test_a_wrong_submission_is_refused_and_the_earlier_file_stays(
    dataset, predicted, tmp_path, spoil, message
):
    path = tmp_path / "out.csv"
    path.write_text("earlier")
    with pytest.raises(ValueError, match=message):
        predict.write_submission(spoil(predicted), dataset / "submission.csv", path)
    assert path.read_text() == "earlier"
    assert list(tmp_path.glob("*.unfinished")) == []


@pytest.mark.parametrize(
    ("template", "ids"),
    [
        ("file_id,age\n{0},0\n{1},0\n", ["image_1", "./image_0.jpg"]),
        ("file_id,age\n{0},0\n\n{1},0\n", ["NA", "007"]),
        ("age, file_id\n0, {0}\n0, {1}\n", ["2", "1"]),
        ('\ufefffile_id;age\n"{0}";0,5\n{1};0\n', ["a,b", "é 👩‍🦰"]),
    ],
)
def test_a_submission_has_the_ids_that_the_template_writes(
    dataset, tmp_path, template, ids
):
    for number, name in enumerate(("NA", "007", "1", "2", "a,b", "é 👩‍🦰")):
        face = dataset / "train" / f"image_{number}.jpg"
        face.rename(dataset / "test" / f"{name}.jpg")
    csv, path = dataset / "submission.csv", tmp_path / "out.csv"
    csv.write_text(template.format(*ids), encoding="utf-8")
    predicted = data.read_test(dataset).assign(pred_age=[30, 40.5])
    predict.write_submission(predicted, csv, path)
    assert data.read_ages(path).to_dict("list") == {"file_id": ids, "age": [30, 40.5]}


def test_spaces_around_a_templates_id_are_left_out_everywhere(dataset, tmp_path):
    csv, path = dataset / "submission.csv", tmp_path / "out.csv"
    csv.write_text('file_id,age\nimage_1.jpg ,0\n" image_0.jpg",0\n')
    with pytest.warns(UserWarning, match=r"line 2 \(and 1 more\) has spaces"):
        table = data.read_test(dataset)
    with pytest.warns(UserWarning, match=r"line 2 \(and 1 more\) has spaces"):
        predict.write_submission(table.assign(pred_age=[30, 40.5]), csv, path)
    assert data.read_ages(path)["file_id"].tolist() == ["image_1.jpg", "image_0.jpg"]


def test_a_template_that_is_no_table_is_named(dataset, predicted, tmp_path):
    csv = dataset / "submission.csv"
    csv.write_text("file_id,age\nimage_0.jpg,0,\n")
    with pytest.raises(ValueError, match=r"submission\.csv line 2 has 3 fields"):
        predict.write_submission(predicted, csv, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
