"""Shapes: areas, symmetries and what each factor does; batches in which one factor alone varies."""

import math

import pytest
import torch

from genlab.batch import Batch
from genlab.config.composition import compose
from genlab.data.shapes import CLASSES, FACTORS, RADII, REACH, Shapes, coverage, render
from genlab.data.spec import DataSpec
from genlab.errors import UserError
from genlab.fields.image import from_uint8

AREA = {"ellipse": 0.6 * math.pi, "rectangle": 4 * 0.6 / 1.36, "triangle": 1.08}  # in squares of the radius


def drawn(label="ellipse", size=(64, 64), **factors):
    """One picture as float64 [H, W] in [0, 255]."""
    factor = torch.tensor([[factors.get(name, 0.0) for name in FACTORS]])
    return render(factor, torch.tensor([CLASSES.index(label)]), size)[0, 0].double()


def covered(label="ellipse", size=(64, 64), **factors):
    """What the shape covers of each pixel, [H, W]."""
    factor = torch.tensor([[factors.get(name, 0.0) for name in FACTORS]])
    return coverage(factor, torch.tensor([CLASSES.index(label)]), size)[0]


def centre(share):
    """Of what is covered of H x W pixels, across and up, in [-1, 1]."""
    h, w = share.shape
    across, up = (torch.arange(n).double().add(0.5).mul(2 / n).sub(1) for n in (w, h))
    places = (share.sum(dim=0) * across).sum(), -(share.sum(dim=1) * up).sum()
    return [(place / share.sum()).item() for place in places]


def grouped(**arguments):
    return Shapes(**{"batch_size": 8, "image_size": 8, "num_train": 40, "grouped": True, "seed": 3, **arguments})


def fields(batch):
    return list(batch.columns.values())


def assert_same(a, b):
    for one, other in zip(fields(a), fields(b), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------------- the renderer


@pytest.mark.parametrize("label", CLASSES)
@pytest.mark.parametrize("scale", [-1.0, 1.0])
def test_areas_are_those_of_the_geometry(label, scale):
    radius = RADII[0] if scale < 0 else RADII[1]
    for rotation in (-0.9, 0.0, 0.7):
        share = covered(label, scale=scale, rotation=rotation)
        assert share.mean().item() * 4 == pytest.approx(AREA[label] * radius**2, rel=0.02)


@pytest.mark.parametrize("label", CLASSES)
def test_each_factor_does_what_its_name_says_and_the_opposite_mirrors_it(label):
    still = drawn(label)
    for name, place in (("x", 0), ("y", 1)):
        moved = centre(covered(label, **{name: 0.5}))[place] - centre(covered(label))[place]
        assert moved == pytest.approx(0.5 * REACH, abs=0.002)
    assert torch.equal(drawn(label, rotation=0.6), drawn(label, rotation=-0.6).flip(0))  # all mirror in the x-axis
    assert not torch.equal(drawn(label, rotation=0.6), drawn(label, rotation=-0.6))
    right, left = drawn(label, light=0.8), drawn(label, light=-0.8)
    assert right[:, 32:].sum() > 1.2 * left[:, 32:].sum() and left[:, :32].sum() > 1.2 * right[:, :32].sum()
    assert torch.equal(right > 0, left > 0)  # it is dark nowhere
    assert (still - drawn(label, scale=0.8)).abs().max() > 100


def test_symmetric_shapes_are_symmetric_to_the_pixel_and_the_triangle_is_not():
    for label in ("ellipse", "rectangle"):
        x = drawn(label)
        assert torch.equal(x, x.flip(1)) and torch.equal(x, x.flip(0))
        assert torch.equal(drawn(label, light=0.5), drawn(label, light=-0.5).flip(1))
    assert not torch.equal(drawn("triangle"), drawn("triangle").flip(1))


def test_edges_are_smooth_and_nothing_is_cut_off():
    ends = torch.tensor([[x, y, r, 1.0, 0.0] for x in (-1, 1) for y in (-1, 1) for r in (-1.0, 0.0, 1.0)])
    for label in range(len(CLASSES)):
        x = render(ends, torch.full((len(ends),), label), (64, 64))
        rim = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]])
        assert rim.max() < 16 and x.amax() > 200  # of 255: the tip of a corner
    a, b = drawn(x=0.0), drawn(x=0.001)  # a thirtieth of a thousandth of a picture: seen, hardly
    assert 0 < (a - b).abs().max() < 12


def test_pictures_need_not_be_square():
    x = drawn("rectangle", (24, 48), x=1.0, y=-1.0, scale=-1.0)
    assert x.shape == (24, 48) and x[12:, 24:].sum() > 0.9 * x.sum() > 0
    assert torch.equal(drawn(size=(16, 24))[:, 4:-4], drawn(size=(16, 16)))


# ----------------------------------------------------------------------------------------------------- the data module


def test_splits_are_independent_pictures_that_no_seed_moves():
    a, b = (Shapes(batch_size=8, image_size=8, num_train=60, seed=seed) for seed in (0, 1))
    assert a.describe() == b.describe() and a.describe()["sizes"] == {"train": 60, "val": 1000, "test": 2000}
    assert not torch.equal(a.stream().batch(0).x, b.stream().batch(0).x)
    batch = next(iter(a.batches("test", batch_size=2000)))
    assert "group" not in batch and batch["factor"].shape == (2000, 5)
    assert batch["factor"].abs().max() <= 1 and batch["factor"].mean(dim=0).abs().max() < 0.05
    joint = torch.corrcoef(torch.cat([batch["factor"], batch.y[:, None].float()], dim=1).T)
    assert (joint - torch.eye(6)).abs().max() < 0.08
    torch.testing.assert_close(batch.x, from_uint8(render(batch["factor"], batch.y, (8, 8))), rtol=0, atol=0)


