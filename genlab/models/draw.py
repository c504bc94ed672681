"""DRAW: a recurrent variational autoencoder that reads and writes an image in several steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.divergences import kl_standard_normal
from genlab.losses.likelihoods import Likelihood
from genlab.models.adversary import Opponent, Opposable
from genlab.models.base import inference
from genlab.models.capabilities import NormalPrior
from genlab.networks.draw import Reader, Writer
from genlab.networks.init import check_positive
from genlab.networks.posteriors import DiagonalGaussian, log_standard_normal


class Unrolled(NamedTuple):
    """Results of all T steps.

    Attributes:
        canvases: c_1 .. c_T, raw outputs for the likelihood, [N, *shape] each.
        latents: z_1 .. z_T, [N, Z] each.
        posteriors: q(z_t | x, z_1 .. z_{t-1}) of each step; empty if the latents were given.
    """

    canvases: list[Tensor]
    latents: list[Tensor]
    posteriors: list[DiagonalGaussian]


class DRAW(Opposable, NormalPrior):
    """Deep recurrent attentive writer. Gregor et al. (2015), arXiv:1502.04623, Eq. 3 to 12, 17, 18 and 21 to 29.

    At each of T steps the encoder reads the image and its residual to the canvas, a latent is drawn, and the decoder
    adds to the canvas; the last canvas is the likelihood's raw output. -ELBO = -E log p(x | c_T) +
    sum_t KL(q(z_t | x, z_<t) || N(0, I)). The latents of all steps are concatenated, [N, T * Z]. The first canvas is
    learned; the recurrent states start at zero. With a conditioner, its output for the given columns joins the input
    of both recurrent networks at every step: p(x | z, c) and q(z | x, c).
    """

    tells = ("conditioner",)
    ema_modules: tuple[str, ...] = ("reader", "writer", "encoder", "decoder", "posterior", "canvas", "likelihood")

    def __init__(
        self,
        shape: Sequence[int],
        likelihood: Likelihood,
        steps: int,
        latent_dim: int,
        hidden: int,
        read_size: int | None = 2,
        write_size: int | None = 5,
        clip: float | None = 10.0,
        adversary: Opponent | None = None,
        conditioner: nn.Module | None = None,
        condition_features: int = 0,
    ) -> None:
        """Builds the networks.

        Args:
            likelihood: Its raw outputs must have the shape of the images.
            steps: T.
            latent_dim: Z, the size of one step's latent.
            hidden: Size of both recurrent states.
            read_size: Filters along each side of the reading window; None reads the whole image.
            write_size: Filters along each side of the writing window; None writes the whole image.
            clip: Largest gradient norm of an update; None for the run's `optim.clip`.
            conditioner: Maps the given columns to numbers [N, condition_features]; None: nothing is given.
            condition_features: Their number.

        Raises:
            UserError: If a size is not positive, the data are not images, or the likelihood does not fit.
        """
        super().__init__()
        for key, value, cure in (("steps", steps, "16"), ("latent_dim", latent_dim, "16"), ("hidden", hidden, "256")):
            check_positive(f"model.{key}", value, cure)
        _check_images(shape, likelihood)
        self.shape, self.steps, self.step_dim = tuple(int(n) for n in shape), steps, latent_dim
        self.latent_dim, self.hidden, self.likelihood = steps * latent_dim, hidden, likelihood
        self.reader, self.writer = Reader(shape, hidden, read_size), Writer(shape, hidden, write_size)
        self.encoder = nn.LSTMCell(self.reader.features + hidden + condition_features, hidden)
        self.posterior = nn.Linear(hidden, 2 * latent_dim)
        self.decoder = nn.LSTMCell(latent_dim + condition_features, hidden)
        self.canvas = nn.ParameterDict({"start": nn.Parameter(torch.zeros(self.shape))})
        networks = [self.reader, self.writer, self.encoder, self.posterior, self.decoder, self.canvas, likelihood]
        self.conditioner = conditioner
        if conditioner is not None:
            networks.append(conditioner)
            self.ema_modules = (*self.ema_modules, "conditioner")
        self.add_player("draw", networks, "optimizer", clip)
        self.oppose(adversary)

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Starts the first canvas at the mean sample."""
        x = torch.cat([next(batches).x for _ in range(8)])
        self.canvas["start"].copy_(self.likelihood.visible_bias(x))

    def unroll(self, noise: Tensor, x: Tensor | None = None, told: Sequence[Batch] = ()) -> Unrolled:
        """Runs all steps.

        Args:
            noise: Standard normal draws [N, T * Z], from which the posteriors' latents are computed; without `x`, the
                latents themselves.
            x: Images [N, *shape] to read; None if the latents are given.
            told: The conditions of a model that is given columns.
        """
        beside = [] if self.conditioner is None else [self.conditioner(*told)]
        zeros = noise.new_zeros(len(noise), self.hidden)
        state, encoder, decoder = zeros, (zeros, zeros), (zeros, zeros)
        canvas = self.canvas["start"].expand(len(noise), *self.shape)
        done = Unrolled([], [], [])
        for z in noise.split(self.step_dim, dim=1):
            if x is not None:
                seen = self.reader(x, x - self.likelihood.mean(canvas), state)
                encoder = self.encoder(torch.cat([seen, state, *beside], dim=1), encoder)
                mu, logvar = self.posterior(encoder[0]).chunk(2, dim=1)
                q = DiagonalGaussian(mu, logvar)
                done.posteriors.append(q)
                z = q.rsample(z)
            decoder = self.decoder(torch.cat([z, *beside], dim=1), decoder)
            state = decoder[0]
            canvas = canvas + self.writer(state)
            done.canvases.append(canvas)
            done.latents.append(z)
        return done

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """E[x | z] of latents from the prior, [n, *shape]."""
        return self.decode(self.noise(n, rng), given)

    @inference
    def frames(self, n: int, rng: torch.Generator | None = None, given: Batch | None = None) -> Tensor:
        """Canvases of n samples as images, before the first step and after each: [T + 1, n, *shape]."""
        start = self.canvas["start"].expand(n, *self.shape)
        steps = self.unroll(self.noise(n, rng), told=self.told(given)).canvases
        return torch.stack([self.likelihood.mean(c) for c in (start, *steps)])

    @inference
    def encode(self, x: Tensor, given: Batch | None = None) -> Tensor:
        """Latents of all steps [N, T * Z], each the mean of its posterior given the earlier ones."""
        return torch.cat(self.unroll(x.new_zeros(len(x), self.latent_dim), x, self.told(given)).latents, dim=1)

    @inference
    def decode(self, z: Tensor, given: Batch | None = None) -> Tensor:
        """E[x | z] of the latents of all steps [N, T * Z]."""
        return self.likelihood.mean(self.unroll(z, told=self.told(given)).canvases[-1])

    @inference
    def reconstruct(self, x: Tensor, given: Batch | None = None) -> Tensor:
        """E[x | z] at the posterior mean of each latent."""
        done = self.unroll(x.new_zeros(len(x), self.latent_dim), x, self.told(given))
        return self.likelihood.mean(done.canvases[-1])

    @inference
    def log_joint(self, x: Tensor, z: Tensor, given: Batch | None = None) -> Tensor:
        """log p(x, z), [N] nats, of the latents of all steps [N, T * Z]."""
        canvas = self.unroll(z, told=self.told(given)).canvases[-1]
        return self.likelihood.log_prob(x, canvas) + log_standard_normal(z)

    @inference
    def sample_posterior(
        self, x: Tensor, k: int = 1, rng: torch.Generator | None = None, given: Batch | None = None
    ) -> tuple[Tensor, Tensor]:
        """k draws of all steps' latents and their log q: [k, N, T * Z] and [k, N] nats."""
        eps = self.randn(k * len(x), self.latent_dim, rng=rng)
        again = torch.arange(len(x), device=x.device).repeat(k)
        done = self.unroll(eps, x[again], [told.rows(again) for told in self.told(given)])
        log_q = torch.stack([q.log_prob(z) for q, z in zip(done.posteriors, done.latents, strict=True)]).sum(dim=0)
        return torch.cat(done.latents, dim=1).unflatten(0, (k, len(x))), log_q.unflatten(0, (k, len(x)))

    def imitate(self, x: Tensor, *told: Batch) -> Tensor:
        """E[x | z] of N latents from the prior, for samples x [N, ...]."""
        return self.likelihood.mean(self.unroll(self.noise(len(x)), told=told).canvases[-1])

    def objective(self, x: Tensor, rng: torch.Generator | None = None, given: Batch | None = None) -> dict[str, Tensor]:
        """The minimised `loss` = -ELBO on a batch, and its terms; `kl` is the sum over steps. Eq. 10 to 12."""
        done = self.unroll(self.randn(len(x), self.latent_dim, rng=rng), x, self.told(given))
        recon = -self.likelihood.log_prob(x, done.canvases[-1]).mean()
        kl = torch.stack([kl_standard_normal(*q) for q in done.posteriors]).sum(dim=0).mean()
        return {"loss": recon + kl, "recon": recon, "kl": kl, "elbo": -(recon + kl)}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise -log p(x | c_T) + sum_t KL(q_t || N(0, I)), z_t = mu_t + sigma_t eps_t."""
        told = self.told(batch)
        self.play_adversary(batch.x, *told)
        with self.turn("draw") as draw:
            terms = self.objective(batch.x, given=batch)
            draw.minimise(terms["loss"] + self.deception(batch.x, *told))
        self.record(**terms)


def _check_images(shape: Sequence[int], likelihood: Likelihood) -> None:
    """Checks that the data are images, and the likelihood's raw outputs have their shape."""
    if len(shape) != 3:
        raise UserError(f"model=draw needs images, got data of shape {list(shape)}. Try data=digits.")
    if getattr(likelihood, "raw_shape", None) is not None or not _fits(likelihood, shape):
        raise UserError(
            "model=draw needs a likelihood whose raw outputs have the shape of the images. "
            "Try likelihood=bernoulli or likelihood=gaussian."
        )


def _fits(likelihood: Likelihood, shape: Sequence[int]) -> bool:
    """Whether the likelihood maps raw outputs of this shape to images of it."""
    try:
        bias = likelihood.visible_bias(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, NotImplementedError):
        return False
    return tuple(bias.shape) == tuple(shape)
