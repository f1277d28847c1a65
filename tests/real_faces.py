"""A short run of the whole series on some real faces: real_faces.py DATASET.

Takes 600 training and 100 test faces of a dataset in the competition's layout, runs
the six notebooks on them with two folds, and checks the error and the submission.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd


def main(dataset: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        faces, runs = Path(name) / "faces", Path(name) / "runs"
        faces.mkdir()
        for csv, rows in (("train.csv", 600), ("submission.csv", 100)):
            some = pd.read_csv(dataset / csv).sample(rows, random_state=0)
            some.to_csv(faces / csv, index=False)
        for images in ("train", "test"):
            (faces / images).symlink_to(dataset.resolve() / images)
        places = {"AGELIB_DATA": str(faces), "AGELIB_RUNS": str(runs)}
        choices = {"AGELIB_RECIPE": "sample", "AGELIB_FOLDS": "2"}
        environment = os.environ | places | choices
        subprocess.run([sys.executable, "-m", "agelib"], env=environment, check=True)
        oof = pd.read_csv(runs / "sample-2-folds" / "oof.csv")
        assert len(oof) == 600
        error = (oof["pred_age"] - oof["age"]).abs().mean()
        constant = (oof["age"] - oof["age"].median()).abs().mean()
        assert error < 0.75 * constant, (error, constant)
        submission = pd.read_csv(runs / "sample-2-folds" / "submission.csv")
        wanted = pd.read_csv(faces / "submission.csv")["file_id"]
        assert submission["file_id"].equals(wanted)
        assert submission["age"].between(0, 120).all()
        print(f"real faces: error {error:.2f} years, the median's {constant:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
