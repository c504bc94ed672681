"""The semi-supervised adversarial autoencoder: the clustering one, with a cross-entropy on the labelled samples."""

from __future__ import annotations

from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.classes import known_cross_entropy
from genlab.losses.likelihoods import Likelihood
from genlab.models.aae_clustering import ClusteringAAE
from genlab.models.base import inference
from genlab.models.labels import labels_of
from genlab.networks.latent import LatentDiscriminator


class SemiSupervisedAAE(ClusteringAAE):
    """Semi-supervised adversarial autoencoder. Makhzani et al. (2016), arXiv:1511.05644, section 5.

    The categories are the classes. After the updates of `ClusteringAAE` on all samples, the encoder is updated on the
    cross-entropy of the labelled samples. With `recon_weight` and `adversarial_weight` 0, only this update is left: the
    same classifier, trained on the labelled samples alone.
    """

    given = ("y",)

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        category_discriminator: LatentDiscriminator,
        style_discriminator: LatentDiscriminator,
        loss: AdversarialLoss,
        latent_dim: int,
        categories: int | None,
        style_dim: int,
        encoder_features: int,
        recon_weight: float = 1.0,
        adversarial_weight: float = 1.0,
        label_weight: float = 1.0,
    ) -> None:
        """Joins the players of `ClusteringAAE`.

        Args:
            label_weight: Of the cross-entropy in nats.

        Raises:
            UserError: If the data have no classes, a width does not fit, or a weight is negative.
        """
        networks = (encoder, decoder, likelihood, category_discriminator, style_discriminator)
        sizes = (latent_dim, categories, style_dim, encoder_features)
        super().__init__(*networks, loss, *sizes, recon_weight, adversarial_weight)
        if label_weight < 0:
            raise UserError(f"model.label_weight must be at least 0, got {label_weight}.")
        self.label_weight = label_weight

    @inference
    def classify(self, x: Tensor) -> Tensor:
        """Logits of the classes [N, K] of samples [N, ...]."""
        return self.read(x)[0]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Section 5: the updates without labels, then the encoder's update on the labelled samples."""
        x, y = batch.x, labels_of(batch)
        self.unsupervised_updates(x)

        # Encoder: minimise the cross-entropy, a mean over the labelled samples of all processes.
        with self.turn("encoder") as encoder:
            cross_entropy = known_cross_entropy(self.read(x)[0], y, self.averaged)
            encoder.minimise(self.label_weight * cross_entropy)
        self.record(cross_entropy=cross_entropy)
