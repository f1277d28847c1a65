"""What a run has found: its models, its errors, and what it says of faces new to it.

Of a cross-validation that of all folds together.
"""

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from agelib import files, model, predict, results, runs, tables
from agelib.ages import N_AGES
from agelib.model import Trained


def models(folder: Path) -> list[Path]:
    """The models of a run: one, or of a cross-validation that of each fold so far."""
    return [training / runs.MODEL for training in _trained(folder).values()]


def history(folder: Path) -> pd.DataFrame:
    """What a run's trainings wrote of each epoch, with its `fold`."""
    epochs = [
        pd.read_csv(training / runs.HISTORY).assign(fold=fold)
        for fold, training in _trained(folder).items()
    ]
    return pd.concat(epochs, ignore_index=True)


def _trained(folder: Path) -> dict[int, Path]:
    """The folders of the trainings that have completed an epoch, by their folds."""
    found = {
        fold: training
        for fold, training in runs.trainings(folder).items()
        if (training / runs.MODEL).is_file()
    }
    return found or {0: folder}


def error(folder: Path) -> str:
    """The validation error of the best epoch, of a cross-validation of all folds."""
    table = history(folder)
    best = table.loc[table.groupby("fold")["val_mae"].idxmin()]
    told = f"{best['val_mae'].mean():.2f} years"
    if len(best) > 1:
        return f"{told}, the mean of {len(best)} folds"
    return f"{told}, after epoch {best.index.item() + 1} of {len(table)}"


def judged(run: Path, faces: pd.DataFrame) -> tuple[Trained, pd.DataFrame]:
    """A trained network, and what a run predicts of faces that were new to it.

    Args:
        run: a run's folder, which holds both: of a cross-validation the network is that
            of the first fold, and each face is predicted by that of its own. Or a
            model, which is judged on the faces that are `new_to` it. Their fold is 0.
        faces: all labelled faces, as `data.read_train` gives them.
    Raises:
        FileNotFoundError, OSError, ValueError: if the files are missing or damaged.
    """
    run = Path(run)
    trained = model.load(models(run)[0] if run.is_dir() else run)
    if home := _run_of(run):
        return trained, validation(home, faces)
    new = new_to(run, faces)
    # its calibration knows the ages of those that it held out
    in_a_run = (run.parent / runs.RECIPE).is_file()
    if in_a_run or new["digest"].isin(results.held_out()).all():
        probabilities = predict.distributions(trained, new)
        predicted = predict.cross_calibrated(probabilities, new)
    else:
        predicted = predict.predict(trained, new)
    return trained, predicted.assign(fold=0)


def validation(folder: Path, faces: pd.DataFrame) -> pd.DataFrame:
    """The run's held-out faces with the predictions that the training wrote.

    Of a cross-validation those of all folds so far, in the order of `faces`, each face
    predicted by the network that has not learned from it. The column `fold` tells which
    one that is.

    Their paths are those in `faces`, as `data.read_train` gives them: the training may
    have been another session's, which had them elsewhere.

    Raises:
        FileNotFoundError: if the training wrote none.
        ValueError: if the file is damaged, or not of all the faces held out.
    """
    table, order = _validation(folder, faces)
    return table.iloc[order].reset_index(drop=True)


def distributions(run: Path, faces: pd.DataFrame) -> np.ndarray:
    """The probability of each age 0..100 for each row of `judged`, float32.

    Raises:
        FileNotFoundError: if the training wrote none.
        ValueError: if a file is damaged, or not of all the faces held out.
    """
    run = Path(run)
    home = _run_of(run)
    if not home:
        return predict.distributions(model.load(run), new_to(run, faces))
    table, order = _validation(home, faces)
    probabilities = [
        read_distributions(path.with_name(runs.DISTRIBUTIONS), n)
        for path, n in zip(models(home), table.groupby("fold").size(), strict=True)
    ]
    return np.concatenate(probabilities)[order]


def unseen(
    paths: Sequence[Path], faces: pd.DataFrame, views: int | None = None
) -> pd.DataFrame:
    """What several models say of faces that they have not learned from.

    Each face is predicted by those of them which held it out, whose distributions are
    averaged; faces from which all have learned are left out. So no network judges a
    face that it knows by heart.

    Args:
        paths: models, as `models` gives them; the faces have to be `new_to` them.
        faces: all labelled faces, as `data.read_train` gives them.
        views: how many of `loading.VIEWS` of each face to average; by default as many
            as the recipe says.
    Raises:
        FileNotFoundError, OSError, ValueError: if the files are missing or damaged.
    """
    known, mean = together(answers(path, faces, views) for path in paths)
    return predict.cross_calibrated(mean, faces[known])


