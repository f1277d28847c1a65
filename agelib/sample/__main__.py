"""Draw the bundled sample anew: `python -m agelib.sample [folder]`."""

import argparse
from pathlib import Path

from agelib import env
from agelib.sample import FOLDER, write_sample

parser = argparse.ArgumentParser("agelib.sample", description=__doc__)
parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
asked = parser.parse_args()
with env.plain_errors():
    write_sample(asked.folder)
