"""The deep convolutional inverse graphics network: a VAE with one latent per factor, trained on clamped batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.divergences import kl_standard_normal_terms
from genlab.losses.kl import KLTerm
from genlab.losses.likelihoods import Likelihood
from genlab.models.vae import VAE
from genlab.networks.posteriors import DiagonalGaussian


class DCIGN(VAE):
    """Deep convolutional inverse graphics network. Kulkarni et al. (2015), arXiv:1503.03167, section 3.1.

    The first `scene_units` latents represent one known factor each, all others are intrinsic. In a training batch one
    factor alone varies, and only its latents may vary: the others are clamped to their mean over the batch, and pulled
    towards it. The factors' values are not used. Sampling and evaluation are those of the VAE.

    Attributes:
        factor_units: The latent of each known factor.
    """

    tells = ()  # the clamped step knows no conditions

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
            kl_weight: Of the KL of the latents that are not clamped.
            clamp: Train on clamped batches; else as the plain VAE, which is the authors' pre-training.
            invariance: Strength of the pull: the gradient in a clamped mean is `invariance` times its distance to the
                batch's mean, over the number of samples.

        Raises:
            UserError: If `scene_units` is not in [1, latent_dim), `invariance` is negative, or the encoder's width does
                not fit.
        """
        _check(scene_units, latent_dim, invariance)
        super().__init__(encoder, decoder, likelihood, latent_dim, encoder_features, kl_weight=kl_weight, kl=kl)
        self.scene_units, self.invariance = scene_units, invariance
        self.needs = ("group",) if clamp else ()
        self.factor_units = tuple(range(scene_units))

    def active(self, group: Tensor) -> Tensor:
        """Mask of the latents that may vary with the factor `group` (int64 []), bool [latent_dim]."""
        part = torch.arange(self.latent_dim, device=group.device).clamp_max(self.scene_units)
        return part == group.clamp_max(self.scene_units)

    def clamped(self, q: DiagonalGaussian, active: Tensor) -> tuple[DiagonalGaussian, DiagonalGaussian]:
        """Replaces means and log-variances [N, Z] of inactive latents by their means over the global batch.

        Returns:
            The clamped posterior, with gradient to its active latents only, and the means [Z], without gradient.
        """
        mean = DiagonalGaussian(*self.averaged(torch.stack([q.mu.mean(dim=0), q.logvar.mean(dim=0)])))
        return DiagonalGaussian(*(torch.where(active, own, m) for own, m in zip(q, mean, strict=True))), mean

    def clamped_objective(self, x: Tensor, group: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """The minimised `loss` on a batch in which the factor `group` alone varies, and its terms.

        `kl` is that of the latents that are not clamped, so `recon + kl` is not a bound.
        """
        q, active = self.posterior(x), self.active(group)
        assert isinstance(q, DiagonalGaussian)
        shown, mean = self.clamped(q, active)
        z = shown.rsample(self.randn(len(x), self.latent_dim, rng=rng))
        recon = -self.likelihood.log_prob(x, self.decoder(z)).mean()
        kl = kl_standard_normal_terms(q.mu, q.logvar) * active
        kl_term = self.kl_weight * self.kl(self.gathered(kl) if self.kl.whole_batch else kl, self.iteration)
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
        """One update of encoder and decoder, on a clamped batch; without `clamp` the VAE's."""
        if not self.needs:
            super().training_step(batch, batch_idx)
            return
        with self.turn("vae") as vae:
            terms = self.clamped_objective(batch.x, batch.tensor("group")[0])
            vae.minimise(terms["loss"])
        self.record(**terms)


def _check(scene_units: int, latent_dim: int, invariance: float) -> None:
    """Checks that both parts of the latent have a unit, and the strength of the pull."""
    if not 1 <= scene_units < latent_dim:
        raise UserError(
            f"model.scene_units must be at least 1 and below model.latent_dim={latent_dim}, got {scene_units}: the "
            "other latents are intrinsic."
        )
    if invariance < 0:
        raise UserError(f"model.invariance must be at least 0, got {invariance}.")
