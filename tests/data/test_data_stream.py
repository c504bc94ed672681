"""Batches are pure functions of (seed, name, number): order, resume, shares of processes, flips, ranges."""

import itertools

import pytest
import torch

from genlab.batch import Batch
from genlab.data.spec import DataSpec
from genlab.data.store import ArrayStore
from genlab.data.stream import FixedBatches, MergedStreams, Stream, binarise, resident_limit
from genlab.errors import UserError
from genlab.fields.image import from_uint8
from genlab.seeding import fixed_choice

SPEC = DataSpec.of("image", (1, 2, 3), num_classes=4)


def make_store(n: int) -> ArrayStore:
    """Image number k has the pixels 6k .. 6k+5 (mod 256) and the label k."""
    x = (torch.arange(n * 6) % 256).to(torch.uint8).view(n, 1, 2, 3)
    return ArrayStore({"x": x, "y": torch.arange(n)})


def stream(n: int = 22, batch_size: int = 4, **arguments) -> Stream:
    return Stream(make_store(n), SPEC, batch_size, **{"seed": 3, **arguments})


def take(source, n: int) -> list[Batch]:
    return list(itertools.islice(source, n))


def assert_same(a: Batch, b: Batch) -> None:
    for name in ("x", "y", "index"):
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


@pytest.mark.parametrize("n", [22, 64, 3])  # three samples: one batch spans several epochs
@pytest.mark.parametrize("start", [1, 5, 13])
def test_a_stream_started_at_k_is_the_tail_of_one_started_at_0(n, start):
    whole = take(stream(n, flip=True, binarize=True, batches_per_step=2), start + 6)
    tail = take(stream(n, flip=True, binarize=True, batches_per_step=2, start=start), 6)
    for a, b in zip(whole[start:], tail, strict=True):
        assert_same(a, b)
    assert not torch.equal(whole[0]["index"], whole[1]["index"])


def test_a_batch_is_the_same_whatever_was_drawn_before():
    fresh, used = stream(flip=True), stream(flip=True)
    for i in (40, 2, 7, 2):
        used.batch(i)
    assert_same(fresh.batch(11), used.batch(11))
    assert_same(used.batch(11), next(iter(stream(flip=True, start=11))))


@pytest.mark.parametrize(("n", "batch_size"), [(22, 4), (5, 8), (16, 4)])
def test_each_epoch_is_a_permutation_and_epochs_differ(n, batch_size):
    order = torch.cat([stream(n, batch_size).indices(i) for i in range(3 * n)])
    epochs = order[: 3 * n].view(3, n)
    for epoch in epochs:
        torch.testing.assert_close(epoch.sort().values, torch.arange(n))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], torch.arange(n))


def test_seed_and_name_change_the_order_and_labels_follow_their_images():
    base = stream()
    assert not torch.equal(base.indices(0), stream(seed=4).indices(0))
    assert not torch.equal(base.indices(0), stream(name="unlabelled").indices(0))
    batch = base.batch(2)
    torch.testing.assert_close(batch.y, batch["index"])  # the label of image k is k
    torch.testing.assert_close(batch.x, from_uint8(base.store.values("x")[batch["index"]]), rtol=0, atol=0)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("n", [1, 3])
