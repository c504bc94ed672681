"""Samples under conditions, from the command line: typed, from a picture, from rows of the data; and exported."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import genlab
from genlab.batch import Batch
from genlab.cli import sample as cli
from genlab.cli.export import TOLERANCE, export
from genlab.cli.sample import read_options, sample
from genlab.config.composition import compose
from genlab.looks.sheets import told_sheet
from genlab.runs.folder import load_data
from genlab.runs.start import train

QUICK = ["metrics=none", "callbacks=none", "logger=none", "trainer=cpu", "threads=1", "network.hidden=[16]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A conditional GAN of digits."""
    folder = tmp_path_factory.mktemp("cgan") / "run"
    train(compose(["model=cgan", "model.latent_dim=4", *QUICK, "trainer.max_steps=3"]), folder)
    return folder


@pytest.fixture(scope="module")
def completing(tmp_path_factory):
    """A conditional VAE that completes the upper half of a digit."""
    folder = tmp_path_factory.mktemp("cvae") / "run"
    train(compose(["model=cvae_completion", "model.latent_dim=4", *QUICK, "trainer.max_steps=3"]), folder)
    return folder


def arrays(run, *arguments):
    """What `sample.py run=RUN ... format=npz` writes."""
    with np.load(sample(read_options([f"run={run}", "format=npz", *arguments]))) as found:
        return {name: found[name] for name in found.files}


# --- Typed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "n", "wanted"),
    [
        ("y=3", 5, [3] * 5),
        ("y=3,5", 6, [3, 3, 3, 5, 5, 5]),
        ("y=each", 20, sorted([*range(10), *range(10)])),
    ],
)
def test_typed_classes(typed, n, wanted, run):
    found = arrays(run, typed, f"n={n}")
    assert found["y"].tolist() == wanted and found["x"].shape == (n, 8, 8, 1) and found["x"].dtype == np.uint8


def test_a_typed_class_is_what_the_model_is_told(run):
    """The samples are those of the same latents and this class, and of no other."""
    model = genlab.load(run)
    drawn = {
        y: model.sample(4, given=Batch({"y": torch.full((4,), y)}), rng=torch.Generator().manual_seed(0))
        for y in (3, 5)
    }
    pixels = {y: model.spec.render(x).permute(0, 2, 3, 1).numpy() for y, x in drawn.items()}
    np.testing.assert_array_equal(arrays(run, "y=3", "n=4")["x"], pixels[3])
    assert not np.array_equal(pixels[3], pixels[5])


def test_batches_do_not_change_whose_class_it_is(run):
    found = arrays(run, "y=each", "n=20", "batch_size=7")
    assert found["y"].tolist() == sorted([*range(10), *range(10)])


