"""`tricks.*`: stabilisers of adversarial training that change or wrap a network. Imports no torch."""

from __future__ import annotations

import copy
from typing import Any

NETWORKS = "genlab.networks"
JUDGES = ("discriminator", "critic")


def judges_of(model: dict[str, Any]) -> list[str]:
    """The keys of a model's config that hold a discriminator or critic."""
    return [key for key, node in model.items() if key.endswith(JUDGES) and isinstance(node, dict)]


def wrapped(model: dict[str, Any], tricks: dict[str, Any]) -> dict[str, Any]:
    """The model's config, with its networks in the wrappers of the tricks.

    From the inside out: minibatch discrimination on the features, packs, views. `checks.check` refuses tricks that the
    method does not support.

    Args:
        model: Resolved.
        tricks: The keys of `genlab.config.schema.TricksConfig`.
    """
    model = copy.deepcopy(model)
    for key in judges_of(model):
        node = model[key]
        if tricks["packing"] > 1 and "shape" in node:
            first, *rest = node["shape"]
            node["shape"] = [tricks["packing"] * first, *rest]
        if tricks["minibatch_discrimination"]:
            target = f"{NETWORKS}.minibatch.MinibatchDiscriminator"
            kernels = tricks.get("minibatch_kernels", 100)
            node = {"_target_": target, "discriminator": node, "shape": node.get("shape"), "kernels": kernels}
        if tricks["packing"] > 1:
            node = {"_target_": f"{NETWORKS}.packing.Packed", "discriminator": node, "m": tricks["packing"]}
        views = views_of(tricks)
        if views:
            node = {"_target_": f"{NETWORKS}.views.Viewed", "discriminator": node, "views": views}
        model[key] = node
    if tricks["virtual_batch_norm"] and isinstance(model.get("generator"), dict):
        model["generator"] = {
            "_target_": f"{NETWORKS}.virtual_batch_norm.VirtuallyNormalised",
            "network": model["generator"],
            "shape": [model.get("latent_dim")],
        }
    return model


def finds_its_network(trick: str, model: dict[str, Any]) -> bool:
    """Whether a model's config has the network that the trick changes."""
    return trick != "virtual_batch_norm" or isinstance(model.get("generator"), dict)


def views_of(tricks: dict[str, Any]) -> list[dict[str, Any]]:
    """The views before a discriminator, in order."""
    views: list[dict[str, Any]] = []
    if tricks["augment"]:
        views.append({"_target_": f"{NETWORKS}.views.DiffAugment"})
    if tricks["instance_noise"]:
        noise = {"sigma": tricks["instance_noise"], "until": tricks["instance_noise_until"]}
        views.append({"_target_": f"{NETWORKS}.views.InstanceNoise", **noise})
    return views


def asked_for(tricks: dict[str, Any]) -> list[str]:
    """The names of the tricks that are on."""
    off = {"packing": 1}
    return [name for name, value in tricks.items() if name not in OPTIONS and value != off.get(name, value * 0)]


OPTIONS = ("instance_noise_until", "minibatch_kernels", "replay_size")  # settings of other tricks
