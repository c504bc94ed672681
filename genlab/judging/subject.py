"""The thing that measures score: a model on one split of its data. Draws and features are made once for all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genlab.batch import Batch, Seq, joined
from genlab.contracts import CAPABILITIES, offers
from genlab.errors import NotNumbers
from genlab.extractors.cache import cached_features
from genlab.extractors.choice import UNTRAINED, tells_classes
from genlab.judging.cards import common_card
from genlab.judging.measure import Settings
from genlab.metrics.features import Extractor, Features, features_of
from genlab.seeding import fixed_choice
from genlab.sharing import is_first, shared, stream
from genlab.telling import telling

if TYPE_CHECKING:
    from genlab.data.module import ArrayData
    from genlab.sampling.base import Sampler

AT_A_TIME = 256  # pictures drawn at a time, each such batch with a random stream of its own
FEWEST = 20


class Subject:
    """A model and one split of its data.

    Attributes:
        settings: The settings of all measures.
        split: "train", "val" or "test".
        brief: Whether references and slow scores are left out, for validation while training.
        pictures: Whether samples are images.
        notes: Caveats for the reader of the scores.
        drawn: The card fields of scores on generated samples.
        device: Where samples are drawn and features extracted.
    """

    def __init__(
        self,
        model: Any,
        data: ArrayData,
        split: str,
        settings: Settings,
        extractor: Callable[[], Extractor | None],
        sampler: Callable[[], Sampler] | None = None,
        sampler_text: str = "prior",
        brief: bool = False,
    ) -> None:
        """Prepares the scoring; nothing is drawn yet.

        Args:
            model: The model, whose capabilities decide which measures apply.
            data: Its data.
            split: The split.
            settings: The settings of all measures.
            extractor: Makes the feature extractor; None if there is none. Called at most once, if a measure needs it.
            sampler: Makes another sampler than the model's own, ready to draw.
            sampler_text: Its name and settings, for the card.
            brief: Whether references and slow scores are left out.
        """
        self.model, self.data, self.split, self.settings, self.brief = model, data, split, settings, brief
        self.pictures: bool = data.spec.images
        self.notes: list[str] = []
        self._make_extractor, self._make_sampler = extractor, sampler
        self.drawn = {"sampler": sampler_text, "given": self.told_text}
        self.device: torch.device = torch.device("cpu") if model is None else model.device
        self._kept: dict[Any, Any] = {}

    # --- What there is --------------------------------------------------------------------------------------------

    def lacks(self, need: str) -> str | None:
        """The reason why the subject does not have something, as a sentence; None if it has.

        Args:
            need: A capability of models; or "samples" (generated ones), "pairs" (of outputs and targets), "pictures" or
                "points" (the kind of samples), "extractor", "logits" (an extractor with classes), "classes" (of these
                data), "train" (training samples beside the split), "labels", "factor" or another column of the data.
        """
        name = type(self.model).__name__
        if need == "samples":
            able = self._make_sampler is not None or offers(self.model, "sample")
            return None if able else f"{name} draws no samples: it has no `sample`."
        if need == "pairs":
            return None if self.told_pictures else self.lacks("reconstruct")
        if need in CAPABILITIES or need == "objective":
            able = offers(self.model, need) if need in CAPABILITIES else hasattr(self.model, need)
            return None if able else f"{name} has no `{need}`."
        return self._lacks_of_data(need)

    def _lacks_of_data(self, need: str) -> str | None:
        kind = self.data.spec.x.kind
        if need == "pictures":
            return None if self.pictures else f"Samples of kind {kind} are no images."
        if need == "points":
            return None if not (self.data.spec.x.pictorial or self.data.spec.x.ragged) else f"A {kind} is no point."
        if need in ("extractor", "logits", "classes"):
            if not self.pictures or self.extractor is None:
                return "There is no network for features."
            if need == "logits" and not self.extractor.num_classes:
                return f"{self.extractor.name} knows no classes."
            if need == "classes" and not tells_classes(self.extractor, self.data.spec.num_classes):
                return f"{self.extractor.name} does not know the classes of {self.data.name}."
            return None
        if need == "train":
            return None if self.split != "train" else "The training images themselves are scored."
        column = {"labels": "y"}.get(need, need)
        return None if column in self.data.spec.fields else f"{self.data.name} has no column {column}."

    @cached_property
    def extractor(self) -> Extractor | None:
        """The feature extractor; None if there is none."""
        return self._make_extractor()

    @property
    def judge_name(self) -> str:
        """The name of the extractor where one was needed; "none" without, the kind of samples that are no pictures."""
        if "extractor" in vars(self) and self.extractor is not None:
            return self.extractor.name
        return "none" if self.pictures else self.data.spec.x.kind

    @property
    def seed(self) -> int:
        """Seed of latents and subsets."""
        return self.settings.seed

    @property
    def told_text(self) -> str:
        """The conditions of scored samples and likelihoods for a card, derived ones with their settings."""
        if self.model is None or not self.model.given:
            return "none"
        derive = self.data.derive
        names = [f"{name} = {derive[name].text}" if name in derive else name for name in self.model.given]
        return f"{', '.join(names)} of rows of the split"

    @property
    def common(self) -> dict[str, Any]:
        """The card fields of all scores."""
        averaged = bool(getattr(self.model, "has_averages", False))
        return common_card(self.data.describe(), self.split, self.seed, averaged)

    def available(self) -> int:
        """Number of real samples."""
        return len(self.data.judged(self.split))

    # --- Real samples ---------------------------------------------------------------------------------------------

    def rows(self, n: int, split: str | None = None) -> Tensor:
        """Positions of n samples of a split, the same in every scoring."""
        return fixed_choice(len(self.data.judged(split or self.split)), n)

    def real(self, n: int) -> Tensor:
        """n real samples: images as uint8 [n, C, H, W], others as the model sees them."""
        return self._once(("real", n), lambda: self._gathered(self.split, n))

    def train(self) -> Tensor:
        """All training samples, in the form of `real`."""
        return self._gathered("train", len(self.data.judged("train")))

    def train_fingerprint(self) -> str:
        """The fingerprint of the training samples."""
        return self.data.judged("train").fingerprint()

    def _gathered(self, split: str, n: int) -> Any:
        rows = self.rows(n, split)
        return self.data.judged(split).gather(rows) if self.pictures else self.data.rows(split, ["x"], rows)["x"]

    def batches(self, n: int, columns: tuple[str, ...] = ()) -> list[Batch]:
        """Rows of the split as the model sees them, with its conditions and further columns, a batch at a time."""

        def make() -> list[Batch]:
            names = [c for c in ("x", *self.model.given, *columns) if c in self.data.spec.fields]
            parts = self.rows(n).split(self.settings.batch_size)
            return [self.data.rows(self.split, names, part) for part in parts]

        return self._once(("batches", n, self.settings.batch_size, columns), make)

    # --- Generated samples ----------------------------------------------------------------------------------------

    def fake(self, n: int) -> Tensor:
        """n generated samples on the CPU, in the form of `real`; one seed gives the same latents for every model.

        Raises:
            NotNumbers: If samples are NaN or infinite.
        """
        return self._once(("fake", n), lambda: self._draw(n))

    def _draw(self, n: int) -> Any:
        from rich.progress import track

        from genlab.sharing import first_then_others

        sampler = None if self._make_sampler is None else first_then_others(self._make_sampler)
        source = self.model if sampler is None else _Drawn(self.model, sampler)
        given = self.given(n)

        def kept(batch: Callable[[], Any]) -> Any:
            x = batch()
            return (self.data.spec.render(x) if self.pictures else x).to("cpu")

        batches = sample_batches(source.sample, n, self.seed, given, AT_A_TIME if self.pictures else n)
        quiet = self.brief or len(batches) < 8 or not is_first()
        bar = track(batches, description="drawing", transient=True, disable=quiet)
        # A sampler that learns while it draws must learn on every process: each draws all, and only scoring is shared.
        grows = sampler is not None and sampler.grows
        return joined([kept(batch) for batch in bar] if grows else list(shared(bar, kept)))

    def given(self, n: int) -> Batch | None:
        """Conditions [n] of generated samples: those of rows of the split; None for a model that is given nothing.

        Raises:
            UserError: If the data have no such rows.
        """
        if not self.model.given:
            return None
        # A stream of its own: with that of the first batch, latents would be correlated with conditions.
        return self.data.given_rows(self.split, self.model.given, n, stream(self.seed, -1)).to(self.model.device)

    def reconstructions(self, n: int) -> list[tuple[Tensor, Tensor]]:
        """Batches of real samples and their reconstructions, as the model sees them, on the CPU."""

        def work(batch: Batch) -> Tensor:
            return telling(self.model, batch).reconstruct(batch.x.to(self.model.device)).to("cpu")

        def make() -> list[tuple[Tensor, Tensor]]:
            batches = self.batches(n)
            return [(b.x, recon) for b, recon in zip(batches, shared(batches, work), strict=True)]

        return self._once(("reconstructions", n, self.settings.batch_size), make)

    def pairs(self, n: int) -> list[tuple[Any, Any, Tensor | None]]:
        """Batches of outputs and their targets, as the model sees them, on the CPU; and which pixels were to be made.

        Of a model that is told pictures, outputs are its samples for rows of the split, targets those of these rows;
        of any other model, reconstructions and originals. The last is [N, 1, H, W] of 0 and 1, None for all.
        """

        def work(piece: tuple[int, Batch]) -> tuple[Tensor, Tensor | None]:
            number, batch = piece
            told = batch.only(self.model.given).to(self.model.device)
            made = self.model.sample(len(batch), given=told, rng=stream(self.seed, number)).cpu()
            fields = self.data.spec.fields
            seen = (fields[name].seen(batch[name]) for name in self.model.given)
            return made, next((1 - each for each in seen if each is not None), None)

        def make() -> list[tuple[Any, Any, Tensor | None]]:
            if not self.told_pictures:
                return [(recon, x, None) for x, recon in self.reconstructions(n)]
            batches = self.batches(n)
            made = shared(enumerate(batches), work)
            return [(x, batch["x"], hidden) for (x, hidden), batch in zip(made, batches, strict=True)]

        return self._once(("pairs", n, self.settings.batch_size), make)

    @property
    def told_pictures(self) -> bool:
        """Whether the model turns pictures into samples, so that each sample has one target."""
        fields = self.data.spec.fields
        able = offers(self.model, "sample") and self._make_sampler is None
        return able and any(fields[name].pixelwise for name in self.model.given if name in fields)

    # --- Features -------------------------------------------------------------------------------------------------

    def real_features(self, n: int) -> Features:
        """Features of `real(n)`, cached on disk."""
        assert self.extractor is not None
        extractor, fingerprint = self.extractor, self.fingerprint()

        def compute() -> Features:
            return features_of(extractor, self.real(n).split(AT_A_TIME))

        return self._once(("features", n), lambda: cached_features(f"{fingerprint}/{n}", extractor.card(), compute))

    def fingerprint(self) -> str:
        """The fingerprint of the real samples."""
        return self.data.judged(self.split).fingerprint()

    def fake_features(self, n: int) -> Features:
        """Features of `fake(n)`."""
        extractor = self.extractor
        assert extractor is not None
        return self._once(("of fakes", n), lambda: features_of(extractor, self.fake(n).split(AT_A_TIME)))

    def note(self, text: str) -> None:
        """Adds a caveat, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


