"""How fast and how large: speed.py [WORD ...] measures the lines with such a word.

Every line of the table compares two alternatives that are measured in turn, each in a
process of its own, and keeps the best of several rounds: another process that wants a
core can only make a number worse. Writes data/results/speed.csv.

AGELIB_DATA names the faces, as everywhere; without it they are the bundled drawn ones.
"""

# agelib sets how long OpenMP's threads spin and how memory is freed, for the process
# and its children: only the functions that measure agelib import it.
import argparse
import gc
import itertools
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
CSV = ROOT / "data" / "results" / "speed.csv"
ROUNDS = 3
TRIES = 4
SECONDS = 8
LITE0, B4 = "tf_efficientnet_lite0", "tf_efficientnet_b4"
TINY = "test_efficientnet.r160_in1k"


class Line(NamedTuple):
    measure: str
    # a function of this file and its arguments, printing one number
    ours: str
    # the same; without it, ours prints both numbers
    other: str
    unit: str
    # for the ratio of ours to the other
    aim: str = ""


def training(
    backbone: str, name: str, size: int, batch_size: int, aim: str = "", frozen: int = 0
) -> Line:
    stages = f", {frozen} stages frozen" if frozen else ""
    return Line(
        f"training {name} at {size} px{stages}, against the original's loop",
        f"our_training {backbone} {size} {batch_size} {frozen}",
        f"plain_training {backbone} {size}",
        "faces/s",
        aim,
    )


def waiting(size: int) -> Line:
    measure = f"epoch of Lite0 at {size} px, against its steps on one batch in memory"
    return Line(measure, f"input_cost {size}", "", "s", "<= 1.05")


def growth(what: str, function: str, times: int, unit: str) -> Line:
    measure = f"{what}, {times},000 faces against 1,000"
    commands = f"{function} {times}", f"{function} 1"
    return Line(measure, *commands, unit, "<= 1.1")


LINES = (
    training(LITE0, "Lite0", 128, 64),
    training(LITE0, "Lite0", 224, 64, ">= 2.8"),
    training(B4, "B4", 224, 16, ">= 2"),
    training(LITE0, "Lite0", 224, 64, ">= 2.8", frozen=3),
    training(B4, "B4", 224, 16, ">= 2", frozen=3),
    waiting(96),
    waiting(128),
    waiting(224),
    Line(
        "prediction by Lite0 at 160 px and mirrored, against one face at a time",
        "our_prediction",
        "plain_prediction",
        "faces/s",
        ">= 5",
    ),
    Line(
        "ages by ONNX in the views of the recipe, against torch",
        "onnx_prediction",
        "torch_prediction",
        "faces/s",
    ),
    Line("size of the ONNX file, against the checkpoint", "file_sizes", "", "MB"),
    growth("peak memory of an epoch", "peak_memory", 4, "MB"),
    growth("peak memory of an epoch", "peak_memory", 16, "MB"),
    growth("time of an epoch a face", "epoch_time", 4, "ms"),
    growth("time of an epoch a face", "epoch_time", 16, "ms"),
    Line(
        "memory of the loader's million faces, against a list of (path, age)",
        "our_bytes",
        "plain_bytes",
        "bytes/face",
        "<= 1",
    ),
)


# -- what is measured of agelib --------------------------------------------------------


def our_training(backbone: str, size: int, batch_size: int, frozen: int) -> float:
    loop = _loop(backbone, size, 1024, batch_size=batch_size, frozen_stages=frozen)
    return _speed(lambda batch: loop.update(*batch), loop.batches, batch_size)


def input_cost(size: int) -> tuple[float, float]:
    """The seconds of an epoch, and of as many steps on one batch in memory."""
    from torch.utils.data import default_collate

    loop = _loop(LITE0, size, 1024)
    batch = default_collate([loop.batches.dataset[0, row] for row in range(64)])

    def in_memory() -> None:
        for _ in loop.batches.batch_sampler:
            loop.update(*batch)

    # the first epoch starts the workers
    _epoch(loop, 0)
    turns = [
        (_seconds(_epoch, loop, 1 + turn), _seconds(in_memory))
        for turn in range(ROUNDS)
    ]
    return tuple(map(min, zip(*turns, strict=True)))


def our_prediction() -> float:
    from agelib import model, predict
    from agelib.recipe import Recipe

    recipe = Recipe("speed", LITE0, image_size=160, epochs=1)
    trained = model.Trained(model.create(recipe, pretrained=False), recipe)
    table = faces(1024)
    return len(table) / _seconds(predict.predict, trained, table, views=2)


