"""Every method on a device that is not the CPU, where there is none: fake tensors on "meta" have places, and no values.

A tensor of the CPU that meets one of the device raises, and so does a look at a value: on a GPU the first is an error,
and the second makes every iteration wait.
"""

import contextlib
import functools
import inspect
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorDeviceMismatchError,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from genlab import floats
from genlab.batch import Batch, Seq
from genlab.contracts import CAPABILITIES
from genlab.engine import start
from genlab.engine.players import Turn
from genlab.metrics.ais import _Chains
from genlab.models.aae_supervised import SupervisedAAE
from genlab.models.gan import GAN
from genlab.randomness import Drawing
from genlab.runs import running
from genlab.sampling.ddls import DDLS
from genlab.sampling.latents import slerp
from genlab.sampling.prior import Truncated
from genlab.telling import telling
from tests.cli.helpers import REPO
from tests.models.helpers import config, fit

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter"),  # a fake has no values to copy
]
DEVICE = "meta"
MODELS = sorted(p.stem for p in (REPO / "configs" / "model").glob("*.yaml"))
SMALL = {
    "dc_ign": ["data.num_train=64"],
    "attribute2image": ["data.num_train=64"],
    "attribute2image_layered": ["data.num_train=64"],
    "gan_cls": ["data.num_train=64"],
    "gan_int": ["data.num_train=64"],
    "gawwn": ["data.num_train=64"],
    "gawwn_keypoints": ["data.num_train=64"],
    "layout_gan": ["data.num_train=64"],
    "stackgan": ["data.num_train=64"],
    "gated_pixelcnn": ["model.network.layers=2"],
    "pixelcnn": ["model.network.layers=2"],
    "pixelvae": ["likelihood.layers=2"],
    "unrolled": ["model.unroll_steps=1"],
    "dc_vae": ["model.n_critic=2"],
    "draw": ["model.steps=2"],
    "rbm": ["model.chain_steps=4"],
    "rbm_pcd": ["model.chain_steps=4"],
    "wgan": ["model.n_critic=2", "model.n_critic_long=2"],
}
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default, torch.ops.aten.detach.default)
# What CUDA's autocast runs in half precision, in float32, and in the widest type that comes.
HALF = {"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "baddbmm", "addbmm", "einsum"} | {
    f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)
}
FULL = {"exp", "log", "log1p", "expm1", "pow", "softmax", "log_softmax", "softplus", "norm", "sum", "prod", "cumsum"}
FULL |= {"cross_entropy", "nll_loss", "mse_loss", "l1_loss", "binary_cross_entropy_with_logits", "cdist", "layer_norm"}
# What raises on CUDA under `trainer.deterministic=true`, among what networks are made of.
RANDOM_ORDER = {"grid_sampler_2d_backward", "nll_loss2d_forward", "_adaptive_avg_pool2d_backward", "put", "histc"}
RANDOM_ORDER |= {"reflection_pad2d_backward", "max_unpool2d", "adaptive_max_pool2d_backward", "median", "kthvalue"}
WIDEST = {"vdot", "cat", "stack", "grid_sample", "index_put", "scatter_add", "dot"}


class OutOfPlace(AssertionError):
    """A tensor is where it should not be."""


class NotDeterministic(AssertionError):
    """An operation adds up in another order each time, and `trainer.deterministic=true` refuses it on a GPU."""


class Places(TorchDispatchMode):
    """Refuses what a GPU refuses or waits for, and float64, which Apple's GPUs do not have.

    Args:
        copies: Whether values may be brought to the CPU: a sampler may, a step may not.
    """

    def __init__(self, copies):
        super().__init__()
        self.copies = copies

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        taken = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        given = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        if func.overloadpacket.__name__ in RANDOM_ORDER:
            raise NotDeterministic(f"{func} has no deterministic implementation.")
        if func not in COPIES and taken == {"cpu", DEVICE}:
            raise OutOfPlace(f"{func} takes tensors of the CPU and of the device.")
        if not self.copies and DEVICE in taken and any(t.device.type == "cpu" for t in given):
            raise OutOfPlace(f"{func} brings a tensor of the device to the CPU.")
        if any(t.dtype == torch.float64 and t.device.type == DEVICE for t in given):
            raise OutOfPlace(f"{func} makes a float64 tensor on the device.")
        return out


