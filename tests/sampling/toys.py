"""Models whose laws are known, for the samplers to be held against."""

import torch
from torch import nn

from genlab.losses.adversarial import NonSaturating
from genlab.losses.likelihoods import Gaussian
from genlab.models.base import GenerativeModel, inference
from genlab.models.gan import GAN
from genlab.models.vae import VAE
from genlab.networks import mlp

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)  # the data
Q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)  # the model


class ThreePoints(GenerativeModel):
    """Draws 0, 1 or 2 by Q; its discriminator is log P / Q, stretched."""

    def __init__(self, slope: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.slope, self.offset, self.latent_dim = slope, offset, 1

    @inference
    def sample(self, n, given=None, rng=None):
        return torch.multinomial(Q, n, replacement=True, generator=rng)[:, None].float()

    @inference
    def score_logits(self, x):
        return ((P.log() - Q.log())[x[:, 0].long()] * self.slope + self.offset).float()


class Shifted(GenerativeModel):
    """G(z) = z in one dimension, with the ratio of N(mu, 1) to N(0, 1): the energy is that of N(mu, 1)."""

    def __init__(self, mu: float) -> None:
        super().__init__()
        self.mu, self.latent_dim = mu, 1

    @inference
    def sample(self, n, given=None, rng=None):
        return self.noise(n, rng)

    @inference
    def decode(self, z):
        return z

    @inference
    def score_logits(self, x):
        return self.mu * x[:, 0] - 0.5 * self.mu**2


class Codes(GenerativeModel):
    """An autoencoder that does nothing: codes are the points."""

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.latent_dim = dim

    @inference
    def sample(self, n, given=None, rng=None):
        return self.noise(n, rng)

    @inference
    def encode(self, x):
        return x

    @inference
    def decode(self, z):
        return z


def small_gan(averaged: bool = True) -> GAN:
    """An untrained GAN on points, with all that could be disturbed: batch norm, spectral norm, averaged weights."""
    torch.manual_seed(0)
    generator = mlp.Generator(2, [2], [8], norm="batch")
    discriminator = mlp.Discriminator([2], [8], spectral_norm=True)
    model = GAN(generator, discriminator, NonSaturating(), 2)
    if averaged:
        moved = {f"generator.{k}": v + (0.1 if v.is_floating_point() else 0) for k, v in _state(generator)}
        model.averages.load(moved)
    return model


def small_vae() -> VAE:
    """An untrained VAE on points."""
    torch.manual_seed(0)
    return VAE(mlp.Encoder([2], 4, [8]), mlp.Decoder(2, [2], [8]), Gaussian(1.0), 2, 4)


def _state(module: nn.Module):
    return [(key, value.detach().clone()) for key, value in module.state_dict().items()]
