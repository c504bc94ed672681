"""The fast Inception network against the two packages that define it, and the ways its weights can be missing."""

import re
from http.client import IncompleteRead
from pathlib import Path

import pytest
import torch

from genlab.errors import UserError
from genlab.extractors import inception
from genlab.extractors.inception import InceptionExtractor, find_inception_weights, load_inception, resize_matrix
from genlab.metrics.features import Extractor, Features, features_of
from genlab.metrics.images import fid, inception_score, kid

pytestmark = pytest.mark.filterwarnings("ignore:FID from")


@pytest.fixture(scope="module")
def extractor(inception_file) -> Extractor:
    return load_inception(inception_file)


def pictures(n, channels, height=32, width=32, seed=0):
    """Smooth blobs of different contrast: more unlike each other than noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 4, generator=generator) * torch.rand(n, 1, 1, 1, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return (smooth + 20 * torch.rand(n, channels, height, width, generator=generator)).clamp(0, 255).to(torch.uint8)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("size", [(32, 32), (8, 20), (320, 300)])
def test_features_equal_torch_fidelity_and_torchmetrics(extractor, inception_file, size, rng_untouched):
    x = pictures(2, 3, *size)
    features, logits = extractor(x)
    with torch.random.fork_rng(devices=[]):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        from torchmetrics.image.fid import NoTrainInceptionV3

        theirs = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(inception_file))
        torchmetrics = NoTrainInceptionV3("inception", ["2048"], str(inception_file), antialias=False)
    expected_features, expected_logits = theirs(x)
    assert features.std(dim=0).mean() > 1e-2 * features.mean(), "constant features would prove nothing"
    assert relative(features, expected_features) < 1e-5
    assert relative(logits, expected_logits) < 1e-5
    assert relative(features, torchmetrics(x)) < 1e-5


@pytest.mark.parametrize("size", [1, 8, 32, 299, 512])
def test_resize_is_tensorflows(size):
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    x = torch.randint(0, 256, (1, 1, size, 16), generator=torch.Generator().manual_seed(0)).float()
    expected = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    torch.testing.assert_close(resize_matrix(size, 299) @ x @ resize_matrix(16, 299).T, expected, rtol=1e-6, atol=1e-4)


def test_grey_is_repeated(extractor):
    grey = pictures(2, 1)
    torch.testing.assert_close(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))


@pytest.mark.long
@pytest.mark.parametrize("channels", [1, 3])
def test_scores_equal_both_packages(extractor, channels):
    """64 against 64 images through the network once, then the published algebra on those features."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Identity(torch.nn.Identity):
        num_features = 2048

    sets = [pictures(64, channels, seed=seed) for seed in (1, 2)]
    sets[1] = 255 - sets[1]
    real, fake = (features_of(extractor, x.split(32)) for x in sets)
    assert real.n == fake.n == 64
    ours = fid(real, fake)["fid"]
    if channels == 3:  # a [2048, 2048] spectrum takes seconds: one reference each
        theirs = fid_statistics_to_metric(
            *(fid_features_to_statistics(stats.features.double()) for stats in (real, fake)), verbose=False
        )
        assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    else:
        metric = FrechetInceptionDistance(feature=Identity())
        metric.set_dtype(torch.float64)
        metric.update(real.features.double(), real=True)
        metric.update(fake.features.double(), real=False)
        assert ours == pytest.approx(metric.compute().item(), rel=1e-3)

    assert list(inception_score(fake, splits=4, seed=None).values()) == pytest.approx(
        list(isc_features_to_metric(fake.logits, splits=4, shuffle=False).values()), rel=1e-3
    )
    their_kid = kid_features_to_metric(
        real.features.double(), fake.features.double(), kid_subsets=1, kid_subset_size=64, verbose=False, rng_seed=0
    )
    found = kid(real, fake, subsets=1, subset_size=64)["kid"]
    assert found == pytest.approx(their_kid["kernel_inception_distance_mean"], rel=1e-3)


