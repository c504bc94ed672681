"""Semi-supervised VAEs: bounds that are known exactly, whose gradient reaches what, and batches of few labels."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from genlab.batch import Batch
from genlab.contracts import offers
from genlab.errors import UserError
from genlab.losses.likelihoods import Gaussian
from genlab.metrics.likelihood import importance_bounds
from genlab.models.ssl_vae import SemiSupervisedVAE
from genlab.networks.told import Concat, LatentGaussians
from genlab.runs.running import build
from tests.models.helpers import Batches, Memory, assert_moves, config, fit, moved, snapshot

pytestmark = pytest.mark.usefixtures("one_thread")
DIGITS = ["data=digits", "network=mlp", "network.hidden=[16]", "data.num_labelled=100"]
SIZES = ["model.encoder_features=12", "model.recognition.hidden=[10]", "model.latent_dim=3"]
SSL = ["model=ssl_vae", *DIGITS, *SIZES]
LABEL = ["model=label_vae", *DIGITS, *SIZES]
N, Z, D, K, SIGMA = 6, 2, 5, 3, 0.5  # all unequal: an axis taken for another shows
FACTS = {"y": {"kind": "label", "size": K}}
Y = torch.tensor([2, -1, 1, -1, 1, 0])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def labels(y):
    return Batch({"y": torch.as_tensor(y)})


def corners(z, k):
    """2 z points +- sqrt(z) e_i for every class: the mean over them is exact for quadratic functions. [2 z, k, z]."""
    points = math.sqrt(z) * torch.cat([torch.eye(z), -torch.eye(z)]).double()
    return points.unsqueeze(1).expand(2 * z, k, z)


# --- Bounds that are known --------------------------------------------------------------------------------------------


class ExactClasses(nn.Module):
    """log p(x | y) of every class: the logits of p(y | x), with something added to them."""

    def __init__(self, means, covariance, change):
        super().__init__()
        self.means, self.covariance, self.change = means, covariance, change

    def forward(self, x):
        each = [torch.distributions.MultivariateNormal(m, self.covariance).log_prob(x) for m in self.means]
        return torch.stack(each, dim=1) + self.change


def linear_model(change=0.0):
    """x = W z + U y + sigma eps in float64 with the exact q(z | x, y) and q(y | x), but for `change` of the logits."""
    w, u = draw(D, Z), draw(D, K, seed=1)
    w = w @ torch.linalg.svd(w, full_matrices=False)[2].T  # turned, so that the posterior's covariance is diagonal
    precision = torch.eye(Z, dtype=torch.float64) + w.T @ w / SIGMA**2
    gain = torch.linalg.solve(precision, w.T) / SIGMA**2
    recognition, decoder = nn.Linear(D + K, 2 * Z), nn.Linear(Z + K, D)
    covariance = w @ w.T + SIGMA**2 * torch.eye(D, dtype=torch.float64)
    networks = (nn.Identity(), Concat(recognition, FACTS), ExactClasses(u.T, covariance, change))
    model = SemiSupervisedVAE(*networks, Concat(decoder, FACTS), Gaussian(SIGMA), Z, K, 2 * Z).double()
    with torch.no_grad():
        decoder.weight.copy_(torch.cat([w, u], dim=1)), decoder.bias.zero_()
        recognition.weight.zero_(), recognition.bias.zero_()
        recognition.weight[:Z].copy_(torch.cat([gain, -gain @ u], dim=1))
        recognition.bias[Z:].copy_(-precision.diagonal().log())
        model.likelihood.log_sigma.fill_(math.log(SIGMA))
    model.given = ("y",)
    x = u.T[Y.clamp_min(0)] + draw(N, Z, seed=2) @ w.T + SIGMA * draw(N, D, seed=3)
    log_p = model.classifier(x) - change - math.log(K)  # log p(x, y)
    points = corners(Z, K).repeat_interleave(N, dim=0)
    model.randn = lambda n, *shape, rng=None: points
    return model, x, log_p


def every_point(x):
    """A row for each of the 2 Z points."""
    return x.repeat(2 * Z, *[1] * (x.dim() - 1))


def test_the_bound_of_the_exact_posterior_is_the_likelihood():
    """-U(x) = log p(x) and -L(x, y) = log p(x, y)."""
    model, x, log_p = linear_model()
    unknown = model.objective(every_point(x), given=labels(torch.full((N * 2 * Z,), -1)))
    assert_close(unknown["elbo"], log_p.logsumexp(dim=1).mean(), rtol=0, atol=1e-9)
    assert_close(unknown["loss"], -unknown["elbo"])
    y = Y.clamp_min(0)
    known = model.objective(every_point(x), given=labels(every_point(y)))
    assert_close(known["loss"] - known["cross_entropy"], -log_p[range(N), y].mean(), rtol=0, atol=1e-9)
    assert_close(known["elbo"], unknown["elbo"])


@pytest.mark.parametrize("change", [torch.tensor([0.7, -1.1, 0.3]).double(), torch.tensor([0.0, 50.0, 0.0]).double()])
def test_another_classifier_loses_its_divergence_from_the_posterior(change):
    """log p(x) + U(x) = KL(q(y | x) || p(y | x)), also of a classifier that is sure."""
    model, x, log_p = linear_model(change)
    q = (log_p + change).softmax(dim=1)
    kl = (q * (q.log() - log_p.log_softmax(dim=1))).nan_to_num(0).sum(dim=1)
    found = model.objective(every_point(x))
    assert_close(found["elbo"], (log_p.logsumexp(dim=1) - kl).mean(), rtol=0, atol=1e-8)


def test_samples_with_and_without_labels_share_a_batch():
    """Each pays its own bound once; the cross-entropy is the mean over the labelled ones alone."""
    model, x, log_p = linear_model(torch.tensor([0.7, -1.1, 0.3]).double())
    model.label_weight, model.bound_weight = 3.0, 0.5
    logits = model.classifier(x)
    q = logits.softmax(dim=1)
    unlabelled = (q * (q.log() - log_p)).sum(dim=1)
    known = Y >= 0
    bound = torch.where(known, -log_p[range(N), Y.clamp_min(0)], unlabelled).mean()
    cross_entropy = F.cross_entropy(logits[known], Y[known])
    found = model.objective(every_point(x), given=labels(every_point(Y)))
    assert_close(found["cross_entropy"], cross_entropy)
    assert_close(found["loss"], 0.5 * bound + 3 * cross_entropy, rtol=0, atol=1e-9)
    q = torch.where(known[:, None], F.one_hot(Y.clamp_min(0), K).double(), q)
    recon, kl = model.bounds(every_point(x))
    for name, each in (("recon", recon), ("kl", kl)):
        assert_close(found[name], (every_point(q) * each).sum(dim=1).mean())


def test_importance_sampling_given_the_class_is_exact():
    model, x, log_p = linear_model()
    y = Y.clamp_min(0)
    del model.randn
    bounds = importance_bounds(model, [x], samples=3, given=[labels(y)])
    assert_close(bounds.iwae, log_p[range(N), y] + math.log(K), rtol=0, atol=1e-9)


def costs_of(model, logits, cost):
    """The unlabelled bound of a model whose bounds of every class are given."""
    model.classifier = lambda x: logits
    model.bounds = lambda x, rng=None: (cost - math.log(model.classes), torch.zeros_like(cost))
    return -model.objective(torch.zeros(len(cost), D).double())["elbo"] * len(cost)


def test_the_sum_over_classes_has_its_optimum_at_the_softmax():
    """U = -logsumexp(-L) at q = softmax(-L), where its gradient in the logits is 0; a q that is sure pays L of one."""
    model = linear_model()[0]
    del model._modules["classifier"]
    cost = 5 * draw(4, K, seed=5)
    logits = (-cost).clone().requires_grad_()
    found = costs_of(model, logits, cost)
    assert_close(found, -(-cost).logsumexp(dim=1).sum())
    assert_close(torch.autograd.grad(found, logits)[0], torch.zeros_like(cost), rtol=0, atol=1e-12)
    sure = 1e4 * F.one_hot(torch.tensor([1, 0, 2, 2]), K).double()
    assert_close(costs_of(model, sure, cost), cost[range(4), [1, 0, 2, 2]].sum())
    other = draw(4, K, seed=6)
    assert costs_of(model, other, cost) > found.detach() + 0.1


def test_a_label_above_the_latents_has_a_known_likelihood():
    """p(z | y) = N(+-2, 1), x | z ~ N(z, .25), x = 0: log p(x) = -2.630510, less KL(Q || 1/2) for another Q(y | x).

    The latent of the model is e = z - m_y, whose posterior is N(4 (x - m_y) / 5, 1/5).
    """
    facts = {"y": {"kind": "label", "size": 2}}
    recognition, classifier = nn.Linear(1 + 2, 2), nn.Linear(1, 2)
    decoder = LatentGaussians(nn.Identity(), facts, 1)
    networks = (nn.Identity(), Concat(recognition, facts), classifier, decoder)
    model = SemiSupervisedVAE(*networks, Gaussian(0.5), 1, 2, 2).double()
    model.given = ("y",)
    with torch.no_grad():
        model.likelihood.log_sigma.fill_(math.log(0.5))
        decoder.mean.weight.copy_(torch.tensor([[2.0, -2.0]]))
        recognition.weight.copy_(torch.tensor([[0.8, -1.6, 1.6], [0, 0, 0]]))
        recognition.bias.copy_(torch.tensor([0, math.log(0.2)]).double())
        classifier.weight.zero_(), classifier.bias.zero_()
        model.randn = lambda n, *shape, rng=None: corners(1, 2)
        x = torch.zeros(2, 1).double()
        exact = -0.5 * math.log(2 * math.pi * 1.25) - 1.6
        assert math.isclose(exact, -2.630510, abs_tol=1e-6)
        assert_close(model.objective(x)["elbo"].item(), exact, rtol=0, atol=1e-12)
        classifier.bias.copy_(torch.tensor([1.0, -0.5]))
        q = classifier.bias.softmax(dim=0)
        kl = (q * (2 * q).log()).sum().item()
        assert_close(model.objective(x)["elbo"].item(), exact - kl, rtol=0, atol=1e-12)
        both = model.objective(x, given=labels([0, 0]))
        assert_close((both["loss"] - both["cross_entropy"]).item(), -exact + math.log(2), rtol=0, atol=1e-12)
    assert_close(model.decode(torch.zeros(2, 1).double(), labels([0, 1])), torch.tensor([[2.0], [-2.0]]).double())


def test_latents_of_one_class_are_those_of_a_vae():
    """K = 1, m = 0 and s = 1: U is the VAE's objective."""
    facts = {"y": {"kind": "label", "size": 1}}
    encoder, decoder = nn.Linear(D, 2 * Z), nn.Linear(Z, D)
    told = LatentGaussians(decoder, facts, Z)
    nn.init.zeros_(told.mean.weight)
    classifier = nn.Linear(D, 1)
    networks = (encoder, Concat(nn.Linear(2 * Z + 1, 2 * Z), facts), classifier, told, Gaussian(SIGMA))
    model = SemiSupervisedVAE(*networks, Z, 1, 2 * Z).double()
    model.given = ("y",)
    with torch.no_grad():
        model.recognition.network.weight.copy_(torch.eye(2 * Z, 2 * Z + 1)), model.recognition.network.bias.zero_()
    x, eps = draw(N, D), draw(N, Z, seed=1)
    model.randn = lambda n, *shape, rng=None: eps.unsqueeze(1)
    mu, logvar = encoder(x).chunk(2, dim=1)
    q = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros(()).double(), 1)).sum(dim=1)
    mean = decoder(mu + (0.5 * logvar).exp() * eps)
    recon = -torch.distributions.Normal(mean, model.likelihood.log_sigma.exp()).log_prob(x).sum(dim=1)
    assert_close(model.objective(x)["loss"], (recon + kl).mean(), rtol=0, atol=1e-12)


