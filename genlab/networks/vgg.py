"""Small VGG-style networks that judge: a classifier, and one with maps as its output."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY = 16  # shorter side in pixels up to which blocks pool; above, they stride, at a sixth of the cost
MAX_SIDE = 32  # larger images are averaged down first: enough for classification, and the cost stays bounded
MAX_LENGTH = 64  # the same for the longer side of tiny images
WIDTH = 24  # channels of a `Mapper` on the way up


def seen_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the classifier's input; larger images are averaged down to it."""
    most = MAX_LENGTH if min(height, width) <= TINY else MAX_SIDE
    return min(height, most), min(width, most)


class VGG(nn.Module):
    """Blocks of two convolutions that halve the image, a hidden layer (the features), a linear head.

    The image is halved until its shorter side is 2 or 3. Tiny images: two 3x3 convolutions and a max pool a block, the
    width doubles from 32 up to 256. Larger ones: a 4x4 convolution of stride 2 and a 3x3 one, from 24 up to 128.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.size = seen_size(shape[1], shape[2])
        channels, (height, width) = shape[0], self.size
        blocks = max(1, int(math.log2(min(height, width))) - 1)
        self.tiny = min(height, width) <= TINY
        narrow, wide = (32, 256) if self.tiny else (24, 128)
        kernel, stride = (3, 1) if self.tiny else (4, 2)
        layers: list[nn.Module] = []
        for out in (min(narrow * 2**block, wide) for block in range(blocks)):
            layers += [nn.Conv2d(channels, out, kernel, stride, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            layers += [nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            if self.tiny:
                layers.append(nn.MaxPool2d(2))
            channels = out
        self.trunk = nn.Sequential(*layers)
        # Few features for few pixels: a few hundred images suffice to estimate the covariance of 64 features.
        self.num_features = 64 if blocks <= 2 else 128
        self.hidden = nn.Linear(channels * (height >> blocks) * (width >> blocks), self.num_features)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else None

    def initialise(self, generator: torch.Generator) -> None:
        """Initial weights of He et al. (2015) from the generator; also fills buffers of a net from the meta device."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                gain = 1.0 if module is self.head else 2.0
                draw = torch.randn(module.weight.shape, generator=generator) * math.sqrt(gain / fan_in)
                with torch.no_grad():
                    module.weight.copy_(draw)
                    if module.bias is not None:
                        module.bias.zero_()

    def features(self, x: Tensor) -> Tensor:
        """Float images 0..255 [N, C, H, W] to features [N, F], >= 0."""
        if x.shape[2:] != self.size:
            x = F.adaptive_avg_pool2d(x, self.size)
        return F.relu(self.hidden(self.trunk(x / 127.5 - 1).flatten(1)))


class Mapper(VGG):
    """The classifier's blocks and a way back up: maps with even sides. Four numbers of each place make its pixels."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(shape, 0)
        step, self.num_features = 7 if self.tiny else 6, WIDTH
        self.blocks = [self.trunk[start : start + step] for start in range(0, len(self.trunk), step)]
        widths = [int(block[0].out_channels) for block in self.blocks]  # type: ignore[arg-type]
        self.hidden = nn.Conv2d(widths.pop(), WIDTH, 1)  # type: ignore[assignment]
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(WIDTH + width, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU())
            for width in reversed(widths)
        )
        self.head = nn.Sequential(nn.Conv2d(WIDTH, 4 * num_classes, 3, padding=1), nn.PixelShuffle(2))  # type: ignore[assignment]

    def features(self, x: Tensor) -> Tensor:
        """Float images 0..255 [N, C, H, W] to features [N, F, H / 2, W / 2]."""
        x = F.adaptive_avg_pool2d(x, self.size) / 127.5 - 1
        found = [x := block(x) for block in self.blocks]
        x = F.relu(self.hidden(found.pop()))
        for up in self.up:
            finer = found.pop()
            x = up(torch.cat([F.interpolate(x, finer.shape[2:]), finer], dim=1))
        return x
