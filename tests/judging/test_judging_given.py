"""Likelihoods of models that are given columns: what their cards state, and estimates by draws from the prior."""

import math

import pytest
import torch

from genlab.judging.cards import differences, refusal
from genlab.judging.judge import take
from genlab.judging.measure import Settings, known
from genlab.judging.subject import Subject
from genlab.runs.running import build
from tests.models.helpers import config

SMALL = ["data=digits", "data.binarize=static", "network.hidden=[16]", "model.latent_dim=4"]
NAMES = ("objective", "likelihood", "prior_likelihood")


def scored(*overrides, names=NAMES, **settings):
    """The scores of an untrained model on test rows."""
    parts = build(config([*SMALL, *overrides]))
    parts.data.setup()
    torch.manual_seed(0)
    parts.model.spec = parts.data.spec
    parts.model.initialise(parts.data.first_batches())
    chosen = Settings(**{"num_samples": 40, "iwae_samples": 20, **settings})
    return take(Subject(parts.model, parts.data, "test", chosen, lambda: None), [known()[name]() for name in names])


def test_bounds_given_a_label_are_shown_and_not_ranked_beside_those_without():
    """log p(x | y) and log p(x) are different quantities, whatever else the cards have in common."""
    cvae, vae = scored("model=cvae"), scored("model=vae")
    for name in ("elbo", "iwae_20"):
        assert cvae.cards[name]["given"] == "y of rows of the split" and vae.cards[name]["given"] == "none"
        assert differences([cvae.cards[name], vae.cards[name]]) == ["given"]
    sentence = refusal("ELBO", {"cvae": cvae.cards["elbo"], "vae": vae.cards["elbo"]})
    assert sentence == ("ELBO is not ranked: the cards differ in given (y of rows of the split in cvae, none in vae).")


def test_completions_of_different_parts_are_different_quantities():
    """A regression of the same part is comparable."""
    one, three = (scored("model=cvae_completion", "derive=quadrants", f"derive.c.seen={n}") for n in (1, 3))
    assert one.cards["elbo"]["given"] == "c = Quadrants(of=x, seen=1, third=lower) of rows of the split"
    assert differences([one.cards["elbo"], three.cards["elbo"]]) == ["given"]
    regression = scored("model=completion_regression", "derive=quadrants", "derive.c.seen=3")
    assert not differences([regression.cards["elbo"], three.cards["elbo"]])
    assert regression.scores["iwae_1"] == pytest.approx(regression.scores["elbo"])
    bits = -regression.scores["elbo"] / (16 * math.log(2))  # of the hidden quarter
    assert regression.scores["bits_per_dim"] == pytest.approx(bits)


def test_draws_from_the_prior_are_taken_of_conditional_likelihoods():
    completion = scored("model=cvae_completion", "derive=half", iwae_samples=200)
    estimate, error = completion.scores["prior_200"], completion.scores["prior_200_se"]
    assert estimate == pytest.approx(completion.scores["iwae_200"], abs=0.3) and error > 0
    card = completion.cards["prior_200"]
    assert (card["iwae_samples"], card["n_real"], card["support"]) == (200, 40, "binary")
    about = completion.about["prior_200"]
    assert about["title"] == "log p(x) by draws from the prior, nats, k = 200" and about["better"] == "higher"
    assert "prior_20" not in scored("model=vae").scores
    assert "prior_20" not in scored("model=cvae_completion", "data.binarize=none").scores
    assert "prior_20" not in scored("model=completion_regression").scores
