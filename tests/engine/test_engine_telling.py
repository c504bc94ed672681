"""A model with its conditions filled in: whose conditions each row of its inputs gets."""

import pytest
import torch
from torch.testing import assert_close

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.metrics.likelihood import importance_bounds
from genlab.models.base import GenerativeModel, inference
from genlab.telling import Telling, telling

Y = torch.tensor([3, 1, 2])


class Spy(GenerativeModel):
    """Gives its inputs plus 100 times each row's condition, which is thus seen in every output."""

    def __init__(self, given=("y",)):
        super().__init__()
        self.given, self.latent_dim = given, 2
        self.likelihood = torch.nn.Identity()

    def shift(self, given):
        return 100.0 * given.tensor("y")

    def shifted(self, x, given):
        return x + self.shift(given).view(-1, *[1] * (x.dim() - 1))

    @inference
    def sample(self, n, given=None, rng=None):
        return self.shifted(self.noise(n, rng), given)

    @inference
    def encode(self, x, given=None):
        return self.shifted(x, given)

    @inference
    def decode(self, z, given=None):
        return self.shifted(z, given)

    @inference
    def reconstruct(self, x, given=None):
        return self.shifted(x, given)

    @inference
    def score_logits(self, x, given=None):
        return self.shifted(x, given).sum(dim=1)

    @inference
    def log_joint(self, x, z, given=None):
        return self.shifted(x - z, given).sum(dim=1)

    @inference
    def log_prior(self, z, given=None):
        return self.shifted(z, given).sum(dim=1)

    @inference
    def sample_prior(self, n, rng=None, given=None):
        return self.shifted(self.noise(n, rng), given)

    @inference
    def sample_posterior(self, x, k=1, rng=None, given=None):
        z = self.shifted(x, given) + self.randn(k * len(x), 2, rng=rng).unflatten(0, (k, len(x)))
        return z, z.sum(dim=2)

    def objective(self, x, rng=None, given=None):
        return {"loss": self.shifted(x, given).sum()}


def rng():
    return torch.Generator().manual_seed(0)


def told(k=1, y=Y):
    return Batch({"y": y.repeat(k)})


def expected(k, x):
    """Row j of k N has the condition of row j mod N: [k, N] flattened."""
    return x + 100.0 * torch.stack([Y] * k).flatten()[:, None]


ASKED = {
    "encode": lambda model, x: model.encode(x),
    "decode": lambda model, x: model.decode(x),
    "reconstruct": lambda model, x: model.reconstruct(x),
    "sample": lambda model, x: model.sample(len(x), rng=rng()),
    "sample_prior": lambda model, x: model.sample_prior(len(x), rng=rng()),
    "score_logits": lambda model, x: model.score_logits(x),
    "log_joint": lambda model, x: model.log_joint(x, torch.zeros_like(x)),
    "log_prior": lambda model, x: model.log_prior(x),
    "objective": lambda model, x: model.objective(x)["loss"],
    "sample_posterior": lambda model, x: model.sample_posterior(x, 1, rng())[0][0],
}


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("name", ASKED)
def test_conditions_are_repeated_draw_by_draw(name, k):
    """Of k N rows, every N have the N conditions in their order, as importance sampling flattens [k, N]."""
    x = torch.randn(k * len(Y), 2, generator=rng())
    found = ASKED[name](telling(Spy(), told()), x)
    plain = expected(k, x)
    want = plain if found.dim() == 2 else plain.sum(dim=1) if found.dim() == 1 else plain.sum()
    if name == "sample_posterior":
        want = want + torch.randn(len(x), 2, generator=rng())
    assert_close(found, want)


def test_draws_of_a_posterior_have_the_conditions_of_their_rows():
    x = torch.zeros(3, 2)
    z, log_q = telling(Spy(), told()).sample_posterior(x, 5, rng())
    assert z.shape == (5, 3, 2) and log_q.shape == (5, 3)
    assert_close((z / 100).round()[:, :, 0], Y.float().expand(5, 3))


def test_importance_sampling_keeps_rows_and_conditions_together():
    """log w = sum(x - z + 100 y) - sum(z) is a known number of each draw; wrong rows are off by 100 or more."""
    x = torch.randn(3, 2, generator=rng())
    model = Spy()
    bounds = importance_bounds(model, [x, x[:2]], samples=6, at_a_time=6, given=[told(), told(y=Y[:2])])
    one_by_one = [
        importance_bounds(model, [x[i : i + 1]], samples=6, given=[told(y=Y[i : i + 1])]).elbo for i in range(3)
    ]
    # E log w = sum x + 200 y - 2 E sum z = sum x + 200 y - 2 (sum x + 200 y), up to the noise of six draws.
    closed = -(x.sum(dim=1) + 200 * Y).double()
    assert_close(bounds.elbo, torch.cat([closed, closed[:2]]), rtol=0, atol=8)
    assert_close(torch.cat(one_by_one), closed, rtol=0, atol=8)


def test_samples_of_other_conditions():
    model = telling(Spy(), told())
    assert_close(
        model.sample(2, given=told(y=torch.tensor([7, 5])), rng=rng()).div(100).round()[:, 0].long().tolist(), [7, 5]
    )
    assert model.sample(3, rng=rng()).div(100).round()[:, 0].tolist() == [3, 1, 2]


def test_the_model_itself_where_nothing_is_given():
    model = Spy(given=())
    assert telling(model, None) is model and telling(model, told()) is model


def test_only_the_given_columns_are_kept():
    model = telling(Spy(), told().with_column("x", torch.zeros(3, 2)))
    assert isinstance(model, Telling) and list(model.conditions.columns) == ["y"]


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (None, "Spy is given y: pass a batch with these columns."),
        (Batch({"x": torch.zeros(3, 2)}), "The data have no column 'y', only x."),
    ],
)
def test_missing_conditions_are_refused(batch, sentence):
    with pytest.raises(UserError) as error:
        telling(Spy(), batch)
    assert str(error.value) == sentence


def test_it_offers_what_the_model_offers():
    model = Spy()
    filled = telling(model, told())
    assert filled.can("encode") and filled.can("log_joint")
    assert not telling(Small(), told()).can("encode")
    assert filled.device == model.device and filled.likelihood is model.likelihood
    assert list(filled.parameters()) == list(model.parameters())
    model.train()
    with filled.inference():
        assert not model.training
    assert model.training


class Small(GenerativeModel):
    """Offers samples alone."""

    def __init__(self):
        super().__init__()
        self.given = ("y",)

    @inference
    def sample(self, n, given=None, rng=None):
        return self.randn(n, 2, rng=rng)
