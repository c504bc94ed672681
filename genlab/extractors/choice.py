"""The choice of the network whose features are scored."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.metrics.features import Extractor
from genlab.seeding import fixed_choice
from genlab.sharing import first_then_others, is_first

if TYPE_CHECKING:
    from genlab.extractors.reader import Reader

log = logging.getLogger("genlab")
READ = 10_000  # training rows of a reader, at most: half a minute for images of 32 x 32
EXTRACTORS = ("classifier", "inception", "random")
UNTRAINED = (
    "An untrained network is used instead. It detects noise, blur and repeated samples, but hardly missing classes, "
    "and gives no Inception score. For the published network: metrics.extractor=inception. For no scores: metrics=none."
)


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


def dataset_classifier(data: Pictures, device: torch.device) -> Extractor | None:
    """The classifier of the data set, loaded from the cache or trained now; None without labels."""
    labels = data.split("train").y
    if labels is None or data.spec.num_classes is None:
        return None
    from genlab.extractors.classifier import ClassifierData, Recipe, load_or_train

    def labelled() -> ClassifierData:
        train, test = data.judged("train"), data.judged("test")
        rows = [store.gather(torch.arange(len(store))) for store in (train, test)]
        return ClassifierData(rows[0], train.y, rows[1], test.y, data.spec.num_classes, data.spec.class_names)

    key = "-".join(data.judged(split).fingerprint() for split in ("train", "val", "test"))
    return load_or_train(data.name, key, labelled, recipe=Recipe(flip=data.mirrors), device=device)


def column_reader(data: Any, column: str, device: torch.device) -> Reader:
    """The reader of a column from the samples of the data, loaded from the cache or trained now.

    It is trained on at most 10,000 training rows in which the column is known.

    Raises:
        UserError: If there is no such row.
    """
    from genlab.extractors.reader import load_or_train

    field = data.spec.fields[column]

    def rows(split: str, most: int) -> Batch:
        at = fixed_choice(len(data.judged(split)), most)
        told = data.rows(split, [column], at)[column]
        known = field.known(told).nonzero().squeeze(1)
        return Batch({"images": data.judged(split).gather(at), "told": told}).rows(known)

    train, test = rows("train", READ), rows("test", READ // 5)
    if not len(train):
        raise UserError(f"{data.name} has no training row in which {column} is known, so nothing can read it.")
    return load_or_train(f"{data.name}-{column}", field, train, test, device)


def network_for(
    extractor: str, data: Pictures, device: torch.device, weights: str | None = None, precision: str = "float32"
) -> Extractor:
    """The feature extractor for scores on these data.

    Args:
        extractor: One of `EXTRACTORS`, or a file of `genlab-classifier`. "classifier" falls back to "random" if the
            data have no labels.
        data: Images to score; a classifier is trained on them.
        device: Device of the extractor.
        weights: File with Inception's weights, for "inception".
        precision: Precision of Inception.

    Raises:
        UserError: If there is no such extractor, Inception's weights are missing, or the images do not fit.
    """
    check_extractor(extractor, precision)
    if extractor == "inception":
        from genlab.extractors.inception import load_inception

        return load_inception(weights, precision=precision).to(device)
    if extractor not in EXTRACTORS:
        return _of_file(extractor, data).to(device)
    found = dataset_classifier(data, device) if extractor == "classifier" else None
    if found is None:
        from genlab.extractors.classifier import RandomExtractor

        if extractor == "classifier" and is_first():
            log.warning("%s has no labels for a classifier (class sub-folders give them). %s", data.name, UNTRAINED)
        return RandomExtractor(data.spec.shape).to(device)
    return found


def shared_network(
    extractor: str, data: Pictures, device: torch.device, weights: str | None = None, precision: str = "float32"
) -> Extractor:
    """`network_for` in the first process, then in the others, which read its files from the cache."""
    return first_then_others(lambda: network_for(extractor, data, device, weights, precision))


def _of_file(path: str, data: Pictures) -> Any:
    from genlab.extractors.classifier import load_classifier

    try:
        found = load_classifier(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    if tuple(found.shape) != tuple(data.spec.shape):
        raise UserError(f"{found.name} judges images of shape {list(found.shape)}, got {list(data.spec.shape)}.")
    return found


def check_extractor(extractor: str, precision: str) -> None:
    """Refuses an unknown extractor, and a precision that it would silently ignore.

    Raises:
        UserError: If there is no such extractor; or the precision is not float32 and the extractor is not Inception.
    """
    if extractor not in EXTRACTORS and not Path(extractor).is_file():
        raise UserError(
            f"metrics.extractor must be one of {', '.join(EXTRACTORS)}, or a classifier file, got {extractor!r}."
        )
    if precision not in ("float32", "bfloat16"):
        raise UserError(f"metrics.precision must be float32 or bfloat16, got {precision!r}.")
    if extractor != "inception" and precision != "float32":
        raise UserError(f"metrics.precision={precision} needs metrics.extractor=inception: all others work in float32.")


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


def default_for(labelled: bool, weights: str | None) -> str:
    """The default extractor of image sets: a classifier if there are labels, else Inception if found, else random."""
    from genlab.extractors.inception import find_inception_weights

    if labelled or weights is not None:
        return "classifier" if labelled else "inception"
    try:
        find_inception_weights(None, False)
    except UserError:
        return "random"
    return "inception"


def tells_classes(extractor: Any, num_classes: int | None) -> bool:
    """Whether the extractor's logits are over the classes of these data; of any data for None."""
    from genlab.extractors.classifier import ClassifierExtractor

    return isinstance(extractor, ClassifierExtractor) and num_classes in (None, extractor.num_classes)
