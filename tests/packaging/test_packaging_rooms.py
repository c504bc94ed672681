"""The order of rooms: imports run one way, down, in functions too; a new module that looks up fails here."""

import ast
from collections import Counter, defaultdict
from pathlib import Path

import genlab

HOUSE = Path(genlab.__file__).parent
# From the doors to the ground. What stands alone (errors, files, seeding, ...) lies under all rooms.
ORDER = (
    *("cli", "benchmarks", "runs", "callbacks", "reports", "judging", "looks", "config", "models", "engine"),
    *("sampling", "extractors", "metrics", "networks", "losses", "data", "fields", "contracts", ""),
)
MODULES = {
    ".".join(("genlab", *path.relative_to(HOUSE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(HOUSE.rglob("*.py"))
    if "configs" not in path.parts
}


def room(module: str) -> str:
    """The folder of a module; "" of what lies under all, and of the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or (HOUSE / parts[-1]).is_dir() else ""


def imports(module: str, for_types: bool = True) -> set[str]:
    """The modules of genlab that one imports, anywhere in it."""
    tree = ast.parse(MODULES[module].read_text())
    if not for_types:
        tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) or {node.module}
    return (found & MODULES.keys()) - {module, "genlab"}


def test_every_room_has_its_place():
    assert {room(module) for module in MODULES} <= set(ORDER)


def test_imports_run_down():
    """Types and functions included. `genlab.load` alone reaches up, from the package itself."""
    upward = {
        (module, other)
        for module in MODULES
        for other in imports(module)
        if module != "genlab" and ORDER.index(room(other)) < ORDER.index(room(module))
    }
    assert upward == set()


def test_no_module_imports_itself_by_way_of_others():
    below: dict[str, set[str]] = {}

    def reach(module: str, path: tuple[str, ...]) -> set[str]:
        assert module not in path, f"a circle: {' > '.join((*path, module))}"
        if module not in below:
            below[module] = set()
            below[module] = set().union(*(reach(m, (*path, module)) | {m} for m in imports(module, for_types=False)))
        return below[module]

    for module in MODULES:
        if module != "genlab":
            reach(module, ())


def test_no_room_is_an_attic():
    """`models` and `networks` grow with the methods; of the others none holds more than a fifth of the lines."""
    lines: dict[str, int] = defaultdict(int, Counter())
    for module, path in MODULES.items():
        lines[room(module)] += len(path.read_text().splitlines())
    total = sum(lines.values())
    assert [r for r, n in lines.items() if n > total / 5 and r not in ("models", "networks")] == []
