"""VEEGAN: a reconstructor of the noise tells the generator of the modes that it leaves out."""

from __future__ import annotations

from torch import Tensor, nn

from genlab.data.spec import Batch
from genlab.losses.adversarial import NonSaturating
from genlab.losses.penalties import Penalty
from genlab.models.ali import ALI
from genlab.networks.posteriors import Posterior


def noise_distance(z: Tensor, z_recon: Tensor) -> Tensor:
    """d(z, F(G(z))), the squared l2 distance of latents [N, Z], summed over Z; its mean over the batch, a scalar."""
    return (z - z_recon).square().sum(dim=1).mean()


class VEEGAN(ALI):
    """Variational encoder enhancement to GANs. Srivastava et al. (2017), arXiv:1705.07761, Algorithm 1.

    The reconstructor F, here `encoder`, maps data and fakes alike back to noise. At its best, D's logit is the log of
    p_F(z | x) p(x) over that of q_G(x | z) p_0(z): real pairs are the positive ones, as everywhere in genlab, and the
    paper's D is minus it.

    In Algorithm 1 F moves by d(z, F(G(z))) alone. The authors' own code lets it play against D as well, as the encoder
    of ALI does: `reconstructor_adversarial`. Without the distance, that is ALI.
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
        """Joins the players; see `ALI` for what both have.

        Args:
            generator: G.
            encoder: The reconstructor F.
            discriminator: D.
            loss: What the players minimise; the paper's is `density_ratio`, with -E logit for the generator.
            latent_dim: Size of the standard normal latent.
            encoder_features: Width of F's output.
            distance_weight: Of d(z, F(G(z))), 1 in the paper.
            reconstructor_adversarial: Whether F minimises -log(1 - D(x, F(x))) beside the distance.
            posterior: What F's output means, p_F(z | x); one code for each sample unless given.
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

        # Generator: minimise loss.generator(D(G(z), z)) + d(z, F(G(z))). Reconstructor: minimise d(z, F(G(z))), which
        # is all of this that depends on it unless it plays against D.
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
        if self.logging:  # F(x) should be spread like the noise
            spread = z_infer.detach()
            self.record(code_mean=spread.mean(dim=0).norm(), code_var=spread.var(dim=0, correction=0).mean())
