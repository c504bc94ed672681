"""Networks that are told what to draw and where, by boxes or by keypoints.

Reed, Akata, Mohan, Tenka, Schiele & Lee (2016), "Learning What and Where to Draw", arXiv:1610.02454, after the authors'
code (reedscot/nips2016). The paper draws one bird; here there may be several boxes, whose maps are added up, and each
box has its class.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from genlab.fields.label import one_hot
from genlab.networks.conditions import SLOPE, bumps, tiled
from genlab.networks.init import check_norm, check_positive, dcgan_init_, image_scales, norm_layer
from genlab.networks.places import crop, inside, place

TEXT = 128  # numbers that the condition's vector becomes


def _embedding(vector_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(vector_dim, TEXT), nn.LeakyReLU(SLOPE))


def _up(channels: int, wide: int, norm: str) -> list[nn.Module]:
    """[N, channels, h, w] -> [N, wide, 2 h, 2 w]."""
    bias = check_norm(norm) == "none"
    return [nn.ConvTranspose2d(channels, wide, 4, stride=2, padding=1, bias=bias), norm_layer(norm, wide), nn.ReLU()]


def _down(channels: int, wide: int, norm: str) -> list[nn.Module]:
    """[N, channels, h, w] -> [N, wide, h / 2, w / 2]."""
    convolution = nn.Conv2d(channels, wide, 4, stride=2, padding=1, bias=check_norm(norm) == "none")
    return [convolution, norm_layer(norm, wide), nn.LeakyReLU(SLOPE)]


def _same(channels: int, wide: int, norm: str, kernel: int = 3) -> list[nn.Module]:
    """[N, channels, h, w] -> [N, wide, h, w]."""
    convolution = nn.Conv2d(channels, wide, kernel, padding=kernel // 2, bias=check_norm(norm) == "none")
    return [convolution, norm_layer(norm, wide), nn.LeakyReLU(SLOPE)]


class _Sizes:
    """Sides of the maps: `base`, the smallest, and `cells`, half the picture, at which things are placed."""

    def __init__(self, shape: Sequence[int], width: int, norm: str) -> None:
        check_positive("model.generator.width", width)
        self.norm = check_norm(norm)
        self.doublings, self.base = image_scales(shape, base=4, smallest=16, network="gawwn")
        self.cells = (int(shape[1]) // 2, int(shape[2]) // 2)
        self.between = self.doublings - 1  # doublings from base to cells


class _FromVector(nn.Module):
    """Vectors [N, F] -> maps [N, wide, *cells]: linear to the base, then doublings."""

    def __init__(self, features: int, wide: int, sizes: _Sizes) -> None:
        super().__init__()
        channels = wide * 2**sizes.between
        layers: list[nn.Module] = [nn.ConvTranspose2d(features, channels, sizes.base, bias=sizes.norm == "none")]
        layers += [norm_layer(sizes.norm, channels), nn.ReLU()]
        for _ in range(sizes.between):
            layers += _up(channels, channels // 2, sizes.norm)
            channels //= 2
        self.body = nn.Sequential(*layers)

    def forward(self, v: Tensor) -> Tensor:
        return self.body(v[:, :, None, None])


class _ToVector(nn.Module):
    """Maps [N, channels, *cells] -> vectors [N, features]: halvings to the base, then a whole convolution."""

    def __init__(self, channels: int, wide: int, features: int, sizes: _Sizes) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(sizes.between):
            layers += _down(channels, wide, sizes.norm)
            channels, wide = wide, 2 * wide
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, features, sizes.base), nn.LeakyReLU(SLOPE))

    def forward(self, maps: Tensor) -> Tensor:
        return self.body(maps).flatten(1)


class _Drawer(nn.Module):
    """A generator: a global and a local path to half the picture's size, joined, then doubled once."""

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, shape: Sequence[int], width: int, joined: int, norm: str) -> None:
        super().__init__()
        layers = [*_same(joined, 2 * width, norm), *_up(2 * width, width, norm)]
        self.end = nn.Sequential(*layers, nn.Conv2d(width, int(shape[0]), 3, padding=1), nn.Tanh())

    @abstractmethod
    def paths(self, z: Tensor, t: Tensor, places: Tensor) -> list[Tensor]:
        """The maps [N, ..., *cells] of both paths."""

    def forward(self, z: Tensor, t: Tensor, places: Tensor) -> Tensor:
        """Latents [N, Z], vectors [N, T] and places -> pictures [N, C, H, W] in [-1, 1]."""
        return self.end(torch.cat(self.paths(z, t, places), dim=1))


