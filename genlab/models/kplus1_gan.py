"""The GAN whose discriminator is a classifier of K classes and fakes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.classes import known_cross_entropy, nats_of_class, nats_of_fake, nats_of_real, real_logits
from genlab.losses.features import feature_matching
from genlab.models.base import inference
from genlab.models.capabilities import Generating
from genlab.models.labels import check_told_classes, completed, known_classes, labels_of
from genlab.networks.init import feature_count


class KPlus1GAN(Generating):
    """GAN with K classes of real samples and one of fakes. Two methods, both for data with few labels as well.

    Joint: Odena (2016), arXiv:1606.01583. The discriminator minimises the cross-entropy of K + 1 classes; the generator
    is told a class, and minimises its cross-entropy. Classes of fakes are those of the batch; a missing label (-1) is
    replaced by a class drawn evenly.

    Factored: Salimans et al. (2016), arXiv:1606.03498, section 5, and the authors' code. The discriminator minimises
    the cross-entropy of K classes on labelled samples, and half the loss of a GAN, whose D is 1 - p_{K+1}, on all of
    them. The generator is told nothing, and matches the means of the discriminator's features.

    The logits of a sample are a linear layer's, one for each class, and minus the discriminator's own as that of the
    fakes; the authors fix this last one at 0, which gives the same probabilities.
    """

    tricks_taken = (*Generating.tricks_taken, "instance_noise", "augment")
    tells = ("generator",)
    needs = ("y",)
    ema_modules = ("generator", "discriminator", "classifier")

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        shape: Sequence[int],
        latent_dim: int,
        classes: int | None,
        joint: bool,
        class_weight: float = 1.0,
    ) -> None:
        """Joins the players.

        Args:
            discriminator: Maps samples [N, ...] to `features` [N, F], and these to `logits` [N].
            classes: K.
            joint: Which of the two methods.
            class_weight: Of the labelled samples' cross-entropy in the factored discriminator's loss.

        Raises:
            UserError: If the data have no classes, or the discriminator no features.
        """
        super().__init__()
        self.generator, self.latent_dim = generator, latent_dim
        self.discriminator: Any = discriminator  # nn.Module declares no `features` and no `logits`
        self.classes, self.joint, self.class_weight = known_classes(classes), joint, class_weight
        self.classifier = nn.Linear(feature_count(discriminator, shape), self.classes)
        self.whole_batch = "" if joint else "feature matching of model.joint=false"
        self.add_player("discriminator", [discriminator, self.classifier], "d_optimizer")
        self.add_player("generator", generator, "g_optimizer")

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Checks that the generator is told the classes, or nothing where it matches features."""
        if self.joint:
            check_told_classes(self.given, type(self).__name__)
        elif self.given:
            raise UserError("model.joint=false trains a generator that is told nothing. Leave model.given out.")

    def logits(self, x: Tensor) -> Tensor:
        """Logits [N, K + 1] of samples [N, ...], the last of them those of fakes."""
        features = self.discriminator.features(x)
        return torch.cat([self.classifier(features), -self.discriminator.logits(features).unsqueeze(1)], dim=1)

    @inference
    def score_logits(self, x: Tensor) -> Tensor:
        """log (1 - p_{K+1}) / p_{K+1} of samples [N, ...], [N]: log p_data / p_model at the discriminator's optimum."""
        return real_logits(self.logits(x))

    @inference
    def classify(self, x: Tensor) -> Tensor:
        """Logits of the classes [N, K] of samples [N, ...]."""
        return self.logits(x)[:, :-1]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One discriminator update, then one generator update, by the losses of the chosen method."""
        x_real, y_real = batch.x, labels_of(batch)
        told = self.told(completed(batch, self.rand(len(batch)), self.classes))
        fakes = self.fakes(len(x_real), *told)

        # Discriminator: minimise -log p_y(x) - log p_{K+1}(G(z, y)); factored: see `factored`.
        with self.turn("discriminator") as discriminator:
            real, fake = self.logits(x_real), self.logits(fakes.shown)
            if self.joint:
                d_loss = nats_of_class(real, y_real).mean() + nats_of_fake(fake).mean()
            else:
                d_loss = self.factored(real, y_real, fake)
            discriminator.minimise(d_loss)

        # Generator: minimise -log p_y(G(z, y)); factored: |E f(x) - E f(G(z))|^2 of the discriminator's features f.
        with self.turn("generator") as generator:
            if self.joint:
                g_loss = F.cross_entropy(self.logits(fakes.again()), labels_of(*told))
            else:
                g_loss = self.matching(x_real, fakes.again())
            generator.minimise(g_loss)

        self.record(d_loss=d_loss, g_loss=g_loss)
        self.record_logits(real_logits(real), real_logits(fake))

    def factored(self, real: Tensor, y: Tensor, fake: Tensor) -> Tensor:
        """The discriminator's loss of the factored method: a scalar of logits [N, K + 1] and labels [N].

        weight E[-log p(y | x, real)] over labelled samples, - E[log(1 - p_{K+1}(x))] / 2 - E[log p_{K+1}(G(z))] / 2.
        """
        cross_entropy = known_cross_entropy(real[:, :-1], y, self.averaged)
        return self.class_weight * cross_entropy + (nats_of_real(real).mean() + nats_of_fake(fake).mean()) / 2

    def matching(self, x_real: Tensor, x_fake: Tensor) -> Tensor:
        """The generator's loss of the factored method, from samples [N, ...] of all processes."""
        with torch.no_grad():
            features = self.gathered(self.discriminator.features(x_real))
        return feature_matching(features, self.gathered(self.discriminator.features(x_fake)))
