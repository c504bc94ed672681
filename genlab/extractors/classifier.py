"""An extractor without a download: a small VGG-style classifier that genlab trains on the data set itself.

Rosca et al. (2018), "Distribution Matching in Variational Inference", arXiv:1802.06847, report the Inception score of
such a network trained on CIFAR-10. Its scores measure how well samples match *this* data set according to *this*
network, so each score carries the network's name, checksum and test accuracy (`fid/classifier-digits`).
"""

import hashlib
import logging
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.errors import UserError
from genlab.extractors.frozen import Frozen, Recipe, cached, fit, load, save
from genlab.files import cache_dir as default_cache

log = logging.getLogger("genlab")

FORMAT = 2  # of the file; with a file of another format the classifier is trained again
SMALLEST = 4  # side in pixels
NAMED = 12  # most classes that a log line names
WAYS_OUT = "Try metrics.extractor=random (an untrained network), or metrics=none."


@dataclass
class ClassifierData:
    """Training and test images of a classifier.

    Attributes:
        x_train: uint8 images [N, C, H, W].
        y_train: Labels [N] in 0..num_classes-1; -1 (no label) is left out.
        x_test: uint8 images [M, C, H, W], for the accuracy only; no choice depends on it.
        y_test: Labels [M].
        num_classes: K.
        class_names: Names of the classes, if any.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    class_names: tuple[str, ...] | None = None


def epochs_for(num_images: int, tiny: bool = True) -> int:
    """Epochs for a small set, so that training sees about 40,000 tiny or 18,000 larger images (seconds).

    At least 12 epochs (from 3,333 tiny or 1,500 larger images on), at most 60 or 40. The limit is a number of epochs
    and not a time, so that the same data give the same classifier.
    """
    seen, most = (40_000, 60) if tiny else (18_000, 40)
    return max(12, min(most, seen // max(num_images, 1)))


class ClassifierExtractor(Frozen):
    """uint8 images to the last hidden layer (FID, KID, precision and recall) and the logits (IS) of a classifier.

    Args:
        name: Name of the data set: "digits" gives "classifier-digits".
        shape: (C, H, W) of the images; other shapes are refused.
        num_classes: K.
        accuracy: Accuracy on the test images, 0..1; NaN if unknown.

    Raises:
        UserError: If the images are smaller than 4 pixels or there are fewer than two classes.
    """

    def __init__(self, name: str, shape: tuple[int, int, int], num_classes: int, accuracy: float = math.nan) -> None:
        if min(shape[1:]) < SMALLEST or num_classes < 2:
            raise UserError(
                f"A classifier needs images of at least {SMALLEST}x{SMALLEST} pixels and two classes, got "
                f"{shape[1]}x{shape[2]} and {num_classes}. {WAYS_OUT}"
            )
        super().__init__(f"classifier-{name}", shape, num_classes)
        self.accuracy = accuracy

    @property
    def quality(self) -> str:
        """Its test accuracy in words."""
        return f"test accuracy {100 * self.accuracy:.2f} %"

    def card(self) -> dict[str, Any]:
        """The card with the test accuracy."""
        return {**super().card(), "test_accuracy": self.accuracy}


class RandomExtractor(Frozen):
    """The same network with random weights, for data without labels: features, and no logits.

    Naeem et al. (2020), arXiv:2002.09797: an untrained VGG distinguishes sets of images outside the domain of a
    trained network. It detects noise, blur and repeated samples, but hardly detects missing classes (2,000 test images
    of CIFAR-10: six of ten classes are at 1.5 times the distance of all, noise of a tenth of the range at 3.7 times).
    Its scores therefore do not show that all of the data are covered.

    Args:
        shape: (C, H, W) of the images; other shapes are refused.

    Raises:
        UserError: If the images are smaller than 4 pixels.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        if min(shape[1:]) < SMALLEST:
            raise UserError(
                f"metrics.extractor=random needs images of at least {SMALLEST}x{SMALLEST} pixels. Try metrics=none."
            )
        super().__init__("random-vgg", shape, 0)


