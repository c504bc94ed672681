"""Looks into trained models: the pictures that come out, and what is said where none can."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

import genlab.looks.sheets
from genlab.batch import Batch
from genlab.cli.visualize import DEFAULTS, looks_into, main, visualize
from genlab.config.composition import compose
from genlab.data.spec import DataSpec
from genlab.errors import UserError
from genlab.fields.attributes import Attributes
from genlab.fields.label import Label
from genlab.looks.looks import DRAWS, FRAMES, VALUES, WHAT
from genlab.models.base import GenerativeModel, inference
from genlab.runs.start import train
from genlab.sampling.latents import go_through
from tests.cli.helpers import command

QUICK = ["metrics=none", "callbacks=none", "logger=none", "trainer=cpu", "threads=1", "trainer.max_steps=20"]
CELL = 64  # pixels of an enlarged digit
RUNS = {
    "gan": ["model=gan"],
    "began": ["model=began", "network=mlp_image"],
    "vae": ["model=vae"],
    "cvae": ["model=cvae"],
    "completion": ["model=cvae_completion"],
    "attributes": [
        "model=attribute2image",
        "data.num_train=64",
        "data.image_size=16",
        "network.width=4",
        "trainer.max_steps=2",
    ],
    "cgan": ["model=cgan"],
    "points": ["model=vae", "data=swiss_roll", "likelihood=gaussian", "model.latent_dim=2"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A short run of each kind."""
    folders = {}
    for name, overrides in RUNS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        train(compose([*overrides, *QUICK]), folders[name])
    return folders


@pytest.fixture
def seen(monkeypatch):
    """What goes onto the sheets: the arguments of each call, by name."""
    calls = {}

    def spy(name):
        draw = getattr(genlab.looks.sheets, name)

        def noted(*args, **kwargs):
            calls[name] = (args, kwargs)
            return draw(*args, **kwargs)

        monkeypatch.setattr(genlab.looks.sheets, name, noted)

    for name in ("image_sheet", "point_ways", "code_map"):
        spy(name)
    return calls


def read(path):
    return np.asarray(Image.open(path))


def looks(run, **options):
    return looks_into(genlab.load(run), {**DEFAULTS, "n": 4, **options})


def test_all_looks_of_a_vae(runs, capsys):
    before = {p: p.read_bytes() for p in (runs["vae"] / "checkpoints").iterdir()}
    state = torch.get_rng_state()
    drawn = visualize({"run": runs["vae"], "n": 3, "steps": 3})
    unfit = ("frames", "categories", "classes", "swaps", "sweep", "draws", "factors")
    assert list(drawn) == [name for name in WHAT if name not in unfit]
    for name, path in drawn.items():
        picture = read(path)
        assert path == runs["vae"] / "pictures" / f"{name}.png"
        assert picture.ndim == 3 and picture.shape[2] == 3
        assert picture.std() > 10 and len(np.unique(picture)) > 20, name
    assert read(drawn["interpolations"]).shape[1] >= FRAMES * CELL
    assert read(drawn["reconstructions"]).shape[1] >= 12 * CELL  # six columns of pairs
    assert 3 * CELL < read(drawn["neighbours"]).shape[0] < 5 * CELL  # three rows and the text above
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if "Left out" in line]
    assert "frames" in line and "categories" in line
    assert before == {p: p.read_bytes() for p in (runs["vae"] / "checkpoints").iterdir()}
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_have_the_conditions_of_real_samples(runs):
    """A row of latents is told the class of one real sample, a reconstruction that of its own."""
    one = looks(runs["cvae"])
    _, y = one.real(4)
    z = one.latents(4)
    told = [one.model.decode(z, Batch({"y": y})), one.model.decode(z.flip(0), Batch({"y": y}))]
    torch.testing.assert_close(one.decode(torch.stack([z, z.flip(0)], dim=1)), torch.stack(told, dim=1))
    x, y = one.real(300)
    torch.testing.assert_close(one.encode(x), one.model.encode(x, Batch({"y": y})))
    drawn = visualize({"run": runs["cvae"], "n": 3, "steps": 3})
    wanted = {"interpolations", "traversals", "classes", "swaps", "draws", "reconstructions", "neighbours"}
    assert not {"mirror", "sweep"} & drawn.keys() and wanted <= drawn.keys()
    with pytest.raises(UserError, match="what=mirror is for models without conditions"):
        one.mirror()


