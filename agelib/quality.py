"""Measure the images themselves: colour, light, sharpness, duplicates."""

import imagehash
import numpy as np
import pandas as pd
from scipy import ndimage
from sklearn.neighbors import NearestNeighbors

from agelib import degrade, images, metrics
from agelib.tables import require

# Mean distance of the chroma from grey, in 8-bit steps. Of 23,290 faces 602 have none
# at all and 104 more less than 2: black and white photos with JPEG noise or a faint
# tint. Above 2 toned and truly coloured photos begin to mix.
GREY_CHROMA = 2.0
# Faces are centred alike, so the usual 8x8 hash calls different people equal: at 256
# bits, true copies lie below 40 and the nearest strangers above.
HASH_SIZE = 16


def measure(table: pd.DataFrame) -> pd.DataFrame:
    """How each photo was taken; about a minute for 20,000 faces.

    Args:
        table: one row a face, column `path`.
    Returns:
        the table with `grayscale` (bool, judged by the pixels), `light` and
        `contrast` (mean and standard deviation of the luma, 0..255; dark skin lowers
        the light as a dark room does), `sharpness` (variance of the luma's Laplacian).
        Larger photos are reduced before, to 200 pixels on the shorter side.
    Raises:
        ValueError: if the table is empty, or an image can't be read, naming it.

    Sharpness after Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy
    (2000): of the faces it ranks lowest nearly all look soft.
    """
    columns = ["grayscale", "light", "contrast", "sharpness"]
    require(table, "path")
    found = images.each(_measure_one, table["path"], "measuring")
    return table.assign(**dict(zip(columns, zip(*found, strict=True), strict=True)))


def _measure_one(path: str) -> tuple[bool, float, float, float]:
    # of one size: the larger a photo, the less a pixel differs from the next
    face = degrade.as_measured(path)
    pixels = np.asarray(face.convert("YCbCr"), dtype=np.float32)
    luma, chroma = pixels[..., 0], np.abs(pixels[..., 1:] - 128)
    return (
        bool(chroma.max(axis=-1).mean() < GREY_CHROMA),
        float(luma.mean()),
        float(luma.std()),
        float(ndimage.laplace(luma).var()),
    )


def exact_duplicates(table: pd.DataFrame) -> pd.DataFrame:
    """Faces whose file occurs more than once, byte for byte.

    Args:
        table: columns `path` and `digest` (as `agelib.data` reads it); training and
            test faces may stand in one table.
    Returns:
        the rows with such a twin and their `group` (0, 1, ...), sorted by it.
    """
    require(table, "path", "digest")
    twins = table[table["digest"].duplicated(keep=False)]
    twins = twins.assign(group=twins.groupby("digest", sort=False).ngroup())
    return twins.sort_values(["group", "path"])


def label_disagreement(table: pd.DataFrame) -> pd.DataFrame:
    """How far the labels of one and the same photo lie apart.

    Args:
        table: columns `path`, `digest` and `age`; faces without an age don't count.
    Returns:
        one row a group of byte-identical files with at least two labels, widest first:
        `faces`, `youngest`, `oldest`, `spread` and `deviation`, in years. The last is
        the mean absolute deviation from the group's median: the error no predictor
        can avoid, since it must answer the same for the same photo.
    """
    require(table, "age")
    twins = exact_duplicates(table.dropna(subset="age"))
    ages = twins.groupby("group")["age"]
    off_median = (twins["age"] - ages.transform("median")).abs()
    rows = ages.agg(faces="size", youngest="min", oldest="max").assign(
        spread=ages.max() - ages.min(),
        deviation=off_median.groupby(twins["group"]).mean(),
    )
    return rows.sort_values("spread", ascending=False, kind="stable")