def torch_prediction() -> float:
    from agelib import env, model, predict

    trained, table = model.load(env.shipped_model()), faces(1024)
    return len(table) / _seconds(predict.predict, trained, table)


def onnx_prediction() -> float:
    import onnxruntime

    from agelib import export

    session = onnxruntime.InferenceSession(_exported())
    table = faces(1024)

    def predict() -> None:
        for start in range(0, len(table), export.TRIED):
            crops = export.read_crops(table[start : start + export.TRIED])
            session.run(None, {export.INPUT: crops})

    return len(table) / _seconds(predict)


def file_sizes() -> tuple[float, float]:
    from agelib import env

    return tuple(
        path.stat().st_size / 1e6 for path in (_exported(), env.shipped_model())
    )


def _exported() -> Path:
    from agelib import env, export, model

    path = Path(os.environ["AGELIB_RUNS"]) / "age.onnx"
    crops = export.read_crops(faces(export.TRIED))
    export.write(model.load(env.shipped_model()), path, crops)
    return path


def peak_memory(thousands: int) -> float:
    """Of the process and its workers together; pages that they share count twice."""
    _two_epochs(thousands)
    processes = [os.getpid(), *(c.pid for c in multiprocessing.active_children())]
    status = "".join(Path(f"/proc/{p}/status").read_text() for p in processes)
    peaks = [ln.split()[1] for ln in status.splitlines() if ln.startswith("VmHWM")]
    return sum(map(int, peaks)) / 1024


def epoch_time(thousands: int) -> float:
    return _two_epochs(thousands)


def our_bytes() -> float:
    from agelib.loading import Faces

    return _bytes_a_face(lambda table: Faces(table, 96))


def _loop(backbone: str, size: int, n: int, **choices):
    """A training of n faces with random weights, before its first step."""
    from agelib import loop, model
    from agelib.recipe import Recipe

    recipe = Recipe("speed", backbone, image_size=size, epochs=9, **choices)
    weights = model.create(recipe, pretrained=False).state_dict()
    folder = Path(tempfile.mkdtemp(dir=os.environ["AGELIB_RUNS"]))
    return loop.Loop(recipe, faces(n), faces(8), folder, bar=False, start=weights)


def _two_epochs(thousands: int):
    """The second epoch's milliseconds a face, of a network that takes little time."""
    global loop  # whose workers are measured while they live
    loop = _loop(TINY, 32, 1000 * thousands)
    _epoch(loop, 0)
    learned = 64 * len(loop.batches)
    return 1000 * _seconds(_epoch, loop, 1) / learned


def _epoch(loop, epoch: int) -> None:
    from tqdm import tqdm

    loop.updates = epoch * len(loop.batches)
    loop.train_epoch(epoch, tqdm(disable=True))


# -- what it is measured against: none of it uses agelib -------------------------------


