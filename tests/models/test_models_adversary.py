"""An adversary beside an objective: who moves on what, and that everything else stays as it was."""

import pytest
import torch

from genlab.errors import UserError
from genlab.runs.running import build
from tests.models.helpers import Losses, assert_moves, config, fit, log_d, log_not_d

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["data=digits", "network=mlp", "network.hidden=[8]"]
VQ = ["model.encoder.width=4", "model.encoder.inner=4", "model.encoder.blocks=1", "model.encoder.halvings=1"]
SHELF = {
    "vae": ["model=vae", *SMALL, "model.latent_dim=3"],
    "vae_maf": ["model=vae", *SMALL, "model.latent_dim=3", "prior=maf", "posterior=iaf", "likelihood=gaussian"],
    "iwae": ["model=iwae", *SMALL, "model.latent_dim=3", "model.k=4"],
    "two_layers": ["model=iwae_two_layers", *SMALL, "model.latent_dim=4", "model.upper_dim=3", "model.k=3"],
    "gumbel": ["model=gumbel", *SMALL, "model.variables=3", "model.classes=2"],
    "draw": ["model=draw", *SMALL, "model.steps=3", "model.hidden=8", "model.latent_dim=2"],
    "vqvae": ["model=vqvae", *SMALL, *VQ, "model.codebook.codes=8", "model.codebook.dim=4"],
}
PLAYERS = {"vae": "vae", "vae_maf": "vae", "iwae": "iwae", "two_layers": "iwae", "gumbel": "vae", "draw": "draw"}


@pytest.mark.parametrize("name", SHELF)
def test_the_pair_is_config(name, tmp_path):
    """Discriminator and model take turns, all of each moves, and the scores are the model's own."""
    player = PLAYERS.get(name, "autoencoder")
    fitted = assert_moves([*SHELF[name], "adversary=gan"], ["discriminator", player] * 2, 2, tmp_path)
    x = next(iter(fitted.data.batches("test", 5))).x
    assert fitted.model.imitate(x).shape == x.shape
    assert fitted.model.can("reconstruct") and not fitted.model.can("score_logits")


@pytest.mark.parametrize("name", ["vae", "draw"])
def test_the_losses_are_the_bound_and_the_game(name, tmp_path):
    """Discriminator: -log D(x) - log(1 - D(G(z_p))); model: -ELBO - w log D(G(z_p))."""

    def fakes(m, z):
        return m.likelihood.mean(m.decoder(z) if name == "vae" else m.unroll(z).canvases[-1])

    def d_loss(m, x, draws):
        d = m.adversary.discriminator
        return -log_d(d(x)) - log_not_d(d(fakes(m, draws[0]).detach()))

    def loss(m, x, draws):
        keep, m.randn = m.randn, lambda *_, **__: draws[1]
        terms, m.randn = m.objective(x), keep
        return terms["loss"] - 3 * log_d(m.adversary.discriminator(fakes(m, draws[2])))

    losses = Losses([d_loss, loss])
    overrides = [*SHELF[name], "adversary=gan", "adversary.weight=3"]
    fit(overrides, 1, tmp_path, [losses], trainer={"precision": "64-true"})
    assert losses.checked == ["discriminator", PLAYERS[name]]


def test_without_it_nothing_is_drawn_and_nothing_changes(tmp_path):
    """The noise and the updates of a VAE that knows no adversary, bit for bit."""

    def step_of_old(model):
        def step(batch, batch_idx):
            with model.turn("vae") as vae:
                terms = model.objective(batch.x)
                vae.minimise(terms["loss"])
            model.record(**terms)

        model.training_step = step

    new = fit(SHELF["vae"], 3, tmp_path / "new").model.state_dict()
    old = fit(SHELF["vae"], 3, tmp_path / "old", before=step_of_old).model.state_dict()
    assert new.keys() == old.keys() and all(torch.equal(new[name], old[name]) for name in new)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"adversary.weight must be a number of at least 0"):
        build(config([*SHELF["vae"], "adversary=gan", "adversary.weight=-1"]))
    with pytest.raises(UserError, match="needs samples with a gradient"):
        build(config(["model=pixelvae", *SMALL, "adversary=gan"]))
