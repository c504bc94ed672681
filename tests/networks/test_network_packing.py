"""PacGAN's packs."""

import pytest
import torch

from genlab.errors import UserError
from genlab.networks import dcgan, mlp
from genlab.networks.packing import Packed, pack


def test_neighbours_share_a_pack():
    assert pack(torch.arange(12.0).view(6, 2), 3).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    images = torch.randn(4, 3, 8, 8)
    packed = pack(images, 2)
    assert packed.shape == (2, 6, 8, 8)
    assert torch.equal(packed[1], torch.cat([images[2], images[3]]))  # along the channels


def test_packs_of_one_change_nothing():
    torch.manual_seed(0)
    inner = mlp.Discriminator([2], [8])
    x = torch.randn(6, 2)
    assert torch.equal(Packed(inner, 1)(x), inner(x))
    assert torch.equal(Packed(inner, 1).features(x), inner.features(x))


@pytest.mark.parametrize(
    ("inner", "shape"), [(mlp.Discriminator([6], [8]), [2]), (dcgan.Discriminator([3, 8, 8], width=4), [1, 8, 8])]
)
def test_one_logit_per_pack(inner, shape):
    discriminator = Packed(inner, 3)
    x = torch.randn(12, *shape)
    assert discriminator(x).shape == (4,)
    assert torch.equal(discriminator.eval()(x), discriminator.logits(discriminator.features(x)))


def test_a_pack_depends_on_its_samples_alone():
    torch.manual_seed(0)
    discriminator, x = Packed(mlp.Discriminator([4], [8]), 2), torch.randn(6, 2)
    changed = x.clone()
    changed[2] += 1
    same = discriminator(x) == discriminator(changed)
    assert same.tolist() == [True, False, True]


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"multiple of 2, the samples per pack, got 5\. Try data\.batch_size=128"):
        pack(torch.zeros(5, 2), 2)
    with pytest.raises(UserError, match="m must be a positive whole number, got 0"):
        Packed(mlp.Discriminator([2], [8]), 0)
