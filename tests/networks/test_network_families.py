"""What every network family promises, asked of each role of each file in configs/network through its own yaml."""

import itertools
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

import genlab
from genlab.errors import UserError
from genlab.networks import began, dcgan, mlp, resnet
from genlab.networks.init import dcgan_init_, glorot_init_, image_scales, norm_layer

CONFIGS = Path(genlab.__file__).resolve().parent.parent / "configs" / "network"
LATENT, FEATURES, CODE = 6, 10, 5
SMALL = {"mlp": ["hidden=[16,12]"], "dcgan": ["width=8"], "resnet": ["width=8"], "began": ["width=8"]}
ROLES = [
    *((family, role) for family in ("mlp", "dcgan") for role in ("generator", "discriminator", "encoder", "decoder")),
    *((family, "critic") for family in ("mlp", "dcgan", "resnet")),
    *((family, "autoencoder") for family in ("mlp", "dcgan", "began")),
    *(("resnet", role) for role in ("generator", "discriminator", "encoder", "decoder")),
    *(("began", role) for role in ("generator", "encoder", "decoder")),
]
SHAPES = {
    "mlp": [(1, 8, 8), (3, 5, 7), (2,), (40,)],
    "dcgan": [(1, 8, 8), (3, 16, 16), (4, 32, 32), (3, 64, 64), (3, 32, 64), (1, 24, 16), (3, 48, 64), (1, 100, 100)],
    "resnet": [(1, 16, 16), (3, 32, 32), (4, 64, 64), (3, 32, 64), (3, 48, 64), (1, 100, 100)],
    "began": [(1, 8, 8), (3, 16, 16), (4, 32, 32), (3, 64, 64), (1, 16, 24), (1, 24, 40)],
}
CASES = [(family, role, shape) for family, role in ROLES for shape in SHAPES[family]]


def build(family, role, shape, *overrides):
    """The network as the command line would build it: the yaml, overrides, and the facts of data and model."""
    torch.manual_seed(0)
    config = OmegaConf.create({"network": OmegaConf.load(CONFIGS / f"{family}.yaml"), "data": {"shape": list(shape)}})
    config.model = {"latent_dim": LATENT, "encoder_features": FEATURES, "code_dim": CODE}
    changes = OmegaConf.from_dotlist([f"network.{override}" for override in (*SMALL[family], *overrides)])
    node = OmegaConf.merge(config, changes).network[role]  # not by `instantiate`, which wraps what a constructor raises
    arguments = {
        key: OmegaConf.to_object(value) if OmegaConf.is_config(value) else value for key, value in node.items()
    }
    return get_class(arguments.pop("_target_"))(**arguments)


