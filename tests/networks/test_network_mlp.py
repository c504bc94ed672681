"""Fully connected networks: sizes, order of the layers, activations."""

import pytest
import torch

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