class HalfPrecision(TorchFunctionMode):
    """What `torch.autocast` does for a device that has it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if Autocast.enabled and name in HALF | FULL | WIDEST:
            present = {t.dtype for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
            wanted = torch.bfloat16 if name in HALF else torch.float32
            if name not in WIDEST or len(present) > 1:

                def cast(t):
                    return t.to(wanted) if t.dtype in (torch.float32, torch.bfloat16) else t

                args, kwargs = tree_map_only(torch.Tensor, cast, (args, kwargs))
        return func(*args, **kwargs)


class Autocast(contextlib.ContextDecorator):
    """In the place of `torch.autocast`, which knows no such device."""

    enabled = False

    def __init__(self, device_type, dtype=None, enabled=True, cache_enabled=None):
        self.wanted, self.before = enabled, []

    def __enter__(self):
        self.before.append(Autocast.enabled)
        Autocast.enabled = self.wanted

    def __exit__(self, *_):
        Autocast.enabled = self.before.pop()


class Imprecise(AssertionError):
    """A tensor in half precision went into an objective, or came out of it."""


def in_float32(function):
    """The function; it is an error if tensors go in or come out in half precision."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        out = function(*args, **kwargs)
        for value in tree_leaves((args, kwargs, out)):
            if isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16):
                raise Imprecise(f"{function.__qualname__} has to do with a {value.dtype}.")
        return out

    return wrapper


@contextlib.contextmanager
def objectives_in_float32(model):
    """Inside, every function and method of `genlab.losses` is `in_float32`, and so are the losses of all turns."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in sys.modules if n.startswith(("genlab.models.", "genlab.networks."))]:
            for key, value in list(vars(sys.modules[name]).items()):
                where = (value.__module__ or "") if inspect.isfunction(value) else ""  # it may have none
                if where.startswith("genlab.losses.") and not where.endswith(".numerics"):
                    patch.setattr(sys.modules[name], key, in_float32(value))
        for part in model.modules():
            if type(part).__module__.startswith("genlab.losses."):
                for key, _ in inspect.getmembers(type(part), inspect.isfunction):
                    if not key.startswith("_") and (key == "forward" or not hasattr(torch.nn.Module, key)):
                        patch.setitem(part.__dict__, key, in_float32(getattr(part, key)))
        patch.setattr(Turn, "collect", in_float32(Turn.collect))
        patch.setattr(model, "record", in_float32(model.record))
        yield


class Moves:
    """An optimizer as Lightning wraps it."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer, self.param_groups = model, optimizer, optimizer.param_groups

    def step(self):
        self.model.on_before_optimizer_step(self.optimizer)
        self.optimizer.step()


