"""Derived columns: each derivation by hand, its field and refusals, and the same draws wherever a batch is made."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from genlab.batch import Batch
from genlab.config.composition import compose
from genlab.config.instantiate import build_data
from genlab.data.derive import (
    Derivation,
    Edges,
    Grey,
    Half,
    LowResolution,
    Noisy,
    Quadrants,
    derived,
    masked,
    with_derived,
)
from genlab.data.spec import DataSpec
from genlab.data.store import ArrayStore
from genlab.data.stream import FixedBatches, Stream
from genlab.errors import UserError
from genlab.fields.image import Image, to_uint8
from genlab.fields.kinds import make_field
from genlab.fields.masked import HIDDEN, Masked

GREY, COLOUR = (DataSpec.of("image", shape) for shape in ((1, 8, 6), (3, 8, 8)))
POINTS = DataSpec.of("points", (2,))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(*shape, seed=0):
    return 2 * torch.rand(*shape, generator=rng(seed)) - 1


def no_draws(*shape):
    raise AssertionError("this derivation draws nothing")


def of(derivation, x, rand=no_draws):
    return derivation(Batch({"x": x}), rand)


def mask(rows):
    return torch.tensor([[float(place) for place in row] for row in rows.split()])


# --- Parts of a picture -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "even", "odd"),
    [
        ("top", "1111 0000", "11111 11111 00000"),
        ("bottom", "0000 1111", "00000 11111 11111"),
        ("left", "1100 1100", "11100 11100 11100"),
        ("right", "0011 0011", "00111 00111 00111"),
    ],
)
def test_half_of_a_picture(seen, even, odd):
    """Of an odd number the middle one is seen, from either side."""
    for expected in (mask(even), mask(odd)):
        x = pictures(2, 3, *expected.shape)
        c = of(Half(seen=seen), x)
        assert torch.equal(c[:, 3:], expected.expand(2, 1, -1, -1))
        assert torch.equal(c[:, :3], x * expected)


@pytest.mark.parametrize(
    ("seen", "even", "odd"),
    [
        (1, "0000 0000 1100 1100", "00000 11100 11100"),
        (2, "1100 1100 1100 1100", "11100 11100 11100"),
        (3, "1100 1100 1111 1111", "11100 11111 11111"),
    ],
)
def test_quadrants_of_sohn_et_al(seen, even, odd):
    """The lower left one, then the upper left, then the lower right."""
    for expected in (mask(even), mask(odd)):
        x = pictures(2, 1, *expected.shape)
        c = of(Quadrants(seen=seen), x)
        assert torch.equal(c[:, 1], expected.expand(2, -1, -1))
        assert torch.equal(c[:, :1], x * expected)


def test_the_third_quadrant_may_be_the_upper_right_one():
    """Pyro's tutorial hides the lower right one of four; with one or two seen nothing changes."""
    x = pictures(2, 1, 4, 4)
    assert torch.equal(of(Quadrants(seen=3, third="upper"), x)[0, 1], mask("1111 1111 1100 1100"))
    for seen in (1, 2):
        assert torch.equal(of(Quadrants(seen=seen, third="upper"), x), of(Quadrants(seen=seen), x))
    with pytest.raises(
        UserError, match=r"^The third quadrant of derive=quadrants is lower or upper, got third='left'.$"
    ):
        Quadrants(third="left")
    assert Quadrants(seen=3).text == "Quadrants(of=x, seen=3, third=lower)"


def test_hidden_pixels_are_zero_in_the_type_of_the_picture():
    x = pictures(2, 1, 4, 4).double()
    c = masked(x, torch.zeros(4, 4, dtype=torch.bool))
    assert c.dtype == torch.float64 and c.shape == (2, 2, 4, 4) and not c.any()


# --- Whole pictures ---------------------------------------------------------------------------------------------------