def test_every_class_has_noise_of_its_own():
    model, x, _ = linear_model()
    del model.randn
    seen = []
    model.decoder.register_forward_pre_hook(lambda _, args: seen.append(args))
    model.bounds(x, rng())
    z, told = seen[0]
    assert z.shape == (N * K, Z) and torch.equal(told["y"], torch.arange(K).repeat(N))
    q = model.posterior(x.repeat_interleave(K, dim=0), told)
    eps = ((z - q.mu) * (-0.5 * q.logvar).exp()).view(N, K, Z)
    assert_close(eps, draw(N, K, Z))
    assert (eps[:, 0] - eps[:, 1]).abs().min() > 1e-6


# --- Training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [SSL, LABEL], ids=["ssl_vae", "label_vae"])
def test_all_networks_are_one_player(overrides, tmp_path):
    updates = ["vae"] * 2
    assert_moves([*overrides, "likelihood=gaussian", "likelihood.learned=true"], updates, 2, tmp_path)


def gradients(model, term, given, x):
    """The networks that a term of the objective has a gradient in."""
    value = model.objective(x, rng(), given=given)[term]
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    return {name.partition(".")[0] for name, g in zip(names, found, strict=True) if g is not None and g.abs().sum() > 0}


def test_whose_gradient_each_term_is():
    """The cross-entropy trains the classifier alone; L trains all but it, U all of them."""
    model = build(config(SSL)).model
    generative = {"encoder", "recognition", "decoder"}
    x = torch.rand(6, 1, 8, 8, generator=rng()) * 2 - 1
    unknown, known = labels([-1] * 6), labels(range(6))
    assert gradients(model, "cross_entropy", known, x) == {"classifier"}
    assert gradients(model, "recon", known, x) == generative
    assert gradients(model, "kl", known, x) == {"encoder", "recognition"}
    assert gradients(model, "loss", unknown, x) == {*generative, "classifier"}
    model.label_weight = 0.0
    assert gradients(model, "loss", known, x) == generative