class Device:
    """A model of a config, with its weights, batches and draws on the device.

    Args:
        overrides: As on the command line.
        checkpoint: What the model goes on from.
    """

    def __init__(self, overrides, checkpoint=None):
        self.fake = FakeTensorMode()
        parts = running.build(config(["data.batch_size=4", "ema.decay=0.9", *overrides]))
        parts.data.prepare_data()
        parts.data.setup()
        self.model, self.batches = parts.model, [parts.data.stream().batch(i) for i in range(2)]
        with torch.no_grad():  # on the CPU: a start from data may look at values, it happens once
            self.model.initialise(parts.data.first_batches())
        if checkpoint is not None:
            self.load(checkpoint)
        self.move()

    def load(self, checkpoint):
        """Takes over what a checkpoint holds of the model; its random states are of generators that are not here."""
        self.model.on_load_checkpoint(checkpoint)
        self.model.load_state_dict(checkpoint["state_dict"])
        self.model.pending_states = None

    def put(self, tensor):
        """A tensor of the CPU, on the device."""
        with self.fake:
            return self.fake.from_tensor(tensor, static_shapes=True).detach().to(DEVICE)

    def move(self):
        """Brings the weights to the device, as `model.to` does where tensors have values."""
        model = self.model
        before = dict(model.named_parameters())
        with self.fake:
            model._apply(self.put)
        now = dict(model.named_parameters())  # others: a fake cannot take the place of the values within a parameter
        placed = {id(parameter): now[name] for name, parameter in before.items()}
        for turn in model.moves.turns.values():
            turn.parameters = [placed[id(p)] for p in turn.parameters]
            turn.others = [placed[id(p)] for p in turn.others]
        for module in model.modules():
            if isinstance(module, LightningModule):
                module._device = torch.device(DEVICE)
        with self.fake:
            optimizers = (model.configure_optimizers() or [[]])[0]
            optimizers = optimizers if isinstance(optimizers, list) else model.configure_optimizers()
        self.trainer = model.trainer = SimpleNamespace(
            global_step=0,
            max_steps=1000,
            global_rank=0,
            world_size=1,
            optimizers=optimizers,
            precision="32-true",
            precision_plugin=SimpleNamespace(scaler=None, convert_module=lambda module: module),
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace()),
        )
        model.manual_backward = lambda loss: loss.backward()
        model.stream.draw = self.draw
        # Both read values by design, once in `log_every_n_steps` iterations.
        model.check_finite = model.write_records = lambda: None
        for turn, optimizer in zip(model.moves.turns.values(), optimizers, strict=True):
            turn.optimizer = Moves(model, optimizer)
        with self.fake:
            model.averages.start(model.settings.ema_decay, model.device)
        for module in model.modules():
            if isinstance(module, Drawing):
                module.adopt(model)

    def draw(self, draw, n, shape, rng, device, dtype):
        """As the stream's own, but for the stream of training: there are no generators on this device."""
        return draw(n, *shape, generator=rng, device=DEVICE if rng is None else rng.device).to(DEVICE)

    def batch(self, number):
        """One of the training batches, on the device."""
        columns = self.batches[number].columns.items()
        return Batch(
            {
                name: Seq(self.put(value.values), self.put(value.length)) if isinstance(value, Seq) else self.put(value)
                for name, value in columns
            }
        )

    @contextlib.contextmanager
    def running(self, copies=False):
        """Inside, tensors are fake and places are watched."""
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.setattr(torch, "autocast", Autocast)
            gpus = torch.cuda.device_count()  # where there is none, every operation would look for one again
            patch.setattr(torch.cuda, "device_count", lambda: gpus)
            patch.setattr(floats, "DEVICES_WITHOUT", [DEVICE])
            with self.fake, HalfPrecision(), Places(copies):
                yield

    def train(self, steps=2, half=False):
        """Iterations, without what reads values by design; what goes into objectives is watched."""
        self.trainer.precision = "bf16-mixed" if half else "32-true"
        self.model.setup("fit")
        self.model.train()
        for number in range(steps):
            batch = self.batch(number % len(self.batches))
            with self.running():
                self.model.begin_iteration()
                with Autocast(DEVICE, enabled=half), objectives_in_float32(self.model):
                    self.model.training_step(batch, number)
                self.trainer.global_step += 1
                self.model.end_iteration()

    def judge(self):
        """Everything that the method offers to samplers and judges, and its objective."""
        model, rng, batch = self.model, torch.Generator().manual_seed(0), self.batch(0)
        with self.running(copies=True):
            batch = batch.rows(slice(0, 2))
            x, told = batch.x, {"given": batch} if model.given else {}
            given = {"x": x, "n": 2, "k": 2, "rng": rng, "steps": 2, "chains": 2, **told}
            names = (*CAPABILITIES, "log_unnormalised", "log_partition")
            for name in [name for name in names if callable(getattr(model, name, None))]:
                if name == "decode":
                    # A supervised autoencoder's encoder gives the style alone.
                    coded = model.can("encode") and not isinstance(model, SupervisedAAE)
                    given["z"] = telling(model, batch).encode(x) if coded else model.noise(2, rng)
                elif name in ("log_joint", "log_prior"):
                    coded = model.can("sample_posterior")
                    given["z"] = (
                        telling(model, batch).sample_posterior(x, 1, rng)[0][0] if coded else model.noise(2, rng)
                    )
                method = getattr(model, name)
                known = [p for p in inspect.signature(method).parameters if p in given]
                for value in tree_leaves(method(**{p: given[p] for p in known})):
                    assert value.device.type == DEVICE or value.dtype == torch.float64, name
            if hasattr(model, "objective"):
                with model.inference():
                    telling(model, batch).objective(x, rng)


