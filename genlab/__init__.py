"""genlab: train, compare and teach generative models. Importing it loads nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genlab.models.base import GenerativeModel

__version__ = "0.1.0"


def load(run: Any, *, device: str = "cpu", allow_targets: tuple[str, ...] = ()) -> GenerativeModel:
    """Loads a trained model from a run folder or a checkpoint, ready to `sample(n)`.

    No code in the checkpoint is executed. Its config may name only genlab's own classes, layers and optimizers.

    Args:
        run: A run folder (its last checkpoint is loaded) or a `.ckpt` file.
        device: Device of the model.
        allow_targets: Patterns of further `_target_` names that the config may build, such as "mypackage.*".

    Returns:
        The model in eval mode, with the averaged weights if the run kept an average.

    Raises:
        UserError: If there is no readable checkpoint, or its config names a target that is not allowed.
    """
    from genlab.runs.folder import load_model

    return load_model(run, device=device, allow_targets=allow_targets)
