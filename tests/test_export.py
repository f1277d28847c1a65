import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from agelib import conformal, data, env, export, loading, model, predict
from agelib.images import read_image
from agelib.model import Trained
from tests.conftest import TINY, untrained


def calibrated(seed: int, recipe=TINY) -> Trained:
    net = untrained(recipe, seed)
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(101), 200)
    net.calibration = conformal.calibrate(probabilities, rng.integers(0, 101, 200))
    return Trained(net, recipe)


@pytest.fixture
def crops() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 50, 50, 3), np.uint8)


def run(path, crops: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path))
    return dict(zip(export.OUTPUTS, session.run(None, {"crops": crops}), strict=True))


def by_torch(trained, crops: np.ndarray, folder, **options) -> pd.DataFrame:
    paths = [folder / f"{n}.png" for n in range(len(crops))]
    for pixels, path in zip(crops, paths, strict=True):
        Image.fromarray(pixels).save(path)
    table = pd.DataFrame({"path": list(map(str, paths))})
    told = predict.predict(trained, table, **options)
    return told.assign(p=list(predict.distributions(trained, table, **only(options))))


def only(options: dict) -> dict:
    return {name: value for name, value in options.items() if name == "views"}


def test_the_file_says_what_torch_says_of_any_number_of_faces(crops, tmp_path):
    """Two networks of different sizes and kinds, in four views."""
    one = calibrated(0)
    other = calibrated(1, replace(TINY, head="regression", image_size=48))
    both = [one, other]
    path = tmp_path / "age.onnx"
    change = export.write(both, path, crops, views=4, level=0.8)
    assert change < 0.001
    torchs = by_torch(both, crops, tmp_path, views=4, level=0.8)
    for n in (5, 1):
        told = run(path, crops[:n])
        np.testing.assert_allclose(told["age"], torchs["pred_age"][:n], atol=0.001)
        for end in ("low", "high"):
            np.testing.assert_allclose(told[end], torchs[end][:n], atol=0.001)
        shares = np.stack(torchs["p"][:n])
        np.testing.assert_allclose(told["probabilities"], shares, atol=1e-5)
    notes = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert notes["intervals"] == "calibrated"
    assert notes["level of the intervals"] == "0.8"
    assert "research" in notes["licence of the weights"]
    assert TINY.backbone in notes["recipe"]


@pytest.mark.filterwarnings("ignore:The intervals of")
def test_a_network_without_calibration_is_taken_at_its_word_as_in_python(
    crops, tmp_path
):
    path, trained = tmp_path / "age.onnx", Trained(untrained(), TINY)
    export.write(trained, path, crops, views=1, level=0.7)
    told, torchs = (
        run(path, crops),
        by_torch(trained, crops, tmp_path, views=1, level=0.7),
    )
    for end in ("low", "high"):
        np.testing.assert_allclose(told[end], torchs[end], atol=0.001)
    assert (told["low"] % 1).any()


@pytest.mark.parametrize("side", [200, 150, 80, 50, 33, 20])
@pytest.mark.parametrize("view", loading.VIEWS)
def test_a_view_has_the_very_pixels_that_pillow_gives(side, view, tmp_path):
    """Also of crops that are several times as large as what the network takes."""
    pixels = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "crop.png")
    crop = read_image(str(tmp_path / "crop.png"), 37)
    image = pil_to_tensor(loading.resize(crop, 37, **view))
    faces = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    blocks = export._blocks(side, 37)
    along = export._look(len(blocks), 37, view.get("zoom", 1.0))
    across = export._look(len(blocks), 37, **view)
    seen = export._seen(export._reduced(faces, blocks), along, across)
    assert torch.equal(seen[0], image.float())


def test_the_file_does_not_tell_where_it_was_made(crops, tmp_path):
    path = tmp_path / "age.onnx"
    export.write(calibrated(0), path, crops, views=1)
    content = path.read_bytes()
    assert b"stack_trace" not in content
    assert str(Path(export.__file__).parent).encode() not in content


def test_what_must_not_be_replaced_is_left_alone(crops, tmp_path, monkeypatch, capsys):
    with pytest.raises(IsADirectoryError, match="is a folder: name a file to write"):
        export.write(calibrated(0), tmp_path, crops)
    kept = tmp_path / "model.safetensors"
    kept.write_text("hours of work")
    monkeypatch.setattr(sys, "argv", ["export", str(kept)])
    with pytest.raises(SystemExit):
        export.main()
    assert "give it a name that ends in .onnx" in capsys.readouterr().err
    assert kept.read_text() == "hours of work"


def test_a_file_that_differs_is_not_written(crops, tmp_path, monkeypatch):
    path = tmp_path / "age.onnx"
    path.write_text("an earlier file")
    honest = export.predict.predict
    shifted = lambda *a: honest(*a).assign(pred_age=lambda t: t["pred_age"] + 0.02)  # noqa: E731
    monkeypatch.setattr(export.predict, "predict", shifted)
    with pytest.raises(ValueError, match=r"differ by 0\.020 years.*is not written"):
        export.write(calibrated(0), path, crops, views=1)
    wider = lambda *a: honest(*a).assign(high=lambda t: t["high"] + 1)  # noqa: E731
    monkeypatch.setattr(export.predict, "predict", wider)
    with pytest.raises(ValueError, match=r"intervals .* not torch's.*is not written"):
        export.write(calibrated(0), path, crops, views=1)
    assert path.read_text() == "an earlier file"
    assert list(tmp_path.iterdir()) == [path]


def test_without_its_packages_it_says_what_to_install(crops, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'agelib\[export\]'"):
        export.write(calibrated(0), tmp_path / "age.onnx", crops)


def test_the_command_exports_the_shipped_network(
    dataset, tmp_path, monkeypatch, capsys
):
    """In place of which stands a small one here, without a calibration."""
    small = tmp_path / "small.safetensors"
    model.save(untrained(), TINY, small)
    monkeypatch.setattr(env, "shipped_model", lambda: small)
    # it needs no faces but those it draws
    monkeypatch.setenv("AGELIB_DATA", str(tmp_path / "nowhere"))
    out = tmp_path / "new folder" / "out.onnx"
    monkeypatch.setattr(sys, "argv", ["export", str(out), "--views", "1"])
    with pytest.warns(UserWarning, match="are not calibrated"):
        export.main()
    assert "its ages differ from torch's by at most 0.000" in capsys.readouterr().out
    notes = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert notes["intervals"] == "not calibrated"
    faces = export.read_crops(data.read_train(dataset))
    assert faces.shape == (40, 200, 200, 3)
    told = run(out, faces)
    assert (told["low"] <= told["age"]).all()
    assert (told["age"] <= told["high"]).all()