def device(name, *overrides):
    return Device([f"model={name}", *SMALL.get(name, []), *overrides])


def tensors(node, path, seen):
    """Every tensor that can be reached from a model through attributes and plain containers: (name, tensor)."""
    if isinstance(node, torch.Tensor):
        yield path, node
        return
    if id(node) in seen or isinstance(node, FakeTensorMode):
        return
    seen.add(id(node))
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, list | tuple | set):
        children = enumerate(node)
    elif isinstance(node, torch.nn.Module | Turn):
        children = vars(node).items()
    else:
        return
    for key, child in children:
        if key not in ("_trainer", "_model"):
            yield from tensors(child, f"{path}.{key}", seen)


def left_behind(model):
    """Names of the tensors of a model that are not on the device."""
    return [name for name, tensor in tensors(model, "model", set()) if tensor.device.type != DEVICE]


@pytest.mark.matrix
@pytest.mark.parametrize("name", MODELS)
def test_every_method_runs_on_a_device(name):
    """Two iterations in float32 and one in bfloat16, and all that judges and samplers call: nothing is on the CPU."""
    made = device(name)
    made.train()
    made.judge()
    made.train(steps=1, half=True)
    assert left_behind(made.model) == []


TRICKS = [
    "tricks.historical_averaging=0.1",
    "tricks.replay=0.5",
    "tricks.replay_size=8",
    "tricks.feature_matching=true",
    "tricks.instance_noise=0.1",
    "tricks.augment=true",
]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=gan", "network=dcgan", "data.image_size=16", *TRICKS],
        ["model=gan", "network=mlp", "tricks.minibatch_discrimination=true", "tricks.packing=2"],
        ["model=gan", "tricks.virtual_batch_norm=true", "network=dcgan", "data.image_size=16", "loss=fgan_kl"],
        ["model=gan", "tricks.packing=2", "penalty=r1"],
        ["model=gan", "loss.real_labels=[0.8,1.0]", "loss.flip=0.1", "penalty=dragan", "optim.clip=1"],
        ["model=vae", "likelihood=logistic_mixture", "posterior=iaf", "kl=capacity", "adversary=gan"],
        ["model=vae", "prior=vamp", "kl=free_bits"],
        ["model=aae", "prior=gaussian_mixture", "model.latent_dim=2", "posterior=universal"],
        ["model=aae", "prior=swiss_roll", "model.latent_dim=2"],
    ],
    ids=lambda overrides: " ".join(overrides[:3]),
)
def test_every_part_runs_on_a_device(overrides):
    """What methods can be composed of: tricks, losses, penalties, likelihoods, posteriors, priors, KL terms."""
    made = Device(overrides)
    made.train()
    made.judge()
    made.train(steps=1, half=True)
    assert left_behind(made.model) == []