def together(
    several: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """The mean of what several networks say, each of the faces that are new to it.

    Args:
        several: as `answers` returns it.
    Returns:
        The same: of the faces that are new to any of them.
    """
    total, voices = 0.0, 0
    for new, probabilities in several:
        said = np.zeros((len(new), N_AGES), np.float32)
        said[new] = probabilities
        total, voices = total + said, voices + new.astype(int)
    known = voices > 0
    return known, total[known] / voices[known, None].astype(np.float32)


def answers(
    path: Path, faces: pd.DataFrame, views: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What a model says of the faces that it has not learned from; as `unseen`.

    Returns:
        Which of the faces these are, bool (faces,), and their distributions, float32
        (these, 101).
    """
    path = Path(path)
    new = faces["file_id"].isin(new_to(path, faces)["file_id"]).to_numpy()
    if _run_of(path) and views is None:
        return new, distributions(path, faces)
    return new, predict.distributions(model.load(path), faces[new], views)


def new_to(path: Path, faces: pd.DataFrame) -> pd.DataFrame:
    """The faces that a model has not learned from.

    In a run's folder, those that the run held out. Any other model is taken for one
    like the shipped one: it has held out the same of the competition's faces, and if
    none of these is there, all faces are new to it.
    """
    run = Path(path).parent
    if (run / runs.RECIPE).is_file():
        return faces[faces["file_id"].isin(validation(run, faces)["file_id"])]
    held_out = faces["digest"].isin(results.held_out())
    return faces[held_out | ~held_out.any()]


def new_to_all(paths: Sequence[Path], faces: pd.DataFrame) -> pd.DataFrame:
    """The faces that are `new_to` each of several models.

    Raises:
        ValueError: if there is none.
    """
    new = faces
    for path in paths:
        new = new[new["file_id"].isin(new_to(path, faces)["file_id"])]
    if new.empty:
        raise ValueError("No face is new to all of these networks: judge fewer.")
    return new


def _run_of(path: Path) -> Path | None:
    """The run that a folder is, or that holds this model and its answers."""
    if path.is_dir():
        return path
    is_kept = path.name == runs.MODEL and (path.parent / runs.RECIPE).is_file()
    return path.parent if is_kept else None


def write_out_of_fold(folder: Path, faces: pd.DataFrame) -> None:
    """Writes what `validation` and `distributions` of a cross-validation give."""
    files.write_csv(validation(folder, faces), folder / runs.OUT_OF_FOLD)
    probabilities = distributions(folder, faces)
    write_distributions(probabilities, folder / runs.OUT_OF_FOLD_DISTRIBUTIONS)


def write_distributions(probabilities: np.ndarray, path: Path) -> None:
    """Writes (faces, 101) probabilities to four decimals in float16, compressed."""
    with files.replacing(path) as unfinished:
        rounded = probabilities.round(4).astype(np.float16)
        np.savez_compressed(unfinished, probabilities=rounded)


def _validation(folder: Path, faces: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The held-out faces of one training after the other, and the order of `faces`."""
    held_out = [
        _held_out(training, faces).assign(fold=fold)
        for fold, training in _trained(folder).items()
    ]
    table = pd.concat(held_out, ignore_index=True)
    place = pd.Index(faces["file_id"]).get_indexer(table["file_id"])
    return table, place.argsort()


def _held_out(folder: Path, faces: pd.DataFrame) -> pd.DataFrame:
    csv = folder / runs.VALIDATION
    predicted = tables.read_table(csv, "file_id", "pred_age", "low", "high")
    ages = ("pred_age", "low", "high")
    predicted = predicted[["file_id"]].assign(
        **{name: tables.numbers(predicted, name, csv) for name in ages}
    )
    bounds = predicted.assign(least=0, most=100)
    bounds = bounds[["least", "low", "pred_age", "high", "most"]]
    if wrong := predicted["file_id"][(bounds.diff(axis=1) < 0).any(axis=1)].tolist():
        raise ValueError(
            f"{csv} has ages of {wrong[0]} that are not in order, or not from 0 to "
            "100: run 02_training.ipynb again, it makes the file anew."
        )
    table = predicted.merge(faces, on="file_id")
    _, held_out = runs.read(folder)[1]
    if runs.fingerprint(table) != held_out:
        raise ValueError(
            f"{csv} does not hold the {folder.name} run's held-out faces, or not all: "
            "run 02_training.ipynb again, with the same AGELIB_DATA; it makes the file "
            "anew."
        )
    return table


def read_distributions(path: Path, faces: int) -> np.ndarray:
    """What `write_distributions` wrote of so many faces, float32 (faces, 101).

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is damaged, or of more or fewer faces.
    """
    advice = "run again what wrote it, as 02_training.ipynb, which makes it anew"
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}: {advice}.")
    files.regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            # before any memory is taken
            if archive.getinfo("probabilities.npy").file_size > 202 * faces + 1000:
                raise ValueError(f"it is of more than {faces:,} faces")
        # a pickle inside would run code
        with np.load(path, allow_pickle=False) as content:
            probabilities = content["probabilities"]
        if (probabilities.shape, probabilities.dtype) != ((faces, N_AGES), np.float16):
            raise ValueError(f"it is not of {faces:,} faces and {N_AGES} ages")
        # which nan is not, either
        if not probabilities.min() >= 0:
            raise ValueError("it has shares below zero")
        # each of them was rounded
        if not np.allclose(probabilities.sum(1, dtype=np.float32), 1, atol=0.02):
            raise ValueError("its rows do not sum to one")
    # numpy and zipfile know many ways to say that a file is damaged
    except Exception as error:
        raise ValueError(
            f"{path} does not hold distributions over ages ({error}): {advice}."
        ) from error
    return probabilities.astype(np.float32)
