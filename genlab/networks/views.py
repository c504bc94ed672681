"""Random transforms of a discriminator's input, applied to real and fake samples alike.

Views draw only from the stream given to them; gradients pass through them to the generator.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.randomness import Drawing, whole_below

Rand = Callable[..., Tensor]  # rand(n, *shape): uniform draws in [0, 1), [n, *shape]


class View(nn.Module):
    """A random transform of samples."""

    @abstractmethod
    def forward(self, x: Tensor, rand: Rand, progress: float) -> Tensor:
        """Samples [N, ...] as the discriminator sees them.

        Args:
            x: Real or fake samples.
            rand: `rand(n, *shape)` gives uniform draws in [0, 1), [n, *shape], from the model's stream.
            progress: Fraction of training done, in [0, 1].
        """


class InstanceNoise(View):
    """Gaussian noise that fades: x + sigma eps, sigma falling linearly to 0.

    Sonderby et al. (2017), "Amortised MAP Inference", arXiv:1610.04490, section 3.2; Arjovsky & Bottou (2017),
    arXiv:1701.04862. Noise makes the supports of both distributions overlap, so that D cannot separate them.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "points")

    def __init__(self, sigma: float = 0.1, until: float = 0.5) -> None:
        """Sets the schedule.

        Args:
            sigma: Standard deviation at the start, in units of the data.
            until: Fraction of training after which the noise is 0, in (0, 1].

        Raises:
            ValueError: If either is out of range.
        """
        super().__init__()
        if sigma < 0 or not 0 < until <= 1:
            raise ValueError(f"Instance noise needs sigma >= 0 and until in (0, 1], got {sigma} and {until}.")
        self.sigma, self.until = sigma, until

    def level(self, progress: float) -> float:
        """sigma at this fraction of training."""
        return self.sigma * max(0.0, 1 - progress / self.until)

    def forward(self, x: Tensor, rand: Rand, progress: float) -> Tensor:
        """See `View`; draws no random numbers once sigma is 0."""
        sigma = self.level(progress)
        if sigma == 0:
            return x
        # Box and Muller: two uniform numbers make a normal one; 1 - u is never 0.
        radius = (-2 * torch.log1p(-rand(*x.shape))).sqrt()
        return x + sigma * radius * torch.cos(2 * math.pi * rand(*x.shape))


class DiffAugment(View):
    """Differentiable augmentation of images. Zhao et al. (2020), arXiv:2006.10738, section 4 and Appendix A.

    Each image gets its own brightness, saturation and contrast, its own shift, and a square set to 0.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, colour: float = 1.0, translation: float = 0.125, cutout: float = 0.5) -> None:
        """Sets the strengths; 0 switches a part off.

        Args:
            colour: Strength of the three colour transforms; at 1, the paper's value, brightness changes by up to 0.5,
                saturation is multiplied by 0 to 2 and contrast by 0.5 to 1.5.
            translation: Largest shift, as a share of height and width; uncovered pixels are 0.
            cutout: Side of the square that is set to 0, as a share of height and width.

        Raises:
            ValueError: If a strength is not in [0, 1].
        """
        super().__init__()
        for name, strength in (("colour", colour), ("translation", translation), ("cutout", cutout)):
            if not 0 <= strength <= 1:
                raise ValueError(f"The augmentation's {name} must lie in [0, 1], got {strength}.")
        self.colour, self.translation, self.cutout = colour, translation, cutout

    def forward(self, x: Tensor, rand: Rand, progress: float) -> Tensor:
        """See `View`; [N, C, H, W] -> the same shape."""
        if self.colour:
            x = self._coloured(x, rand)
        if self.translation:
            x = self._shifted(x, rand)
        if self.cutout:
            x = self._cut(x, rand)
        return x

    def _coloured(self, x: Tensor, rand: Rand) -> Tensor:
        brightness, saturation, contrast = (2 * rand(len(x), 3, 1, 1, 1) - 1).unbind(dim=1)
        x = x + 0.5 * self.colour * brightness
        grey = x.mean(dim=1, keepdim=True)
        x = grey + (1 + self.colour * saturation) * (x - grey)
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        return mean + (1 + 0.5 * self.colour * contrast) * (x - mean)

    def _shifted(self, x: Tensor, rand: Rand) -> Tensor:
        n, _, h, w = x.shape
        reach = [int(self.translation * side + 0.5) for side in (h, w)]
        padded = F.pad(x, (reach[1], reach[1], reach[0], reach[0]))
        down, right = (whole_below(u, 2 * r + 1) for u, r in zip(rand(n, 2).unbind(dim=1), reach, strict=True))
        rows = (down[:, None] + torch.arange(h, device=x.device))[:, None, :, None]
        columns = (right[:, None] + torch.arange(w, device=x.device))[:, None, None, :]
        samples = torch.arange(n, device=x.device).view(n, 1, 1, 1)
        channels = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
        return padded[samples, channels, rows, columns]

    def _cut(self, x: Tensor, rand: Rand) -> Tensor:
        n, _, h, w = x.shape
        inside = []
        for u, side in zip(rand(n, 2).unbind(dim=1), (h, w), strict=True):
            size = int(self.cutout * side + 0.5)
            # The centre lies anywhere in the image, so the square may extend beyond the edge.
            start = whole_below(u, side + 1 - size % 2) - size // 2
            place = torch.arange(side, device=x.device)
            inside.append((place >= start[:, None]) & (place < start[:, None] + size))
        keep = ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])
        return x * keep


class Viewed(Drawing):
    """A discriminator whose input passes through views in training; in evaluation it reads the samples themselves."""

    def __init__(self, discriminator: nn.Module, views: Sequence[View]) -> None:
        """Puts views before a discriminator.

        Args:
            discriminator: Maps samples [N, ...] to logits.
            views: Views, applied one after the other.
        """
        super().__init__()
        self.discriminator: Any = discriminator
        self.views = nn.ModuleList(views)

    def seen(self, x: Tensor) -> Tensor:
        """Samples [N, ...] after the views, the discriminator's input."""
        if not self.training or self.owner is None:
            return x
        for view in self.views:
            x = view(x, self.rand, self.owner.progress)
        return x

    def features(self, x: Tensor, *told: Batch) -> Tensor:
        """[N, ...] -> [N, F]."""
        return self.discriminator.features(self.seen(x), *told)

    def logits(self, features: Tensor, *told: Batch) -> Tensor:
        """[N, F] -> logits [N]."""
        return self.discriminator.logits(features, *told)

    def forward(self, x: Tensor, *told: Batch) -> Tensor:
        """[N, ...] -> logits [N]."""
        return self.discriminator(self.seen(x), *told)
