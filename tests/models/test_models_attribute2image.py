"""Attribute2Image: layers that are composed exactly, who is told attributes, and which term trains which network."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from genlab.batch import Batch
from genlab.config.composition import compose
from genlab.errors import UserError
from genlab.losses.likelihoods import PixelGaussian
from genlab.models.attribute2image_layered import Layers, composite, distances, foreground_of
from genlab.runs.running import build
from tests.models.helpers import assert_moves, config, fit

pytestmark = pytest.mark.usefixtures("one_thread")
SCENES = ["data.num_train=64", "data.image_size=16", "network.width=4", "ema.decay=0"]
LAYERED = ["model=attribute2image_layered", *SCENES, "model.foreground_dim=6", "model.background_dim=3"]
NETWORKS = ("foreground_encoder", "code_map", "background_encoder", "foreground_decoder", "background_decoder")
N, A, SIZE = 4, 16, 16


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def scene():
    """An untrained layered model in float64, pictures, their attributes, and which pixels are of the foreground."""
    torch.manual_seed(0)
    model = build(config(LAYERED)).model.double().eval()
    x = draw(N, 3, SIZE, SIZE).tanh()
    there = torch.rand(N, 1, SIZE, SIZE, generator=rng(1)) < 0.4
    told = Batch({"attributes": (torch.rand(N, A, generator=rng(2)) < 0.5).double()})
    return model, x, told, there


# --- Layers -----------------------------------------------------------------------------------------------------------


def test_a_gate_of_zero_or_one_selects_a_layer():
    front, back = draw(2, N, 3, 5, 6).tanh()
    gate = (torch.rand(N, 3, 5, 6, generator=rng()) < 0.5).double()
    assert torch.equal(composite(front, gate, back), torch.where(gate == 1, back, front))
    assert_close(composite(front, torch.full_like(gate, 0.25), back), 0.75 * front + 0.25 * back)


def test_true_layers_cost_nothing(scene):
    """g = 1 - mask, x_F the foreground and x_B the picture: bright backgrounds too, which x_F + g x_B cannot paint."""
    _, x, _, there = scene
    gate = torch.where(there, -1000.0, 1000.0).double().expand_as(x)
    true = Layers(foreground_of(x, there), gate, x)
    assert torch.equal(true.picture, x) and bool((x[~there.expand_as(x)] > 0.5).any())
    assert all(float(term) == 0 for term in distances(true, x, there).values())
    summed = true.foreground + gate.sigmoid() * true.background  # the sum of the authors' code
    assert float(F.smooth_l1_loss(summed, x, reduction="sum")) > 100


def test_the_terms_by_hand(scene):
    """Sums over a picture, means over the batch; smooth L1 is half the square up to 1, then less a half."""
    _, x, _, there = scene
    layers = Layers(*draw(3, *x.shape, seed=3))

    def smooth(a, b):
        d = (a - b).abs()
        return torch.where(d < 1, 0.5 * d**2, d - 0.5).flatten(1).sum(dim=1).mean()

    g = 1 / (1 + torch.exp(-layers.gate))
    masks = there.double().expand_as(x)
    black = x * masks - (1 - masks)
    entropy = -((1 - masks) * g.log() + masks * (1 - g).log()).flatten(1).sum(dim=1).mean()
    found = distances(layers, x, there)
    assert list(found) == ["foreground", "recon", "gate"]
    assert_close(found["foreground"], smooth(layers.foreground, black))
    assert_close(found["recon"], smooth((1 - g) * layers.foreground + g * layers.background, x))
    assert_close(found["gate"], entropy)


# --- Who is told what -------------------------------------------------------------------------------------------------


def test_attributes_move_the_foreground_alone(scene):
    """Permuting them leaves x_B unchanged at fixed z, bit for bit."""
    model, _, told, _ = scene
    z, other = draw(N, 9), told.rows(torch.tensor([1, 2, 3, 0]))
    one, two = model.layers(z, told), model.layers(z, other)
    assert torch.equal(one.background, two.background)
    assert (one.foreground - two.foreground).abs().max() > 1e-6 and (one.gate - two.gate).abs().max() > 1e-6
    assert torch.equal(model.decode(z, told), one.picture.detach())
    z_b = torch.cat([z[:, :6], draw(N, 3, seed=5)], dim=1)
    behind = model.layers(z_b, told)
    assert torch.equal(behind.foreground, one.foreground) and torch.equal(behind.gate, one.gate)
    assert (behind.background - one.background).abs().max() > 1e-6
    ahead = model.layers(torch.cat([draw(N, 6, seed=6), z[:, 6:]], dim=1), told)
    assert torch.equal(ahead.background, one.background)


def test_the_posteriors_read_what_the_graph_says(scene):
    """q(z_F | x_F, y) sees no background; q(z_B | x, y, z_F) sees the whole picture and z_F."""
    model, x, told, there = scene
    calls = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: calls.update({name: args}))
        for name in ("foreground_encoder", "background_encoder", "code_map")
    ]
    model.randn = lambda n, *shape, rng=None: draw(n, *shape, seed=7)
    z, kl = model.infer(x, there, told)
    for hook in hooks:
        hook.remove()
    del model.randn
    assert torch.equal(calls["foreground_encoder"][0], foreground_of(x, there))
    assert calls["foreground_encoder"][1] is told and calls["background_encoder"][1] is told
    assert torch.equal(calls["code_map"][0], z[:, :6])
    assert_close(calls["background_encoder"][0], torch.cat([x, model.code_map(z[:, :6])], dim=1))
    parts = [
        model.foreground_encoder(foreground_of(x, there), told),
        model.background_encoder(*calls["background_encoder"]),
    ]
    means, logvars = (torch.cat(each, dim=1) for each in zip(*(part.chunk(2, dim=1) for part in parts), strict=True))
    normal = torch.distributions.Normal(means, (0.5 * logvars).exp())
    standard = torch.distributions.Normal(torch.zeros_like(means), torch.ones_like(means))
    assert_close(kl, torch.distributions.kl_divergence(normal, standard).sum(dim=1))
    eps = torch.cat([draw(N, 6, seed=7), draw(N, 3, seed=7)], dim=1)
    assert_close(z, means + (0.5 * logvars).exp() * eps)


ROUTES = {  # the networks that each term trains
    "foreground": {"foreground_encoder", "foreground_decoder"},
    "gate": {"foreground_encoder", "foreground_decoder"},
    "recon": set(NETWORKS),
    "kl": {"foreground_encoder", "code_map", "background_encoder"},
}


@pytest.mark.parametrize("term", ROUTES)
def test_each_term_reaches_its_networks(term, scene):
    model, x, told, there = scene
    z, kl = model.infer(x, there, told)
    terms = {**distances(model.layers(z, told), x, there), "kl": kl.mean()}
    reached = set()
    for name in NETWORKS:
        gradients = torch.autograd.grad(
            terms[term], list(model.get_submodule(name).parameters()), allow_unused=True, retain_graph=True
        )
        if any(g is not None and bool(g.abs().sum() > 0) for g in gradients):
            reached.add(name)
    assert reached == ROUTES[term]


def test_one_player_with_all_networks(tmp_path):
    """Biases before batch norm are left out of the networks, so that nothing stands still."""
    model = assert_moves(LAYERED, ["cvae"] * 2, 2, tmp_path).model
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == set(NETWORKS)
    recorded = model.watching.recorded
    weighed = recorded["foreground"] + recorded["recon"] + 0.3 * recorded["gate"] + recorded["kl"]
    assert_close(recorded["loss"], weighed)


def test_masks_are_read_in_training_alone(tmp_path):
    """A step depends on them, a sample does not ask for them."""
    shift = lambda model: setattr(  # noqa: E731
        model, "training_step", lambda b, i, step=model.training_step: step(b.with_column("mask", 0 * b["mask"]), i)
    )
    own, without = (fit(LAYERED, 1, tmp_path / str(i), before=before).model for i, before in enumerate((None, shift)))
    assert any(not torch.equal(a, b) for a, b in zip(own.parameters(), without.parameters(), strict=True))
    told = Batch({"attributes": torch.zeros(5, A)})
    x = own.sample(5, given=told, rng=rng())
    assert x.shape == (5, 3, SIZE, SIZE) and torch.equal(x, own.decode(own.noise(5, rng()), told))
    assert not own.can("encode") and not own.can("reconstruct")


def test_any_class_map_is_a_mask(tmp_path):
    assert fit([*LAYERED, "model.mask=layout"], 1, tmp_path / "layout").model.needs == ("layout",)
    with pytest.raises(UserError, match=r"model.mask=caption must name|model.mask=attributes must name"):
        fit([*LAYERED, "model.mask=attributes"], 1, tmp_path / "attributes")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.latent_dim=64", r"A latent has 6 \+ 3 numbers, not 64. Set model.foreground_dim and"),
        ("model.gate_weight=-1", "model.gate_weight must be a number of at least 0, got -1"),
    ],
)
def test_numbers_that_do_not_fit(override, sentence):
    with pytest.raises(UserError, match=sentence):
        build(config([*LAYERED, override]))


@pytest.mark.parametrize("network", ["mlp", "dcgan", "resnet"])
def test_networks_of_every_family_get_their_shapes(network):
    """`genlab.with` replaces keys of the family's network; those of others stay."""
    small = {"mlp": ["network.hidden=[8]"]}.get(network, ["network.width=4"])
    overrides = [o for o in LAYERED if "width" not in o] + [f"network={network}", *small]
    model = compose(overrides)["model"]
    assert model["foreground_encoder"]["network"]["out_features"] == 12
    assert model["background_encoder"]["network"]["out_features"] == 6
    assert model["background_encoder"]["network"]["shape"] == [4 + A, SIZE, SIZE]
    assert model["foreground_decoder"]["network"]["shape"] == [6, SIZE, SIZE]
    assert model["foreground_decoder"]["network"]["latent_dim"] == 6 + A
    assert (model["background_decoder"]["latent_dim"], model["background_decoder"]["shape"]) == (3, [3, SIZE, SIZE])
    assert model["background_decoder"]["_target_"] == f"genlab.networks.{network}.Decoder"
    build(config(overrides))


# --- Without layers ---------------------------------------------------------------------------------------------------


def test_without_layers_it_is_a_cvae_with_a_variance_for_each_pixel(tmp_path):
    model = assert_moves(["model=attribute2image", *SCENES, "model.latent_dim=4"], ["vae"] * 2, 2, tmp_path).model
    assert isinstance(model.likelihood, PixelGaussian) and model.given == ("attributes",)
    told = Batch({"attributes": torch.zeros(3, A)})
    x = model.sample(3, given=told, rng=rng())
    z = model.noise(3, rng())
    with torch.no_grad(), model.inference():
        raw = model.decoder(z, told)
    assert raw.shape == (3, 6, SIZE, SIZE)
    assert_close(x, raw[:, :3].tanh())
    other = model.sample(3, given=Batch({"attributes": torch.ones(3, A)}), rng=rng())
    assert (other - x).abs().max() > 1e-4 and math.isfinite(float(model.watching.recorded["elbo"]))