class _Drawn:
    """A model whose samples come from a sampler."""

    def __init__(self, model: Any, sampler: Sampler) -> None:
        self.model, self.sampler = model, sampler

    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        return self.sampler.sample(self.model, n, given=given, rng=rng)


def sample_batches(
    draw: Callable[..., Tensor], n: int, seed: int, given: Batch | None = None, at_a_time: int = AT_A_TIME
) -> list[Callable[[], Tensor]]:
    """Functions that each draw one batch of samples to score, independent of process and order of calls.

    Args:
        draw: Samples [k, ...] from a number k, conditions `given` [k] and a random stream `rng`.
        n: Total number of samples.
        seed: Seed of the latents; one seed gives the same latents for every model.
        given: Conditions [n] of the samples.
        at_a_time: Samples per batch; each batch has its own random stream, so another size draws other latents.

    Raises:
        NotNumbers: Raised by the functions if samples are NaN or infinite.
    """

    def batch(i: int, start: int) -> Callable[[], Tensor]:
        size = min(at_a_time, n - start)
        told = None if given is None else given.rows(slice(start, start + size))
        return lambda: finite(draw(size, given=told, rng=stream(seed, i)))

    return [batch(i, start) for i, start in enumerate(range(0, n, at_a_time))]


def finite(x: Any) -> Any:
    """Returns samples [N, ...], or a `Seq`, unchanged if all are finite; an image of NaN would score as a black one.

    Raises:
        NotNumbers: If some are NaN or infinite.
    """
    values = x.values if isinstance(x, Seq) else x
    bad = int((~values.flatten(1).isfinite().all(dim=1)).sum())
    if bad:
        raise NotNumbers(f"{bad} of {len(x)} samples of a batch are NaN or infinite and cannot be scored.")
    return x


def extractor_notes(extractor: Any, seen: bool) -> list[str]:
    """Caveats about the extractor for the reader of its scores.

    Args:
        extractor: The extractor; None for none.
        seen: Whether the scored images are those that a classifier of the data was trained on.
    """
    if extractor is None:
        return []
    notes = [] if extractor.num_classes else [UNTRAINED]
    if seen and tells_classes(extractor, None):
        notes.append("The classifier was trained on these images. Try split=test, whose images it has not seen.")
    return notes
