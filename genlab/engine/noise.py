"""Noise: one stream of draws that all processes share, and the random states of a process."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor


class Noise:
    """The random stream of training.

    Attributes:
        rng: Its generator; the first draw on another device replaces it by one with the same seed there.
        rank: Number of this process.
        world: Number of processes.
    """

    def __init__(self) -> None:
        """One process, seed 0."""
        self.rng = torch.Generator()
        self.rng.manual_seed(0)
        self.rank, self.world = 0, 1
        self._common = False
        self._chunk, self._chunks = 0, 1  # that draws now, and their number; see `Lockstep`
        self._kept: list[Tensor] = []  # draws for all chunks, which some have not taken yet
        self._taken = 0  # by this chunk

    def draw(
        self,
        draw: Callable[..., Tensor],
        n: int,
        shape: tuple[int, ...],
        rng: torch.Generator | None,
        device: torch.device,
        dtype: torch.dtype | str,
    ) -> Tensor:
        """Draws [n, *shape] of `torch.randn` or `torch.rand`.

        The training stream draws for the global batch, and each process and chunk takes its slice.

        Args:
            draw: The function.
            n: Number of draws of this process and chunk.
            shape: Shape of each draw.
            rng: Another stream; draws from it are this process's own.
            device: Device of the result.
            dtype: Type of the result.
        """
        if rng is not None:
            return draw(n, *shape, generator=rng, device=rng.device, dtype=dtype).to(device)
        if self.rng.device != device:
            self.rng = torch.Generator(device).manual_seed(self.rng.initial_seed())
        parts = 1 if self._common else self.world * self._chunks

        def whole() -> Tensor:
            return draw(n * parts, *shape, generator=self.rng, device=device, dtype=dtype)

        values = whole() if self._chunks == 1 else self._shared(whole)
        if parts == 1:
            return values if self._chunks == 1 else values.clone()
        part = self.rank * self._chunks + self._chunk
        return values[part * n : (part + 1) * n]

    def _shared(self, draw: Callable[[], Tensor]) -> Tensor:
        """The first chunk's draws for all chunks, in their order."""
        if self._taken == len(self._kept):
            self._kept.append(draw())
        self._taken += 1
        return self._kept[self._taken - 1]

    def enter_chunk(self, number: int, chunks: int) -> None:
        """Lets a chunk take its rows of the draws that were made since `forget_draws`."""
        self._chunk, self._chunks, self._taken = number, chunks, 0

    def leave_chunk(self) -> None:
        """Draws for the whole batch of this process again."""
        self._chunk, self._chunks = 0, 1

    def forget_draws(self) -> None:
        """Drops draws that all chunks have taken."""
        self._kept = []

    @contextmanager
    def common(self) -> Iterator[None]:
        """Inside, all processes draw the same numbers: for work on the whole, gathered batch."""
        before, self._common = self._common, True
        try:
            yield
        finally:
            self._common = before


def random_states(noise: torch.Generator) -> dict[str, Any]:
    """All random states of this process as plain containers and tensors."""
    name, keys, position, has_gauss, cached = cast(tuple[str, Any, int, int, float], np.random.get_state())
    return {
        "noise": noise.get_state(),
        "noise_device": noise.device.type,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
    }


def restore_random_states(states: dict[str, Any], noise: torch.Generator) -> None:
    """Restores the result of `random_states`, except for devices that this machine lacks."""
    if states["noise_device"] == noise.device.type:
        noise.set_state(states["noise"].cpu())
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
