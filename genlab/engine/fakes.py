"""The fakes of one step."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor


class Fakes:
    """A batch of fakes for the discriminator's turn, and the fakes of the generator's turn.

    Attributes:
        z: Latents [N, Z] of the batch that was generated last.
    """

    def __init__(
        self,
        generator: Callable[[Tensor], Tensor],
        noise: Callable[[], Tensor],
        reuse: bool,
        mixed: Callable[[Tensor], Tensor],
    ) -> None:
        """Generates the batch.

        Args:
            generator: Maps latents [N, Z] to samples [N, ...].
            noise: Draws latents [N, Z].
            reuse: Whether the generator is trained on the discriminator's batch (`speed.reuse_fakes`).
            mixed: Replaces some samples of a batch without graph by earlier fakes (`tricks.replay`).
        """
        self._generator, self._noise, self._reuse, self._mixed = generator, noise, reuse, mixed
        self.z = noise()
        with torch.set_grad_enabled(reuse):
            self._drawn = generator(self.z)

    @cached_property
    def shown(self) -> Tensor:
        """The discriminator's fakes [N, ...], without graph; under `tricks.replay` some are earlier ones."""
        return self._mixed(self._drawn.detach())

    def again(self) -> Tensor:
        """The generator's fakes [N, ...], with graph: a new batch, or under `speed.reuse_fakes` the same one."""
        if self._reuse:
            return self._drawn
        self.z = self._noise()
        return self._generator(self.z)
