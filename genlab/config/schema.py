"""The typed keys of every run's config, by which Hydra refuses a misspelt key or a wrong type."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from genlab.config import resolvers
from genlab.config.shipped import config_dir


@dataclass
class TrainerConfig:
    """Length and devices of a training; most keys go to Lightning's Trainer unchanged, and it gets no others."""

    max_steps: int = 5000
    accelerator: str = "auto"
    devices: Any = 1
    num_nodes: int = 1
    strategy: str = "auto"
    sync_batchnorm: bool = False
    deterministic: bool = False
    benchmark: bool | None = None
    detect_anomaly: bool = False
    log_every_n_steps: int = 50


@dataclass
class OptimConfig:
    """Settings of all players: largest gradient norm, chunks of a batch for one update, factor on learning rates."""

    clip: float | None = None
    accumulate: int = 1
    lr_scale: float = 1.0


@dataclass
class SpeedConfig:
    """Speed switches; null: the preset's choice, which depends on the model and the device.

    `preset` is exact or fast; `precision` one of float32, bfloat16, float16 (GPU), float64.
    """

    preset: str = "exact"
    precision: str | None = None
    reuse_fakes: bool | None = None
    channels_last: bool | None = None
    fused: bool | None = None
    compile: bool | None = None
    tf32: bool | None = None


@dataclass
class TricksConfig:
    """Stabilisers of adversarial training, all off; see docs/methods.md."""

    feature_matching: bool = False
    minibatch_discrimination: bool = False
    minibatch_kernels: int = 100
    historical_averaging: float = 0.0
    virtual_batch_norm: bool = False
    instance_noise: float = 0.0
    instance_noise_until: float = 0.5
    augment: bool = False
    packing: int = 1
    replay: float = 0.0
    replay_size: int = 1024


@dataclass
class EMAConfig:
    """Decay of the moving average of the sampled networks' weights; 0 for none."""

    decay: float = 0.999


@dataclass
class CheckpointConfig:
    """Interval and number of checkpoints, the choice of the best one, and the early end.

    `monitor` is the score that chooses (null: the judge's own), by the mean of `smooth` validations; `early_stop` such
    means without a better one end training.
    """

    every_n_steps: int = 500
    keep: int = 1
    monitor: str | None = None
    smooth: int = 3
    early_stop: int | None = None


@dataclass
class HealthConfig:
    """Reaction to a NaN: `stop`, or `rollback` to the last checkpoint with another seed (at most `max_rollbacks`)."""

    on_nan: str = "stop"
    max_rollbacks: int = 3


@dataclass
class TrainConfig:
    """All top-level keys of `train.yaml`."""

    data: Any = MISSING
    model: Any = MISSING
    network: Any = None
    loss: Any = None
    likelihood: Any = None
    prior: Any = None
    posterior: Any = None
    kl: Any = None
    penalty: Any = None
    adversary: Any = None
    conditioning: Any = None
    scheduler: Any = None
    derive: Any = None
    metrics: Any = None
    callbacks: Any = None
    logger: Any = None
    stages: Any = None
    first_stage: Any = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    tricks: TricksConfig = field(default_factory=TricksConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    seed: int = 0
    threads: int | None = None
    max_time: str | None = None
    max_cpu_time: float | None = None
    init_from: str | None = None
    allow_targets: list[str] = field(default_factory=list)
    dry_run: bool = False


PARTS = (
    "loss",
    "likelihood",
    "prior",
    "posterior",
    "kl",
    "penalty",
    "adversary",
    "network",
)  # groups whose options are parts of a model
PARTS_OF_DATA = "part_of_data"  # group of the data sets that others are made of, with the options of the group data
SECTIONS = {  # the sections of typed keys, and their keys
    f.name: {key.name for key in fields(f.default_factory)}  # type: ignore[arg-type]
    for f in fields(TrainConfig)
    if is_dataclass(f.default_factory)
}


def part_of_data(path: Path) -> dict[str, Any]:
    """An option of the group `data` as a part of another one: without the network and the metrics that it chooses."""
    import yaml

    option = yaml.safe_load(path.read_text())
    own = [line for line in option["defaults"] if not (isinstance(line, dict) and "@_global_" in next(iter(line)))]
    return {**option, "defaults": own}


@cache
def register() -> None:
    """Registers the schema and genlab's resolvers with Hydra, once."""
    from hydra.core.config_store import ConfigNode, ConfigStore
    from omegaconf import OmegaConf

    class Part(ConfigNode):
        """A part of data whose yaml is read when it is chosen: reading all takes a tenth of a second."""

        def __init__(self, path: Path) -> None:
            self.path = path
            self.name, self.group, self.package, self.provider = path.name, PARTS_OF_DATA, None, None

        @property
        def node(self) -> Any:
            return vars(self).get("_node") or OmegaConf.create(part_of_data(self.path))

        @node.setter
        def node(self, value: Any) -> None:
            self._node = value

    store = ConfigStore.instance()
    store.store("train_schema", TrainConfig)
    store.repo[PARTS_OF_DATA] = {path.name: Part(path) for path in sorted((config_dir() / "data").glob("*.yaml"))}
    resolvers.register()


register()