class Images(torch.utils.data.Dataset):
    """uint8 images as torch-fidelity takes them, grey repeated."""

    def __init__(self, x):
        self.x = x.repeat(1, 3 // x.shape[1], 1, 1)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64])
def test_a_thousand_images_score_as_in_torch_fidelity(extractor, inception_file, size):
    """1,000 against 1,000 through both whole pipelines; ten minutes each. Same KID subsets, same order for IS."""
    import numpy as np
    from torch_fidelity import calculate_metrics

    real, fake = pictures(1000, 3, size, size, seed=1), pictures(1000, 3, size, size, seed=2)
    fake = (fake.float() * 0.8 + 30).to(torch.uint8)
    theirs = calculate_metrics(
        input1=Images(fake),
        input2=Images(real),
        cuda=False,
        fid=True,
        isc=True,
        kid=True,
        kid_subsets=20,
        kid_subset_size=200,
        isc_splits=10,
        samples_shuffle=True,
        rng_seed=2020,
        feature_extractor_weights_path=str(inception_file),
        verbose=False,
        cache=False,
    )
    of_real, of_fake = (features_of(extractor, x.split(100)) for x in (real, fake))
    stream = np.random.RandomState(2020)
    subsets = []
    for _ in range(20):
        parts = [
            stats.features[torch.from_numpy(stream.choice(1000, 200, replace=False))] for stats in (of_fake, of_real)
        ]
        subsets.append(kid(*(Features.of(part) for part in parts[::-1]), subsets=1, subset_size=200)["kid"])
    order = torch.from_numpy(np.random.RandomState(2020).permutation(1000))
    found_is = inception_score(Features.of(of_fake.features, of_fake.logits[order]), splits=10, seed=None)
    ours = {
        "frechet_inception_distance": fid(of_real, of_fake)["fid"],
        "kernel_inception_distance_mean": float(np.mean(subsets)),
        "kernel_inception_distance_std": float(np.std(subsets)),
        "inception_score_mean": found_is["is"],
        "inception_score_std": found_is["is_std"],
    }
    for name, value in ours.items():
        print(f"{size}x{size} {name}: {value:.9g}, torch-fidelity {theirs[name]:.9g}, {value / theirs[name] - 1:.1e}")
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], rel=1e-3), name


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_whole_pipelines_agree(extractor, inception_file, channels):
    """The same through torch-fidelity's and torchmetrics' own networks, resize included."""
    from torch_fidelity import calculate_metrics
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, fake = pictures(64, channels, seed=1), 255 - pictures(64, channels, seed=2)
    theirs = calculate_metrics(
        input1=Images(fake),
        input2=Images(real),
        cuda=False,
        fid=True,
        isc=True,
        kid=True,
        kid_subsets=1,
        kid_subset_size=64,
        isc_splits=4,
        samples_shuffle=False,
        feature_extractor_weights_path=str(inception_file),
        verbose=False,
        cache=False,
    )
    metric = FrechetInceptionDistance(feature_extractor_weights_path=str(inception_file), antialias=False)
    metric.set_dtype(torch.float64)
    metric.update(Images(real).x, real=True)
    metric.update(Images(fake).x, real=False)
    stats = [features_of(extractor, x.split(32)) for x in (real, fake)]
    ours = fid(*stats)["fid"]
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours == pytest.approx(metric.compute().item(), rel=1e-3)
    assert kid(*stats, subsets=1, subset_size=64)["kid"] == pytest.approx(
        theirs["kernel_inception_distance_mean"], rel=1e-3
    )
    assert inception_score(stats[1], splits=4, seed=None)["is"] == pytest.approx(
        theirs["inception_score_mean"], rel=1e-3
    )


def test_it_is_frozen_whatever_is_asked(extractor):
    x = pictures(2, 3)
    before = extractor(x)
    extractor.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        after = extractor(x)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert not any(module.training for module in extractor.modules())
    assert after[0].dtype == torch.float32 and not after[0].requires_grad
    assert extractor(x[:0])[0].shape == (0, 2048)
    with pytest.raises(ValueError, match="uint8"):
        extractor(x.float())


def test_bfloat16_is_near_and_says_so(extractor, inception_file):
    x = pictures(2, 3)
    quick = load_inception(inception_file, precision="bfloat16")
    assert quick.name == "inception-bf16" and quick.card()["precision"] == "bfloat16"
    assert 1e-5 < relative(quick(x)[0], extractor(x)[0]) < 0.03
    assert quick(x)[0].dtype == torch.float32
    with pytest.raises(UserError, match="float32 or bfloat16, got 'float16'"):
        load_inception(inception_file, precision="float16")


