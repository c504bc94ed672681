"""The judge of stacked digits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.fields.image import to_uint8
from genlab.judging.judge import Data, Judge, Sampler, dataset_classifier
from genlab.metrics.features import Extractor
from genlab.metrics.scores import Scores
from genlab.metrics.stacked import perfect_coverage, tuple_coverage
from genlab.sharing import by_first


class StackedJudge(Judge):
    """Modes covered by stacked digits and their KL to uniform, from the grey set's classifier on each channel.

    The protocol of Srivastava et al. (2017), "VEEGAN", and Lin et al. (2018), "PacGAN": 26,000 samples. References are
    the expected scores of a perfect sampler, and the scores of real stacks under the same classifier.
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
            num_samples: Generated stacks for the reported scores.
            validation_samples: Generated stacks for validation.
            seed: Seed of the latents.

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
            raise UserError(f"metrics=stacked needs data=stacked_digits, got {data.name}. Try metrics=images.")
        self.extractor = dataset_classifier(grey, device)
        if self.extractor is None:
            raise UserError(f"{grey.name} has no labels to train a classifier on.")

    def classes(self, images: Tensor) -> Tensor:
        """The class [N, C] of each channel of uint8 images [N, C, H, W]."""
        assert self.extractor is not None
        _, logits = self.extractor(images.flatten(0, 1).unsqueeze(1))
        return logits.argmax(dim=1).view(images.shape[:2]).cpu()

    def count(self, data: Data, split: str) -> int:
        """Number of generated stacks."""
        return self.num_samples if split == "test" else self.validation_samples

    def score(self, model: Sampler, data: Data, split: str) -> dict[str, float]:
        """Modes and KL; on the test split also those of real stacks."""
        scores = by_first(lambda: self._scores(model, data, split))
        if split == "test":
            self.cards["stacked"] = {**self.common(model, data, split), **scores.card}
        return scores

    def _scores(self, model: Sampler, data: Data, split: str) -> Scores:
        assert self.extractor is not None
        n, count = self.count(data, split), self.extractor.num_classes
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
        """The scores beside those of a perfect sampler."""
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