class BoxGenerator(_Drawer):
    """Draws into boxes: section 4.2 of the paper.

    The global path reads the text placed in the boxes, the local one draws each box's map from noise, text and class,
    and puts it into the box.

    Args:
        latent_dim: Z.
        shape: (C, H, W); sides from 16 on that `image_scales` allows.
        vector_dim: T, the width of the condition's vector.
        classes: Of the boxes; 0 if they have none.
        width: Channels of the last maps.
        norm: One of batch (the paper), instance, layer, none.
    """

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        vector_dim: int,
        classes: int,
        width: int = 32,
        norm: str = "batch",
    ) -> None:
        sizes = _Sizes(shape, width, norm)
        super().__init__(shape, width, 4 * width, norm)
        self.cells, self.classes = sizes.cells, classes
        self.text = _embedding(vector_dim)
        self.read = _ToVector(TEXT + classes, width, TEXT, sizes)
        self.globally = _FromVector(latent_dim + TEXT, 2 * width, sizes)
        self.locally = _FromVector(latent_dim + TEXT + classes, 2 * width, sizes)
        dcgan_init_(self)

    def paths(self, z: Tensor, t: Tensor, places: Tensor) -> list[Tensor]:
        """See `_Drawer`; places are boxes [N, K, 5]."""
        boxes, said = places.flatten(0, 1), _of_boxes(self.text(t), places, self.classes)
        placed = _added(tiled(said, self.cells) * inside(boxes, *self.cells).unsqueeze(1).to(said.dtype), places)
        whole = self.globally(torch.cat([z, self.read(placed)], dim=1))
        each = self.locally(torch.cat([z.repeat_interleave(places.shape[1], dim=0), said], dim=1))
        return [whole, _added(place(each, boxes).to(each.dtype), places)]


class KeypointGenerator(_Drawer):
    """Draws around keypoints: section 4.3 of the paper. The local path is open near keypoints alone.

    Args:
        latent_dim: Z.
        shape: (C, H, W); sides from 16 on that `image_scales` allows.
        vector_dim: T, the width of the condition's vector.
        parts: P, the number of keypoints.
        width: Channels of the last maps.
        norm: One of batch (the paper), instance, layer, none.
    """

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        vector_dim: int,
        parts: int,
        width: int = 32,
        norm: str = "batch",
    ) -> None:
        sizes = _Sizes(shape, width, norm)
        super().__init__(shape, width, 4 * width + parts, norm)
        self.cells = sizes.cells
        self.text = _embedding(vector_dim)
        self.read = _ToVector(TEXT + parts, width, TEXT, sizes)
        self.globally = _FromVector(latent_dim + TEXT, 2 * width, sizes)
        self.locally = _FromVector(latent_dim + TEXT, 2 * width, sizes)
        dcgan_init_(self)

    def paths(self, z: Tensor, t: Tensor, places: Tensor) -> list[Tensor]:
        """See `_Drawer`; places are keypoints [N, P, 3]."""
        said, maps = self.text(t), bumps(places, *self.cells).to(t.dtype)
        gate = _gate(maps)
        whole = self.globally(
            torch.cat([z, self.read(torch.cat([tiled(said, self.cells) * gate, maps], dim=1))], dim=1)
        )
        return [whole, self.locally(torch.cat([z, said], dim=1)) * gate, maps]


