"""Imports inside `natjax.train` go one way, and never in a circle."""

import ast
import pathlib

import pytest

import natjax

TRAIN = pathlib.Path(natjax.__file__).parent / "train"
# Each may import those of the lines above its own, and itself.
LEVELS = [
    {"errors", "console"},
    {"files"},
    {"config"},
    {"cluster"},
    {"checkpoint", "reporting"},
    {"engine", "data"},
    {"tasks"},
    {"cli"},
]
PREFIX = "natjax.train."


def imports(path: pathlib.Path):
    """Modules that a file imports, wherever in it; a name that is no module is left off."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (module(node.module, alias.name) for alias in node.names)


def module(package: str, name: str) -> str:
    inner = f"{package}.{name}"
    path = TRAIN.joinpath(*inner.removeprefix(PREFIX).split("."))
    is_module = inner.startswith(PREFIX) and (path.is_dir() or path.with_suffix(".py").is_file())
    return inner if is_module else package


def graph() -> dict[str, set[str]]:
    """What each module of training imports of training."""
    found = {}
    for path in TRAIN.rglob("*.py"):
        name = path.relative_to(TRAIN).with_suffix("").as_posix().replace("/", ".")
        own = {x.removeprefix(PREFIX) for x in imports(path) if x.startswith(PREFIX)}
        found[name.removesuffix(".__init__")] = own
    return found


GRAPH = graph()


def level(module: str) -> int:
    head = module.partition(".")[0]
    return next(index for index, heads in enumerate(LEVELS) if head in heads)


def task(module: str) -> str | None:
    """The task that a module is of: `tasks` itself has the registry."""
    parts = module.split(".")
    inside = parts[0] == "tasks" and len(parts) > 1
    return parts[1] if inside and (TRAIN / "tasks" / parts[1]).is_dir() else None


def test_every_module_has_its_level():
    assert {module.partition(".")[0] for module in GRAPH} - {"__init__"} == set().union(*LEVELS)


@pytest.mark.parametrize("module", sorted(set(GRAPH) - {"__init__"}))
def test_imports_go_down(module):
    for other in GRAPH[module]:
        same = module.partition(".")[0] == other.partition(".")[0]
        assert same or level(other) < level(module), f"{module} imports {other}"
        if task(module) and task(other):
            assert task(module) == task(other), f"tasks import each other: {module}, {other}"


def test_no_module_imports_itself_by_way_of_others():
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " > ".join((*way, module))
        if module not in done:
            for other in GRAPH.get(module, set()):
                visit(other, (*way, module))
            done.add(module)

    for module in GRAPH:
        visit(module, ())


def test_natjax_reaches_training_at_one_place():
    """Where the command line begins."""
    reaching = {}
    for path in TRAIN.parent.rglob("*.py"):
        if TRAIN in path.parents or "train" in path.relative_to(TRAIN.parent).parts:
            continue
        if found := [x for x in imports(path) if x.startswith("natjax.train")]:
            reaching[path.relative_to(TRAIN.parent).as_posix()] = found
    assert reaching == {"cli/__init__.py": ["natjax.train.cli.main"]}
