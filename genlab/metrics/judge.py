"""What the `metrics` group chooses: judges that score a model's samples, while it trains and at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.metrics.cache import cached_stats
from genlab.metrics.cards import common_card
from genlab.metrics.features import Extractor, FeatureStats, features_of
from genlab.metrics.images import to_uint8
from genlab.metrics.scores import MIN_IMAGES, Scores, fid, inception_score, kid, precision_recall
from genlab.metrics.suite import real_rows
from genlab.metrics.toy import energy_distance, mode_coverage

log = logging.getLogger("genlab")
HIGHER_IS_BETTER = {"is", "precision", "recall", "density", "coverage", "rarest_class", "modes", "hq"}
CLASS_SHARE_SAMPLES = 2000  # the rarest class of ten is then known to about half a percent


class Sampler(Protocol):
    """What is judged: anything that draws samples [n, ...]."""

    device: torch.device

    def sample(self, n: int, y: Tensor | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws n samples."""
        ...


class Data(Protocol):
    """What it is judged against: named splits of real samples."""

    name: str

    @property
    def spec(self) -> Any:
        """Its `DataSpec`."""
        ...

    @property
    def modes(self) -> tuple[Tensor, float] | None:
        """Centres [K, D] and standard deviation of a mixture of Gaussians, None for all other data."""
        ...

    def batches(self, split: str, batch_size: int | None = None, *, limit: int | None = None) -> Any:
        """The samples of "train", "val" or "test" in a fixed order."""
        ...

    def split(self, name: str) -> Any:
        """All of them at once, `x` and `y`."""
        ...

    def describe(self) -> dict[str, Any]:
        """For the protocol card."""
        ...


def dataset_classifier(data: Data, device: torch.device) -> Extractor | None:
    """The classifier trained on the data set itself, from the cache or trained now; None without labels."""
    labels = data.split("train").y
    if labels is None or data.spec.num_classes is None:
        return None
    from genlab.metrics.classifier import ClassifierData, Recipe, load_or_train

    def labelled() -> ClassifierData:
        train, test = data.split("train"), data.split("test")
        rows = [store.gather(torch.arange(len(store))) for store in (train, test)]
        return ClassifierData(rows[0], train.y, rows[1], test.y, data.spec.num_classes)

    key = "-".join(data.describe()["fingerprint"].values())
    recipe = Recipe(flip=data.spec.shape[0] == 3)  # photographs may be mirrored, digits and letters may not
    return load_or_train(data.name, key, labelled, recipe=recipe, device=device)


def real_stats(extractor: Extractor, data: Data, split: str, n: int) -> FeatureStats:
    """The extractor's statistics of n images of a split (`real_rows` says which), from the cache where they are."""
    store = data.split(split)
    rows = real_rows(len(store), n)
    return cached_stats(
        f"{store.fingerprint()}/{len(rows)}",
        extractor.card(),
        lambda: features_of(extractor, (store.gather(part) for part in rows.split(256))),
    )


