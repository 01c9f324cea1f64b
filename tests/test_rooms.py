"""Imports run one way: what is simulated, potentials, observables, training and dynamics, validation, studies."""

import ast
import re
from pathlib import Path

import jaxmlip

PACKAGE = Path(jaxmlip.__file__).parent
FLOORS = {"systems": 1, "potentials": 2, "observables": 3, "training": 4, "simulation": 4, "validation": 5, "study": 6}
BASEMENT, ROOF = 0, 7
"""Floors of the files of the package itself that others stand on, and of those that stand on all others."""

ON_THE_ROOF = ("__init__", "__main__", "cli", "testing")


def floor(module: str) -> int:
    """Of a module below jaxmlip."""
    room = module.split(".")[0]
    return FLOORS.get(room, ROOF if room in ON_THE_ROOF else BASEMENT)


def imports(path: Path) -> set[str]:
    """Modules below jaxmlip that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxmlip":
            inside = node.module.removeprefix("jaxmlip").removeprefix(".")
            found |= {inside} if inside else {alias.name for alias in node.names}
    return found


def test_no_file_imports_one_above_it() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        here = re.sub(r"\.py$", "", str(path.relative_to(PACKAGE))).replace("/", ".")
        above = {there for there in imports(path) if floor(there) > floor(here)}
        sideways = {there for there in imports(path) if floor(there) == floor(here) == 4}
        above |= {there for there in sideways if there.split(".")[0] != here.split(".")[0]}
        wrong += [f"{here} imports {there}" for there in sorted(above)]
    assert not wrong, "; ".join(wrong)


def test_there_are_no_circles() -> None:
    """Within a room as well."""
    modules = {re.sub(r"\.py$", "", str(p.relative_to(PACKAGE))).replace("/", "."): p for p in PACKAGE.rglob("*.py")}
    graph = {name: {there for there in imports(path) if there in modules} for name, path in modules.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " imports ".join([*way[way.index(name) :], name])
        if name not in done:
            for there in graph[name]:
                visit(there, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())
