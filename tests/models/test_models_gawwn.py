"""GAWWN: pictures with things in boxes or at keypoints, and a generator of missing keypoints."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from genlab.batch import Batch
from genlab.cli.sample import conditions
from genlab.errors import UserError
from genlab.losses.adversarial import NonSaturating
from genlab.networks.gawwn import (
    BoxDiscriminator,
    BoxGenerator,
    KeypointDiscriminator,
    KeypointGenerator,
    PointsDiscriminator,
    PointsGenerator,
)
from genlab.runs.running import build
from tests.models.helpers import Batches, assert_moves, config, fit

pytestmark = pytest.mark.usefixtures("one_thread")
COMMON = ["data.image_size=16", "data.num_train=64", "model.latent_dim=4", "ema.decay=0", "model.generator.width=4"]
BOXES = ["model=gawwn", *COMMON]
KEYPOINTS = ["model=gawwn_keypoints", *COMMON]
PLAYERS = ["discriminator", "generator", "points_discriminator", "points_generator"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float64)


ONE = [[0, 0.25, 0.25, 0.5, 0.5], [-1, 0, 0, 0, 0]]
TWO = [[0, 0.0, 0.0, 0.5, 0.5], [2, 0.5, 0.5, 0.5, 0.5]]


# --- Boxes ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def box_networks():
    torch.manual_seed(0)
    generator = BoxGenerator(4, [3, 16, 16], 6, 3, width=4).double().eval()
    return generator, BoxDiscriminator([3, 16, 16], 6, 3, width=4).double().eval()


def test_the_local_path_draws_in_boxes_alone(box_networks):
    """Exactly nothing outside of them, and nothing for a box that is not there."""
    generator, _ = box_networks
    z, t = draw(2, 4), draw(2, 6, seed=1)
    _, local = generator.paths(z, t, boxes(ONE, TWO))
    inside = torch.zeros(2, 8, 8, dtype=torch.bool)
    inside[0, 2:6, 2:6] = inside[1, :4, :4] = inside[1, 4:, 4:] = True
    assert local.shape == (2, 8, 8, 8)
    assert (local.abs().amax(dim=1) > 0).equal(inside)


def test_boxes_in_another_order_are_the_same_picture(box_networks):
    generator, discriminator = box_networks
    z, t, x = draw(1, 4), draw(1, 6, seed=1), draw(1, 3, 16, 16, seed=2)
    here, there = boxes(TWO), boxes(TWO[::-1])
    assert_close(generator(z, t, here), generator(z, t, there))
    assert_close(discriminator(x, t, here), discriminator(x, t, there))


def test_the_discriminator_reads_places_by_cuts_alone(box_networks):
    """Of a constant map a cut is the same wherever it is; a missing box counts for nothing."""
    _, discriminator = box_networks
    h = torch.full((2, 8, 8, 8), 0.3, dtype=torch.float64)
    moved = boxes(ONE, [[0, 0.5, 0.0, 0.3, 0.9], [-1, 0, 0, 0, 0]])
    local = discriminator.local(h, moved)
    assert_close(local[0], local[1])
    padded = boxes([*ONE, [-1, 0, 0, 0, 0]], [*ONE, [-1, 0.5, 0.5, 0.2, 0.2]])
    assert_close(discriminator.local(draw(1, 8, 8, 8).expand(2, -1, -1, -1), padded)[0],
                 discriminator.local(draw(1, 8, 8, 8), boxes(ONE))[0])  # fmt: skip
    x = draw(1, 3, 16, 16, seed=2).expand(2, -1, -1, -1)
    logits = discriminator(x, draw(1, 6).expand(2, -1), moved)
    assert (logits[0] - logits[1]).abs() > 1e-9


def test_no_box_at_all_is_a_picture_too(box_networks):
    generator, discriminator = box_networks
    none = torch.tensor([[[-1.0, 0, 0, 0, 0]] * 2], dtype=torch.float64)
    x = generator(draw(1, 4), draw(1, 6), none)
    assert x.isfinite().all() and discriminator(x, draw(1, 6), none).isfinite().all()


def test_each_update_moves_its_own_player_alone(tmp_path):
    assert_moves(BOXES, PLAYERS[:2] * 2, 2, tmp_path / "boxes")
    assert_moves(KEYPOINTS, PLAYERS * 2, 2, tmp_path / "keypoints")


@pytest.mark.parametrize(("overrides", "place"), [(BOXES, "boxes"), (KEYPOINTS, "keypoints")])
def test_captions_are_mismatched_and_places_never(overrides, place, tmp_path):
    calls, batches = [], Batches()

    def listen(model):
        model.discriminator.register_forward_hook(lambda _, args, out: calls.append(args))

    fit(overrides, 1, tmp_path, [batches], listen)
    (batch,) = batches.seen
    assert len(calls) == 4
    assert all(torch.equal(told[place], batch[place]) for _, told in calls)
    own = batch["caption"].values
    assert [torch.equal(told["caption"].values, own) for _, told in calls] == [True, True, False, True]
    assert [torch.equal(x, batch.x) for x, _ in calls] == [True, False, True, False]


def test_conditions_are_typed(tmp_path):
    model = fit(BOXES, 1, tmp_path).model
    fields = model.spec.fields
    caption = fields["caption"].parse("a large red ellipse in the middle", 2)
    places = fields["boxes"].parse("[[ellipse, 0.25, 0.25, 0.5, 0.5]];[[ellipse, 0, 0, 0.4, 0.4]]", 2)
    x = model.sample(2, given=Batch({"caption": caption, "boxes": places}), rng=rng())
    assert x.shape == (2, 3, 16, 16) and not torch.equal(x[0], x[1])
    with pytest.raises(UserError, match="boxes"):
        model.sample(2, given=Batch({"caption": caption}))


@pytest.mark.parametrize("given", ["[caption]", "[boxes]", "[caption,boxes,keypoints]"])
def test_one_column_says_where(given):
    with pytest.raises(UserError, match="^conditioning=places tells one column that says where things are"):
        build(config([*BOXES, f"model.given={given}", "model.exchanged=[]"]))


def test_networks_that_place_nothing_are_refused():
    with pytest.raises(UserError, match="conditioning=places has no way to tell model.generator"):
        build(config(["model=gan_cls", "model.given=[caption,boxes]", "conditioning=places"]))


# --- Keypoints --------------------------------------------------------------------------------------------------------


def test_gates_are_open_near_keypoints_alone():
    """No keypoint, no local path; the global path draws nevertheless."""
    torch.manual_seed(0)
    generator = KeypointGenerator(4, [3, 16, 16], 6, 5, width=4).double().eval()
    discriminator = KeypointDiscriminator([3, 16, 16], 6, 5, width=4).double().eval()
    points = torch.zeros(2, 5, 3, dtype=torch.float64)
    points[1, 2] = torch.tensor([0.3, 0.6, 1.0])
    _, local, maps = generator.paths(draw(2, 4), draw(2, 6), points)
    assert local[0].abs().max() == 0 and maps[0].abs().max() == 0
    near = local[1].abs().amax(dim=0)
    assert near[4, 2] > 0 and near[4, 2] > 100 * near[0, 7]
    assert maps[1, [0, 1, 3, 4]].abs().max() == 0 and maps[1, 2].max() > 0.5
    x = generator(draw(2, 4), draw(2, 6), points)
    assert x.shape == (2, 3, 16, 16) and discriminator(x, draw(2, 6), points).shape == (2,)


@pytest.fixture
def points_network():
    torch.manual_seed(0)
    return PointsGenerator(4, 6, 5, hidden=[16]).double()


def test_given_keypoints_come_back_bit_for_bit(points_network):
    """Whatever else is drawn, and unseen ones that are given stay unseen."""
    places = torch.rand(3, 5, 3, generator=rng(), dtype=torch.float64)
    places[:, 1] = 0
    given = torch.rand(3, 5, generator=rng(1)) < 0.5
    given[:, 1] = True
    hidden = torch.where(given.unsqueeze(2), places, -1)
    drawn = points_network(draw(3, 4), draw(3, 6), hidden)
    assert torch.equal(drawn[given], places[given])
    others = drawn[~given]
    assert ((others > 0) & (others < 1)).all()
    assert not torch.equal(points_network(draw(3, 4, seed=9), draw(3, 6), hidden)[~given], others)
    assert torch.equal(points_network(draw(3, 4), draw(3, 6), places), places)


def test_keypoints_that_are_hidden_are_not_read(points_network):
    """What stands in the place of a hidden keypoint changes nothing."""
    hidden = torch.full((2, 5, 3), -1.0, dtype=torch.float64)
    hidden[:, 0] = torch.tensor([0.2, 0.4, 1.0])
    one = points_network(draw(2, 4), draw(2, 6), hidden)
    hidden[:, 3, :2] = 0.7
    assert torch.equal(points_network(draw(2, 4), draw(2, 6), hidden), one)
    hidden[:, 0, 0] = 0.3
    assert not torch.equal(points_network(draw(2, 4), draw(2, 6), hidden)[:, 1], one[:, 1])


def test_the_second_game_by_hand(tmp_path):
    """Plain real and fake, no mismatched pairs; true keypoints reach the fakes only where they are given."""
    calls, batches = [], Batches()

    def listen(model):
        for name in ("points_generator", "points_discriminator"):
            network = model.get_submodule(name)
            network.register_forward_hook(lambda _, args, out, name=name: calls.append((name, *args, out)))

    model = fit([*KEYPOINTS, "model.kept=0.5"], 1, tmp_path, [batches], listen).model
    (batch,) = batches.seen
    kinds = ["points_generator", *["points_discriminator"] * 2, "points_generator", "points_discriminator"]
    assert [name for name, *_ in calls] == kinds
    (_, _, hidden, fake), (_, real, _, right), (_, shown, _, wrong), (_, _, also, _), (_, again, _, of_new) = calls
    assert torch.equal(real, batch["keypoints"]) and torch.equal(fake, shown) and not torch.equal(shown, again)
    assert torch.equal(hidden["keypoints"], also["keypoints"])
    given = hidden.tensor("keypoints")[:, :, 2] >= 0
    assert 0.2 < given.float().mean() < 0.8
    assert torch.equal(hidden.tensor("keypoints")[given], batch.tensor("keypoints")[given])
    assert (hidden.tensor("keypoints")[~given] == -1).all()
    recorded = model.watching.recorded
    assert_close(recorded["dk_loss"], NonSaturating().discriminator(right, wrong).detach())
    assert_close(recorded["gk_loss"], nn.functional.softplus(-of_new).mean().detach())


def test_the_judge_of_keypoints_sees_no_true_ones():
    torch.manual_seed(0)
    network = PointsDiscriminator(6, 5, hidden=[8]).double()
    x, t = torch.rand(2, 5, 3, dtype=torch.float64), draw(2, 6)
    assert torch.equal(network(x, t, torch.zeros(2, 5, 3)), network(x, t, torch.ones(2, 5, 3)))


def test_keypoints_that_are_not_given_are_drawn(tmp_path):
    model = fit(KEYPOINTS, 1, tmp_path).model
    fields = model.spec.fields
    caption = fields["caption"].parse("a large red ellipse in the middle", 3)
    assert model.fills == ("keypoints",)
    x = model.sample(3, given=Batch({"caption": caption}), rng=rng())
    assert x.shape == (3, 3, 16, 16) and torch.equal(x, model.sample(3, given=Batch({"caption": caption}), rng=rng()))
    places = fields["keypoints"].parse("{centre 1: [0.5, 0.5]}", 3)
    given = Batch({"caption": caption, "keypoints": places})
    assert torch.equal(model.sample(3, given=given, rng=rng()), model.decode(model.noise(3, rng()), given))


def test_columns_that_a_model_fills_are_not_taken_from_rows(tmp_path):
    """Typed ones are; others of the data mean nothing to it."""
    model = fit(KEYPOINTS, 1, tmp_path).model
    typed = {"caption": "a large red ellipse in the middle"}
    assert list(conditions(model, typed, 2, 0, None, ()).columns) == ["caption"]
    both = conditions(model, {**typed, "keypoints": "{centre 1: [0.5, 0.5]}"}, 2, 0, None, ())
    assert list(both.columns) == ["caption", "keypoints"] and both.tensor("keypoints")[:, 0, 2].tolist() == [1, 1]
    with pytest.raises(UserError, match="is given caption, keypoints, so boxes means nothing to it"):
        conditions(model, {**typed, "boxes": "[]"}, 2, 0, None, ())
