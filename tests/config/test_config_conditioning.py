"""`conditioning=...` rewrites the config: what it widens, what it leaves, what it refuses, and that once is enough."""

import copy
import inspect

import pytest
import torch
from torch.nn.utils.parametrize import is_parametrized

import genlab
from genlab.batch import Batch
from genlab.config import checks, conditioning
from genlab.config.composition import compose, config_dir
from genlab.config.instantiate import build_data, build_model, check_signatures, locate
from genlab.config.shipped import read_option
from genlab.config.stages import stage_configs
from genlab.data.module import ArrayData
from genlab.errors import UserError
from genlab.networks import mlp
from genlab.networks.told import Concat, InputMaps, Told
from genlab.networks.views import Viewed
from genlab.runs.folder import find_run, read_config
from genlab.runs.running import build
from genlab.runs.start import train
from tests.cli.helpers import assert_identical, main, weights
from tests.models.helpers import QUIET, config, fit

TOLD = "genlab.networks.told."
BY_HAND = ["+model.given=[y]", "+model.told={generator: draws, discriminator: judges}"]
DIGITS, RING = {"y": {"kind": "label", "size": 10}}, {"y": {"kind": "label", "size": 8}}


def sentence(*overrides, make=compose):
    """What is said of a command line that is refused."""
    with pytest.raises(UserError) as error:
        make(list(overrides))
    return str(error.value)


def checked(overrides):
    composed = compose(overrides)
    checks.check(composed)
    return composed


# --- The rewritten config ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "generator", "discriminator"),
    [
        (["data=digits"], ("Concat", {"latent_dim": 26}), ("InputMaps", {"shape": [11, 8, 8]})),
        (["data=digits", "conditioning=hidden"], ("Concat", {"latent_dim": 26}), ("HiddenMaps", {})),
        (["data=digits", "conditioning=projection"], ("NormTold", {}), ("Projection", {})),
        (["data=digits", "conditioning=norm"], ("NormTold", {}), ("Projection", {})),
        (["data=ring"], ("Concat", {"latent_dim": 24}), ("Concat", {"shape": [10]})),
        (["data=ring", "conditioning=norm"], ("Concat", {"latent_dim": 24}), ("Projection", {})),
        (
            ["data=digits", "network=dcgan", "data.image_size=16", "model.latent_dim=7"],
            ("Concat", {"latent_dim": 17}),
            ("InputMaps", {"shape": [11, 16, 16]}),
        ),
        (
            ["data=digits", "network=dcgan", "data.image_size=16", "conditioning=norm"],
            ("NormTold", {}),
            ("Projection", {}),
        ),
    ],
)
def test_inputs_are_widened_and_nothing_else_changes(overrides, generator, discriminator):
    """Beside `model=gan`: each network is that network, but for its input, in its wrapper."""
    told = checked(["model=cgan", *overrides])
    plain = compose(["model=gan", *[o for o in overrides if not o.startswith("conditioning")]])
    facts = RING if "data=ring" in overrides else DIGITS
    for name, (wrapper, widened) in (("generator", generator), ("discriminator", discriminator)):
        node = told["model"].pop(name)
        own = plain["model"].pop(name)
        assert node["_target_"] == TOLD + wrapper
        assert node["network"] == {**own, **widened} and node["given"] == facts
    assert told["model"].pop("given") == ["y"]
    assert told["choices"].pop("model") == "cgan" and plain["choices"].pop("model") == "gan"
    chosen = [o.partition("=")[2] for o in overrides if o.startswith("conditioning")]
    assert told["choices"].pop("conditioning") == (*chosen, "concat")[0]
    assert plain.pop("conditioning", None) is None and "conditioning" not in told
    assert told == plain


def test_the_latent_keeps_its_own_width():
    """`latent_dim` of the model is the noise alone."""
    model = checked(["model=cgan", "model.latent_dim=5"])["model"]
    assert model["latent_dim"] == 5 and model["generator"]["network"]["latent_dim"] == 15
    assert "told" not in model


def test_options_of_wrappers_follow_from_the_network():
    """The size of a sample, and spectral norm where the network has it."""
    for spectral in (True, False):
        model = compose(["model=cgan", "conditioning=hidden", f"network.spectral_norm={spectral}"])["model"]
        node = model["discriminator"]
        assert (node["shape"], node["spectral_norm"]) == ([1, 8, 8], spectral)
        assert (node["after"], node["width"]) == (1, 128)


