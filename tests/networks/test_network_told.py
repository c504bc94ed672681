"""Networks that are told a condition: what conditions become by their kind, and what each wrapper promises."""

import copy
import threading
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from genlab.batch import Batch, Seq
from genlab.errors import UserError
from genlab.fields.base import KINDS, Field
from genlab.networks import dcgan, mlp, resnet
from genlab.networks.conditions import Maps, Vector
from genlab.networks.told import Concat, HiddenMaps, InputMaps, LatentGaussians, NormTold, Projection, ReadsVector

Y = {"y": {"kind": "label", "size": 3}}
SHAPE = (1, 16, 16)
LATENT = 4
FACTS = {
    "attributes": {"kind": "attributes", "shape": [4]},
    "points": {"kind": "points", "shape": [2]},
    "boxes": {"kind": "boxes", "shape": [2, 5], "size": 3, "most": 2},
    "keypoints": {"kind": "keypoints", "shape": [3, 3]},
    "layout": {"kind": "layout", "shape": [8, 12], "size": 5},
    "tokens": {"kind": "tokens", "shape": [None], "size": 11, "most": 6},
    "image": {"kind": "image", "shape": [2, 8, 12]},
    "masked": {"kind": "masked", "shape": [3, 8, 12]},
    "video": {"kind": "video", "shape": [4, 3, 8, 12]},
    **Y,
}
N = 6


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def values(name, dtype=torch.float32):
    """N values of a column of FACTS, by hand so that the sizes are the test's own."""
    rng = torch.Generator().manual_seed(len(name))
    whole = {"y": (3, (N,)), "layout": (5, (N, 8, 12))}
    if name in whole:
        size, shape = whole[name]
        return torch.randint(-1, size, shape, generator=rng)
    if name == "tokens":
        return Seq(torch.randint(1, 11, (N, 5), generator=rng), torch.tensor([5, 3, 1, 4, 2, 5]))
    shape = [side for side in FACTS[name]["shape"] if side is not None]
    made = torch.rand(N, *shape, generator=rng)
    if name == "boxes":
        made[..., 0] = torch.randint(-1, 3, (N, 2), generator=rng)
    return made.to(dtype)


def told_y(*y):
    return Batch({"y": torch.tensor(y)})


def parameters_without_gradient(network, output):
    network.zero_grad()
    output.square().sum().backward()
    return [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


# --- Vectors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "width"),
    [("y", 3), ("attributes", 4), ("points", 2), ("boxes", 16), ("keypoints", 9), ("tokens", 32)]
    + [(name, 64) for name in ("image", "masked", "layout", "video")],
)
def test_vectors_have_the_width_that_they_say(name, width):
    """In both types of numbers, one row a value: no row depends on another."""
    torch.manual_seed(0)
    vector = Vector({name: FACTS[name]})
    assert vector.width == width
    batch = Batch({name: values(name)})
    made = vector(batch)
    assert made.shape == (N, width) and made.dtype == torch.float32
    assert_close(vector(batch.rows(torch.tensor([4, 1]))), made[[4, 1]])
    exact = vector.double()(batch, torch.float64)
    assert exact.dtype == torch.float64
    assert_close(exact.float(), made)


def test_labels_are_one_hot_and_unknown_ones_zero():
    assert Vector(Y)(told_y(2, -1, 0)).tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_numbers_stay_as_they_are():
    for name in ("attributes", "points", "keypoints"):
        assert torch.equal(Vector({name: FACTS[name]})(Batch({name: values(name)})), values(name).flatten(1))


def test_boxes_say_class_place_and_whether_they_are_there():
    """What stands in the place of a missing box does not matter."""
    boxes = torch.tensor([[[1, 0.1, 0.2, 0.3, 0.4], [-1, 0.9, 0.9, 0.9, 0.9]]])
    made = Vector({"b": FACTS["boxes"]})(Batch({"b": boxes}))
    assert_close(made, torch.tensor([[0, 1, 0, 0.1, 0.2, 0.3, 0.4, 1, 0, 0, 0, 0, 0, 0, 0, 0]]))
    without_classes = Vector({"b": {"kind": "boxes", "shape": [2, 5]}})
    assert without_classes.width == 10
    assert_close(without_classes(Batch({"b": boxes})), torch.tensor([[0.1, 0.2, 0.3, 0.4, 1, 0, 0, 0, 0, 0]]))


def test_columns_come_one_after_the_other():
    """In the order of the config, whatever else the batch has; names may have dots."""
    given = {"a.y": Y["y"], "at": FACTS["attributes"]}
    batch = Batch({"x": draw(2, 2), "at": values("attributes")[:2], "a.y": torch.tensor([1, 0])})
    made = Vector(given)(batch)
    assert torch.equal(made[:, :3], torch.tensor([[0.0, 1, 0], [1, 0, 0]]))
    assert torch.equal(made[:, 3:], batch.tensor("at"))
    with pytest.raises(UserError, match="no column 'a.y'"):
        Vector(given)(batch.only(["at"]))