class Judge:
    """Scores samples against a split. `validate` is cheap and frequent, `final` is what is reported.

    Attributes:
        monitor: The score that chooses the best checkpoint, unless `checkpoint.monitor` names another.
        every_n_steps: Iterations between two validations.
        cards: Protocol of each reported score: under which conditions it was taken.
        seconds: Time spent so far.
    """

    monitor: str | None = None

    def __init__(self, every_n_steps: int, num_samples: int, seed: int) -> None:
        if every_n_steps < 1 or num_samples < 20:
            raise UserError(
                f"metrics.every_n_steps must be at least 1 and metrics.num_samples at least 20, "
                f"got {every_n_steps} and {num_samples}."
            )
        self.every_n_steps, self.num_samples, self.seed = every_n_steps, num_samples, seed
        self.cards: dict[str, Any] = {}
        self.seconds = 0.0

    @staticmethod
    def mode(score: str) -> str:
        """Which values of a score are good, "min" or "max"."""
        return "max" if score.partition("/")[0] in HIGHER_IS_BETTER else "min"

    def prepare(self, data: Data, device: torch.device) -> None:
        """What must be ready before training: a classifier, Inception's weights."""

    def validate(self, model: Sampler, data: Data) -> dict[str, float]:
        """Scores on validation data, named `val/...`."""
        return self._timed(model, data, "val")

    def final(self, model: Sampler, data: Data) -> dict[str, float]:
        """Scores on test data, named `test/...`; fills `cards`."""
        return self._timed(model, data, "test")

    def _timed(self, model: Sampler, data: Data, split: str) -> dict[str, float]:
        if not callable(getattr(model, "sample", None)):
            return {}
        started = time.monotonic()
        scores = self.score(model, data, split)
        self.seconds += time.monotonic() - started
        return {f"{split}/{name}": value for name, value in scores.items()}

    def score(self, model: Sampler, data: Data, split: str) -> dict[str, float]:
        """The scores against one split."""
        raise NotImplementedError

    def lines(self, scores: dict[str, float]) -> list[tuple[str, str]]:
        """Rows for the closing table: what was measured, and the figure with its conditions."""
        return [(name, f"{value:.4g}") for name, value in scores.items()]

    def common(self, model: Sampler, data: Data, split: str) -> dict[str, Any]:
        """What the cards of all scores state."""
        return common_card(data.describe(), split, self.seed, bool(getattr(model, "_ema", None)))

    def draw(self, model: Sampler, n: int, batch_size: int = 256) -> Iterator[Tensor]:
        """The judged samples in batches, always from the same latents."""
        rng = torch.Generator().manual_seed(self.seed)
        for start in range(0, n, batch_size):
            yield model.sample(min(batch_size, n - start), rng=rng)


class ImageJudge(Judge):
    """FID, IS and friends from the features of one extractor, taken once per batch and shared."""

    monitor = "fid"

    def __init__(
        self,
        extractor: str = "classifier",
        inception_weights: str | None = None,
        every_n_steps: int = 500,
        num_samples: int = 10_000,
        scores: Sequence[str] = ("fid", "is"),
        splits: int = 10,
        seed: int = 2020,
    ) -> None:
        """Sets the protocol.

        Args:
            extractor: "classifier", trained on the data set itself, or "inception", the network of the published FID.
            inception_weights: File with Inception's weights, for "inception".
            every_n_steps: Iterations between scores on validation data.
            num_samples: Generated and real images, at most; never more than the split holds.
            scores: Of "fid", "is", "kid" and "pr" (precision, recall, density, coverage).
            splits: Parts of the Inception score.
            seed: Of the latents and of whatever a score draws.

        Raises:
            UserError: If a value is not one of those.
        """
        super().__init__(every_n_steps, num_samples, seed)
        if extractor not in ("classifier", "inception"):
            raise UserError(f"metrics.extractor must be classifier or inception, got {extractor!r}.")
        unknown = sorted(set(scores) - {"fid", "is", "kid", "pr"})
        if unknown:
            raise UserError(f"metrics.scores takes fid, is, kid and pr, got {unknown[0]!r}.")
        self.kind, self.weights, self.wanted, self.splits = extractor, inception_weights, tuple(scores), splits
        self.extractor: Extractor | None = None
        self._real: dict[str, FeatureStats] = {}
        self._small: set[str] = set()  # splits that are too small to be judged on, once each

    def prepare(self, data: Data, device: torch.device) -> None:
        """Trains or loads the extractor; data without labels go without scores, with a warning."""
        if self.kind == "inception":
            from genlab.metrics.inception import load_inception

            self.extractor = load_inception(self.weights).to(device)
            return
        self.extractor = dataset_classifier(data, device)
        if self.extractor is None:
            log.warning(
                "No scores: the classifier that judges needs labels, and %s has none (class sub-folders give them). "
                "With Inception's weights: metrics.extractor=inception metrics.inception_weights=PATH",
                data.name,
            )

    def score(self, model: Sampler, data: Data, split: str) -> dict[str, float]:
        """FID and whatever else is wanted, named with the extractor: `fid/classifier-digits`."""
        if self.extractor is None:
            return {}
        n = min(self.num_samples, len(data.split(split)))
        if n < MIN_IMAGES:
            if split not in self._small:
                self._small.add(split)
                log.warning("No %s scores: they need %d images or more, and there are %d.", split, MIN_IMAGES, n)
            return {}
        if split not in self._real:
            self._real[split] = real_stats(self.extractor, data, split, n)
        real, fake = self._real[split], self._fake(model, n)
        scores = Scores()
        for name in self.wanted:
            scores |= {
                "fid": lambda: fid(real, fake),
                "is": lambda: inception_score(fake, self.splits),
                "kid": lambda: kid(real, fake),
                "pr": lambda: precision_recall(real, fake),
            }[name]()
        if split == "test":
            if "is" in self.wanted:
                own = inception_score(real, self.splits)
                scores |= {"is_real": own["is"], "is_real_std": own["is_std"]}
            if self.kind == "classifier":
                shares = self._fake(model, CLASS_SHARE_SAMPLES).logits.argmax(dim=1)
                counts = torch.bincount(shares, minlength=self.extractor.num_classes)
                scores |= {"rarest_class": (counts.min() / counts.sum()).item()}
            card = {**scores.card, **self.extractor.card()}
            self.cards[self.extractor.name] = {**self.common(model, data, split), **card}
        return scores.named(self.extractor.name)

    def _fake(self, model: Sampler, n: int) -> FeatureStats:
        assert self.extractor is not None
        return features_of(self.extractor, (to_uint8(x) for x in self.draw(model, n)))

    def lines(self, scores: dict[str, float]) -> list[tuple[str, str]]:
        """FID, IS beside that of real images at equal n and splits, and the rarest class, with their conditions."""
        if not scores or self.extractor is None:
            return []
        name = self.extractor.name
        card, values = self.cards[name], {k.split("/")[1]: v for k, v in scores.items()}
        weights = "averaged weights" if card["ema"] else "live weights"
        rows = []
        if "fid" in values:
            sizes = f"{card['n_fake']} generated, {card['n_real']} real test images, {weights}"
            rows.append((f"fid/{name}", f"{values['fid']:.3g}  ({sizes})"))
        if "is" in values:
            share = values["is"] / values["is_real"]
            real = f"real test images {values['is_real']:.3g} at equal n and splits: {share:.0%}"
            rows.append((f"is/{name}", f"{values['is']:.3g} ± {values['is_std']:.2g}  ({real})"))
        if "rarest_class" in values:
            count = self.extractor.num_classes
            rows.append(
                ("classes", f"the rarest of {count} has {values['rarest_class']:.1%} of {CLASS_SHARE_SAMPLES} samples")
            )
        if "test_accuracy" in card:
            rows.append(("judge", f"{name}, right on {card['test_accuracy']:.1%} of the test images"))
        return rows