def test_encoders_decoders_and_readers():
    model = checked(["model=cvae", "model.latent_dim=3"])["model"]
    assert (model["encoder"]["_target_"], model["decoder"]["_target_"]) == (TOLD + "InputMaps", TOLD + "Concat")
    assert model["encoder"]["network"]["shape"] == [11, 8, 8] and model["encoder"]["network"]["out_features"] == 6
    assert model["decoder"]["network"]["latent_dim"] == 13 and model["decoder"]["network"]["shape"] == [1, 8, 8]
    completed = checked(["model=cvae_completion", "model.latent_dim=3"])
    model, facts = completed["model"], {"c": {"kind": "masked", "shape": [2, 8, 8]}}
    assert model["given"] == ["c"] and completed["derive"]["c"]["seen"] == "top"
    shapes = {name: model[name]["network"]["shape"] for name in ("encoder", "prior_network", "decoder")}
    assert shapes == {"encoder": [3, 8, 8], "prior_network": [2, 8, 8], "decoder": [1, 8, 8]}
    assert model["prior_network"]["_target_"] == TOLD + "Reads" and model["prior_network"]["sides"] == [8, 8]
    assert all(model[name]["given"] == facts for name in shapes)


def test_any_method_is_told_by_overrides():
    composed = checked(["model=gan", "+conditioning=concat", *BY_HAND])
    shipped = checked(["model=cgan"])
    for key in ("generator", "discriminator", "given"):
        assert composed["model"][key] == shipped["model"][key]


def test_a_derived_column_is_told():
    """Widths follow from the field of the column, whatever it is made of."""
    for size in (8, 16):
        overrides = ["model=cgan", "network=dcgan", f"data.image_size={size}", "model.given=[c]", "derive=half"]
        model = checked(overrides)["model"]
        assert model["discriminator"]["network"]["shape"] == [1 + 2, size, size]
        assert model["generator"]["given"] == {"c": {"kind": "masked", "shape": [2, size, size]}}
    both = checked(["model=cgan", "model.given=[y,c]", "derive=half"])["model"]
    assert list(both["generator"]["given"]) == ["y", "c"]
    assert both["discriminator"]["network"]["shape"] == [1 + 10 + 2, 8, 8]


def test_what_a_function_makes_of_a_network_is_made_of_the_told_one():
    """Spectral norm of sngan's discriminator reaches what its wrapper adds."""
    overrides = ["model=sngan", "+conditioning=projection", *BY_HAND]
    plain, told = compose(["model=sngan"])["model"]["discriminator"], checked(overrides)["model"]["discriminator"]
    assert told["_target_"] == plain["_target_"] == "genlab.networks.init.spectrally_normalised"
    assert told["network"]["_target_"] == TOLD + "Projection" and told["network"]["network"] == plain["network"]
    network = build(config(overrides)).model.discriminator
    assert all(is_parametrized(m, "weight") for m in network.modules() if isinstance(m, torch.nn.Linear))
    wrong = sentence(
        "model=sngan", "+conditioning=concat", f"conditioning.judges=[{{_target_: {TOLD}Concat}}]", *BY_HAND
    )
    assert wrong.startswith("conditioning=concat has no way to tell model.discriminator.network (genlab.")


def test_a_models_own_conditioning_may_have_nothing_to_tell():
    """Where a key of the model leaves it without conditions; one that was typed is refused."""
    node = compose(["model=gan"])
    idle = {**node, "conditioning": conditioning_of("concat")}
    assert conditioning.told(idle, typed=False) == conditioning.told(node) == node
    with pytest.raises(UserError, match="has nothing to tell"):
        conditioning.told(idle)


# --- Once is enough ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [["model=cgan"], ["model=cvae"], ["model=cvae_completion"], ["model=gan"]])
def test_a_rewritten_config_is_rewritten_to_itself(overrides):
    once = compose(overrides)
    before = copy.deepcopy(once)
    assert conditioning.told(once) == before == once
    assert "conditioning" not in conditioning.told({**once, "conditioning": None})


