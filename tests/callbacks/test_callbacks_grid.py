"""Pictures while training: what there is of each model, and that they leave the training alone."""

import pytest

from genlab.callbacks.grid import SampleGrid
from genlab.looks.sheets import latent_scatter
from tests.models.helpers import fit, moved

DIGITS = ["data=digits", "network=mlp", "network.hidden=[16]"]
TWO = ["model=aae", *DIGITS, "model.latent_dim=2"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (TWO, {"samples", "reconstructions", "latents"}),
        (["model=vae", *DIGITS, "model.latent_dim=2"], {"samples", "reconstructions", "latents"}),
        (["model=aae", *DIGITS, "model.latent_dim=3"], {"samples", "reconstructions"}),
        (["model=aae_supervised", *DIGITS, "model.style_dim=2"], {"samples", "reconstructions", "categories"}),
        (["model=gan", *DIGITS, "model.latent_dim=2"], {"samples"}),
        (["model=infogan", *DIGITS], {"samples", "categories"}),
    ],
)
def test_each_model_shows_what_it_can(overrides, expected, tmp_path):
    fit(overrides, 2, tmp_path, [SampleGrid(every_n_steps=2, num_samples=4)])
    assert {path.stem for path in tmp_path.glob("*.png")} == expected
    assert {path.stem for path in (tmp_path / "grids").iterdir()} == {f"{name}_0000002" for name in expected}


def test_pictures_leave_the_training_alone(tmp_path):
    seen = fit(TWO, 4, tmp_path / "a", [SampleGrid(every_n_steps=1, num_samples=4)])
    alone = fit(TWO, 4, tmp_path / "b")
    assert moved(seen.model.state_dict(), alone.model.state_dict()) == set()


def test_the_scatter_has_the_colours_of_the_classes(tmp_path):
    """With labels there is red, the colour of class 3; codes that are no points in the plane have no scatter."""
    fitted = fit(TWO, 1, tmp_path)
    coloured = latent_scatter(fitted.model, fitted.data, 100)
    plain = latent_scatter(fitted.model, fit([*TWO, "data.labels=false"], 1, tmp_path / "b").data, 100)

    def red(picture):
        r, g, b = (picture[:, :, channel].astype(int) for channel in range(3))
        return int(((r > g + 100) & (r > b + 100)).sum())

    assert red(coloured) > 50 and red(plain) == 0
    three = fit(["model=aae", *DIGITS, "model.latent_dim=3"], 1, tmp_path / "c")
    assert latent_scatter(three.model, three.data, 100) is None
