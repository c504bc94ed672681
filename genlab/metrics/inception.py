"""The Inception network of the published FID, KID and IS, restructured to run faster with the same features.

The network is the 2015 TensorFlow graph (not torchvision's InceptionV3) in the weight layout of torch-fidelity (Obukhov
et al., 2020), which torchmetrics reads too. These changes alter the features by rounding only (checked to 1e-5 against
both packages, `tests/metrics/test_metric_inception.py`):

- each batch norm is folded into its convolution;
- the 1x1 convolutions that open a block and read the same input are one convolution;
- the 1x1 convolution after an average pool moves before it, which leaves fewer channels to pool. Both are linear, and
  the pool excludes the padding from its mean: its weights sum to one, so the bias commutes too;
- TensorFlow's bilinear resize is two matrix products;
- activations are channels-last.
"""

import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError, sentence
from genlab.fields.drawing import to_rgb
from genlab.metrics.features import full_float32
from genlab.metrics.files import file_checksum, tensors_checksum

FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE_NAME}"
SHA256_PREFIX = "6726825d"  # the convention of torch.hub: the first digits of the file's SHA-256 are in its name
COMMAND = "genlab-evaluate --fetch-inception"
INPUT_SIZE = 299
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# --------------------------------------------------------------------------------------------------------------------
# The network
# --------------------------------------------------------------------------------------------------------------------
class _Conv(nn.Conv2d):
    """A convolution with the folded batch norm as its bias.

    Args:
        in_channels: Channels of the input.
        sources: Published convolutions merged into this one: name within the block -> output channels.
        kernel_size: Height and width of the kernel.
        stride: Stride.
        padding: Zeros around the input.
    """

    def __init__(
        self,
        in_channels: int,
        sources: Mapping[str, int],
        kernel_size: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__(in_channels, sum(sources.values()), kernel_size, stride=stride, padding=padding)
        self.sources = dict(sources)


class _Block(nn.Module):
    """Base of the blocks: convolution and ReLU by attribute name, and the merged 1x1 convolution."""

    def _add(
        self,
        name: str,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        self.add_module(name, _Conv(in_channels, {name: out_channels}, kernel_size, stride, padding))

    def _conv(self, name: str, x: Tensor) -> Tensor:
        return F.relu_(self.get_submodule(name)(x))

    def _squeeze(self, x: Tensor, pooled: bool) -> list[Tensor]:
        """Outputs of the branches' 1x1 convolutions; the last one is average-pooled over 3x3 if `pooled`."""
        squeeze = self.get_submodule("squeeze")
        assert isinstance(squeeze, _Conv)
        parts = list(squeeze(x).split(list(squeeze.sources.values()), dim=1))
        if pooled:
            parts[-1] = F.avg_pool2d(parts[-1], kernel_size=3, stride=1, padding=1, count_include_pad=False)
        return [F.relu_(part) for part in parts]


class _InceptionA(_Block):
    def __init__(self, in_channels: int, pool: int) -> None:
        super().__init__()
        branches = {"branch1x1": 64, "branch5x5_1": 48, "branch3x3dbl_1": 64, "branch_pool": pool}
        self.squeeze = _Conv(in_channels, branches)
        self._add("branch5x5_2", 48, 64, 5, padding=2)
        self._add("branch3x3dbl_2", 64, 96, 3, padding=1)
        self._add("branch3x3dbl_3", 96, 96, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        one, five, double, pool = self._squeeze(x, pooled=True)
        five = self._conv("branch5x5_2", five)
        double = self._conv("branch3x3dbl_3", self._conv("branch3x3dbl_2", double))
        return torch.cat([one, five, double, pool], dim=1)


class _InceptionB(_Block):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self._add("branch3x3", in_channels, 384, 3, stride=2)
        self._add("branch3x3dbl_1", in_channels, 64)
        self._add("branch3x3dbl_2", 64, 96, 3, padding=1)
        self._add("branch3x3dbl_3", 96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self._conv("branch3x3dbl_2", self._conv("branch3x3dbl_1", x))
        double = self._conv("branch3x3dbl_3", double)
        return torch.cat([self._conv("branch3x3", x), double, F.max_pool2d(x, kernel_size=3, stride=2)], dim=1)


class _InceptionC(_Block):
    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        branches = {"branch1x1": 192, "branch7x7_1": width, "branch7x7dbl_1": width, "branch_pool": 192}
        self.squeeze = _Conv(in_channels, branches)
        across, down = {"kernel_size": (1, 7), "padding": (0, 3)}, {"kernel_size": (7, 1), "padding": (3, 0)}
        self._add("branch7x7_2", width, width, **across)  # type: ignore[arg-type]
        self._add("branch7x7_3", width, 192, **down)  # type: ignore[arg-type]
        self._add("branch7x7dbl_2", width, width, **down)  # type: ignore[arg-type]
        self._add("branch7x7dbl_3", width, width, **across)  # type: ignore[arg-type]
        self._add("branch7x7dbl_4", width, width, **down)  # type: ignore[arg-type]
        self._add("branch7x7dbl_5", width, 192, **across)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        one, seven, double, pool = self._squeeze(x, pooled=True)
        seven = self._conv("branch7x7_3", self._conv("branch7x7_2", seven))
        for step in (2, 3, 4, 5):
            double = self._conv(f"branch7x7dbl_{step}", double)
        return torch.cat([one, seven, double, pool], dim=1)


class _InceptionD(_Block):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.squeeze = _Conv(in_channels, {"branch3x3_1": 192, "branch7x7x3_1": 192})
        self._add("branch3x3_2", 192, 320, 3, stride=2)
        self._add("branch7x7x3_2", 192, 192, (1, 7), padding=(0, 3))
        self._add("branch7x7x3_3", 192, 192, (7, 1), padding=(3, 0))
        self._add("branch7x7x3_4", 192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three, seven = self._squeeze(x, pooled=False)
        three = self._conv("branch3x3_2", three)
        for step in (2, 3, 4):
            seven = self._conv(f"branch7x7x3_{step}", seven)
        return torch.cat([three, seven, F.max_pool2d(x, kernel_size=3, stride=2)], dim=1)


class _InceptionE(_Block):
    """The last two blocks; the second one has a max pool, as in the published graph (but not in the paper)."""

    def __init__(self, in_channels: int, max_pool: bool) -> None:
        super().__init__()
        self.max_pool = max_pool
        branches = {"branch1x1": 320, "branch3x3_1": 384, "branch3x3dbl_1": 448}
        if max_pool:
            self._add("branch_pool", in_channels, 192)
        else:
            branches["branch_pool"] = 192
        self.squeeze = _Conv(in_channels, branches)
        self._add("branch3x3_2a", 384, 384, (1, 3), padding=(0, 1))
        self._add("branch3x3_2b", 384, 384, (3, 1), padding=(1, 0))
        self._add("branch3x3dbl_2", 448, 384, 3, padding=1)
        self._add("branch3x3dbl_3a", 384, 384, (1, 3), padding=(0, 1))
        self._add("branch3x3dbl_3b", 384, 384, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        one, three, double, *pooled = self._squeeze(x, pooled=not self.max_pool)
        double = self._conv("branch3x3dbl_2", double)
        pool = (
            self._conv("branch_pool", F.max_pool2d(x, kernel_size=3, stride=1, padding=1))
            if self.max_pool
            else pooled[0]
        )
        wide = [self._conv(name, three) for name in ("branch3x3_2a", "branch3x3_2b")]
        wide += [self._conv(name, double) for name in ("branch3x3dbl_3a", "branch3x3dbl_3b")]
        return torch.cat([one, *wide, pool], dim=1)


class _Inception(_Block):
    """Pixels [N, 3, 299, 299], scaled to about [-1, 1], to pooled features [N, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self._add("Conv2d_1a_3x3", 3, 32, 3, stride=2)
        self._add("Conv2d_2a_3x3", 32, 32, 3)
        self._add("Conv2d_2b_3x3", 32, 64, 3, padding=1)
        self._add("Conv2d_3b_1x1", 64, 80)
        self._add("Conv2d_4a_3x3", 80, 192, 3)
        self.Mixed_5b = _InceptionA(192, 32)
        self.Mixed_5c = _InceptionA(256, 64)
        self.Mixed_5d = _InceptionA(288, 64)
        self.Mixed_6a = _InceptionB(288)
        self.Mixed_6b = _InceptionC(768, 128)
        self.Mixed_6c = _InceptionC(768, 160)
        self.Mixed_6d = _InceptionC(768, 160)
        self.Mixed_6e = _InceptionC(768, 192)
        self.Mixed_7a = _InceptionD(768)
        self.Mixed_7b = _InceptionE(1280, max_pool=False)
        self.Mixed_7c = _InceptionE(2048, max_pool=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self._conv("Conv2d_2a_3x3", self._conv("Conv2d_1a_3x3", x))
        x = F.max_pool2d(self._conv("Conv2d_2b_3x3", x), kernel_size=3, stride=2)
        x = self._conv("Conv2d_4a_3x3", self._conv("Conv2d_3b_1x1", x))
        x = F.max_pool2d(x, kernel_size=3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean(dim=(2, 3), dtype=torch.float32)


# --------------------------------------------------------------------------------------------------------------------
# The published weights
# --------------------------------------------------------------------------------------------------------------------
def _sources(net: _Inception) -> Iterator[tuple[_Conv, list[tuple[str, int]]]]:
    """Each convolution with the published convolutions merged into it: (full name, output channels)."""
    for name, module in net.named_modules():
        if isinstance(module, _Conv):
            block = name.rpartition(".")[0]
            prefix = f"{block}." if block else ""
            yield module, [(f"{prefix}{source}", channels) for source, channels in module.sources.items()]


def published_layout() -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor in a torch-fidelity Inception file (batch norms' step counters left out)."""
    with torch.device("meta"):
        net = _Inception()
    layout: dict[str, tuple[int, ...]] = {}
    for conv, sources in _sources(net):
        for name, channels in sources:
            layout[f"{name}.conv.weight"] = (channels, *conv.weight.shape[1:])
            layout |= {f"{name}.bn.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")}
    return layout | {"fc.weight": (1008, 2048), "fc.bias": (1008,)}


def _fold(state: Mapping[str, Tensor], net: _Inception) -> None:
    """Fills the convolutions: w' = w g / sqrt(v + eps), b' = b - m g / sqrt(v + eps), in float64."""
    for conv, sources in _sources(net):
        weights, biases = [], []
        for name, _ in sources:
            get = {key: state[f"{name}.bn.{key}"].double() for key in ("weight", "bias", "running_mean", "running_var")}
            gain = get["weight"] / (get["running_var"] + 1e-3).sqrt()  # the graph's epsilon
            weights.append(state[f"{name}.conv.weight"].double() * gain.view(-1, 1, 1, 1))
            biases.append(get["bias"] - get["running_mean"] * gain)
        conv.weight = nn.Parameter(torch.cat(weights).float(), requires_grad=False)
        conv.bias = nn.Parameter(torch.cat(biases).float(), requires_grad=False)


def resize_matrix(size: int, out: int, device: torch.device | None = None) -> Tensor:
    """TensorFlow 1's bilinear resize along one axis, as a float32 matrix [out, size].

    Output i reads position i * size / out (in float32, as the kernel does): no half-pixel shift, no antialiasing.
    """
    position = torch.arange(out, dtype=torch.float32) * torch.tensor(size / out, dtype=torch.float32)
    low = position.long()
    high = (low + 1).clamp_max(size - 1)
    share = position - low
    row = torch.arange(out)
    matrix = torch.zeros(out, size)
    matrix[row, low] += 1 - share
    matrix[row, high] += share
    return matrix.to(device)


def find_inception_weights(path: str | os.PathLike[str] | None = None, download: bool = False) -> Path:
    """The weight file: `path`, else torch hub's cache, else (only if `download`) fetched into that cache.

    Raises:
        UserError: If there is no file, or the cached or fetched file is not the published one.
    """
    if path is not None:
        found = Path(path).expanduser()
        if not found.is_file():
            raise UserError(
                f"There is no file {found}: set metrics.inception_weights to {FILE_NAME} (from {URL}), "
                "or use metrics.extractor=classifier."
            )
        return found
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME
    elsewhere = f"fetch {URL} elsewhere and set metrics.inception_weights=PATH, or use metrics.extractor=classifier"
    if not cached.is_file() and download:
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            # Writes beside the target, checks the digest, then renames.
            torch.hub.download_url_to_file(URL, str(cached), hash_prefix=SHA256_PREFIX, progress=sys.stderr.isatty())
        except (OSError, RuntimeError, HTTPException) as error:
            raise UserError(
                f"The Inception weights could not be fetched to {cached.parent} ({sentence(error)}): {elsewhere}."
            ) from error
    if not cached.is_file():
        raise UserError(
            f"metrics.extractor=inception needs {FILE_NAME}, which is not in {cached.parent}: fetch it with {COMMAND}, "
            f"or {elsewhere}."
        )
    if not file_checksum(cached).startswith(SHA256_PREFIX):
        raise UserError(
            f"{cached} is damaged (its SHA-256 does not begin with {SHA256_PREFIX}): delete it and fetch it again with "
            f"{COMMAND}, or set metrics.inception_weights=PATH."
        )
    return cached


def read_inception_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors of a torch-fidelity Inception file, read without running any code from it.

    Raises:
        UserError: If the file is unreadable or holds another network, such as torchvision's InceptionV3.
    """
    hint = f"metrics.inception_weights must be {FILE_NAME} from {URL}"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read as PyTorch weights; {hint}.") from error
    layout = published_layout()
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds a {type(state).__name__}, not named tensors; {hint}.")
    wrong = [key for key, shape in layout.items() if tuple(getattr(state.get(key), "shape", ())) != shape]
    if wrong:
        raise UserError(
            f"{path} is not the FID Inception network: {len(wrong)} of {len(layout)} tensors are missing or have "
            f"another shape, the first being {wrong[0]}; {hint}."
        )
    return {key: state[key] for key in layout}


# --------------------------------------------------------------------------------------------------------------------
# The extractor
# --------------------------------------------------------------------------------------------------------------------
class InceptionExtractor(nn.Module):
    """uint8 images to the 2048 pooled features (FID, KID) and the 1008 logits without bias (IS).

    Grey images are repeated to three channels. All sizes are resized to 299x299 by TensorFlow 1's bilinear rule, the
    published protocol (torchmetrics' default `antialias=True` is not, and gives other scores).

    Args:
        state: Tensors in torch-fidelity's layout (`read_inception_weights`).
        checksum: SHA-256 of the weights for the protocol card; computed from the tensors when not given.
        precision: "float32", or "bfloat16" for monitoring: about 2-3 times as fast if the hardware supports it, with
            features off by one or two per cent. The name then differs, because the scores are not comparable.

    Raises:
        UserError: If the precision is neither.
    """

    num_features = 2048
    num_classes = 1008
    fc_weight: Tensor

    def __init__(self, state: Mapping[str, Tensor], *, checksum: str | None = None, precision: str = "float32") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise UserError(f"The Inception network's precision must be {' or '.join(PRECISIONS)}, got {precision!r}.")
        self.precision = precision
        self.name = "inception" if precision == "float32" else "inception-bf16"
        self.checksum = checksum or tensors_checksum({key: state[key] for key in published_layout()})
        with torch.device("meta"):  # no random initial values, so the global random stream is not used
            self.net = _Inception()
        _fold(state, self.net)
        self.net.to(PRECISIONS[precision]).to(memory_format=torch.channels_last)
        self.register_buffer("fc_weight", state["fc.weight"].detach().clone().float())
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "InceptionExtractor":
        """Stays in eval mode; `mode` is ignored."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, 2048] and logits [N, 1008], float32, of uint8 images [N, 1 or 3, H, W] (moved to its device)."""
        if images.dtype != torch.uint8:
            raise ValueError(f"The Inception network takes uint8 images, got {images.dtype}; to_uint8 converts them.")
        device = self.fc_weight.device
        chunk = 16 if device.type == "cpu" else 128  # small batches suit a CPU's caches; memory stays bounded
        with full_float32(device):
            features = [self._features(part.to(device)) for part in images.split(chunk)]
            out = torch.cat(features) if features else torch.zeros(0, 2048, device=device)
            return out, out @ self.fc_weight.T

    def _features(self, images: Tensor) -> Tensor:
        x = to_rgb(images).float()
        rows = resize_matrix(x.shape[2], INPUT_SIZE, x.device)
        columns = resize_matrix(x.shape[3], INPUT_SIZE, x.device)
        x = torch.matmul(torch.matmul(rows, x), columns.T)
        x = ((x - 128) / 128).to(PRECISIONS[self.precision])
        return self.net(x.contiguous(memory_format=torch.channels_last))

    def card(self) -> dict[str, Any]:
        """The extractor's part of a score's card: scores with different cards are not comparable."""
        return {
            "extractor": self.name,
            "checksum": self.checksum,
            "resize": "299x299, TensorFlow 1 bilinear, antialias=False",
            "precision": self.precision,
        }


def load_inception(
    weights: str | os.PathLike[str] | None = None, *, download: bool = False, precision: str = "float32"
) -> InceptionExtractor:
    """The extractor from a file, torch hub's cache or (if `download`) the network; see `find_inception_weights`."""
    path = find_inception_weights(weights, download)
    return InceptionExtractor(read_inception_weights(path), checksum=file_checksum(path), precision=precision)


__all__ = [
    "InceptionExtractor",
    "find_inception_weights",
    "load_inception",
    "published_layout",
    "read_inception_weights",
    "resize_matrix",
]