def test_a_weight_of_zero_leaves_the_classifier_alone(tmp_path):
    """The same classifier, on the labelled samples alone."""
    start = {}
    fitted = fit([*SSL, "model.bound_weight=0"], 3, tmp_path, before=lambda model: start.update(snapshot(model)))
    changed = moved(start["vae"], snapshot(fitted.model)["vae"])
    assert {name.partition(".")[0] for name in changed - {"decoder.network.body.2.bias"}} == {"classifier"}
    assert "recon" not in fitted.model.watching.recorded
    (batch,) = fitted.data.first_batches(1)
    found = fitted.model.objective(batch.x, given=batch)
    logits = fitted.model.classifier(batch.x)
    known = batch.y >= 0
    assert_close(found["loss"], fitted.model.label_weight * F.cross_entropy(logits[known], batch.y[known]))


def test_a_batch_without_labels_has_no_cross_entropy(tmp_path):
    memory = Memory()
    overrides = [*SSL, "model.labelled_share=null", "data.num_labelled=1", "trainer.log_every_n_steps=1"]
    fit(overrides, 2, tmp_path, trainer={"logger": [memory]})
    assert memory.curves["train/cross_entropy"] == {1: 0.0, 2: 0.0}
    assert all(math.isfinite(value) for value in memory.curves["train/loss"].values())


