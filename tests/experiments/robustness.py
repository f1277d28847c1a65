"""What does a bad photo cost in years: robustness.py DATASET OUT NAME=MODEL ...

Spoils the held-out faces in one way after the other, most of them at two strengths, and
writes each network's error to the table OUT. NAME is what the table calls the network,
MODEL its file. The noise of a face follows its place in the table alone: all networks
see the same photos.
"""

import argparse
from pathlib import Path

from agelib import data, model, results, trust


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path, help="the table to write")
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--faces", type=int, help="so many of them, at random")
    parser.add_argument("--views", type=int, help="instead of the recipe's")
    asked = parser.parse_args()
    faces = data.read_train(asked.dataset)
    held_out = faces[faces["digest"].isin(results.held_out())]
    if held_out.empty:
        parser.error(f"{asked.dataset} holds none of the competition's held-out faces")
    if asked.faces:
        held_out = held_out.sample(asked.faces, random_state=0)
    named = (text.partition("=") for text in asked.models)
    trained = {name: model.load(path) for name, _, path in named}
    held_out = held_out.reset_index(drop=True)
    table = trust.bad_photos(trained, held_out, views=asked.views).round(3)
    table.to_csv(asked.out, index=False)
    print(table.to_string())


if __name__ == "__main__":
    main()
