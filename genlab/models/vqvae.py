"""The vector-quantised variational autoencoder."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.likelihoods import Likelihood
from genlab.models.adversary import Opponent, Opposable
from genlab.models.base import inference
from genlab.networks.codebook import Codebook, perplexity, rows


class VQVAE(Opposable):
    """VQ-VAE. van den Oord, Vinyals & Kavukcuoglu (2017), arXiv:1711.00937, Eq. 3 with the codebook of Appendix A.1.

    The encoder maps samples [N, C, H, W] to encodings z_e [N, D, h, w], which are replaced by their nearest codes z_q;
    the gradient of the decoder's input is passed to the encoder unchanged (straight-through). Encoder and decoder
    minimise -log p(x | z_q) + beta |z_e - sg[z_q]|^2, both summed over an image; beta is `commitment_weight`. The codes
    are moving averages of their encodings, over all processes.

    There is no prior on codes: a second stage (PixelCNN) is trained on `tokens` and samples through `detokenise`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        codebook: Codebook,
        likelihood: Likelihood,
        commitment_weight: float = 0.25,
        adversary: Opponent | None = None,
    ) -> None:
        """Joins the parts.

        Raises:
            UserError: If commitment_weight is negative.
        """
        super().__init__()
        if commitment_weight < 0:
            raise UserError(f"model.commitment_weight must be at least 0, got {commitment_weight}.")
        self.encoder, self.decoder, self.codebook, self.likelihood = encoder, decoder, codebook, likelihood
        self.commitment_weight = commitment_weight
        self.add_player("autoencoder", [encoder, decoder, likelihood], "optimizer")
        self.oppose(adversary)

    @property
    def num_codes(self) -> int:
        """K, the size of the codebook."""
        return len(self.codebook.vectors)

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Sets the codes to random encodings of the first batches: codes far from all encodings would never be used."""
        parts: list[Tensor] = []
        while sum(len(part) for part in parts) < self.num_codes:
            parts.append(rows(self.encoder(next(batches).x)))
        encodings = torch.cat(parts)
        self.codebook.start(encodings, torch.randperm(len(encodings), generator=self.rng, device=self.rng.device))

    def quantise(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z_e and z_q [N, D, h, w], and the codes' indices [N, h, w]."""
        z_e = self.encoder(x)
        return z_e, *self.codebook.quantise(z_e)

    @inference
    def tokens(self, x: Tensor) -> Tensor:
        """Indices of the codes of samples: int64 [N, h, w]."""
        return self.quantise(x)[2]

    @inference
    def detokenise(self, tokens: Tensor) -> Tensor:
        """E[x | z_q] of indices [N, h, w]."""
        return self.likelihood.mean(self.raw(tokens))

    @inference
    def log_likelihood(self, x: Tensor, tokens: Tensor) -> Tensor:
        """log p(x | z_q), [N] nats, of indices [N, h, w]."""
        return self.likelihood.log_prob(x, self.raw(tokens))

    def raw(self, tokens: Tensor) -> Tensor:
        """The decoder's output for indices [N, h, w]."""
        return self.decoder(self.codebook.as_map(tokens))

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z_q] of each sample's codes."""
        return self.detokenise(self.tokens(x))

    def terms(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The objective's terms (means over the batch), the encodings as rows, and their codes' indices [N, h, w]."""
        z_e, z_q, indices = self.quantise(x)
        raw = self.decoder(z_e + (z_q - z_e).detach())  # straight-through
        recon = -self.likelihood.log_prob(x, raw).mean()
        commitment = (z_e - z_q).square().flatten(1).sum(dim=1).mean()
        squared = (self.likelihood.mean(raw) - x).square().flatten(1).sum(dim=1).mean()
        loss = recon + self.commitment_weight * commitment
        found = {"loss": loss, "recon": recon, "commitment": commitment, "squared_error": squared}
        return {**found, "perplexity": perplexity(indices, self.num_codes)}, rows(z_e), indices

    def imitate(self, x: Tensor, *told: Batch) -> Tensor:
        """E[x | z_q] of each sample's codes, with the straight-through gradient to the encoder."""
        z_e, z_q, _ = self.quantise(x)
        return self.likelihood.mean(self.decoder(z_e + (z_q - z_e).detach()))

    def objective(self, x: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """The minimised `loss`, its terms, and the perplexity of the codes in the batch."""
        return self.terms(x)[0]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Eq. 3: one update of encoder and decoder, then one of the moving averages."""
        self.play_adversary(batch.x)
        with self.turn("autoencoder") as autoencoder:
            terms, encodings, indices = self.terms(batch.x)
            autoencoder.minimise(terms["loss"] + self.deception(batch.x))
        uniform = self.gathered(self.rand(len(batch.x), indices[0].numel())).flatten()
        everyones = self.gathered(encodings.detach()), self.gathered(indices).flatten()
        self.codebook.update(*everyones, uniform)
        share = self.codebook.counts / self.codebook.counts.sum()  # over the last hundred batches, not this one alone
        self.record(**terms, codebook_perplexity=torch.special.entr(share).sum().exp())
