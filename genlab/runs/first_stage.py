"""A trained run as a frozen part of another run's model: its config and its weights."""

from __future__ import annotations

from typing import Any

from genlab.config.instantiate import check_allowed
from genlab.runs import folder as runs


def freeze_first_stage(model: Any) -> None:
    """Freezes a model's first stage: no gradients, and no updates of running statistics."""
    if getattr(model, "first_stage", None) is not None:
        model.first_stage.requires_grad_(False).eval()


def attach_first_stage(config: dict[str, Any]) -> dict[str, Any]:
    """Puts the model config of the run `first_stage` into this run's, so that its checkpoints are complete.

    `first_stage=RUN` becomes `model.first_stage`, the config of that run's model; the model's constructor takes the
    built model under that name. Its weights are loaded from that run when training starts, and later from this run's
    own checkpoints: the first run may then be moved or deleted.

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
    """Loads the weights of a run (its averages, if it kept any) into the model's frozen first stage."""
    _, path = runs.find_run(run)
    first = runs.load_model(path, allow_targets=allow_targets)
    model.first_stage.load_state_dict(first.state_dict())
