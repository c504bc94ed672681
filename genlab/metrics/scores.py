"""Scores with their protocol card; precision and recall, density and coverage, which torchmetrics lacks."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from genlab.floats import in_float64
from genlab.metrics.features import Features
from genlab.seeding import fixed_choice


class Scores(dict[str, float]):
    """Named floats with their protocol card, the settings of their computation.

    `a | b` joins scores and cards, `named("inception")` gives {"fid/inception": ...}.

    Args:
        values: The scores.
        card: Plain values: sizes, seeds, settings, the extractor's card.
    """

    def __init__(self, values: Mapping[str, float] | None = None, card: Mapping[str, Any] | None = None) -> None:
        super().__init__(values or {})
        self.card: dict[str, Any] = dict(card or {})

    def __or__(self, other: Any) -> "Scores":  # type: ignore[override]
        return Scores({**self, **other}, {**self.card, **getattr(other, "card", {})})

    def __ior__(self, other: Any) -> "Scores":  # type: ignore[override]
        return self | other  # dict's operator would lose the cards

    def named(self, extractor: str) -> "Scores":
        """The same scores with `/extractor` after each name."""
        return Scores({f"{key}/{extractor}": value for key, value in self.items()}, self.card)


# --------------------------------------------------------------------------------------------------------------------
# Precision and recall
# --------------------------------------------------------------------------------------------------------------------
def distances(x: Tensor, y: Tensor, reduce: Callable[[Tensor], Tensor], chunk: int = 1024) -> Tensor:
    """`reduce` of the Euclidean distances [n, M] between slices of x [N, D] and all of y [M, D], joined over slices.

    Memory is chunk * M numbers. Float64, and centred: the product form |x|^2 + |y|^2 - 2xy in float32 would
    give an exact copy a distance of 1e-3.
    """
    x, y = in_float64(x), in_float64(y)
    centre = y.mean(dim=0)
    x, y = x - centre, y - centre
    y_square = y.square().sum(dim=1)
    rows = []
    for part in x.split(chunk):
        square = (part.square().sum(dim=1, keepdim=True) + y_square - 2 * part @ y.T).clamp_min_(0)
        rows.append(reduce(square.sqrt_()))
    return torch.cat(rows)


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance [N] from each point to its k-th neighbour; the point itself is the zeroth."""
    return distances(x, x, lambda d: d.kthvalue(k + 1, dim=1).values)


def _sample(found: Features, most: int) -> Tensor:
    return found.features[fixed_choice(found.n, most)]


def precision_recall(
    real: Features, fake: Features, k: int = 3, k_density: int = 5, max_samples: int = 10_000
) -> Scores:
    """Improved precision and recall, and density and coverage.

    Kynkaanniemi et al. (2019), arXiv:1904.06991: precision is the share of fakes within the k-th-neighbour ball of any
    real image, recall the share of reals within the ball of any fake. Naeem et al. (2020), arXiv:2002.09797: density
    counts the real balls around each fake (over k_density; may exceed 1), coverage is the share of real balls that hold
    a fake.

    Args:
        real: Features of real images.
        fake: Features of the samples.
        k: Neighbour that sets the radius, for precision and recall.
        k_density: Neighbour that sets the radius, for density and coverage.
        max_samples: Most features to use of each set (a fixed uniform sample), since the cost grows with the product of
            both numbers.

    Returns:
        {"precision", "recall", "density", "coverage"}. They depend on the numbers of images: see the card.
    """
    x, y = _sample(real, max_samples), _sample(fake, max_samples)
    real_radius, fake_radius, wide_radius = _radii(x, k), _radii(y, k), _radii(x, k_density)
    # Two columns per fake: whether it lies in any real ball, and in how many of the wider balls.
    of_fakes = distances(
        y, x, lambda d: torch.stack([(d <= real_radius).any(dim=1).double(), (d <= wide_radius).sum(dim=1)], dim=1)
    )
    of_reals = distances(
        x, y, lambda d: torch.stack([(d <= fake_radius).any(dim=1).double(), d.min(dim=1).values], dim=1)
    )
    values = {
        "precision": of_fakes[:, 0].mean().item(),
        "recall": of_reals[:, 0].mean().item(),
        "density": of_fakes[:, 1].mean().item() / k_density,
        "coverage": (of_reals[:, 1] <= wide_radius).double().mean().item(),
    }
    card = {"pr_k": k, "pr_k_density": k_density, "pr_n_real": len(x), "pr_n_fake": len(y)}
    return Scores(values, {**fake.card, "n_real": real.n, "n_fake": fake.n, **card})


def rarest_class(real: Features, fake: Features) -> float:
    """The smallest share among the samples of any class of the real images, 0..1; classes are the logits' argmax.

    Classes without a real image do not count, since a generator cannot learn them.

    Args:
        real: With logits.
        fake: Of the samples, with logits.
    """
    of_real, counts = (torch.bincount(each.classes, minlength=each.logits.shape[1]) for each in (real, fake))
    return (counts[of_real > 0].min() / counts.sum()).item()