def test_a_sweep_of_attributes_varies_one_of_a_real_row(runs, seen):
    """Rows by their effect; at the value that the real row has, every row shows the same picture."""
    look = looks(runs["attributes"], n=5)
    look.sweep()
    (groups, _, note, labels), _ = seen["image_sheet"]
    ((_, cells),) = groups
    assert cells.shape == (5, VALUES, 3, 16, 16) and "5 of 16" in note
    effects = [float(label.rpartition(" ")[2]) for label in labels]
    assert effects == sorted(effects, reverse=True) and effects[0] > 0
    names = look.spec.fields["attributes"].names
    row = look.conditions(1).tensor("attributes")
    for label, images in zip(labels, cells, strict=True):
        place = names.index(label.partition(",")[0])
        assert f"{names[place]}, 0 to 1:" in label
        for step in (0, VALUES - 1):
            told = row.clone()
            told[0, place] = step / (VALUES - 1)
            x = look.model.decode(look.latents(1), Batch({"attributes": told}))
            assert torch.equal(images[step], look.images(x)[0])


def test_draws_stand_between_condition_and_real_sample(runs, seen):
    """Completions keep what is seen; the labels of a cvae are written beside the rows."""
    look = looks(runs["completion"])
    look.draws()
    (groups, _, note, labels), _ = seen["image_sheet"]
    assert [(name, x.shape[1]) for name, x in groups] == [("c", 1), ("draws", DRAWS), ("real", 1)] and labels is None
    _, draws, real = (x for _, x in groups)
    assert torch.equal(draws[:, :, :, :4], real[:, :, :, :4].expand(-1, DRAWS, -1, -1, -1))
    assert not torch.equal(draws[:, 0], draws[:, 1]) and "Mean |difference| of two draws" in note
    assert torch.equal(real[:, 0, :1], look.images(look.real(4)[0]))
    look = looks(runs["cvae"])
    look.draws()
    (groups, _, _, labels), _ = seen["image_sheet"]
    assert [name for name, _ in groups] == ["draws", "real"] and labels == [str(y) for y in look.real(4)[1].tolist()]


@pytest.mark.parametrize(
    ("run", "look", "sentence"),
    [
        ("vae", "sweep", "what=sweep is for models that are given columns, and vae on digits is given none."),
        ("vae", "draws", "what=draws is for models that are given columns"),
        ("completion", "sweep", "what=sweep varies attributes, and cvae_completion on digits is given c."),
        ("cvae", "sweep", "is given y. Try what=swaps for classes."),
    ],
)
def test_looks_at_conditions_need_some(run, look, sentence, runs):
    with pytest.raises(UserError, match=sentence):
        getattr(looks(runs[run]), look)()


def test_swaps_decode_one_code_under_every_class(runs, seen):
    """A row of a test image: under its own class the reconstruction, bit for bit, and other images under others."""
    look = looks(runs["cvae"])
    look.swaps()
    (groups, title, note), _ = seen["image_sheet"]
    x, y = look.real(4)
    assert [caption for caption, _ in groups] == ["real", *map(str, range(10))] and "latent" in title
    assert "the code of a test sample" in note
    assert torch.equal(groups[0][1][:, 0], look.images(x))
    code = look.model.encode(x, Batch({"y": y}))
    for k in range(10):
        made = look.images(look.model.decode(code, Batch({"y": torch.full((4,), k)})))
        assert torch.equal(groups[k + 1][1][:, 0], made)
    own = torch.stack([groups[int(k) + 1][1][i, 0] for i, k in enumerate(y)])
    assert torch.equal(own, look.images(look.model.reconstruct(x, Batch({"y": y}))))
    assert not torch.equal(groups[1][1], groups[2][1])