@pytest.mark.parametrize(("share", "labelled"), [("0.25", 4), ("0.01", 1), ("0.99", 15)])
def test_each_batch_has_its_share_of_labels(share, labelled, tmp_path):
    batches = Batches()
    overrides = [*SSL, f"model.labelled_share={share}", "data.batch_size=16", "data.num_labelled=40"]
    fitted = fit(overrides, 12, tmp_path, [batches])
    assert [int((batch.y >= 0).sum()) for batch in batches.seen] == 12 * [labelled]
    index, y = (torch.cat([batch[name] for batch in batches.seen]) for name in ("index", "y"))
    assert torch.equal(y[y >= 0], fitted.data.split("train").y[index[y >= 0]])
    assert len(index[y < 0].unique()) == 12 * (16 - labelled)  # no sample twice before all were seen
    assert len(index[y >= 0].unique()) == min(40, 12 * labelled)


def test_all_labels_known_leave_the_batches_as_they_are(tmp_path):
    one, other = Batches(), Batches()
    for batches, share in ((one, "0.5"), (other, "null")):
        overrides = [*SSL, "data.num_labelled=null", f"model.labelled_share={share}"]
        fit(overrides, 2, tmp_path / share, [batches])
    assert all(torch.equal(a["index"], b["index"]) for a, b in zip(one.seen, other.seen, strict=True))


