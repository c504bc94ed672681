"""Principal component analysis as a model: the baseline of every autoencoder, with an exact likelihood."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.floats import in_float64
from genlab.losses.likelihoods import Gaussian
from genlab.models.base import inference
from genlab.models.capabilities import NormalPrior
from genlab.networks.posteriors import DiagonalGaussian, log_standard_normal

LARGEST = 12_288  # dimensions of a sample; their covariance in float64 takes 1.2 GB


class PCA(NormalPrior):
    """Probabilistic principal component analysis. Tipping & Bishop (1999), J. R. Stat. Soc. B 61(3).

    x = mean + W z + sigma eps with z ~ N(0, I) and W = U (Lambda - sigma^2 I)^(1/2): U and Lambda are the leading
    eigenvectors and eigenvalues of the training data's covariance, sigma^2 is the mean of the other eigenvalues. The
    model is fitted in closed form before the first iteration, on every training sample once; iterations do nothing, so
    `trainer.max_steps=1` is enough. Reconstructions are the projections on the leading subspace, as in plain PCA.
    """

    kinds = ("image", "points")
    mean: Tensor
    axes: Tensor
    scales: Tensor

    def __init__(self, shape: Sequence[int], latent_dim: int) -> None:
        """Allocates mean, axes and scales.

        Raises:
            UserError: If latent_dim is not below the number of dimensions of a sample, or there are too many of these.
        """
        super().__init__()
        size = math.prod(shape)
        _check_sizes(size, latent_dim)
        self.shape, self.latent_dim = tuple(shape), latent_dim
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("axes", torch.eye(size, latent_dim))  # U, [D, Z]
        self.register_buffer("scales", torch.ones(latent_dim))  # lengths of W's columns
        self.likelihood = Gaussian(1.0)

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Fits the model in one pass over the training data, in float64.

        The stream of batches is endless and holds each sample once before any repeats: the first repeated sample ends
        the pass.
        """
        seen: set[int] = set()
        count, total, square = 0, torch.zeros(()), torch.zeros(())
        for batch in batches:
            indices = batch.tensor("index").tolist()
            fresh = []
            for i, index in enumerate(indices):
                if index not in seen:
                    seen.add(index)
                    fresh.append(i)
            x = in_float64(batch.x[fresh].flatten(1))
            count, total, square = count + len(x), total.to(x) + x.sum(dim=0), square.to(x) + x.T @ x
            if len(fresh) < len(indices):
                break
        self.fit(total / count, square / count - torch.outer(total, total) / count**2)

    def fit(self, mean: Tensor, covariance: Tensor) -> None:
        """Sets the maximum-likelihood parameters for a mean [D] and a covariance [D, D] (normalised by N)."""
        variances, axes = torch.linalg.eigh(covariance)
        variances, axes = variances.flip(0).clamp_min(0), axes.flip(1)
        variance = variances[self.latent_dim :].mean().clamp_min(1e-6)  # constant data have none
        self.mean.copy_(mean)
        self.axes.copy_(axes[:, : self.latent_dim])
        self.scales.copy_((variances[: self.latent_dim] - variance).clamp_min(1e-6).sqrt())
        self.likelihood.log_sigma.copy_(0.5 * variance.log())

    def posterior(self, x: Tensor) -> DiagonalGaussian:
        """The exact p(z | x), [N, latent_dim]: a Gaussian, diagonal because the columns of W are orthogonal."""
        variance = (2 * self.likelihood.log_sigma).exp()
        precision = self.scales.square() / variance + 1
        mu = (x.flatten(1) - self.mean) @ self.axes * self.scales / (variance * precision)
        return DiagonalGaussian(mu, -precision.log().expand_as(mu))

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """mean + W z of draws z, without the noise sigma eps, [n, ...]."""
        return self.decode(self.noise(n, rng))

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """Coordinates [N, latent_dim] of the projections, in units of W's columns."""
        return (x.flatten(1) - self.mean) @ self.axes / self.scales

    @inference
    def decode(self, z: Tensor) -> Tensor:
        """mean + W z, [N, ...]."""
        return (self.mean + (z * self.scales) @ self.axes.T).unflatten(1, self.shape)

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """The projection on the principal subspace."""
        return self.decode(self.encode(x))

    @inference
    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z), [N] nats."""
        return self.likelihood.log_prob(x, self.decode(z)) + log_standard_normal(z)

    @inference
    def sample_posterior(self, x: Tensor, k: int = 1, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """k draws from the exact posterior: every importance weight is p(x)."""
        eps = self.randn(k * len(x), self.latent_dim, rng=rng).unflatten(0, (k, len(x)))
        return self.posterior(x).draw(eps)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Records the squared error, summed over each sample; there is nothing to train."""
        error = (self.reconstruct(batch.x) - batch.x).square().flatten(1).sum(dim=1).mean()
        self.record(squared_error=error)


def _check_sizes(size: int, latent_dim: int) -> None:
    """Checks that there are fewer components than dimensions, and not too many of these."""
    if not 1 <= latent_dim < size:
        raise UserError(f"model.latent_dim must be from 1 to {size - 1} for data of {size} numbers, not {latent_dim}.")
    if size > LARGEST:
        raise UserError(f"model=pca takes samples of at most {LARGEST} numbers, got {size}. Try data.image_size=32.")
