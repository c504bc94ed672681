"""Networks that are told a condition: named columns of a batch, embedded by their kind and handed over at some place.

`Vector` and `Maps` turn columns into numbers, each by its `Field`. `Concat`, `InputMaps`, `HiddenMaps`, `Projection`
and `NormTold` hand them to a network that knows nothing of conditions: all are called with the network's own input and
a batch with the columns, N rows each, and give what the network gives, in its shape and type.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial, singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as add_spectral_norm

from genlab.batch import Batch, Column, Seq
from genlab.errors import UserError
from genlab.fields.attributes import Attributes
from genlab.fields.base import Field
from genlab.fields.boxes import Boxes
from genlab.fields.image import Image
from genlab.fields.keypoints import Keypoints
from genlab.fields.kinds import make_field
from genlab.fields.label import one_hot
from genlab.fields.layout import Layout
from genlab.fields.masked import Masked
from genlab.fields.points import Points
from genlab.fields.tokens import Tokens
from genlab.fields.video import Video
from genlab.losses.numerics import exact
from genlab.networks.init import check_positive, feature_count
from genlab.networks.layers import Layered

Facts = Mapping[str, Mapping[str, Any]]  # of each column, what `Field.to_dict` gives
Planes = tuple[tuple[int, ...], Callable[[Any], Tensor], str]

WORD_WIDTH = 32  # of a word's embedding
PICTURE_WIDTH = 64  # of a picture's
BUMP = 1 / 16  # standard deviation of a keypoint's bump, as a share of the longer side; at least one pixel
SLOPE = 0.2  # of the leaky ReLUs
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class Vector(nn.Module):
    """Conditions as one vector of `width` numbers each. A label that is not known (-1) is all zeros.

    Args:
        given: The plain facts of each column's field, in the order of the numbers.
        words: How sentences are read: "mean" of their words' embeddings, or the last state of a "gru".

    Raises:
        UserError: If there are no columns, or one that makes no vector, or `words` is unknown.
    """

    def __init__(self, given: Facts, words: str = "mean") -> None:
        super().__init__()
        self.names = _checked(given, words)
        parts: list[Any] = [vector_of(make_field(facts), words) for facts in given.values()]
        self.parts, self.width = nn.ModuleList(parts), sum(part.width for part in parts)

    def forward(self, given: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
        """A batch with the columns -> [N, width], in the type of the network that reads it."""
        made = [part(given[name], dtype) for name, part in zip(self.names, self.parts, strict=True)]
        return torch.cat(made, dim=1)


class Maps(nn.Module):
    """Conditions as `channels` maps each, of the size of the pictures beside them.

    Pictures and class maps stay what they are, boxes are filled, keypoints are bumps, and everything else is constant
    maps of its vector.

    Args:
        given: The plain facts of each column's field, in the order of the maps.
        words: See `Vector`.

    Raises:
        UserError: As `Vector` does.
    """

    def __init__(self, given: Facts, words: str = "mean") -> None:
        super().__init__()
        self.names = _checked(given, words)
        parts: list[Any] = [maps_of(make_field(facts), words) for facts in given.values()]
        self.parts, self.channels = nn.ModuleList(parts), sum(part.width for part in parts)

    def forward(self, given: Batch, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A batch with the columns -> [N, channels, height, width]."""
        made = [part(given[name], dtype, (height, width)) for name, part in zip(self.names, self.parts, strict=True)]
        return torch.cat(made, dim=1)


def _checked(given: Facts, words: str) -> tuple[str, ...]:
    if words not in ("mean", "gru"):
        raise UserError(f"conditioning.words must be mean or gru, got {words!r}. Try conditioning.words=mean.")
    if not given:
        raise UserError("A network cannot be told nothing: model.given is empty. Try 'model.given=[y]'.")
    return tuple(given)


# --- By kind of column ------------------------------------------------------------------------------------------------


def vector_of(field: Field, words: str) -> nn.Module:
    """The module that makes vectors [N, its `width`] of a column's values: by the field's own `vector` if it has one.

    It is called with the values and the type of the result.
    """
    width = field.vector_width
    return _learned_vector(field, words) if width is None else _Calculated(width, field.vector)


