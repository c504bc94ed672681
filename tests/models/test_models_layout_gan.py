"""Captions to boxes, boxes to masks, maps to pictures: densities, edges, and who is trained on what."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from genlab.batch import Batch
from genlab.networks.layout import BoxNetwork, MaskGenerator, filled_boxes, layout_of, masks_of
from tests.models.helpers import Batches, assert_moves, fit

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["model=layout_gan", "data.image_size=16", "data.num_train=64", "model.latent_dim=4", "ema.decay=0"]
SMALL += ["model.boxes.state_dim=8", "model.masks.width=4", "model.painter.width=4", "model.discriminator.width=4"]
SMALL += ["model.instance_discriminator.width=4", "model.global_discriminator.width=4"]
PLAYERS = ["boxes", "mask_discriminator", "masks", "discriminator", "painter"]
NONE = [-1.0, 0, 0, 0, 0]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


BOXES = torch.tensor(
    [[[0, 0.1, 0.2, 0.3, 0.4], [2, 0.5, 0.25, 0.5, 0.5], NONE], [[1, 0.0, 0.0, 0.5, 0.5], NONE, NONE],
     [[1, 0.25, 0.5, 0.25, 0.25], [0, 0.1, 0.1, 0.2, 0.2], [2, 0.5, 0.0, 0.4, 0.3]]],
    dtype=torch.float64,
)  # fmt: skip


def network(components=1, zero=True):
    torch.manual_seed(0)
    made = BoxNetwork(3, 6, components).double()
    if zero:
        for head in (made.label, made.place, made.size):
            torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    return made


# --- Boxes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [1, 5])
def test_nats_of_heads_that_say_nothing(components):
    """log 4 for each label with its end, log 2 pi + (x^2 + y^2) / 2 for each place, and likewise each size."""
    labels, places = network(components).nats(draw(3, 6), BOXES)
    assert_close(labels, math.log(4) * torch.tensor([3.0, 2, 3], dtype=torch.float64))  # the last row needs no end
    there = BOXES[:, :, 0] >= 0
    middle, sides = 2 * BOXES[:, :, 1:3] + BOXES[:, :, 3:] - 1, 2 * BOXES[:, :, 3:] - 1
    terms = 2 * math.log(2 * math.pi) + (middle.square() + sides.square()).sum(dim=2) / 2
    assert_close(places, (terms * there).sum(dim=1))


def test_one_component_is_a_normal():
    """By hand from the heads' outputs; each size is told its own true place."""
    made, start = network(zero=False), draw(3, 6)
    first = BOXES[:, :1]
    h, _ = made.lstm(torch.zeros(3, 7).double(), (start, torch.zeros_like(start)))
    told = torch.nn.functional.one_hot(first[:, 0, 0].long(), 3).double()
    middle, sides = 2 * first[:, 0, 1:3] + first[:, 0, 3:] - 1, 2 * first[:, 0, 3:] - 1

    def log_normal(values, numbers):
        _, mx, my, sx, sy, r = numbers.unbind(dim=1)
        sx, sy, rho = sx.exp(), sy.exp(), 0.99 * r.tanh()
        covariance = torch.stack([torch.stack([sx**2, rho * sx * sy], 1), torch.stack([rho * sx * sy, sy**2], 1)], 1)
        return MultivariateNormal(torch.stack([mx, my], dim=1), covariance).log_prob(values)

    expected = log_normal(middle, made.place(torch.cat([h, told], dim=1)))
    expected = expected + log_normal(sides, made.size(torch.cat([h, told, middle], dim=1)))
    labels, places = made.nats(start, first)
    assert_close(places, -expected)
    assert_close(labels, -made.label(h).log_softmax(dim=1).gather(1, first[:, :, 0].long())[:, 0])


def test_what_follows_the_last_box_changes_nothing():
    made, start = network(5, zero=False), draw(3, 6)
    other = BOXES.clone()
    other[1, 2, 1:] = 0.7
    for a, b in zip(made.nats(start, BOXES), made.nats(start, other), strict=True):
        assert_close(a, b, rtol=0, atol=0)
    more = torch.cat([BOXES, torch.tensor(NONE).double().expand(3, 1, 5)], dim=1)
    (labels, places), (with_end, same) = made.nats(start, BOXES), made.nats(start, more)
    assert_close(places, same)
    assert_close(labels[:2], with_end[:2])
    assert with_end[2] > labels[2]  # of three boxes, it is now said that there is no fourth


def test_boxes_are_drawn_from_what_is_said():
    """The log density of draws, against their frequency: labels and the mean place of the first box."""
    made = network(5, zero=False)
    n = 20_000
    start = draw(1, 6).expand(n, -1)
    boxes = made.draw(start, torch.rand(n, 3, 3, generator=rng(), dtype=torch.float64), draw(n, 3, 4))
    h, _ = made.lstm(torch.zeros(1, 7).double(), (start[:1], torch.zeros(1, 6).double()))
    p = made.label(h).softmax(dim=1)[0]
    share = torch.stack([(boxes[:, 0, 0] == kind).double().mean() for kind in (0, 1, 2, -1)])
    assert_close(share, p, rtol=0, atol=0.02)
    there = boxes[:, :, 0] >= 0
    assert (there[:, 1:] <= there[:, :-1]).all()  # none follows the end
    corner, sides = boxes[there][:, 1:3], boxes[there][:, 3:]
    assert (corner >= 0).all() and (sides > 0).all() and (corner + sides <= 1 + 1e-12).all()
    assert (boxes[~there] == torch.tensor(NONE).double()).all()


