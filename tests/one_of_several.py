"""Trains the tiny recipe as one of the processes that a launcher started.

    torchrun --nproc_per_node 2 one_of_several.py FACES RUN [frozen]

Each process notes the faces of every step and the history of the epochs, as it saw
them, in RUN/report-<process>.json. With `frozen` no batch norm learns.
"""

import json
import sys
from pathlib import Path

from timm.utils.model import freeze_batch_norm_2d

from agelib import data, model, train
from agelib.loop import Loop
from tests.conftest import TINY


def main(faces: Path, run: Path, frozen: bool) -> None:
    seen, loops, create = [], [], model.create

    class Noting(Loop):
        def __init__(self, *given, **options):
            super().__init__(*given, **options)
            loops.append(self)

        def update(self, images, age, rows):
            seen.append(rows.tolist())
            super().update(images, age, rows)

    def create_frozen(*given, **options):
        made = create(*given, **options)
        made.backbone = freeze_batch_norm_2d(made.backbone)
        return made

    if frozen:
        model.create = create_frozen
    tables = data.hold_out(data.read_train(faces), folds=4)
    history = train.fit(TINY, *tables, run, loop=Noting)
    process = loops[0].accelerator.process_index
    report = {"rows": seen, "history": history.to_dict("list")}
    (run / f"report-{process}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), "frozen" in sys.argv)
