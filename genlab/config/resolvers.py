"""What a yaml can compute: the resolvers `${genlab.NAME:...}`, arithmetic of shapes and widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from genlab import launch


def image_shape(channels: int, size: Any) -> list[int]:
    """[C, H, W] of square images of a side, or of a height and a width."""
    return [channels, size, size] if isinstance(size, int) else [channels, *size]


def logistic_mixture_shape(shape: Any, components: int) -> list[int]:
    """Shape of a decoder's output for `LogisticMixture`, which checks it."""
    c = int(shape[0])
    return [components * (1 + 2 * c + c * (c - 1) // 2), *shape[1:]]


def feature_shape(shape: Any, features: int) -> list[int]:
    """Shape of a decoder's output for `Autoregressive`, which checks it."""
    return [int(shape[0]) * features, *shape[1:]]


def smaller(shape: Any, factor: int) -> list[int]:
    """[C, H / factor, W / factor] of pictures [C, H, W]; the method checks that the factor divides both sides."""
    channels, *sides = shape
    return [channels, *(side // max(1, factor) for side in sides)]


def prepend(first: Any, rest: Any) -> list[Any]:
    """A list with a value before it; null: the list alone."""
    return list(rest) if first is None else [first, *rest]


def with_changes(node: Any, changes: Any) -> dict[str, Any]:
    """A node with some keys replaced, as a network in another shape. What these referred to need not exist."""
    from omegaconf import OmegaConf

    parts = {**{key: node[key] for key in node if key not in changes}, **changes}
    return {key: OmegaConf.to_object(part) if OmegaConf.is_config(part) else part for key, part in parts.items()}


def number_names(names: Any, n: int) -> list[str]:
    """The names for each of n things, "x 1", "y 1", "x 2", "y 2"; as they are for one thing."""
    return list(names) if n == 1 else [f"{name} {i + 1}" for i in range(n) for name in names]


RESOLVERS: dict[str, Callable[..., Any]] = {
    "image_shape": image_shape,
    "times": lambda a, b: a * b,
    "smaller": smaller,
    "plus": lambda a, b: (a or 0) + (b or 0),
    "where": lambda condition, a, b: a if condition else b,
    "logistic_mixture_shape": logistic_mixture_shape,
    "feature_shape": feature_shape,
    "prepend": prepend,
    "last": lambda values, n: list(values)[-n:],
    "first": lambda values: list(values)[0],
    "with": with_changes,
    "reversed": lambda values: list(values)[::-1],
    "number_names": number_names,
    "devices": launch.devices,
    "nodes": launch.nodes,
}


def register() -> None:
    """Registers them with OmegaConf."""
    from omegaconf import OmegaConf

    for name, resolver in RESOLVERS.items():
        OmegaConf.register_new_resolver(f"genlab.{name}", resolver, replace=True)
    OmegaConf.register_new_resolver("genlab.stamp", launch.stamp, replace=True, use_cache=True)
