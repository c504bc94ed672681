"""Every method trains for 300 iterations on digits and on a folder of CIFAR-10, and nothing turns to NaN.

Nor does it in a few iterations at the edges: a constant image, a batch of one, 16 bit, one latent and many.
"""

import tarfile

import pytest
import torch

from genlab.config.composition import compose, insisted
from genlab.config.instantiate import locate
from genlab.config.shipped import options, read_option
from genlab.errors import UserError
from genlab.losses.adversarial import AdversarialLoss
from genlab.runs.folder import load_data
from genlab.runs.start import train

pytestmark = pytest.mark.slow
STEPS = 300
LOSSES = [n for n in options("loss") if issubclass(locate(read_option("loss", n)["_target_"], "loss"), AdversarialLoss)]
METHODS = {**{f"model={m}": [f"model={m}"] for m in options("model")}, **{f"loss={n}": [f"loss={n}"] for n in LOSSES}}
OWN_DATA = [m for m in options("model") if insisted(m, "data")]  # they cannot train on others
PER_CLASS = 100


@pytest.fixture(scope="module")
def cifar(shared_data, tmp_path_factory):
    """The first training images of each class, as a folder of class folders."""
    archive = shared_data / "cifar10-jpg.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    root, counts = tmp_path_factory.mktemp("cifar"), {}
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = member.name.split("/")
            if not member.isfile() or "train" not in parts:
                continue
            name = parts[-2]
            counts[name] = counts.get(name, 0) + 1
            if counts[name] <= PER_CLASS:
                (root / name).mkdir(exist_ok=True)
                (root / name / parts[-1]).write_bytes(tar.extractfile(member).read())
            if len(counts) == 10 and min(counts.values()) >= PER_CLASS:
                break
    assert len(counts) == 10
    return root


def fits(overrides, data, tmp_path, steps=STEPS):
    """Trains, and looks at every number that was written and at samples or reconstructions."""
    quiet = ["callbacks=none", "metrics=none", "logger=csv", "threads=1", "trainer=cpu", f"trainer.max_steps={steps}"]
    result = train(compose([*overrides, *data, *quiet, f"trainer.log_every_n_steps={min(10, steps)}"]), tmp_path)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    values = torch.tensor([float(row.rsplit(",", 1)[1]) for row in rows], dtype=torch.float64)
    assert values.isfinite().all() and (len(values) > 0 or "model=pca" in overrides)
    model = result.model
    told = None
    if model.given:
        rng = torch.Generator().manual_seed(0)
        told = load_data(model.run_config).given_rows("train", model.given, 8, rng)
    made = model.sample(8, given=told) if model.can("sample") else None
    assert made is None or made.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_digits(name, tmp_path):
    data = [] if name.partition("=")[2] in OWN_DATA else ["data=digits"]
    fits(METHODS[name], data, tmp_path)


@pytest.mark.parametrize("name", [name for name in METHODS if name.partition("=")[2] not in OWN_DATA])
def test_a_folder_of_cifar10(name, cifar, tmp_path):
    network = insisted(name.partition("=")[2], "network") if name.startswith("model=") else None
    overrides = [*METHODS[name], *([f"network={network}"] if network else [])]
    keys = read_option("network", network or "dcgan")
    overrides += ["network.width=16"] if "width" in keys else []
    data = ["data=folder", f"data.root={cifar}", "data.image_size=32", "data.num_classes=10", "data.batch_size=16"]
    fits(overrides, data, tmp_path)


EXTREMES = {
    "a constant image": ["data.limit_train=1"],
    "a batch of one": ["data.batch_size=1"],
    "16 bit": ["speed.precision=bfloat16"],
    "one latent": ["model.latent_dim=1"],
    "512 latents": ["model.latent_dim=512"],
}


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("model", options("model"))
def test_extremes(model, extreme, tmp_path):
    """It trains without a NaN, or says in a sentence why it cannot."""
    data = [] if model in OWN_DATA else ["data=digits"]
    if "latent" in extreme and "latent_dim" not in compose([f"model={model}", *data])["model"]:
        pytest.skip("its latents are of another kind")
    try:
        fits([f"model={model}", *EXTREMES[extreme]], data, tmp_path, steps=12)
    except UserError as refusal:
        assert extreme in ("a batch of one", "one latent", "512 latents") and "\n" not in str(refusal)
