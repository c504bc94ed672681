"""Judges score a model's samples during and after training. The config group `metrics` chooses one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from genlab.errors import NotNumbers, UserError
from genlab.fields.image import to_uint8
from genlab.judging.cards import SEEN, common_card, margin
from genlab.metrics.cache import cached_stats
from genlab.metrics.factors import HIGHER, coded, factor_lines, factor_scores
from genlab.metrics.features import Extractor, FeatureStats, features_of
from genlab.metrics.scores import MIN_IMAGES, Scores, fid, inception_score, kid, precision_recall, rarest_class
from genlab.metrics.toy import energy_distance, mode_coverage
from genlab.seeding import fixed_choice
from genlab.sharing import by_first, is_first, stream

if TYPE_CHECKING:
    from genlab.batch import Batch
    from genlab.data.mixture import Mixture

log = logging.getLogger("genlab")
HIGHER_IS_BETTER = {"is", "precision", "recall", "density", "coverage", "rarest_class", "modes", "hq", *HIGHER}
CLASS_SHARE_SAMPLES = 2000  # gives the share of the rarest of ten classes to about half a percent
AT_A_TIME = 256  # images per batch
EXTRACTORS = ("classifier", "inception", "random")
UNTRAINED = (
    "An untrained network is used instead. It detects noise, blur and repeated samples, but hardly missing classes, "
    "and gives no Inception score. For the published network: metrics.extractor=inception. For no scores: metrics=none."
)


class Sampler(Protocol):
    """Anything that draws samples [n, ...]."""

    device: torch.device

    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws n samples."""
        ...


class Pictures(Protocol):
    """Named splits of images, with or without labels, for an extractor."""

    name: str

    @property
    def spec(self) -> Any:
        """Its `DataSpec`."""
        ...

    @property
    def mirrors(self) -> bool:
        """Whether a mirrored image has the same class."""
        ...

    def split(self, name: str) -> Any:
        """The whole of "train", "val" or "test", with `x` and `y`."""
        ...

    def judged(self, name: str) -> Any:
        """The split for scores: pixels that training redraws in each batch (binarisation) are drawn once."""
        ...


class Data(Pictures, Protocol):
    """The reference: named splits of real samples."""

    @property
    def modes(self) -> Mixture | None:
        """The Gaussian mixture that the data are drawn from; None for other data."""
        ...

    def batches(self, split: str, batch_size: int | None = None, *, limit: int | None = None) -> Any:
        """The samples of "train", "val" or "test" in a fixed order."""
        ...

    def describe(self) -> dict[str, Any]:
        """Fields for the protocol card."""
        ...


def dataset_classifier(data: Pictures, device: torch.device) -> Extractor | None:
    """The classifier of the data set, loaded from the cache or trained now; None without labels."""
    labels = data.split("train").y
    if labels is None or data.spec.num_classes is None:
        return None
    from genlab.metrics.classifier import ClassifierData, Recipe, load_or_train

    def labelled() -> ClassifierData:
        train, test = data.judged("train"), data.judged("test")
        rows = [store.gather(torch.arange(len(store))) for store in (train, test)]
        return ClassifierData(rows[0], train.y, rows[1], test.y, data.spec.num_classes, data.spec.class_names)

    key = "-".join(data.judged(split).fingerprint() for split in ("train", "val", "test"))
    return load_or_train(data.name, key, labelled, recipe=Recipe(flip=data.mirrors), device=device)


def network_for(
    extractor: str, data: Pictures, device: torch.device, weights: str | None = None, precision: str = "float32"
) -> Extractor:
    """The feature extractor for scores on these data.

    Args:
        extractor: One of `EXTRACTORS`. "classifier" falls back to "random" if the data have no labels.
        data: Images to score; a classifier is trained on them.
        device: Device of the extractor.
        weights: File with Inception's weights, for "inception".
        precision: Precision of Inception.

    Raises:
        UserError: If Inception's weights are missing, or the images are too small.
    """
    if extractor == "inception":
        from genlab.metrics.inception import load_inception

        return load_inception(weights, precision=precision).to(device)
    found = dataset_classifier(data, device) if extractor == "classifier" else None
    if found is None:
        from genlab.metrics.classifier import RandomExtractor

        if extractor == "classifier" and is_first():
            log.warning("%s has no labels for a classifier (class sub-folders give them). %s", data.name, UNTRAINED)
        return RandomExtractor(data.spec.shape).to(device)
    return found


