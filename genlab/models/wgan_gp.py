"""The Wasserstein GAN with gradient penalty."""

from __future__ import annotations

from torch import Tensor, nn

from genlab.batch import Batch
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.penalties import check_one_of_each_sample, gradient_penalty, pack_size
from genlab.models.base import ALL_TRICKS, inference
from genlab.models.capabilities import Generating


class WGANGP(Generating):
    """Wasserstein GAN with gradient penalty. Gulrajani et al. (2017), arXiv:1704.00028, Algorithm 1."""

    tricks_taken = ALL_TRICKS
    tells = ("generator", "critic")
    ema_modules = ("generator",)
    keeps_lipschitz = True  # by the penalty

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        loss: AdversarialLoss,
        latent_dim: int,
        n_critic: int,
        gp_weight: float,
    ) -> None:
        """Joins the players.

        Args:
            gp_weight: lambda of Eq. 3.

        Raises:
            ValueError: If n_critic is below 1, or the critic couples the samples of a batch (batch normalisation).
        """
        super().__init__()
        if n_critic < 1:
            raise ValueError(f"model.n_critic must be at least 1, got {n_critic}.")
        check_one_of_each_sample(critic)
        self.generator, self.critic, self.loss = generator, critic, loss
        self.latent_dim, self.n_critic, self.gp_weight = latent_dim, n_critic, gp_weight
        self.batches_per_step = n_critic
        self.add_player("critic", critic, "c_optimizer")
        self.add_player("generator", generator, "g_optimizer")

    @inference
    def score_logits(self, x: Tensor, given: Batch | None = None) -> Tensor:
        """The critic's values [N] of samples [N, ...]; a log-ratio only up to an unknown scale."""
        return self.critic(x, *self.told(given))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1: `n_critic` critic updates on fresh data, then one generator update."""
        # Critic (lines 2-9): minimise D(G(z)) - D(x) + lambda (|grad D(x_hat)| - 1)^2.
        for part in batch.chunk(self.n_critic):
            x_real, told = part.x, self.told(part)
            fakes = self.fakes(len(x_real), *told)
            with self.turn("critic") as critic:
                logits_real, logits_fake = self.critic(x_real, *told), self.critic(fakes.shown, *told)
                d_loss = self.loss.discriminator(logits_real, logits_fake)
                alpha = self.rand(len(x_real) // pack_size(self.critic))
                gp = gradient_penalty(self.critic, x_real, fakes.shown, alpha, *told)
                critic.minimise(d_loss + self.gp_weight * gp)

        # Generator (lines 11-12): minimise -D(G(z)).
        with self.turn("generator") as generator:
            g_loss = self.generator_loss(self.loss, self.critic, fakes.again(), x_real, *told)
            generator.minimise(g_loss)

        self.record(d_loss=d_loss, gp=gp, g_loss=g_loss)
        self.record_logits(logits_real, logits_fake)
