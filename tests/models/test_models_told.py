"""Models that are given columns: whose labels reach which network, and conditional likelihoods that are known."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from genlab.batch import Batch
from genlab.data.derive import Half, masked
from genlab.errors import UserError
from genlab.losses.adversarial import NonSaturating
from genlab.losses.divergences import kl_gaussians
from genlab.losses.likelihoods import Gaussian
from genlab.losses.penalties import DRAGAN, R1, R2, GradientPenalty, gradient_penalty
from genlab.metrics.likelihood import importance_bounds
from genlab.models.cvae_completion import CompletionVAE
from genlab.models.vae import VAE
from genlab.networks import mlp
from genlab.networks.told import Concat, HiddenMaps, Projection
from genlab.runs.running import build
from tests.models.helpers import Batches, assert_moves, config, fit, moved, snapshot

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["data=digits", "network.generator.hidden=[16,16]", "network.discriminator.hidden=[16,8]", "model.latent_dim=4"]
CGAN = ["model=cgan", *SMALL, "ema.decay=0"]
CONDITIONINGS = ["concat", "hidden", "projection", "norm"]
BY_HAND = ["+conditioning=concat", "+model.given=[y]", "+model.told={generator: draws, critic: judges}"]
WGANS = {
    "wgan_gp": ["model=wgan_gp", "model.n_critic=3"],
    "wgan": ["model=wgan", "model.n_critic=2", "model.n_critic_long=3", "model.long_first=1"],
}
CODES = ["data=digits", "network.encoder.hidden=[16]", "network.decoder.hidden=[16]", "model.latent_dim=4"]
COMPLETION = ["model=cvae_completion", *CODES, "ema.decay=0"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def labels(*y):
    return Batch({"y": torch.tensor(y)})


def spy(calls, *names):
    """For `before`: notes every call of these networks with its input and the conditions that come with it."""

    def listen(model):
        for name in names:
            network = model.get_submodule(name)
            network.register_forward_pre_hook(lambda _, args, name=name: calls.append((name, *args)))

    return listen


def shaken(model):
    """Every weight away from where it started: scales that start at 0 count from now on."""
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(0.3 * torch.randn(p.shape, generator=rng(i)))
    return model


# --- The conditional GAN ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_each_update_moves_its_own_player_alone(conditioning, tmp_path):
    assert_moves([*CGAN, f"conditioning={conditioning}"], ["discriminator", "generator"] * 2, 2, tmp_path)


TURNS = {False: ["generator", *["discriminator"] * 2, "generator", "discriminator"],
         True: ["generator", *["discriminator"] * 3]}  # fmt: skip


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_both_networks_are_told_the_batchs_own_labels_in_both_turns(conditioning, reuse, tmp_path):
    """Under `speed.reuse_fakes` too, where the generator draws once."""
    calls, batches = [], Batches()
    overrides = [*CGAN, f"conditioning={conditioning}", f"speed.reuse_fakes={str(reuse).lower()}"]
    fit(overrides, 2, tmp_path, [batches], spy(calls, "generator", "discriminator"))
    assert [name for name, *_ in calls] == 2 * TURNS[reuse]
    each = len(TURNS[reuse])
    assert not torch.equal(batches.seen[0].y, batches.seen[1].y)
    for i, (_, _, told) in enumerate(calls):
        assert list(told.columns) == ["y"] and torch.equal(told["y"], batches.seen[i // each].y)
    for step, batch in enumerate(batches.seen):
        real, shown, again = (x for name, x, _ in calls[step * each :][:each] if name == "discriminator")
        assert torch.equal(real, batch.x)
        assert torch.equal(shown, again.detach()) is reuse


def other_labels(shift):
    """For `before`: the model trains on labels that are so much larger."""

    def change(model):
        step = model.training_step
        model.training_step = lambda batch, batch_idx: step(batch.with_column("y", (batch.y + shift) % 10), batch_idx)

    return change


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_a_step_depends_on_the_labels(conditioning, tmp_path):
    """Of both players; and on nothing else that differs between two trainings."""
    overrides = [*CGAN, f"conditioning={conditioning}"]
    runs = [
        snapshot(fit(overrides, 1, tmp_path / str(i), before=other_labels(s)).model) for i, s in enumerate((0, 0, 3))
    ]
    for player in ("generator", "discriminator"):
        assert not moved(runs[0][player], runs[1][player])
        assert moved(runs[0][player], runs[2][player])


@pytest.fixture(scope="module")
def cgans(tmp_path_factory):
    """A trained model of each conditioning, with weights that tell labels apart."""
    folder = tmp_path_factory.mktemp("cgan")
    return {c: shaken(fit([*CGAN, f"conditioning={c}"], 1, folder / c).model) for c in CONDITIONINGS}


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_rows_are_independent_and_labels_count(conditioning, cgans):
    """A sample of a label is the same whatever labels stand beside it, and another than that of another label."""
    model = cgans[conditioning]
    z, y = model.noise(4, rng()), [4, 7, 1, 7]
    x = model.decode(z, labels(*y))
    assert torch.equal(model.sample(4, given=labels(*y), rng=rng()), x)
    beside = model.decode(z, labels(4, 0, 1, 9))
    assert_close(beside[[0, 2]], x[[0, 2]])
    assert all((beside[i] - x[i]).abs().max() > 1e-3 for i in (1, 3))
    logits = model.score_logits(x, labels(*y))
    assert logits.shape == (4,)
    other = model.score_logits(x, labels(4, 0, 1, 9))
    assert_close(other[[0, 2]], logits[[0, 2]])
    assert ((other - logits)[[1, 3]].abs() > 1e-3).all()
    for i in range(4):  # one row at a time
        assert_close(model.decode(z[i : i + 1], labels(y[i]))[0], x[i])
        assert_close(model.score_logits(x[i : i + 1], labels(y[i]))[0], logits[i])


def pairs(e):
    """Samples and signs: x ~ N(s, 1) of s = -1, 1, and pairs with the same x whose sign says nothing about them."""
    n, x = len(e), torch.cat([e - 1, e + 1])
    halves = torch.tensor([-1.0, 1.0]).double()
    return (x, halves.repeat_interleave(n)), (x.repeat(2), halves.repeat_interleave(2 * n))


def normal(n):
    """Midpoints of n equally likely intervals of N(0, 1)."""
    return torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(n).double() + 0.5) / n)


def test_a_generator_that_ignores_labels_is_found_out_by_a_told_discriminator_alone():
    """log p(x | s) / p(x) = log 2 - softplus(-2 s x) pays log 4 - 2 JSD = 1.191819; without s the best is log 4."""
    real, fake = ((math.log(2) - F.softplus(-2 * s * x)) for x, s in pairs(normal(200_000)))
    loss = NonSaturating()
    assert_close(loss.discriminator(real, fake).item(), 1.191819, rtol=0, atol=5e-6)
    assert_close(loss.discriminator(0 * real, 0 * fake).item(), 1.386294, rtol=0, atol=5e-7)


LINE = {"y": {"kind": "label", "size": 2}}
JUDGES = {
    "untold": lambda: mlp.Discriminator([1], [32, 32]),
    "concat": lambda: Concat(mlp.Discriminator([3], [32, 32]), LINE),
    "hidden": lambda: HiddenMaps(mlp.Discriminator([1], [32, 32]), LINE, [1], after=1, width=8),
    "projection": lambda: Projection(mlp.Discriminator([1], [32, 32]), LINE, [1]),
}


@pytest.mark.parametrize("judge", JUDGES)
def test_every_told_discriminator_learns_to_check_the_match(judge):
    """Down to 1.191819; the plain one stays at log 4, since the samples by themselves are right."""
    torch.manual_seed(0)
    network = JUDGES[judge]().double()
    (x_real, s_real), (x_fake, s_fake) = pairs(normal(100))
    told = [() if judge == "untold" else (Batch({"y": (s > 0).long()}),) for s in (s_real, s_fake)]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        logits = network(x_real[:, None], *told[0]), network(x_fake[:, None], *told[1])
        loss = NonSaturating().discriminator(*logits)
        loss.backward()
        optimizer.step()
    assert_close(loss.item(), math.log(4) if judge == "untold" else 1.191819, rtol=0, atol=0.01)


def test_conditions_are_asked_for(cgans):
    model = cgans["concat"]
    for ask in (lambda **given: model.sample(2, **given), lambda **given: model.decode(torch.zeros(2, 4), **given),
                lambda **given: model.score_logits(torch.zeros(2, 1, 8, 8), **given)):  # fmt: skip
        with pytest.raises(UserError) as error:
            ask()
        assert str(error.value) == "GAN is given y: pass a batch with these columns."
        with pytest.raises(UserError, match="no column 'y', only x"):
            ask(given=Batch({"x": torch.zeros(2, 1, 8, 8)}))
        assert len(ask(given=labels(1, 2).with_column("x", torch.zeros(2, 1, 8, 8)))) == 2


# --- Penalties --------------------------------------------------------------------------------------------------------

W = draw(3, 12)
ROWS = labels(2, 0, 0, 1, 2)


def linear_critic(x, told):
    """<w_y, x>, whose gradient at every point is the w of the row's own label."""
    return (x.flatten(1) * W[told["y"]]).sum(dim=1)