def test_card(extractor, inception_file):
    from genlab.extractors.checksums import file_checksum

    card = extractor.card()
    assert card["extractor"] == "inception" and card["checksum"] == file_checksum(inception_file)
    assert "antialias=False" in card["resize"]
    state = inception.read_inception_weights(inception_file)
    assert len(InceptionExtractor(state).checksum) == 64


# ------------------------------------------------------------------------------------------------------------- weights
@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch hub cache, and no way to the network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("went to the network"))
    return tmp_path / "checkpoints" / inception.FILE_NAME


def one_sentence(message):
    return "\n" not in message and message.endswith(".") and message.count(". ") == 0


def test_missing_weights_are_explained_in_one_sentence(hub, tmp_path):
    with pytest.raises(UserError, match="metrics.inception_weights=PATH") as caught:
        load_inception()
    assert one_sentence(str(caught.value)) and inception.URL in str(caught.value)
    with pytest.raises(UserError, match="There is no file .*nowhere.pth") as caught:
        load_inception(tmp_path / "nowhere.pth")
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize(
    "error", [OSError("no route to host"), IncompleteRead(b"", 9), RuntimeError("invalid hash value")]
)
def test_a_failed_download_is_explained_in_one_sentence(error, hub, monkeypatch):
    def offline(*_, **__):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=re.escape(str(error))) as caught:
        load_inception(download=True)
    assert one_sentence(str(caught.value)) and inception.URL in str(caught.value)


def test_a_cache_that_cannot_be_written_is_explained_in_one_sentence(hub):
    hub.parent.write_text("in the way")
    with pytest.raises(UserError, match="could not be fetched") as caught:
        load_inception(download=True)
    assert one_sentence(str(caught.value))


def test_one_command_fetches_the_weights(hub, monkeypatch, capsys, inception_file):
    """Where there is a network, a path that the extractor finds without a further word; elsewhere a sentence."""
    from genlab.cli import evaluate

    def fetch(url, target, hash_prefix, progress):
        if offline:
            raise OSError("no route to host")
        Path(target).write_bytes(inception_file.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    monkeypatch.setattr(inception, "file_checksum", lambda _: inception.SHA256_PREFIX + "0" * 56)
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--fetch-inception"])
    offline = True
    with pytest.raises(SystemExit) as stopped:
        evaluate.main()
    said = capsys.readouterr()
    assert stopped.value.code == 2 and "could not be fetched" in said.err and "Traceback" not in said.err
    offline = False
    evaluate.main()
    assert str(hub) in capsys.readouterr().out and hub.is_file()
    assert load_inception().name == "inception"


def test_the_documentation_names_the_file_its_source_and_its_checksum():
    root = Path(__file__).resolve().parents[2]
    for page in ("README.md", "docs/configuration.md"):
        text = (root / page).read_text()
        for word in (inception.URL, f"begins with `{inception.SHA256_PREFIX}`", "--fetch-inception"):
            assert word in text, (page, word)


def test_a_download_is_checked_and_kept(hub, monkeypatch, inception_file):
    calls = []

    def fetch(url, target, hash_prefix, progress):
        calls.append((url, hash_prefix))
        with open(target, "wb") as file:
            file.write(inception_file.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    monkeypatch.setattr(inception, "file_checksum", lambda _: inception.SHA256_PREFIX + "0" * 56)
    assert find_inception_weights(download=True) == find_inception_weights(download=True) == hub
    assert calls == [(inception.URL, inception.SHA256_PREFIX)]


def test_a_damaged_cache_is_named(hub):
    hub.parent.mkdir()
    hub.write_bytes(b"half")
    with pytest.raises(UserError, match="is damaged"):
        load_inception()


@pytest.mark.parametrize("content", ["text", "list", "other network", "code"])
def test_wrong_weight_files_are_refused(tmp_path, content):
    path, owned = tmp_path / "weights.pth", tmp_path / "owned"

    class Evil:
        def __reduce__(self):
            return (owned.touch, ())

    if content == "text":
        path.write_text("not weights")
    else:
        torch.save({"list": [1], "other network": {"fc.weight": torch.zeros(3)}, "code": Evil()}[content], path)
    with pytest.raises(UserError, match="metrics.inception_weights must be") as caught:
        load_inception(path)
    assert one_sentence(str(caught.value)) and not owned.exists()


def test_building_it_draws_no_random_numbers(inception_file, rng_untouched):
    load_inception(inception_file)
