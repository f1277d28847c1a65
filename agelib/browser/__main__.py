"""Build the page: the files beside this one, the networks as ONNX, and what runs them.

python -m agelib.browser --out dist/page
"""

import argparse
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from agelib import detector, env, export, files, model

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
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(out) as unfinished:
        unfinished.mkdir()
        for name in STATIC:
            shutil.copyfile(HERE / name, unfinished / name)
        for name in DETECTOR:
            (unfinished / name).write_bytes(detector.network_file(name))
        _fetch_runtime(unfinished)
        trained, crops = model.load(checkpoint), export.drawn_crops()
        export.write(trained, unfinished / AGE, crops, views)
        found = {path.name for path in out.iterdir()} if out.is_dir() else set()
        # or it may be a site with an index.html of its own
        if {AGE, *DETECTOR} <= found <= PAGE:
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
    parser.add_argument("--model", type=Path, help="else the shipped one")
    parser.add_argument("--views", type=int, help="of each face, by default as trained")
    asked = parser.parse_args()
    with env.plain_errors():
        checkpoint = asked.model or env.shipped_model()
        out = build(asked.out, checkpoint, asked.views)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{out}: {size:.0f} MB. Show it with: python -m http.server -d {out}")


if __name__ == "__main__":
    main()
