"""The gallery: what it trains, what it draws, and that it goes on where it stopped."""

import sys

import pytest
from PIL import Image

from genlab.benchmarks import gallery
from genlab.cli.gallery import draw, main
from genlab.config.shipped import options
from genlab.errors import UserError
from genlab.runs.folder import record_of


def test_there_is_a_row_for_each_model_and_each_objective_of_the_gan():
    rows = {row.name: row for row in gallery.rows()}
    assert {*options("model")} <= rows.keys()
    assert {"loss=minimax", "loss=fgan_kl", "loss=density_ratio"} <= rows.keys()
    assert not {"loss=began", "loss=ebgan"} & rows.keys()  # energies: no objectives of logits
    assert "arXiv:1512.09300" in rows["vae_gan"].title
    assert "data=digits" in gallery.command(rows["vae_gan"], gallery.DEFAULTS)
    assert not any("data=" in part for part in gallery.command(rows["dc_ign"], gallery.DEFAULTS))  # shapes only
    assert "network.width=16" in rows["began"].overrides and rows["gan"].overrides == ("model=gan",)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("rows=gan,gna", "There is no row 'gna'"),
        ("seconds=none", "seconds must be a whole number of at least 1"),
        ("seconds=0", "seconds must be"),
        ("lenght=3", "is no option; there are rows, data"),
    ],
)
def test_mistakes_are_sentences(argument, sentence):
    with pytest.raises(UserError, match=sentence):
        gallery.parse([argument])


@pytest.mark.long
def test_the_page_has_the_pictures_and_the_commands(tmp_path, monkeypatch, capsys):
    """One second of two methods; asked again, nothing is trained anew. A slow one goes on to its least iterations."""
    monkeypatch.chdir(tmp_path)
    asked = ["rows=vae,loss=hinge", "seconds=1", "n_jobs=2", "out=page"]
    monkeypatch.setattr(sys, "argv", ["gallery.py", *asked, "least=10"])
    main()
    page = (tmp_path / "page.md").read_text()
    pictures = {"vae_samples", "vae_reconstructions", "vae_traversals", "loss_hinge_samples"}
    assert {path.stem for path in (tmp_path / "page").iterdir()} == pictures
    for name in pictures:
        assert f"(page/{name}.webp)" in page
        with Image.open(tmp_path / "page" / f"{name}.webp") as picture:
            assert min(picture.size) > 100
    assert "    python train.py model=gan loss=hinge data=digits max_cpu_time=1 " in page
    assert "vae:" in capsys.readouterr().out
    main()
    assert "vae:" not in capsys.readouterr().out and (tmp_path / "page.md").read_text() == page
    folder = tmp_path / "outputs" / "gallery" / "vae_digits_1s_seed0"
    least = int(record_of(folder)["iterations"]) + 5
    monkeypatch.setattr(sys, "argv", ["gallery.py", "rows=vae", "seconds=1", "out=page", f"least={least}"])
    main()
    assert record_of(folder)["iterations"] == least
    told = f"python train.py model=vae data=digits trainer.max_steps={least} seed=0"
    assert told in (tmp_path / "page.md").read_text()
    monkeypatch.setattr(sys, "argv", ["gallery.py", "rows=vae", "seconds=1", "out=page", "least=10"])
    main()  # the page tells what was run, whatever is asked for now
    assert told in (tmp_path / "page.md").read_text()


def test_a_training_that_fails_is_said_to(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    row = gallery.Row("broken", "A mistake", ("model=gan", "model.latent_dim=0"))
    made = gallery.gallery({**gallery.DEFAULTS, "rows": [row], "seconds": 1, "out": "page"}, draw)
    assert "This training failed." in made.read_text() and "broken failed" in capsys.readouterr().err
