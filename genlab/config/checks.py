"""Checks of a resolved config beyond Hydra's: whether its parts fit each other, before data or weights are read."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

from genlab.config import guesses, numbers, tricks
from genlab.config.composition import PARTS
from genlab.config.instantiate import check_signatures, constructor_hints, locate, targets
from genlab.config.shipped import options, read_option
from genlab.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import nn

    from genlab.models.base import GenerativeModel

log = logging.getLogger("genlab")
CURES = {  # by missing column: the overrides that provide it
    "y": " Try data=digits, or data.labels=true.",
    "group": " Try data=shapes data.grouped=true, whose batches vary one known factor alone.",
}
PROVIDED = {"logger": {"run_dir": "", "resume_step": None}}  # arguments that the code adds, not the config


def check(config: dict[str, Any]) -> None:
    """Refuses unknown arguments, numbers out of range, an objective of the wrong kind, and networks for other data.

    Raises:
        UserError: Names both sides and the options that fit.
    """
    numbers.check(config)
    _check_choices(config)
    for part in ("data", "derive", "model", "scheduler", "metrics", "callbacks", "logger"):
        if config.get(part):
            given = _with_provided(config[part], PROVIDED.get(part, {}))
            check_signatures(given, part, list(guesses.dotted(config)))
    idle = [key for key in config.get("scheduler") or {} if "_target_" not in config["scheduler"]]
    if idle:
        raise UserError(
            f"scheduler.{idle[0]} has no effect without a schedule. Choose one of scheduler="
            f"{', '.join(name for name in options('scheduler') if name != 'none')}."
        )
    _check_tricks(config)
    _check_types(config)
    _check_kinds(config)


def warn_of_unbounded_critic(model: nn.Module, choices: dict[str, str]) -> None:
    """Warns of an objective that needs a bound on the critic's slope, if no part of the model keeps one.

    An objective declares `needs_lipschitz`; a model, penalty or network that keeps the bound declares
    `keeps_lipschitz`. Spectral normalisation counts as a bound.
    """
    from torch.nn.utils.parametrizations import _SpectralNorm

    parts = list(model.modules())
    if any(getattr(part, "needs_lipschitz", False) for part in parts) and not any(
        getattr(part, "keeps_lipschitz", False) or isinstance(part, _SpectralNorm) for part in parts
    ):
        log.warning(
            "loss=%s needs a critic of bounded slope, and nothing in model=%s bounds it, so it may diverge. Try "
            "model=wgan_gp, or network.spectral_norm=true where the network has it.",
            choices.get("loss"),
            choices.get("model"),
        )


def check_columns(model: GenerativeModel, columns: Collection[str], choices: dict[str, str]) -> None:
    """Refuses data without the columns that the model is given or needs.

    Raises:
        UserError: Names the first missing column and the available ones.
    """
    for name in (*model.given, model.gives, *model.needs):
        if name not in columns:
            raise UserError(
                f"model={choices.get('model')} needs the column {name}, and data={choices.get('data')} has "
                f"{', '.join(sorted(columns))}.{CURES.get(name, '')}"
            )


def check_batch_norm(model: nn.Module, share: int) -> None:
    """Refuses batch norm of vectors over a batch of one, which would normalise every value to zero.

    Args:
        model: The model. Its batch norms of images pass, as they normalise over pixels too.
        share: Batch size of one process.

    Raises:
        UserError: If the share is one sample and a network has a batch norm of vectors.
    """
    from torch.nn import BatchNorm1d

    norms = networks_with(model, BatchNorm1d)
    if share == 1 and norms:
        raise UserError(
            f"Batch norm in the {' and '.join(norms)} cannot normalise over a batch of one sample per process. "
            "Try data.batch_size=2 for each process, or network.generator_norm=none."
        )


def check_accumulation(model: GenerativeModel, config: dict[str, Any]) -> None:
    """Refuses gradient accumulation where an update would differ from that of the whole batch.

    A module, the method included, that needs all samples of a batch at once names the reason in its `whole_batch`.

    Raises:
        UserError: If one does, a trick does, nothing is trained by gradients, or the chunks are unequal.
    """
    n, size, tricks_asked = accumulated(config), config["data"].get("batch_size"), config.get("tricks") or {}
    if n == 1:
        return
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"optim.accumulate={n} has no effect on a model without gradients. Leave it out.")
    needing: list[Any] = [part.whole_batch for part in model.modules() if getattr(part, "whole_batch", None)]
    needing += [f"tricks.{name}" for name in ("replay", "feature_matching") if tricks_asked.get(name)]
    if needing:
        raise UserError(
            f"optim.accumulate={n} trains on chunks of a batch, and {needing[0]} needs the whole batch at once. Leave "
            "one of them out."
        )
    unit = n * int(tricks_asked.get("packing") or 1)
    if isinstance(size, int) and size % unit:
        raise UserError(
            f"optim.accumulate={n} needs chunks of equal size, and data.batch_size={size} is no multiple of {unit}. "
            f"Try data.batch_size={max(1, size // unit) * unit}."
        )


def accumulated(config: dict[str, Any]) -> int:
    """Chunks of a batch whose gradients are averaged for each update; 1 in configs older than the key."""
    return int(config["optim"].get("accumulate", 1))


def networks_with(model: nn.Module, kind: type) -> list[str]:
    """Sorted names of the model's parts that contain a layer of this class."""
    return sorted({name.partition(".")[0] for name, part in model.named_modules() if isinstance(part, kind)})


