"""The public face: what type checkers see is what `import jaxmlip` gives, and every name is there."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import jaxmlip

SOURCE = ast.parse(Path(jaxmlip.__file__).read_text())


def imported() -> dict[str, str]:
    """Names of the TYPE_CHECKING block and their modules, without the package."""
    (block,) = (node for node in SOURCE.body if isinstance(node, ast.If))
    statements = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(statements) == len(block.body)
    for statement in statements:
        (alias,) = statement.names
        assert alias.asname == alias.name  # the form that re-exports
    return {node.names[0].name: str(node.module).removeprefix("jaxmlip.") for node in statements}


def test_type_checkers_and_the_interpreter_see_the_same():
    assert imported() == jaxmlip._HOME
    assert sorted(jaxmlip.__all__) == dir(jaxmlip)


@pytest.mark.parametrize("name", jaxmlip.__all__)
def test_every_name_is_there(name):
    found = getattr(jaxmlip, name)
    assert found is getattr(import_module(f"jaxmlip.{jaxmlip._HOME[name]}"), name)
    assert found.__doc__, f"{name} has no documentation"


@pytest.mark.parametrize(
    "name",
    ["TangentKernel", "PairDifference", "TrainingProblem", "edge_vectors", "FrameState", "Ensemble", "read_header"],
)
def test_what_extensions_need_is_public(name):
    assert name in jaxmlip.__all__
