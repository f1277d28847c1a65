"""Draw the bundled sample anew: `python -m agelib.sample [folder]`."""

import argparse
from pathlib import Path

from agelib.sample import FOLDER, write_sample

parser = argparse.ArgumentParser("agelib.sample", description=__doc__)
parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
write_sample(parser.parse_args().folder)