@pytest.mark.parametrize("share", ["0", "1", "1.5", "-0.1"])
def test_shares_out_of_range_are_refused(share):
    with pytest.raises(UserError, match=r"model.labelled_share must be a number in \(0, 1\)"):
        build(config([*SSL, f"model.labelled_share={share}"]))


def test_data_without_classes_are_refused():
    with pytest.raises(UserError, match="model=ssl_vae is given y, and data=swiss_roll has"):
        build(config(["model=ssl_vae", "data=swiss_roll", "likelihood=gaussian"]))


def test_few_labels_are_enough(tmp_path):
    """Ring with ten labels of each of its eight classes: nearly every point falls to its own."""
    ring = ["model=ssl_vae", "data=ring", "likelihood=gaussian", "network.hidden=[32]", "data.num_labelled=80"]
    overrides = [*ring, *SIZES[:2], "model.latent_dim=2", "data.batch_size=64", "model.optimizer.lr=0.005"]
    model = fit([*overrides, "ema.decay=0"], 200, tmp_path).model
    batch = next(iter(fit(overrides, 1, tmp_path / "data").data.batches("test", 1000)))
    assert (model.classify(batch.x).argmax(dim=1) == batch.y).double().mean() > 0.97


# --- Asking -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["ssl_vae", "label_vae"])
def trained(request, tmp_path_factory):
    overrides = {"ssl_vae": SSL, "label_vae": LABEL}[request.param]
    return fit([*overrides, "model.optimizer.lr=0.01"], 10, tmp_path_factory.mktemp(request.param)).model


def test_a_sample_is_of_its_class(trained):
    """One class a row, whatever stands beside it; another class at the same latent is another sample."""
    z, y = trained.noise(4, rng()), [4, 7, 1, 7]
    x = trained.decode(z, labels(y))
    assert torch.equal(trained.sample(4, given=labels(y), rng=rng()), x)
    beside = trained.decode(z, labels([4, 0, 1, 9]))
    assert_close(beside[[0, 2]], x[[0, 2]])
    assert ((beside - x)[[1, 3]].flatten(1).abs().amax(dim=1) > 1e-3).all()
    with pytest.raises(UserError, match="^SemiSupervisedVAE is given y: pass a batch with these columns.$"):
        trained.sample(2)


def test_missing_classes_are_those_of_the_classifier(trained):
    x = torch.rand(5, 1, 8, 8, generator=rng()) * 2 - 1
    guess = trained.classify(x).argmax(dim=1)
    assert torch.equal(trained.encode(x), trained.encode(x, labels(guess)))
    other = (guess + 1) % 10
    some = torch.where(torch.tensor([True, False, True, False, False]), other, -1)
    code = trained.encode(x, labels(some))
    assert torch.equal(code[[1, 3, 4]], trained.encode(x)[[1, 3, 4]])
    assert_close(code[[0, 2]], trained.encode(x, labels(other))[[0, 2]])
    assert torch.equal(trained.reconstruct(x), trained.decode(trained.encode(x), labels(guess)))
    assert all(offers(trained, name) for name in ("sample", "classify", "log_joint", "sample_posterior", "log_prior"))
