"""The keys that every run has, typed, so that Hydra refuses a misspelt key or a wrong type by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class TrainerConfig:
    """How long and on what; most of it goes to Lightning's Trainer as it is."""

    max_steps: int = 5000
    accelerator: str = "auto"
    devices: Any = 1
    num_nodes: int = 1
    strategy: str = "auto"
    deterministic: bool = False
    log_every_n_steps: int = 50


@dataclass
class OptimConfig:
    """What holds for every player's optimizer."""

    clip: float | None = None


@dataclass
class EMAConfig:
    """The moving average of what is sampled; 0 for none."""

    decay: float = 0.999


@dataclass
class CheckpointConfig:
    """When checkpoints are written, and by which score the best one is chosen (null: the metrics' own)."""

    every_n_steps: int = 500
    keep: int = 1
    monitor: str | None = None


@dataclass
class TrainConfig:
    """All top-level keys of `train.yaml`."""

    data: Any = MISSING
    model: Any = MISSING
    network: Any = None
    loss: Any = None
    likelihood: Any = None
    metrics: Any = None
    callbacks: Any = None
    logger: Any = None
    stages: Any = None
    first_stage: Any = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = 0
    threads: int | None = None
    max_time: str | None = None
    init_from: str | None = None
    allow_targets: list[str] = field(default_factory=list)
    dry_run: bool = False


def register() -> None:
    """Makes the schema and genlab's resolvers known to Hydra. Safe to call again."""
    from datetime import datetime

    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    def image_shape(channels: int, size: Any) -> list[int]:
        return [channels, size, size] if isinstance(size, int) else [channels, *size]

    def stamp() -> str:
        """Now, to the millisecond: two runs started within one second still get two folders."""
        return datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3]

    ConfigStore.instance().store("train_schema", TrainConfig)
    OmegaConf.register_new_resolver("genlab.image_shape", image_shape, replace=True)
    OmegaConf.register_new_resolver("genlab.times", lambda a, b: a * b, replace=True)
    OmegaConf.register_new_resolver("genlab.stamp", stamp, replace=True, use_cache=True)


register()
