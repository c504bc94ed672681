"""The Inception network of the published FID, KID and IS, restructured to run faster with the same features.

The network is the 2015 TensorFlow graph (not torchvision's InceptionV3) in the weight layout of torch-fidelity (Obukhov
et al., 2020), which torchmetrics reads too. These changes alter the features by rounding only (checked to 1e-5 against
both packages, `tests/extractors/test_extractors_inception.py`):

- each batch norm is folded into its convolution;
- the 1x1 convolutions that open a block and read the same input are one convolution;
- the 1x1 convolution after an average pool moves before it, which leaves fewer channels to pool. Both are linear, and
  the pool excludes the padding from its mean: its weights sum to one, so the bias commutes too.
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class Inception(_Block):
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
        """The features."""
        x = self._conv("Conv2d_2a_3x3", self._conv("Conv2d_1a_3x3", x))
        x = F.max_pool2d(self._conv("Conv2d_2b_3x3", x), kernel_size=3, stride=2)
        x = self._conv("Conv2d_4a_3x3", self._conv("Conv2d_3b_1x1", x))
        x = F.max_pool2d(x, kernel_size=3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean(dim=(2, 3), dtype=torch.float32)


def _sources(net: Inception) -> Iterator[tuple[_Conv, list[tuple[str, int]]]]:
    """Each convolution with the published convolutions merged into it: (full name, output channels)."""
    for name, module in net.named_modules():
        if isinstance(module, _Conv):
            block = name.rpartition(".")[0]
            prefix = f"{block}." if block else ""
            yield module, [(f"{prefix}{source}", channels) for source, channels in module.sources.items()]


def published_layout() -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor in a torch-fidelity Inception file (batch norms' step counters left out)."""
    with torch.device("meta"):
        net = Inception()
    layout: dict[str, tuple[int, ...]] = {}
    for conv, sources in _sources(net):
        for name, channels in sources:
            layout[f"{name}.conv.weight"] = (channels, *conv.weight.shape[1:])
            layout |= {f"{name}.bn.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")}
    return layout | {"fc.weight": (1008, 2048), "fc.bias": (1008,)}


def fold(state: Mapping[str, Tensor], net: Inception) -> None:
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
