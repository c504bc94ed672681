"""Virtual batch normalisation: no batch mate matters, and with a large reference batch it is batch norm."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.networks import dcgan, mlp, resnet
from genlab.networks.virtual_batch_norm import VirtualBatchNorm, VirtuallyNormalised


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5)])
def test_one_sample_is_added_to_the_reference_batch(shape):
    """Mean and variance of the reference batch with the sample itself: the plain definition, sample by sample."""
    reference, x = 2 * draw(6, *shape) + 1, draw(4, *shape, seed=1)
    layer = VirtualBatchNorm(3, 6).double()
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    found = layer(torch.cat([reference, x]))
    scale, shift = (p.view(-1, *[1] * (len(shape) - 1)) for p in (layer.weight, layer.bias))
    places = tuple(range(2, 1 + len(shape)))
    for i, one in enumerate(x):
        both = torch.cat([reference, one[None]])
        mean = both.mean(dim=(0, *places), keepdim=True)[0]
        var = both.var(dim=(0, *places), unbiased=False, keepdim=True)[0]
        assert_close(found[6 + i], (one - mean) / (var + 1e-5).sqrt() * scale + shift)
    batch_norm = (nn.BatchNorm2d if places else nn.BatchNorm1d)(3).double()
    batch_norm.load_state_dict({**batch_norm.state_dict(), **layer.state_dict()})
    assert_close(found[:6], batch_norm(reference))


def test_a_large_reference_batch_makes_it_batch_norm():
    reference = 3 * draw(5000, 2) - 1
    found = VirtualBatchNorm(2, 5000).double()(torch.cat([reference, reference[:7]]))[5000:]
    assert_close(found, nn.BatchNorm1d(2).double()(reference)[:7], rtol=2e-3, atol=2e-3)


NETWORKS = {
    "mlp": (lambda: mlp.Generator(5, [2], [8, 8], norm="batch"), (5,)),
    "dcgan": (lambda: dcgan.Generator(5, [1, 16, 16], width=4), (5,)),
    "resnet": (lambda: resnet.Generator(5, [1, 16, 16], width=4), (5,)),
    "discriminator": (lambda: dcgan.Discriminator([1, 16, 16], width=4), (1, 16, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_batch_mate_matters(name):
    """Bit for bit but for the order of sums; with batch norm the same test fails."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    plain = make().double()
    virtual = VirtuallyNormalised(copy.deepcopy(plain), shape, 8).double()
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in virtual.modules())
    virtual.set_reference(draw(9, *shape, seed=2))
    x = draw(6, *shape, seed=3)
    assert_close(virtual(x)[:1], virtual(x[:1]), rtol=1e-9, atol=1e-12)
    assert_close(virtual(x), virtual.eval()(x))
    with pytest.raises(AssertionError):
        assert_close(plain(x)[:2], plain(x[:2]), rtol=1e-6, atol=1e-6)


def test_gradients_reach_scales_and_inputs_twice():
    layer = VirtualBatchNorm(2, 3).double()
    x = draw(5, 2).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_every_kind_of_batch_norm_is_replaced(kind, affine):
    """Three-dimensional, synchronised and without a scale: each was left alone, or ended in an error."""
    places = {nn.BatchNorm1d: (), nn.BatchNorm3d: (2, 3, 2)}.get(kind, (3, 2))
    virtual = VirtuallyNormalised(nn.Sequential(kind(3, affine=affine)), (3, *places), 8)
    assert isinstance(virtual.network[0], VirtualBatchNorm) and len(list(virtual.parameters())) == 2 * affine
    x = torch.randn(4, 3, *places, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([virtual(x[i : i + 1]) for i in range(4)])
    assert_close(virtual(x), alone)
    assert not torch.equal(virtual(x), x)


def test_a_network_without_batch_norm_is_refused():
    with pytest.raises(UserError, match="the generator has none. Try network.norm=batch"):
        VirtuallyNormalised(mlp.Generator(5, [2], [8]), (5,), 8)


def test_the_reference_batch_is_kept():
    virtual = VirtuallyNormalised(mlp.Generator(5, [2], [8], norm="batch"), (5,), 8)
    virtual.set_reference(torch.ones(8, 5))
    other = VirtuallyNormalised(mlp.Generator(5, [2], [8], norm="batch"), (5,), 8)
    assert not torch.equal(other.reference, virtual.reference)
    other.load_state_dict(virtual.state_dict())
    assert torch.equal(other.reference, torch.ones(8, 5))
    for wrong in (torch.ones(7, 5), torch.ones(8, 4)):
        with pytest.raises(ValueError, match=r"reference batch is \[8, 5\]"):
            virtual.set_reference(wrong)


def test_a_discriminators_features_come_without_the_reference_batchs():
    virtual = VirtuallyNormalised(dcgan.Discriminator([1, 16, 16], width=4), (1, 16, 16), 8)
    x = torch.randn(3, 1, 16, 16)
    assert virtual.features(x).shape == (3, 8 * 4 * 4)
    assert_close(virtual.logits(virtual.features(x)), virtual(x))
