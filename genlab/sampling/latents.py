"""Interpolations and traversals in latent space, and the search for the latent of a given sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genlab.floats import in_float64

PRIORS = ("normal", "uniform")  # standard normal, uniform on [-1, 1]


def lerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Linear interpolation from a to b.

    Args:
        a: Starts, [N, Z].
        b: Ends, [N, Z].
        t: Positions, [T]; 0 gives exactly a, 1 exactly b.

    Returns:
        [N, T, Z].

    Raises:
        ValueError: If the shapes differ.
    """
    if a.shape != b.shape or a.ndim != 2 or t.ndim != 1:
        raise ValueError(
            f"a and b must be [N, Z] and t [T], got {tuple(a.shape)}, {tuple(b.shape)} and {tuple(t.shape)}."
        )
    t = t.to(a)[None, :, None]
    return torch.where(t == 1, b[:, None], a[:, None] * (1 - t) + b[:, None] * t)


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation from a to b, for standard normal latents, whose norms hardly differ.

    White (2016), arXiv:1609.04468: sin((1 - t) w) / sin w * u + sin(t w) / sin w * v, where w is the angle between the
    unit vectors u = a / |a| and v = b / |b|. The paper has a and b themselves in place of u and v. If their norms
    differ and w is obtuse, its norms fall below both ends; here the norm is interpolated separately, linearly. Both
    versions agree if a and b have the same norm.

    Without a unique arc (equal, opposite or zero ends, or Z = 1) the interpolation is linear.

    Args:
        a: Starts, [N, Z].
        b: Ends, [N, Z].
        t: Positions, [T]; 0 gives exactly a, 1 exactly b.

    Returns:
        [N, T, Z]; on an arc, the norms lie between those of the ends.

    Raises:
        ValueError: If the shapes differ.
    """
    straight = lerp(a, b, t)
    x, y, s = in_float64(a)[:, None], in_float64(b)[:, None], in_float64(t.to(a))[None, :, None]
    norm_x, norm_y = x.norm(dim=2, keepdim=True), y.norm(dim=2, keepdim=True)
    tiny = torch.finfo(torch.float64).tiny
    u, v = x / norm_x.clamp_min(tiny), y / norm_y.clamp_min(tiny)
    # The arc cosine of u.v would round angles below 1e-8 to 0.
    angle = 2 * torch.atan2((u - v).norm(dim=2, keepdim=True), (u + v).norm(dim=2, keepdim=True))
    sine = angle.sin()
    is_arc = (sine > 1e-6) & (norm_x > 0) & (norm_y > 0)
    safe = torch.where(is_arc, sine, 1.0)
    direction = ((1 - s) * angle).sin() / safe * u + (s * angle).sin() / safe * v
    arc = (direction * (norm_x * (1 - s) + norm_y * s)).to(a)
    inside = (s > 0) & (s < 1)
    return torch.where((is_arc & inside).to(a.device), arc, straight)


def interpolate(a: Tensor, b: Tensor, steps: int, prior: str) -> Tensor:
    """Equally spaced latents from a to b that are likely under the prior: `slerp` for a normal one, else `lerp`.

    Args:
        a: Starts, [N, Z].
        b: Ends, [N, Z].
        steps: Number of latents, both ends included; at least 2.
        prior: One of `PRIORS`.

    Returns:
        [N, steps, Z].
    """
    if prior not in PRIORS or steps < 2:
        raise ValueError(f"prior must be one of {PRIORS} and steps at least 2, got {prior!r} and {steps}.")
    t = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)
    return slerp(a, b, t) if prior == "normal" else lerp(a, b, t)


def traverse(z: Tensor, dims: Tensor, steps: int, prior: str, reach: float | None = None) -> Tensor:
    """Traversals: copies of z with one dimension varied at a time.

    Args:
        z: The latent that is varied, [Z].
        dims: Dimensions that are varied, [D].
        steps: Number of values of each, equally spaced from -reach to reach.
        prior: One of `PRIORS`.
        reach: Largest value; None: 3 for a normal prior (standard deviations), 1 for a uniform one (its bound).

    Returns:
        [D, steps, Z].
    """
    reach = reach if reach is not None else {"normal": 3.0, "uniform": 1.0}[prior]
    walks = z.repeat(len(dims), steps, 1)
    values = torch.linspace(-reach, reach, steps, dtype=z.dtype, device=z.device)
    walks[torch.arange(len(dims), device=z.device), :, dims.to(z.device)] = values
    return walks


def activity(codes: Tensor) -> Tensor:
    """Activity of each latent: the variance [Z] over samples of its code, from codes [N, Z].

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
    """Latents whose samples are nearest to the given ones: minimises mean |x - G(z)| over z.

    Berthelot, Schumm & Metz (2017), arXiv:1703.10717, section 4.3, here with Adam. The search starts at the best of
    some prior draws. The learning rate falls to zero along a cosine: near the minimum the gradient of an absolute
    difference does not vanish, and a constant step would oscillate around it.

    Args:
        decode: Maps latents [N, Z] to samples [N, ...], differentiable; each sample depends on its own latent alone.
        x: Target samples, [N, ...].
        starts: Prior draws, [M, Z].
        steps: Steps of Adam.
        lr: Initial learning rate, in units of the latent.
        bound: Latents are clamped to [-bound, bound], for bounded priors; None: no bound.

    Returns:
        The best latents found, [N, Z], and their distances mean |x - G(z)|, [N].
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
            # The gradient of the sum: for each latent, that of its own distance, independent of N.
            (z.grad,) = torch.autograd.grad(distance.sum(), z)
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.step()
            if bound is not None:
                with torch.no_grad():
                    z.clamp_(-bound, bound)
    return best_z.detach(), best.detach()


def go_through(z: Tensor, groups: Sequence[range]) -> Tensor:
    """Traversals of one-hot parts: copies of latents with such a part set to each of its classes.

    Args:
        z: Latents [N, Z].
        groups: Dimensions of the one-hot parts, all of one size K.

    Returns:
        For one group [N, K, Z], a row per latent. For G > 1 groups [G, K, Z], a row per group, of the first latent.
    """
    rows = [(each, groups[0]) for each in z] if len(groups) == 1 else [(z[0], group) for group in groups]
    walks = []
    for each, group in rows:
        walk = each.repeat(len(group), 1)
        walk[:, group.start : group.stop] = torch.eye(len(group)).to(z)
        walks.append(walk)
    return torch.stack(walks)
