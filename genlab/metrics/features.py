"""Statistics for all scores from one pass over the images: running moments, kept features and logits.

Features are extracted once per batch and shared by every score (FID, KID, IS, precision and recall). Moments are
float64, updated batch by batch without ever holding an [N, N] matrix; processes of a group share the batches.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from genlab.floats import in_float64, without_tf32
from genlab.sharing import place, shared

KEEP = 50_000  # rows kept for KID, IS, precision and recall: 410 MB of Inception features, 200 MB of logits


class Extractor(Protocol):
    """A frozen network of image features: an nn.Module in eval mode, without gradients, unaffected by autocast.

    Attributes:
        name: Part of the scores' names: "inception", "classifier-digits".
        num_features: F.
        num_classes: K.
    """

    name: str
    num_features: int
    num_classes: int

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 features [N, F] and logits [N, K] of uint8 images [N, C, H, W]."""
        ...

    def card(self) -> dict[str, Any]:
        """Plain values that identify the extractor: name, checksum of the weights, resize, accuracy."""
        ...


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """True float32 within the block: no autocast, and `without_tf32`."""
    with without_tf32(), torch.autocast(device.type, enabled=False):
        yield


@dataclass
class FeatureStats:
    """Statistics of one set of images. Tensors are on the CPU.

    Attributes:
        n: Number of images.
        mean: Mean feature, float64 [F].
        scatter: Sum of (f - mean)(f - mean)^T, float64 [F, F].
        features: Kept features, float32 [M, F]: all of them (M = n) up to `keep`, else a uniform sample.
        logits: Logits of the kept rows, float32 [M, K].
        keys: Random key of each kept row, float64 [M]; rows with the `keep` smallest keys are kept, so that samples of
            parts merge into a sample of the whole.
        keep: Upper bound on M.
        card: The extractor's card.
    """

    n: int
    mean: Tensor
    scatter: Tensor
    features: Tensor
    logits: Tensor
    keys: Tensor
    keep: int = KEEP
    card: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def empty(
        cls, num_features: int, num_classes: int = 0, keep: int = KEEP, card: dict[str, Any] | None = None
    ) -> "FeatureStats":
        """Statistics of no image, to merge others into."""
        moments = torch.zeros(num_features, dtype=torch.float64), torch.zeros(num_features, num_features).double()
        rows = torch.zeros(0, num_features), torch.zeros(0, num_classes), torch.zeros(0, dtype=torch.float64)
        return cls(0, *moments, *rows, keep, dict(card or {}))

    @classmethod
    def of(
        cls,
        features: Tensor,
        logits: Tensor | None = None,
        *,
        keep: int = KEEP,
        card: dict[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> "FeatureStats":
        """Statistics of given features [N, F] (and logits [N, K]).

        Raises:
            ValueError: If a feature is not finite, or the numbers of rows differ.
        """
        generator = generator or torch.Generator().manual_seed(0)
        logits = features.new_zeros(len(features), 0) if logits is None else logits
        if features.ndim != 2 or len(features) != len(logits):
            raise ValueError(f"Features must be [N, F] and logits [N, K], got {features.shape} and {logits.shape}.")
        features = features.detach()
        exact = in_float64(features)
        mean = exact.mean(dim=0) if len(exact) else exact.new_zeros(features.shape[1])
        if not mean.isfinite().all():
            raise ValueError("The extractor returned features that are not finite.")
        centred = exact - mean
        stats = cls(
            n=len(exact),
            mean=mean.cpu(),
            scatter=(centred.T @ centred).cpu(),
            features=features.cpu().float(),
            logits=logits.detach().cpu().float(),
            keys=torch.rand(len(exact), generator=generator, dtype=torch.float64),
            keep=keep,
            card=dict(card or {}),
        )
        return stats._trimmed()

    @property
    def num_features(self) -> int:
        """F."""
        return len(self.mean)

    @property
    def complete(self) -> bool:
        """Whether the features of all images were kept."""
        return len(self.features) == self.n

    @property
    def cov(self) -> Tensor:
        """Covariance with n - 1 in the denominator, float64 [F, F]."""
        return self.scatter / (self.n - 1)

    def merge(self, *others: "FeatureStats") -> "FeatureStats":
        """Statistics of the union, in this order (Chan et al., 1979); the parts do not change."""
        parts = [part for part in (self, *others) if part.n] or [self]
        n = sum(part.n for part in parts)
        mean = sum((part.mean * (part.n / max(n, 1)) for part in parts), torch.zeros_like(self.mean))
        scatter = torch.zeros_like(self.scatter)
        for part in parts:
            offset = part.mean - mean
            scatter += part.scatter
            scatter.addr_(offset, offset, alpha=part.n)
        merged = FeatureStats(
            n=n,
            mean=mean,
            scatter=scatter,
            features=torch.cat([part.features for part in parts]),
            logits=torch.cat([part.logits for part in parts]),
            keys=torch.cat([part.keys for part in parts]),
            keep=self.keep,
            card=self.card,
        )
        return merged._trimmed()

    def _trimmed(self) -> "FeatureStats":
        self.features, self.logits, self.keys = _smallest([(self.features, self.logits, self.keys)], self.keep)
        return self


def features_of(
    extractor: Extractor,
    batches: Iterable[Tensor | Callable[[], Tensor]],
    *,
    keep: int = KEEP,
    seed: int = 0,
) -> FeatureStats:
    """Runs the extractor once over uint8 batches [N, C, H, W] and returns their statistics.

    The processes of a group share the batches; each returns the statistics of all batches, equal bit for bit.

    Args:
        extractor: Network of features and logits.
        batches: Images, or functions that make them; moved to the extractor's device one batch at a time.
        keep: Most rows to keep; of more, a uniform sample drawn from `seed` (moments still use every image).
        seed: Seed of that sample only.
    """
    generator = torch.Generator().manual_seed(seed)
    device = module_device(extractor)
    alone = place()[1] == 1
    moments = FeatureStats.empty(extractor.num_features, extractor.num_classes, 0, extractor.card())
    rows = [(moments.features, moments.logits, moments.keys)]  # joined at the end: each join copies all rows
    pending: list[tuple[Tensor, Tensor]] = []

    def look(images: Tensor | Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        features, logits = extractor((images if isinstance(images, Tensor) else images()).to(device))
        return (features, logits) if alone else (features.cpu(), logits.cpu())

    def flush() -> FeatureStats:
        features, logits = (torch.cat(column).to(device) for column in zip(*pending, strict=True))
        pending.clear()
        part = FeatureStats.of(features, logits, keep=keep, generator=generator)
        rows.append((part.features, part.logits, part.keys))
        if sum(len(keys) for *_, keys in rows) > 2 * keep:
            rows[:] = [_smallest(rows, keep)]
        return moments.merge(part)

    for answer in shared(batches, look):
        pending.append(answer)
        if sum(len(features) for features, _ in pending) >= 1024:  # an [F, F] update per small batch is costly
            moments = flush()
    if pending:
        moments = flush()
    kept = _smallest(rows, keep)
    return FeatureStats(moments.n, moments.mean, moments.scatter, *kept, keep, moments.card)


def _smallest(rows: list[tuple[Tensor, Tensor, Tensor]], keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, logits and keys of several parts joined: the `keep` rows with the smallest keys, in order."""
    features, logits, keys = (torch.cat(column) for column in zip(*rows, strict=True))
    if len(keys) <= keep:
        return features, logits, keys
    places = keys.topk(keep, largest=False).indices.sort().values
    return features[places], logits[places], keys[places]


def module_device(module: Any) -> torch.device:
    """Device of a module's first parameter or buffer; the CPU if it has none."""
    if isinstance(module, nn.Module):
        for tensor in (*module.parameters(), *module.buffers()):
            return tensor.device
    return torch.device("cpu")
