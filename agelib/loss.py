"""What a network's outputs cost, given the true ages."""

import torch
from torch.nn.functional import cross_entropy, l1_loss

from agelib.model import N_AGES
from agelib.recipe import Recipe


def age_loss(outputs: torch.Tensor, age: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """The mean loss of a batch.

    A regression head takes the absolute error in years. A distribution over ages takes
    the cross-entropy to a Gaussian around the true age (DLDL, Gao et al. 2017), plus
    `l1_weight` times the absolute error of its mean (DLDL-v2, Gao et al. 2018).

    Args:
        outputs: logits (faces, 101) or years (faces, 1).
        age: true ages in years (faces,).
    """
    outputs = outputs.float()
    if recipe.head == "regression":
        return l1_loss(outputs[:, 0], age)
    mean = (outputs.softmax(1) * torch.arange(N_AGES, device=age.device)).sum(1)
    target = gaussian_labels(age, recipe.label_std)
    error = l1_loss(mean, age.clamp(max=N_AGES - 1))
    return cross_entropy(outputs, target) + recipe.l1_weight * error


def gaussian_labels(age: torch.Tensor, std: float) -> torch.Tensor:
    """Probabilities (faces, 101): a Gaussian, `std` years wide, around each age."""
    ages = torch.arange(N_AGES, device=age.device)
    distance = (ages - age.clamp(max=N_AGES - 1)[:, None]) / std
    return (-distance.square() / 2).softmax(1)
