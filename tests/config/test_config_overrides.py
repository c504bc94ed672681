"""Whatever is typed ends in a valid composition or in one sentence, never in a traceback."""

import dataclasses
import sys

import pytest
import yaml
from hydra.errors import CompactHydraException
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from genlab.config import checks
from genlab.config.composition import compose
from genlab.config.schema import TrainConfig
from genlab.config.shipped import config_dir, options
from genlab.errors import UserError

GROUPS = sorted(path.name for path in config_dir().iterdir() if path.is_dir() and list(path.glob("*.yaml")))


def dotted(node, path):
    """All keys of plain containers, nodes and leaves, with dots between them."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if key != "defaults":
            yield f"{path}{key}"
            yield from dotted(value, f"{path}{key}.")


def every_key():
    """The schema's and every shipped config's, as they are typed."""
    keys = {f.name for f in dataclasses.fields(TrainConfig)}
    for f in dataclasses.fields(TrainConfig):
        if f.default_factory is not dataclasses.MISSING and dataclasses.is_dataclass(f.default_factory):
            keys |= {f"{f.name}.{inner.name}" for inner in dataclasses.fields(f.default_factory)}
    for group in GROUPS:
        for option in options(group):
            content = yaml.safe_load((config_dir() / group / f"{option}.yaml").read_text())
            keys |= set(dotted(content, "" if group == "experiment" else f"{group}."))
    return sorted(keys)


KEYS = every_key()
PRESENT = sorted(set(dotted(compose(), "")))  # of `python train.py`
ODD_VALUES = [
    "", "null", "true", "no", "0", "-1", "1", "3", "7.5", "1e-3", "1e9", "-2e30", "1e999", "nan", "inf", "-inf",
    "9" * 30, "abc", "é🎲", "auto", "none", "'a b'", '"', "'", "\\", "a=b", "a,b", "1,2", "[1,2]", "[]", "[16]",
    "[[3]]", "[a", "{}", "{a: 1}", "{a:", "{_target_: os.system}", "{_target_: 3}", "{_target_: torch.nn.Nope}",
    "{_args_: [1]}", "${seed}", "${nope}", "${data.shape}", "${oc.env:NO_SUCH_VARIABLE}", "${genlab.times:a,b}",
    "${genlab.nope:}",
    "${", "$", "???", "choice(1,2)", "range(1,3)", "glob(*)", "shuffle(1)", "int(x)", "a\nb",
    "\t", "\x00", "@", "~", "/",
    "../..", "None", "0x10", "1_000", "00:00:10", "rollback", "fast", "inception", "float64",
]  # fmt: skip
values = st.one_of(
    st.sampled_from(ODD_VALUES),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=6),
    st.sampled_from(KEYS),
)
prefixes = st.sampled_from(["", "", "", "", "+", "++", "~"])
groups = st.sampled_from([*GROUPS, "network@_global_.network", "loss@model.loss", "nope", "hydra/launcher"])
members = st.one_of(
    st.sampled_from(sorted({o for group in GROUPS for o in options(group)})),
    st.sampled_from(
        [
            "null",
            "",
            "3",
            "1.5",
            "true",
            "[1]",
            "[null]",
            "[gan,vae]",
            "none",
            "Gan",
            "gan.yaml",
            "../train",
            "gan,vae",
            "{a: 1}",
            "${seed}",
        ]
    ),
)
numbers = st.one_of(st.integers(0, 64), st.floats(1e-4, 1.0), st.booleans()).map(lambda v: str(v).lower())
fitting = st.sampled_from([f"{g}={o}" for g in ("model", "data", "network", "loss", "experiment") for o in options(g)])
plausible = st.one_of(fitting, st.builds("{}={}".format, st.sampled_from(PRESENT), numbers))
odd = st.one_of(
    st.builds("{}{}={}".format, prefixes, st.sampled_from(KEYS), values),
    st.builds("{}{}={}".format, prefixes, st.sampled_from(KEYS), values),
    st.builds("{}{}={}".format, prefixes, groups, members),
    st.builds("{}{}".format, prefixes, st.sampled_from([*KEYS, *GROUPS])),
    st.builds("{}={}".format, st.text(max_size=5), values),
    st.text(max_size=8),
)
lines = st.builds(list.__add__, st.lists(plausible, max_size=2), st.lists(odd, max_size=2))


def outcome(typed):
    """What the composition of these arguments and the checks before any work come to.

    Returns:
        "composed", or "refused" where one of genlab's sentences or one of Hydra's own messages says why.
    """
    try:
        checks.check(compose(typed))
    except UserError as error:
        assert str(error).strip() and "Traceback" not in str(error)
        return "refused"
    except CompactHydraException:  # printed without a traceback
        return "refused"
    return "composed"


def check(examples, seeded):
    """Runs the property on so many lists of overrides, the same ones each time; counts what they came to."""
    counts = {"composed": 0, "refused": 0}

    @settings(
        max_examples=examples,
        derandomize=seeded,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(lines)
    def run(typed):
        counts[outcome(typed)] += 1

    run()
    return counts


@pytest.mark.long
def test_random_overrides_end_in_a_composition_or_a_sentence():
    counts = check(300, True)
    assert min(counts.values()) >= 20  # both sides are met


@pytest.mark.slow
def test_ten_thousand_random_overrides():
    print(check(10_000, True), file=sys.stderr)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["=3"], "names no key"),
        (["model=3"], "choose one of aae, "),
        (["penalty=[1]"], "leave penalty out"),
        (["~model=true"], "choose one of"),
        (["++health=${seed}"], "health"),
        (["++data=${seed}"], "data|Error"),
        (["model.g_optimizer._partial_=1"], "must be a bool"),
        (["++model.g_optimizer._target_=3"], "cannot be imported"),
        (
            ["+model.g_scheduler={_target_: torch.optim.lr_scheduler.StepLR, _partial_: true, step: 3}"],
            "takes no 'step'",
        ),
        (["+data.g_optimizer={_target_: torch.optim.Adam, _partial_: true}"], "takes no 'g_optimizer'"),
    ],
)
def test_what_random_overrides_have_found(typed, words):
    with pytest.raises((UserError, CompactHydraException), match=words):
        checks.check(compose(typed))
