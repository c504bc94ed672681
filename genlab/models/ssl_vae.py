"""The semi-supervised VAE: a latent class, known for some samples, and summed over for the others."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.classes import known_cross_entropy
from genlab.losses.divergences import kl_standard_normal
from genlab.losses.likelihoods import Likelihood
from genlab.models.adversary import Opponent, Opposable
from genlab.models.base import inference
from genlab.models.capabilities import NormalPrior
from genlab.models.labels import known_classes, labels_of, one_hot
from genlab.networks.init import check_positive, start_output_bias
from genlab.networks.posteriors import DiagonalGaussian, log_standard_normal
from genlab.randomness import whole_below


class SemiSupervisedVAE(Opposable, NormalPrior):
    """Semi-supervised VAE, M2. Kingma, Rezende, Mohamed & Welling (2014), arXiv:1406.5298, Eq. 6 to 9.

    The model is p(y) p(z) p(x | z, y), with p(y) uniform and p(z) = N(0, I), the posterior q(y | x) q(z | x, y). Of a
    sample with a label, -log p(x, y) is at most L(x, y) = E_q(z | x, y) [-log p(x | z, y)] + KL(q(z | x, y) || p(z)) -
    log p(y); of one without, -log p(x) is at most U(x) = sum_y q(y | x) (L(x, y) + log q(y | x)), a sum over all
    classes, each with noise of its own. Minimised is the mean of both over a batch, plus alpha times the mean
    cross-entropy of q(y | x) on samples with labels. All networks are one player.
    """

    tells = ("recognition", "decoder")
    ema_modules = ("encoder", "recognition", "classifier", "decoder", "likelihood")
    needs = ("y",)

    def __init__(
        self,
        encoder: nn.Module,
        recognition: nn.Module,
        classifier: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        classes: int | None,
        encoder_features: int,
        bound_weight: float = 1.0,
        label_weight: float = 1.0,
        labelled_share: float | None = None,
        adversary: Opponent | None = None,
    ) -> None:
        """Joins the networks.

        Args:
            encoder: Maps samples [N, ...] to features [N, F], once for all classes.
            recognition: Maps these features, told y, to mean and log-variance of q(z | x, y).
            classifier: Maps samples to the logits [N, K] of q(y | x).
            decoder: Maps latents, told y, to the likelihood's raw output.
            classes: K.
            encoder_features: F.
            bound_weight: Of L and U; with 0 the classifier is trained alone, on the samples with labels.
            label_weight: alpha, of the mean cross-entropy in nats.
            labelled_share: Share of samples with labels in each batch. Where it is larger than in the data, their L
                weighs more than in the paper. None: as they come.

        Raises:
            UserError: If the data have no classes, a number is out of its range, or an adversary would get no gradient.
        """
        super().__init__()
        check_positive("model.encoder_features", encoder_features, cure="256")
        if min(bound_weight, label_weight) < 0:
            raise UserError(
                f"model.bound_weight and model.label_weight must be at least 0, got {bound_weight}, {label_weight}."
            )
        if adversary is not None and not likelihood.differentiable:
            raise UserError(
                "An adversary needs samples with a gradient; likelihood=pixelcnn has none. Try likelihood=bernoulli."
            )
        self.encoder, self.recognition, self.classifier = encoder, recognition, classifier
        self.decoder, self.likelihood = decoder, likelihood
        self.latent_dim, self.classes = latent_dim, known_classes(classes)
        self.bound_weight, self.label_weight, self.labelled_share = bound_weight, label_weight, labelled_share
        self.add_player("vae", [encoder, recognition, classifier, decoder, likelihood], "optimizer")
        self.oppose(adversary)

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Starts the decoder's output bias at the mean sample."""
        x = torch.cat([next(batches).x for _ in range(8)])
        start_output_bias(self.decoder, self.likelihood.visible_bias(x))

    # ------------------------------------------------------------------------------------------------- distributions

    def seen(self, x: Tensor) -> Tensor:
        """The input of all networks for samples [N, ...]: the samples themselves."""
        return x

    def shown(self, raw: Tensor) -> Tensor:
        """Samples of the decoder's raw output: E[x | z, y]."""
        return self.likelihood.mean(raw)

    def log_likelihood(self, x: Tensor, raw: Tensor) -> Tensor:
        """log p(x | z, y), [N] nats."""
        return self.likelihood.log_prob(x, raw)

    def posterior(self, features: Tensor, *told: Batch) -> DiagonalGaussian:
        """q(z | x, y) of the encoder's features [N, F]."""
        return DiagonalGaussian(*self.recognition(features, *told).chunk(2, dim=1))

    def told_or_guessed(self, x: Tensor, given: Batch | None) -> tuple[Batch, ...]:
        """The classes of samples [N, ...], those of q(y | x) where they are not given or not known."""
        guess = self.classifier(self.seen(x)).argmax(dim=1)
        y = guess if given is None else labels_of(given)
        return self.told(Batch({"y": torch.where(y < 0, guess, y)}))

    # -------------------------------------------------------------------------------------------------- capabilities

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """E[x | z, y] of z ~ p(z), [n, ...]."""
        return self.shown(self.decoder(self.noise(n, rng), *self.told(given)))

    @inference
    def classify(self, x: Tensor) -> Tensor:
        """Logits [N, K] of q(y | x) for samples [N, ...]."""
        return self.classifier(self.seen(x))

    @inference
    def encode(self, x: Tensor, given: Batch | None = None) -> Tensor:
        """The mean of q(z | x, y), [N, latent_dim]; where y is not given, with the class of q(y | x)."""
        return self.posterior(self.encoder(self.seen(x)), *self.told_or_guessed(x, given)).mu

    @inference
    def decode(self, z: Tensor, given: Batch | None = None) -> Tensor:
        """E[x | z, y] of latents [N, latent_dim]."""
        return self.shown(self.decoder(z, *self.told(given)))

    @inference
    def reconstruct(self, x: Tensor, given: Batch | None = None) -> Tensor:
        """E[x | z, y] at the mean of q(z | x, y); where y is not given, with the class of q(y | x)."""
        told = self.told_or_guessed(x, given)
        return self.shown(self.decoder(self.posterior(self.encoder(self.seen(x)), *told).mu, *told))

    @inference
    def log_joint(self, x: Tensor, z: Tensor, given: Batch | None = None) -> Tensor:
        """log p(x, z | y), [N] nats."""
        return self.log_likelihood(x, self.decoder(z, *self.told(given))) + log_standard_normal(z)

    @inference
    def sample_posterior(
        self, x: Tensor, k: int = 1, rng: torch.Generator | None = None, given: Batch | None = None
    ) -> tuple[Tensor, Tensor]:
        """k draws z ~ q(z | x, y) for each sample and their log q: [k, N, latent_dim] and [k, N] nats."""
        eps = self.randn(k * len(x), self.latent_dim, rng=rng).unflatten(0, (k, len(x)))
        return self.posterior(self.encoder(x), *self.told(given)).draw(eps)

    # ------------------------------------------------------------------------------------------------------ training

    def bounds(self, x: Tensor, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """-log p(x | z, y) at a draw from q(z | x, y), and KL(q(z | x, y) || p(z)), for every class: [N, K] nats."""
        n, k = len(x), self.classes
        told = self.told(Batch({"y": torch.arange(k, device=x.device).repeat(n)}))
        q = self.posterior(self.encoder(x).repeat_interleave(k, dim=0), *told)
        z = q.rsample(self.randn(n, k, self.latent_dim, rng=rng).flatten(0, 1))
        recon = -self.log_likelihood(x.repeat_interleave(k, dim=0), self.decoder(z, *told))
        return recon.view(n, k), kl_standard_normal(*q).view(n, k)

    def objective(self, x: Tensor, rng: torch.Generator | None = None, given: Batch | None = None) -> dict[str, Tensor]:
        """The minimised `loss` on a batch, its terms, and `elbo`, the bound -U(x) on log p(x) of all samples."""
        x = self.seen(x)
        logits = self.classifier(x)
        y = torch.full((len(x),), -1, device=x.device) if given is None else labels_of(given)
        cross_entropy = known_cross_entropy(logits, y, self.averaged if self.training else torch.detach)
        if not self.bound_weight:
            return {"loss": self.label_weight * cross_entropy, "cross_entropy": cross_entropy}

        # Eq. 6 and 7: L(x, y) of the known class, U(x) where there is none.
        (recon, kl), log_q = self.bounds(x, rng), logits.log_softmax(dim=1)
        cost = recon + kl + math.log(self.classes)  # L of every class
        unlabelled = (log_q.exp() * (cost + log_q)).sum(dim=1)
        labelled = cost.gather(1, y.clamp_min(0).unsqueeze(1)).squeeze(1)
        known = y >= 0
        bound = torch.where(known, labelled, unlabelled).mean()

        loss = self.bound_weight * bound + self.label_weight * cross_entropy
        share = torch.where(known.unsqueeze(1), one_hot(y, self.classes).to(log_q), log_q.detach().exp())
        return {
            "loss": loss,
            "recon": (share * recon).sum(dim=1).mean(),
            "kl": (share * kl).sum(dim=1).mean(),
            "cross_entropy": cross_entropy,
            "entropy": -(log_q.exp() * log_q).sum(dim=1).mean(),
            "elbo": -unlabelled.mean(),
        }

    def imitate(self, x: Tensor, *told: Batch) -> Tensor:
        """E[x | z, y] of N draws from the prior, for samples x [N, ...]."""
        return self.shown(self.decoder(self.noise(len(x)), *told))

    def drawn_classes(self, n: int) -> tuple[Batch, ...]:
        """n classes y ~ p(y) for fakes; nothing without an adversary, so that no number is drawn."""
        return () if self.adversary is None else self.told(Batch({"y": whole_below(self.rand(n), self.classes)}))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Eq. 9: minimise the mean of L(x, y) of labelled and U(x) of other samples + alpha E[-log q(y | x)]."""
        x, fakes = batch.x, self.drawn_classes(len(batch))
        self.play_adversary(x, *self.told(batch), fakes=fakes)
        with self.turn("vae") as vae:
            terms = self.objective(x, given=batch)
            vae.minimise(terms["loss"] + self.deception(x, *fakes))
        self.record(**terms)
