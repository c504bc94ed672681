"""Checks for NaN and Inf: noted values stay on the device and are read at intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from genlab.errors import NotFinite

WATCHED_AT_MOST = 500  # iterations between two checks


class Watch:
    """Noted and recorded values of the iterations since the last check.

    Attributes:
        recorded: Recorded values of this iteration, by the names of their curves.
        logging: Whether they are written at the end of the iteration.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self.recorded: dict[str, Tensor | float] = {}
        self.logging = False
        self.done = 0  # iterations before this one
        self._watched: list[tuple[int, str, str, Tensor]] = []  # iteration, player, "loss" or "gradient", value
        self._history: dict[int, dict[str, Tensor | float]] = {}  # recorded values by iteration

    def begin(self, done: int, logging: bool, average: Callable[[Tensor], Tensor]) -> None:
        """Opens an iteration.

        Args:
            done: Number of iterations before it.
            logging: Whether its values are written.
            average: The mean over processes, for a check that may be due.

        Raises:
            NotFinite: See `check`.
        """
        self.done, self.logging = done, logging
        if len(self._history) >= WATCHED_AT_MOST:
            self.check(average)
        self.recorded = self._history[done + 1] = {}

    def note(self, name: str, value: Tensor, what: str) -> None:
        """Keeps a scalar until the next check: a player's loss, or for its gradient 0 if finite, else 1."""
        self._watched.append((self.done + 1, name, what, value.detach()))

    def check(self, average: Callable[[Tensor], Tensor]) -> None:
        """Checks the values noted since the last check; all processes get the same result.

        Raises:
            NotFinite: If a loss or a gradient was not finite; names the player, the iteration and the terms.
        """
        watched, history = self._watched, self._history
        self._watched, self._history = [], {self.done + 1: self.recorded}
        if not watched:
            return
        values = torch.stack([value.float() for *_, value in watched])
        wanted_zero = torch.tensor([what == "gradient" for _, _, what, _ in watched], device=values.device)
        good = torch.where(wanted_zero, values == 0, values.isfinite())
        bad = (average(good.float()) < 1).nonzero().flatten().tolist()
        if bad:
            step, name, what, value = watched[bad[0]]
            raise NotFinite(_told(step, name, what, value, history.get(step, {})))

    def values(self, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The recorded values of this iteration as numbers, means over processes."""
        names = sorted(self.recorded)
        if not names:
            return {}
        recorded = (self.recorded[n] for n in names)
        found = [v.cpu() if isinstance(v, Tensor) else v for v in recorded]  # first: MPS has no float64
        values = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in found])
        return dict(zip(names, average(values).tolist(), strict=True))


def _told(step: int, name: str, what: str, value: Tensor, values: Mapping[str, Tensor | float]) -> str:
    """A sentence that names the value that is not finite."""
    if what == "gradient":
        return f"the {name}'s gradient was not finite in iteration {step}."
    recorded = {n: torch.as_tensor(v) for n, v in values.items() if not n.startswith("grad_norm")}
    terms = [n for n, v in recorded.items() if not bool(v.isfinite().all())]
    named = f" (not finite: {', '.join(terms)})" if terms else ""
    became = f"became {float(value)}" if not bool(value.isfinite()) else "was not finite on another process"
    return f"the {name}'s loss {became} in iteration {step}{named}."


def of_gradients(parameters: list[nn.Parameter]) -> Tensor:
    """0 if all gradients of the parameters are finite, else 1: a scalar on their device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    found = torch.zeros((), device=parameters[0].device, dtype=torch.float32)
    for dtype in {gradient.dtype for gradient in gradients}:
        # The check of torch.amp's scaler, with a scale of 1: it changes no bit, and costs less than norms.
        torch._amp_foreach_non_finite_check_and_unscale_(
            [g for g in gradients if g.dtype == dtype], found, torch.ones_like(found)
        )
    return found


def check_parameters(players: Mapping[str, list[nn.Parameter]], iteration: int) -> None:
    """Refuses weights that are not finite.

    Raises:
        NotFinite: If a parameter is not; names the player.
    """
    for name, parameters in players.items():
        if not parameters:
            continue
        values = [p.detach() for p in parameters]
        # The norm is fast and overflows beyond 1e19; the greatest value does not.
        if not bool(torch.stack(torch._foreach_norm(values)).isfinite().all()) and not bool(
            torch.stack(torch._foreach_norm(values, torch.inf)).isfinite().all()
        ):
            raise NotFinite(f"parameters of the {name} are no longer finite after iteration {iteration}.")
