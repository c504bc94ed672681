"""Scenes: captions, boxes, keypoints and maps say what the pictures show; videos, styles, and the cache."""

import colorsys
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from genlab.batch import Seq
from genlab.config.composition import compose
from genlab.config.instantiate import build_data
from genlab.data import scenes
from genlab.data.objects import (
    BACKGROUND,
    COLOURS,
    MIDDLE,
    OVERLAP,
    SPEED,
    STYLES,
    Objects,
    draw_objects,
    move_objects,
)
from genlab.data.scenes import ATTRIBUTES, CLASSES, Scenes, boxes, captions, column_facts, keypoints
from genlab.data.stream import check_mirrors
from genlab.errors import UserError

NOUN = rf"a (small|large) ({'|'.join(COLOURS)}) ({'|'.join(CLASSES)})"
PLACE = "on the (left|right)|at the (top|bottom)|in the (middle)"
RELATION = "left of|right of|above|below"
COLUMNS = {"factor", "attributes", "caption", "boxes", "keypoints", "layout", "mask"}


def made(**arguments):
    return Scenes(**{"batch_size": 8, "num_train": 300, "objects": 3, **arguments})


def rows(data, name, split="train", n=300):
    """The first values of a column, as they are stored."""
    return data.split(split).columns[name].gather(torch.arange(n))


def told(data, n=300):
    """The captions in words."""
    return data.spec.fields["caption"].text(rows(data, "caption", n=n))


def parsed(caption):
    """Nouns (size, colour, shape), place of the first, relations of each to the next."""
    whole = re.fullmatch(rf"{NOUN} (?:{PLACE})(?: (?:{RELATION}) {NOUN})*", caption)
    assert whole, caption
    nouns = re.findall(NOUN, caption)
    place = next(word for word in re.search(PLACE, caption).groups() if word)
    rest = re.sub(PLACE, "", caption, count=1)
    return nouns, place, re.findall(rf"(?:{CLASSES[0]}|{CLASSES[1]}|{CLASSES[2]}) +({RELATION}) a", rest)


def objects(*described, span=(1.0, 1.0)):
    """One picture of objects (shape, x, y, scale), the first behind, all red."""
    shape, x, y, scale = zip(*described, strict=True)
    k = len(shape)
    return Objects(
        centre=torch.tensor([list(zip(x, y, strict=True))], dtype=torch.float64),
        scale=torch.tensor([scale], dtype=torch.float64),
        shape=torch.tensor([[CLASSES.index(name) for name in shape]]),
        colour=torch.zeros(1, k, dtype=torch.int64),
        velocity=torch.zeros(1, k, 2, dtype=torch.float64),
        there=torch.ones(1, k, dtype=torch.bool),
        span=torch.tensor([[span]], dtype=torch.float64),
    )


def painted(pictures):
    """Where pictures [..., 3, H, W] are not background: [..., H, W]."""
    return (pictures != torch.tensor(BACKGROUND, dtype=torch.uint8)[:, None, None]).any(dim=-3)


