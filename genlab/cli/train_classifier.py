"""`genlab-classifier`, `python scripts/train_classifier.py data=...`: trains and caches a data set's classifier."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.cli import app
from genlab.config import composition
from genlab.config.arguments import check_device, take_path
from genlab.errors import UserError
from genlab.runs.paths import check_paths

if TYPE_CHECKING:
    from genlab.extractors.classifier import ClassifierExtractor

HELP = """genlab-classifier: train and cache the classifier of a data set, for scores of samples (FID, IS, KID, ...).

  genlab-classifier data=digits                              prints its accuracy on the test split
  genlab-classifier data=mnist data.root=PATH out=judge.pt   a copy, for genlab-evaluate extractor=judge.pt

Training and evaluation do this themselves if the cache has none; the same data give the same network.
Keys: data and data.* as in training; out (a file), device (cpu)."""


def main() -> None:
    """The command line."""
    with app.errors_as_sentences(), app.log_lines():
        arguments = sys.argv[1:]
        if app.print_if_asked(HELP):
            return
        out, arguments = take_path(arguments, "out")
        device, arguments = take_path(arguments, "device")
        check_device(device or "cpu")
        extractor = train(arguments, out, device or "cpu")
        size = "x".join(str(n) for n in extractor.shape)
        print(
            f"{extractor.name}: {extractor.accuracy:.2%} of the test images right; {extractor.num_classes} classes, "
            f"images {size}, {extractor.num_features} features, checksum {extractor.checksum[:12]}"
            + (f", in {out}" if out else "")
        )


def train(overrides: list[str], out: str | None = None, device: str = "cpu") -> ClassifierExtractor:
    """The classifier of the data set that these overrides compose.

    Args:
        overrides: `data=...` and `data.key=value`.
        out: A file for a copy.
        device: Where to train.

    Raises:
        UserError: If another key is given, or the data have no labels or are no images.
    """
    for override in overrides:
        if override.partition("=")[0].partition(".")[0] != "data":
            raise UserError(f"{override!r} is not understood. The keys are data, data.*, out and device.")
    composed = composition.compose(overrides)
    check_paths(composed)
    import torch

    from genlab.config.instantiate import check_signatures, instantiate
    from genlab.extractors.choice import dataset_classifier
    from genlab.extractors.classifier import ClassifierExtractor, save_classifier

    config = composed["data"]
    check_signatures(config, "data")
    data: Any = instantiate(config)
    if not data.spec.images:
        raise UserError(f"A classifier judges images, and {data.name} holds {data.spec.x.kind}.")
    extractor = dataset_classifier(data, torch.device(device))
    if extractor is None:
        raise UserError(f"{data.name} has no labels (class sub-folders give them), so no classifier can be trained.")
    assert isinstance(extractor, ClassifierExtractor)
    if out is not None:
        save_classifier(extractor, Path(out))
    return extractor