@pytest.mark.parametrize(
    ("name", "moved_first"), [("gan", False), ("gan", True), ("dc_vae", False), ("vqvae", True), ("rbm_pcd", False)]
)
def test_a_checkpoint_of_the_cpu_goes_on_on_a_device(name, moved_first, tmp_path):
    """Weights, averages, earlier fakes and past means come from the CPU, and none of them stays there.

    Lightning reads a checkpoint before it moves the model; whoever reads one afterwards gets the same.
    """
    overrides = [f"model={name}", *SMALL.get(name, []), "tricks.historical_averaging=0.1"]
    overrides += ["tricks.replay=0.5", "tricks.replay_size=8"] if name == "gan" else []
    fit([*overrides, "ema.decay=0.9"], 2, tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    made = Device(overrides, None if moved_first else checkpoint)
    if moved_first:
        with made.fake:
            made.load(tree_map_only(torch.Tensor, made.fake.from_tensor, checkpoint))
            made.model.averages.start(made.model.settings.ema_decay, made.model.device)
    assert bool(made.model.averages.values) == bool(made.model.ema_modules) and all(
        turn.history for turn in made.model.moves.turns.values()
    )
    assert left_behind(made.model) == []
    made.train(steps=1)


# Three faults, each of which must turn these tests red.


def planted(fault, monkeypatch):
    """A GAN whose step does something else first."""
    step = GAN.training_step

    def training_step(self, batch, index):
        fault(self, batch)
        step(self, batch, index)

    monkeypatch.setattr(GAN, "training_step", training_step)
    return device("gan")


def on_the_cpu(model, batch):
    model.record(shifted=(batch.x + torch.zeros(batch.x.shape)).mean())


def scalar_on_the_cpu(model, batch):
    model.record(shifted=(batch.x + torch.tensor(1.0)).mean())


def looked_at(model, batch):
    model.record(mean=batch.x.mean().item())


def decided(model, batch):
    if batch.x.mean() > 0:
        model.record(positive=1.0)


def chosen(model, batch):
    model.record(mean=batch.x[batch.x > 0].mean())


def copied(model, batch):
    model.record(mean=batch.x.cpu().mean())


def doubled(model, batch):
    model.record(mean=batch.x.double().mean())


def resampled(model, batch):
    x = batch.x.detach().requires_grad_()
    F.grid_sample(x, x.new_zeros(len(x), 2, 2, 2), align_corners=False).sum().backward()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (on_the_cpu, FakeTensorDeviceMismatchError),
        (scalar_on_the_cpu, OutOfPlace),
        (looked_at, DataDependentOutputException),
        (decided, DataDependentOutputException),
        (chosen, DynamicOutputShapeException),
        (copied, OutOfPlace),
        (doubled, OutOfPlace),
        (resampled, NotDeterministic),
    ],
)
def test_a_fault_in_a_step_is_found(fault, error, monkeypatch):
    with pytest.raises(error):
        planted(fault, monkeypatch).train(steps=1)


def test_half_precision_in_an_objective_is_found(monkeypatch):
    monkeypatch.setattr(start, "leave_in_float32", lambda network: None)
    made = device("gan")
    made.train(steps=1)
    with pytest.raises(Imprecise):
        made.train(steps=1, half=True)


def test_a_tensor_that_is_no_buffer_is_found(monkeypatch):
    """It stays on the CPU when the model moves, and a step that uses it fails."""
    made = planted(lambda model, batch: model.generator.shift + batch.x.mean(), monkeypatch)
    made.model.generator.shift = torch.zeros(3)
    assert left_behind(made.model) == ["model._modules.generator.shift"]
    with pytest.raises(AssertionError, match="convert all Tensors to FakeTensors"):
        made.train(steps=1)


# Float64 where the device has none: it goes by the CPU, and what comes back is on the device.


def test_records_and_the_watch_on_a_device_without_float64():
    """Both are read in the end, which a fake cannot be."""
    made = device("gan")
    model, kind = made.model, type(made.model)
    made.train(steps=1)
    with made.running(copies=True):
        model.watching.recorded["share"] = 0.5
        with pytest.raises(DataDependentOutputException):
            kind.write_records(model)
        with pytest.raises(DynamicOutputShapeException):
            kind.check_finite(model)


def test_samplers_and_chains_on_a_device_without_float64():
    made, rng = device("gan"), torch.Generator().manual_seed(0)
    with made.running(copies=True):
        z = made.model.noise(4, rng)
        truncated = Truncated(threshold=1.0).latents(made.model, 4, rng)
        arc = slerp(z, z.flip(0), torch.linspace(0, 1, 3).to(DEVICE))
        assert truncated.device == arc.device == z.device and truncated.dtype == arc.dtype == torch.float32
        chain = DDLS()
        energy, slope = chain.energy(made.model, z)
        assert energy.dtype == torch.float64 and energy.device.type == "cpu" and slope.device == z.device
        assert chain._log_proposal(z, z, slope).device.type == "cpu"
    made = device("vae")
    with made.running(copies=True), made.model.inference(gradients=True):
        chains = _Chains(made.model, made.batch(0).x[:2], 3, rng)
        accepted = chains.move(0.5, torch.full_like(chains.accepted, 0.1))
        assert accepted.device.type == chains.log_likelihood.device.type == "cpu" and chains.z.device.type == DEVICE
