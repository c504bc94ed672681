"""Half precision stays within networks: what leaves them, and all that objectives compute, is float32."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from genlab.losses.contraction import squared_jacobian, squared_jacobian_of_sigmoid_layer
from genlab.losses.contrastive import info_nce
from genlab.losses.energy import pulling_away
from genlab.losses.features import feature_matching
from genlab.losses.numerics import leave_in_float32
from genlab.models.rbm import Machine
from genlab.networks import began, dcgan, mlp, resnet
from genlab.networks.minibatch import MinibatchDiscrimination
from genlab.networks.priors import GaussianMixture
from genlab.runs.running import build
from tests.models.helpers import config, fit
from tests.models.test_models_device import MODELS, SMALL, objectives_in_float32

pytestmark = pytest.mark.usefixtures("one_thread")


def half():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.matrix
@pytest.mark.parametrize("name", MODELS)
def test_objectives_see_float32(name, tmp_path):
    """A step under the CPU's own autocast: no loss takes, gives or is recorded in half precision."""
    multiplied = set()

    def before(model):
        step = model.training_step

        def training_step(batch, batch_idx):
            with objectives_in_float32(model):
                step(batch, batch_idx)

        model.training_step = training_step
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                layer.register_forward_hook(lambda _, __, output: multiplied.add(output.dtype))

    overrides = [f"model={name}", "data.batch_size=4", "speed.precision=bfloat16", *SMALL.get(name, [])]
    model = fit(overrides, 1, tmp_path, before=before).model
    if name not in ("pca", "rbm", "rbm_pcd", "contractive"):  # without layers
        assert torch.bfloat16 in multiplied
    assert all(p.dtype == torch.float32 for p in model.parameters())


SHAPE = (1, 16, 16)
NETWORKS = {
    "mlp": lambda: mlp.Discriminator(SHAPE, [8]),
    "dcgan": lambda: dcgan.Discriminator(SHAPE, 4),
    "resnet": lambda: resnet.Discriminator(SHAPE, 4),
}
AUTOENCODERS = {
    "mlp": lambda: mlp.Autoencoder(SHAPE, 3, [8]),
    "dcgan": lambda: dcgan.Autoencoder(SHAPE, 3, 4),
    "began": lambda: began.Autoencoder(SHAPE, 3, 4),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_all_that_leaves_a_discriminator(name):
    network = NETWORKS[name]()
    x = torch.randn(2, *SHAPE)
    with half():
        assert network.features(x).dtype == torch.bfloat16  # as it is without
        leave_in_float32(network)
        leave_in_float32(network)  # twice is once
        features, seen = network.features(x), network.until(x, 1)
        for value in (network(x), features, network.logits(features), seen, network.beyond(seen, 1)):
            assert value.dtype == torch.float32
    network.double()
    assert network.features(x.double()).dtype == torch.float64


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_all_that_leaves_an_autoencoder(name):
    network = AUTOENCODERS[name]()
    leave_in_float32(network)
    x = torch.randn(2, *SHAPE)
    with half():
        code = network.encode(x)
        assert network(x).dtype == code.dtype == network.decode(code).dtype == torch.float32


def test_holders_are_seen_through():
    """A list of networks cannot be called: its networks are."""
    parts = torch.nn.ModuleDict({"a": torch.nn.ModuleList([NETWORKS["mlp"]()])})
    leave_in_float32(parts)
    with half():
        assert parts["a"][0].features(torch.randn(2, *SHAPE)).dtype == torch.float32


def test_a_copy_uses_its_own_weights():
    network = NETWORKS["mlp"]()
    leave_in_float32(network)
    x = torch.randn(2, *SHAPE)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert_close(other.features(x), network.features(x))
        for p in other.parameters():
            p.data.zero_()
        assert not other.features(x).any() and network.features(x).any()


def functions():
    """Objectives and densities with products in them: (function, arguments)."""
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(4, 8, 16), dim=2)
    machine, minibatch = Machine(12, 5, 1.0), MinibatchDiscrimination(16, 4, 3)
    layer = torch.nn.Linear(6, 5)
    return {
        "info_nce": (lambda q, k, n: info_nce(q, k, n, 0.07)[0], (unit[0], unit[1], unit[2])),
        "pulling_away": (pulling_away, (torch.randn(8, 20) + 2,)),
        "minibatch": (minibatch.similarities, (0.3 * torch.randn(6, 16),)),
        "feature_matching": (feature_matching, (torch.randn(64, 9) + 3, torch.randn(64, 9) + 3)),
        "sigmoid_layer": (squared_jacobian_of_sigmoid_layer, (torch.rand(4, 5), torch.randn(5, 6))),
        "jacobian": (lambda x: squared_jacobian(lambda v: layer(v).tanh(), x), (torch.randn(4, 6),)),
        "free_energy": (machine, (torch.rand(7, 12),)),
        "contrast": (machine.contrast, (torch.rand(7, 12), torch.rand(7, 12))),
        "mixture": (GaussianMixture(2).log_prob, (torch.randn(9, 2),)),
        "mixture_draw": (GaussianMixture(2).draw, (torch.randn(9, 3),)),
    }


@pytest.mark.parametrize("name", functions())
def test_products_in_objectives_keep_float32(name):
    function, arguments = functions()[name]
    exact = function(*arguments)
    with half():
        value = function(*arguments)
    assert value.dtype == torch.float32
    assert torch.equal(value, exact)
    rounded = tuple(a.bfloat16() for a in arguments)  # what comes in half precision is taken at its word
    with half():
        assert torch.equal(function(*rounded), function(*(a.float() for a in rounded)))


def test_feature_matching_near_convergence():
    """Fakes that are almost right: the difference of two means is small against the features themselves."""
    parts = build(config(["model=gan", "network=dcgan", "data.image_size=16", "tricks.feature_matching=true"]))
    parts.data.prepare_data()
    parts.data.setup()
    model, x = parts.model, torch.cat([parts.data.stream().batch(i).x for i in range(32)])
    discriminator = model.discriminator.eval()
    discriminator.trunk[-2].bias.data += 1.0  # features that are on
    plain, x_fake = copy.deepcopy(discriminator), x + 0.05
    leave_in_float32(discriminator)
    with torch.no_grad():
        exact = model.generator_loss(model.loss, discriminator, x_fake, x)
        with half():
            loss = model.generator_loss(model.loss, discriminator, x_fake, x)
            means = [plain.features(each).mean(dim=0) for each in (x, x_fake)]
    assert loss.dtype == torch.float32 and means[0].dtype == torch.bfloat16
    assert float(loss) == pytest.approx(float(exact), rel=0.03)
    assert float((means[0] - means[1]).square().mean() / exact) > 2  # means in half precision are another objective
