"""Work that processes share: all results for all, in order; an error on one stops all. Threads stand for processes."""

import threading

import pytest
import torch

from genlab import sharing
from genlab.errors import NotNumbers, UserError
from genlab.metrics.features import features_of
from genlab.sharing import agreed, by_first, first_then_others, joined, shared, stream


class Pixels:
    """An extractor in which the features are the pixels."""

    name, num_features, num_classes = "pixels", 12, 3

    def __call__(self, images):
        x = images.float().flatten(1)
        return x, x[:, :3]

    def card(self):
        return {"extractor": self.name}


@pytest.fixture
def processes(monkeypatch):
    """Runs a function in so many threads, each with a rank of its own; gives their answers or what they raised."""
    rank = threading.local()

    def run(world, function):
        meeting, sent, answers = threading.Barrier(world, timeout=60), [None] * world, [None] * world

        def all_gather_object(everyone, mine):
            sent[rank.number] = mine
            meeting.wait()
            everyone[:] = sent
            meeting.wait()

        monkeypatch.setattr(sharing, "place", lambda: (rank.number, world))
        monkeypatch.setattr(sharing.dist, "all_gather_object", all_gather_object)

        def one(number):
            rank.number = number
            try:
                answers[number] = function(number)
            except Exception as error:
                answers[number] = error

        threads = [threading.Thread(target=one, args=(number,)) for number in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return answers

    return run


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 6, 7])
def test_each_piece_is_done_once_and_all_get_all(processes, world, count):
    done = []

    def work(piece):
        done.append(piece)
        return piece * 10

    answers = processes(world, lambda _: list(shared(range(count), work)))
    assert answers == [[piece * 10 for piece in range(count)]] * world
    assert sorted(done) == list(range(count))


def test_features_are_those_of_one_process(processes):
    images = torch.randint(0, 256, (2500, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    alone = features_of(Pixels(), images.split(300))
    for stats in processes(2, lambda _: features_of(Pixels(), images.split(300))):
        assert torch.equal(stats.features, alone.features)
        assert torch.equal(stats.logits, alone.logits) and stats.n == 2500


@pytest.mark.parametrize("kind", [UserError, NotNumbers, ZeroDivisionError])
def test_an_error_on_one_stops_all(processes, kind):
    def work(piece):
        if piece == 3:
            raise kind("the fourth piece")
        return piece

    first, second = processes(2, lambda _: list(shared(range(10), work)))
    assert isinstance(second, kind)
    assert type(first) is (kind if issubclass(kind, UserError) else RuntimeError) and "the fourth piece" in str(first)


def test_the_first_makes_what_one_must_make(processes):
    order = []

    def make():
        order.append(len(order))
        return order[-1]

    assert processes(3, lambda _: by_first(make)) == [0, 0, 0] and order == [0]
    order.clear()
    answers = processes(2, lambda _: first_then_others(make))
    assert answers == [0, 1]  # the first was done before the other began


def test_what_one_lacks_is_lacking(processes):
    assert processes(2, lambda number: agreed(number == 0)) == [False, False]
    assert processes(2, lambda _: agreed(True)) == [True, True]


def test_streams_of_pieces():
    draws = [torch.rand(4, generator=stream(2020, piece)) for piece in (-1, 0, 1, 2)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4
    assert torch.equal(draws[1], torch.rand(4, generator=torch.Generator().manual_seed(2020)))


def test_a_command_that_was_started_alone_stays_alone():
    with joined() as first:
        assert first and not torch.distributed.is_initialized()
