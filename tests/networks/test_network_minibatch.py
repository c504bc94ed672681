"""Minibatch discrimination: similarities in closed form, and a collapsed batch that is told apart."""

import pytest
import torch
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.networks import dcgan, mlp, resnet
from genlab.networks.minibatch import MinibatchDiscrimination, MinibatchDiscriminator


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer(in_features=3, kernels=4, kernel_dim=2):
    torch.manual_seed(0)
    return MinibatchDiscrimination(in_features, kernels, kernel_dim).double()


def test_equal_rows_have_all_their_mates_and_far_ones_none():
    assert_close(layer()(draw(1, 3).expand(5, 3))[:, 3:], torch.full((5, 4), 4.0, dtype=torch.float64))
    assert_close(layer()(1e4 * draw(5, 3))[:, 3:], torch.zeros(5, 4, dtype=torch.float64))
    assert_close(layer()(draw(1, 3))[:, 3:], torch.zeros(1, 4, dtype=torch.float64))


def test_similarities_are_those_of_the_paper():
    """Two loops over the batch, and the features themselves come first."""
    made, f = layer(), draw(5, 3)
    m = torch.stack([torch.tensordot(row, made.weight, 1) for row in f])  # [N, B, C]
    for i in range(5):
        near = sum(torch.exp(-(m[i] - m[j]).abs().sum(dim=1)) for j in range(5) if j != i)
        assert_close(made(f)[i], torch.cat([f[i], near]))


def test_the_order_of_the_batch_goes_through():
    made, f = layer(), draw(6, 3)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert_close(made(f[order]), made(f)[order])
    assert_close(made.eval()(f), made.train()(f))


def test_gradients():
    f = draw(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: layer()(f), (f,))


def test_in_a_group_of_processes(tmp_path):
    """In a group of one: gathering changes neither values nor gradients of two orders; in eval mode none is asked."""
    made, f = layer(), draw(4, 3).requires_grad_()
    alone = made(f)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert torch.equal(made(f), alone)
        assert torch.autograd.gradcheck(lambda f: made(f), (f,))
        assert torch.autograd.gradgradcheck(lambda f: made(f), (f,))
    finally:
        torch.distributed.destroy_process_group()


def test_a_collapsed_batch_is_told_apart():
    """Both batches lie on the ring's modes; one of them on a single one. No sample alone tells them apart."""
    torch.manual_seed(0)
    angles = torch.arange(8) * torch.pi / 4
    modes = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)

    def batches(collapsed):
        which = torch.randint(8, (1,)).expand(32) if collapsed else torch.randint(8, (32,))
        return modes[which] + 0.02 * torch.randn(32, 2)

    def right(discriminator):
        optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
        for _ in range(60):
            logits = discriminator(batches(False)), discriminator(batches(True))
            loss = torch.nn.functional.softplus(torch.cat([-logits[0], logits[1]])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        discriminator.eval()
        real = torch.cat([discriminator(batches(False)) for _ in range(20)])
        fake = torch.cat([discriminator(batches(True)) for _ in range(20)])
        return torch.cat([real > 0, fake < 0]).float().mean().item()

    plain = mlp.Discriminator([2], [32])
    assert right(MinibatchDiscriminator(mlp.Discriminator([2], [32]), [2], 8, 3)) > 0.99
    assert right(plain) < 0.75


@pytest.mark.parametrize(
    "make",
    [
        lambda: mlp.Discriminator([1, 16, 16], [8]),
        lambda: dcgan.Discriminator([1, 16, 16], width=4),
        lambda: resnet.Discriminator([1, 16, 16], width=4, spectral_norm=True),
    ],
)
def test_it_wraps_every_discriminator(make):
    """Without similarities it is the wrapped one, and building it changes no state of that."""
    torch.manual_seed(0)
    inner = make()
    before = {key: value.clone() for key, value in inner.state_dict().items()}
    wrapped = MinibatchDiscriminator(inner, [1, 16, 16], 5, 3)
    assert all(torch.equal(value, before[key]) for key, value in inner.state_dict().items())
    assert inner.training
    x = torch.randn(4, 1, 16, 16)
    wrapped.eval()
    features = wrapped.features(x)
    assert wrapped(x).shape == (4,) and features.shape == (4, wrapped.in_features + 5)
    assert_close(wrapped(x), inner(x) + features[:, -5:] @ wrapped.head.weight[0])
    assert_close(inner(x), inner.logits(inner.features(x)), rtol=0, atol=0)


def test_what_has_no_features_is_refused():
    with pytest.raises(UserError, match="Linear has no `features`"):
        MinibatchDiscriminator(torch.nn.Linear(2, 1), [2])
