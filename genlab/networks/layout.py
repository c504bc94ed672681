"""Networks from captions to boxes, from boxes to masks, and from class maps to pictures.

Hong, Yang, Choi & Lee (2018), "Inferring Semantic Layout for Hierarchical Text-to-Image Synthesis", arXiv:1801.05091,
sections 4 to 6; there is no authors' code.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.fields.label import one_hot
from genlab.losses.mixtures import choose, draw_mixture, log_mixture, numbers_of
from genlab.losses.numerics import at_least_float32
from genlab.networks.conditions import SLOPE, tiled
from genlab.networks.init import check_norm, check_positive, dcgan_init_, norm_layer
from genlab.networks.places import inside

LEAST = 0.02  # drawn sides of a box, relative to the picture


class Reader(nn.Module):
    """A caption's vector to the first state of a `BoxNetwork`.

    Args:
        shape: (F,), the width of the vector.
        state_dim: S.
    """

    def __init__(self, shape: Sequence[int], state_dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(int(shape[0]), state_dim), nn.Tanh())

    def forward(self, t: Tensor) -> Tensor:
        """[N, F] -> [N, S]."""
        return self.body(t)


class BoxNetwork(nn.Module):
    """p(boxes | caption), one box after the other: section 4.1.

    Each is p(label) p(x, y | label) p(w, h | x, y, label), the last two mixtures of bivariate Gaussians; a last label
    says that there are no more. Middles and sides are scaled to [-1, 1].

    Args:
        classes: L, of the boxes.
        state_dim: S, of the LSTM.
        components: Gaussians of a mixture (5 in the paper).
    """

    def __init__(self, classes: int, state_dim: int = 128, components: int = 5) -> None:
        super().__init__()
        check_positive("model.boxes.classes", classes, cure="3")
        self.classes = classes
        self.lstm = nn.LSTMCell(classes + 4, state_dim)
        self.label = nn.Linear(state_dim, classes + 1)
        self.place = nn.Linear(state_dim + classes, numbers_of(components))
        self.size = nn.Linear(state_dim + classes + 2, numbers_of(components))

    def nats(self, start: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """-log p of labels (with the end) and of places and sizes of boxes [N, K, 5] from states [N, S]: [N] each.

        Each box is told the true ones before it, and its size its true label and place. Both are sums over boxes.
        """
        kind, there = boxes[:, :, 0], boxes[:, :, 0] >= 0
        read = torch.cat([one_hot(kind, self.classes).to(start.dtype), _scaled(boxes).to(start.dtype)], dim=2)
        read = read * there.unsqueeze(2)
        before = F.pad(read[:, :-1], (0, 0, 1, 0))
        state, states = (start, torch.zeros_like(start)), []
        for one in before.unbind(dim=1):
            state = self.lstm(one, state)
            states.append(state[0])
        h = torch.stack(states, dim=1)
        told, (place, size) = read[:, :, : self.classes], read[:, :, self.classes :].split(2, dim=2)
        target = torch.where(there, kind, self.classes).long()
        logits = at_least_float32(self.label(h))
        label = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        reached = F.pad(there[:, :-1], (1, 0), value=True)  # the label behind the last box says that it was the last
        where = log_mixture(place, self.place(torch.cat([h, told], dim=2)))
        sides = log_mixture(size, self.size(torch.cat([h, told, place], dim=2)))
        return (label * reached).sum(dim=1), -((where + sides) * there).sum(dim=1)

    def draw(self, start: Tensor, u: Tensor, eps: Tensor, temperature: float = 1.0) -> Tensor:
        """Draws boxes [N, K, 5] within the picture; no more follow a label that says so.

        Args:
            start: States [N, S].
            u: Uniform draws [N, K, 3], for labels and components.
            eps: Standard normal draws [N, K, 4].
            temperature: Of labels and mixtures, see `draw_mixture`.
        """
        state = (start, torch.zeros_like(start))
        read = start.new_zeros(len(start), self.classes + 4)
        there = torch.ones_like(start[:, 0], dtype=torch.bool)
        boxes = []
        for step in range(u.shape[1]):
            state = self.lstm(read, state)
            h = state[0]
            label = choose(self.label(h) / temperature, u[:, step, 0])
            there = there & (label < self.classes)
            told = one_hot(label, self.classes).to(h.dtype)
            where = self.place(torch.cat([h, told], dim=1))
            place = draw_mixture(where, u[:, step, 1], eps[:, step, :2], temperature).to(h.dtype)
            size = self.size(torch.cat([h, told, place], dim=1))
            size = draw_mixture(size, u[:, step, 2], eps[:, step, 2:], temperature).to(h.dtype)
            box = _unscaled(label, torch.cat([place, size], dim=1), there)
            boxes.append(box)
            read = torch.cat([told, _scaled(box[:, None])[:, 0].to(h.dtype)], dim=1) * there.unsqueeze(1)
        return torch.stack(boxes, dim=1)


def _scaled(boxes: Tensor) -> Tensor:
    """Middles and sides of boxes [N, K, 5], scaled to [-1, 1]: [N, K, 4]."""
    corner, sides = boxes[:, :, 1:].split(2, dim=2)
    return torch.cat([2 * corner + sides - 1, 2 * sides - 1], dim=2)


def _unscaled(label: Tensor, scaled: Tensor, there: Tensor) -> Tensor:
    """Boxes [N, 5] of labels [N] and scaled middles and sides [N, 4], cut at the picture's edges."""
    middle, sides = ((scaled + 1) / 2).split(2, dim=1)
    sides = sides.clamp(LEAST, 1)
    corner = torch.minimum((middle - sides / 2).clamp_min(0), 1 - sides)
    box = torch.cat([label.unsqueeze(1).to(scaled.dtype), corner, sides], dim=1)
    return torch.where(there.unsqueeze(1), box, box.new_tensor([-1.0, 0, 0, 0, 0]))


