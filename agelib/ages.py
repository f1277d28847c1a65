"""The method: an age as a distribution, how it is learned and how it is read off.

A network gives each age from 0 to 100 a probability. It learns from **soft labels**: a
face of 30 may as well be 29 or 31, so its label is a narrow Gaussian (`soft_labels`),
and the loss is the cross-entropy to it (`age_loss`). The answer is the distribution's
median, the number with the least expected absolute error; around it lies an interval
that holds nine of ten true ages (`read_off`), for which `conformal` corrects what the
network takes for certain.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy, l1_loss

from agelib import conformal

if TYPE_CHECKING:
    from agelib.recipe import Recipe

N_AGES = 101


def age_loss(
    outputs: torch.Tensor, age: torch.Tensor, recipe: "Recipe"
) -> torch.Tensor:
    """The mean loss of a batch.

    A distribution over ages takes the cross-entropy to its soft labels (DLDL, Gao et
    al. 2017), plus `l1_weight` times the absolute error of its mean (DLDL-v2, Gao et
    al. 2018). A regression head takes the absolute error in years.

    Args:
        outputs: logits (faces, 101) or years (faces, 1).
        age: true ages in years (faces,).
    """
    outputs = outputs.float()
    if recipe.head == "regression":
        return l1_loss(outputs[:, 0], age)
    mean = (outputs.softmax(1) * torch.arange(N_AGES, device=age.device)).sum(1)
    target = soft_labels(age, recipe.label_std)
    error = l1_loss(mean, age.clamp(max=N_AGES - 1))
    return cross_entropy(outputs, target) + recipe.l1_weight * error


def soft_labels(age: torch.Tensor, std: float) -> torch.Tensor:
    """Probabilities (faces, 101): a Gaussian, `std` years wide, around each age."""
    ages = torch.arange(N_AGES, device=age.device)
    distance = (ages - age.clamp(max=N_AGES - 1)[:, None]) / std
    return (-distance.square() / 2).softmax(1)


def laplace(age: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Probabilities (faces, 101) of a regression's answers (faces, 1).

    Least absolute error is the maximum likelihood of a Laplace distribution, so each
    answer is read as one, `scale` years wide.
    """
    edges = torch.arange(N_AGES + 1, device=age.device) - 0.5
    edges[0], edges[-1] = -torch.inf, torch.inf
    centre = age.clamp(0, N_AGES - 1)
    # which to validate would stop the export to ONNX
    told = torch.distributions.Laplace(centre, scale, validate_args=False)
    return told.cdf(edges).diff(dim=1)


def read_off(
    probabilities: np.ndarray,
    calibration: np.ndarray | None = None,
    level: float = 0.9,
) -> dict[str, np.ndarray]:
    """What (faces, 101) probabilities say of each face, in years.

    Args:
        calibration: what `conformal.calibrate` returned; without one the distributions
            are taken at their word.
        level: the share of true ages that the intervals should hold.
    Returns:
        `pred_age`, the median, and the ends of the interval `low`..`high`: calibrated
        ones are whole ages, else they are quantiles.
    Raises:
        ValueError: if the level is not between 0 and 1.
    """
    pred_age = quantile(probabilities, 0.5)
    if calibration is None:
        tail = (1 - conformal.check_level(level)) / 2
        low, high = (quantile(probabilities, share) for share in (tail, 1 - tail))
    else:
        low, high = conformal.intervals(probabilities, calibration, level)
    # a whole age may be the likeliest and yet lie to the other side of the median
    low, high = np.minimum(low, pred_age), np.maximum(high, pred_age)
    return {"pred_age": pred_age, "low": low, "high": high}


def quantile(probabilities: np.ndarray, share: float) -> np.ndarray:
    """The age (faces,) below which a share of each row of (faces, 101) lies.

    The probability of age k is spread evenly over k - 0.5 to k + 0.5, so that quantiles
    are not whole numbers.
    """
    below = probabilities.cumsum(axis=1, dtype=np.float64)
    below /= below[:, -1:]
    age = (below < share).sum(axis=1)
    row = np.arange(len(below))
    before = np.where(age > 0, below[row, age - 1], 0.0)
    inside = (share - before) / (below[row, age] - before)
    return (age - 0.5 + inside).clip(0, N_AGES - 1)
