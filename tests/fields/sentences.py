"""A model of sentences that genlab knows nothing of, as a user would write it."""

from __future__ import annotations

import torch
from torch import nn

from genlab.fields.sequences import cut
from genlab.models.base import GenerativeModel, inference


class Unigram(GenerativeModel):
    """Words drawn independently, each sentence `most` or fewer of them, all lengths alike."""

    kinds = ("tokens",)
    ema_modules = ("logits",)

    def __init__(self, size, most):
        super().__init__()
        self.most = most
        self.logits = nn.Linear(1, size, bias=False)
        self.add_player("words", self.logits)

    def log_words(self):
        """log p of each word, [size]."""
        return self.logits.weight[:, 0].log_softmax(0)

    @inference
    def sample(self, n, given=None, rng=None):
        length = 1 + (self.rand(n, rng=rng) * self.most).long()
        words = torch.searchsorted(self.log_words().exp().cumsum(0), self.rand(n, self.most, rng=rng))
        return cut(words.clamp_max(self.logits.out_features - 1), length)

    @inference
    def next_logits(self, x):
        return self.log_words().expand(*x.values.shape, -1)

    def training_step(self, batch, batch_idx):
        x = batch["x"]
        with self.turn("words") as words:
            loss = -(self.log_words()[x.values] * x.mask).sum(dim=1).mean()
            words.minimise(loss)
        self.record(loss=loss)