def inputs(role, shape, n, dtype=torch.float32):
    size = (LATENT,) if role in ("generator", "decoder") else shape
    return torch.randn(n, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def output_shape(role, shape):
    return {"discriminator": (), "critic": (), "encoder": (FEATURES,)}.get(role, tuple(shape))


def is_batch_norm(module):
    return isinstance(module, torch.nn.BatchNorm2d)


def test_the_list_of_roles_is_what_the_configs_offer():
    offered = [
        (path.stem, key)
        for path in CONFIGS.glob("*.yaml")
        for key, node in OmegaConf.to_container(OmegaConf.load(path), resolve=False).items()
        if isinstance(node, dict) and "_target_" in node and path.stem in SMALL
    ]
    assert sorted(offered) == sorted(ROLES)


@pytest.mark.parametrize(("family", "role", "shape"), CASES)
def test_shapes(family, role, shape):
    """In training and evaluation, down to a batch of one, and in float64."""
    network = build(family, role, shape)
    assert ("points" if len(shape) == 1 else "image") in network.kinds
    for n in (2, 1):
        assert network.train()(inputs(role, shape, n)).shape == (n, *output_shape(role, shape))
        assert network.eval()(inputs(role, shape, n)).shape == (n, *output_shape(role, shape))
    y = network.double()(inputs(role, shape, 2, torch.float64))
    assert y.dtype == torch.float64 and y.isfinite().all()


@pytest.mark.parametrize(("family", "role", "shape"), [c for c in CASES if c[1] == "discriminator"])
def test_the_head_reads_the_features(family, role, shape):
    network = build(family, role, shape).eval()
    features = network.features(inputs(role, shape, 3))
    assert features.shape[0] == 3 and features.ndim == 2
    weight, bias = network.head.weight.flatten(1), network.head.bias
    logits = torch.nn.functional.linear(features, weight, bias).squeeze(1)
    torch.testing.assert_close(logits, network(inputs(role, shape, 3)))


@pytest.mark.parametrize(("family", "shape"), [(f, s) for f in SHAPES for s in SHAPES[f]])
def test_generator_range(family, shape):
    """Tanh for images, though not in BEGAN; no bound for points."""
    generator = build(family, "generator", shape)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(8)  # far into the saturation
    x = generator(10 * inputs("generator", shape, 8))
    bounded = family != "began" and len(shape) == 3
    assert (x.abs().max() <= 1) == bounded
    if bounded:
        assert x.min() < -0.9 and x.max() > 0.9


@pytest.mark.parametrize(("family", "shape"), [(f, SHAPES[f][1]) for f in ("mlp", "dcgan", "began")])
def test_an_autoencoder_is_its_halves(family, shape):
    network = build(family, "autoencoder", shape).eval()
    x = inputs("autoencoder", shape, 2)
    assert network.encode(x).shape == (2, CODE)
    assert torch.equal(network(x), network.decode(network.encode(x)))


NORMED = [
    *((family, role, ()) for family, role in ROLES),
    *(
        ("dcgan", role, (f"norm={n}",))
        for n in ("none", "layer", "instance")
        for role in ("discriminator", "autoencoder")
    ),
    *(("dcgan", role, ("generator_norm=none",)) for role in ("generator", "decoder")),
    *(
        ("resnet", role, (f"norm={n}",))
        for n in ("batch", "layer", "instance")
        for role in ("discriminator", "encoder")
    ),
    ("resnet", "discriminator", ("spectral_norm=true", "pooling=sum")),
]


@pytest.mark.parametrize(("family", "role", "overrides"), NORMED)
def test_gradients_reach_every_parameter(family, role, overrides):
    """Nothing is unused, and no normalisation removes a bias (whose gradient in float64 would be about 1e-17)."""
    shape = (3, 16, 16)
    network = build(family, role, shape, *overrides).double().train()
    y = network(inputs(role, shape, 8, torch.float64))
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
    (weights * y).sum().backward()
    sizes = {name: p.grad.abs().max().item() for name, p in network.named_parameters()}
    largest = max(sizes.values())
    assert {name for name, size in sizes.items() if size < 1e-9 * largest} == set()


@pytest.mark.parametrize(("family", "role", "overrides"), [case for case in NORMED if case[1] == "discriminator"])
def test_only_batch_norm_couples_the_samples(family, role, overrides):
    """A critic for a gradient penalty: what it says of one sample does not move, to the bit, when the others change."""
    shape = (3, 16, 16)
    network = build(family, role, shape, *overrides).train()
    if "spectral_norm=true" in overrides:
        network.eval()  # in training each forward improves the estimate of the norm
    x = inputs(role, shape, 4)
    mates = x.clone()
    mates[1:] = x[1:].flip(1, 2).mul(3)
    coupled = not torch.equal(network(x)[0], network(mates)[0])
    assert coupled == any(map(is_batch_norm, network.modules()))
    if (family, overrides) == ("dcgan", ()) or "norm=batch" in overrides:
        assert coupled


@pytest.mark.parametrize("family", ["mlp", "dcgan", "resnet"])
def test_discriminator_overfits_one_batch(family):
    """L_D = E softplus(-D(x)) + E softplus(D(x~)) < 0.1 in 200 steps of Adam, on 16 images and 16 of noise."""
    width = "hidden=[128,128]" if family == "mlp" else "width=16"
    discriminator = build(family, "discriminator", (1, 16, 16), width).train()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-4 if family == "dcgan" else 1e-3, betas=(0.5, 0.999))
    x_real, x_fake = torch.rand(16, 1, 16, 16) * 2 - 1, torch.randn(16, 1, 16, 16).clamp(-1, 1)
    for _ in range(200):
        softplus = torch.nn.functional.softplus
        d_loss = softplus(-discriminator(x_real)).mean() + softplus(discriminator(x_fake)).mean()
        if d_loss < 0.1:
            return
        optimizer.zero_grad()
        d_loss.backward()
        optimizer.step()
    raise AssertionError(f"L_D is still {d_loss.item():.3f}")


@pytest.mark.parametrize(("family", "smallest"), [("dcgan", 8), ("resnet", 16), ("began", 8)])
def test_refused_image_sizes(family, smallest):
    """The nearest sizes that fit are named, the one with more doublings first."""
    cures = {4: [smallest], 33: [32, 34], 45: [44, 46], 67: [68], 98: [96, 100], 130: [128]}
    for size, fits in cures.items():
        sentence = (
            f"network={family} halves images: the sides must be at least {smallest} and even, and even again after "
            f"each halving until the shorter one has at most 32 pixels, got image_size={size}. Try "
            f"{' or '.join(f'data.image_size={each}' for each in fits)}."
        )
        for role in [r for f, r in ROLES if f == family]:
            with pytest.raises(UserError) as refused:
                build(family, role, (3, size, size))
            assert str(refused.value) == sentence
    with pytest.raises(UserError, match=r"got image_size=\[33,64\]. Try 'data.image_size=\[32,64\]'\.$"):
        build(family, "generator", (3, 33, 64))
    with pytest.raises(UserError, match=rf"network={family} needs images .* Try network=mlp\.$"):
        build(family, "generator", (2,))