def test_streams_and_subsets_keep_factors_beside_their_pictures():
    data = Shapes(batch_size=8, image_size=8, num_train=60, limit_train=20)
    assert data.spec.factor_names == FACTORS and len(data.split("train")) == 20
    for batch in (data.stream().batch(3), next(data.first_batches()), data.stream(rank=1, world_size=2).batch(0)):
        assert "group" not in batch
        torch.testing.assert_close(batch.x, from_uint8(render(batch["factor"], batch.y, (8, 8))), rtol=0, atol=0)
    assert Shapes(batch_size=8, image_size=8, labels=False).stream().batch(0).y is None


def test_a_spec_with_factors_survives_plain_containers():
    spec = DataSpec.of("image", (1, 8, 8), factor_names=("x",))
    assert DataSpec.from_dict(spec.to_dict()) == spec and spec.factor_names == ("x",)
    assert spec.with_field("factor", None).factor_names is None


# ----------------------------------------------------------------------------------------------------- grouped batches


def test_exactly_one_factor_varies_and_the_batch_says_which():
    seen = []
    for i in range(60):
        batch = grouped().stream().batch(i)
        varies = [*(batch["factor"].std(dim=0) > 0).tolist(), len(batch.y.unique()) > 1]
        if batch["group"][0] < 5 or any(varies):  # eight draws of one class may happen
            assert [k for k, moves in enumerate(varies) if moves] == [int(batch["group"][0])]
        torch.testing.assert_close(batch.x, from_uint8(render(batch["factor"], batch.y, (8, 8))), rtol=0, atol=0)
        seen.append(int(batch["group"][0]))
    assert set(seen) == set(range(6))
    assert len({float(grouped().stream().batch(i)["factor"][0].sum()) for i in range(5)}) == 5  # fresh values


def test_the_ratio_weighs_the_factors():
    stream = grouped(ratio={"light": 3, "shape": 1}).stream()
    groups = torch.stack([stream.batch(i)["group"] for i in range(200)])
    assert (
        set(groups[:, 0].tolist()) == {4, 5}
        and (groups == groups[:, :1]).all()
        and 120 < (groups[:, 0] == 4).sum() < 180
    )


def test_a_grouped_batch_is_a_function_of_its_number():
    used, fresh = grouped(binarize="dynamic").stream(), grouped(binarize="dynamic").stream(start=7)
    for i in (30, 2):
        used.batch(i)
    assert_same(used.batch(7), next(iter(fresh)))
    assert not torch.equal(used.batch(8).x, grouped(binarize="dynamic", seed=4).stream().batch(8).x)
    assert set(used.batch(7).x.unique().tolist()) <= {-1.0, 1.0}


def test_two_processes_share_each_batch_and_its_group():
    data = grouped()
    data.batches_per_step = 2
    for i in range(4):
        whole, halves = data.stream().batch(i), [data.stream(rank=r, world_size=2).batch(i) for r in range(2)]
        assert all(torch.equal(half["group"], whole["group"][:8]) and len(half) == 8 for half in halves)
        for name in ("x", "factor", "y"):
            a, b = (half[name] for half in halves)
            torch.testing.assert_close(whole[name], torch.cat([a[:4], b[:4], a[4:], b[4:]]), rtol=0, atol=0)


def test_a_grouped_batch_moves_whole():
    batch = grouped().stream().batch(0)
    assert batch.to("cpu") is batch
    moved = batch.to("meta")
    assert isinstance(moved, Batch) and moved["group"].device.type == moved["factor"].device.type == "meta"


def test_no_global_stream_is_moved():
    before = torch.get_rng_state()
    grouped().stream().batch(0)
    Shapes(batch_size=8, image_size=8, num_train=5).split("val")
    assert torch.equal(before, torch.get_rng_state())


# ----------------------------------------------------------------------------------------------- configs and mistakes


def test_grouped_follows_the_model_and_can_be_chosen():
    assert compose(["model=dc_ign"])["data"]["grouped"] is True
    assert compose(["model=dc_ign", "model.clamp=false"])["data"]["grouped"] is False
    assert compose(["model=vae", "data=shapes"])["data"]["grouped"] is False
    assert compose(["model=vae", "data=shapes", "data.grouped=true"])["data"]["grouped"] is True


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_train": 0}, "data.num_train"),
        ({"channels": 3}, "data.channels=1"),
        ({"grouped": "yes"}, "data.grouped"),
        ({"ratio": {"azimuth": 1}}, "data.ratio"),
        ({"ratio": {"x": -1}}, "data.ratio"),
        ({"ratio": {"x": 0}}, "data.ratio"),
        ({"ratio": {"x": float("nan")}}, "data.ratio"),
        ({"ratio": {"x": "often"}}, "data.ratio"),
    ],
)
def test_mistakes_are_answered(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        Shapes(**{"batch_size": 8, **arguments})
