"""Which digits a training has: TF32, float64 on devices without it, and what is put back afterwards."""

import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision

from genlab.callbacks.checkpoints import AtomicCheckpointIO
from genlab.config import speed
from genlab.config.composition import compose
from genlab.errors import UserError
from genlab.floats import without_tf32
from genlab.models.gan import GAN
from genlab.runs.running import build
from genlab.runs.start import train
from tests.models.helpers import QUIET, fit
from tests.models.test_models_device import SMALL

RING = [*QUIET, "data=ring", "network.hidden=[8]", "trainer.max_steps=2"]
CUDNN = torch.backends.cudnn


def lowered():
    """What may compute float32 with fewer digits, by operator."""
    found = (CUDNN.conv.fp32_precision, CUDNN.rnn.fp32_precision, torch.backends.cuda.matmul.fp32_precision)
    return (*("ieee" if each == "none" else each for each in found), CUDNN.allow_tf32)


@pytest.fixture
def default():
    """Torch's own state, before and after."""
    assert lowered() == ("tf32", "tf32", "ieee", True)
    yield
    torch.set_float32_matmul_precision("highest")
    CUDNN.allow_tf32 = True


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("products", ["highest", "high", "medium"])
def test_tf32_is_off_inside_and_back_afterwards(products):
    """Also for those who read the older switches, as compilers do."""
    torch.set_float32_matmul_precision(products)
    before = lowered()
    with pytest.raises(KeyError), without_tf32():
        assert {*lowered()} <= {"ieee", False}
        assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cuda.matmul.allow_tf32
        raise KeyError
    assert lowered() == before and torch.get_float32_matmul_precision() == products


@pytest.mark.usefixtures("default")
def test_the_newer_switches_alone():
    CUDNN.conv.fp32_precision = "ieee"  # now the older ones cannot be read
    with without_tf32():
        assert CUDNN.conv.fp32_precision == CUDNN.rnn.fp32_precision == "ieee"
    assert (CUDNN.conv.fp32_precision, CUDNN.rnn.fp32_precision) == ("ieee", "tf32")


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize(
    ("override", "on"), [("speed.preset=exact", False), ("speed.preset=fast", True), ("speed.tf32=true", True)]
)
def test_tf32_in_training(override, on, monkeypatch, tmp_path):
    """Off in exact mode, while the run trains and no longer; a run that fails puts it back, too."""
    seen, step = [], GAN.training_step

    def training_step(self, batch, batch_idx):
        seen.append(lowered())
        if len(seen) > 2:
            raise KeyError
        step(self, batch, batch_idx)

    before = lowered()
    monkeypatch.setattr(GAN, "training_step", training_step)
    train(compose([*RING, override]), tmp_path / "run")
    assert seen == 2 * [before if on else ("ieee", "ieee", "ieee", False)]
    assert lowered() == before
    with pytest.raises(KeyError):
        train(compose([*RING, override]), tmp_path / "failing")
    assert lowered() == before


@pytest.mark.parametrize("accelerator", ["mps", "gpu", "auto"])
def test_float64_is_refused_on_apples_gpus(accelerator, monkeypatch):
    model = build(compose([*RING, "speed.precision=float64"])).model
    asked = {"trainer": {"accelerator": accelerator}, "speed": {"precision": "float64"}}
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="Apple's GPUs do not support speed.precision=float64.*trainer=cpu"):
        speed.resolve(asked, model)
    asked["speed"]["precision"] = "float32"
    assert speed.resolve(asked, model)[1] == "32-true"
    asked = {"trainer": {"accelerator": "cpu"}, "speed": {"precision": "float64"}}
    assert speed.resolve(asked, model)[1] == "64-true"


@pytest.mark.parametrize("model", ["began", "ali", "vae_gan", "dc_vae", "gan"])
def test_float16_divides_gradients_by_the_scale_that_they_were_collected_with(model, tmp_path):
    """The scale doubles after each update; within one, all players' gradients were multiplied by the same."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    scaled, unscaled, multiply, divide = [], [], scaler.scale, scaler.unscale_

    def scale(loss):
        scaled.append(scaler.get_scale())
        return multiply(loss)

    def unscale_(optimizer):
        unscaled.append(scaler.get_scale())
        return divide(optimizer)

    scaler.scale, scaler.unscale_ = scale, unscale_
    plugins = [AtomicCheckpointIO(True), MixedPrecision("16-mixed", "cpu", scaler)]
    overrides = [f"model={model}", *SMALL.get(model, [])]
    fitted = fit(overrides, 2, tmp_path, trainer={"plugins": plugins, "precision": None})
    players = len(fitted.model.players)
    if model in ("began", "ali", "vae_gan"):  # all at once: one loss each, then one update of all
        scales = [8.0] * players + [16.0] * players
        assert scaled == unscaled == scales
    else:  # one after the other; the three players of DC-VAE's discriminator, or two and the generator, at once
        assert sorted(set(scaled)) == sorted(set(unscaled)) == [8.0 * 2**i for i in range(len(scaled))]
    assert scaler.get_scale() == 2 * unscaled[-1] and "update" not in vars(scaler)