def test_a_run_is_resumed_and_loaded_without_wrapping_twice(tmp_path, monkeypatch):
    """2 + 2 iterations are 4, also where the command line resumes; a loaded model is told and needs no data."""
    small = ["model=cgan", *QUIET, "network.generator.hidden=[8]", "network.discriminator.hidden=[8]"]
    train(compose([*small, "trainer.max_steps=4"]), tmp_path / "alone")
    for name in ("function", "command"):
        train(compose([*small, "trainer.max_steps=2"]), tmp_path / name)
    run, checkpoint = find_run(tmp_path / "function")
    saved = read_config(run)
    assert saved["model"] == compose(small)["model"]
    train({**saved, "trainer": {**saved["trainer"], "max_steps": 4}}, run, resume=checkpoint)
    assert main(monkeypatch, f"resume={tmp_path / 'command'}", "trainer.max_steps=4") == 0
    for name in ("function", "command"):
        assert read_config(tmp_path / name)["model"] == saved["model"]
        assert_identical(weights(tmp_path / "alone"), weights(tmp_path / name))
    monkeypatch.setattr(ArrayData, "_build", lambda *_: pytest.fail("data were read"))
    model = genlab.load(tmp_path / "alone")
    assert isinstance(model.generator, Concat) and isinstance(model.generator.network, mlp.Generator)
    assert isinstance(model.discriminator, InputMaps) and isinstance(model.discriminator.network, mlp.Discriminator)
    assert model.given == ("y",) and model.generator.network.decoder.body[0].in_features == model.latent_dim + 10
    assert model.sample(2, given=Batch({"y": torch.tensor([3, 1])})).shape == (2, 1, 8, 8)


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["model=gan", "+conditioning=concat"],
            "conditioning=concat has nothing to tell: model=gan is given no column. Leave it out.",
        ),
        (
            ["model=cgan", "conditioning=null"],
            "conditioning=null names no option; choose one of concat, hidden, latent_gaussians, norm, places, "
            "projection, text, or leave conditioning out.",
        ),
        (["model=gan", *BY_HAND], "model=gan is given y: say how with conditioning=concat, or another."),
        (
            ["model=gan", BY_HAND[1]],
            "model.given names no column, so that model=gan has nothing to tell. Try 'model.given=[y]', or leave both "
            "out.",
        ),
        (
            ["model=gan", BY_HAND[0], "+conditioning=norm"],
            "model.told names no network, so that model=gan has nothing to tell. Try 'model.told={generator: draws, "
            "discriminator: judges}', or leave both out.",
        ),
        (
            ["model=cgan", "data=swiss_roll"],
            "model=cgan is given y, and data=swiss_roll has x. Set data.num_classes=, if data=swiss_roll has classes, "
            "or take data=digits.",
        ),
        (
            ["model=cgan", "data.labels=false"],
            "model=cgan is given y, and data=digits has x. Try data.labels=true.",
        ),
        (["model=cgan", "model.given=[caption]"], "model=cgan is given caption, and data=digits has x, y."),
        (
            ["model=cgan", "model.told.generator=paints"],
            "model.told.generator must be one of draws, judges, encodes, reads, got 'paints'.",
        ),
        (
            ["model=cgan", "model.told.generator=reads"],
            "conditioning=concat has no way to tell model.generator (genlab.networks.mlp.Generator), which takes none "
            "of Reads, ReadsVector. Try another conditioning=, or another network=.",
        ),
        (
            ["model=cgan", "conditioning=projection", "model.told.generator=judges"],
            "conditioning=projection has no way to tell model.generator (genlab.networks.mlp.Generator), which takes "
            "none of Projection. Try another conditioning=, or another network=.",
        ),
        (["model=cvae_completion", "data=ring"], "Half is made of pictures, and the column x is of kind points."),
        (
            ["model=cvae_completion", "derive=grey"],
            "derive=grey needs colour pictures, and x has 1 channel.",
        ),
    ],
)
def test_refusals_of_a_composition(overrides, words):
    assert sentence(*overrides) == words


CONDITIONED = {"gan", "dcgan", "sngan", "cgan", "wgan", "wgan_gp", "vae", "cvae", "pixelvae", "cvae_completion"}
CONDITIONED |= {"projection_gan", "acgan", "kplus1_gan"}
CONDITIONED |= {"completion_regression", "attribute2image", "attribute2image_layered"}
OF_PICTURES = {"cvae_completion", "completion_regression", "attribute2image_layered"}  # given or needed
CONDITIONED |= {"draw", "conditional_draw", "cvae_gan", "ssl_vae", "ssl_vae_gan", "label_vae", "m1_m2"}
OWN_NETWORKS = {"stackgan", "gawwn", "gawwn_keypoints", "layout_gan"}  # of pictures and captions, boxes, keypoints
CONDITIONED |= {"gan_cls", "gan_int", *OWN_NETWORKS}
SHIPPED = sorted(path.stem for path in (config_dir() / "model").glob("*.yaml"))


def method_of(model):
    """The class of a shipped model, by its yaml or by the one that this is based on."""
    own = read_option("model", model)
    if "_target_" in own:
        return locate(own["_target_"], "model")
    return method_of(next(base for base in own["defaults"] if isinstance(base, str) and base != "_self_"))