class MaskGenerator(nn.Module):
    """Noise and boxes to a mask for each box: section 4.2. A convolutional LSTM reads the boxes in both directions.

    Args:
        latent_dim: Z.
        classes: Of the boxes.
        shape: (..., H, W) of the masks; 4 divides both sides.
        width: Channels.
        norm: One of batch, instance, layer, none.
    """

    def __init__(
        self, latent_dim: int, classes: int, shape: Sequence[int], width: int = 32, norm: str = "batch"
    ) -> None:
        super().__init__()
        check_positive("model.masks.width", width)
        self.classes, self.sides = classes, (int(shape[-2]), int(shape[-1]))
        self.read = nn.Sequential(*_halved(classes, width, norm), *_halved(width, width, norm))
        self.forwards, self.backwards = _ConvLSTM(width, width), _ConvLSTM(width, width)
        self.join = nn.Sequential(nn.Conv2d(2 * width + latent_dim, width, 3, padding=1), nn.LeakyReLU(SLOPE))
        layers: list[nn.Module] = [nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(SLOPE)]
        for _ in range(2):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(SLOPE)]
        self.draw = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, z: Tensor, boxes: Tensor) -> Tensor:
        """Latents [N, Z] and boxes [N, K, 5] -> masks [N, K, H, W] in [0, 1], exactly 0 outside of their boxes."""
        k, filled = boxes.shape[1], filled_boxes(boxes, self.classes, *self.sides).to(z.dtype)
        h = self.read(filled.flatten(0, 1)).unflatten(0, (-1, k))
        both = torch.cat([self.forwards(h), self.backwards(h.flip(1)).flip(1)], dim=2).flatten(0, 1)
        noise = tiled(z.repeat_interleave(k, dim=0), both.shape[2:])
        where = filled.amax(dim=2).flatten(0, 1).unsqueeze(1)
        drawn = self.join(torch.cat([both, noise], dim=1))
        drawn = drawn * F.adaptive_max_pool2d(where, drawn.shape[2:])
        return (torch.sigmoid(self.draw(drawn)) * where).squeeze(1).unflatten(0, (-1, k))


