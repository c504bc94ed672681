"""WGAN: clipping, the critic's schedule, and the linear critic in closed form."""

import pytest
import torch
from torch.testing import assert_close

from tests.models.helpers import Batches, Each, Updates, fit, snapshot

pytestmark = pytest.mark.usefixtures("one_thread")
RING = ["model=wgan", "data=ring", "network.hidden=[16]"]
SHORT = ["model.n_critic_long=4", "model.long_first=2", "model.long_every=5", "model.n_critic=2"]


def test_each_update_moves_one_player_alone_and_clipping_the_critic(tmp_path):
    """Between updates nothing moves but the critic, when it is clipped; its learning rate is large enough for that."""
    updates = Updates()
    fit([*RING, "model.n_critic_long=3", "model.c_optimizer.lr=0.02"], 3, tmp_path, [updates])
    assert [who for who, _ in updates.steps] == 3 * ["critic", "critic", "critic", "generator"]
    for who, found in updates.steps:
        assert not {player for player, names in found.items() if names and player != who}
        assert len(found[who]) >= 3  # the critic's last bias has no gradient but rounding's
    assert all(not found["generator"] for found in updates.strays)
    assert any(found["critic"] for found in updates.strays)


def test_no_parameter_exceeds_c(tmp_path):
    each = Each(lambda model: max(p.abs().max().item() for p in model.critic.parameters()))
    fit([*RING, "model.n_critic_long=3", "model.clip=0.03", "model.c_optimizer.lr=0.02"], 5, tmp_path, [each])
    assert max(each.seen) == pytest.approx(0.03)


def test_the_critics_schedule(tmp_path):
    """100 updates in the first 25 iterations and in every 500th, 5 in the others: here 4, 2, 5 and 2."""
    batches, updates = Batches(), Updates()
    fit([*RING, *SHORT], 8, tmp_path, [batches, updates])
    expected = [4, 4, 2, 2, 2, 4, 2, 2]
    assert [len(b.x) // 8 for b in batches.seen] == expected
    order = [who for n in expected for who in [*n * ["critic"], "generator"]]
    assert [who for who, _ in updates.steps] == order
    indices = torch.cat([b["index"] for b in batches.seen])
    assert len(indices.unique()) == 8 * sum(expected)  # all fresh


def test_it_resumes_in_the_middle_of_the_schedule(tmp_path):
    whole = fit([*RING, *SHORT], 7, tmp_path / "whole").model
    fit([*RING, *SHORT], 3, tmp_path / "part")
    resumed = fit([*RING, *SHORT], 7, tmp_path / "rest", resume=tmp_path / "part" / "checkpoints" / "last.ckpt").model
    for player, values in snapshot(whole).items():
        for name, value in snapshot(resumed)[player].items():
            assert torch.equal(value, values[name]), name


def test_a_linear_critic_ends_at_the_clip(tmp_path):
    """f(x) = <w, x> + b against a frozen generator: each |w| = c, so that W is c times the distance of the means."""
    overrides = ["model=wgan", "data=ring", "network.hidden=[]", "data.batch_size=256", "model.clip=0.05"]
    overrides += ["model.g_optimizer.lr=0", "model.c_optimizer.lr=0.005", "model.n_critic_long=30"]

    def before(model):
        torch.nn.init.constant_(model.generator.decoder.body[-1].bias, 3.0)  # samples about (3, 3), data about 0
        torch.nn.init.zeros_(model.generator.decoder.body[-1].weight)

    fitted = fit(overrides, 3, tmp_path, before=before)
    weight = fitted.model.critic.head.weight.detach()[0]
    assert_close(weight, torch.full((2,), -0.05))
    fake = fitted.model.sample(100)
    assert_close(
        fitted.model.score_logits(0 * fake).mean() - fitted.model.score_logits(fake).mean(), 0.05 * fake.sum(1).mean()
    )


def test_the_generator_follows_the_critic(tmp_path):
    """Against a frozen critic, linear and thus without a top, its samples' values rise."""
    overrides = [
        "model=wgan",
        "data=ring",
        "network.hidden=[]",
        "model.c_optimizer.lr=0",
        "model.clip=1",
        "model.n_critic_long=1",
        "model.n_critic=1",
    ]
    overrides += ["model.g_optimizer.lr=0.01", "ema.decay=0"]
    each = Each(lambda m: m.score_logits(m.sample(200, rng=torch.Generator().manual_seed(0))).mean().item())
    fit(overrides, 60, tmp_path, [each])
    assert each.seen[-1] > each.seen[0] + 1


@pytest.mark.parametrize(
    ("override", "words"),
    [("model.clip=0", "clip must be a number above 0"), ("model.n_critic=0", "n_critic must be at least 1")],
)
def test_it_refuses(override, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        fit([*RING, override], 1, tmp_path)