def test_the_shares_of_all_processes_are_the_batch_of_one(n, world):
    """Chunk by chunk: process r holds the r-th part of each of the n chunks, flips and binarisation included."""
    options = {"batch_size": 8, "batches_per_step": n, "flip": True, "binarize": True}
    shares = [stream(rank=r, world_size=world, **options) for r in range(world)]
    for i in (0, 1, 9):
        whole = stream(**options).batch(i)
        parts = [share.batch(i) for share in shares]
        assert all(len(part) == n * 8 // world for part in parts)
        for name in ("x", "y", "index"):
            chunks = [part[name].chunk(n) for part in parts]
            joined = torch.cat([chunks[r][c] for c in range(n) for r in range(world)])
            torch.testing.assert_close(joined, whole[name], rtol=0, atol=0)


def part_labelled(n=22, every=4):
    """Of n images every fourth has a label."""
    store = make_store(n)
    return store.with_column("y", torch.where(torch.arange(n) % every == 0, torch.arange(n), -1))


def test_labels_have_their_share_of_each_chunk_and_epochs_of_their_own():
    """Every labelled sample comes once before one comes again, and so does every other one."""
    made = Stream(part_labelled(), SPEC, 5, seed=3, labelled=2, batches_per_step=2)
    order = torch.cat([made.indices(i) for i in range(9)]).view(-1, 5)
    known = order % 4 == 0
    assert (known.sum(dim=1) == 2).all()
    for rows, size in ((order[known], 6), (order[~known], 16)):
        whole = rows[: len(rows) // size * size].view(-1, size)
        assert len(whole) > 1 and all(len(epoch.unique()) == size for epoch in whole)
        assert not torch.equal(whole[0], whole[1])
    late = Stream(part_labelled(), SPEC, 5, seed=3, labelled=2, batches_per_step=2, start=7)
    assert_same(next(iter(late)), made.batch(7))


@pytest.mark.parametrize(("labelled", "world"), [(4, 2), (3, 2), (5, 4), (1, 4)])
def test_labels_are_spread_over_processes(labelled, world):
    options = {"seed": 3, "labelled": labelled, "batches_per_step": 3}
    whole = Stream(part_labelled(), SPEC, 8, **options).batch(5)
    parts = [Stream(part_labelled(), SPEC, 8, rank=r, world_size=world, **options).batch(5) for r in range(world)]
    chunks = [part["index"].chunk(3) for part in parts]
    assert torch.equal(torch.cat([chunks[r][c] for c in range(3) for r in range(world)]), whole["index"])
    counts = torch.tensor([[int((chunk % 4 == 0).sum()) for chunk in each] for each in chunks])
    assert (counts.sum(dim=0) == labelled).all() and counts.max() - counts.min() <= 1


@pytest.mark.parametrize("every", [1, 100])
def test_where_all_or_no_samples_have_labels_the_order_is_as_ever(every):
    store = part_labelled(every=every) if every == 1 else make_store(22).with_column("y", torch.full((22,), -1))
    made = Stream(store, SPEC, 4, seed=3, labelled=2)
    assert torch.equal(made.indices(7), stream().indices(7))


def changing(i):
    """Chunks of batch i: many in the first two, then two, and four in every fifth."""
    return 4 if i < 2 or i % 5 == 0 else 2


@pytest.mark.parametrize("world", [1, 2])
def test_the_number_of_chunks_may_change(world):
    """Batches go on where the last one ended, are functions of their number alone, and are shared as ever."""
    options = {"n": 100, "batch_size": 8, "flip": True, "binarize": True, "world_size": world}
    streams = [stream(rank=r, batches_per_step=changing, **options) for r in range(world)]
    plain = stream(n=100, batch_size=8)
    used = 0
    for i in range(12):
        parts = [s.batch(i) for s in streams]
        chunks = [part["index"].chunk(changing(i)) for part in parts]
        found = torch.cat([chunks[r][c] for c in range(changing(i)) for r in range(world)])
        expected = torch.cat([plain.batch(used + c)["index"] for c in range(changing(i))])
        assert torch.equal(found, expected)
        used += changing(i)
    late = stream(rank=0, batches_per_step=changing, start=9, **options)
    assert_same(next(iter(late)), streams[0].batch(9))
    assert_same(late.batch(3), streams[0].batch(3))


def test_flips_mirror_about_half_of_the_images_and_nothing_else():
    plain, flipped = stream(n=200, batch_size=200), stream(n=200, batch_size=200, flip=True)
    a, b = plain.batch(0).x, flipped.batch(0).x
    same = (a == b).flatten(1).all(1)
    mirrored = (a.flip(-1) == b).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 70 < int(mirrored.sum()) < 130  # 100 expected, standard deviation 7
    again = flipped.batch(1).x
    assert not torch.equal(again, b)


def test_images_are_in_range_and_come_back_to_their_bytes():
    x = torch.arange(256, dtype=torch.uint8)
    y = from_uint8(x)
    assert y.dtype == torch.float32
    assert y[0] == -1.0
    assert y[255] == 1.0
    torch.testing.assert_close(y.mul(127.5).add(128).clamp(0, 255).to(torch.uint8), x, rtol=0, atol=0)
    assert x[7] == 7  # the store's bytes are not touched


def test_dynamic_binarisation_draws_each_pixel_from_its_grey_value():
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3).repeat(4000, 1, 1, 1)
    s = Stream(ArrayStore({"x": x}), DataSpec.of("image", (1, 1, 3)), 4000, seed=0, binarize=True)
    first, second = s.batch(0).x, s.batch(1).x
    assert set(first.unique().tolist()) == {-1.0, 1.0}
    share = (first > 0).float().mean(dim=(0, 1, 2))
    assert share[0] == 0.0
    assert share[2] == 1.0
    assert abs(share[1] - 0.2) < 0.03  # standard deviation 0.006
    assert not torch.equal(first, second)
    fixed = [binarise(x, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*fixed)
    assert set(fixed[0].unique().tolist()) == {0, 255}


def test_the_global_random_state_is_neither_read_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batch = stream(flip=True, binarize=True).batch(5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert_same(batch, stream(flip=True, binarize=True).batch(5))


def test_points_stay_as_they_are():
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0)) * 5
    s = Stream(ArrayStore({"x": x}), DataSpec.of("points", (2,)), 5, seed=0)
    batch = s.batch(0)
    torch.testing.assert_close(batch.x, x[batch["index"]], rtol=0, atol=0)
    assert batch.y is None
    batch.x.zero_()
    assert x.abs().sum() > 0  # a batch is a copy


def test_a_permutation_is_computed_once_per_epoch(monkeypatch):
    calls = []
    real = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *a, **k: calls.append(a) or real(*a, **k))
    s = stream(20, 4)
    for i in range(10):  # two epochs
        s.batch(i)
    assert len(calls) == 2
    s.batch(5_000_000)  # a far jump needs one more
    assert len(calls) == 3


