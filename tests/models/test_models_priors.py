"""What is drawn from a prior has that prior's density."""

import pytest
import torch
from torch.testing import assert_close

from tests.models.helpers import RING, fit

POINTS = [*RING, "likelihood=gaussian", "model.latent_dim=2"]
DIGITS = ["data=digits", "model.latent_dim=2"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=vae", *POINTS],
        ["model=vae", "prior=vamp", *POINTS],
        ["model=vae", "prior=maf", *POINTS],
        ["model=iwae", *POINTS],
        ["model=iwae_two_layers", "model.upper_dim=1", *POINTS],
        ["model=avb", *POINTS],
        ["model=pca", *DIGITS],
        ["model=draw", "model.steps=1", *DIGITS],
    ],
    ids=lambda overrides: "-".join(part.partition("=")[2] for part in overrides[:2]),
)
def test_the_density_is_that_of_the_draws(overrides, tmp_path):
    """The mean of q(z) / p(z) over draws from p is 1 for any density q: here a narrow Gaussian."""
    model = fit(overrides, 1, tmp_path).model
    z = model.sample_prior(40_000, torch.Generator().manual_seed(0))
    centre, scale = z[:1000].mean(dim=0), 0.4 * z[:1000].std(dim=0)
    log_q = torch.distributions.Normal(centre, scale).log_prob(z).sum(dim=1)
    ratios = (log_q - model.log_prior(z)).exp()
    assert_close(ratios.mean().item(), 1.0, rtol=0, atol=0.05)
