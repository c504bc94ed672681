"""VEEGAN: a reconstructor maps samples back to noise, against missing modes."""

from __future__ import annotations

from torch import Tensor, nn

from genlab.batch import Batch
from genlab.losses.adversarial import NonSaturating
from genlab.losses.penalties import Penalty
from genlab.models.ali import ALI
from genlab.networks.posteriors import Posterior


def noise_distance(z: Tensor, z_recon: Tensor) -> Tensor:
    """d(z, F(G(z))), the squared l2 distance of latents [N, Z], summed over Z; the mean over the batch, a scalar."""
    return (z - z_recon).square().sum(dim=1).mean()


class VEEGAN(ALI):
    """Variational encoder enhancement to GANs. Srivastava et al. (2017), arXiv:1705.07761, Algorithm 1.

    The reconstructor F, here `encoder`, maps data and fakes to noise. D's optimal logit is log p_F(z | x) p(x) -
    log q_G(x | z) p_0(z): real pairs are the positive ones, as everywhere in genlab; the paper's D has the opposite
    sign.

    In Algorithm 1 F minimises d(z, F(G(z))) alone. With `reconstructor_adversarial`, as in the authors' code, F also
    minimises -log(1 - D(x, F(x))), as ALI's encoder does; without the distance, that is ALI.
    """

    def __init__(
        self,
        generator: nn.Module,
        encoder: nn.Module,
        discriminator: nn.Module,
        loss: NonSaturating,
        latent_dim: int,
        encoder_features: int,
        distance_weight: float,
        reconstructor_adversarial: bool,
        posterior: Posterior | None = None,
        penalty: Penalty | None = None,
    ) -> None:
        """Joins the players, as in `ALI`.

        Args:
            loss: `density_ratio` is the paper's, with -E logit for the generator.
            distance_weight: Of d(z, F(G(z))), 1 in the paper.
            posterior: p_F(z | x), from F's output; one code for each sample unless given.
            penalty: On the discriminator's gradient in sample and latent; None for none.
        """
        super().__init__(generator, encoder, discriminator, loss, latent_dim, encoder_features, posterior, penalty)
        self.distance_weight, self.reconstructor_adversarial = distance_weight, reconstructor_adversarial

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1: the gradients of all three networks at the same parameters, then the updates."""
        x, z = batch.x, self.noise(len(batch.x))
        z_infer, x_fake = self.infer(x), self.generator(z)

        # Discriminator: minimise -log D(x, F(x)) - log(1 - D(G(z), z)).
        self.collect_discriminator((x, z_infer), (x_fake, z))

        # Generator: minimise loss.generator(D(G(z), z)) + d(z, F(G(z))). Reconstructor: minimise d(z, F(G(z))), the
        # only term that depends on it, unless it plays against D as well.
        with self.turn("generator") as generator:
            g_loss = self.loss.generator(self.discriminator(x_fake, z))
            distance = noise_distance(z, self.infer(x_fake))
            total = g_loss + self.distance_weight * distance
            if self.reconstructor_adversarial:
                e_loss = self.loss.generator(-self.discriminator(x, z_infer))
                total = total + e_loss
                self.record(e_loss=e_loss)
            generator.collect(total)

        self.step("discriminator", "generator")
        self.record(g_loss=g_loss, distance=distance)
        if self.logging:  # F(x) should have the noise's mean and variance
            spread = z_infer.detach()
            self.record(code_mean=spread.mean(dim=0).norm(), code_var=spread.var(dim=0, correction=0).mean())
