"""The ranges of the numbers in a resolved config. Imports no torch."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from genlab.errors import UserError

MOST_SEED = 2**32 - 1  # numpy's


@dataclass(frozen=True)
class Range:
    """The allowed values of a key.

    Attributes:
        least: Smallest value.
        most: Largest value.
        whole: Whether it is a whole number.
        open_below: Whether `least` itself is not allowed.
        open_above: Whether `most` itself is not allowed.
        none: Whether null is allowed.
        example: A value that is allowed.
    """

    least: float
    most: float = math.inf
    whole: bool = False
    open_below: bool = False
    open_above: bool = False
    none: bool = False
    example: Any = 1

    def holds(self, value: Any) -> bool:
        """Whether a number lies in the range."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        above = value > self.least if self.open_below else value >= self.least
        below = value < self.most if self.open_above or self.most == math.inf else value <= self.most
        return above and below

    def __str__(self) -> str:
        """The range in words."""
        kind = "a whole number" if self.whole else "a number"
        least, most = f"{self.least:,g}" if self.least < 10 else str(self.least), self.most
        if most == math.inf:
            words = f"{kind} {'above' if self.open_below else 'of at least'} {least}"
        else:
            ends = f"{'(' if self.open_below else '['}{least}, {most}{')' if self.open_above else ']'}"
            words = f"{kind} in {ends}"
        return words + (", or null" if self.none else "")


COUNT = Range(1, whole=True)
COUNT_OR_NONE = Range(1, whole=True, none=True)
WIDTH = Range(1, whole=True, example=64)
NATURAL = Range(0, whole=True, example=0)
POSITIVE = Range(0, open_below=True)
WEIGHT = Range(0, example=0)
SHARE = Range(0, 1, example=0.5)
DECAY = Range(0, 1, open_above=True, example=0.9)
SEED = Range(0, MOST_SEED, whole=True, example=0)
# Patterns of keys of a resolved config, from the top; of several that fit the first holds. Lists hold such numbers.
RANGES = {
    "seed": SEED,
    "*.seed": SEED,
    "*_seed": SEED,
    "threads": Range(0, whole=True, none=True),
    "max_cpu_time": Range(0, open_below=True, none=True, example=60),
    "trainer.max_steps": Range(1, whole=True, example=5000),
    "trainer.num_nodes": COUNT,
    "trainer.log_every_n_steps": Range(1, whole=True, example=50),
    "optim.clip": Range(0, open_below=True, none=True),
    "optim.lr_scale": POSITIVE,
    "ema.decay": Range(0, 1, open_above=True, example=0),
    "checkpoint.every_n_steps": Range(1, whole=True, example=500),
    "checkpoint.keep": COUNT,
    "checkpoint.smooth": COUNT,
    "checkpoint.early_stop": COUNT_OR_NONE,
    "optim.accumulate": COUNT,
    "health.max_rollbacks": NATURAL,
    "tricks.packing": COUNT,
    "tricks.minibatch_kernels": COUNT,
    "tricks.replay_size": COUNT,
    "tricks.replay": SHARE,
    "tricks.instance_noise_until": SHARE,
    "tricks.instance_noise": WEIGHT,
    "tricks.historical_averaging": WEIGHT,
    "callbacks.*.every_n_steps": Range(1, whole=True, example=500),
    "callbacks.*.num_samples": WIDTH,
    "callbacks.*.window": COUNT,
    "callbacks.*.refresh_seconds": POSITIVE,
    "metrics.splits": COUNT,
    "metrics.every_n_steps": Range(1, whole=True, example=500),
    "metrics.num_samples": Range(1, whole=True, none=True, example=10000),
    "data.batch_size": Range(1, whole=True, example=64),
    "data.image_size": Range(1, whole=True, none=True, example=32),
    "data.channels": COUNT_OR_NONE,
    "data.num_classes": COUNT_OR_NONE,
    "data.num_workers": COUNT_OR_NONE,
    "data.limit_train": COUNT_OR_NONE,
    "data.num_labelled": COUNT_OR_NONE,
    "model*optimizer.lr": Range(0, example=1e-3),
    "model*optimizer.betas": DECAY,
    "model*optimizer.momentum": DECAY,
    "model*optimizer.weight_decay": WEIGHT,
    "model*optimizer.eps": WEIGHT,
    "model.labelled_share": Range(0, 1, open_below=True, open_above=True, none=True, example=0.2),
    "model*.latent_dim": WIDTH,
    "model*.code_dim": WIDTH,
    "model*.width": WIDTH,
    "model*.hidden": WIDTH,
    "model*.inner": WIDTH,
    "model*.patch_size": WIDTH,
    "model*.style_dim": WIDTH,
    "model*.upper_dim": WIDTH,
    "model*.top_dim": WIDTH,
    "model*.bottom_dim": WIDTH,
    "*scheduler.window": Range(1, whole=True, example=500),
    "network*.width": WIDTH,
    "network*.hidden": WIDTH,
}
# By the last name of a key of the model, its parts included: kinds of numbers that are negative in no method. Zero
# switches a term off; where a class cannot have it, the class refuses it. They hold for numbers alone, as a method of
# one's own may have a `learned_weight: true`.
KINDS = {
    **dict.fromkeys(("weight", "*_weight", "gamma", "*_gamma", "lambda", "lambda_*", "beta", "noise"), WEIGHT),
    **dict.fromkeys(("*_dim", "dim", "*_hidden", "*_steps", "*_every", "*_first", "*_size"), NATURAL),
    **dict.fromkeys(("blocks", "*halvings", "classes", "patience"), NATURAL),
    **dict.fromkeys(("factor", "min_lr", "*_rate"), WEIGHT),
    **dict.fromkeys(("interpolated", "kept"), SHARE),
    "clip": Range(0, open_below=True, none=True),
}
STAGE = re.compile(r"stages\.\d+\.")  # a stage has the keys of a run


