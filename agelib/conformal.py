"""Intervals that keep their promise: calibrated on faces held out from the training.

A network is surer than it should be of some ages, and less sure than it could be of
others: of people over eighty its own 90% intervals miss one in four. Faces with known
ages that it has not learned from show by how much. For each of them `level_of_age` says
which share of the distribution lies below the true age. Were the distributions right,
these levels would be spread evenly, at every age. `calibrate` notes how they are spread
instead, and `intervals` takes back what the network got wrong.

This is conformal prediction whose calibration depends on the label: an age belongs to
the interval if faces of about that age are found at such a level often enough (label
conditional after Vovk, Gammerman and Shafer 2005, section 4.5; weighted by distance
after Guan 2023, https://arxiv.org/abs/2106.08460). So the old are compared with others
who are old, however young the network took them to be. A second step brings the share
of all faces together close to what is promised. Both are approximate: a face counts
among its own neighbours, and of twenty or thirty faces some 4% too few are covered
(of a handful nearly all).
"""

import numpy as np

# how far around an age the faces count, the standard deviation in years: the wider, the
# narrower are the intervals, and the worse are some ages covered, as
# data/results/trust/bandwidth.csv shows
BANDWIDTH = 20.0
# the shares for which a calibration notes a level
SHARES = np.linspace(0, 1, 101)
# of a calibration: ages and shares
SHAPE = (101, len(SHARES))
# that of a network which is taken at its word
UNCALIBRATED = np.tile(SHARES.astype(np.float32), (SHAPE[0], 1))


def levels(probabilities: np.ndarray) -> np.ndarray:
    """The share of each row of (faces, 101) below each whole age, with half its own."""
    shares = probabilities.astype(np.float64)
    shares /= shares.sum(1, keepdims=True)
    return shares.cumsum(1) - shares / 2


def level_of_age(probabilities: np.ndarray, age: np.ndarray) -> np.ndarray:
    """The share of each row of (faces, 101) below its age (faces,) in whole years."""
    below = levels(probabilities)
    return below[np.arange(len(below)), _whole(age, below.shape[1])]


def calibrate(
    probabilities: np.ndarray, age: np.ndarray, bandwidth: float = BANDWIDTH
) -> np.ndarray:
    """The levels at which a share of the faces of about each age are found.

    Args:
        probabilities: (faces, 101) of faces that the network has not learned from.
        age: their true ages in years (faces,).
        bandwidth: in years.
    Returns:
        float32 `SHAPE`, rising from 0 to 1 along each row.
    Raises:
        ValueError: if there are no faces, or not as many ages, if an age is not finite,
            or the bandwidth not above zero.
    """
    if not len(probabilities) or len(probabilities) != len(age):
        raise ValueError(
            f"A calibration needs the true age of each face: there are {len(age)} of "
            f"{len(probabilities)} faces."
        )
    if not np.isfinite(np.asarray(age, float)).all():
        raise ValueError("A calibration needs ages that are finite: one is not.")
    if not bandwidth > 0:
        raise ValueError(f"The bandwidth is {bandwidth} years, but should be above 0.")
    found, whole = level_of_age(probabilities, age), _whole(age, probabilities.shape[1])
    order = found.argsort()
    level, whole = found[order], whole[order]
    ages = np.arange(probabilities.shape[1])
    near = [np.exp(-(((whole - a) / bandwidth) ** 2) / 2) for a in ages]
    places = [_places(weights) for weights in near]
    ends = np.concatenate([[0], level, [1]])
    # which share of the faces near in age is found below each face
    rank = np.empty(len(level))
    for a in np.unique(whole):
        rank[whole == a] = np.interp(level[whole == a], ends, places[a])
    everyone = np.concatenate([[0], np.sort(rank), [1]])
    shares = np.interp(SHARES, _places(np.ones(len(rank))), everyone)
    table = np.array([np.interp(shares, place, ends) for place in places])
    table[:, 0], table[:, -1] = 0, 1
    return table.astype(np.float32)


def _places(weights: np.ndarray) -> np.ndarray:
    """The share of the weight below each of the sorted, the ends 0 and 1 among them.

    A face that may come weighs half at each end: it may lie outside of all others.
    """
    weights = np.concatenate([[0.5], weights, [0.5]])
    return (weights.cumsum() - weights / 2) / weights.sum()


def intervals(
    probabilities: np.ndarray, calibration: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest whole age (faces,) that may well be the true one.

    Args:
        probabilities: (faces, 101).
        calibration: what `calibrate` returned.
        level: the share of true ages that the intervals should hold, as 0.9. As many of
            the others should be below them as above.
    """
    tail = (1 - check_level(level)) / 2
    least, most = (
        np.array([np.interp(share, SHARES, row) for row in calibration])
        for share in (tail, 1 - tail)
    )
    below = levels(probabilities)
    likely = (least <= below) & (below <= most)
    # the likeliest is always among them
    likely[np.arange(len(likely)), np.abs(below - 0.5).argmin(1)] = True
    last = likely.shape[1] - 1
    return likely.argmax(1).astype(float), last - likely[:, ::-1].argmax(1).astype(
        float
    )


def check_level(level: float) -> float:
    """The level; a ValueError if it is no share between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(
            f"The level of an interval is the share of true ages that it should hold, "
            f"between 0 and 1, such as 0.9: it can't be {level}."
        )
    return level


def fault(calibration: np.ndarray | None) -> str:
    """What is wrong with a calibration that a file held, if it held one and it is."""
    if calibration is None:
        return ""
    rises = np.diff(calibration, axis=1) >= 0
    # nan neither rises nor is an end
    whole = rises.all() and (calibration[:, [0, -1]] == [0, 1]).all()
    return "" if whole else "its calibration does not rise from 0 to 1"


def _whole(age: np.ndarray, n_ages: int) -> np.ndarray:
    return np.asarray(age, float).round().clip(0, n_ages - 1).astype(int)
