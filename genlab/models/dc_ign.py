"""The deep convolutional inverse graphics network: a VAE whose units are given a meaning by clamped minibatches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.data.spec import Batch
from genlab.errors import UserError
from genlab.losses.divergences import kl_standard_normal_terms
from genlab.losses.kl import KLTerm
from genlab.losses.likelihoods import Likelihood
from genlab.models.vae import VAE
from genlab.networks.posteriors import DiagonalGaussian

UNGROUPED = (
    "model=dc_ign trains on batches in which one known factor alone varies. Try data=shapes data.grouped=true, or "
    "model.clamp=false for a plain VAE."
)


class DCIGN(VAE):
    """Deep convolutional inverse graphics network. Kulkarni et al. (2015), arXiv:1503.03167, section 3.1.

    The first `scene_units` latents stand for one known factor each, all others are intrinsic. In a training batch one
    factor alone varies, and so may only its latents: the others are clamped to their mean over the batch, and pulled
    towards it. The factors' values are never seen. Judged and used as the VAE that it is.

    Attributes:
        factor_units: The latent that stands for each known factor.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        encoder_features: int,
        kl_weight: float = 1.0,
        kl: KLTerm | None = None,
        scene_units: int = 5,
        clamp: bool = True,
        invariance: float = 1.0,
    ) -> None:
        """Divides the latent.

        Args:
            encoder: Maps samples [N, ...] to [N, encoder_features]: means, then log-variances.
            decoder: Maps latents [N, latent_dim] to raw outputs, as the likelihood wants them.
            likelihood: What the raw outputs mean.
            latent_dim: Size of the latent.
            encoder_features: 2 * latent_dim.
            kl_weight: Of the KL, which only the latents that are not clamped pay.
            kl: What the objective makes of the KL; its mean unless given.
            scene_units: Latents that stand for the first known factors, one each.
            clamp: Train on clamped batches; else the plain VAE, as the authors pre-train.
            invariance: Strength of the pull: the gradient at a clamped mean is this times its distance to the batch's
                mean, over the number of samples.

        Raises:
            UserError: If no latent is left for one of the two parts, or the pull is negative.
        """
        if not 1 <= scene_units < latent_dim:
            raise UserError(
                f"model.scene_units must be at least 1 and below model.latent_dim={latent_dim}, got {scene_units}: the "
                "other latents are intrinsic."
            )
        if invariance < 0:
            raise UserError(f"model.invariance must be at least 0, got {invariance}.")
        super().__init__(encoder, decoder, likelihood, latent_dim, encoder_features, kl_weight=kl_weight, kl=kl)
        self.scene_units, self.invariance = scene_units, invariance
        self.wants_groups = UNGROUPED if clamp else ""
        self.factor_units = tuple(range(scene_units))

    def active(self, group: Tensor) -> Tensor:
        """Which latents may vary, bool [latent_dim], where the factor `group` (int64 []) does."""
        part = torch.arange(self.latent_dim, device=group.device).clamp_max(self.scene_units)
        return part == group.clamp_max(self.scene_units)

    def clamped(self, q: DiagonalGaussian, active: Tensor) -> tuple[DiagonalGaussian, DiagonalGaussian]:
        """Means and log-variances [N, Z], those of inactive latents replaced by their means over all processes' batch.

        Returns:
            The clamped posterior, without gradient to what is clamped, and the means [Z] (without gradient).
        """
        mean = DiagonalGaussian(*self.averaged(torch.stack([q.mu.mean(dim=0), q.logvar.mean(dim=0)])))
        return DiagonalGaussian(*(torch.where(active, own, m) for own, m in zip(q, mean, strict=True))), mean

    def clamped_objective(self, x: Tensor, group: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """The minimised `loss` on a batch in which the factor `group` alone varies, and its terms.

        `kl` is that of the latents that are not clamped, so that its sum with `recon` bounds nothing.
        """
        q, active = self.posterior(x), self.active(group)
        assert isinstance(q, DiagonalGaussian)
        shown, mean = self.clamped(q, active)
        z = shown.rsample(self.randn(len(x), self.latent_dim, rng=rng))
        recon = -self.likelihood.log_prob(x, self.decoder(z)).mean()
        kl = kl_standard_normal_terms(q.mu, q.logvar) * active
        kl_term = self.kl_weight * self.kl(self.gathered(kl), self.iteration)
        spread = (q.mu - mean.mu).square()
        pull = 0.5 * self.invariance * torch.where(active, 0.0, spread).sum(dim=1).mean()
        variance = spread.detach().mean(dim=0)
        return {
            "loss": recon + kl_term + pull,
            "recon": recon,
            "kl": kl.sum(dim=1).mean(),
            "pull": pull,
            "active_variance": (variance * active).sum() / active.sum(),
            "clamped_variance": (variance * ~active).sum() / (~active).sum(),
        }

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One update of encoder and decoder, on a clamped batch or else as the VAE."""
        if not self.wants_groups:
            super().training_step(batch, batch_idx)
            return
        if batch.group is None:
            raise UserError(UNGROUPED)
        with self.turn("vae") as vae:
            terms = self.clamped_objective(batch.x, batch.group)
            vae.minimise(terms["loss"])
        self.record(**terms)