def check(config: dict[str, Any]) -> None:
    """Refuses numbers outside their range, and NaN and infinity anywhere.

    Args:
        config: Resolved, or a part of it; interpolations are passed over. Keys without a range may have any finite
            value; those that are missing are not looked for.

    Raises:
        UserError: Names the first such number and its range, or `max_time` if it is no time.
    """
    if config.get("max_time") is not None:
        seconds(config["max_time"])
    for path, value in sorted(leaves(config), key=lambda leaf: leaf[0].count(".")):  # seed before data.seed
        allowed = _range_of(STAGE.sub("", path), value)
        if allowed is not None and value is None and not allowed.none:
            allowed = None if path.partition(".")[0] in OPEN else allowed
        if isinstance(value, str) and "${" in value:
            continue
        if allowed is not None and not (value is None and allowed.none) and not _fits(value, allowed):
            example = [allowed.example] * max(1, len(value)) if isinstance(value, list) else allowed.example
            key = _typed(path, config.get("choices") or {})
            raise UserError(f"{key} must be {allowed}, got {value!r}. Try {key}={str(example).replace(' ', '')}.")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{path} must be a finite number, got {number}.")


def seconds(time: str) -> float:
    """Seconds of a "HH:MM:SS" or "DD:HH:MM:SS".

    Raises:
        UserError: If the text has neither form.
    """
    parts = str(time).split(":")
    if not 3 <= len(parts) <= 4 or not all(p.isdecimal() and p.isascii() for p in parts):
        raise UserError(f"max_time is written HH:MM:SS or DD:HH:MM:SS, got {time!r}. Try max_time=00:30:00.")
    return float(sum(int(p) * w for p, w in zip(reversed(parts), (1, 60, 3600, 86400), strict=False)))


OPEN = ("data", "model", "network", "metrics", "callbacks", "stages")  # where null may mean a default of the class


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All values of plain containers with their dotted keys; lists of plain values are values."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list) and any(isinstance(value, (dict, list)) for value in node):
        for i, value in enumerate(node):
            yield from leaves(value, f"{path}.{i}")
    else:
        yield path, node


def _range_of(path: str, value: Any) -> Range | None:
    """The range of a key, None if it may have any value."""
    named = next((r for pattern, r in RANGES.items() if fnmatch.fnmatchcase(path, pattern)), None)
    if named is not None or not path.startswith("model.") or not _numeric(value):
        return named
    last = path.rpartition(".")[2]
    return next((r for pattern, r in KINDS.items() if fnmatch.fnmatchcase(last, pattern)), None)


def _numeric(value: Any) -> bool:
    """Whether a value is a number or a list of numbers."""
    numbers = value if isinstance(value, list) else [value]
    return all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers)


def _typed(path: str, choices: dict[str, Any]) -> str:
    """The key as it is typed: parts of the model that are groups, such as the penalty, stand at the top."""
    part = path.split(".")[1] if path.startswith("model.") and path.count(".") > 1 else ""
    return path.removeprefix("model.") if choices.get(part) else path


def _fits(value: Any, allowed: Range) -> bool:
    return all(allowed.holds(number) for number in value) if isinstance(value, list) else allowed.holds(value)
