"""FID, IS, KID, precision and recall against closed forms, torchmetrics and torch-fidelity."""

import math
import warnings

import pytest
import torch
from torch import nn

from genlab.errors import UserError
from genlab.metrics import scores
from genlab.metrics.features import FeatureStats, features_of, full_float32
from genlab.metrics.scores import Scores, fid, frechet_distance, inception_score, kid, precision_recall

pytestmark = [pytest.mark.usefixtures("rng_untouched"), pytest.mark.filterwarnings("ignore:FID from")]


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stats_with_moments(mean, cov):
    """Forty vectors whose mean and covariance (n - 1) are exactly these."""
    x = draw(40, len(mean), dtype=torch.float64)
    x = x - x.mean(dim=0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / 39), x.T, upper=False).T
    return FeatureStats.of(white @ torch.linalg.cholesky(cov).T + mean)


# ---------------------------------------------------------------------------------------------------------- Frechet
def test_frechet_distance_of_two_gaussians():
    """N(0, I) and N((3, 4), 4 I): 25 + (2 + 8 - 2 * 2 * 2) = 27."""
    eye = torch.eye(2, dtype=torch.float64)
    zero, shift = torch.zeros(2), torch.tensor([3.0, 4.0])
    assert frechet_distance(zero, eye, shift, 4 * eye) == pytest.approx(27, abs=1e-6)
    assert frechet_distance(shift, 4 * eye, zero, eye) == pytest.approx(27, abs=1e-6)


def test_frechet_distance_of_commuting_covariances():
    """Diagonal: sum of (sqrt a - sqrt b)^2, also where one variance is zero."""
    a, b = torch.tensor([1.0, 9.0, 0.0, 4.0]).double(), torch.tensor([4.0, 1.0, 25.0, 0.0]).double()
    rotation = torch.linalg.qr(draw(4, 4, dtype=torch.float64)).Q
    covs = [rotation @ torch.diag(each) @ rotation.T for each in (a, b)]
    zero = torch.zeros(4)
    assert frechet_distance(zero, covs[0], zero, covs[1]) == pytest.approx(1 + 4 + 25 + 4, abs=1e-6)


def test_frechet_distance_of_covariances_that_do_not_commute():
    a, b = (m @ m.T for m in (draw(6, 6, seed=1).double(), draw(6, 6, seed=2).double()))
    values = torch.linalg.eigvals(a @ b)
    expected = (a.trace() + b.trace() - 2 * values.sqrt().real.sum()).item()
    assert frechet_distance(torch.zeros(6), a, torch.zeros(6), b) == pytest.approx(expected, rel=1e-9)


def test_fid_from_samples_with_exact_moments():
    eye = torch.eye(2, dtype=torch.float64)
    real = stats_with_moments(torch.zeros(2), eye)
    fake = stats_with_moments(torch.tensor([3.0, 4.0]), 4 * eye)
    assert fid(real, fake)["fid"] == pytest.approx(27, abs=1e-6)


@pytest.mark.parametrize("n, width", [(64, 8), (50, 300)])
def test_fid_of_a_set_with_itself_is_zero(n, width):
    stats = FeatureStats.of(draw(n, width).relu() * 10)
    assert abs(fid(stats, stats)["fid"]) < 1e-8


def test_few_images_take_another_route_to_the_same_fid():
    """Nuclear norm of the centred features against eigenvalues of the covariances, and one of each."""
    mixing = draw(120, 120, seed=3)
    sets = [(draw(40, 120, seed=1) @ mixing).relu(), (draw(90, 120, seed=2) @ mixing).relu() + 0.1]
    kept = [FeatureStats.of(x) for x in sets]
    moments = [FeatureStats.of(x, keep=0) for x in sets]
    assert all(stats.complete for stats in kept) and not any(stats.complete for stats in moments)
    expected = fid(*moments)["fid"]
    assert expected > 1
    assert fid(*kept)["fid"] == pytest.approx(expected, rel=1e-6)
    assert fid(kept[0], moments[1])["fid"] == pytest.approx(expected, rel=1e-6)


def test_fid_of_equal_distributions_falls_with_the_sample_size():
    """Two samples of one 64-d Gaussian: 22.1 at n = 100, 2.24 at n = 1000, .76 at n = 3000 (METHODS-VAE 7.6)."""

    def mean(n):
        pairs = [[FeatureStats.of(draw(n, 64, seed=2 * s + i)) for i in (0, 1)] for s in range(10)]
        return sum(fid(*pair)["fid"] for pair in pairs) / 10

    assert [mean(100), mean(1000), mean(3000)] == pytest.approx([22.1, 2.24, 0.76], rel=0.05)