def test_a_box_network_learns_boxes():
    """Three captions with their own boxes: labels are right, and edges near on average."""
    torch.manual_seed(0)
    made, states = BoxNetwork(3, 16, 2).double(), torch.eye(3, 16).double()
    optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        sum(part.mean() for part in made.nats(states, BOXES)).backward()
        optimizer.step()
    drawn = made.draw(states, torch.rand(3, 3, 3, generator=rng(), dtype=torch.float64), draw(3, 3, 4), 0.1)
    assert torch.equal(drawn[:, :, 0], BOXES[:, :, 0])
    assert (drawn - BOXES)[:, :, 1:].abs().mean() < 0.06


# --- Masks and maps ---------------------------------------------------------------------------------------------------


def test_masks_are_zero_outside_of_their_boxes():
    torch.manual_seed(0)
    made = MaskGenerator(4, 3, [3, 16, 16], width=4).double()
    masks = made(draw(3, 4), BOXES)
    assert masks.shape == (3, 3, 16, 16)
    within = filled_boxes(BOXES, 3, 16, 16).amax(dim=2) > 0
    assert (masks[~within] == 0).all() and ((masks[within] > 0) & (masks[within] < 1)).all()
    assert not masks[1, 1:].any()


def test_a_mask_depends_on_boxes_before_and_behind_it():
    """By the LSTM of each direction; and not on those of other pictures."""
    torch.manual_seed(0)
    made = MaskGenerator(4, 3, [3, 16, 16], width=4).double().eval()
    z, other = draw(3, 4), BOXES.clone()
    other[2, 1, 1] = 0.6
    one, two = made(z, BOXES), made(z, other)
    assert_close(one[:2], two[:2])
    assert (one[2, 0] - two[2, 0]).abs().max() > 1e-9 and (one[2, 2] - two[2, 2]).abs().max() > 1e-9


def test_maps_and_masks_of_each_other():
    """A map of filled boxes gives back the masks, and these the map; the union is the largest at each pixel."""
    masks = filled_boxes(BOXES, 3, 16, 16).amax(dim=2)
    masks[2, 1] *= 1 - masks[2, 0]
    layout = layout_of(masks, BOXES)
    assert layout.dtype == torch.int64 and set(layout.unique().tolist()) == {0, 1, 2, 3}
    assert torch.equal(layout > 0, masks.amax(dim=1) > 0)
    first = masks_of(layout, BOXES)[1, 0]
    assert torch.equal(first, masks[1, 0]) and layout[1, 0, 0] == 2
    assert not layout_of(0.5 * masks, BOXES).any()


# --- The model --------------------------------------------------------------------------------------------------------


def test_each_update_moves_its_own_player_alone(tmp_path):
    assert_moves(SMALL, PLAYERS * 2, 2, tmp_path)


def test_every_stage_is_trained_on_true_columns(tmp_path):
    calls, batches = [], Batches()

    def listen(model):
        for name in ("reader", "masks", "painter", "discriminator"):
            network = model.get_submodule(name)
            network.register_forward_hook(lambda _, args, out, name=name: calls.append((name, *args, out)))

    model = fit(SMALL, 1, tmp_path, [batches], listen).model
    (batch,) = batches.seen
    names = ["reader", "masks", "masks", "painter", *["discriminator"] * 3, "painter", "discriminator"]
    assert [name for name, *_ in calls] == names
    assert all(torch.equal(boxes, batch["boxes"]) for _, _, boxes, _ in calls[1:3])
    kinds = torch.nn.functional.one_hot(batch["layout"], 4).movedim(3, 1).float()
    painted, judged = [calls[i] for i in (3, 7)], [calls[i] for i in (4, 5, 6, 8)]
    assert all(torch.equal(maps[:, :4], kinds) for _, maps, _, _ in painted)
    assert all(torch.equal(maps[:, 3:], kinds) for _, maps, _, _ in judged)
    assert [torch.equal(maps[:, :3], batch.x) for _, maps, _, _ in judged] == [True, False, True, False]
    own = batch["caption"].values
    assert [torch.equal(t["caption"].values, own) for *_, t, _ in judged] == [True, True, False, True]
    union, logits = model.mask_logits(masks_of(batch["layout"], batch["boxes"]), batch["boxes"])[::-1]
    assert union.shape == (8,) and logits.shape == (16,)
    assert (logits[(batch["boxes"][:, :, 0] < 0).flatten()] == 0).all()


def test_samples_go_through_all_stages(tmp_path):
    """Boxes and maps that are given stay as they are; those that are not are drawn."""
    model = fit(SMALL, 1, tmp_path).model
    fields = model.spec.fields
    told = Batch({"caption": fields["caption"].parse("a large red ellipse in the middle", 4)})
    made = model.stages(4, told, rng())
    assert list(made.columns) == ["caption", "boxes", "layout", "x"]
    assert made["boxes"].shape == (4, 2, 5) and made["layout"].shape == (4, 16, 16) and made.x.shape == (4, 3, 16, 16)
    assert torch.equal(model.sample(4, given=told, rng=rng()), made.x)
    fields["boxes"].text(made["boxes"]), fields["layout"].cells(made["layout"])
    boxes = fields["boxes"].parse("[[ellipse, 0.25, 0.25, 0.5, 0.5]]", 4)
    with_boxes = model.stages(4, told.with_column("boxes", boxes), rng())
    assert torch.equal(with_boxes["boxes"], boxes)
    outside = (with_boxes["layout"] > 0) & ~(filled_boxes(boxes, 3, 16, 16).amax(dim=(1, 2)) > 0)
    assert not outside.any()
    layout = torch.zeros(4, 16, 16, dtype=torch.int64)
    with_layout = model.stages(4, told.with_column("layout", layout), rng())
    assert torch.equal(with_layout["layout"], layout) and "boxes" not in with_layout
