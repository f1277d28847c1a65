"""What several models say together: ensemble.py DATASET OUT MODEL [MODEL ...].

Averages the models' distributions over ages, as notebook 4 does with `MODELS`, and
writes `validation.csv` and `submission.csv` into OUT. All models must have held out the
same faces. Prints each model's validation error, and theirs together.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from agelib import ages, data, files, metrics, model, predict


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "dataset", type=Path, help="folder of faces in the competition's layout"
    )
    parser.add_argument("out", type=Path, help="folder of the two tables")
    parser.add_argument("models", type=Path, nargs="+", help="files of trained models")
    parser.add_argument("--views", type=int, help="of each face, else the recipes'")
    asked = parser.parse_args()
    _, held_out = data.hold_out(data.read_train(asked.dataset))
    several = {str(path): model.load(path) for path in asked.models}
    apart = {
        name: predict.distributions(trained, held_out, asked.views)
        for name, trained in several.items()
    }
    predicted = {
        name: held_out.assign(**ages.read_off(p))
        for name, p in (apart | {"together": np.mean([*apart.values()], 0)}).items()
    }
    told = {name: metrics.summary(table) for name, table in predicted.items()}
    print(pd.DataFrame(told).T.round(3).to_string())
    asked.out.mkdir(parents=True, exist_ok=True)
    together = predicted["together"].round(3)
    together["path"] = "train/" + together["file_id"]
    files.write_csv(together, asked.out / "validation.csv")
    tested = predict.predict(
        [*several.values()], data.read_test(asked.dataset), asked.views
    )
    template = asked.dataset / "submission.csv"
    predict.write_submission(tested, template, asked.out / "submission.csv")


if __name__ == "__main__":
    main()
