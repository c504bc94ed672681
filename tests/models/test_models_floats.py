"""Which digits a training has: TF32, float64 on devices without it, and what is put back afterwards."""

import pytest
import torch

from genlab.cli import speed
from genlab.cli.app import compose
from genlab.cli.running import build, train
from genlab.errors import UserError
from genlab.floats import without_tf32
from genlab.models.gan import GAN
from tests.models.helpers import QUIET

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
    with pytest.raises(UserError, match="speed.precision=float64 is not for Apple's GPUs.*trainer=cpu"):
        speed.resolve(asked, model)
    asked["speed"]["precision"] = "float32"
    assert speed.resolve(asked, model)[1] == "32-true"
    asked = {"trainer": {"accelerator": "cpu"}, "speed": {"precision": "float64"}}
    assert speed.resolve(asked, model)[1] == "64-true"
