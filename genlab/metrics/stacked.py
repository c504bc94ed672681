"""Modes of stacked digits: which of the 1,000 triples of classes a generator draws, and how evenly."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.metrics.features import Extractor
from genlab.metrics.images import to_uint8
from genlab.metrics.judge import Data, Judge, Sampler, dataset_classifier
from genlab.metrics.scores import Scores
from genlab.metrics.sharing import by_first


def tuple_coverage(classes: Tensor, num_classes: int) -> Scores:
    """Distinct tuples of classes among samples, and KL of their histogram to the uniform one over all tuples.

    Args:
        classes: [N, C], each 0..num_classes - 1.
        num_classes: K.

    Returns:
        {"modes", "kl_modes"}: 1..K^C, and 0..C log K in nats (of the tuples' frequencies, as they are counted).

    Raises:
        ValueError: If there is no sample.
    """
    n, channels = classes.shape
    if n == 0:
        raise ValueError("tuple_coverage needs samples.")
    cells = num_classes**channels
    weights = num_classes ** torch.arange(channels - 1, -1, -1)
    counts = torch.bincount((classes.long().cpu() * weights).sum(dim=1), minlength=cells).double()
    share = counts / n
    kl = math.log(cells) + torch.special.xlogy(share, share).sum().item()
    return Scores({"modes": float((counts > 0).sum()), "kl_modes": max(kl, 0.0)}, {"n_fake": n, "num_modes": cells})


def perfect_coverage(n: int, share: Tensor, channels: int = 3) -> dict[str, float]:
    """What `tuple_coverage` gives on average for n true samples, of independent channels.

    The expected KL is not 0: the classes are not all equally frequent, and n samples fall unevenly into K^C cells
    (about (K^C - 1) / 2n more). Exact: a cell's count is binomial.

    Args:
        n: Samples.
        share: Frequency of each class [K], summing to 1.
        channels: C.

    Returns:
        {"modes", "kl_modes"}.
    """
    p = share.double()
    cell = p
    for _ in range(channels - 1):
        cell = (cell[:, None] * p).flatten()
    empty = (n * torch.log1p(-cell)).exp()
    # E[(c/n) log(c/n)] = p E[log((1 + B)/n)] with B of n - 1 trials: no term for c = 0, and all terms of one sign.
    values, inverse = cell.unique(return_inverse=True)
    b = torch.arange(n, dtype=torch.float64)
    choose = math.lgamma(n) - torch.lgamma(b + 1) - torch.lgamma(n - b)
    log_share = ((1 + b) / n).log()
    terms = [
        q * ((choose + b * q.log() + (n - 1 - b) * torch.log1p(-q)).exp() * log_share).sum() if 0 < q < 1 else 0 * q
        for q in values
    ]
    expected = torch.stack(terms)[inverse].sum()
    return {"modes": (1 - empty).sum().item(), "kl_modes": (channels * math.log(len(p)) + expected).item()}


class StackedJudge(Judge):
    """Stacked digits: modes covered and KL to uniform, by the grey set's classifier on each channel.

    The protocol of Srivastava et al. (2017), "VEEGAN", and Lin et al. (2018), "PacGAN": 26,000 samples. What a perfect
    sampler gets stands beside it: expected, and as the classifier sees real stacks.
    """

    monitor = "modes"

    def __init__(
        self,
        every_n_steps: int = 1000,
        num_samples: int = 26_000,
        validation_samples: int = 2000,
        seed: int = 2020,
    ) -> None:
        """Sets the protocol.

        Args:
            every_n_steps: Iterations between scores on validation data.
            num_samples: Generated stacks that are reported on.
            validation_samples: The same while training.
            seed: Of the latents.

        Raises:
            UserError: If a number is too small.
        """
        super().__init__(every_n_steps, num_samples, seed)
        if validation_samples < 20:
            raise UserError(f"metrics.validation_samples must be at least 20, got {validation_samples}.")
        self.validation_samples = validation_samples
        self.extractor: Extractor | None = None

    def prepare(self, data: Data, device: torch.device) -> None:
        """Trains or loads the grey set's classifier.

        Raises:
            UserError: If the data are not stacks of a labelled grey set.
        """
        super().prepare(data, device)
        grey: Any = getattr(data, "grey", None)
        if grey is None:
            raise UserError(f"metrics=stacked judges data=stacked_digits, and this is {data.name}. Try metrics=images.")
        self.extractor = dataset_classifier(grey, device)
        if self.extractor is None:
            raise UserError(f"{grey.name} has no labels, so that nothing can tell its classes.")

    def classes(self, images: Tensor) -> Tensor:
        """The class [N, C] of each channel of uint8 images [N, C, H, W]."""
        assert self.extractor is not None
        _, logits = self.extractor(images.flatten(0, 1).unsqueeze(1))
        return logits.argmax(dim=1).view(images.shape[:2]).cpu()

    def score(self, model: Sampler, data: Data, split: str) -> dict[str, float]:
        """Modes and KL; for the test split with the perfect sampler's."""
        scores = by_first(lambda: self._scores(model, data, split))
        if split == "test":
            self.cards["stacked"] = {**self.common(model, data, split), **scores.card}
        return scores

    def _scores(self, model: Sampler, data: Data, split: str) -> Scores:
        assert self.extractor is not None
        n, count = self.num_samples if split == "test" else self.validation_samples, self.extractor.num_classes
        classes = torch.cat([self.classes(to_uint8(draw())) for draw in self.draws(model, data, split, n)])
        scores = tuple_coverage(classes, count)
        scores.card |= self.extractor.card()
        if split != "test":
            return scores
        grey = data.grey  # type: ignore[attr-defined]
        labels = grey.split(split).y
        share = torch.bincount(labels[labels >= 0], minlength=count).double()
        floor = perfect_coverage(n, share / share.sum())
        store = data.split(split)
        rows = torch.arange(min(n, len(store)))
        real = tuple_coverage(torch.cat([self.classes(store.gather(part)) for part in rows.split(512)]), count)
        scores.card |= {"expected_modes": floor["modes"], "expected_kl_modes": floor["kl_modes"], "n_real": len(rows)}
        return scores | Scores({f"{name}_real": value for name, value in real.items()})

    def lines(self, scores: dict[str, float]) -> list[tuple[str, str]]:
        """The figures beside what a perfect sampler gets."""
        card, values = self.cards.get("stacked", {}), {k.split("/")[1]: v for k, v in scores.items()}
        if "modes" not in values:
            return []
        ideal = f"a perfect sampler {card['expected_modes']:.1f}"
        real = f"{card['n_real']} real stacks {values['modes_real']:.0f}"
        of = f"{values['modes']:.0f} of {card['num_modes']} in {card['n_fake']} samples ({ideal}; {real})"
        kl = f"{values['kl_modes']:.3g} nats ({card['expected_kl_modes']:.3g}; {values['kl_modes_real']:.3g})"
        return [
            ("modes", of),
            ("KL to uniform", kl),
            ("judge", f"{card['extractor']}, right on {card['test_accuracy']:.1%} of the test images"),
        ]