class PointJudge(Judge):
    """Points: the energy distance to real ones and, where the truth is a mixture, modes and high-quality share."""

    monitor = "energy"

    def __init__(self, every_n_steps: int = 500, num_samples: int = 2500, seed: int = 2020) -> None:
        """Sets the protocol.

        Args:
            every_n_steps: Iterations between scores on validation data.
            num_samples: Generated points, and real ones for the energy distance.
            seed: Of the latents.
        """
        super().__init__(every_n_steps, num_samples, seed)

    def score(self, model: Sampler, data: Data, split: str) -> dict[str, float]:
        """The energy distance, and mode coverage where centres are known."""
        x = torch.cat(list(self.draw(model, self.num_samples, batch_size=self.num_samples)))
        real = torch.cat([b.x for b in data.batches(split, batch_size=self.num_samples, limit=self.num_samples)])
        scores = energy_distance(x, real.to(x.device))
        if data.modes is not None:
            centres, std = data.modes
            scores |= mode_coverage(x, centres, std)
        if split == "test":
            self.cards["points"] = {**self.common(model, data, split), **scores.card}
        return scores

    def lines(self, scores: dict[str, float]) -> list[tuple[str, str]]:
        """The figures beside what a perfect sampler gets."""
        card, values = self.cards.get("points", {}), {k.split("/")[1]: v for k, v in scores.items()}
        rows = []
        if "modes" in values:
            rows.append(("modes", f"{values['modes']:.0f} of {card['num_modes']}"))
            ceiling = f"a perfect sampler {card['hq_ceiling']:.1%}"
            rows.append(("high quality", f"{values['hq']:.1%} of {card['n_fake']} samples ({ceiling})"))
        if "energy" in values:
            rows.append(("energy distance", f"{values['energy']:.3g} to test points"))
        return rows
