"""Features and logits of images from one pass of a network, shared by every score (FID, KID, IS, precision, recall)."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from genlab.floats import without_tf32
from genlab.sharing import shared


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
class Features:
    """Features and logits of one set of images. Tensors are on the CPU.

    Attributes:
        features: Float32 [N, F].
        logits: Float32 [N, K]; K is 0 if the extractor knows no classes.
        card: The extractor's card.
    """

    features: Tensor
    logits: Tensor
    card: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, features: Tensor, logits: Tensor | None = None, card: dict[str, Any] | None = None) -> "Features":
        """Given features [N, F] (and logits [N, K]).

        Raises:
            ValueError: If a feature is not finite, or the numbers of rows differ.
        """
        logits = features.new_zeros(len(features), 0) if logits is None else logits
        if features.ndim != 2 or len(features) != len(logits):
            raise ValueError(f"Features must be [N, F] and logits [N, K], got {features.shape} and {logits.shape}.")
        if not features.isfinite().all():
            raise ValueError("The extractor returned features that are not finite.")
        return cls(features.detach().cpu().float(), logits.detach().cpu().float(), dict(card or {}))

    @property
    def n(self) -> int:
        """N."""
        return len(self.features)

    @property
    def num_features(self) -> int:
        """F."""
        return self.features.shape[1]

    @property
    def classes(self) -> Tensor:
        """The class of each image by its logits, [N]."""
        return self.logits.argmax(dim=1)


def features_of(extractor: Extractor, batches: Iterable[Tensor | Callable[[], Tensor]]) -> Features:
    """Runs the extractor once over uint8 batches [N, C, H, W].

    The processes of a group share the batches; each returns the features of all, equal bit for bit. Memory grows with
    the number of images: 12 kB each with Inception.

    Args:
        extractor: Network of features and logits.
        batches: Images, or functions that make them; moved to the extractor's device one batch at a time.
    """
    device = module_device(extractor)

    def look(images: Tensor | Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        features, logits = extractor((images if isinstance(images, Tensor) else images()).to(device))
        return features.cpu(), logits.cpu()

    nothing = torch.zeros(0, extractor.num_features), torch.zeros(0, extractor.num_classes)
    features, logits = zip(nothing, *shared(batches, look), strict=True)
    return Features.of(torch.cat(features), torch.cat(logits), extractor.card())


def module_device(module: Any) -> torch.device:
    """Device of a module's first parameter or buffer; the CPU if it has none."""
    if isinstance(module, nn.Module):
        for tensor in (*module.parameters(), *module.buffers()):
            return tensor.device
    return torch.device("cpu")
