"""InfoGAN: a part of the latent, the codes, must be predictable from the sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.information import categorical_information, gaussian_information
from genlab.models.base import inference
from genlab.models.capabilities import Generating
from genlab.networks.init import feature_count
from genlab.randomness import whole_below


class InfoGAN(Generating):
    """Information-maximising GAN. Chen et al. (2016), arXiv:1606.03657, Eq. 6.

    A latent is noise, a one-hot category and continuous codes, in this order. Q predicts category and codes from the
    discriminator's features and belongs to the discriminator's player. As in the authors' code, L_I is subtracted from
    both players' losses, so that the shared features are trained on it, too.
    """

    tricks_taken = (*Generating.tricks_taken, "instance_noise", "augment")
    ema_modules = ("generator", "discriminator", "q")
    latent_prior = "uniform"

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        shape: Sequence[int],
        latent_dim: int,
        categories: int,
        codes: int,
        q_hidden: int,
        info_weight: float,
        code_weight: float,
    ) -> None:
        """Joins the players.

        Args:
            discriminator: Maps samples [N, ...] to `features` [N, F], and these to `logits` [N].
            latent_dim: Size of noise, category and codes together.
            categories: K, the number of values of the category.
            codes: Number of continuous codes, uniform on [-1, 1]; may be 0.
            info_weight: lambda of the category's part of L_I.
            code_weight: lambda of the continuous codes' part.

        Raises:
            ValueError: If there are fewer than two categories, a negative number of codes, or no room for noise.
        """
        super().__init__()
        self.noise_dim = _noise_dim(latent_dim, categories, codes)
        self.generator, self.loss = generator, loss
        self.discriminator: Any = discriminator  # nn.Module declares no `features` and no `logits`
        features = feature_count(discriminator, shape)
        self.q = nn.Sequential(
            nn.Linear(features, q_hidden), nn.LeakyReLU(0.1), nn.Linear(q_hidden, categories + codes)
        )
        self.latent_dim, self.categories, self.codes = latent_dim, categories, codes
        self.one_hot_latents = (range(self.noise_dim, self.noise_dim + categories),)
        self.info_weight, self.code_weight = info_weight, code_weight
        self.add_player("discriminator", [discriminator, self.q], "d_optimizer")
        self.add_player("generator", generator, "g_optimizer")

    def noise(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Latents [n, latent_dim]: noise uniform on [-1, 1], a one-hot category, codes uniform on [-1, 1]."""
        u = self.rand(n, self.noise_dim + 1 + self.codes, rng=rng)
        noise, which, codes = u.split([self.noise_dim, 1, self.codes], dim=1)
        category = whole_below(which[:, 0], self.categories)
        return torch.cat([2 * noise - 1, F.one_hot(category, self.categories).to(u.dtype), 2 * codes - 1], dim=1)

    def information(self, features: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """L_I of the category and of the continuous codes, scalars in nats, from the features [N, F] of G(z)."""
        logits, mu = self.q(features).split([self.categories, self.codes], dim=1)
        _, category, codes = z.split([self.noise_dim, self.categories, self.codes], dim=1)
        return categorical_information(logits, category.argmax(dim=1)), gaussian_information(mu, codes)

    @inference
    def score_logits(self, x: Tensor) -> Tensor:
        """The discriminator's logits [N] of samples [N, ...]: log p_data / p_model at its optimum."""
        return self.discriminator(x)

    @inference
    def guess(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Q's prediction for samples [N, ...]: category probabilities [N, K] and code means [N, C]."""
        logits, mu = self.q(self.discriminator.features(x)).split([self.categories, self.codes], dim=1)
        return logits.softmax(dim=1), mu

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Eq. 6: one update of discriminator and Q, then one generator update."""
        x_real = batch.x
        fakes = self.fakes(len(x_real))

        # Discriminator and Q: minimise loss.discriminator(D(x), D(G(z, c))) - lambda L_I.
        with self.turn("discriminator") as discriminator:
            logits_real, features = self.discriminator(x_real), self.discriminator.features(fakes.shown)
            logits_fake = self.discriminator.logits(features)
            d_loss = self.loss.discriminator(logits_real, logits_fake)
            info_category, info_codes = self.information(features, fakes.z)
            discriminator.minimise(d_loss - self.info_weight * info_category - self.code_weight * info_codes)

        # Generator: minimise loss.generator(D(G(z, c))) - lambda L_I.
        with self.turn("generator") as generator:
            features = self.discriminator.features(fakes.again())
            g_loss = self.loss.generator(self.discriminator.logits(features))
            info_category, info_codes = self.information(features, fakes.z)
            generator.minimise(g_loss - self.info_weight * info_category - self.code_weight * info_codes)

        self.record(d_loss=d_loss, g_loss=g_loss, info_category=info_category, info_codes=info_codes)
        self.record_logits(logits_real, logits_fake)


def _noise_dim(latent_dim: int, categories: int, codes: int) -> int:
    """The part of a latent that is left for noise; refuses sizes that leave none."""
    if categories < 2 or codes < 0:
        raise ValueError(f"InfoGAN needs categories >= 2 and codes >= 0, got {categories} and {codes}.")
    if latent_dim <= categories + codes:
        raise ValueError(
            f"model.latent_dim={latent_dim} must exceed categories + codes = {categories + codes}. "
            f"Try model.latent_dim={categories + codes + 62}."
        )
    return latent_dim - categories - codes