def _with_provided(node: Any, provided: dict[str, Any]) -> Any:
    if not provided or not isinstance(node, dict):
        return node
    if "_target_" in node:
        return {**node, **provided}
    return {key: _with_provided(value, provided) for key, value in node.items()}


def _check_types(config: dict[str, Any]) -> None:
    """Checks the parts of the model against the constructor's annotations, such as EnergyLoss for BEGAN."""
    model = config["model"]
    hints = constructor_hints(locate(model["_target_"], "model"))
    for key, hint in hints.items():
        node = model.get(key)
        if key in model and node is None and inspect.isclass(hint):
            raise UserError(f"model.{key} cannot be null in model={config['choices'].get('model')}; leave it as it is.")
        if not (inspect.isclass(hint) and isinstance(node, dict) and "_target_" in node and not node.get("_partial_")):
            continue
        found = locate(node["_target_"], f"model.{key}")
        if inspect.isclass(found) and not issubclass(found, hint):
            choices = config["choices"]
            group, name = (key, choices[key]) if key in choices else (key, node["_target_"])
            fits = [o for o in options(group) if _is_kind(group, o, hint)] if key in choices else []
            raise UserError(
                f"model={choices.get('model')} cannot be trained with {group}={name}: it needs a {hint.__name__}. "
                f"It fits: {', '.join(f'{group}={o}' for o in fits) or 'none of the shipped ones'}."
            )


def _is_kind(group: str, option: str, wanted: type) -> bool:
    target = read_option(group, option).get("_target_")
    return target is not None and issubclass(locate(target, group), wanted)


def _check_tricks(config: dict[str, Any]) -> None:
    """Checks that the method supports each trick and has the networks that the trick wraps."""
    asked = tricks.asked_for(config.get("tricks") or {})
    method = locate(config["model"]["_target_"], "model")
    taken = [t for t in getattr(method, "tricks_taken", ()) if tricks.finds_its_network(t, config["model"])]
    for name in asked:
        if name not in taken:
            takes = ", ".join(f"tricks.{t}" for t in taken) or "none"
            raise UserError(f"tricks.{name} is not for model={config['choices'].get('model')}, which takes {takes}.")
    # Packs and batch statistics join rows of different conditions; replayed fakes would be judged by later ones.
    coupling = [t for t in ("packing", "minibatch_discrimination", "virtual_batch_norm", "replay") if t in asked]
    if coupling and config["model"].get("given"):
        raise UserError(
            f"tricks.{coupling[0]} does not go with model={config['choices'].get('model')}, whose networks are told "
            f"{', '.join(config['model']['given'])}. Leave it out."
        )
    values = config.get("tricks") or {}
    for name in ("packing", "minibatch_discrimination"):
        if {"replay", name} <= set(asked):
            raise UserError(
                f"tricks.replay does not go with tricks.{name}, which compares the samples of a batch with each other: "
                "replayed fakes come from an earlier generator. Try tricks.replay=0."
            )
    size = config["data"].get("batch_size")
    if asked and isinstance(size, int) and size % values["packing"]:
        raise UserError(f"tricks.packing={values['packing']} must divide data.batch_size={size}.")


def _check_kinds(config: dict[str, Any]) -> None:
    """Checks the kind of the data against the `kinds` that networks and likelihoods declare."""
    kind, choices = config["data"].get("kind"), config["choices"]
    if kind is None:
        return
    for path, node in targets(config["model"], "model"):
        kinds = getattr(locate(node["_target_"], path), "kinds", None)
        if kinds is None or kind in kinds:
            continue
        group = next((g for g in PARTS if node["_target_"] in _all_targets(g)), None)
        fits = [f"{group}={o}" for o in options(group) if kind in _kinds(group, o)] if group else []
        part = f"{group}={choices.get(group)}" if group else node["_target_"]
        raise UserError(
            f"{part} is for data of kind {' or '.join(kinds)}, and data={choices.get('data')} is of kind {kind}. "
            f"It fits: {', '.join(fits) or 'nothing that is shipped'}."
        )


def _all_targets(group: str) -> set[str]:
    return {node["_target_"] for o in options(group) for _, node in targets(read_option(group, o))}


def _kinds(group: str, option: str) -> set[str]:
    """The kinds of data that every part of an option supports."""
    sets = [
        set(getattr(locate(node["_target_"], group), "kinds", ()))
        for _, node in targets(read_option(group, option))
        if getattr(locate(node["_target_"], group), "kinds", None)
    ]
    return set.intersection(*sets) if sets else set()


def _check_choices(config: dict[str, Any]) -> None:
    health = config.get("health") or {}
    if health.get("on_nan", "stop") not in ("stop", "rollback"):
        raise UserError(f"health.on_nan must be stop or rollback, got {health['on_nan']!r}.")
