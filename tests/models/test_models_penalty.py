"""Any GAN takes any penalty on its discriminator's gradient; without one nothing changes."""

import pytest
import torch

from genlab.config.shipped import options
from genlab.errors import UserError
from genlab.losses.penalties import gradient_norms
from genlab.runs.running import build
from tests.models.helpers import METHODS, SGD, config, fit, snapshot


@pytest.mark.parametrize("penalty", options("penalty"))
@pytest.mark.parametrize("loss", ["non_saturating", "hinge", "least_squares"])
def test_a_gan_trains_with_it(penalty, loss, tmp_path):
    model = fit(
        [*METHODS["gan"], f"penalty={penalty}", f"loss={loss}", "trainer.log_every_n_steps=1"], 3, tmp_path
    ).model
    assert float(model.watching.recorded["penalty"]) > 0
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_update_is_that_of_loss_plus_penalty(tmp_path):
    """One step of gradient descent of length one against the gradient written by hand."""
    model_config = config([*METHODS["gan"], "penalty=r1", "penalty.gamma=3.0", "loss=wasserstein"])["model"]
    for key in ("d_optimizer", "g_optimizer"):
        model_config[key] = {**SGD, "lr": 1.0}
    seen = {}

    def before(model):
        model.double()
        step = model.training_step

        def note(batch, batch_idx):
            batch = batch.with_column("x", batch.x.double())
            seen.update(before=snapshot(model)["discriminator"], x=batch.x, model=model)
            critic, x = model.discriminator, batch.x
            (fake,) = [model.generator(torch.randn(len(x), model.latent_dim, generator=model.rng, dtype=x.dtype))]
            model.rng.manual_seed(0)
            loss = critic(fake.detach()).mean() - critic(x).mean() + 1.5 * gradient_norms(critic, x).square().mean()
            names = [name for name, _ in model.named_parameters() if name.startswith("discriminator")]
            seen["gradient"] = dict(zip(names, torch.autograd.grad(loss, list(critic.parameters())), strict=True))
            step(batch, batch_idx)
            seen["after"] = snapshot(model)["discriminator"]

        model.training_step = note

    fit([*METHODS["gan"], "seed=0"], 1, tmp_path, before=before, model=model_config)
    for name, value in seen["before"].items():
        torch.testing.assert_close(seen["after"][name], value - seen["gradient"][name], rtol=1e-12, atol=1e-14)


def test_batch_normalisation_is_refused():
    asked = ["model=dcgan", "data=digits", "data.image_size=16", "penalty=r1"]
    with pytest.raises(UserError, match=r"gradient per sample.*network\.norm=none"):
        build(config(asked))
    build(config([*asked, "network.norm=none"]))