class _ConvLSTM(nn.Module):
    """Maps [N, K, C, h, w] one after the other -> states [N, K, S, h, w]. Shi et al. (2015), arXiv:1506.04214."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.gates, self.wide = nn.Conv2d(channels + wide, 4 * wide, 3, padding=1), wide

    def forward(self, maps: Tensor) -> Tensor:
        state = cell = maps.new_zeros(len(maps), self.wide, *maps.shape[3:])
        states = []
        for one in maps.unbind(dim=1):
            enter, forget, leave, new = self.gates(torch.cat([one, state], dim=1)).chunk(4, dim=1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
            state = torch.sigmoid(leave) * torch.tanh(cell)
            states.append(state)
        return torch.stack(states, dim=1)


class Painter(nn.Module):
    """Maps to a picture in [-1, 1]: down to a quarter and up again, with the maps of each size beside those going up.

    Args:
        shape: (C, H, W) of the maps; 4 divides both sides.
        channels: Of the picture.
        width: Channels of the first maps, doubled with each halving.
        norm: One of batch, instance, layer, none.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, shape: Sequence[int], channels: int, width: int = 32, norm: str = "batch") -> None:
        super().__init__()
        check_positive("model.painter.width", width)
        self.first = nn.Sequential(nn.Conv2d(int(shape[0]), width, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(*_halved(width, 2 * width, norm))
        self.third = nn.Sequential(*_halved(2 * width, 4 * width, norm))
        self.up = nn.Sequential(*_doubled(4 * width, 2 * width, norm))
        self.last_up = nn.Sequential(*_doubled(4 * width, width, norm))
        self.end = nn.Sequential(nn.Conv2d(2 * width, channels, 3, padding=1), nn.Tanh())
        dcgan_init_(self)

    def forward(self, maps: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, channels, H, W]."""
        whole = self.first(maps)
        half = self.second(whole)
        h = torch.cat([self.up(self.third(half)), half], dim=1)
        return self.end(torch.cat([self.last_up(h), whole], dim=1))


def _halved(channels: int, wide: int, norm: str) -> list[nn.Module]:
    bias = check_norm(norm) == "none"
    return [
        nn.Conv2d(channels, wide, 4, stride=2, padding=1, bias=bias),
        norm_layer(norm, wide),
        nn.LeakyReLU(SLOPE),
    ]


def _doubled(channels: int, wide: int, norm: str) -> list[nn.Module]:
    bias = check_norm(norm) == "none"
    return [nn.ConvTranspose2d(channels, wide, 4, stride=2, padding=1, bias=bias), norm_layer(norm, wide), nn.ReLU()]


def filled_boxes(boxes: Tensor, classes: int, height: int, width: int) -> Tensor:
    """Of each box [N, K, 5] the cells whose middle lies in it, in the map of its class: [N, K, classes, H, W]."""
    filled = inside(boxes.flatten(0, 1), height, width).unflatten(0, boxes.shape[:2])
    return one_hot(boxes[:, :, 0], classes)[..., None, None] * filled.unsqueeze(2)


def masks_of(layout: Tensor, boxes: Tensor) -> Tensor:
    """The masks of boxes [N, K, 5] in a class map [N, H, W]: the pixels of the box's class in it, [N, K, H, W].

    Class c of the boxes is class c + 1 of the map, whose class 0 is the background.
    """
    filled = inside(boxes.flatten(0, 1), *layout.shape[1:]).unflatten(0, boxes.shape[:2])
    return filled * (layout.unsqueeze(1) == boxes[:, :, 0, None, None].long() + 1)


def layout_of(masks: Tensor, boxes: Tensor) -> Tensor:
    """The class map [N, H, W] of masks [N, K, H, W]: of the largest mask above 1/2 the box's class, else background."""
    most, which = masks.max(dim=1)
    kinds = (boxes[:, :, 0].long() + 1)[:, :, None, None].expand(-1, -1, *masks.shape[2:])
    return torch.where(most > 0.5, kinds.gather(1, which.unsqueeze(1)).squeeze(1), 0)
