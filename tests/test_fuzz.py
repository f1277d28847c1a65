"""Some hundreds of damaged files: each gives a right result or one clear sentence.

The damage follows a seed, so that a failure comes back when it is run again.
"""

import io
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from timm.optim import create_optimizer_v2

from agelib import data, files, images, model, outcome, runs, states
from agelib.recipe import from_dict
from tests.conftest import TINY

# what a damaged byte is likely to become, and to be looked at twice
BYTES = b'\0\n\r",;\t <[{}]\\\xff\xfe\x80019-.eE'


def mutants(content: bytes, number: int) -> Iterator[bytes]:
    """Copies with bytes changed, inserted, removed, swapped, or cut short."""
    rng = np.random.default_rng(number)
    for _ in range(number):
        mutant = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            kind, at = rng.integers(6), int(rng.integers(len(mutant) + 1))
            length = int(rng.integers(1, 9))
            if kind == 0:
                mutant[at : at + 1] = (
                    rng.choice(list(BYTES), 1).astype("uint8").tobytes()
                )
            elif kind == 1:
                mutant[at : at + length] = rng.bytes(length)
            elif kind == 2:
                mutant[at:at] = (
                    rng.choice(list(BYTES), length).astype("uint8").tobytes()
                )
            elif kind == 3:
                del mutant[at : at + length]
            elif kind == 4:
                other = int(rng.integers(len(mutant) + 1))
                mutant[at:at] = mutant[other : other + 16]
            elif rng.random() < 0.3:
                del mutant[at:]
        yield bytes(mutant)


def read_or_refuse(
    read: Callable, *given: object, naming: Path | None = None
) -> object:
    """What reading gives; None after an error of a clear kind, in one sentence."""
    try:
        return read(*given)
    except (ValueError, OSError) as error:
        sentence = str(error)
        assert len(sentence) > 10
        assert "\n" not in sentence.strip()
        assert "Traceback" not in sentence
        if naming:
            assert str(naming) in sentence
        return None


def test_damaged_tables(tmp_path):
    """Each id and age that is read stands in one line of the file."""
    csv = tmp_path / "train.csv"
    rows = [f"image_{n}.jpg,{7 * n % 90}" for n in range(9)]
    read = 0
    for mutant in mutants("\n".join(["file_id,age", *rows, ""]).encode(), 300):
        csv.write_bytes(mutant)
        table = read_or_refuse(data.read_ages, csv, naming=csv)
        if table is None:
            continue
        read += 1
        assert table["file_id"].is_unique
        assert table["age"].between(0, 120).all()
        lines = re.split(r"[\r\n]+", mutant.decode("utf-8-sig"))
        for face in table.itertuples():
            others = [
                line.replace(face.file_id, "") for line in lines if face.file_id in line
            ]
            fields = [field for rest in others for field in re.split(r'[\s,;"]+', rest)]
            assert any(same(field, face.age) for field in fields), (mutant, face)
    assert 30 < read < 270