def test_a_class_is_typed_by_the_name_of_its_folder(tmp_path):
    """The names are found with the files, after the model was built."""
    pixels = np.random.RandomState(0).randint(0, 256, (40, 8, 8), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        path = tmp_path / "pets" / ("cats", "dogs")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    data = ["data=folder", f"data.root={tmp_path / 'pets'}", "data.image_size=8", "data.num_classes=2"]
    overrides = ["model=cgan", *data, "network=mlp_image", *QUICK, "trainer.max_steps=1", "data.batch_size=4"]
    train(compose(overrides), tmp_path / "run")
    assert arrays(tmp_path / "run", "y=dogs,cats", "n=4")["y"].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("y=12", "y=12: '12' is no class; they are 0 to 9"),
        ("y=cat", "y=cat: 'cat' is no class; they are 0 to 9"),
        ("c=1", "c=1: GAN is given y, so c means nothing to it. Leave it out."),
        ("x=digit.png", "x=digit.png: GAN is given y, so x means nothing to it. Leave it out."),
        ("formt=npz", "'formt=npz' is not understood. Did you mean format=?"),
    ],
)
def test_mistakes_are_one_sentence(argument, sentence, run, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sample.py", f"run={run}", argument])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and said.startswith(sentence) and "\n" not in said


def test_classes_that_were_not_typed_are_those_of_test_rows(run):
    """As `given_rows` draws them; a seed draws the same ones."""
    found = [arrays(run, "n=30", f"seed={seed}")["y"] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    data = load_data(genlab.load(run).run_config)
    rows = data.given_rows("test", ["y"], 30, torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(found[0], rows.tensor("y").numpy())
    assert set(found[0].tolist()) <= set(data.split("test").y.tolist())


# --- Drawn ----------------------------------------------------------------------------------------------------------


def test_a_grid_has_a_row_for_each_class(run):
    """Ten rows of two against the five by four of a plain grid, each with its label at the left."""
    path = sample(read_options([f"run={run}", "y=each", "n=20"]))
    model = genlab.load(run)
    given = Batch({"y": torch.arange(10).repeat_interleave(2)})
    x = model.sample(20, given=given, rng=torch.Generator().manual_seed(0))
    picture = np.asarray(Image.open(path))
    np.testing.assert_array_equal(picture, told_sheet(model.spec, x, given))
    plain = model.spec.x.sheet(x)
    assert picture.shape[0] / picture.shape[1] > 3 > 1.5 > plain.shape[0] / plain.shape[1]
    rows = (picture.min(axis=2) < 90)[:, 14:30].any(axis=1)  # ink at the left, below the heading
    assert int((rows[1:] & ~rows[:-1]).sum()) >= 10


def test_a_number_that_the_classes_do_not_divide_leaves_places_empty(run):
    """64 samples of ten classes: seven of some, six and a white place of the others; none is left out."""
    model = genlab.load(run)
    y = model.spec.fields["y"].parse("each", 64)
    x = torch.full((64, 1, 8, 8), -1.0)
    picture = told_sheet(model.spec, x, Batch({"y": y}))
    even = Batch({"y": torch.arange(10).repeat_interleave(7)})
    assert picture.shape == told_sheet(model.spec, x[:1].expand(70, -1, -1, -1), even).shape
    black = (picture == 0).all(axis=2)  # samples alone: labels are grey
    assert int(black.sum()) == 64 * 64 * 64  # 8 x 8 pixels each, eightfold


def test_classes_in_no_order_are_a_plain_grid(run):
    model = genlab.load(run)
    x, y = torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 0, 2])
    np.testing.assert_array_equal(told_sheet(model.spec, x, Batch({"y": y})), model.spec.x.sheet(x))


def test_one_class_is_a_plain_grid(run):
    path = sample(read_options([f"run={run}", "y=3", "n=20"]))
    model = genlab.load(run)
    x = model.sample(20, given=Batch({"y": torch.full((20,), 3)}), rng=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), model.spec.x.sheet(x))