def network_of_run(metrics: Mapping[str, Any], data: Pictures, device: torch.device) -> Extractor:
    """The extractor that scored a run; the classifier if Inception's weights are no longer found.

    Args:
        metrics: The run's `metrics` config.
        data: The run's data.
        device: Device of the extractor.
    """
    extractor = metrics.get("extractor") or "classifier"
    try:
        return network_for(extractor, data, device, metrics.get("inception_weights"))
    except UserError:
        if extractor != "inception":
            raise
        return network_for("classifier", data, device)


def check_precision(extractor: str, precision: str) -> None:
    """Refuses a precision that the extractor would silently ignore.

    Raises:
        UserError: If the precision is not float32 and the extractor is not Inception.
    """
    if extractor != "inception" and precision != "float32":
        raise UserError(f"metrics.precision={precision} needs metrics.extractor=inception: all others work in float32.")


def real_stats(extractor: Extractor, data: Data, split: str, n: int) -> FeatureStats:
    """The extractor's statistics of n images of a split (chosen by `fixed_choice`), cached."""
    store = data.judged(split)
    rows = fixed_choice(len(store), n)
    return cached_stats(
        f"{store.fingerprint()}/{len(rows)}",
        extractor.card(),
        lambda: features_of(extractor, (store.gather(part) for part in rows.split(256))),
    )


def sample_batches(
    draw: Callable[[int, Batch | None, torch.Generator], Tensor],
    n: int,
    seed: int,
    given: Batch | None = None,
    at_a_time: int = AT_A_TIME,
) -> list[Callable[[], Tensor]]:
    """Functions that each draw one batch of samples to score, independent of process and order of calls.

    Args:
        draw: Samples [k, ...] from a number k, conditions [k] and a random stream.
        n: Total number of samples.
        seed: Seed of the latents; one seed gives the same latents for every model.
        given: Conditions [n] of the samples.
        at_a_time: Samples per batch; each batch has its own random stream, so another size draws other latents.

    Raises:
        NotNumbers: Raised by the functions if samples are NaN or infinite.
    """

    def batch(i: int, start: int) -> Callable[[], Tensor]:
        size = min(at_a_time, n - start)
        return lambda: finite(draw(size, given and given.rows(slice(start, start + size)), stream(seed, i)))

    return [batch(i, start) for i, start in enumerate(range(0, n, at_a_time))]


def finite(x: Tensor) -> Tensor:
    """Returns samples [N, ...] unchanged if all are finite; an image of NaN would score as a black one.

    Raises:
        NotNumbers: If some are NaN or infinite.
    """
    bad = int((~x.flatten(1).isfinite().all(dim=1)).sum())
    if bad:
        raise NotNumbers(f"{bad} of {len(x)} samples of a batch are NaN or infinite and cannot be scored.")
    return x


def wanted(model: Any, data: Any, split: str, n: int, seed: int) -> Batch | None:
    """Conditions [n] for a model that is given columns: those of rows of the split; None for other models.

    Args:
        model: Its `given` names the columns.
        data: The data set.
        split: The split.
        n: Number of rows, drawn with replacement.
        seed: Seed of the draw.

    Raises:
        UserError: If the data have no such rows.
    """
    if not model.given:
        return None
    # A stream of its own: with that of the first batch, latents would be correlated with conditions.
    return data.given_rows(split, model.given, n, stream(seed, -1)).to(model.device)


def given_text(model: Any) -> str:
    """The conditions of scored samples, for a card."""
    return f"{', '.join(model.given)} of rows of the split" if model.given else "none"