def test_swaps_of_a_model_without_an_encoder_start_from_its_prior(runs, seen):
    look = looks(runs["cgan"])
    look.swaps()
    (groups, _, note), _ = seen["image_sheet"]
    assert [caption for caption, _ in groups] == list(map(str, range(10))) and "a prior draw" in note
    z = look.latents(4)
    for k in (0, 7):
        made = look.images(look.model.decode(z, Batch({"y": torch.full((4,), k)})))
        assert torch.equal(groups[k][1][:, 0], made)


@pytest.mark.parametrize("name", ["cvae", "cgan"])
def test_each_class_has_a_row_of_samples(name, runs, seen):
    look = looks(runs[name])
    look.classes()
    (groups, _, _, labels), _ = seen["image_sheet"]
    assert groups[0][1].shape == (10, 4, 1, 8, 8) and labels == list(map(str, range(10)))
    rng = torch.Generator().manual_seed(0)
    for k in range(2):
        x = look.model.sample(4, given=Batch({"y": torch.full((4,), k)}), rng=rng)
        assert torch.equal(groups[0][1][k], look.images(x))


def test_other_conditions_are_those_of_real_samples(runs):
    """Of a model that is told a class and more; of many classes the first twenty are shown."""
    look = looks(runs["cvae"])
    look.model.given = ("factor", "y")
    y = torch.arange(300)
    fields = {**look.spec.fields, "y": Label(size=25), "factor": Attributes(shape=(2,))}
    look.spec = look.model.spec = DataSpec(fields)
    look.conditions = lambda n: Batch({"factor": y[:n, None].float(), "y": y[:n]})
    name, texts, told = look.each_told("swaps", 3)
    assert name == "y" and texts == [str(k) for k in range(20)] and len(told) == 20
    assert list(told[7].columns) == ["factor", "y"]
    assert told[7]["y"].tolist() == [7, 7, 7] and told[7]["factor"].tolist() == [[0.0], [1.0], [2.0]]


@pytest.mark.parametrize("what", ["classes", "swaps"])
def test_what_is_told_no_classes_has_no_rows_of_them(what, runs, tmp_path):
    with pytest.raises(UserError, match=f"what={what} needs a model that is told classes, which gan on digits is not"):
        getattr(looks(runs["gan"]), what)()
    if what == "swaps":
        train(compose(["model=aae_supervised", *QUICK, "trainer.max_steps=1"]), tmp_path)
        with pytest.raises(UserError, match="a model whose `decode` is told classes, which aae_supervised on digits"):
            looks(tmp_path).swaps()


def test_all_leaves_out_what_does_not_fit_and_names_it(runs, capsys):
    drawn = visualize({"run": runs["gan"], "n": 2, "steps": 2})
    assert list(drawn) == ["interpolations", "mirror", "traversals", "neighbours"]
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if "Left out" in line]
    assert "reconstructions" in line and "latent_map" in line and "what=categories tells why" in line


def test_points_are_drawn_as_ways_in_the_plane(runs, capsys):
    drawn = visualize({"run": runs["points"], "n": 2})
    assert list(drawn) == ["interpolations", "traversals", "reconstructions", "latent_map"]
    assert all(read(path).std() > 10 for path in drawn.values())
    assert "do not fit: mirror, categories, classes, swaps, sweep, draws, neighbours" in capsys.readouterr().err


def test_one_seed_draws_one_picture(runs, tmp_path):
    options = {"run": runs["gan"], "what": "interpolations,traversals", "n": 2}
    one, two = (visualize({**options, "out": tmp_path / str(i)}) for i in range(2))
    other = visualize({**options, "out": tmp_path / "other", "seed": 1})
    for name in one:
        assert one[name].read_bytes() == two[name].read_bytes() != other[name].read_bytes()