def test_low_resolution_averages_squares():
    x = torch.tensor([[0.0, 0.4, 1, 1, -1, 0], [0.2, 0.2, 1, 1, -1, 0]]).view(1, 1, 2, 6)
    small = of(LowResolution(factor=2, enlarged=False), x)
    assert_close(small, torch.tensor([[[[0.2, 1, -0.5]]]]))
    filled = of(LowResolution(factor=2), x)
    assert_close(filled, torch.tensor([[0.2, 0.2, 1, 1, -0.5, -0.5]]).expand(1, 1, 2, 6))
    assert_close(of(LowResolution(factor=2), filled), filled)
    assert torch.equal(of(LowResolution(factor=1), x), x)


def uniform(n, seed=0):
    stream = rng(seed)
    return lambda *shape: torch.rand(n, *shape, generator=stream)


def test_noise_is_normal_with_its_standard_deviation():
    """Five standard deviations from the bounds: nothing is cut. Tolerances: four standard errors."""
    n = 2 * 150 * 150
    noise = of(Noisy(sigma=0.2), torch.zeros(2, 1, 150, 150), uniform(2)) / 0.2
    assert_close(noise.mean(), torch.tensor(0.0), rtol=0, atol=4 / math.sqrt(n))
    assert_close(noise.square().mean(), torch.tensor(1.0), rtol=0, atol=4 * math.sqrt(2 / n))
    share = 0.682689  # within one standard deviation
    assert_close((noise.abs() < 1).float().mean().item(), share, rtol=0, atol=4 * math.sqrt(share * (1 - share) / n))
    for shift in ((0, 1), (1, 0)):  # from pixel to pixel, and from one picture to the other
        product = (noise * noise.roll(shift, dims=(0, 3))).mean()
        assert_close(product, torch.tensor(0.0), rtol=0, atol=4 / math.sqrt(n))


def test_noisy_pixels_are_cut_to_the_range():
    """At 0.9 with sigma 0.5, a share P(z > 0.2) of the pixels is 1. Pixels within the range are left alone."""
    x = torch.full((1, 1, 200, 200), 0.9, dtype=torch.float64)
    c, hardly = (of(Noisy(sigma=sigma), x, uniform(1)) for sigma in (0.5, 1e-3))
    assert_close(c, (x + 500 * (hardly - x)).clamp(-1, 1))
    assert_close((c == 1).double().mean().item(), 0.5 * math.erfc(0.2 / math.sqrt(2)), rtol=0, atol=0.01)


def test_noisy_of_float64_pictures():
    assert of(Noisy(), torch.zeros(1, 1, 4, 4, dtype=torch.float64), uniform(1)).dtype == torch.float64