def middles(height, width):
    """The middles of the pixels relative to the picture: x [W] and y [H]."""
    return (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height


# --------------------------------------------------------------------------------------- what the columns say in words


@pytest.mark.parametrize("size", [32, [24, 40]])
@pytest.mark.parametrize("most", [1, 3])
def test_captions_are_true(most, size):
    """Against factors and boxes, by a parser of the grammar that shares no code with it."""
    data = made(objects=most, image_size=size)
    height, width = data.size
    seen = set()
    for caption, factor, box in zip(
        told(data), rows(data, "factor").view(-1, most, 3).double(), rows(data, "boxes"), strict=True
    ):
        nouns, place, relations = parsed(caption)
        assert len(nouns) == int((box[:, 0] >= 0).sum()) == len(relations) + 1
        for (word, _, shape), (_, _, scale), kind in zip(nouns, factor, box[:, 0], strict=False):
            assert word == ("large" if scale > 0 else "small") and shape == CLASSES[int(kind)]
        (x, y), away = factor[0, :2].tolist(), factor[0, :2].abs()
        if place == "middle":
            assert away.max() <= MIDDLE
        else:
            assert away.max() > MIDDLE and (away[0] > away[1]) == (place in ("left", "right"))
            assert {"left": x < 0, "right": x > 0, "top": y > 0, "bottom": y < 0}[place]
        for relation, one, other in zip(relations, factor, factor[1:], strict=False):
            dx, dy = ((one - other)[:2] * torch.tensor([width, height])).tolist()
            assert (abs(dx) > abs(dy)) == (relation in ("left of", "right of"))
            assert {"left of": dx < 0, "right of": dx > 0, "above": dy > 0, "below": dy < 0}[relation]
        seen |= {place, *relations}
    assert len(seen) == (5 if most == 1 else 9)  # all places and relations occur


def test_a_caption_by_hand():
    field = made().spec.fields["caption"]
    pair = objects(("ellipse", -0.6, 0.3, 0.9), ("rectangle", -0.4, -0.5, -0.9))
    pair = replace(pair, colour=torch.tensor([[0, 2]]))
    said = "a large red ellipse on the left above a small blue rectangle"
    assert field.text(captions(pair).gather(torch.tensor([0]))) == [said]
    assert field.parse(said, 1).values[0].tolist() == captions(pair).flat.tolist()


def test_attributes_are_those_of_the_captions_and_the_longest_caption_is_allowed():
    data, alone = made(), made(objects=1)
    kinds = {word: n for n, word in enumerate(ATTRIBUTES)}
    for caption, row in zip(told(data), rows(data, "attributes").tolist(), strict=True):
        nouns, place, _ = parsed(caption)
        words = {word for noun in nouns for word in noun}
        assert {word for word in ATTRIBUTES[:11] if row[kinds[word]]} == words and row[kinds[place]] == 1
        assert 1 <= sum(row[11:]) <= len(nouns)
    for caption, row in zip(told(alone), rows(alone, "attributes").tolist(), strict=True):
        nouns, place, _ = parsed(caption)
        assert {word for word in ATTRIBUTES if row[kinds[word]]} == {*nouns[0], place}
    assert rows(data, "caption").length.max() == data.spec.fields["caption"].most == 19


def test_factors_are_the_middles_of_boxes_and_labels_the_first_shapes():
    data = made()
    factor, box, y = rows(data, "factor").view(-1, 3, 3), rows(data, "boxes"), rows(data, "y")
    there = box[..., 0] >= 0
    assert_close(box[..., 1] + box[..., 3] / 2, torch.where(there, (factor[..., 0] + 1) / 2, 0), rtol=0, atol=1e-6)
    assert_close(box[..., 2] + box[..., 4] / 2, torch.where(there, (1 - factor[..., 1]) / 2, 0), rtol=0, atol=1e-6)
    assert torch.equal(y.float(), box[:, 0, 0]) and factor[~there].abs().max() == 0 and factor.abs().max() <= 1
    assert data.spec.factor_names == ("x 1", "y 1", "scale 1", "x 2", "y 2", "scale 2", "x 3", "y 3", "scale 3")
    assert made(objects=1).spec.factor_names == ("x", "y", "scale")


def test_objects_are_ordered_whole_and_apart():
    data = made(num_train=2000)
    box, factor = rows(data, "boxes", n=2000), rows(data, "factor", n=2000).view(-1, 3, 3)
    there = box[..., 0] >= 0
    counts = torch.bincount(there.sum(dim=1)).tolist()
    assert counts[0] == 0 and all(abs(n - 2000 / 3) < 100 for n in counts[1:])
    for row, known in zip(factor.tolist(), there.tolist(), strict=True):
        found = [(scale < 0, x) for (x, _, scale), here in zip(row, known, strict=True) if here]
        assert found == sorted(found) and known == sorted(known, reverse=True)
    low, high = box[..., 1:3], box[..., 1:3] + box[..., 3:]
    assert low[there].min() > 1 / 33 and high[there].max() < 32 / 33  # a pixel of 32 remains
    for a, b in ((0, 1), (0, 2), (1, 2)):
        common = (torch.minimum(high[:, a], high[:, b]) - torch.maximum(low[:, a], low[:, b])).clamp_min(0).prod(dim=1)
        smaller = torch.minimum(box[:, a, 3:].prod(dim=1), box[:, b, 3:].prod(dim=1))
        assert (common <= OVERLAP * smaller + 1e-6).all() and common.max() > 0


# --------------------------------------------------------------------------------------- what the columns say of pixels


@pytest.mark.parametrize("shape", CLASSES)
@pytest.mark.parametrize("scale", [-1.0, 0.7])
def test_boxes_are_tight(shape, scale):
    """Of painted pixels, which may lie half a pixel outside."""
    one = objects((shape, 0.31, -0.22, scale), span=(1.5, 1.0))
    pictures, maps = draw_objects(one, (256, 384))
    _, left, top, width, height = boxes(one)[0, 0].tolist()
    rows, columns = (painted(pictures)[0].any(dim=dim).nonzero().squeeze(1) for dim in (1, 0))
    assert abs(columns[0] - 384 * left) < 1 and abs(columns[-1] + 1 - 384 * (left + width)) < 1
    assert abs(rows[0] - 256 * top) < 1 and abs(rows[-1] + 1 - 256 * (top + height)) < 1
    share = {"ellipse": torch.pi / 4, "rectangle": 1, "triangle": 0.5}[shape]
    assert (maps[0, 1] == 1).double().mean().item() == pytest.approx(share * width * height, rel=0.02)


def test_maps_agree_with_boxes_and_pictures():
    data = made()
    layout, mask, box = (rows(data, name) for name in ("layout", "mask", "boxes"))
    x, y = middles(*data.size)
    shapes = F.pad(box[..., 0].long() + 1, (1, 0))  # by number of the object
    assert torch.equal(layout.long(), shapes.gather(1, mask.long().flatten(1)).view_as(mask))
    assert painted(rows(data, "x"))[mask > 0].all()
    for k in range(3):
        left, top, width, height = (side[:, None] for side in box[:, k, 1:].unbind(dim=1))
        across, down = (left <= x) & (x <= left + width), (top <= y) & (y <= top + height)
        inside = down.unsqueeze(2) & across.unsqueeze(1)
        assert not ((mask == k + 1) & ~inside).any()
        assert torch.equal((mask == k + 1).flatten(1).any(dim=1), box[:, k, 0] >= 0)


@pytest.mark.parametrize("most", [1, 3])
def test_keypoints_lie_on_their_objects(most):
    """The pixel of a seen centre is the object's; at most two pixels lie between its ends and the nearest of these."""
    data = made(objects=most, image_size=64)
    points, mask = rows(data, "keypoints").view(-1, most, 5, 3), rows(data, "mask")
    for k in range(most):
        mine = (mask == k + 1).float().unsqueeze(1)
        near = F.max_pool2d(mine, 5, stride=1, padding=2)
        column, row = ((points[:, k, :, i] * 64).long().clamp(0, 63) for i in (0, 1))
        seen, picture = points[:, k, :, 2] > 0, torch.arange(300)[:, None]
        assert (
            near[picture, 0, row, column][seen].all()
            and mine[picture[:, 0], 0, row[:, 0], column[:, 0]][seen[:, 0]].all()
        )
        assert seen.float().mean() > 0.8 * (1 if most == 1 else 1 - k / 3)
        box = rows(data, "boxes")[:, k]
        ends = torch.stack([box[:, 2], box[:, 2] + box[:, 4], box[:, 1], box[:, 1] + box[:, 3]], dim=1)
        found = torch.stack([points[:, k, 1, 1], points[:, k, 2, 1], points[:, k, 3, 0], points[:, k, 4, 0]], dim=1)
        assert_close(found[seen[:, 1:]], ends[seen[:, 1:]], rtol=0, atol=1e-6)


def test_the_one_in_front_hides_points_and_pixels():
    """A large rectangle whose left end is behind an ellipse, and an ellipse whose right end is before it."""
    pair = objects(("rectangle", 0.1, 0.0, 1.0), ("ellipse", -0.4, 0.0, -1.0))
    points = keypoints(pair)[0].view(2, 5, 3)
    assert points[..., 2].tolist() == [[1, 1, 1, 0, 1], [1, 1, 1, 1, 1]] and points[0, 3].tolist() == [0, 0, 0]
    (picture,), (maps,) = draw_objects(replace(pair, colour=torch.tensor([[0, 2]])), (65, 65))
    assert maps[:, 32, 26].tolist() == [1, 2] and picture[:, 32, 26].tolist() == list(COLOURS["blue"])
    assert maps[:, 32, 33].tolist() == [2, 1] and picture[:, 32, 33].tolist() == list(COLOURS["red"])


def test_mirrored_keypoints_are_those_of_the_mirrored_picture():
    data = made()
    field, points = data.spec.fields["keypoints"], rows(data, "keypoints")
    mirrored = field.mirror(points).view(-1, 3, 5, 3)
    assert field.mirrors and torch.equal(mirrored[:, :, 3, 1:], points.view(-1, 3, 5, 3)[:, :, 4, 1:])
    with pytest.raises(UserError, match="column caption of kind tokens cannot be mirrored"):
        check_mirrors(data.spec, data.split("train"))


def test_objects_have_their_colours():
    data = made()
    x, mask, points = rows(data, "x"), rows(data, "mask").float(), rows(data, "keypoints").view(-1, 3, 5, 3)
    for i, caption in enumerate(told(data)):
        for k, (_, colour, _) in enumerate(parsed(caption)[0]):
            column, row = (points[i, k, 0, :2] * 32).long().tolist()
            around = mask[i, row - 1 : row + 2, column - 1 : column + 2]
            if points[i, k, 0, 2] and (around == k + 1).all():
                assert x[i, :, row, column].tolist() == list(COLOURS[colour])


def test_colours_have_the_hues_of_their_names():
    hues = {name: 360 * colorsys.rgb_to_hsv(*(part / 255 for part in rgb))[0] for name, rgb in COLOURS.items()}
    named = {"red": 0, "orange": 30, "yellow": 50, "green": 130, "blue": 220, "purple": 285}
    assert hues.keys() == named.keys() and all(abs(hues[name] - hue) < 10 for name, hue in named.items())


# ---------------------------------------------------------------------------------------------------- videos and styles


def test_a_video_begins_with_its_picture_and_the_columns_describe_it():
    still, video = made(), made(frames=3)
    assert (video.kind, video.spec.shape, video.size) == ("video", (3, 3, 32, 32), (32, 32))
    assert torch.equal(rows(video, "x")[:, 0], rows(still, "x"))
    for name in COLUMNS - {"caption"}:
        assert torch.equal(rows(video, name), rows(still, name))
    assert told(video) == told(still) and made(frames=1).spec.shape == (1, 3, 32, 32)


def test_objects_move_straight_on_and_bounce():
    """The way per frame is constant, except where an object is turned back; no pixel at the edge is ever painted."""
    shown = painted(rows(made(objects=1, frames=12), "x"))  # [N, T, H, W]
    assert not any(edge.any() for edge in (shown[..., 0], shown[..., -1], shown[..., 0, :], shown[..., -1, :]))
    one = objects(("ellipse", 0.1, -0.2, 0.5))
    one = replace(one, velocity=torch.tensor([[[0.15, -0.1]]], dtype=torch.float64))
    path = torch.cat([moment.centre[:, 0] for moment in move_objects(one, 40)])
    way, room = path.diff(dim=0), one.room[0, 0]
    assert (path.abs() <= room + 1e-12).all()
    for k, speed in enumerate((0.15, 0.1)):
        straight = ((way[:, k].abs() - speed).abs() < 1e-9).tolist()
        assert 3 <= straight.count(False) <= 10 and way[:, k].max() > 0.09 and way[:, k].min() < -0.09
        for t, free in enumerate(straight):
            if not free:  # it has gone on to the edge, and back for the rest of its way
                turned = path[t, k].abs() + path[t + 1, k].abs()
                assert turned == pytest.approx(2 * room[k].item() - speed, abs=1e-9)
                assert way[max(t - 1, 0), k] * way[min(t + 1, 38), k] < 0


def test_pixels_follow_the_path():
    data = made(objects=1, frames=6)
    x = 255 - rows(data, "x").double().amin(dim=2)  # [N, T, H, W]
    weight = (x - (255 - BACKGROUND[0])).clamp_min(0)
    across = torch.arange(32).double() + 0.5
    places = (weight.sum(dim=2) * across).sum(dim=2) / weight.sum(dim=(2, 3))  # [N, T], in pixels
    way = places.diff(dim=1)
    even = (way.diff(dim=1).abs() < 0.15).all(dim=1)  # no wall within the six frames
    assert even.float().mean() > 0.2
    low, high = (16 * speed for speed in SPEED)
    assert way[even].abs().min() > low - 0.15 and way[even].abs().max() < high + 0.15


def test_styles_differ_and_so_do_their_scenes():
    factors = [rows(made(style=style), "factor") for style in STYLES]
    assert len({tuple(factor.flatten().tolist()) for factor in factors}) == len(STYLES) == 6
    pair = objects(("rectangle", -0.4, 0.3, 1.0), ("ellipse", 0.4, -0.4, 0.5))
    drawn = {style: draw_objects(pair, (64, 64), style) for style in STYLES}
    plain, maps = drawn["filled"]
    assert all(torch.equal(found, maps) for _, found in drawn.values())
    assert torch.equal(drawn["clean"][0], plain)
    assert plain[0, :, 0, 0].tolist() == list(BACKGROUND) and plain[0, :, 22, 19].tolist() == list(COLOURS["red"])
    outline = drawn["outline"][0][0]
    assert (
        outline[:, 22, 19].tolist() == list(BACKGROUND)
        and (outline == torch.tensor([[[214]], [[40]], [[40]]])).all(0).any()
    )
    assert torch.equal(drawn["warm"][0][0, 0], plain[0, 0]) and torch.equal(drawn["cold"][0][0, 2], plain[0, 2])
    assert (drawn["warm"][0][0, 2] < plain[0, 2]).all() and (drawn["cold"][0][0, 0] < plain[0, 0]).all()
    striped = drawn["textured"][0][0, 0, 18:27, 12:27]  # within the rectangle
    assert striped.max() == 214 and striped.min() == round(0.55 * 214)


# ------------------------------------------------------------------------------------------------ splits and the cache


def test_splits_are_the_same_in_every_run_and_a_longer_one_begins_with_the_shorter():
    data, seeded, longer = made(), made(seed=7), made(num_train=1200)
    assert data.describe() == seeded.describe() and data.describe()["sizes"] == {
        "train": 300,
        "val": 1000,
        "test": 2000,
    }
    assert not torch.equal(data.stream().batch(0).x, seeded.stream().batch(0).x)
    for name in COLUMNS - {"caption"} | {"x", "y"}:
        assert torch.equal(rows(data, name), rows(longer, name))
    factors = [tuple(row) for split in ("train", "val", "test") for row in data.split(split).values("factor").tolist()]
    assert len(set(factors)) == 3300


def test_the_second_start_reads_the_pictures(monkeypatch, tmp_path):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path))
    first = made(num_train=40, frames=2)
    prints = {split: first.split(split).fingerprint() for split in ("train", "val", "test")}

    def refuse(*arguments):
        raise AssertionError("The pictures are drawn again.")

    monkeypatch.setattr(scenes, "draw_objects", refuse)
    again = made(num_train=40, frames=2)
    assert {split: again.split(split).fingerprint() for split in prints} == prints
    assert torch.equal(rows(again, "x", n=40), rows(first, "x", n=40))
    for other in ({"objects": 2}, {"style": "warm"}, {"frames": None}, {"image_size": 16}, {"num_train": 41}):
        with pytest.raises(AssertionError, match="drawn again"):
            made(**{"num_train": 40, "frames": 2, **other}).split("train")


