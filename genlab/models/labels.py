"""Labels in a training step: one-hot vectors, missing labels, sizes of latents with a class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.networks.init import check_width


def one_hot(y: Tensor, classes: int) -> Tensor:
    """Labels [N] as vectors [N, classes]; zeros where a label is -1."""
    return F.one_hot(torch.where(y < 0, classes, y), classes + 1)[:, :classes]


def labels_of(batch: Batch) -> Tensor:
    """The labels [N] of a batch, -1 where one is missing.

    Raises:
        UserError: If the batch has no labels.
    """
    if batch.y is None:
        raise UserError("This model needs labels, and the data have none. Try data.labels=true.")
    return batch.y


def classes_of(given: Batch | None) -> Tensor | None:
    """The given classes [n] of samples; None if none are given."""
    return None if given is None else given.y


def known_classes(classes: int | None) -> int:
    """The number of classes.

    Raises:
        UserError: If the data have no classes.
    """
    if not classes:
        raise UserError("This model needs data with classes, and data.num_classes is not set. Try data=digits.")
    return classes


def check_widths(encoder_features: int, wanted: int, latent_dim: int, parts: int) -> None:
    """Checks the size of the latent, the sum of its `parts`, and the width of the encoder's output.

    Raises:
        UserError: If either does not fit.
    """
    if latent_dim != parts:
        raise UserError(f"A latent has {parts} numbers, not {latent_dim}. Set model.latent_dim={parts}.")
    check_width(encoder_features, wanted)