def random_shift(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Shifts each image [N, C, H, W] by up to `most` pixels along both axes; edge pixels are repeated."""
    count, _, height, width = x.shape
    offset = torch.randint(0, 2 * most + 1, (2, count, 1), generator=generator).to(x.device)
    rows = (torch.arange(height, device=x.device) + offset[0] - most).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + offset[1] - most).clamp(0, width - 1)
    # Indices around a slice give [N, H, W, C], as if the images were channels-last.
    image = torch.arange(count, device=x.device)[:, None, None]
    return x[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _check(data: ClassifierData) -> ClassifierData:
    """The labelled images only, with labels as long."""

    def labelled(x: Tensor, y: Tensor, part: str) -> tuple[Tensor, Tensor]:
        if x.dtype != torch.uint8 or x.ndim != 4 or y.shape != x.shape[:1]:
            raise ValueError(
                f"{part} images must be uint8 [N, C, H, W] with labels [N], got {x.dtype} {x.shape}, {y.shape}."
            )
        y = y.long().cpu()
        x, y = x.cpu()[y >= 0], y[y >= 0]
        if len(y) == 0:
            raise UserError(
                f"The {part} images have no labels, so no classifier can be trained to judge samples. {WAYS_OUT}"
            )
        if int(y.max()) >= data.num_classes:
            raise UserError(f"Label {int(y.max())} is out of range for data.num_classes={data.num_classes}.")
        return x, y

    x_train, y_train = labelled(data.x_train, data.y_train, "training")
    x_test, y_test = labelled(data.x_test, data.y_test, "test")
    return ClassifierData(x_train, y_train, x_test, y_test, data.num_classes, data.class_names)


def train_classifier(
    data: ClassifierData,
    name: str,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    device: torch.device | str = "cpu",
) -> ClassifierExtractor:
    """Trains the classifier: cross-entropy, AdamW, one-cycle learning rate, random shifts.

    Args:
        data: Images and labels.
        name: Name of the data set, for the extractor's name.
        seed: Fixes the result (bit for bit on one machine's CPU). The global random streams are not used.
        recipe: Training settings; by default, the epochs depend on the number of images.
        device: Where to train; the extractor is returned there.

    Raises:
        UserError: If there are no labels, or the images are too small.
    """
    data, recipe, device = _check(data), recipe or Recipe(), torch.device(device)
    shape = data.x_train.shape
    extractor = ClassifierExtractor(name, (shape[1], shape[2], shape[3]), data.num_classes)
    log.info("%s: training on %s. Set metrics=none to train without scores.", extractor.name, _counts(data))
    started = time.perf_counter()
    epochs = recipe.epochs or epochs_for(len(data.x_train), extractor.net.tiny)
    net, x_train, y_train = extractor.net, data.x_train.to(device), data.y_train.to(device)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on all devices
    flip, dropout = recipe.flip, recipe.dropout

    def loss(rows: Tensor) -> Tensor:
        assert net.head is not None
        x = random_shift(x_train[rows], max(1, round(min(shape[2:]) / 8)), generator).float()
        if flip:
            mirrored = torch.rand(len(x), 1, 1, 1, generator=generator).to(device) < 0.5
            x = torch.where(mirrored, x.flip(3), x)
        hidden = net.features(x)
        kept = torch.rand(hidden.shape, generator=generator).to(device) >= dropout
        return F.cross_entropy(net.head(hidden * kept / (1 - dropout)), y_train[rows])

    fit(extractor, loss, len(x_train), epochs, recipe, generator, device)
    guesses = torch.cat([extractor(part)[1].argmax(dim=1).cpu() for part in data.x_test.split(2048)])
    extractor.accuracy = (guesses == data.y_test).double().mean().item()
    log.info(
        "%s: accuracy %.2f %% on %d test images after %.1f s of training on %d images.",
        *(extractor.name, 100 * extractor.accuracy, len(data.x_test)),
        *(time.perf_counter() - started, len(data.x_train)),
    )
    return extractor


def _counts(data: ClassifierData) -> str:
    """For example: 240 images of 3 classes (cat 100, dog 90, fox 50); shows folders that are not classes."""
    counts = torch.bincount(data.y_train, minlength=data.num_classes).tolist()
    names = data.class_names or tuple(str(k) for k in range(data.num_classes))
    shown = ", ".join(f"{name} {n}" for name, n in zip(names[:NAMED], counts, strict=False))
    more = f" and {len(counts) - NAMED} more" if len(counts) > NAMED else ""
    return f"{len(data.y_train)} images of {data.num_classes} classes ({shown}{more})"


def save_classifier(extractor: ClassifierExtractor, path: str | os.PathLike[str]) -> Path:
    """Writes the classifier atomically, as tensors and plain values."""
    name, shape = extractor.name.removeprefix("classifier-"), list(extractor.shape)
    facts = {"name": name, "shape": shape, "num_classes": extractor.num_classes, "accuracy": extractor.accuracy}
    return save(extractor, path, format=FORMAT, **facts)


def load_classifier(path: str | os.PathLike[str]) -> ClassifierExtractor:
    """Reads a file of `save_classifier`, without running code from it.

    Raises:
        ValueError: If the file is damaged, of another format, or its weights do not have the recorded checksum.
    """

    def make(record: dict[str, Any]) -> ClassifierExtractor:
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}, not {FORMAT}")
        channels, height, width = record["shape"]
        shape = channels, height, width
        return ClassifierExtractor(record["name"], shape, record["num_classes"], record["accuracy"])

    return load(path, make)


def load_or_train(
    name: str,
    key: str,
    data: ClassifierData | Callable[[], ClassifierData],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
    device: torch.device | str = "cpu",
) -> ClassifierExtractor:
    """The classifier of a data set: from the cache, else trained and cached.

    With several processes, rank 0 should call this first and the others after a barrier. Otherwise each process trains
    its own classifier, with the same result on equal hardware; the file is not damaged.

    Args:
        name: Name of the data set: "digits".
        key: Identifies the images and labels (content, size, split): other data must have another key.
        data: The data, or a function that loads them, called only to train.
        cache_dir: Default `$GENLAB_CACHE/classifiers`, else `~/.cache/genlab/classifiers`.
        seed: Seed of the training.
        recipe: Training settings.
        device: Device of the training and of the returned extractor.
    """
    recipe = recipe or Recipe()
    settings = repr((FORMAT, key, seed, sorted(asdict(recipe).items())))
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{name}-{key}")[:80]
    file_name = f"{stem}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.pt"
    path = Path(cache_dir or default_cache() / "classifiers") / file_name
    return cached(
        path,
        load_classifier,
        lambda: train_classifier(data() if callable(data) else data, name, seed=seed, recipe=recipe, device=device),
        save_classifier,
    ).to(device)
