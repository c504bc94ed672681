"""Seventy-two mistakes that nobody is shown: each ends in one sentence with its cure, before any work."""

import sys

import pytest
import yaml

from genlab.config import checks, guesses, numbers, unread
from genlab.config.composition import compose, composed, config_dir
from genlab.errors import UserError
from genlab.runs import running
from tests.cli.helpers import main

KEYS = {  # what is typed, and the words of the answer
    "batch_size=32": "Try data.batch_size=32.",
    "+batch_size=32": "Try data.batch_size=32.",
    "bs=32": "Try data.batch_size=32.",
    "lr=1e-3": "model.g_optimizer.lr= or model.d_optimizer.lr=.*optim.lr_scale=",
    "+lr=1e-3": "model.g_optimizer.lr= or model.d_optimizer.lr=",
    "learning_rate=1e-3": "model.g_optimizer.lr=",
    "optim.lr=1e-3": "model.g_optimizer.lr=",
    "+optim.lr=1e-3": "model.g_optimizer.lr=",
    "+model.lr=1e-3": "takes no 'lr'.*model.g_optimizer.lr=",
    "+optim.weight_decay=0": "model.g_optimizer=",
    "+optim.scheduler=cosine": "optim.scheduler",
    "+betas=[0,1]": "model.g_optimizer.betas=",
    "epochs=10": r"trainer.max_steps= \(iterations",
    "+trainer.max_epochs=10": r"trainer.max_steps= \(iterations",
    "max_steps=100": "Try trainer.max_steps=100.",
    "+steps=100": "Try trainer.max_steps=100.",
    "device=cuda": "trainer=",
    "gpus=1": "Try trainer.devices=1.",
    "+devices=2": "Try trainer.devices=2.",
    "precision=16": "speed.precision=",
    "+trainer.precision=bf16": "speed.precision=",
    "name=first": "hydra.run.dir=",
    "+output_dir=here": "hydra.run.dir=",
    "ckpt_path=a.ckpt": "resume=RUN.*init_from=RUN",
    "+latent_dim=8": "Try model.latent_dim=8.",
    "z_dim=8": "Try model.latent_dim=8.",
    "image_size=32": "data.image_size|image_size",
    "num_workers=2": "num_workers",
    "dataset=mnist": "data=",
    "data_dir=here": "data.root|data_dir",
    "wandb=true": "logger=default",
    "+tags=[a]": "hydra.run.dir=",
    "+trainer.profiler=simple": "--dry-run",
    "+trainer.accumulate_grad_batches=2": "trainer.accumulate_grad_batches",
    "+trainer.gradient_clip_val=1": "optim.clip=",
    "+trainer.enable_progress_bar=false": "~callbacks.progress",
    "+trainer.limit_train_batches=2": "trainer.max_steps=",
    "+trainer.callbacks=[]": "callbacks",
    "+optim.clipp=1": "optim.clip=1",
    "+ema.rate=0.9": "ema.rate",
    "+checkpoint.every=5": "checkpoint.every",
    "+speed.amp=true": "speed.precision=",
    "+tricks.pack=2": "tricks.packing=2",
    "+health.nan=stop": "health.on_nan=stop",
    "modle=gan": "model=gan",
    "seeed=3": "seed=3",
    "data.batchsize=3": "data.batch_size=3",
    "+data.batchsize=3": "takes no 'batchsize', did you mean 'batch_size'",
    "model=wgan_gp +penalty=r1": "Nothing reads penalty in model=wgan_gp",
    "model=vae +loss=hinge": "Nothing reads loss in model=vae",
    "+network.widht=8 data=mnist": "network.width=8",
    "+network.layers=3": "Nothing reads network.layers",
    "+callbacks.mine=true": "Nothing reads callbacks.mine",
    "+logger.wandb.project=a": "Nothing reads logger.wandb",
    "metrics=none +metrics.num_samples=9": "Nothing reads metrics.num_samples",
    "model=cgan +conditioning.how=sum": "Nothing reads conditioning.how in conditioning=concat",
    "+hydra.colour=true": "Nothing reads hydra.colour",
    "~optim": "Every run reads optim",
    "~seed": "Every run reads seed",
}
VALUES = {
    "optim.clip=0": "optim.clip must be a number above 0, or null",
    "seed=-1": r"seed must be a whole number in \[0, 4294967295\]",
    "trainer.max_steps=1e3": "whole number.*Try trainer.max_steps=1000.",
    "trainer.deterministic=maybe": "trainer.deterministic must be true or false",
    "data.labels=maybe": "data.labels must be true or false",
    "max_time=soon": "max_time is written HH:MM:SS",
    "speed.preset=quick": "speed.preset must be one of",
    "model.latent_dim=null": "model.latent_dim cannot be null",
    "model.g_optimizer.betas=[1,0.9]": r"betas must be a number in \[0, 1\)",
    "callbacks.grid.num_samples=0": "callbacks.grid.num_samples must be a whole number of at least 1",
    "network.hidden=[0]": r"^network.hidden must be",
    "callbacks.players.window=-1": "callbacks.players.window must be",
    "model=vae model.kl_weight=abc": "model.kl_weight must be a number",
}
NUMBERS = {  # key of the default config -> values out of its range
    "optim.clip": (-1.0, float("nan"), float("inf")),
    "optim.lr_scale": (0.0, -1.0, float("inf")),
    "model.g_optimizer.lr": (-1e-3, float("nan"), "abc"),
    "model.d_optimizer.betas": ([0.5, 1], [-0.1, 0.9], 1.0),
    "threads": (-1, 1.5),
    "seed": (-1, 2**32),
    "data.seed": (2**32,),
    "max_cpu_time": (0.0, -5.0),
    "ema.decay": (1.0, -0.1),
    "callbacks.grid.every_n_steps": (0, -5, True),
    "callbacks.grid.num_samples": (0, 2.5),
    "callbacks.players.every_n_steps": (0,),
    "callbacks.progress.refresh_seconds": (0, -1),
    "metrics.every_n_steps": (0, -1),
    "metrics.num_samples": (0,),
    "checkpoint.every_n_steps": (0,),
    "checkpoint.keep": (0,),
    "trainer.max_steps": (0,),
    "trainer.num_nodes": (0,),
    "trainer.log_every_n_steps": (0,),
    "health.max_rollbacks": (-1,),
    "data.batch_size": (0, -1, 1.5),
    "model.latent_dim": (0, -1),
    "model.generator.hidden": ([64, 0],),
    "tricks.packing": (0,),
    "tricks.replay": (-0.1, 1.5),
    "tricks.historical_averaging": (-1.0,),
}
KINDS = {  # numbers of a method or of a group that is chosen for it, and the words of the answer
    "model=gan penalty=r1 penalty.gamma=-1": "^penalty.gamma must be a number of at least 0, got -1",
    "model=gan penalty=wgan_gp penalty.weight=-10": "^penalty.weight must be",
    "model=gan penalty=dragan penalty.noise=-0.1": "^penalty.noise must be",
    "model=gan penalty=dragan penalty.k=-1": "penalty.weight, k and noise must be at least 0",
    "model=began loss.gamma=-0.5": "^loss.gamma must be",
    "model=began loss.gamma=1.5": r"loss.gamma must be in \[0, 1\]",
    "model=began loss.lambda_k=-0.1": "^loss.lambda_k must be",
    "model=began loss.eta=0": "loss.eta positive",
    "model=began model.g_scheduler.window=0": "^model.g_scheduler.window must be a whole number of at least 1",
    "model=began model.d_scheduler.factor=-0.5": "^model.d_scheduler.factor must be",
    "model=began model.d_scheduler.factor=2": "^model.d_scheduler cannot be made: Factor should be < 1.0.$",
    "model=began model.g_scheduler.patience=-1": "^model.g_scheduler.patience must be",
    "model=ebgan loss.m=0": "loss.m must be positive",
    "model=ebgan_pt model.pt_weight=-0.1": "^model.pt_weight must be",
    "model=vae model.kl_weight=-1": "^model.kl_weight must be a number of at least 0",
    "model=vae kl=capacity kl.nats=-1": "kl.nats must be",
    "model=vae kl=warm_up kl.steps=0": "kl.steps must be",
    "model=vae likelihood=gaussian likelihood.sigma=0": "likelihood.sigma must be",
    "model=vae posterior=iaf posterior.steps=0": "posterior.steps must be",
    "model=aae model.latent_dim=2 prior=gaussian_mixture prior.radius=-1": "prior.radius must be",
    "model=vae prior=vamp prior.components=0": "prior.components must be",
    "model=vae adversary=gan adversary.weight=-1": "^adversary.weight must be",
    "model=wgan_gp model.gp_weight=-10": "^model.gp_weight must be",
    "model=wgan model.long_first=-1": "^model.long_first must be",
    "model=wgan model.n_critic=0": "model.n_critic must be",
    "model=infogan model.q_hidden=-1": "^model.q_hidden must be",
    "model=draw model.clip=0": "^model.clip must be a number above 0, or null",
    "model=vqvae data=digits model.encoder.blocks=-1": "^model.encoder.blocks must be",
    "model=vqvae data=digits model.codebook.decay=-1": "decay",
    "model=swapping_autoencoder model.patch_size=-8": "^model.patch_size must be",
    "model=iwae_two_layers model.upper_dim=0": "^model.upper_dim must be",
    "model=gan +model.g_optimizer.weight_decay=-1": "^model.g_optimizer.weight_decay must be",
    "model=gan +model.d_optimizer.eps=-1": "^model.d_optimizer.eps must be",
    "+model.d_optimizer.nesterov=true model.d_optimizer._target_=torch.optim.SGD ~model.d_optimizer.betas": (
        "^model.d_optimizer cannot be made: Nesterov momentum requires a momentum"
    ),
}
FITTING = {
    "optim.clip": (None, 0.5, 3),
    "threads": (None, 0, 4),
    "seed": (0, 2**32 - 1),
    "model.g_optimizer.lr": (0, 0.1),
    "model.g_optimizer.betas": ([0, 0.999],),
    "ema.decay": (0, 0.9999),
    "max_cpu_time": (None, 0.5),
}


