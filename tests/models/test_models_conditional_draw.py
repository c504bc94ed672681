"""DRAW that is told a condition: it joins both recurrent networks at every step, and nothing else changes."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from genlab.batch import Batch
from genlab.config.composition import compose
from genlab.errors import UserError
from genlab.losses.likelihoods import Bernoulli
from genlab.metrics.likelihood import importance_bounds
from genlab.models.draw import DRAW
from genlab.networks.told import ReadsVector
from genlab.runs.start import train
from genlab.telling import telling
from tests.models.helpers import Batches, assert_moves, config, fit

pytestmark = pytest.mark.usefixtures("one_thread")
N, SHAPE, T, Z, HIDDEN, K, C = 5, (2, 6, 8), 3, 4, 7, 3, 6  # all unequal: an axis taken for another shows
FACTS = {"y": {"kind": "label", "size": K}}
SMALL = ["data=digits", "data.batch_size=16", "model.hidden=16", "model.steps=3", "model.latent_dim=2"]
TOLD = ["model=conditional_draw", *SMALL, "model.condition_features=5"]
Y = torch.tensor([2, 0, 1, 2, 1])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=N):
    return 2 * (torch.rand(n, *SHAPE, generator=rng(1), dtype=torch.float64) < 0.5).double() - 1


def labels(y):
    return Batch({"y": torch.as_tensor(y)})


def plain():
    torch.manual_seed(0)
    made = DRAW(SHAPE, Bernoulli(), T, Z, HIDDEN, read_size=2, write_size=3).double()
    with torch.no_grad():
        made.canvas["start"].normal_()
    return made


def told(zero=False):
    """A DRAW with the weights of `plain`, and columns for the condition beside them: zeros, or what they are."""
    before = plain()
    conditioner = ReadsVector(nn.Linear(K, C), FACTS)
    sizes = {"read_size": 2, "write_size": 3, "conditioner": conditioner, "condition_features": C}
    made = DRAW(SHAPE, Bernoulli(), T, Z, HIDDEN, **sizes).double()
    wider = made.state_dict()
    for name, value in before.state_dict().items():
        if name in ("encoder.weight_ih", "decoder.weight_ih"):
            value = torch.cat([value, (0 if zero else 1) * wider[name][:, -C:]], dim=1)
        wider[name] = value
    made.load_state_dict(wider)
    made.given = ("y",)
    return made


def test_zero_columns_are_draw():
    """Up to the rounding of wider sums, whatever the condition is: objective, samples, codes."""
    made, before, x, y = told(zero=True), plain(), images(), labels(Y)
    for name, value in before.objective(x, rng(3)).items():
        assert_close(made.objective(x, rng(3), given=y)[name], value, rtol=1e-13, atol=1e-13)
    assert_close(made.sample(N, given=y, rng=rng()), before.sample(N, rng=rng()), rtol=0, atol=1e-13)
    assert_close(made.encode(x, y), before.encode(x), rtol=0, atol=1e-13)


def test_the_condition_changes_the_first_step_already():
    """Both networks read it: the posterior of step 1, and the canvas of step 1 at a given latent."""
    made, x = told(), images()
    noise = torch.zeros(N, T * Z).double()
    one, other = (made.unroll(noise, x, [labels(y)]) for y in (Y, (Y + 1) % K))
    assert ((one.posteriors[0].mu - other.posteriors[0].mu).abs().amax(dim=1) > 1e-6).all()
    one, other = (made.unroll(noise, told=[labels(y)]) for y in (Y, (Y + 1) % K))
    for step in range(T):
        change = (one.canvases[step] - other.canvases[step]).flatten(1).abs().amax(dim=1)
        assert (change > 1e-6).all()


def test_every_row_has_its_own_condition():
    made, z = told(), torch.randn(N, T * Z, generator=rng(), dtype=torch.float64)
    x = made.decode(z, labels(Y))
    for i in range(N):
        assert_close(made.decode(z[i : i + 1], labels(Y[i : i + 1]))[0], x[i])
    frames = made.frames(N, rng=rng(), given=labels(Y))
    assert_close(frames[-1], made.sample(N, given=labels(Y), rng=rng()))
    assert_close(telling(made, labels(Y)).frames(N, rng=rng()), frames)


def test_draws_and_densities_agree_under_a_condition():
    """k draws of each sample keep that sample's condition, and the bound's own ELBO is the objective's."""
    made, x = told(), images(2)
    y = labels(Y[:2])
    z, log_q = made.sample_posterior(x, 3, rng(2), given=y)
    done = made.unroll(made.randn(6, T * Z, rng=rng(2)), torch.cat([x, x, x]), [labels(Y[:2].repeat(3))])
    assert_close(z.flatten(0, 1), torch.cat(done.latents, dim=1))
    by_hand = sum(q.log_prob(w) for q, w in zip(done.posteriors, done.latents, strict=True))
    assert_close(log_q.flatten(), by_hand)
    recon = made.likelihood.log_prob(x, made.unroll(z[0], told=[y]).canvases[-1])
    assert_close(made.log_joint(x, z[0], y), recon + made.log_prior(z[0]))
    bounds = importance_bounds(made, [x], samples=2000, given=[y])
    exact = torch.stack([made.objective(x, rng(i), y)["elbo"] for i in range(1000)]).mean()
    assert_close(bounds.elbo.mean(), exact.detach(), rtol=0, atol=0.15)


@pytest.mark.parametrize("more", [[], ["adversary=gan"]])
def test_it_trains_on_the_batchs_own_conditions(more, tmp_path):
    updates = [*(["discriminator"] if more else []), "draw"] * 2
    assert_moves([*TOLD, *more], updates, 2, tmp_path / "moves")
    calls, batches = [], Batches()

    def listen(model):
        model.conditioner.register_forward_pre_hook(lambda _, args: calls.append(args[0]["y"]))

    model = fit(TOLD, 2, tmp_path, [batches], listen).model
    assert len(calls) == 2 and all(torch.equal(y, batch.y) for y, batch in zip(calls, batches.seen, strict=True))
    for ask in (lambda: model.sample(2), lambda: model.frames(2), lambda: model.objective(batches.seen[0].x)):
        with pytest.raises(UserError, match="^DRAW is given y: pass a batch with these columns.$"):
            ask()


def test_the_canvas_of_each_class_is_an_animation(tmp_path):
    quiet = ["metrics=none", "logger=none", "trainer=cpu", "threads=1", "trainer.max_steps=2"]
    train(compose([*TOLD, *quiet, "callbacks.grid.num_samples=10"]), tmp_path)
    assert (tmp_path / "samples.gif").is_file() and (tmp_path / "samples.png").is_file()


def test_a_draw_without_a_conditioner_cannot_be_told():
    told = ["+conditioning=concat", "+model.given=[y]", "+model.told={conditioner: reads}"]
    with pytest.raises(UserError, match="^model.told names conditioner, and model=draw has none: model.conditioner is"):
        config(["model=draw", *SMALL, *told])
