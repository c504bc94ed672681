"""Labels in a training step: one-hot vectors, missing labels, sizes of latents with a class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.networks.init import check_width
from genlab.randomness import whole_below


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


def completed(batch: Batch, u: Tensor, classes: int) -> Batch:
    """The batch with a class, all equally likely, in place of each missing label.

    Args:
        batch: With labels [N].
        u: Uniform draws [N] in [0, 1].
        classes: K.
    """
    y = labels_of(batch)
    return batch.with_column("y", torch.where(y < 0, whole_below(u, classes), y))


def check_told_classes(given: Sequence[str], model: str) -> None:
    """Checks that a generator is told the classes.

    Args:
        given: The columns that the model is given.
        model: Name of the model's class, for the message.

    Raises:
        UserError: If they are not among them.
    """
    if "y" not in given:
        raise UserError(
            f"The generator of {model} is trained to draw given classes, and model.given is {list(given)}. "
            "Try 'model.given=[y]'."
        )


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