def near_duplicates(table: pd.DataFrame, max_distance: int = 40) -> pd.DataFrame:
    """Pairs of files that differ but show the same photo, closest first.

    Args:
        table: columns `path` and `digest`. Of byte-identical files only the first
            takes part.
        max_distance: how many of the 256 bits of their perceptual hashes may differ.
            At 40, all 236 pairs looked at, of 651 among 23,290 faces, were the same
            photo; at 50 about half of the added pairs are different people.
    Returns:
        one row a pair: `distance`, and each column of the table as `..._a`, `..._b`.

    Source: the DCT hash of the imagehash project, after phash.org.
    """
    require(table, "path", "digest")
    faces = table.drop_duplicates("digest")
    bits = np.array(images.each(_hash_one, faces["path"], "hashing"), np.float32)
    # between bit vectors, the squared Euclidean distance counts the bits that differ;
    # scikit-learn compares in chunks, so memory stays small
    search = NearestNeighbors(radius=np.sqrt(max_distance + 0.5), algorithm="brute")
    graph = search.fit(bits).radius_neighbors_graph(bits, mode="distance").tocoo()
    pair = graph.row < graph.col
    pairs = pd.concat(
        [
            faces.iloc[graph.row[pair]].add_suffix("_a").reset_index(drop=True),
            faces.iloc[graph.col[pair]].add_suffix("_b").reset_index(drop=True),
        ],
        axis=1,
    )
    pairs.insert(0, "distance", np.rint(graph.data[pair] ** 2).astype(int))
    return pairs.sort_values("distance", kind="stable", ignore_index=True)


def census(
    measured: pd.DataFrame, test_faces: pd.DataFrame, pairs: pd.DataFrame
) -> pd.Series:
    """What is worth knowing about a dataset, a number a row.

    Args:
        measured: the training faces, as `measure` returns them.
        test_faces: columns `path` and `digest`; may be empty.
        pairs: what `near_duplicates` found among both, with a column `part` that says
            "train" or "test".
    """
    age, grey = measured["age"], measured["grayscale"]
    both = [measured.assign(part="train"), test_faces.assign(part="test")]
    copies = exact_duplicates(pd.concat(both))
    sides = copies.groupby("group")["part"].nunique()
    groups = label_disagreement(measured)
    differ = groups[groups["spread"] > 0]
    # over the faces, as the error counts
    least = groups["deviation"].repeat(groups["faces"]).mean()
    return pd.Series(
        {
            "training faces": len(measured),
            "test faces": len(test_faces),
            "a quarter is younger than": age.quantile(0.25),
            "half are younger than": age.quantile(0.5),
            "three quarters are younger than": age.quantile(0.75),
            "% aged 26": 100 * (age == 26).mean(),
            "% in black and white": 100 * grey.mean(),
            "median age in black and white": age[grey].median(),
            "median age in colour": age[~grey].median(),
            "files with an exact copy": len(copies),
            "groups of copies across train and test": (sides > 1).sum(),
            "groups of copies in train": len(groups),
            "of these, groups whose ages differ": len(differ),
            "by how many years, on average": differ["spread"].mean(),
            "least error on copies, years": least,
            "near copies, pairs": len(pairs),
            "of these, across train and test": (
                pairs["part_a"] != pairs["part_b"]
            ).sum(),
            "error of the constant, years": metrics.constant_mae(measured, measured),
        },
        name="value",
        dtype=float,
    ).rename_axis("measure")


def _hash_one(path: str) -> np.ndarray:
    return imagehash.phash(
        images.read_image(path).convert("L"), hash_size=HASH_SIZE
    ).hash.ravel()


def flag(measured: pd.DataFrame, reference: pd.DataFrame | None = None) -> pd.DataFrame:
    """Adds `dark` and `blurred`: below the light or sharpness of nine faces in ten.

    Args:
        measured, reference: what `measure` returned; the nine in ten are counted in
            the reference, by default in `measured` itself.
    """
    tenth = (measured if reference is None else reference)[["light", "sharpness"]]
    light, sharpness = tenth.quantile(0.1)
    return measured.assign(
        dark=measured["light"] < light, blurred=measured["sharpness"] < sharpness
    )
