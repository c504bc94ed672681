"""The Wasserstein GAN with weight clipping."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.losses.adversarial import AdversarialLoss
from genlab.models.base import ALL_TRICKS, inference
from genlab.models.capabilities import Generating


class WGAN(Generating):
    """Wasserstein GAN. Arjovsky, Chintala & Bottou (2017), arXiv:1701.07875, Algorithm 1.

    The schedule is that of the authors' code: `n_critic` critic updates per generator update, each on fresh data, and
    `n_critic_long` in the first `long_first` iterations and in every `long_every`-th. The reason: the generator's
    gradient is that of the distance only near the critic's optimum.
    """

    tricks_taken = ALL_TRICKS
    tells = ("generator", "critic")
    ema_modules = ("generator",)
    keeps_lipschitz = True  # by clipping

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        loss: AdversarialLoss,
        latent_dim: int,
        clip: float,
        n_critic: int,
        n_critic_long: int,
        long_first: int,
        long_every: int,
    ) -> None:
        """Joins the players.

        Args:
            clip: c, the largest absolute value of any parameter of the critic.

        Raises:
            ValueError: If a number of updates or of iterations is below 1, or clip is not positive.
        """
        super().__init__()
        for name, count in (("n_critic", n_critic), ("n_critic_long", n_critic_long), ("long_every", long_every)):
            if count < 1:
                raise ValueError(f"model.{name} must be at least 1, got {count}.")
        if clip <= 0:
            raise ValueError(f"model.clip must be positive, got {clip}. Try model.clip=0.01.")
        self.generator, self.critic, self.loss = generator, critic, loss
        self.latent_dim, self.clip = latent_dim, clip
        self.n_critic, self.n_critic_long = n_critic, n_critic_long
        self.long_first, self.long_every = long_first, long_every
        self.batches_per_step = n_critic
        self.add_player("critic", critic, "c_optimizer")
        self.add_player("generator", generator, "g_optimizer")

    def batches_at(self, iteration: int) -> int:
        """Critic updates, and thus fresh batches, of an iteration."""
        long = iteration < self.long_first or iteration % self.long_every == 0
        return self.n_critic_long if long else self.n_critic

    @torch.no_grad()
    def clip_parameters(self) -> None:
        """w <- clip(w, -c, c) for all parameters of the critic, biases included."""
        for parameter in self.critic.parameters():
            parameter.clamp_(-self.clip, self.clip)

    @inference
    def score_logits(self, x: Tensor, given: Batch | None = None) -> Tensor:
        """The critic's values [N] of samples [N, ...]; a log-ratio only up to an unknown scale."""
        return self.critic(x, *self.told(given))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1: critic updates on fresh data, each followed by clipping, then one generator update."""
        # Critic (lines 2-8): minimise f(G(z)) - f(x), |w| <= c.
        for part in batch.chunk(self.batches_at(self.iteration)):
            x_real, told = part.x, self.told(part)
            fakes = self.fakes(len(x_real), *told)
            with self.turn("critic") as critic:
                logits_real, logits_fake = self.critic(x_real, *told), self.critic(fakes.shown, *told)
                d_loss = self.loss.discriminator(logits_real, logits_fake)
                critic.minimise(d_loss)
            self.clip_parameters()

        # Generator (lines 9-11): minimise -f(G(z)).
        with self.turn("generator") as generator:
            g_loss = self.generator_loss(self.loss, self.critic, fakes.again(), x_real, *told)
            generator.minimise(g_loss)

        self.record(d_loss=d_loss, g_loss=g_loss)
        self.record_logits(logits_real, logits_fake)