def same(field: str, age: float) -> bool:
    try:
        return float(field) == age
    except ValueError:
        return False


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_images(tmp_path, kind):
    """What is read has three colours in each pixel of a sensible size."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype="uint8")
    file, path = io.BytesIO(), tmp_path / "face.jpg"
    Image.fromarray(pixels).save(file, kind)
    read = 0
    for mutant in mutants(file.getvalue(), 60):
        path.write_bytes(mutant)
        image = read_or_refuse(images.read_image, str(path), naming=path)
        read += image is not None
        if image is not None:
            assert image.mode == "RGB"
            assert min(image.size) >= images.SMALLEST
            # all of it is there
            assert np.asarray(image).shape == (image.height, image.width, 3)
    assert 0 < read < 60


def test_damaged_checkpoints(tmp_path):
    """What is read answers with shares that sum to one."""
    path = tmp_path / "model.safetensors"
    torch.manual_seed(0)
    model.save(model.create(TINY, pretrained=False), TINY, path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    faces = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    read = 0
    for mutant in mutants(whole[:header], 60):
        path.write_bytes(mutant + whole[header:])
        if trained := read_or_refuse(model.load, path, naming=path):
            read += 1
            with torch.inference_mode():
                shares = trained[0].probabilities(faces)
            assert shares.sum().item() == pytest.approx(1, abs=1e-4)
    assert 0 < read < 60


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder as a training leaves it, without the training."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    faces = pd.DataFrame(
        {
            "file_id": [f"image_{n}.jpg" for n in range(8)],
            "path": "nowhere",
            "age": np.arange(8.0),
            "digest": list("abcdefgh"),
        }
    )
    faces.to_csv(folder.with_name("faces.csv"), index=False)
    runs.claim(folder, TINY, faces[4:], faces[:4])
    predicted = faces[:4].assign(pred_age=20.5, low=10.25, high=30.75)
    files.write_csv(predicted, folder / runs.VALIDATION)
    net = model.create(TINY, pretrained=False)
    optimizer = create_optimizer_v2(net, "sgd", momentum=0.9)
    for weight in net.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    moments, numbers, counts = states.of_optimizer(optimizer, net)
    parts = {
        part: {name: tensor.clone() for name, tensor in net.state_dict().items()}
        for part in ("net", "ema", "best")
    }
    row = {"epoch": 1, "train_loss": 4.6, "val_mae": 9.0, "lr": 0.1, "seconds": 2.0}
    position = {"updates": 4, "history": [row], "loss": 4.5, "seconds": 1.0}
    position |= {"scaler": {}, "numbers": numbers, "counts": counts}
    states.save(folder, 4, parts | {"optimizer": moments}, position)
    return folder


def test_damaged_distributions(run, tmp_path):
    """They are probabilities of as many faces, or are refused."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    faces = pd.read_csv(run.with_name("faces.csv"))
    path = copy / runs.DISTRIBUTIONS
    outcome.write_distributions(np.full((4, 101), 1 / 101), path)
    read = 0
    for mutant in mutants(path.read_bytes(), 150):
        path.write_bytes(mutant)
        found = read_or_refuse(outcome.distributions, copy, faces, naming=path)
        read += found is not None
        if found is not None:
            assert found.shape == (4, 101)
            np.testing.assert_allclose(found.sum(1), 1, atol=0.02)
    assert 0 < read < 150


@pytest.mark.parametrize("name", [runs.RECIPE, runs.VALIDATION])
def test_damaged_descriptions_of_a_run(run, tmp_path, name):
    """What is read is what was written, or is refused."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    faces = pd.read_csv(run.with_name("faces.csv"))
    whole = (run / name).read_bytes()
    for mutant in mutants(whole, 150):
        (copy / name).write_bytes(mutant)
        if found := read_or_refuse(runs.read, copy, naming=copy):
            assert from_dict(asdict(found[0])) == found[0]
            assert all(isinstance(fingerprint, str) for fingerprint in found[1])
        if name == runs.VALIDATION:
            table = read_or_refuse(outcome.validation, copy, faces, naming=copy / name)
            if table is not None:
                assert table["file_id"].tolist() == faces["file_id"][:4].tolist()
                assert table["age"].tolist() == [0, 1, 2, 3]
                ages = table[["pred_age", "low", "high"]].to_numpy()
                assert np.isfinite(ages).all()


@pytest.mark.parametrize(
    ("name", "number"), [(states.FILES[0], 40), (states.FILES[1], 100)]
)
def test_damaged_states(run, tmp_path, name, number):
    """A state is as it was saved, or it is set aside whole."""
    net = model.create(TINY, pretrained=False)
    folder = tmp_path / "run"
    whole = (run / "state-4" / name).read_bytes()
    expected, position = states.read(run / "state-4")

    def check(parts, position):
        states.check(parts, position, net, create_optimizer_v2(net, "adamw"), 3, 3)

    # what tells of the tensors is at their file's beginning
    size = 20_000 if name == states.FILES[0] else len(whole)
    for mutant in mutants(whole[:size], number):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run / "state-4", folder / "state-4")
        (folder / "state-4" / name).write_bytes(mutant + whole[size:])
        told = []
        if states.newest(folder, check, told.append):
            parts, found = states.read(folder / "state-4")
            assert found["updates"] == position["updates"]
            assert math.isfinite(found["loss"])
            assert torch.equal(
                parts["net"]["backbone.conv_stem.weight"],
                expected["net"]["backbone.conv_stem.weight"],
            )
        else:
            assert "state-4 can't be read" in told[0]
            assert (folder / "state-4.damaged-1").is_dir()