@pytest.mark.parametrize("words", ["mean", "gru"])
def test_what_follows_a_sentence_changes_nothing(words):
    torch.manual_seed(0)
    vector = Vector({"c": FACTS["tokens"]}, words).double()
    word, length = torch.tensor([[3, 7, 1, 0], [5, 5, 2, 9]]), torch.tensor([3, 4])
    made = vector(Batch({"c": Seq(word, length)}), torch.float64)
    garbage = word.clone()
    garbage[0, 3] = 8
    assert torch.equal(vector(Batch({"c": Seq(garbage, length)}), torch.float64), made)
    longer = torch.nn.functional.pad(word, (0, 3))
    assert_close(vector(Batch({"c": Seq(longer, length)}), torch.float64), made)
    alone = vector(Batch({"c": Seq(word[:1, :3], length[:1])}), torch.float64)
    assert_close(alone, made[:1])
    dense = Vector({"c": {"kind": "tokens", "shape": [4], "size": 11}}, words).double()
    dense.load_state_dict(vector.state_dict())
    assert_close(dense(Batch({"c": word}), torch.float64)[1], made[1])


def test_words_by_their_mean_forget_the_order_and_by_a_gru_do_not():
    torch.manual_seed(0)
    sentence, length = torch.tensor([[3, 7, 1], [1, 7, 3]]), torch.tensor([3, 3])
    vectors = {words: Vector({"c": FACTS["tokens"]}, words).double() for words in ("mean", "gru")}
    made = {words: v(Batch({"c": Seq(sentence, length)}), torch.float64) for words, v in vectors.items()}
    mean = vectors["mean"].parts[0].embedding.weight[[3, 7, 1]].mean(dim=0)
    assert_close(made["mean"], mean.expand(2, -1))
    gru = vectors["gru"].parts[0]
    assert_close(made["gru"], gru.gru(gru.embedding(sentence))[1][0])
    assert (made["gru"][0] - made["gru"][1]).abs().max() > 1e-3
    empty = vectors["mean"](Batch({"c": Seq(sentence, torch.tensor([0, 3]))}), torch.float64)
    assert torch.equal(empty[0], torch.zeros(32, dtype=torch.float64))


@pytest.mark.parametrize("name", ["boxes", "layout", "tokens"])
def test_names_say_how_many_classes_there_are(name):
    named = {**FACTS[name], "size": None, "names": [f"name {i}" for i in range(FACTS[name]["size"])]}
    for made in (Vector, Maps):
        shapes = [{key: v.shape for key, v in made({"c": f}).state_dict().items()} for f in (FACTS[name], named)]
        assert shapes[0] == shapes[1]
    assert Maps({"c": named}).channels == Maps({"c": FACTS[name]}).channels


@dataclass(frozen=True)
class Angle(Field):
    """A kind from outside of genlab: its vector is a point on the circle."""

    kind: ClassVar[str] = "angle"

    @property
    def vector_width(self):
        return 2

    def vector(self, values):
        return torch.stack([values.cos(), values.sin()], dim=1)


@dataclass(frozen=True)
class Mute(Field):
    """A kind that nobody knows how to tell."""

    kind: ClassVar[str] = "mute"


def test_a_kind_from_outside_brings_its_own_vector():
    try:
        given = {"angle": {"kind": "angle"}, **Y}
        vector, batch = Vector(given), Batch({"angle": draw(2), "y": torch.tensor([0, 1])})
        assert vector.width == 5
        assert_close(vector(batch, torch.float64)[:, :2], torch.stack([draw(2).cos(), draw(2).sin()], dim=1))
        assert_close(Maps(given)(batch, 2, 3, torch.float64)[:, :2, 1, 2], vector(batch, torch.float64)[:, :2])
        with pytest.raises(UserError, match="kind mute.* makes no vector"):
            Vector({"m": {"kind": "mute"}})
    finally:
        KINDS.pop("angle"), KINDS.pop("mute")


@pytest.mark.parametrize(
    ("given", "words", "message"),
    [
        (Y, "sum", "conditioning.words must be mean or gru, got 'sum'"),
        ({}, "mean", "model.given is empty. Try 'model.given=\\[y\\]'"),
        ({"y": {"kind": "label"}}, "mean", "kind label.* makes no vector"),
        ({"c": {"kind": "tokens", "shape": [None]}}, "mean", "size of the vocabulary is not known"),
        ({"c": {"kind": "layout", "shape": [4, 4]}}, "mean", "number of classes is not known"),
    ],
)
def test_what_cannot_be_told_is_refused(given, words, message):
    for made in (Vector, Maps):
        with pytest.raises(UserError, match=message):
            made(given, words)


