"""An extractor without a download: a small VGG-style classifier that genlab trains on the data set itself.

Rosca et al. (2018), "Distribution Matching in Variational Inference", arXiv:1802.06847, report the Inception score of
such a network trained on CIFAR-10. Its scores measure how well samples match *this* data set according to *this*
network, so each score carries the network's name, checksum and test accuracy (`fid/classifier-digits`).
"""

import contextlib
import hashlib
import logging
import math
import os
import pickle
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.files import cache_dir as default_cache
from genlab.files import write_atomic
from genlab.metrics.features import full_float32
from genlab.metrics.files import tensors_checksum

log = logging.getLogger("genlab")
AFrozen = TypeVar("AFrozen", bound="Frozen")

FORMAT = 2  # of the file; with a file of another format the classifier is trained again
TINY = 16  # shorter side in pixels up to which blocks pool; above, they stride, at a sixth of the cost
MAX_SIDE = 32  # larger images are averaged down first: enough for classification, and the cost stays bounded
MAX_LENGTH = 64  # the same for the longer side of tiny images
SMALLEST = 4  # side in pixels
NAMED = 12  # most classes that a log line names
FEW = 25_000_000  # training pixels in all up to which one thread is used, half a minute
TRIED = 20  # steps after which the remaining time is estimated
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


@dataclass(frozen=True)
class Recipe:
    """Training settings of a classifier; part of the name of its cache file.

    Attributes:
        epochs: Passes over the training images; None: `epochs_for` their number.
        batch_size: Images per step.
        lr: Peak of the one-cycle learning rate (AdamW).
        weight_decay: Weight decay of AdamW.
        dropout: Dropout rate of the features, in training only.
        flip: Whether images are mirrored at random; right for photographs, wrong for digits and letters.
    """

    epochs: int | None = None
    batch_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 1e-2
    dropout: float = 0.2
    flip: bool = False


