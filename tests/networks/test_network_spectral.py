"""Spectral normalisation of any discriminator."""

import copy

import pytest
import torch
from torch import nn

from genlab.networks import dcgan, mlp, resnet
from genlab.networks.init import spectrally_normalised

NETWORKS = {
    "mlp": lambda: mlp.Discriminator([1, 16, 16], [32, 16]),
    "dcgan": lambda: dcgan.Discriminator([1, 16, 16], width=4, norm="none"),
    "resnet": lambda: resnet.Discriminator([1, 16, 16], width=8, pooling="sum"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_has_norm_one(name):
    """As a matrix [out, in * places], once the power iteration has settled."""
    torch.manual_seed(0)
    network = spectrally_normalised(NETWORKS[name]())
    x = torch.randn(4, 1, 16, 16)
    for _ in range(100):
        network(x)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) >= 3
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        torch.testing.assert_close(norm, torch.ones(()), rtol=0, atol=0.01)


def test_it_bounds_the_slope():
    """Layers of norm one and leaky ReLUs: |D(x) - D(y)| <= |x - y|, however large the weights are."""
    torch.manual_seed(0)
    network = mlp.Discriminator([6], [32, 32])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(10)
    x, y = torch.randn(2, 500, 6)
    steep = ((network(x) - network(y)).abs() / (x - y).norm(dim=1)).max()
    spectrally_normalised(network)
    for _ in range(100):
        network(x)
    assert steep > 5
    assert ((network(x) - network(y)).abs() / (x - y).norm(dim=1)).max() < 1.01


def test_what_is_normalised_already_stays_so():
    torch.manual_seed(0)
    network = resnet.Discriminator([1, 16, 16], width=4, spectral_norm=True)
    again = spectrally_normalised(copy.deepcopy(network))
    assert network.state_dict().keys() == again.state_dict().keys()