def test_there_are_seventy_two():
    assert len(KEYS) + len(VALUES) == 72


@pytest.mark.parametrize("typed", [*KEYS, *VALUES])
def test_a_mistake_ends_in_a_sentence(typed):
    with pytest.raises(UserError, match={**KEYS, **VALUES}[typed]) as stopped:
        checks.check(compose(typed.split()))
    assert "\n" not in str(stopped.value) and len(str(stopped.value)) < 400


@pytest.mark.parametrize(
    "typed",
    [
        ["+width=8", "data=mnist", "network.width=${width}"],  # a key of one's own, read by an interpolation
        ["+optim.mine=3", "model.latent_dim=${optim.mine}"],
        ["trainer.benchmark=true", "trainer.detect_anomaly=true"],
        ["callbacks=none", "logger=none", "metrics=none"],
        ["network={hidden: [8]}"],
        ["~callbacks.grid"],
    ],
)
def test_what_is_read_is_no_mistake(typed):
    compose(typed)


def test_a_key_of_a_part_that_the_method_leaves_out_is_warned_of(caplog):
    """A sweep over methods may set it for all of them."""
    unread._warn.cache_clear()
    compose(["data=mnist", "network.critic_norm=none"])
    compose(["data=mnist", "network.critic_norm=none"])
    compose(["model=pca", "data=digits", "network=mlp"])
    said = [record.getMessage().partition(" in ")[0] for record in caplog.records]
    assert said == ["Nothing reads network.critic_norm", "Nothing reads network"]


