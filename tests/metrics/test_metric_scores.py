"""FID, IS, KID, precision and recall against closed forms, torchmetrics and torch-fidelity."""

import math
import warnings

import pytest
import torch
from torch import nn

from genlab.errors import UserError
from genlab.metrics import images, scores
from genlab.metrics.features import Features, features_of, full_float32
from genlab.metrics.images import FID, IS, KID, fid, inception_score, kid, pivoted_root
from genlab.metrics.scores import Scores, precision_recall

pytestmark = [pytest.mark.usefixtures("rng_untouched"), pytest.mark.filterwarnings("ignore:FID from")]


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def vectors_with_moments(mean, cov, n=40):
    """Vectors whose mean and covariance (n - 1) are exactly these."""
    x = draw(n, len(mean), dtype=torch.float64)
    x = x - x.mean(dim=0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / (n - 1)), x.T, upper=False).T
    return white @ torch.linalg.cholesky(cov).T + mean


def distance(real, fake):
    """FID of vectors [N, F]."""
    metric = FID(real.shape[1])
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric.compute().item()


def distance_of_gaussians(mean1, cov1, mean2, cov2):
    """|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)), by the eigenvalues of the product."""
    cross = torch.linalg.eigvals(cov1 @ cov2).real.clamp_min(0).sqrt().sum()
    return ((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross).item()


# ---------------------------------------------------------------------------------------------------------- Frechet
@pytest.mark.parametrize("n", [40, 2], ids=["many", "few"])
def test_fid_of_two_gaussians(n):
    """N(0, I) and N((3, 4), 4 I): 25 + (2 + 8 - 2 * 2 * 2) = 27; in one dimension by two vectors, 9 + 1."""
    eye = torch.eye(2, dtype=torch.float64)
    if n == 40:
        sets = vectors_with_moments(torch.zeros(2), eye), vectors_with_moments(torch.tensor([3.0, 4.0]), 4 * eye)
        assert distance(*sets) == pytest.approx(27, abs=1e-9) and distance(*sets[::-1]) == pytest.approx(27, abs=1e-9)
    else:
        half = math.sqrt(0.5)
        one, two = torch.tensor([[-half], [half]]), torch.tensor([[3 - 2 * half], [3 + 2 * half]])
        assert distance(one.double(), two.double()) == pytest.approx(9 + 1, rel=1e-6)


def test_fid_of_commuting_covariances():
    """Diagonal: sum of (sqrt a - sqrt b)^2, also where one variance is zero."""
    a, b = torch.tensor([1.0, 9.0, 0.0, 4.0]).double(), torch.tensor([4.0, 1.0, 25.0, 0.0]).double()
    rotation = torch.linalg.qr(draw(4, 4, dtype=torch.float64)).Q
    white = vectors_with_moments(torch.zeros(4), torch.eye(4, dtype=torch.float64))
    assert distance(*(white * each.sqrt() @ rotation.T for each in (a, b))) == pytest.approx(1 + 4 + 25 + 4, abs=1e-9)


def test_fid_of_covariances_that_do_not_commute():
    a, b = (m @ m.T for m in (draw(6, 6, seed=1).double(), draw(6, 6, seed=2).double()))
    zero = torch.zeros(6, dtype=torch.float64)
    expected = distance_of_gaussians(zero, a, zero, b)
    assert distance(vectors_with_moments(zero, a), vectors_with_moments(zero, b)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rank", [5, 3, 1])
def test_a_root_of_any_rank(rank):
    half = draw(rank, 5, dtype=torch.float64)
    root = pivoted_root(half.T @ half)
    assert root.shape == (rank, 5)
    torch.testing.assert_close(root.T @ root, half.T @ half, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n, width", [(64, 8), (50, 300)])
def test_fid_of_a_set_with_itself_is_zero(n, width):
    stats = Features.of(draw(n, width).relu() * 10)
    assert abs(fid(stats, stats)["fid"]) < 1e-8


def test_few_images_take_another_route_to_the_same_fid(monkeypatch):
    """Singular values of the centred features against Cholesky factors of the covariances, and one of each."""
    mixing = draw(120, 120, seed=3)
    sets = [(draw(40, 120, seed=1) @ mixing).relu(), (draw(90, 120, seed=2) @ mixing).relu() + 0.1]
    kept = [Features.of(x) for x in sets]
    asked = []
    monkeypatch.setattr(images, "pivoted_root", lambda cov: asked.append(len(cov)) or pivoted_root(cov))
    few = fid(*kept)["fid"]
    assert asked == [] and few > 1
    more = fid(kept[0], Features.of(torch.cat([sets[1], sets[1]])))["fid"]
    assert asked == [120]
    moments = [(x.double().mean(dim=0), torch.cov(x.double().T)) for x in sets]
    expected = distance_of_gaussians(*moments[0], *moments[1])
    assert few == pytest.approx(expected, rel=1e-6)
    twice = moments[1][0], moments[1][1] * (90 - 1) * 2 / (180 - 1)
    assert more == pytest.approx(distance_of_gaussians(*moments[0], *twice), rel=1e-6)


def doubled(update):
    """An `update` that sees every feature twice as large."""
    return lambda self, x, *rest, **how: update(self, 2 * x, *rest, **how)


def test_the_sums_are_the_parents(monkeypatch):
    """A parent whose `update` doubles all features is seen in every score that is taken."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    assert issubclass(FID, FrechetInceptionDistance) and issubclass(IS, InceptionScore)
    assert issubclass(KID, KernelInceptionDistance)
    for n in (60, 20):  # more and fewer images than features
        sets = [Features.of(draw(n, 24, seed=s), draw(n, 5, seed=s)) for s in (1, 2)]

        def found(sets=sets):
            return [fid(*sets)["fid"], inception_score(sets[1])["is"], kid(*sets, subsets=3)["kid"]]

        before = found()
        with monkeypatch.context() as patch:
            for parent in (FrechetInceptionDistance, InceptionScore, KernelInceptionDistance):
                patch.setattr(parent, "update", doubled(parent.update))
            after = found()
        assert after[0] == pytest.approx(4 * before[0], rel=1e-9)
        assert abs(after[1] - before[1]) > 0.05 and abs(after[2] - before[2]) > 0.01


def test_fid_of_equal_distributions_falls_with_the_sample_size():
    """Two samples of one 64-d Gaussian: 22.1 at n = 100, 2.24 at n = 1000, .76 at n = 3000 (METHODS-VAE 7.6)."""

    def mean(n):
        pairs = [[Features.of(draw(n, 64, seed=2 * s + i)) for i in (0, 1)] for s in range(10)]
        return sum(fid(*pair)["fid"] for pair in pairs) / 10

    assert [mean(100), mean(1000), mean(3000)] == pytest.approx([22.1, 2.24, 0.76], rel=0.05)


def test_fid_warns_of_few_images_and_refuses_very_few():
    few = Features.of(draw(30, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.warns(UserWarning, match="FID from 30 images and 64 features"):
            fid(few, few)
    with pytest.raises(UserError, match=r"FID needs 20 images or more, got 19. Raise metrics.num_samples."):
        fid(few, Features.of(draw(19, 64)))


# ---------------------------------------------------------------------------------------------------- Inception score
def features_with_logits(logits):
    return Features.of(torch.zeros(len(logits), 1), logits)


def test_inception_score_of_certain_and_even_predictions_is_the_number_of_classes():
    logits = torch.where(torch.eye(10, dtype=torch.bool), 1e4, 0.0).repeat(20, 1)
    assert inception_score(features_with_logits(logits), splits=10, seed=None) == pytest.approx({"is": 10, "is_std": 0})


def test_inception_score_of_constant_predictions_is_one():
    values = inception_score(features_with_logits(draw(1, 7).expand(50, 7)))
    assert values == pytest.approx({"is": 1, "is_std": 0}, abs=1e-12)


def test_inception_score_survives_a_class_that_is_ruled_out():
    logits = draw(40, 5)
    logits[:, 2] = -math.inf
    without = inception_score(features_with_logits(logits[:, [0, 1, 3, 4]]))
    assert inception_score(features_with_logits(logits)) == pytest.approx(without)


def test_inception_score_of_ordered_samples_is_shuffled_first():
    """Class after class, each split would hold one class and score 1."""
    logits = torch.where(torch.eye(10, dtype=torch.bool), 1e4, 0.0).repeat_interleave(50, dim=0)
    assert inception_score(features_with_logits(logits), seed=None)["is"] == pytest.approx(1)
    assert inception_score(features_with_logits(logits))["is"] > 8


# ------------------------------------------------------------------------------------------------------------- KID
def test_kid_of_two_halves_of_one_set_straddles_zero():
    x = draw(1200, 16)
    values = [
        kid(Features.of(x[order[:600]]), Features.of(x[order[600:]]), subsets=10)["kid"]
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
    found = kid(Features.of(x), Features.of(y), subsets=3, subset_size=24)
    assert found == pytest.approx({"kid": expected, "kid_std": 0}, rel=1e-9, abs=1e-12)


def test_kid_subsets_shrink_are_seeded_and_are_stated(monkeypatch):
    sets = Features.of(draw(70, 4, seed=1)), Features.of(draw(50, 4, seed=2))
    first, again, other = kid(*sets, seed=1), kid(*sets, seed=1), kid(*sets, seed=2)
    assert first == again and first != other and first["kid_std"] > 0
    assert first.card["kid_subset_size"] == 25 and first.card["kid_seed"] == 1
    # One kernel of all images, or one for each subset: the same.
    with monkeypatch.context() as patch:
        patch.setattr(images, "AT_ONCE", 0)  # the bound on the size of the one kernel
        apart = kid(*sets, seed=1)
    assert apart == pytest.approx(first)


def test_kid_refuses_subsets_larger_than_the_sets():
    stats = Features.of(draw(30, 4))
    with pytest.raises(UserError, match="subset_size"):
        kid(stats, stats, subset_size=31)


# ----------------------------------------------------------------------------------------------- precision and recall
def test_a_set_has_perfect_precision_and_recall_against_itself():
    stats = Features.of(draw(100, 8))
    values = precision_recall(stats, stats)
    assert (values["precision"], values["recall"], values["coverage"]) == (1, 1, 1)


def test_precision_and_recall_of_one_gaussian():
    """1000 against 1000 of one 8-d Gaussian: .895, not 1 (METHODS-VAE 7.8)."""
    values = precision_recall(*(Features.of(draw(1000, 8, seed=s)) for s in (1, 2)))
    assert values["precision"] == pytest.approx(0.895, abs=0.03)
    assert values["recall"] == pytest.approx(0.895, abs=0.03)
    assert values["density"] == pytest.approx(1, abs=0.1)


def test_a_dropped_mode_costs_recall_and_a_foreign_one_precision():
    two = torch.cat([draw(300, 4, seed=1), draw(300, 4, seed=2) + 50])
    one = draw(600, 4, seed=3)
    values = precision_recall(Features.of(two), Features.of(one))
    assert values["recall"] < 0.51 and values["coverage"] < 0.51 and values["precision"] > 0.85
    swapped = precision_recall(Features.of(one), Features.of(two))
    assert (swapped["precision"], swapped["recall"]) == (values["recall"], values["precision"])
    far = precision_recall(Features.of(one), Features.of(one + 1e3))
    assert set(far.values()) == {0.0}


def test_precision_and_recall_equal_torch_fidelity():
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    real, fake = draw(150, 6, seed=1), 0.7 * draw(130, 6, seed=2)
    values = precision_recall(Features.of(real), Features.of(fake))
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
    stats = [Features.of(x, x) for x in many_features]
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

    stats = [Features.of(x, x) for x in many_features]
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


def test_batches_equal_all_at_once():
    images = torch.randint(0, 256, (2500, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = images.double().flatten(1)
    for batch_size in (7, 400, 2500):
        found = features_of(Plain(), images.split(batch_size))
        assert found.n == 2500 and found.card["extractor"] == "plain"
        torch.testing.assert_close(found.features.double(), x)
        torch.testing.assert_close(found.logits.double(), x[:, :3])


@pytest.mark.parametrize(("n", "tolerance"), [(300, 1e-6), (3, 1e-6)])
def test_a_large_offset_does_not_swamp_the_covariance(n, tolerance):
    """Sums of squares would lose all digits of a variance of 1 at an offset of 1e9, even in float64."""
    x, y = draw(n, 4, dtype=torch.float64), 2 * draw(n, 4, seed=1, dtype=torch.float64)
    assert distance(x + 1e6, y + 1e6) == pytest.approx(distance(x, y), rel=tolerance)


def test_images_may_be_made_when_their_turn_comes():
    images = torch.randint(0, 256, (70, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = features_of(Plain(), [lambda part=part: part for part in images.split(32)])
    assert torch.equal(made.features, features_of(Plain(), images.split(32)).features)


def test_no_images_and_infinite_features():
    assert features_of(Plain(), []).n == 0
    with pytest.raises(ValueError, match="not finite"):
        Features.of(torch.tensor([[1.0], [math.inf]]))


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
    found = Features.of(draw(30, 4, seed=1), draw(30, 3, seed=2), card={"extractor": "plain"})
    both = fid(found, found) | inception_score(found) | kid(found, found) | precision_recall(found, found)
    assert {"fid", "is", "is_std", "kid", "kid_std", "precision", "recall", "density", "coverage"} == set(both)
    assert all(type(value) is float for value in both.values())
    assert both.card["extractor"] == "plain" and both.card["n_real"] == both.card["n_fake"] == 30
    assert both.card["is_splits"] == 10 and both.card["kid_subset_size"] == 15
    assert "fid/plain" in both.named("plain") and both.named("plain").card == both.card
    assert (Scores({"a": 1.0}) | {"b": 2.0}) == {"a": 1.0, "b": 2.0}


def test_importing_metrics_costs_torch_alone():
    import subprocess
    import sys

    code = (
        "import sys, genlab.extractors.classifier, genlab.extractors.inception, genlab.metrics.scores\n"
        "import genlab.metrics.toy, genlab.metrics.neighbours, genlab.fields.drawing\n"
        "found = {'torchmetrics', 'torch_fidelity', 'sklearn', 'PIL', 'torchvision', 'pytorch_lightning', 'hydra',"
        "'genlab.data', 'genlab.models'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_list_of_measures_costs_no_torch():
    """The answer to `--help` names them."""
    import subprocess
    import sys

    code = "import sys, genlab.judging.measure as m; assert 'fid' in m.known() and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
