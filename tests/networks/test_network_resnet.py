"""Residual networks: the authors' blocks term by term, published layout, spectral norm."""

import copy

import pytest
import torch
import torch.nn.functional as F

from genlab.networks import resnet


def convs(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]


def mean_pool(x):
    """The authors' four-slice mean."""
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def up(x):
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_up_block_is_the_authors():
    """ResidualBlock(resample='up'): there the shortcut copies pixels before its convolution, here after."""
    block = resnet.UpBlock(5).double()
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    residual = block.conv2(F.relu(block.norm2(block.conv1(up(F.relu(block.norm1(x)))))))
    torch.testing.assert_close(block(x), residual + block.shortcut(up(x)))


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_blocks_are_the_authors(norm):
    """ResidualBlock(resample='down' and None) and OptimizedResBlockDisc1."""
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64)

    down = resnet.Block(5, 5, norm, down=True).double()
    residual = down.conv2(F.relu(down.norm2(down.conv1(F.relu(down.norm1(x))))))
    torch.testing.assert_close(down(x), mean_pool(residual) + mean_pool(down.shortcut(x)))

    keep = resnet.Block(5, 5, norm).double()
    torch.testing.assert_close(keep(x), keep.conv2(F.relu(keep.norm2(keep.conv1(F.relu(keep.norm1(x)))))) + x)

    first = resnet.Block(5, 8, norm, down=True, first=True).double()
    residual = mean_pool(first.conv2(F.relu(first.conv1(x))))  # neither norm nor ReLU on the image
    torch.testing.assert_close(first(x), residual + first.shortcut(mean_pool(x)))


def test_parameter_counts_at_cifar_size():
    """By hand from the authors' code, DIM_G = DIM_D = Z = 128, less the generator's biases before batch norm."""
    conv3, conv1, norm = 128 * 128 * 9, 128 * 128, 2 * 128
    generator = 129 * 4 * 4 * 128 + 3 * (2 * conv3 + conv1 + 2 * norm) + norm + (128 * 9 + 1) * 3
    assert sum(p.numel() for p in resnet.Generator(128, (3, 32, 32)).parameters()) == generator
    first = (3 * 9 + 1) * 128 + (conv3 + 128) + (3 + 1) * 128
    down, keep = 2 * (conv3 + 128) + conv1 + 128, 2 * (conv3 + 128)
    discriminator = first + down + 2 * keep + 129
    assert sum(p.numel() for p in resnet.Discriminator((3, 32, 32)).parameters()) == discriminator


@pytest.mark.parametrize(("size", "ups", "downs"), [(16, 2, 1), (32, 3, 2), (64, 4, 3)])
def test_one_block_more_per_doubling(size, ups, downs):
    assert len(resnet.Generator(8, (3, size, size), width=4).body.blocks) == ups
    blocks = [m for m in resnet.Discriminator((3, size, size), width=4).modules() if isinstance(m, resnet.Block)]
    assert [block.down for block in blocks] == [True] * downs + [False] * 2


def test_initial_variances():
    """Glorot-uniform, of twice the variance on the 3 x 3 convolutions of a block."""
    torch.manual_seed(0)
    generator = resnet.Generator(128, (3, 32, 32), width=64)
    block = generator.body.blocks[0]
    for layer, gain in ((block.conv1, 2), (block.conv2, 2), (block.shortcut, 1), (generator.body.output, 1)):
        fans = layer.weight[0].numel() + layer.weight[:, 0].numel()
        torch.testing.assert_close(layer.weight.var().item(), gain * 2 / fans, atol=0, rtol=0.06)
    linear = generator.body.input
    torch.testing.assert_close(linear.weight.var().item(), 2 / (128 + 1024), atol=0, rtol=0.06)
    assert not linear.bias.any() and not generator.body.output.bias.any()


def test_pooling():
    x = torch.randn(2, 3, 16, 16)
    torch.manual_seed(0)
    mean = resnet.Discriminator((3, 16, 16), width=8)
    total = resnet.Discriminator((3, 16, 16), width=8, pooling="sum")
    total.load_state_dict(mean.state_dict())
    torch.testing.assert_close(total.features(x), mean.features(x) * 64)  # 8 x 8 positions


def test_spectral_norm_of_every_layer_is_one():
    """After the power iterations of some forwards; evaluation moves nothing, and a deep copy (EMA) agrees."""
    torch.manual_seed(0)
    network = resnet.Discriminator((3, 16, 16), width=8, spectral_norm=True).train()
    x = torch.randn(2, 3, 16, 16)
    plain = resnet.Discriminator((3, 16, 16), width=8)
    assert max(torch.linalg.matrix_norm(m.weight.flatten(1), 2) for m in convs(plain)) > 1.5
    for _ in range(100):
        network(x)
    network.eval()
    before = copy.deepcopy(network.state_dict())
    for layer in [*convs(network), network.head]:
        norm = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        torch.testing.assert_close(norm.item(), 1.0, atol=0, rtol=0.02)
    logits = network(x)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(copy.deepcopy(network)(x), logits)
