"""The last and the best weights of a run side by side: the monitored score on validation and on test data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from genlab.callbacks.scores import judged
from genlab.errors import UserError
from genlab.runs import folder

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from genlab.callbacks.checkpoints import Checkpoints
    from genlab.runs.running import Parts


def compare(
    parts: Parts, trainer: pl.Trainer, run_dir: Path, checkpoints: Checkpoints, scores: dict[str, float], finished: bool
) -> dict[str, Any]:
    """The sections `best` and `last` of `run.json`. Every process must call this.

    Args:
        parts: Parts of the run, with the last weights.
        trainer: Its Trainer.
        run_dir: Folder of the run.
        checkpoints: The callback that chose the best weights.
        scores: Test scores of the last weights; empty if there are none.
        finished: Whether the best weights are scored on test data, too; those of an interrupted run are not.
    """
    key, is_last = f"test/{checkpoints.score_name}", checkpoints.best_step == trainer.global_step
    test = scores.get(key)
    best = test if is_last else None
    if finished and not is_last and test is not None:
        best = _best_scores(parts, trainer, run_dir, checkpoints).get(key)
    found: dict[str, dict[str, Any]] = {
        "best": {
            "monitor": checkpoints.monitor,
            "score": checkpoints.best_score,
            "mean_of": checkpoints.smooth,
            "iteration": checkpoints.best_step,
            "idle": checkpoints.idle,
            "validation": checkpoints.best_value,
            "test": best,
        },
        "last": {"iteration": checkpoints.last_step, "validation": checkpoints.last_value, "test": test},
    }
    if test is not None:
        name = checkpoints.score_name or ""
        found["last"]["n"] = {split: parts.judge.count(parts.data, split, name) for split in ("val", "test")}
    return found


def _best_scores(parts: Parts, trainer: pl.Trainer, run_dir: Path, checkpoints: Checkpoints) -> dict[str, float]:
    """Test scores of `best.ckpt`, empty if there is none or it cannot be read. The model keeps its last weights."""
    if checkpoints.best_step is None:
        return {}
    model, device, best = parts.model, parts.model.device, None
    if trainer.is_global_zero:  # the weights of the others come from this one
        try:
            best = folder.read_checkpoint(run_dir / "checkpoints" / "best.ckpt")
        except UserError:
            best = None
    if not trainer.strategy.broadcast(best is not None):
        return {}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    averages = {name: value.clone() for name, value in model.averages.values.items()}
    live = model.averages.values
    try:
        if best is not None:
            with torch.no_grad():
                model.load_state_dict(best["state_dict"])
                for name, value in best["genlab"]["ema"].items():
                    live[name].copy_(value.to(device))
        return judged(lambda *of: parts.judge.rescore(*of, checkpoints.score_name), model, trainer)
    finally:
        model.load_state_dict(weights)
        for name, value in averages.items():
            live[name].copy_(value)