def test_fid_warns_of_few_images_and_refuses_very_few():
    few = FeatureStats.of(draw(30, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.warns(UserWarning, match="FID from 30 images and 64 features"):
            fid(few, few)
    with pytest.raises(UserError, match=r"FID needs 20 images or more, got 19. Raise metrics.num_samples."):
        fid(few, FeatureStats.of(draw(19, 64)))


# ---------------------------------------------------------------------------------------------------- Inception score
def stats_with_logits(logits):
    return FeatureStats.of(torch.zeros(len(logits), 1), logits)


def test_inception_score_of_certain_and_even_predictions_is_the_number_of_classes():
    logits = torch.where(torch.eye(10, dtype=torch.bool), 1e4, 0.0).repeat(20, 1)
    assert inception_score(stats_with_logits(logits), splits=10, seed=None) == pytest.approx({"is": 10, "is_std": 0})


def test_inception_score_of_constant_predictions_is_one():
    values = inception_score(stats_with_logits(draw(1, 7).expand(50, 7)))
    assert values == pytest.approx({"is": 1, "is_std": 0}, abs=1e-12)


def test_inception_score_survives_a_class_that_is_ruled_out():
    logits = draw(40, 5)
    logits[:, 2] = -math.inf
    without = inception_score(stats_with_logits(logits[:, [0, 1, 3, 4]]))
    assert inception_score(stats_with_logits(logits)) == pytest.approx(without)


def test_inception_score_of_ordered_samples_is_shuffled_first():
    """Class after class, each split would hold one class and score 1."""
    logits = torch.where(torch.eye(10, dtype=torch.bool), 1e4, 0.0).repeat_interleave(50, dim=0)
    assert inception_score(stats_with_logits(logits), seed=None)["is"] == pytest.approx(1)
    assert inception_score(stats_with_logits(logits))["is"] > 8


# ------------------------------------------------------------------------------------------------------------- KID
def test_kid_of_two_halves_of_one_set_straddles_zero():
    x = draw(1200, 16)
    values = [
        kid(FeatureStats.of(x[order[:600]]), FeatureStats.of(x[order[600:]]), subsets=10)["kid"]
        for order in (torch.randperm(1200, generator=torch.Generator().manual_seed(s)) for s in range(12))
    ]
    assert min(values) < 0 < max(values)
    assert abs(sum(values) / 12) < 0.005


def test_kid_is_the_unbiased_estimate():
    """Over all pairs i != j within a set, all pairs across; by explicit loops."""
    x, y = draw(24, 3, seed=1), draw(24, 3, seed=2) + 0.5

    def mean(a, b, same):
        terms = [
            (float(u.double() @ v.double()) / 3 + 1) ** 3
            for i, u in enumerate(a)
            for j, v in enumerate(b)
            if not (same and i == j)
        ]
        return sum(terms) / len(terms)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    found = kid(FeatureStats.of(x), FeatureStats.of(y), subsets=3, subset_size=24)
    assert found == pytest.approx({"kid": expected, "kid_std": 0}, rel=1e-9, abs=1e-12)


def test_kid_subsets_shrink_are_seeded_and_are_stated(monkeypatch):
    sets = FeatureStats.of(draw(70, 4, seed=1)), FeatureStats.of(draw(50, 4, seed=2))
    first, again, other = kid(*sets, seed=1), kid(*sets, seed=1), kid(*sets, seed=2)
    assert first == again and first != other and first["kid_std"] > 0
    assert first.card["kid_subset_size"] == 25 and first.card["kid_seed"] == 1
    # One kernel of all images, or one for each subset: the same.
    with monkeypatch.context() as patch:
        patch.setattr(scores.math, "sqrt", lambda _: 0)  # the bound on the size of the one kernel
        apart = kid(*sets, seed=1)
    assert apart == pytest.approx(first)


def test_kid_refuses_subsets_larger_than_the_sets():
    stats = FeatureStats.of(draw(30, 4))
    with pytest.raises(UserError, match="subset_size"):
        kid(stats, stats, subset_size=31)


# ----------------------------------------------------------------------------------------------- precision and recall
def test_a_set_has_perfect_precision_and_recall_against_itself():
    stats = FeatureStats.of(draw(100, 8))
    values = precision_recall(stats, stats)
    assert (values["precision"], values["recall"], values["coverage"]) == (1, 1, 1)


def test_precision_and_recall_of_one_gaussian():
    """1000 against 1000 of one 8-d Gaussian: .895, not 1 (METHODS-VAE 7.8)."""
    values = precision_recall(*(FeatureStats.of(draw(1000, 8, seed=s)) for s in (1, 2)))
    assert values["precision"] == pytest.approx(0.895, abs=0.03)
    assert values["recall"] == pytest.approx(0.895, abs=0.03)
    assert values["density"] == pytest.approx(1, abs=0.1)


def test_a_dropped_mode_costs_recall_and_a_foreign_one_precision():
    two = torch.cat([draw(300, 4, seed=1), draw(300, 4, seed=2) + 50])
    one = draw(600, 4, seed=3)
    values = precision_recall(FeatureStats.of(two), FeatureStats.of(one))
    assert values["recall"] < 0.51 and values["coverage"] < 0.51 and values["precision"] > 0.85
    swapped = precision_recall(FeatureStats.of(one), FeatureStats.of(two))
    assert (swapped["precision"], swapped["recall"]) == (values["recall"], values["precision"])
    far = precision_recall(FeatureStats.of(one), FeatureStats.of(one + 1e3))
    assert set(far.values()) == {0.0}


def test_precision_and_recall_equal_torch_fidelity():
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    real, fake = draw(150, 6, seed=1), 0.7 * draw(130, 6, seed=2)
    values = precision_recall(FeatureStats.of(real), FeatureStats.of(fake))
    expected = calculate_precision_recall_full(fake.double(), real.double(), 3)
    assert (values["precision"], values["recall"]) == pytest.approx(expected, abs=1e-6)


def test_memory_bound_does_not_change_distances():
    x, y = draw(50, 5, seed=1) + 100, draw(70, 5, seed=2) + 100
    found = scores.distances(x, y, lambda d: d, chunk=7)
    torch.testing.assert_close(found, torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist"))


# --------------------------------------------------------------------------------- against torchmetrics, torch-fidelity
class Identity(nn.Identity):
    """A torchmetrics `feature=`: features in, features out."""

    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features


@pytest.fixture(scope="module")
def many_features():
    return [draw(200, 24, seed=s).relu() * (1 + s) for s in (1, 2)]


def test_scores_equal_torchmetrics(many_features):
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    real, fake = (x.double() for x in many_features)
    stats = [FeatureStats.of(x, x) for x in many_features]
    theirs = FrechetInceptionDistance(feature=Identity(24))
    theirs.set_dtype(torch.float64)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    assert fid(*stats)["fid"] == pytest.approx(theirs.compute().item(), rel=1e-6)

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # they draw from the global stream
        warnings.simplefilter("ignore")  # of the memory that kept features take
        their_kid = KernelInceptionDistance(feature=Identity(24), subsets=2, subset_size=200)
        their_kid.update(real, real=True)
        their_kid.update(fake, real=False)
        their_is = InceptionScore(feature=Identity(24), splits=1)
        their_is.update(fake)
        expected = their_kid.compute()[0].item(), their_is.compute()[0].item()
    ours = kid(*stats, subsets=2, subset_size=200)["kid"], inception_score(stats[1], splits=1)["is"]
    assert ours == pytest.approx(expected, rel=1e-6)


def test_scores_equal_torch_fidelity(many_features):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric

    stats = [FeatureStats.of(x, x) for x in many_features]
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(x) for x in many_features), verbose=False)
    assert fid(*stats)["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    is_theirs = isc_features_to_metric(many_features[1], splits=7, shuffle=False)
    assert list(inception_score(stats[1], splits=7, seed=None).values()) == pytest.approx(list(is_theirs.values()))


# --------------------------------------------------------------------------------------------------------- statistics
class Plain(nn.Module):
    """An extractor in which the features are the pixels."""

    name, num_features, num_classes = "plain", 12, 3

    def forward(self, images):
        x = images.float().flatten(1)
        return x, x[:, :3]

    def card(self):
        return {"extractor": self.name, "checksum": "0"}


def test_streaming_equals_all_at_once():
    images = torch.randint(0, 256, (2500, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = images.double().flatten(1)
    for batch_size in (7, 400, 2500):
        stats = features_of(Plain(), images.split(batch_size))
        assert stats.n == 2500 and stats.complete and stats.card["extractor"] == "plain"
        torch.testing.assert_close(stats.mean, x.mean(dim=0), rtol=1e-12, atol=0)
        torch.testing.assert_close(stats.cov, torch.cov(x.T), rtol=1e-10, atol=1e-8)
        torch.testing.assert_close(stats.features.double(), x)
        torch.testing.assert_close(stats.logits.double(), x[:, :3])


def test_a_large_offset_does_not_swamp_the_covariance():
    """Sums of squares would lose all digits of a variance of 1 at an offset of 1e9, even in float64."""
    x = draw(300, 4, dtype=torch.float64) + 1e9
    merged = FeatureStats.empty(4).merge(*(FeatureStats.of(part) for part in x.split(50)))
    torch.testing.assert_close(merged.cov, torch.cov(x.T), rtol=1e-6, atol=1e-6)


def test_beyond_the_bound_a_uniform_sample_is_kept():
    images = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).repeat(20, 1, 1, 1)
    stats = features_of(Plain(), images.split(64), keep=500)
    assert stats.n == 4000 and len(stats.features) == len(stats.logits) == 500 and not stats.complete
    assert stats.features.mean().item() == pytest.approx(99.5, abs=8)  # standard error 2.6
    torch.testing.assert_close(stats.mean, torch.full((12,), 99.5, dtype=torch.float64))


def test_beyond_the_bound_rows_are_thinned_on_the_way():
    """What is joined along the way (twice the bound is held at most) is the sample of all at once."""
    images = torch.randint(0, 256, (5000, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, few = features_of(Plain(), [images]), features_of(Plain(), images.split(1024), keep=700)
    rows = whole.keys.topk(700, largest=False).indices.sort().values
    assert torch.equal(few.features, whole.features[rows]) and torch.equal(few.keys, whole.keys[rows])


def test_images_may_be_made_when_their_turn_comes():
    images = torch.randint(0, 256, (70, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = features_of(Plain(), [lambda part=part: part for part in images.split(32)])
    assert torch.equal(made.features, features_of(Plain(), images.split(32)).features)


def test_no_images_and_infinite_features():
    assert features_of(Plain(), []).n == 0
    with pytest.raises(ValueError, match="not finite"):
        FeatureStats.of(torch.tensor([[1.0], [math.inf]]))


def test_full_float32_lifts_lowered_precision_and_puts_it_back():
    x = draw(256, 256)
    exact = x @ x
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with full_float32(torch.device("cpu")):
                torch.testing.assert_close(x @ x, exact)
            assert (x @ x).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


# -------------------------------------------------------------------------------------------------------------- cards
def test_scores_join_with_their_cards():
    stats = FeatureStats.of(draw(30, 4, seed=1), draw(30, 3, seed=2), card={"extractor": "plain"})
    both = scores.score(stats, stats, wanted=("fid", "is", "kid", "pr"))
    assert {"fid", "is", "is_std", "kid", "kid_std", "precision", "recall", "density", "coverage"} == set(both)
    assert all(type(value) is float for value in both.values())
    assert both.card["extractor"] == "plain" and both.card["n_real"] == both.card["n_fake"] == 30
    assert both.card["is_splits"] == 10 and both.card["kid_subset_size"] == 15
    assert "fid/plain" in both.named("plain") and both.named("plain").card == both.card
    assert (Scores({"a": 1.0}) | {"b": 2.0}) == {"a": 1.0, "b": 2.0}
    with pytest.raises(UserError, match="There is no score inception; metrics.scores takes fid, is, kid, pr."):
        scores.score(stats, stats, wanted=("inception",))


def test_features_of_different_extractors_do_not_mix():
    one, other = (FeatureStats.of(draw(30, 4), card={"checksum": each}) for each in "ab")
    with pytest.raises(ValueError, match="different extractors"):
        scores.score(one, other, wanted=("fid",))


def test_importing_metrics_costs_torch_alone():
    import subprocess
    import sys

    code = (
        "import sys, genlab.metrics.classifier, genlab.metrics.inception, genlab.metrics.scores, genlab.metrics.toy,"
        "genlab.metrics.diversity, genlab.fields.drawing, genlab.judging.judge\n"
        "found = {'torchmetrics', 'torch_fidelity', 'sklearn', 'PIL', 'torchvision', 'pytorch_lightning', 'hydra',"
        "'genlab.data', 'genlab.models'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
