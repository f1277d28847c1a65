"""How ages become distributions and back, against numbers worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from agelib import ages
from agelib.ages import age_loss
from tests.conftest import TINY

# -- learned ---------------------------------------------------------------------------


def test_a_soft_label_is_a_gaussian_around_the_age_and_those_above_100_are_100():
    labels = ages.soft_labels(torch.tensor([30.0, 116.0]), std=1.5)
    for row, age in zip(labels.numpy(), (30, 100), strict=True):
        gaussian = stats.norm(age, 1.5).pdf(np.arange(101))
        np.testing.assert_allclose(row, gaussian / gaussian.sum(), atol=1e-6)


def test_the_regression_loss_is_the_mean_absolute_error():
    outputs, age = torch.tensor([[20.0], [50.0]]), torch.tensor([23.0, 49.0])
    loss = age_loss(outputs, age, replace(TINY, head="regression"))
    assert loss == pytest.approx((3 + 1) / 2)


def test_the_distribution_loss_is_cross_entropy_to_a_gaussian_plus_l1_of_the_mean():
    recipe = replace(TINY, label_std=2.0, l1_weight=0.5)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 101, generator=generator)
    ages = np.arange(101)
    expected = []
    # an age above 100 is learned as 100
    for row, age in zip(logits.numpy().astype(float), (30, 116), strict=True):
        p = np.exp(row) / np.exp(row).sum()
        target = np.exp(-((ages - min(age, 100)) ** 2) / (2 * 2.0**2))
        target /= target.sum()
        error = abs((p * ages).sum() - min(age, 100))
        expected.append(-(target * np.log(p)).sum() + 0.5 * error)
    loss = age_loss(logits, torch.tensor([30.0, 116.0]), recipe)
    assert loss == pytest.approx(np.mean(expected), rel=1e-4)


# -- read off --------------------------------------------------------------------------


def spread(**shares: float) -> np.ndarray:
    """One row of probabilities: spread(p30=0.25) puts a quarter on the age 30."""
    row = np.zeros((1, 101), dtype=np.float32)
    for age, share in shares.items():
        row[0, int(age[1:])] = share
    return row


@pytest.mark.parametrize(
    ("row", "q", "age"),
    [
        (spread(p30=1), 0.5, 30.0),
        (spread(p30=1), 0.05, 29.55),
        (spread(p10=0.5, p50=0.5), 0.5, 10.5),
        (spread(p10=0.25, p50=0.75), 0.5, 49.5 + 1 / 3),
        (spread(p0=1), 0.5, 0.0),
        (spread(p100=1), 0.95, 100.0),
    ],
)
def test_quantiles_spread_each_age_over_its_year(row, q, age):
    assert ages.quantile(row, q) == pytest.approx([age], abs=1e-6)


def test_read_off_are_the_median_and_the_ends_of_the_90_percent_interval():
    uniform = np.full((2, 101), 1 / 101)
    told = ages.read_off(uniform)
    assert told["pred_age"] == pytest.approx([50, 50])
    assert told["low"] == pytest.approx([0.05 * 101 - 0.5] * 2)
    assert told["high"] == pytest.approx([0.95 * 101 - 0.5] * 2)


@pytest.mark.parametrize(("answer", "centre"), [(30.4, 30.4), (-7.0, 0), (123.0, 100)])
def test_an_answer_of_a_regression_is_read_as_a_laplace_distribution(answer, centre):
    """The ends hold all that lies below 0.5 and above 99.5 years."""
    (found,) = ages.laplace(torch.tensor([[answer]]), torch.tensor(4.0)).numpy()
    below = stats.laplace(centre, 4).cdf(np.arange(0.5, 100))
    expected = np.diff(below, prepend=0, append=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