def test_hidden_widths_reach_every_network_of_small_images():
    """`network.hidden`, from the noise to the image, and in reverse for the networks that read images."""
    model = compose(["network.hidden=[64,32]"])["model"]
    assert (model["generator"]["hidden"], model["discriminator"]["hidden"]) == ([64, 32], [32, 64])


def test_a_part_that_is_left_out_is_missed():
    with pytest.raises(UserError, match="model.loss cannot be null"):
        checks.check(compose(["~loss"]))


def with_value(key, value):
    """The default config with another value at a key."""
    config = compose_once()
    *above, last = key.split(".")
    node = config
    for part in above:
        node = node[part]
    node[last] = value
    return config


def compose_once(kept=[]):  # noqa: B006
    """A copy of the default config, composed once."""
    import copy

    if not kept:
        kept.append(compose())
    return copy.deepcopy(kept[0])


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_out_of_range_are_refused(key):
    for value in NUMBERS[key]:
        with pytest.raises(UserError, match=f"{key} must be"):
            numbers.check(with_value(key, value))


def test_numbers_in_range_pass():
    for key, fitting in FITTING.items():
        for value in fitting:
            numbers.check(with_value(key, value))


@pytest.mark.parametrize("typed", KINDS)
def test_numbers_of_a_method_that_make_no_sense_are_refused(typed):
    with pytest.raises(UserError, match=KINDS[typed]) as stopped:
        running.build(compose([*typed.split(), "callbacks=none", "logger=none", "metrics=none"]))
    assert "\n" not in str(stopped.value)


def shipped_numbers():
    """The shipped numbers of models and groups, each in a config of its own: key, config, node."""
    for group in ("model", "loss", "penalty", "kl", "likelihood", "posterior", "prior", "adversary", "conditioning"):
        for path in sorted((config_dir() / group).glob("*.yaml")):
            option = yaml.safe_load(path.read_text()) or {}
            for key, value in numbers.leaves(option if group == "model" else {group: option}):
                *above, last = key.split(".")
                config = node = {"model": {}}
                for part in ("model", *above):
                    node = node.setdefault(part, {})
                node[last] = value
                yield key, config, node


