"""Frozen networks that judge: their training, which nothing around it disturbs, and their place in the cache."""

import contextlib
import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from genlab.extractors.checksums import tensors_checksum
from genlab.files import write_atomic
from genlab.metrics.features import full_float32
from genlab.networks.vgg import VGG, seen_size

log = logging.getLogger("genlab")
AFrozen = TypeVar("AFrozen", bound="Frozen")

FEW = 25_000_000  # training pixels in all up to which one thread is used, half a minute
TRIED = 20  # steps after which the remaining time is estimated


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


def save(frozen: Frozen, path: str | os.PathLike[str], **facts: Any) -> Path:
    """Writes a network and plain facts about it atomically; `load` reads them, and executes no code."""
    state = {key: value.cpu() for key, value in frozen.net.state_dict().items()}
    record = {**facts, "checksum": frozen.checksum, "state": state}
    return write_atomic(path, lambda file: torch.save(record, file))


def load(path: str | os.PathLike[str], make: Callable[[dict[str, Any]], AFrozen]) -> AFrozen:
    """Reads a file of `save`: `make` builds the network of the facts, and gets its weights here.

    Raises:
        ValueError: If the file is damaged or another one, or its weights do not have the recorded checksum.
    """
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
        made = make(record)
        made.net.load_state_dict(record["state"])
        if made.freeze().checksum != record["checksum"]:
            raise ValueError("the weights' checksum is not the recorded one")
    except (RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a readable classifier file: {error}") from error
    return made


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
