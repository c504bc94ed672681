"""What holds for every sampler: nothing is disturbed, what was learned can be kept, a seed decides."""

import io
import random
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from genlab.errors import UserError
from genlab.sampling.ddls import DDLS
from genlab.sampling.drs import DRS
from genlab.sampling.latent import GMM, Flow
from genlab.sampling.prior import Prior, Truncated
from tests.sampling.toys import small_gan, small_vae

MAKERS = {
    "prior": (Prior, small_gan),
    "truncated": (lambda: Truncated(threshold=1.0), small_gan),
    "drs": (lambda: DRS(burn_in=200, d_steps=3, batch_size=32), small_gan),
    "ddls": (lambda: DDLS(steps=3, metropolis=True, d_steps=3, batch_size=32), small_gan),
    "gmm": (lambda: GMM(k=3), small_vae),
    "flow": (lambda: Flow(steps=5, hidden=[8], transforms=2), small_vae),
}


@pytest.fixture(params=sorted(MAKERS))
def case(request):
    """How the sampler is made, and a model for it."""
    if request.param == "flow" and find_spec("zuko") is None:
        pytest.skip("the extra `flows` is not installed")
    make, model = MAKERS[request.param]
    return make, model()


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def data():
    return torch.randn(300, 2, generator=rng(1))


def test_the_model_and_the_random_streams_stay_as_they_are(case):
    make, model = case
    model.train()  # batch norm would move if samplers left it so
    before = {k: v.clone() for k, v in model.state_dict().items()}
    averages = {k: v.clone() for k, v in model.averages.values.items()}
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    noise, python = model.rng.get_state(), random.getstate()
    torch.manual_seed(5)
    np.random.seed(5)
    streams = torch.get_rng_state(), np.random.get_state()[1].copy()
    sampler = make()
    sampler.fit(model, data(), rng(2))
    x = sampler.sample(model, 5, rng=rng(3))
    assert x.shape == (5, 2) and bool(x.isfinite().all()) and not x.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, averages[k]) for k, v in model.averages.values.items())
    assert places == {name: p.data_ptr() for name, p in model.named_parameters()}
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert torch.equal(streams[0], torch.get_rng_state()) and np.array_equal(streams[1], np.random.get_state()[1])
    assert torch.equal(noise, model.rng.get_state()) and python == random.getstate()


def test_what_was_kept_draws_the_same_samples(case):
    """Plain tensors, through a file that executes nothing."""
    make, model = case
    sampler = make()
    sampler.fit(model, data(), rng(2))
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    expected = sampler.sample(model, 40, rng=rng(3))
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    again = make()
    again.load_state_dict(state)
    assert again.is_fitted
    assert torch.equal(again.sample(model, 40, rng=rng(3)), expected)
    assert not torch.equal(again.sample(model, 40, rng=rng(4)), expected)


def test_a_state_of_another_sampler_is_refused(case):
    make, _ = case
    with pytest.raises(UserError, match="does not fit sampler="):
        make().load_state_dict({"somebody": torch.zeros(2)})


def test_a_fit_depends_on_its_stream_alone(case):
    make, model = case
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        sampler = make()
        sampler.fit(model, data(), rng(2))
        states.append(sampler.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_without_a_stream_the_global_one_decides(case):
    make, model = case
    sampler = make()
    sampler.fit(model, data(), rng(2))
    torch.manual_seed(7)
    a = sampler.sample(model, 6)
    torch.manual_seed(7)
    assert torch.equal(sampler.sample(model, 6), a)


def test_a_flow_of_other_widths_is_refused():
    pytest.importorskip("zuko", reason="the extra `flows` is not installed")
    sampler, model = Flow(steps=1, hidden=[8], transforms=1), small_vae()
    sampler.fit(model, data(), rng(2))
    with pytest.raises(UserError, match="its layers differ"):
        Flow(steps=1, hidden=[9], transforms=1).load_state_dict(sampler.state_dict())
