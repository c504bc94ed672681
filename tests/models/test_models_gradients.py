"""`inference(gradients=True)`: capabilities that can be differentiated by what they are given."""

import pytest
import torch

from genlab.models.base import GenerativeModel
from tests.models.helpers import METHODS, fit


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    return fit([*METHODS["gan"], "ema.decay=0.9", "seed=3"], 5, tmp_path_factory.mktemp("run")).model


def test_gradients_reach_the_latent_and_no_parameter(gan):
    z = torch.randn(4, gan.latent_dim, requires_grad=True)
    flags = [p.requires_grad for p in gan.parameters()]
    gan.zero_grad(set_to_none=True)
    with gan.inference(gradients=True):
        gan.score_logits(gan.decode(z)).sum().backward()
    assert z.grad is not None and (z.grad != 0).any()
    assert all(p.grad is None for p in gan.parameters())
    assert [p.requires_grad for p in gan.parameters()] == flags and all(flags)


def test_it_sees_the_averaged_weights_and_gives_the_live_ones_back(gan):
    z = torch.randn(4, gan.latent_dim)
    live = [p.detach().clone() for p in gan.parameters()]
    wanted = gan.decode(z)
    with gan.inference(gradients=True):
        assert torch.equal(gan.decode(z), wanted)
        assert torch.equal(gan.decode(z), wanted)  # the second call finds the first one's averages still in place
    assert all(torch.equal(a, b) for a, b in zip(gan.parameters(), live, strict=True))
    assert not torch.equal(gan.generator(z), wanted)
    assert gan.decode(z.requires_grad_()).requires_grad is False


def test_an_error_inside_leaves_nothing_changed(gan):
    gan.train()
    live = [p.detach().clone() for p in gan.parameters()]
    with pytest.raises(RuntimeError), gan.inference(gradients=True):
        raise RuntimeError
    assert gan.training and all(p.requires_grad for p in gan.parameters())
    assert all(torch.equal(a, b) for a, b in zip(gan.parameters(), live, strict=True))
    assert not gan.decode(torch.zeros(1, gan.latent_dim)).requires_grad


def test_models_say_what_their_latents_are_drawn_from(tmp_path):
    assert GenerativeModel.latent_prior == "normal"
    began = fit(METHODS["began"], 1, tmp_path).model
    assert began.latent_prior == "uniform"
    assert began.noise(1000, torch.Generator()).abs().max() <= 1


@pytest.mark.parametrize("method", sorted(METHODS))
def test_sampling_is_decoding_the_prior(method, tmp_path):
    model = fit(METHODS[method], 1, tmp_path).model
    z = model.noise(5, torch.Generator().manual_seed(7))
    torch.testing.assert_close(model.decode(z), model.sample(5, rng=torch.Generator().manual_seed(7)))
