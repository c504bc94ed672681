"""Builds samplers, fits them to a run, and keeps what was fitted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.config.samplers import sampler_config
from genlab.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from genlab.models.base import GenerativeModel
    from genlab.sampling.base import Sampler

log = logging.getLogger("genlab")
FORMAT = 1  # of the files in samplers/
FIT_SEED = 2020  # of what is drawn in a fit: one fit serves all seeds of sampling


def build_sampler(name: str, settings: Mapping[str, Any] | None = None) -> Sampler:
    """A sampler by the name of its config, not yet fitted.

    Raises:
        UserError: If name or settings are not right.
    """
    from genlab.config.instantiate import check_allowed, check_signatures, instantiate

    config = sampler_config(name, settings or {})
    check_allowed(config)
    check_signatures(config, "sampler")
    sampler: Sampler = instantiate(config)
    return sampler


def ready_sampler(
    name: str,
    settings: Mapping[str, Any],
    model: GenerativeModel,
    checkpoint: Path,
    data_root: str | None = None,
    allow_targets: tuple[str, ...] = (),
) -> Sampler:
    """A sampler that is fitted to a checkpoint: from what was kept beside it, or fitted now and kept.

    Args:
        name: Of the config.
        settings: What is changed in it.
        model: The model of the checkpoint.
        checkpoint: Its file; `samplers/<name>-<hash>.pt` lies in the folder above.
        data_root: Where the run's data lie on this machine.
        allow_targets: As for `genlab.load`.

    Raises:
        UserError: If the sampler does not fit the model, or its data cannot be read.
    """
    import torch

    from genlab.metrics.files import file_checksum
    from genlab.seeding import preserved_random_states

    sampler = build_sampler(name, settings)
    sampler.check(model)
    if not sampler.fitted_by:
        return sampler
    home = checkpoint.resolve().parent.parent / "samplers"
    path = home / f"{name}-{file_checksum(checkpoint)[:12]}.pt"
    fitted_by = {key: _plain(value) for key, value in fit_settings(name, settings, sampler).items()}
    if _take_kept(sampler, path, fitted_by):
        return sampler
    data = None
    if sampler.needs_data != "no":
        data = _real_samples(sampler, model, data_root, allow_targets)
    log.info("fitting sampler=%s; it is kept in %s", name, path)
    with preserved_random_states():
        sampler.fit(model, data, torch.Generator().manual_seed(FIT_SEED))
    _keep(sampler, path, fitted_by)
    return sampler


def fit_settings(name: str, settings: Mapping[str, Any], sampler: Sampler) -> dict[str, Any]:
    """The settings that a fit depends on."""
    config = sampler_config(name, settings)
    return {key: config[key] for key in sampler.fitted_by}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _take_kept(sampler: Sampler, path: Path, fitted_by: dict[str, Any]) -> bool:
    """Loads what was kept, if it is readable and was fitted with the same settings."""
    import torch

    if not path.is_file():
        return False
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        if kept["format"] != FORMAT or kept["fitted_by"] != fitted_by:
            return False
        sampler.load_state_dict(kept["state"])
        sampler.report = dict(kept["report"])
    except Exception as error:  # torch raises whatever the damage leads to
        log.warning("%s cannot be read (%s); the sampler is fitted anew.", path, str(error).partition("\n")[0][:100])
        return False
    return True


def _keep(sampler: Sampler, path: Path, fitted_by: dict[str, Any]) -> None:
    """Writes plain containers and tensors; a folder that may not be written to costs only the keeping."""
    import torch

    from genlab.files import write_atomic

    state = {key: value.detach().cpu().contiguous() for key, value in sampler.state_dict().items()}
    content = {
        "format": FORMAT,
        "sampler": sampler.name,
        "fitted_by": fitted_by,
        "state": state,
        "report": sampler.report,
    }
    try:
        write_atomic(path, lambda file: torch.save(content, file))
    except OSError as error:
        log.warning("The fitted sampler could not be kept in %s (%s).", path, error.strerror)


def _real_samples(sampler: Sampler, model: GenerativeModel, root: str | None, allow: tuple[str, ...]) -> Tensor:
    """Samples of the run's own data as the model knows them, always the same ones.

    Raises:
        UserError: If they cannot be read.
    """
    import torch

    from genlab.data.stream import normalise
    from genlab.runs.folder import load_data

    try:
        store = load_data(model.run_config, root, allow).split(sampler.split)
    except UserError as error:
        without = " Or do without them, less well: sampler.calibrate=false sampler.d_steps=0"
        raise UserError(
            f"sampler={sampler.name} is fitted to the run's data, which are not there. {error}"
            + (without if sampler.needs_data == "optional" else "")
        ) from error
    rows = torch.randperm(len(store), generator=torch.Generator().manual_seed(FIT_SEED))[: sampler.data_samples]
    return normalise(store.gather(rows.sort().values))