def test_grey_is_the_luminance():
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [-1, -1, -1]])
    made = of(Grey(), colours.view(5, 3, 1, 1).expand(5, 3, 2, 2))
    assert made.shape == (5, 1, 2, 2)
    assert_close(made[:, 0, 1, 1], torch.tensor([0.299, 0.587, 0.114, 1, -1]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dim", [-1, -2])
def test_edges_of_a_step(channels, dim):
    """A step from -1 to 1 is 1 on both of its sides, up to the border; half a step is 0; flat places are -1."""
    for high, edge in ((1.0, 1.0), (0.0, 0.0)):
        x = torch.full((2, channels, 6, 6), -1.0)
        x.narrow(dim, 3, 3).fill_(high)
        c = of(Edges(), x)
        expected = torch.full((2, 1, 6, 6), -1.0)
        expected.narrow(dim, 2, 2).fill_(edge)
        assert_close(c, expected)


def test_edges_are_those_of_the_mean_channel_and_stay_in_range():
    """Channels that cancel have no edges; where steps meet the length is cut to 1."""
    x = torch.ones(1, 3, 5, 5)
    x[:, :, :, 3:] = -1
    x[:, 0], x[:, 2] = 0, -x[:, 1]
    assert torch.equal(of(Edges(), x), torch.full((1, 1, 5, 5), -1.0))
    stripes = torch.where(torch.rand(4, 1, 16, 16, generator=rng()) < 0.5, -1.0, 1.0)
    c = of(Edges(), stripes)
    assert float(c.max()) == 1.0 and float(c.min()) >= -1.0


# --- Fields and refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("derivation", "spec", "field"),
    [
        (Half(), COLOUR, Masked((4, 8, 8))),
        (Quadrants(), GREY, Masked((2, 8, 6))),
        (LowResolution(factor=2), GREY, Image((1, 8, 6))),
        (LowResolution(factor=2, enlarged=False), GREY, Image((1, 4, 3))),
        (Noisy(), COLOUR, Image((3, 8, 8))),
        (Grey(), COLOUR, Image((1, 8, 8))),
        (Edges(), COLOUR, Image((1, 8, 8))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_fields_describe_the_columns(derivation, spec, field):
    found = with_derived(spec, {"c": derivation})
    assert found.fields["c"] == field and found.x == spec.x
    assert make_field(field.to_dict()) == field
    c = of(derivation, pictures(5, *spec.shape), uniform(5))
    assert c.shape == (5, *field.fixed_shape) and c.dtype == torch.float32
    assert -1 <= float(c.min()) and float(c.max()) <= 1


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Half(seen="nowhere"), "derive=half shows one of top, bottom, left, right, got seen='nowhere'."),
        (lambda: Quadrants(seen=4), "derive=quadrants shows 1, 2 or 3 of them, got seen=4."),
        (lambda: Noisy(sigma=0.0), "derive=noisy needs sigma > 0, got 0.0."),
        (lambda: Noisy(sigma=math.nan), "derive=noisy needs sigma > 0, got nan."),
        (
            lambda: LowResolution(factor=4).field(GREY),
            "derive=low_resolution: factor=4 must divide the sides 8 and 6.",
        ),
        (
            lambda: LowResolution(factor=0).field(GREY),
            "derive=low_resolution: factor=0 must divide the sides 8 and 6.",
        ),
        (lambda: Grey().field(GREY), "derive=grey needs colour pictures, and x has 1 channel."),
        (lambda: Half().field(POINTS), "Half is made of pictures, and the column x is of kind points."),
        (
            lambda: Edges(of="photo").field(GREY),
            "Edges is made of pictures, and the column photo is not there; the data have x.",
        ),
        (lambda: Masked((1, 8, 8)), "A masked image has the shape [C + 1, H, W], got [1, 8, 8]."),
    ],
)
def test_refusals(make, sentence):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == sentence


@pytest.mark.parametrize("name", ["x", "y", "index", "group"])
def test_a_name_that_is_taken_is_refused(name):
    """Also the names of columns that every stream or a grouped one adds."""
    spec = DataSpec.of("image", (1, 8, 8), num_classes=3)
    with pytest.raises(UserError) as error:
        with_derived(spec, {name: Half()})
    words = f"derive.{name}: the data have a column {name} already. Give the derived one another name."
    assert str(error.value) == words


def test_columns_are_derived_of_derived_ones():
    """In their order."""
    chain = {"small": LowResolution(factor=2, enlarged=False), "c": Half(of="small", seen="left")}
    found = with_derived(GREY, chain)
    assert found.fields["c"] == Masked((2, 4, 3))
    x = pictures(3, 1, 8, 6)
    batch = derived(Batch({"x": x}), chain, range(3))
    assert list(batch.columns) == ["x", "small", "c"]
    assert torch.equal(batch["c"], of(Half(seen="left"), of(chain["small"], x)))
    with pytest.raises(UserError, match="the column small is not there"):
        with_derived(GREY, {name: chain[name] for name in ("c", "small")})


# --- In streams -------------------------------------------------------------------------------------------------------

SPEC = DataSpec.of("image", (1, 4, 4), num_classes=40)
STORE = ArrayStore({"x": torch.randint(0, 256, (22, 1, 4, 4), generator=rng()).to(torch.uint8), "y": torch.arange(22)})


class Twice(Derivation):
    """Draws twice, and keeps both draws."""

    of = "x"

    def field(self, spec):
        return Image((2, 4, 4))

    def __call__(self, batch, rand):
        return torch.stack([rand(4, 4), rand(4, 4)], dim=1)


DERIVE = {"c": Noisy(sigma=0.1), "d": Noisy(sigma=0.1), "left": Half(seen="left"), "draws": Twice()}
NAMES = ("x", "y", "index", *DERIVE)


def stream(**options):
    derive = options.pop("derive", DERIVE)
    return Stream(STORE, with_derived(SPEC, derive), **{"batch_size": 4, "seed": 3, "derive": derive, **options})


def assert_same(a, b):
    for name in NAMES:
        assert torch.equal(a[name], b[name]), name


def test_a_resumed_stream_makes_the_same_columns():
    whole = list(itertools.islice(stream(flip=True, batches_per_step=2), 8))
    tail = list(itertools.islice(stream(flip=True, batches_per_step=2, start=5), 3))
    for a, b in zip(whole[5:], tail, strict=True):
        assert_same(a, b)


def test_every_draw_is_another_one():
    """From call to call, from column to column, from batch to batch, from row to row, and from seed to seed."""
    batch, later = stream().batch(2), stream().batch(3)
    first, second = batch.tensor("draws").unbind(1)
    assert not torch.isin(first, second).any()
    assert not torch.isin(batch.tensor("draws"), later.tensor("draws")).any()
    assert not torch.isin(batch.tensor("draws"), stream(seed=4).batch(2).tensor("draws")).any()
    assert len(first.unique()) == first.numel()
    assert not torch.equal(batch.tensor("c") - batch.x, batch.tensor("d") - batch.x)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("n", [1, 3])
def test_the_shares_of_all_processes_are_the_batch_of_one(n, world):
    options = {"batch_size": 8, "batches_per_step": n, "flip": True}
    for i in (0, 7):
        whole = stream(**options).batch(i)
        parts = [stream(rank=r, world_size=world, **options).batch(i) for r in range(world)]
        for name in NAMES:
            chunks = [part.tensor(name).chunk(n) for part in parts]
            joined = torch.cat([chunks[r][c] for c in range(n) for r in range(world)])
            assert torch.equal(joined, whole.tensor(name)), name


def test_columns_are_made_of_mirrored_pictures():
    """What is seen is the left half of the picture as it is shown, not of the stored one."""
    plain, flipped = stream(batch_size=22).batch(0), stream(batch_size=22, flip=True).batch(0)
    assert torch.equal(flipped["left"], of(Half(seen="left"), flipped.x))
    changed = (plain.x != flipped.x).flatten(1).any(dim=1)
    assert 0 < int(changed.sum()) < 22
    assert torch.equal(plain.x[changed].flip(-1), flipped.x[changed])
    assert not torch.equal(plain["left"], flipped["left"])


def test_columns_are_made_of_binarised_pictures():
    batch = stream(binarize=True).batch(1)
    assert set(batch.x.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(batch["left"], of(Half(seen="left"), batch.x))


def test_other_columns_do_not_change_the_batch():
    """A random column more or less leaves the order, the flips and the other columns alone."""
    few = stream(flip=True, derive={"d": DERIVE["d"]}).batch(4)
    many = stream(flip=True).batch(4)
    for name in ("x", "y", "index", "d"):
        assert torch.equal(few[name], many[name]), name


# --- For validation and metrics ---------------------------------------------------------------------------------------


def fixed(**options):
    return FixedBatches(STORE, with_derived(SPEC, DERIVE), 6, derive=DERIVE, **options)


def test_fixed_batches_draw_once_and_for_all():
    batches = fixed()
    first, again, other = list(batches), list(batches), list(fixed())
    assert [len(b) for b in first] == [6, 6, 6, 4]
    for a, b, c in zip(first, again, other, strict=True):
        assert_same(a, b)
        assert_same(a, c)
    assert not torch.isin(first[0].tensor("draws"), first[1].tensor("draws")).any()
    assert torch.equal(first[2]["left"], of(Half(seen="left"), first[2].x))


def test_a_row_has_its_draws_whatever_stands_beside_it():
    """In batches of any size, in a part of the split, and where single rows are asked for."""
    whole = next(iter(FixedBatches(STORE, with_derived(SPEC, DERIVE), 22, derive=DERIVE)))
    assert torch.equal(torch.cat([b.tensor("draws") for b in fixed()]), whole["draws"])
    assert len(whole.tensor("draws").unique()) == 22 * 32  # no two alike
    (part,) = FixedBatches(STORE, with_derived(SPEC, DERIVE), 22, limit=5, derive=DERIVE)
    assert torch.equal(part["draws"], whole.tensor("draws")[part.tensor("index")])
    data = build_data(compose(["data=digits", "+derive=noisy"]))
    rows = data.rows("val", ["c"], torch.tensor([7, 3, 7]))
    first = next(iter(data.batches("val", 10)))
    assert torch.equal(rows["c"], first.tensor("c")[[7, 3, 7]])


def test_processes_share_fixed_batches():
    whole = list(fixed())
    for rank in (0, 1):
        for a, b in zip(whole[rank::2], fixed(rank=rank, world_size=2), strict=True):
            assert_same(a, b)


def test_a_data_set_with_derived_columns():
    """Its facts, its batches of every sort, and rows that someone asks for."""
    config = compose(["data=digits", "data.flip=true", "+derive=half", "derive.c.seen=right"])
    data = build_data(config)
    half = Half(seen="right")
    assert data.spec.fields["c"] == Masked((2, 8, 8)) and {"x", "y", "c", "index"} == data.column_names
    data.setup()
    assert set(data.spec.fields) == {"x", "y", "c"}  # after what was found in the data
    for batch in (data.stream().batch(3), next(iter(data.batches("val"))), next(data.first_batches(1))):
        assert torch.equal(batch["c"], of(half, batch.x))
    places = torch.tensor([5, 0, 5])
    rows = data.rows("test", ["c"], places)
    assert list(rows.columns) == ["c"]
    assert torch.equal(rows["c"], of(half, data.rows("test", ["x"], places).x))
    given = data.given_rows("test", ["c", "y"], 7, rng())
    assert given.tensor("c").shape == (7, 2, 8, 8) and list(given.columns) == ["c", "y"]
    x, y = (data.split("test").gather(torch.arange(len(data.split("test"))), name) for name in ("x", "y"))
    known = of(half, data.spec.x.normalise(x))
    for c, label in zip(given["c"], given["y"], strict=True):  # both of one row
        assert label in y[(known == c).flatten(1).all(dim=1)]


# --- The field of masked pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_masked_pictures_show_hidden_pixels_in_one_colour(channels):
    x = pictures(2, channels, 4, 4)
    c = of(Half(seen="left"), x)
    field = Masked((channels + 1, 4, 4))
    cells = field.cells(c)
    assert cells.dtype == torch.uint8 and cells.shape == (2, 3, 4, 4)
    assert torch.equal(cells[..., :2], to_uint8(x[..., :2]).expand(2, 3, 4, 2))
    assert torch.equal(cells[..., 2:], torch.tensor(HIDDEN, dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 2))
    assert torch.equal(field.mirror(c), of(Half(seen="right"), x.flip(-1)))


def test_masked_pictures_say_how_much_is_seen():
    parts = [Half(), Quadrants(seen=1), Quadrants(seen=3)]
    c = torch.cat([of(part, pictures(1, 1, 4, 4)) for part in parts])
    assert Masked((2, 4, 4)).text(c) == ["50 % seen", "25 % seen", "75 % seen"]


def test_random_masked_pictures():
    values = Masked((4, 16, 16)).random(50, rng())
    x, seen = values[:, :3], values[:, 3:]
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    assert not (x * (1 - seen)).any()
    assert_close(seen.mean().item(), 0.5, rtol=0, atol=4 * 0.5 / math.sqrt(50 * 256))
    shown = x[seen.expand_as(x) == 1]
    assert -1 <= float(shown.min()) < -0.99 and 0.99 < float(shown.max()) <= 1
