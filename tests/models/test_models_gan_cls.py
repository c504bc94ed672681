"""GAN-CLS and GAN-INT-CLS: mismatched captions, captions between two, and the optimum of the matching loss."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from genlab.batch import Batch, Between, Seq
from genlab.engine.mismatch import different, mismatched
from genlab.errors import UserError
from genlab.losses.adversarial import Hinge, NonSaturating
from genlab.losses.matching import matching_loss
from genlab.models.gan_cls import GANCLS
from genlab.networks.conditions import Maps, Vector
from genlab.runs.running import build
from tests.models.helpers import Batches, assert_moves, config, fit

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["network.width=4", "data.image_size=16", "data.num_train=64", "model.latent_dim=4", "ema.decay=0"]
NAMES = ["gan_cls", "gan_int"]
WORDS = {"caption": {"kind": "tokens", "shape": [None], "size": 9}}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(seed=0):
    stream = rng(seed)
    return lambda n, *shape: torch.rand(n, *shape, generator=stream, dtype=torch.float64)


def sentences(*rows):
    length = torch.tensor([len(row) for row in rows])
    values = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        values[i, : len(row)] = torch.tensor(row)
    return Batch({"caption": Seq(values, length)})


# --- The loss and its optimum -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "chance", "d", "loss"),
    [
        (10, False, 2 / 3, 0.954771),
        (2, False, 2 / 3, 0.954771),
        (10, True, 0.645161, 1.008105),
        (2, True, 0.571429, 1.195089),
    ],
)
def test_the_optimum_against_a_perfect_generator(classes, chance, d, loss):
    """Of K equally likely captions, each with its own picture: D = p_r / (p_r + p_w / 2 + p_f / 2), all pairs listed.

    Wrong pairs are of other captions, or (`chance`) of any, so that one in K is right.
    """
    wrong_ones = [(x, t) for x in range(classes) for t in range(classes) if chance or x != t]
    p_w = 1 / len(wrong_ones) if chance else 0.0
    on_right = 1 / classes / (1 / classes + 0.5 * p_w + 0.5 / classes)
    logits = torch.full((classes, classes), -60.0, dtype=torch.float64)  # of pictures with no real or fake pair: D = 0
    logits.fill_diagonal_(math.log(on_right / (1 - on_right))).requires_grad_(True)
    right = logits.diagonal()
    wrong = torch.stack([logits[pair] for pair in wrong_ones])
    d_loss = matching_loss(NonSaturating(), right, wrong, right)
    assert_close(on_right, d, rtol=0, atol=1e-6)
    assert_close(d_loss.item(), loss, rtol=0, atol=1e-6)
    (slope,) = torch.autograd.grad(d_loss, logits)
    assert slope.abs().max() < 1e-12
    if not chance:
        assert_close(NonSaturating().generator(right).item(), 0.405465, rtol=0, atol=1e-6)


def test_at_zero_logits():
    zeros = torch.zeros(5, dtype=torch.float64)
    assert_close(matching_loss(NonSaturating(), zeros, zeros, zeros).item(), 2 * math.log(2))
    assert matching_loss(Hinge(), zeros, zeros, zeros) == 2
    s = torch.randn(3, 5, generator=rng(), dtype=torch.float64)
    d = s.sigmoid()
    by_hand = -d[0].log().mean() - 0.5 * (1 - d[1]).log().mean() - 0.5 * (1 - d[2]).log().mean()
    assert_close(matching_loss(NonSaturating(), *s), by_hand)


# --- Mismatched rows --------------------------------------------------------------------------------------------------


def test_rows_that_differ():
    """A sentence and its beginning differ, though the longer one goes on with word 0."""
    told = sentences([1, 2, 0], [1, 2], [3], [1, 2]).with_column("y", torch.tensor([0, 0, 1, 2]))
    apart = different(told, told, ["caption"])
    assert apart.tolist() == [[0, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 1], [1, 0, 1, 0]]
    assert different(told, told.rows(slice(2)), ["y"]).tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert different(told, told, ["y", "caption"])[1].tolist() == [1, 0, 1, 1]


def test_a_mismatched_row_is_any_other_one():
    """Never a matching one; of the rest each equally often; and a batch of one sentence has none."""
    told = sentences([1, 2], [1, 2], [3], [4], [5, 6]).with_column("row", torch.arange(5))
    rand, seen = draws(), torch.zeros(5, 5)
    for _ in range(600):
        wrong, found = mismatched(told, ["caption"], lambda x: x, rand)
        assert found.all()
        seen[torch.arange(5), wrong.tensor("row")] += 1
    expected = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 1, 0, 1], [1, 1, 1, 1, 0]])
    assert torch.equal(seen > 0, expected > 0)
    assert_close(seen / 600, expected / expected.sum(dim=1, keepdim=True), rtol=0, atol=0.07)
    _, found = mismatched(told.rows(slice(2)), ["caption"], lambda x: x, rand)
    assert not found.any()


def test_two_processes_find_what_one_finds():
    """Each sees its own rows, the whole batch gathered, and its slice of the draws."""
    told = sentences([1, 2], [1, 2], [3], [4, 4, 4]).with_column("row", torch.arange(4))
    one, _ = mismatched(told, ["caption"], lambda x: x, draws(3))
    for rank in range(2):
        rows = told.rows(slice(2 * rank, 2 * rank + 2))
        whole = {id(part): all_of for part, all_of in zip(
            (rows["caption"].values, rows["caption"].length, rows["row"]),
            (told["caption"].values, told["caption"].length, told["row"]), strict=True,
        )}  # fmt: skip
        rand = lambda n, m, rank=rank: draws(3)(4, m)[2 * rank :][:n]  # noqa: E731
        found, _ = mismatched(rows, ["caption"], lambda x, whole=whole: whole[id(x)], rand)
        assert torch.equal(found["row"], one["row"][2 * rank : 2 * rank + 2])


# --- Captions between two ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["mean", "gru"])
def test_what_lies_between_two_captions(words):
    """Halfway between their vectors, not the vector of a sentence; a caption and itself have no other middle."""
    torch.manual_seed(0)
    vector, maps = Vector(WORDS, words).double(), Maps(WORDS, words).double()
    one, other = sentences([1, 2, 3], [4]), sentences([5], [6, 7, 8])
    a, b = (vector(told, torch.float64) for told in (one, other))
    assert_close(vector(Between(one, other, 0.5), torch.float64), (a + b) / 2)
    assert_close(vector(Between(one, other, 0.25), torch.float64), 0.75 * a + 0.25 * b)
    assert torch.equal(vector(Between(one, one, 0.5), torch.float64), a)
    drawn = maps(Between(one, other, 0.5), 3, 2, torch.float64)
    assert_close(drawn, (maps(one, 3, 2, torch.float64) + maps(other, 3, 2, torch.float64)) / 2)
    assert len(Between(one, other, 0.5)) == 2


# --- The step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_update_moves_its_own_player_alone(name, tmp_path):
    """Word embeddings and recurrent networks of both players included."""
    fitted = assert_moves([f"model={name}", *SMALL], ["discriminator", "generator"] * 2, 2, tmp_path)
    for player in ("generator", "discriminator"):
        names = [n for n, _ in getattr(fitted.model, player).named_parameters()]
        assert any("embedding" in n for n in names) and any("gru" in n for n in names)


def recorder(calls):
    def listen(model):
        for name in ("generator", "discriminator"):
            network = model.get_submodule(name)
            network.register_forward_hook(lambda _, args, out, name=name: calls.append((name, *args, out)))

    return listen


def rows_of(told):
    """Sentences of a batch as tuples."""
    column = told["caption"]
    return [tuple(v[:t]) for v, t in zip(column.values.tolist(), column.length.tolist(), strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_who_is_told_what(name, tmp_path):
    """D: right, fake, wrong. G: its own captions, then (gan_int) half as many between two, which both are told."""
    calls, batches = [], Batches()
    model = fit([f"model={name}", *SMALL], 1, tmp_path, [batches], recorder(calls)).model
    (batch,) = batches.seen
    order = ["generator", *["discriminator"] * 3, "generator", "discriminator"]
    assert [call[0] for call in calls] == order + (["generator", "discriminator"] if name == "gan_int" else [])
    own = rows_of(batch)
    (_, z, drawn, shown), (_, real, right, _), (_, fake, also, _), (_, again, wrong, _), (_, z_new, new, _), *_ = calls
    assert all(rows_of(told) == own for told in (drawn, right, also, new))
    assert torch.equal(real, batch.x) and torch.equal(again, batch.x) and torch.equal(fake, shown.detach())
    assert not torch.equal(z, z_new)
    assert all(w != o and w in own for w, o in zip(rows_of(wrong), own, strict=True))
    assert not any(isinstance(call[2], Between) for call in calls[:6])
    if name == "gan_int":
        (_, z, told, made), (_, fake, judged, _) = calls[6:]
        assert told is judged and fake is made and z.shape == (4, 4)
        assert (rows_of(told.first), rows_of(told.second), told.share) == (own[::2], rows_of(wrong)[::2], 0.5)
    logits = {i: calls[i][3] for i in (1, 2, 3, 5)}
    recorded = model.watching.recorded
    assert_close(recorded["d_loss"], matching_loss(NonSaturating(), logits[1], logits[3], logits[2]).detach())
    fakes = torch.cat([logits[5], calls[7][3]]) if name == "gan_int" else logits[5]
    assert_close(recorded["g_loss"], nn.functional.softplus(-fakes).mean().detach())  # of 1.5 B fakes


def test_a_batch_of_one_sentence_has_no_wrong_pairs(tmp_path):
    """The fakes take their place: the loss is that of a plain conditional GAN."""
    calls = []

    def before(model):
        recorder(calls)(model)
        step = model.training_step
        model.training_step = lambda batch, batch_idx: step(batch.rows(torch.zeros(8, dtype=torch.long)), batch_idx)

    model = fit(["model=gan_cls", *SMALL], 1, tmp_path, before=before).model
    right, fake = calls[1][3], calls[2][3]
    assert_close(model.watching.recorded["d_loss"], NonSaturating().discriminator(right, fake).detach())


def test_captions_of_another_class(tmp_path):
    calls, batches = [], Batches()
    fit(["model=gan_cls", "model.mismatch=[y]", *SMALL], 1, tmp_path, [batches], recorder(calls))
    (batch,) = batches.seen
    label = dict(zip(rows_of(batch), batch.y.tolist(), strict=True))
    assert all(label[w] != y for w, y in zip(rows_of(calls[3][2]), batch.y.tolist(), strict=True))
    assert list(calls[3][2].columns) == ["caption"]


class Pair(nn.Module):
    """A discriminator whose optimum is known: log 2 + log p_data / p_model of what it is told."""

    def forward(self, x, told):
        return math.log(2) + x.flatten(1).sum(dim=1) - told.tensor("y")


def test_score_logits_are_the_log_ratio():
    """D sees half as many fakes as real samples, and right pairs among its wrong ones never."""
    model = GANCLS(nn.Linear(2, 2), Pair(), NonSaturating(), 2)
    model.given = ("y",)
    x, y = torch.randn(4, 2, generator=rng()), torch.arange(4)
    assert_close(model.score_logits(x, Batch({"y": y})), x.sum(dim=1) - y)


def test_conditions_are_asked_for_and_count(tmp_path):
    model = fit(["model=gan_cls", *SMALL], 1, tmp_path).model
    with pytest.raises(UserError, match="^GANCLS is given caption: pass a batch with these columns.$"):
        model.sample(2)
    words = model.spec.fields["caption"]
    told = Batch({"caption": words.parse("a large red ellipse in the middle|a small blue triangle on the left", 4)})
    x = model.sample(4, given=told, rng=rng())
    assert x.shape == (4, 3, 16, 16)
    assert torch.equal(model.sample(4, given=told, rng=rng()), x)
    other = Batch({"caption": words.parse("a small green rectangle at the top", 4)})
    assert not torch.equal(model.sample(4, given=other, rng=rng()), x)
    with pytest.raises(UserError, match="'pink' is not in the vocabulary of 24 words"):
        words.parse("a large pink ellipse", 1)


@pytest.mark.parametrize("value", [-0.5, 1.5])
def test_a_senseless_share_is_refused(value):
    with pytest.raises(UserError, match=r"model.interpolated must be a number in \[0, 1\]"):
        build(config(["model=gan_int", *SMALL, f"model.interpolated={value}"]))
