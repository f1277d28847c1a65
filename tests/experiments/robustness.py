"""What does a bad photo cost in years: robustness.py DATASET OUT NAME=MODEL ...

Spoils the faces that are new to all networks in one way after the other, most of them
at two strengths, and writes each network's error to the table OUT. NAME is what the
table calls the network, MODEL its file. The noise of a face follows its place in the
table alone: all networks see the same photos.
"""

import argparse
from pathlib import Path

from agelib import data, files, model, outcome, trust


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path, help="the table to write")
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--faces", type=int, help="so many of them, at random")
    parser.add_argument("--views", type=int, help="instead of the recipe's")
    asked = parser.parse_args()
    named = dict(text.partition("=")[::2] for text in asked.models)
    if "" in {*named, *named.values()} or len(named) < len(asked.models):
        parser.error("each network is a NAME=MODEL, and each NAME another")
    files.prepare(asked.out)
    trained = {name: model.load(path) for name, path in named.items()}
    new = outcome.new_to_all([*named.values()], data.read_train(asked.dataset))
    if asked.faces:
        new = new.sample(min(asked.faces, len(new)), random_state=0)
    new = new.reset_index(drop=True)
    table = trust.bad_photos(trained, new, views=asked.views).round(3)
    files.write_csv(table, asked.out)
    print(table.to_string())


if __name__ == "__main__":
    main()