def told_by_itself(model):
    """Whether a shipped model, or the one that it is based on, is given columns by default."""
    own = read_option("model", model)
    bases = [base for base in own.get("defaults", ()) if isinstance(base, str) and base != "_self_"]
    return bool(own.get("told")) or any(told_by_itself(base) for base in bases)


def told_by_force(model, networks):
    """The command line that tells these networks of a model its labels, whatever its yaml says."""
    roles = ", ".join(f"{network}: {conditioning.USUAL.get(network, 'reads')}" for network in networks)
    line = [f"model={model}", "data=digits", "++model.given=[y]", f"++model.told={{{roles}}}"]
    return [*line, *([] if told_by_itself(model) else ["+conditioning=concat"])]


@pytest.mark.parametrize("model", SHIPPED)
def test_conditions_are_refused_where_the_training_step_tells_no_network(model):
    """The class says whether it tells, and its own source agrees."""
    method = method_of(model)
    steps = next(base for base in method.__mro__ if "training_step" in vars(base))
    assert bool(method.tells) == (model in CONDITIONED) == ("self.told(" in inspect.getsource(steps))
    if not method.tells:
        node = {"_target_": f"{method.__module__}.{method.__name__}", "given": ["y"], "told": {"encoder": "encodes"}}
        composed = {"choices": {"model": model, "conditioning": "concat"}, "model": node}
        with pytest.raises(UserError, match=f"^model={model} is trained without conditions, so .* model=cgan") as said:
            conditioning.told({**composed, "conditioning": read_option("conditioning", "concat")})
        assert len(str(said.value)) < 300


@pytest.mark.parametrize("model", sorted(CONDITIONED - OF_PICTURES - {"draw", *OWN_NETWORKS}))
def test_networks_that_are_told_by_force_are_trained(model, tmp_path):
    """Not those that need pictures beside labels, and `draw` without any."""
    small = ["network=dcgan", "network.width=4", "data.image_size=16"] if model == "dcgan" else ["network.hidden=[8]"]
    own = {"wgan": ["model.n_critic_long=1"], "pixelvae": ["likelihood.width=4", "likelihood.layers=1"]}
    network = [] if model == "dcgan" else ["network=mlp"]
    fit([*told_by_force(model, method_of(model).tells), *network, *small, *own.get(model, [])], 1, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["model=cgan", "+model.told.critic=judges"],
            "model=cgan tells its conditions to generator and discriminator, and not to critic. Leave "
            "model.told.critic out.",
        ),
        (
            ["model=cgan", "~model.told.discriminator"],
            "model=cgan tells its conditions to generator and discriminator, and model.told lacks discriminator, "
            "which takes none by itself. Try +model.told.discriminator=judges.",
        ),
        (
            ["model=vae", BY_HAND[0], "+conditioning=concat"],
            "model.told names no network, so that model=vae has nothing to tell. Try 'model.told={encoder: encodes, "
            "decoder: draws}', or leave both out.",
        ),
    ],
)
def test_networks_that_are_told_are_those_that_the_step_tells(overrides, words):
    assert sentence(*overrides) == words


def test_conditions_of_another_method_end_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(monkeypatch, *told_by_force("iwae", ["encoder", "decoder"])) == 2
    told = capsys.readouterr().err
    assert "model=iwae is trained without conditions" in told and "Traceback" not in told
    assert not list(tmp_path.iterdir())


def test_an_option_without_wrappers_for_a_role_says_so():
    composed = {**compose(["model=gan"]), "conditioning": {"draws": []}}
    composed["choices"] = {**composed["choices"], "conditioning": "own"}
    composed["model"] = {**composed["model"], "given": ["y"]}
    composed["model"]["told"] = {"generator": "draws", "discriminator": "judges"}
    with pytest.raises(
        UserError, match="^conditioning=own has no way to tell model.generator .* takes none of nothing"
    ):
        conditioning.told(composed)


@pytest.mark.parametrize(
    "trick", ["packing=2", "minibatch_discrimination=true", "virtual_batch_norm=true", "replay=0.5"]
)
def test_tricks_that_mix_rows_are_refused(trick):
    """Rows of a batch, or fakes of other labels in the place of a row's own. Beside `model=gan` they are taken."""
    overrides = ["network=mlp", "network.generator_norm=batch", f"tricks.{trick}"]
    assert sentence("model=cgan", *overrides, make=checked) == (
        f"tricks.{trick.partition('=')[0]} does not go with model=cgan, whose networks are told y. Leave it out."
    )
    checked(["model=gan", *overrides])


