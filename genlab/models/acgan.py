"""The auxiliary classifier GAN: the discriminator also names the class, and the generator helps it to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.classes import known_cross_entropy
from genlab.models.base import inference
from genlab.models.capabilities import Generating
from genlab.models.labels import check_told_classes, completed, known_classes, labels_of
from genlab.networks.init import feature_count


class ACGAN(Generating):
    """Auxiliary classifier GAN. Odena, Olah & Shlens (2017), arXiv:1610.09585, Eq. 2 and 3.

    The classifier is a linear layer on the discriminator's features and belongs to the discriminator's player. Classes
    of fakes are those of the batch; a missing label (-1) is replaced by a class drawn evenly, and counts in no
    cross-entropy of real samples.

    Where classes overlap, the data are no optimum of the generator: its cross-entropy alone drives it away from the
    overlap (Gong et al., 2019, arXiv:1907.02690).
    """

    tricks_taken = (*Generating.tricks_taken, "instance_noise", "augment")
    tells = ("generator",)
    needs = ("y",)
    ema_modules = ("generator", "discriminator", "classifier")

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        shape: Sequence[int],
        latent_dim: int,
        classes: int | None,
        d_class_weight: float = 1.0,
        g_class_weight: float = 1.0,
    ) -> None:
        """Joins the players.

        Args:
            discriminator: Maps samples [N, ...] to `features` [N, F], and these to `logits` [N].
            classes: K.
            d_class_weight: Of the cross-entropies of real samples and of fakes in the discriminator's loss.
            g_class_weight: Of the cross-entropy of fakes in the generator's loss.

        Raises:
            UserError: If the data have no classes, or the discriminator no features.
        """
        super().__init__()
        self.generator, self.loss, self.latent_dim = generator, loss, latent_dim
        self.discriminator: Any = discriminator  # nn.Module declares no `features` and no `logits`
        self.classes, self.d_class_weight, self.g_class_weight = known_classes(classes), d_class_weight, g_class_weight
        self.classifier = nn.Linear(feature_count(discriminator, shape), self.classes)
        self.add_player("discriminator", [discriminator, self.classifier], "d_optimizer")
        self.add_player("generator", generator, "g_optimizer")

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Checks that the generator is told the classes."""
        check_told_classes(self.given, type(self).__name__)

    def judged(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N] of samples [N, ...] being real, and logits of their classes [N, K]."""
        features = self.discriminator.features(x)
        return self.discriminator.logits(features), self.classifier(features)

    @inference
    def score_logits(self, x: Tensor) -> Tensor:
        """The discriminator's logits [N] of samples [N, ...]: log p_data / p_model at its optimum."""
        return self.discriminator(x)

    @inference
    def classify(self, x: Tensor) -> Tensor:
        """Logits of the classes [N, K] of samples [N, ...]."""
        return self.judged(x)[1]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Section 3: one update of discriminator and classifier, then one generator update."""
        x_real, y_real = batch.x, labels_of(batch)
        (told,) = self.told(completed(batch, self.rand(len(batch)), self.classes))
        fakes, y = self.fakes(len(x_real), told), labels_of(told)

        # Discriminator and classifier: minimise -L_S - L_C, L_C of real samples and of fakes.
        with self.turn("discriminator") as discriminator:
            (logits_real, classes_real), (logits_fake, classes_fake) = self.judged(x_real), self.judged(fakes.shown)
            d_loss = self.loss.discriminator(logits_real, logits_fake)
            class_real = known_cross_entropy(classes_real, y_real, self.averaged)
            class_fake = F.cross_entropy(classes_fake, y)
            discriminator.minimise(d_loss + self.d_class_weight * (class_real + class_fake))

        # Generator: minimise L_S - L_C, in the form of `loss`, on its own samples.
        with self.turn("generator") as generator:
            logits, classes = self.judged(fakes.again())
            g_loss, g_class = self.loss.generator(logits), F.cross_entropy(classes, y)
            generator.minimise(g_loss + self.g_class_weight * g_class)

        self.record(d_loss=d_loss, g_loss=g_loss, class_real=class_real, class_fake=class_fake)
        self.record_logits(logits_real, logits_fake)
