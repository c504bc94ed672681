"""Labels in a step: as vectors, where they are, and where they are missing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.data.spec import Batch
from genlab.errors import UserError


def one_hot(y: Tensor, classes: int) -> Tensor:
    """Labels [N] as vectors [N, classes]; zeros where a label is -1."""
    return F.one_hot(torch.where(y < 0, classes, y), classes + 1)[:, :classes]


def labels_of(batch: Batch) -> Tensor:
    """The labels [N] of a batch, -1 where one is missing.

    Raises:
        UserError: If it has none.
    """
    if batch.y is None:
        raise UserError("This model learns from labels, and the data come without. Try data.labels=true.")
    return batch.y


def known_classes(classes: int | None) -> int:
    """The number of classes, where the data have some.

    Raises:
        UserError: If they have none.
    """
    if not classes:
        raise UserError("This model needs data with classes, and data.num_classes is not set. Try data=digits.")
    return classes


def check_widths(encoder_features: int, wanted: int, latent_dim: int, parts: int) -> None:
    """Refuses an encoder or a latent of another size than the parts of a code take.

    Raises:
        ValueError: If either has another.
    """
    if (encoder_features, latent_dim) != (wanted, parts):
        raise ValueError(
            f"The encoder must give {wanted} numbers and a latent has {parts}, not {encoder_features} and {latent_dim}."
        )