class _Judge(nn.Module):
    """A discriminator: features at half the picture's size, a global and a local path, a hidden layer, one logit."""

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, shape: Sequence[int], vector_dim: int, width: int, local: int, norm: str) -> None:
        super().__init__()
        sizes = _Sizes(shape, width, norm)
        self.text = _embedding(vector_dim)
        first = [nn.Conv2d(int(shape[0]), width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        self.features = nn.Sequential(*first, *_same(width, 2 * width, norm))
        self.join = nn.Sequential(*_same(2 * width + TEXT, 2 * width, norm))
        self.globally = _ToVector(2 * width + TEXT, 2 * width, 2 * width, sizes)
        self.head = nn.Sequential(nn.Linear(2 * width + local, 2 * width), nn.LeakyReLU(SLOPE), nn.Linear(2 * width, 1))

    @abstractmethod
    def local(self, h: Tensor, places: Tensor) -> Tensor:
        """Features of maps [N, 2 width, *cells], in which picture and text are joined, at the places: [N, local]."""

    def forward(self, x: Tensor, t: Tensor, places: Tensor) -> Tensor:
        """Pictures [N, C, H, W], vectors [N, T] and places -> logits [N]."""
        h = self.features(x)
        both = torch.cat([h, tiled(self.text(t), h.shape[2:])], dim=1)
        return self.head(torch.cat([self.globally(both), self.local(self.join(both), places)], dim=1)).squeeze(1)


class BoxDiscriminator(_Judge):
    """Judges what boxes cut out, and the whole picture: section 4.2. Where things are it reads from the cuts alone.

    Args:
        shape: (C, H, W); sides from 16 on that `image_scales` allows.
        vector_dim: T, the width of the condition's vector.
        classes: Of the boxes; 0 if they have none.
        width: Channels of the first maps.
        norm: One of batch (the paper), instance, layer, none.
    """

    def __init__(
        self, shape: Sequence[int], vector_dim: int, classes: int, width: int = 32, norm: str = "batch"
    ) -> None:
        super().__init__(shape, vector_dim, width, 2 * width, norm)
        self.classes = classes
        layers = [*_down(2 * width + classes, 2 * width, norm), *_same(2 * width, 2 * width, norm, kernel=1)]
        self.cut = nn.Sequential(*layers)
        dcgan_init_(self)

    def local(self, h: Tensor, places: Tensor) -> Tensor:
        """The mean over boxes [N, K, 5] and places in them."""
        boxes, k = places.flatten(0, 1), places.shape[1]
        cut = crop(h.repeat_interleave(k, dim=0), boxes).to(h.dtype)
        kinds = one_hot(boxes[:, 0], self.classes).to(h.dtype)
        found = self.cut(torch.cat([cut, tiled(kinds, cut.shape[2:])], dim=1)).mean(dim=(2, 3)).unflatten(0, (-1, k))
        there = (places[:, :, :1] >= 0).to(h.dtype)
        return (found * there).sum(dim=1) / there.sum(dim=1).clamp_min(1)


class KeypointDiscriminator(_Judge):
    """Judges what is near keypoints, and the whole picture: section 4.3.

    Args:
        shape: (C, H, W); sides from 16 on that `image_scales` allows.
        vector_dim: T, the width of the condition's vector.
        parts: P, the number of keypoints.
        width: Channels of the first maps.
        norm: One of batch (the paper), instance, layer, none.
    """

    def __init__(self, shape: Sequence[int], vector_dim: int, parts: int, width: int = 32, norm: str = "batch") -> None:
        super().__init__(shape, vector_dim, width, 2 * width, norm)
        layers = [*_down(2 * width + parts, 2 * width, norm), *_same(2 * width, 2 * width, norm, kernel=1)]
        self.near = nn.Sequential(*layers)
        dcgan_init_(self)

    def local(self, h: Tensor, places: Tensor) -> Tensor:
        """The mean over the picture of what the gate lets through, keypoints [N, P, 3] beside it."""
        maps = bumps(places, *h.shape[2:]).to(h.dtype)
        return self.near(torch.cat([h * _gate(maps), maps], dim=1)).mean(dim=(2, 3))


class PointsGenerator(nn.Module):
    """Noise, text and some keypoints, to all of them: section 4.4 of the paper.

    Args:
        latent_dim: Z.
        vector_dim: T, the width of the condition's vector.
        parts: P, the number of keypoints.
        hidden: Widths of the hidden layers.
    """

    def __init__(self, latent_dim: int, vector_dim: int, parts: int, hidden: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        self.body, self.parts = _layers(latent_dim + vector_dim + 4 * parts, hidden, 3 * parts), parts

    def forward(self, z: Tensor, t: Tensor, places: Tensor) -> Tensor:
        """Latents [N, Z], vectors [N, T] and keypoints [N, P, 3], -1 where one is to be drawn -> keypoints [N, P, 3].

        Given ones come back bit for bit, the others in [0, 1].
        """
        given = places[:, :, 2:] >= 0
        seen = torch.cat([places * given, given], dim=2).flatten(1)
        drawn = torch.sigmoid(self.body(torch.cat([z, t, seen.to(t.dtype)], dim=1)).unflatten(1, (self.parts, 3)))
        return torch.where(given, places.to(drawn.dtype), drawn)


class PointsDiscriminator(nn.Module):
    """Keypoints and text to one logit.

    Args:
        vector_dim: T, the width of the condition's vector.
        parts: P, the number of keypoints.
        hidden: Widths of the hidden layers.
    """

    def __init__(self, vector_dim: int, parts: int, hidden: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        self.body = _layers(vector_dim + 3 * parts, hidden, 1)

    def forward(self, x: Tensor, t: Tensor, places: Tensor) -> Tensor:
        """Keypoints x [N, P, 3] and vectors [N, T] -> logits [N]; the true ones, `places`, are not looked at."""
        return self.body(torch.cat([x.flatten(1), t], dim=1)).squeeze(1)


def _layers(features: int, hidden: Sequence[int], out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        check_positive("hidden", width, cure="[128,128]")
        layers += [nn.Linear(features, width), nn.LeakyReLU(SLOPE)]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, out))


def _of_boxes(text: Tensor, boxes: Tensor, classes: int) -> Tensor:
    """The text [N, F] and each box's class, [N K, F + classes]."""
    kinds = one_hot(boxes[:, :, 0].flatten(), classes).to(text.dtype)
    return torch.cat([text.repeat_interleave(boxes.shape[1], dim=0), kinds], dim=1)


def _added(maps: Tensor, boxes: Tensor) -> Tensor:
    """Maps [N K, C, H, W] of N K boxes, added up for each picture: [N, C, H, W]."""
    return maps.unflatten(0, boxes.shape[:2]).sum(dim=1)


def _gate(maps: Tensor) -> Tensor:
    """Where a keypoint is near: the sum of the keypoints' maps [N, P, H, W], cut at 1, [N, 1, H, W]."""
    return maps.sum(dim=1, keepdim=True).clamp(0, 1)