# --- Maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels"),
    [("y", 3), ("attributes", 4), ("points", 2), ("boxes", 3), ("keypoints", 3), ("tokens", 32), ("image", 2)]
    + [("masked", 3), ("layout", 5), ("video", 12)],
)
@pytest.mark.parametrize("size", [(8, 12), (5, 3), (16, 16)])
def test_maps_have_the_channels_that_they_say(name, channels, size):
    torch.manual_seed(0)
    maps, batch = Maps({name: FACTS[name]}), Batch({name: values(name)})
    assert maps.channels == channels
    made = maps(batch, *size)
    assert made.shape == (N, channels, *size) and made.dtype == torch.float32
    assert_close(maps(batch.rows(slice(2, 3)), *size), made[2:3])
    assert_close(maps.double()(batch, *size, torch.float64).float(), made)


def test_pictures_stay_as_they_are_at_their_size():
    for name in ("image", "masked"):
        assert torch.equal(Maps({name: FACTS[name]})(Batch({name: values(name)}), 8, 12), values(name))
    assert torch.equal(
        Maps({"v": FACTS["video"]})(Batch({"v": values("video")}), 8, 12).unflatten(1, (4, 3)), values("video")
    )


def test_a_picture_of_another_size_is_resized_bilinearly():
    """A ramp over pixel middles: halving it takes the mean of each two."""
    ramp = torch.arange(12.0).expand(1, 2, 8, 12)
    made = Maps({"c": FACTS["image"]})(Batch({"c": ramp}), 4, 6)
    assert_close(made, (2 * torch.arange(6.0) + 0.5).expand(1, 2, 4, 6))


