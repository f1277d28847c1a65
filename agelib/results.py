"""What was measured on the real faces, as tables; no face is among them.

data/results says how each was made. They come with the wheel, too.
"""

from importlib import resources
from importlib.resources.abc import Traversable

import pandas as pd

from agelib import env


def faces() -> pd.Series:
    """What `quality.census` counted among the competition's faces."""
    return _read("faces.csv").set_index("measure")["value"]


def ages() -> pd.DataFrame:
    """The ages of the 21,340 labelled faces: `age` in years, one row a face."""
    counted = _read("ages.csv")
    age = counted["age"].repeat(counted["faces"])
    return age.to_frame().reset_index(drop=True)


def history(run: str) -> pd.DataFrame:
    """One row an epoch of "cpu", "quick" or "lite0", as `train.fit` returns it."""
    return _read(f"{run}/history.csv")


def validation(run: str) -> pd.DataFrame:
    """The 2,135 held-out faces, as "cpu", "quick", "lite0" or "best" predicted them.

    Columns `age`, `pred_age`, `low` and `high`, in years.
    """
    return _read(f"{run}/oof.csv")[["age", "pred_age", "low", "high"]]


def held_out() -> pd.Series:
    """The digests of these faces, as `data.read_train` gives them."""
    return _read("cpu/oof.csv")["digest"]


def ablation() -> pd.DataFrame:
    """What one changed choice costs, in years, one row a choice, grouped and sorted.

    Returns:
        `group`, `change`, `seeds`, `mae` (their mean) and `difference` to the recipe
        unchanged, over the same seeds and faces, with its 95% interval `low`..`high`.
    """
    runs = _read("ablation.csv")
    variant = runs["run"].str.rsplit("/", n=1).str[0]
    table = runs.groupby(variant).agg(
        seeds=("run", "size"),
        mae=("mae", "mean"),
        difference=("of_all_seeds", "first"),
        low=("of_all_seeds_low", "first"),
        high=("of_all_seeds_high", "first"),
    )
    named = _read("ablation_groups.csv").set_index("run")
    return named.join(table).reset_index(drop=True)


def scores() -> pd.DataFrame:
    """What three submissions scored on the competition's test faces, in years.

    Columns `validation`, the error on the held-out faces, with its 95% interval
    `low`..`high`, and `test`, the score, with its `standard_error`.
    """
    return _read("scores.csv").set_index("network")


def decoding() -> pd.DataFrame:
    """The error by faces' size, number of views, and how an age is read off."""
    return _read("decoding.csv")


def detectors() -> pd.DataFrame:
    """The share of 160 faces that each face detector finds, by size, turn and age."""
    return _read("detectors.csv").set_index("share of faces found")


def framing() -> pd.DataFrame:
    """What finding and cropping a face again costs, in years, by how it is framed."""
    return _read("framing.csv").set_index("faces")


def robustness() -> pd.DataFrame:
    """The error on held-out faces spoiled on purpose, by network and kind of photo.

    Columns `network`, `photo`, `mae` with its 95% interval `low`..`high`, `bias`, and
    `cost`, how much more than on the faces as they are: all in years.
    """
    return _read("robustness.csv")


def out_of_fold() -> pd.DataFrame:
    """Real faces, each as the network that has not learned from it predicted it.

    Columns `age`, `pred_age`, `low` and `high`, in years; `fold`; and `level`, the
    share of the predicted distribution that lies below the true age.
    """
    return _read("trust/faces.csv")


def folds() -> pd.DataFrame:
    """The error of five folds of "quick" on all 21,340 faces, in years.

    As `metrics.by_slice` returns it: each face as the network predicted it that has not
    learned from it.
    """
    return _read("folds/quick/folds.csv").set_index("slice")


def reliability() -> pd.DataFrame:
    """What intervals of several levels hold, as `trust.reliability` returns it."""
    return _read("trust/reliability.csv")


def coverage() -> dict[str, pd.DataFrame]:
    """Whose ages the 90% intervals hold, as `trust.coverage` returns it.

    By true and by predicted age, and by true age of the network's own quantiles.
    """
    table = _read("trust/coverage.csv").set_index("ages")
    kinds = table.groupby("kind", sort=False)
    return {kind: rows.drop(columns="kind") for kind, rows in kinds}


def groups() -> pd.DataFrame:
    """The error by sex and by UTKFace's groups, as `trust.by_column` returns it."""
    return _read("trust/groups.csv")


def spoiled() -> pd.DataFrame:
    """Error, coverage and width on spoiled photos, as `trust.bad_photos` returns it.

    Of the network that comes with agelib, one view of 650 real faces.
    """
    return _read("trust/photos.csv")


def _read(name: str) -> pd.DataFrame:
    return pd.read_csv(_folder().joinpath(name).open("rb"))


def _folder() -> Traversable:
    """In a wheel beside the modules, in a clone in `data/results`."""
    installed = resources.files("agelib") / "measured"
    return installed if installed.is_dir() else env.HOME / "data" / "results"
