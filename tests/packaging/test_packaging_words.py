"""One law: code asks a thing what it can do, and never its name."""

import ast
from pathlib import Path

import pytest

import genlab
from genlab import contracts
from genlab.config.shipped import config_dir

HOUSE = Path(genlab.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in sorted(HOUSE.rglob("*.py")) if "configs" not in path.parts}
METHODS = {path.stem for path in (config_dir() / "model").glob("*.yaml")}
CLASSES = {
    node.name
    for path, tree in TREES.items()
    if path.parent == HOUSE / "models" and path.stem != "base"
    for node in tree.body
    if isinstance(node, ast.ClassDef)
}


def room(path):
    """The folder of a module below genlab; "" of those beside the rooms."""
    return path.relative_to(HOUSE).parts[0] if path.parent != HOUSE else ""


def nodes(kind, but=()):
    """All nodes of a class outside of some rooms, each with its module and line."""
    return [
        (f"{path.relative_to(HOUSE)}:{node.lineno}", node)
        for path, tree in TREES.items()
        if room(path) not in but
        for node in ast.walk(tree)
        if isinstance(node, kind)
    ]


def name(node):
    """What an expression is called: `kind` of `kind`, `field.kind` and `facts["kind"]`; "" of all else."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return node.slice.value
    return getattr(node, "attr", getattr(node, "id", ""))


def texts(node):
    """The literal texts within an expression."""
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def compared_kinds(compare):
    """The kinds that a comparison such as `x.kind == "image"` or `kind in ("image", "points")` names."""
    sides = [compare.left, *compare.comparators]
    return [
        text for side in sides if name(side) != "kind" for text in texts(side) if any(name(s) == "kind" for s in sides)
    ]


def test_no_kind_of_column_is_asked_by_name():
    """Fields know their kinds, and nobody else."""
    found = [where for where, node in nodes(ast.Compare, but=("fields",)) if compared_kinds(node)]
    matched = [where for where, node in nodes(ast.Match, but=("fields",)) if name(node.subject) == "kind"]
    assert found + matched == []


def test_no_class_of_a_method_is_asked_for():
    """Outside of the methods themselves; that something is a genlab model at all may be asked."""
    assert {"GAN", "VAE"} <= CLASSES and "GenerativeModel" not in CLASSES
    found = [
        (where, ast.unparse(node))
        for where, node in nodes(ast.Call, but=("models",))
        if name(node.func) in ("isinstance", "issubclass") and CLASSES & {name(part) for part in ast.walk(node.args[1])}
    ]
    assert found == []


def test_no_method_is_known_by_its_name():
    """Names of methods stand in configs, in the benchmarks' lists and in sentences, as in "Try model=vae".

    Network families have names of their own, "dcgan", and judges a score "iwae".
    """
    assert {"gan", "vae", "cgan"} <= METHODS
    found = [
        (where, node.value)
        for where, node in nodes(ast.Constant, but=("models", "benchmarks", "networks", "judging"))
        if node.value in METHODS
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        ('x.kind == "image"', ["image"]),
        ('config["data"]["kind"] != "points"', ["points"]),
        ('kind in ("image", "video")', ["image", "video"]),
        ("kind in kinds", []),
        ('name == "image"', []),
    ],
)
def test_what_counts_as_asking_by_name(code, kinds):
    assert compared_kinds(ast.parse(code, mode="eval").body) == kinds


def test_attributes_that_are_asked_of_a_model_are_declared():
    """`getattr(model, "name", ...)` outside of the methods names a capability or one of `contracts.Further`."""
    declared = {*contracts.CAPABILITIES, *contracts.Further.__annotations__}
    names = {
        (str(path.relative_to(HOUSE)), node.args[1].value)
        for path, tree in TREES.items()
        if path.relative_to(HOUSE).parts[0] != "models"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr")
        if ast.unparse(node.args[0]).rpartition(".")[2] in ("model", "pl_module", "inner")
        if isinstance(node.args[1], ast.Constant)
    }
    assert len(names) > 8 and {name for _, name in names} <= declared
