"""What several models say together: ensemble.py DATASET OUT MODEL [MODEL ...].

Averages the models' distributions over ages, as notebook 4 does with `MODELS`. Writes
three tables into OUT: `oof.csv`, each face predicted by those of the models that held
it out; `test.csv` and `submission.csv`, the test faces predicted by all. Prints each
model's error on the faces that it held out, and theirs together. One model will do.
"""

import argparse
from pathlib import Path

import pandas as pd

from agelib import data, files, metrics, model, outcome, predict

TOLD = ["file_id", "pred_age", "low", "high"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "dataset", type=Path, help="folder of faces in the competition's layout"
    )
    parser.add_argument("out", type=Path, help="folder of the three tables")
    parser.add_argument("models", type=Path, nargs="+", help="files of trained models")
    parser.add_argument("--views", type=int, help="of each face, else the recipes'")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    faces = data.read_train(asked.dataset)
    paths = {str(path): [path] for path in asked.models} | {"together": asked.models}
    judged = {
        name: outcome.unseen(several, faces, asked.views)
        for name, several in paths.items()
    }
    told = {name: metrics.summary(table) for name, table in judged.items()}
    print(pd.DataFrame(told).T.round(3).to_string())
    out_of_fold = judged["together"][["digest", "age", *TOLD]].round(3)
    files.write_csv(out_of_fold, asked.out / "oof.csv")
    trained = [model.load(path) for path in asked.models]
    tested = predict.predict(trained, data.read_test(asked.dataset), asked.views)
    files.write_csv(tested[TOLD].round(3), asked.out / "test.csv")
    template = asked.dataset / "submission.csv"
    predict.write_submission(tested, template, asked.out / "submission.csv")


if __name__ == "__main__":
    main()