def test_batches_have_all_columns():
    batch = made(image_size=[16, 24]).stream().batch(0)
    assert {*batch.columns} == COLUMNS | {"x", "y", "index"}
    shapes = {name: tuple(column.shape) for name, column in batch.columns.items() if not isinstance(column, Seq)}
    assert shapes == {
        "x": (8, 3, 16, 24),
        "y": (8,),
        "index": (8,),
        "factor": (8, 9),
        "attributes": (8, 16),
        "boxes": (8, 3, 5),
        "keypoints": (8, 15, 3),
        "layout": (8, 16, 24),
        "mask": (8, 16, 24),
    }
    assert batch["caption"].values.dtype == torch.int64 and 7 <= batch["caption"].length.max() <= 19
    assert -1 <= batch.x.min() and batch.x.max() <= 1 and batch["attributes"].unique().tolist() == [0, 1]
    assert "y" not in made(labels=False).stream().batch(0)
    assert len(made(limit_train=20).split("train")) == 20


def test_batches_have_only_the_columns_that_are_named():
    facts = column_facts(3, (32, 32))
    data = made(columns={"boxes": {"kind": "boxes", "shape": (3, 5)}, "mask": facts["mask"]})
    assert {*data.stream().batch(0).columns} == {"x", "y", "boxes", "mask", "index"}
    assert data.spec.fields["boxes"].names == CLASSES  # what is not stated is found


