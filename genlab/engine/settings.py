"""Settings of a run, whatever its method. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

# Tricks of a method that trains one generator against a discriminator's logits, with `fakes` and `generator_loss`.
ALL_TRICKS = (
    "historical_averaging",
    "virtual_batch_norm",
    "replay",
    "feature_matching",
    "minibatch_discrimination",
    "instance_noise",
    "augment",
    "packing",
)


@dataclass(frozen=True)
class Speed:
    """Switches that make training faster and change its floating-point numbers; all off is exact mode.

    The precision is set in Lightning (`speed.precision` chooses its plugin). Idle players are always frozen.

    Attributes:
        reuse_fakes: The generator is trained on the discriminator's last fakes instead of new ones, which saves one
            forward pass of the generator.
        channels_last: Images and convolutions keep their channels innermost, the layout of the fast kernels.
        fused: Optimizers step in one kernel, if they have one.
        compile: Networks are compiled by `torch.compile`; second derivatives and all judging stay eager.
        tf32: A GPU may multiply float32 in TF32 (11 bits) where torch allows it, by default in convolutions.
    """

    reuse_fakes: bool = False
    channels_last: bool = False
    fused: bool = False
    compile: bool = False
    tf32: bool = False


@dataclass(frozen=True)
class Tricks:
    """Stabilisers that change the step of any GAN, all off by default; those that change a network wrap it.

    Attributes:
        historical_averaging: Weight of |theta - mean of its own past|^2 in each player's loss. Salimans et al. (2016),
            arXiv:1606.03498, section 3.3.
        feature_matching: The generator lowers the distance between the means of the discriminator's features on real
            samples and on fakes, instead of its adversarial loss. Same paper, section 3.1.
        replay: Share of the fakes shown to the discriminator that come from a buffer of earlier ones.
        replay_size: Number of fakes in the buffer, over all processes.
    """

    historical_averaging: float = 0.0
    feature_matching: bool = False
    replay: float = 0.0
    replay_size: int = 1024


@dataclass(frozen=True)
class Settings:
    """Settings of a run, whatever its method; the command line fills them from `optim`, `ema`, `speed` and `seed`.

    Attributes:
        seed: Seeds the noise of training (the same on every process) and the global streams (one per process).
        clip: Largest gradient norm of each player's update; None for no clipping. A player's own clip wins.
        accumulate: Number of chunks of a batch whose gradients are averaged for each update.
        lr_scale: Factor on every player's learning rate, so that one number scales methods with different optimizers.
        ema_decay: Decay of the moving average per iteration, 0 for none (then the live weights are judged).
        log_every_n_steps: Interval in iterations at which recorded values are written, and checked for NaN.
        speed: Speed switches.
        tricks: Stabilisers of adversarial training.
    """

    seed: int = 0
    clip: float | None = None
    accumulate: int = 1
    lr_scale: float = 1.0
    ema_decay: float = 0.0
    log_every_n_steps: int = 50
    speed: Speed = Speed()
    tricks: Tricks = Tricks()
