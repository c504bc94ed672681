"""Fully connected networks: sizes, order of the layers, activations."""

import pytest
import torch

from genlab.errors import UserError
from genlab.networks import mlp


def test_parameter_count_of_the_mnist_generator_of_goodfellow():
    """100 - 1200 - 1200 - 784 (Goodfellow et al. 2014)."""
    generator = mlp.Generator(100, (1, 28, 28), hidden=[1200, 1200])
    expected = (100 + 1) * 1200 + (1200 + 1) * 1200 + (1200 + 1) * 784
    assert sum(p.numel() for p in generator.parameters()) == expected


def test_the_decoder_of_an_autoencoder_mirrors_its_encoder():
    network = mlp.Autoencoder((1, 4, 4), 3, hidden=[12, 7])
    sizes = [m.out_features for m in network.modules() if isinstance(m, torch.nn.Linear)]
    assert sizes == [12, 7, 3, 7, 12, 16]


def test_without_hidden_layers_the_discriminator_is_linear():
    discriminator = mlp.Discriminator((2,), hidden=[])
    x = torch.randn(5, 2)
    assert torch.equal(discriminator.features(x), x)
    torch.testing.assert_close(discriminator(x), x @ discriminator.head.weight[0] + discriminator.head.bias)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", torch.relu),
        ("leaky_relu", lambda x: torch.where(x > 0, x, 0.2 * x)),
        ("elu", lambda x: torch.where(x > 0, x, x.exp() - 1)),
        ("tanh", torch.tanh),
    ],
)
def test_activations(name, function):
    encoder = mlp.Encoder((6,), 4, hidden=[8], activation=name)
    first, _, last = encoder.body
    x = torch.randn(3, 6)
    torch.testing.assert_close(encoder(x), last(function(first(x))))


def test_maxout_takes_the_largest_of_five_neighbours():
    """By hand; and a layer of it is convex in its input, piecewise linear, with five times the weights."""
    x = torch.tensor([[1.0, 5, 2, 3, 4, -9, -8, -7, -6, -5]])
    assert mlp.Maxout()(x).tolist() == [[5.0, -5.0]]
    body = mlp.Discriminator((3,), hidden=(7, 4), activation="maxout").trunk
    assert [tuple(layer.weight.shape) for layer in body if isinstance(layer, torch.nn.Linear)] == [(35, 3), (20, 7)]
    a, b = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    first = body[:2]
    assert (first((a + b) / 2) <= (first(a) + first(b)) / 2 + 1e-6).all()


def test_initial_weights_of_a_given_deviation():
    torch.manual_seed(0)
    network = mlp.Generator(200, (2,), hidden=(300, 300), weight_std=0.02)
    linear = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
    for layer in linear[:2]:  # the standard error of a deviation of n is 1 / sqrt(2 n)
        assert layer.weight.std().item() == pytest.approx(0.02, rel=5 / (2 * layer.weight.numel()) ** 0.5)
        assert layer.bias.abs().max() == 0
    with pytest.raises(UserError, match="network.weight_std must be positive or null, got 0"):
        mlp.Discriminator((2,), weight_std=0)
