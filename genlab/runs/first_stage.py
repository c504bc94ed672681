"""A trained run as a fixed part of the model of another: its config, its weights, its frozen state."""

from __future__ import annotations

from typing import Any

from genlab.config.instantiate import check_allowed
from genlab.runs import folder as runs


def freeze_first_stage(model: Any) -> None:
    """A first stage is a fixed part of the model on it: no gradients, and no statistics that move."""
    if getattr(model, "first_stage", None) is not None:
        model.first_stage.requires_grad_(False).eval()


def attach_first_stage(config: dict[str, Any]) -> dict[str, Any]:
    """Puts the model config of the run named by `first_stage` into the model, so that checkpoints stand alone.

    `first_stage=RUN` becomes `model.first_stage`, the config of that run's model; the model's constructor takes the
    built model under that name. Its weights come from that run when training starts, and from then on from the
    run's own checkpoints: the first run may be moved or deleted.

    Raises:
        UserError: If the run cannot be found or read.
    """
    if not config.get("first_stage"):
        return config
    _, path = runs.find_run(config["first_stage"])
    first = runs.read_checkpoint(path)["genlab"]["config"]
    check_allowed(first["model"], config["allow_targets"])
    return {**config, "model": {**config["model"], "first_stage": first["model"]}}


def load_first_stage(model: Any, run: str, allow_targets: tuple[str, ...] = ()) -> None:
    """Gives the model's frozen first stage the weights of its run (averaged where it kept an average)."""
    _, path = runs.find_run(run)
    first = runs.load_model(path, allow_targets=allow_targets)
    model.first_stage.load_state_dict(first.state_dict())