@pytest.mark.parametrize(
    "tricks",
    [["augment=true"], ["instance_noise=0.2"], ["augment=true", "instance_noise=0.2"], ["feature_matching=true"]],
)
@pytest.mark.parametrize("option", ["concat", "projection"])
def test_tricks_that_go_with_labels(tricks, option, tmp_path):
    """Samples are changed before they meet their labels: views go outside of what is told."""
    overrides = ["model=cgan", f"conditioning={option}", "network.generator.hidden=[8,8]"]
    model = fit([*overrides, "network.discriminator.hidden=[8]", *(f"tricks.{t}" for t in tricks)], 2, tmp_path).model
    viewed = tricks != ["feature_matching=true"]
    assert isinstance(model.discriminator, Viewed) is viewed
    assert isinstance(model.discriminator.discriminator if viewed else model.discriminator, Told)
    assert all(p.isfinite().all() for p in model.parameters())


# --- Before data are read ---------------------------------------------------------------------------------------------


def test_wrong_derivations_are_found_before_data_are_read(monkeypatch):
    monkeypatch.setattr(ArrayData, "_build", lambda *_: pytest.fail("data were read"))
    words = "derive=half shows one of top, bottom, left, right, got seen='nowhere'."
    assert sentence("model=cvae_completion", "derive.c.seen=nowhere") == words
    for overrides, start in (
        (["model=gan", "+derive=half", "derive.c.seen=nowhere"], words),
        (["model=gan", "data=ring", "+derive=half"], "Half is made of pictures, and the column x is of kind points."),
        (["model=gan", "+derive=low_resolution", "derive.c.factor=3"], "derive=low_resolution: factor=3 must divide"),
    ):
        assert sentence(*overrides, make=lambda o: build(config(o))).startswith(start)
    assert "takes no 'sigma'" in sentence("model=gan", "+derive=half", "+derive.c.sigma=1", make=checked)


def test_what_the_config_states_is_what_the_data_are():
    """Fields before and after the data are read."""
    for overrides in (
        ["data=digits", "+derive=quadrants"],
        ["data=ring"],
        ["data=swiss_roll"],
        ["data=digits", "data.labels=false"],
    ):
        composed = compose(["model=gan", *overrides])
        data = build_data(composed)
        data.setup()
        stated = conditioning.described(composed).fields
        assert stated.keys() == data.spec.fields.keys()
        for name, field in stated.items():
            found = data.spec.fields[name]
            assert (field.kind, field.shape, field.size) == (found.kind, found.shape, found.size)


# --- Keys that are no arguments ---------------------------------------------------------------------------------------


def test_given_is_an_argument_of_no_constructor():
    """It is taken at a model, and at its first stage; anywhere else, and `told`, are unknown arguments."""
    model = compose(["model=cgan"])["model"]
    check_signatures({"model": model})
    over = {"_target_": "tests.models.toys.Over", "first_stage": model}
    check_signatures({"model": over})
    assert build_model({**model}).given == ("y",)
    for wrong, place in (
        ({**model, "loss": {**model["loss"], "given": ["y"]}}, "model.loss: "),
        ({**model, "told": {"generator": "draws"}}, "model: "),
        ({**over, "first_stage": {**model, "told": {}}}, "model.first_stage: "),
    ):
        with pytest.raises(UserError, match=f"^{place}.* takes no '(given|told)'"):
            check_signatures({"model": wrong})


# --- Stages -----------------------------------------------------------------------------------------------------------


def test_a_stage_is_told_as_a_run_of_its_own_is():
    """The run's option holds for a stage, and one of the stage's own before it; told once, without the keys."""
    plain = compose(["model=gan"])["model"]
    stage = {"given": ["y"], "told": {"generator": "draws", "discriminator": "judges"}}
    told = {name: compose(["model=cgan", f"conditioning={name}"])["model"] for name in ("concat", "projection")}
    option = conditioning_of("projection")
    config = {
        **compose(["model=gan"]),
        "conditioning": conditioning_of("concat"),
        "stages": [
            {"name": "one", "model": {**plain, **stage}},
            {"name": "two", "model": {**plain, **stage}, "conditioning": option},
            {"name": "three", "trainer": {"max_steps": 1}},
        ],
    }
    one, two, three = (stage for _, stage in stage_configs(conditioning.told(config)))
    assert one["model"] == told["concat"] and two["model"] == told["projection"] and three["model"] == plain
    assert all("conditioning" not in stage for stage in (one, two, three))
    with pytest.raises(UserError, match="conditioning=None has nothing to tell: model=gan is given no column"):
        conditioning.told({**config, "stages": [{"name": "three"}]})


def conditioning_of(name):
    """The keys of an option."""
    return read_option("conditioning", name)