class Judge:
    """Scores samples against a split. `validate` is cheap and frequent; `final` gives the reported scores.

    Every process of a group must call them: they share the work, and each gets the scores of a single process.

    Attributes:
        monitor: Score that chooses the best checkpoint, unless `checkpoint.monitor` names another. Of several names,
            the first that the model has is used.
        every_n_steps: Iterations between two validations.
        cards: Protocol cards of the reported scores.
        seconds: Time spent on scores so far.
    """

    monitor: str | tuple[str, ...] | None = None

    def __init__(self, every_n_steps: int, num_samples: int, seed: int) -> None:
        if every_n_steps < 1 or num_samples < 20:
            raise UserError(
                f"metrics.every_n_steps must be at least 1 and metrics.num_samples at least 20, "
                f"got {every_n_steps} and {num_samples}."
            )
        self.every_n_steps, self.num_samples, self.seed = every_n_steps, num_samples, seed
        self.cards: dict[str, Any] = {}
        self.seconds = 0.0
        self._prepared = False

    @staticmethod
    def mode(score: str) -> str:
        """The better direction of a score, "min" or "max"."""
        return "max" if score.partition("/")[0] in HIGHER_IS_BETTER or score.startswith(HIGHER) else "min"

    def prepare(self, data: Data, device: torch.device) -> None:
        """Prepares the scoring before training: a classifier, Inception's weights.

        The first process calls it before the others start; these call it at their first scores and use the cache.
        """
        self._prepared = True

    def validate(self, model: Sampler, data: Data) -> dict[str, float]:
        """Scores on validation data, named `val/...`."""
        return self._timed(model, data, "val")

    def final(self, model: Sampler, data: Data) -> dict[str, float]:
        """Scores on test data, named `test/...`; fills `cards`."""
        return self._timed(model, data, "test")

    def rescore(self, model: Sampler, data: Data) -> dict[str, float]:
        """Scores of other weights on test data, to compare with `final`, whose `cards` stay."""
        cards, self.cards = self.cards, {}
        try:
            return self.final(model, data)
        finally:
            self.cards = cards

    def count(self, data: Data, split: str) -> int:
        """Number of samples that scores on a split are of."""
        return min(self.num_samples, len(data.split(split)))

    def _timed(self, model: Sampler, data: Data, split: str) -> dict[str, float]:
        if not callable(getattr(model, "sample", None)):
            return {}
        started = time.monotonic()
        if not self._prepared:
            self.prepare(data, model.device)
        try:
            scores = {**self.score(model, data, split), **self.factors(model, data, split)}
        except NotNumbers as error:
            if is_first():
                log.warning("No %s scores: %s", split, error)
            scores = {}
        self.seconds += time.monotonic() - started
        return {f"{split}/{name}": value for name, value in scores.items()}

    def score(self, model: Sampler, data: Data, split: str) -> dict[str, float]:
        """The scores against one split."""
        raise NotImplementedError

    def factors(self, model: Any, data: Data, split: str) -> Scores:
        """Correlations of single latents with the data's known factors; empty without latents or factors."""
        names = getattr(data.spec, "factor_names", None)
        if not names or not callable(getattr(model, "encode", None)):
            return Scores()
        codes, factor = coded(model, data.batches(split, batch_size=AT_A_TIME, limit=self.num_samples))
        scores = factor_scores(codes, factor, names, getattr(model, "factor_units", None))
        if split == "test":
            self.cards["factors"] = {**self.common(model, data, split), **scores.card}
        return scores

    def lines(self, scores: dict[str, float]) -> list[tuple[str, str]]:
        """Rows of the final table: the name of a score, and its value with its conditions."""
        return [(name, f"{value:.4g}") for name, value in scores.items()]

    def common(self, model: Sampler, data: Data, split: str) -> dict[str, Any]:
        """The card fields shared by all scores."""
        card = common_card(data.describe(), split, self.seed, bool(getattr(model, "has_averages", False)))
        return {**card, "given": given_text(model)}

    def draws(
        self, model: Sampler, data: Data, split: str, n: int, at_a_time: int = AT_A_TIME
    ) -> list[Callable[[], Tensor]]:
        """Functions that draw the samples to score, always from the same latents; see `sample_batches`."""
        given = wanted(model, data, split, n, self.seed)
        return sample_batches(
            lambda size, given, rng: model.sample(size, given=given, rng=rng), n, self.seed, given, at_a_time
        )


