"""Ways through latent space: interpolations, walks along one latent, and the latent that gives a wanted sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genlab.floats import in_float64

PRIORS = ("normal", "uniform")  # standard normal; uniform on [-1, 1]


def lerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """The straight way from a to b.

    Args:
        a: Starts, [N, Z].
        b: Ends, [N, Z].
        t: Places on the way, [T]; 0 is exactly a, 1 exactly b.

    Returns:
        [N, T, Z].

    Raises:
        ValueError: If the shapes differ.
    """
    if a.shape != b.shape or a.ndim != 2 or t.ndim != 1:
        raise ValueError(
            f"Ends [N, Z] and places [T] wanted, got {tuple(a.shape)}, {tuple(b.shape)}, {tuple(t.shape)}."
        )
    t = t.to(a)[None, :, None]
    return torch.where(t == 1, b[:, None], a[:, None] * (1 - t) + b[:, None] * t)


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """The way from a to b along the arc between them, for standard normal latents, whose norms hardly differ.

    White (2016), arXiv:1609.04468: sin((1 - t) w) / sin w * u + sin(t w) / sin w * v with the angle w of the unit
    vectors u = a / |a| and v = b / |b|. The paper puts a and b themselves in place of u and v; then the norm falls
    below both ends where the angle is obtuse and the norms differ, so here it is interpolated by itself, linearly. For
    ends of one norm the two are the same.

    Where there is no one arc (equal, opposite or zero ends; a latent of one dimension) the way is straight.

    Args:
        a: Starts, [N, Z].
        b: Ends, [N, Z].
        t: Places on the way, [T]; 0 is exactly a, 1 exactly b.

    Returns:
        [N, T, Z], each with a norm between those of its ends.

    Raises:
        ValueError: If the shapes differ.
    """
    straight = lerp(a, b, t)
    x, y, s = in_float64(a)[:, None], in_float64(b)[:, None], in_float64(t.to(a))[None, :, None]
    norm_x, norm_y = x.norm(dim=2, keepdim=True), y.norm(dim=2, keepdim=True)
    tiny = torch.finfo(torch.float64).tiny
    u, v = x / norm_x.clamp_min(tiny), y / norm_y.clamp_min(tiny)
    # Not the arc cosine of u.v, which knows no angle below 1e-8.
    angle = 2 * torch.atan2((u - v).norm(dim=2, keepdim=True), (u + v).norm(dim=2, keepdim=True))
    sine = angle.sin()
    is_arc = (sine > 1e-6) & (norm_x > 0) & (norm_y > 0)
    safe = torch.where(is_arc, sine, 1.0)
    direction = ((1 - s) * angle).sin() / safe * u + (s * angle).sin() / safe * v
    arc = (direction * (norm_x * (1 - s) + norm_y * s)).to(a)
    inside = (s > 0) & (s < 1)
    return torch.where((is_arc & inside).to(a.device), arc, straight)


def interpolate(a: Tensor, b: Tensor, steps: int, prior: str) -> Tensor:
    """Equally spaced latents from a to b that the prior could have drawn: on the arc, or straight for a uniform one.

    Args:
        a: Starts, [N, Z].
        b: Ends, [N, Z].
        steps: How many, both ends included; at least 2.
        prior: One of `PRIORS`.

    Returns:
        [N, steps, Z].
    """
    if prior not in PRIORS or steps < 2:
        raise ValueError(f"A prior of {PRIORS} and at least 2 steps wanted, got {prior!r} and {steps}.")
    t = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)
    return slerp(a, b, t) if prior == "normal" else lerp(a, b, t)


def traverse(z: Tensor, dims: Tensor, steps: int, prior: str, reach: float | None = None) -> Tensor:
    """Latents that differ from one in one dimension each.

    Args:
        z: The point that the walks go through, [Z].
        dims: Which latents are moved, [D].
        steps: Values of each, equally spaced from -reach to reach.
        prior: One of `PRIORS`.
        reach: Default 3 standard deviations of a normal latent, and the bounds of a uniform one.

    Returns:
        [D, steps, Z].
    """
    reach = reach if reach is not None else {"normal": 3.0, "uniform": 1.0}[prior]
    walks = z.repeat(len(dims), steps, 1)
    values = torch.linspace(-reach, reach, steps, dtype=z.dtype, device=z.device)
    walks[torch.arange(len(dims), device=z.device), :, dims.to(z.device)] = values
    return walks


def activity(codes: Tensor) -> Tensor:
    """How much each latent says about the data: the variance [Z] of its code over samples, from codes [N, Z].

    Burda et al. (2016), arXiv:1509.00519, section 5.2: a unit is active if the variance of its posterior mean exceeds
    0.01.
    """
    return codes.var(dim=0, correction=0)


def find_latents(
    decode: Callable[[Tensor], Tensor],
    x: Tensor,
    starts: Tensor,
    *,
    steps: int = 500,
    lr: float = 0.1,
    bound: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The latents whose samples come nearest to the given ones: minimises mean |x - G(z)| over z.

    As Berthelot, Schumm & Metz (2017), arXiv:1703.10717, section 4.3, with Adam. The search starts at the best of some
    prior draws, and its step falls to zero along a cosine: the slope of an absolute difference does not, and a constant
    step would circle around the answer.

    Args:
        decode: Maps latents [N, Z] to samples [N, ...], with gradients; each sample by its own latent alone.
        x: Wanted samples, [N, ...].
        starts: Prior draws, [M, Z].
        steps: Of Adam.
        lr: Its first step size, in units of the latent.
        bound: Latents are kept within [-bound, bound], for priors that know no others.

    Returns:
        The best latents seen, [N, Z], and their distances mean |x - G(z)|, [N].
    """
    targets = x.detach()
    with torch.no_grad():
        drawn = torch.cat([decode(part) for part in starts.split(256)]).flatten(1)
        nearest = [(drawn - target).abs().mean(dim=1).argmin() for target in targets.flatten(1)]
        z = starts[torch.stack(nearest)].clone()
    best_z = z.clone()
    best = torch.full((len(z),), math.inf, dtype=targets.dtype, device=z.device)
    with torch.enable_grad():
        z.requires_grad_(True)
        optimizer = torch.optim.Adam([z], lr=lr)
        for step in range(steps + 1):
            distance = (decode(z) - targets).abs().flatten(1).mean(dim=1)
            with torch.no_grad():
                better = distance < best
                best, best_z = torch.where(better, distance, best), torch.where(better[:, None], z, best_z)
            if step == steps:
                break
            # The sum: each latent has a gradient of its own sample alone, whatever the others are.
            (z.grad,) = torch.autograd.grad(distance.sum(), z)
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.step()
            if bound is not None:
                with torch.no_grad():
                    z.clamp_(-bound, bound)
    return best_z.detach(), best.detach()


def go_through(z: Tensor, groups: Sequence[range]) -> Tensor:
    """Latents whose one-hot parts go through their classes while the rest stays.

    Args:
        z: Latents [N, Z].
        groups: Where the one-hot parts lie, all of one size K.

    Returns:
        [N, K, Z] of one group: a row for each latent. [G, K, Z] of several: the first latent, a row for each group.
    """
    rows = [(each, groups[0]) for each in z] if len(groups) == 1 else [(z[0], group) for group in groups]
    walks = []
    for each, group in rows:
        walk = each.repeat(len(group), 1)
        walk[:, group.start : group.stop] = torch.eye(len(group)).to(z)
        walks.append(walk)
    return torch.stack(walks)
