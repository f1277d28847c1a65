"""A table of faces in, a table of ages out; ensembles; the submission file."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from agelib import data, files, hardware, loading
from agelib.ages import N_AGES, read_off
from agelib.model import AgeModel, Trained, folded
from agelib.tables import require


def predict(
    trained: Trained | Sequence[Trained], table: pd.DataFrame, views: int | None = None
) -> pd.DataFrame:
    """The table with `pred_age` and its 90% interval `low`..`high`, in years.

    Args:
        trained: what `model.load` returns; of several, the distributions are averaged.
        table: one row a face, column `path`.
        views: how many of `loading.VIEWS` of each face to average; by default as many
            as the recipe says.
    Raises:
        ValueError: if the table is empty, an image can't be read, or there are fewer
            views.
    """
    return table.assign(**read_off(distributions(trained, table, views)))


def distributions(
    trained: Trained | Sequence[Trained], table: pd.DataFrame, views: int | None = None
) -> np.ndarray:
    """The predicted probability of each age 0..100: float32 (faces, 101)."""
    if table.empty:
        raise ValueError("There are no faces to predict: the table is empty.")
    hardware.keep_freed_memory()
    several = [trained] if isinstance(trained, Trained) else trained
    device = hardware.device()
    total = np.zeros((len(table), N_AGES), dtype=np.float32)
    for model, recipe in several:
        model.to(device).eval()
        n = recipe.views_at_test if views is None else views
        faces = loading.Faces(table, recipe.image_size, views=n)
        batches = loading.loader(faces, 64, hardware.workers(device))
        bar = tqdm(batches, "predicting", delay=2, leave=False)
        total += infer(model, bar, device)
    return total / len(several)


@torch.inference_mode()
def infer(
    model: AgeModel,
    batches: Iterable,
    device: torch.device,
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda shared: shared,
) -> np.ndarray:
    """Probabilities float32 (faces, 101) of a loader's faces, in the loader's order.

    Args:
        gather: makes a batch whole that several processes share.
    """
    rows = []
    model = folded(model)
    precision = torch.float16 if device.type == "cuda" else None
    for images, _, _ in batches:
        images = images.to(device, non_blocking=True)
        with torch.autocast(device.type, precision, enabled=precision is not None):
            probabilities = model.probabilities(images.flatten(0, 1))
        # the mean over each face's views
        probabilities = probabilities.unflatten(0, images.shape[:2]).mean(1)
        rows.append(gather(probabilities).cpu())
    return torch.cat(rows).numpy()


def write_submission(table: pd.DataFrame, template: Path, path: Path) -> pd.DataFrame:
    """Writes `file_id,age` for the template's faces, all or nothing; returns it.

    Args:
        table: columns `file_id` and `pred_age` in years, in the template's order.
        template: the competition's `submission.csv`, whose `file_id` must be matched.
    Raises:
        ValueError: naming an id that is missing, extra, repeated or out of order, a
            column that is missing, or an age that is not finite.
    """
    require(table, "file_id", "pred_age")
    wanted = data.read_listed(template)["file_id"].tolist()
    given = table["file_id"].tolist()
    if missing := sorted(set(wanted) - set(given)):
        raise ValueError(f"{_some(missing)} of {template} has no prediction.")
    if extra := sorted(set(given) - set(wanted)):
        raise ValueError(f"{_some(extra)} is not in {template}: leave it out.")
    if repeated := table["file_id"][table["file_id"].duplicated()].tolist():
        raise ValueError(f"{_some(repeated)} is predicted more than once.")
    if given != wanted:
        at = next(
            i for i, (g, w) in enumerate(zip(given, wanted, strict=True)) if g != w
        )
        raise ValueError(
            f"Row {at} is {given[at]}, where {template} has {wanted[at]}: keep its "
            "order."
        )
    age = pd.to_numeric(table["pred_age"], errors="coerce")
    if wrong := table["file_id"][~np.isfinite(age)].tolist():
        raise ValueError(f"The age predicted for {_some(wrong)} is not finite.")
    submission = pd.DataFrame({"file_id": given, "age": age.round(3)})
    files.write_csv(submission, path)
    return submission


def _some(ids: list[str]) -> str:
    more = f" (and {len(ids) - 1:,} more)" if len(ids) > 1 else ""
    return f"{ids[0]}{more}"