# --- From a picture -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A grey picture of 8 x 8 bytes, and its path."""
    pixels = np.random.RandomState(0).randint(0, 256, (8, 8), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photo") / "digit.png"
    Image.fromarray(pixels).save(path)
    return path, pixels


def test_a_picture_is_completed(completing, photo):
    """The upper half of each sample is the picture's, to the byte; the lower halves are drawn, and differ."""
    path, pixels = photo
    x = arrays(completing, f"x={path}", "n=6")["x"][..., 0]
    np.testing.assert_array_equal(x[:, :4], np.broadcast_to(pixels[:4], (6, 4, 8)))
    assert not np.array_equal(x[0, 4:], x[1, 4:]) and not np.array_equal(x[0, 4:], pixels[4:])


def test_the_pictures_of_a_folder_share_the_samples(completing, photo, tmp_path):
    _, pixels = photo
    for i in range(2):
        Image.fromarray(pixels + np.uint8(100 * i)).save(tmp_path / f"{i}.png")
    x = arrays(completing, f"x={tmp_path}", "n=4", f"out={tmp_path / 'samples.npz'}")["x"][..., 0]
    for i in range(4):
        np.testing.assert_array_equal(x[i, :4], (pixels + np.uint8(100 * (i // 2)))[:4])


def test_a_completion_is_drawn_beside_what_it_was_given(completing, photo):
    path, _ = photo
    assert Image.open(sample(read_options([f"run={completing}", f"x={path}", "n=4"]))).mode == "RGB"


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("c={photo}", "c={photo}: values of kind masked cannot be typed. It is made of x: try x=FILE."),
        ("a={photo}", "a={photo}: CompletionVAE is given c, so a means nothing to it. Leave it out."),
        ("x=nowhere.png", "x=nowhere.png: nowhere.png is no file and no folder."),
        ("y=3", "y=3: CompletionVAE is given c, so y means nothing to it. Leave it out."),
    ],
)
def test_what_cannot_be_typed_is_one_sentence(argument, sentence, completing, photo, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sample.py", f"run={completing}", argument.format(photo=photo[0])])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2 and capsys.readouterr().err.strip() == sentence.format(photo=photo[0])


def said_by(run, argument, monkeypatch, capsys):
    """The sentence with which `sample.py` ends."""
    monkeypatch.setattr("sys.argv", ["sample.py", f"run={run}", "n=2", argument])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and "\n" not in said
    return said


@pytest.fixture(scope="module")
def obedient(tmp_path_factory):
    """A conditional GAN and a conditional VAE of scenes, both given many kinds of columns, and a GAN given nothing."""
    folder = tmp_path_factory.mktemp("obedient")
    scenes = ["data=scenes", "data.num_train=64", "data.image_size=16", "network.width=4", "data.batch_size=4"]
    given = "model.given=[y,attributes,caption,boxes,keypoints]"
    quick = [option for option in QUICK if not option.startswith("network")]
    for name in ("cgan", "cvae"):
        train(compose([f"model={name}", given, *scenes, *quick, "trainer.max_steps=2"]), folder / name)
    train(compose(["model=gan", *QUICK, "trainer.max_steps=1"]), folder / "gan")
    train(compose(["model=cgan", "model.given=[layout]", *scenes, *quick, "trainer.max_steps=1"]), folder / "layout")
    edges = ["model=cgan", "model.given=[c]", "derive=edges", *QUICK, "trainer.max_steps=1"]
    train(compose(edges), folder / "edges")
    return folder


@pytest.mark.parametrize("name", ["cgan", "cvae"])
@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("y=3", "y=3: '3' is no class; they are 0 to 2 (ellipse, rectangle, triangle), or each."),
        ("y=circle", "y=circle: 'circle' is no class; they are 0 to 2 (ellipse, rectangle, triangle), or each."),
        ("attributes=pink", "attributes=pink: 'pink' is no attribute; they are ellipse, rectangle, triangle, red, "),
        ("attributes={red: 2}", "attributes={red: 2}: red must be a number from 0 to 1, got 2."),
        ("caption=a large pink ellipse", "caption=a large pink ellipse: 'pink' is not in the vocabulary of 24 words."),
        ("caption=", "caption=: a sentence has at least one word, got none."),
        ("caption=" + 14 * "a ", "caption=" + 14 * "a " + ": a sentence has at most 13 words, got 14."),
        (
            "boxes=[[ellipse,0.8,0,0.5,0.5]]",
            "boxes=[[ellipse,0.8,0,0.5,0.5]]: a box lies within the picture, so left + width is at most 1, got 1.3.",
        ),
        (
            "boxes=[[ellipse,-1,0,0.5,0.5]]",
            "boxes=[[ellipse,-1,0,0.5,0.5]]: left must be a number from 0 to 1, got -1.",
        ),
        ("boxes=[[circle,0,0,1,1]]", "boxes=[[circle,0,0,1,1]]: 'circle' is no class; they are 0 to 2 (ellipse, "),
        ("keypoints={nose: [0.5, 0.5]}", "keypoints={nose: [0.5, 0.5]}: 'nose' is no keypoint; they are centre 1, "),
        (
            "keypoints={centre 1: [2, 0]}",
            "keypoints={centre 1: [2, 0]}: x of centre 1 must be a number from 0 to 1, got 2.",
        ),
        (
            "layout=map.png",
            "layout=map.png: NAME is given y, attributes, caption, boxes, keypoints, so layout means nothing",
        ),
    ],
)
def test_each_kind_of_condition_answers_in_its_own_words(name, argument, sentence, obedient, monkeypatch, capsys):
    """A class, a word, an attribute, a box, a point that is not there, and a column that the model is not given."""
    kind = {"cgan": "GAN", "cvae": "VAE"}[name]
    said = said_by(obedient / name, argument, monkeypatch, capsys)
    assert said.startswith(sentence.replace("NAME", kind)), said


def test_right_conditions_of_each_kind_are_drawn(obedient):
    typed = [
        "y=triangle",
        "attributes=red, large",
        "caption=a large red triangle on the left",
        "boxes=[[triangle,0.1,0.2,0.5,0.6]]",
        "keypoints={centre 1: [0.35, 0.5]}",
    ]
    found = arrays(obedient / "cgan", *typed, "n=3", f"out={obedient / 'typed.npz'}")
    assert found["x"].shape == (3, 16, 16, 3) and found["y"].tolist() == [2, 2, 2]
    assert found["boxes"][0, 0].tolist() == pytest.approx([2, 0.1, 0.2, 0.5, 0.6])


def test_a_column_may_have_nearly_the_name_of_a_key(obedient, tmp_path, monkeypatch, capsys):
    """`layout` and `out`; beside it what is meant for a key is still asked about."""
    picture = Image.fromarray(np.full((16, 16), 3, dtype=np.uint8))
    picture.save(tmp_path / "map.png")
    found = arrays(obedient / "layout", f"layout={tmp_path / 'map.png'}", "n=2", f"out={tmp_path / 'a.npz'}")
    assert found["layout"].tolist() == np.full((2, 16, 16), 3).tolist()
    Image.fromarray(np.full((16, 16), 7, dtype=np.uint8)).save(tmp_path / "map.png")
    said = said_by(obedient / "layout", f"layout={tmp_path / 'map.png'}", monkeypatch, capsys)
    assert said.endswith("holds the class 7; they are 0 to 3 (background, ellipse, rectangle, triangle), and 255 for "
                         "what is not known.")  # fmt: skip
    wanted = "'outt=a.png' is not understood. Did you mean out=?"
    assert said_by(obedient / "layout", "outt=a.png", monkeypatch, capsys) == wanted


@pytest.mark.parametrize("argument", ["y=3", "c=1", "caption=a dog", "x=digit.png"])
def test_a_model_that_is_told_nothing_takes_no_condition(argument, obedient, monkeypatch, capsys):
    key = argument.partition("=")[0]
    sentence = f"{argument}: GAN is given nothing, so {key} means nothing to it. Leave it out."
    assert said_by(obedient / "gan", argument, monkeypatch, capsys) == sentence


def test_a_picture_of_another_size_is_made_to_fit_and_spoken_of(obedient, completing, tmp_path, monkeypatch, capsys):
    """Beside its own size nothing is said."""
    for size in ((40, 30), (8, 8)):
        Image.new("L", size, 100).save(tmp_path / f"{size[0]}.png")
    fate = "40 x 30 pixels, cropped around the middle and resized to the 8 x 8 of these data."
    for run, key in ((completing, "x"), (obedient / "edges", "x"), (obedient / "edges", "c")):
        for size in (40, 8):
            path = tmp_path / f"{size}.png"
            out = f"out={tmp_path / 'grid.png'}"
            monkeypatch.setattr("sys.argv", ["sample.py", f"run={run}", "n=2", f"{key}={path}", out])
            cli.main()
            assert capsys.readouterr().err.strip() == (f"{key}={path}: {fate}" if size == 40 else "")


def test_a_column_and_the_one_that_it_is_made_of_are_not_both_typed(obedient, photo, monkeypatch, capsys):
    path, _ = photo
    monkeypatch.setattr("sys.argv", ["sample.py", f"run={obedient / 'edges'}", f"x={path}", f"c={path}"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.strip() == "c is made of x, and both are typed. Leave one of them out."


def test_without_a_picture_halves_of_test_rows_are_completed(completing):
    x, c = arrays(completing, "n=8")["x"][..., 0], arrays(completing, "n=8")["c"]
    np.testing.assert_array_equal(c[:, 1], np.broadcast_to(np.repeat([1.0, 0.0], 4)[:, None], (8, 8, 8)))
    np.testing.assert_array_equal(x[:, :4], np.floor(c[:, 0, :4] * 127.5 + 128).clip(0, 255).astype(np.uint8))
    halves = load_data(genlab.load(completing).run_config).split("test").values("x")[:, 0, :4].numpy()
    assert all((halves == half).all(axis=(1, 2)).any() for half in x[:, :4])


# --- Exported -------------------------------------------------------------------------------------------------------


def test_an_exported_sampler_takes_latents_and_classes(run, tmp_path):
    folder, spec = export({"run": run, "formats": "pt2", "out": tmp_path})
    model = genlab.load(run)
    program = torch.export.load(folder / "sampler.pt2").module()
    z, y = torch.randn(11, 4, generator=torch.Generator().manual_seed(5)), torch.arange(11) % 10
    drawn = program(z, y)
    torch.testing.assert_close(drawn, model.decode(z, Batch({"y": y})), rtol=0, atol=TOLERANCE)
    assert not torch.allclose(drawn, program(z, (y + 1) % 10), atol=10 * TOLERANCE)
    assert json.loads((folder / "spec.json").read_text())["given"] == {
        "y": {"kind": "label", "size": 10, "names": [str(k) for k in range(10)]}
    }
    assert spec["latents"]["size"] == 4  # the noise alone


# --- Composed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "network", "facts"),
    [
        (
            ["conditioning=hidden", "conditioning.after=2", "conditioning.width=16"],
            "discriminator",
            {"after": 2, "width": 16},
        ),
        (["conditioning=norm", "conditioning.last=true", "network.generator_norm=batch"], "generator", {"last": True}),
        (["conditioning.words=gru"], "generator", {"words": "gru"}),
        (["derive=edges", "model.given=[c]"], "generator", {"given": {"c": {"kind": "image", "shape": [1, 8, 8]}}}),
    ],
)
def test_keys_that_messages_and_documents_name(overrides, network, facts):
    """The wrapper around a network of the composed config has them."""
    node = compose(["model=cgan", *overrides])["model"][network]
    assert {key: node[key] for key in facts} == facts