def epochs_for(num_images: int, tiny: bool = True) -> int:
    """Epochs for a small set, so that training sees about 40,000 tiny or 18,000 larger images (seconds).

    At least 12 epochs (from 3,333 tiny or 1,500 larger images on), at most 60 or 40. The limit is a number of epochs
    and not a time, so that the same data give the same classifier.
    """
    seen, most = (40_000, 60) if tiny else (18_000, 40)
    return max(12, min(most, seen // max(num_images, 1)))


def seen_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the classifier's input; larger images are averaged down to it."""
    most = MAX_LENGTH if min(height, width) <= TINY else MAX_SIDE
    return min(height, most), min(width, most)


class VGG(nn.Module):
    """Blocks of two convolutions that halve the image, a hidden layer (the features), a linear head.

    The image is halved until its shorter side is 2 or 3. Tiny images: two 3x3 convolutions and a max pool a block, the
    width doubles from 32 up to 256. Larger ones: a 4x4 convolution of stride 2 and a 3x3 one, from 24 up to 128.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.size = seen_size(shape[1], shape[2])
        channels, (height, width) = shape[0], self.size
        blocks = max(1, int(math.log2(min(height, width))) - 1)
        self.tiny = min(height, width) <= TINY
        narrow, wide = (32, 256) if self.tiny else (24, 128)
        kernel, stride = (3, 1) if self.tiny else (4, 2)
        layers: list[nn.Module] = []
        for out in (min(narrow * 2**block, wide) for block in range(blocks)):
            layers += [nn.Conv2d(channels, out, kernel, stride, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            layers += [nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            if self.tiny:
                layers.append(nn.MaxPool2d(2))
            channels = out
        self.trunk = nn.Sequential(*layers)
        # Few features for few pixels: a few hundred images suffice to estimate the covariance of 64 features.
        self.num_features = 64 if blocks <= 2 else 128
        self.hidden = nn.Linear(channels * (height >> blocks) * (width >> blocks), self.num_features)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else None

    def initialise(self, generator: torch.Generator) -> None:
        """Initial weights of He et al. (2015) from the generator; also fills buffers of a net from the meta device."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                gain = 1.0 if module is self.head else 2.0
                draw = torch.randn(module.weight.shape, generator=generator) * math.sqrt(gain / fan_in)
                with torch.no_grad():
                    module.weight.copy_(draw)
                    if module.bias is not None:
                        module.bias.zero_()

    def features(self, x: Tensor) -> Tensor:
        """Float images 0..255 [N, C, H, W] to features [N, F], >= 0."""
        if x.shape[2:] != self.size:
            x = F.adaptive_avg_pool2d(x, self.size)
        return F.relu(self.hidden(self.trunk(x / 127.5 - 1).flatten(1)))


class Frozen(nn.Module):
    """uint8 images of one shape to features and logits of a frozen `VGG`."""

    num_classes = 0

    def __init__(self, name: str, shape: tuple[int, int, int], num_classes: int, network: type[VGG] = VGG) -> None:
        super().__init__()
        self.name = name
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.num_classes = num_classes
        with torch.inference_mode(False):  # tensors made in a validation loop could not be trained
            with torch.device("meta"):  # no random initial values, so the global random stream is not used
                self.net = network(self.shape, num_classes)
            self.net.to_empty(device="cpu")
            self.net.initialise(torch.Generator().manual_seed(0))
        self.num_features = self.net.num_features
        self._checksum: str | None = None
        self.freeze()

    def freeze(self: AFrozen) -> AFrozen:
        """Switches to eval mode without gradients; the checksum is computed again when next read."""
        self._checksum = None
        self.requires_grad_(False)
        self.net.eval()
        self.training = False
        return self

    def train(self: AFrozen, mode: bool = True) -> AFrozen:
        """Stays in eval mode; `mode` is ignored (`train_classifier` trains `net`)."""
        return self

    @property
    def quality(self) -> str:
        """Its success on test images in words."""
        return "untrained"

    @property
    def checksum(self) -> str:
        """SHA-256 of the weights."""
        if self._checksum is None:
            self._checksum = tensors_checksum(self.net.state_dict())
        return self._checksum

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, F] and logits [N, K], float32, of uint8 images [N, C, H, W] (moved to its device)."""
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"{self.name} takes uint8 images of shape {self.shape}, got {images.dtype} {tuple(images.shape[1:])}."
            )
        device = self.net.hidden.weight.device
        features, logits = [], []
        with full_float32(device):
            for part in images.split(512):
                found = self.net.features(part.to(device).float())
                features.append(found)
                logits.append(found.new_zeros(len(found), 0) if self.net.head is None else self.net.head(found))
        if not features:
            return torch.zeros(0, self.num_features), torch.zeros(0, self.num_classes)
        return torch.cat(features), torch.cat(logits)

    def card(self) -> dict[str, Any]:
        """The extractor's part of a score's card: scores with different cards are not comparable."""
        size = self.net.size
        return {
            "extractor": self.name,
            "checksum": self.checksum,
            "resize": "none" if size == self.shape[1:] else f"averaged down to {size[0]}x{size[1]} pixels",
            "precision": "float32",
        }


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


@contextlib.contextmanager
def _threads_for(shape: tuple[int, int, int], count: int) -> Iterator[None]:
    """One thread for tiny or few images: two gain a quarter, but beside a busy process were up to 20 times slower."""
    before = torch.get_num_threads()
    height, width = seen_size(shape[1], shape[2])
    if height * width <= 256 or count * height * width <= FEW:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit(
    frozen: Frozen,
    loss: Callable[[Tensor], Tensor],
    count: int,
    epochs: int,
    recipe: Recipe,
    generator: torch.Generator,
    device: torch.device,
) -> None:
    """Moves the network of `frozen` to a device, trains it there from new initial values, and freezes it again.

    Args:
        frozen: The network's owner.
        loss: The loss of training rows, given their positions [B] on that device.
        count: Number of training rows.
        epochs: Passes over them.
        recipe: Batch size and optimizer.
        generator: Stream of the initial values and of the order, on the CPU.
        device: Where to train.
    """
    net = frozen.net
    deterministic: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if device.type == "cuda":
        deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    # Validation loops run in inference mode, mixed precision in autocast: neither may affect this training.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        full_float32(device),
        deterministic,
        _threads_for(frozen.shape, epochs * count),
    ):
        net.initialise(generator)
        net.to(device).to(memory_format=torch.channels_last).train().requires_grad_(True)
        batch_size = min(recipe.batch_size, count)
        steps = max(1, count // batch_size)  # the remainder of a shuffle is not used in its epoch
        optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=epochs * steps, pct_start=0.25)
        with _bar(frozen.name, epochs * steps) as advance:
            for step in range(epochs * steps):
                if step % steps == 0:
                    order = torch.randperm(count, generator=generator)
                found = loss(order[step % steps * batch_size :][:batch_size].to(device))
                optimizer.zero_grad()
                found.backward()
                optimizer.step()
                schedule.step()
                advance()
        net.to(memory_format=torch.contiguous_format)
    frozen.freeze()


@contextlib.contextmanager
def _bar(name: str, steps: int) -> Iterator[Callable[[], None]]:
    """A progress bar; yields the function that advances it. Without a terminal, a log line if training takes long."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console, started = Console(stderr=True), time.perf_counter()
    columns = (TextColumn(f"Training {name}, once"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task, done = progress.add_task("", total=steps), 0

        def advance() -> None:
            nonlocal done
            done += 1
            progress.advance(task)
            left = (time.perf_counter() - started) * (steps - done) / done
            if done == TRIED and left > 20 and not console.is_terminal:
                log.info("%s: training takes about %.0f s more, once; the classifier is then cached.", name, left)

        yield advance


# --------------------------------------------------------------------------------------------------------------------
# The cache
# --------------------------------------------------------------------------------------------------------------------
def save_classifier(extractor: ClassifierExtractor, path: str | os.PathLike[str]) -> Path:
    """Writes the classifier atomically, as tensors and plain values (`weights_only` reads it)."""
    record = {
        "format": FORMAT,
        "name": extractor.name.removeprefix("classifier-"),
        "shape": list(extractor.shape),
        "num_classes": extractor.num_classes,
        "accuracy": extractor.accuracy,
        "checksum": extractor.checksum,
        "state": {key: value.cpu() for key, value in extractor.net.state_dict().items()},
    }
    return write_atomic(path, lambda file: torch.save(record, file))


def load_classifier(path: str | os.PathLike[str]) -> ClassifierExtractor:
    """Reads a file of `save_classifier`, without running code from it.

    Raises:
        ValueError: If the file is damaged, of another format, or its weights do not have the recorded checksum.
    """
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}, not {FORMAT}")
        channels, height, width = record["shape"]
        extractor = ClassifierExtractor(
            record["name"], (channels, height, width), record["num_classes"], record["accuracy"]
        )
        extractor.net.load_state_dict(record["state"])
    except (RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a readable classifier file: {error}") from error
    if extractor.freeze().checksum != record["checksum"]:
        raise ValueError(f"{path} is damaged: the weights' checksum is not the recorded one.")
    return extractor


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


def cached(
    path: Path, load: Callable[[Path], AFrozen], train: Callable[[], AFrozen], save: Callable[[AFrozen, Path], Path]
) -> AFrozen:
    """A network from its file; where there is none or it is damaged (`load` raises ValueError), trained and saved."""
    if path.exists():
        try:
            found = load(path)
            log.info("%s: from the cache, %s.", found.name, found.quality)
            return found
        except ValueError as error:
            log.warning("%s; training it again.", error)
    made = train()
    try:
        save(made, path)
    except OSError as error:  # a full disk or a read-only home must not cost the run its scores
        log.warning("%s could not be cached: %s. Set GENLAB_CACHE to another folder.", made.name, error)
    return made