def test_the_gradient_penalty_is_at_the_rows_own_condition():
    x_real, x_fake = draw(2, 5, 3, 2, 2, seed=1)
    alpha = torch.rand(5, generator=rng(), dtype=torch.float64)
    norms = W.norm(dim=1)[ROWS["y"]]
    assert_close(gradient_penalty(linear_critic, x_real, x_fake, alpha, ROWS), (norms - 1).square().mean())
    # y |x|^2 / 2 has the gradient y x: point and condition belong together.
    x_hat = alpha.view(-1, 1, 1, 1) * x_real + (1 - alpha.view(-1, 1, 1, 1)) * x_fake
    found = gradient_penalty(
        lambda x, told: 0.5 * told["y"] * x.flatten(1).square().sum(dim=1), x_real, x_fake, alpha, ROWS
    )
    assert_close(found, (ROWS["y"] * x_hat.flatten(1).norm(dim=1) - 1).square().mean())


@pytest.mark.parametrize(
    ("penalty", "closed"),
    [
        (GradientPenalty(7.0), lambda norms: 7 * (norms - 1).square().mean()),
        (R1(3.0), lambda norms: 1.5 * norms.square().mean()),
        (R2(3.0), lambda norms: 1.5 * norms.square().mean()),
        (DRAGAN(2.0, k=0.5), lambda norms: 2 * (norms - 0.5).square().mean()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_penalty_passes_conditions_on(penalty, closed):
    x_real, x_fake = draw(2, 5, 3, 2, 2, seed=1)
    rand = lambda n, *shape: torch.rand(n, *shape, generator=rng(), dtype=torch.float64)  # noqa: E731
    assert_close(penalty(linear_critic, x_real, x_fake, rand, ROWS), closed(W.norm(dim=1)[ROWS["y"]]))


@pytest.mark.parametrize("penalty", ["r1", "wgan_gp"])
def test_a_cgan_trains_with_a_penalty(penalty, tmp_path):
    """The discriminator sees a fourth batch, at which its slope is taken, with the same labels."""
    calls, batches = [], Batches()
    overrides = [*CGAN, f"penalty={penalty}"]
    model = fit(overrides, 1, tmp_path, [batches], spy(calls, "discriminator")).model
    (batch,) = batches.seen
    assert len(calls) == 4 and all(torch.equal(told["y"], batch.y) for *_, told in calls)
    assert torch.equal(calls[2][1], batch.x) is (penalty == "r1")
    assert float(model.watching.recorded["penalty"]) > 0
    assert all(p.isfinite().all() for p in model.parameters())


def test_batch_normalisation_is_found_inside_a_wrapper():
    """A told network is as unfit for a penalty as it is alone."""
    asked = ["model=cgan", "network=dcgan", "network.width=4", "data=digits", "data.image_size=16", "penalty=r1"]
    with pytest.raises(UserError, match=r"one of each sample|gradient per sample"):
        build(config(asked))
    build(config([*asked, "network.norm=none"]))


# --- Wasserstein GANs by overrides ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WGANS)
def test_wasserstein_gans_are_told_chunk_by_chunk(name, tmp_path):
    """Every critic update sees its own part of the batch with that part's labels; the generator has the last part's."""
    calls, batches = [], Batches()
    small = [o.replace("discriminator", "critic") for o in SMALL]
    fit([*WGANS[name], *BY_HAND, *small], 2, tmp_path, [batches], spy(calls, "critic", "generator"))
    per_part = 3 if name == "wgan_gp" else 2
    updates = [3, 3] if name == "wgan_gp" else [3, 2]
    judged, drawn = ([call for call in calls if call[0] == who] for who in ("critic", "generator"))
    for count, batch in zip(updates, batches.seen, strict=True):
        assert len(batch) == 8 * count
        for part in batch.chunk(count):
            mine, judged = judged[:per_part], judged[per_part:]
            (_, _, told), *drawn = drawn
            assert torch.equal(mine[0][1], part.x)
            assert all(torch.equal(given["y"], part.y) for given in (told, *(call[2] for call in mine)))
        (_, _, at_the_end), *judged = judged
        (_, _, told), *drawn = drawn
        assert torch.equal(at_the_end["y"], part.y) and torch.equal(told["y"], part.y)
    assert not judged and not drawn


def test_wgan_gp_moves_each_player_alone(tmp_path):
    """The last bias is in both values of a difference, and in no gradient."""
    still = ["critic.network.head.bias"]
    small = [o.replace("discriminator", "critic") for o in SMALL]
    assert_moves([*WGANS["wgan_gp"], *BY_HAND, *small], ["critic"] * 3 + ["generator"], 1, tmp_path, still)


# --- The conditional VAE: a likelihood that is known ------------------------------------------------------------------

N, Z, D, K, SIGMA = 6, 2, 5, 3, 0.5  # all unequal: an axis taken for another shows
FACTS = {"y": {"kind": "label", "size": K}}
Y = torch.tensor([2, 0, 1, 2, 1, 0])


def linear_cvae(ignore=False):
    """x = W z + U c + sigma eps in float64 with the exact posterior, and log N(x; U c, W W^T + sigma^2 I) of any c.

    P = (I + W^T W / sigma^2)^-1 and m = P W^T (x - U c) / sigma^2; W is turned so that P is diagonal.
    """
    w, u = draw(D, Z), draw(D, K, seed=1)
    w = w @ torch.linalg.svd(w, full_matrices=False)[2].T
    w = 0 * w if ignore else w
    precision = torch.eye(Z, dtype=torch.float64) + w.T @ w / SIGMA**2
    gain = torch.linalg.solve(precision, w.T) / SIGMA**2
    encoder, decoder = nn.Linear(D + K, 2 * Z), nn.Linear(Z + K, D)
    model = VAE(Concat(encoder, FACTS), Concat(decoder, FACTS), Gaussian(SIGMA), Z, 2 * Z).double()
    with torch.no_grad():
        decoder.weight.copy_(torch.cat([w, u], dim=1)), decoder.bias.zero_()
        encoder.weight.zero_(), encoder.bias.zero_()
        encoder.weight[:Z].copy_(torch.cat([gain, -gain @ u], dim=1))
        encoder.bias[Z:].copy_(-precision.diagonal().log())
        model.likelihood.log_sigma.fill_(math.log(SIGMA))
    model.given = ("y",)
    covariance = w @ w.T + SIGMA**2 * torch.eye(D, dtype=torch.float64)

    def log_p(x, y):
        return torch.distributions.MultivariateNormal(u.T[y], covariance).log_prob(x)

    x = u.T[Y] + draw(N, Z, seed=2) @ w.T + SIGMA * draw(N, D, seed=3)
    return model, x, log_p


@pytest.mark.parametrize("shift", [0, 1])
def test_the_elbo_of_the_exact_posterior_is_the_conditional_likelihood(shift):
    """E over 2 Z points +- sqrt(Z) e_i is exact for quadratic functions, as log p(x | z, c) is one of eps."""
    model, x, log_p = linear_cvae()
    y = (Y + shift) % K
    points = math.sqrt(Z) * torch.cat([torch.eye(Z), -torch.eye(Z)]).double()
    model.randn = lambda n, *shape, rng=None: points.repeat_interleave(N, dim=0)
    terms = model.objective(x.repeat(2 * Z, 1), given=Batch({"y": y.repeat(2 * Z)}))
    assert_close(terms["elbo"], log_p(x, y).mean(), rtol=0, atol=1e-10)
    assert_close(terms["loss"], -terms["elbo"])
    assert not math.isclose(log_p(x, Y).mean(), log_p(x, (Y + 1) % K).mean(), abs_tol=0.1)


@pytest.mark.parametrize("k", [1, 3, 40])
def test_importance_sampling_under_conditions_is_exact_for_every_k(k):
    """In batches of their own conditions, with draws taken a few at a time."""
    model, x, log_p = linear_cvae()
    given = [Batch({"y": Y[:4]}), Batch({"y": Y[4:]})]
    bounds = importance_bounds(model, [x[:4], x[4:]], samples=k, at_a_time=12, given=given)
    assert_close(bounds.iwae, log_p(x, Y), rtol=0, atol=1e-9)
    assert_close(bounds.elbo, log_p(x, Y), rtol=0, atol=1e-9)
    assert_close(bounds.ess, torch.full((N,), float(k), dtype=torch.float64))
    wrong = importance_bounds(model, [x[:4], x[4:]], samples=k, given=[given[0], Batch({"y": (Y[4:] + 1) % K})])
    assert_close(wrong.iwae, torch.cat([log_p(x[:4], Y[:4]), log_p(x[4:], (Y[4:] + 1) % K)]), rtol=0, atol=1e-9)


def test_another_label_at_the_same_code():
    """Style transfer: with its own label it is the reconstruction, bit for bit; without z all rows of a label agree."""
    model, x, _ = linear_cvae()
    own, other = Batch({"y": Y}), Batch({"y": (Y + 1) % K})
    code = model.encode(x, own)
    assert torch.equal(model.decode(code, own), model.reconstruct(x, own))
    u = model.decoder.network.weight[:, Z:].T
    assert_close(model.decode(code, other) - model.reconstruct(x, own), (u[other["y"]] - u[Y]).detach())
    blind, x, _ = linear_cvae(ignore=True)
    made = blind.decode(blind.encode(x, own), own)
    assert_close(made, blind.decoder.network.weight[:, Z:].T[Y].detach())


def test_a_cvae_trains_and_asks_for_its_conditions(tmp_path):
    calls, batches = [], Batches()
    assert_moves(["model=cvae", *CODES], ["vae"] * 2, 2, tmp_path / "moves")
    model = fit(["model=cvae", *CODES], 2, tmp_path, [batches], spy(calls, "encoder", "decoder")).model
    assert [name for name, *_ in calls] == ["encoder", "decoder"] * 2
    for i, (_, _, told) in enumerate(calls):
        assert torch.equal(told["y"], batches.seen[i // 2].y)
    x = batches.seen[0].x
    for ask in (lambda: model.sample(8), lambda: model.encode(x), lambda: model.decode(torch.zeros(8, 4)),
                lambda: model.reconstruct(x), lambda: model.log_joint(x, torch.zeros(8, 4)),
                lambda: model.sample_posterior(x), lambda: model.objective(x)):  # fmt: skip
        with pytest.raises(UserError, match="^VAE is given y: pass a batch with these columns.$"):
            ask()
    y = labels(*range(8))
    assert_close(model.sample(8, given=y, rng=rng()), model.decode(model.noise(8, rng()), y))


def test_a_prior_of_posteriors_is_refused(tmp_path):
    with pytest.raises(UserError, match="^prior=vamp has posteriors of pictures of its own.*Try prior=maf"):
        fit(["model=cvae", *CODES, "prior=vamp"], 1, tmp_path)


# --- Completion -------------------------------------------------------------------------------------------------------


@pytest.fixture
def completion(tmp_path):
    """A trained model in float64, pictures, and their upper halves."""
    model = shaken(fit(COMPLETION, 1, tmp_path).model).double()
    x = torch.where(torch.rand(5, 1, 8, 8, generator=rng()) < 0.5, -1.0, 1.0).double()
    return model, x, Batch({"c": Half()(Batch({"x": x}), None)})


def test_the_likelihood_counts_hidden_pixels_alone(completion):
    """Bernoulli terms of the lower half by hand, and the prior that reads the upper one."""
    model, x, told = completion
    z = draw(5, 4)
    with torch.no_grad(), model.inference():
        raw = model.decoder(z, told)
        mu, logvar = model.prior_network(told).chunk(2, dim=1)
    p = raw.sigmoid()
    terms = torch.where(x > 0, p.log(), (1 - p).log())
    log_prior = torch.distributions.Normal(mu, (0.5 * logvar).exp()).log_prob(z).sum(dim=1)
    assert_close(model.log_prior(z, told), log_prior)
    assert_close(model.log_joint(x, z, told), terms[:, :, 4:].flatten(1).sum(dim=1) + log_prior)
    seen, hidden = x.clone(), x.clone()
    seen[:, :, :4] *= -1
    hidden[:, :, 7, 7] *= -1
    assert torch.equal(model.log_joint(seen, z, told), model.log_joint(x, z, told))
    change = torch.where(x > 0, (1 - p).log() - p.log(), p.log() - (1 - p).log())[:, 0, 7, 7]
    assert_close(model.log_joint(hidden, z, told) - model.log_joint(x, z, told), change)


def test_completions_keep_what_is_seen(completion):
    """Bit for bit; the rest is the decoder's mean at a draw from the prior of c."""
    model, x, told = completion
    z = model.sample_prior(5, rng=rng(), given=told)
    with torch.no_grad(), model.inference():
        mean = 2 * model.decoder(z, told).sigmoid() - 1
        code = model.encoder(x, told)[:, :4]
    made = model.sample(5, given=told, rng=rng())
    for completed in (made, model.decode(z, told), model.reconstruct(x, told)):
        assert torch.equal(completed[:, :, :4], x[:, :, :4])
    assert torch.equal(model.decode(z, told), made)
    assert_close(made[:, :, 4:], mean[:, :, 4:])
    assert torch.equal(model.encode(x, told), code)
    assert torch.equal(model.reconstruct(x, told), model.decode(code, told))
    dark = Batch({"c": masked(torch.zeros_like(x), told.tensor("c")[0, 1] > 0)})  # a seen 0 is no hidden pixel
    assert torch.equal(model.sample(5, given=dark, rng=rng())[:, :, :4], torch.zeros_like(x[:, :, :4]))


def test_the_prior_reads_the_seen_part_alone(completion):
    model, x, told = completion
    calls = []
    spy(calls, "prior_network", "encoder")(model)
    both = told.with_column("x", x)
    first = model.objective(x, rng(), given=both)
    (encoder,) = [args for name, *args in calls if name == "encoder"]
    (prior,) = [args for name, *args in calls if name == "prior_network"]
    assert torch.equal(encoder[0], x) and list(encoder[1].columns) == ["c"]
    assert len(prior) == 1 and list(prior[0].columns) == ["c"] and torch.equal(prior[0]["c"], told["c"])
    with torch.no_grad(), model.inference():
        q, p = (network.chunk(2, dim=1) for network in (model.encoder(x, told), model.prior_network(told)))
    normal = [torch.distributions.Normal(mu, (0.5 * logvar).exp()) for mu, logvar in (q, p)]
    kl = torch.distributions.kl_divergence(*normal).sum(dim=1).mean()
    assert_close(first["kl"].detach(), kl)
    assert_close(first["elbo"], -(first["recon"] + first["kl"]))
    draws = model.sample_prior(5, rng=rng(), given=told)
    assert_close(draws, p[0] + (0.5 * p[1]).exp() * draw(5, 4))
    others = told.rows(torch.tensor([1, 2, 3, 4, 0]))
    assert (model.sample_prior(5, rng=rng(), given=others) - draws).abs().max() > 1e-3


def test_importance_sampling_of_hidden_pixels(completion):
    """log w = log p(x_h, z | c) - log q(z | x, c) of each draw, and the two parts of the bound."""
    model, x, told = completion
    z, log_q = model.sample_posterior(x, 7, rng(), given=told)
    assert z.shape == (7, 5, 4) and log_q.shape == (7, 5)
    with torch.no_grad(), model.inference():
        mu, logvar = model.encoder(x, told).chunk(2, dim=1)
    normal = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    assert_close(log_q, normal.log_prob(z).sum(dim=2))
    log_w = torch.stack([model.log_joint(x, one, told) for one in z]) - log_q
    model.sample_posterior = lambda *_, **__: (z, log_q)
    bounds = importance_bounds(model, [x], samples=7, given=[told])
    assert_close(bounds.elbo, log_w.mean(dim=0))
    assert_close(bounds.iwae, log_w.logsumexp(dim=0) - math.log(7))
    recon = torch.stack([model.log_joint(x, one, told) - model.log_prior(one, told) for one in z]).mean(dim=0)
    assert_close(bounds.recon, recon)


class Tiny(nn.Module):
    """A network of two hidden layers of the numbers that it is given, [N, ...] each."""

    def __init__(self, inputs, outputs, shape=()):
        super().__init__()
        hidden = nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.layers, self.shape = nn.Sequential(hidden, nn.Linear(32, outputs)), shape

    def forward(self, *args):
        columns = [a.tensor("c") if isinstance(a, Batch) else a for a in args]
        out = self.layers(torch.cat([c.flatten(1) for c in columns], dim=1))
        return out.unflatten(1, self.shape) if self.shape else out


class Step(nn.Module):
    """Decodes z > 0 as +1 and z < 0 as -1."""

    def forward(self, z, told):
        return torch.where(z > 0, 1.0, -1.0).view(-1, 1, 1, 1).expand(-1, 1, 1, 2)


class Side(nn.Module):
    """Half of the normal distribution, about: the side of z on which x lies. Of c alone: the prior N(0, 1)."""

    def forward(self, *args):
        if len(args) == 1:
            return torch.zeros(len(args[0]), 2)
        return torch.stack([0.8 * args[0][:, 0, 0, 1].sign(), torch.full((len(args[0]),), -1.0)], dim=1)


def two_pixels(encoder, prior_network, decoder, sigma=0.1):
    """A CVAE of the right one of two pixels, given the left one."""
    likelihood = Gaussian(sigma, learned=True)
    model = CompletionVAE(encoder, prior_network, decoder, likelihood, latent_dim=1, encoder_features=2)
    model.given = ("c",)
    return model


def nats_of_one_guess(model, x, told):
    """-log p(x_h | c) of the decoder without a latent, [N]."""
    return -model.log_hidden(x, model.decoder(torch.zeros(len(x), 1), told), told)


def fitted(x, told, loss, sigma=0.1):
    """Two pixels after 1,000 steps of Adam on `loss(model, x, told)`, a mean of rows."""
    torch.manual_seed(0)
    model = two_pixels(Tiny(2 + 4, 2), Tiny(4, 2), Tiny(1 + 4, 2, (1, 1, 2)), sigma)
    optimizer, draws = torch.optim.Adam(model.parameters(), lr=5e-3), rng(1)
    for _ in range(1000):
        rows = torch.randint(len(x), (256,), generator=draws)
        optimizer.zero_grad()
        loss(model, x[rows], told.rows(rows)).mean().backward()
        optimizer.step()
    return model


def nats(model, x, told):
    """-log p(x_h | c) by importance sampling, mean."""
    return -importance_bounds(model, [x], samples=200, given=[told]).iwae.mean().item()


def test_a_latent_learns_what_a_single_guess_cannot():
    """x_h = +1 or -1 with noise .1, whatever is seen: the entropy is -.190499 nats, and one Gaussian pays 1.423914.

    The model that is true reaches the entropy. A learned one stays above it, since its prior has mass between the two
    sides, where no posterior has any. Of Gaussian pixels with correlation .8, one guess is right: .908113 nats.
    """
    noise = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(500) + 0.5) / 500)
    seen = torch.randn(1000, generator=rng())
    modes = torch.stack([seen, torch.cat([1 + 0.1 * noise, -1 + 0.1 * noise])], dim=1).view(-1, 1, 1, 2)
    line = torch.stack([seen, 0.8 * seen + 0.6 * noise.repeat(2)[torch.randperm(1000, generator=rng())]], dim=1)
    line = line.view(-1, 1, 1, 2)

    def elbo(model, x, told):
        return model.objective(x, draws, told)["loss"]

    def known(x):
        return Batch({"c": Half(seen="left")(Batch({"x": x}), None)})

    draws = rng(2)
    assert abs(nats(two_pixels(Side(), Side(), Step()), modes, known(modes)) + 0.190499) < 0.02
    guess = fitted(modes, known(modes), nats_of_one_guess, sigma=1.0)
    assert 1.42 <= nats_of_one_guess(guess, modes, known(modes)).mean() < 1.45
    assert nats(fitted(modes, known(modes), elbo), modes, known(modes)) < 0.1
    guess = fitted(line, known(line), nats_of_one_guess, sigma=1.0)
    assert abs(nats_of_one_guess(guess, line, known(line)).mean() - 0.908113) < 0.05
    assert abs(nats(fitted(line, known(line), elbo, sigma=1.0), line, known(line)) - 0.908113) < 0.08


def test_kl_of_two_gaussians():
    mu, logvar, mu_2, logvar_2 = draw(4, 7, 3)
    normals = [torch.distributions.Normal(m, (0.5 * v).exp()) for m, v in ((mu, logvar), (mu_2, logvar_2))]
    kl = kl_gaussians(mu, logvar, mu_2, logvar_2)
    assert_close(kl, torch.distributions.kl_divergence(*normals).sum(dim=1))
    assert_close(kl_gaussians(mu, logvar, mu, logvar), torch.zeros(7, dtype=torch.float64))


def test_the_objective_reaches_all_four_parts(tmp_path):
    """Likelihood included, where it learns its standard deviation."""
    overrides = [*COMPLETION, "likelihood=gaussian", "likelihood.learned=true"]
    model = assert_moves(overrides, ["cvae"] * 2, 2, tmp_path).model
    parts = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert parts == {"encoder", "prior_network", "decoder", "likelihood"}
    x = torch.zeros(5, 1, 8, 8)
    terms = model.objective(x, rng(), given=Batch({"c": Half()(Batch({"x": x}), None)}))
    gradients = torch.autograd.grad(terms["loss"], list(model.parameters()))
    assert len(gradients) == len(list(model.parameters())) and all(g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("likelihood", ["pixelcnn", "optimal_gaussian", "logistic_mixture"])
def test_likelihoods_that_couple_pixels_are_refused(likelihood):
    sentence = "^The hidden pixels alone are scored, and this likelihood couples pixels. Try likelihood=bernoulli or"
    for model in ("cvae_completion", "completion_regression"):
        with pytest.raises(UserError, match=sentence):
            build(config([f"model={model}", *CODES, f"likelihood={likelihood}"]))


@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "pixel_gaussian"])
def test_separable_likelihoods_are_sums_of_their_terms(name):
    model = build(config([*COMPLETION, f"likelihood={name}"])).model.double()
    x, raw = draw(3, 1, 8, 8, seed=1).clamp(-1, 1), draw(3, 2 if name == "pixel_gaussian" else 1, 8, 8)
    terms = model.likelihood.terms(x, raw)
    assert terms.shape == x.shape
    assert_close(terms.flatten(1).sum(dim=1), model.likelihood.log_prob(x, raw))
    by_hand = {
        "bernoulli": lambda: -F.binary_cross_entropy(raw.sigmoid(), (x + 1) / 2, reduction="none"),
        "pixel_gaussian": lambda: model.likelihood.terms(x, raw),  # by hand in tests/losses
        "gaussian": lambda: torch.distributions.Normal(raw, model.likelihood.log_sigma.exp()).log_prob(x),
    }
    assert_close(terms, by_hand[name]())


@pytest.mark.parametrize(("derive", "share"), [("half", 0.5), ("quadrants", 0.75), ("quadrants derive.c.seen=3", 0.25)])
def test_bits_are_of_the_hidden_pixels(derive, share, tmp_path):
    model = fit([*COMPLETION, *f"derive={derive}".split()], 1, tmp_path).model
    assert model.modelled_share == share


# --- The regression beside it -----------------------------------------------------------------------------------------

REGRESSION = ["model=completion_regression", *CODES, "ema.decay=0"]


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    """A trained one in float64, five digits, and the halves that it is given."""
    model = fit(REGRESSION, 1, tmp_path_factory.mktemp("regression")).model.double()
    x = draw(5, 1, 8, 8).sign()
    return model, x, Batch({"c": Half()(Batch({"x": x}), None)})


def test_a_regression_has_an_exact_likelihood(regression):
    """log p(x_h | c) of independent pixels; elbo and bound of any k are that number, and the parts are its own."""
    model, x, told = regression
    with torch.no_grad(), model.inference():
        p = model.decoder(model.encoder(told), told).sigmoid()
    exact = torch.where(x > 0, p.log(), (1 - p).log())[:, :, 4:].flatten(1).sum(dim=1)
    for k in (1, 50):
        bounds = importance_bounds(model, [x], samples=k, given=[told])
        assert bounds.samples == 1 and bounds.discrete
        assert_close(bounds.elbo, exact)
        assert_close(bounds.iwae, exact)
        assert_close(bounds.recon, exact)
    terms = model.objective(x, rng(), told)
    assert_close(terms["elbo"].detach(), exact.mean())
    assert_close(terms["loss"], -terms["elbo"])


def test_every_sample_of_one_condition_is_the_same(regression):
    model, x, told = regression
    one, two = (model.sample(5, given=told, rng=rng(seed)) for seed in (0, 1))
    assert torch.equal(one, two) and torch.equal(one[:, :, :4], x[:, :, :4])
    with torch.no_grad(), model.inference():
        assert_close(one[:, :, 4:], 2 * model.decoder(model.encoder(told), told)[:, :, 4:].sigmoid() - 1)


def test_the_networks_of_the_regression_are_those_of_the_cvae(tmp_path):
    """But for the recognition network and the prior's log-variances; all of them move."""
    model = assert_moves(REGRESSION, ["regression"] * 2, 2, tmp_path).model
    cvae = build(config(COMPLETION)).model
    shapes = lambda network: [tuple(p.shape) for p in network.parameters()]  # noqa: E731
    assert shapes(model.decoder) == shapes(cvae.decoder)
    assert shapes(model.encoder)[:-2] == shapes(cvae.prior_network)[:-2]
    assert 2 * shapes(model.encoder)[-1][0] == shapes(cvae.prior_network)[-1][0] == 8
    assert fit(REGRESSION, 1, tmp_path / "share").model.modelled_share == 0.5
