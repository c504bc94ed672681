"""The VQ-VAE-2: vector quantisation on two levels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.likelihoods import Likelihood
from genlab.models.base import GenerativeModel, inference
from genlab.networks.codebook import Codebook, perplexity, rows


class VQVAE2(GenerativeModel):
    """VQ-VAE-2 with two levels. Razavi, van den Oord & Vinyals (2019), arXiv:1906.00446, section 3.1, Algorithm 1.

    The top codes are quantised from the bottom encoder's features, the bottom codes from these features and the decoded
    top codes, so that the top level holds global information. Encoders and decoders minimise -log p(x | both codes) +
    beta (|z_top - sg[q_top]|^2 + |z_bottom - sg[q_bottom]|^2), all summed over an image; beta is `commitment_weight`.
    The codes of both levels are moving averages of their encodings, over all processes.

    Priors are two further stages: a `PixelCNN` on `tokens`, the top codes of this model, then a `ConditionalPixelCNN`
    on the `PixelCNN`. For the former this is a model of top codes alone, with the mean bottom code at every position.
    """

    def __init__(
        self,
        encoder: nn.Module,
        top_encoder: nn.Module,
        top_decoder: nn.Module,
        bottom_head: nn.Module,
        decoder: nn.Module,
        top_codebook: Codebook,
        bottom_codebook: Codebook,
        likelihood: Likelihood,
        commitment_weight: float = 0.25,
    ) -> None:
        """Joins the parts.

        Args:
            encoder: Maps samples [N, C, H, W] to features [N, F, h, w] at the bottom level.
            top_encoder: Maps the features to encodings [N, D_top, h_top, w_top].
            top_decoder: Maps top codes to features [N, F, h, w].
            bottom_head: Maps both features to encodings [N, D_bottom, h, w].
            decoder: Maps top and bottom codes to raw outputs, the likelihood's input.

        Raises:
            UserError: If commitment_weight is negative.
        """
        super().__init__()
        if commitment_weight < 0:
            raise UserError(f"model.commitment_weight must be at least 0, got {commitment_weight}.")
        self.encoder, self.top_encoder, self.top_decoder = encoder, top_encoder, top_decoder
        self.bottom_head, self.decoder = bottom_head, decoder
        self.top_codebook, self.bottom_codebook = top_codebook, bottom_codebook
        self.likelihood, self.commitment_weight = likelihood, commitment_weight
        learned = [encoder, top_encoder, top_decoder, bottom_head, decoder, likelihood]
        self.add_player("autoencoder", learned, "optimizer")

    @property
    def num_codes(self) -> int:
        """Codebook size of the top level: the number of classes for a prior over `tokens`."""
        return len(self.top_codebook.vectors)

    @property
    def num_bottom_codes(self) -> int:
        """Codebook size of the bottom level."""
        return len(self.bottom_codebook.vectors)

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Sets the codes of both levels to random encodings of the first batches, the top level first."""
        seen: list[Tensor] = []
        found = [0, 0]
        while found[0] < self.num_codes or found[1] < self.num_bottom_codes:
            seen.append(self.encoder(next(batches).x))
            found[0] += len(rows(self.top_encoder(seen[-1])))
            found[1] += seen[-1][:, 0].numel()
        tops = [self.top_encoder(features) for features in seen]
        self._start(self.top_codebook, torch.cat([rows(z) for z in tops]))
        quantised = [self.top_codebook.quantise(z)[0] for z in tops]
        bottoms = [self.bottom_head(f, self.top_decoder(q)) for f, q in zip(seen, quantised, strict=True)]
        self._start(self.bottom_codebook, torch.cat([rows(z) for z in bottoms]))

    def _start(self, codebook: Codebook, encodings: Tensor) -> None:
        codebook.start(encodings, torch.randperm(len(encodings), generator=self.rng, device=self.rng.device))

    # ------------------------------------------------------------------------------------------------------------ codes

    @inference
    def both_tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the codes of samples: top int64 [N, h_top, w_top], bottom [N, h, w]."""
        features = self.encoder(x)
        q_top, top = self.top_codebook.quantise(self.top_encoder(features))
        return top, self.bottom_codebook.quantise(self.bottom_head(features, self.top_decoder(q_top)))[1]

    @inference
    def tokens(self, x: Tensor) -> Tensor:
        """Indices of the top codes of samples, int64 [N, h_top, w_top]."""
        return self.top_codebook.quantise(self.top_encoder(self.encoder(x)))[1]

    @inference
    def detokenise(self, top: Tensor, bottom: Tensor | None = None) -> Tensor:
        """E[x | codes] of indices of both levels; without bottom indices, with the mean bottom code everywhere."""
        return self.likelihood.mean(self.raw(top, bottom))

    @inference
    def log_likelihood(self, x: Tensor, top: Tensor, bottom: Tensor | None = None) -> Tensor:
        """log p(x | codes), [N] nats; see `detokenise`."""
        return self.likelihood.log_prob(x, self.raw(top, bottom))

    def raw(self, top: Tensor, bottom: Tensor | None = None) -> Tensor:
        """The decoder's output for indices [N, h_top, w_top] and [N, h, w]."""
        q_top = self.top_codebook.as_map(top)
        if bottom is not None:
            return self.decoder(q_top, self.bottom_codebook.as_map(bottom))
        sides = self.top_decoder(q_top).shape[2:]
        mean = self.bottom_codebook.sums.sum(dim=0) / self.bottom_codebook.counts.sum()
        return self.decoder(q_top, mean[:, None, None].expand(len(top), -1, *sides))

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | codes] of each sample's codes of both levels."""
        return self.detokenise(*self.both_tokens(x))

    # --------------------------------------------------------------------------------------------------------- training

    def terms(self, x: Tensor) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
        """The objective's terms (means over the batch), and by level encodings [M, D] and indices [N, h, w]."""
        features = self.encoder(x)
        z_top = self.top_encoder(features)
        q_top, top = self.top_codebook.quantise(z_top)
        through_top = z_top + (q_top - z_top).detach()  # straight-through
        z_bottom = self.bottom_head(features, self.top_decoder(through_top))
        q_bottom, bottom = self.bottom_codebook.quantise(z_bottom)
        raw = self.decoder(through_top, z_bottom + (q_bottom - z_bottom).detach())
        recon = -self.likelihood.log_prob(x, raw).mean()
        commitment = _squares(z_top - q_top) + _squares(z_bottom - q_bottom)
        found = {
            "loss": recon + self.commitment_weight * commitment,
            "recon": recon,
            "commitment": commitment,
            "squared_error": _squares(self.likelihood.mean(raw) - x),
            "top_perplexity": perplexity(top, self.num_codes),
            "bottom_perplexity": perplexity(bottom, self.num_bottom_codes),
        }
        return found, {"top": (rows(z_top), top), "bottom": (rows(z_bottom), bottom)}

    def objective(self, x: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """The minimised `loss`, its terms, and the perplexities of the codes in the batch."""
        return self.terms(x)[0]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Section 3.1: one update of all networks, then one of each level's moving averages."""
        with self.turn("autoencoder") as autoencoder:
            terms, levels = self.terms(batch.x)
            autoencoder.minimise(terms["loss"])
        self.record(**terms)
        for name, codebook in (("top", self.top_codebook), ("bottom", self.bottom_codebook)):
            encodings, indices = levels[name]
            uniform = self.gathered(self.rand(len(batch.x), indices[0].numel())).flatten()
            codebook.update(self.gathered(encodings.detach()), self.gathered(indices).flatten(), uniform)
            share = codebook.counts / codebook.counts.sum()  # over the last hundred batches, not this one alone
            self.record(**{f"{name}_codebook_perplexity": torch.special.entr(share).sum().exp()})


def _squares(difference: Tensor) -> Tensor:
    """Sum of squares over a sample, mean over the batch."""
    return difference.square().flatten(1).sum(dim=1).mean()
