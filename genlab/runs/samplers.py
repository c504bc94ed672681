"""Builds samplers, fits them to a run, and keeps the fits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
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
FIT_SEED = 2020  # of the draws in a fit; one fit serves all seeds of sampling


def build_sampler(name: str, settings: Mapping[str, Any] | None = None) -> Sampler:
    """A sampler by the name of its config, not yet fitted.

    Raises:
        UserError: If the name or a setting is unknown, or a value has a wrong type.
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
    progress: Callable[[str, float], None] | None = None,
) -> Sampler:
    """A sampler fitted to a checkpoint. A kept fit is loaded; otherwise the sampler is fitted now, and the fit kept.

    Args:
        name: Name of the sampler's config.
        settings: Changes of its settings.
        model: The model of the checkpoint.
        checkpoint: Its file; the fit is kept as `samplers/<name>-<hash>.pt` in the run folder.
        data_root: Folder of the run's data on this machine.
        allow_targets: As for `genlab.load`.
        progress: That of the sampler; None to show nothing.

    Raises:
        UserError: If the sampler does not fit the model, or its data cannot be read.
    """
    import torch

    from genlab.extractors.checksums import file_checksum
    from genlab.seeding import preserved_random_states

    sampler = build_sampler(name, settings)
    sampler.progress = progress or sampler.progress
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
    """Loads a kept fit, if it is readable and has the same settings. Returns whether it did."""
    import torch

    if not path.is_file():
        return False
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        if kept["format"] != FORMAT or kept["fitted_by"] != fitted_by:
            return False
        sampler.load_state_dict(kept["state"])
        sampler.report = dict(kept["report"])
    except Exception as error:  # damage can raise any error in torch
        log.warning("%s cannot be read (%s); the sampler is fitted anew.", path, str(error).partition("\n")[0][:100])
        return False
    return True


def _keep(sampler: Sampler, path: Path, fitted_by: dict[str, Any]) -> None:
    """Writes a fit as plain containers and tensors; if the folder is not writable, only warns."""
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
    """Normalised samples of the run's own data, the same in every call.

    Raises:
        UserError: If they cannot be read.
    """
    import torch

    from genlab.runs.folder import load_data

    try:
        data = load_data(model.run_config, root, allow)
        store = data.split(sampler.split)
    except UserError as error:
        without = " Or do without them, less well: sampler.calibrate=false sampler.d_steps=0"
        raise UserError(
            f"sampler={sampler.name} is fitted to the run's data, which cannot be read. {error}"
            + (without if sampler.needs_data == "optional" else "")
        ) from error
    rows = torch.randperm(len(store), generator=torch.Generator().manual_seed(FIT_SEED))[: sampler.data_samples]
    return data.spec.x.normalise(store.gather(rows.sort().values))
