"""Trains the tiny recipe as one of the processes that a launcher started.

    torchrun --nproc_per_node 2 one_of_several.py FACES RUN [frozen]

Each process notes the faces of every step and the history of the epochs, as it saw
them, in RUN/report-<process>.json. With `frozen` no batch norm learns.
"""

import json
import sys
from pathlib import Path

from timm.utils.model import freeze_batch_norm_2d

from agelib import data, loop, model, train
from tests.conftest import TINY


def main(faces: Path, run: Path, frozen: bool) -> None:
    table = data.split(data.read_train(faces), folds=4)
    held_out = table["fold"] == 0
    seen, update, create = [], loop.Loop.update, model.create

    def noted(self, images, age, rows):
        seen.append(rows.tolist())
        update(self, images, age, rows)

    def create_frozen(*given, **options):
        made = create(*given, **options)
        made.backbone = freeze_batch_norm_2d(made.backbone)
        return made

    loop.Loop.update = noted
    if frozen:
        model.create = create_frozen
    loops = []
    loop.Loop.__init__ = remembering(loop.Loop.__init__, loops)
    history = train.fit(TINY, table[~held_out], table[held_out], run)
    process = loops[0].accelerator.process_index
    report = {"rows": seen, "history": history.to_dict("list")}
    (run / f"report-{process}.json").write_text(json.dumps(report))


def remembering(init, loops: list):
    def remember(self, *given, **options):
        init(self, *given, **options)
        loops.append(self)

    return remember


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), "frozen" in sys.argv)