@singledispatch
def maps_of(field: Field, words: str) -> nn.Module:
    """The module that makes maps [N, its `width`, H, W] of a column's values.

    It is called with the values, the type of the result and (H, W).
    """
    return _Constant(vector_of(field, words))


@singledispatch
def _learned_vector(field: Field, words: str) -> nn.Module:
    raise UserError(
        f"A column of kind {field.kind}, {field.to_dict()}, makes no vector that a network could be told. Take it out "
        "of model.given."
    )


@singledispatch
def _planes(field: Field) -> Planes:
    """Of a picture-like column: the shape (C, H, W) of its planes, what makes them, and how they are resized."""
    return field.fixed_shape, nn.Identity(), "bilinear"


@_planes.register
def _(field: Video) -> Planes:
    frames, channels, *sides = field.fixed_shape
    return (frames * channels, *sides), partial(torch.flatten, start_dim=1, end_dim=2), "bilinear"


@_planes.register
def _(field: Layout) -> Planes:
    size = _size(field)
    if not size:
        raise UserError("A class map is told one-hot, and its number of classes is not known.")
    return (size, *field.fixed_shape), partial(one_hot, size=size, dim=1), "nearest"


@_learned_vector.register(Image)
@_learned_vector.register(Masked)
@_learned_vector.register(Video)
@_learned_vector.register(Layout)
def _(field: Field, words: str) -> nn.Module:
    shape, planes, _ = _planes(field)
    return _Pictures(shape, planes)


@maps_of.register(Image)
@maps_of.register(Masked)
@maps_of.register(Video)
@maps_of.register(Layout)
def _(field: Field, words: str) -> nn.Module:
    shape, planes, mode = _planes(field)
    return _Calculated(shape[0], partial(_resized, planes=planes, mode=mode))


@_learned_vector.register(Attributes)
@_learned_vector.register(Keypoints)
@_learned_vector.register(Points)
def _(field: Field, words: str) -> nn.Module:
    return _Calculated(math.prod(field.fixed_shape), partial(torch.flatten, start_dim=1))


@maps_of.register
def _(field: Keypoints, words: str) -> nn.Module:
    return _Calculated(field.fixed_shape[0], _bumps)


@_learned_vector.register
def _(field: Boxes, words: str) -> nn.Module:
    size = _size(field)
    return _Calculated(field.fixed_shape[0] * (size + 5), partial(_box_numbers, size=size))


@maps_of.register
def _(field: Boxes, words: str) -> nn.Module:
    return _Calculated(_size(field) or 1, partial(_filled, size=_size(field)))


@_learned_vector.register
def _(field: Tokens, words: str) -> nn.Module:
    if not _size(field):
        raise UserError("Words are told by their embeddings, and the size of the vocabulary is not known.")
    return _Words(_size(field), words)


def _size(field: Field) -> int:
    """Number of classes or words; 0 where the field does not say."""
    return field.size or len(field.names or ())


