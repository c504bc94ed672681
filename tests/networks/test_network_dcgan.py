"""DCGAN: published sizes, and the algebra of transposed convolution on the layers that it uses."""

import pytest
import torch
import torch.nn.functional as F

from genlab.networks import dcgan


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_torch_code():
    """With ngf = ndf = 64, nz = 100, nc = 3 at 64 x 64 (soumith/dcgan.torch)."""
    assert count(dcgan.Generator(100, (3, 64, 64))) == 3_576_704
    assert count(dcgan.Discriminator((3, 64, 64))) == 2_765_568


def test_channels_and_layers_of_the_torch_code():
    generator, discriminator = dcgan.Generator(100, (3, 64, 64)), dcgan.Discriminator((3, 64, 64))
    ups = [m for m in generator.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    downs = [m for m in discriminator.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [m.in_channels for m in ups] == [100, 512, 256, 128, 64]
    assert [m.out_channels for m in downs] == [64, 128, 256, 512, 1]
    assert {m.bias for m in (*ups, *downs)} == {None}
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in generator.modules()) == 4  # all but the last layer
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in discriminator.modules()) == 3  # all but first and last


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128])
def test_channels_double_with_each_halving(size):
    """Width at half the image size, twice that at a quarter, ... down to 4 x 4."""
    discriminator = dcgan.Discriminator((1, size, size), width=2)
    assert discriminator.features(torch.zeros(1, 1, size, size)).shape[1] == 16 * (2 * size // 8)
    assert dcgan.Generator(3, (1, size, size), width=2).body[0].weight.shape == (3, 2 * size // 8, 4, 4)


def test_decoder_is_the_generator_without_tanh():
    generator, decoder = dcgan.Generator(5, (3, 16, 16), width=8), dcgan.Decoder(5, (3, 16, 16), width=8)
    missing = decoder.load_state_dict(generator.state_dict(), strict=False)
    assert missing.missing_keys == ["body.6.bias"] and not missing.unexpected_keys  # pixels' bias, zero at first
    z = torch.randn(4, 5)
    torch.testing.assert_close(decoder(z).tanh(), generator(z))


def test_initial_statistics():
    torch.manual_seed(0)
    for network in (dcgan.Generator(100, (3, 64, 64)), dcgan.Discriminator((3, 64, 64))):
        norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        scales, shifts = torch.cat([m.weight for m in norms]), torch.cat([m.bias for m in norms])
        torch.testing.assert_close(scales.mean().item(), 1.0, atol=3e-3, rtol=0)
        torch.testing.assert_close(scales.std().item(), 0.02, atol=2e-3, rtol=0)
        assert not shifts.any()
        for conv in [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]:
            torch.testing.assert_close(conv.weight.std().item(), 0.02, atol=0, rtol=0.06)


def test_transposed_convolution_is_the_transpose():
    """<conv(a), b> = <a, convT(b)> for one weight, and convT multiplies by the transposed matrix."""
    layer = dcgan.Generator(5, (3, 16, 16), width=4).double().body[-1]
    weight, stride, padding = layer.weight, layer.stride, layer.padding
    a, b = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    left = (F.conv2d(a, weight, stride=stride, padding=padding) * b).sum()
    torch.testing.assert_close(left, (a * layer(b)).sum())

    basis = torch.eye(3 * 16 * 16, dtype=torch.float64).unflatten(1, (3, 16, 16))
    matrix = F.conv2d(basis, weight, stride=stride, padding=padding).flatten(1).T  # conv(a) = matrix @ a
    torch.testing.assert_close(layer(b).flatten(1), b.flatten(1) @ matrix)


@pytest.mark.parametrize(("kernel", "interior"), [(3, {1, 2}), (4, {2})])
def test_checkerboard_overlap(kernel, interior):
    """Taps on each output at stride 2: kernel 3 gives 1, 2, 1, 2, ..., a checkerboard, kernel 4 always 2."""
    taps = F.conv_transpose1d(torch.ones(1, 1, 16), torch.ones(1, 1, kernel), stride=2)[0, 0][4:-4].int().tolist()
    assert set(taps) == interior
    assert all(one + two == sum(taps[:2]) for one, two in zip(taps, taps[1:], strict=False))  # strictly by turns
    strided = [m for m in dcgan.Generator(5, (3, 32, 32), width=4).body if getattr(m, "stride", None) == (2, 2)]
    assert len(strided) == 3 and all(m.kernel_size == (4, 4) for m in strided)


def test_critic_without_norm_differentiates_twice():
    """What a gradient penalty needs; the first layer is reached by the second derivative as well."""
    for norm in ("none", "layer", "instance"):
        critic = dcgan.Discriminator((3, 16, 16), width=8, norm=norm).double()
        x = torch.randn(4, 3, 16, 16, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        (gradient.flatten(1).norm(dim=1) - 1).square().mean().backward()
        assert critic.trunk[0].weight.grad.abs().max() > 0