def test_interpolations_go_from_latent_to_latent(runs, seen):
    """Along the arc for a normal prior, straight for BEGAN's uniform one; the ends are samples."""
    for name, word in (("gan", "slerp"), ("began", "straight")):
        look = looks(runs[name])
        look.interpolations()
        (groups, _, note), _ = seen["image_sheet"]
        images = groups[0][1]
        assert images.shape == (4, FRAMES, 1, 8, 8) and images.dtype == torch.uint8 and word in note
        a, b = look.latents(8).chunk(2)
        assert torch.equal(images[:, 0], look.images(look.decode(a)))
        assert torch.equal(images[:, -1], look.images(look.decode(b)))


class Linear(GenerativeModel):
    """G(z) = W z on images of 2 x 4 pixels, with a latent that does nothing."""

    def __init__(self, spec, run_config, prior="normal"):
        super().__init__()
        self.spec, self.run_config, self.latent_dim, self.latent_prior = spec, run_config, 4, prior
        weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) / 20
        weight[2] = 0
        self.register_buffer("weight", weight)

    @inference
    def decode(self, z):
        return (z @ self.weight).unflatten(1, (1, 8, 8))

    @inference
    def encode(self, x):
        return x.flatten(1) @ torch.linalg.pinv(self.weight)


@pytest.fixture(scope="module")
def linear(runs):
    model = genlab.load(runs["gan"])
    return Linear(model.spec, model.run_config)


def test_mirror_finds_the_latents_of_an_image_and_of_its_mirror_image(linear, seen, monkeypatch):
    look = looks_into(linear, {**DEFAULTS, "n": 2, "steps": 800})
    z = torch.randn(2, 4, generator=torch.Generator().manual_seed(5))
    x = linear.decode(z)
    monkeypatch.setattr(look, "real", lambda n: (x, None))
    linear.weight.copy_((linear.weight.view(4, 8, 8) + linear.weight.view(4, 8, 8).flip(2)).flatten(1) / 2)
    x = linear.decode(z)  # symmetric: image and mirror image have one latent, and all between them is the image
    look.mirror()
    (groups, _, _), _ = seen["image_sheet"]
    assert [images.shape[1] for _, images in groups] == [1, FRAMES, 1]
    wanted = look.images(x)[:, None].expand(2, FRAMES, 1, 8, 8).int()
    assert (groups[1][1].int() - wanted).abs().max() <= 1
    assert torch.equal(groups[0][1][:, 0], look.images(x))


def test_traversals_show_the_active_latents(linear, seen):
    look = looks_into(linear, {**DEFAULTS, "n": 8})
    look.traversals()
    (groups, _, note, labels), _ = seen["image_sheet"]
    assert groups[0][1].shape[:2] == (3, 11)  # of four latents one does nothing
    assert "3 active" in note and sorted(label.partition(":")[0] for label in labels) == ["z0", "z1", "z3"]


@pytest.mark.parametrize(("model", "rows", "classes"), [("infogan", 4, 10), ("gumbel", 3, 5)])
def test_one_hot_latents_go_through_their_classes(model, rows, classes, tmp_path, seen):
    """InfoGAN: several draws through one category; a categorical VAE: one draw through several variables."""
    smaller = ["model.variables=3", "model.classes=5"] if model == "gumbel" else []
    train(compose([f"model={model}", *smaller, *QUICK, "trainer.max_steps=2"]), tmp_path)
    look = looks(tmp_path)
    look.categories()
    (groups, _, _), _ = seen["image_sheet"]
    assert groups[0][1].shape[:2] == (rows, classes)
    z, groups = look.latents(rows), look.model.one_hot_latents
    walked, group = go_through(z, groups), groups[0]
    assert walked.shape == (rows, classes, look.model.latent_dim)
    assert torch.equal(walked[0][:, list(group)], torch.eye(classes))
    others = [d for d in range(z.shape[1]) if d not in group]
    assert torch.equal(walked[0][:, others], z[0, others].expand(classes, -1))
    second = go_through(z[1:], groups) if len(groups) == 1 else go_through(z, groups[1:])
    assert torch.equal(walked[1], second[0])
    drawn = look.latents(50)
    assert all(torch.equal(drawn[:, list(g)].sum(dim=1), torch.ones(50)) for g in look.model.one_hot_latents)
    if model == "infogan":
        look.traversals()  # of the other latents alone
        (_, _, _, labels), _ = seen["image_sheet"]
        assert not {f"z{d}" for d in group} & {label.partition(":")[0] for label in labels}
    else:
        with pytest.raises(UserError, match="what=categories"):
            look.traversals()