class ImageJudge(Judge):
    """FID, IS, KID, precision and recall from one extractor, whose features of a batch are computed once for all."""

    monitor = "fid"

    def __init__(
        self,
        extractor: str = "classifier",
        inception_weights: str | None = None,
        precision: str = "float32",
        every_n_steps: int = 500,
        num_samples: int = 10_000,
        scores: Sequence[str] = ("fid", "is"),
        splits: int = 10,
        seed: int = 2020,
    ) -> None:
        """Sets the protocol.

        Args:
            extractor: "classifier", trained on the data set itself; "inception", the network of the published FID; or
                "random", an untrained network, which also replaces "classifier" if there are no labels.
            inception_weights: File with Inception's weights, for "inception".
            precision: Precision of Inception: "float32", or "bfloat16" for monitoring (faster, gives another FID).
            every_n_steps: Iterations between scores on validation data.
            num_samples: Maximum number of generated and of real images, limited by the size of the split.
            scores: Any of "fid", "is", "kid" and "pr" (precision, recall, density, coverage).
            splits: Splits of the Inception score.
            seed: Seed of the latents.

        Raises:
            UserError: If a value is not allowed.
        """
        super().__init__(every_n_steps, num_samples, seed)
        if extractor not in EXTRACTORS:
            raise UserError(f"metrics.extractor must be one of {', '.join(EXTRACTORS)}, got {extractor!r}.")
        unknown = sorted(set(scores) - {"fid", "is", "kid", "pr"})
        if unknown:
            raise UserError(f"metrics.scores takes fid, is, kid and pr, got {unknown[0]!r}.")
        check_precision(extractor, precision)
        self.chosen, self.weights, self.wanted, self.splits = extractor, inception_weights, tuple(scores), splits
        self.precision = precision
        self.extractor: Extractor | None = None
        self._real: dict[str, FeatureStats] = {}
        self._small: set[str] = set()  # splits that were reported as too small

    def prepare(self, data: Data, device: torch.device) -> None:
        """Trains or loads the extractor."""
        super().prepare(data, device)
        self.extractor = network_for(self.chosen, data, device, self.weights, self.precision)

    def score(self, model: Sampler, data: Data, split: str) -> dict[str, float]:
        """The wanted scores, named with the extractor: `fid/classifier-digits`."""
        assert self.extractor is not None
        n = min(self.num_samples, len(data.split(split)))
        if n < MIN_IMAGES:
            if split not in self._small and is_first():
                log.warning("No %s scores: they need at least %d images, got %d.", split, MIN_IMAGES, n)
            self._small.add(split)
            return {}
        if split not in self._real:
            self._real[split] = real_stats(self.extractor, data, split, n)
        fake = self._fake(model, data, split, n)
        reported = split == "test"
        classes = reported and self.chosen == "classifier" and self.extractor.num_classes > 0
        many = self._fake(model, data, split, CLASS_SHARE_SAMPLES) if classes else None
        scores = by_first(lambda: self._scores(self._real[split], fake, many, reported))
        if reported:
            self.cards[self.extractor.name] = {**self.common(model, data, split), **scores.card}
        return scores.named(self.extractor.name)

    def _fake(self, model: Sampler, data: Data, split: str, n: int) -> FeatureStats:
        assert self.extractor is not None

        def pictures(draw: Callable[[], Tensor]) -> Callable[[], Tensor]:
            return lambda: to_uint8(draw())

        return features_of(self.extractor, [pictures(draw) for draw in self.draws(model, data, split, n)])

    def _scores(self, real: FeatureStats, fake: FeatureStats, many: FeatureStats | None, reported: bool) -> Scores:
        """The wanted scores; on the test split also their reference values. `many`: statistics of 2,000 samples."""
        scores = Scores()
        tells = fake.logits.shape[1] > 0
        for name in self.wanted:
            if name == "is" and not tells:
                continue
            scores |= {
                "fid": lambda: fid(real, fake),
                "is": lambda: inception_score(fake, self.splits),
                "kid": lambda: kid(real, fake),
                "pr": lambda: precision_recall(real, fake),
            }[name]()
        if reported and "is" in self.wanted and tells:
            own = inception_score(real, self.splits)
            scores |= {"is_real": own["is"], "is_real_std": own["is_std"]}
        if many is not None:
            scores |= Scores({"rarest_class": rarest_class(real, many)}, {"rarest_n_fake": many.n})
        scores.card = {**scores.card, **fake.card}
        return scores

    def lines(self, scores: dict[str, float]) -> list[tuple[str, str]]:
        """FID, IS with that of real images at equal n and splits, and share of the rarest class, with conditions."""
        if not scores or self.extractor is None:
            return []
        name = self.extractor.name
        card, values = self.cards[name], {k.split("/")[1]: v for k, v in scores.items()}
        weights = "averaged weights" if card["ema"] else "live weights"
        rows = []
        if "fid" in values:
            sizes = f"{card['n_fake']} generated, {card['n_real']} real test images, {weights}"
            rows.append((f"fid/{name}", f"{values['fid']:.3g}  ({sizes})"))
        if self.extractor.num_classes == 0:
            rows.append(("judge", f"{name}, untrained: it hardly detects missing classes"))
        if "is" in values:
            ratio = values["is"] / values["is_real"]
            real = f"real test images {values['is_real']:.3g} at equal n and splits: {ratio:.0%}"
            real += f", {SEEN}" if ratio > 1 and self.chosen == "classifier" else ""
            rows.append((f"is/{name}", f"{values['is']:.3g} ± {margin(values['is'], values['is_std'])}  ({real})"))
        if "rarest_class" in values:
            share = f"{values['rarest_class']:.1%} of {CLASS_SHARE_SAMPLES} samples"
            rows.append(("classes", f"the rarest of {self.extractor.num_classes} has {share}"))
        if "test_accuracy" in card:
            rows.append(("judge", f"{name}, right on {card['test_accuracy']:.1%} of the test images"))
        return rows + factor_lines(values)


