"""A kind of column, a data set and a way of telling from outside of genlab go through every door."""

import numpy as np
import pytest
import torch
from PIL import Image

import genlab
from genlab.cli.sample import read_options, sample
from genlab.config.composition import compose
from genlab.errors import UserError
from genlab.networks.told import Concat
from genlab.runs.start import train
from tests.cli.helpers import REPO, command
from tests.fields import outside
from tests.models.helpers import config

SKY = """
defaults:
  - /network@_global_.network: mlp
  - /metrics@_global_.metrics: points
  - _self_
_target_: tests.fields.outside.Sky
kind: phase
shape: [1]
num_classes: null
batch_size: 16
seed: ${seed}
columns: {before: {kind: phase, shape: [1]}}
"""
DATA = [
    "data=ring",
    "data._target_=tests.fields.outside.Sky",
    "data.kind=phase",
    "data.shape=[1]",
    "data.num_classes=null",
    "+data.columns.before={kind:phase,shape:[1]}",
]
NETWORKS = [
    "network.hidden=[8]",
    "network.generator._target_=tests.fields.outside.Generator",
    "network.discriminator._target_=tests.fields.outside.Discriminator",
]
MODEL = ["model=cgan", "model.given=[before]", "model.latent_dim=2"]
QUICK = ["data.batch_size=16", "trainer.max_steps=3", "trainer=cpu", "threads=1", "metrics=none", "logger=none"]
WHISPER = "conditioning.draws=[{_target_: tests.fields.outside.Whisper}]"
HERE = {"PYTHONPATH": str(REPO)}
ALLOWED = "allow_targets=[tests.*]"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A conditional GAN of moons, told the moons before."""
    folder = tmp_path_factory.mktemp("sky") / "run"
    train(compose([*DATA, *NETWORKS, *MODEL, *QUICK]), folder)
    return folder


def test_a_kind_from_outside_is_trained_on_and_drawn(run):
    """Rows of two squares of the kind's own, the condition and the sample: neither a text nor a scatter plot."""
    picture = np.asarray(Image.open(run / "samples.png"))
    assert picture.ndim == 3 and picture.shape[0] > 8 * 60
    model = genlab.load(run, allow_targets=("tests.*",))
    assert model.spec.x == outside.Phase((1,)) and model.spec.fields["before"] == outside.Phase((1,))
    assert isinstance(model.generator, Concat) and model.generator.network.decoder.body[0].in_features == 2 + 2


def test_its_stored_values_are_normalised(run):
    """x is the condition plus 20 of 255 in every row."""
    (batch,) = genlab.runs.running.build(config([*DATA, *NETWORKS, *MODEL])).data.first_batches(1)
    torch.testing.assert_close(batch.x, batch.tensor("before") + 20 / 255)
    assert 0 <= float(batch.tensor("before").min()) and float(batch.x.max()) <= 1


def test_a_condition_of_its_kind_is_typed(run):
    path = sample(read_options([f"run={run}", "before=half", "n=5", "format=npz", ALLOWED]))
    with np.load(path) as found:
        assert sorted(found.files) == ["before", "x"] and found["x"].shape == (5, 1)
        np.testing.assert_array_equal(found["before"], np.full((5, 1), 0.5, np.float32))
    model = genlab.load(run, allow_targets=("tests.*",))
    given = genlab.batch.Batch({"before": torch.full((5, 1), 0.5)})
    drawn = model.sample(5, given=given, rng=torch.Generator().manual_seed(0))
    with np.load(path) as found:
        np.testing.assert_array_equal(found["x"], drawn.numpy())
    assert Image.open(sample(read_options([f"run={run}", "before=full", "n=4", ALLOWED]))).mode == "RGB"


def test_its_own_sentence_refuses_what_was_typed(run):
    with pytest.raises(UserError, match="^before=red: 'red' is no phase; they are new, half, full.$"):
        sample(read_options([f"run={run}", "before=red", ALLOWED]))


def test_samples_are_written_to_files_of_its_own(run):
    path = sample(read_options([f"run={run}", "before=new", "n=3", "format=images", ALLOWED]))
    assert path.suffix == ".moons" and set(path.read_text().split()) <= set(outside.NAMES)
    assert len(path.read_text().splitlines()) == 3


def test_its_data_are_asked_for_what_was_not_typed(run):
    """Rows of the test split, the same for the same seed."""
    first, again, other = (
        np.load(sample(read_options([f"run={run}", "n=6", "format=npz", f"seed={seed}", f"out={run / name}", ALLOWED])))
        for seed, name in ((0, "a.npz"), (0, "b.npz"), (1, "c.npz"))
    )
    np.testing.assert_array_equal(first["before"], again["before"])
    assert not np.array_equal(first["before"], other["before"])
    assert set(np.rint(255 * first["before"]).flatten()) <= set(range(200))


def test_a_wrapper_from_outside_is_a_way_of_conditioning(tmp_path):
    """By an override alone; the discriminator keeps the option's own, and the condition reaches the samples."""
    train(compose([*DATA, *NETWORKS, *MODEL, *QUICK, WHISPER]), tmp_path / "run")
    assert (tmp_path / "run" / "samples.png").is_file()
    model = genlab.load(tmp_path / "run", allow_targets=("tests.*",))
    assert isinstance(model.generator, outside.Whisper) and isinstance(model.discriminator, Concat)
    z = torch.zeros(2, 2)
    given = genlab.batch.Batch({"before": torch.tensor([[0.0], [1.0]])})
    one, other = model.decode(z, given)
    weight = model.generator.voice.weight.detach()
    torch.testing.assert_close(other - one, (weight @ torch.tensor([1.0, -1.0])).detach())


@pytest.mark.long
def test_a_new_process_knows_the_kind(tmp_path):
    """Only the config names the module; the run folder is a stranger's until its targets are allowed."""
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "sky.yaml").write_text(SKY)
    where = ["--config-dir", "mine", "data=sky", "hydra.run.dir=run", "callbacks=none"]
    result = command([*where, *NETWORKS, *MODEL, *QUICK, WHISPER], tmp_path, env=HERE)
    assert result.returncode == 0, result.stderr
    asked = ["run=run", "before=half", "n=4", "format=npz"]
    result = command([*asked, ALLOWED], tmp_path, script="scripts/sample.py", env=HERE)
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "run").glob("samples_*.npz"))


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ("{}", "sky has a column before, and data.columns does not say of which kind"),
        ("{before: {kind: phase}, after: {kind: phase}}", "data.columns names after, and sky has x, before"),
        ("{before: {kind: moon}}", "'moon' is no kind of column"),
    ],
)
def test_columns_that_the_config_does_not_describe(columns, sentence):
    import yaml

    with pytest.raises(UserError, match=sentence):
        outside.Sky(batch_size=4, kind="phase", columns=yaml.safe_load(columns)).setup()
