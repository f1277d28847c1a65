"""A table of faces in, a table of ages out; ensembles; the submission file."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from agelib import conformal, data, files, hardware, loading
from agelib.ages import N_AGES, read_off
from agelib.model import AgeModel, Trained, folded
from agelib.tables import require


def predict(
    trained: Trained | Sequence[Trained],
    table: pd.DataFrame,
    views: int | None = None,
    level: float = 0.9,
) -> pd.DataFrame:
    """The table with `pred_age` and its interval `low`..`high`, in years.

    Args:
        trained: what `model.load` returns; of several, the distributions are averaged.
        table: one row a face, column `path`.
        views: how many of `loading.VIEWS` of each face to average; by default as many
            as the recipe says.
        level: the share of true ages that the intervals should hold.
    Raises:
        ValueError: if the table is empty, an image can't be read, there are fewer
            views, or the level is not between 0 and 1.
    """
    conformal.check_level(level)
    probabilities = distributions(trained, table, views)
    return table.assign(**read_off(probabilities, calibration(trained), level))


def calibration(trained: Trained | Sequence[Trained]) -> np.ndarray | None:
    """How to read intervals off the distributions of one model, or of several averaged.

    Each model was calibrated on the faces that it held out; of several it is the mean,
    much as if all these faces were in one table (after the cross-conformal predictors
    of Vovk 2015). Since an average of networks is surer with reason, their intervals
    then hold rather more than they promise. None, with a warning, if one has no
    calibration.
    """
    several = [trained] if isinstance(trained, Trained) else trained
    found = [net.calibration for net, _ in several]
    for (net, _), table in zip(several, found, strict=True):
        if table is None:
            warnings.warn(
                f"The intervals of {net.origin} are not calibrated, so they may not "
                "hold what they promise: an earlier agelib made it. Train it again.",
                stacklevel=3,
            )
            return None
    return np.mean(found, axis=0)


def cross_calibrated(
    probabilities: np.ndarray,
    table: pd.DataFrame,
    level: float = 0.9,
    bandwidth: float = conformal.BANDWIDTH,
) -> pd.DataFrame:
    """Held-out faces with `pred_age` and an interval calibrated on the others of them.

    So it can be seen from these faces whether their intervals hold what they promise.
    The faces are split into ten parts, and copies of a photo are in one part. Two
    different photos are the least; a single one has an interval without calibration.

    Args:
        probabilities: (faces, 101) of networks that have not learned from them.
        table: the faces, row for row, with `age` in years and `digest`.
        bandwidth: as `conformal.calibrate` takes it.
    """
    told = pd.DataFrame(read_off(probabilities, None, level), index=table.index)
    if len(set(table["digest"])) > 1:
        part, age = data.split(table, 10)["fold"].to_numpy(), table["age"].to_numpy()
        for n in np.unique(part):
            here, others = part == n, part != n
            found = conformal.calibrate(probabilities[others], age[others], bandwidth)
            read = read_off(probabilities[here], found, level)
            told.loc[here] = pd.DataFrame(read, index=told.index[here])
    return table.assign(**told)


def distributions(
    trained: Trained | Sequence[Trained], table: pd.DataFrame, views: int | None = None
) -> np.ndarray:
    """The predicted probability of each age 0..100: float32 (faces, 101)."""
    if table.empty:
        raise ValueError("There are no faces to predict: the table is empty.")
    several = [trained] if isinstance(trained, Trained) else trained
    if not several:
        raise ValueError("There is no network to predict with: give at least one.")
    hardware.keep_freed_memory()
    device = hardware.device()
    total = np.zeros((len(table), N_AGES), dtype=np.float32)
    for model, recipe in several:
        model.to(device).eval()
        n = recipe.views_at_test if views is None else views
        faces = loading.Faces(table, recipe.image_size, views=n)
        batches = loading.loader(faces, 64, hardware.workers(device))
        bar = tqdm(batches, "predicting", delay=2, leave=False)
        total += infer(model, bar, device)
    hardware.return_freed_memory()
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
    half = hardware.precision(device) != "no"
    for images, _, _ in batches:
        images = images.to(device, non_blocking=True)
        views = images.flatten(0, 1)
        try:
            with torch.autocast(device.type, torch.float16, enabled=half):
                probabilities = model.probabilities(views)
        except ValueError:
            # float16 ends at 65,504, which what was learned in bfloat16 may exceed
            probabilities = model.probabilities(views)
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