class PointJudge(Judge):
    """The energy distance of points to real points; of mixtures also modes and high-quality share."""

    monitor = "energy"

    def __init__(self, every_n_steps: int = 500, num_samples: int = 2500, seed: int = 2020) -> None:
        """Sets the protocol.

        Args:
            every_n_steps: Iterations between scores on validation data.
            num_samples: Number of generated points, and of real points for the energy distance.
            seed: Seed of the latents.
        """
        super().__init__(every_n_steps, num_samples, seed)

    def score(self, model: Sampler, data: Data, split: str) -> dict[str, float]:
        """The energy distance, and mode coverage if the centres are known."""
        scores = by_first(lambda: self._scores(model, data, split))  # too fast to be worth sharing
        if split == "test":
            self.cards["points"] = {**self.common(model, data, split), **scores.card}
        return scores

    def _scores(self, model: Sampler, data: Data, split: str) -> Scores:
        (draw,) = self.draws(model, data, split, self.num_samples, at_a_time=self.num_samples)
        x = draw()
        real = torch.cat([b.x for b in data.batches(split, batch_size=self.num_samples, limit=self.num_samples)])
        scores = energy_distance(x, real.to(x.device))
        if data.modes is not None:
            scores |= mode_coverage(x, *data.modes)
        return scores

    def lines(self, scores: dict[str, float]) -> list[tuple[str, str]]:
        """The scores with those of a perfect sampler."""
        card, values = self.cards.get("points", {}), {k.split("/")[1]: v for k, v in scores.items()}
        rows = []
        if "modes" in values:
            rows.append(("modes", f"{values['modes']:.0f} of {card['num_modes']}"))
            ceiling = f"a perfect sampler {card['hq_ceiling']:.1%}"
            rows.append(("high quality", f"{values['hq']:.1%} of {card['n_fake']} samples ({ceiling})"))
        if "energy" in values:
            rows.append(("energy distance", f"{values['energy']:.3g} to test points"))
        return rows