def test_every_shipped_number_passes_and_no_weight_may_be_negative():
    weights = 0
    for key, config, node in shipped_numbers():
        numbers.check(config)
        last = key.rpartition(".")[2]
        if last == "weight" or last.endswith(("_weight", "gamma")):
            weights += 1
            node[last] = 0  # switches a term off
            numbers.check(config)
            node[last] = -0.5
            with pytest.raises(UserError, match=f"{last} must be a number of at least 0, got -0.5"):
                numbers.check(config)
    assert weights > 30


def test_a_stage_has_the_ranges_of_a_run():
    config = compose(["model=vqvae"])
    config["stages"] = [{"name": "prior", "model": {"temperature": 1.0, "optimizer": {"lr": -0.1}}}]
    with pytest.raises(UserError, match=r"^stages.0.model.optimizer.lr must be.*Try stages.0.model.optimizer.lr="):
        numbers.check(config)


def test_values_of_a_method_that_are_no_numbers_have_no_range():
    """`learned_weight: true` of one's own; a wrong type is found by the signature."""
    for value in (True, "balanced", None, [True]):
        numbers.check(with_value("model.own_weight", value))


def test_every_example_of_a_range_lies_in_it():
    assert all(allowed.holds(allowed.example) for allowed in {**numbers.RANGES, **numbers.KINDS}.values())


def test_every_guess_of_the_default_run_is_answered():
    """By a key of `model=vae data=mnist`; those of keys that genlab does not have yet stay without an answer."""
    keys = [*guesses.dotted(unread.containers(composed(["model=vae", "data=mnist"]))), "hydra.run.dir"]
    groups = sorted({path.parent.name for path in config_dir().glob("*/*.yaml")})
    silent = {patterns for guess, (patterns, _) in guesses.PLACES.items() if not guesses.cure(guess, "1", keys, groups)}
    assert silent <= {"optim.accumulate", "checkpoint.early_stop*", "scheduler= model*scheduler", "model*.betas"}


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["+batch_size=32"], "Try data.batch_size=32."),
        (["-m", "+lr=1e-3", "seed=0,1"], "model.g_optimizer.lr="),
        (["seed=-1", "--cfg", "job"], "seed must be"),
        (["--config-dir", ".", "epochs=3"], "trainer.max_steps="),
    ],
)
def test_the_command_line_makes_nothing_of_a_mistake(typed, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(monkeypatch, *typed) == 2
    told = capsys.readouterr().err
    assert words in told and "Traceback" not in told and not list(tmp_path.iterdir())


def test_a_sweep_of_which_one_job_is_wrong_is_left_to_its_jobs(monkeypatch):
    from genlab.cli import app

    app.check_line("train", ["-m", "seed=-1,0"])
    with pytest.raises(UserError, match="seed must be"):
        app.check_line("train", ["-m", "seed=-1", "ema.decay=0,0.5"])


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("threads=-1", "threads must be"),
        ("trainer.max_steps=abc", "trainer.max_steps=abc cannot be"),
        ("trainer.max_steps=[1", "cannot be"),
        ("dry_run=maybe", "dry_run=maybe cannot be"),
        ("batch_size=3", "A resumed run keeps its own config"),
    ],
)
def test_a_resumed_run_checks_what_is_typed(typed, words):
    from genlab.cli.train import _override

    with pytest.raises(UserError, match=words):
        _override(compose_once(), [typed])


ODD = ["", "abc", "-1", "0", "1.5", "nan", "inf", "[1", "{a:", "[1,2]", "{a: 1}", "null", "true", "é", "9" * 30, "~"]


@pytest.mark.parametrize("command", ["sample", "evaluate", "visualize", "export"])
def test_no_other_command_answers_a_value_with_a_traceback(command, tmp_path, monkeypatch, capsys):
    """Every key with every odd value, on a run that does not exist."""
    import importlib

    module = importlib.import_module(f"genlab.cli.{command}")
    monkeypatch.chdir(tmp_path)
    for key in [*module.DEFAULTS, "num_samples", "ckpt_path", "+n", "n"]:
        for value in ODD if key != "sampler_settings" else ():
            monkeypatch.setattr(sys, "argv", [command, "run=nowhere", f"{key}={value}"])
            with pytest.raises(SystemExit) as stopped:
                module.main()
            assert stopped.value.code == 2, (key, value)
    told = capsys.readouterr().err
    assert "Did you mean run=?" in told and "Traceback" not in told
    assert "Did you mean n=?" in told or "n" not in module.DEFAULTS