def plain_training(backbone: str, size: int) -> float:
    """A loop as in the original's public notebook, on a CPU."""
    import timm
    import torch
    from torch.utils.data import DataLoader

    network = timm.create_model(backbone, num_classes=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    loss_of = torch.nn.L1Loss()

    def update(batch: tuple) -> None:
        images, age = batch
        optimizer.zero_grad()
        loss = loss_of(network(images).squeeze(1), age.float())
        loss.backward()
        optimizer.step()
        loss.item()

    dataset = _plain_dataset(1024, size, train=True)
    batches = DataLoader(dataset, batch_size=8, shuffle=True, num_workers=1)
    return _speed(update, batches, 8)


def plain_prediction() -> float:
    import timm
    import torch

    network = timm.create_model(LITE0, num_classes=101).eval()

    @torch.no_grad()
    def update(item: tuple) -> None:
        image = item[0].unsqueeze(0)
        shares = (network(image).softmax(1) + network(image.flip(3)).softmax(1)) / 2
        shares.numpy()

    dataset = _plain_dataset(1024, 160, train=False)
    return _speed(update, map(dataset.__getitem__, itertools.count()), 1, warm=8)


def plain_bytes() -> float:
    return _bytes_a_face(lambda t: list(zip(t["path"], t["age"], strict=True)))


def _plain_dataset(n: int, size: int, train: bool):
    from PIL import Image
    from torch.utils.data import Dataset
    from torchvision import transforms

    steps = [
        transforms.Resize((size, size)),
        transforms.RandomHorizontalFlip(p=0.5 if train else 0),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    change, table = transforms.Compose(steps), faces(n)

    class Plain(Dataset):
        def __len__(self) -> int:
            return len(table)

        def __getitem__(self, row: int) -> tuple:
            face = table.iloc[row]
            return change(Image.open(face["path"]).convert("RGB")), face["age"]

    return Plain()


# -- how it is measured ----------------------------------------------------------------


def faces(n: int) -> pd.DataFrame:
    """A table of n labelled faces, repeated if there are fewer."""
    folder = ROOT / (os.environ.get("AGELIB_DATA") or "data/sample")
    table = pd.read_csv(folder / "train.csv")
    table = table.sample(n, replace=n > len(table), random_state=0, ignore_index=True)
    paths = [str(folder / "train" / name) for name in table["file_id"]]
    return table.assign(path=paths, digest=table["file_id"])


def _speed(update: Callable, batches: Iterable, batch_size: int, warm: int = 2):
    """Faces a second, over at least SECONDS and two steps after those that warm up."""
    for step, batch in enumerate(batches, start=1):
        update(batch)
        if step == warm:
            start = time.perf_counter()
        elif step >= warm + 2 and time.perf_counter() - start > SECONDS:
            break
    return batch_size * (step - warm) / (time.perf_counter() - start)


def _seconds(function: Callable, *args, **kwargs) -> float:
    start = time.perf_counter()
    function(*args, **kwargs)
    return time.perf_counter() - start


def _bytes_a_face(keep: Callable) -> float:
    """What it takes to keep a million faces in the form that a function returns."""
    n = 1_000_000
    paths = (f"faces_dataset/train/image_{i:06}.jpg" for i in range(n))
    tracemalloc.start()
    table = pd.DataFrame({"path": list(paths), "age": 30.0})
    kept = keep(table)
    del table
    gc.collect()
    return tracemalloc.get_traced_memory()[0] / n if kept else 0


def _run(command: str, alone: bool) -> list[float]:
    """What a function of this file prints, called in a process of its own.

    With `alone` not while other processes take much of the cores: threads that wait for
    each other lose more than the time that was taken, and small batches most of all.
    """
    for _ in range(TRIES):
        before, start = _others(), time.perf_counter()
        run = subprocess.run(
            [sys.executable, __file__, "--call", *command.split()],
            capture_output=True,
            text=True,
        )
        if run.returncode:
            sys.exit(f"{command} failed:\n{run.stderr}")
        taken = (_others() - before) / (time.perf_counter() - start)
        if taken < 0.1 or not alone:
            return [float(number) for number in run.stdout.split()]
        print(f"{command}: others took {taken:.0%} of a core", file=sys.stderr)
    sys.exit(f"The machine is too busy to measure {command}: run it again when idle.")


def _others() -> float:
    """The seconds that cores were busy with neither this process nor its children."""
    user, nice, system, *_ = Path("/proc/stat").read_text().split()[1:]
    busy = sum(map(int, (user, nice, system))) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


def measured(line: Line) -> dict:
    commands = [command for command in (line.ours, line.other) if command]
    timed = line.unit not in ("MB", "bytes/face")
    # one that measures both takes its own turns
    rounds = range(ROUNDS if timed and line.other else 1)
    numbers = [[n for c in commands for n in _run(c, timed)] for _ in rounds]
    best = max if line.unit.endswith("/s") else min
    ours, other = map(best, zip(*numbers, strict=True))
    return {
        "measure": line.measure,
        "ours": round(ours, 2),
        "other": round(other, 2),
        "unit": line.unit,
        "ratio": round(ours / other, 2),
        "aim": line.aim,
    }


def keep(row: dict) -> None:
    """Puts a measured line into the file, in the place of an earlier one."""
    new = pd.DataFrame([row])
    if CSV.is_file():
        old = pd.read_csv(CSV, keep_default_na=False)
        new = pd.concat([old[old["measure"] != row["measure"]], new])
    order = {line.measure: at for at, line in enumerate(LINES)}
    new.sort_values("measure", key=lambda m: m.map(order)).to_csv(CSV, index=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="of the lines to measure, else all"
    )
    # how the script calls itself: a function and its arguments
    parser.add_argument("--call", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.call:
        function, *args = asked.words
        args = [int(a) if a.isdigit() else a for a in args]
        with tempfile.TemporaryDirectory() as runs:
            os.environ["AGELIB_RUNS"] = runs
            result = globals()[function](*args)
        print(*result if isinstance(result, tuple) else (result,))
        return
    for line in LINES:
        if not asked.words or any(word in line.measure for word in asked.words):
            keep(measured(line))
    print(pd.read_csv(CSV, keep_default_na=False).to_string(index=False))


if __name__ == "__main__":
    main()