@pytest.mark.parametrize(("batch_size", "world"), [(6, 4), (0, 1), (2, 4)])
def test_a_batch_that_does_not_divide_is_refused(batch_size, world):
    with pytest.raises(UserError, match=f"data.batch_size={batch_size}.*try data.batch_size="):
        stream(batch_size=batch_size, world_size=world)


def test_an_empty_store_is_refused():
    with pytest.raises(UserError, match="empty"):
        stream(0)


def test_a_gpu_keeps_what_takes_a_quarter_of_its_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000 + (device.index or 0), 9000))
    assert resident_limit(torch.device("cuda", 0)) == 1000
    assert resident_limit(torch.device("cuda", 4)) == 1001
    assert resident_limit(torch.device("mps")) == 2 * 2**30


def test_merged_streams_give_one_batch_with_orders_of_their_own():
    streams = {name: stream(name=name) for name in ("a", "b")}
    both = MergedStreams(streams)
    assert both.state_dict() == {}
    for i, batch in enumerate(itertools.islice(both, 8)):
        assert list(batch.columns) == ["a", "a.y", "a.index", "b", "b.y", "b.index"]
        for name in streams:
            assert_same(
                Batch({"x": batch[name], **{k: batch[f"{name}.{k}"] for k in ("y", "index")}}), streams[name].batch(i)
            )
    assert not torch.equal(both.batch(0)["a.index"], both.batch(0)["b.index"])


def test_fixed_batches_are_the_store_in_order_and_shared_by_processes():
    store = make_store(10)
    batches = FixedBatches(store, SPEC, 4)
    assert len(batches) == 3
    for _ in range(2):  # iterable again
        torch.testing.assert_close(torch.cat([b["index"] for b in batches]), torch.arange(10))
    torch.testing.assert_close(torch.cat([b.x for b in batches]), from_uint8(store.values("x")), rtol=0, atol=0)
    some = FixedBatches(store, SPEC, 4, limit=6)
    assert [len(b) for b in some] == [4, 2]
    assert torch.equal(torch.cat([b["index"] for b in some]), fixed_choice(10, 6))
    shares = [FixedBatches(store, SPEC, 4, rank=r, world_size=2) for r in range(2)]
    assert [b["index"].tolist() for b in shares[0]] == [[0, 1, 2, 3], [8, 9]]
    assert [b["index"].tolist() for b in shares[1]] == [[4, 5, 6, 7]]


def test_a_batch_moves_only_when_it_must():
    batch = Batch({"x": torch.zeros(3, 2), "y": torch.ones(3)})
    assert len(batch) == 3
    assert batch.to("cpu") is batch
    moved = batch.to("meta")
    assert moved.x.device.type == moved.y.device.type == "meta"


def test_a_spec_survives_plain_containers_and_refuses_nonsense():
    spec = DataSpec.of("image", (3, 8, 8), num_classes=2, class_names=("cat", "dog"))
    plain = spec.to_dict()
    assert plain["x"]["shape"] == [3, 8, 8]
    assert DataSpec.from_dict(plain) == spec
    points = DataSpec.of("points", (2,))
    assert DataSpec.from_dict(points.to_dict()) == points
    with pytest.raises(UserError, match="'points' cannot be shown"):
        points.render(torch.zeros(1, 2))
    with pytest.raises(UserError, match="'picture' is no kind of column"):
        DataSpec.of("picture", (3, 8, 8))
    with pytest.raises(UserError, match=r"\[C, H, W\]"):
        DataSpec.of("image", (8, 8))


def test_render_gives_the_bytes_back():
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    torch.testing.assert_close(DataSpec.of("image", (1, 16, 16)).render(from_uint8(x)), x, rtol=0, atol=0)