class _Calculated(nn.Module):
    """A function of the values without weights; of values, height and width where it makes maps."""

    def __init__(self, width: int, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.width, self.function = width, function

    def forward(self, values: Column, dtype: torch.dtype, size: Sequence[int] = ()) -> Tensor:
        return self.function(values, *size).to(dtype)


class _Constant(nn.Module):
    """A vector at every place."""

    def __init__(self, vector: Any) -> None:
        super().__init__()
        self.vector, self.width = vector, vector.width

    def forward(self, values: Column, dtype: torch.dtype, size: Sequence[int]) -> Tensor:
        return _tiled(self.vector(values, dtype), size)


class _Words(nn.Module):
    """Word numbers [N, T] -> [N, 32]. What follows the end of a sentence changes nothing."""

    def __init__(self, vocabulary: int, words: str) -> None:
        super().__init__()
        self.width = WORD_WIDTH
        self.embedding = nn.Embedding(vocabulary, WORD_WIDTH)
        self.gru = nn.GRU(WORD_WIDTH, WORD_WIDTH, batch_first=True) if words == "gru" else None

    def forward(self, values: Column, dtype: torch.dtype) -> Tensor:
        tokens = values.values if isinstance(values, Seq) else values
        mask = values.mask if isinstance(values, Seq) else torch.ones_like(tokens, dtype=torch.bool)
        h = self.embedding(tokens)
        if self.gru is not None:
            h, _ = self.gru(h)
            mask = mask & ~F.pad(mask[:, 1:], (0, 1))  # the last word alone, whose state has read them all
        weight = mask.unsqueeze(2).to(h.dtype)
        return ((h * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)).to(dtype)


class _Pictures(nn.Module):
    """Planes [N, C, H, W] -> [N, 64]: convolutions that halve until no side is longer than 4, then a linear layer."""

    def __init__(self, shape: Sequence[int], planes: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.width, self.planes = PICTURE_WIDTH, planes
        (channels, *sides), wider = shape, 16
        layers: list[nn.Module] = []
        while max(sides) > 4:
            layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
            channels, wider, sides = wider, min(2 * wider, 64), [(side + 1) // 2 for side in sides]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * math.prod(sides), PICTURE_WIDTH))

    def forward(self, values: Column, dtype: torch.dtype) -> Tensor:
        return self.body(self.planes(values).to(dtype)).to(dtype)


def _resized(values: Tensor, height: int, width: int, planes: Callable[[Any], Tensor], mode: str) -> Tensor:
    return F.interpolate(planes(values), (height, width), mode=mode)


def _box_numbers(values: Tensor, size: int) -> Tensor:
    """Boxes [N, K, 5] -> [N, K (size + 5)]: of each the class one-hot, four numbers, and whether it is there."""
    there = (values[..., :1] >= 0).to(values.dtype)
    return torch.cat([one_hot(values[..., 0], size), values[..., 1:] * there, there], dim=2).flatten(1)


@exact
def _filled(values: Tensor, height: int, width: int, size: int) -> Tensor:
    """The share of each pixel that boxes [N, K, 5] of a class cover, [N, size, H, W]; of all in one map if size is 0.

    Shares, so that a box between the middles of pixels is not lost. Those of overlapping boxes add up to 1 at most.
    """
    kind, left, top, across, down = values.unbind(dim=2)
    classes = one_hot(kind, size) if size else (kind >= 0).unsqueeze(2)
    rows, columns = _covered(top, down, height), _covered(left, across, width)
    return torch.einsum("nkc,nkh,nkw->nchw", classes.to(rows.dtype), rows, columns).clamp_max(1)


def _covered(start: Tensor, length: Tensor, pixels: int) -> Tensor:
    """The share of each pixel between start and start + length, both [N, K] relative to the side: [N, K, pixels]."""
    edge = torch.arange(pixels, device=start.device, dtype=start.dtype)
    first, last = (start * pixels).unsqueeze(2), ((start + length) * pixels).unsqueeze(2)
    return (torch.minimum(last, edge + 1) - torch.maximum(first, edge)).clamp(0, 1)


@exact
def _bumps(values: Tensor, height: int, width: int) -> Tensor:
    """A Gaussian of height 1 at each keypoint of [N, P, 3] that is seen, zeros for the others: [N, P, H, W]."""
    x, y, seen = (part.unsqueeze(2) for part in values.unbind(dim=2))
    scale = 2 * max(1.0, BUMP * max(height, width)) ** 2
    places = torch.arange(max(height, width), device=x.device, dtype=x.dtype) + 0.5  # the middles of the pixels
    rows, columns = (y * height - places[:height]).square(), (x * width - places[:width]).square()
    return seen.unsqueeze(3) * torch.exp(-(rows.unsqueeze(3) + columns.unsqueeze(2)) / scale)


def _tiled(vector: Tensor, places: Sequence[int]) -> Tensor:
    """[N, F] at every place: [N, F, *places]."""
    return vector.reshape(*vector.shape, *[1] * len(places)).expand(-1, -1, *places)


# --- By place in the network ------------------------------------------------------------------------------------------


class Told(nn.Module):
    """Base of the wrappers.

    Args:
        network: The network that is told; it has the input that its wrapper gives it.
        given: The plain facts of each column's field.
        words: See `Vector`.
    """

    @classmethod
    def around(cls, node: Mapping[str, Any], network: type, given: Facts) -> dict[str, Any] | None:
        """The config of the wrapped network, with its input widened, and options of the wrapper that follow from it.

        Args:
            node: Config of the network; `latent_dim` is the width of its latent, `shape` that of its samples.
            network: Its class.
            given: See the class.

        Returns:
            Keys of the wrapper's config, `network` among them; None if the wrapper does not fit such a network.
        """
        return None

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def _joined(self, x: Tensor, given: Batch) -> Tensor:
        """What the network reads."""
        return x

    def features(self, x: Tensor, given: Batch) -> Tensor:
        """Samples [N, ...] and their conditions -> features [N, F], where the network has them."""
        return self.network.features(self._joined(x, given))

    def logits(self, features: Tensor, given: Batch) -> Tensor:
        """Features [N, F] and the conditions -> logits [N], where the network has features."""
        return self.network.logits(features)

    def forward(self, x: Tensor, given: Batch) -> Tensor:
        """Samples or latents [N, ...] and their conditions -> the network's output."""
        return self.network(self._joined(x, given))


class Concat(Told):
    """The vector beside the input: the network reads [N, F + `Vector.width`].

    Mirza & Osindero (2014), "Conditional Generative Adversarial Nets", arXiv:1411.1784, section 3.2.
    """

    @classmethod
    def around(cls, node: Mapping[str, Any], network: type, given: Facts) -> dict[str, Any] | None:
        """Networks of latents or points; see `Told.around`."""
        width = Vector(given).width
        if "latent_dim" in node:
            return {"network": {**node, "latent_dim": node["latent_dim"] + width}}
        if len(node.get("shape", ())) == 1:
            return {"network": {**node, "shape": [node["shape"][0] + width]}}
        return None

    def __init__(self, network: nn.Module, given: Facts, words: str = "mean") -> None:
        super().__init__(network)
        self.vector = Vector(given, words)

    def _joined(self, x: Tensor, given: Batch) -> Tensor:
        return torch.cat([x, self.vector(given, x.dtype)], dim=1)


class InputMaps(Told):
    """The maps as further channels of the pictures: the network reads [N, C + `Maps.channels`, H, W]."""

    @classmethod
    def around(cls, node: Mapping[str, Any], network: type, given: Facts) -> dict[str, Any] | None:
        """Networks of pictures; see `Told.around`."""
        if "latent_dim" in node or len(node.get("shape", ())) != 3:
            return None
        channels, *sides = node["shape"]
        return {"network": {**node, "shape": [channels + Maps(given).channels, *sides]}}

    def __init__(self, network: nn.Module, given: Facts, words: str = "mean") -> None:
        super().__init__(network)
        self.maps = Maps(given, words)

    def _joined(self, x: Tensor, given: Batch) -> Tensor:
        return torch.cat([x, self.maps(given, x.shape[2], x.shape[3], x.dtype)], dim=1)


class Reads(Told):
    """The maps of the conditions in place of a picture: the network reads [N, `Maps.channels`, H, W]."""

    @classmethod
    def around(cls, node: Mapping[str, Any], network: type, given: Facts) -> dict[str, Any] | None:
        """Networks of pictures; see `Told.around`."""
        if "latent_dim" in node or len(node.get("shape", ())) != 3:
            return None
        _, *sides = node["shape"]
        return {"network": {**node, "shape": [Maps(given).channels, *sides]}, "sides": sides}

    def __init__(self, network: nn.Module, given: Facts, sides: Sequence[int], words: str = "mean") -> None:
        super().__init__(network)
        self.maps, self.sides = Maps(given, words), tuple(sides)

    def forward(self, given: Batch) -> Tensor:  # type: ignore[override]
        """Conditions -> the network's output."""
        height, width = self.sides
        dtype = next((p.dtype for p in self.network.parameters()), torch.float32)
        return self.network(self.maps(given, height, width, dtype))


class HiddenMaps(Told):
    """The vector at every place of a hidden layer, then a non-linear map of both to the layer's channels.

    Reed et al. (2016), arXiv:1605.05396, section 4.1. Without the non-linearity the next, linear, layer would add a
    bias for each condition, and no discriminator could check whether sample and condition match.

    Args:
        shape: Of a sample.
        after: The layer of the discriminator, 1 the first, -1 the last; its raw output is joined.
        width: Numbers that the vector becomes by a linear map (128 in the comparison of Miyato & Koyama, 2018).
        spectral_norm: Whether the new layers are divided by their largest singular value.

    Raises:
        UserError: If the network does not consist of layers, or has no such layer.
    """

    @classmethod
    def around(cls, node: Mapping[str, Any], network: type, given: Facts) -> dict[str, Any] | None:
        """Networks of samples; see `Told.around`."""
        if "latent_dim" in node or "shape" not in node:
            return None
        return {"network": dict(node), "shape": node["shape"], "spectral_norm": bool(node.get("spectral_norm"))}

    def __init__(
        self,
        network: nn.Module,
        given: Facts,
        shape: Sequence[int],
        after: int,
        width: int = 128,
        spectral_norm: bool = False,
        words: str = "mean",
    ) -> None:
        super().__init__(network)
        check_positive("conditioning.width", width, cure="128")
        if not isinstance(network, Layered):
            raise UserError(
                f"conditioning=hidden tells a discriminator behind one of its layers, and {type(network).__name__} "
                "has none to stop at. Try conditioning=concat."
            )
        try:
            self.end = network.end_of(after)
        except UserError as error:
            raise UserError(str(error).replace("model.feature_layer", "conditioning.after")) from error
        self.vector = Vector(given, words)
        with torch.no_grad():  # a copy, so that neither statistics nor power iterations of the network move
            channels, *places = copy.deepcopy(network).eval().until(torch.zeros(1, *shape), after).shape[1:]
        self.embedding: nn.Module = nn.Linear(self.vector.width, width, bias=False)
        joint: nn.Module = nn.Conv2d(channels + width, channels, 1) if places else nn.Linear(channels + width, channels)
        if spectral_norm:
            self.embedding, joint = add_spectral_norm(self.embedding), add_spectral_norm(joint)
        self.joint = nn.Sequential(joint, nn.LeakyReLU(SLOPE))

    def features(self, x: Tensor, given: Batch) -> Tensor:
        """Samples [N, ...] and their conditions -> features [N, F]."""
        h = self.network.trunk[: self.end](self.network.enter(x))
        told = _tiled(self.embedding(self.vector(given, h.dtype)), h.shape[2:])
        return self.network.pooled(self.network.trunk[self.end :](self.joint(torch.cat([h, told], dim=1))))

    def forward(self, x: Tensor, given: Batch) -> Tensor:
        """Samples [N, ...] and their conditions -> logits [N]."""
        return self.logits(self.features(x, given), given)


class Projection(Told):
    """Logits psi(phi(x)) + <V c, phi(x)>. Miyato & Koyama (2018), "cGANs with Projection Discriminator", Eq. 3.

    arXiv:1802.05637. phi are the network's features and psi its logits of them; of labels, V is an embedding.

    Args:
        shape: Of a sample.
        spectral_norm: Whether V is divided by its largest singular value.

    Raises:
        UserError: If the network has no features.
    """

    @classmethod
    def around(cls, node: Mapping[str, Any], network: type, given: Facts) -> dict[str, Any] | None:
        """Networks of samples; see `Told.around`."""
        return HiddenMaps.around(node, network, given)

    def __init__(
        self, network: nn.Module, given: Facts, shape: Sequence[int], spectral_norm: bool = False, words: str = "mean"
    ) -> None:
        super().__init__(network)
        self.vector = Vector(given, words)
        projection = nn.Linear(self.vector.width, feature_count(network, shape), bias=False)
        self.projection = add_spectral_norm(projection) if spectral_norm else projection

    def logits(self, features: Tensor, given: Batch) -> Tensor:
        """Features [N, F] and the conditions -> logits [N], linear in the features."""
        logits = self.network.logits(features)
        return logits + (self.projection(self.vector(given, features.dtype)) * features).sum(dim=1).to(logits.dtype)

    def forward(self, x: Tensor, given: Batch) -> Tensor:
        """Samples [N, ...] and their conditions -> logits [N]."""
        return self.logits(self.features(x, given), given)


class NormTold(Told):
    """A scale and a shift by the condition behind normalisation layers: norm(x) (1 + gamma(c)) + beta(c).

    De Vries et al. (2017), "Modulating early visual processing by language", arXiv:1707.00683: gamma and beta are
    linear and start at 0, so that the network starts as what it was, with the norm's own weights.

    Args:
        last: Whether the last norm, in the order of definition, is told as well; it is not in the authors' code of
            Miyato & Koyama (2018), arXiv:1802.05637.

    Raises:
        UserError: If the network has no norm that could be told.
    """

    @classmethod
    def around(cls, node: Mapping[str, Any], network: type, given: Facts) -> dict[str, Any] | None:
        """Networks with norms, by their `norm` or always; see `Told.around`."""
        norm = node.get("norm", "batch" if getattr(network, "always_normalised", False) else "none")
        return {"network": dict(node)} if norm != "none" else None

    def __init__(self, network: nn.Module, given: Facts, last: bool = False, words: str = "mean") -> None:
        super().__init__(network)
        self.vector = Vector(given, words)
        norms = [module for module in network.modules() if isinstance(module, NORMS)]
        if len(norms) < (1 if last else 2):
            found = "only one, the last, which stays as it is" if norms else "none"
            cure = "conditioning.last=true" if norms else "network.generator_norm=batch"
            raise UserError(
                f"conditioning=norm tells a network by its normalisation layers, and {type(network).__name__} has "
                f"{found}. Try {cure} or conditioning=concat."
            )
        told = {norm: _ToldNorm(norm, self.vector.width) for norm in (norms if last else norms[:-1])}
        for module in list(network.modules()):
            for name, child in module.named_children():
                if child in told:
                    setattr(module, name, told[child])

    def _telling(self, function: Callable[[Tensor], Tensor], x: Tensor, given: Batch) -> Tensor:
        """The function of x; its norms find the condition on this thread, and only until it returns."""
        before, _TELLING.condition = _TELLING.condition, self.vector(given, x.dtype)
        try:
            return function(x)
        finally:
            _TELLING.condition = before

    def features(self, x: Tensor, given: Batch) -> Tensor:
        """Samples [N, ...] and their conditions -> features [N, F], where the network has them."""
        return self._telling(self.network.features, x, given)

    def logits(self, features: Tensor, given: Batch) -> Tensor:
        """Features [N, F] and the conditions -> logits [N], where the network has features."""
        return self._telling(self.network.logits, features, given)

    def forward(self, x: Tensor, given: Batch) -> Tensor:
        """Samples or latents [N, ...] and their conditions -> the network's output."""
        return self._telling(self.network, x, given)


class _Telling(threading.local):
    """The condition [N, width] of the innermost `NormTold` that runs on this thread; None outside of all."""

    condition: Tensor | None = None


_TELLING = _Telling()  # no ContextVar: torch.compile cannot trace those


def _channels(norm: Any) -> int:
    if isinstance(norm, nn.LayerNorm):
        return int(norm.normalized_shape[0])
    return int(norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features)


class _ToldNorm(nn.Module):
    """A norm with gamma and beta, one of each a channel."""

    def __init__(self, norm: Any, width: int) -> None:
        super().__init__()
        self.norm = norm
        # LayerNorm counts its channels from the last dimension; the others have them right after the batch.
        self.behind = len(norm.normalized_shape) - 1 if isinstance(norm, nn.LayerNorm) else None
        self.channels = _channels(norm)
        self.film = nn.Linear(width, 2 * self.channels, bias=False)
        nn.init.zeros_(self.film.weight)

    def forward(self, x: Tensor) -> Tensor:
        assert _TELLING.condition is not None, "a told norm runs within its NormTold"
        h = self.norm(x)
        behind = h.dim() - 2 if self.behind is None else self.behind
        shape = (len(h), *[1] * (h.dim() - 2 - behind), self.channels, *[1] * behind)
        gamma, beta = (part.reshape(shape) for part in self.film(_TELLING.condition).to(h.dtype).chunk(2, dim=1))
        return h * (1 + gamma) + beta
