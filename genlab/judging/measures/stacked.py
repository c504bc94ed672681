"""Modes of stacked digits: distinct triples of classes, from the grey set's own classifier on each channel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError
from genlab.judging.measure import About, Measure, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from genlab.judging.subject import Subject
    from genlab.metrics.features import Extractor
    from genlab.metrics.scores import Scores


class Stacked(Measure):
    """Modes covered by stacked digits and their KL to uniform.

    The protocol of Srivastava et al. (2017), "VEEGAN", and Lin et al. (2018), "PacGAN": 26,000 samples. References are
    the expected scores of a perfect sampler, and the scores of real stacks under the same classifier.
    """

    name, place, section = "stacked", 31, "modes"
    needs = ("pictures", "samples")
    about: Mapping[str, About] = {
        "modes": About("modes", "higher"),
        "kl_modes": About("KL of the modes' histogram", "lower"),
    }
    monitor = ("modes",)
    most = 26_000

    def __init__(self) -> None:
        self.extractor: Extractor | None = None

    def missing(self, subject: Subject) -> str | None:
        """Needs stacks of a labelled set."""
        return super().missing(subject) or _refusal(subject.data)

    def prepare(self, subject: Subject) -> None:
        """Trains or loads the grey set's classifier.

        Raises:
            UserError: If the data are not stacks of a labelled grey set.
        """
        from genlab.extractors.choice import dataset_classifier

        if why := _refusal(subject.data):
            raise UserError(why)
        grey: Any = subject.data.grey  # type: ignore[attr-defined]
        self.extractor = dataset_classifier(grey, subject.device)
        if self.extractor is None:
            raise UserError(f"{grey.name} has no labels to train a classifier on.")

    def count(self, settings: Settings, available: int, split: str) -> int:
        """Number of generated stacks."""
        return (settings.num_samples or self.most) if split == "test" else settings.validation_samples

    def take(self, subject: Subject) -> Iterable[Scores]:
        """{"modes", "kl_modes"} and, unless brief, {"modes_real", "kl_modes_real"}."""
        from genlab.sharing import by_first

        fake = subject.fake(self.number(subject))
        return [by_first(lambda: self._scores(subject, fake))]

    def _scores(self, subject: Subject, fake: Tensor) -> Scores:
        import torch

        from genlab.metrics.scores import Scores
        from genlab.metrics.stacked import perfect_coverage, tuple_coverage

        if self.extractor is None:
            self.prepare(subject)
        assert self.extractor is not None
        count = self.extractor.num_classes
        scores = tuple_coverage(self.classes(fake), count)
        scores.card |= self.extractor.card()
        if subject.brief:
            return scores
        labels = subject.data.grey.split(subject.split).y  # type: ignore[attr-defined]
        share = torch.bincount(labels[labels >= 0], minlength=count).double()
        floor = perfect_coverage(len(fake), share / share.sum())
        real = subject.real(min(len(fake), subject.available()))
        own = tuple_coverage(self.classes(real), count)
        scores.card |= {"expected_modes": floor["modes"], "expected_kl_modes": floor["kl_modes"], "n_real": len(real)}
        return scores | Scores({f"{name}_real": value for name, value in own.items()})

    def classes(self, images: Tensor) -> Tensor:
        """The class [N, C] of each channel of uint8 images [N, C, H, W]."""
        import torch

        assert self.extractor is not None
        found = [self.extractor(part.flatten(0, 1).unsqueeze(1))[1].argmax(dim=1).cpu() for part in images.split(512)]
        return torch.cat(found).view(images.shape[:2])

    def beside(self, score: str, scores: Mapping[str, float], card: Mapping[str, Any]) -> list[str]:
        """That of a perfect sampler and of real stacks."""
        told = [f"of {card['num_modes']}"] if score == "modes" else []
        if f"expected_{score}" in card:
            told.append(f"perfect {card[f'expected_{score}']:.4g} on average")
        real = scores.get(f"{score}_real")
        return told if real is None else [*told, f"real stacks {real:.4g}"]


def _refusal(data: Any) -> str | None:
    if getattr(data, "grey", None) is not None:
        return None
    return f"metrics=stacked needs data=stacked_digits, got {data.name}. Try metrics=images."