# ------------------------------------------------------------------------------------------------- configs and mistakes


@pytest.mark.parametrize("overrides", [[], ["data.objects=1"], ["data.objects=3", "data.image_size=[24,40]"]])
def test_the_yaml_states_the_facts(overrides):
    data = build_data(compose(["model=vae", "data=scenes", *overrides]))
    stated = {name: field.to_dict() for name, field in data.spec.fields.items() if name in COLUMNS}
    known = column_facts(data.objects, data.size)
    plain = {n: {f: list(v) if isinstance(v, tuple) else v for f, v in facts.items()} for n, facts in known.items()}
    assert stated == plain and {*stated} == COLUMNS


def test_kind_and_shape_follow_the_frames():
    config = compose(["model=vae", "data=scenes", "data.frames=8", "metrics=none"])["data"]
    assert config["shape"] == [8, 3, 32, 32] and config["kind"] == "video"
    assert config["columns"]["layout"]["shape"] == [32, 32]
    config = compose(["model=vae", "data=scenes"])["data"]
    assert config["shape"] == [3, 32, 32] and config["kind"] == "image"


@pytest.mark.parametrize("given", ["y", *sorted(COLUMNS)])
def test_a_model_can_be_given_each_column(given):
    config = compose(["data=scenes", "model=cgan", f"model.given=[{given}]"])
    assert given in config["model"]["generator"]["given"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"objects": 0}, "data.objects .* from 1 to 8, got 0. Try data.objects=2."),
        ({"objects": 9}, "data.objects=2"),
        ({"objects": True}, "data.objects=2"),
        ({"frames": 0}, "data.frames .*got 0. Try data.frames=8."),
        ({"frames": 2.5}, "data.frames=8"),
        ({"num_train": 0}, "data.num_train=10000"),
        ({"style": "dotted"}, "data.style must be one of filled, outline, .*got 'dotted'"),
        ({"style": ["warm"]}, "data.style"),
        ({"channels": 1}, "data.channels=3"),
        ({"shape": [3, 16, 16]}, "data.image_size"),
        ({"image_size": 0}, "data.image_size"),
        ({"frames": 2, "kind": "image"}, "data.kind='image'"),
        ({"num_classes": 4}, "has 3 classes"),
        ({"columns": {"boxes": {"kind": "boxes", "shape": (4, 5)}}}, "data.columns.boxes.shape"),
        ({"columns": {"layout": {"kind": "layout", "shape": (32, 32), "size": 5}}}, "data.columns.layout.size"),
    ],
)
def test_mistakes_are_answered(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        made(**arguments)


def test_columns_that_scenes_do_not_have_are_refused():
    with pytest.raises(UserError, match="data.columns names depth"):
        made(columns={"depth": {"kind": "layout", "shape": (32, 32)}}).split("train")