def test_a_model_without_an_encoder_shows_the_latents_that_move_it(runs, seen):
    look = looks(runs["gan"])
    look.traversals()
    (groups, _, note, labels), _ = seen["image_sheet"]
    values = [float(label.partition(":")[2]) for label in labels]
    assert groups[0][1].shape[:2] == (4, 11) and "change it most" in note
    assert values == sorted(values, reverse=True) and values[-1] > 0


def test_planted_copies_are_seen_as_copies(runs, seen, monkeypatch):
    look = looks(runs["gan"])
    train_images = look.data.split("train").gather(torch.arange(4))
    monkeypatch.setattr(look.model, "sample", lambda n, rng: train_images.float() / 127.5 - 1, raising=False)
    look.neighbours()
    (groups, _, note, labels), _ = seen["image_sheet"]
    assert labels == ["0.00"] * 4 and "1258 training images" in note
    assert [images.shape[1] for _, images in groups] == [1, 5, 5] and "classifier-digits" in groups[2][0]
    for _, images in groups:
        assert torch.equal(images[:, 0], train_images)


def test_reconstructions_stand_beside_their_originals(runs, seen):
    look = looks(runs["vae"])
    look.reconstructions()
    (groups, _, note), _ = seen["image_sheet"]
    x, _ = look.real(24)
    assert torch.equal(groups[1][1][:, 0], look.images(x[4:8]))
    assert torch.equal(groups[1][1][:, 1], look.images(look.model.reconstruct(x[4:8])))
    assert f"{(look.model.reconstruct(x) - x).square().mean():.4f}" in note


def test_the_latent_map_is_the_codes_or_their_principal_components(runs, seen):
    look = looks(runs["points"])
    look.latent_map()
    (codes, y, *_), _ = seen["code_map"]
    torch.testing.assert_close(codes, look.encode(look.real(5000)[0]))
    assert y is None
    look = looks(runs["vae"])
    look.latent_map()
    (codes, y, *_, axes), _ = seen["code_map"]
    own = look.encode(look.real(5000)[0]).double()
    spread = torch.linalg.eigvalsh(own.T.cov()).flip(0)
    torch.testing.assert_close(codes.T.cov(), spread[:2].diag(), atol=1e-9, rtol=1e-6)
    assert len(y) == len(codes) == len(look.store) and f"{spread[0] / spread.sum():.0%}" in axes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Say what to look into"),
        ({"run": "nowhere"}, "no run at nowhere"),
        ({"run": "RUN", "what": "dreams"}, "what=dreams is unknown; choose from interpolations"),
        ({"run": "RUN", "what": "latent_map"}, "GAN has no `encode`"),
        ({"run": "RUN", "n": 0}, "n must be at least 1"),
        ({"run": "RUN", "split": "best"}, "split must be"),
    ],
)
def test_mistakes_are_one_sentence(options, message, runs):
    if options.get("run") == "RUN":
        options = {**options, "run": runs["gan"]}
    with pytest.raises(UserError, match=message) as caught:
        visualize(options)
    assert "\n" not in str(caught.value)


def test_the_command_line(runs, tmp_path, monkeypatch, capsys):
    run = runs["gan"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["genlab-visualize", f"run={run}", "what=interpolations", "n=2", "out=a=[b]"])
    main()
    assert capsys.readouterr().out.split() == ["a=[b]/interpolations.png"]
    assert (tmp_path / "a=[b]" / "interpolations.png").is_file()
    monkeypatch.setattr(sys, "argv", ["genlab-visualize", f"run={run}", "step=9"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2 and "Did you mean steps=?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["visualize", "export"])
def test_the_scripts(name, runs, tmp_path):
    done = command([f"run={runs['gan']}", f"out={tmp_path}"], tmp_path, script=f"scripts/{name}.py")
    assert done.returncode == 0, done.stderr
