"""PixelCNNs see what comes before a pixel in raster order, all of it or with the known blind spot, and no more."""

import pytest
import torch

from genlab.errors import UserError
from genlab.networks.pixelcnn import GatedPixelCNN, MaskedConv2d, PixelCNN

H, W = 7, 6


def dependence(network):
    """[H W, H W]: whether the output at a pixel (row) depends on the input at a pixel (column), by gradients."""
    torch.manual_seed(0)
    network = network.double()
    for p in network.parameters():  # far from zero, so that no path cancels
        torch.nn.init.normal_(p, std=0.5)
    embedded = []
    network.embed.register_forward_hook(lambda *args: embedded.append(args[2].requires_grad_()) or embedded[-1])
    tokens = torch.randint(3, (1, H, W))
    network.embed.weight.requires_grad_(False)
    logits = network(tokens)[0].flatten(1)
    rows = []
    for i in range(H * W):
        (g,) = torch.autograd.grad(logits[:, i].sum(), embedded[0], retain_graph=True)
        rows.append(g[0].abs().sum(dim=2).flatten() > 0)
    return torch.stack(rows)


NETWORKS = {
    "plain": lambda: PixelCNN(3, width=8, layers=6, kernel=5, hidden=8),
    "gated": lambda: GatedPixelCNN(3, width=8, layers=6, kernel=5, hidden=8),
    "gated, one layer": lambda: GatedPixelCNN(3, width=8, layers=1, kernel=3, hidden=8),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_pixel_sees_itself_or_what_comes_after(name):
    seen = dependence(NETWORKS[name]())
    assert not seen.triu().any()
    assert seen.any()


def test_the_gated_one_sees_everything_before():
    assert dependence(NETWORKS["gated"]()).equal(torch.ones(H * W, H * W).tril(-1).bool())


def test_the_plain_one_has_its_blind_spot():
    """Above to the right: with 3 x 3 masks each row up reaches one pixel further to the right only."""
    seen = dependence(PixelCNN(3, width=8, layers=2, kernel=3, hidden=8)).view(H, W, H, W)
    assert seen[4, 1, 3, 2] and not seen[4, 1, 3, 4] and not seen[4, 0, 3, 5]
    full = dependence(GatedPixelCNN(3, width=8, layers=6, kernel=3, hidden=8)).view(H, W, H, W)
    assert full[4, 1, 3, 5]


def test_the_masks():
    a, b = (MaskedConv2d(1, 1, 3, first=first).mask for first in (True, False))
    assert a.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert b.tolist() == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_below_do_not_change_a_bit(name):
    """What sampling relies on: the grid may be cut off below the row at hand."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    tokens = torch.randint(3, (2, H, W))
    whole = network(tokens)
    torch.testing.assert_close(network(tokens[:, :3]), whole[:, :, :3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PixelCNN(1), "model.levels must be at least 2"),
        (lambda: GatedPixelCNN(4, kernel=4), "kernel must be an odd number"),
        (lambda: GatedPixelCNN(4, layers=0), "model.network.layers"),
    ],
)
def test_mistakes(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_a_context_is_seen_at_its_own_place_from_the_first_pixel_on():
    """Conditioning on a map leaves the order as it is, and reaches every output, the first pixel's too."""
    torch.manual_seed(0)
    network = GatedPixelCNN(3, width=8, layers=6, kernel=5, hidden=8, context=2).double()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.5)
    context = torch.randn(1, 2, H, W, dtype=torch.float64, requires_grad=True)
    embedded = []
    network.embed.weight.requires_grad_(False)
    network.embed.register_forward_hook(lambda *args: embedded.append(args[2].requires_grad_()) or embedded[-1])
    tokens = torch.randint(3, (1, H, W))
    logits = network(tokens, context)
    flat = logits[0].flatten(1)
    for i in range(H * W):
        of_tokens, of_context = torch.autograd.grad(flat[:, i].sum(), [embedded[0], context], retain_graph=True)
        seen = of_context[0].abs().sum(dim=0).flatten() > 0
        assert not (of_tokens[0].abs().sum(dim=2).flatten() > 0)[i:].any()
        assert seen[i] and not seen[i // W * W + W :].any()
    torch.testing.assert_close(network(tokens[:, :3], context[:, :, :3]), logits[:, :, :3])
