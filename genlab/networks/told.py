"""Networks that are told a condition: wrappers by which any network reads named columns of a batch.

`Concat`, `InputMaps`, `LatentGaussians`, `Reads`, `ReadsVector`, `Placed`, `HiddenMaps`, `Projection` and `NormTold`
hand the columns to a network that does not know about conditions. All but the two that read are called with the
network's own input and a batch with the columns, N rows each, and return the network's output.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as add_spectral_norm

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.fields.kinds import make_field
from genlab.networks.conditions import SLOPE, Facts, Maps, Vector, tiled
from genlab.networks.init import check_positive, feature_count
from genlab.networks.layers import Layered

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


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
        if len(node.get("shape", ())) == 1 and node["shape"][0] is not None:
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


class ReadsVector(Told):
    """The vector of the conditions in place of a point: the network reads [N, `Vector.width`]."""

    @classmethod
    def around(cls, node: Mapping[str, Any], network: type, given: Facts) -> dict[str, Any] | None:
        """Networks of points; see `Told.around`."""
        if "latent_dim" in node or len(node.get("shape", ())) != 1:
            return None
        return {"network": {**node, "shape": [Vector(given).width]}}

    def __init__(self, network: nn.Module, given: Facts, words: str = "mean") -> None:
        super().__init__(network)
        self.vector = Vector(given, words)

    def forward(self, given: Batch) -> Tensor:  # type: ignore[override]
        """Conditions -> the network's output."""
        return self.network(self.vector(given, next((p.dtype for p in self.network.parameters()), torch.float32)))


class LatentGaussians(Told):
    """A Gaussian of latents for each condition: the network reads m(c) + s(c) z in place of the latent z ~ N(0, I).

    m(c) and log s(c) are linear in the vector of the conditions; of a label they are a table. Means start as draws from
    N(0, 1), scales at 1.

    Args:
        latent_dim: Z.
    """

    LOWEST = -3.0  # of log s: the density of a class that becomes a point has no bound

    @classmethod
    def around(cls, node: Mapping[str, Any], network: type, given: Facts) -> dict[str, Any] | None:
        """Networks of latents; see `Told.around`."""
        return {"network": dict(node), "latent_dim": node["latent_dim"]} if "latent_dim" in node else None

    def __init__(self, network: nn.Module, given: Facts, latent_dim: int, words: str = "mean") -> None:
        super().__init__(network)
        self.vector = Vector(given, words)
        self.mean = nn.Linear(self.vector.width, latent_dim, bias=False)
        self.log_scale = nn.Linear(self.vector.width, latent_dim, bias=False)
        nn.init.normal_(self.mean.weight)
        nn.init.zeros_(self.log_scale.weight)

    def _joined(self, x: Tensor, given: Batch) -> Tensor:
        vector = self.vector(given, x.dtype)
        return self.mean(vector) + self.log_scale(vector).clamp_min(self.LOWEST).exp() * x


class Placed(Told):
    """The vector and, as they are, the values of the one column that says where things are.

    For networks that place things themselves: called as `network(x, vector, places)`, with boxes [N, K, 5], keypoints
    [N, P, 3] or class maps [N, H, W].

    Raises:
        UserError: If no or several given columns say where things are, or no column says something else.
    """

    @classmethod
    def around(cls, node: Mapping[str, Any], network: type, given: Facts) -> dict[str, Any] | None:
        """Networks with a `vector_dim`, and the facts about places that they take; see `Told.around`."""
        if "vector_dim" not in node:
            return None
        place, rest = _apart(given)
        field = make_field(given[place])
        known = {"vector_dim": Vector(rest).width, "parts": field.fixed_shape[0], "classes": field.size or 0}
        return {"network": {**node, **{key: value for key, value in known.items() if key in node}}}

    def __init__(self, network: nn.Module, given: Facts, words: str = "mean") -> None:
        super().__init__(network)
        self.place, rest = _apart(given)
        self.vector = Vector(rest, words)

    def forward(self, x: Tensor, given: Batch) -> Tensor:
        """Samples or latents [N, ...] and their conditions -> the network's output."""
        return self.network(x, self.vector(given, x.dtype), given.tensor(self.place))


def _apart(given: Facts) -> tuple[str, dict[str, Mapping[str, Any]]]:
    """The name of the column that says where things are, and the other columns.

    Raises:
        UserError: See `Placed`.
    """
    located = [name for name, facts in given.items() if make_field(facts).located]
    rest = {name: facts for name, facts in given.items() if name not in located}
    if len(located) != 1 or not rest:
        raise UserError(
            "conditioning=places tells one column that says where things are (boxes, keypoints, layout) and others "
            f"that say what, such as caption; model.given is {', '.join(given)}. Try 'model.given=[caption,boxes]'."
        )
    return located[0], rest


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
        told = tiled(self.embedding(self.vector(given, h.dtype)), h.shape[2:])
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
