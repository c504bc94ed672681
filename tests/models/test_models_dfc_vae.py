"""DFC-VAE: errors of features against those of pixels, features that stay frozen, and the classifier of stage one."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import genlab
from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.divergences import kl_standard_normal
from genlab.networks.layers import Layered
from genlab.runs import start
from genlab.runs.running import build
from tests.models.helpers import assert_moves, config, fit, moved

pytestmark = pytest.mark.usefixtures("one_thread")
DFC = ["model=dfc_vae", "data=digits", "model.latent_dim=4", "network.hidden=[16,12]", "ema.decay=0"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=6, dtype=torch.float64):
    return (torch.rand(n, 1, 8, 8, generator=rng()) * 2 - 1).to(dtype)


class Same(nn.Module):
    """In the place of the first stage: features that are the samples themselves."""

    def layers(self, x, layers):
        return [x for _ in layers]


def model_of(first_stage, layers=(1,), overrides=()):
    model = build(config([*DFC, f"model.feature_layers={[*layers]}", *overrides])).model.double()
    if first_stage is not None:
        model.first_stage = first_stage
    return model


def test_features_that_are_pixels_make_a_gaussian_likelihood():
    """Weight D / 2: the term is -log N(x; x~, I) up to D / 2 log 2 pi."""
    model, x = model_of(Same(), overrides=["model.feature_weight=32"]), images()
    terms = model.objective(x, rng())
    q = model.posterior(x)
    x_recon = model.generator(q.rsample(model.randn(6, 4, rng=rng())))
    log_p = torch.distributions.Normal(x_recon, 1.0).log_prob(x).flatten(1).sum(dim=1)
    expected = (kl_standard_normal(*q) - log_p - 32 * math.log(2 * math.pi)).mean()
    assert_close(terms["loss"], expected)
    assert_close(terms["pixels"], terms["features"])
    twice = model_of(Same(), (1, -1), ["model.feature_weight=32"])
    own = {name: value for name, value in model.state_dict().items() if name != "variances"}
    twice.load_state_dict(own, strict=False)
    twice.variances.copy_(torch.tensor([4.0, 1.0]))
    assert_close(twice.objective(x, rng())["features"], 1.25 * terms["features"])


def test_layers_are_compared_in_units_of_their_own_variance():
    model = model_of(None, (1, -1))
    batches = [Batch({"x": images() + i}) for i in range(8)]
    model.initialise(iter(batches))
    body, x = model.first_stage.network.body, torch.cat([batch.x for batch in batches])
    first = body.trunk[0](x.flatten(1))
    last = body.trunk[2](body.trunk[1](first))
    assert_close(model.variances, torch.stack([f.var(dim=0, correction=0).mean() for f in (first, last)]))
    a, b = images(), images().flip(0)
    found = model.dissimilarity(a, b)
    error = (body.until(a, -1) - body.until(b, -1)).square().mean() / model.variances[1]
    assert_close(found[1], error)
    assert torch.equal(found, model.dissimilarity(b, a))


def test_all_layers_come_from_one_pass():
    body = build(config(DFC)).model.first_stage.network.body
    assert isinstance(body, Layered)
    x, calls = images(dtype=torch.float32), []
    body.trunk[0].register_forward_hook(lambda *_: calls.append(1))
    found = body.outputs(x, [-1, 1, 2])
    assert len(calls) == 1
    for layer, value in zip([-1, 1, 2], found, strict=True):
        assert torch.equal(value, body.until(x, layer))


def test_the_features_stay_as_they_are(tmp_path):
    """Bit for bit, in eval mode, in no optimizer; encoder and decoder are one player."""
    dcgan = ["network=dcgan", "network.width=4", "network.critic_norm=instance", "data.image_size=16"]
    small = [o for o in DFC if not o.startswith("network")]
    before = {}
    fit([*small, *dcgan], 2, tmp_path / "a", before=lambda m: before.update(m.first_stage.state_dict()))
    model = assert_moves([*small, *dcgan], ["vae"] * 2, 2, tmp_path / "b").model
    after = model.first_stage.state_dict()
    assert moved(build(config([*small, *dcgan])).model.first_stage.state_dict(), after) == set()
    assert before.keys() == after.keys()
    assert not any(module.training for module in model.first_stage.modules())
    names = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"encoder", "generator"} and not any(p.requires_grad for p in model.first_stage.parameters())


def test_one_command_trains_the_classifier_first(tmp_path):
    start.train(config([*DFC, "data.batch_size=64", "model.first_stage.optimizer.lr=0.005"], 150), tmp_path)
    first, second = genlab.load(tmp_path / "first_stage"), genlab.load(tmp_path)
    assert type(first).__name__ == "Reading" and type(second).__name__ == "DFCVAE"
    assert moved(first.state_dict(), second.first_stage.state_dict()) == set()
    data = build(config(DFC)).data
    batch = next(iter(data.batches("test", 400)))
    assert (first.classify(batch.x).argmax(dim=1) == batch.y).double().mean() > 0.8
    x = batch.x
    assert second.sample(5, rng=rng()).shape == (5, 1, 8, 8)
    found, mean = (second.dissimilarity(x, other) for other in (second.reconstruct(x), x.mean(dim=0).expand_as(x)))
    assert (found < mean).all()


def test_a_classifier_minimises_the_cross_entropy_of_known_labels(tmp_path):
    parts = build(config(DFC))
    first = parts.config["model"]["first_stage"]
    fitted = fit([*DFC, "data.num_labelled=500"], 3, tmp_path, model=first)
    model, batch = fitted.model, next(iter(fitted.data.first_batches(1)))
    assert model.needs == ("y",) and (batch.y < 0).any()
    readout = model.spec.fields["y"].readout((1, 1))
    logits, known = model.network(batch.x), batch.y >= 0
    found = readout.loss(logits, readout.target(batch.y))
    assert_close(found, F.cross_entropy(logits[known], batch.y[known]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.feature_layers=[]", "compares layers of a network that reads the data"),
        ("model.feature_layers=[5]", "model.feature_layer must be in 1 .. 2"),
        ("model.feature_weight=-1", "must be a number of at least 0"),
        ("model.encoder_features=5", "The encoder must give 8 numbers"),
    ],
)
def test_mistakes(override, words):
    with pytest.raises(UserError, match=words):
        build(config([*DFC, override]))