def test_class_maps_are_one_hot_and_stay_so_at_another_size():
    layout = torch.full((1, 8, 12), -1)
    layout[0, :4], layout[0, 4:, :6] = 2, 4
    maps = Maps({"l": FACTS["layout"]})
    for height, width in ((8, 12), (4, 6), (16, 24)):
        made = maps(Batch({"l": layout}), height, width)[0]
        assert torch.equal(made[2, : height // 2], torch.ones(height // 2, width))
        assert torch.equal(made[4, height // 2 :, : width // 2], torch.ones(height // 2, width // 2))
        assert made.sum() == height * width * 3 / 4  # the last quarter is not known: zeros


def test_boxes_are_filled_at_their_pixels():
    """Columns 2 to 4 and rows 1 to 2 of 8 x 8; the pixels that an edge halves are half filled."""
    boxes = torch.tensor([[[1, 0.25, 0.125, 0.375, 0.25], [-1, 0, 0, 1, 1]], [[0, 0, 0, 1 / 16, 1], [0, 0, 0, 1, 0.5]]])
    made = Maps({"b": FACTS["boxes"]})(Batch({"b": boxes}), 8, 8)
    wanted = torch.zeros(2, 3, 8, 8)
    wanted[0, 1, 1:3, 2:5] = 1
    wanted[1, 0, :4], wanted[1, 0, 4:, 0] = 1, 0.5  # two boxes overlap in the upper left: no more than 1
    assert torch.equal(made, wanted)
    one = Maps({"b": {"kind": "boxes", "shape": [2, 5]}})
    assert one.channels == 1
    assert torch.equal(one(Batch({"b": boxes}), 8, 8), wanted.sum(dim=1, keepdim=True))
    thin = torch.tensor([[[2, 0.3, 0.3, 0.01, 0.01]] * 2])  # no middle of a pixel is in it
    assert_close(Maps({"b": FACTS["boxes"]})(Batch({"b": thin}), 8, 8).sum(), torch.tensor(2 * 0.08**2))


def test_keypoints_are_bumps_at_their_pixels():
    points = torch.tensor([[[(5 + 0.5) / 12, (2 + 0.5) / 8, 1], [0.5, 0.5, 0], [1, 0, 1]]])  # x, y, seen
    made = Maps({"k": FACTS["keypoints"]})(Batch({"k": points}), 8, 12)[0]
    assert made[0, 2, 5] == 1 and made[0].flatten().argmax() == 2 * 12 + 5
    assert torch.equal(made[1], torch.zeros(8, 12))
    assert made[2].flatten().argmax() == 11
    assert_close(made[0, 3, 7], torch.tensor(-(1.0**2 + 2.0**2) / 2).exp())  # a deviation of one pixel
    wide = Maps({"k": FACTS["keypoints"]})(Batch({"k": points}), 64, 96)[0, 0]  # of six
    assert_close(wide[20, 44] / wide[20, 50], torch.tensor((6.5**2 - 0.5**2) / 72).exp(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["boxes", "keypoints"])
def test_places_are_as_exact_under_autocast(name):
    maps, batch = Maps({name: FACTS[name]}), Batch({name: values(name)})
    exact = maps(batch, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(maps(batch, 16, 16), exact)


def test_the_rest_is_constant_maps_of_its_vector():
    batch = Batch({"y": torch.tensor([1, -1]), "at": values("attributes")[:2]})
    given = {**Y, "at": FACTS["attributes"]}
    made = Maps(given)(batch, 3, 5)
    assert torch.equal(made, Vector(given)(batch)[:, :, None, None].expand(-1, -1, 3, 5))


# --- Every wrapper around every network -------------------------------------------------------------------------------


def generators():
    wide = LATENT + 3
    return {
        "mlp": (lambda z: mlp.Generator(z, [2], [16, 16], norm="batch"), wide),
        "mlp_image": (lambda z: mlp.Generator(z, SHAPE, [16, 16], norm="batch", weight_std=0.5), wide),
        "dcgan": (lambda z: dcgan.Generator(z, SHAPE, width=16), wide),
        "dcgan_instance": (lambda z: dcgan.Decoder(z, SHAPE, width=16, norm="instance"), wide),
        "dcgan_layer": (lambda z: dcgan.Generator(z, SHAPE, width=16, norm="layer"), wide),
        "resnet": (lambda z: resnet.Generator(z, SHAPE, width=16), wide),
    }


def discriminators():
    return {
        "mlp": (lambda shape: mlp.Discriminator(shape, [8, 6]), (2,)),
        "mlp_image": (lambda shape: mlp.Discriminator(shape, [8, 6], spectral_norm=True), SHAPE),
        "mlp_maxout": (lambda shape: mlp.Discriminator(shape, [8, 6], activation="maxout"), SHAPE),
        "dcgan": (lambda shape: dcgan.Discriminator(shape, width=4, norm="batch"), SHAPE),
        "dcgan_layer": (lambda shape: dcgan.Discriminator(shape, width=4, norm="layer"), SHAPE),
        "resnet": (lambda shape: resnet.Discriminator(shape, width=4, norm="layer"), SHAPE),
        "resnet_spectral": (
            lambda shape: resnet.Discriminator(shape, width=4, pooling="sum", spectral_norm=True),
            SHAPE,
        ),
    }


JUDGES = [
    (name, place)
    for name in discriminators()
    for place in ("hidden", "last", "projection", "concat" if name == "mlp" else "maps")
] + [("dcgan", "norm"), ("dcgan_layer", "norm"), ("resnet", "norm")]


def judge(name, place):
    """A told discriminator, its shape of samples and the plain one within."""
    torch.manual_seed(0)
    make, shape = discriminators()[name]
    spectral = "spectral" in name or name == "mlp_image"
    wider = (shape[0] + 3, *shape[1:])
    told = {
        "concat": lambda: Concat(make(wider), Y),
        "maps": lambda: InputMaps(make(wider), Y),
        "hidden": lambda: HiddenMaps(make(shape), Y, shape, after=1, width=5, spectral_norm=spectral),
        "last": lambda: HiddenMaps(make(shape), Y, shape, after=-1, width=5, spectral_norm=spectral),
        "projection": lambda: Projection(make(shape), Y, shape, spectral_norm=spectral),
        "norm": lambda: NormTold(make(shape), Y, last=True),
    }[place]()
    return told, shape


def move(network, x, given):
    """One gradient step on everything, so that what starts at 0 no longer is."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    network(x, given).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(("name", "place"), JUDGES)
def test_told_discriminators(name, place):
    """Logits are those of the features, depend on the condition, and gradients reach samples and every weight."""
    told, shape = judge(name, place)
    told.double()
    x, given = draw(N, *shape).requires_grad_(), told_y(0, 1, 2, 0, 1, 2)
    move(told, x.detach(), given)
    x.grad = None
    logits = told(x, given)
    assert logits.shape == (N,) and logits.dtype == torch.float64
    assert parameters_without_gradient(told, logits) == []
    assert (x.grad.flatten(1).abs().sum(dim=1) > 0).all()
    told.eval()
    features = told.features(x, given)
    assert features.dim() == 2
    assert torch.equal(told.logits(features, given), told(x, given))
    assert (told(x, given) - told(x, told_y(1, 2, 0, 1, 2, 0))).abs().min() > 1e-9


@pytest.mark.parametrize(("name", "place"), JUDGES)
def test_told_discriminators_in_half_precision_and_copied(name, place):
    """Under autocast the type of the logits is the plain network's; copies and saved weights give the same."""
    told, shape = judge(name, place)
    x, given = draw(N, *shape, dtype=torch.float32), told_y(0, 1, 2, 0, 1, 2)
    move(told, x, given)
    told.eval()
    logits = told(x, given)
    assert torch.equal(copy.deepcopy(told)(x, given), logits)
    fresh, _ = judge(name, place)
    fresh.eval().load_state_dict(told.state_dict())
    assert torch.equal(fresh(x, given), logits)
    assert_close(functional_call(fresh, dict(told.named_parameters()), (x, given)), logits)
    plain = discriminators()[name][0](shape)
    with torch.autocast("cpu", torch.bfloat16):
        half = told(x, given)
        assert half.dtype == plain(x).dtype
        assert told(x.bfloat16(), given).dtype == half.dtype
    assert_close(half.float(), logits, rtol=0.1, atol=0.1 * logits.abs().max().item())


@pytest.mark.parametrize("name", generators())
@pytest.mark.parametrize("place", ["concat", "norm"])
def test_told_generators(name, place):
    torch.manual_seed(0)
    make, wide = generators()[name]
    told = Concat(make(wide), Y) if place == "concat" else NormTold(make(LATENT), Y)
    z, given = draw(N, LATENT, dtype=torch.float32), told_y(0, 1, 2, 0, 1, 2)
    move(told, z, given)
    told.eval()
    x = told(z, given)
    assert x.shape == make(LATENT)(z).shape
    assert (x - told(z, told_y(1, 2, 0, 1, 2, 0))).flatten(1).abs().amax(dim=1).min() > 1e-6
    assert torch.equal(copy.deepcopy(told)(z, given), x)
    plain = make(LATENT).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert told(z, given).dtype == plain(z).dtype
    told.double().train()
    z = z.double().requires_grad_()
    assert parameters_without_gradient(told, told(z, given) * draw(*x.shape, seed=1)) == []
    assert (z.grad.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("name", [name for name in FACTS if name != "y"])
def test_every_kind_is_told_by_every_wrapper(name):
    """A captioned, boxed, ... picture: in bfloat16 too, with gradients to what is learned of the condition."""
    torch.manual_seed(0)
    given, batch = {name: FACTS[name]}, Batch({name: values(name)})
    width, channels = Vector(given).width, Maps(given).channels
    x, z = draw(N, 1, 8, 8, dtype=torch.float32), draw(N, LATENT, dtype=torch.float32)
    cases = [
        (Concat(mlp.Generator(LATENT + width, [2], [8]), given, words="gru"), z),
        (NormTold(dcgan.Generator(LATENT, [1, 16, 16], width=4), given), z),
        (InputMaps(dcgan.Discriminator([1 + channels, 8, 8], width=4, norm="none"), given), x),
        (HiddenMaps(dcgan.Discriminator([1, 8, 8], width=4, norm="none"), given, [1, 8, 8], after=1), x),
        (Projection(dcgan.Discriminator([1, 8, 8], width=4, norm="none"), given, [1, 8, 8]), x),
    ]
    for told, entry in cases:
        move(told, entry, batch)
        assert parameters_without_gradient(told, told(entry, batch)) == []
        with torch.autocast("cpu", torch.bfloat16):
            half = told(entry, batch).float()
        assert_close(half, told(entry, batch), rtol=0, atol=0.1 * max(1.0, half.abs().max().item()))


# --- What each wrapper is ---------------------------------------------------------------------------------------------


def test_concat_before_a_linear_network_adds_a_bias():
    torch.manual_seed(0)
    linear, x = nn.Linear(5, 4).double(), draw(3, 2)
    made = Concat(linear, Y)(x, told_y(2, -1, 0))
    bias = torch.stack([linear.weight[:, 4], torch.zeros(4, dtype=torch.float64), linear.weight[:, 2]])
    assert_close(made, x @ linear.weight[:, :2].T + linear.bias + bias, rtol=0, atol=1e-6)


def test_input_maps_are_further_channels():
    seen = []
    network = nn.Sequential(nn.Identity())
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = draw(2, 1, 4, 5)
    InputMaps(network, Y)(x, told_y(1, 0))
    assert torch.equal(seen[0][:, :1], x)
    assert torch.equal(seen[0][:, 1:], Maps(Y)(told_y(1, 0), 4, 5, torch.float64))


def difference(told, x):
    return told(x, told_y(*[0] * len(x))) - told(x, told_y(*[1] * len(x)))


def test_what_is_told_before_a_linear_head_alone_checks_no_match():
    """s(x, 0) - s(x, 1) is one number for all x after a bare concat, and is not after HiddenMaps' non-linearity."""
    torch.manual_seed(0)
    x = draw(5, 2)
    body = mlp.Discriminator([2], [8, 6])
    hidden = HiddenMaps(body, Y, [2], after=-1, width=5).double()
    assert difference(hidden, x).std() > 1e-3
    hidden.joint = hidden.joint[:1]  # the layer without what follows it
    body.trunk = body.trunk[:-1]
    assert_close(difference(hidden, x), difference(hidden, x)[:1].expand(5), rtol=0, atol=1e-9)


def test_hidden_maps_join_the_layer_that_was_asked_for():
    """Layers before it are the plain ones; the same by hand, with the condition tiled to every place."""
    torch.manual_seed(0)
    plain = dcgan.Discriminator(SHAPE, width=4, norm="layer")
    told, x, given = HiddenMaps(plain, Y, SHAPE, after=2, width=5).double(), draw(3, *SHAPE), told_y(0, -1, 2)
    h = plain.until(x, 2)
    code = Vector(Y)(given, torch.float64) @ told.embedding.weight.T
    joined = torch.cat([h, code[:, :, None, None].expand(-1, -1, *h.shape[2:])], dim=1)
    linear = told.joint[0]
    h = torch.einsum("oi,nihw->nohw", linear.weight[:, :, 0, 0], joined) + linear.bias[:, None, None]
    assert_close(told(x, given), plain.beyond(torch.where(h > 0, h, 0.2 * h), 2))


def test_building_a_wrapper_changes_nothing_of_the_network():
    for place in ("hidden", "projection"):
        torch.manual_seed(0)
        network = resnet.Discriminator(SHAPE, width=4, norm="batch", spectral_norm=True)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        HiddenMaps(network, Y, SHAPE, after=2) if place == "hidden" else Projection(network, Y, SHAPE)
        assert network.training and before.keys() == network.state_dict().keys()
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", discriminators())
def test_projection_without_v_is_the_plain_discriminator_bit_for_bit(name):
    torch.manual_seed(0)
    make, shape = discriminators()[name]
    network = make(shape)
    told = Projection(network, Y, shape).eval()
    x, given = draw(N, *shape, dtype=torch.float32), told_y(0, 1, 2, 0, 1, -1)
    assert not torch.equal(told(x, given)[:5], network(x)[:5])
    nn.init.zeros_(told.projection.weight)
    assert torch.equal(told(x, given), network(x))


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_projection_is_an_embedding_times_the_features(spectral_norm):
    """s(x, y) - s(x, y') = (V_y - V_y')^T phi(x)."""
    torch.manual_seed(0)
    network = mlp.Discriminator([2], [8, 6])
    told, x = Projection(network, Y, [2], spectral_norm).double().eval(), draw(4, 2)
    v = told.projection.weight
    assert_close(difference(told, x), network.features(x) @ (v[:, 0] - v[:, 1]))
    assert_close(told(x, told_y(-1, -1, -1, -1)), network(x))
    for _ in range(50):
        told.train()(x, told_y(0, 0, 0, 0))
    largest = torch.linalg.matrix_norm(told.eval().projection.weight, 2)
    assert torch.isclose(largest, torch.ones_like(largest)) == spectral_norm


NORMED = {
    "mlp": lambda: mlp.Generator(LATENT, [2], [16, 16], norm="batch"),
    "layer_norm": lambda: nn.Sequential(
        nn.Linear(LATENT, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2)
    ),
    "layer_norm_of_maps": lambda: nn.Sequential(
        nn.Unflatten(1, (LATENT, 1, 1)), nn.ConvTranspose2d(LATENT, 3, (2, 5)), nn.LayerNorm([3, 2, 5]), nn.Tanh(),
        nn.Conv2d(3, 2, 1), nn.LayerNorm([2, 2, 5]),
    ),
    "dcgan": lambda: dcgan.Generator(LATENT, SHAPE, width=16),
    "group": lambda: dcgan.Generator(LATENT, SHAPE, width=16, norm="layer"),
    "instance": lambda: dcgan.Generator(LATENT, (1, 32, 32), width=16, norm="instance"),
    "resnet": lambda: resnet.Generator(LATENT, SHAPE, width=16),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NORMED)
def test_told_norms_start_as_the_plain_network_bit_for_bit(name, training):
    torch.manual_seed(0)
    plain = NORMED[name]()
    told = NormTold(copy.deepcopy(plain), Y).train(training)
    z, given = draw(N, LATENT, dtype=torch.float32), told_y(0, 1, 2, 0, 1, -1)
    assert torch.equal(told(z, given), plain.train(training)(z))
    move(told.eval(), z, given)
    x = told(z, given)
    changed = (x - told(z, told_y(1, 1, 2, 0, 1, -1))).flatten(1).abs().amax(dim=1)
    assert changed[0] > 1e-6 and torch.equal(changed[1:], torch.zeros(5))


@pytest.mark.parametrize("name", NORMED)
def test_the_last_norm_stays_unconditional(name):
    torch.manual_seed(0)
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
    norms = [module for module in NORMED[name]().modules() if isinstance(module, kinds)]
    for last in (False, True):
        network = NORMED[name]()
        told = NormTold(network, Y, last=last)
        told_ones = [film.norm for film in films(told)]
        kept = [m for m in network.modules() if isinstance(m, kinds) and m not in told_ones]
        assert [type(m) for m in told_ones] == [type(m) for m in (norms if last else norms[:-1])]
        assert [type(m) for m in kept] == ([] if last else [type(norms[-1])])


def test_told_norms_scale_and_shift_each_channel_of_each_sample():
    """norm(x) (1 + gamma_y) + beta_y with the norm's own weights within, for channels first and last."""
    for norm, x, place in (
        (nn.BatchNorm2d(3), draw(4, 3, 2, 2), (4, 3, 1, 1)),
        (nn.BatchNorm1d(3), draw(4, 3), (4, 3)),
        (nn.GroupNorm(1, 3), draw(4, 3, 5), (4, 3, 1)),
        (nn.LayerNorm(3), draw(4, 5, 3), (4, 1, 3)),
        (nn.LayerNorm([3, 2, 2]), draw(4, 3, 2, 2), (4, 3, 1, 1)),
        (nn.InstanceNorm1d(3), draw(4, 3, 5), (4, 3, 1)),
    ):
        torch.manual_seed(0)
        for p in norm.parameters():
            nn.init.normal_(p)
        told = NormTold(nn.Sequential(norm), Y, last=True).double()
        film = told.network[0].film.weight
        nn.init.normal_(film)
        gamma, beta = (part.T[[2, 0, 1, 0]].reshape(place) for part in (film[:3], film[3:]))
        assert_close(told(x, told_y(2, 0, 1, 0)), norm(x) * (1 + gamma) + beta, rtol=0, atol=1e-12)


def films(network):
    """The told norms."""
    return [module for module in network.modules() if hasattr(module, "film")]


def moved_generator():
    torch.manual_seed(0)
    told = NormTold(resnet.Generator(LATENT, SHAPE, width=4), Y).double()
    z = draw(N, LATENT)
    move(told, z, told_y(0, 1, 2, 0, 1, 2))
    return told.eval(), z


def test_told_norms_on_two_threads_do_not_mix_their_conditions():
    """Each thread waits inside the network until the other is there too, every time."""
    told, z = moved_generator()
    given = [told_y(*[0] * N), told_y(*[1] * N)]
    alone = [told(z, g) for g in given]
    assert (alone[0] - alone[1]).abs().max() > 1e-6
    together, found = threading.Barrier(2, timeout=60), {0: [], 1: []}

    def wait(*_):
        together.wait()

    inside = films(told)[0].norm.register_forward_hook(wait)

    def work(i):
        for _ in range(5):
            found[i].append(told(z, given[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    [t.start() for t in threads], [t.join() for t in threads]
    inside.remove()
    for i in (0, 1):
        assert len(found[i]) == 5 and all(torch.equal(x, alone[i]) for x in found[i])


def test_told_norms_within_told_norms_hear_their_own():
    """A network that asks another, or itself, on its way; nothing is left behind, by an error neither."""
    told, z = moved_generator()
    zeros, ones = told_y(*[0] * N), told_y(*[1] * N)
    alone = told(z, zeros)
    first = films(told)[0]
    asked = []

    def ask(*_):
        if not asked:
            asked.append(None)
            asked.append(told(z, ones))

    handle = first.norm.register_forward_hook(ask)
    assert torch.equal(told(z, zeros), alone)
    handle.remove()
    assert torch.equal(asked[1], told(z, ones))
    with pytest.raises(RuntimeError):
        told(z[:, :2], zeros)
    with pytest.raises(AssertionError, match="runs within its NormTold"):
        told.network(z)


def test_told_norms_under_functional_call_and_per_sample_gradients():
    told, z = moved_generator()
    given = told_y(0, 1, 2, 0, 1, 2)
    other = copy.deepcopy(told)
    for p in other.parameters():
        nn.init.normal_(p)
    weights = dict(told.named_parameters())
    assert torch.equal(functional_call(other, {**weights, **dict(told.named_buffers())}, (z, given)), told(z, given))
    gradient = torch.func.grad(lambda w: functional_call(told, w, (z, given)).square().sum())(weights)
    told.zero_grad()
    told(z, given).square().sum().backward()
    for name, p in told.named_parameters():
        assert_close(gradient[name], p.grad)


@pytest.mark.parametrize("name", ["norm", "hidden", "projection", "concat"])
def test_told_networks_compile_whole(name):
    torch.manual_seed(0)
    told, entry = {
        "norm": lambda: (NormTold(mlp.Generator(LATENT, [2], [8, 6], norm="batch"), Y), draw(N, LATENT)),
        "hidden": lambda: (HiddenMaps(mlp.Discriminator([2], [8]), Y, [2], after=1), draw(N, 2)),
        "projection": lambda: (Projection(mlp.Discriminator([2], [8]), Y, [2]), draw(N, 2)),
        "concat": lambda: (Concat(mlp.Discriminator([5], [8]), Y), draw(N, 2)),
    }[name]()
    told.double()
    move(told, entry, told_y(0, 1, 2, 0, 1, 2))
    told.eval()
    compiled = torch.compile(told, backend="eager", fullgraph=True)
    for given in (told_y(0, 1, 2, 0, 1, 2), told_y(2, 2, 2, 0, 0, 0)):
        assert_close(compiled(entry, given), told(entry, given))


def test_second_derivatives_reach_the_weights_of_the_condition():
    """As gradient penalties take them."""
    for name, place in (("mlp", "hidden"), ("dcgan_layer", "norm"), ("mlp", "projection"), ("mlp", "concat")):
        told, shape = judge(name, place)
        told.double()
        x, given = draw(N, *shape).requires_grad_(), told_y(0, 1, 2, 0, 1, 2)
        (gradient,) = torch.autograd.grad(told(x, given).sum(), x, create_graph=True)
        gradient.square().sum().backward()
        own = [p for key, p in told.named_parameters() if any(n in key for n in ("film", "joint", "projection"))]
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own if p.dim() > 1)
        assert bool(own) == (place != "concat")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: NormTold(mlp.Generator(LATENT, [2], [8]), Y),
            r"Generator has none\. Try network\.generator_norm=batch",
        ),
        (lambda: NormTold(mlp.Generator(LATENT, [2], [8], norm="batch"), Y), r"only one.*Try conditioning\.last=true"),
        (lambda: HiddenMaps(nn.Linear(2, 1), Y, [2], after=1), "Linear has none to stop at. Try conditioning=concat"),
        (lambda: HiddenMaps(mlp.Discriminator([2], [8]), Y, [2], after=2), r"conditioning\.after must be in 1 \.\. 1"),
        (lambda: HiddenMaps(mlp.Discriminator([2], [8]), Y, [2], 1, width=0), "conditioning.width must be a positive"),
        (lambda: Projection(nn.Linear(2, 1), Y, [2]), "Linear has no `features`"),
    ],
)
def test_what_cannot_be_told_there_is_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()


# --- Latents and vectors ----------------------------------------------------------------------------------------------


def test_latents_of_a_condition_are_a_gaussian_of_its_own():
    """m(c) + s(c) z: at the start scale 1; a row without a label has mean 0; scales have a floor."""
    torch.manual_seed(0)
    told = LatentGaussians(nn.Identity(), Y, LATENT)
    z = draw(4, LATENT, dtype=torch.float32)
    y = told_y(2, 0, -1, 2)
    assert_close(told(z, y)[2], z[2])
    assert torch.equal(told(z, y)[[0, 3]] - z[[0, 3]], told.mean.weight.T[[2, 2]] + z[[0, 3]] - z[[0, 3]])
    with torch.no_grad():
        told.log_scale.weight[:, 2] = torch.tensor([0.5, -1.0, -9.0, 0.0])
    scales = torch.tensor([0.5, -1.0, -3.0, 0.0]).exp()
    assert_close(told(z, y)[3], told.mean.weight[:, 2] + scales * z[3])
    assert_close(told(z, y)[1], told.mean.weight[:, 0] + z[1])


def test_a_vector_of_the_conditions_stands_in_place_of_a_point():
    node = {"_target_": "genlab.networks.mlp.Encoder", "shape": [1], "out_features": 5, "hidden": []}
    around = ReadsVector.around(node, mlp.Encoder, {**Y, "points": FACTS["points"]})
    assert around["network"]["shape"] == [3 + 2] and node["shape"] == [1]
    assert ReadsVector.around({"shape": [1, 8, 8]}, mlp.Encoder, Y) is None
    assert LatentGaussians.around({"shape": [3]}, mlp.Encoder, Y) is None
    network = mlp.Encoder([3 + 2], 5, []).double()
    told = ReadsVector(network, {**Y, "points": FACTS["points"]})
    given = Batch({"y": torch.tensor([2, -1]), "points": draw(2, 2)})
    vector = torch.cat([torch.tensor([[0, 0, 1.0], [0, 0, 0]]).double(), given["points"]], dim=1)
    assert_close(told(given), network(vector))
