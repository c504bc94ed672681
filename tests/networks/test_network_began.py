"""BEGAN's networks: layers and channels of the code they follow."""

import pytest
import torch

from genlab.networks import began


def convs(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]


@pytest.mark.parametrize(("size", "scales"), [(8, 1), (16, 2), (32, 3), (64, 4), (128, 5)])
def test_layers_per_scale(size, scales):
    """repeat_num = log2(size) - 2 scales: two convolutions each, n channels in the decoder, n k in the encoder."""
    network = began.Autoencoder((3, size, size), code_dim=6, width=4)
    encoder, decoder = convs(network.encoder), convs(network.decoder)
    assert [(m.out_channels, m.stride[0]) for m in decoder] == [(4, 1)] * (2 * scales) + [(3, 1)]
    expected = [(4, 1)]
    for k in range(1, scales + 1):
        expected += [(4 * k, 1), (4 * k, 1)] + ([(4 * k, 2)] if k < scales else [])
    assert [(m.out_channels, m.stride[0]) for m in encoder] == expected
    assert all(m.kernel_size == (3, 3) for m in encoder + decoder)
    assert network(torch.zeros(1, 3, size, size)).shape == (1, 3, size, size)


def test_the_decoder_is_the_generator_again():
    network = began.Autoencoder((3, 32, 32), code_dim=6, width=4)
    generator = began.Generator(6, (3, 32, 32), width=4)
    network.decoder.load_state_dict(generator.state_dict())
    z = torch.randn(2, 6)
    assert torch.equal(network.decode(z), generator(z))


def test_parameter_count_by_hand():
    """16 x 16 x 1, n = 8, code 5."""
    n, base = 8, 64
    conv = lambda a, b: (9 * a + 1) * b  # noqa: E731
    decoder = (5 + 1) * n * base + 4 * conv(n, n) + conv(n, 1)
    encoder = conv(1, n) + 2 * conv(n, n) + conv(n, n) + conv(n, 2 * n) + conv(2 * n, 2 * n) + (2 * n * base + 1) * 5
    assert sum(p.numel() for p in began.Autoencoder((1, 16, 16), 5, width=n).parameters()) == encoder + decoder


def test_up_sampling_copies_pixels():
    """No transposed convolution: the first layer after 8 x 8 sees each value four times."""
    generator = began.Generator(6, (1, 16, 16), width=4)
    (up,) = [m for m in generator.modules() if isinstance(m, torch.nn.Upsample)]
    x = torch.randn(1, 4, 8, 8)
    assert torch.equal(up(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    assert not any(isinstance(m, torch.nn.ConvTranspose2d | torch.nn.BatchNorm2d) for m in generator.modules())