@pytest.mark.parametrize(("base", "smallest"), [(4, 8), (4, 16), (8, 16), (8, 8)])
def test_image_sizes_that_fit_and_proposals_for_others(base, smallest):
    """Sizes of a power of two, and beside it a multiple, have the maps that they always had; proposals pass."""
    for height, width in itertools.product(range(1, 140, 3), (31, 32, 36, 64, 96, 100)):
        shorter = min(height, width)
        power = shorter >= smallest and shorter & (shorter - 1) == 0
        always = power and height % (shorter // base) == 0 == width % (shorter // base)
        try:
            doublings, (h, w) = image_scales((3, height, width), base, smallest, "x")
        except UserError as refused:
            assert not always
            for proposal in str(refused).split("data.image_size=")[1:]:
                sides = [int(side) for side in proposal.split(" or")[0].strip("'.[] ").split(",")]
                image_scales((3, sides[0], sides[-1]), base, smallest, "x")
        else:
            assert (h * 2**doublings, w * 2**doublings) == (height, width) and base <= min(h, w) <= 32
            assert min(h, w) == base or not always
            assert h % 2 or w % 2 or min(h, w) < 2 * base  # no further halving was left


@pytest.mark.parametrize(
    ("size", "base", "scales"),
    [
        ((48, 64), 4, (3, (6, 8))),
        ((96, 96), 4, (4, (6, 6))),
        ((96, 96), 8, (3, (12, 12))),
        ((100, 100), 4, (2, (25, 25))),
        ((28, 28), 4, (2, (7, 7))),
        ((28, 28), 8, (1, (14, 14))),
        ((32, 512), 4, (3, (4, 64))),
        ((8, 9), 8, (0, (8, 9))),
    ],
)
def test_as_many_halvings_as_the_sides_share(size, base, scales):
    assert image_scales((3, *size), base, base, "x") == scales


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: dcgan.Discriminator((3, 16, 16), norm="group"), "network.norm must be one of .* got 'group'. Try"),
        (lambda: resnet.Discriminator((3, 16, 16), norm="bn"), "network.norm must be one of .* got 'bn'. Try"),
        (lambda: resnet.Discriminator((3, 16, 16), pooling="max"), "network.pooling must be mean or sum, got 'max'"),
        (lambda: dcgan.Generator(0, (3, 16, 16)), "model.latent_dim must be a positive whole number, got 0. Try"),
        (lambda: resnet.Generator(8, (3, 16, 16), width=1.5), "network.width must be a positive whole number, got 1.5"),
        (lambda: began.Autoencoder((3, 16, 16), -1), "model.code_dim must be a positive whole number, got -1"),
        (lambda: mlp.Generator(8, (2,), activation="gelu"), "network.activation must be one of .* got 'gelu'. Try"),
        (lambda: mlp.Generator(8, (2,), hidden=64), r"network.hidden must be a list of widths, got 64. Try"),
        (lambda: mlp.Generator(8, (2,), hidden=[8, 0]), r"got 0. Try network.hidden=\[128,128\]\.$"),
        (lambda: mlp.Generator(8, (4, 10)), r"network=mlp needs points \[D\] or images \[C, H, W\], got .*\[4, 10\]"),
    ],
)
def test_messages(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()


def test_dcgan_init_statistics():
    """Convolutions N(0, 0.02), scales N(1, 0.02), shifts and biases 0, also where norm is not batch."""
    torch.manual_seed(0)
    for norm in ("batch", "layer", "instance", "none"):
        module = torch.nn.Sequential(
            torch.nn.Conv2d(32, 64, 4), norm_layer(norm, 2048), torch.nn.ConvTranspose2d(32, 64, 4)
        )
        dcgan_init_(module)
        for layer in (module[0], module[2]):
            torch.testing.assert_close(layer.weight.mean().item(), 0.0, atol=5e-4, rtol=0)
            torch.testing.assert_close(layer.weight.std().item(), 0.02, atol=0, rtol=0.02)
            assert not layer.bias.any()
        if norm != "none":
            torch.testing.assert_close(module[1].weight.mean().item(), 1.0, atol=2e-3, rtol=0)
            torch.testing.assert_close(module[1].weight.std().item(), 0.02, atol=0, rtol=0.06)
            assert not module[1].bias.any()


def test_glorot_init_statistics():
    """Variance 2 gain^2 / (fan_in + fan_out), uniform: the largest is sqrt(3) standard deviations."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(16, 48, 3)
    glorot_init_(layer, gain=2**0.5)
    std = (4 / (9 * (16 + 48))) ** 0.5
    torch.testing.assert_close(layer.weight.std().item(), std, atol=0, rtol=0.03)
    torch.testing.assert_close(layer.weight.abs().max().item(), 3**0.5 * std, atol=0, rtol=0.01)
    assert not layer.bias.any()


@pytest.mark.parametrize(("family", "role", "shape"), [c for c in CASES if c[1] == "critic"])
def test_a_critic_sees_each_sample_alone(family, role, shape):
    """In training too: what a gradient penalty needs, and what batch norm would break."""
    network, x = build(family, role, shape).double().train(), inputs(role, shape, 3, torch.float64)
    torch.testing.assert_close(network(x)[:1], network(x[:1]))
